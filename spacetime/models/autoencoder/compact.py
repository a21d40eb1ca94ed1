"""A small causal video autoencoder that trains in minutes on a CPU.

Four frames and a square of pixels are folded into channels before the first
layer, so that every convolution runs on 2-D maps at the latents' frame rate:
one map a latent frame. Time is mixed by a 1x1 matrix on the features of the
latent frame before. It has the interface of `wan.Network`, so
`WanAutoencoder(CompactConfig(...))` streams, normalises and masks like Wan's.

Source: pixels folded into channels as in Shi et al. 2016 (sub-pixel
convolution), arXiv 1609.05158; the first frame alone as in Yu et al. 2023
(MAGVIT-v2), arXiv 2310.05737.
"""

import dataclasses

import einops
import flax.linen as nn
import jax.numpy as jnp

from spacetime import SettingError
from spacetime.models.autoencoder import layers


@dataclasses.dataclass(frozen=True)
class CompactConfig:
  """Sizes of the compact autoencoder.

  Attributes:
    z_dim: channels of the latents.
    patch_size: pixels a side that are folded into channels first; each level
      after the first folds 2x2 cells more.
    time: frames of a latent frame, all folded into channels.
    encoder_widths: channels of each level, fine to coarse.
    encoder_blocks: residual blocks of each level.
    decoder_widths: the same of the decoder, fine to coarse.
    decoder_blocks: residual blocks of each level of the decoder.
    latents_mean: mean of the posterior mean per channel; () is 0.
    latents_std: its standard deviation; () is 1.
    initial_logvar: log-variance of the posterior before training.
    dtype: of the computation; parameters are float32.

  Raises:
    ValueError: sizes that do not fit each other.
  """

  z_dim: int = 16
  patch_size: int = 4
  time: int = 4
  encoder_widths: tuple[int, ...] = (64, 128)
  encoder_blocks: tuple[int, ...] = (1, 2)
  decoder_widths: tuple[int, ...] = (96, 128)
  decoder_blocks: tuple[int, ...] = (3, 2)
  latents_mean: tuple[float, ...] = ()
  latents_std: tuple[float, ...] = ()
  initial_logvar: float = -4.0
  dtype: str = 'float32'

  def __post_init__(self):
    for name in ('z_dim', 'patch_size', 'time'):
      if getattr(self, name) < 1:
        raise SettingError(
          f'autoencoder.{name}', getattr(self, name), 'a positive integer'
        )
    levels = len(self.encoder_widths)
    for name in ('encoder_blocks', 'decoder_widths', 'decoder_blocks'):
      if len(getattr(self, name)) != levels or not levels:
        raise SettingError(
          f'autoencoder.{name}',
          getattr(self, name),
          'one entry for each of `autoencoder.encoder_widths`, '
          f'{self.encoder_widths}',
        )
    for name in ('latents_mean', 'latents_std'):
      if len(getattr(self, name)) not in (0, self.z_dim):
        raise SettingError(
          f'autoencoder.{name}',
          getattr(self, name),
          f'none or z_dim={self.z_dim} entries',
        )
    if any(s <= 0 for s in self.latents_std):
      raise SettingError(
        'autoencoder.latents_std', self.latents_std, 'positive numbers'
      )
    if self.dtype not in ('float32', 'bfloat16', 'float16'):
      raise SettingError(
        'autoencoder.dtype', self.dtype, 'float32, bfloat16 or float16'
      )

  @property
  def stride(self) -> tuple[int, int, int]:
    """Pixels per latent cell in time, height and width."""
    space = self.patch_size * 2 ** (len(self.encoder_widths) - 1)
    return self.time, space, space

  def network(self) -> 'Network':
    """The Flax module of both directions."""
    return Network(self)


class TimeBlock(nn.Module):
  """x + conv(silu(norm(h_f + W h_{f-1}))) with h = conv(silu(norm(x))).

  The cache is the last latent frame's h: zeros before the first.
  """

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, cache, x_BfhwC):
    channels = x_BfhwC.shape[-1]

    def conv(name, x, init):
      """A 3x3 convolution of maps (..., h, w, C), which keeps their shape."""
      return nn.Conv(
        channels,
        (3, 3),
        dtype=self.dtype,
        kernel_init=init,
        bias_init=layers.BIAS_INIT,
        name=name,
      )(x)

    small = nn.initializers.variance_scaling(0.01, 'fan_in', 'normal')
    y_BfhwC = nn.silu(layers.ChannelNorm(name='norm1')(x_BfhwC))
    y_BfhwC = conv('conv1', y_BfhwC, nn.initializers.lecun_normal())
    if cache is None:
      cache = jnp.zeros_like(y_BfhwC[:, :1])
    before_BfhwC = jnp.concatenate([cache, y_BfhwC[:, :-1]], axis=1)
    mixed_BfhwC = y_BfhwC + nn.Dense(
      channels,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=nn.initializers.variance_scaling(0.09, 'fan_in', 'normal'),
      name='time_mix',
    )(before_BfhwC)
    mixed_BfhwC = nn.silu(layers.ChannelNorm(name='norm2')(mixed_BfhwC))
    return y_BfhwC[:, -1:], x_BfhwC + conv('conv2', mixed_BfhwC, small)


