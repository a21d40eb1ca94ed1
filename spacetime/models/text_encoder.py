"""The UMT5 text encoder: T5 v1.1's encoder with a position bias per layer.

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

from spacetime import SettingError
from spacetime.models import activations, precision
from spacetime.models.transformer.layers import RMSNorm
from spacetime.sharding import constrain

BIASES = ('layer', 'shared')
BIAS_INITS = ('normal', 'local')
# Bias of the keys on the side that a local head does not look at.
AWAY = -8.0


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Sizes of the text encoder, named as transformers' UMT5Config names them.

  Attributes:
    vocab_size: rows of the token embedding.
    d_model: text width, Y.
    d_kv: head size, E.
    num_heads: attention heads, A; num_heads * d_kv may differ from d_model.
    d_ff: width of the gated MLP.
    num_layers: number of blocks.
    eps: number added to the mean square in every norm.
    buckets: buckets of relative positions: half for each direction, half of
      those for exact distances.
    max_distance: distance in tokens from which on all share the last bucket.
    bias: 'layer' (UMT5: a table per block) or 'shared' (T5: one table).
    bias_init: how tables of biases begin: 'normal' (UMT5), or 'local', where
      half of the heads look at the nearest tokens from the start, in turn
      after and before. A small encoder learns to tell "a red 3 and a blue 7"
      from "a red 7 and a blue 3" only so.
    dtype: compute dtype; parameters are float32.

  Raises:
    SettingError: a size that is not positive, or buckets that do not split.
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
  bias_init: str = 'normal'
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
        raise SettingError(
          f'text.{name}', getattr(self, name), 'a positive integer'
        )
    if self.buckets < 4 or self.buckets % 4:
      raise SettingError('text.buckets', self.buckets, 'a multiple of 4')
    if self.max_distance <= self.buckets // 4:
      raise SettingError(
        'text.max_distance',
        self.max_distance,
        f'more than `text.buckets` / 4 = {self.buckets // 4}',
      )
    if self.bias not in BIASES:
      raise SettingError('text.bias', self.bias, f'one of {BIASES}')
    if self.bias_init not in BIAS_INITS:
      raise SettingError(
        'text.bias_init', self.bias_init, f'one of {BIAS_INITS}'
      )
    if self.dtype not in ('float32', 'bfloat16', 'float16'):
      raise SettingError(
        'text.dtype', self.dtype, 'float32, bfloat16 or float16'
      )


def position_buckets(
  length: int, *, buckets: int, max_distance: int
) -> np.ndarray:
  """Returns the bucket of (key - query) for every pair, int32 (query, key).

  Distances below buckets / 4 have a bucket each; the rest of each half grows
  logarithmically. Keys after the query use the upper half.
  """
  position = np.arange(length)
  distance = position[None, :] - position[:, None]
  half = buckets // 2
  exact = half // 2
  # In float32, so that exact powers round as in the reference.
  ratio = np.maximum(np.abs(distance), 1).astype(np.float32) / np.float32(exact)
  scale = np.float32(math.log(max_distance / exact))
  grown = (np.log(ratio) / scale * np.float32(half - exact)).astype(np.int32)
  large = np.minimum(exact + grown, half - 1)
  bucket = np.where(np.abs(distance) < exact, np.abs(distance), large)
  return (bucket + np.where(distance > 0, half, 0)).astype(np.int32)


def local_biases(buckets: int, heads: int) -> np.ndarray:
  """Biases of heads that look at near tokens, float32 (buckets, heads).

  The first quarter of the heads looks at the tokens after the query, the second
  at those before it, 1 less for each token of distance; the others have none.
  """
  half = buckets // 2
  distance_K = np.arange(half, dtype=np.float32)
  table_KA = np.zeros((buckets, heads), np.float32)
  quarter = max(heads // 4, 1)
  for first, near, far in ((0, half, 0), (quarter, 0, half)):
    table_KA[far : far + half, first : first + quarter] = AWAY
    table_KA[near : near + half, first : first + quarter] = -distance_K[:, None]
  # The token itself is in the residual.
  table_KA[0, : 2 * quarter] = AWAY
  return table_KA


def _normal(fan_in: int) -> nn.initializers.Initializer:
  return nn.initializers.normal(fan_in**-0.5)


class Block(nn.Module):
  """Pre-norm block: attention with position bias, then a gated GELU MLP."""

  config: TextConfig

  @nn.compact
  def __call__(self, x_BSY, bias_AST, mask_BS):
    config = self.config
    inner = config.num_heads * config.d_kv
    x_BSY = constrain(x_BSY, 'batch', None, 'width')
    if config.bias == 'layer':
      bias_AST = position_bias(self, config, length=x_BSY.shape[1])

    def dense(features, name, fan_in):
      return nn.Dense(
        features,
        use_bias=False,
        dtype=jnp.dtype(config.dtype),
        kernel_init=_normal(fan_in),
        name=name,
      )

    y_BSY = RMSNorm(config.eps, name='norm_attention')(x_BSY)
    # T5 scores have no 1/sqrt(E): the initialisation of q includes it.
    q = dense(inner, 'q', config.d_model * config.d_kv)(y_BSY)
    k = dense(inner, 'k', config.d_model)(y_BSY)
    v = dense(inner, 'v', config.d_model)(y_BSY)
    q_BASE, k_BATE, v_BATE = (
      einops.rearrange(y, 'B S (A E) -> B A S E', A=config.num_heads)
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
    x_BSY += dense(config.d_model, 'out', inner)(y_BSY)

    y_BSY = RMSNorm(config.eps, name='norm_mlp')(x_BSY)
    gate_BSM = activations.gelu(
      dense(config.d_ff, 'mlp_gate', config.d_model)(y_BSY)
    )
    y_BSM = gate_BSM * dense(config.d_ff, 'mlp_in', config.d_model)(y_BSY)
    x_BSY += dense(config.d_model, 'mlp_out', config.d_ff)(y_BSM)
    return x_BSY, None


def position_bias(
  module: nn.Module, config: TextConfig, *, length: int
) -> jax.Array:
  """Returns bias_AST, float32, from the module's table of biases."""

  def init(key, shape):
    table_KA = _normal(config.d_model)(key, shape)
    if config.bias_init == 'local':
      table_KA += local_biases(*shape)
    return table_KA

  table = module.param(
    'position_bias', init, (config.buckets, config.num_heads)
  )
  buckets_ST = position_buckets(
    length, buckets=config.buckets, max_distance=config.max_distance
  )
  # A product with one-hot rows: the gradient of a lookup would be a scatter.
  one_hot = jax.nn.one_hot(buckets_ST, config.buckets, dtype=jnp.float32)
  return jnp.einsum('STK,KA->AST', one_hot, table, precision=precision.FLOAT32)


