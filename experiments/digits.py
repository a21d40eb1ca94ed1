"""Text to video on the digits world, in compact latents, by a curriculum.

  spacetime train --config=digits:cpu --workdir=runs/digits

The latents are those of the bundled compact autoencoder
(experiments/digits_autoencoder.py). Training begins with close-ups whose middle
is the character, so that the mean picture depends on the digit that the caption
names; position, motion and size are freed stage by stage
(experiments/digits_stages.py).

Sizes:
  cpu      one character, still camera. About 800 CPU seconds; see
           BUILD_NOTES.md for what it reaches.
  bundled  the bundled model: a deeper transformer, longer. Two hours and
           forty minutes of one core; the run may be stopped and goes on.
  deep     the bundled model with nine layers instead of six and mostly moving
           cameras, from its weights. It does not learn them in 10,500 steps,
           and digits no better; see BUILD_NOTES.md.
             spacetime train --config=digits:deep --checkpoint=digits
               --workdir=runs/deep
  pairs    as bundled, one or two characters: which digit has which colour is
           learnt from the first step. 28,000 steps are not enough for
           two; see BUILD_NOTES.md.
  full     the whole world, from the weights of pairs: up to three characters,
           all sizes, speeds and cameras.
             spacetime train --config=digits:full --checkpoint=runs/pairs
               --workdir=runs/full
           Not run yet.
  gpu      pairs and full in one run, for one large GPU: eight layers of width
           384 in bfloat16 and packed rows of 32,768 tokens a step, so that one
           program serves all stages. Meant for ten minutes of an H100 or H200
           with 16 CPU cores, which render; not run yet.
  tiny     5 steps in seconds, for tests.
"""

import ml_collections

from experiments import digits_stages


