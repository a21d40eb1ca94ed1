"""Solvers of the flow's ordinary differential equation, and their grids.

A grid (grids.py) is the levels that a solver (methods.py) steps between.
"""

from spacetime.solver.grids import (
  MARGIN,
  PUBLISHED,
  SCHEDULES,
  Grid,
  flow_dpm_grid,
  flow_match_euler_grid,
  schedule,
  time_grid,
  wan_unipc_grid,
)
from spacetime.solver.methods import (
  SOLVERS,
  Predict,
  Solver,
  dpm,
  euler,
  get,
  heun,
  unipc,
)

__all__ = [
  'MARGIN',
  'PUBLISHED',
  'SCHEDULES',
  'SOLVERS',
  'Grid',
  'Predict',
  'Solver',
  'dpm',
  'euler',
  'flow_dpm_grid',
  'flow_match_euler_grid',
  'get',
  'heun',
  'schedule',
  'time_grid',
  'unipc',
  'wan_unipc_grid',
]
