"""The causal video autoencoder of Wan 2.1 and 2.2: pixels <-> latents.

`Autoencoder` is a frozen description; its methods are pure functions of
(params, array), so that it can be a static argument of `jax.jit`. A clip is
encoded or decoded whole, or chunk by chunk with a cache of fixed shape: the
same code either way, since the whole clip is one opening chunk.

Source: Wan team, 2025, arXiv:2503.20314, section 4.1; DC-AE (Chen et al., 2024,
arXiv:2410.10733) for the shortcuts of the 2.2 form.
"""

import dataclasses
import math

import einops
import jax
import jax.numpy as jnp
import numpy as np

from spacetime.models.autoencoder import causal, streaming
from spacetime.models.autoencoder import network as network_lib


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
  """Sizes.

  Attributes:
    base_dim: channels of the encoder's first level.
    decoder_base_dim: channels of the decoder's last level; 0 takes base_dim.
    z_dim: channels of the latents.
    dim_mult: channels of each level, in base_dim.
    num_res_blocks: residual blocks a level (the decoder has one more).
    temporal_downsample: which of the len(dim_mult) - 1 steps halve time too;
      each step halves height and width.
    is_residual: the 2.2 form, with parameter-free shortcuts round each level.
    patch_size: pixels a side that are folded into channels first.
    latents_mean: mean of the posterior mean per channel; () is 0.
    latents_std: its standard deviation; () is 1.
    initial_logvar: log-variance of the posterior before training.
    conv_form: 'auto', 'native', 'taps' or 'summed'; see `causal.convolve`.
    dtype: of the computation; parameters are float32.

  Raises:
    ValueError: sizes that do not fit each other.
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
        raise ValueError(
          f'{name}={getattr(self, name)}: expected a positive integer; change '
          f'autoencoder.{name}'
        )
    if len(self.temporal_downsample) != len(self.dim_mult) - 1:
      raise ValueError(
        f'temporal_downsample={self.temporal_downsample}: expected '
        f'{len(self.dim_mult) - 1} entries, one less than dim_mult='
        f'{self.dim_mult}; change autoencoder.temporal_downsample'
      )
    for name in ('latents_mean', 'latents_std'):
      if len(getattr(self, name)) not in (0, self.z_dim):
        raise ValueError(
          f'{name} has {len(getattr(self, name))} entries: expected none or '
          f'z_dim={self.z_dim}; change autoencoder.{name}'
        )
    if any(s <= 0 for s in self.latents_std):
      raise ValueError(
        f'latents_std={self.latents_std}: expected positive numbers; change '
        'autoencoder.latents_std'
      )
    if self.conv_form not in causal.CONV_FORMS:
      raise ValueError(
        f'conv_form={self.conv_form!r}: expected one of {causal.CONV_FORMS}; '
        'change autoencoder.conv_form'
      )
    if self.dtype not in ('float32', 'bfloat16', 'float16'):
      raise ValueError(
        f'dtype={self.dtype!r}: expected float32, bfloat16 or float16; change '
        'autoencoder.dtype'
      )
    for level in network_lib.encoder_levels(self):
      folded = level.before * level.time * level.space**2
      low, high = sorted((folded, level.after))
      if self.is_residual and high % low:
        self._refuse_levels(level)
    for level in network_lib.decoder_levels(self):
      if level.space == 1:
        continue
      unfolded = level.after * level.time * level.space**2
      if unfolded % level.before if self.is_residual else level.after % 2:
        self._refuse_levels(level)

  def _refuse_levels(self, level):
    raise ValueError(
      f'a level of {level.before} to {level.after} channels at time '
      f'{level.time}, space {level.space}: expected channels that fold and '
      f'halve evenly, from base_dim={self.base_dim}, decoder_base_dim='
      f'{self.decoder_base_dim}, dim_mult={self.dim_mult}; change '
      'autoencoder.dim_mult'
    )

  @property
  def stride(self) -> tuple[int, int, int]:
    """Pixels per latent cell in time, height and width."""
    space = 2 ** (len(self.dim_mult) - 1) * self.patch_size
    return 2 ** sum(self.temporal_downsample), space, space


@dataclasses.dataclass(frozen=True)
class Posterior:
  """Gaussian over un-normalised latents: mean_Bfhwc, logvar_Bfhwc."""

  mean_Bfhwc: jax.Array
  logvar_Bfhwc: jax.Array


jax.tree_util.register_dataclass(Posterior)


@dataclasses.dataclass(frozen=True)
class Autoencoder:
  """Video <-> latents of unit scale; methods are pure.

  Videos are float32 in [-1, 1] with 1 + k * stride[0] frames; latents have
  1 + k frames and z_dim channels, normalised by latents_mean and latents_std.
  """

  cfg: AutoencoderConfig

  @property
  def stride(self) -> tuple[int, int, int]:
    """Pixels per latent cell in time, height and width."""
    return self.cfg.stride

  @property
  def z_dim(self) -> int:
    """Channels of the latents."""
    return self.cfg.z_dim

  def init(self, key):
    """The parameters: a dict of dicts of float32 arrays."""
    # One threefry draw a tensor takes XLA half a second each to compile.
    bits = jax.random.bits(key, (4,), jnp.uint32)
    key = jax.random.wrap_key_data(bits, impl='rbg')
    _, height, width = self.stride
    video = jax.ShapeDtypeStruct((1, 1, height, width, 3), jnp.float32)
    network = network_lib.Network(self.cfg)
    return network.lazy_init(key, video)['params']

  def posterior(self, params, video_BFHWC) -> Posterior:
    """The un-normalised posterior of a whole clip, for training."""
    streaming.check_frames(video_BFHWC.shape, self.stride, opens=True)
    _, moments = self._apply(params, 'encode', None, video_BFHWC)
    mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return Posterior(mean, jnp.clip(logvar, -30, 20))

  def encode(self, params, video_BFHWC):
    """Latents z_Bfhwc of a whole clip: the posterior's mean, normalised."""
    return self.normalise(self.posterior(params, video_BFHWC).mean_Bfhwc)

  def encode_first(self, params, video_BFHWC):
    """Latents of an opening chunk of 1 + k * stride[0] frames.

    Returns:
      (cache, z_Bfhwc); the cache is a pytree of fixed shape, about two frames
      of each activation, whatever the length of the chunk.
    """
    streaming.check_frames(video_BFHWC.shape, self.stride, opens=True)
    return self._encode(params, None, video_BFHWC)

  def encode_step(self, params, cache, video_BFHWC):
    """Latents of the next k * stride[0] frames: (cache, z_Bfhwc)."""
    streaming.check_frames(video_BFHWC.shape, self.stride, opens=False)
    return self._encode(params, cache, video_BFHWC)

  def decode(self, params, z_Bfhwc):
    """The video_BFHWC of whole latents, clipped to [-1, 1]."""
    return jnp.clip(self.decode_unclipped(params, z_Bfhwc), -1, 1)

  def decode_unclipped(self, params, z_Bfhwc):
    """As `decode` without the clip, whose gradient is zero: for training."""
    self._check_latents(z_Bfhwc)
    z_Bfhwc = self.denormalise(z_Bfhwc)
    return self._apply(params, 'decode', None, z_Bfhwc)[1].astype(jnp.float32)

  def decode_first(self, params, z_Bfhwc):
    """The video of the first latent frames: (cache, video_BFHWC)."""
    return self._decode(params, None, z_Bfhwc)

  def decode_step(self, params, cache, z_Bfhwc):
    """The video of the next latent frames: (cache, video_BFHWC)."""
    return self._decode(params, cache, z_Bfhwc)

  def latent_cond_mask(self, cond_mask_FHW: np.ndarray) -> np.ndarray:
    """Which values of the latents a mask of pixels makes known, (f, h, w, c):
    those of a cell all of whose pixels are."""
    time, height, width = self.stride
    copies = np.repeat(cond_mask_FHW[:1], time - 1, axis=0)
    known_fhw = einops.reduce(
      np.concatenate([copies, cond_mask_FHW]),
      '(f t) (h a) (w b) -> f h w',
      np.all,
      t=time,
      a=height,
      b=width,
    )
    return np.repeat(known_fhw[..., None], self.z_dim, axis=-1)

  def normalise(self, mean_Bfhwc):
    """Posterior mean -> latents of unit scale."""
    mean, std = self._moments()
    return (mean_Bfhwc - mean) / std

  def denormalise(self, z_Bfhwc):
    """Latents of unit scale -> posterior mean."""
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
    network = network_lib.Network(self.cfg)
    return network.apply({'params': params}, cache, x, method=method)

  def _moments(self):
    mean = np.asarray(self.cfg.latents_mean or [0.0], np.float32)
    std = np.asarray(self.cfg.latents_std or [1.0], np.float32)
    return mean, std

  def _check_latents(self, z_Bfhwc):
    if z_Bfhwc.ndim != 5 or z_Bfhwc.shape[-1] != self.z_dim:
      raise ValueError(
        f'latents of shape {z_Bfhwc.shape}: expected (B, f, h, w, '
        f'{self.z_dim}); these latents are of another autoencoder than '
        f'autoencoder.z_dim={self.z_dim}'
      )


def count(params) -> int:
  """Numbers in a tree of arrays or of shapes."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


WAN21_MEAN = (
  *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
  *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
WAN21_STD = (
  *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
  *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)

PRESETS = {
  'wan2.1': AutoencoderConfig(
    base_dim=96, z_dim=16, latents_mean=WAN21_MEAN, latents_std=WAN21_STD
  ),
  'wan2.2': AutoencoderConfig(
    base_dim=160,
    decoder_base_dim=256,
    z_dim=48,
    is_residual=True,
    patch_size=2,
  ),
  'digits': AutoencoderConfig(
    base_dim=16,
    z_dim=16,
    dim_mult=(1, 2, 4),
    num_res_blocks=1,
    temporal_downsample=(True, True),
    is_residual=True,
    patch_size=2,
    initial_logvar=-6.0,
  ),
  'tiny': AutoencoderConfig(
    base_dim=4,
    z_dim=3,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temporal_downsample=(True, True),
    is_residual=True,
    patch_size=2,
  ),
}
