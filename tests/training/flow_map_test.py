"""Flow maps: the loss, a run from a model of one time, and its export."""

import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spacetime
from experiments import digits, digits_flow_map
from spacetime import SettingError, sharding
from spacetime.checkpoint import export, init_weights
from spacetime.config import networks, parse, sections
from spacetime.diffusion import flow
from spacetime.training import flow_map_loss, losses, run, setup, step
from tests.helpers import finetuned, published_folder

SHAPE = (8, 2, 3, 4, 5)


def make(transform, *, conditioning=None, **config):
  clips = losses.DiffusionLoss(
    encode=None,
    embed=None,
    transform=transform,
    flow=flow.FlowConfig(shift=2.0),
    conditioning=conditioning or sections.FrameConditioningConfig(none=1.0),
  )
  return flow_map_loss.FlowMapLoss(
    clips,
    sections.FlowMapConfig(**config),
    lambda params, rows: jnp.zeros((rows, 1, 1)),
  )


ONE_TIME = sections.FrameConditioningConfig(
  none=1.0, first=0.0, first_k=0.0, last_k=0.0, ends=0.0, random=0.0
)
CONDITIONED = sections.FrameConditioningConfig(
  none=0.0, first=1.0, first_k=0.0, last_k=0.0, ends=0.0, random=0.0
)


def batch(shape=SHAPE):
  z = jax.random.normal(jax.random.key(1), shape)
  return {'latents': z, 'text': jnp.ones((len(z), 1, 1))}


def line(z):
  """A network that knows the clip: its velocity is (x - z) / t at any r."""

  def transform(params, x, t, text, key=None, *, end_BT):
    t = jnp.maximum(t, 1e-3)
    return params['a'] * (x - z) / t[:, :, None, None, None]

  return transform


def smooth(params, x, t, text, key=None, *, end_BT):
  """A network with derivatives in all of its arguments."""
  t, r = (y[:, :, None, None, None] for y in (t, end_BT))
  text = jnp.mean(text, axis=(1, 2))[:, None, None, None, None]
  return jnp.sin(params['a'] * x + 2 * t) + r * t**2 + 0.3 * text * t


@pytest.mark.slow
@pytest.mark.parametrize('conditioning', [ONE_TIME, CONDITIONED])
@pytest.mark.parametrize('guidance', [1.0, 3.0])
def test_the_mean_velocity_of_a_straight_path_has_no_loss(
  guidance, conditioning
):
  data = batch()
  stage = make(
    line(data['latents']), guidance=guidance, conditioning=conditioning
  )
  loss, metrics = stage.loss({'a': 1.0}, {}, data, jax.random.key(0))
  assert float(loss) < 1e-5
  wrong, _ = stage.loss({'a': 0.9}, {}, data, jax.random.key(0))
  assert float(wrong) > 1e-3
  assert set(metrics) == {'loss', 'loss_velocity'}


@pytest.mark.parametrize('conditioning', [ONE_TIME, CONDITIONED])
def test_target_is_a_finite_difference_along_the_path(conditioning):
  """In float64, with a step a hundred times smaller than the loss's."""
  data = batch()
  stage = make(smooth, conditioning=conditioning, guidance=2.0)
  params = {'a': jnp.float32(0.7)}
  draws = stage.draw(params, {}, data, jax.random.key(5))
  v = stage.velocity(params, data, data['latents'], draws)
  target = stage.target(params, data['latents'], data['text'], draws, v)
  z, noise = np.float64(data['latents']), np.float64(draws['noise'])
  t, r = (np.float64(draws[k])[:, :, None, None, None] for k in ('t', 'r'))
  moves = ~np.asarray(draws['cond_mask'])[:, :, None, None, None]
  if t.shape[1] == 1:
    assert moves.all()

  def network(s):
    x = (1 - t) * z + t * noise + s * moves * (noise - z)
    time = t + s * moves
    return (
      np.sin(np.float64(params['a']) * x + 2 * time)
      + r * time**2
      + (0.3 * time)
    )

  slope = (network(5e-5) - network(-5e-5)) / 1e-4 / 2.0
  expected = (noise - z) - (t - r) * slope
  np.testing.assert_allclose(target, expected, atol=2e-4)
  # Conditioning frames stay where they are.
  frozen = np.broadcast_to(~moves, target.shape)
  np.testing.assert_allclose(
    np.asarray(target)[frozen], (noise - z)[frozen], rtol=1e-6
  )


