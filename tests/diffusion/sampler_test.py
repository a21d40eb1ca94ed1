"""The sampler with networks whose answer is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime.diffusion import conditioning, flow, sampler, schedules, solvers
from spacetime.diffusion.guidance import Guidance

LATENT = (3, 2, 4, 5)  # f h w c
PATCH = (1, 2, 4)
TARGET = jax.random.normal(jax.random.key(7), LATENT)
TEXT = jnp.array([[3.0, 1.0], [4.0, 1.0]])
EMPTY = jnp.array([[1.0, 0.0], [1.0, 0.0]])


def make(transform, *, prediction='sample', guidance=1.0, steps=4, **more):
  return jax.jit(
    sampler.Sampler(
      transform=transform,
      flow=flow.FlowConfig(prediction=prediction),
      sigmas=tuple(schedules.even_sigmas(steps)),
      solver='euler',
      guidance=Guidance(guidance),
      **more,
    )
  )


def truth(params, z, t, text):
  """A network that always knows the clip."""
  return jnp.broadcast_to(TARGET, z.shape)


def draw(make, condition=None, *, seed=0, text=TEXT):
  keys = sampler.clip_keys(seed, 2)
  condition = condition or conditioning.pure_noise(2, LATENT)
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


def test_temperature_is_how_far_clips_are_from_their_mean():
  def velocity(params, z, t, text):
    # Of data of mean TARGET and deviation 1: noise less data, given z.
    t = t[0, 0]
    gain = (2 * t - 1) / ((1 - t) ** 2 + t**2)
    return gain * (z - (1 - t) * TARGET) - TARGET

  apart = []
  for temperature in (1.0, 0.5, 0.0):
    moved = make(
      velocity, prediction='velocity', steps=64, temperature=temperature
    )
    found = draw(moved)
    apart.append(np.asarray(found - TARGET))
  assert np.std(apart[0]) == pytest.approx(1, abs=0.15)
  np.testing.assert_allclose(apart[1], apart[0] / 2, atol=1e-4)
  np.testing.assert_allclose(apart[2], 0, atol=1e-5)


def test_a_clip_does_not_depend_on_its_batch():
  one, two = sampler.clip_keys(5, 4), sampler.clip_keys(5, 2, first=2)
  np.testing.assert_array_equal(
    jax.random.key_data(one[2:]), jax.random.key_data(two)
  )


def test_given_frames_stay_as_they_are_and_are_told_at_level_zero():
  image = jax.random.normal(jax.random.key(1), (2, 1, *LATENT[1:]))
  z = jnp.pad(image, ((0, 0), (0, 2), (0, 0), (0, 0), (0, 0)))
  known = np.zeros(LATENT, bool)
  known[0] = True
  condition = conditioning.from_mask(z, known, patch=PATCH)
  assert condition.cond_mask_Bfhwc is None

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
  none = conditioning.Conditioning(z, jnp.ones((2, LATENT[0])))
  made = make(transform, prediction=prediction, guidance=2.0)
  rows = draw(made, none)
  assert set(seen) == {(4, LATENT[0])}
  seen.clear()
  np.testing.assert_allclose(draw(made), rows, atol=1e-6)
  assert set(seen) == {(4, 1)}


@pytest.mark.parametrize('name', sorted(solvers.SOLVERS))
@pytest.mark.parametrize('guidance', [1.0, 2.0])
def test_known_values_go_straight_to_what_they_are(name, guidance):
  """In a frame that is told one level, whatever the network makes of it."""
  z = jax.random.normal(jax.random.key(3), (2, *LATENT))
  known = np.zeros(LATENT, bool)
  known[1, :, 2:] = True
  known[0] = True
  condition = conditioning.from_mask(z, known, patch=PATCH)
  assert condition.cond_mask_Bfhwc.sum() == 2 * 2 * 2 * 5

  def transform(params, z_t, t, text):
    # Known values are noised to the level of their frame, no other.
    level = t[:, 1, None, None, None]
    first = (
      z_t[:, 1, :, 2:]
      - (1 - level) * jnp.tile(z, (2, 1, 1, 1, 1))[: len(z_t), 1, :, 2:]
    )
    noise = first / level
    right = jnp.all(t[:, 0] == 0) & jnp.all(jnp.abs(noise - NOISE) < 1e-4)
    return jnp.where(right, jnp.sin(5 * z_t), jnp.nan)

  keys = sampler.clip_keys(0, 2)
  noise = jax.vmap(lambda key: jax.random.normal(key, LATENT))(keys)
  NOISE = noise[:, 1, :, 2:]
  if guidance != 1:
    NOISE = jnp.concatenate([NOISE, NOISE])
  made = sampler.Sampler(
    transform=transform,
    flow=flow.FlowConfig(prediction='velocity'),
    sigmas=tuple(schedules.even_sigmas(5, shift=3.0).tolist()),
    solver=name,
    guidance=Guidance(guidance),
  )
  found = jax.jit(made)({}, keys, TEXT, EMPTY, condition)
  mask = np.broadcast_to(known, found.shape)
  np.testing.assert_allclose(found[mask], z[mask], atol=1e-5)
  assert np.abs(found - z)[~mask].min() > 1e-4


@pytest.mark.parametrize('prediction', ['velocity', 'sample'])
@pytest.mark.parametrize('guidance', [1.0, 2.0])
def test_given_tokens_stay_and_are_told_at_level_zero(prediction, guidance):
  z = jax.random.normal(jax.random.key(3), (2, *LATENT))
  known = np.zeros(LATENT, bool)
  known[1, :, 2:] = True
  known[0] = True
  condition = conditioning.from_mask(z, known, patch=(1, 2, 2))
  assert condition.cond_mask_Bfhwc is None

  def transform(params, z_t, t, text, *, t_index_fhw):
    level = t[:, t_index_fhw]
    first, second = (level[:, i] for i in (0, 1))
    told = jnp.all(first == 0) & jnp.all(second[:, :, 2:] == 0)
    told &= jnp.all(second[:, :, :2] == level[:, 2, :, 2:])
    told &= jnp.all(level[:, 2] > 0)
    stay = jnp.all(z_t[:2, 1, :, 2:] == z[:, 1, :, 2:])
    target = jnp.broadcast_to(TARGET, z_t.shape)
    if prediction == 'velocity':
      target = (z_t - target) / jnp.maximum(level[..., None], 1e-6)
    return jnp.where(told & stay, target, jnp.nan)

  found = draw(
    make(transform, prediction=prediction, guidance=guidance), condition
  )
  mask = np.broadcast_to(known, found.shape)
  np.testing.assert_array_equal(found[mask], z[mask])
  target = np.broadcast_to(TARGET, found.shape)
  np.testing.assert_allclose(found[~mask], target[~mask], atol=1e-5)


def test_an_edit_begins_at_its_strength_and_joins_what_is_given():
  z = jax.random.normal(jax.random.key(3), (2, *LATENT))
  known = np.zeros(LATENT, bool)
  known[2] = True
  levels = tuple(schedules.even_sigmas(3, strength=0.6, shift=5.0).tolist())
  condition = conditioning.from_mask(z, known, patch=PATCH, strength=levels[0])
  np.testing.assert_allclose(condition.t_BT, np.float32([[0.6, 0.6, 0.0]] * 2))
  seen = []

  def transform(params, z_t, t, text):
    jax.debug.callback(lambda t, z: seen.append((t, z)), t, z_t, ordered=True)
    return jnp.broadcast_to(TARGET, z_t.shape)

  made = sampler.Sampler(
    transform=transform,
    flow=flow.FlowConfig(prediction='sample'),
    sigmas=levels,
    solver='euler',
    guidance=Guidance(),
    temperature=0.5,  # of what begins as noise, and that is nothing here
  )
  keys = sampler.clip_keys(0, 2)
  found = jax.jit(made)({}, keys, TEXT, EMPTY, condition)
  noise = jax.vmap(lambda key: jax.random.normal(key, LATENT))(keys)
  t, start = seen[0]
  np.testing.assert_allclose(t, condition.t_BT)
  np.testing.assert_allclose(
    start[:, :2], 0.4 * z[:, :2] + 0.6 * noise[:, :2], atol=1e-6
  )
  np.testing.assert_array_equal(found[:, 2], z[:, 2])
  np.testing.assert_allclose(found[0, :2], TARGET[:2], atol=1e-5)


def test_a_frame_waits_for_the_others_to_come_to_its_level():
  z = jax.random.normal(jax.random.key(3), (2, *LATENT))
  level = jnp.tile(jnp.float32([1.0, 0.5, 0.0]), (2, 1))
  told = []

  def transform(params, z_t, t, text):
    jax.debug.callback(lambda t: told.append(t), t, ordered=True)
    return jnp.broadcast_to(TARGET, z_t.shape)

  found = draw(make(transform), conditioning.Conditioning(z, level))
  rows = np.stack(told)[:, 0]
  np.testing.assert_allclose(rows[:, 0], [1, 0.75, 0.5, 0.25])
  np.testing.assert_allclose(rows[:, 1], [0.5, 0.5, 0.5, 0.25])
  np.testing.assert_array_equal(found[:, 2], z[:, 2])
  np.testing.assert_allclose(found[0, :2], TARGET[:2], atol=1e-5)


def test_a_run_in_two_spans_is_one_run():
  def transform(params, z, t, text):
    return jnp.sin(z) * params['scale'] + text[:, :1, None, None, None]

  whole = sampler.Sampler(
    transform=transform,
    flow=flow.FlowConfig(prediction='velocity'),
    sigmas=tuple(schedules.even_sigmas(5)),
    solver='unipc',
    guidance=Guidance(3.0),
  )
  parts = [
    dataclasses.replace(whole, span=span, guidance=Guidance(scale))
    for span, scale in (((0, 2), 3.0), ((2, 5), 1.0))
  ]
  keys, condition = sampler.clip_keys(0, 2), conditioning.pure_noise(2, LATENT)
  params = {'scale': 1.0}

  def run(parts):
    carry = whole.begin(keys, condition)
    for part in parts:
      carry = part.advance(params, carry, TEXT, EMPTY, condition)
    return whole.end(carry)

  expected = whole(params, keys, TEXT, EMPTY, condition)
  same = [dataclasses.replace(part, guidance=Guidance(3.0)) for part in parts]
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


def frozen_first(frames=1):
  """A condition of which the first frames are given, and its latents."""
  z = jax.random.normal(jax.random.key(3), (2, *LATENT))
  known = np.zeros(LATENT, bool)
  known[:frames] = True
  return z, conditioning.from_mask(z, known, patch=PATCH)


@pytest.mark.parametrize('text', [1.0, 3.0])
def test_given_frames_have_a_scale_of_their_own(text):
  """v = none + given (i - none) + text (it - i), of networks that answer with
  what they are told: of the text, and whether the first frame is given."""
  z, condition = frozen_first()
  keys = sampler.clip_keys(0, 2)
  noise = jax.vmap(lambda key: jax.random.normal(key, LATENT))(keys)

  def transform(params, z_t, t, text_RSY):
    if t.shape[0] > 2 or text != 1:
      t_first, t_last = t[:, 0], t[:, -1]
      rows = t.shape[0] // 2
      level = t_last[0]
      # In the last row the first frame is noised to the level of the others.
      free = (1 - level) * z[:, 0] + level * noise[:, 0]
      right = jnp.all(t_first[: 2 * rows - 2] == 0)
      right &= jnp.all(t_first[-2:] == level)
      right &= jnp.all(jnp.abs(z_t[-2:, 0] - free) < 1e-5)
      z_t = jnp.where(right, 0.0, jnp.nan) * z_t
    given = (t[:, :1] == 0).astype(jnp.float32)[:, :, None, None, None]
    return 0.0 * z_t + text_RSY[:, :1, None, None, None] + 10 * given

  def move(given):
    made = sampler.Sampler(
      transform=transform,
      flow=flow.FlowConfig(prediction='velocity'),
      sigmas=tuple(schedules.even_sigmas(4).tolist()),
      solver='euler',
      guidance=Guidance(text, given=given),
    )
    found = jax.jit(made)({}, keys, TEXT, EMPTY, condition)
    np.testing.assert_array_equal(found[:, 0], z[:, 0])
    return np.asarray(noise - found)[:, 1:]

  # Over the whole way the velocity is integrated once.
  told, away = np.array([3.0, 4.0]), np.array([1.0, 1.0])
  expected = away + text * (told - away) + 10
  for given in (0.0, 2.5):
    extra = 10 * (given - 1)
    np.testing.assert_allclose(
      move(given)[:, 0, 0, 0, 0], expected + extra, atol=1e-4
    )


@pytest.mark.parametrize('name', ['euler', 'unipc'])
def test_a_grid_that_begins_below_one_keeps_what_is_known(name):
  """As CFG-Zero* leaves out the first steps: the noise stays as it is."""
  z = jax.random.normal(jax.random.key(3), (2, *LATENT))
  known = np.zeros(LATENT, bool)
  known[1, :, 2:] = True
  grid = schedules.make_schedule(
    'even', 6, shift=1.0, solver=name
  ).without_first(2)
  made = sampler.Sampler(
    transform=lambda params, z_t, t, text: jnp.sin(5 * z_t),
    flow=flow.FlowConfig(prediction='velocity'),
    sigmas=grid.sigmas,
    timesteps=grid.timesteps,
    solver=name,
    guidance=Guidance(2.0, kind='cfg_zero'),
  )
  keys, condition = (
    sampler.clip_keys(0, 2),
    conditioning.from_mask(z, known, patch=PATCH),
  )
  start = jax.tree.leaves(made.begin(keys, condition))[0]
  noise = jax.vmap(lambda key: jax.random.normal(key, LATENT))(keys)
  mask = np.broadcast_to(known, z.shape)
  np.testing.assert_allclose(start[~mask], noise[~mask])
  level = grid.sigmas[0]
  path = (1 - level) * z + level * noise
  np.testing.assert_allclose(start[mask], path[mask], atol=1e-6)
  found = jax.jit(made)({}, keys, TEXT, EMPTY, condition)
  np.testing.assert_allclose(found[mask], z[mask], atol=1e-5)


def test_momentum_lasts_from_step_to_step():
  """Directions d in the sample at levels t: after two steps the second is
  d_2 + momentum d_1."""

  def transform(params, z, t, text):
    return 0.0 * z + text[:, :1, None, None, None]

  def move(momentum, steps):
    made = sampler.Sampler(
      transform=transform,
      flow=flow.FlowConfig(prediction='velocity'),
      sigmas=tuple(schedules.even_sigmas(steps).tolist()),
      solver='euler',
      guidance=Guidance(3.0, kind='apg', momentum=momentum, parallel=1.0),
    )
    return draw(jax.jit(made))

  # With text 3, without 1: t * (3 - 1) at t = 1, then at t = 0.5; as a
  # velocity divided by t again, for half of the way.
  expected = -2 * 0.5 * (-0.5 * 2 / 0.5)
  found = move(-0.5, 2) - move(0.0, 2)
  np.testing.assert_allclose(found[0], expected, atol=1e-5)
  np.testing.assert_allclose(move(-0.5, 1), move(0.0, 1), atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Counting:
  """A network that remembers how often it was asked, and answers with it."""

  shape: tuple

  def begin(self, shape):
    assert shape == self.shape
    return jnp.zeros(shape)

  def __call__(self, params, z, t, text, memory):
    return memory + text['ready'], memory + 1


def test_a_network_that_skips_remembers_and_the_text_is_prepared_once():
  prepared = []

  def prepare(params, text_RSY):
    prepared.append(text_RSY.shape)
    return {'ready': 10 * params['scale']}

  made = sampler.Sampler(
    transform=None,
    flow=flow.FlowConfig(prediction='velocity'),
    sigmas=tuple(schedules.even_sigmas(4).tolist()),
    solver='euler',
    guidance=Guidance(3.0),
    prepare=prepare,
    skipping=Counting((4, *LATENT)),
  )
  keys, condition = sampler.clip_keys(0, 2), conditioning.pure_noise(2, LATENT)
  carry = made.begin(keys, condition)
  noise = jax.tree.leaves(carry)[0]
  carry = jax.jit(made.advance)({'scale': 1.0}, carry, TEXT, EMPTY, condition)
  # Steps answered 10, 11, 12 and 13, a quarter of the way each.
  np.testing.assert_allclose(made.end(carry), noise - 11.5, atol=1e-5)
  assert np.all(carry[2] == 4) and prepared == [(4, 2)]


@pytest.mark.parametrize('guidance, rows', [(1.0, 2), (2.0, 4)])
def test_pairs_are_batched_and_without_guidance_there_are_none(guidance, rows):
  seen = []

  def transform(params, z, t, text):
    seen.append(z.shape[0])
    return 0.0 * z

  draw(make(transform, guidance=guidance))
  assert set(seen) == {rows}
