"""Wan 2.2 TI2V-5B, text or a first frame to video: 4,999,787,712 parameters.

  spacetime encode --checkpoint=WAN --data=CLIPS --out=CACHE
  spacetime train --config=wan_ti2v_5b:720p --checkpoint=WAN \\
    --config.data.dir=CACHE --workdir=runs/wan

Sizes:
  480p  121 frames of 480 x 832; 12,090 tokens.
  720p  121 frames of 704 x 1280; 27,280 tokens.

With AdamW and EMA in float32 the transformer takes 80 GB over all devices,
activations apart.
"""

import ml_collections

from experiments import wan_t2v_1_3b

SIZES = {'480p': (121, 480, 832), '720p': (121, 704, 1280)}


def get_config(size: str = '720p') -> ml_collections.ConfigDict:
  if size not in SIZES:
    raise ValueError(f'size {size!r}: expected one of {[*SIZES]}')
  config = wan_t2v_1_3b.get_config()
  config.data.frames, config.data.height, config.data.width = SIZES[size]
  config.autoencoder = dict(
    kind='wan',  # mean and scale of its latents come with the weights
    base_dim=160,  # channels of the encoder's first level
    decoder_base_dim=256,  # channels of the decoder's last level
    z_dim=48,  # channels of the latents
    is_residual=True,  # the 2.2 form
    patch_size=2,  # pixels a side that are folded into channels first
  )
  config.update_from_flattened_dict(
    {
      'model.width': 3072,
      'model.heads': 24,
      'model.layers': 30,
      'model.mlp': 14336,
      'flow.shift': 5.0,
      'conditioning.none': 0.5,  # half of the clips are image to video
      'conditioning.first': 0.5,
      'mesh.data': 1,
      'mesh.fsdp': -1,  # all devices share the state
      'sampling.shift': 5.0,
    }
  )
  return config
