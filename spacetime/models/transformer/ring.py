"""Ring attention: context parallelism over a ring of devices.

Queries stay; keys and values travel round the ring, and the partial results are
joined by their log-sum-exp, in float32. Runs inside shard_map.

The backward pass is written out. Autodiff would keep the keys and values of
every turn, which is the complete sequence on each device, or with remat send
them round once more before it starts. Here they travel again together with
their gradients, and each device keeps its own part alone. The residuals carry a
name that rematerialisation policies see; for that reason every kernel is
trained through a ring, of size one where there is none.

Source: Liu et al. 2023 (Ring Attention), arXiv 2310.01889, section 3.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from spacetime.models import precision
from spacetime.models.transformer.attention_kernels import RESIDUALS, Kernel


@dataclasses.dataclass(frozen=True)
class Ring:
  """A ring of devices along a mesh axis.

  Attributes:
    axis: mesh axis.
    size: devices in the ring.
    step: distance along the axis to the next device of the ring; the devices in
      between belong to other rings.
  """

  axis: str
  size: int
  step: int = 1

  def turn(self, tree):
    """Sends every array of a tree to the next device."""
    count = self.size * self.step
    pairs = [(i, (i + self.step) % count) for i in range(count)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axis, pairs), tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend(q_BNAE, k_BSAE, v_BSAE, mask_BS, kernel: Kernel, ring: Ring):
  """Attends from this device's queries to the keys of all devices of a ring.

  Args:
    q_BNAE: this device's queries.
    k_BSAE: this device's keys.
    v_BSAE: this device's values.
    mask_BS: true where a key is real, or None.
    kernel: with a forward and a backward.
    ring: the devices.

  Returns:
    y_BNAE, in the dtype of q.
  """
  return _forward(q_BNAE, k_BSAE, v_BSAE, mask_BS, kernel, ring)[0]


def _join(y, lse_BAN, other, other_lse_BAN):
  """Joins the results of two parts of the keys, in float32."""

  def per_token(x_BAN):
    return jnp.swapaxes(x_BAN, 1, 2)[..., None]

  top = jnp.maximum(lse_BAN, other_lse_BAN)
  one, two = jnp.exp(lse_BAN - top), jnp.exp(other_lse_BAN - top)
  total = one + two
  y = y * per_token(one / total) + other * per_token(two / total)
  return y, top + jnp.log(total)


def _forward(q, k, v, mask_BS, kernel: Kernel, ring: Ring):
  local_k, local_v = k, v
  y, lse_BAN = kernel.forward(q, k, v, mask_BS)
  y, mask = y.astype(jnp.float32), mask_BS
  # Not a scan, so that a part computes while the next one is sent.
  for _ in range(ring.size - 1):
    k, v, mask = ring.turn((k, v, mask))
    part, part_lse_BAN = kernel.forward(q, k, v, mask)
    y, lse_BAN = _join(y, lse_BAN, part.astype(jnp.float32), part_lse_BAN)
  y = checkpoint_name(y.astype(q.dtype), RESIDUALS)
  lse_BAN = checkpoint_name(lse_BAN, RESIDUALS)
  return y, (q, local_k, local_v, mask_BS, y, lse_BAN)


def _backward(kernel: Kernel, ring: Ring, residuals, dy):
  q, k, v, mask, y, lse_BAN = residuals
  dtypes = q.dtype, k.dtype, v.dtype
  dq = dk = dv = 0.0
  for turn in range(ring.size):
    if turn:
      # Gradients of keys and values travel with them.
      k, v, mask, dk, dv = ring.turn((k, v, mask, dk, dv))
    with precision.products(q.dtype):  # traced apart from the forward pass
      parts = kernel.backward(q, k, v, mask, y, lse_BAN, dy)
    parts = [part.astype(jnp.float32) for part in parts]
    dq, dk, dv = dq + parts[0], dk + parts[1], dv + parts[2]
  if ring.size > 1:
    dk, dv = ring.turn((dk, dv))
  dq, dk, dv = (
    x.astype(dtype) for x, dtype in zip((dq, dk, dv), dtypes, strict=True)
  )
  return dq, dk, dv, None


attend.defvjp(_forward, _backward)
