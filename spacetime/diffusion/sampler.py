"""Sampler: from noise and conditioning to latents, as pure functions.

  state = sampler.init(keys_B, cond)
  state, text = sampler.start(params, state, text_BSY, negative_BSY, cond)
  for i in sampler.steps:
    state = sampler.step(params, state, text, cond, i)
  z_Bfhwc = sampler.finalize(state)

Callers jit the parts, so that they can report every step; `run` is `start` and
all steps as one program, with the same result to the last bit (with the
re-noising solver, to float32 rounding). Knows no optimizer, no training state
and no mode of sampling; see conditioning.py.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spacetime.diffusion import denoiser, flow, solvers
from spacetime.diffusion.conditioning import Conditioning
from spacetime.diffusion.schedules import MARGIN, Schedule
from spacetime.diffusion.settings import SamplingSettings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplerState:
  """State between two steps.

  Attributes:
    solver: latents and earlier predictions, see solvers.Solver.
    noise_Bfhwc: initial noise, where conditioning has a mask or context; else
      None.
    keys_B2: data of the clips' random keys, where the solver draws noise; else
      None.
    cache: (cache of the network, running update of guidance).
  """

  solver: Any
  noise_Bfhwc: jax.Array | None
  keys_B2: jax.Array | None = None
  cache: Any = ((), ())


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Sampling with one transformer.

  Attributes:
    transform: (params, z_Bfhwc, t_BT, text, t_index_fhw=...) -> prediction.
    flow: output of the network.
    settings: steps, solver, guidance, temperature.
    step_range: first step of this transformer and the one to stop before; None
      is all.
    precompute_kv: (params, text_BSY) -> text of transform, the same at every
      step; None passes the prompt embeddings.
    cached_transform: None, or in place of transform one with a first-block
      cache: (params, z_Bfhwc, t_BT, text, cache, t_index_fhw=...) ->
      (prediction, cache), with `init`: shape of the latents -> cache.
    without_layers: (skipping_B, layers) -> `stack` of transform, in which some
      rows leave out some layers; for settings with skip_layers.
    with_image: (text_BSY, image_BSY) -> text of a network that sees images.
    is_flow_map: whether the network takes the time that a step ends at,
      `end_BT`, too.
  """

  transform: Callable
  flow: flow.FlowConfig
  settings: SamplingSettings
  step_range: tuple[int, int] | None = None
  precompute_kv: Callable | None = None
  cached_transform: Any = None
  without_layers: Callable | None = None
  with_image: Callable | None = None
  is_flow_map: bool = False

  @property
  def schedule(self) -> Schedule:
    """Noise levels of all steps."""
    return self.settings.make_schedule()

  @property
  def steps(self) -> range:
    """Indices of this transformer's steps in the schedule."""
    return range(*(self.step_range or (0, self.schedule.steps)))

  def __call__(
    self, params, keys_B, text_BSY, negative_BSY, conditioning: Conditioning
  ) -> jax.Array:
    """Samples latents.

    Args:
      params: parameters of the transformer.
      keys_B: a key for each clip: a clip does not depend on its batch.
      text_BSY: prompt embeddings.
      negative_BSY: negative prompt embeddings; None without guidance.
      conditioning: known latents.

    Returns:
      float32 z_Bfhwc of unit scale.
    """
    state = self.init(keys_B, conditioning)
    state = self.run(params, state, text_BSY, negative_BSY, conditioning)
    return self.finalize(state)

  def init(self, keys_B, conditioning: Conditioning) -> SamplerState:
    """The state before the first step of the schedule."""
    shape = conditioning.z_Bfhwc.shape[1:]
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys_B)
    t = conditioning.per_cell(conditioning.t_BT)
    # Latents that begin below 1 have as much noise as the network expects.
    noise *= jnp.where(t == 1, self.settings.temperature, 1.0)
    # What is edited begins at the first noise level of the schedule, which may
    # be below its own; what begins as noise stays noise.
    first = self.schedule.sigmas[0]
    level = jnp.where((t < 1) & (t > first + MARGIN), first, t)
    z_Bfhwc = flow.add_noise(conditioning.z_Bfhwc, noise, level)
    if self._solver.renoises:
      z_Bfhwc *= jnp.where(t == 1, first, 1.0)
    mask = conditioning.cond_mask_Bfhwc
    if mask is not None:
      first = jnp.minimum(t, first)
      path = flow.add_noise(conditioning.z_Bfhwc, noise, first)
      z_Bfhwc = jnp.where(mask, path, z_Bfhwc)
    state = self._solver.init(z_Bfhwc)
    kept = mask is not None or conditioning.context_BT is not None
    keys = jax.random.key_data(keys_B) if self._solver.renoises else None
    return SamplerState(state, noise if kept else None, keys)

  def start(
    self,
    params,
    state: SamplerState,
    text_BSY,
    negative_BSY,
    conditioning: Conditioning,
  ):
    """Prepares the steps of this transformer: (state with empty caches, text
    of all branches as `step` takes it)."""
    guidance = self.settings.make_guidance()
    branches = guidance.branches
    text = jnp.concatenate(
      [negative_BSY if name == 'uncond' else text_BSY for name in branches]
    )
    if conditioning.image_BSY is not None:
      image_BSY = conditioning.repeat(len(branches)).image_BSY
      text = self.with_image(text, image_BSY)
    if self.precompute_kv is not None:
      text = self.precompute_kv(params, text)
    z_Bfhwc, cache = conditioning.z_Bfhwc, ()
    if self.cached_transform is not None:
      batch, *latent = z_Bfhwc.shape
      cache = self.cached_transform.init((len(branches) * batch, *latent))
    cache = cache, guidance.init(z_Bfhwc)
    return dataclasses.replace(state, cache=cache), text

  def step(
    self, params, state: SamplerState, text, conditioning: Conditioning, i
  ) -> SamplerState:
    """The state after step i of the schedule; i may be traced."""
    row = [column[i] for column in self._solver.table(self.schedule)]
    denoise = self._denoiser(params, state, text, conditioning, end=row[2])
    more = {}
    if self._solver.renoises:
      more['renoise'] = functools.partial(
        _renoise, state, conditioning, t=row[0], i=i
      )
    solver, cache = self._solver.step(
      denoise, state.solver, state.cache, *row, **more
    )
    return dataclasses.replace(state, solver=solver, cache=cache)

  def run(
    self,
    params,
    state: SamplerState,
    text_BSY,
    negative_BSY,
    conditioning: Conditioning,
  ) -> SamplerState:
    """The state after `start` and all steps of this transformer, as a scan."""
    state, text = self.start(
      params, state, text_BSY, negative_BSY, conditioning
    )
    return jax.lax.scan(
      lambda state, i: (self.step(params, state, text, conditioning, i), None),
      state,
      jnp.asarray(self.steps),
    )[0]

  def finalize(self, state: SamplerState) -> jax.Array:
    """z_Bfhwc of the state after the last step."""
    return self._solver.finalize(state.solver)

  @property
  def _solver(self) -> solvers.Solver:
    return solvers.get(self.settings.solver)

  def _denoiser(
    self, params, state: SamplerState, text, conditioning: Conditioning, *, end
  ) -> denoiser.Denoise:
    """The denoiser of a step that ends at a noise level: network, conditioning,
    guidance."""
    cached = self.cached_transform is not None
    guidance = self.settings.make_guidance()
    branches, noise = len(guidance.branches), state.noise_Bfhwc
    repeated = conditioning.repeat(branches)
    stack = None
    if guidance.skip_layers:
      skipping = np.array([name == 'skipped' for name in guidance.branches])
      skipping_B = np.repeat(skipping, len(conditioning.t_BT))
      stack = self.without_layers(skipping_B, guidance.skip_layers)
    conditions = {
      'stack': stack,
      'cond_Bfhwc': repeated.cond_Bfhwc,
      'control_Bfhwc': repeated.control_Bfhwc,
      'control_scale_B': repeated.control_scale_B,
      # What has less noise than the step's end stays where it is.
      'end_BT': jnp.minimum(end, repeated.t_BT) if self.is_flow_map else None,
    }
    denoise = denoiser.from_network(
      self.cached_transform if cached else self.transform,
      params,
      text,
      flow=self.flow,
      cached=cached,
      conditions={k: v for k, v in conditions.items() if v is not None},
    )
    if noise is not None:
      noise = jnp.concatenate([noise] * branches)
    denoise = denoiser.with_conditioning(denoise, repeated, noise)
    fixed = conditioning.per_cell(conditioning.t_BT == 0)
    if conditioning.context is not None:
      fixed |= conditioning.context
    return denoiser.with_guidance(denoise, guidance, fixed=fixed)


