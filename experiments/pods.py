"""Wan's models on whole TPU slices, with meshes that the compiler found to fit.

  spacetime compile --config=pods:14b-720p-v5p-256 --topology=v5p-256
  spacetime train --config=pods:14b-720p-v5p-256 --checkpoint=WAN \\
    --config.data.dir=CACHE --workdir=runs/wan

A name is model-size-slice: 1.3b, 5b or 14b; 480p or 720p, 81 frames, or minute,
961 frames of 480 x 832 (375,960 tokens); v5e-256, v6e-256, v5p-256 (128 chips)
or tpu7x-128 (64 chips, 128 devices).

mesh.context divides the tokens of a clip; where it divides the heads too (12,
24, 40), attention exchanges tokens for heads, else in a ring as well. mesh.fsdp
takes the other devices, a clip each. Parameters, average and optimizer lie over
all devices.
"""

import ml_collections

from experiments import wan_t2v_1_3b, wan_t2v_14b, wan_ti2v_5b

DEVICES = {'v5e-256': 256, 'v6e-256': 256, 'v5p-256': 128, 'tpu7x-128': 128}
MODELS = {'1.3b': wan_t2v_1_3b, '5b': wan_ti2v_5b, '14b': wan_t2v_14b}
# Model -> size -> clip.
CLIPS = {
  '1.3b': {
    '480p': (81, 480, 832),
    '720p': (81, 720, 1280),
    'minute': (961, 480, 832),
  },
  '5b': {'480p': (81, 480, 832), '720p': (81, 704, 1280)},
  '14b': {'480p': (81, 480, 832), '720p': (81, 720, 1280)},
}
# Model, size -> mesh.context; of a slice where it is another there.
CONTEXT = {
  ('1.3b', '480p'): 4,
  ('1.3b', '720p'): 4,
  ('1.3b', 'minute'): 8,
  ('5b', '480p'): 2,
  ('5b', '720p'): 4,
  ('14b', '480p'): 8,
  ('14b', '720p'): 8,
  ('14b', '720p', 'v5e-256'): 16,
}


def names() -> list[str]:
  """All presets; a minute on v6e-256 only."""
  return [
    f'{model}-{size}-{slice_}'
    for model, sizes in CLIPS.items()
    for size in sizes
    for slice_ in DEVICES
    if size != 'minute' or slice_ == 'v6e-256'
  ]


def get_config(name: str = '14b-720p-v5p-256') -> ml_collections.ConfigDict:
  if name not in names():
    raise ValueError(
      f'expected MODEL-SIZE-SLICE of {[*MODELS]}, '
      f'{["480p", "720p", "minute"]} and {[*DEVICES]}'
    )
  model, size, slice_ = name.split('-', 2)
  base = '720p' if model != '1.3b' and size == '720p' else '480p'
  config = MODELS[model].get_config(base)
  data = config.data
  data.frames, data.height, data.width = CLIPS[model][size]
  context = CONTEXT.get((model, size, slice_), CONTEXT[model, size])
  config.mesh.context = context
  config.mesh.data, config.mesh.fsdp = 1, DEVICES[slice_] // context
  config.data.batch_size = config.mesh.fsdp
  config.model.remat = 'attention'
  return config
