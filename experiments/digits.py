"""Text to video on the digits world.

  python -m spacetime train --config=experiments/digits.py:cpu --workdir=DIR

Sizes:
  tiny     seconds; for tests. tiny_mixed: as mixed, for tests.
  cpu      pixel patches, the world's easier half; 15 minutes on two cores.
  mixed    as cpu, in many sizes and durations, and images: rows of clips.
  bundled  the bundled model: as mixed, small patches; ten minutes on a GPU,
           from the weights of the one before (--checkpoint=digits).
  pixels   one to three characters, wider; hours on two cores.
  latent   latents of experiments/digits_autoencoder.py; for an accelerator.
"""

import ml_collections

from experiments import digits_data, digits_runs

SIZES = {
  #         width heads layers steps batch rate decay
  'tiny': (48, 2, 2, 4, 4, 3e-3, 0.25),
  'cpu': (192, 3, 4, 2400, 16, 2e-3, 0.5),
  'mixed': (192, 3, 4, 5000, 8, 2e-3, 0.5),
  'bundled': (256, 4, 8, 12000, 32, 2e-3, 0.35),
  'tiny_mixed': (48, 2, 2, 4, 8, 3e-3, 0.25),
  'pixels': (256, 4, 6, 8000, 32, 3e-3, 0.25),
  'latent': (512, 8, 12, 12000, 128, 1e-3, 0.25),
}
ON_GPU = ('latent', 'bundled')
PATCHES = {'latent': (1, 1, 1), 'bundled': (1, 8, 8)}


def get_config(size: str = 'cpu') -> ml_collections.ConfigDict:
  if size not in SIZES:
    raise ValueError(f'size {size!r}: expected one of {[*SIZES]}')
  width, heads, layers, steps, batch, rate, decay = SIZES[size]
  latent, mixed = size == 'latent', size in digits_data.MIXED
  text_width = 32 if 'tiny' in size else 128
  return ml_collections.ConfigDict(
    dict(
      stage='diffusion',
      seed=1 if size == 'bundled' else 0,  # 0: the model before it
      data=digits_data.get_data(size, batch=batch),
      autoencoder=dict(kind='weights', weights='digits_autoencoder')
      if latent
      else dict(kind='identity', time=4),
      text=dict(
        length=64 if mixed else 80,
        vocab_size=640,
        d_model=text_width,
        d_kv=text_width // 4,
        num_heads=4,
        d_ff=2 * text_width,
        num_layers=2,
      ),
      model=dict(
        patch=PATCHES.get(size, (1, 16, 16)),
        width=width,
        heads=heads,
        layers=layers,
        mlp=4 * width,
        theta=100.0,
        pos_embed_frequencies=6,
        dtype='bfloat16' if size in ON_GPU else 'float32',
        remat='none',
      ),
      flow=digits_runs.get_flow(size),
      conditioning=digits_runs.get_conditioning(size),
      optimizer=dict(
        name='muon',
        learning_rate=rate,
        adam_rate=1e-3,
        warmup=min(30, steps // 4),
        decay=decay,
        newton_schulz=3,
        # The few strongest components of a patch are all that enters.
        freeze=() if latent else ('dit/patch_embed/kernel',),
      ),
      mesh=dict(data=-1, fsdp=1, context=1, tensor=1),
      train=dict(
        steps=steps,
        ema=0.999 if steps >= 8000 else 0.995,
        accumulate=1,
        **digits_runs.get_events(size),
        keep=3,
        **digits_runs.SAFE,
        held_out=64 if steps > 10 else 4,
        pca_init_clips=0 if latent else 8 if 'tiny' in size else 256,
        pca_init_rank=160 if size == 'bundled' else 0,
      ),
      sampling=digits_runs.get_sampling(size),
    )
  )
