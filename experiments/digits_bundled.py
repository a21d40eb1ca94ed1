"""The bundled model `digits`: small patches, many sizes, wandering characters.

  spacetime train --config=digits_bundled --workdir=runs/bundled \\
    --checkpoint=digits

Ten minutes on an H200, from the weights of the model before it; measured in
BUILD_NOTES.md.
"""

import ml_collections

from experiments import digits_mixed

DIRECTIONS = (
  *('left', 'right', 'up', 'down'),
  *('up-left', 'up-right', 'down-left', 'down-right'),
)


def get_config() -> ml_collections.ConfigDict:
  config = digits_mixed.get_config()
  config.seed = 1  # seed 0 trained the model before it
  with config.unlocked():
    config.data.render = 'live'  # too many clips for files
    config.data.workers = 14  # one reader is too slow for a GPU
    config.data.world.motions = (
      *DIRECTIONS,
      *('bouncing', 'still', 'circling'),
      *(3 * ('wandering',)),  # drawn three times as often as another
    )
    config.data.world.legs = 0.75  # share of wandering in legs
  config.update_from_flattened_dict(
    {
      'data.clips': 2 * 10**6,
      'data.batch_size': 32,  # rows per step
      'data.packing.length': 1024,  # tokens of a row; patches are small
      'data.packing.clips': 6,
      'data.packing.frames': 32,
      'model.patch': (1, 8, 8),
      'model.width': 256,
      'model.heads': 4,
      'model.layers': 8,
      'model.mlp': 1024,
      'model.dtype': 'bfloat16',
      'flow.std': 2.2,  # more clips with little noise
      'flow.shift': 24.0,
      'flow.reference': 320,  # tokens of a clip of 17 frames of 64 x 64
      # Conditioning frames more often, and at both ends, for smooth joins.
      'conditioning.none': 0.35,
      'conditioning.first_k': 0.15,
      'conditioning.last_k': 0.1,
      'conditioning.ends': 0.25,
      'conditioning.context_noise_prob': 0.25,
      'optimizer.decay': 0.35,
      'train.steps': 12000,
      'train.ema': 0.999,
      # A hundred steps take seconds.
      'train.log_every': 50,
      'train.evaluate_every': 2500,
      'train.checkpoint_every': 1000,
      'train.sheet_every': 0,
      'train.pca_init_rank': 160,
      'sampling.solver': 'unipc',
    }
  )
  return config
