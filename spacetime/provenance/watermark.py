"""Invisible watermark in the chroma of every frame: 32 bits and a checksum.

A tile of 16 x 16 chips is repeated over the blue-difference plane: some chips
are a synchronisation pattern, the others carry bits. For each frame the
amplitudes of all patterns are solved in a closed loop, so that the correlation
that the reader measures reaches its target: the picture's own interference is
cancelled (informed embedding; Miller, Doerr and Cox 2004, "Applying informed
coding and embedding to design a robust high-capacity watermark"). The reader
averages frames, folds them on the tile, and finds scale by trial and shift by
correlation.

The scheme is symmetric: whoever has the key can forge or remove a mark. It is a
durable label, not a proof; the proof is the signed manifest.
"""

import binascii
import dataclasses
import functools
import hashlib
import itertools

import numpy as np

NAME = 'org.spacetime.chroma.1'  # of this scheme, in manifests
PAYLOAD_BITS, CHECK_BITS = 32, 16
BITS = PAYLOAD_BITS + CHECK_BITS
ROWS = 128  # rows of the plane that is read and written
CHIPS = 16  # chips along each side of the tile
CHIP = 3  # pixels of a chip in that plane
TILE = CHIPS * CHIP
SYNC = 0.3  # share of the chips
# A frame of fewer rows carries a tile of twice the size, since its chroma does
# not resolve the small one.
SMALL_ROWS = 240
BLUR = 4  # pixels around a pixel whose mean and deviation normalise it
# Targets of the correlation, and bounds of the amplitude in grey levels.
TARGET, SYNC_TARGET = 0.44, 0.44
FLOOR, CEILING = 0.8, 5.0
LOOPS, GAIN = 8, 0.8
EPSILON = 0.5
# Blue difference in BT.709.
BLUE_DIFFERENCE = np.array([-0.1146, -0.3854, 0.5], np.float32)
FROM_BLUE_DIFFERENCE = np.array([0.0, -0.1873, 1.8556], np.float32)
READ_FRAMES = 24
# Of a tile in the plane that is read: enlarged 1.4 times to reduced 2.6 times.
PERIODS = np.geomspace(0.7, 2.6, 192) * TILE
CANDIDATES = 6  # peaks whose bits are checked
FLIPS = 8  # of the weakest bits, all combinations are tried
LEAST_SCORE = 5.0  # of a detection; the checksum must be right as well


