"""Rematerialisation: how often each policy runs a kernel, counted."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core
from jax.interpreters import partial_eval

from spacetime.models.transformer import attention_kernels, remat, ring, splash
from tests.helpers.seeded_weights import draw

Q, K, V = (
  draw(name, (1, n, 2, 8)) for name, n in (('q', 6), ('k', 8), ('v', 8))
)


def count(jaxpr, primitive: str) -> int:
  """Counts calls of a primitive, those of inner programs included."""
  total = 0
  for equation in jaxpr.eqns:
    total += equation.primitive.name == primitive
    if equation.primitive.name == 'pallas_call':
      continue
    for value in jax.tree.leaves(
      list(equation.params.values()),
      is_leaf=lambda x: isinstance(x, (core.Jaxpr, core.ClosedJaxpr)),
    ):
      inner = getattr(value, 'jaxpr', value)
      if isinstance(inner, core.Jaxpr):
        total += count(inner, primitive)
  return total


def calls(attend, name: str, primitive: str) -> int:
  """Counts calls in a training step of attention between elementwise ops."""

  def block(q, k, v):
    return jnp.sin(attend(jnp.cos(q), jnp.cos(k), jnp.cos(v)))

  if name != 'none':
    block = jax.checkpoint(block, policy=remat.policy(name))
  loss = lambda q, k, v: jnp.sum(block(q, k, v))  # noqa: E731
  traced = jax.make_jaxpr(jax.value_and_grad(loss, (0, 1, 2)))(Q, K, V)
  # Dead code goes, as it does in the compiler.
  live, _ = partial_eval.dce_jaxpr(traced.jaxpr, [True] * 4)
  return count(live, primitive)


def ring_of_splash(q, k, v, size=1):
  """The TPU kernel on a ring of devices, as in training."""
  mesh = jax.sharding.AbstractMesh(
    (size,), ('context',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  spec = jax.sharding.PartitionSpec(None, 'context')
  part = functools.partial(
    ring.attend,
    mask_BS=None,
    kernel=splash.kernel('TPU v5p'),
    ring=ring.Ring('context', size),
  )
  return jax.shard_map(
    part, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False
  )(q, k, v)


KERNELS = {
  # A softmax takes one exponential, and a backward pass of weights none.
  'plain': (attention_kernels.plain, 'exp', 1),
  # Forward, and gradients of queries and of keys and values.
  'splash': (ring_of_splash, 'pallas_call', 3),
}


@pytest.mark.slow
@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize(
  'name, again', [('none', 0), ('full', 1), ('attention', 0), ('offload', 0)]
)
def test_kernels_run_forward_once_unless_remat_is_full(kernel, name, again):
  attend, primitive, once = KERNELS[kernel]
  assert calls(attend, name, primitive) == once + again


def test_ring_runs_forward_kernels_once():
  two = functools.partial(ring_of_splash, size=2)
  assert calls(two, 'attention', 'pallas_call') == 2 * 3
  assert calls(two, 'full', 'pallas_call') == 2 * 4
