"""The small video autoencoder of the digits world, Wan 2.2's form.

  python -m spacetime train --config=experiments/digits_autoencoder.py \
    --workdir=DIR

Sizes:
  tiny  seconds; for tests.
  cpu   an hour and a half on two cores: 30 dB on held-out clips.
"""

import ml_collections

from experiments import digits_data, digits_runs


def get_config(size: str = 'cpu') -> ml_collections.ConfigDict:
  if size not in ('tiny', 'cpu'):
    raise ValueError(f'size {size!r}: expected tiny or cpu')
  tiny = size == 'tiny'
  steps = 4 if tiny else 10200
  return ml_collections.ConfigDict(
    dict(
      stage='autoencoder',
      seed=0,
      data=digits_data.get_data(size if tiny else 'pixels', batch=4),
      autoencoder=dict(
        kind='wan',
        base_dim=4 if tiny else 32,
        z_dim=8 if tiny else 192,
        dim_mult=(1, 2, 2) if tiny else (1, 2, 4),
        num_res_blocks=1,
        temporal_downsample=(True, True),
        is_residual=True,
        patch_size=2 if tiny else 4,
        initial_logvar=-6.0,
      ),
      reconstruction=dict(
        squared=4.0, absolute=0.05, scales=2, gradient=0.5, kl=1e-6
      ),
      optimizer=dict(
        name='muon',
        learning_rate=2e-3,
        adam_rate=1e-3,
        warmup=min(100, steps // 4),
        decay=0.3,
        b2=0.99,
        newton_schulz=3,
      ),
      mesh=dict(data=-1, fsdp=1, context=1, tensor=1),
      train=dict(
        steps=steps,
        ema=0.99,
        accumulate=1,
        log_every=1 if tiny else 10,
        **digits_runs.SAFE,
        evaluate_every=100,
        sheet_every=500,
        checkpoint_every=200,
        keep=2,
        held_out=4 if tiny else 32,
      ),
    )
  )
