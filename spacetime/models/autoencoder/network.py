"""The encoder and the decoder, built of the layers of `causal`.

The children's names are those of the published weights: interop/wan_vae.py.
"""

import dataclasses

import einops
import flax.linen as nn
import jax.numpy as jnp

from spacetime.models.autoencoder import causal, shortcuts


@dataclasses.dataclass(frozen=True)
class Level:
  """Channels in and out, and the factors of the resampling that ends it."""

  before: int
  after: int
  time: int
  space: int


def encoder_levels(cfg) -> list[Level]:
  """Fine to coarse; the last level does not resample."""
  dims = [cfg.base_dim * m for m in (1, *cfg.dim_mult)]
  return _levels(dims, cfg.temporal_downsample)


def decoder_levels(cfg) -> list[Level]:
  """Coarse to fine; the last level does not resample."""
  base = cfg.decoder_base_dim or cfg.base_dim
  dims = [base * m for m in (cfg.dim_mult[-1], *cfg.dim_mult[::-1])]
  return _levels(dims, cfg.temporal_downsample[::-1])


def _levels(dims, halves) -> list[Level]:
  times = [*(2 if half else 1 for half in halves), 1]
  spaces = [*(2 for _ in halves), 1]
  return [
    Level(*sizes) for sizes in zip(dims, dims[1:], times, spaces, strict=False)
  ]


class DownBlock(nn.Module):
  """A level of the 2.2 encoder: residual blocks, downsampling, shortcut."""

  level: Level
  blocks: int
  form: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, cache, x_BFHWC):
    level, after = self.level, {}
    short_BFHWC = shortcuts.average_down(
      x_BFHWC,
      features=level.after,
      time=level.time,
      space=level.space,
      opens=cache is None,
    )
    for i in range(self.blocks):
      name = f'resnets_{i}'
      block = causal.ResBlock(level.after, self.form, self.dtype, name=name)
      after[name], x_BFHWC = block(causal.part(cache, name), x_BFHWC)
    if level.space == 2:
      name = 'downsampler'
      down = causal.Downsample(level.time, self.form, self.dtype, name=name)
      after[name], x_BFHWC = down(causal.part(cache, name), x_BFHWC)
    return after, x_BFHWC + short_BFHWC


class UpBlock(nn.Module):
  """A level of the decoder: residual blocks, upsampling, 2.2's shortcut."""

  level: Level
  blocks: int
  is_residual: bool
  form: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, cache, x_BFHWC):
    level, after, opens = self.level, {}, cache is None
    short_BFHWC = x_BFHWC
    for i in range(self.blocks):
      name = f'resnets_{i}'
      block = causal.ResBlock(level.after, self.form, self.dtype, name=name)
      after[name], x_BFHWC = block(causal.part(cache, name), x_BFHWC)
    if level.space == 1:
      return after, x_BFHWC
    name = 'upsampler' if self.is_residual else 'upsamplers_0'
    up = causal.Upsample(
      level.after if self.is_residual else level.after // 2,
      level.time,
      self.form,
      self.dtype,
      name=name,
    )
    after[name], x_BFHWC = up(causal.part(cache, name), x_BFHWC)
    if self.is_residual:
      x_BFHWC += shortcuts.repeat_up(
        short_BFHWC,
        features=level.after,
        time=level.time,
        space=level.space,
        opens=opens,
      )
    return after, x_BFHWC


class Encoder(nn.Module):
  """Pixels -> features of the posterior."""

  cfg: object

  @nn.compact
  def __call__(self, cache, x_BFHWC):
    cfg, after = self.cfg, {}
    form, dtype = cfg.conv_form, jnp.dtype(cfg.dtype)
    levels = encoder_levels(cfg)
    blocks = []
    if cfg.is_residual:
      for level in levels:
        args = level, cfg.num_res_blocks, form, dtype
        blocks.append((DownBlock, args))
    else:
      for level in levels:
        args = level.after, form, dtype
        blocks += [(causal.ResBlock, args)] * cfg.num_res_blocks
        if level.space == 2:
          blocks.append((causal.Downsample, (level.time, form, dtype)))

    def run(child, x):
      after[child.name], x = child(causal.part(cache, child.name), x)
      return x

    x = run(_conv(cfg, levels[0].before, 'conv_in'), x_BFHWC)
    for i, (block, args) in enumerate(blocks):
      x = run(block(*args, name=f'down_blocks_{i}'), x)
    x = run(causal.MidBlock(form, dtype, name='mid_block'), x)
    x = nn.silu(causal.ChannelNorm(name='norm_out')(x))
    x = run(_conv(cfg, 2 * cfg.z_dim, 'conv_out'), x)
    return after, x


class Decoder(nn.Module):
  """Latents -> pixels, folded by the patch."""

  cfg: object

  @nn.compact
  def __call__(self, cache, z_Bfhwc):
    cfg, after = self.cfg, {}
    form, dtype = cfg.conv_form, jnp.dtype(cfg.dtype)
    levels = decoder_levels(cfg)

    def run(child, x):
      after[child.name], x = child(causal.part(cache, child.name), x)
      return x

    x = run(_conv(cfg, levels[0].before, 'conv_in'), z_Bfhwc)
    x = run(causal.MidBlock(form, dtype, name='mid_block'), x)
    for i, level in enumerate(levels):
      block = UpBlock(
        level,
        cfg.num_res_blocks + 1,
        cfg.is_residual,
        form,
        dtype,
        name=f'up_blocks_{i}',
      )
      x = run(block, x)
    x = nn.silu(causal.ChannelNorm(name='norm_out')(x))
    x = run(_conv(cfg, 3 * cfg.patch_size**2, 'conv_out'), x)
    return after, x


class Network(nn.Module):
  """Both ways: (cache, x) -> (cache, y); a None cache opens the video."""

  cfg: object

  def setup(self):
    cfg = self.cfg
    dtype = jnp.dtype(cfg.dtype)

    def split_bias(key, shape, dtype=jnp.float32):
      bias = causal.BIAS_INIT(key, shape, dtype)
      return bias.at[cfg.z_dim :].add(cfg.initial_logvar)

    self.encoder = Encoder(cfg)
    self.quant_conv = nn.Dense(2 * cfg.z_dim, dtype=dtype, bias_init=split_bias)
    self.post_quant_conv = nn.Dense(
      cfg.z_dim, dtype=dtype, bias_init=causal.BIAS_INIT
    )
    self.decoder = Decoder(cfg)

  def __call__(self, video_BFHWC):
    _, moments = self.encode(None, video_BFHWC)
    return self.decode(None, moments[..., : self.cfg.z_dim])[1]

  def encode(self, cache, video_BFHWC):
    """Frames -> (cache, mean and log-variance on channels)."""
    side = self.cfg.patch_size
    x_BFHWC = einops.rearrange(
      video_BFHWC, 'B F (H p) (W q) C -> B F H W (C q p)', p=side, q=side
    )
    cache, moments = self.encoder(cache, x_BFHWC)
    return cache, self.quant_conv(moments)

  def decode(self, cache, z_Bfhwc):
    """Un-normalised latents -> (cache, frames, not clipped)."""
    side = self.cfg.patch_size
    cache, x_BFHWC = self.decoder(cache, self.post_quant_conv(z_Bfhwc))
    return cache, einops.rearrange(
      x_BFHWC, 'B F H W (C q p) -> B F (H p) (W q) C', p=side, q=side
    )


def _conv(cfg, features, name) -> causal.CausalConv:
  return causal.CausalConv(
    features, form=cfg.conv_form, dtype=jnp.dtype(cfg.dtype), name=name
  )
