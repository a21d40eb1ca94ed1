"""The sampler with networks whose prediction is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime.diffusion import conditioning, flow, sampler, solvers
from spacetime.diffusion.conditioning import Conditioning
from spacetime.diffusion.settings import SamplingSettings

LATENT = (3, 2, 4, 5)  # f h w c
PATCH = (1, 2, 4)
TEXT = np.array([[3.0, 1.0], [4.0, 1.0]], np.float32)
EMPTY = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)


def latents(seed=3, batch=2):
  return jax.random.normal(jax.random.key(seed), (batch, *LATENT))


def target():
  return jax.random.normal(jax.random.key(7), LATENT)


def noise_of(keys):
  return jax.vmap(lambda key: jax.random.normal(key, LATENT))(keys)


def make(transform, *, prediction='sample', sampler_fields=None, **settings):
  """A sampler of four even steps with Euler, unless settings differ."""
  values = {
    'steps': 4,
    'solver': 'euler',
    'guidance': 1.0,
    'interval': (0.0, 1.0),
    'shift': 1.0,
  }
  return sampler.Sampler(
    transform,
    flow.FlowConfig(prediction=prediction),
    SamplingSettings(**(values | settings)),
    **(sampler_fields or {}),
  )


def draw(sampling, cond=None, *, seed=0, text=TEXT):
  keys = sampler.clip_keys(seed, 2)
  cond = cond or conditioning.pure_noise(2, LATENT)
  return jax.jit(sampling)({}, keys, text, EMPTY, cond)


def mask_of(frames=1, part=None):
  """The first frames are known, and `part` of the next."""
  mask = np.zeros(LATENT, bool)
  mask[:frames] = True
  if part is not None:
    mask[frames, :, part] = True
  return mask


def oracle(params, z, t, text):
  """A network that always predicts the target."""
  return jnp.broadcast_to(target(), z.shape)


def test_samples_the_clip_that_the_network_predicts():
  np.testing.assert_allclose(draw(make(oracle))[1], target(), atol=1e-5)


def test_same_seed_same_bytes_and_another_seed_another_clip():
  still = make(lambda params, z, t, text: 0.0 * z, prediction='velocity')
  first, second, other = (draw(still, seed=s) for s in (3, 3, 4))
  np.testing.assert_array_equal(first, second)
  assert not np.allclose(first, other)
  assert not np.allclose(first[0], first[1])


def test_temperature_scales_the_distance_of_clips_from_their_mean():
  def velocity(params, z, t, text):
    # Of data of the target's mean and deviation 1: noise less data, at z.
    t = t[0, 0]
    gain = (2 * t - 1) / ((1 - t) ** 2 + t**2)
    return gain * (z - (1 - t) * target()) - target()

  distance = [
    np.asarray(
      draw(
        make(velocity, prediction='velocity', steps=64, temperature=temperature)
      )
      - target()
    )
    for temperature in (1.0, 0.5, 0.0)
  ]
  assert np.std(distance[0]) == pytest.approx(1, abs=0.15)
  np.testing.assert_allclose(distance[1], distance[0] / 2, atol=1e-4)
  np.testing.assert_allclose(distance[2], 0, atol=1e-5)


def test_temperature_keeps_the_noise_of_conditioning_frames():
  z = latents()
  cond = Conditioning(z, jnp.tile(jnp.float32([1.0, 0.25, 1.0]), (2, 1)))
  sampling = make(oracle, temperature=0.5)
  keys = sampler.clip_keys(0, 2)
  start, noise = sampling.init(keys, cond).solver, noise_of(keys)
  np.testing.assert_allclose(start[:, 0], 0.5 * noise[:, 0], atol=1e-6)
  np.testing.assert_allclose(
    start[:, 1], 0.75 * z[:, 1] + 0.25 * noise[:, 1], atol=1e-6
  )


def test_a_clip_does_not_depend_on_its_batch():
  one, two = sampler.clip_keys(5, 4), sampler.clip_keys(5, 2, first=2)
  np.testing.assert_array_equal(
    jax.random.key_data(one[2:]), jax.random.key_data(two)
  )


def test_conditioning_frames_stay_and_have_timestep_zero():
  image = latents(1)[:, :1]
  z = jnp.pad(image, ((0, 0), (0, 2), (0, 0), (0, 0), (0, 0)))
  cond = conditioning.from_mask(z, mask_of(), patch=PATCH)
  assert cond.cond_mask_Bfhwc is None

  def transform(params, z, t, text):
    right = jnp.all(t[:, 0] == 0) & jnp.all(z[:, :1] == image)
    return jnp.where(right, oracle(params, z, t, text), jnp.nan)

  z = draw(make(transform), cond)
  np.testing.assert_array_equal(z[:, :1], image)
  np.testing.assert_allclose(z[0, 1:], target()[1:], atol=1e-5)


@pytest.mark.parametrize('prediction', flow.PREDICTIONS)
def test_without_conditioning_there_is_one_timestep_a_clip(prediction):
  """And one for each frame, all of them noise, gives the same."""
  seen = []

  def transform(params, z, t, text):
    seen.append(t.shape)
    return jnp.sin(z) * t[:, :, None, None, None]

  sampling = make(transform, prediction=prediction, guidance=2.0)
  noise = Conditioning(jnp.zeros((2, *LATENT)), jnp.ones((2, LATENT[0])))
  by_frame = draw(sampling, noise)
  assert set(seen) == {(4, LATENT[0])}
  seen.clear()
  np.testing.assert_allclose(draw(sampling), by_frame, atol=1e-6)
  assert set(seen) == {(4, 1)}


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(solvers.SOLVERS))
@pytest.mark.parametrize('guidance', [1.0, 2.0])
def test_masked_values_move_straight_to_their_known_values(name, guidance):
  """In a frame that has one timestep, whatever the network predicts."""
  z, known = latents(), mask_of(part=slice(2, None))
  cond = conditioning.from_mask(z, known, patch=PATCH)
  assert cond.cond_mask_Bfhwc.sum() == 2 * 2 * 2 * 5
  keys, repeats = sampler.clip_keys(0, 2), 1 if guidance == 1 else 2
  expected = jnp.concatenate([noise_of(keys)[:, 1, :, 2:]] * repeats)
  clean = jnp.concatenate([z[:, 1, :, 2:]] * repeats)

  def transform(params, z_t, t, text):
    # Masked values are noised to the level of their frame, no other.
    t_1 = t[:, 1, None, None, None]
    noise = (z_t[:, 1, :, 2:] - (1 - t_1) * clean) / t_1
    right = jnp.all(t[:, 0] == 0) & jnp.all(jnp.abs(noise - expected) < 1e-4)
    return jnp.where(right, jnp.sin(5 * z_t), jnp.nan)

  sampling = make(
    transform,
    prediction='velocity',
    guidance=guidance,
    steps=5,
    shift=3.0,
    solver=name,
  )
  sampled = jax.jit(sampling)({}, keys, TEXT, EMPTY, cond)
  mask = np.broadcast_to(known, sampled.shape)
  np.testing.assert_allclose(sampled[mask], z[mask], atol=1e-5)
  assert np.abs(sampled - z)[~mask].min() > 1e-4


@pytest.mark.parametrize('prediction', flow.PREDICTIONS)
@pytest.mark.parametrize('guidance', [1.0, 2.0])
def test_conditioning_tokens_stay_and_have_timestep_zero(prediction, guidance):
  z, known = latents(), mask_of(part=slice(2, None))
  cond = conditioning.from_mask(z, known, patch=(1, 2, 2))
  assert cond.cond_mask_Bfhwc is None

  def transform(params, z_t, t, text, *, t_index_fhw):
    t = t[:, t_index_fhw]
    first, second = (t[:, i] for i in (0, 1))
    right = jnp.all(first == 0) & jnp.all(second[:, :, 2:] == 0)
    right &= jnp.all(second[:, :, :2] == t[:, 2, :, 2:])
    right &= jnp.all(t[:, 2] > 0)
    right &= jnp.all(z_t[:2, 1, :, 2:] == z[:, 1, :, 2:])
    y = jnp.broadcast_to(target(), z_t.shape)
    if prediction == 'velocity':
      y = (z_t - y) / jnp.maximum(t[..., None], 1e-6)
    return jnp.where(right, y, jnp.nan)

  sampling = make(transform, prediction=prediction, guidance=guidance)
  sampled = draw(sampling, cond)
  mask = np.broadcast_to(known, sampled.shape)
  np.testing.assert_array_equal(sampled[mask], z[mask])
  expected = np.broadcast_to(target(), sampled.shape)
  np.testing.assert_allclose(sampled[~mask], expected[~mask], atol=1e-5)


def test_an_edit_begins_at_its_strength_and_keeps_conditioning_frames():
  z, known = latents(), np.zeros(LATENT, bool)
  known[2] = True
  cond = conditioning.from_mask(z, known, patch=PATCH, strength=0.6)
  np.testing.assert_allclose(cond.t_BT, np.float32([[0.6, 0.6, 0.0]] * 2))
  seen = []

  def transform(params, z_t, t, text):
    jax.debug.callback(lambda t, z: seen.append((t, z)), t, z_t, ordered=True)
    return oracle(params, z_t, t, text)

  sampling = make(transform, steps=3, strength=0.6, shift=5.0)
  keys = sampler.clip_keys(0, 2)
  sampled = jax.jit(sampling)({}, keys, TEXT, EMPTY, cond)
  t, start = seen[0]
  np.testing.assert_allclose(t, cond.t_BT)
  np.testing.assert_allclose(
    start[:, :2], 0.4 * z[:, :2] + 0.6 * noise_of(keys)[:, :2], atol=1e-6
  )
  np.testing.assert_array_equal(sampled[:, 2], z[:, 2])
  np.testing.assert_allclose(sampled[0, :2], target()[:2], atol=1e-5)


def test_a_frame_of_less_noise_waits_for_the_others():
  z, seen = latents(), []
  cond = Conditioning(z, jnp.tile(jnp.float32([1.0, 0.5, 0.0]), (2, 1)))

  def transform(params, z_t, t, text):
    jax.debug.callback(lambda t: seen.append(t), t, ordered=True)
    return oracle(params, z_t, t, text)

  sampled = draw(make(transform), cond)
  t_Kf = np.stack(seen)[:, 0]
  np.testing.assert_allclose(t_Kf[:, 0], [1, 0.75, 0.5, 0.25])
  np.testing.assert_allclose(t_Kf[:, 1], [0.5, 0.5, 0.5, 0.25])
  np.testing.assert_array_equal(sampled[:, 2], z[:, 2])
  np.testing.assert_allclose(sampled[0, :2], target()[:2], atol=1e-5)


def textual(params, z, t, text):
  return jnp.sin(z) * params['scale'] + text[:, :1, None, None, None]


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(solvers.SOLVERS))
@pytest.mark.parametrize('kind', ['cfg', 'apg'])
def test_a_loop_of_jitted_steps_is_the_scan_to_the_last_bit(name, kind):
  sampling = make(
    textual,
    prediction='velocity',
    steps=5,
    shift=3.0,
    solver=name,
    guidance=3.0,
    guidance_kind=kind,
  )
  keys, params = sampler.clip_keys(0, 2), {'scale': 1.0}
  cond = conditioning.from_mask(
    latents(), mask_of(part=slice(2, None)), patch=PATCH
  )
  state = sampling.init(keys, cond)
  scan = jax.jit(sampling.run)(params, state, TEXT, EMPTY, cond)
  state, text = jax.jit(sampling.start)(params, state, TEXT, EMPTY, cond)
  step = jax.jit(sampling.step)
  for i in sampling.steps:
    state = step(params, state, text, cond, i)
  assert step._cache_size() == 1
  # Fusions of the re-noising step differ by an ulp.
  atol = 2e-6 if name == 'renoise' else 0
  for loop, expected in zip(
    jax.tree.leaves(state), jax.tree.leaves(scan), strict=True
  ):
    np.testing.assert_allclose(loop, expected, atol=atol, rtol=0)


def test_two_step_ranges_are_one_run():
  both = make(
    textual,
    prediction='velocity',
    steps=5,
    solver='unipc',
    guidance=3.0,
  )
  keys, cond = sampler.clip_keys(0, 2), conditioning.pure_noise(2, LATENT)
  params = {'scale': 1.0}

  def run(*scales):
    state = both.init(keys, cond)
    for step_range, scale in zip(((0, 2), (2, 5)), scales, strict=True):
      settings = dataclasses.replace(both.settings, guidance=scale)
      part = dataclasses.replace(both, step_range=step_range, settings=settings)
      state = part.run(params, state, TEXT, EMPTY, cond)
    return both.finalize(state)

  expected = both(params, keys, TEXT, EMPTY, cond)
  np.testing.assert_allclose(run(3.0, 3.0), expected, atol=1e-6)
  assert np.abs(run(3.0, 1.0) - expected).max() > 0.01


def test_guidance_moves_away_from_the_negative_prompt():
  def transform(params, z, t, text):
    return 0.0 * z + text[:, :1, None, None, None]

  z0, z1, z3 = (
    draw(make(transform, prediction='velocity', guidance=scale))
    for scale in (0.0, 1.0, 3.0)
  )
  np.testing.assert_allclose(z3 - z0, 3 * (z1 - z0), atol=1e-5)
  assert not np.allclose(z1[0] - z0[0], z1[1] - z0[1])


@pytest.mark.parametrize('name', ['euler', 'unipc'])
def test_a_schedule_that_begins_below_one_keeps_known_values(name):
  """As CFG-Zero* drops the first steps: the initial noise stays as it is."""
  z, known = latents(), mask_of(frames=0)
  known[1, :, 2:] = True
  sampling = make(
    lambda params, z_t, t, text: jnp.sin(5 * z_t),
    prediction='velocity',
    steps=6,
    solver=name,
    guidance=2.0,
    guidance_kind='cfg_zero',
    zero_steps=2,
  )
  keys = sampler.clip_keys(0, 2)
  cond = conditioning.from_mask(z, known, patch=PATCH)
  start = jax.tree.leaves(sampling.init(keys, cond).solver)[0]
  noise = noise_of(keys)
  mask = np.broadcast_to(known, z.shape)
  np.testing.assert_allclose(start[~mask], noise[~mask])
  t = sampling.schedule.sigmas[0]
  assert t < 1
  path = (1 - t) * z + t * noise
  np.testing.assert_allclose(start[mask], path[mask], atol=1e-6)
  sampled = jax.jit(sampling)({}, keys, TEXT, EMPTY, cond)
  np.testing.assert_allclose(sampled[mask], z[mask], atol=1e-5)


def test_momentum_lasts_from_step_to_step():
  """The update of the second step is d_2 + momentum d_1."""

  def transform(params, z, t, text):
    return 0.0 * z + text[:, :1, None, None, None]

  def move(momentum, steps):
    return draw(
      make(
        transform,
        prediction='velocity',
        steps=steps,
        guidance=3.0,
        guidance_kind='apg',
        momentum=momentum,
        eta=1.0,
      )
    )

  # With text 3, without 1: t * (3 - 1) at t = 1, then at t = 0.5; as a
  # velocity divided by t again, over half of the path.
  expected = -2 * 0.5 * (-0.5 * 2 / 0.5)
  difference = move(-0.5, 2) - move(0.0, 2)
  np.testing.assert_allclose(difference[0], expected, atol=1e-5)
  np.testing.assert_allclose(move(-0.5, 1), move(0.0, 1), atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Counting:
  """A transform whose cache counts its calls; it predicts the count."""

  shape: tuple

  def init(self, shape):
    assert shape == self.shape
    return jnp.zeros(shape)

  def __call__(self, params, z, t, text, cache):
    return cache + text['kv'], cache + 1


def test_the_network_cache_lasts_and_the_kv_cache_is_computed_once():
  shapes = []

  def precompute_kv(params, text):
    shapes.append(text.shape)
    return {'kv': 10 * params['scale']}

  sampling = make(
    None,
    prediction='velocity',
    guidance=3.0,
    sampler_fields={
      'precompute_kv': precompute_kv,
      'cached_transform': Counting((4, *LATENT)),
    },
  )
  keys, cond = sampler.clip_keys(0, 2), conditioning.pure_noise(2, LATENT)
  state = sampling.init(keys, cond)
  state = jax.jit(sampling.run)({'scale': 1.0}, state, TEXT, EMPTY, cond)
  # The steps predict 10, 11, 12 and 13, over a quarter of the path each.
  np.testing.assert_allclose(
    sampling.finalize(state), noise_of(keys) - 11.5, atol=1e-5
  )
  assert np.all(state.cache[0] == 4) and shapes == [(4, 2)]


@pytest.mark.parametrize('guidance, batch', [(1.0, 2), (2.0, 4)])
def test_branches_are_one_batch(guidance, batch):
  seen = []

  def transform(params, z, t, text):
    seen.append(z.shape[0])
    return 0.0 * z

  draw(make(transform, guidance=guidance))
  assert set(seen) == {batch}


@pytest.mark.parametrize('guidance', [1.0, 2.0])
def test_one_branch_leaves_out_layers(guidance):
  """It has the prompt's text, and what it predicts is moved away from."""

  def transform(params, z, t, text, stack=(0, ())):
    skipping_B, layers = stack
    v_B = text[:, 0] + 10 * sum(layers) * skipping_B
    return 0.0 * z + v_B[:, None, None, None, None]

  def move(**settings):
    sampling = make(
      transform,
      prediction='velocity',
      guidance=guidance,
      sampler_fields={'without_layers': lambda *stack: stack},
      **settings,
    )
    return draw(sampling)

  plain, skipping = move(), move(skip_layers=(1, 2), skip_layer_scale=0.5)
  # The velocity changes by 0.5 (v - (v + 30)), and z by as much less.
  np.testing.assert_allclose(skipping - plain, 15.0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('solver', sorted(solvers.SOLVERS.keys() - {'renoise'}))
@pytest.mark.parametrize('steps', [4, 10, 20])
def test_context_noise_is_the_timestep_of_the_network(solver, steps):
  """The error of the first frame's level moves the others: there is none."""
  noise = noise_of(sampler.clip_keys(0, 2))
  t_Bf = jnp.array([[0.2, 1.0, 1.0]] * 2)
  context = jnp.array([[True, False, False]] * 2)
  cond = Conditioning(latents(), t_Bf, context_BT=context)

  def transform(params, z, t, text):
    level = t[:, :1, None, None, None]
    expected = (1 - level) * cond.z_Bfhwc[:, :1] + level * noise[:, :1]
    error = jnp.max(jnp.abs(z[:, :1] - expected))
    return jnp.zeros_like(z) + error

  sampling = make(
    transform, prediction='velocity', solver=solver, steps=steps, shift=3.0
  )
  np.testing.assert_allclose(
    draw(sampling, cond)[:, 1:], noise[:, 1:], atol=1e-5
  )


def test_an_edit_by_a_published_schedule_begins_at_its_first_level():
  """The first published noise level below a strength is lower than it."""
  z, noise = latents(), noise_of(sampler.clip_keys(0, 2))
  cond = conditioning.from_mask(
    z, np.zeros(LATENT, bool), patch=PATCH, strength=0.6
  )
  sampling = make(
    lambda params, z_t, t, text: noise - z,
    prediction='velocity',
    steps=7,
    schedule='published',
    strength=0.6,
    shift=3.0,
  )
  assert sampling.schedule.sigmas[0] < 0.59
  np.testing.assert_allclose(draw(sampling, cond), z, atol=1e-5)


def plain_renoise(network, z, sigmas, draws, fixed=None):
  """The loop of the published code, in numpy."""
  for i, (t, t_next) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
    x = z - t * network(z, t)
    z = (1 - t_next) * x + t_next * draws[i]
    if fixed is not None:
      z = np.where(fixed, x, z)
  return z


def renoised(key, i):
  key = jax.random.fold_in(jax.random.fold_in(key, 2**30), i)
  return np.asarray(jax.random.normal(key, LATENT))


@pytest.mark.parametrize('preset', ['lightx2v', 'fastwan', 'rcm'])
def test_presets_equal_a_plain_loop(preset):
  def velocity(params, z, t, text):
    t = t[:, :, None, None, None]
    return jnp.sin(3 * z) * (1 + t) + text[:, :1, None, None, None]

  sampling = make(velocity, prediction='velocity')
  settings = sampling.settings.with_changes(preset=preset)
  sampling = dataclasses.replace(sampling, settings=settings)
  result = draw(sampling, seed=6)
  keys = sampler.clip_keys(6, 2)
  sigmas = np.float64(settings.make_schedule().sigmas)
  timesteps = dict(
    zip(sigmas, settings.make_schedule().timesteps, strict=False)
  )
  for clip in range(2):
    noise = np.asarray(noise_of(keys)[clip])
    draws = [renoised(keys[clip], i) for i in range(settings.steps)]

    def network(z, t, clip=clip):
      return np.sin(3 * z) * (1 + timesteps[t]) + TEXT[clip, 0]

    if preset == 'lightx2v':
      z = noise
      for t, t_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        z = z + (t_next - t) * network(z, t)
    else:
      z = plain_renoise(network, sigmas[0] * noise, sigmas, draws)
    np.testing.assert_allclose(result[clip], z, atol=1e-5)


def test_renoising_keeps_what_is_known():
  image = latents(1)
  mask = mask_of(1, part=slice(0, 2))
  cond = conditioning.from_mask(image, mask, patch=PATCH)
  sampling = make(oracle, timesteps=(900.0, 600.0, 200.0), steps=3)
  settings = dataclasses.replace(sampling.settings, solver='renoise')
  result = draw(dataclasses.replace(sampling, settings=settings), cond)
  np.testing.assert_allclose(
    np.asarray(result)[:, mask], np.asarray(image)[:, mask], atol=1e-5
  )
  free = ~mask
  np.testing.assert_allclose(
    np.asarray(result)[0, free], np.asarray(target())[free], atol=1e-5
  )


def test_renoised_clips_do_not_depend_on_their_batch():
  def velocity(params, z, t, text):
    return jnp.sin(3 * z)

  sampling = make(velocity, prediction='velocity', solver='renoise')
  cond = conditioning.pure_noise(1, LATENT)
  keys = sampler.clip_keys(0, 2)
  alone = [
    sampling({}, keys[i : i + 1], TEXT[:1], EMPTY[:1], cond) for i in range(2)
  ]
  np.testing.assert_allclose(draw(sampling), np.concatenate(alone), atol=1e-6)