class Network(nn.Module):
  """Text encoder: tokens and the mask of real ones -> text_BSY."""

  config: TextConfig

  @nn.compact
  def __call__(self, tokens_BS, mask_BS):
    config = self.config
    x_BSY = nn.Embed(
      config.vocab_size,
      config.d_model,
      dtype=jnp.dtype(config.dtype),
      embedding_init=nn.initializers.normal(1.0),
      name='embed',
    )(tokens_BS)
    x_BSY = constrain(x_BSY, 'batch', None, 'width')
    bias_AST = None
    if config.bias == 'shared':
      bias_AST = position_bias(self, config, length=tokens_BS.shape[1])
    blocks = nn.scan(
      nn.remat(Block, prevent_cse=False),
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(nn.broadcast, nn.broadcast),
      length=config.num_layers,
    )(config, name='blocks')
    x_BSY, _ = blocks(x_BSY, bias_AST, mask_BS)
    return RMSNorm(config.eps, name='norm_out')(x_BSY)


@dataclasses.dataclass(frozen=True)
class TextEncoder:
  """Text encoder whose methods are pure functions of the parameters."""

  config: TextConfig

  @property
  def width(self) -> int:
    """Text width, Y."""
    return self.config.d_model

  def init(self, key: jax.Array) -> dict:
    """Returns fresh parameters: nested dicts of float32 arrays."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 2), jnp.bool)
    return Network(self.config).lazy_init(key, tokens, mask)['params']

  def encode(self, params: dict, tokens_BS: jax.Array) -> jax.Array:
    """Returns prompt embeddings text_BSY; padding (token 0) is zero."""
    mask_BS = tokens_BS != 0
    with precision.products(self.config.dtype):
      text_BSY = Network(self.config).apply(
        {'params': params}, tokens_BS, mask_BS
      )
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
