"""Measures clips of the digits world and scores them against scenes.

`measure` reads pixels only: it segments and tracks characters and classifies
colours, digits and motions. `score` compares the result with a scene.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
from scipy import optimize

from spacetime.data.digits import motions, paths
from spacetime.data.digits import world as world_lib
from spacetime.evaluation import digit_classifier, segments

# In units of the shorter side: the longest path of a character in a clip, its
# largest displacement between two frames, and the distance that is added for a
# blob of another colour.
RUN = 2.5
JUMP = 0.5
OTHER_COLOUR = 0.08
# Least share of the frames in which a character is visible.
PRESENCE = 0.5
# Number of views of a character that vote on its digit.
VOTES = 6
# Range of a path's length relative to the template of its motion.
STRETCH = (0.6, 1.6)

SCORES = ('count', 'colour', 'digit', 'motion', 'all')


@dataclasses.dataclass(frozen=True)
class Track:
  """One character, tracked over the frames.

  Attributes:
    colour: palette colour of most of its blobs.
    digit: 0 to 9.
    path_F2: (y, x) of its centroid in pixels, interpolated in frames where it
      is not detected.
    motion: a name in world.MOTIONS, relative to the frame, camera included.
  """

  colour: str
  digit: int
  path_F2: np.ndarray
  motion: str


@dataclasses.dataclass(frozen=True)
class Measurement:
  """The characters detected in a clip.

  Attributes:
    shape: frames, height and width of the clip.
    tracks: the characters, the largest first.
  """

  shape: tuple[int, int, int]
  tracks: tuple[Track, ...]

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
  return Measurement(shape=shape[:3], tracks=tracks)


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
  seen = [blob.frame for blob in chain]
  return np.stack(
    [
      np.interp(np.arange(frames), seen, [b.centre_2[axis] for b in chain])
      for axis in (0, 1)
    ],
    1,
  )


def _track(chain: list[segments.Blob], shape) -> Track:
  path_F2 = path(chain, frames=shape[0])
  colours = [blob.colour for blob in chain]
  some = np.linspace(0, len(chain) - 1, min(VOTES, len(chain))).round()
  return Track(
    colour=max(sorted(set(colours)), key=colours.count),
    digit=digit_classifier.classify([chain[int(i)].cover_HW for i in some]),
    path_F2=path_F2,
    motion=motion(path_F2, shape=shape),
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


def score(measured: Measurement, scene: world_lib.Scene) -> dict[str, float]:
  """Scores a measurement against the scene of its prompt.

  Characters of the scene are matched to tracks by the best assignment, where
  colour counts more than digit and digit more than motion. A character without
  a track counts as wrong in all attributes.

  Args:
    measured: measurement of the clip.
    scene: scene of the prompt. Its camera's motion is subtracted from the
      paths.

  Returns:
    In [0, 1]: count (correct or not); colour, digit and motion (share of
    correct characters); all (everything correct or not). Also the number of
    `characters`, and whether the scene is `held_out`, that is, contains a
    composition that no training scene contains.
  """
  right_PT3 = np.zeros((len(scene.characters), measured.count, 3))
  for t, track in enumerate(measured.tracks):
    moves = motion(track.path_F2, shape=measured.shape, camera=scene.camera)
    for p, character in enumerate(scene.characters):
      right_PT3[p, t] = (
        track.colour == character.colour,
        track.digit == character.digit,
        moves == character.motion,
      )
  pairs = optimize.linear_sum_assignment(-right_PT3 @ (4, 2, 1))
  share_3 = right_PT3[pairs].sum(0) / len(scene.characters)
  count = float(measured.count == len(scene.characters))
  return {
    'count': count,
    **dict(zip(SCORES[1:4], share_3.tolist(), strict=True)),
    'all': float(count == 1 and (share_3 == 1).all()),
    'characters': float(len(scene.characters)),
    'held_out': float(
      any(
        world_lib.held_out(c.digit, c.colour, c.motion)
        for c in scene.characters
      )
    ),
  }


def summarise(scores: Iterable[Mapping[str, float]]) -> dict[str, float]:
  """Mean scores of all clips, of single characters and of held-out scenes.

  Args:
    scores: result of `score` for each clip, at least one.

  Returns:
    The mean of each score by name; 'one/NAME' over scenes of one character and
    'held_out/NAME' over held-out compositions, if there are any; 'clips',
    'one/clips' and 'held_out/clips', the numbers of clips.

  Raises:
    ValueError: no clips.
  """
  scores = list(scores)
  if not scores:
    raise ValueError('0 scores: expected at least one clip; change `num`')
  groups = {
    '': scores,
    'one/': [s for s in scores if s['characters'] == 1],
    'held_out/': [s for s in scores if s['held_out']],
  }
  summary = {}
  for prefix, group in groups.items():
    summary[f'{prefix}clips'] = float(len(group))
    if group:
      for name in SCORES:
        summary[prefix + name] = float(np.mean([s[name] for s in group]))
  return summary
