"""Text to video on the digits world in many sizes and durations, and images.

  spacetime train --config=digits_mixed:cpu --workdir=runs/mixed

Sizes:
  cpu   an hour on two cores. Clips of 32 to 128 pixels a side and 1 to 49
        frames, several packed into a row.
  tiny  4 steps in seconds, for tests.
"""

import ml_collections

from experiments import digits_pixels


def get_config(size: str = 'cpu') -> ml_collections.ConfigDict:
  config = digits_pixels.get_config()
  with config.unlocked():
    config.data.mixed = dict(
      frames=(1, 49),  # fewest and most; one frame is an image
      volume=49 * 64 * 64,  # most pixels of a clip: large clips are short
      # A size that no clip has, to see whether sizes generalize.
      held_out=((33, 48, 96),),
    )
    config.data.packing = dict(
      kind='rows',  # several clips in a row of tokens
      length=256,  # tokens, a few more than the longest clip: 2 % is padding
      clips=4,  # most clips in a row
      frames=24,  # most latent frames in a row
      look_ahead=64,  # clips that wait, from which a row is chosen
    )
    config.flow.reference = 80  # tokens for which the shift holds
    config.conditioning = dict(  # with noise, to be continued for a minute
      none=0.6,
      first=0.1,
      first_k=0.1,
      last_k=0.05,
      ends=0.1,
      random=0.05,
      context_noise_prob=0.3,  # share of clips with noise on these frames
      context_noise=0.3,  # its highest level
      independent_noise_prob=0.05,  # share with a level for every frame
    )
  config.data.batch_size = 8  # rows per step
  config.text.length = 64  # tokens of a prompt
  config.train.steps = 5000
  if size == 'tiny':
    digits_pixels.make_tiny(config)
    config.data.batch_size = 8
    config.data.mixed = dict(frames=(1, 9), height=(32, 48), width=(32, 64))
    config.data.packing.update(length=48, frames=8, look_ahead=16)
  elif size != 'cpu':
    raise ValueError(f"size {size!r}: expected 'cpu' or 'tiny'")
  return config
