"""Invisible watermark in the chroma of every frame: 32 bits and a checksum.

A tile of 16 x 16 chips is repeated over the blue-difference plane: some chips
are a synchronisation pattern, the others carry the signs of an error-correcting
code. The amplitudes of the chips are solved in a closed loop for a few frames
together, so that the correlation that the reader measures reaches its target:
the picture's own interference is cancelled (informed embedding; Miller, Doerr
and Cox 2004, "Applying informed coding and embedding to design a robust
high-capacity watermark"), and the mark costs few bytes, since it does not
change from frame to frame. The reader averages frames, folds them on the tile,
and finds scale by trial and shift by correlation; then it weights frames by how
well they show the synchronisation pattern, and decodes. Where that fails, it
subtracts the blue difference that the other two planes predict (least squares
around each pixel, as in the guided filter: He, Sun and Tang 2013), and tries
again: in the palette of a GIF the picture's own interference is large.

The scheme is symmetric: whoever has the key can forge or remove a mark. It is a
durable label, not a proof; the proof is the signed manifest.
"""

import binascii
import dataclasses
import functools
import hashlib

import numpy as np

from spacetime.provenance import error_correction

NAME = 'org.spacetime.chroma.2'  # of this scheme, in manifests
PAYLOAD_BITS, CHECK_BITS = 32, 16
BITS = PAYLOAD_BITS + CHECK_BITS
ROWS = 128  # rows of the plane that is read and written
CHIPS = 16  # chips along each side of the tile
CHIP = 4  # pixels of a chip in that plane
TILE = CHIPS * CHIP
SYNC = CHIPS * CHIPS - BITS * error_correction.RATE  # chips
# A frame of fewer rows carries a larger tile, since its chroma does not resolve
# the small one.
SMALL_ROWS, SMALL_CHIP = 240, 6
# Codecs spend one coefficient on a chip that fills macroblocks of so many
# pixels, and in frames of fewer rows, their quarters.
BLOCK, LARGE_ROWS = 16, 400
BLUR = 5  # pixels around a pixel whose mean and deviation normalise it
GROUP = 16  # frames with the same mark, about
TARGET = 0.2  # of the correlation of each chip
# Of amplitudes in grey levels: of a chip, and root mean square of all, which
# is 42.6 dB. One amplitude in all of a frame costs fewer bytes and survives
# better than one that follows the picture's activity.
LARGEST, LARGEST_RMS = 2.2, 1.75
# Where the mark needs a larger root mean square than this, the picture is busy,
# hides more and costs more bytes anyway: the target is up to so much higher.
BUSY_RMS, BUSY = 0.75, 2.0
LOOPS, GAIN = 8, 1.4
EPSILON = 0.5
# Blue difference in BT.709.
BLUE_DIFFERENCE = np.array([-0.1146, -0.3854, 0.5], np.float32)
FROM_BLUE_DIFFERENCE = np.array([0.0, -0.1873, 1.8556], np.float32)
LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
RED_DIFFERENCE = np.array([0.5, -0.4542, -0.0458], np.float32)
RIDGE = 4.0  # of the prediction from those two, in squared grey levels
READ_FRAMES = 24
FIRST_FRAME = 4  # weight of the first frame, of which codecs keep most
# Of a tile in the plane that is read: enlarged 1.4 times to reduced 2.6 times.
PERIODS = np.geomspace(0.7, 2.6, 192) * TILE
LEAST_TILE = 0.8  # share of a tile that a frame must show
CANDIDATES = 8  # peaks whose bits are decoded
# Of a detection: correlation of the tile and what was read. The likeliest
# message in noise has 0.49, with a standard deviation of 0.03.
LEAST_SCORE = 0.56


@dataclasses.dataclass(frozen=True)
class Reading:
  """What was read from frames.

  Attributes:
    payload: the payload, None if there is no mark or it is damaged.
    score: correlation of the tile with the pattern that was read, 0 to 1.
  """

  payload: int | None
  score: float


