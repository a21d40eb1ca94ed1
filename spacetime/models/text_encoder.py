"""The UMT5 text encoder, which is T5 v1.1's with a position bias per layer.

Source: Raffel et al., 2020, arXiv:1910.10683; Shazeer, 2020, arXiv:2002.05202
(the gated GELU); Chung et al., 2023, arXiv:2304.09151 (UMT5).
"""

import dataclasses
import math

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from spacetime.models import activations
from spacetime.models.transformer.attention import RMSNorm
from spacetime.sharding import constrain

BIASES = ('layer', 'shared')


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Sizes.

  Attributes:
    vocab_size: tokens.
    d_model: width of the text, Y.
    d_kv: size of a head, E.
    num_heads: A; num_heads * d_kv need not be d_model.
    d_ff: width of the gated layer.
    num_layers: blocks.
    eps: of the norms.
    buckets: of relative positions: half to each side, half of those exact.
    max_distance: tokens from which on all share the last bucket.
    bias: 'layer' (UMT5: each block has its own table) or 'shared' (T5).
    dtype: of the computation; parameters are float32.

  Raises:
    ValueError: a size that is not positive, buckets that do not split.
  """

  vocab_size: int
  d_model: int
  d_kv: int
  num_heads: int
  d_ff: int
  num_layers: int
  eps: float = 1e-6
  buckets: int = 32
  max_distance: int = 128
  bias: str = 'layer'
  dtype: str = 'float32'

  def __post_init__(self):
    for name in (
      'vocab_size',
      'd_model',
      'd_kv',
      'num_heads',
      'd_ff',
      'num_layers',
    ):
      if getattr(self, name) < 1:
        raise ValueError(
          f'{name}={getattr(self, name)}: expected a positive integer; change '
          f'text.{name}'
        )
    if self.buckets < 4 or self.buckets % 4:
      raise ValueError(
        f'buckets={self.buckets}: expected a multiple of 4; change text.buckets'
      )
    if self.max_distance <= self.buckets // 4:
      raise ValueError(
        f'max_distance={self.max_distance}: expected more than buckets / 4 = '
        f'{self.buckets // 4}; change text.max_distance'
      )
    if self.bias not in BIASES:
      raise ValueError(
        f'bias={self.bias!r}: expected one of {BIASES}; change text.bias'
      )
    if self.dtype not in ('float32', 'bfloat16', 'float16'):
      raise ValueError(
        f'dtype={self.dtype!r}: expected float32, bfloat16 or float16; change '
        'text.dtype'
      )


def position_buckets(length: int, *, buckets: int, max_distance: int):
  """The bucket of key minus query for every pair, int32 (query, key).

  Distances below buckets / 4 have their own; the rest of each half grows by
  the logarithm. Keys after the query take the upper half.
  """
  position = np.arange(length)
  distance = position[None, :] - position[:, None]
  half = buckets // 2
  exact = half // 2
  # In float32, as the reference: a power that is exact rounds the same way.
  ratio = np.maximum(np.abs(distance), 1).astype(np.float32) / np.float32(exact)
  scale = np.float32(math.log(max_distance / exact))
  grown = (np.log(ratio) / scale * np.float32(half - exact)).astype(np.int32)
  large = np.minimum(exact + grown, half - 1)
  bucket = np.where(np.abs(distance) < exact, np.abs(distance), large)
  return (bucket + np.where(distance > 0, half, 0)).astype(np.int32)


def _normal(fan_in: int):
  return nn.initializers.normal(fan_in**-0.5)


class Block(nn.Module):
  """Attention with a bias by distance, then a gated GELU; both pre-normed."""

  cfg: TextConfig

  @nn.compact
  def __call__(self, x_BSY, bias_AST, mask_BS):
    cfg = self.cfg
    inner = cfg.num_heads * cfg.d_kv
    x_BSY = constrain(x_BSY, 'batch', None, 'width')
    if cfg.bias == 'layer':
      bias_AST = position_bias(self, cfg, length=x_BSY.shape[1])

    def dense(features, name, fan_in):
      return nn.Dense(
        features,
        use_bias=False,
        dtype=jnp.dtype(cfg.dtype),
        kernel_init=_normal(fan_in),
        name=name,
      )

    y_BSY = RMSNorm(cfg.eps, name='norm_attention')(x_BSY)
    # T5 has no 1/sqrt(E) in its scores: the start of q makes up for it.
    q = dense(inner, 'q', cfg.d_model * cfg.d_kv)(y_BSY)
    k = dense(inner, 'k', cfg.d_model)(y_BSY)
    v = dense(inner, 'v', cfg.d_model)(y_BSY)
    q_BASE, k_BATE, v_BATE = (
      einops.rearrange(y, 'B S (A E) -> B A S E', A=cfg.num_heads)
      for y in (q, k, v)
    )
    score_BAST = jnp.einsum(
      'BASE,BATE->BAST', q_BASE, k_BATE, preferred_element_type=jnp.float32
    )
    score_BAST = jnp.where(
      mask_BS[:, None, None, :],
      score_BAST + bias_AST,
      jnp.finfo(jnp.float32).min,
    )
    weight_BAST = nn.softmax(score_BAST).astype(v_BATE.dtype)
    y_BASE = jnp.einsum('BAST,BATE->BASE', weight_BAST, v_BATE)
    y_BSY = einops.rearrange(y_BASE, 'B A S E -> B S (A E)')
    x_BSY += dense(cfg.d_model, 'out', inner)(y_BSY)

    y_BSY = RMSNorm(cfg.eps, name='norm_mlp')(x_BSY)
    gate_BSM = activations.gelu(dense(cfg.d_ff, 'mlp_gate', cfg.d_model)(y_BSY))
    y_BSM = gate_BSM * dense(cfg.d_ff, 'mlp_in', cfg.d_model)(y_BSY)
    x_BSY += dense(cfg.d_model, 'mlp_out', cfg.d_ff)(y_BSM)
    return x_BSY, None


def position_bias(module: nn.Module, cfg: TextConfig, *, length: int):
  """The module's table of biases, spread over pairs: bias_AST, float32."""
  table = module.param(
    'position_bias', _normal(cfg.d_model), (cfg.buckets, cfg.num_heads)
  )
  buckets_ST = position_buckets(
    length, buckets=cfg.buckets, max_distance=cfg.max_distance
  )
  # A product with one-hot rows, since the gradient of a lookup is a scatter.
  chosen = jax.nn.one_hot(buckets_ST, cfg.buckets, dtype=jnp.float32)
  return jnp.einsum(
    'STK,KA->AST', chosen, table, precision=jax.lax.Precision.HIGHEST
  )