@pytest.mark.slow
def test_a_teacher_gives_the_guided_velocity():
  """Its own parameters, both prompts, and a target along its velocity."""
  data = batch()
  stage = make(smooth, guidance=2.5, conditioning=ONE_TIME, teacher='model')
  params = {'a': jnp.float32(0.7), 'teacher': {'a': jnp.float32(-0.4)}}
  draws = stage.draw(params, {}, data, jax.random.key(5))
  t, r = (draws[k][:, :, None, None, None] for k in ('t', 'r'))
  x_t = (1 - t) * data['latents'] + t * draws['noise']
  # `smooth` of the teacher's factor, of a prompt of ones and one of zeros.
  prompted, other = (
    jnp.sin(-0.4 * x_t + 2 * t) + t * t**2 + 0.3 * text * t for text in (1, 0)
  )
  v = stage.velocity(params, data, data['latents'], draws)
  np.testing.assert_allclose(v, 2.5 * prompted - 1.5 * other, atol=1e-6)
  target = stage.target(params, data['latents'], data['text'], draws, v)

  def network(s):
    return smooth(
      params,
      x_t + s * v,
      (t + s)[..., 0, 0, 0],
      data['text'],
      end_BT=draws['r'],
    )

  _, slope = jax.jvp(network, (jnp.zeros_like(t),), (jnp.ones_like(t),))
  np.testing.assert_allclose(target, v - (t - r) * slope, atol=2e-3)
  mean = stage.prediction(params, data['latents'], data['text'], draws)
  np.testing.assert_allclose(mean, network(0 * t), atol=1e-6)
  gradient = jax.grad(lambda p: stage.loss(p, {}, data, jax.random.key(0))[0])(
    params
  )
  assert float(gradient['teacher']['a']) == 0 != float(gradient['a'])


@pytest.mark.slow
def test_gradient_is_of_the_guided_prediction_alone():
  data = batch()
  stage = make(smooth, guidance=3.0, conditioning=ONE_TIME)
  params = {'a': jnp.float32(0.7)}
  draws = stage.draw(params, {}, data, jax.random.key(5))

  def loss(p, fixed):
    """The loss with the terms without gradient written out."""
    t, r, noise = draws['t'], draws['r'], draws['noise']
    z = data['latents']
    wide = t[:, :, None, None, None]
    x, v = (1 - wide) * z + wide * noise, noise - z
    mean = smooth(p, x, t, data['text'], end_BT=r)
    unguided = smooth(fixed, x, t, 0 * data['text'], end_BT=r)
    after, before = (
      smooth(fixed, x + s * v, t + s, data['text'], end_BT=r)
      for s in (0.005, -0.005)
    )
    slope = (after - before) / 0.01 / 3.0
    target = v - (t - r)[:, :, None, None, None] * slope
    error = jnp.square((mean + 2 * unguided) / 3.0 - target)
    error_B = jnp.mean(error, axis=(1, 2, 3, 4))
    t = t[:, 0]
    error_B *= t * jnp.sqrt(1 - t) * 15 / 4
    reference = jnp.mean(error_B[:4])
    factor = jax.lax.stop_gradient(reference / (error_B[4:] + 1e-5))
    return jnp.mean(jnp.concatenate([error_B[:4], error_B[4:] * factor]))

  expected, slope = jax.value_and_grad(loss)(params, params)

  def own(p):
    return stage.loss(p, {}, data, jax.random.key(0), draws)[0]

  result, gradient = jax.value_and_grad(own)(params)
  np.testing.assert_allclose(result, expected, rtol=1e-5)
  np.testing.assert_allclose(gradient['a'], slope['a'], rtol=1e-4)


@pytest.mark.slow
def test_a_curved_path_needs_the_derivative():
  """Data of one Gaussian: x = a(t) e with a known flow from any t to any r."""

  def scale(t):  # deviation at t, of data of deviation 1
    return jnp.sqrt((1 - t) ** 2 + t**2)

  def transform(params, x, t, text, key=None, *, end_BT):
    t, r = (y[:, :, None, None, None] for y in (t, end_BT))
    exact = x * (1 - scale(r) / scale(t)) / jnp.where(t > r, t - r, 1.0)
    slope = (2 * t - 1) / scale(t) ** 2
    return params['a'] * jnp.where(t - r > 1e-4, exact, slope * x)

  data = batch((4096, 1, 1, 1, 5))
  stage = make(transform, guidance=1.0, conditioning=ONE_TIME)
  gradient = jax.grad(
    lambda a: stage.loss({'a': a}, {}, data, jax.random.key(3))[0]
  )
  # The exact map is the minimum of the loss over its factor.
  slopes = [float(gradient(jnp.float32(p))) for p in (0.8, 1.0, 1.2)]
  assert slopes[0] < 0 < slopes[2]
  assert abs(slopes[1]) < 0.25 * min(-slopes[0], slopes[2])


