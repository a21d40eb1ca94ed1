"""Attention kernels for one device: plain matrix products, and cuDNN's.

Every kernel takes q_BNAE, k_BSAE, v_BSAE and, where some keys are padding,
mask_BS: true where a key is real; padding comes last. Packed sequences have
Segments in its place.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

# Name of the residuals of a kernel's backward pass, by which a policy of
# rematerialisation can save them (remat.py).
RESIDUALS = 'attention'
# A finite stand-in for -inf: a row without a key stays finite, and its weight
# beside any other is exactly 0.
MASKED = -1e30


class Segments(NamedTuple):
  """Segment ids of packed sequences: queries attend within their segment.

  Attributes:
    queries_BN: int32, the segment of each query; every one has some key.
    keys_BS: int32, the segment of each key.
  """

  queries_BN: jax.Array
  keys_BS: jax.Array


@dataclasses.dataclass(frozen=True)
class Kernel:
  """An implementation of attention on one device.

  Attributes:
    attend: (q, k, v, mask_BS or None) -> y_BNAE, differentiable.
    forward: (q, k, v, mask_BS) -> (y_BNAE, lse_BAN), with the log-sum-exp of
      the logits in float32, by which a ring joins its parts. None if the kernel
      does not return it.
    backward: (q, k, v, mask_BS, y, lse, dy) -> (dq, dk, dv) for this part of
      the keys, where y, lse and dy are those of all keys. None if the kernel
      has no backward.
  """

  attend: Callable
  forward: Callable | None = None
  backward: Callable | None = None


def _logits(q_BNAE, k_BSAE, mask_BS):
  logits_BANS = jnp.einsum(
    'BNAE,BSAE->BANS',
    q_BNAE * q_BNAE.shape[-1] ** -0.5,
    k_BSAE,
    preferred_element_type=jnp.float32,
  )
  if mask_BS is None:
    return logits_BANS
  if isinstance(mask_BS, Segments):
    return jnp.where(_same(mask_BS), logits_BANS, MASKED)
  return jnp.where(mask_BS[:, None, None], logits_BANS, MASKED)


def _same(segments: Segments) -> jax.Array:
  """Mask of query-key pairs of one segment, bool (B, 1, N, S)."""
  queries_BN1 = segments.queries_BN[:, :, None]
  return (queries_BN1 == segments.keys_BS[:, None])[:, None]


@jax.custom_jvp
def _softmax(logits):
  """Softmax whose result, all that its derivative needs, carries a name."""
  return jax.nn.softmax(logits, axis=-1)


@_softmax.defjvp
def _softmax_jvp(primals, tangents):
  weights = checkpoint_name(jax.nn.softmax(*primals, axis=-1), RESIDUALS)
  (tangent,) = tangents
  mean = jnp.sum(weights * tangent, axis=-1, keepdims=True)
  return weights, weights * (tangent - mean)


def plain(q_BNAE, k_BSAE, v_BSAE, mask_BS=None):
  """Attention by plain matrix products; the softmax is in float32.

  On a CPU the backward pass is faster than that of
  jax.nn.dot_product_attention (see BUILD_NOTES.md).

  Returns:
    y_BNAE, in the dtype of q.
  """
  weights_BANS = _softmax(_logits(q_BNAE, k_BSAE, mask_BS))
  return jnp.einsum(
    'BANS,BSAE->BNAE', weights_BANS.astype(q_BNAE.dtype), v_BSAE
  )


def plain_forward(q_BNAE, k_BSAE, v_BSAE, mask_BS=None):
  """See Kernel.forward."""
  logits_BANS = _logits(q_BNAE, k_BSAE, mask_BS)
  lse_BAN = jax.nn.logsumexp(logits_BANS, axis=-1)
  weights_BANS = jnp.exp(logits_BANS - lse_BAN[..., None]).astype(v_BSAE.dtype)
  return jnp.einsum('BANS,BSAE->BNAE', weights_BANS, v_BSAE), lse_BAN


def plain_backward(q_BNAE, k_BSAE, v_BSAE, mask_BS, y_BNAE, lse_BAN, dy_BNAE):
  """See Kernel.backward.

  Source: Dao et al. 2022 (FlashAttention), arXiv 2205.14135, appendix B.2.
  """
  f32 = dict(preferred_element_type=jnp.float32)
  logits_BANS = _logits(q_BNAE, k_BSAE, mask_BS)
  weights_BANS = jnp.exp(logits_BANS - lse_BAN[..., None])
  dy32, y32 = dy_BNAE.astype(jnp.float32), y_BNAE.astype(jnp.float32)
  mean_BAN = jnp.einsum('BNAE,BNAE->BAN', dy32, y32)
  dweights_BANS = jnp.einsum('BNAE,BSAE->BANS', dy_BNAE, v_BSAE, **f32)
  dlogits_BANS = weights_BANS * (dweights_BANS - mean_BAN[..., None])
  dlogits_BANS = dlogits_BANS.astype(q_BNAE.dtype)
  weights_BANS = weights_BANS.astype(q_BNAE.dtype)
  scale = q_BNAE.shape[-1] ** -0.5
  dq = jnp.einsum('BANS,BSAE->BNAE', dlogits_BANS, k_BSAE * scale, **f32)
  dk = jnp.einsum('BANS,BNAE->BSAE', dlogits_BANS, q_BNAE * scale, **f32)
  dv = jnp.einsum('BANS,BNAE->BSAE', weights_BANS, dy_BNAE, **f32)
  return dq, dk, dv


def cudnn(q_BNAE, k_BSAE, v_BSAE, mask_BS=None):
  """cuDNN's fused attention, for GPUs, in bfloat16 or float16.

  Of Segments, JAX makes a bias (B, 1, N, S) in the dtype of q, shared by all
  heads, whose gradient of the same size the backward pass writes too: a
  fraction of the logits that plain products write, but quadratic in the length
  of a row (packed_bias_bytes). cuDNN has a packed layout without it, for which
  JAX 0.10 and 0.11 have no public function.
  """
  lengths_B, mask_B1NS = None, None
  if isinstance(mask_BS, Segments):
    mask_B1NS = _same(mask_BS)
  elif mask_BS is not None:
    lengths_B = jnp.sum(mask_BS, axis=1, dtype=jnp.int32)
  return jax.nn.dot_product_attention(
    q_BNAE,
    k_BSAE,
    v_BSAE,
    mask=mask_B1NS,
    key_value_seq_lengths=lengths_B,
    implementation='cudnn',
  )


def packed_bias_bytes(rows: int, queries: int, keys: int) -> int:
  """Bytes of the bias of `cudnn` for packed rows, and of its gradient."""
  return 2 * rows * queries * keys * jnp.dtype(jnp.bfloat16).itemsize


PLAIN = Kernel(plain, plain_forward, plain_backward)
CUDNN = Kernel(cudnn)
