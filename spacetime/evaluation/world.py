"""Measures clips of the digits world and scores them against scenes.

`measure` reads pixels only: it segments and tracks characters and classifies
colours, digits, sizes and motions. `score` compares the result with a scene.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
from scipy import optimize, stats

from spacetime.data.digits import motions, paths
from spacetime.data.digits import world as world_lib
from spacetime.evaluation import cameras, digit_classifier, segments

# In units of the shorter side: the longest path of a character in a clip, its
# largest displacement between two frames, and the distance that is added for a
# blob of another colour.
RUN = 2.5
JUMP = 0.5
OTHER_COLOUR = 0.08
# Least share of the frames in which a character is visible.
PRESENCE = 0.5
# Number of views of a character that vote on its digit, and of those at either
# end of a clip whose digits are compared.
VOTES = 6
ENDS = 3
# Resamples of a bootstrap.
RESAMPLES = 2000
# Opacity above which a pixel is solid ink, and ink at all.
SOLID, FAINT = 0.85, 0.15
# Range of a path's length relative to the template of its motion.
STRETCH = (0.6, 1.6)

# A score of 1 is right; `sharpness` alone is to be compared with real clips.
SCORES = (
  'count',
  'colour',
  'digit',
  'motion',
  'size',
  'camera',
  'binding',
  'identity',
  'sharpness',
  'all',
)
# Attributes of a character, and their weights when characters are matched.
ATTRIBUTES = ('colour', 'digit', 'motion', 'size')
_WEIGHTS = (8, 4, 2, 1)


@dataclasses.dataclass(frozen=True)
class Track:
  """One character, tracked over the frames.

  Attributes:
    colour: palette colour of most of its blobs.
    digit: 0 to 9.
    path_F2: (y, x) of its centroid in pixels, interpolated in frames where it
      is not detected.
    motion: a name in world.MOTIONS, relative to the frame, camera included.
    edge_F: edge of the square of its glyph in pixels, estimated from the ink,
      interpolated as the path is.
    ends: digits of its first and of its last views.
    sharpness: of its outline, see `sharpness`.
  """

  colour: str
  digit: int
  path_F2: np.ndarray
  motion: str
  edge_F: np.ndarray
  ends: tuple[int, int]
  sharpness: float


@dataclasses.dataclass(frozen=True)
class Measurement:
  """The characters detected in a clip.

  Attributes:
    shape: frames, height and width of the clip.
    tracks: the characters, the largest first.
    ground_F3C: the affine background of each frame, see segments.fit_ground.
  """

  shape: tuple[int, int, int]
  tracks: tuple[Track, ...]
  ground_F3C: np.ndarray

  @property
  def camera(self) -> str:
    """The camera that fits best: a name in world.CAMERAS."""
    return cameras.classify(
      self.ground_F3C, [track.edge_F for track in self.tracks], self.shape
    )

  @property
  def count(self) -> int:
    """The number of characters."""
    return len(self.tracks)


def measure(frames_FHWC: np.ndarray) -> Measurement:
  """Detects the characters of a clip from its pixels alone.

  The first call fits the digit classifier, which takes seconds.

  Args:
    frames_FHWC: uint8, at least 16 rows and columns.

  Returns:
    The characters that are visible in at least half of the frames.

  Raises:
    ValueError: an array of another dtype or shape.
  """
  shape = frames_FHWC.shape
  good = len(shape) == 4 and shape[3] == 3 and min(shape[1:3]) >= 16
  if not good or frames_FHWC.dtype != np.uint8:
    raise ValueError(
      f'frames are {frames_FHWC.dtype} {shape}: expected uint8 (F, H, W, 3) '
      'of at least 16 rows and columns'
    )
  frames, height, width, _ = shape
  side = min(height, width)
  jump = side * min(JUMP, RUN / max(frames - 1, 1))
  chains = link_blobs(segments.blobs(frames_FHWC), side=side, jump=jump)
  chains = [chain for chain in chains if len(chain) >= PRESENCE * frames]
  chains.sort(key=lambda chain: -np.mean([blob.area for blob in chain]))
  tracks = tuple(_track(chain, shape[:3]) for chain in chains)
  return Measurement(shape[:3], tracks, segments.fit_ground(frames_FHWC))


def link_blobs(
  blobs: list[segments.Blob], *, side: int, jump: float
) -> list[list[segments.Blob]]:
  """Links blobs into chains, one per character, with at most one per frame.

  Args:
    blobs: blobs of a clip.
    side: shorter side of a frame, in pixels.
    jump: largest displacement of a character from frame to frame, in pixels.
  """
  chains = []
  for frame in sorted({blob.frame for blob in blobs}):
    here = [blob for blob in blobs if blob.frame == frame]
    cost_TR = np.array(
      [[_distance(chain[-1], blob, side) for blob in here] for chain in chains]
    ).reshape(len(chains), len(here))
    rows, columns = optimize.linear_sum_assignment(cost_TR)
    free = set(range(len(here)))
    for row, column in zip(rows, columns, strict=True):
      gap = frame - chains[row][-1].frame
      if cost_TR[row, column] <= jump * min(gap, 3):
        chains[row].append(here[column])
        free.discard(column)
    chains += [[here[column]] for column in sorted(free)]
  return chains


def _distance(a: segments.Blob, b: segments.Blob, side: int) -> float:
  away = np.hypot(*(a.centre_2 - b.centre_2))
  return away + OTHER_COLOUR * side * (a.colour != b.colour)


def path(chain: list[segments.Blob], *, frames: int) -> np.ndarray:
  """(y, x) of a chain in every frame, (F, 2), linearly interpolated."""
  return np.stack(
    [
      _interpolated(chain, [b.centre_2[axis] for b in chain], frames)
      for axis in (0, 1)
    ],
    1,
  )


def _interpolated(chain, values, frames: int) -> np.ndarray:
  return np.interp(np.arange(frames), [blob.frame for blob in chain], values)


def _track(chain: list[segments.Blob], shape) -> Track:
  path_F2 = path(chain, frames=shape[0])
  colours = [blob.colour for blob in chain]
  some = np.linspace(0, len(chain) - 1, min(VOTES, len(chain))).round()
  digit = digit_classifier.classify([chain[int(i)].cover_HW for i in some])
  edges = [blob.extent / digit_classifier.reach()[digit] for blob in chain]
  return Track(
    colour=max(sorted(set(colours)), key=colours.count),
    digit=digit,
    path_F2=path_F2,
    motion=motion(path_F2, shape=shape),
    edge_F=_interpolated(chain, edges, shape[0]),
    ends=tuple(
      digit_classifier.classify([blob.cover_HW for blob in part])
      for part in (chain[:ENDS], chain[-ENDS:])
    ),
    sharpness=float(np.mean([sharpness(blob.cover_HW) for blob in chain])),
  )


def sharpness(cover_HW: np.ndarray) -> float:
  """Sharpness of an outline: the share of the ink that is nearly solid.

  A stroke of the digits world has a rim about one pixel wide; blur, holes and
  faint strokes widen it at the cost of what is solid.

  Args:
    cover_HW: opacity in [0, 1] of one character.
  """
  return float((cover_HW > SOLID).sum() / max((cover_HW > FAINT).sum(), 1))


def nearest_size(edge: float, *, side: int) -> str:
  """The name in world.SIZES of a glyph's edge in pixels."""
  return min(
    world_lib.SIZES,
    key=lambda name: abs(np.log(edge / side / world_lib.SIZES[name])),
  )


