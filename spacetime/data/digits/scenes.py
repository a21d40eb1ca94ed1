"""Random scenes: nothing leaves the frame, nothing overlaps."""

import functools

import numpy as np

from spacetime.data.digits import glyphs, paths, wandering
from spacetime.data.digits import motions as motions_lib
from spacetime.data.digits import world as world_lib

# Shares of the shorter side: to the frame's edge, and between characters.
MARGIN = 1 / 64
GAP = 2 / 64
ATTEMPTS = 12
CANDIDATES = 16


def sample_scene(
  rng: np.random.Generator, *, world: world_lib.World, split: str
) -> world_lib.Scene:
  """One random scene.

  Every character stays inside the frame, whatever the camera does, and
  characters never overlap. If there is no room, smaller and slower characters
  are tried, then the scene has fewer of them.

  Args:
    rng: the only source of randomness.
    world: world to draw from.
    split: 'train' (training glyphs, no held-out composition), 'validation'
      (held-out glyphs, no held-out composition) or 'compositions' (held-out
      glyphs, and the first character is a held-out composition).

  Raises:
    ValueError: an unknown split, or compositions in a world that has none.
  """
  if split not in world_lib.SPLITS:
    raise ValueError(f'split={split!r}: expected one of {world_lib.SPLITS}')
  camera = _camera(rng, world)
  lens = paths.view(camera, world=world)
  cast = []
  taken = []
  for number in range(
    rng.integers(world.min_characters, world.max_characters + 1)
  ):
    held_out = split == 'compositions' and number == 0
    triples = _triples(
      world.digits, world.colours, world.active_motions, held_out
    )
    used = {character.colour for character in cast}
    triples = [t for t in triples if t[1] not in used] if used else triples
    if not triples:
      break
    drawn = _character(rng, lens, triples, taken, world=world, split=split)
    if drawn is None:
      break
    cast.append(drawn[0])
    taken.append(drawn[1:])
  if not cast:
    raise ValueError(
      f'split={split!r}: this world has no such compositions of '
      'data.world.digits, data.world.colours and data.world.motions'
    )
  return world_lib.Scene(
    characters=tuple(cast),
    background=_background(rng, camera, world),
    camera=camera,
  )


def _pick(rng, options):
  return options[rng.integers(len(options))]


@functools.lru_cache(maxsize=64)
def _triples(digits, colours, motions, held_out: bool) -> tuple:
  # Cached by names, not by World: worlds of mixed sizes are many.
  return tuple(
    (digit, colour, motion)
    for digit in digits
    for colour in colours
    for motion in motions
    if world_lib.held_out(digit, colour, motion) == held_out
  )


def _camera(rng, world: world_lib.World) -> str:
  cameras = world.active_cameras
  moving = [camera for camera in cameras if camera != 'still']
  if not moving:
    return 'still'
  if 'still' in cameras and rng.random() < world.still_camera:
    return 'still'
  return _pick(rng, moving)


def _background(rng, camera: str, world: world_lib.World):
  kinds = world.backgrounds
  if camera in world_lib.PANS:
    # Only a ramp along the pan shows that it is the camera that moves.
    along = 'vertical' if world_lib.PANS[camera][0] else 'horizontal'
    kinds = (along,) if along in kinds else kinds
  kind = _pick(rng, kinds)
  colours = tuple(world_lib.BACKGROUND_COLOURS)
  first, second = rng.permutation(len(colours))[:2]
  return world_lib.Background(
    kind=kind,
    first=colours[first],
    second=colours[first if kind == 'plain' else second],
  )


def _character(rng, lens, triples, taken, *, world, split):
  """A character that touches no other: (character, centre_F2, half_F2)."""
  for attempt in range(ATTEMPTS):
    digit, colour, motion = _pick(rng, triples)
    glyph = _pick(rng, glyphs.indices(digit, held_out=split != 'train'))
    size, speed = _pick(rng, world.sizes), _pick(rng, world.speeds)
    if attempt >= ATTEMPTS // 2:
      size = min(world.sizes, key=world_lib.SIZES.get)
      speed = min(world.speeds, key=world_lib.SPEEDS.get)
    path_seed = 0
    if motion == world_lib.WANDERING:
      path_seed = int(rng.integers(2**31))
      # No random number is drawn in worlds without legs: their clips stay.
      if split == 'train' and world.legs and rng.random() < world.legs:
        path_seed = -1 - path_seed
      offset_F2 = wandering.offsets(path_seed, speed, world=world)
    else:
      offset_F2 = motions_lib.offsets(motion, speed, world=world)
    edge_F = world_lib.SIZES[size] * world.side * lens.zoom_F
    low_2, high_2 = _start_range(lens, offset_F2, edge_F, world)
    if (low_2 > high_2).any():
      continue
    start_K2 = rng.uniform(low_2, high_2, (CANDIDATES, 2)).round(2)
    start_K2 = start_K2.clip(low_2, high_2)
    centre_KF2 = lens.project(start_K2[:, None] + offset_F2)
    half_F2 = edge_F[:, None] * glyphs.extents()[glyph]
    free = np.flatnonzero(_clear(centre_KF2, half_F2, taken, world))
    if len(free):
      character = world_lib.Character(
        digit=digit,
        glyph=int(glyph),
        colour=colour,
        size=size,
        start=tuple(start_K2[free[0]].tolist()),
        motion=motion,
        speed=speed,
        path_seed=path_seed,
      )
      return character, centre_KF2[free[0]], half_F2
  return None


def _start_range(lens, offset_F2, edge_F, world: world_lib.World):
  """The range of starts whose square stays in the frame in every frame."""
  reach_F1 = edge_F[:, None] / 2 + MARGIN * world.side
  frame_2 = np.array([world.height, world.width])
  low_F2 = lens.unproject(np.broadcast_to(reach_F1, offset_F2.shape))
  high_F2 = lens.unproject(frame_2 - reach_F1)
  return (low_F2 - offset_F2).max(0), (high_F2 - offset_F2).min(0)


def _clear(centre_KF2, half_F2, taken, world: world_lib.World) -> np.ndarray:
  """Candidates K that touch none of the placed characters, (K,) bool."""
  clear_K = np.ones(len(centre_KF2), bool)
  for other_F2, other_half_F2 in taken:
    room_F2 = half_F2 + other_half_F2 + GAP * world.side
    apart_KF2 = np.abs(centre_KF2 - other_F2) >= room_F2
    clear_K &= apart_KF2.any(2).all(1)
  return clear_K
