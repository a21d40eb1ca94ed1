"""The state of a run that has made no step."""

import jax

from spacetime import build, clips
from spacetime import plan as plan_lib
from spacetime.training import principal, state


def begin(plan: plan_lib.Plan, source, key) -> state.State:
  """The state of a run that has made no step."""
  if plan.base is not None and not plan.nets.lora.rank:
    params = plan.base.load(plan.nets, plan.mesh)
    # What the published code computes in float32 may be stored as less.
    kept = {
      root: jax.tree.map(lambda leaf: leaf.astype('float32'), params[root])
      for root in plan.shapes.params
    }
    return state.state_from(kept, plan.optimizer, plan.mesh)
  init = first_layers(plan, source)
  return state.init_state(init, key, plan.optimizer, plan.mesh)


def first_layers(plan: plan_lib.Plan, source):
  """The task's init, with first and last layers of principal components."""
  count = plan.train.principal_clips
  if plan.nets is None or plan.nets.lora.rank or not count:
    return plan.task.init
  found = build.components(
    plan.nets, plan.frozen, clips.first(source, count), plan.cut
  )

  def begin(key):
    params = plan.task.init(key)
    return params | {'dit': principal.start(params['dit'], found)}

  return begin
