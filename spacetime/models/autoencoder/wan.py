"""The causal video autoencoder of Wan 2.1 and 2.2: pixels <-> latents.

`WanAutoencoder` is a frozen description of the network; its methods are pure
functions of (params, array), so that it can be a static argument of `jax.jit`.
A clip is encoded or decoded at once, or chunk by chunk with a cache of fixed
shape: by the same code, since a complete clip is one opening chunk.

The children's names are those of the published weights
(checkpoint/interop/wan_vae.py).

Source: Wan team, 2025, arXiv:2503.20314, section 4.1; DC-AE (Chen et al., 2024,
arXiv:2410.10733) for the shortcuts of the 2.2 form.
"""

import dataclasses

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from spacetime import SettingError
from spacetime.models import precision
from spacetime.models.autoencoder import compact, layers, streaming
from spacetime.models.autoencoder.layers import Cache, Level


@dataclasses.dataclass(frozen=True)
class WanAutoencoderConfig:
  """Sizes of the autoencoder, named as diffusers' AutoencoderKLWan names them.

  Attributes:
    base_dim: channels of the encoder's first level.
    decoder_base_dim: channels of the decoder's last level; 0 takes base_dim.
    z_dim: latent channels.
    dim_mult: channels of each level, in multiples of base_dim.
    num_res_blocks: residual blocks per level (the decoder has one more).
    temporal_downsample: which of the len(dim_mult) - 1 resamplings halve time
      too; each halves height and width.
    is_residual: the 2.2 form, with a shortcut without parameters around each
      level.
    patch_size: pixels per side that are folded into channels first.
    latents_mean: mean of the posterior mean per channel; () is 0.
    latents_std: standard deviation of the posterior mean; () is 1.
    initial_logvar: log-variance of the posterior at initialisation.
    conv_form: how convolutions are computed: 'native', 'taps' or 'summed' (see
      `layers.convolve`), or 'auto'.
    dtype: compute dtype; parameters are float32.

  Raises:
    SettingError: sizes that do not fit each other.
  """

  base_dim: int
  z_dim: int
  decoder_base_dim: int = 0
  dim_mult: tuple[int, ...] = (1, 2, 4, 4)
  num_res_blocks: int = 2
  temporal_downsample: tuple[bool, ...] = (False, True, True)
  is_residual: bool = False
  patch_size: int = 1
  latents_mean: tuple[float, ...] = ()
  latents_std: tuple[float, ...] = ()
  initial_logvar: float = 0.0
  conv_form: str = 'auto'
  dtype: str = 'float32'

  def __post_init__(self):
    for name in ('base_dim', 'z_dim', 'num_res_blocks', 'patch_size'):
      if getattr(self, name) < 1:
        raise SettingError(
          f'autoencoder.{name}', getattr(self, name), 'a positive integer'
        )
    if min(self.dim_mult, default=0) < 1:
      raise SettingError(
        'autoencoder.dim_mult', self.dim_mult, 'one or more positive integers'
      )
    if len(self.temporal_downsample) != len(self.dim_mult) - 1:
      raise SettingError(
        'autoencoder.temporal_downsample',
        self.temporal_downsample,
        f'{len(self.dim_mult) - 1} entries, one less than '
        f'`autoencoder.dim_mult`={self.dim_mult}',
      )
    for name in ('latents_mean', 'latents_std'):
      if len(getattr(self, name)) not in (0, self.z_dim):
        raise SettingError(
          f'autoencoder.{name}',
          getattr(self, name),
          f'no entry, or `autoencoder.z_dim`={self.z_dim} of them',
        )
    if any(s <= 0 for s in self.latents_std):
      raise SettingError(
        'autoencoder.latents_std', self.latents_std, 'positive numbers'
      )
    if self.conv_form not in layers.CONV_FORMS:
      raise SettingError(
        'autoencoder.conv_form', self.conv_form, f'one of {layers.CONV_FORMS}'
      )
    if self.dtype not in ('float32', 'bfloat16', 'float16'):
      raise SettingError(
        'autoencoder.dtype', self.dtype, 'float32, bfloat16 or float16'
      )
    for level in encoder_levels(self):
      folded = level.before * level.time * level.space**2
      low, high = sorted((folded, level.after))
      if self.is_residual and high % low:
        self._refuse_level(level)
    for level in decoder_levels(self):
      if level.space == 1:
        continue
      unfolded = level.after * level.time * level.space**2
      if unfolded % level.before if self.is_residual else level.after % 2:
        self._refuse_level(level)

  def _refuse_level(self, level: Level):
    raise SettingError(
      'autoencoder.dim_mult',
      self.dim_mult,
      'channels that fold and halve evenly, from `autoencoder.base_dim`='
      f'{self.base_dim} and `autoencoder.decoder_base_dim`='
      f'{self.decoder_base_dim}',
      hint=f'it has a level of {level.before} to {level.after} channels whose '
      f'resampling is {level.time} in time and {level.space} in space',
    )

  @property
  def stride(self) -> tuple[int, int, int]:
    """Pixels per latent cell in time, height and width."""
    space = 2 ** (len(self.dim_mult) - 1) * self.patch_size
    return 2 ** sum(self.temporal_downsample), space, space

  def network(self) -> 'Network':
    """The Flax module of the encoder and the decoder."""
    return Network(self)


