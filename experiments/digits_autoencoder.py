"""A compact autoencoder of the digits world: 16 channels at stride 4x8x8.

  spacetime train --config=digits_autoencoder:cpu --workdir=runs/compact

Windows of 9x32x32 pixels near characters of the full world, so that a latent
frame after the first, and one after that, are seen.

Sizes:
  cpu   Half an hour of one core. On held-out clips of 17x64x64: 29.1 dB after
        450 CPU seconds (800 steps), 31.2 dB at the end.
  quick Ten minutes of two cores: the first step of `digits:cpu` from nothing.
  tiny  4 steps in seconds, for tests.
"""

import ml_collections

from experiments import digits_stages


def get_config(size: str = 'cpu') -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict(
    dict(
      stage='autoencoder',
      seed=0,  # of data, parameters and noise
      data=dict(
        name='digits',  # the built-in world, all of it
        dir='data',  # not used: clips are rendered as they are read
        clips=5000,  # captions that train the tokenizer
        held_out_clips=64,
        frames=17,  # of held-out clips, and of most scenes
        height=64,  # pixels
        width=64,  # pixels
        world={},  # the full world
        batch_size=16,  # windows per step
        caption_dropout=0.1,  # captions are not read
        crop=None,  # windows belong to the stages
        fps=8,  # frames per second
        render='live',
        stages=digits_stages.get_autoencoder_stages(),
      ),
      autoencoder=dict(
        kind='compact',
        z_dim=16,  # channels of the latents
        patch_size=4,  # pixels a side that are folded into channels
        encoder_widths=(64, 128),  # channels of each level, fine to coarse
        encoder_blocks=(1, 2),  # residual blocks of each level
        decoder_widths=(96, 160),
        decoder_blocks=(4, 3),
      ),
      reconstruction=dict(
        squared=1.0,
        absolute=0.02,
        scales=0,
        gradient=0.0,
        kl=2e-4,  # noise at 45 dB: far below the error of the network
      ),
      optimizer=dict(
        name='muon',
        learning_rate=3e-3,  # of matrices
        adam_rate=2e-3,  # of the other parameters
        warmup=30,
        decay=0.45,  # share of the steps, at the end
        b2=0.99,
        newton_schulz=3,
      ),
      mesh=dict(data=-1, fsdp=1, context=1, tensor=1),
      train=dict(
        steps=2800,
        ema=0.99,
        accumulate=1,
        log_every=10,
        evaluate_every=200,
        sheet_every=600,
        checkpoint_every=100,
        keep=2,
        held_out=32,
      ),
    )
  )
  if size == 'tiny':
    config.update_from_flattened_dict(
      {
        'data.batch_size': 4,
        'autoencoder.encoder_widths': (8, 8),
        'autoencoder.encoder_blocks': (1, 1),
        'autoencoder.decoder_widths': (8, 8),
        'autoencoder.decoder_blocks': (1, 1),
        'optimizer.warmup': 1,
        'train.steps': 4,
        'train.log_every': 1,
        'train.evaluate_every': 0,
        'train.sheet_every': 0,
        'train.checkpoint_every': 0,
        'train.held_out': 4,
      }
    )
  elif size == 'quick':
    config.train.steps = 700
  elif size != 'cpu':
    raise ValueError(f'size {size!r}: expected cpu, quick or tiny')
  return config
