"""Wrappers of the denoiser, each around a function whose result is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime.diffusion import denoiser, flow
from spacetime.diffusion.conditioning import Conditioning
from spacetime.diffusion.guidance import Guidance

SHAPE = (2, 3, 4, 6, 5)  # B f h w c


def draw(seed, shape=SHAPE):
  return jax.random.normal(jax.random.key(seed), shape)


def test_from_network_passes_an_index_only_where_there_is_one():
  calls = []

  def transform(params, z, t_BT, text, **index):
    calls.append((params, text, sorted(index)))
    return z + 1

  denoise = denoiser.from_network(
    transform, 'params', 'text', flow=flow.FlowConfig()
  )
  v, cache = denoise(1, None, 'cache')
  denoise(1, None, 'cache', np.zeros(SHAPE[1:4], int))
  assert (v, cache) == (2, 'cache')
  expected = ('params', 'text')
  assert calls == [(*expected, []), (*expected, ['t_index_fhw'])]


def test_from_network_updates_the_cache_of_a_cached_network():
  denoise = denoiser.from_network(
    lambda params, z, t_BT, text, cache: (z * params, cache + 1),
    3,
    None,
    flow=flow.FlowConfig(),
    cached=True,
  )
  assert denoise(2, None, 5) == (6, 6)


@pytest.mark.parametrize('prediction', flow.PREDICTIONS)
@pytest.mark.parametrize('indexed', [False, True])
def test_from_network_returns_velocities(prediction, indexed):
  z, y, t_BT = draw(0), draw(1), jnp.array([[0.9, 0.01, 0.5]] * 2)
  index, t = None, t_BT[:, :, None, None, None]
  if indexed:
    index = np.zeros(SHAPE[1:4], int)
    index[:, :2] = 2
    t = t_BT[:, index][..., None]
  denoise = denoiser.from_network(
    lambda params, z, t_BT, text, **index: y,
    None,
    None,
    flow=flow.FlowConfig(prediction=prediction, floor=0.05),
  )
  v, _ = denoise(z, t_BT, (), index)
  expected = y if prediction == 'velocity' else (z - y) / jnp.maximum(t, 0.05)
  np.testing.assert_allclose(v, expected, rtol=1e-6)


def test_with_conditioning_lets_frames_wait_and_masks_move_straight():
  z, noise, v_network = draw(0), draw(1), draw(2)
  mask = np.zeros(SHAPE, bool)
  mask[:, 0, :2] = True
  initial = jnp.array([[1.0, 0.5, 0.0]] * 2)
  seen = []

  def network(z_t, t_BT, cache, index):
    seen.append(t_BT)
    return v_network, cache

  conditioning = Conditioning(z, initial, None, jnp.asarray(mask))
  denoise = denoiser.with_conditioning(network, conditioning, noise)
  early, _ = denoise(z, jnp.float32(0.8), ())
  late, _ = denoise(z, jnp.float32(0.5), ())
  np.testing.assert_allclose(seen[0], [[0.8, 0.5, 0.0]] * 2)
  np.testing.assert_allclose(seen[1], [[0.5, 0.5, 0.0]] * 2)
  expected = np.where(mask, noise - z, v_network)
  expected[:, 2] = 0
  np.testing.assert_array_equal(late, expected)
  expected[:, 1] = 0  # waits at 0.5
  np.testing.assert_array_equal(early, expected)


@pytest.mark.parametrize('t, level', [(0.8, 0.2), (0.25, 0.2), (0.136, 0.136)])
def test_context_has_the_level_that_the_network_sees(t, level):
  """At every step of a grid that jumps over its own level of 0.2."""
  z, noise, known = draw(0), draw(1), draw(2)
  context = jnp.array([[True, False, False]] * 2)
  initial = jnp.array([[0.2, 1.0, 0.0]] * 2)
  seen = {}

  def network(z_t, t_BT, cache, index):
    seen.update(z=z_t, t=t_BT)
    return jnp.ones_like(z_t), cache

  conditioning = Conditioning(known, initial, context_BT=context)
  denoise = denoiser.with_conditioning(network, conditioning, noise)
  v, _ = denoise(z, jnp.float32(t), ())
  np.testing.assert_allclose(seen['t'], [[level, t, 0.0]] * 2, rtol=1e-6)
  expected = (1 - level) * known[:, 0] + level * noise[:, 0]
  np.testing.assert_allclose(seen['z'][:, 0], expected, atol=1e-6)
  np.testing.assert_array_equal(seen['z'][:, 1:], z[:, 1:])
  assert not v[:, 0].any() and (v[:, 1] == 1).all()


def test_with_guidance_computes_the_branches_as_one_batch():
  z = draw(0)

  def denoise(z_all, t, cache):
    assert z_all.shape[0] == 4
    scale = jnp.array([1.0, 1.0, 3.0, 3.0])[:, None, None, None, None]
    return scale * z_all, cache + 1

  guided = denoiser.with_guidance(denoise, Guidance(2.0))
  v, cache = guided(z, jnp.float32(0.5), (0, ()))
  np.testing.assert_allclose(v, 3 * z + 2 * (z - 3 * z), rtol=1e-6)
  assert cache == (1, ())


def test_without_guidance_there_is_one_branch():
  z = draw(0)
  guided = denoiser.with_guidance(
    lambda z, t, cache: (t * z, cache), Guidance()
  )
  v, cache = guided(z, jnp.float32(0.5), ((), ()))
  np.testing.assert_array_equal(v, 0.5 * z)
  assert cache == ((), ())


def test_with_guidance_carries_the_running_update():
  z = draw(0)
  rule = Guidance(2.0, kind='apg')
  branches = jnp.concatenate([draw(1), draw(2)])
  guided = denoiser.with_guidance(lambda z, t, cache: (branches, cache), rule)
  _, (_, update) = guided(z, jnp.float32(0.5), ((), rule.init(z)))
  np.testing.assert_allclose(update, 0.5 * (draw(1) - draw(2)), atol=1e-6)
