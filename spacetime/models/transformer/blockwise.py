"""Attention by blocks of queries, for CPUs.

Plain attention writes the logits of all heads to memory and reads them several
times, which on a CPU takes longer than the products. Here one head and one
block of queries at a time has its logits in the cache, forwards and backwards.

Source: Dao et al. 2022 (FlashAttention), arXiv 2205.14135, appendix B; blocks
are of queries alone.
"""

import jax
import jax.numpy as jnp

from spacetime.models.transformer import attention_kernels, ring
from spacetime.models.transformer.attention_kernels import MASKED, Segments

QUERIES = 128  # queries of a block
# Bytes of all logits in float32 below which they stay in the cache anyway, and
# plain products are faster.
SMALL = 2**20
F32 = dict(preferred_element_type=jnp.float32)


def _is_small(q_BNAE: jax.Array, k_BSAE: jax.Array) -> bool:
  batch, queries, heads, _ = q_BNAE.shape
  return batch * heads * queries * k_BSAE.shape[1] * 4 <= SMALL


def _by_head(x_BSAE: jax.Array) -> jax.Array:
  """(B, S, A, E) -> (B, A, S, E)."""
  return jnp.swapaxes(x_BSAE, 1, 2)


def _in_blocks(x: jax.Array, axis: int) -> jax.Array:
  """Splits an axis of queries into (blocks, queries of a block).

  Queries that fill the last block are zeros, and so are their gradients.
  """
  length = x.shape[axis]
  size = min(QUERIES, length)
  blocks = -(-length // size)
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, blocks * size - length)
  x = jnp.pad(x, widths)
  return x.reshape(*x.shape[:axis], blocks, size, *x.shape[axis + 1 :])


def _joined(x: jax.Array, axis: int, length: int) -> jax.Array:
  """Undoes _in_blocks."""
  x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
  return jax.lax.slice_in_dim(x, 0, length, axis=axis)


def _segments(mask_BS, queries: int) -> tuple[jax.Array, jax.Array] | None:
  """Segment ids of queries, in blocks (B, blocks, Q), and of keys (B, S)."""
  if mask_BS is None:
    return None
  if not isinstance(mask_BS, Segments):
    # One segment, of which padding is not.
    shape = mask_BS.shape[0], queries
    mask_BS = Segments(jnp.ones(shape, bool), mask_BS)
  return _in_blocks(mask_BS.queries_BN, 1), mask_BS.keys_BS


def _logits(q_QE, k_SE, ids_Q, ids_S):
  """Logits of one block of one head, float32 (Q, S); q is scaled."""
  logits_QS = jnp.einsum('QE,SE->QS', q_QE, k_SE, **F32)
  if ids_Q is None:
    return logits_QS
  return jnp.where(ids_Q[:, None] == ids_S, logits_QS, MASKED)


def _scaled_blocks(q_BNAE: jax.Array) -> jax.Array:
  """Scaled queries (B, A, blocks, Q, E)."""
  return _in_blocks(_by_head(q_BNAE * q_BNAE.shape[-1] ** -0.5), 2)


def _over_heads(head, per_head, segments):
  """Calls `head` with the arrays of each clip and head, and the clip's ids.

  Args:
    head: (arrays of a head, (ids of queries in blocks, ids of keys)) -> arrays.
    per_head: arrays (B, A, ...).
    segments: of _segments.

  Returns:
    what `head` returns, stacked to (B, A, ...).
  """

  def clip(inputs):
    arrays, ids = inputs
    ids = (None, None) if ids is None else ids
    return jax.lax.map(lambda of_head: head(of_head, ids), arrays)

  return jax.lax.map(clip, (per_head, segments))