@dataclasses.dataclass(frozen=True)
class Key:
  """A watermark key: seed of the patterns.

  Attributes:
    seed: 32 bytes or more, secret.
  """

  seed: bytes

  @functools.cached_property
  def layout(self) -> tuple[np.ndarray, np.ndarray]:
    """Order of the chips, those of the synchronisation pattern first, and the
    sign of each place, (CHIPS * CHIPS,) both."""
    seed = hashlib.sha256(b'watermark' + self.seed).digest()
    random = np.random.default_rng(list(seed))
    count = CHIPS * CHIPS
    return random.permutation(count), random.choice([-1.0, 1.0], count)

  def pattern(self, code: np.ndarray | None) -> np.ndarray:
    """Chips (CHIPS, CHIPS) of -1 and 1 of a code's signs; None: of the
    synchronisation pattern alone, 0 elsewhere."""
    order, sign = self.layout
    chips = np.zeros(CHIPS * CHIPS, np.float32)
    chips[order[:SYNC]] = 1
    if code is not None:
      chips[order[SYNC:]] = code
    return (chips * sign).reshape(CHIPS, CHIPS).astype(np.float32)

  def soft(self, chips: np.ndarray) -> np.ndarray:
    """Soft signs of the code from chips (CHIPS, CHIPS)."""
    order, sign = self.layout
    return (chips.ravel() * sign)[order[SYNC:]]


def embed(
  frames_FHWC: np.ndarray, payload: int, key: Key, *, strength: float = 1.0
) -> np.ndarray:
  """Frames with a watermark, uint8 (F, H, W, 3).

  Args:
    frames_FHWC: uint8 frames.
    payload: 0 to 2**32 - 1.
    key: the key that reads it.
    strength: factor on the targets and amplitudes.

  Raises:
    ValueError: a payload of more bits.
  """
  import jax

  if not 0 <= payload < 2**PAYLOAD_BITS:
    raise ValueError(f'payload={payload}: expected {PAYLOAD_BITS} bits')
  height, width = frames_FHWC.shape[1:3]
  chip = _chip_pixels(height)
  filters = dataclasses.astuple(_filters(height, width))
  chips = _chip_matrices(height, width, chip)
  pattern = key.pattern(error_correction.encode(_bits(payload)))
  amplitude = np.full_like(pattern, LARGEST / 4)
  count = len(frames_FHWC)
  group = -(-count // max(1, round(count / GROUP)))
  result = []
  for start in range(0, count, group):
    frames = frames_FHWC[start : start + group]
    missing = group - len(frames)  # one program for all groups
    padded = np.concatenate([frames, frames[-1:].repeat(missing, 0)])
    marked, amplitude = _embed_jit(chip)(
      padded, filters, chips, pattern, amplitude, strength
    )
    result.append(np.asarray(jax.device_get(marked))[: len(frames)])
  return np.concatenate(result)


def read(frames_FHWC: np.ndarray, key: Key, *, search: bool = True) -> Reading:
  """Reads a watermark, also of cropped, resized or mirrored frames.

  Args:
    frames_FHWC: uint8 frames (F, H, W, 3).
    key: the key of the embedding.
    search: whether the frames may have been cropped, resized or mirrored, which
      takes longer.
  """
  count = len(frames_FHWC)
  index = np.linspace(0, count - 1, min(count, READ_FRAMES)).round().astype(int)
  height, width = frames_FHWC.shape[1:3]
  filters = _filters(height, width)
  frames = [frames_FHWC[i].astype(np.float32) for i in index]
  tile = _chip_pixels(height) * CHIPS * ROWS / height
  residuals, best = [], Reading(None, 0.0)
  for residual in (_own_residual, _unpredicted):
    planes_FHW = np.stack([residual(frame, filters) for frame in frames])
    residuals.append(planes_FHW)
    reading = _read_at(_Peak(0.0, tile, (0, 0)), planes_FHW, key)
    if reading.payload is not None:
      return reading
    best = max(best, reading, key=lambda r: r.score)
  for planes_FHW in residuals if search else ():
    reading = _search(planes_FHW, key)
    if reading.payload is not None:
      return reading
    best = max(best, reading, key=lambda r: r.score)
  return best


def _search(planes_FHW: np.ndarray, key: Key) -> Reading:
  """The reading at the likeliest scales and shifts, or the best without a
  payload."""
  weights, best = _weights(len(planes_FHW)), Reading(None, 0.0)
  mean_HW = np.average(planes_FHW, axis=0, weights=weights)
  peaks = _peaks(mean_HW, key.pattern(None))
  peaks.sort(key=lambda peak: -peak.height)
  for peak in peaks[:CANDIDATES]:
    reading = _read_at(peak, planes_FHW, key)
    if reading.payload is not None:
      return reading
    best = max(best, reading, key=lambda r: r.score)
  return best


def payload_of(*values: str | int) -> int:
  """The payload of a video: 32 bits of a digest of what determines it."""
  text = '\0'.join(str(value) for value in values)
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], 'big')


