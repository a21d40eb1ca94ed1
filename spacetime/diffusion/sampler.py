"""From noise and what is given to latents: pure functions, jitted by callers.

Knows no optimizer, no training state and no mode; see conditions.py.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from spacetime.diffusion import flow, solvers
from spacetime.diffusion.conditioning import Conditioning
from spacetime.diffusion.guidance import Guidance


@dataclasses.dataclass(frozen=True)
class Sampler:
  """How to sample.

  Attributes:
    transform: (params, z_Bfhwc, t_BT, text) -> prediction_Bfhwc; with
      t_index_fhw too where a condition has it.
    flow: what the network predicts.
    sigmas: falling grid to 0, see solver.schedule; a tuple, so that
      samplers are equal when their settings are and compile once.
    timesteps: levels that the network is given at each step; () is `sigmas`.
    solver: a name in solver.SOLVERS.
    guidance: what is predicted at each step, and how it is combined; with a
      scale of 1 nothing but the prediction itself, at half the cost.
    temperature: standard deviation of what begins as noise alone; below 1 what
      comes is nearer to the mean of what could come: steadier, and less
      varied. Source: Kingma and Dhariwal 2018 (Glow), arXiv 1807.03039,
      section 6, there for normalizing flows.
    span: first step and the one to stop before, of `advance`; all as a rule.
    prepare: (params, text_BSY) -> what transform takes as text: what is the
      same at every step, computed once; None hands the features on.
    skipping: None, or in place of transform (params, z_Bfhwc, t_BT, text,
      memory) -> (prediction_Bfhwc, memory), with `begin`: shape of the latents
      -> memory. A span begins anew.
  """

  transform: Callable
  flow: flow.FlowConfig
  sigmas: tuple[float, ...]
  solver: str
  guidance: Guidance = Guidance()
  timesteps: tuple[float, ...] = ()
  temperature: float = 1.0
  span: tuple[int, int | None] = (0, None)
  prepare: Callable | None = None
  skipping: Callable | None = None

  def __call__(
    self, params, keys_B, text_BSY, negative_BSY, condition: Conditioning
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

  def begin(self, keys_B, condition: Conditioning):
    """The carry before the first step: the solver's, the noise of values that
    are known or given (None where it is not needed), and what
    `skipping` remembers of the last span (of none)."""
    shape = condition.z_Bfhwc.shape[1:]
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys_B)
    level = condition.per_cell(condition.t_BT)
    # What begins at less has as much noise as the network is told.
    noise *= jnp.where(level == 1, self.temperature, 1.0)
    z_Bfhwc = flow.noised(condition.z_Bfhwc, noise, level)
    known = condition.cond_mask_Bfhwc
    if known is not None:
      first = jnp.minimum(level, self.sigmas[0])
      path = flow.noised(condition.z_Bfhwc, noise, first)
      z_Bfhwc = jnp.where(known, path, z_Bfhwc)
    kept = known is not None or self.guidance.tells_given
    inner = solvers.get(self.solver).begin(z_Bfhwc)
    return inner, noise if kept else None, ()

  def advance(
    self, params, carry, text_BSY, negative_BSY, condition: Conditioning
  ):
    """The steps of the span: the carry before them -> the one after them."""
    inner, noise, _ = carry
    rule = self.guidance
    text = [text_BSY, negative_BSY][: 1 + rule.tells_text]
    text_RSY = jnp.concatenate((text + text[-1:])[: rule.rows])
    text = text_RSY
    if self.prepare is not None:
      text = self.prepare(params, text_RSY)
    predict = self._velocities(params, text, noise, condition)

    def step(z, t, memory):
      network, directions = memory
      v_Rfhwc, network = predict(z, t, network)
      rows = jnp.split(v_Rfhwc, rule.rows)
      given = condition.per_cell(condition.t_BT == 0)
      v_Bfhwc, directions = rule(rows, z, t, directions, given=given)
      return v_Bfhwc, (network, directions)

    z_Bfhwc, network = condition.z_Bfhwc, ()
    if self.skipping is not None:
      batch, *latent = z_Bfhwc.shape
      network = self.skipping.begin((rule.rows * batch, *latent))
    inner, memory = solvers.get(self.solver).advance_with(
      step,
      inner,
      (network, rule.begin(z_Bfhwc)),
      np.asarray(self.sigmas, np.float32),
      timesteps=self.timesteps or None,
      span=self.span,
    )
    return inner, noise, memory[0]

  def _velocities(self, params, text, noise, condition: Conditioning):
    """(z_Bfhwc, t, memory) -> (velocities of all rows of guidance, one after
    another; memory of `skipping`).

    The row without what is given has it noised to the level of the
    others, as clips are trained on of which nothing is given.
    """
    rule, known = self.guidance, condition.cond_mask_Bfhwc
    t_BT, cells = condition.t_BT, condition.per_cell
    told_BT = [t_BT] * rule.rows
    if rule.tells_given:
      told_BT[-1] = jnp.where(t_BT == 0, 1.0, t_BT)
    told_RT = jnp.concatenate(told_BT)
    level_RT = jnp.concatenate([t_BT] * rule.rows)
    path, more = None, {}
    if known is not None:
      path = flow.velocity(condition.z_Bfhwc, noise)
      path, known = (jnp.concatenate([x] * rule.rows) for x in (path, known))
    if condition.t_index_fhw is not None:
      more = {'t_index_fhw': condition.t_index_fhw}

    def velocities(z, t, memory):
      rows = [z] * rule.rows
      if rule.tells_given:
        free = flow.noised(condition.z_Bfhwc, noise, jnp.full((1, 1), t))
        rows[-1] = jnp.where(cells(t_BT == 0), free, z)
      z, t_RT = jnp.concatenate(rows), jnp.minimum(t, told_RT)
      if self.skipping is None:
        y = self.transform(params, z, t_RT, text, **more)
      else:
        y, memory = self.skipping(params, z, t_RT, text, memory, **more)
      if self.flow.prediction == 'sample':
        y = flow.to_velocity(z, y, cells(t_RT), floor=self.flow.floor)
      if known is not None:
        y = jnp.where(known, path, y)
      # What begins at less noise waits until the rest has come there.
      return jnp.where(cells(t <= level_RT), y, 0.0), memory

    return velocities

  def end(self, carry) -> jax.Array:
    """z_Bfhwc of the carry after the last step."""
    return solvers.get(self.solver).end(carry[0])


def clip_keys(seed: int, count: int, *, first: int = 0) -> jax.Array:
  """A key for each of `count` clips, from the seed and the clip's number."""
  key = jax.random.key(seed)
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(
    jnp.arange(first, first + count)
  )
