"""The list of clips that a run began with, and its comparison with a folder.

The order of the clips hangs on the list: were it to change, positions in the
data would refer to other clips. So a run stores its list and goes on with it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

FILE = 'clips.json'
SHOWN = 3  # names in a message


@dataclasses.dataclass(frozen=True)
class ClipList:
  """The clips of a source, in the order of their indices.

  Attributes:
    identity: fingerprint of the list.
    names: of the clips, relative to their folder; none where the source has no
      files, only an identity.
    fingerprints: of each clip.
  """

  identity: str
  names: tuple[str, ...] = ()
  fingerprints: tuple[str, ...] = ()

  def to_json(self) -> str:
    """The text of clips.json."""
    return json.dumps(dataclasses.asdict(self), indent=0) + '\n'

  @classmethod
  def from_json(cls, text: str) -> 'ClipList':
    """The list of a clips.json.

    Raises:
      ValueError: the text is not one.
    """
    try:
      values = json.loads(text)
      return cls(
        values['identity'],
        tuple(values['names']),
        tuple(values['fingerprints']),
      )
    except (KeyError, TypeError, ValueError) as e:
      raise ValueError(f'not a list of clips ({type(e).__name__}: {e})') from e

  def changes(self, now: 'ClipList') -> 'Changes':
    """How another list differs from this one."""
    before = dict(zip(self.names, self.fingerprints, strict=True))
    after = dict(zip(now.names, now.fingerprints, strict=True))
    return Changes(
      removed=tuple(name for name in before if name not in after),
      added=tuple(name for name in after if name not in before),
      changed=tuple(
        name for name in before if name in after and before[name] != after[name]
      ),
    )


@dataclasses.dataclass(frozen=True)
class Changes:
  """Names of clips that a folder has lost, gained, or has otherwise."""

  removed: tuple[str, ...] = ()
  added: tuple[str, ...] = ()
  changed: tuple[str, ...] = ()

  def __bool__(self) -> bool:
    return bool(self.removed or self.added or self.changed)

  def __str__(self) -> str:
    parts = [
      f'{len(names)} {field} ({shown(names)})'
      for field, names in dataclasses.asdict(self).items()
      if names
    ]
    return ', '.join(parts)


def shown(names: Sequence[str]) -> str:
  """The first of some names, and how many more there are."""
  more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
  return ', '.join(names[:SHOWN]) + more


def fingerprint(*values: Any) -> str:
  """A fingerprint of some values, 16 hex digits."""
  text = '\n'.join(str(value) for value in values)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def make(clips: Mapping[str, str], identity: str) -> ClipList:
  """The list of clips by name, with the fingerprint of each."""
  return ClipList(identity, tuple(clips), tuple(clips.values()))
