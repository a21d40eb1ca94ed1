"""Wan 2.2 TI2V-5B: 4,999,787,712 parameters; text, or a first frame too.

  python -m spacetime train --config=experiments/wan_ti2v_5b.py \
    --checkpoint=WAN --workdir=DIR --config.data.dir=CACHE

Sizes:
  480p  121 frames of 480 x 832; 12,090 tokens.
  720p  121 frames of 704 x 1280; 27,280 tokens.

With AdamW and EMA in float32 the transformer takes 80 GB over all devices,
activations apart.
"""

import ml_collections

from experiments import wan

SIZES = {'480p': (121, 480, 832), '720p': (121, 704, 1280)}


def get_config(size: str = '720p') -> ml_collections.ConfigDict:
  if size not in SIZES:
    raise ValueError(f'size {size!r}: expected one of {[*SIZES]}')
  sections = wan.get_sections(
    autoencoder='2.2',
    shift=5.0,
    size=SIZES[size],
    fps=24,
    batch=8,
    mesh=dict(data=1, fsdp=-1, context=1, tensor=1),
  )
  return ml_collections.ConfigDict(
    sections
    | dict(
      model=dict(
        patch=(1, 2, 2),
        width=3072,
        heads=24,
        layers=30,
        mlp=14336,
        dtype='bfloat16',
        remat='full',
      ),
      conditioning=dict(
        none=0.5, first=0.5, first_k=0.0, last_k=0.0, ends=0.0, random=0.0
      ),
    )
  )
