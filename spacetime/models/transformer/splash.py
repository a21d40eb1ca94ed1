"""Splash attention: Pallas' flash attention for TPUs, three kernels a step.

Sequences are padded to multiples of a block; segment ids mark the padding.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as library,
)

from spacetime.models.transformer.attention_kernels import (
  RESIDUALS,
  Kernel,
  Segments,
)

LANES = 128  # of a vector register of a TPU: blocks are multiples of it
PADDING = 1 / 8  # of a sequence, at most, that whole blocks may add


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Block sizes of the kernels, in tokens; multiples of 128.

  A block of queries attends to every key, so that each value read serves as
  many products as the block has rows: larger blocks suit chips that compute
  more per byte read. The logits of a block, queries x keys in float32, have to
  fit into vector memory.

  Attributes:
    queries: block of queries, forward and for the gradient of queries.
    keys: block of keys read there.
    compute: keys of it multiplied at once.
    back_queries: block of queries read for the gradients of keys and values.
    back_keys: block of keys whose gradients are accumulated there.
    back_compute: keys of it multiplied at once.
  """

  queries: int
  keys: int
  compute: int
  back_queries: int
  back_keys: int
  back_compute: int


_SMALL = Blocks(1024, 1024, 512, 512, 1024, 512)
_LARGE = Blocks(2048, 1024, 512, 1024, 1024, 512)
# By `device.device_kind`.
BLOCKS = {
  'TPU v4': _SMALL,
  'TPU v5 lite': _SMALL,
  'TPU v5e': _SMALL,
  'TPU v5': _SMALL,
  'TPU v5p': _SMALL,
  'TPU v6 lite': _LARGE,
  'TPU v6e': _LARGE,
  'TPU7x': _LARGE,
}


def kernel(device_kind: str, *, interpret: bool = False) -> Kernel:
  """Returns the kernel for a kind of device; unknown ones get small blocks.

  Args:
    device_kind: the kind, as JAX names it.
    interpret: whether to interpret it without a TPU, slowly; for tests.
  """
  options = dict(blocks=BLOCKS.get(device_kind, _SMALL), interpret=interpret)
  return Kernel(
    functools.partial(attend, **options),
    functools.partial(forward, **options),
    functools.partial(backward, **options),
  )


def attend(q_BNAE, k_BSAE, v_BSAE, mask_BS=None, *, blocks, interpret=False):
  """See Kernel.attend."""
  call = _Call(q_BNAE, k_BSAE, mask_BS, blocks, interpret)
  y_BANE = jax.vmap(call.kernel())(
    call.queries(q_BNAE), call.keys(k_BSAE), call.keys(v_BSAE), call.segments
  )
  return call.rows(y_BANE)


def forward(q_BNAE, k_BSAE, v_BSAE, mask_BS=None, *, blocks, interpret=False):
  """See Kernel.forward."""
  call = _Call(q_BNAE, k_BSAE, mask_BS, blocks, interpret)
  y_BANE, (lse_BAN,) = jax.vmap(call.kernel(save_residuals=True))(
    call.queries(q_BNAE), call.keys(k_BSAE), call.keys(v_BSAE), call.segments
  )
  return call.rows(y_BANE), lse_BAN[:, :, : q_BNAE.shape[1]]