def encoder_levels(config: WanAutoencoderConfig) -> list[Level]:
  """Levels of the encoder, fine to coarse; the last one does not resample."""
  dims = [config.base_dim * m for m in (1, *config.dim_mult)]
  return _levels(dims, config.temporal_downsample)


def decoder_levels(config: WanAutoencoderConfig) -> list[Level]:
  """Levels of the decoder, coarse to fine; the last one does not resample."""
  base = config.decoder_base_dim or config.base_dim
  dims = [base * m for m in (config.dim_mult[-1], *config.dim_mult[::-1])]
  return _levels(dims, config.temporal_downsample[::-1])


def _levels(dims, halves) -> list[Level]:
  times = [*(2 if half else 1 for half in halves), 1]
  spaces = [*(2 for _ in halves), 1]
  return [
    Level(*sizes) for sizes in zip(dims, dims[1:], times, spaces, strict=False)
  ]


class Encoder(nn.Module):
  """Encoder: pixels, folded by the patch -> features of the posterior."""

  config: WanAutoencoderConfig

  @nn.compact
  def __call__(self, cache, x_BFHWC):
    config, after = self.config, {}
    form, dtype = config.conv_form, jnp.dtype(config.dtype)
    levels = encoder_levels(config)
    blocks = []
    if config.is_residual:
      for level in levels:
        args = level, config.num_res_blocks, form, dtype
        blocks.append((layers.DownBlock, args))
    else:
      for level in levels:
        args = level.after, form, dtype
        blocks += [(layers.ResBlock, args)] * config.num_res_blocks
        if level.space == 2:
          blocks.append((layers.Downsample, (level.time, form, dtype)))

    def run(child, x):
      after[child.name], x = child(layers.child_cache(cache, child.name), x)
      return x

    x = run(_conv(config, levels[0].before, 'conv_in'), x_BFHWC)
    for i, (block, args) in enumerate(blocks):
      x = run(block(*args, name=f'down_blocks_{i}'), x)
    x = run(layers.MidBlock(form, dtype, name='mid_block'), x)
    x = nn.silu(layers.ChannelNorm(name='norm_out')(x))
    x = run(_conv(config, 2 * config.z_dim, 'conv_out'), x)
    return after, x


class Decoder(nn.Module):
  """Decoder: latents -> pixels, folded by the patch."""

  config: WanAutoencoderConfig

  @nn.compact
  def __call__(self, cache, z_Bfhwc):
    config, after = self.config, {}
    form, dtype = config.conv_form, jnp.dtype(config.dtype)
    levels = decoder_levels(config)

    def run(child, x):
      after[child.name], x = child(layers.child_cache(cache, child.name), x)
      return x

    x = run(_conv(config, levels[0].before, 'conv_in'), z_Bfhwc)
    x = run(layers.MidBlock(form, dtype, name='mid_block'), x)
    for i, level in enumerate(levels):
      block = layers.UpBlock(
        level,
        config.num_res_blocks + 1,
        config.is_residual,
        form,
        dtype,
        name=f'up_blocks_{i}',
      )
      x = run(block, x)
    x = nn.silu(layers.ChannelNorm(name='norm_out')(x))
    x = run(_conv(config, 3 * config.patch_size**2, 'conv_out'), x)
    return after, x


