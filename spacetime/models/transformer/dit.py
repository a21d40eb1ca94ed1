"""The diffusion transformer: Wan's, with a noise level for every patch.

Source: Peebles & Xie 2022 (DiT), arXiv 2212.09748; Wan 2.1, arXiv 2503.20314.
With one level for the whole clip it is Wan 2.1; with one per token it is Wan
2.2 TI2V-5B. Children's names are the checkpoint's format.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from spacetime.models.transformer import (
  attention_plan,
  kv_cache,
  packed,
  patchify,
  remat,
  rope,
  timestep_embedding,
)
from spacetime.models.transformer.attention import KeysValues
from spacetime.models.transformer.block import Block, to_tokens
from spacetime.models.transformer.layers import DROPOUT, LORA, layer_norm
from spacetime.sharding import constrain


@dataclasses.dataclass(frozen=True)
class DiTConfig:
  """Sizes of the transformer.

  Attributes:
    channels: latent channels c, in and out.
    patch: latent cells a token holds (time, height, width); time is 1.
    width: D.
    heads: A; E = D / A is even and at least 6.
    layers: L.
    mlp: M.
    text_width: Y of the text that is attended to.
    frequencies: sines and cosines of the level's embedding.
    eps: of every norm.
    theta: base of the rotary wavelengths; 10,000 in Wan, less for small grids.
    pos_embed_frequencies: K cosines per axis of the absolute position
      embedding, of a token's position between the edges of its clip; 0 (as in
      Wan) has no such embedding. Rotary positions are relative: among tokens of
      pure noise they cannot distinguish left from right or first from last, so
      a model without it learns words of position and motion only from clips
      whose content shows through the noise.
    dtype: of matrix products; norms, modulation and softmax stay float32.
    attention: kernel, of attend.KERNELS; 'auto' is the platform's.
    context_attention: how keys meet queries where mesh.context splits the
      tokens, of attend.EXCHANGES.
    remat: what is saved for the backward pass, of remat.NAMES.
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

  def __post_init__(self):
    head = self.width // self.heads
    if self.width % self.heads or head % 2 or head < 6:
      raise ValueError(
        f'model.width={self.width}, model.heads={self.heads}: expected heads '
        'that divide the width into an even size of at least 6'
      )
    if self.remat not in remat.NAMES:
      raise ValueError(
        f'model.remat={self.remat!r}: expected one of {remat.NAMES}'
      )
    if self.attention not in attention_plan.KERNELS:
      raise ValueError(
        f'model.attention={self.attention!r}: expected one of '
        f'{attention_plan.KERNELS}'
      )
    if self.context_attention not in attention_plan.EXCHANGES:
      raise ValueError(
        f'model.context_attention={self.context_attention!r}: expected one of '
        f'{attention_plan.EXCHANGES}'
      )
    if self.frequencies % 2:
      raise ValueError(f'model.frequencies={self.frequencies}: expected even')
    if self.pos_embed_frequencies < 0:
      raise ValueError(
        f'model.pos_embed_frequencies={self.pos_embed_frequencies}: expected 0 '
        'or more'
      )

  @property
  def patch_volume(self) -> int:
    """Values in one token, V."""
    return math.prod(self.patch) * self.channels


def whole_stack(model: 'DiT', x_BND, *inner) -> jax.Array:
  """All blocks, one after another."""
  return model.blocks(inner[1])(x_BND, *inner)[0]


