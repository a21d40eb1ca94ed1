"""The text of compiled programs."""

from spacetime.hlo.program import (
  COLLECTIVES,
  Array,
  Collective,
  Instruction,
  Program,
  scope,
)

__all__ = [
  'COLLECTIVES',
  'Array',
  'Collective',
  'Instruction',
  'Program',
  'scope',
]
