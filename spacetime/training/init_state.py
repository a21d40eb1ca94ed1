"""The state of a run that has made no step."""

import jax
import numpy as np
from jax.experimental import multihost_utils

from spacetime.data import sources
from spacetime.media.pixels import to_video
from spacetime.models.transformer import patchify
from spacetime.training import pca_init, setup, state


def begin(plan: setup.Plan, source, key) -> state.State:
  """The state of a run that has made no step."""
  if plan.base is not None and not plan.nets.lora.rank:
    params = plan.base.load(plan.nets, plan.mesh)
    # What the published code computes in float32 may be stored as less.
    kept = {
      root: jax.tree.map(lambda leaf: leaf.astype('float32'), params[root])
      for root in plan.shapes.params
    }
    if plan.train.pca_init_rank and plan.train.pca_init_clips:
      kept['dit'] |= widened(kept['dit'], found(plan, source))
    return state.state_from(kept, plan.optimizer, plan.mesh)
  init = first_layers(plan, source)
  return state.init_state(init, key, plan.optimizer, plan.mesh)


def first_layers(plan: setup.Plan, source):
  """The task's init, with first and last layers of principal components."""
  if plan.nets is None or plan.nets.lora.rank or not plan.train.pca_init_clips:
    return plan.task.init
  components = found(plan, source)

  def begin(key):
    params = plan.task.init(key)
    return params | {'dit': pca_init.start(params['dit'], components)}

  return begin


def widened(dit: dict, components: pca_init.Components) -> dict:
  """The layers that principal.widen changes, where they were."""
  whole = {
    name: multihost_utils.process_allgather(dit[name], tiled=True)
    for name in ('patch_embed', 'pos_embed')
    if name in dit
  }
  layer = pca_init.widen(whole, components)['patch_embed']
  place = lambda new, old: jax.device_put(new, old.sharding)  # noqa: E731
  return {'patch_embed': jax.tree.map(place, layer, dit['patch_embed'])}


def found(plan: setup.Plan, source) -> pca_init.Components:
  """The principal components of the first clips' patches."""
  nets, cut = plan.nets, plan.cut

  @jax.jit
  def encoded(frames_FHWC):
    return nets.encode(plan.frozen, to_video(frames_FHWC)[None])

  def tokens(record):
    if cut is not None:
      return np.asarray(to_video(cut.patches(record['video'])))
    z = record['latents'][None] if 'latents' in record else None
    z = encoded(record['video']) if z is None else z.astype(np.float32)
    return np.asarray(patchify.patchify(z, nets.dit.config.patch)[0])

  records = sources.first(source, plan.train.pca_init_clips)
  # As one clip, since clips may differ in size.
  x_BNV = np.concatenate([tokens(record) for record in records])[None]
  rank = pca_init.rank(plan.train.pca_init_rank, nets.dit.config)
  return pca_init.components(x_BNV, rank=rank)
