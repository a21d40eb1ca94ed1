"""Guidance as a combination of rows of predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime.diffusion import guidance
from spacetime.diffusion.guidance import Guidance

T = jnp.float32(0.4)
Z, WITH, WITHOUT, FREE = jax.random.normal(
  jax.random.key(0), (4, 2, 3, 4, 5, 6)
)


def combined(rule, *, t=T, rows=(WITH, WITHOUT), z=Z, **given):
  """The velocity of the first step."""
  return np.asarray(rule(rows, z, t, rule.begin(z), **given)[0])


def flat(x):
  return np.asarray(x, np.float64).reshape(2, -1)


def test_one_is_the_prediction_with_text_and_zero_without():
  for scale, expected in (
    (1.0, WITH),
    (0.0, WITHOUT),
    (2.5, WITHOUT + 2.5 * (WITH - WITHOUT)),
  ):
    found = combined(Guidance(scale))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_rows_are_those_that_are_needed():
  assert [
    Guidance(scale, given=given).rows
    for scale in (1.0, 2.0)
    for given in (1.0, 2.0)
  ] == [1, 2, 2, 3]


@pytest.mark.parametrize('kind', guidance.KINDS)
def test_outside_of_the_interval_is_the_prediction_with_text(kind):
  rule = Guidance(4.0, kind=kind, interval=(0.2, 0.8), given=3.0)
  rows = (WITH, WITHOUT, FREE)
  for t in (0.1, 0.9):
    found = combined(rule, t=jnp.float32(t), rows=rows)
    np.testing.assert_allclose(found, WITH, atol=1e-6)
  assert np.abs(combined(rule, rows=rows) - WITH).max() > 1


@pytest.mark.parametrize('kind', guidance.KINDS)
def test_given_frames_add_to_every_kind(kind):
  """v + (given - 1) (v_without - v_free); alone, of the one with text."""
  text = combined(Guidance(3.0, kind=kind))
  both = combined(
    Guidance(3.0, kind=kind, given=2.5), rows=(WITH, WITHOUT, FREE)
  )
  np.testing.assert_allclose(both, text + 1.5 * (WITHOUT - FREE), atol=1e-5)
  alone = combined(Guidance(kind=kind, given=2.5), rows=(WITH, FREE))
  np.testing.assert_allclose(alone, FREE + 2.5 * (WITH - FREE), atol=1e-5)


def test_zero_star_starts_from_the_shared_part_of_each_clip():
  a, b = flat(WITH), flat(WITHOUT)
  shared = b * (np.sum(a * b, 1) / np.sum(b * b, 1))[:, None]
  rule = Guidance(3.0, kind='cfg_zero')
  expected = shared + 3 * (a - shared)
  np.testing.assert_allclose(flat(combined(rule)), expected, atol=1e-5)
  # A multiple of the other prediction is no guidance at all.
  found = combined(rule, rows=(WITH, 0.2 * WITH))
  np.testing.assert_allclose(found, WITH, atol=1e-5)


def test_projected_is_plain_guidance_if_nothing_is_taken_away():
  rule = Guidance(3.0, kind='apg', parallel=1.0, momentum=0.0)
  np.testing.assert_allclose(combined(rule), combined(Guidance(3.0)), atol=1e-5)


@pytest.mark.parametrize('parallel', [0.0, 0.3])
def test_projected_weighs_the_part_along_the_sample(parallel):
  t = float(T)
  found = combined(Guidance(3.0, kind='apg', parallel=parallel))
  x_with, x_without = (flat(Z) - t * flat(v) for v in (WITH, WITHOUT))
  unit = x_with / np.linalg.norm(x_with, axis=1, keepdims=True)
  along = unit * np.sum((x_with - x_without) * unit, 1, keepdims=True)
  change = x_with - x_without - (1 - parallel) * along
  np.testing.assert_allclose(
    flat(Z) - t * flat(found), x_with + 2 * change, atol=1e-5
  )


def test_projected_shortens_to_the_radius():
  rule = Guidance(2.0, kind='apg', parallel=1.0, radius=1.5)
  change = float(T) * flat(combined(rule) - WITH)
  np.testing.assert_allclose(np.linalg.norm(change, axis=1), 1.5, rtol=1e-5)
  far, free = (
    combined(Guidance(2.0, kind='apg', radius=radius)) for radius in (1e6, None)
  )
  np.testing.assert_array_equal(far, free)


def test_projected_remembers_earlier_directions_inside_the_interval():
  rule = Guidance(
    2.0, kind='apg', parallel=1.0, momentum=-0.75, interval=(0.0, 0.7)
  )
  memory = rule.begin(Z)
  for t, rows in ((0.9, (WITH, FREE)), (0.6, (WITH, WITHOUT))):
    _, memory = rule(rows, Z, jnp.float32(t), memory)
  # What was outside is forgotten.
  np.testing.assert_allclose(memory, 0.6 * (WITH - WITHOUT), atol=1e-6)
  found, _ = rule((FREE, WITHOUT), Z, T, memory)
  change = 0.4 * (FREE - WITHOUT) - 0.75 * 0.6 * (WITH - WITHOUT)
  np.testing.assert_allclose(found, FREE + change / 0.4, atol=1e-5)


def test_projected_leaves_given_frames():
  given_BT = jnp.array([[True, False, False], [False, False, True]])
  still = given_BT[:, :, None, None, None]
  rows = [jnp.where(still, 0, v) for v in (WITH, WITHOUT)]
  rule = Guidance(3.0, kind='apg')
  found = combined(rule, rows=rows, given=still)
  assert np.all(found[np.asarray(given_BT)] == 0)
  other = combined(rule, rows=rows, z=jnp.where(still, Z + 5, Z), given=still)
  np.testing.assert_array_equal(found, other)


@pytest.mark.parametrize(
  'values, message',
  [
    ({'kind': 'pag'}, r"guidance_kind='pag': expected one of .* --guidance_k"),
    ({'scale': -1.0}, 'guidance=-1.0: expected 0 or more; change --guidance$'),
    ({'given': -1.0}, 'guidance_given=-1.0: expected 0 .*--guidance_given$'),
    ({'scale': float('nan')}, 'guidance=nan: expected 0 or more'),
    ({'interval': (0.8, 0.2)}, 'guidance interval .*expected 0 <= low < high'),
    ({'zero_steps': -1}, 'sampling.zero_steps=-1: expected 0 or more'),
    ({'radius': 0.0}, 'sampling.radius=0.0: expected more than 0, or None'),
    ({'momentum': 1.0}, 'sampling.momentum=1.0: expected more than -1'),
  ],
)
def test_refuses(values, message):
  with pytest.raises(ValueError, match=message):
    Guidance(**values)
