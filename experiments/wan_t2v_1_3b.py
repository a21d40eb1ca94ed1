"""Wan 2.1 T2V-1.3B, fine-tuned: 1,418,996,800 parameters.

  spacetime encode --checkpoint=WAN --data=CLIPS --out=CACHE
  spacetime train --config=wan_t2v_1_3b:480p --checkpoint=WAN \\
    --config.data.dir=CACHE --workdir=runs/wan

Sizes:
  480p      81 frames of 480 x 832; 32,760 tokens.
  image     single frames of 480 x 832; 1,560 tokens.
  flow_map  as 480p, a flow map by stage 1 of AnyFlow (arXiv 2605.13724):
            1,421,752,384 parameters. Not trained yet.
  vace      as 480p, the control blocks of VACE-1.3B, with the rest frozen:
            2,153,972,032 parameters. Not trained yet.

With AdamW and EMA in float32 the transformer takes 23 GB, activations apart.
--config.lora.rank=16 --config.optimizer.learning_rate=1e-4 trains low-rank
adapters instead of every parameter.
"""

import ml_collections

SIZES = {
  '480p': (81, 480, 832),
  'image': (1, 480, 832),
  'flow_map': (81, 480, 832),
  'vace': (81, 480, 832),
}


def get_config(size: str = '480p') -> ml_collections.ConfigDict:
  if size not in SIZES:
    raise ValueError(f'size {size!r}: expected one of {[*SIZES]}')
  frames, height, width = SIZES[size]
  shift = 3.0
  config = ml_collections.ConfigDict(
    dict(
      stage='diffusion',  # the transformer
      seed=0,  # of data order and noise
      data=dict(
        name='cache',  # latents and embeddings of spacetime encode
        dir='cache',  # its folder
        clips=0,  # of the digits world, which is not used
        held_out_clips=0,
        frames=frames,
        height=height,  # pixels
        width=width,  # pixels
        batch_size=8,  # clips per step, over all devices
        caption_dropout=0.1,  # share without caption, for guidance
        crop=None,  # latents are not cropped
        fps=None,  # frames per second, those of the cache
      ),
      autoencoder=dict(
        kind='wan',  # Wan's causal video autoencoder
        base_dim=96,  # channels of the first level
        z_dim=16,  # channels of the latents
        latents_mean=(  # of each channel
          *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517),
          *(1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497),
          *(0.2503, -0.2921),
        ),
        latents_std=(
          *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052),
          *(2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253),
          *(2.8251, 1.9160),
        ),
      ),
      text=dict(  # UMT5-XXL
        kind='frozen',  # its embeddings are cached
        length=512,  # tokens of a prompt
        vocab_size=256384,
        d_model=4096,
        d_kv=64,  # head size
        num_heads=64,
        d_ff=10240,  # hidden layer
        num_layers=24,
        dtype='bfloat16',
      ),
      model=dict(
        patch=(1, 2, 2),  # latent cells of a token: time, height, width
        width=1536,
        heads=12,
        layers=30,
        mlp=8960,  # hidden layer
        dtype='bfloat16',
        remat='full',  # activations are computed again in the backward pass
      ),
      flow=dict(
        prediction='velocity',
        shift=shift,  # of the noise levels of training
        low=None,  # smallest and largest noise level of training: all, or
        high=None,  # those that --checkpoint serves, where it is one of two
      ),
      conditioning=dict(  # none: text to video only
        none=1.0,
        first=0.0,
        first_k=0.0,
        last_k=0.0,
        ends=0.0,
        random=0.0,
      ),
      lora=dict(
        rank=0,  # every parameter is trained
        alpha=16.0,  # scale of the adapters, over rank
        dropout=0.0,
      ),
      optimizer=dict(
        name='adamw',
        learning_rate=1e-5,
        warmup=100,  # steps
        decay=0.2,  # share of the steps that falls to 0
      ),
      mesh=dict(
        data=-1,  # all devices share the batch
        fsdp=1,  # parts of the state
        context=1,  # parts of a clip's tokens
        tensor=1,  # parts of heads and hidden layers
      ),
      train=dict(
        steps=2000,
        ema=0.99,  # decay of the average
        accumulate=1,  # parts of a batch, one after another
        log_every=10,
        skip_nan=True,  # leaves out steps that are not finite
        spike=0.0,  # no bound of the loss
        evaluate_every=200,  # held-out loss
        sheet_every=0,  # the run has no decoder
        checkpoint_every=200,
        keep=2,  # checkpoints
        held_out=4,  # clips to measure on
      ),
      sampling=dict(
        steps=50,
        solver='unipc',
        guidance=5.0,
        interval=(0.0, 1.0),  # guidance at every noise level
        shift=shift,
        schedule='published',  # the noise levels of diffusers
      ),
    )
  )
  if size == 'flow_map':
    make_flow_map(config)
  if size == 'vace':
    with config.unlocked():
      config.model.control_layers = tuple(range(0, 30, 2))
      config.model.control_channels = (
        96  # latents of known and new pixels, mask
      )
      config.optimizer.freeze = ('dit/(?!control).*',)
  return config


def make_flow_map(config: ml_collections.ConfigDict) -> None:
  """Changes a config of fine-tuning to that of a flow map, as published."""
  with config.unlocked():
    config.model.flow_map = 0.25  # weight of the second time
    config.flow_map = dict(
      guidance=3.0,  # becomes part of the weights
      delta=0.005,  # half the distance of the difference in time
      velocity=0.5,  # share of clips that learn the velocity
      to_data=0.25,  # share of clips that learn steps to data
    )
  config.update_from_flattened_dict(
    {
      'data.batch_size': 32,
      'flow.shift': 5.0,
      'optimizer.learning_rate': 5e-5,
      'optimizer.warmup': 1000,
      'optimizer.decay': 0.0,
      'train.steps': 6000,
      'train.ema': 0.999,
      'sampling.steps': 4,
      'sampling.solver': 'euler',
      'sampling.guidance': 1.0,
      'sampling.shift': 5.0,
      'sampling.schedule': 'even',
    }
  )
