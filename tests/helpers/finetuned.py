"""A tiny published model, clips, their cache and a config to fine-tune with."""

import dataclasses
import pathlib

import numpy as np

from experiments import wan_t2v_1_3b, wan_ti2v_5b
from spacetime.data.digits import world
from spacetime.data.settings import DataConfig
from spacetime.media import video_writer
from spacetime.pipeline import encoder as encoder_lib
from spacetime.pipeline import precompute
from tests.helpers import published_folder

SIZE = (5, 16, 32)
CLIPS = 8


def write_clips(folder: pathlib.Path) -> None:
  """Clips of noise with captions, of which one is held out."""
  folder.mkdir()
  rng = np.random.default_rng(0)
  for i in range(CLIPS):
    frames = rng.integers(0, 256, (SIZE[0], *SIZE[1:], 3)).astype(np.uint8)
    video_writer.write_video(folder / f'clip{i}.mp4', frames, fps=8)
    (folder / f'clip{i}.txt').write_text(f'a red {i} moves  left &amp; right')


def data(folder: pathlib.Path) -> DataConfig:
  """The section of FOLDER/clips."""
  frames, height, width = SIZE
  return DataConfig(
    name='folder',
    dir=str(folder / 'clips'),
    clips=0,
    held_out_clips=0,
    frames=frames,
    height=height,
    width=width,
    world=world.World(),
    batch_size=1,
    caption_dropout=0.0,
    crop=None,
    fps=8,
  )


def write(
  folder: pathlib.Path, *, vae=published_folder.VAE, **variant
) -> pathlib.Path:
  """FOLDER/wan (published), FOLDER/clips and FOLDER/cache; returns FOLDER."""
  folder.mkdir(exist_ok=True)
  published_folder.write(folder / 'wan', vae=vae, **variant)
  write_clips(folder / 'clips')
  encoder = encoder_lib.open_encoder(str(folder / 'wan'))
  precompute.write_cache(encoder, data(folder), folder / 'cache', shard=3)
  return folder


def config(folder: pathlib.Path, *, vae=published_folder.VAE, **values):
  """The experiment of that family with the sizes of the tiny one."""
  module = wan_ti2v_5b if vae.is_residual else wan_t2v_1_3b
  config_dict = module.get_config()
  frames, height, width = SIZE
  model = dataclasses.asdict(published_folder.TRANSFORMER)
  del model['channels'], model['text_width'], model['theta'], model['eps']
  with config_dict.unlocked():
    config_dict.model.update(model | {'remat': 'full'})
    config_dict.autoencoder = {'kind': 'wan'} | dataclasses.asdict(vae)
    config_dict.text.update(dataclasses.asdict(published_folder.TEXT))
    config_dict.lora.targets = (
      'self_attention.q',
      'cross_attention.v',
      'mlp_out',
    )
  config_dict.update_from_flattened_dict(
    {
      'data.dir': str(folder / 'cache'),
      'data.frames': frames,
      'data.height': height,
      'data.width': width,
      'data.batch_size': 8,
      'data.caption_dropout': 0.5,
      'mesh.data': 4,
      'mesh.fsdp': 2,
      'optimizer.learning_rate': 1e-3,
      'optimizer.warmup': 1,
      'train.steps': 4,
      'train.log_every': 1,
      'train.checkpoint_every': 2,
      'train.evaluate_every': 0,
      'train.held_out': 1,
    }
    | values
  )
  return config_dict
