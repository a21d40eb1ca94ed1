"""Image to video: Wan 2.2 I2V-A14B's two transformers, 2.1 I2V-14B, FLF2V-14B.

  spacetime encode --checkpoint=WAN --data=CLIPS --out=CACHE
  spacetime train --config=wan_i2v_14b:high --checkpoint=WAN/transformer \\
    --config.data.dir=CACHE --workdir=runs/high

The cache has latents of the first frame of each clip too, and for 2.1 its CLIP
embeddings.

Models:
  high   the first transformer of I2V-A14B, on its own noise levels, above 0.9
  low    the second, on those below: --checkpoint=WAN/transformer_2
  i2v    Wan 2.1 I2V-14B, with CLIP
  flf2v  Wan 2.1 FLF2V-14B: the first frame and the last

Clips are 81 frames of 480 x 832. With AdamW and EMA in float32 a transformer
takes 229 to 262 GB over all devices, activations apart;
--config.lora.rank=16 --config.optimizer.learning_rate=1e-4 trains low-rank
adapters instead.
"""

import ml_collections

from experiments import wan_t2v_14b

# Noise level at which the second transformer of I2V-A14B takes over.
BOUNDARY = 0.9
MODELS = {
  'high': {'flow.low': BOUNDARY, 'flow.high': 1.0, 'flow.shift': 5.0},
  'low': {'flow.low': 0.0, 'flow.high': BOUNDARY, 'flow.shift': 5.0},
  'i2v': {'model.image_width': 1280, 'model.image_tokens': 0},
  'flf2v': {'model.image_width': 1280, 'model.image_tokens': 514},
}


def get_config(model: str = 'high') -> ml_collections.ConfigDict:
  if model not in MODELS:
    raise ValueError(f'model {model!r}: expected one of {[*MODELS]}')
  config = wan_t2v_14b.get_config()
  config.model.cond_channels = 20  # a mask of 4 frames and 16 latent channels
  changes = MODELS[model]
  if 'model.image_width' in changes:
    config.image = ml_collections.ConfigDict(
      dict(  # CLIP ViT-H/14, whose embeddings are cached
        hidden_size=1280,
        intermediate_size=5120,  # hidden layer
        num_hidden_layers=32,
        num_attention_heads=16,
        image_size=224,  # pixels
        patch_size=14,  # pixels
        dtype='bfloat16',
      )
    )
  for name, value in changes.items():
    section, key = name.split('.')
    config[section][key] = value
  return config
