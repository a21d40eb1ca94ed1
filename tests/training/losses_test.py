"""The diffusion loss of clips and of packed rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime.config.sections import (
  FrameConditioningConfig,
)
from spacetime.data import packing
from spacetime.diffusion import flow
from spacetime.training import losses as losses_lib
from spacetime.training import step as step_lib

ONLY = {f.name: 0.0 for f in dataclasses.fields(FrameConditioningConfig)}


def oracle(prediction, answer):
  """A loss whose network is (params, z_t, t, text, key) -> y."""
  return losses_lib.DiffusionLoss(
    encode=lambda frozen, video: video,
    embed=lambda params, tokens: tokens,
    transform=answer,
    flow=flow.FlowConfig(prediction=prediction),
    conditioning=FrameConditioningConfig(),
  )


def clips():
  """Four clips of five frames of 2 x 3 pixels."""
  frames = jax.random.randint(
    jax.random.key(9), (4, 5, 2, 3, 3), 0, 256, jnp.uint8
  )
  return {'frames': frames, 'tokens': jnp.zeros((4, 2), jnp.int32)}


def test_a_perfect_sample_has_no_loss():
  video = clips()['frames'].astype(jnp.float32) / 127.5 - 1
  stage = oracle('sample', lambda params, z, t, text, key: video)
  loss, _ = stage.loss({}, {}, clips(), jax.random.key(0))
  # Below the floor of t a perfect sample is a velocity that is too small.
  assert float(loss) < 0.2
  for name, value in stage.held_out({}, {}, clips()).items():
    assert float(value) < 1e-4, name


def test_conditioning_frames_are_clean_and_not_in_the_loss():
  seen = {}

  def answer(params, z, t, text, key):
    seen['z'], seen['t'] = z, t
    return jnp.where((t == 0)[:, :, None, None, None], 1e6, 0.0) + 0 * z

  stage = dataclasses.replace(
    oracle('velocity', answer),
    conditioning=FrameConditioningConfig(**(ONLY | {'first': 1.0})),
  )
  loss, _ = stage.loss({}, {}, clips(), jax.random.key(0))
  video = clips()['frames'].astype(jnp.float32) / 127.5 - 1
  np.testing.assert_allclose(seen['z'][:, 0], video[:, 0], atol=1e-6)
  assert np.all(seen['t'][:, 0] == 0) and np.all(seen['t'][:, 1:] > 0)
  assert np.all(seen['t'][:, 1:] == seen['t'][:, 1:2])
  assert float(loss) < 10


@pytest.mark.parametrize(
  'name', ['context_noise_prob', 'independent_noise_prob']
)
def test_timesteps_of_frames_reach_the_network(name):
  seen = {}

  def answer(params, z, t, text, key):
    seen['t'] = t
    return z

  stage = dataclasses.replace(
    oracle('velocity', answer),
    conditioning=FrameConditioningConfig(
      **(ONLY | {'first': 1.0, 'context_noise': 0.3, name: 1.0})
    ),
  )
  stage.loss({}, {}, clips(), jax.random.key(0))
  first, rest = seen['t'][:, 0], seen['t'][:, 1:]
  assert np.all(first > 0) == (name == 'context_noise_prob') and np.all(
    first <= 0.3
  )
  assert np.all(rest == rest[:, :1]) == (name == 'context_noise_prob')


def test_a_clip_with_one_timestep_has_a_table_of_one_row():
  seen = []

  def answer(params, z, t, text, key):
    seen.append(t)
    return flow.per_frame(t) * z

  results = []
  for chance in (0.0, 1e-30):  # the second never happens, but may
    kinds = ONLY | {'none': 1.0, 'independent_noise_prob': chance}
    config = FrameConditioningConfig(**kinds)
    assert config.has_one_timestep == (not chance)
    stage = dataclasses.replace(oracle('velocity', answer), conditioning=config)
    loss, _ = stage.loss({}, {}, clips(), jax.random.key(0))
    results.append((loss, stage.held_out({}, {}, clips())))
  assert [t.shape for t in seen] == [(4, 1)] * 2 + [(4, 5)] * 2
  np.testing.assert_array_equal(seen[2], jnp.tile(seen[0], (1, 5)))
  assert results[0] == results[1]
  for name in ('first', 'random'):
    kinds = ONLY | {'none': 1.0, name: 0.1}
    assert not FrameConditioningConfig(**kinds).has_one_timestep


def test_held_out_loss_never_changes():
  stage = oracle('velocity', lambda params, z, t, text, key: 0.5 * z)
  first, second = (stage.held_out({}, {}, clips()) for _ in range(2))
  assert first == second
  assert set(first) == {'held_out/loss'} | {
    f'held_out/loss_t{t}' for t in losses_lib.HELD_OUT_TIMESTEPS
  }


def test_a_stage_moves_the_shift_and_the_share_of_conditioning():
  seen = {}

  def answer(params, z, t, text, key):
    seen['t'] = t
    return z

  stage = dataclasses.replace(
    oracle('velocity', answer),
    conditioning=FrameConditioningConfig(**(ONLY | {'first': 1.0})),
  )
  shift = jnp.array([1.0, 1.0, 1e6, 1e-6])
  cond = jnp.array([0.0, 1.0, 1.0, 0.0])
  stage.loss(
    {}, {}, clips() | {'shift': shift, 'cond': cond}, jax.random.key(0)
  )
  t_Bf = np.asarray(seen['t'])
  np.testing.assert_array_equal(t_Bf[:, 0] == 0, [False, True, True, False])
  assert (t_Bf[2, 1:] > 0.99).all() and (t_Bf[3] < 0.01).all()
  plain = clips()
  stage.loss({}, {}, plain, jax.random.key(0))
  np.testing.assert_array_equal(t_Bf[:2, 1:], seen['t'][:2, 1:])


def packed_oracle(answer, *, config=None, **kinds):
  stage = losses_lib.DiffusionLoss(
    encode=None,
    embed=lambda params, tokens_BS: jnp.ones((*tokens_BS.shape, 3)),
    transform=None,
    flow=config or flow.FlowConfig(),
    conditioning=FrameConditioningConfig(**(ONLY | (kinds or {'none': 1.0}))),
  )
  return losses_lib.PackedDiffusionLoss(stage, answer)


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


def test_a_stage_moves_the_clips_of_rows():
  stage = packed_oracle(lambda *inputs: None, first=1.0)
  batch = rows() | {
    'shift': jnp.array([[1e6, 1e-6, 1.0, 0.0]] * 3),
    'cond': jnp.array([[1.0, 1.0, 0.0, 0.0]] * 3),
  }
  t_BT, cond_mask_BT = stage.timesteps(jax.random.key(0), batch)
  # Two frames of the first clip, an image, three frames of the third, none.
  expected = [True, False, False, False, False, False, True, True]
  np.testing.assert_array_equal(cond_mask_BT, [expected] * 3)
  assert (t_BT[:, 1] > 0.99).all() and (t_BT[:, 2] < 0.01).all()
  assert np.isfinite(t_BT).all() and (t_BT[:, 3:6] > 0).all()


def test_packed_loss_leaves_out_conditioning_and_padding():
  batch, seen = rows(), {}

  def answer(params, x_BNV, t_BT, text_BGSY, batch, key):
    t_BN1 = jnp.take_along_axis(t_BT, batch['frame_ids'], axis=1)[..., None]
    seen.update(x=x_BNV, t=t_BT, text=text_BGSY.shape)
    # Right but for 2 where it counts and for 1e6 where it must not.
    padding_BN1 = (batch['segment_ids'] == 0)[..., None]
    right = (x_BNV - batch['patches']) / jnp.maximum(t_BN1, 1e-6)
    return jnp.where((t_BN1 == 0) | padding_BN1, 1e6, right + 2)

  loss, report = packed_oracle(answer, first=1.0).loss(
    {}, {}, batch, jax.random.key(1)
  )
  np.testing.assert_allclose(loss, 4, rtol=1e-3)
  assert float(report['padding'].value) == pytest.approx(10 / 40)
  assert float(report['padding'].weight) == 120
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


def test_a_perfect_packed_sample_has_no_loss():
  config = flow.FlowConfig(prediction='sample', floor=1e-4)
  answer = lambda params, x, t, text, batch, key: batch['patches']  # noqa: E731
  stage = packed_oracle(answer, config=config, ends=1.0)
  loss, _ = stage.loss({}, {}, rows(), jax.random.key(0))
  assert float(loss) < 1e-4


@pytest.mark.parametrize(
  'name', ['context_noise_prob', 'independent_noise_prob']
)
def test_timesteps_of_frames_in_packed_rows(name):
  kinds = {'first': 1.0, 'context_noise': 0.3, name: 1.0}
  stage = packed_oracle(lambda *inputs: None, **kinds)
  batch = rows()
  t_BT, cond_mask_BT = stage.timesteps(jax.random.key(0), batch)
  clip_BT, frame_BT = (np.asarray(batch['frame_table'])[..., i] for i in (0, 1))
  first_BT = np.asarray(cond_mask_BT) & (clip_BT > 0)
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


def scaled(params, x, t, *rest):
  """A network of one parameter, for clips and for packed rows."""
  del t, rest
  return params['w'] * x


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['clips', 'rows'])
def test_accumulation_changes_nothing(kind):
  """Parts count differently many frames or tokens, and have the same noise."""
  mixed = {'none': 1.0, 'first_k': 1.0, 'random': 1.0}
  if kind == 'clips':
    conditioning = FrameConditioningConfig(**(ONLY | mixed))
    task = dataclasses.replace(
      oracle('velocity', scaled), conditioning=conditioning
    )
    batch = clips()
  else:
    task, batch = packed_oracle(scaled, **mixed), rows()
    short = dict(batch, segment_ids=batch['segment_ids'] * (np.arange(40) < 9))
    batch = {k: np.concatenate([v, short[k][:1]]) for k, v in batch.items()}
  results = [
    step_lib.gradients(
      task.loss,
      {'w': jnp.float32(0.3)},
      {},
      batch,
      jax.random.key(2),
      accumulate=parts,
      draw=task.draw,
    )
    for parts in (1, 2, 4)
  ]
  for metrics, gradient in results[1:]:
    for name, value in results[0][0].items():
      np.testing.assert_allclose(metrics[name], value, rtol=1e-6)
    np.testing.assert_allclose(gradient['w'], results[0][1]['w'], rtol=1e-6)


def test_packed_clips_have_the_loss_of_unpacked_ones():
  """Clips of one size, two in a row, with the same draws."""
  size, batch = (3, 2, 2), 4
  rng = np.random.default_rng(0)
  latents = rng.normal(size=(batch, *size, 5)).astype(np.float32)
  plain = oracle('velocity', scaled)
  first_k = FrameConditioningConfig(**(ONLY | {'none': 1.0, 'first_k': 1.0}))
  plain = dataclasses.replace(plain, conditioning=first_k)
  clips_batch = {'latents': latents, 'text': jnp.zeros((batch, 2, 3))}
  draws = plain.draw({}, {}, clips_batch, jax.random.key(0))
  shape = packing.SequencePacking(length=26, clips=2, frames=7)
  items = [
    {
      'patches': z.reshape(-1, 5),
      'grid': np.array(size),
      'tokens': np.ones(2, np.int32),
    }
    for z in latents
  ]
  packed = [packing.collate(items[i : i + 2], shape) for i in (0, 2)]
  packed = {k: np.stack([row[k] for row in packed]) for k in packed[0]}

  def by_row(x_Bf, fill):
    pairs = np.asarray(x_Bf).reshape(2, 6)
    return np.concatenate([pairs, np.full((2, 1), fill, pairs.dtype)], axis=1)

  noise_BNV = np.asarray(draws['noise']).reshape(2, 24, 5)
  packed_draws = {
    't': by_row(draws['t'], 0.0),
    'cond_mask': by_row(draws['cond_mask'], True),
    'noise': np.pad(noise_BNV, ((0, 0), (0, 2), (0, 0))),
  }
  params, key = {'w': jnp.float32(0.3)}, jax.random.key(0)
  loss, _ = plain.loss(params, {}, clips_batch, key, draws)
  same, _ = packed_oracle(scaled).loss(params, {}, packed, key, packed_draws)
  np.testing.assert_allclose(same, loss, rtol=1e-6)


def test_clips_that_fill_the_mesh_do_not_count():
  """Held-out clips are repeated until the mesh divides them."""
  stage = oracle('velocity', lambda params, z, t, text, key: 0.5 * z)
  batch = clips()
  expected = stage.held_out({}, {}, {k: v[:3] for k, v in batch.items()})
  more = {k: jnp.concatenate([v[:3], v[:2]]) for k, v in batch.items()}
  counted = jnp.array([1.0, 1, 1, 0, 0])
  got = stage.held_out({}, {}, more | {'counted': counted})
  for name, value in expected.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-6)


@pytest.mark.parametrize(
  'low, high, expected',
  [
    (None, None, (0.1, 0.3, 0.5, 0.7, 0.9, 0.97)),
    (0.875, None, (0.9, 0.97)),
    (0.0, 0.875, (0.1, 0.3, 0.5, 0.7)),
    (0.75, 0.85, (0.8,)),
  ],
)
def test_held_out_timesteps_are_trained_ones(low, high, expected):
  config = flow.FlowConfig(low=low, high=high)
  assert losses_lib.held_out_timesteps(config) == expected
  stage = dataclasses.replace(
    oracle('velocity', lambda params, z, t, text, key: z), flow=config
  )
  names = {f'held_out/loss_t{t}' for t in expected} | {'held_out/loss'}
  assert set(stage.held_out({}, {}, clips())) == names