@dataclasses.dataclass(frozen=True)
class Reading:
  """What was read from frames.

  Attributes:
    payload: the payload, None if there is no mark or it is damaged.
    score: standard deviations of the synchronisation peak above chance.
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
  def tiles(self) -> np.ndarray:
    """Patterns (1 + BITS, CHIPS, CHIPS) of -1, 0 and 1; the first is sync."""
    seed = hashlib.sha256(b'watermark' + self.seed).digest()
    random = np.random.default_rng(list(seed))
    count = CHIPS * CHIPS
    order, signs = random.permutation(count), random.choice([-1.0, 1.0], count)
    tiles = np.zeros((1 + BITS, count), np.float32)
    sync = round(SYNC * count)
    tiles[0, order[:sync]] = signs[order[:sync]]
    for i, chip in enumerate(order[sync:]):
      tiles[1 + i % BITS, chip] = signs[chip]
    return tiles.reshape(1 + BITS, CHIPS, CHIPS)


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
  arrays = _embedding_arrays(height, width, key, payload)
  result = [
    np.asarray(jax.device_get(_embed_jit()(frame, *arrays, strength)))
    for frame in frames_FHWC
  ]
  return np.stack(result)


def read(frames_FHWC: np.ndarray, key: Key) -> Reading:
  """Reads a watermark, also of cropped, resized or mirrored frames.

  Args:
    frames_FHWC: uint8 frames (F, H, W, 3).
    key: the key of the embedding.
  """
  count = len(frames_FHWC)
  index = np.linspace(0, count - 1, min(count, READ_FRAMES)).round().astype(int)
  height, width = frames_FHWC.shape[1:3]
  filters = _filters(height, width)
  planes = [
    _normalised(_plane(frames_FHWC[i].astype(np.float32), filters), filters, np)
    for i in index
  ]
  mean_HW = np.mean([plane for plane, _ in planes], axis=0)
  peaks = []
  for flipped in (False, True):
    plane = mean_HW[:, ::-1] if flipped else mean_HW
    peaks += _peaks(plane, key)
  peaks = sorted(peaks, key=lambda peak: -peak[0])[:CANDIDATES]
  for score, bits in peaks:
    payload = _decode(bits)
    if payload is not None and score >= LEAST_SCORE:
      return Reading(payload, float(score))
  return Reading(None, float(peaks[0][0]))


def payload_of(*values: str | int) -> int:
  """The payload of a video: 32 bits of a digest of what determines it."""
  text = '\0'.join(str(value) for value in values)
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], 'big')


# -- bits ----------------------------------------------------------------------


def _check(payload: int) -> int:
  return binascii.crc_hqx(payload.to_bytes(PAYLOAD_BITS // 8, 'big'), 0)


def _encode(payload: int) -> np.ndarray:
  """Signs (BITS,) of a payload and its checksum."""
  value = payload << CHECK_BITS | _check(payload)
  bits = [(value >> i) & 1 for i in range(BITS)]
  return np.array(bits, np.float32) * 2 - 1


def _decode(signs: np.ndarray) -> int | None:
  """The payload of soft signs (BITS,), whose weakest may be wrong; None if no
  correction of these has the right checksum."""
  value = sum(int(sign > 0) << i for i, sign in enumerate(signs))
  weakest = [1 << int(i) for i in np.argsort(np.abs(signs))[:FLIPS]]
  for count in range(FLIPS + 1):
    for flips in itertools.combinations(weakest, count):
      corrected = value ^ sum(flips)
      payload = corrected >> CHECK_BITS
      if _check(payload) == corrected & (2**CHECK_BITS - 1):
        return payload
  return None


# -- planes --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Filters:
  """Matrices of a frame size: they reduce, blur and enlarge by products."""

  rows: np.ndarray
  columns: np.ndarray
  blur_rows: np.ndarray
  blur_columns: np.ndarray
  up_rows: np.ndarray
  up_columns: np.ndarray


@functools.lru_cache(8)
def _filters(height: int, width: int) -> _Filters:
  columns = max(TILE, round(ROWS * width / height))
  return _Filters(
    _resize(ROWS, height),
    _resize(columns, width),
    _blur(ROWS),
    _blur(columns),
    _resize(height, ROWS),
    _resize(width, columns),
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


def _plane(frame_HWC, filters: _Filters):
  """The reduced blue-difference plane of a frame."""
  return filters.rows @ (frame_HWC @ BLUE_DIFFERENCE) @ filters.columns.T


def _normalised(plane_HW, filters: _Filters, xp):
  """A plane less its local mean, over its local deviation; the deviation."""
  rows, columns = filters.blur_rows, filters.blur_columns
  residual = plane_HW - rows @ plane_HW @ columns.T
  deviation = xp.sqrt(rows @ residual**2 @ columns.T)
  return residual / (deviation + EPSILON), deviation


# -- embedding -----------------------------------------------------------------


def _embedding_arrays(height: int, width: int, key: Key, payload: int):
  """Filters and signed patterns (1 + BITS, ROWS, columns) of a size."""
  filters = _filters(height, width)
  chip = CHIP if height >= SMALL_ROWS else 2 * CHIP
  tiles = key.tiles.repeat(chip, 1).repeat(chip, 2)
  columns = len(filters.columns)
  side = tiles.shape[1]
  repeats = (1, -(-ROWS // side), -(-columns // side))
  patterns = np.tile(tiles, repeats)[:, :ROWS, :columns]
  signs = np.concatenate([[1.0], _encode(payload)]).astype(np.float32)
  return dataclasses.astuple(filters), patterns * signs[:, None, None]


@functools.cache
def _embed_jit():
  import jax

  return jax.jit(_embed_frame)


def _embed_frame(frame_HWC, filters, patterns_KHW, strength):
  """A frame with its mark, uint8; amplitudes are solved in a closed loop."""
  import jax
  import jax.numpy as jnp

  filters = _Filters(*filters)
  frame_HWC = frame_HWC.astype(jnp.float32)
  plane_HW = _plane(frame_HWC, filters)
  _, deviation_HW = _normalised(plane_HW, filters, jnp)
  mask_HW = jnp.clip(deviation_HW, FLOOR, CEILING) * strength
  size_K = jnp.abs(patterns_KHW).sum((1, 2))
  target_K = jnp.full(len(size_K), TARGET).at[0].set(SYNC_TARGET) * strength

  def mark(amplitude_K):
    return mask_HW * jnp.einsum('k,khw->hw', amplitude_K, patterns_KHW)

  def loop(amplitude_K, _):
    normal_HW, _ = _normalised(plane_HW + mark(amplitude_K), filters, jnp)
    score_K = jnp.einsum('hw,khw->k', normal_HW, patterns_KHW) / size_K
    step_K = GAIN * (target_K - score_K)
    return jnp.clip(amplitude_K + step_K, 0.0, 1.5), None

  amplitude_K, _ = jax.lax.scan(loop, target_K, None, length=LOOPS)
  full_HW = filters.up_rows @ mark(amplitude_K) @ filters.up_columns.T
  marked = frame_HWC + full_HW[..., None] * FROM_BLUE_DIFFERENCE
  return jnp.clip(jnp.round(marked), 0, 255).astype(jnp.uint8)


# -- reading -------------------------------------------------------------------


def _peaks(plane_HW: np.ndarray, key: Key) -> list[tuple[float, np.ndarray]]:
  """(score, signs of the bits) of the best shift at each period."""
  tiles = key.tiles.repeat(CHIP, 1).repeat(CHIP, 2)
  sync = np.conj(np.fft.rfft2(tiles[0]))
  rows, columns = plane_HW.shape
  result = []
  for period in PERIODS:
    scale = TILE / period
    height, width = round(rows * scale), round(columns * scale)
    if height < TILE or width < TILE:
      continue
    scaled = _resize(height, rows) @ plane_HW @ _resize(width, columns).T
    fold = _fold(scaled)
    correlation = np.fft.irfft2(np.fft.rfft2(fold) * sync, s=fold.shape)
    peak = np.unravel_index(correlation.argmax(), correlation.shape)
    spread = correlation.std() + 1e-9  # of black frames it is zero
    score = (correlation[peak] - correlation.mean()) / spread
    tile = np.roll(fold, [-i for i in peak], (0, 1))
    result.append((score, np.einsum('hw,khw->k', tile, tiles[1:])))
  return result


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