def backward(
  *arrays_and_mask, blocks, interpret=False
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """See Kernel.backward.

  Calls the library's own rule with the result and log-sum-exp over all keys:
  its public function differentiates only with respect to the keys of one call.
  """
  q_BNAE, k_BSAE, v_BSAE, mask_BS, y_BNAE, lse_BAN, dy_BNAE = arrays_and_mask
  call = _Call(q_BNAE, k_BSAE, mask_BS, blocks, interpret)
  splash_kernel = call.kernel()
  rest = call.padded_queries - q_BNAE.shape[1]
  lse_BAN = jnp.pad(lse_BAN, ((0, 0), (0, 0), (0, rest)))
  options = splash_kernel.kwargs

  def one(q, k, v, segments, y, lse, dy):
    """Gradients of one clip."""
    residuals = (q, k, v, segments, None, y, lse)
    return library._splash_attention_bwd(
      False,
      options['mask_value'],
      False,
      options['block_sizes'],
      None,
      options['mask_function'],
      None,
      interpret,
      (
        *residuals,
        splash_kernel.dq_mask_info,
        splash_kernel.dkv_mask_info,
      ),
      dy,
    )[3:6]

  dq, dk, dv = jax.vmap(one)(
    call.queries(q_BNAE),
    call.keys(k_BSAE),
    call.keys(v_BSAE),
    call.segments,
    call.swapped(y_BNAE, call.padded_queries),
    lse_BAN,
    call.swapped(dy_BNAE, call.padded_queries),
  )
  keys = k_BSAE.shape[1]
  dq = call.rows(dq) * q_BNAE.shape[-1] ** -0.5
  return dq, call.rows(dk, keys), call.rows(dv, keys)


class _Call:
  """Padded shapes, block sizes and segments of one call."""

  def __init__(self, q_BNAE, k_BSAE, mask_BS, blocks: Blocks, interpret: bool):
    self.rows_B, self.tokens, self.heads, _ = q_BNAE.shape
    self.interpret = interpret
    queries, back_queries = fit(
      (blocks.queries, blocks.back_queries), self.tokens
    )
    keys, back_keys = fit((blocks.keys, blocks.back_keys), k_BSAE.shape[1])
    self.padded_queries = pad_to(self.tokens, queries, back_queries)
    self.padded_keys = pad_to(k_BSAE.shape[1], keys, back_keys)
    self.sizes = splash_attention.BlockSizes(
      block_q=queries,
      block_kv=keys,
      block_kv_compute=int(np.gcd(keys, blocks.compute)),
      block_q_dkv=back_queries,
      block_kv_dkv=back_keys,
      block_kv_dkv_compute=int(np.gcd(back_keys, blocks.back_compute)),
      block_q_dq=queries,
      block_kv_dq=keys,
    )
    self.segments = self._segments(mask_BS, k_BSAE.shape[1])

  def _segments(self, mask_BS, keys: int):
    """Returns segment ids: 0 for queries and real keys, 1 for padded keys.

    Padded queries attend to real keys; their results are not read.
    """
    rest = self.padded_keys - keys
    if isinstance(mask_BS, Segments):
      more = self.padded_queries - self.tokens
      # Padded keys have a segment of their own; padded queries are not read.
      return splash_attention.SegmentIds(
        jnp.pad(mask_BS.queries_BN, ((0, 0), (0, more)), mode='edge'),
        jnp.pad(mask_BS.keys_BS, ((0, 0), (0, rest)), constant_values=-1),
      )
    if mask_BS is None and not rest:
      return None
    if mask_BS is None:
      mask_BS = jnp.ones((self.rows_B, keys), bool)
    padding_BS = jnp.pad(~mask_BS, ((0, 0), (0, rest)), constant_values=True)
    zeros = jnp.zeros((self.rows_B, self.padded_queries), jnp.int32)
    return splash_attention.SegmentIds(zeros, padding_BS.astype(jnp.int32))

  def kernel(self, *, save_residuals: bool = False):
    """Returns the library's kernel."""
    shape = self.padded_queries, self.padded_keys
    mask = splash_attention.MultiHeadMask(
      [splash_attention.FullMask(shape)] * self.heads
    )
    return splash_attention.make_splash_mha(
      mask,
      block_sizes=self.sizes,
      save_residuals=save_residuals,
      head_shards=1,
      q_seq_shards=1,
      residual_checkpoint_name=RESIDUALS,
      interpret=self.interpret,
    )

  def swapped(self, x_BNAE, length: int):
    """Returns (B, A, N, E), padded to a length."""
    x_BANE = jnp.swapaxes(x_BNAE, 1, 2)
    rest = length - x_BANE.shape[2]
    return jnp.pad(x_BANE, ((0, 0), (0, 0), (0, rest), (0, 0)))

  def queries(self, q_BNAE):
    """Scales, swaps and pads queries."""
    q_BNAE = q_BNAE * q_BNAE.shape[-1] ** -0.5
    return self.swapped(q_BNAE, self.padded_queries)

  def keys(self, k_BSAE):
    """Swaps and pads keys or values."""
    return self.swapped(k_BSAE, self.padded_keys)

  def rows(self, x_BANE, length: int | None = None):
    """Returns (B, N, A, E) without padding."""
    length = self.tokens if length is None else length
    return jnp.swapaxes(x_BANE[:, :, :length], 1, 2)


def fit(blocks: tuple[int, ...], length: int) -> tuple[int, ...]:
  """Returns the blocks, or smaller ones for a sequence that they do not suit.

  A sequence shorter than a block is one block. One of a few blocks, which would
  be padded by more than PADDING, is divided evenly: of 1,040 tokens, two blocks
  of 1,024 would compute four times the logits.
  """
  count = -(-length // max(blocks))
  if count > 1 and pad_to(length, *blocks) <= (1 + PADDING) * length:
    return blocks
  return (pad_to(-(-length // count), LANES),) * len(blocks)


def pad_to(length: int, *blocks: int) -> int:
  """Returns the least padded length that every block divides."""
  unit = int(np.lcm.reduce(blocks))
  return -(-length // unit) * unit
