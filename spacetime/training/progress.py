"""Progress of a run: the bar, compilation, and answers to signals."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import tqdm


def bar(
  *, start: int, steps: int, name: str = 'train', quiet: bool = False
) -> tqdm.tqdm:
  """A bar with rate and time to go; `update(1)`, `set_postfix(loss=...)`.

  Args:
    start: finished steps, not counted in the rate.
    steps: steps of the entire run.
    name: shown in front.
    quiet: shows nothing, as on all processes but the first.
  """
  return tqdm.tqdm(
    initial=start,
    total=steps,
    desc=name,
    unit='step',
    dynamic_ncols=True,
    smoothing=0.1,
    mininterval=0.5,
    disable=quiet,
  )


@contextlib.contextmanager
def compiling(subject: str, bar: tqdm.tqdm) -> Iterator[None]:
  """Shows on the bar that a program compiles, with the elapsed seconds."""
  done, began = threading.Event(), time.monotonic()

  def show():
    pause = 1.0 if sys.stderr.isatty() else 30.0
    while True:
      seconds = time.monotonic() - began
      bar.set_postfix_str(f'compiling {subject}, {seconds:.0f} s')
      if done.wait(pause):
        return

  thread = threading.Thread(target=show, daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()
    bar.set_postfix_str('', refresh=False)
    bar.unpause()  # the rate does not count the compilation


@contextlib.contextmanager
def answered_signals() -> Iterator[None]:
  """Answers SIGINT and SIGTERM at once while a program compiles.

  Python's own handlers run only when the compilation returns. Here a thread
  reads the signals: the first prints that the run stops after compiling, a
  second ends the process.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

  def answer():
    """Reads signal numbers until the pipe closes."""
    received = 0
    while number := os.read(reader, 1):
      if number[0] not in (signal.SIGINT, signal.SIGTERM):
        continue
      name, received = signal.Signals(number[0]).name, received + 1
      if received > 1:
        print(f'\n{name} again: aborted', file=sys.stderr, flush=True)
        os._exit(128 + number[0])
      print(
        f'\n{name}: the run stops after compiling; a second signal aborts it '
        'now',
        file=sys.stderr,
        flush=True,
      )

  thread = threading.Thread(target=answer, daemon=True)
  thread.start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(before)
    os.close(writer)  # ends the thread
    thread.join()
    os.close(reader)
