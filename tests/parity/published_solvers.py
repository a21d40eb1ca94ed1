"""diffusers' schedulers, run on any velocity; imported where torch is."""

import numpy as np


def build(name: str, shift: float):
  """The scheduler of a published schedule of diffusion/schedules.py."""
  import diffusers

  flow = dict(
    prediction_type='flow_prediction', use_flow_sigmas=True, flow_shift=shift
  )
  match name:
    case 'wan_unipc_schedule':
      return diffusers.UniPCMultistepScheduler(**flow)
    case 'flow_dpm_schedule':
      return diffusers.DPMSolverMultistepScheduler(**flow)
    case 'flow_match_euler_schedule':
      return diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)


def trace(name: str, velocity, z_Bfhwc, *, steps: int, shift: float):
  """Latents before each of the steps and after the last, (K + 1, B, f, ...).

  Args:
    name: see build.
    velocity: (z_Bfhwc, t) -> velocity, in numpy.
    z_Bfhwc: noise.
    steps: K.
    shift: of the schedule.
  """
  import torch

  scheduler = build(name, shift)
  scheduler.set_timesteps(steps)
  z = torch.from_numpy(z_Bfhwc)
  seen = [z.numpy()]
  for timestep in scheduler.timesteps:
    t = np.float32(timestep.item() / 1000)
    v = torch.from_numpy(velocity(z.numpy(), t))
    z = scheduler.step(v, timestep, z, return_dict=False)[0]
    seen.append(z.numpy())
  return np.stack(seen)