# -- bits ----------------------------------------------------------------------


def _check(payload: int) -> int:
  return binascii.crc_hqx(payload.to_bytes(PAYLOAD_BITS // 8, 'big'), 0)


def _bits(payload: int) -> np.ndarray:
  """Bits (BITS,) of a payload and its checksum."""
  value = payload << CHECK_BITS | _check(payload)
  return np.array([(value >> i) & 1 for i in range(BITS)])


def _payload(bits: np.ndarray) -> int | None:
  """The payload of bits (BITS,), None if the checksum is another."""
  value = sum(int(bit) << i for i, bit in enumerate(bits))
  payload = value >> CHECK_BITS
  right = _check(payload) == value & (2**CHECK_BITS - 1)
  return payload if right else None


# -- planes --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Filters:
  """Matrices of a frame size: they reduce and blur by products."""

  rows: np.ndarray
  columns: np.ndarray
  blur_rows: np.ndarray
  blur_columns: np.ndarray


@functools.lru_cache(8)
def _filters(height: int, width: int) -> _Filters:
  columns = max(TILE, round(ROWS * width / height))
  return _Filters(
    _resize(ROWS, height),
    _resize(columns, width),
    _blur(ROWS),
    _blur(columns),
  )


@functools.lru_cache(512)
def _resize(after: int, before: int) -> np.ndarray:
  """Matrix (after, before) of linear interpolation, with a wider filter where
  it reduces."""
  scale = before / after
  support = max(1.0, scale)
  centre = (np.arange(after) + 0.5) * scale - 0.5
  distance = np.abs(np.arange(before)[None] - centre[:, None]) / support
  weight = np.maximum(0, 1 - distance)
  return (weight / weight.sum(1, keepdims=True)).astype(np.float32)


@functools.lru_cache(64)
def _blur(size: int) -> np.ndarray:
  distance = np.abs(np.arange(size)[None] - np.arange(size)[:, None])
  weight = np.maximum(0, 1 - distance / (BLUR + 1.0))
  return (weight / weight.sum(1, keepdims=True)).astype(np.float32)


def _plane(frame_HWC, filters: _Filters, weights=BLUE_DIFFERENCE):
  """The reduced blue-difference plane of a frame, or another."""
  return filters.rows @ (frame_HWC @ weights) @ filters.columns.T


def _local(plane_HW, filters: _Filters):
  """The local mean of a plane."""
  return filters.blur_rows @ plane_HW @ filters.blur_columns.T


def _normalised(plane_HW, filters: _Filters, xp):
  """A plane less its local mean, over its local deviation."""
  residual = plane_HW - _local(plane_HW, filters)
  deviation = xp.sqrt(_local(residual**2, filters))
  return residual / (deviation + EPSILON)


def _own_residual(frame_HWC: np.ndarray, filters: _Filters) -> np.ndarray:
  """The normalised blue difference of a frame."""
  return _normalised(_plane(frame_HWC, filters), filters, np)


def _unpredicted(frame_HWC: np.ndarray, filters: _Filters) -> np.ndarray:
  """The blue difference of a frame less what luma and red difference predict
  around each pixel, over its local deviation."""
  blue, luma, red = (
    plane_HW - _local(plane_HW, filters)
    for plane_HW in (
      _plane(frame_HWC, filters, weights)
      for weights in (BLUE_DIFFERENCE, LUMA, RED_DIFFERENCE)
    )
  )
  ll, rr = (_local(x**2, filters) + RIDGE for x in (luma, red))
  lr, bl, br = (
    _local(x, filters) for x in (luma * red, blue * luma, blue * red)
  )
  determinant = ll * rr - lr**2  # positive, by the ridge
  blue = blue - (bl * rr - br * lr) / determinant * luma
  blue = blue - (br * ll - bl * lr) / determinant * red
  return blue / (np.sqrt(_local(blue**2, filters)) + EPSILON)


# -- embedding -----------------------------------------------------------------


def _chip_pixels(height: int) -> int:
  """Pixels of a frame along each side of a chip."""
  if height < SMALL_ROWS:
    return max(1, round(SMALL_CHIP * height / ROWS))
  block = BLOCK if height >= LARGE_ROWS else BLOCK // 2
  return block * max(1, round(CHIP * height / ROWS / block + 0.2))


@functools.lru_cache(8)
def _chip_matrices(
  height: int, width: int, chip: int
) -> tuple[np.ndarray, np.ndarray]:
  """Share of each chip in each row, and in each column, of the plane."""
  filters = _filters(height, width)
  return tuple(
    reduce @ np.eye(-(-size // chip), dtype=np.float32).repeat(chip, 0)[:size]
    for reduce, size in ((filters.rows, height), (filters.columns, width))
  )


@functools.cache
def _embed_jit(chip: int):
  import jax

  return jax.jit(functools.partial(_embed_group, chip))


def _embed_group(
  chip, frames_FHWC, filters, chips, pattern, amplitude, strength
):
  """Frames with their mark, uint8, and the amplitudes (CHIPS, CHIPS) of its
  chips, solved in a closed loop from those of the frames before."""
  import jax
  import jax.numpy as jnp

  filters = _Filters(*filters)
  rows, columns = chips
  grid = rows.shape[1], columns.shape[1]
  repeats = tuple(-(-size // CHIPS) for size in grid)
  frames_FHWC = frames_FHWC.astype(jnp.float32)
  planes_FHW = _plane(frames_FHWC, filters)

  def fold(plane_HW):
    """Sum of the pixels of each chip of the tile."""
    sums = rows.T @ plane_HW @ columns
    room = [
      (0, n * CHIPS - size) for n, size in zip(repeats, grid, strict=True)
    ]
    parts = jnp.pad(sums, room).reshape(repeats[0], CHIPS, repeats[1], CHIPS)
    return parts.sum((0, 2))

  def mark(amplitude):
    """Chips of a frame."""
    return jnp.tile(amplitude * pattern, repeats)[: grid[0], : grid[1]]

  size = jnp.maximum(fold(jnp.ones(planes_FHW.shape[1:])), 1e-3)

  def loop(amplitude, _):
    mark_HW = rows @ mark(amplitude) @ columns.T
    normal_FHW = _normalised(planes_FHW + mark_HW, filters, jnp)
    score = fold(normal_FHW.mean(0)) / size * pattern
    rms = jnp.sqrt(jnp.mean(amplitude**2)) / strength
    target = TARGET * strength * jnp.clip(rms / BUSY_RMS, 1.0, BUSY)
    amplitude = amplitude + GAIN * (target - score)
    amplitude = jnp.clip(amplitude, 0.0, LARGEST * strength)
    rms = jnp.sqrt(jnp.mean(amplitude**2))
    return amplitude * jnp.minimum(1, LARGEST_RMS * strength / rms), None

  amplitude, _ = jax.lax.scan(loop, amplitude, None, length=LOOPS)
  height, width = frames_FHWC.shape[1:3]
  full_HW = mark(amplitude).repeat(chip, 0).repeat(chip, 1)[:height, :width]
  marked = frames_FHWC + full_HW[..., None] * FROM_BLUE_DIFFERENCE
  return jnp.clip(jnp.round(marked), 0, 255).astype(jnp.uint8), amplitude


# -- reading -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Peak:
  """Where a tile may lie.

  Attributes:
    height: of the correlation, in standard deviations above chance.
    period: of the tile, in pixels of the plane.
    shift: rows and columns of the tile that is resized to TILE.
    is_mirrored: whether it lies in the mirrored plane.
  """

  height: float
  period: float
  shift: tuple[int, int]
  is_mirrored: bool = False

  def chips(self, plane_HW: np.ndarray) -> np.ndarray:
    """Means of the chips of a plane, (CHIPS, CHIPS)."""
    if self.is_mirrored:
      plane_HW = plane_HW[:, ::-1]
    fold = _fold(_resized(plane_HW, self.period))
    tile = np.roll(fold, [-i for i in self.shift], (0, 1))
    return tile.reshape(CHIPS, CHIP, CHIPS, CHIP).mean((1, 3))


def _peaks(plane_HW: np.ndarray, pattern: np.ndarray) -> list[_Peak]:
  """The best shift of a pattern at each period, as it is and mirrored."""
  tile = pattern.repeat(CHIP, 0).repeat(CHIP, 1)
  spectrum = np.conj(np.fft.rfft2(tile))
  result = []
  for period in PERIODS:
    if min(plane_HW.shape) < LEAST_TILE * period:
      continue
    resized_HW = _resized(plane_HW, period)
    for step in (1, -1):
      fold = _fold(resized_HW[:, ::step])
      correlation = np.fft.irfft2(np.fft.rfft2(fold) * spectrum, s=fold.shape)
      shift = np.unravel_index(correlation.argmax(), correlation.shape)
      spread = correlation.std() + 1e-9  # of black frames it is zero
      height = (correlation[shift] - correlation.mean()) / spread
      result.append(_Peak(float(height), period, shift, step < 0))
  return result


def _read_at(peak: _Peak, planes_FHW: np.ndarray, key: Key) -> Reading:
  """What the planes of frames say at a place, by three weightings of them."""
  weight_F = _weights(len(planes_FHW))
  first_F = np.arange(len(planes_FHW)) == 0
  chips_FCC = np.stack([peak.chips(plane_HW) for plane_HW in planes_FHW])
  best = Reading(None, 0.0)
  for weights in (_by_sync(chips_FCC, key), weight_F, first_F):
    reading = _decode(np.average(chips_FCC, axis=0, weights=weights), key)
    if reading.payload is not None:
      return reading
    best = max(best, reading, key=lambda r: r.score)
  return best


def _weights(count: int) -> np.ndarray:
  """Weights of frames, the first more than others."""
  weight_F = np.ones(count, np.float32)
  weight_F[0] = FIRST_FRAME
  return weight_F


def _by_sync(chips_FCC: np.ndarray, key: Key) -> np.ndarray:
  """Weights of frames: how well each shows the synchronisation pattern.

  Codecs keep the mark in some frames and lose it in others.
  """
  pattern = key.pattern(None)
  norm_F = np.sqrt((chips_FCC**2).sum((1, 2))) + 1e-9
  correlation_F = (chips_FCC * pattern).sum((1, 2)) / norm_F
  return np.maximum(correlation_F, 0) + 1e-3


def _decode(chips: np.ndarray, key: Key) -> Reading:
  """The likeliest message with a right checksum, if one is likely enough."""
  norm = np.linalg.norm(chips) * CHIPS + 1e-9
  best = Reading(None, 0.0)
  for bits in error_correction.decode(key.soft(chips)):
    pattern = key.pattern(error_correction.encode(bits))
    score = float((pattern * chips).sum() / norm)
    payload = _payload(bits)
    if payload is not None and score >= LEAST_SCORE:
      return Reading(payload, score)
    best = max(best, Reading(None, score), key=lambda r: r.score)
  return best


def _resized(plane_HW: np.ndarray, period: float) -> np.ndarray:
  """A plane whose tiles of a period become TILE pixels."""
  rows, columns = plane_HW.shape
  height, width = (max(1, round(n * TILE / period)) for n in (rows, columns))
  return _resize(height, rows) @ plane_HW @ _resize(width, columns).T


def _fold(plane_HW: np.ndarray) -> np.ndarray:
  """Mean of all tiles of a plane, (TILE, TILE)."""
  rows, columns = (-(-size // TILE) * TILE for size in plane_HW.shape)
  padded = np.zeros((2, rows, columns), np.float32)
  padded[0, : plane_HW.shape[0], : plane_HW.shape[1]] = plane_HW
  padded[1, : plane_HW.shape[0], : plane_HW.shape[1]] = 1
  folded = padded.reshape(2, rows // TILE, TILE, columns // TILE, TILE)
  total, count = folded.sum((1, 3))
  return total / np.maximum(count, 1)


def psnr(a_FHWC: np.ndarray, b_FHWC: np.ndarray) -> float:
  """Peak signal-to-noise ratio of uint8 frames in dB."""
  error = np.mean((a_FHWC.astype(np.float32) - b_FHWC) ** 2)
  return float(10 * np.log10(255**2 / max(error, 1e-10)))
