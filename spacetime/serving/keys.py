"""API keys: a file of their SHA-256 digests with owners and expiry.

Keys are random and 256 bits long, so that a plain digest suffices.
"""

import hashlib
import json
import os
import pathlib
import re
import secrets
import time
from typing import Any

from spacetime import SettingError
from spacetime.media.files import atomic_write, with_home

PREFIX = 'st-'
LOCAL = 'local'  # the owner of everything without keys
_OWNER = re.compile(r'[A-Za-z0-9._-]{1,64}')


class ApiKeys:
  """The keys of a file, read again when it changes.

  Args:
    path: the file; None admits everybody as one owner.

  Raises:
    SettingError: no such file, or not a file of keys.
  """

  def __init__(self, path: str | None):
    self._path = with_home(path) if path else None
    self._changed, self._entries = None, {}
    if self._path is not None:
      self._read()

  @property
  def required(self) -> bool:
    """Whether requests need a key."""
    return self._path is not None

  def owner(self, key: str | None) -> str | None:
    """The owner of a key; None if it is unknown or has expired."""
    if self._path is None:
      return LOCAL
    if not key:
      return None
    self._read()
    entry = self._entries.get(digest(key))
    if entry is None:
      return None
    expires = entry.get('expires')
    if expires is not None and expires < time.time():
      return None
    return entry['owner']

  def _read(self) -> None:
    try:
      changed = self._path.stat().st_mtime_ns
      if changed == self._changed:
        return
      self._entries = read(self._path)
      self._changed = changed
    except (OSError, ValueError) as e:
      if self._changed is None:
        raise SettingError(
          'api_keys', str(self._path), 'a file of `spacetime keys`', hint=str(e)
        ) from e


def digest(key: str) -> str:
  """SHA-256 of a key."""
  return hashlib.sha256(key.encode(errors='replace')).hexdigest()


def read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Entries of a file of keys by digest.

  Raises:
    ValueError: not a file of keys.
  """
  entries = json.loads(path.read_text())
  if not isinstance(entries, list) or not all(
    isinstance(entry, dict) and {'owner', 'sha256'} <= entry.keys()
    for entry in entries
  ):
    raise ValueError(f'{path}: not a file of keys')
  return {entry['sha256']: entry for entry in entries}


def add(path: pathlib.Path, owner: str, *, days: float | None) -> str:
  """Adds a key for an owner to a file, readable by its user only.

  Args:
    path: the file, created if it is absent.
    owner: whose jobs the key sees.
    days: days until the key expires; None is never.

  Returns:
    The key, which is not stored.

  Raises:
    SettingError: another form of owner.
    ValueError: `path` is another file.
  """
  if not _OWNER.fullmatch(owner):
    raise SettingError('owner', owner, 'letters, digits, dots and dashes')
  if days is not None and not days > 0:
    raise SettingError('days', days, 'more than 0')
  entries = list(read(path).values()) if path.exists() else []
  key = PREFIX + secrets.token_urlsafe(32)
  entry = {'owner': owner, 'sha256': digest(key), 'created': int(time.time())}
  if days is not None:
    entry['expires'] = int(time.time() + days * 24 * 3600)
  with atomic_write(path) as temporary:
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, 'w') as file:
      json.dump([*entries, entry], file, indent=2)
  return key
