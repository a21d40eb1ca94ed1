"""Guidance: combination of the velocities of its branches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime import SettingError
from spacetime.diffusion import guidance
from spacetime.diffusion.guidance import Guidance

T = np.float32(0.4)


@pytest.fixture(scope='module')
def arrays():
  """Latents, and velocities with text, without, and another."""
  return jax.random.normal(jax.random.key(0), (4, 2, 3, 4, 5, 6))


def combined(rule, branches, z, *, t=T, **fixed):
  """The velocity of the first step."""
  return np.asarray(rule.combine(branches, z, t, rule.init(z), **fixed)[0])


def flat(x):
  return np.asarray(x, np.float64).reshape(2, -1)


def test_one_is_the_conditional_branch_and_zero_the_unconditional(arrays):
  z, cond, uncond, _ = arrays
  np.testing.assert_array_equal(combined(Guidance(), (cond,), z), cond)
  for scale, expected in (
    (0.0, uncond),
    (2.5, uncond + 2.5 * (cond - uncond)),
  ):
    v = combined(Guidance(scale), (cond, uncond), z)
    np.testing.assert_allclose(v, expected, atol=1e-6)


def test_branches_are_those_that_are_needed():
  assert Guidance(1.0).branches == ('cond',)
  assert Guidance(2.0).branches == ('cond', 'uncond')
  assert Guidance(1.0, skip_layers=(3,)).branches == ('cond', 'skipped')
  assert Guidance(2.0, skip_layers=(3,)).branches == (
    *('cond', 'uncond'),
    'skipped',
  )


@pytest.mark.parametrize('kind', guidance.KINDS)
def test_skipped_layers_are_moved_away_from(kind, arrays):
  """Beside any other guidance, within their own noise levels."""
  z, cond, uncond, skipped = arrays
  plain = Guidance(3.0, kind=kind)
  rule = Guidance(
    3.0,
    kind=kind,
    skip_layers=(2,),
    skip_layer_scale=0.5,
    skip_layer_interval=(0.3, 0.6),
  )
  three = cond, uncond, skipped
  for t in (0.25, 0.7):
    expected = combined(plain, three[:2], z, t=jnp.float32(t))
    v = combined(rule, three, z, t=jnp.float32(t))
    np.testing.assert_allclose(v, expected, atol=1e-6)
  expected = combined(plain, three[:2], z) + 0.5 * (cond - skipped)
  np.testing.assert_allclose(combined(rule, three, z), expected, atol=1e-5)
  alone = Guidance(1.0, kind=kind, skip_layers=(2,), skip_layer_scale=0.5)
  v = combined(alone, (cond, skipped), z)
  np.testing.assert_allclose(v, cond + 0.5 * (cond - skipped), atol=1e-6)


@pytest.mark.parametrize('kind', guidance.KINDS)
def test_outside_of_the_interval_is_the_conditional_branch(kind, arrays):
  z, *branches, _ = arrays
  rule = Guidance(4.0, kind=kind, interval=(0.2, 0.8))
  for t in (0.1, 0.9):
    v = combined(rule, branches, z, t=jnp.float32(t))
    np.testing.assert_allclose(v, branches[0], atol=1e-6)
  assert np.abs(combined(rule, branches, z) - branches[0]).max() > 1


def test_zero_star_starts_from_the_shared_part_of_each_clip(arrays):
  z, cond, uncond, _ = arrays
  a, b = flat(cond), flat(uncond)
  shared = b * (np.sum(a * b, 1) / np.sum(b * b, 1))[:, None]
  rule = Guidance(3.0, kind='cfg_zero')
  expected = shared + 3 * (a - shared)
  v = combined(rule, (cond, uncond), z)
  np.testing.assert_allclose(flat(v), expected, atol=1e-5)
  # Guidance away from a multiple of the prediction changes nothing.
  v = combined(rule, (cond, 0.2 * cond), z)
  np.testing.assert_allclose(v, cond, atol=1e-5)


def test_projected_with_eta_one_is_classifier_free(arrays):
  z, *branches, _ = arrays
  rule = Guidance(3.0, kind='apg', eta=1.0, momentum=0.0)
  expected = combined(Guidance(3.0), branches, z)
  np.testing.assert_allclose(combined(rule, branches, z), expected, atol=1e-5)


@pytest.mark.parametrize('eta', [0.0, 0.3])
def test_eta_weights_the_part_parallel_to_the_sample(eta, arrays):
  z, *branches, _ = arrays
  v = combined(Guidance(3.0, kind='apg', eta=eta), branches, z)
  x_cond, x_uncond = (flat(z) - T * flat(b) for b in branches)
  unit = x_cond / np.linalg.norm(x_cond, axis=1, keepdims=True)
  parallel = unit * np.sum((x_cond - x_uncond) * unit, 1, keepdims=True)
  change = x_cond - x_uncond - (1 - eta) * parallel
  np.testing.assert_allclose(
    flat(z) - T * flat(v), x_cond + 2 * change, atol=1e-5
  )


def test_norm_threshold_bounds_the_update_of_each_clip(arrays):
  z, *branches, _ = arrays
  rule = Guidance(2.0, kind='apg', eta=1.0, norm_threshold=1.5)
  change = float(T) * flat(combined(rule, branches, z) - branches[0])
  np.testing.assert_allclose(np.linalg.norm(change, axis=1), 1.5, rtol=1e-5)
  high, unbounded = (
    combined(Guidance(2.0, kind='apg', norm_threshold=bound), branches, z)
    for bound in (1e6, None)
  )
  np.testing.assert_array_equal(high, unbounded)


def test_momentum_adds_earlier_updates_inside_the_interval(arrays):
  z, cond, uncond, other = arrays
  rule = Guidance(2.0, kind='apg', eta=1.0, momentum=-0.75, interval=(0.0, 0.7))
  update = rule.init(z)
  for t, branches in ((0.9, (cond, other)), (0.6, (cond, uncond))):
    _, update = rule.combine(branches, z, jnp.float32(t), update)
  # The step outside of the interval adds nothing.
  np.testing.assert_allclose(update, 0.6 * (cond - uncond), atol=1e-6)
  v, _ = rule.combine((other, uncond), z, T, update)
  change = 0.4 * (other - uncond) - 0.75 * 0.6 * (cond - uncond)
  np.testing.assert_allclose(v, other + change / 0.4, atol=1e-5)


def test_projected_leaves_conditioning_latents(arrays):
  z, *branches, _ = arrays
  fixed_BT = np.array([[True, False, False], [False, False, True]])
  fixed = fixed_BT[:, :, None, None, None]
  branches = [jnp.where(fixed, 0, v) for v in branches]
  rule = Guidance(3.0, kind='apg')
  v = combined(rule, branches, z, fixed=fixed)
  assert np.all(v[fixed_BT] == 0)
  other = combined(rule, branches, jnp.where(fixed, z + 5, z), fixed=fixed)
  np.testing.assert_array_equal(v, other)


@pytest.mark.parametrize(
  'values, message',
  [
    ({'kind': 'pag'}, r"guidance_kind='pag': expected one of .*'apg'"),
    ({'scale': -1.0}, 'guidance=-1.0: expected 0 or more'),
    ({'scale': float('nan')}, 'guidance=nan: expected 0 or more'),
    ({'interval': (0.8, 0.2)}, r'interval=\(0.8, 0.2\): .*low < high'),
    ({'zero_steps': -1}, 'zero_steps=-1: expected 0 or more'),
    (
      {'norm_threshold': 0.0},
      'norm_threshold=0.0: expected more than 0, or None',
    ),
    ({'momentum': 1.0}, 'momentum=1.0: expected more than -1'),
    ({'skip_layers': 3}, 'skip_layers=3: expected numbers of layers'),
    ({'skip_layers': (0.5,)}, r'skip_layers=\(0.5,\): expected numbers of la'),
    ({'skip_layers': (True,)}, r'skip_layers=\(True,\): expected numbers of'),
    ({'skip_layers': (-1,)}, r'skip_layers=\(-1,\): .* each once'),
    ({'skip_layers': (2, 2)}, r'skip_layers=\(2, 2\): .* each once'),
    (
      {'skip_layer_scale': 0.0},
      'skip_layer_scale=0.0: expected more than 0; without `skip_layers`',
    ),
    ({'skip_layer_scale': float('inf')}, 'skip_layer_scale=inf: expected more'),
    (
      {'skip_layer_interval': (0.8, 0.2)},
      r'skip_layer_interval=\(0.8, 0.2\): .*low < high',
    ),
  ],
)
def test_refuses(values, message):
  with pytest.raises(SettingError, match=message):
    Guidance(**values)
