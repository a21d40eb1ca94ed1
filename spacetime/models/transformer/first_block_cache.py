"""Steps of sampling that skip all blocks but the first.

Between two steps that are close the blocks add nearly the same to their input.
The first block tells how close: where what it adds has changed by less than a
threshold since all blocks were last computed (the sum of absolute differences,
relative, in every clip of the batch), what the others added then is added
again. As it is compared with the last step that was computed, small changes
cannot add up unseen.

Source: the idea of Liu et al. 2024 (TeaCache), arXiv 2411.19108, told by the
first block's residual in place of a fitted polynomial of the input.
"""

import dataclasses

import jax
import jax.numpy as jnp

from spacetime.models.transformer import dit
from spacetime.models.transformer.attention import KeysValues
from spacetime.models.transformer.layers import LORA


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
  """Of the last step that was computed whole.

  Attributes:
    first_BND: what the first block added.
    rest_BND: what the others added.
    computed: steps computed whole so far, int32.
    asked: steps so far, int32.
  """

  first_BND: jax.Array
  rest_BND: jax.Array
  computed: jax.Array
  asked: jax.Array


def begin(config: dit.DiTConfig, shape: tuple[int, ...]) -> Memory:
  """Before the first step, which is computed: nothing is near to zeros.

  Args:
    config: of the transformer.
    shape: of the latents that it is called with, (B, f, h, w, c).
  """
  cells = zip(shape[1:4], config.patch, strict=True)
  tokens = [n // p for n, p in cells]
  size = (shape[0], tokens[0] * tokens[1] * tokens[2], config.width)
  x_BND = jnp.zeros(size, config.dtype)
  return Memory(x_BND, x_BND, jnp.int32(0), jnp.int32(0))


def predict(
  model: dit.DiT,
  variables,
  z_Bfhwc,
  t_BT,
  text: jax.Array | KeysValues,
  memory: Memory,
  *,
  t_index_fhw: jax.Array | None = None,
  threshold: float,
):
  """As the transformer itself, of a step near to the one remembered.

  Args:
    model: the transformer.
    variables: its own.
    z_Bfhwc, t_BT, text, t_index_fhw: see dit.DiT.
    memory: of the step before, or `begin`.
    threshold: 0 computes every step.

  Returns:
    (prediction, memory).
  """
  after = []

  def stack(bound, x_BND, *inner):
    run = _runner(bound, inner)
    first_BND = run(x_BND, 0, 1)
    added_BND = first_BND - x_BND
    near = _near(added_BND, memory.first_BND, threshold)
    rest_BND = jax.lax.cond(
      near,
      lambda: memory.rest_BND,
      lambda: run(first_BND, 1, model.config.layers) - first_BND,
    )
    after.append(
      Memory(
        jnp.where(near, memory.first_BND, added_BND),
        rest_BND,
        memory.computed + jnp.where(near, 0, 1),
        memory.asked + 1,
      )
    )
    return first_BND + rest_BND

  y = model.apply(variables, z_Bfhwc, t_BT, text, t_index_fhw, stack=stack)
  return y, after[0]


def _near(new_BND, old_BND, threshold: float) -> jax.Array:
  """Whether every clip has changed by less than its share; bool scalar."""

  def size(x_BND):
    return jnp.sum(jnp.abs(x_BND.astype(jnp.float32)), axis=(1, 2))

  return jnp.all(size(new_BND - old_BND) < threshold * size(old_BND))


def _runner(bound: dit.DiT, inner):
  """(x_BND, first, stop) -> x_BND after these blocks of a bound module."""
  block = dit.Block(bound.config, parent=None)
  stacks = {
    name: bound.variables[name]['blocks']
    for name in ('params', LORA)
    if name in bound.variables
  }
  time, text, *rest = inner

  def at(tree, i):
    return jax.tree.map(
      lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), tree
    )

  def step(x_BND, i):
    told = at(text, i) if isinstance(text, KeysValues) else text
    return block.apply(at(stacks, i), x_BND, time, told, *rest)

  def run(x_BND, first, stop):
    return jax.lax.scan(step, x_BND, jnp.arange(first, stop))[0]

  return run
