"""The diffusion transformer: Wan's, with a timestep for every latent patch.

With one timestep for the clip it is Wan 2.1; with one per token it is Wan 2.2
TI2V-5B. Options of its config make it an image-to-video model (channels beside
the latents, embeddings of images beside the text), VACE (control blocks) or a
flow map (a second time). The children's names are the checkpoint format.

Source: Peebles & Xie 2022 (DiT), arXiv 2212.09748; Wan 2.1, arXiv 2503.20314;
Jiang et al. 2025 (VACE), arXiv 2503.07598.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from spacetime import SettingError
from spacetime.models import activations, precision
from spacetime.models.transformer import (
  attention_plan,
  packed,
  patchify,
  remat,
  rope,
)
from spacetime.models.transformer.attention import (
  Attention,
  Context,
  ControlContext,
  ImageContext,
  is_precomputed,
)
from spacetime.models.transformer.attention_kernels import Segments
from spacetime.models.transformer.layers import (
  DROPOUT,
  LORA,
  Dense,
  layer_norm,
)
from spacetime.sharding import constrain


@dataclasses.dataclass(frozen=True)
class DiTConfig:
  """Sizes of the transformer.

  Attributes:
    channels: latent channels c, in and out.
    cond_channels: channels of conditioning that are joined to the latents at
      the input, as of image-to-video models; 0 has none.
    image_width: width of image embeddings that cross-attention sees beside the
      text; 0 sees none.
    image_tokens: tokens of image embeddings with a learned position; 0 has no
      such positions.
    control_layers: blocks that a stack of control blocks adds to (VACE); () has
      no such stack.
    control_channels: channels of the control latents.
    flow_map: weight of a second time in the timestep embedding, the time that a
      step ends at (AnyFlow); 0 has one time.
    patch: latent cells per token along time, height and width; time is 1.
    width: channels of a token, D.
    heads: attention heads, A; the head size D / A is even and at least 6.
    layers: number of blocks.
    mlp: hidden channels of the MLP of a block, M.
    text_width: Y, the width of the prompt embeddings.
    frequencies: features of the timestep embedding, half sines, half cosines.
    eps: number added to the variance in every norm, against division by 0.
    theta: base of the rotary wavelengths; 10,000 in Wan, less for small grids.
    pos_embed_frequencies: K cosines per axis of the absolute position
      embedding, of a token's position between the edges of its clip; 0 (as in
      Wan) has no such embedding. Rotary positions are relative: among tokens of
      pure noise they cannot distinguish left from right or first from last, so
      a model without it learns words of position and motion only from clips
      whose content shows through the noise.
    dtype: dtype of matrix products; norms, modulation and softmax are float32.
    attention: attention kernel: 'xla', 'blockwise' (by blocks of queries, for
      CPUs), 'cudnn' (GPU), 'splash' (TPU), or 'auto' for the fastest that the
      platform has.
    context_attention: context parallelism where mesh.context splits the tokens:
      'ulysses', 'ring', 'both', or 'auto'.
    remat: what is recomputed in the backward pass: 'none'; 'full', all of a
      block; 'attention', all but attention; 'offload', as 'attention', and what
      is kept lies in the host's memory.

  Raises:
    SettingError: sizes that do not fit each other, or an unknown name.
  """

  channels: int
  patch: tuple[int, int, int]
  width: int
  heads: int
  layers: int
  mlp: int
  text_width: int
  frequencies: int = 256
  eps: float = 1e-6
  theta: float = 10000.0
  pos_embed_frequencies: int = 0
  dtype: str = 'float32'
  attention: str = 'auto'
  context_attention: str = 'auto'
  remat: str = 'none'
  cond_channels: int = 0
  image_width: int = 0
  image_tokens: int = 0
  control_layers: tuple[int, ...] = ()
  control_channels: int = 0
  flow_map: float = 0.0

  def __post_init__(self):
    for name in ('width', 'heads', 'layers', 'mlp'):
      if getattr(self, name) < 1:
        raise SettingError(f'model.{name}', getattr(self, name), '1 or more')
    if len(self.patch) != 3 or min(self.patch) < 1:
      raise SettingError('model.patch', self.patch, 'three sizes, 1 or more')
    for name in ('theta', 'eps'):
      if not 0 < getattr(self, name) < math.inf:
        raise SettingError(f'model.{name}', getattr(self, name), 'above 0')
    head = self.width // self.heads
    if self.width % self.heads or head % 2 or head < 6:
      raise SettingError(
        'model.heads',
        self.heads,
        f'a divisor of `model.width`={self.width} that leaves heads of an even '
        'size of at least 6',
      )
    for name, names in (
      ('remat', remat.NAMES),
      ('attention', attention_plan.KERNELS),
      ('context_attention', attention_plan.CONTEXT_ATTENTION),
    ):
      if getattr(self, name) not in names:
        raise SettingError(
          f'model.{name}', getattr(self, name), f'one of {names}'
        )
    if self.frequencies % 2:
      raise SettingError(
        'model.frequencies', self.frequencies, 'an even number'
      )
    for name in (
      *('pos_embed_frequencies', 'cond_channels', 'image_width'),
      *('image_tokens', 'control_channels'),
    ):
      if getattr(self, name) < 0:
        raise SettingError(f'model.{name}', getattr(self, name), '0 or more')
    if not 0 <= self.flow_map < 1:
      raise SettingError('model.flow_map', self.flow_map, '0 or more, below 1')
    layers = self.control_layers
    if list(layers) != sorted({n for n in layers if 0 <= n < self.layers}):
      raise SettingError(
        'model.control_layers',
        layers,
        f'rising numbers of layers, 0 to {self.layers - 1}',
      )
    if bool(layers) != bool(self.control_channels):
      raise SettingError(
        'model.control_channels',
        self.control_channels,
        'more than 0 with `model.control_layers`, else 0',
      )

  @property
  def sees(self) -> str:
    """How known pixels enter: as 'frames' of the latents themselves, as
    'channels' beside them, or through 'control' blocks."""
    if self.control_layers:
      return 'control'
    return 'channels' if self.cond_channels else 'frames'

  @property
  def known_frames(self) -> str:
    """Frames that an image-to-video model sees beside its latents: 'first', or
    'ends' for the last one too; '' of other models."""
    if not self.cond_channels:
      return ''
    return 'ends' if self.image_tokens else 'first'

  @property
  def control_index(self) -> tuple[int, ...]:
    """The control block that adds to each layer; -1 where none does."""
    return tuple(
      self.control_layers.index(i) if i in self.control_layers else -1
      for i in range(self.layers)
    )

  @property
  def patch_volume(self) -> int:
    """Values in one token, V."""
    return math.prod(self.patch) * self.channels


class TimestepEmbedding(NamedTuple):
  """Embeddings of a table of timesteps, float32.

  Attributes:
    head_BTD: modulates the head.
    block_BT6D: modulates every block: shift, scale and gate, twice.
  """

  head_BTD: jax.Array
  block_BT6D: jax.Array


def timestep_features(t_BT: jax.Array, frequencies: int) -> jax.Array:
  """Returns [cos(1000 t f), sin(1000 t f)], f = 10000^(-i / half), float32.

  Source: Vaswani et al. 2017, arXiv 1706.03762; cosines first as in Wan.
  """
  half = frequencies // 2
  f = np.exp(-np.log(10000.0) * np.arange(half) / half).astype(np.float32)
  step = 1000.0 * t_BT[..., None].astype(jnp.float32)
  # Wan's timesteps are integers; 1000 * float32(0.511) is not quite 511.
  nearest = jnp.round(step)
  step = jnp.where(jnp.abs(step - nearest) <= 2e-7 * step, nearest, step)
  angle = step * f
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def embed_timestep(
  config: DiTConfig, t_BT: jax.Array, end_BT: jax.Array | None = None
) -> TimestepEmbedding:
  """Embeds timesteps in [0, 1].

  Creates the children time_in, time_out and time_modulation of the calling
  module, and end_in and end_out of a flow map.

  Args:
    config: sizes.
    t_BT: timesteps.
    end_BT: times that the step of a flow map ends at; None is those of t_BT.
  """
  width, dtype = config.width, jnp.dtype(config.dtype)

  def dense(name, size, dtype, init=nn.linear.default_kernel_init):
    exact = precision.FLOAT32 if dtype == jnp.float32 else None
    return Dense(
      size, dtype=dtype, precision=exact, kernel_init=init, name=name
    )

  # Small at first, as in DiT: it modulates the head from the start.
  small, zero = nn.initializers.normal(0.02), nn.initializers.zeros

  def embed(t_BT, name):
    features_BTY = timestep_features(t_BT, config.frequencies)
    x_BTD = dense(f'{name}_in', width, jnp.float32)(features_BTY)
    x_BTD = constrain(x_BTD, 'batch', None, 'width')
    return dense(f'{name}_out', width, jnp.float32, small)(nn.silu(x_BTD))

  x_BTD = embed(t_BT, 'time')
  if config.flow_map:
    end_BTD = embed(t_BT if end_BT is None else end_BT, 'end')
    x_BTD = (1 - config.flow_map) * x_BTD + config.flow_map * end_BTD
  head_BTD = constrain(x_BTD, 'batch', None, 'width')
  modulation = dense('time_modulation', 6 * width, dtype, zero)
  x_BTD = modulation(nn.silu(head_BTD.astype(dtype))).astype(jnp.float32)
  block_BT6D = x_BTD.reshape(*t_BT.shape, 6, width)
  block_BT6D = constrain(block_BT6D, 'batch', None, None, 'width')
  return TimestepEmbedding(head_BTD, block_BT6D)


def embed_text(config: DiTConfig, text_BSY: jax.Array) -> jax.Array:
  """Maps prompt embeddings to text_BSD.

  Creates the children text_in and text_out of the calling module.
  """
  dtype = jnp.dtype(config.dtype)
  text_BSD = Dense(config.width, dtype=dtype, name='text_in')(
    text_BSY.astype(dtype)
  )
  text_BSD = constrain(text_BSD, 'batch', None, 'width')
  text_BSD = Dense(config.width, dtype=dtype, name='text_out')(
    activations.gelu(text_BSD)
  )
  return constrain(text_BSD, 'batch', None, 'width')


class ImageEmbedding(nn.Module):
  """Maps embeddings of images (B, S, Y) to the width of the transformer."""

  config: DiTConfig

  @nn.compact
  def __call__(self, image_BSY: jax.Array) -> jax.Array:
    config, width = self.config, self.config.image_width
    dtype = jnp.dtype(config.dtype)

    def norm(x, name):
      layer = nn.LayerNorm(
        epsilon=1e-5, dtype=jnp.float32, use_fast_variance=False, name=name
      )
      return layer(x.astype(jnp.float32))

    if config.image_tokens:
      shape = 1, config.image_tokens, width
      position = self.param('position', nn.initializers.zeros, shape)
      image_BSY = image_BSY + position
    x_BSY = norm(image_BSY, 'norm_in').astype(dtype)
    x_BSY = Dense(width, dtype=dtype, name='in')(x_BSY)
    x_BSY = nn.gelu(x_BSY, approximate=False)
    x_BSD = Dense(config.width, dtype=dtype, name='out')(x_BSY)
    x_BSD = norm(x_BSD, 'norm_out').astype(dtype)
    return constrain(x_BSD, 'batch', None, 'width')


def embed_context(
  config: DiTConfig, text: jax.Array | ImageContext
) -> jax.Array | ImageContext:
  """Maps prompt embeddings, and those of images if the model sees images, to
  the width of the transformer."""
  if not isinstance(text, ImageContext):
    return embed_text(config, text)
  return ImageContext(
    embed_text(config, text.text),
    ImageEmbedding(config, name='image_embed')(text.image),
  )


def modulation_per_token(
  m_BTD: jax.Array, t_index_N: np.ndarray | jax.Array
) -> jax.Array:
  """Gathers m_BND from a table of timesteps; a table of one row broadcasts.

  Args:
    m_BTD: a shift, scale or gate for each timestep of the table.
    t_index_N: each token's row of the table; (B, N) for packed sequences.
  """
  if m_BTD.shape[1] == 1:
    return m_BTD
  if t_index_N.ndim == 2:
    m_BND = jnp.take_along_axis(m_BTD, t_index_N[..., None], axis=1)
  else:
    m_BND = jnp.take(m_BTD, t_index_N, axis=1, mode='clip')
  return constrain(m_BND, 'batch', 'tokens', 'width')


def _open_gates(key, shape, dtype=jnp.float32):
  """Initialises shifts and scales to 0, gates to 1.

  With output projections of 0 a fresh block is the identity, and these
  projections learn from the first step; behind gates of 0 they would wait for
  the gates.
  """
  del key
  return jnp.zeros(shape, dtype).at[jnp.array([2, 5])].set(1)


class Block(nn.Module):
  """Transformer block: self-attention, cross-attention and MLP, modulated.

  The carry is the residual stream; every other argument is the same in each
  layer (of a KVCache the layer's own part).
  """

  config: DiTConfig

  @nn.compact
  def __call__(
    self,
    x_BND: jax.Array,
    modulation_BT6D: jax.Array,
    text: Context,
    rope_tables: tuple[jax.Array, jax.Array],
    t_index_N: np.ndarray | jax.Array,
    segments: tuple[Segments, Segments] | None = None,
    hints_JBND: jax.Array | None = None,
    hint: jax.Array | None = None,
  ):
    """Returns (x_BND, None), as nn.scan expects it.

    Where `hint` is not negative, hints_JBND[hint] is added to the result: the
    output of the control block of this layer.
    """
    self_segments, cross_segments = segments or (None, None)
    config = self.config
    dtype = x_BND.dtype
    table = self.param('modulation', _open_gates, (6, config.width))
    m_BT6D = modulation_BT6D + table.astype(jnp.float32)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
      modulation_per_token(m_BT6D[:, :, i], t_index_N) for i in range(6)
    )
    x_BND = constrain(x_BND, 'batch', 'tokens', 'width')
    x_BND = checkpoint_name(x_BND, remat.BLOCK)

    y_BND = layer_norm(x_BND, config.eps) * (1 + scale_a) + shift_a
    y_BND = y_BND.astype(dtype)
    attention = functools.partial(
      Attention,
      config.heads,
      config.eps,
      dtype,
      zero=True,
      kernel=config.attention,
      context_attention=config.context_attention,
    )
    y_BND = attention(name='self_attention')(
      y_BND, y_BND, rope_tables, self_segments, keys='tokens'
    )
    x_BND = (x_BND.astype(jnp.float32) + y_BND * gate_a).astype(dtype)

    norm = nn.LayerNorm(
      epsilon=config.eps,
      dtype=jnp.float32,
      use_fast_variance=False,
      name='norm_cross',
    )
    y_BND = norm(x_BND.astype(jnp.float32)).astype(dtype)
    x_BND = x_BND + attention(name='cross_attention')(
      y_BND, text, segments=cross_segments
    )

    y_BND = layer_norm(x_BND, config.eps) * (1 + scale_m) + shift_m
    y_BNM = Dense(config.mlp, dtype=dtype, name='mlp_in')(y_BND.astype(dtype))
    y_BNM = constrain(activations.gelu(y_BNM), 'batch', 'tokens', 'mlp')
    y_BND = Dense(
      config.width,
      dtype=dtype,
      kernel_init=nn.initializers.zeros,
      name='mlp_out',
    )(y_BNM)
    x_BND = (x_BND.astype(jnp.float32) + y_BND * gate_m).astype(dtype)
    if hints_JBND is not None:
      hint_BND = jnp.take(hints_JBND, jnp.maximum(hint, 0), axis=0)
      x_BND += jnp.where(hint < 0, 0, hint_BND)
    return x_BND, None


class ControlBlock(nn.Module):
  """A block on the control tokens, and its hint for the transformer."""

  config: DiTConfig

  @nn.compact
  def __call__(self, c_BND: jax.Array, *inputs):
    """Returns (c_BND, hint_BND); the inputs are those of a Block."""
    c_BND, _ = Block(self.config, name='block')(c_BND, *inputs)
    hint_BND = Dense(
      self.config.width,
      dtype=c_BND.dtype,
      kernel_init=nn.initializers.zeros,
      name='hint',
    )(c_BND)
    return c_BND, hint_BND


def run_blocks(model: 'DiT', x_BND: jax.Array, *inputs) -> jax.Array:
  """Runs all blocks; `inputs` are the other arguments of Block."""
  blocks = model.blocks(inputs[1], hints=len(inputs) > 5)
  return blocks(x_BND, *inputs)[0]


def empty_inputs(config: DiTConfig) -> tuple[tuple, dict]:
  """Arguments of one token for DiT, all zero: (arguments, keywords)."""

  def latents(channels):
    return jnp.zeros((1, *config.patch, channels))

  t_11 = jnp.zeros((1, 1))
  text = jnp.zeros((1, 1, config.text_width))
  if config.image_width:
    tokens = config.image_tokens or 1
    text = ImageContext(text, jnp.zeros((1, tokens, config.image_width)))
  more = {}
  if config.cond_channels:
    more['cond_Bfhwc'] = latents(config.cond_channels)
  if config.control_layers:
    more['control_Bfhwc'] = latents(config.control_channels)
  return (latents(config.channels), t_11, text), more


class DiT(nn.Module):
  """Diffusion transformer: predicts the flow at noisy latents, given a text.

  Attributes:
    config: sizes.
    scaling: RoPE scaling along time for clips longer than in training. Chosen
      when sampling; not part of the architecture.
  """

  config: DiTConfig
  scaling: rope.Scaling | None = None

  def __call__(
    self,
    z_Bfhwc: jax.Array,
    t_BT: jax.Array,
    text: Context,
    t_index_fhw: jax.Array | None = None,
    *,
    cond_Bfhwc: jax.Array | None = None,
    control_Bfhwc: jax.Array | None = None,
    control_scale_B: jax.Array | None = None,
    end_BT: jax.Array | None = None,
    stack: Callable = run_blocks,
  ) -> jax.Array:
    """Predicts for a batch of clips.

    Args:
      z_Bfhwc: noisy latents, float.
      t_BT: timesteps in [0, 1]: (B, f), one per latent frame; or (B, 1), one
        for the clip, whose modulation is broadcast and not gathered per token.
      text: prompt embeddings text_BSY, whose padding is zeros that take part in
        the attention; or their kv_cache.precompute_kv. An ImageContext of both
        if the model sees images.
      t_index_fhw: index into t_BT for each latent cell, int, equal within a
        token; None is the index of the cell's frame.
      cond_Bfhwc: conditioning of `cond_channels`, joined to the latents.
      control_Bfhwc: control latents of `control_channels`.
      control_scale_B: factor of what the control blocks add; None is 1.
      end_BT: for a flow map, times that the step ends at, as t_BT.
      stack: runs the blocks: (model, x_BND, *inputs of a block) -> x_BND; see
        first_block_cache.py, which leaves some out.

    Returns:
      float32 (B, f, h, w, c): a velocity or a sample, as trained.

    Raises:
      ValueError: latents that the patches do not divide, or timesteps for
        another number of frames.
    """
    config = self.config
    grid = self._grid(z_Bfhwc.shape, t_BT.shape, per_frame=t_index_fhw is None)
    position_N3 = patchify.positions(grid)
    t_index_N = position_N3[:, 0]
    if t_index_fhw is not None:
      _, height, width = config.patch
      t_index_N = jnp.ravel(t_index_fhw[:, ::height, ::width])
    rope_tables = rope.tables(
      position_N3,
      head_size=config.width // config.heads,
      theta=config.theta,
      scaling=self.scaling,
    )
    cosines_NK = None
    if config.pos_embed_frequencies:
      cosines_NK = patchify.position_cosines(grid, config.pos_embed_frequencies)
    if config.cond_channels:
      z_Bfhwc = jnp.concatenate([z_Bfhwc, cond_Bfhwc], axis=-1)
    control_BNV = None
    if config.control_layers:
      control_BNV = patchify.patchify(control_Bfhwc, config.patch)
    y_BNV = self.tokens_to_tokens(
      patchify.patchify(z_Bfhwc, config.patch),
      t_BT,
      text,
      t_index_N,
      rope_tables,
      cosines_NK,
      control_BNV=control_BNV,
      control_scale_B=control_scale_B,
      end_BT=end_BT,
      stack=stack,
    )
    return patchify.unpatchify(y_BNV, config.patch, grid)

  def predict_packed(
    self,
    x_BNV: jax.Array,
    t_BT: jax.Array,
    text_BGSY: jax.Array,
    batch: packed.PackedBatch,
  ) -> jax.Array:
    """Predicts for packed sequences, each clip as if it were alone.

    Args:
      x_BNV: noisy patches, float.
      t_BT: table of timesteps, a row for each latent frame of each clip.
      text_BGSY: prompt embeddings of each clip.
      batch: clip, position and frame of each token.

    Returns:
      float32 (B, N, V).
    """
    config = self.config
    text = packed.concatenate_texts(text_BGSY)
    rope_tables = batch.rope_tables(
      head_size=config.width // config.heads, theta=config.theta
    )
    cosines_BNK = None
    if config.pos_embed_frequencies:
      cosines_BNK = batch.position_cosines(config.pos_embed_frequencies)
    return self.tokens_to_tokens(
      x_BNV,
      t_BT,
      text,
      batch.frame_ids_BN,
      rope_tables,
      cosines_BNK,
      batch.segments(text_BGSY.shape[2]),
    )

  @nn.compact
  def tokens_to_tokens(
    self,
    x_BNV: jax.Array,
    t_BT: jax.Array,
    text: Context,
    t_index_N: np.ndarray | jax.Array,
    rope_tables: tuple[jax.Array, jax.Array],
    cosines_NK: np.ndarray | jax.Array | None,
    segments: tuple[Segments, Segments] | None = None,
    *,
    control_BNV: jax.Array | None = None,
    control_scale_B: jax.Array | None = None,
    end_BT: jax.Array | None = None,
    stack: Callable = run_blocks,
  ) -> jax.Array:
    """Maps noisy tokens to predicted tokens x_BNV, at any positions."""
    config = self.config
    dtype = jnp.dtype(config.dtype)
    x_BNV = x_BNV.astype(dtype)
    x_BND = Dense(config.width, dtype=dtype, name='patch_embed')(x_BNV)
    if config.pos_embed_frequencies:
      x_BND += nn.Dense(
        config.width,
        use_bias=False,
        dtype=dtype,
        kernel_init=nn.initializers.zeros,
        name='pos_embed',
      )(cosines_NK.astype(dtype))
    timestep = embed_timestep(config, t_BT, end_BT)
    x_BND = constrain(x_BND, 'batch', 'tokens', 'width')
    if not is_precomputed(text):
      text = embed_context(config, text)
    control_text = text
    if isinstance(text, ControlContext):
      text, control_text = text
    inputs = timestep.block_BT6D, text, rope_tables, t_index_N, segments
    if config.control_layers:
      hints_JBND = self.hints(
        x_BND, control_BNV, inputs[0], control_text, *inputs[2:]
      )
      if control_scale_B is not None:
        scale_B11 = control_scale_B.astype(hints_JBND.dtype)[:, None, None]
        hints_JBND *= scale_B11
      inputs += hints_JBND, jnp.asarray(config.control_index)
    x_BND = stack(self, x_BND, *inputs)

    table = self.param(
      'head_modulation', nn.initializers.zeros, (2, config.width)
    ).astype(jnp.float32)
    shift, scale = (
      modulation_per_token(timestep.head_BTD + row, t_index_N) for row in table
    )
    x_BND = layer_norm(x_BND, config.eps) * (1 + scale) + shift
    x_BNV = Dense(
      config.patch_volume,
      dtype=dtype,
      kernel_init=nn.initializers.zeros,
      name='head',
    )(x_BND.astype(dtype))
    return x_BNV.astype(jnp.float32)

  def blocks(self, text: Context, *, hints: bool = False) -> nn.Module:
    """Returns the stack of blocks: one traced body, with parameters stacked on
    axis 0, and with them a KVCache of the text and the index of a hint."""
    more = (nn.broadcast, 0) if hints else ()
    return self._stack(Block, text, self.config.layers, *more, name='blocks')

  def hints(self, x_BND, control_BNV, modulation_BT6D, text, *inputs):
    """Returns the hints of all control blocks, (J, B, N, D)."""
    config, dtype = self.config, x_BND.dtype

    def dense(name):
      return Dense(config.width, dtype=dtype, name=name)

    c_BND = dense('control_embed')(control_BNV.astype(dtype))
    c_BND = dense('control_in')(c_BND) + x_BND
    c_BND = constrain(c_BND, 'batch', 'tokens', 'width')
    blocks = self._stack(
      ControlBlock, text, len(config.control_layers), name='control_blocks'
    )
    return blocks(c_BND, modulation_BT6D, text, *inputs)[1]

  def _stack(
    self, block: type[nn.Module], text: Context, layers: int, *axes, name: str
  ) -> nn.Module:
    """Returns a scan over layers; `axes` are those of further inputs."""
    text_axis = 0 if is_precomputed(text) else nn.broadcast
    return nn.scan(
      remat.remat(block, self.config.remat),
      variable_axes={'params': 0, LORA: 0},
      split_rngs={'params': True, DROPOUT: True},
      in_axes=(nn.broadcast, text_axis, *(nn.broadcast,) * 3, *axes),
      length=layers,
    )(self.config, name=name)

  def _grid(
    self,
    shape: tuple[int, ...],
    table: tuple[int, ...],
    *,
    per_frame: bool,
  ) -> tuple[int, int, int]:
    """Returns the tokens along time, height and width of latents of a shape."""
    sizes, patch = shape[1:4], self.config.patch
    if any(n % p for n, p in zip(sizes, patch, strict=True)):
      raise ValueError(
        f'latents {shape}: model.patch={patch} does not divide (f, h, w)'
      )
    if per_frame and table[1] not in (1, sizes[0]):
      raise ValueError(
        f'timesteps {table}: expected (B, 1) or (B, {sizes[0]}), one for each '
        'latent frame'
      )
    return tuple(n // p for n, p in zip(sizes, patch, strict=True))