class Encoder(nn.Module):
  """Folded frames -> mean and log-variance on channels."""

  cfg: CompactConfig

  @nn.compact
  def __call__(self, cache, x_BfhwC):
    cfg, after = self.cfg, {}
    dtype = jnp.dtype(cfg.dtype)
    x = x_BfhwC
    levels = zip(cfg.encoder_widths, cfg.encoder_blocks, strict=True)
    for level, (width, blocks) in enumerate(levels):
      if level:
        x = _fold(x, 2)
      name = f'down_{level}' if level else 'conv_in'
      x = _dense(width, name, dtype)(x)
      for i in range(blocks):
        name = f'level_{level}_block_{i}'
        block = TimeBlock(dtype, name=name)
        after[name], x = block(layers.child_cache(cache, name), x)
    x = layers.ChannelNorm(name='norm_out')(x)

    def bias_init(key, shape, dtype=jnp.float32):
      bias = layers.BIAS_INIT(key, shape, dtype)
      return bias.at[cfg.z_dim :].add(cfg.initial_logvar)

    return after, nn.Dense(
      2 * cfg.z_dim, dtype=dtype, bias_init=bias_init, name='conv_out'
    )(x)


class Decoder(nn.Module):
  """Un-normalised latents -> folded frames."""

  cfg: CompactConfig

  @nn.compact
  def __call__(self, cache, z_Bfhwc):
    cfg, after = self.cfg, {}
    dtype = jnp.dtype(cfg.dtype)
    x = z_Bfhwc
    levels = list(enumerate(zip(cfg.decoder_widths, cfg.decoder_blocks)))  # noqa: B905
    for level, (width, blocks) in reversed(levels):
      if level == len(levels) - 1:
        x = _dense(width, 'conv_in', dtype)(x)
      else:
        x = _unfold(_dense(4 * width, f'up_{level}', dtype)(x), 2)
      for i in range(blocks):
        name = f'level_{level}_block_{i}'
        block = TimeBlock(dtype, name=name)
        after[name], x = block(layers.child_cache(cache, name), x)
    x = layers.ChannelNorm(name='norm_out')(x)
    pixels = 3 * cfg.time * cfg.patch_size**2
    return after, _dense(pixels, 'conv_out', dtype)(x)


class Network(nn.Module):
  """Both directions: (cache, x) -> (cache, y); a None cache opens the video.

  The opening frame is repeated before itself, so that it fills a latent frame
  alone; the decoder drops the repetitions.
  """

  cfg: CompactConfig

  def setup(self):
    """Creates both directions, whose parameters are apart."""
    self.encoder = Encoder(self.cfg)
    self.decoder = Decoder(self.cfg)

  def __call__(self, video_BFHWC):
    _, moments = self.encode(None, video_BFHWC)
    return self.decode(None, moments[..., : self.cfg.z_dim])[1]

  def encode(self, cache, video_BFHWC):
    """Frames -> (cache, mean and log-variance on channels)."""
    time = self.cfg.time
    if cache is None:
      first = jnp.repeat(video_BFHWC[:, :1], time - 1, axis=1)
      video_BFHWC = jnp.concatenate([first, video_BFHWC], axis=1)
    x_BfHWC = einops.rearrange(
      video_BFHWC, 'B (f t) H W C -> B f H W (t C)', t=time
    )
    return self.encoder(cache, _fold(x_BfHWC, self.cfg.patch_size))

  def decode(self, cache, z_Bfhwc):
    """Un-normalised latents -> (cache, frames, not clipped)."""
    time, opens = self.cfg.time, cache is None
    cache, x_BfhwC = self.decoder(cache, z_Bfhwc)
    video_BFHWC = einops.rearrange(
      _unfold(x_BfhwC, self.cfg.patch_size),
      'B f H W (t C) -> B (f t) H W C',
      t=time,
    )
    return cache, video_BFHWC[:, time - 1 :] if opens else video_BFHWC


def _fold(x_BfHWC, side: int):
  return einops.rearrange(
    x_BfHWC, 'B f (h p) (w q) C -> B f h w (p q C)', p=side, q=side
  )


def _unfold(x_BfhwC, side: int):
  return einops.rearrange(
    x_BfhwC, 'B f h w (p q C) -> B f (h p) (w q) C', p=side, q=side
  )


def _dense(features: int, name: str, dtype) -> nn.Dense:
  return nn.Dense(features, dtype=dtype, bias_init=layers.BIAS_INIT, name=name)