def get_config(size: str = 'cpu') -> ml_collections.ConfigDict:
  if size not in ('cpu', 'bundled', 'deep', 'pairs', 'full', 'gpu', 'tiny'):
    raise ValueError(
      f'size {size!r}: expected cpu, bundled, deep, pairs, full, gpu or tiny'
    )
  pairs = size in ('pairs', 'full', 'gpu')
  bundled = size in ('bundled', 'deep')
  long = pairs or bundled
  stages = {
    'cpu': digits_stages.get_stages(*digits_stages.CPU),
    'pairs': digits_stages.get_stages(*digits_stages.PAIRS, characters=2),
    'full': digits_stages.get_stages(*digits_stages.FULL, first=4),
    'gpu': digits_stages.get_stages(*digits_stages.GPU, characters=2),
    'deep': digits_stages.get_deep_stages(),
  }.get(size) or digits_stages.get_bundled_stages()
  width, text_width = 128, 128
  # {} is the whole world. The longest captions of one, two and three characters
  # have 42, 53 and 84 tokens; the bundled model's tokenizer, which has not seen
  # cameras and wandering characters, makes 48 of those of one.
  world, text_length = {
    'pairs': (digits_stages.EASY | dict(max_characters=2), 64),
    'full': ({}, 88),
    'gpu': ({}, 88),
    'bundled': (digits_stages.EASY, 56),
    'deep': (digits_stages.EASY, 56),
  }.get(size, (digits_stages.EASY, 44))
  config = ml_collections.ConfigDict(
    dict(
      stage='diffusion',  # the transformer
      seed=0,  # of data, parameters and noise
      data=dict(
        name='digits',  # the built-in world
        dir='data',  # not used: clips are rendered as they are read
        clips=20000,  # captions that train the tokenizer
        held_out_clips=64,
        frames=17,  # of held-out clips, and of the scenes of windows
        height=64,  # pixels
        width=64,  # pixels
        world=world,
        batch_size=1,  # clips of a batch are a multiple of it
        caption_dropout=0.1,  # share without caption, for guidance
        crop=None,
        fps=8,  # frames per second
        render='live',
        packing=dict(
          kind='buckets',  # batches of one size
          look_ahead=600,  # clips in the buffer
          tokens=1024,  # of a batch, unless its stage says otherwise
        ),
        stages=stages,
      ),
      autoencoder=dict(kind='weights', weights='digits_autoencoder'),
      text=dict(
        length=text_length,
        vocab_size=640,
        d_model=text_width,
        d_kv=text_width // 4,
        num_heads=4,
        d_ff=2 * text_width,
        num_layers=2,
      ),
      model=dict(
        patch=(1, 1, 1),  # a latent cell is a token
        width=width,
        heads=4,
        layers={'cpu': 4, 'tiny': 4, 'deep': 9}.get(size, 6),
        mlp=4 * width,
        theta=100.0,  # base of the RoPE wavelengths; the grids are small
        pos_embed_frequencies=6,
      ),
      flow=dict(
        prediction='velocity',
        shift=1.5,  # for 16 tokens; 6.7 for the 320 of a clip
        reference=16,
      ),
      conditioning=dict(
        none=0.6,
        first=0.1,
        first_k=0.1,
        last_k=0.05,
        ends=0.1,
        random=0.05,
        context_noise_prob=0.3,
        context_noise=0.3,
        independent_noise_prob=0.05,
      ),
      optimizer=dict(
        name='muon',
        learning_rate=1.2e-3,  # of matrices
        adam_rate=6e-4,  # of the other parameters
        warmup=50,
        decay=0.25,  # share of the steps, at the end
        newton_schulz=3,
      ),
      mesh=dict(data=-1, fsdp=1, context=1, tensor=1),
      train=dict(
        steps={
          'bundled': 34000,
          'deep': 10500,
          'pairs': 14000,
          'full': 16000,
        }.get(size, 2400),
        ema=0.9993 if long else 0.997,
        accumulate=1,
        log_every=10,
        evaluate_every=1000 if long else 0,
        sheet_every=2000 if long else 1200,
        probe_every=1000 if long else 0,
        checkpoint_every=500 if long else 200,
        keep=2,
        held_out=16,
        scored_clips=16,  # with each sheet
      ),
      sampling=dict(
        solver='unipc',
        steps=14,
        guidance=2.5,
        interval=(0.0, 1.0),
        shift=1.5,  # for 16 tokens, as in training
      ),
    )
  )
  if bundled:
    # Half of the last stage's clips have conditioning frames: joins need them.
    config.conditioning.update(
      none=0.4, first=0.15, first_k=0.15, last_k=0.05, ends=0.2, random=0.05
    )
  if size == 'bundled':
    with config.unlocked():
      config.sampling.skip_layers = (3,)  # of six; see BUILD_NOTES.md
  if pairs:
    with config.unlocked():
      # Sees from the start which word is beside which.
      config.text.bias_init = 'local'
  if size == 'gpu':
    with config.unlocked():
      config.data.packing = dict(
        kind='rows',  # clips of all sizes in rows of tokens
        length=1024,  # tokens
        clips=32,  # most clips in a row
        frames=64,  # most latent frames in a row
        look_ahead=128,  # clips that wait, from which a row is chosen
      )
    config.update_from_flattened_dict(
      {
        'data.batch_size': 32,  # rows
        'data.workers': 14,  # processes that render
        'model.dtype': 'bfloat16',
        'model.width': 384,
        'model.heads': 6,
        'model.layers': 8,
        'model.mlp': 4 * 384,
        'optimizer.learning_rate': 1e-3,
        'optimizer.adam_rate': 5e-4,
        'train.steps': 4000,
        'train.checkpoint_every': 1000,
      }
    )
  if size == 'tiny':
    config.data.stages = digits_stages.get_tiny_stages()
    config.update_from_flattened_dict(
      {
        'data.frames': 5,
        'data.height': 32,
        'data.width': 32,
        'text.d_model': 32,
        'text.d_kv': 8,
        'text.d_ff': 64,
        'model.width': 48,
        'model.heads': 2,
        'model.layers': 2,
        'model.mlp': 192,
        'optimizer.warmup': 1,
        'train.steps': 5,
        'train.log_every': 1,
        'train.sheet_every': 0,
        'train.checkpoint_every': 0,
        'train.held_out': 4,
        'train.scored_clips': 0,
      }
    )
  return config
