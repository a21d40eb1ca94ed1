"""Flow map of the digits model: clips in one step, without guidance.

  spacetime train --config=digits_flow_map --checkpoint=RUN \\
    --workdir=runs/flow_map

RUN is a run of digits:bundled or a weights folder of one, such as digits, the
bundled model. The flow map replaces that model with guidance 2.5, at any number
of steps; compare with

  spacetime evaluate --checkpoint=runs/flow_map --steps=1 --out=one

Sizes:
  bundled  clips of 17 frames of 64 x 64, from the bundled model: 70 minutes of
           one CPU core. Four steps then follow the prompt as 14 guided ones
           do, and one draws a digit that can mostly be read (BUILD_NOTES.md).
  tiny     3 steps in seconds, from a run of digits:tiny; for tests.
"""

import ml_collections

from experiments import digits


def get_config(size: str = 'bundled') -> ml_collections.ConfigDict:
  if size not in ('bundled', 'tiny'):
    raise ValueError(f'size {size!r}: expected bundled or tiny')
  config = digits.get_config(size)
  with config.unlocked():
    config.data.stages = ()  # no curriculum: clips of one size
    config.data.packing = None
    config.model.flow_map = 0.25  # weight of the second time
    config.flow_map = dict(
      guidance=2.5,  # becomes part of the weights
      delta=0.005,  # half the distance of the difference in time
      velocity=0.25,  # share of clips that learn the velocity
      to_data=0.5,  # share of clips that learn steps to data
      teacher='model',  # velocities are the guided ones of RUN
    )
    config.sampling.skip_layers = ()  # one branch
  config.update_from_flattened_dict(
    {
      'data.batch_size': 4,  # clips per step
      # Steps of a flow map are those of a whole clip.
      'conditioning.independent_noise_prob': 0.0,
      'optimizer.learning_rate': 5e-4,  # of matrices
      'optimizer.adam_rate': 2e-4,  # of the other parameters
      'train.steps': 3200,
      'train.ema': 0.995,
      'sampling.steps': 1,
      'sampling.solver': 'euler',
      'sampling.guidance': 1.0,
    }
  )
  if size == 'tiny':
    config.update_from_flattened_dict(
      {'data.batch_size': 8, 'train.steps': 3, 'data.held_out_clips': 16}
    )
  return config
