"""Text to video on the digits world, from pixels: no autoencoder.

  spacetime train --config=digits_pixels:tiny --workdir=runs/tiny

A patch of pixels is a token. Colours and motions are learned, digits are not:
see experiments/digits.py for the model in latents.

Sizes:
  cpu   15 minutes on two cores. One character, still camera.
  tiny  4 steps in seconds, for tests and first tries.
  full  hours on two cores. The full world: one to three characters.
"""

import ml_collections


def get_config(size: str = 'cpu') -> ml_collections.ConfigDict:
  width, text_width = 192, 128
  config = ml_collections.ConfigDict(
    dict(
      stage='diffusion',  # the transformer; its autoencoder has no parameters
      seed=0,  # of data order, parameters and noise
      data=dict(
        name='digits',  # the built-in world
        dir='data',  # rendered there once
        clips=20000,  # training clips
        held_out_clips=512,  # clips of each held-out split
        frames=17,  # 1 + 4 k, since a latent frame holds 4
        height=64,  # pixels
        width=64,  # pixels
        world=dict(
          max_characters=1,  # digits in a clip
          sizes=('medium', 'large'),  # of the characters
          speeds=('fast',),  # of their motions
          cameras=('still',),  # no pans, no zooms
        ),
        batch_size=16,  # clips per step
        caption_dropout=0.1,  # share without caption, for guidance
        crop=None,  # clips are trained on whole
        fps=8,  # frames per second
      ),
      # Pixels as latents, four frames in a latent frame.
      autoencoder=dict(kind='identity'),
      text=dict(
        length=80,  # tokens of a prompt
        vocab_size=640,  # of the tokenizer, trained on the captions
        d_model=text_width,
        d_kv=text_width // 4,  # head size
        num_heads=4,
        d_ff=2 * text_width,  # hidden layer
        num_layers=2,
      ),
      model=dict(
        patch=(1, 16, 16),  # latent cells of a token: time, height, width
        width=width,
        heads=3,
        layers=4,
        mlp=4 * width,  # hidden layer
        theta=100.0,  # base of the RoPE wavelengths; the grids are small
        pos_embed_frequencies=6,  # absolute positions, seen through noise
        dtype='float32',  # a CPU is slower in bfloat16
        remat='none',  # activations fit in memory
      ),
      flow=dict(
        prediction='sample',  # a wide patch hides a predicted velocity
        std=1.8,  # of logit(t)
        shift=30.0,  # most noise levels are high: BUILD_NOTES.md
      ),
      conditioning=dict(  # weights of the conditioning frames
        none=0.75,
        first=0.1,
        first_k=0.05,
        last_k=0.04,
        ends=0.03,
        random=0.03,
      ),
      optimizer=dict(
        name='muon',
        learning_rate=2e-3,  # of matrices
        adam_rate=1e-3,  # of the rest
        warmup=30,  # steps
        decay=0.5,  # share of the steps that falls to 0
        newton_schulz=3,  # iterations; enough for small batches
        # The strongest principal components of a patch stay the only inputs.
        freeze=('dit/patch_embed/kernel',),
      ),
      mesh=dict(
        data=-1,  # all devices share the batch
        fsdp=1,  # parts of the state
        context=1,  # parts of a clip's tokens
        tensor=1,  # parts of heads and hidden layers
      ),
      train=dict(
        steps=2400,
        ema=0.995,  # decay of the average
        accumulate=1,  # parts of a batch, one after another
        log_every=10,
        evaluate_every=200,  # held-out loss
        sheet_every=1000,  # contact sheets
        checkpoint_every=200,
        keep=3,  # checkpoints
        skip_nan=True,  # leaves out steps that are not finite
        spike=0.0,  # no bound of the loss
        held_out=64,  # clips to measure on
        pca_init_clips=256,  # clips whose principal components start the layers
        pca_init_rank=0,  # a third of the width
      ),
      sampling=dict(
        solver='heun',
        steps=16,
        guidance=2.5,
        interval=(0.0, 1.0),  # guidance at every noise level
        shift=24.0,
      ),
    )
  )
  if size == 'tiny':
    make_tiny(config)
  elif size == 'full':
    config.data.world = dict(max_characters=3)  # every size, speed and camera
    config.update_from_flattened_dict(
      {
        'data.batch_size': 32,
        'model.width': 256,
        'model.heads': 4,
        'model.layers': 6,
        'model.mlp': 1024,
        'optimizer.learning_rate': 3e-3,
        'optimizer.decay': 0.25,
        'train.steps': 8000,
        'train.ema': 0.999,
      }
    )
  elif size != 'cpu':
    raise ValueError(f"size {size!r}: expected 'cpu', 'tiny' or 'full'")
  return config


def make_tiny(config: ml_collections.ConfigDict) -> None:
  """Shrinks world, networks and run for tests."""
  config.data.world = dict(max_characters=1)
  config.update_from_flattened_dict(
    {
      'data.clips': 32,
      'data.held_out_clips': 16,
      'data.frames': 5,
      'data.height': 32,
      'data.width': 32,
      'data.batch_size': 4,
      'text.d_model': 32,
      'text.d_kv': 8,
      'text.d_ff': 64,
      'model.width': 48,
      'model.heads': 2,
      'model.layers': 2,
      'model.mlp': 192,
      'optimizer.learning_rate': 3e-3,
      'optimizer.warmup': 1,
      'optimizer.decay': 0.25,
      'train.steps': 4,
      'train.log_every': 1,
      'train.held_out': 4,
      'train.pca_init_clips': 8,
    }
  )
