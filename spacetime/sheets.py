"""Contact sheets while training: what the model makes of held-out clips."""

import pathlib

import jax
import numpy as np

from spacetime import build
from spacetime import config as config_lib
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.pixels import to_frames, to_video
from spacetime.sampling import conditions, sampler, writer
from spacetime.training import metrics

CLIPS = 6


def sampled(config, nets: build.Networks, held_out: dict):
  """(params, frozen) -> clips and captions, for the first held-out prompts."""
  captions = held_out['captions'][:CLIPS]
  tokens = held_out['tokens'][: len(captions)]
  negative = np.zeros_like(tokens)
  negative[:, 0] = tokenizer_lib.END
  make = build.sampler(config, nets, config_lib.sampling(config))
  latent = (*build.grids(config, nets).latent, nets.autoencoder.z_dim)

  @jax.jit
  def video(params, frozen, keys):
    condition = conditions.nothing(len(captions), latent)
    z = make(params, keys, tokens, negative, condition)
    return nets.decode(frozen, z)

  def draw(params, frozen):
    keys = sampler.clip_keys(0, len(captions))
    return to_frames(video(params, frozen, keys)), captions

  return draw


def reconstructed(codec, held_out: dict):
  """(params, frozen) -> held-out clips, each before its reconstruction."""
  frames = held_out['frames'][: CLIPS // 2]

  @jax.jit
  def video(params):
    z = codec.encode(params, to_video(frames))
    return codec.decode(params, z)

  def draw(params, frozen):
    del frozen
    decoded = to_frames(video(params['autoencoder']))
    pairs = zip(frames, decoded, strict=True)
    clips = [clip for pair in pairs for clip in pair]
    return clips, ['held-out clip', 'its reconstruction'] * len(frames)

  return draw


def event(draw, frozen, workdir, told: metrics.MetricsWriter):
  """step, state -> a sheet in WORKDIR/sheets and in TensorBoard."""

  def call(step, state):
    with jax.transfer_guard('allow'):
      clips, captions = draw(state.ema, frozen)
    if jax.process_index() == 0:
      path = pathlib.Path(workdir) / 'sheets' / f'{step:07d}.png'
      path.parent.mkdir(exist_ok=True)
      image = writer.contact_sheet(list(clips), captions)
      writer.write_image(path, image)
      told.image(step, 'sheet', image)

  return call