class Network(nn.Module):
  """Tokens and the mask of real ones -> features."""

  cfg: TextConfig

  @nn.compact
  def __call__(self, tokens_BS, mask_BS):
    cfg = self.cfg
    x_BSY = nn.Embed(
      cfg.vocab_size,
      cfg.d_model,
      dtype=jnp.dtype(cfg.dtype),
      embedding_init=nn.initializers.normal(1.0),
      name='embed',
    )(tokens_BS)
    x_BSY = constrain(x_BSY, 'batch', None, 'width')
    bias_AST = None
    if cfg.bias == 'shared':
      bias_AST = position_bias(self, cfg, length=tokens_BS.shape[1])
    blocks = nn.scan(
      nn.remat(Block, prevent_cse=False),
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(nn.broadcast, nn.broadcast),
      length=cfg.num_layers,
    )(cfg, name='blocks')
    x_BSY, _ = blocks(x_BSY, bias_AST, mask_BS)
    return RMSNorm(cfg.eps, name='norm_out')(x_BSY)


@dataclasses.dataclass(frozen=True)
class TextEncoder:
  """Tokens -> text features; methods are pure functions of the parameters."""

  cfg: TextConfig

  @property
  def width(self) -> int:
    """Features of a token, Y."""
    return self.cfg.d_model

  def init(self, key):
    """The parameters: a dict of dicts of float32 arrays."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 2), jnp.bool)
    return Network(self.cfg).lazy_init(key, tokens, mask)['params']

  def encode(self, params, tokens_BS):
    """Text features text_BSY; the rows of padding (token 0) are zero."""
    mask_BS = tokens_BS != 0
    text_BSY = Network(self.cfg).apply({'params': params}, tokens_BS, mask_BS)
    return text_BSY * mask_BS[..., None].astype(text_BSY.dtype)


PRESETS = {
  'umt5-xxl': TextConfig(
    vocab_size=256384,
    d_model=4096,
    d_kv=64,
    num_heads=64,
    d_ff=10240,
    num_layers=24,
  ),
  'digits': TextConfig(
    vocab_size=512, d_model=128, d_kv=32, num_heads=4, d_ff=256, num_layers=2
  ),
  'tiny': TextConfig(
    vocab_size=37, d_model=12, d_kv=4, num_heads=2, d_ff=20, num_layers=3
  ),
}