def test_shares_of_rows():
  stage = make(None)
  t, r = stage.times(jax.random.key(0), 8, tokens=6)
  np.testing.assert_array_equal(t[:4], r[:4])
  np.testing.assert_array_equal(r[4:6], 0)
  assert (r[6:] < t[6:]).all() and (t < 1).all()


def test_a_batch_in_parts():
  """Parts have rows of each kind, and the same velocity loss as the whole."""
  data = batch()
  stage = make(smooth, conditioning=CONDITIONED)
  key, params = jax.random.key(4), {'a': jnp.float32(0.7)}
  at_once, parts = (
    step.gradients(
      stage.loss, params, {}, data, key, accumulate=n, draw=stage.draw
    )[0]
    for n in (1, 2)
  )
  np.testing.assert_allclose(
    parts['loss_velocity'], at_once['loss_velocity'], rtol=1e-5
  )


@pytest.mark.parametrize(
  'values, message',
  [
    ({'guidance': 0.5}, '^flow_map.guidance=0.5: expected 1 or more'),
    ({'delta': 0.0}, '^flow_map.delta=0.0: expected above 0'),
    ({'teacher': 'both'}, "^flow_map.teacher='both': expected one of"),
    ({'velocity': 1.5}, '^flow_map.velocity=1.5: expected 0 to 1'),
    ({'velocity': 0.9}, '^flow_map.to_data=0.25: expected at most 0.1'),
  ],
)
def test_refuses(values, message):
  with pytest.raises(SettingError, match=message):
    sections.FlowMapConfig(**values)


def flow_map_config(folder, **values):
  config = finetuned.config(folder)
  with config.unlocked():
    config.model.flow_map = 0.25
    config.flow_map = {}
  config.update_from_flattened_dict(
    {'sampling.solver': 'euler', 'sampling.guidance': 1.0} | values
  )
  return config


@pytest.fixture(scope='module')
def wan(tmp_path_factory):
  return finetuned.write(tmp_path_factory.mktemp('flow_map') / 'all')


@pytest.mark.slow
@pytest.mark.parametrize(
  'values, message',
  [
    ({'sampling.guidance': 5.0}, '^sampling.guidance=5.0: expected 1 with'),
    ({'data.batch_size': 1}, '^data.batch_size=1: expected 2 or more'),
    (
      {'train.accumulate': 2, 'flow_map.velocity': 0.05},
      '^train.accumulate=2: expected at most the clips .* 1 of 8',
    ),
    ({'flow.low': 0.5}, '^flow.low=0.5: expected None, all noise levels'),
    (
      {'conditioning.independent_noise_prob': 0.5},
      '^conditioning.independent_noise_prob=0.5: expected 0, one step for all',
    ),
  ],
)
def test_refuses_a_run(values, message, wan):
  config = flow_map_config(wan)
  with config.unlocked():
    config.conditioning.independent_noise_prob = 0.0
    config.flow_map.velocity = 0.5
  config.update_from_flattened_dict(values)
  experiment = parse.experiment(config)
  with pytest.raises(SettingError, match=message):
    setup.check_flow_map(experiment, networks.networks(experiment))


@pytest.mark.slow
@pytest.mark.parametrize(
  'make, values, message',
  [
    (
      flow_map_config,
      {'sampling.solver': 'unipc'},
      "^solver='unipc': expected 'euler'",
    ),
    (
      finetuned.config,
      {'sampling.skip_layers': (2,)},
      r'^skip_layers=\(2,\): expected numbers from 0 to 1, since the model has',
    ),
  ],
)
def test_sampling_is_checked_before_anything_is_written(
  make, values, message, wan, tmp_path
):
  experiment = parse.replace(parse.experiment(make(wan)), values)
  with pytest.raises(SettingError, match=message):
    setup.check(experiment, str(tmp_path / 'run'), init_from=str(wan / 'wan'))
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  'rank, teacher', [(0, 'clips'), (2, 'clips'), (0, 'model'), (2, 'model')]
)
def test_a_run_from_a_published_model(rank, teacher, wan, tmp_path):
  config = flow_map_config(wan, **{'lora.rank': rank, 'train.steps': 3})
  config.flow_map.teacher = teacher
  workdir, source = str(tmp_path / 'run'), str(wan / 'wan')
  stops = iter([False, True])
  state = run.train(
    config, workdir, checkpoint=source, stop=lambda: next(stops)
  )
  assert int(state.step) == 2
  if not rank:
    end = np.asarray(state.params['dit']['end_in']['kernel'])
    assert np.abs(end - state.params['dit']['time_in']['kernel']).max() > 0
  if rank or teacher == 'model':
    # A resumed run ends where one without a stop does.
    resumed = run.train(config, workdir)
    at_once = run.train(config, str(tmp_path / 'once'), checkpoint=source)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, at_once.params)
  if rank:
    with pytest.raises(SettingError, match="lora='diffusers': expected 'merge"):
      export.export(workdir, tmp_path / 'lora', lora='diffusers')
  out = tmp_path / 'out'
  export.export(workdir, out, lora='merged' if rank else None)
  index = json.loads((out / 'model_index.json').read_text())
  assert index['_class_name'] == 'AnyFlowPipeline'
  pipe = spacetime.load(str(out), progress=False)
  settings = pipe.engine.settings()
  assert (settings.steps, settings.guidance, settings.solver) == (4, 1, 'euler')
  assert settings.shift == 3  # the run's, and 5 of the folder
  clip = pipe('a red 3', steps=1, frames=5, size=(32, 16))
  assert clip.frames.shape == (5, 16, 32, 3)
  published = published_folder.tensors(out / 'transformer')
  name = 'condition_embedder.delta_embedder.linear_1.weight'
  assert published[name].shape == (24, 16)


