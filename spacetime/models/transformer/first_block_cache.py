"""First-block cache: solver steps that skip every block but the first.

Between two close steps the blocks add almost the same to their input. The first
block measures how close: if its residual has changed by less than a threshold
(relative L1 distance, in every clip of the batch) since all blocks last ran,
the residual of the other blocks is taken from that step. Since the comparison
is with the last step that ran completely, small changes cannot accumulate
unseen.

Source: the technique and its name are those of ParaAttention (Cheng 2024,
github.com/chengzeyi/ParaAttention), which diffusers ships as
FirstBlockCacheConfig in `apply_first_block_cache`; both follow TeaCache (Liu et
al. 2024, arXiv 2411.19108), whose indicator is a polynomial of the timestep-
modulated input instead of the first block's residual.
"""

import dataclasses

import jax
import jax.numpy as jnp

from spacetime.models.transformer import dit, layer_runs
from spacetime.models.transformer.attention import Context


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockCache:
  """Residuals of the last step that ran all blocks.

  Attributes:
    first_BND: residual of the first block.
    rest_BND: residual of the other blocks.
    computed: steps so far that ran all blocks, int32.
    steps: steps so far, int32.
  """

  first_BND: jax.Array
  rest_BND: jax.Array
  computed: jax.Array
  steps: jax.Array


def init(config: dit.DiTConfig, shape: tuple[int, ...]) -> BlockCache:
  """Returns the cache before the first step, which always runs all blocks.

  Args:
    config: sizes of the transformer.
    shape: shape of the latents, (B, f, h, w, c).
  """
  cells = zip(shape[1:4], config.patch, strict=True)
  tokens = [n // p for n, p in cells]
  size = (shape[0], tokens[0] * tokens[1] * tokens[2], config.width)
  x_BND = jnp.zeros(size, config.dtype)
  return BlockCache(x_BND, x_BND, jnp.int32(0), jnp.int32(0))


def predict(
  model: dit.DiT,
  variables: dict,
  z_Bfhwc: jax.Array,
  t_BT: jax.Array,
  text: Context,
  cache: BlockCache,
  *,
  threshold: float,
  stack: layer_runs.WithoutLayers | None = None,
  **conditions: jax.Array | None,
) -> tuple[jax.Array, BlockCache]:
  """Predicts like the transformer, skipping blocks if the step is close.

  Args:
    model: the transformer.
    variables: Flax variables of the transformer.
    z_Bfhwc, t_BT, text: see dit.DiT.
    cache: cache of the previous step, or from `init`.
    threshold: relative change; 0 runs all blocks in every step.
    stack: for rows that leave out some blocks; None has none.
    **conditions: see networks.Networks.transform.

  Returns:
    (prediction, cache).
  """
  caches = []

  keep = stack.keep if stack is not None else None

  def cached(bound, x_BND, *inputs):
    """All blocks, or the first and the cached residual of the others."""
    run = layer_runs.runner(bound, inputs, keep)
    first_BND = run(x_BND, 0, 1)
    residual_BND = first_BND - x_BND
    close = _is_close(residual_BND, cache.first_BND, threshold)
    rest_BND = jax.lax.cond(
      close,
      lambda: cache.rest_BND,
      lambda: run(first_BND, 1, model.config.layers) - first_BND,
    )
    caches.append(
      BlockCache(
        jnp.where(close, cache.first_BND, residual_BND),
        rest_BND,
        cache.computed + jnp.where(close, 0, 1),
        cache.steps + 1,
      )
    )
    return first_BND + rest_BND

  y = model.apply(variables, z_Bfhwc, t_BT, text, stack=cached, **conditions)
  return y, caches[0]


def _is_close(new_BND, old_BND, threshold: float) -> jax.Array:
  """Whether every clip has changed by less than the threshold; bool scalar."""

  def norm(x_BND):
    return jnp.sum(jnp.abs(x_BND.astype(jnp.float32)), axis=(1, 2))

  return jnp.all(norm(new_BND - old_BND) < threshold * norm(old_BND))
