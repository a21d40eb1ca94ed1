"""The small video autoencoder of the digits world, in the form of Wan 2.2.

  spacetime train --config=digits_autoencoder:cpu --workdir=runs/autoencoder

Sizes:
  cpu   an hour and a half on two cores: 30 dB on held-out clips.
  tiny  4 steps in seconds, for tests.
"""

import ml_collections

from experiments import digits


def get_config(size: str = 'cpu') -> ml_collections.ConfigDict:
  data = digits.get_config('pixels').data  # the full world
  data.batch_size = 4  # clips per step
  config = ml_collections.ConfigDict(
    dict(
      stage='autoencoder',
      seed=0,  # of data order, parameters and noise
      data=data,
      autoencoder=dict(
        kind='wan',  # Wan's causal video autoencoder
        base_dim=32,  # channels of the first level
        z_dim=192,  # channels of the latents
        dim_mult=(1, 2, 4),  # channels of each level, in base_dim
        num_res_blocks=1,  # residual blocks of a level
        temporal_downsample=(True, True),  # both steps halve time: 4 in all
        is_residual=True,  # the 2.2 form
        patch_size=4,  # pixels a side that are folded into channels first
        initial_logvar=-6.0,  # nearly no noise at first
      ),
      reconstruction=dict(
        squared=4.0,  # starts learning where absolute error stalls
        absolute=0.05,  # keeps edges sharp
        scales=2,  # coarser scales of the absolute error
        gradient=0.5,  # differences between neighbouring pixels
        kl=1e-6,  # per latent value
      ),
      optimizer=dict(
        name='muon',
        learning_rate=2e-3,  # of matrices
        adam_rate=1e-3,  # of the rest
        warmup=100,  # steps
        decay=0.3,  # share of the steps that falls to 0
        b2=0.99,  # decay of the second moment
        newton_schulz=3,  # iterations; enough for small batches
      ),
      mesh=dict(data=-1, fsdp=1, context=1, tensor=1),  # devices share clips
      train=dict(
        steps=10200,
        ema=0.99,  # decay of the average
        accumulate=1,  # parts of a batch, one after another
        log_every=10,
        skip_nan=True,  # leaves out steps that are not finite
        spike=0.0,  # no bound of the loss
        evaluate_every=100,  # held-out PSNR
        sheet_every=500,  # contact sheets
        checkpoint_every=200,
        keep=2,  # checkpoints
        held_out=32,  # clips to measure on
      ),
    )
  )
  if size == 'tiny':
    config.data = digits.get_config('tiny').data
    config.update_from_flattened_dict(
      {
        'autoencoder.base_dim': 4,
        'autoencoder.z_dim': 8,
        'autoencoder.dim_mult': (1, 2, 2),
        'autoencoder.patch_size': 2,
        'optimizer.warmup': 1,
        'train.steps': 4,
        'train.log_every': 1,
        'train.held_out': 4,
      }
    )
  elif size != 'cpu':
    raise ValueError(f"size {size!r}: expected 'cpu' or 'tiny'")
  return config
