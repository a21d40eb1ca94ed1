"""One step of training, pure: (state, batch) -> (state, metrics)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from spacetime import sharding
from spacetime.training import means
from spacetime.training.state import State

# (params, frozen, batch, key, draws) -> (scalar, {name: means.Mean}); the Mean
# 'loss' has the scalar as its value. draws=None draws all from the key.
Loss = Callable[..., tuple[jax.Array, dict[str, means.Mean]]]
# (params, frozen, batch, key) -> draws, arrays with a row for each of a batch.
Draw = Callable[..., dict[str, jax.Array]]


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
  """Decay of the average at a step: lower at first, to forget the start."""
  return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def is_sound(loss: jax.Array, norm: jax.Array, *, limit: float) -> jax.Array:
  """Whether a step may be taken: its loss and the norm of its gradient are
  finite, and the loss is at most `limit`."""
  return jnp.isfinite(loss) & jnp.isfinite(norm) & (loss <= limit)


def _is_schedule(node) -> bool:
  return isinstance(node, optax.ScaleByScheduleState)


def gradients(
  loss: Loss,
  params,
  frozen,
  batch,
  key,
  *,
  accumulate: int,
  draw: Draw | None = None,
):
  """The gradient of the mean loss of a batch, in `accumulate` parts.

  Parts are weighted by what they count (frames or tokens to predict), and what
  is random is drawn for the batch as a whole: the result does not depend on
  `accumulate` but for rounding, and for the dropout of LoRA weights.

  Returns:
    (metrics, gradient): float32 scalars, and a tree like params.
  """

  def part(rows, key, draws=None):
    grad = jax.value_and_grad(loss, has_aux=True)
    (_, metrics), gradient = grad(params, frozen, rows, key, draws)
    return metrics, gradient

  if accumulate == 1:
    metrics, gradient = part(batch, key)
    return means.values(metrics), gradient

  def split(x):
    # Every part takes rows from every device: part i is rows i, i + A, ...
    x = x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:])
    return jnp.moveaxis(x, 1, 0)

  draws = None
  if draw is not None:
    draws = draw(params, frozen, batch, key)
    # As the batch: each device draws for its own rows.
    draws = jax.tree.map(
      lambda x: split(sharding.constrain(x, 'batch', *[None] * (x.ndim - 1))),
      draws,
    )
  parts = jax.tree.map(split, batch), jax.random.split(key, accumulate), draws

  def totals(xs):
    metrics, gradient = part(*xs)
    weight = jnp.asarray(metrics['loss'].weight, jnp.float32)
    gradient = jax.tree.map(lambda leaf: weight * leaf, gradient)
    return {name: mean.total for name, mean in metrics.items()}, gradient

  zeros = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
    jax.eval_shape(totals, jax.tree.map(lambda x: x[0], parts)),
  )
  add = lambda total, xs: (jax.tree.map(jnp.add, total, totals(xs)), None)  # noqa: E731
  (metrics, gradient), _ = jax.lax.scan(add, zeros, parts)
  divisor = means.divisor(metrics['loss'].weight)
  gradient = jax.tree.map(lambda leaf: leaf / divisor, gradient)
  return {name: total.mean for name, total in metrics.items()}, gradient


def make_step(
  loss: Loss,
  optimizer: optax.GradientTransformation,
  *,
  ema: float,
  accumulate: int = 1,
  limit: float | None = None,
  draw: Draw | None = None,
):
  """Builds the step; the loop jits it.

  Args:
    loss: see Loss.
    optimizer: transformation of make_optimizer.
    ema: decay of the average of the parameters.
    accumulate: parts into which each batch is cut.
    limit: a step whose loss is above it, or not finite, or whose gradient is
      not finite, is skipped, with metric 'skipped'; None applies every step.
    draw: what is random in the loss, for batches in parts; None lets every part
      draw its own.

  Returns:
    step(state, frozen, batch, key) -> (state, metrics). The key is the run's;
    the step folds its own number in.
  """

  def step(state: State, frozen, batch, key):
    """One update: (state, metrics)."""
    key = jax.random.fold_in(key, state.step)
    with jax.named_scope('gradient'):
      metrics, gradient = gradients(
        loss,
        state.params,
        frozen,
        batch,
        key,
        accumulate=accumulate,
        draw=draw,
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
        # A skipped step counts in the schedule, as it does in the run: else
        # the last steps of the decay would be missing.
        lambda new, old: (
          new if _is_schedule(new) else jnp.where(sound, new, old)
        ),
        moved,
        stayed,
        is_leaf=_is_schedule,
      )
      metrics['skipped'] = 1.0 - sound
    return State(state.step + 1, *moved), metrics

  return step
