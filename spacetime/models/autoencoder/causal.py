"""Layers of the causal video autoencoder: (cache, x) -> (cache, y).

A chunk is a run of frames. `cache=None` says that the chunk opens the video;
any other cache is what the chunk before it returned, of fixed shape. A whole
clip is one opening chunk, so the rules for frame 0 stand here and only here:
a causal convolution sees zeros before frame 0, time resampling passes frame 0
unchanged and starts at frame 1.

Source: Wan team, 2025, arXiv:2503.20314, section 4.1.
"""

import functools

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

CONV_FORMS = ('auto', 'native', 'taps', 'summed')
# Channels from which on 'summed' is the fastest form on a CPU, forward by a
# third to twice and backward by a little: BUILD_NOTES.md.
SUMMED_CHANNELS = 64

# Not zero: an RMS norm has no finite slope where its input is exactly zero.
BIAS_INIT = nn.initializers.constant(1e-2)


def part(cache, name: str):
  """The child's share of a cache; None while the video opens."""
  return None if cache is None else cache[name]


def convolve(x_BFHWC, kernel, *, stride: int, form: str):
  """Convolution without padding in time, with same padding in space.

  Args:
    x_BFHWC: frames, those of the cache in front.
    kernel: (time, height, width, in, out).
    stride: frames a step.
    form: 'native' is one 3-D convolution; 'taps' is one 2-D convolution over
      the time taps joined on channels; 'summed' is one 2-D convolution a tap,
      and their sum. XLA runs the last two faster on a CPU: 'auto' takes 'taps'
      of few channels and 'summed' of many there, else 'native'.

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
    # Not sum(): its start of 0 would be a pass over the first tap.
    return functools.reduce(
      jnp.add,
      (_each_frame(x, k, pads) for x, k in zip(taps, kernel, strict=True)),
    )
  kernel = einops.rearrange(kernel, 't h w i o -> h w (t i) o')
  return _each_frame(jnp.concatenate(taps, axis=-1), kernel, pads)


def _each_frame(x_BFHWC, kernel, pads):
  """A convolution in space, (height, width, in, out), of every frame."""
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
  """Convolution that sees no later frame; the cache is the frames before.

  Attributes:
    features: channels out.
    kernel: taps in time, height and width.
    stride: frames a step; the cache holds kernel[0] - stride frames.
    form: see `convolve`.
    dtype: of the computation.
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
  """Unit root mean square over channels, in float32; the gain is `gamma`."""

  @nn.compact
  def __call__(self, x_BFHWC):
    channels = x_BFHWC.shape[-1]
    gamma = self.param('gamma', nn.initializers.ones, (channels,))
    x = x_BFHWC.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    scale = lax.rsqrt(jnp.maximum(square, 1e-24)) * channels**0.5
    return (x * scale * gamma).astype(x_BFHWC.dtype)


class ResBlock(nn.Module):
  """Twice norm, SiLU, causal 3^3 convolution; plus the (projected) input."""

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
      after[name], y_BFHWC = conv(part(cache, name), y_BFHWC)
    if x_BFHWC.shape[-1] != self.features:
      x_BFHWC = nn.Dense(
        self.features,
        dtype=self.dtype,
        bias_init=BIAS_INIT,
        name='conv_shortcut',
      )(x_BFHWC)
    return after, x_BFHWC + y_BFHWC


class FrameAttention(nn.Module):
  """One head over the positions of each frame; never across time."""

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
  """Residual block, attention within each frame, residual block."""

  form: str = 'auto'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, cache, x_BFHWC):
    after = {}
    for i in (0, 1):
      name = f'resnets_{i}'
      block = ResBlock(x_BFHWC.shape[-1], self.form, self.dtype, name=name)
      after[name], x_BFHWC = block(part(cache, name), x_BFHWC)
      if i == 0:
        x_BFHWC = FrameAttention(self.dtype, name='attentions_0')(x_BFHWC)
    return after, x_BFHWC


class Downsample(nn.Module):
  """Halves space; with time=2 also 1 + 2k frames to 1 + k.

  Frame 0 passes time unchanged; the convolution over time has no padding, so
  that its cache is one frame.
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
  """Doubles space; with time=2 first 1 + k frames to 1 + 2k.

  Frame 0 passes time unchanged and unseen: zeros stand before frame 1.
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
