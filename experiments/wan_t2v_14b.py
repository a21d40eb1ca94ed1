"""Wan 2.1 T2V-14B, and each transformer of 2.2-A14B: 14,288,491,584 parameters.

  python -m spacetime train --config=experiments/wan_t2v_14b.py \
    --checkpoint=WAN --workdir=DIR --config.data.dir=CACHE

Of two transformers name one: --checkpoint=WAN/transformer_2.

Sizes:
  480p  81 frames of 480 x 832; 32,760 tokens.
  720p  81 frames of 720 x 1280; 75,600 tokens.

With AdamW and EMA in float32 the transformer takes 229 GB over all devices,
activations apart.
"""

import ml_collections

from experiments import wan

SIZES = {
  #        clip            shift
  '480p': ((81, 480, 832), 3.0),
  '720p': ((81, 720, 1280), 5.0),
}


def get_config(size: str = '480p') -> ml_collections.ConfigDict:
  if size not in SIZES:
    raise ValueError(f'size {size!r}: expected one of {[*SIZES]}')
  clip, shift = SIZES[size]
  sections = wan.get_sections(
    autoencoder='2.1',
    shift=shift,
    size=clip,
    fps=16,
    batch=16,
    mesh=dict(data=1, fsdp=-1, context=1, tensor=1),
  )
  return ml_collections.ConfigDict(
    sections
    | dict(
      model=dict(
        patch=(1, 2, 2),
        width=5120,
        heads=40,
        layers=40,
        mlp=13824,
        dtype='bfloat16',
        remat='full',
      ),
      conditioning=dict(
        none=1.0, first=0.0, first_k=0.0, last_k=0.0, ends=0.0, random=0.0
      ),
    )
  )
