"""From noise and what is given to latents: pure functions, jitted by callers.

Knows no optimizer, no training state and no mode; see conditions.py.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from spacetime import flow, guidance, solver
from spacetime.sampling.conditions import Condition


@dataclasses.dataclass(frozen=True)
class Sampler:
  """How to sample.

  Attributes:
    transform: (params, z_Bfhwc, t_BT, text_BSY) -> prediction_Bfhwc; with
      row_fhw too where a condition has it.
    flow: what the network predicts.
    levels: falling grid to 0, see solver.schedule; a tuple, so that
      samplers are equal when their settings are and compile once.
    told: levels that the network is given at each step; () is `levels`.
    solver: a name in solver.SOLVERS.
    guidance: scale; 1 samples without guidance, at half the cost.
    interval: levels within which guidance holds.
    span: first step and the one to stop before, of `advance`; all as a rule.
  """

  transform: Callable
  flow: flow.FlowConfig
  levels: tuple[float, ...]
  solver: str
  guidance: float
  interval: tuple[float, float] = (0.0, 1.0)
  told: tuple[float, ...] = ()
  span: tuple[int, int | None] = (0, None)

  def __call__(
    self, params, keys_B, text_BSY, negative_BSY, condition: Condition
  ) -> jax.Array:
    """Samples latents.

    Args:
      params: of the transformer, as transform takes them.
      keys_B: a key for each clip: a clip does not depend on its batch.
      text_BSY: features of the prompts.
      negative_BSY: of what to steer away from; '' as a rule.
      condition: what is given.

    Returns:
      float32 z_Bfhwc of unit scale.
    """
    carry = self.begin(keys_B, condition)
    carry = self.advance(params, carry, text_BSY, negative_BSY, condition)
    return self.end(carry)

  def begin(self, keys_B, condition: Condition):
    """The carry before the first step: the solver's, and the noise of values
    that are known; None where none are."""
    shape = condition.z_Bfhwc.shape[1:]
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys_B)
    level = condition.cells(condition.level_BT)
    z_Bfhwc = flow.noised(condition.z_Bfhwc, noise, level)
    kept = None if condition.known_Bfhwc is None else noise
    return solver.get(self.solver).begin(z_Bfhwc), kept

  def advance(
    self, params, carry, text_BSY, negative_BSY, condition: Condition
  ):
    """The steps of the span: the carry before them -> the one after them."""
    inner, noise = carry
    level, known, path = condition.level_BT, condition.known_Bfhwc, None
    rows = {}
    if condition.row_fhw is not None:
      rows = {'row_fhw': condition.row_fhw}
    if known is not None:
      path = flow.velocity(condition.z_Bfhwc, noise)
    guided = self.guidance != 1.0
    if guided:
      text_BSY = jnp.concatenate([text_BSY, negative_BSY])
      level, known, path = jax.tree.map(
        lambda x: jnp.concatenate([x, x]), (level, known, path)
      )

    def velocity(z, t):
      t_BT = jnp.minimum(t, level)
      y = self.transform(params, z, t_BT, text_BSY, **rows)
      if self.flow.prediction == 'sample':
        t_cells = condition.cells(t_BT)
        y = flow.to_velocity(z, y, t_cells, floor=self.flow.floor)
      if known is not None:
        y = jnp.where(known, path, y)
      # What begins at less noise waits until the rest has come there.
      return jnp.where(condition.cells(t <= level), y, 0.0)

    predict = velocity
    if guided:
      predict = guidance.classifier_free(
        velocity, scale=self.guidance, interval=self.interval
      )
    inner = solver.get(self.solver).advance(
      predict,
      inner,
      np.asarray(self.levels, np.float32),
      told=self.told or None,
      span=self.span,
    )
    return inner, noise

  def end(self, carry) -> jax.Array:
    """z_Bfhwc of the carry after the last step."""
    return solver.get(self.solver).end(carry[0])


def clip_keys(seed: int, count: int, *, first: int = 0) -> jax.Array:
  """A key for each of `count` clips, from the seed and the clip's number."""
  key = jax.random.key(seed)
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(
    jnp.arange(first, first + count)
  )
