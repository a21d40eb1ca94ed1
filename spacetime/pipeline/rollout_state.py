"""The state of a rollout beside its video, after every chunk: safetensors."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from spacetime.diffusion import rollout
from spacetime.media import files, fragmented_mp4

# Most differences that an error lists.
LISTED = 3


@dataclasses.dataclass(frozen=True)
class State:
  """How far a rollout has come.

  Attributes:
    chunks: that are done.
    marks: of each clip's file.
    arrays: what `tail` reads.
  """

  chunks: int
  marks: tuple[fragmented_mp4.Mark, ...]
  arrays: Mapping[str, np.ndarray]

  def tail(self, cache) -> rollout.Tail:
    """The tail that was written.

    Args:
      cache: of the decoder, or its shapes: the tree that its arrays fill.
    """
    places = jax.tree.structure(cache)
    leaves = [self.arrays[_leaf(i)] for i in range(places.num_leaves)]
    return rollout.Tail(
      self.arrays['z'],
      self.arrays['end'],
      jax.tree.unflatten(places, leaves),
    )


def write(
  path: pathlib.Path,
  tail: rollout.Tail,
  *,
  chunks: int,
  marks: tuple[fragmented_mp4.Mark, ...],
  about: Mapping[str, Any],
) -> None:
  """Writes the state after a chunk, the whole file or none of it.

  Args:
    path: where.
    tail: the end of what exists.
    chunks: that are done.
    marks: of each clip's file.
    about: identity of the request, plain values.
  """
  leaves = jax.tree.leaves(jax.device_get(tail.cache))
  arrays = {'z': tail.z_Bfhwc, 'end': tail.last_frame_BfHWC}
  arrays |= {_leaf(i): leaf for i, leaf in enumerate(leaves)}
  arrays = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
  header = {
    'chunks': json.dumps(chunks),
    'marks': json.dumps([dataclasses.astuple(mark) for mark in marks]),
    'about': json.dumps(about),
  }
  with files.atomic_write(path) as temporary:
    safetensors.numpy.save_file(arrays, temporary, metadata=header)


def read(path: pathlib.Path, about: Mapping[str, Any]) -> State | None:
  """The state of a run that was stopped; None where there is none.

  Args:
    path: where.
    about: identity of the current request.

  Raises:
    ValueError: a damaged file, or one of another request: what differs.
  """
  if not path.exists():
    return None
  anew = f'remove {path} to start again, or change `out`'
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      header = file.metadata() or {}
      arrays = {name: file.get_tensor(name) for name in file.keys()}
    header_values = {
      k: json.loads(header[k]) for k in ('chunks', 'marks', 'about')
    }
  except (safetensors.SafetensorError, OSError, KeyError, ValueError) as e:
    raise ValueError(
      f'{path}: not the state of a long video ({e}); {anew}'
    ) from e
  now = json.loads(json.dumps(about))
  other = _differences(header_values['about'], now)
  if other:
    more = f' and {len(other) - LISTED} more' if len(other) > LISTED else ''
    raise ValueError(
      f'{path} is of another request: {"; ".join(other[:LISTED])}{more}; ask for '
      f'the same, {anew}'
    )
  marks = tuple(fragmented_mp4.Mark(*mark) for mark in header_values['marks'])
  return State(header_values['chunks'], marks, arrays)


def _differences(there, here, name: str = '') -> list[str]:
  """'NAME is A there, B here' of every value that is not the same."""
  if isinstance(there, dict) and isinstance(here, dict):
    result = []
    for key in dict.fromkeys((*there, *here)):
      full = f'{name}.{key}' if name else key
      result += _differences(there.get(key), here.get(key), full)
    return result
  if there == here:
    return []
  return [f'{name} is {there!r} there, {here!r} here']


def _leaf(number: int) -> str:
  return f'cache/{number:04d}'