class DiT(nn.Module):
  """Predicts the flow at latents, given a level per frame and a text.

  Attributes:
    config: sizes.
    scaling: of time's positions, in clips longer than those trained on. No
      size of the network: whoever samples chooses it.
  """

  config: DiTConfig
  scaling: rope.Scaling | None = None

  def __call__(
    self, z_Bfhwc, t_BT, text, t_index_fhw=None, *, stack=whole_stack
  ):
    """One prediction.

    Args:
      z_Bfhwc: noisy latents, float.
      t_BT: level of each latent frame in [0, 1], (B, f); or (B, 1), one for
        the whole clip, at no cost.
      text: features (B, S, Y), of which rows past the text are zeros and take
        part; or what text_keys.prepare made of them.
      t_index_fhw: index in t_BT for each latent cell, int, one for all cells of
        a token; None is that of its frame.
      stack: (model, x_BND, what each block takes besides) -> x_BND, how the
        blocks are run; see first_block_cache.py.

    Returns:
      float32 (B, f, h, w, c): a velocity or a sample, as it was trained.

    Raises:
      ValueError: latents that the patches do not divide, or levels for
        another number of frames.
    """
    config = self.config
    grid = self.grid(z_Bfhwc.shape, t_BT.shape, rows=t_index_fhw is not None)
    position_N3 = patchify.positions(grid)
    row_N = position_N3[:, 0]
    if t_index_fhw is not None:
      row_N = jnp.ravel(t_index_fhw[:, :: config.patch[1], :: config.patch[2]])
    rope_tables = rope.tables(
      position_N3,
      head_size=config.width // config.heads,
      theta=config.theta,
      scaling=self.scaling,
    )
    y_BNV = self.network(
      patchify.patchify(z_Bfhwc, config.patch),
      t_BT,
      text,
      row_N,
      rope_tables,
      patchify.position_cosines(grid, config.pos_embed_frequencies)
      if config.pos_embed_frequencies
      else None,
      stack=stack,
    )
    return patchify.unpatchify(y_BNV, config.patch, grid)

  def packed(self, x_BNV, t_BT, text_BGSY, rows: packed.Rows):
    """One prediction for rows of several clips, each as if it were alone.

    Args:
      x_BNV: noisy patches, float.
      t_BT: table of levels, a row for each latent frame of each clip.
      text_BGSY: text features of each clip.
      rows: where the tokens are.

    Returns:
      float32 (B, N, V).
    """
    config = self.config
    return self.network(
      x_BNV,
      t_BT,
      packed.text_row(text_BGSY),
      rows.frame_BN,
      rows.rope_tables(
        head_size=config.width // config.heads, theta=config.theta
      ),
      rows.position_cosines(config.pos_embed_frequencies)
      if config.pos_embed_frequencies
      else None,
      rows.segments(text_BGSY.shape[2]),
    )

  @nn.compact
  def network(
    self,
    x_BNV,
    t_BT,
    text,
    row_N,
    rope_tables,
    position_NK,
    segments=None,
    *,
    stack=whole_stack,
  ):
    """Tokens to tokens, wherever they are."""
    config = self.config
    dtype = jnp.dtype(config.dtype)
    x_BNV = x_BNV.astype(dtype)
    x_BND = nn.Dense(config.width, dtype=dtype, name='patch_embed')(x_BNV)
    if config.pos_embed_frequencies:
      x_BND += nn.Dense(
        config.width,
        use_bias=False,
        dtype=dtype,
        kernel_init=nn.initializers.zeros,
        name='pos_embed',
      )(position_NK.astype(dtype))
    time = timestep_embedding.embed(config, t_BT)
    x_BND = constrain(x_BND, 'batch', 'tokens', 'width')
    if not isinstance(text, KeysValues):
      text = kv_cache.embed(config, text)
    x_BND = stack(
      self, x_BND, time.block_BT6D, text, rope_tables, row_N, segments
    )

    table = self.param(
      'head_modulation', nn.initializers.zeros, (2, config.width)
    ).astype(jnp.float32)
    shift, scale = (to_tokens(time.head_BTD + row, row_N) for row in table)
    x_BND = layer_norm(x_BND, config.eps) * (1 + scale) + shift
    x_BNV = nn.Dense(
      config.patch_volume,
      dtype=dtype,
      kernel_init=nn.initializers.zeros,
      name='head',
    )(x_BND.astype(dtype))
    return x_BNV.astype(jnp.float32)

  def blocks(self, text):
    """The stack of blocks: one traced body, parameters stacked on axis 0, and
    with them the text's keys and values if it comes as these."""
    along = 0 if isinstance(text, KeysValues) else nn.broadcast
    return nn.scan(
      remat.remat(Block, self.config.remat),
      variable_axes={'params': 0, LORA: 0},
      split_rngs={'params': True, DROPOUT: True},
      in_axes=(nn.broadcast, along, *(nn.broadcast,) * 3),
      length=self.config.layers,
    )(self.config, name='blocks')

  def grid(self, shape, table, *, rows: bool) -> tuple[int, int, int]:
    """Tokens along time, height and width of latents of this shape."""
    sizes, patch = shape[1:4], self.config.patch
    if any(n % p for n, p in zip(sizes, patch, strict=True)):
      raise ValueError(
        f'latents {shape}: model.patch={patch} does not divide (f, h, w)'
      )
    if not rows and table[1] not in (1, sizes[0]):
      raise ValueError(
        f'levels {table}: expected (B, 1) or (B, {sizes[0]}), one for each '
        'latent frame'
      )
    return tuple(n // p for n, p in zip(sizes, patch, strict=True))
