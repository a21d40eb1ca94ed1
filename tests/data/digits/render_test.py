import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime.data.digits import paths, render, scenes
from spacetime.data.digits import world as world_lib
from tests.helpers.digits_cases import CHARACTER, SCENE

WORLD = world_lib.World(frames=5, height=48, width=72)


def _scenes(world, number):
  rng = np.random.default_rng(3)
  return [
    scenes.sample_scene(rng, world=world, split='train') for _ in range(number)
  ]


@pytest.mark.parametrize('frames', [1, 5, 9])
def test_shape_and_dtype(frames):
  world = dataclasses.replace(WORLD, frames=frames)
  frames_FHWC = render.clip(_scenes(world, 1)[0], world)
  assert frames_FHWC.shape == (frames, 48, 72, 3)
  assert frames_FHWC.dtype == np.uint8


def test_jax_renders_the_same_picture():
  some = _scenes(WORLD, 24)
  trees = [render.drawing(scene, WORLD) for scene in some]
  batch = jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
  one = functools.partial(render.render, height=48, width=72, xp=jnp)
  jitted_BFHWC = np.asarray(jax.jit(jax.vmap(one))(batch)).astype(int)
  numpy_BFHWC = np.stack([render.clip(scene, WORLD) for scene in some])
  assert jitted_BFHWC.shape == (24, 5, 48, 72, 3)
  assert np.abs(jitted_BFHWC - numpy_BFHWC).max() <= 1


def test_colours_are_where_the_scene_puts_them():
  for scene in _scenes(WORLD, 24):
    frames_FHWC = render.clip(scene, WORLD).astype(int)
    seen = paths.trajectories(scene, WORLD)
    away = []
    for index, character in enumerate(scene.characters):
      colour_C = np.array(world_lib.COLOURS[character.colour])
      on_FHW = np.abs(frames_FHWC - colour_C).max(-1) <= 1
      assert on_FHW.any((1, 2)).all()
      for frame, on_HW in enumerate(on_FHW):
        ink_N2 = np.argwhere(on_HW) + 0.5
        away = np.abs(ink_N2 - seen.centre_FP2[frame, index]).max()
        assert away <= seen.size_FP[frame, index] / 2


def test_a_camera_that_pans_shifts_the_ramp():
  frames_FHWC = render.clip(
    dataclasses.replace(
      SCENE, background=world_lib.Background('horizontal', 'black', 'teal')
    ),
    WORLD,
  ).astype(int)
  # It pans left, towards the black end, and the corners are free of ink.
  assert (np.diff(frames_FHWC[:, 47, 71, 1]) <= 0).all()
  assert frames_FHWC[0, 47, 71, 1] - frames_FHWC[-1, 47, 71, 1] >= 2
  ramp_W = frames_FHWC[0, 47, :, 1]
  assert (np.diff(ramp_W) >= 0).all() and ramp_W[-1] > ramp_W[0]


def test_a_plain_background_is_one_colour():
  plain = world_lib.Background('plain', 'navy', 'navy')
  frames_FHWC = render.clip(dataclasses.replace(SCENE, background=plain), WORLD)
  away_FHW = np.abs(frames_FHWC.astype(int) - (16, 24, 66)).max(-1)
  assert (away_FHW[:, 40:] == 0).all()


def test_front_characters_cover_those_behind():
  front = dataclasses.replace(CHARACTER, motion='still', size='large')
  behind = dataclasses.replace(front, colour='blue')
  scene = dataclasses.replace(SCENE, characters=(front, behind))
  alone = dataclasses.replace(SCENE, characters=(front,))
  both_FHWC = render.clip(scene, WORLD).astype(int)
  alone_FHWC = render.clip(alone, WORLD).astype(int)
  red_FHW = alone_FHWC[..., 0] > 235
  assert red_FHW.any()
  assert (both_FHWC == alone_FHWC)[red_FHW].mean() > 0.9


def test_too_many_characters_for_the_world():
  world = dataclasses.replace(WORLD, max_characters=1)
  scene = dataclasses.replace(SCENE, characters=(CHARACTER, CHARACTER))
  with pytest.raises(ValueError, match='2 characters: expected at most'):
    render.drawing(scene, world)
