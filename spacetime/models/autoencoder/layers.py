"""Layers of the causal video autoencoder: (cache, x) -> (cache, y).

A chunk is a run of consecutive frames. `cache=None` marks the chunk that opens
the video; every later chunk takes the cache that the previous one returned, of
fixed shape. A complete clip is one opening chunk, so the rules for frame 0 are
here and nowhere else: a causal convolution sees zeros before frame 0, and
temporal resampling passes frame 0 unchanged and starts at frame 1.

Source: Wan team, 2025, arXiv:2503.20314, section 4.1; the shortcuts without
parameters are those of DC-AE, Chen et al., 2024, arXiv:2410.10733, section 3.2.
"""

import dataclasses
import functools
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# A pytree of fixed shape: the last frames of each convolution's input.
Cache = Any
CONV_FORMS = ('auto', 'native', 'taps', 'summed')
# With at least this many channels 'summed' is the fastest form on a CPU: see
# BUILD_NOTES.md.
SUMMED_CHANNELS = 64

# Not zero: an RMS norm has no finite slope where its input is exactly zero.
BIAS_INIT = nn.initializers.constant(1e-2)


def child_cache(cache: Cache, name: str) -> Cache:
  """Returns the cache of a child module; None for the opening chunk."""
  return None if cache is None else cache[name]


