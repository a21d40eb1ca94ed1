"""From noise and what is given to latents: one jitted program.

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
    embed: (params, tokens_BS) -> text_BSY.
    transform: (params, z_Bfhwc, t_BT, text_BSY) -> prediction_Bfhwc.
    flow: what the network predicts.
    levels: falling grid from 1 to 0, see solver.time_grid; a tuple, so that
      samplers are equal when their settings are and compile once.
    told: levels that the network is given at each step; () is `levels`.
    solver: a name in solver.SOLVERS.
    guidance: scale; 1 samples without guidance, at half the cost.
    interval: levels within which guidance holds.
  """

  embed: Callable
  transform: Callable
  flow: flow.FlowConfig
  levels: tuple[float, ...]
  solver: str
  guidance: float
  interval: tuple[float, float] = (0.0, 1.0)
  told: tuple[float, ...] = ()

  def __call__(
    self, params, keys_B, tokens_BS, negative_BS, condition: Condition
  ) -> jax.Array:
    """Samples latents.

    Args:
      params: of the transformer and the text encoder.
      keys_B: a key for each clip: a clip does not depend on its batch.
      tokens_BS: int32, the prompts.
      negative_BS: int32, what to steer away from; '' as a rule.
      condition: what is given.

    Returns:
      float32 z_Bfhwc of unit scale.
    """
    given = condition.given_Bf
    mask = given[:, :, None, None, None]
    shape = condition.z_Bfhwc.shape[1:]
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys_B)
    start = jnp.where(mask, condition.z_Bfhwc, noise)
    guided = self.guidance != 1.0
    if guided:
      tokens_BS = jnp.concatenate([tokens_BS, negative_BS])
      given, mask = (jnp.concatenate([x, x]) for x in (given, mask))
    text = self.embed(params, tokens_BS)

    def velocity(z, t):
      t_Bf = jnp.where(given, 0.0, t)
      y = self.transform(params, z, t_Bf, text)
      if self.flow.prediction == 'sample':
        y = flow.to_velocity(z, y, t_Bf, floor=self.flow.floor)
      return jnp.where(mask, 0.0, y)

    predict = velocity
    if guided:
      predict = guidance.classifier_free(
        velocity, scale=self.guidance, interval=self.interval
      )
    return solver.get(self.solver)(
      predict,
      start,
      np.asarray(self.levels, np.float32),
      told=self.told or None,
    )


def clip_keys(seed: int, count: int, *, first: int = 0) -> jax.Array:
  """A key for each of `count` clips, from the seed and the clip's number."""
  key = jax.random.key(seed)
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(
    jnp.arange(first, first + count)
  )