# Distinguishes keys of the steps' noise from those of a long video's chunks.
_STEPS = 2**30


def _renoise(
  state: SamplerState, conditioning: Conditioning, noise_Bfhwc, *, t, i
) -> jax.Array:
  """Fresh noise of step i, where latents are free; elsewhere it stays."""

  def draw(data_2):
    key = jax.random.fold_in(jax.random.wrap_key_data(data_2), _STEPS)
    key = jax.random.fold_in(key, i)
    return jax.random.normal(key, noise_Bfhwc.shape[1:])

  free = conditioning.per_cell(t <= conditioning.t_BT)
  if conditioning.cond_mask_Bfhwc is not None:
    free &= ~conditioning.cond_mask_Bfhwc
  if conditioning.context is not None:
    free &= ~conditioning.context
  return jnp.where(free, jax.vmap(draw)(state.keys_B2), noise_Bfhwc)


def clip_keys(seed: int, count: int, *, first: int = 0) -> jax.Array:
  """A key for each of `count` clips, from the seed and the clip's number.

  Args:
    seed: 0 to 2^63 - 1.
    count: number of clips.
    first: number of the first clip.
  """
  high, low = divmod(seed, 2**32)
  return _clip_keys(np.uint32(low), high, np.arange(first, first + count))


@functools.partial(jax.jit, static_argnames='high')
def _clip_keys(low, high: int, number_B) -> jax.Array:
  key = jax.random.key(low)
  if high:  # without 64 bits JAX drops them
    key = jax.random.fold_in(key, high)
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(number_B)
