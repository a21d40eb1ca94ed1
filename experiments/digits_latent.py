"""Text to video on the digits world, in latents of an autoencoder.

  spacetime train --config=digits_latent --workdir=runs/latent

For an accelerator; not yet trained. The latents are those of the bundled
autoencoder (experiments/digits_autoencoder.py), or of another one:
--config.autoencoder.weights=DIR.
"""

import ml_collections

from experiments import digits


def get_config() -> ml_collections.ConfigDict:
  config = digits.get_config('pixels')
  config.autoencoder = dict(
    kind='weights',  # a trained one
    weights='digits_autoencoder',  # bundled
  )
  config.flow = dict(prediction='velocity', shift=3.0)
  config.update_from_flattened_dict(
    {
      'data.batch_size': 128,
      'model.patch': (1, 1, 1),  # a latent cell is a token
      'model.width': 512,
      'model.heads': 8,
      'model.layers': 12,
      'model.mlp': 2048,
      'model.dtype': 'bfloat16',
      'optimizer.learning_rate': 1e-3,
      'optimizer.freeze': (),
      'train.steps': 12000,
      'train.pca_init_clips': 0,  # layers start from random values
      'sampling.shift': 3.0,
    }
  )
  return config
