"""Wan 2.1 T2V-14B and each transformer of 2.2-A14B: 14,288,491,584 parameters.

  spacetime encode --checkpoint=WAN --data=CLIPS --out=CACHE
  spacetime train --config=wan_t2v_14b:480p --checkpoint=WAN \\
    --config.data.dir=CACHE --workdir=runs/wan

Of two transformers name one, and train it on the noise levels that it serves:
--config=wan_t2v_14b:480p,transformer_2 --checkpoint=WAN/transformer_2. Without
a name in the config the levels are those of the published folder.

Sizes:
  480p  81 frames of 480 x 832; 32,760 tokens.
  720p  81 frames of 720 x 1280; 75,600 tokens.

With AdamW and EMA in float32 the transformer takes 229 GB over all devices,
activations apart; experiments/pods.py has meshes for TPU slices.
"""

import ml_collections

from experiments import wan_t2v_1_3b

SIZES = {
  #        clip            shift
  '480p': ((81, 480, 832), 3.0),
  '720p': ((81, 720, 1280), 5.0),
}
# Of 2.2-A14B: noise levels from the boundary up are served by the first
# transformer, those below by the second (boundary_ratio of model_index.json).
BOUNDARY = 0.875
EXPERTS = {
  'transformer': {'flow.low': BOUNDARY, 'flow.high': 1.0},
  'transformer_2': {'flow.low': 0.0, 'flow.high': BOUNDARY},
}


def get_config(name: str = '480p') -> ml_collections.ConfigDict:
  """The config of a size, such as '480p', and optionally of one of two
  transformers, such as '480p,transformer_2'."""
  size, _, expert = name.partition(',')
  if size not in SIZES:
    raise ValueError(f'size {size!r}: expected one of {[*SIZES]}')
  if expert and expert not in EXPERTS:
    raise ValueError(f'{expert!r}: expected one of {[*EXPERTS]}')
  (frames, height, width), shift = SIZES[size]
  config = wan_t2v_1_3b.get_config()
  config.update_from_flattened_dict(
    {
      'data.frames': frames,
      'data.height': height,
      'data.width': width,
      'data.batch_size': 16,  # clips per step, over all devices
      'model.width': 5120,
      'model.heads': 40,
      'model.layers': 40,
      'model.mlp': 13824,
      'flow.shift': shift,
      'mesh.data': 1,
      'mesh.fsdp': -1,  # all devices share the state
      'sampling.shift': shift,
    }
    | EXPERTS.get(expert, {})
  )
  return config
