"""State of a long video, saved beside it after every chunk (safetensors)."""

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
  """Progress of a rollout and the arrays to resume it.

  Attributes:
    chunks: number of chunks that are written.
    marks: position in each clip's file.
    arrays: arrays of the tail, by name.
  """

  chunks: int
  marks: tuple[fragmented_mp4.Mark, ...]
  arrays: Mapping[str, np.ndarray]

  def tail(self, cache) -> rollout.Tail:
    """The saved tail of the video.

    Args:
      cache: tree of the decoder's cache, arrays or shapes.
    """
    structure = jax.tree.structure(cache)
    leaves = [self.arrays[_leaf(i)] for i in range(structure.num_leaves)]
    return rollout.Tail(
      self.arrays['z'],
      self.arrays['end'],
      jax.tree.unflatten(structure, leaves),
    )


def write(
  path: pathlib.Path,
  tail: rollout.Tail,
  *,
  chunks: int,
  marks: tuple[fragmented_mp4.Mark, ...],
  identity: Mapping[str, Any],
) -> None:
  """Writes the state after a chunk, atomically.

  Args:
    path: file to write.
    tail: the end of the video so far.
    chunks: number of chunks that are written.
    marks: position in each clip's file.
    identity: identity of the request, plain values.
  """
  leaves = jax.tree.leaves(jax.device_get(tail.cache))
  arrays = {'z': tail.z_Bfhwc, 'end': tail.frames_BFHWC}
  arrays |= {_leaf(i): leaf for i, leaf in enumerate(leaves)}
  arrays = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
  header = {
    'chunks': json.dumps(chunks),
    'marks': json.dumps([dataclasses.astuple(mark) for mark in marks]),
    'identity': json.dumps(identity),
  }
  with files.atomic_write(path) as temporary:
    # save_file would write it for its owner alone, whatever the umask.
    temporary.write_bytes(safetensors.numpy.save(arrays, metadata=header))


def read(
  path: pathlib.Path, identity: Mapping[str, Any], *, restart: bool = False
) -> State | None:
  """Reads the state of an interrupted long video; None if there is none.

  Args:
    path: file to read.
    identity: identity of the current request.
    restart: whether the state of another request is ignored.

  Raises:
    ValueError: a damaged file, or the state of another request; the message
      lists the differences.
  """
  if not path.exists():
    return None
  hint = f'remove {path} to start again, or change `out`'
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      header = file.metadata() or {}
      arrays = {name: file.get_tensor(name) for name in file.keys()}
    header_values = {
      k: json.loads(header[k]) for k in ('chunks', 'marks', 'identity')
    }
  except (
    *(safetensors.SafetensorError, OSError, KeyError, ValueError),
    RecursionError,
  ) as e:
    raise ValueError(
      f'{path}: not the state of a long video ({e}); {hint}'
    ) from e
  now = json.loads(json.dumps(identity))
  other = differences(header_values['identity'], now)
  if other and restart:
    return None
  if other:
    more = f' and {len(other) - LISTED} more' if len(other) > LISTED else ''
    raise ValueError(
      f'{path} is the state of another request: {"; ".join(other[:LISTED])}'
      f'{more}; repeat that request, {hint}'
    )
  marks = tuple(fragmented_mp4.Mark(*mark) for mark in header_values['marks'])
  return State(header_values['chunks'], marks, arrays)


def differences(there, here, name: str = '') -> list[str]:
  """Lists the values that differ, as 'NAME is A there, B here'."""
  if isinstance(there, dict) and isinstance(here, dict):
    result = []
    for key in dict.fromkeys((*there, *here)):
      full = f'{name}.{key}' if name else key
      result += differences(there.get(key), here.get(key), full)
    return result
  if there == here:
    return []
  return [f'{name} is {there!r} there, {here!r} here']


def _leaf(number: int) -> str:
  return f'cache/{number:04d}'