class Network(nn.Module):
  """Encoder and decoder: (cache, x) -> (cache, y); None opens the video."""

  config: WanAutoencoderConfig

  def setup(self):
    """Creates both directions and the convolutions of the moments."""
    config = self.config
    dtype = jnp.dtype(config.dtype)

    def split_bias(key, shape, dtype=jnp.float32):
      bias = layers.BIAS_INIT(key, shape, dtype)
      return bias.at[config.z_dim :].add(config.initial_logvar)

    self.encoder = Encoder(config)
    self.quant_conv = nn.Dense(
      2 * config.z_dim, dtype=dtype, bias_init=split_bias
    )
    self.post_quant_conv = nn.Dense(
      config.z_dim, dtype=dtype, bias_init=layers.BIAS_INIT
    )
    self.decoder = Decoder(config)

  def __call__(self, video_BFHWC):
    _, moments = self.encode(None, video_BFHWC)
    return self.decode(None, moments[..., : self.config.z_dim])[1]

  def encode(self, cache, video_BFHWC):
    """Returns (cache, mean and log-variance joined on channels)."""
    side = self.config.patch_size
    x_BFHWC = einops.rearrange(
      video_BFHWC, 'B F (H p) (W q) C -> B F H W (C q p)', p=side, q=side
    )
    cache, moments = self.encoder(cache, x_BFHWC)
    return cache, self.quant_conv(moments)

  def decode(self, cache, z_Bfhwc):
    """Maps un-normalised latents to (cache, video_BFHWC), not clipped."""
    side = self.config.patch_size
    cache, x_BFHWC = self.decoder(cache, self.post_quant_conv(z_Bfhwc))
    return cache, einops.rearrange(
      x_BFHWC, 'B F H W (C q p) -> B F (H p) (W q) C', p=side, q=side
    )


def _conv(
  config: WanAutoencoderConfig, features: int, name: str
) -> layers.CausalConv:
  return layers.CausalConv(
    features, form=config.conv_form, dtype=jnp.dtype(config.dtype), name=name
  )


@dataclasses.dataclass(frozen=True)
class Posterior:
  """Gaussian posterior over un-normalised latents."""

  mean_Bfhwc: jax.Array
  logvar_Bfhwc: jax.Array


jax.tree_util.register_dataclass(Posterior)


