"""The denoiser of a sampling step, composed of wrappers around the network.

  denoise = from_network(network, flow=...)        velocity of the network
  denoise = with_conditioning(denoise, ...)        known latents stay known
  denoise = with_guidance(denoise, ...)            one velocity of all branches

Wrappers pass on a `cache`, a pytree of arrays that the network (a first-block
cache) and guidance (momentum) update from step to step; () where there is none.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spacetime.diffusion import flow as flow_lib
from spacetime.diffusion.conditioning import Conditioning
from spacetime.diffusion.guidance import Guidance

# (z_Bfhwc, t_BT, cache, t_index_fhw) -> (velocity_Bfhwc, cache).
FrameDenoise = Callable[..., tuple[jax.Array, Any]]
# (z_Bfhwc, t, cache) -> (velocity_Bfhwc, cache), with one noise level t.
Denoise = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


def from_network(
  transform: Callable,
  params,
  text,
  *,
  flow: flow_lib.FlowConfig,
  cached: bool = False,
  conditions: Mapping[str, jax.Array] | None = None,
) -> FrameDenoise:
  """The velocity that a network predicts, directly or by clean latents.

  Args:
    transform: (params, z_Bfhwc, t_BT, text, t_index_fhw=...) -> prediction. If
      `cached`, it takes and returns a cache too: (params, z_Bfhwc, t_BT, text,
      cache, t_index_fhw=...) -> (prediction, cache).
    params: parameters of the network.
    text: prompt embeddings, or their precomputed KV cache.
    flow: kind of prediction.
    cached: whether the network has a first-block cache.
    conditions: further keywords of the network, such as cond_Bfhwc.
  """
  conditions = dict(conditions or {})

  def denoise(z_Bfhwc, t_BT, cache, t_index_fhw=None):
    """Returns (v_Bfhwc, cache) of latents at timesteps."""
    index = {} if t_index_fhw is None else {'t_index_fhw': t_index_fhw}
    index |= conditions
    if cached:
      y, cache = transform(params, z_Bfhwc, t_BT, text, cache, **index)
    else:
      y = transform(params, z_Bfhwc, t_BT, text, **index)
    if flow.prediction == 'sample':
      t = flow_lib.per_cell(t_BT, t_index_fhw)
      y = flow_lib.to_velocity(z_Bfhwc, y, t, floor=flow.floor)
    return y, cache

  return denoise


def with_conditioning(
  denoise: FrameDenoise,
  conditioning: Conditioning,
  noise_Bfhwc: jax.Array | None,
) -> Denoise:
  """Keeps known latents: conditioning frames and tokens stay as they are, those
  with noise have the level of each step, and values under the mask move
  straight from their noise to the known value.

  Args:
    denoise: denoiser from from_network.
    conditioning: conditioning of the batch.
    noise_Bfhwc: initial noise; read where conditioning has a mask or context.
  """
  initial_BT, mask = conditioning.t_BT, conditioning.cond_mask_Bfhwc
  context = conditioning.context
  path = None
  if mask is not None:
    path = flow_lib.velocity(conditioning.z_Bfhwc, noise_Bfhwc)

  def conditioned(z_Bfhwc, t, cache):
    """Returns (v_Bfhwc, cache) of latents of which some are known."""
    t_BT = jnp.minimum(t, initial_BT)
    if context is not None:
      level = conditioning.per_cell(t_BT)
      known = flow_lib.add_noise(conditioning.z_Bfhwc, noise_Bfhwc, level)
      z_Bfhwc = jnp.where(context, known, z_Bfhwc)
    v, cache = denoise(z_Bfhwc, t_BT, cache, conditioning.t_index_fhw)
    if mask is not None:
      v = jnp.where(mask, path, v)
    # Latents that begin at a lower noise level wait until t has reached it.
    started = conditioning.per_cell(t <= initial_BT)
    if context is not None:
      started &= ~context
    return jnp.where(started, v, 0.0), cache

  return conditioned


def with_guidance(
  denoise: Denoise, guidance: Guidance, *, fixed: jax.Array | None = None
) -> Denoise:
  """Combines the branches of guidance, computed as one batch.

  Args:
    denoise: of a batch that holds every clip once for each branch, branch by
      branch.
    guidance: settings.
    fixed: see Guidance.combine.

  Returns:
    a Denoise of the clips, whose cache is (cache of denoise, running update).
  """
  count = len(guidance.branches)

  def guided(z_Bfhwc, t, cache):
    cache, update = cache
    v_all, cache = denoise(jnp.concatenate([z_Bfhwc] * count), t, cache)
    branches = jnp.split(v_all, count)
    v, update = guidance.combine(branches, z_Bfhwc, t, update, fixed=fixed)
    return v, (cache, update)

  return guided