@pytest.mark.slow
def test_a_teacher_has_to_be_there(wan, tmp_path):
  config = flow_map_config(wan)
  config.flow_map.teacher = 'model'
  with pytest.raises(SettingError, match='^checkpoint=None: expected the teac'):
    run.train(config, str(tmp_path / 'run'))


@pytest.mark.slow
def test_refuses_one_of_two_transformers(wan, tmp_path):
  """Which serves some noise levels alone."""
  two = tmp_path / 'two'
  shutil.copytree(wan / 'wan', two)
  shutil.copytree(two / 'transformer', two / 'transformer_2')
  published_folder.change_index(two, boundary_ratio=0.875)
  start, experiment = (
    two / 'transformer',
    parse.experiment(flow_map_config(wan)),
  )
  with pytest.raises(
    SettingError, match=f"^checkpoint='{start}': expected a transformer of all"
  ):
    setup.check(experiment, str(tmp_path / 'run'), init_from=str(start))


@pytest.mark.slow
def test_a_teacher_is_not_guided_twice(wan):
  config = flow_map_config(wan)
  config.flow_map.teacher = 'model'
  base = types.SimpleNamespace(
    path='runs/map', model=types.SimpleNamespace(flow_map=0.25)
  )
  with pytest.raises(SettingError, match='^flow_map.guidance=3.0: expected 1,'):
    setup.check_teacher(parse.experiment(config), base)
  config.flow_map.guidance = 1.0
  setup.check_teacher(parse.experiment(config), base)


@pytest.mark.slow
def test_a_fresh_flow_map_does_what_its_base_does(wan):
  """At r = t, whatever the weight of the second time."""
  plain = networks.networks(parse.experiment(finetuned.config(wan)))
  nets = networks.networks(parse.experiment(flow_map_config(wan)))
  mesh = sharding.single_device_mesh()
  base = init_weights.open_base(str(wan / 'wan'), nets)
  params = base.load(nets, mesh)
  z = jax.random.normal(jax.random.key(0), (1, 2, 4, 4, 3))
  t, text = jnp.full((1, 1), 0.7), jnp.ones((1, 3, 12))
  expected = jax.jit(plain.transform)(base.load(plain, mesh), z, t, text)
  np.testing.assert_allclose(
    jax.jit(nets.transform)(params, z, t, text), expected, atol=1e-6
  )


@pytest.mark.slow
def test_digits_from_a_run(tmp_path):
  """The experiment, from a run of the model that it replaces."""
  base = digits.get_config('tiny')
  base.train.steps = 1
  base.data.batch_size = 8
  run.train(base, str(tmp_path / 'base'))
  config = digits_flow_map.get_config('tiny')
  state = run.train(
    config, str(tmp_path / 'run'), checkpoint=str(tmp_path / 'base')
  )
  assert int(state.step) == 3
  assert np.isfinite(jax.tree.leaves(state.params)[0]).all()
  export.export(str(tmp_path / 'run'), tmp_path / 'out')
  pipe = spacetime.load(str(tmp_path / 'out'), progress=False)
  clip = pipe('a red 3 moves to the right', frames=5, size=(32, 32))
  assert clip.metadata['sampling']['steps'] == 1
  still = pipe('a red 3 moves up', image=clip.frames[0], frames=5)
  assert still.frames.shape == clip.frames.shape


def test_experiment():
  experiment = parse.experiment(digits_flow_map.get_config())
  assert experiment.model.flow_map == 0.25
  sampling = experiment.sampling
  assert (sampling.steps, sampling.guidance, sampling.solver) == (1, 1, 'euler')
  assert experiment.flow_map.guidance == 2.5