def motion(
  path_F2: np.ndarray, *, shape: tuple[int, int, int], camera: str = 'still'
) -> str:
  """Classifies a path by the nearest motion template, without the camera.

  There is a template for each motion at each speed; its start is free and its
  extent may vary by STRETCH.

  Args:
    path_F2: (y, x) in pixels.
    shape: frames, height and width of the clip.
    camera: a name in world.CAMERAS.

  Returns:
    A name in world.MOTIONS; 'still' for an image.
  """
  frames, height, width = shape
  world = world_lib.World(frames=frames, height=height, width=width)
  ground_F2 = paths.view(camera, world=world).unproject(path_F2)
  ground_F2 = ground_F2 - ground_F2.mean(0)
  errors = {'still': np.square(ground_F2).sum()}
  for name in world.active_motions:
    if name == 'still':
      continue
    for speed in world_lib.SPEEDS:
      template_F2 = motions.offsets(name, speed, world=world)
      template_F2 = template_F2 - template_F2.mean(0)
      extent = (template_F2 * ground_F2).sum() / np.square(template_F2).sum()
      miss = np.square(
        ground_F2 - np.clip(extent, *STRETCH) * template_F2
      ).sum()
      errors[name] = min(miss, errors.get(name, np.inf))
  return min(errors, key=errors.get)


def matches(measured: Measurement, scene: world_lib.Scene) -> np.ndarray:
  """Whether colour, digit, motion and size of each character of a scene are
  right, bool (P, 4), in the order of the scene.

  Characters of the scene are matched to tracks by the best assignment, where
  colour counts more than digit and digit more than motion. A character without
  a track is wrong in all attributes.
  """
  right_PTA = np.zeros((len(scene.characters), measured.count, 4))
  frames, height, width = measured.shape
  world = world_lib.World(frames=frames, height=height, width=width)
  zoom_F = paths.view(scene.camera, world=world).zoom_F
  for t, track in enumerate(measured.tracks):
    moves = motion(track.path_F2, shape=measured.shape, camera=scene.camera)
    size = nearest_size(np.median(track.edge_F / zoom_F), side=world.side)
    for p, character in enumerate(scene.characters):
      right_PTA[p, t] = (
        track.colour == character.colour,
        track.digit == character.digit,
        moves == character.motion,
        size == character.size,
      )
  rows, columns = optimize.linear_sum_assignment(-right_PTA @ _WEIGHTS)
  result_PA = np.zeros((len(scene.characters), len(ATTRIBUTES)), bool)
  result_PA[rows] = right_PTA[rows, columns]
  return result_PA