def forward(q_BNAE, k_BSAE, v_BSAE, mask_BS=None):
  """See attention_kernels.Kernel.forward."""
  if _is_small(q_BNAE, k_BSAE):
    return attention_kernels.plain_forward(q_BNAE, k_BSAE, v_BSAE, mask_BS)
  queries = q_BNAE.shape[1]

  def head(arrays, ids):
    """(y, lse) of a head, (blocks, Q, E) and (blocks, Q)."""
    q, k_SE, v_SE = arrays
    ids_queries, ids_S = ids

    def block(inputs):
      """(y_QE, lse_Q) of a block of queries."""
      q_QE, ids_Q = inputs
      logits_QS = _logits(q_QE, k_SE, ids_Q, ids_S)
      top_Q1 = jnp.max(logits_QS, axis=-1, keepdims=True)
      weights_QS = jnp.exp(logits_QS - top_Q1)
      # Divided after the product: there are fewer results than weights.
      total_Q1 = jnp.sum(weights_QS, axis=-1, keepdims=True)
      y_QE = jnp.einsum('QS,SE->QE', weights_QS.astype(v_SE.dtype), v_SE, **F32)
      lse_Q = (top_Q1 + jnp.log(total_Q1))[:, 0]
      return (y_QE / total_Q1).astype(v_SE.dtype), lse_Q

    return jax.lax.map(block, (q, ids_queries))

  y, lse = _over_heads(
    head,
    (_scaled_blocks(q_BNAE), _by_head(k_BSAE), _by_head(v_BSAE)),
    _segments(mask_BS, queries),
  )
  return _by_head(_joined(y, 2, queries)), _joined(lse, 2, queries)


def backward(q_BNAE, k_BSAE, v_BSAE, mask_BS, y_BNAE, lse_BAN, dy_BNAE):
  """See attention_kernels.Kernel.backward."""
  if _is_small(q_BNAE, k_BSAE):
    return attention_kernels.plain_backward(
      q_BNAE, k_BSAE, v_BSAE, mask_BS, y_BNAE, lse_BAN, dy_BNAE
    )
  queries = q_BNAE.shape[1]
  mean_BAN = jnp.einsum('BNAE,BNAE->BAN', dy_BNAE, y_BNAE, **F32)

  def head(arrays, ids):
    """(dq, dk_SE, dv_SE) of a head; dq is (blocks, Q, E), in float32."""
    q, k_SE, v_SE, dy, lse, mean = arrays
    ids_queries, ids_S = ids

    def block(gradients, inputs):
      """Adds a block's gradients of keys and values; returns its dq_QE."""
      dk_SE, dv_SE = gradients
      q_QE, dy_QE, lse_Q, mean_Q, ids_Q = inputs
      logits_QS = _logits(q_QE, k_SE, ids_Q, ids_S)
      weights_QS = jnp.exp(logits_QS - lse_Q[:, None])
      dweights_QS = jnp.einsum('QE,SE->QS', dy_QE, v_SE, **F32)
      dlogits_QS = weights_QS * (dweights_QS - mean_Q[:, None])
      dlogits_QS = dlogits_QS.astype(q_QE.dtype)
      weights_QS = weights_QS.astype(q_QE.dtype)
      dk_SE += jnp.einsum('QS,QE->SE', dlogits_QS, q_QE, **F32)
      dv_SE += jnp.einsum('QS,QE->SE', weights_QS, dy_QE, **F32)
      return (dk_SE, dv_SE), jnp.einsum('QS,SE->QE', dlogits_QS, k_SE, **F32)

    zeros = (
      jnp.zeros(k_SE.shape, jnp.float32),
      jnp.zeros(v_SE.shape, jnp.float32),
    )
    (dk_SE, dv_SE), dq = jax.lax.scan(
      block, zeros, (q, dy, lse, mean, ids_queries)
    )
    return dq, dk_SE, dv_SE

  per_head = (
    _scaled_blocks(q_BNAE),
    _by_head(k_BSAE),
    _by_head(v_BSAE),
    _in_blocks(_by_head(dy_BNAE), 2),
    _in_blocks(lse_BAN, 2),
    _in_blocks(mean_BAN, 2),
  )
  dq, dk, dv = _over_heads(head, per_head, _segments(mask_BS, queries))
  dq_BNAE = _by_head(_joined(dq, 2, queries)) * q_BNAE.shape[-1] ** -0.5
  return dq_BNAE, _by_head(dk), _by_head(dv)


def attend(q_BNAE, k_BSAE, v_BSAE, mask_BS=None):
  """See attention_kernels.Kernel.attend."""
  if _is_small(q_BNAE, k_BSAE):
    return attention_kernels.plain(q_BNAE, k_BSAE, v_BSAE, mask_BS)
  alone = ring.Ring('', 1)  # of one device: none that has to be named
  return ring.attend(q_BNAE, k_BSAE, v_BSAE, mask_BS, KERNEL, alone)


KERNEL = attention_kernels.Kernel(attend, forward, backward)
