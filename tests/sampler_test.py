"""The sampler with networks whose answer is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime import flow, solver
from spacetime.sampling import conditions, sampler

LATENT = (3, 2, 4, 5)  # f h w c
TARGET = jax.random.normal(jax.random.key(7), LATENT)
TEXT = jnp.array([[3.0, 1.0], [4.0, 1.0]])
EMPTY = jnp.array([[1.0, 0.0], [1.0, 0.0]])


def make(transform, *, prediction='sample', guidance=1.0, steps=4):
  return jax.jit(
    sampler.Sampler(
      transform=transform,
      flow=flow.FlowConfig(prediction=prediction),
      levels=tuple(solver.time_grid(steps)),
      solver='euler',
      guidance=guidance,
    )
  )


def truth(params, z, t, text):
  """A network that always knows the clip."""
  return jnp.broadcast_to(TARGET, z.shape)


def draw(make, condition=None, *, seed=0, text=TEXT):
  keys = sampler.clip_keys(seed, 2)
  condition = condition or conditions.nothing(2, LATENT)
  return make({}, keys, text, EMPTY, condition)


def test_finds_the_clip_that_the_network_knows():
  np.testing.assert_allclose(draw(make(truth))[1], TARGET, atol=1e-5)


def test_same_seed_same_bytes_and_another_seed_another_clip():
  def noise(params, z, t, text):
    return 0.0 * z

  moved = make(noise, prediction='velocity')
  first, second, other = (draw(moved, seed=s) for s in (3, 3, 4))
  np.testing.assert_array_equal(first, second)
  assert not np.allclose(first, other)
  assert not np.allclose(first[0], first[1])


def test_a_clip_does_not_depend_on_its_batch():
  one, two = sampler.clip_keys(5, 4), sampler.clip_keys(5, 2, first=2)
  np.testing.assert_array_equal(
    jax.random.key_data(one[2:]), jax.random.key_data(two)
  )


def test_given_frames_stay_as_they_are_and_are_told_at_level_zero():
  image = jax.random.normal(jax.random.key(1), (2, 1, *LATENT[1:]))
  condition = conditions.first_image(image, LATENT)

  def transform(params, z, t, text):
    # Both the level and the frame that the network sees are the given ones.
    right = jnp.all(t[:, 0] == 0) & jnp.all(z[:, :1] == image)
    return jnp.where(right, truth(params, z, t, text), jnp.nan)

  z = draw(make(transform), condition)
  np.testing.assert_array_equal(z[:, :1], image)
  np.testing.assert_allclose(z[0, 1:], TARGET[1:], atol=1e-5)


@pytest.mark.parametrize('prediction', ['velocity', 'sample'])
def test_one_level_is_told_where_nothing_is_given(prediction):
  """And a row for each frame, none of them given, comes to the same."""
  seen = []

  def transform(params, z, t, text):
    seen.append(t.shape)
    return jnp.sin(z) * t[:, :, None, None, None]

  z = jnp.zeros((2, *LATENT))
  none = conditions.Condition(z, jnp.zeros((2, LATENT[0]), bool))
  made = make(transform, prediction=prediction, guidance=2.0)
  rows = draw(made, none)
  assert set(seen) == {(4, LATENT[0])}
  seen.clear()
  np.testing.assert_allclose(draw(made), rows, atol=1e-6)
  assert set(seen) == {(4, 1)}


def test_a_run_in_two_spans_is_one_run():
  def transform(params, z, t, text):
    return jnp.sin(z) * params['scale'] + text[:, :1, None, None, None]

  whole = sampler.Sampler(
    transform=transform,
    flow=flow.FlowConfig(prediction='velocity'),
    levels=tuple(solver.time_grid(5)),
    solver='unipc',
    guidance=3.0,
  )
  parts = [
    dataclasses.replace(whole, span=span, guidance=scale)
    for span, scale in (((0, 2), 3.0), ((2, 5), 1.0))
  ]
  keys, condition = sampler.clip_keys(0, 2), conditions.nothing(2, LATENT)
  params = {'scale': 1.0}

  def run(parts):
    carry = whole.begin(keys, condition)
    for part in parts:
      carry = part.advance(params, carry, TEXT, EMPTY, condition)
    return whole.end(carry)

  expected = whole(params, keys, TEXT, EMPTY, condition)
  same = [dataclasses.replace(part, guidance=3.0) for part in parts]
  np.testing.assert_allclose(run(same), expected, atol=1e-6)
  assert np.abs(run(parts) - expected).max() > 0.01


def test_guidance_moves_away_from_the_negative_prompt():
  def transform(params, z, t, text):
    return 0.0 * z + text[:, :1, None, None, None]

  z0, z1 = (
    draw(make(transform, prediction='velocity', guidance=g)) for g in (0.0, 1.0)
  )
  z3 = draw(make(transform, prediction='velocity', guidance=3.0))
  np.testing.assert_allclose(z3 - z0, 3 * (z1 - z0), atol=1e-5)
  assert not np.allclose(z1[0] - z0[0], z1[1] - z0[1])


@pytest.mark.parametrize('guidance, rows', [(1.0, 2), (2.0, 4)])
def test_pairs_are_batched_and_without_guidance_there_are_none(guidance, rows):
  seen = []

  def transform(params, z, t, text):
    seen.append(z.shape[0])
    return 0.0 * z

  draw(make(transform, guidance=guidance))
  assert set(seen) == {rows}