def convolve(
  x_BFHWC: jax.Array, kernel: jax.Array, *, stride: int, form: str
) -> jax.Array:
  """3-D convolution without padding in time, with 'same' padding in space.

  Args:
    x_BFHWC: input frames, the cached ones first.
    kernel: (time, height, width, in, out).
    stride: step along time, in frames.
    form: one of CONV_FORMS. 'native' is one 3-D convolution; 'taps' one 2-D
      convolution over the temporal taps concatenated on channels; 'summed' the
      sum of one 2-D convolution per tap. XLA runs the last two faster on a CPU:
      there 'auto' chooses 'taps' for few channels and 'summed' for many,
      elsewhere 'native'.

  Returns:
    y_BFHWC with (F - time) // stride + 1 frames.
  """
  if form == 'auto':
    form = 'summed' if x_BFHWC.shape[-1] >= SUMMED_CHANNELS else 'taps'
    form = form if jax.default_backend() == 'cpu' else 'native'
  time, height, width = kernel.shape[:3]
  pads = [(height // 2, height // 2), (width // 2, width // 2)]
  if form == 'native':
    return lax.conv_general_dilated(
      x_BFHWC,
      kernel,
      window_strides=(stride, 1, 1),
      padding=[(0, 0), *pads],
      dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'),
    )
  last = x_BFHWC.shape[1] - time
  taps = [x_BFHWC[:, i : i + last + 1 : stride] for i in range(time)]
  if form == 'summed':
    # Not sum(): adding its initial 0 would be one more pass over a tap.
    return functools.reduce(
      jnp.add,
      (_each_frame(x, k, pads) for x, k in zip(taps, kernel, strict=True)),
    )
  kernel = einops.rearrange(kernel, 't h w i o -> h w (t i) o')
  return _each_frame(jnp.concatenate(taps, axis=-1), kernel, pads)


def _each_frame(x_BFHWC, kernel, pads):
  """Applies a spatial kernel (height, width, in, out) to every frame."""
  if kernel.shape[:2] == (1, 1):
    return x_BFHWC @ kernel[0, 0]
  y_NHWC = lax.conv_general_dilated(
    einops.rearrange(x_BFHWC, 'B F H W C -> (B F) H W C'),
    kernel,
    window_strides=(1, 1),
    padding=pads,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  return einops.rearrange(
    y_NHWC, '(B F) H W C -> B F H W C', B=x_BFHWC.shape[0]
  )


class CausalConv(nn.Module):
  """Causal convolution: an output frame depends on no later input frame.

  Attributes:
    features: output channels.
    kernel: kernel size along time, height and width.
    stride: step along time; the cache holds kernel[0] - stride frames.
    form: implementation, see `convolve`.
    dtype: compute dtype.
  """

  features: int
  kernel: tuple[int, int, int] = (3, 3, 3)
  stride: int = 1
  form: str = 'auto'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, cache, x_BFHWC):
    kernel = self.param(
      'kernel',
      nn.initializers.lecun_normal(),
      (*self.kernel, x_BFHWC.shape[-1], self.features),
    )
    bias = self.param('bias', BIAS_INIT, (self.features,))
    x_BFHWC = x_BFHWC.astype(self.dtype)
    keep = self.kernel[0] - self.stride
    batch, frames, height, width, channels = x_BFHWC.shape
    if cache is None:
      cache = jnp.zeros((batch, keep, height, width, channels), self.dtype)
    if not frames:
      shape = (batch, 0, height, width, self.features)
      return cache, jnp.zeros(shape, self.dtype)
    x_BFHWC = jnp.concatenate([cache, x_BFHWC], axis=1)
    y_BFHWC = convolve(
      x_BFHWC, kernel.astype(self.dtype), stride=self.stride, form=self.form
    )
    return x_BFHWC[:, -keep:], y_BFHWC + bias.astype(self.dtype)


class ChannelNorm(nn.Module):
  """RMS norm over channels, computed in float32; the gain is `gamma`."""

  @nn.compact
  def __call__(self, x_BFHWC):
    channels = x_BFHWC.shape[-1]
    gamma = self.param('gamma', nn.initializers.ones, (channels,))
    x = x_BFHWC.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    scale = lax.rsqrt(jnp.maximum(square, 1e-24)) * channels**0.5
    return (x * scale * gamma).astype(x_BFHWC.dtype)


class ResBlock(nn.Module):
  """Residual block: norm, SiLU, causal 3x3x3 convolution, twice; plus input."""

  features: int
  form: str = 'auto'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, cache, x_BFHWC):
    after = {}
    y_BFHWC = x_BFHWC
    for i in (1, 2):
      y_BFHWC = nn.silu(ChannelNorm(name=f'norm{i}')(y_BFHWC))
      name = f'conv{i}'
      conv = CausalConv(
        self.features, form=self.form, dtype=self.dtype, name=name
      )
      after[name], y_BFHWC = conv(child_cache(cache, name), y_BFHWC)
    if x_BFHWC.shape[-1] != self.features:
      x_BFHWC = nn.Dense(
        self.features,
        dtype=self.dtype,
        bias_init=BIAS_INIT,
        name='conv_shortcut',
      )(x_BFHWC)
    return after, x_BFHWC + y_BFHWC


class FrameAttention(nn.Module):
  """Single-head self-attention within each frame, never across time."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BFHWC):
    channels = x_BFHWC.shape[-1]
    height = x_BFHWC.shape[2]
    x_BFND = einops.rearrange(x_BFHWC, 'B F H W D -> B F (H W) D')
    y_BFND = ChannelNorm(name='norm')(x_BFND)
    qkv = nn.Dense(3 * channels, dtype=self.dtype, name='to_qkv')(y_BFND)
    q_BFND, k_BFMD, v_BFMD = jnp.split(qkv, 3, axis=-1)
    score = jnp.einsum('BFND,BFMD->BFNM', q_BFND, k_BFMD)
    score = score.astype(jnp.float32) * channels**-0.5
    weight = nn.softmax(score).astype(self.dtype)
    y_BFND = jnp.einsum('BFNM,BFMD->BFND', weight, v_BFMD)
    y_BFND = nn.Dense(channels, dtype=self.dtype, name='proj')(y_BFND)
    return x_BFHWC + einops.rearrange(
      y_BFND, 'B F (H W) D -> B F H W D', H=height
    )


class MidBlock(nn.Module):
  """Middle of the networks: residual block, frame attention, residual block."""

  form: str = 'auto'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, cache, x_BFHWC):
    after = {}
    for i in (0, 1):
      name = f'resnets_{i}'
      block = ResBlock(x_BFHWC.shape[-1], self.form, self.dtype, name=name)
      after[name], x_BFHWC = block(child_cache(cache, name), x_BFHWC)
      if i == 0:
        x_BFHWC = FrameAttention(self.dtype, name='attentions_0')(x_BFHWC)
    return after, x_BFHWC


class Downsample(nn.Module):
  """Halves height and width; with time=2 also maps 1 + 2k frames to 1 + k.

  Frame 0 skips the temporal convolution, which has no padding, so that its
  cache is one frame.
  """

  time: int
  form: str = 'auto'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, cache, x_BFHWC):
    features = x_BFHWC.shape[-1]
    x_BFHWC = nn.Conv(
      features,
      (3, 3),
      strides=2,
      padding=((0, 1), (0, 1)),
      dtype=self.dtype,
      bias_init=BIAS_INIT,
      name='resample',
    )(x_BFHWC)
    if self.time == 1:
      return None, x_BFHWC
    conv = CausalConv(
      features,
      (3, 1, 1),
      stride=2,
      form=self.form,
      dtype=self.dtype,
      name='time_conv',
    )
    if cache is not None:
      return conv(cache, x_BFHWC)
    first, rest = x_BFHWC[:, :1], x_BFHWC[:, 1:]
    cache, y_BFHWC = conv(first, rest)
    return cache, jnp.concatenate([first, y_BFHWC], axis=1)


class Upsample(nn.Module):
  """Doubles height and width; with time=2 also maps 1 + k frames to 1 + 2k.

  Frame 0 skips the temporal convolution and is not in its input either: frame 1
  is preceded by zeros.
  """

  features: int
  time: int
  form: str = 'auto'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, cache, x_BFHWC):
    if self.time == 2:
      conv = CausalConv(
        2 * x_BFHWC.shape[-1],
        (3, 1, 1),
        form=self.form,
        dtype=self.dtype,
        name='time_conv',
      )
      first = x_BFHWC[:, : int(cache is None)]
      cache, y = conv(cache, x_BFHWC[:, first.shape[1] :])
      y = einops.rearrange(y, 'B F H W (t C) -> B (F t) H W C', t=2)
      x_BFHWC = jnp.concatenate([first, y], axis=1)
    x_BFHWC = einops.repeat(x_BFHWC, 'B F H W C -> B F (H p) (W q) C', p=2, q=2)
    x_BFHWC = nn.Conv(
      self.features,
      (3, 3),
      padding=1,
      dtype=self.dtype,
      bias_init=BIAS_INIT,
      name='resample',
    )(x_BFHWC)
    return cache, x_BFHWC


def average_down(
  x_BFHWC: jax.Array, *, features: int, time: int, space: int, opens: bool
) -> jax.Array:
  """Downsampling shortcut: folds pixels into channels, averages channel groups.

  Args:
    x_BFHWC: a chunk; an opening one is preceded by time - 1 zero frames.
    features: output channels; divides channels * time * space**2, or is a
      multiple of it (a level that widens without folding): channels repeat.
    time: frames folded into one.
    space: rows, and columns, folded into one.
    opens: whether the chunk contains frame 0.
  """
  if opens:
    x_BFHWC = jnp.pad(x_BFHWC, ((0, 0), (time - 1, 0), (0, 0), (0, 0), (0, 0)))
  x_BFHWC = einops.rearrange(
    x_BFHWC,
    'B (F t) (H p) (W q) C -> B F H W (C t p q)',
    t=time,
    p=space,
    q=space,
  )
  if x_BFHWC.shape[-1] < features:
    return jnp.repeat(x_BFHWC, features // x_BFHWC.shape[-1], axis=-1)
  return einops.reduce(
    x_BFHWC, 'B F H W (C g) -> B F H W C', 'mean', C=features
  )


def repeat_up(
  x_BFHWC: jax.Array, *, features: int, time: int, space: int, opens: bool
) -> jax.Array:
  """Upsampling shortcut: repeats channels and unfolds them into pixels.

  Args:
    x_BFHWC: a chunk; an opening one loses its first time - 1 output frames.
    features: output channels; channels divides features * time * space**2.
    time: output frames per frame.
    space: output rows per row, and columns per column.
    opens: whether the chunk contains frame 0.
  """
  times = features * time * space**2 // x_BFHWC.shape[-1]
  x_BFHWC = einops.rearrange(
    jnp.repeat(x_BFHWC, times, axis=-1),
    'B F H W (C t p q) -> B (F t) (H p) (W q) C',
    t=time,
    p=space,
    q=space,
  )
  return x_BFHWC[:, time - 1 :] if opens else x_BFHWC


@dataclasses.dataclass(frozen=True)
class Level:
  """Sizes of one resolution level.

  Attributes:
    before: input channels.
    after: output channels.
    time: factor of the temporal resampling that ends the level, 1 or 2.
    space: factor of the spatial resampling, 1 or 2.
  """

  before: int
  after: int
  time: int
  space: int


class DownBlock(nn.Module):
  """One level of the 2.2 encoder: residual blocks, downsampling, shortcut."""

  level: Level
  blocks: int
  form: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, cache, x_BFHWC):
    level, after = self.level, {}
    short_BFHWC = average_down(
      x_BFHWC,
      features=level.after,
      time=level.time,
      space=level.space,
      opens=cache is None,
    )
    for i in range(self.blocks):
      name = f'resnets_{i}'
      block = ResBlock(level.after, self.form, self.dtype, name=name)
      after[name], x_BFHWC = block(child_cache(cache, name), x_BFHWC)
    if level.space == 2:
      name = 'downsampler'
      down = Downsample(level.time, self.form, self.dtype, name=name)
      after[name], x_BFHWC = down(child_cache(cache, name), x_BFHWC)
    return after, x_BFHWC + short_BFHWC


class UpBlock(nn.Module):
  """One level of a decoder: residual blocks, upsampling, the 2.2 shortcut."""

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
      block = ResBlock(level.after, self.form, self.dtype, name=name)
      after[name], x_BFHWC = block(child_cache(cache, name), x_BFHWC)
    if level.space == 1:
      return after, x_BFHWC
    name = 'upsampler' if self.is_residual else 'upsamplers_0'
    up = Upsample(
      level.after if self.is_residual else level.after // 2,
      level.time,
      self.form,
      self.dtype,
      name=name,
    )
    after[name], x_BFHWC = up(child_cache(cache, name), x_BFHWC)
    if self.is_residual:
      x_BFHWC += repeat_up(
        short_BFHWC,
        features=level.after,
        time=level.time,
        space=level.space,
        opens=opens,
      )
    return after, x_BFHWC
