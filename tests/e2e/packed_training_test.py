"""Training on packed rows: the loss, its levels, and one program for all."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from experiments import digits_mixed
from spacetime.config import networks, parse, samplers
from spacetime.config import packing as packing_lib
from spacetime.data import batches, packing
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.diffusion import flow
from spacetime.training import (
  frame_conditioning,
  metrics,
  packed_losses,
  run,
  setup,
  tasks,
)
from spacetime.training import losses as losses_lib

NOTHING = {
  f.name: 0.0
  for f in dataclasses.fields(frame_conditioning.FrameConditioningConfig)
}


def changed(**values):
  """The tiny config with other values, by their whole names."""
  plain = parse.plain(digits_mixed.get_config('tiny'))
  for path, value in values.items():
    section, *inner = path.split('.')
    at = plain
    for name in (section, *inner[:-1]):
      at = at[name]
    at[inner[-1]] = value
  return ml_collections.ConfigDict(plain)


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
  """Config, networks, task and a loader of rows."""
  folder = str(tmp_path_factory.mktemp('digits'))
  config = changed(**{'data.dir': folder, 'data.clips': 200})
  data = parse.experiment(config).data
  nets = networks.networks(parse.experiment(config))
  splits = data.source.open_splits(data, seed=0)
  tokenizer = tokenizer_lib.train(
    splits.captions, vocab_size=config.text.vocab_size
  )
  cut = packing_lib.cut(
    parse.experiment(config), nets.autoencoder, nets.dit.config.patch
  )
  loader = batches.make_loader(
    data,
    splits.train,
    tokenizer,
    length=nets.text_length,
    seed=0,
    patchify=cut,
  )
  return (
    config,
    nets,
    tasks.diffusion_task(parse.experiment(config), nets),
    loader,
  )


def test_one_program_serves_fifty_batches_of_mixed_sizes(parts):
  _, _, task, loader = parts
  iterator, traced, sizes, padding = iter(loader), [], set(), []
  params = jax.jit(task.init)(jax.random.key(0))

  # Parameters are arguments, as in training: a head of zeros that is compiled
  # in is miscomputed by XLA's CPU compiler (jaxlib 0.10), seen without a model:
  # jit(lambda h, x: mean((h @ K + b - x) ** 2, -1)), K and b zeros.
  @jax.jit
  def call(params, batch, key):
    traced.append(key)
    return task.loss(params, {}, batch, key)[0]

  for _ in range(50):
    batch = next(iterator)
    sizes |= {
      tuple(grid) for row in batch['grids'] for grid in row if any(grid)
    }
    padding.append(np.mean(batch['segment_ids'] == 0))
    assert 0 < float(call(params, batch, jax.random.key(0))) < 100
  assert len(traced) == call._cache_size() == 1
  assert len(sizes) > 15 and {(1, 2, 3), (3, 3, 4)} <= sizes
  assert np.mean(padding) < 0.1


def oracle(answer, *, config=None, **ways):
  stage = losses_lib.Diffusion(
    encode=None,
    embed=lambda params, tokens_BS: jnp.ones((*tokens_BS.shape, 3)),
    transform=None,
    flow=config or flow.FlowConfig(),
    conditioning=frame_conditioning.FrameConditioningConfig(
      **(NOTHING | (ways or {'none': 1.0}))
    ),
  )
  return packed_losses.PackedDiffusion(stage, answer)


def rows():
  """One row of clips of 2, 1 and 3 latent frames, and padding."""
  shape = packing.SequencePacking(length=40, clips=4, frames=8)
  rng = np.random.default_rng(0)
  items = [
    {
      'patches': rng.normal(size=(f * h * w, 5)).astype(np.float32),
      'grid': np.array([f, h, w]),
      'tokens': np.ones(2, np.int32),
    }
    for f, h, w in ((2, 2, 3), (1, 3, 2), (3, 2, 2))
  ]
  one = packing.collate(items, shape)
  return {name: np.stack([value] * 3) for name, value in one.items()}


def test_the_loss_is_of_tokens_that_are_neither_given_nor_padding():
  batch, seen = rows(), {}

  def answer(params, x_BNV, t_BT, text_BGSY, batch, key):
    t_BN1 = jnp.take_along_axis(t_BT, batch['frame_ids'], axis=1)[..., None]
    seen.update(x=x_BNV, t=t_BT, text=text_BGSY.shape)
    # Right but for 2 where it counts and for 1e6 where it must not.
    padding_BN1 = (batch['segment_ids'] == 0)[..., None]
    right = (x_BNV - batch['patches']) / jnp.maximum(t_BN1, 1e-6)
    return jnp.where((t_BN1 == 0) | padding_BN1, 1e6, right + 2)

  loss, told = oracle(answer, first=1.0).loss({}, {}, batch, jax.random.key(1))
  np.testing.assert_allclose(loss, 4, rtol=1e-3)
  assert float(told['padding']) == pytest.approx(10 / 40)
  assert seen['text'] == (3, 4, 2, 3)
  # The first frame of each clip is given, but for the image's.
  zero_T = np.array([1, 0, 0, 1, 0, 0, 1, 1], bool)
  np.testing.assert_array_equal(seen['t'] == 0, [zero_T] * 3)
  assert (seen['t'][:, 4] == seen['t'][:, 5]).all()
  assert (seen['t'][:, 1] != seen['t'][:, 2]).all()
  first_N = (batch['segment_ids'][0] == 3) & (batch['positions'][0, :, 0] == 0)
  np.testing.assert_allclose(
    seen['x'][0, first_N], batch['patches'][0, first_N], atol=1e-6
  )


def test_a_perfect_sample_has_no_loss():
  config = flow.FlowConfig(prediction='sample', floor=1e-4)
  answer = lambda params, x, t, text, batch, key: batch['patches']  # noqa: E731
  stage = oracle(answer, config=config, ends=1.0)
  loss, _ = stage.loss({}, {}, rows(), jax.random.key(0))
  assert float(loss) < 1e-4


def test_the_shift_grows_with_the_root_of_the_tokens():
  config = flow.FlowConfig(shift=3.0, reference=80)
  np.testing.assert_allclose(flow.size_shift(config, 80), 3)
  np.testing.assert_allclose(flow.size_shift(config, 320), 6, rtol=1e-6)
  np.testing.assert_allclose(flow.size_shift(config, 1), 1)
  assert flow.size_shift(flow.FlowConfig(shift=3.0), 320) == 3
  key = jax.random.key(0)
  alike = flow.FlowConfig(shift=6.0)
  levels = flow.sample_timesteps(
    key, (5, 1), config, tokens=jnp.array([[320]] * 5)
  )
  np.testing.assert_allclose(
    levels, flow.sample_timesteps(key, (5, 1), alike), rtol=1e-6
  )
  with pytest.raises(ValueError, match='flow.reference=0: expected a number'):
    flow.FlowConfig(reference=0)


@pytest.mark.parametrize(
  'name', ['context_noise_prob', 'independent_noise_prob']
)
def test_levels_of_frames_are_drawn_in_rows_too(name):
  ways = {'first': 1.0, 'context_noise': 0.3, name: 1.0}
  stage = oracle(lambda *inputs: None, **ways)
  batch = rows()
  t_BT, given_BT = stage.levels(jax.random.key(0), batch)
  clip_BT, frame_BT = (np.asarray(batch['frame_table'])[..., i] for i in (0, 1))
  first_BT = np.asarray(given_BT) & (clip_BT > 0)
  assert (first_BT <= (frame_BT == 0)).all() and first_BT.any()
  assert (
    (t_BT > 0) == ((clip_BT > 0) & (~first_BT | (name == 'context_noise_prob')))
  ).all()
  assert (t_BT[first_BT] <= 0.3).all()
  alike = []
  for row, clip_T in enumerate(clip_BT):
    for clip in range(1, clip_T.max() + 1):
      own = np.asarray(t_BT[row])[(clip_T == clip) & ~first_BT[row]]
      alike += [np.ptp(own) == 0] if len(own) > 1 else []
  assert alike and all(alike) == (name == 'context_noise_prob')


def test_given_frames_of_clips_that_differ_in_duration():
  count_B = jnp.repeat(jnp.array([1, 2, 4]), 64)
  for way, most in (
    ('first', {'......', '#.....'}),
    ('last_k', {'......', '.#....', '...#..', '..##..', '.###..'}),
    ('ends', {'......', '#.....', '#..#..', '##.#..', '#.##..'}),
  ):
    config = frame_conditioning.FrameConditioningConfig(
      **(NOTHING | {way: 1.0})
    )
    drawn = frame_conditioning.sample_cond_mask(
      jax.random.key(0), 192, 6, config, count_B=count_B
    )
    seen = {''.join('.#'[int(x)] for x in row) for row in np.asarray(drawn)}
    assert seen == most, way
  coins = frame_conditioning.FrameConditioningConfig(
    **(NOTHING | {'random': 1.0})
  )
  drawn = frame_conditioning.sample_cond_mask(
    jax.random.key(0), 192, 6, coins, count_B=count_B
  )
  assert not (drawn & (jnp.arange(6) >= count_B[:, None])).any()
  assert (drawn.sum(1) < count_B).all() and drawn[64:].any()


def test_a_run_of_mixed_sizes_goes_on_where_it_stopped(tmp_path, parts):
  # What compiles other programs than the step's is tested elsewhere.
  fewer = ('sheet_every', 'evaluate_every', 'pca_init_clips')
  config = changed(
    **{'data.dir': parts[0].data.dir, 'data.clips': 200},
    **{f'train.{name}': 0 for name in fewer},
  )
  whole = run.train(config.copy_and_resolve_references(), str(tmp_path / 'a'))
  counted = iter([False, True])
  run.train(
    config.copy_and_resolve_references(),
    str(tmp_path / 'b'),
    stop=lambda: next(counted),
  )
  again = run.train(config.copy_and_resolve_references(), str(tmp_path / 'b'))
  jax.tree.map(np.testing.assert_array_equal, whole.params, again.params)
  jax.tree.map(np.testing.assert_array_equal, whole.ema, again.ema)
  first = parts[2].init(jax.random.key(config.seed))
  moved = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max()), whole.params, first
  )
  assert all(0 < change < np.inf for change in jax.tree.leaves(moved['dit']))
  lines = metrics.read_metrics(tmp_path / 'b')
  losses = [x['loss'] for x in lines if 'loss' in x]
  assert len(losses) == 4 and np.isfinite(losses).all()
  assert losses[-1] < 0.9 * losses[0]
  assert losses == [
    x['loss'] for x in metrics.read_metrics(tmp_path / 'a') if 'loss' in x
  ]
  assert [x['step'] for x in lines if 'padding' in x] == [1, 2, 3, 4]
  assert all(0 <= x['padding'] < 0.3 for x in lines if 'padding' in x)


@pytest.mark.parametrize(
  'values, text',
  [
    ({'data.packing.kind': 'boxes'}, "kind='boxes': expected one of"),
    ({'data.packing.length': 20}, 'a row holds 20 in 8; change data.packing'),
    ({'data.mixed.multiple': (4, 8)}, 'width=40: expected a multiple'),
    ({'data.packing': None}, 'data.packing=None: expected dict'),
    (
      {'data.packing': dict(kind='buckets', look_ahead=9)},
      r'look_ahead=9: expected \d+ for 18 sizes and data.batch_size=8',
    ),
  ],
)
def test_refuses_before_anything_is_written(tmp_path, values, text):
  with pytest.raises(ValueError, match=text):
    setup.check(parse.experiment(changed(**values)), str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


def test_sampling_shifts_with_the_size():
  config = changed(**{'flow.reference': 5})
  nets = networks.networks(parse.experiment(config))
  settings = parse.experiment(config).sampling

  def levels(latent, **values):
    told = parse.experiment(config).sampling.with_changes(**values)
    return samplers.sampler(
      parse.experiment(config), nets, told, latent=latent
    ).schedule.sigmas

  # 20 tokens have twice the shift of 5.
  assert levels((2, 32, 80)) == levels(None, shift=2 * settings.shift)
  assert levels((1, 16, 80)) == levels(None) != levels((2, 32, 80))
  config = changed(**{'flow.reference': None})
  assert levels((2, 32, 80)) == levels(None)
