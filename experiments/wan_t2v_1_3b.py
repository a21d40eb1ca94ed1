"""Wan 2.1 T2V-1.3B: 1,418,996,800 parameters, fine-tuned.

  python -m spacetime train --config=experiments/wan_t2v_1_3b.py \
    --checkpoint=WAN --workdir=DIR --config.data.dir=CACHE

Sizes:
  image  single frames of 480 x 832; 1,560 tokens.
  480p   81 frames of 480 x 832; 32,760 tokens.

With AdamW and EMA in float32 the transformer takes 23 GB, activations apart.
"""

import ml_collections

from experiments import wan

SIZES = {'image': (1, 480, 832), '480p': (81, 480, 832)}


def get_config(size: str = '480p') -> ml_collections.ConfigDict:
  if size not in SIZES:
    raise ValueError(f'size {size!r}: expected one of {[*SIZES]}')
  sections = wan.get_sections(
    autoencoder='2.1',
    shift=3.0,
    size=SIZES[size],
    fps=16,
    batch=8,
    mesh=dict(data=-1, fsdp=1, context=1, tensor=1),
  )
  return ml_collections.ConfigDict(
    sections
    | dict(
      model=dict(
        patch=(1, 2, 2),
        width=1536,
        heads=12,
        layers=30,
        mlp=8960,
        dtype='bfloat16',
        remat='full',
      ),
      conditioning=dict(
        none=1.0, first=0.0, first_k=0.0, last_k=0.0, ends=0.0, random=0.0
      ),
    )
  )
