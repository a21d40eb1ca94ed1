"""One step of training, pure: (state, batch) -> (state, metrics)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from spacetime.training.state import State

Loss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
  """Decay of the average at a step: lower at first, to forget the start."""
  return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def is_sound(loss: jax.Array, norm: jax.Array, *, limit: float) -> jax.Array:
  """Whether a step may be taken: its loss and the norm of its gradient are
  finite, and the loss is at most `limit`."""
  return jnp.isfinite(loss) & jnp.isfinite(norm) & (loss <= limit)


def gradients(loss: Loss, params, frozen, batch, key, *, accumulate: int):
  """Averages the gradient over `accumulate` equal parts of the batch.

  Returns:
    (metrics, gradient): float32 scalars, and a tree like params.
  """

  def part(rows, key):
    grad = jax.value_and_grad(loss, has_aux=True)
    (_, metrics), gradient = grad(params, frozen, rows, key)
    return metrics, gradient

  if accumulate == 1:
    return part(batch, key)
  # Every part takes rows from every device: part i is rows i, i + A, ...
  parts = jax.tree.map(
    lambda x: jnp.moveaxis(
      x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]), 1, 0
    ),
    batch,
  )
  keys = jax.random.split(key, accumulate)
  zeros = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
    jax.eval_shape(part, jax.tree.map(lambda x: x[0], parts), keys[0]),
  )
  add = lambda total, xs: (jax.tree.map(jnp.add, total, part(*xs)), None)  # noqa: E731
  total, _ = jax.lax.scan(add, zeros, (parts, keys))
  return jax.tree.map(lambda leaf: leaf / accumulate, total)


def make_step(
  loss: Loss,
  optimizer: optax.GradientTransformation,
  *,
  ema: float,
  accumulate: int = 1,
  limit: float | None = None,
):
  """Builds the step; the loop jits it.

  Args:
    loss: (params, frozen, batch, key) -> (scalar, metrics).
    optimizer: transformation of make_optimizer.
    ema: decay of the average of the parameters.
    accumulate: parts into which each batch is cut.
    limit: a step whose loss is above it, or not finite, or whose gradient is
      not finite, is skipped, with metric 'skipped'; None applies every step.

  Returns:
    step(state, frozen, batch, key) -> (state, metrics). The key is the run's;
    the step folds its own number in.
  """

  def step(state: State, frozen, batch, key):
    """One update: (state, metrics)."""
    key = jax.random.fold_in(key, state.step)
    with jax.named_scope('gradient'):
      metrics, gradient = gradients(
        loss, state.params, frozen, batch, key, accumulate=accumulate
      )
    with jax.named_scope('update'):
      updates, opt_state = optimizer.update(
        gradient, state.opt_state, state.params
      )
      params = optax.apply_updates(state.params, updates)
    with jax.named_scope('average'):
      decay = ema_decay(state.step, ema)
      average = jax.tree.map(
        lambda old, new: decay * old + (1 - decay) * new, state.ema, params
      )
    norm = optax.tree.norm(gradient)
    metrics = dict(metrics, gradient_norm=norm)
    moved = params, average, opt_state
    if limit is not None:
      sound = is_sound(metrics['loss'], norm, limit=limit)
      stayed = state.params, state.ema, state.opt_state
      moved = jax.tree.map(
        lambda new, old: jnp.where(sound, new, old), moved, stayed
      )
      metrics['skipped'] = 1.0 - sound
    return State(state.step + 1, *moved), metrics

  return step