def score(measured: Measurement, scene: world_lib.Scene) -> dict[str, float]:
  """Scores a measurement against the scene of its prompt.

  Characters of the scene are matched to tracks, see `matches`.

  Args:
    measured: measurement of the clip.
    scene: scene of the prompt. Its camera's motion is subtracted from the
      paths.

  Returns:
    In [0, 1]: count (correct or not); colour, digit, motion and size (share of
    correct characters); camera (correct, and something is seen); binding (share
    of characters that have colour, digit and motion together); identity (share
    of the tracks whose digit is the same, right or wrong, at both ends);
    sharpness (see `sharpness`); all (count, colours, digits and motions
    correct, or not). Also the number of `characters`, and whether the scene is
    `held_out`, that is, contains a composition that no training scene contains.
  """
  matched_PA = matches(measured, scene)
  share_A = matched_PA.sum(0) / len(scene.characters)
  count = float(measured.count == len(scene.characters))
  tracks = measured.tracks
  return {
    'count': count,
    **dict(zip(ATTRIBUTES, share_A.tolist(), strict=True)),
    'camera': float(bool(tracks) and measured.camera == scene.camera),
    'binding': matched_PA[:, :3].all(1).sum() / len(scene.characters),
    'identity': _mean([track.ends[0] == track.ends[1] for track in tracks]),
    'sharpness': _mean([track.sharpness for track in tracks]),
    'all': float(count == 1 and (share_A[:3] == 1).all()),
    'characters': float(len(scene.characters)),
    'held_out': float(
      any(
        world_lib.held_out(c.digit, c.colour, c.motion)
        for c in scene.characters
      )
    ),
  }


def _mean(values) -> float:
  return float(np.mean(values)) if len(values) else 0.0


def summarise(scores: Iterable[Mapping[str, float]]) -> dict[str, float]:
  """Mean scores of all clips and of groups of them.

  Args:
    scores: result of `score` for each clip, at least one.

  Returns:
    The mean of each score by name; 'one/NAME', 'two/NAME' and 'three/NAME' over
    scenes of so many characters, 'held_out/NAME' over held-out compositions,
    where there are any; 'clips' and 'GROUP/clips', the numbers of clips.

  Raises:
    ValueError: no clips.
  """
  summary = {}
  for prefix, group in _groups(scores).items():
    summary[f'{prefix}clips'] = float(len(group))
    for name in SCORES:
      summary[prefix + name] = float(np.mean([s[name] for s in group]))
  return summary


def intervals(
  scores: Iterable[Mapping[str, float]], *, level: float = 0.95
) -> dict[str, tuple[float, float]]:
  """Confidence intervals of the means that `summarise` returns.

  Percentiles of the means of clips drawn with replacement; where all clips have
  the same score, Wilson's interval for a proportion, since the bootstrap has
  none there.

  Args:
    scores: result of `score` for each clip, at least one.
    level: probability, 0 to 1.

  Source: B. Efron, Bootstrap methods (1979); E. Wilson, Probable inference
    (1927).
  """
  rng = np.random.default_rng(0)
  result = {}
  for prefix, group in _groups(scores).items():
    n = len(group)
    value_nS = np.array([[s[name] for name in SCORES] for s in group])
    weight_Bn = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n
    tails = (50 * (1 - level), 50 * (1 + level))
    low_S, high_S = np.percentile(weight_Bn @ value_nS, tails, axis=0)
    for i, name in enumerate(SCORES):
      interval = low_S[i], high_S[i]
      if np.ptp(value_nS[:, i]) == 0 and name != 'sharpness':
        interval = _wilson(value_nS[0, i], n, level)
      result[prefix + name] = tuple(round(float(v), 4) for v in interval)
  return result


def _wilson(share: float, n: int, level: float) -> tuple[float, float]:
  z2 = stats.norm.ppf((1 + level) / 2) ** 2
  middle = (share + z2 / (2 * n)) / (1 + z2 / n)
  half = np.sqrt(z2 * share * (1 - share) / n + z2**2 / (4 * n**2)) / (
    1 + z2 / n
  )
  return max(0.0, middle - half), min(1.0, middle + half)


def _groups(scores) -> dict[str, list]:
  scores = list(scores)
  if not scores:
    raise ValueError('0 scores: expected at least one clip; change `num`')
  groups = {'': scores} | {
    f'{name}/': [s for s in scores if s['characters'] == number]
    for number, name in enumerate(('one', 'two', 'three'), 1)
  }
  groups['held_out/'] = [s for s in scores if s['held_out']]
  return {prefix: group for prefix, group in groups.items() if group}