@dataclasses.dataclass(frozen=True)
class WanAutoencoder:
  """Wan's video autoencoder; see `autoencoder.Autoencoder` for the interface.

  Videos are float32 in [-1, 1] with 1 + k * stride[0] frames; latents have
  1 + k frames and z_dim channels, normalised by latents_mean and latents_std.

  Attributes:
    config: sizes; a `compact.CompactConfig` makes the compact network of it.
  """

  config: WanAutoencoderConfig | compact.CompactConfig

  @property
  def stride(self) -> tuple[int, int, int]:
    """Pixels per latent cell in time, height and width."""
    return self.config.stride

  @property
  def z_dim(self) -> int:
    """Channels of the latents."""
    return self.config.z_dim

  @property
  def latents_mean(self) -> tuple[float, ...]:
    """Mean that is subtracted from each latent channel; () is 0."""
    return tuple(self.config.latents_mean)

  @property
  def latents_std(self) -> tuple[float, ...]:
    """Standard deviation that each latent channel is divided by; () is 1."""
    return tuple(self.config.latents_std)

  def init(self, key: jax.Array) -> dict:
    """Returns fresh parameters: nested dicts of float32 arrays."""
    # One threefry draw per tensor would take XLA half a second to compile.
    bits = jax.random.bits(key, (4,), jnp.uint32)
    key = jax.random.wrap_key_data(bits, impl='rbg')
    _, height, width = self.stride
    video = jax.ShapeDtypeStruct((1, 1, height, width, 3), jnp.float32)
    return self.config.network().lazy_init(key, video)['params']

  def posterior(self, params: dict, video_BFHWC: jax.Array) -> Posterior:
    """Returns the un-normalised posterior of a complete clip, for training."""
    streaming.check_frames(video_BFHWC.shape, self.stride, opens=True)
    _, moments = self._apply(params, 'encode', None, video_BFHWC)
    mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return Posterior(mean, jnp.clip(logvar, -30, 20))

  def encode(self, params: dict, video_BFHWC: jax.Array) -> jax.Array:
    """Returns z_Bfhwc of a complete clip: the posterior mean, normalised."""
    return self.normalise(self.posterior(params, video_BFHWC).mean_Bfhwc)

  def encode_first(
    self, params: dict, video_BFHWC: jax.Array
  ) -> tuple[Cache, jax.Array]:
    """Encodes an opening chunk of 1 + k * stride[0] frames.

    Returns:
      (cache, z_Bfhwc); the cache is a pytree of fixed shape, about two frames
      of each activation, whatever the length of the chunk.
    """
    streaming.check_frames(video_BFHWC.shape, self.stride, opens=True)
    return self._encode(params, None, video_BFHWC)

  def encode_step(
    self, params: dict, cache: Cache, video_BFHWC: jax.Array
  ) -> tuple[Cache, jax.Array]:
    """Encodes the next k * stride[0] frames: (cache, z_Bfhwc)."""
    streaming.check_frames(video_BFHWC.shape, self.stride, opens=False)
    return self._encode(params, cache, video_BFHWC)

  def decode(self, params: dict, z_Bfhwc: jax.Array) -> jax.Array:
    """Returns the video_BFHWC of a complete clip, clipped to [-1, 1]."""
    return jnp.clip(self.decode_unclipped(params, z_Bfhwc), -1, 1)

  def decode_unclipped(self, params: dict, z_Bfhwc: jax.Array) -> jax.Array:
    """Decodes without clipping, whose gradient is zero: for training."""
    self._check_latents(z_Bfhwc)
    z_Bfhwc = self.denormalise(z_Bfhwc)
    return self._apply(params, 'decode', None, z_Bfhwc)[1].astype(jnp.float32)

  def decode_first(
    self, params: dict, z_Bfhwc: jax.Array
  ) -> tuple[Cache, jax.Array]:
    """Decodes the first latent frames: (cache, video_BFHWC)."""
    return self._decode(params, None, z_Bfhwc)

  def decode_step(
    self, params: dict, cache: Cache, z_Bfhwc: jax.Array
  ) -> tuple[Cache, jax.Array]:
    """Decodes the next latent frames: (cache, video_BFHWC)."""
    return self._decode(params, cache, z_Bfhwc)

  def latent_cond_mask(self, mask_FHW: np.ndarray) -> np.ndarray:
    """Maps a mask of pixels to mask_fhwc of latent values: a latent cell is
    true where all of its pixels are."""
    time, height, width = self.stride
    copies = np.repeat(mask_FHW[:1], time - 1, axis=0)
    mask_fhw = einops.reduce(
      np.concatenate([copies, mask_FHW]),
      '(f t) (h a) (w b) -> f h w',
      np.all,
      t=time,
      a=height,
      b=width,
    )
    return np.repeat(mask_fhw[..., None], self.z_dim, axis=-1)

  def normalise(self, mean_Bfhwc: jax.Array) -> jax.Array:
    """Maps a posterior mean to latents of unit scale."""
    mean, std = self._moments()
    return (mean_Bfhwc - mean) / std

  def denormalise(self, z_Bfhwc: jax.Array) -> jax.Array:
    """Maps latents of unit scale to a posterior mean."""
    mean, std = self._moments()
    return z_Bfhwc * std + mean

  def _encode(self, params, cache, video_BFHWC):
    cache, moments = self._apply(params, 'encode', cache, video_BFHWC)
    mean = moments[..., : self.z_dim].astype(jnp.float32)
    return cache, self.normalise(mean)

  def _decode(self, params, cache, z_Bfhwc):
    self._check_latents(z_Bfhwc)
    z_Bfhwc = self.denormalise(z_Bfhwc)
    cache, video = self._apply(params, 'decode', cache, z_Bfhwc)
    return cache, jnp.clip(video.astype(jnp.float32), -1, 1)

  def _apply(self, params, method, cache, x):
    with precision.autoencoder_products(self.config.dtype):
      return self.config.network().apply(
        {'params': params}, cache, x, method=method
      )

  def _moments(self):
    mean = np.asarray(self.config.latents_mean or [0.0], np.float32)
    std = np.asarray(self.config.latents_std or [1.0], np.float32)
    return mean, std

  def _check_latents(self, z_Bfhwc):
    if z_Bfhwc.ndim != 5 or z_Bfhwc.shape[-1] != self.z_dim:
      raise ValueError(
        f'latents of shape {z_Bfhwc.shape}: expected (B, f, h, w, '
        f'{self.z_dim}), the latents of an autoencoder with '
        f'autoencoder.z_dim={self.z_dim}'
      )


WAN21_MEAN = (
  *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
  *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
WAN21_STD = (
  *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
  *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)

PRESETS = {
  'wan2.1': WanAutoencoderConfig(
    base_dim=96, z_dim=16, latents_mean=WAN21_MEAN, latents_std=WAN21_STD
  ),
  'wan2.2': WanAutoencoderConfig(
    base_dim=160,
    decoder_base_dim=256,
    z_dim=48,
    is_residual=True,
    patch_size=2,
  ),
  'digits': WanAutoencoderConfig(
    base_dim=16,
    z_dim=16,
    dim_mult=(1, 2, 4),
    num_res_blocks=1,
    temporal_downsample=(True, True),
    is_residual=True,
    patch_size=2,
    initial_logvar=-6.0,
  ),
  'tiny': WanAutoencoderConfig(
    base_dim=4,
    z_dim=3,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temporal_downsample=(True, True),
    is_residual=True,
    patch_size=2,
  ),
}
