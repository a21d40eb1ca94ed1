"""Warnings about a request, collected for its sender.

`warnings.catch_warnings` would collect those of all threads.
"""

import contextlib
import threading
import warnings
from collections.abc import Iterator

from spacetime import SettingWarning

MOST = 5  # of a request
_thread = threading.local()
_lock = threading.Lock()
_shown = warnings.showwarning


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
  """Yields the list that SettingWarnings of this thread are added to."""
  _install()
  _thread.notices = []
  try:
    yield _thread.notices
  finally:
    _thread.notices = None


def _install() -> None:
  global _shown
  with _lock:
    if warnings.showwarning is not _show:
      _shown, warnings.showwarning = warnings.showwarning, _show
    # Else the second request with the same words would have none.
    warnings.simplefilter('always', SettingWarning)


def _show(message, category, *arguments, **options) -> None:
  notices = getattr(_thread, 'notices', None)
  if notices is None or not issubclass(category, SettingWarning):
    _shown(message, category, *arguments, **options)
  elif len(notices) < MOST:
    notices.append(str(message))
