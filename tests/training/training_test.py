"""Optimizers, given frames, the step and the two losses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spacetime.diffusion import flow
from spacetime.training import autoencoder_loss, frame_conditioning, optimizer
from spacetime.training import losses as losses_lib
from spacetime.training import state as state_lib
from spacetime.training import step as step_lib

ADAM = optimizer.OptimizerConfig(learning_rate=0.1, warmup=4, decay=0.5)


def test_schedule_warms_up_stays_and_falls_to_zero():
  rate = optimizer.schedule(ADAM, steps=20)
  values = [float(rate(i)) for i in range(21)]
  assert 0 < values[0] < values[1] < values[4] == 1.0
  assert values[4:11] == [1.0] * 7
  assert values[10] > values[12] > values[19] > values[20] == 0.0


def test_muon_takes_the_matrices_inside_blocks():
  params = {
    'dit': {
      'blocks': {'mlp_in': {'kernel': jnp.zeros((2, 3, 5))}},
      'patch_embed': {'kernel': jnp.zeros((3, 5))},
    }
  }
  axes = optimizer.matrix_axes(params)
  stacked = axes['dit']['blocks']['mlp_in']['kernel']
  assert (stacked.reduction_axis, stacked.output_axis) == (1, 2)
  assert axes['dit']['patch_embed']['kernel'] is None


def test_muon_moves_every_layer_of_a_stack_alike():
  config = dataclasses.replace(ADAM, name='muon', warmup=0)
  moved = optimizer.make_optimizer(config, steps=10)
  kernel = jnp.zeros((2, 6, 4))
  params = {'dit': {'blocks': {'mlp_in': {'kernel': kernel}}}}
  one = jax.random.normal(jax.random.key(0), (6, 4))
  # Orthogonalised layer by layer, the size of a layer's gradient is nothing.
  gradient = jax.tree.map(lambda _: jnp.stack([one, 0.01 * one]), params)
  updates, _ = moved.update(gradient, moved.init(params), params)
  update = updates['dit']['blocks']['mlp_in']['kernel']
  np.testing.assert_allclose(update[0], update[1], rtol=1e-3)
  singular = jnp.linalg.svd(update[0] / update[0].std(), compute_uv=False)
  assert float(singular.max() / singular.min()) < 2.5


def test_only_kernels_decay():
  config = dataclasses.replace(ADAM, weight_decay=0.5, warmup=0)
  move = optimizer.make_optimizer(config, steps=10)
  block = {'q': {'kernel': jnp.ones((2, 3, 3)), 'bias': jnp.ones((2, 3))}}
  block['modulation'] = jnp.ones((2, 6, 3))
  params = {'dit': {'blocks': block}}
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = move.update(zeros, move.init(params), params)
  updates = updates['dit']['blocks']
  assert np.all(updates['q']['kernel'] < 0)
  assert not np.any(updates['q']['bias'])
  assert not np.any(updates['modulation'])


def test_frozen_parameters_stay_and_take_no_share_of_the_clipped_norm():
  params = {'a': {'kernel': jnp.ones(2)}, 'b': {'kernel': jnp.ones(2)}}
  gradient = {'a': {'kernel': 1e3 * jnp.ones(2)}, 'b': {'kernel': jnp.ones(2)}}
  config = dataclasses.replace(
    ADAM, weight_decay=0.5, clip=1.0, b1=0.0, freeze=('a/.*',)
  )

  def moved(config):
    move = optimizer.make_optimizer(config, steps=10)
    state = move.init(params)
    updates, _ = move.update(gradient, state, params)
    return updates

  still = moved(config)
  np.testing.assert_array_equal(still['a']['kernel'], 0)
  # Adam sees a gradient of 1/sqrt(2), not one of 1e-3 beside a's.
  alone = dict(gradient, a={'kernel': jnp.zeros(2)})
  np.testing.assert_array_less(still['b']['kernel'], 0)
  gradient = alone
  np.testing.assert_allclose(
    still['b']['kernel'],
    moved(dataclasses.replace(config, freeze=()))['b']['kernel'],
    rtol=1e-6,
  )


def test_moments_in_bfloat16_are_half_and_move_alike():
  params = {'w': {'kernel': jnp.ones((4, 3))}}
  moved = {}
  for moments in optimizer.MOMENTS:
    config = dataclasses.replace(ADAM, moments=moments)
    made = optimizer.make_optimizer(config, steps=10)
    state, moved[moments] = made.init(params), params
    for i in range(5):
      gradient = jax.tree.map(
        lambda x, i=i: jax.random.normal(jax.random.key(i), x.shape), params
      )
      updates, state = made.update(gradient, state, moved[moments])
      moved[moments] = optax.apply_updates(moved[moments], updates)
    kept = {str(x.dtype) for x in jax.tree.leaves(state) if x.ndim}
    assert kept == {moments}
  half, whole = (moved[m]['w']['kernel'] for m in ('bfloat16', 'float32'))
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, whole, atol=0.01)
  assert np.abs(whole - 1).max() > 0.1


def test_optimizer_refuses():
  with pytest.raises(ValueError, match="optimizer.moments='int8': expected"):
    dataclasses.replace(ADAM, moments='int8')
  with pytest.raises(ValueError, match='with optimizer.b2=0.99: expected at'):
    dataclasses.replace(ADAM, moments='bfloat16', b2=0.99)
  with pytest.raises(ValueError, match=r"freeze='a': .*such as \('a',\)"):
    optimizer.OptimizerConfig(freeze='a')
  move = optimizer.make_optimizer(
    optimizer.OptimizerConfig(freeze=('b/.*',)), steps=10
  )
  with pytest.raises(ValueError, match=r"'b/\.\*' matches no .*'a/kernel'"):
    move.init({'a': {'kernel': jnp.ones(2)}})
  with pytest.raises(ValueError, match="optimizer.name='sgd': expected one of"):
    dataclasses.replace(ADAM, name='sgd')
  with pytest.raises(ValueError, match='optimizer.learning_rate=0.*positive'):
    dataclasses.replace(ADAM, learning_rate=0)


ONLY = {
  f.name: 0.0
  for f in dataclasses.fields(frame_conditioning.FrameConditioningConfig)
}


@pytest.mark.parametrize(
  'way, rows',
  [
    ('none', {'.....'}),
    ('first', {'#....'}),
    ('first_k', {'#....', '##...', '###..', '####.'}),
    ('last_k', {'....#', '...##', '..###', '.####'}),
    (
      'ends',
      {'#...#', '##..#', '#..##', '###.#', '##.##', '#.###'},
    ),
  ],
)
def test_given_frames(way, rows):
  config = frame_conditioning.FrameConditioningConfig(**(ONLY | {way: 1.0}))
  drawn = frame_conditioning.sample_cond_mask(jax.random.key(0), 512, 5, config)
  seen = {''.join('.#'[int(x)] for x in row) for row in np.asarray(drawn)}
  assert seen == rows


def test_given_at_random_leaves_something_to_learn():
  config = frame_conditioning.FrameConditioningConfig(
    **(ONLY | {'random': 1.0})
  )
  drawn = np.asarray(
    frame_conditioning.sample_cond_mask(jax.random.key(0), 512, 3, config)
  )
  assert not drawn.all(axis=1).any()
  assert len({tuple(row) for row in drawn}) == 7


def test_given_by_weight_and_never_an_image_whole():
  config = frame_conditioning.FrameConditioningConfig(
    **(ONLY | {'none': 3.0, 'first': 1.0})
  )
  drawn = frame_conditioning.sample_cond_mask(
    jax.random.key(0), 4000, 4, config
  )
  assert abs(float(drawn[:, 0].mean()) - 0.25) < 0.03
  assert not frame_conditioning.sample_cond_mask(
    jax.random.key(0), 8, 1, config
  ).any()
  both = frame_conditioning.FrameConditioningConfig(**(ONLY | {'ends': 1.0}))
  assert not frame_conditioning.sample_cond_mask(jax.random.key(0), 8, 2, both)[
    :, 1
  ].any()


def test_given_refuses():
  with pytest.raises(
    ValueError, match='expected weights that are not negative'
  ):
    frame_conditioning.FrameConditioningConfig(**ONLY)
  for name in ('context_noise_prob', 'context_noise', 'independent_noise_prob'):
    with pytest.raises(
      ValueError, match=f'conditioning.{name}=1.5.*expected 0 to 1'
    ):
      frame_conditioning.FrameConditioningConfig(**{name: 1.5})


def levels(**shares):
  """Of 2,000 clips of four frames, the first two of which are given."""
  given_Bf = jnp.tile(jnp.array([True, True, False, False]), (2000, 1))
  t_B1 = jnp.linspace(0.1, 1.0, 2000)[:, None]
  own_Bf = jnp.full((2000, 4), 2.0)
  config = frame_conditioning.FrameConditioningConfig(**shares)
  t_Bf = frame_conditioning.sample_levels(
    jax.random.key(0), t_B1, own_Bf, given_Bf, config
  )
  return np.asarray(t_Bf), np.asarray(t_B1)


def test_given_frames_are_clean_as_a_rule():
  t_Bf, t_B1 = levels()
  assert not t_Bf[:, :2].any()
  assert (t_Bf[:, 2:] == t_B1).all()


def test_a_share_of_what_is_given_has_noise_but_no_more_than_the_rest():
  t_Bf, t_B1 = levels(context_noise_prob=0.4, context_noise=0.5)
  assert (t_Bf[:, 0] == t_Bf[:, 1]).all() and (t_Bf[:, 2:] == t_B1).all()
  assert abs((t_Bf[:, 0] > 0).mean() - 0.4) < 0.06
  assert (t_Bf[:, :1] <= t_B1).all() and 0.45 < t_Bf[:, 0].max() <= 0.5


def test_a_share_of_the_clips_has_a_level_for_each_frame():
  t_Bf, _ = levels(independent_noise_prob=0.3)
  own_B = (t_Bf[:, 2:] == 2).all(1)
  assert abs(own_B.mean() - 0.3) < 0.06
  assert not t_Bf[:, :2].any() and (t_Bf[~own_B, 2:] < 2).all()


def quadratic(params, frozen, batch, key):
  """A loss whose gradient is known."""
  error = params['w'] - batch['x'].mean(0)
  loss = 0.5 * jnp.sum(jnp.square(error)) + 0 * jax.random.normal(key)
  return loss, {'loss': loss}


def one_step(accumulate=1, ema=0.5):
  params = {'w': jnp.zeros(3)}
  move = optax.sgd(1.0)
  step = step_lib.make_step(quadratic, move, ema=ema, accumulate=accumulate)
  batch = {'x': jnp.arange(24.0).reshape(8, 3)}
  before = state_lib.new_state(params, move)
  return jax.jit(step)(before, {}, batch, jax.random.key(0)), batch


def test_step_moves_counts_and_averages():
  (state, metrics), batch = one_step()
  mean = np.asarray(batch['x'].mean(0))
  assert int(state.step) == 1
  np.testing.assert_allclose(state.params['w'], mean, rtol=1e-6)
  # At the first step the average forgets: its decay is (1 + 0) / (10 + 0).
  np.testing.assert_allclose(state.ema['w'], 0.9 * mean, rtol=1e-6)
  np.testing.assert_allclose(
    metrics['gradient_norm'], np.linalg.norm(mean), rtol=1e-6
  )


def test_accumulated_gradients_are_the_mean():
  whole, parts = one_step()[0][0], one_step(accumulate=4)[0][0]
  np.testing.assert_allclose(whole.params['w'], parts.params['w'], rtol=1e-6)


@pytest.mark.parametrize(
  ('fill', 'limit', 'skipped'),
  [
    (np.nan, np.inf, True),
    (np.inf, np.inf, True),
    (1e30, np.inf, True),  # the loss itself overflows
    (5.0, np.inf, False),
    (5.0, 37.6, False),  # the loss is 37.5
    (5.0, 37.4, True),
  ],
)
def test_a_step_that_would_harm_is_skipped(fill, limit, skipped):
  """Parameters, average and moments stay; the step counts all the same."""
  move = optax.adam(0.1)
  step = jax.jit(step_lib.make_step(quadratic, move, ema=0.5, limit=limit))
  before = state_lib.new_state({'w': jnp.zeros(3)}, move)
  batch = {'x': jnp.full((4, 3), fill)}
  after, metrics = step(before, {}, batch, jax.random.key(0))
  assert float(metrics['skipped']) == skipped
  assert int(after.step) == 1
  for old, new in zip(
    jax.tree.leaves((before.params, before.ema, before.opt_state)),
    jax.tree.leaves((after.params, after.ema, after.opt_state)),
    strict=True,
  ):
    assert skipped == np.array_equal(old, new)
    assert np.isfinite(new).all()


def test_ema_decay_grows_to_its_limit():
  assert float(step_lib.ema_decay(jnp.array(0), 0.99)) == pytest.approx(0.1)
  assert float(step_lib.ema_decay(jnp.array(10**6), 0.99)) == pytest.approx(
    0.99
  )


def oracle(prediction, answer):
  """A stage whose network answers: (params, z_t, t, text, key) -> y."""
  return losses_lib.Diffusion(
    encode=lambda frozen, video: video,
    embed=lambda params, tokens: tokens,
    transform=answer,
    flow=flow.FlowConfig(prediction=prediction),
    conditioning=frame_conditioning.FrameConditioningConfig(),
  )


BATCH = {
  'frames': jax.random.randint(
    jax.random.key(9), (4, 5, 2, 3, 3), 0, 256, jnp.uint8
  ),
  'tokens': jnp.zeros((4, 2), jnp.int32),
}


def test_a_perfect_sample_has_no_loss():
  video = BATCH['frames'].astype(jnp.float32) / 127.5 - 1
  stage = oracle('sample', lambda params, z, t, text, key: video)
  loss, _ = stage.loss({}, {}, BATCH, jax.random.key(0))
  # Below the floor of t a perfect sample is a velocity that is too small.
  assert float(loss) < 0.2
  for name, value in stage.held_out({}, {}, BATCH).items():
    assert float(value) < 1e-4, name


def test_given_frames_enter_clean_and_are_not_in_the_loss():
  seen = {}

  def answer(params, z, t, text, key):
    seen['z'], seen['t'] = z, t
    return jnp.where((t == 0)[:, :, None, None, None], 1e6, 0.0) + 0 * z

  stage = dataclasses.replace(
    oracle('velocity', answer),
    conditioning=frame_conditioning.FrameConditioningConfig(
      **(ONLY | {'first': 1.0})
    ),
  )
  loss, _ = stage.loss({}, {}, BATCH, jax.random.key(0))
  video = BATCH['frames'].astype(jnp.float32) / 127.5 - 1
  np.testing.assert_allclose(seen['z'][:, 0], video[:, 0], atol=1e-6)
  assert np.all(seen['t'][:, 0] == 0) and np.all(seen['t'][:, 1:] > 0)
  assert np.all(seen['t'][:, 1:] == seen['t'][:, 1:2])
  assert float(loss) < 10


@pytest.mark.parametrize(
  'name', ['context_noise_prob', 'independent_noise_prob']
)
def test_levels_of_frames_reach_the_network(name):
  seen = {}

  def answer(params, z, t, text, key):
    seen['t'] = t
    return z

  stage = dataclasses.replace(
    oracle('velocity', answer),
    conditioning=frame_conditioning.FrameConditioningConfig(
      **(ONLY | {'first': 1.0, 'context_noise': 0.3, name: 1.0})
    ),
  )
  stage.loss({}, {}, BATCH, jax.random.key(0))
  first, rest = seen['t'][:, 0], seen['t'][:, 1:]
  assert np.all(first > 0) == (name == 'context_noise_prob') and np.all(
    first <= 0.3
  )
  assert np.all(rest == rest[:, :1]) == (name == 'context_noise_prob')


def test_held_out_loss_never_changes():
  stage = oracle('velocity', lambda params, z, t, text, key: 0.5 * z)
  first, second = (stage.held_out({}, {}, BATCH) for _ in range(2))
  assert first == second
  assert set(first) == {'held_out/loss'} | {
    f'held_out/loss_t{t}' for t in losses_lib.HELD_OUT_LEVELS
  }


def test_psnr():
  video = jnp.zeros((2, 1, 4, 4, 3))
  error = jnp.array([0.2, 0.02]).reshape(2, 1, 1, 1, 1)
  np.testing.assert_allclose(
    autoencoder_loss.psnr(video, video + error), [20, 40], atol=1e-3
  )


def test_reconstruction_loss_is_least_at_the_truth():
  def stage(offset):
    return autoencoder_loss.Reconstruction(
      posterior=lambda params, video: (video, jnp.full_like(video, -30.0)),
      decode_raw=lambda params, z: z + offset,
      config=autoencoder_loss.ReconstructionConfig(kl=0.0),
    )

  batch = {'frames': BATCH['frames'].repeat(4, 2).repeat(4, 3)}
  losses = [
    float(stage(x).loss({}, {}, batch, jax.random.key(0))[0])
    for x in (0.0, 0.1, 0.3)
  ]
  assert losses[0] < 1e-3 < losses[1] < losses[2]
  found = stage(0.0).held_out({}, {}, batch)
  assert float(found['held_out/psnr']) > 60
  mean, square = stage(0.0).moments({}, batch)
  assert mean.shape == square.shape == (3,)
