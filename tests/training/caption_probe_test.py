"""The caption probe: per cent of loss that one wrong word costs."""

import jax.numpy as jnp
import numpy as np

from spacetime.config.sections import FrameConditioningConfig
from spacetime.data.digits import scenes, world, wrong_captions
from spacetime.diffusion import flow
from spacetime.training import caption_probe, losses

LENGTH = 60


def encode(text):
  letters = np.frombuffer(text.lower().encode()[:LENGTH], np.uint8)
  return np.pad(letters, (0, LENGTH - len(letters))).astype(np.int32)


def scenes_of(characters, count=6):
  rng = np.random.default_rng(0)
  shown = world.World(max_characters=characters)
  return [
    scenes.sample_scene(rng, world=shown, split='train') for _ in range(count)
  ]


def test_prompts_differ_where_a_kind_applies():
  batch = caption_probe.prompts(scenes_of(2), encode)
  kinds = len(wrong_captions.KINDS)
  assert batch['right'].shape == (6, LENGTH)
  assert batch['wrong'].shape == (6, kinds, LENGTH)
  differs = (batch['wrong'] != batch['right'][:, None]).any(-1)
  # Long captions are cut here, so a change may lie behind the cut.
  assert (differs <= batch['applies']).all() and differs.sum() > 15
  again = caption_probe.prompts(scenes_of(2), encode)
  np.testing.assert_array_equal(batch['wrong'], again['wrong'])


def test_excess_of_a_model_that_reads_its_caption():
  batch = caption_probe.prompts(scenes_of(1), encode)
  right_BS = jnp.asarray(batch['right'])

  def transform(params, z_Bfhwc, t_Bf, text_BSY, key):
    del key
    # The exact velocity of latents that are zero, but half of it where the
    # caption is not the right one.
    wrong_B = (text_BSY[..., 0] != right_BS).any(1)
    share_B = jnp.where(wrong_B, params['text'], 0.9)
    return share_B[:, None, None, None, None] * z_Bfhwc / t_Bf[0, 0]

  task = losses.DiffusionLoss(
    encode=None,
    embed=lambda params, tokens_BS: tokens_BS[..., None],
    transform=transform,
    flow=flow.FlowConfig(),
    conditioning=FrameConditioningConfig(),
  )
  batch['latents'] = np.zeros((6, 2, 3, 4, 5), np.float32)
  excess = caption_probe.measure(task, {'text': 0.8}, {}, batch)
  assert len(excess) == len(wrong_captions.KINDS) * len(caption_probe.TIMESTEPS)
  # Errors of 0.2 against 0.1 of the same noise: four times the loss.
  for t in caption_probe.TIMESTEPS:
    np.testing.assert_allclose(excess[f'probe/digit_t{t}'], 300, rtol=1e-3)
    np.testing.assert_allclose(excess[f'probe/colour_t{t}'], 300, rtol=1e-3)
    assert np.isnan(excess[f'probe/swap_t{t}'])
  same = caption_probe.measure(task, {'text': 0.9}, {}, batch)
  np.testing.assert_allclose(same['probe/digit_t0.5'], 0, atol=1e-3)
