"""Optimizers: AdamW and Muon, with warm-up, a plateau and a decay to zero."""

import re

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from spacetime.config.sections import OptimizerConfig
from spacetime.sharding import path_name


def schedule(config: OptimizerConfig, *, steps: int) -> optax.Schedule:
  """Warm-up, plateau, linear decay, as a multiple of the plateau in [0, 1].

  Source: Hu et al. 2024 (MiniCPM), arXiv 2404.06395, section 4.
  """
  decay = round(config.decay * steps)
  warmup = min(config.warmup, max(steps - decay, 0))
  return optax.join_schedules(
    [
      optax.linear_schedule(1.0 / (warmup + 1), 1.0, warmup),
      optax.constant_schedule(1.0),
      optax.linear_schedule(1.0, 0.0, max(decay, 1)),
    ],
    [warmup, steps - decay],
  )


def matrix_axes(params):
  """Returns the axes of the parameters that Muon treats as matrices.

  Kernels of stacked blocks (L, in, out) are L matrices; convolution kernels
  (..., in, out) are one matrix with every axis but the last reduced. The
  first and last layers, embeddings, norms and modulation stay with Adam.
  """

  def axes(path, leaf):
    name = path_name(path)
    if not name.endswith('kernel') or leaf.ndim < 2:
      return None
    if '/blocks/' in name and leaf.ndim == 3:
      return MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    if name.startswith('autoencoder') and 'conv_in' not in name:
      reduced = tuple(range(leaf.ndim - 1))
      return MuonDimensionNumbers(reduced, leaf.ndim - 1)
    return None

  return jax.tree_util.tree_map_with_path(axes, params)


def frozen_mask(patterns: tuple[str, ...]):
  """Returns a function from params to a mask of those that a pattern matches.

  Raises (the function): ValueError, a pattern that matches none.
  """

  def mask(params):
    flat, tree = jax.tree_util.tree_flatten_with_path(params)
    names = [path_name(path) for path, _ in flat]
    for pattern in patterns:
      if not any(re.fullmatch(pattern, name) for name in names):
        raise ValueError(
          f'optimizer.freeze={pattern!r} matches no parameter; there are '
          f'{sorted(names)}'
        )
    return tree.unflatten(
      [any(re.fullmatch(p, name) for p in patterns) for name in names]
    )

  return mask


def _is_matrix(params):
  """Whether a parameter is a kernel or a low-rank factor of one."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path_name(path).endswith(('/kernel', '/a', '/b')), params
  )


def stored_as(
  update: optax.GradientTransformation, dtype: str
) -> optax.GradientTransformation:
  """Stores the moments of an optimizer in a dtype and computes in float32.

  Counters and other scalars stay as they are."""
  if dtype == 'float32':
    return update

  def cast(state, to):
    return jax.tree.map(
      lambda x: (
        x.astype(to) if x.ndim and jnp.issubdtype(x.dtype, jnp.floating) else x
      ),
      state,
    )

  def init(params):
    return cast(update.init(params), dtype)

  def step(gradient, state, params=None):
    updates, state = update.update(gradient, cast(state, jnp.float32), params)
    return updates, cast(state, dtype)

  return optax.GradientTransformation(init, step)


def make_optimizer(
  config: OptimizerConfig, *, steps: int
) -> optax.GradientTransformation:
  """Builds the gradient transformation of a run of a number of steps."""
  shape = schedule(config, steps=steps)
  if config.name == 'adamw':
    update = optax.adamw(
      lambda step: config.learning_rate * shape(step),
      b1=config.b1,
      b2=config.b2,
      weight_decay=config.weight_decay,
      mask=_is_matrix,
    )
  else:
    update = optax.contrib.muon(
      lambda step: config.learning_rate * shape(step),
      adam_learning_rate=lambda step: config.adam_rate * shape(step),
      ns_steps=config.newton_schulz,
      adam_b1=config.b1,
      adam_b2=config.b2,
      weight_decay=config.weight_decay,
      muon_weight_dimension_numbers=matrix_axes,
      consistent_rms=0.2,
    )
  update = stored_as(update, config.moments)
  clipped = optax.clip_by_global_norm(config.clip), update
  # A run without frozen parameters keeps the state it had before there were
  # any: its checkpoints stay readable.
  if not config.freeze:
    return optax.chain(*clipped)
  still = optax.masked(optax.set_to_zero(), frozen_mask(config.freeze))
  # Before: no share of the clipped norm. After: no decay of weights either.
  return optax.chain(still, *clipped, still)
