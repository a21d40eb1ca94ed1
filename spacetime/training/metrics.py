"""Metrics of a run: JSON lines, and TensorBoard with pictures."""

import json
import math
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Mapping

import numpy as np
import tensorboardX
from etils import epath

from spacetime.media import files

FILE, BOARD = 'metrics.jsonl', 'tensorboard'


class MetricsWriter:
  """Writes scalars by step to WORKDIR/metrics.jsonl and to TensorBoard.

  A bucket cannot append: the files lie in a local folder and are copied at most
  every half minute.

  Args:
    workdir: the run's directory; created if absent. None writes nothing,
      as on all processes but the first.
    step: where the run starts or resumes: lines and events after it, left by
      the part of a run that its last checkpoint does not hold, are dropped.

  Raises:
    ValueError: the directory cannot be written.
  """

  def __init__(self, workdir: str | os.PathLike | None, *, step: int = 0):
    self._step = step
    self._remote, self._silent = None, workdir is None
    if workdir is None:
      return
    if '://' in os.fspath(workdir):
      self._remote, self._copied = epath.Path(workdir), time.monotonic()
      workdir = tempfile.mkdtemp(prefix='spacetime_metrics_')
      if (self._remote / FILE).exists():
        text = (self._remote / FILE).read_text()
        (pathlib.Path(workdir) / FILE).write_text(text)
    self._workdir = workdir = pathlib.Path(workdir)
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      _truncate(workdir / FILE, step=step)
      self._lines = (workdir / FILE).open('a', encoding='utf-8')
    except OSError as e:
      raise ValueError(
        f'{workdir} cannot be written ({e.strerror}); change `workdir`'
      ) from e
    self._board = tensorboardX.SummaryWriter(
      os.fspath(workdir / BOARD), purge_step=step + 1 if step else None
    )

  def __enter__(self) -> 'MetricsWriter':
    return self

  def __exit__(self, *exception) -> None:
    self.close()

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes one line: the step, and scalars by name.

    Args:
      step: finished steps.
      scalars: flat; Python numbers, or arrays of one element. What is not
        finite is null in the line, since JSON knows no NaN, and a gap in the
        curve.

    Raises:
      ValueError: a value of more than one element.
    """
    if self._silent:
      return
    values = {name: _scalar(name, value) for name, value in scalars.items()}
    line = {'step': int(step)} | {
      name: value if math.isfinite(value) else None
      for name, value in values.items()
    }
    self._lines.write(json.dumps(line) + '\n')
    self._lines.flush()
    for name, value in values.items():
      if math.isfinite(value):
        self._board.add_scalar(name, value, int(step))
    if self._remote and time.monotonic() - self._copied > 30:
      self.flush()

  def image(self, step: int, name: str, image_HWC: np.ndarray) -> None:
    """Shows a picture, uint8 (H, W, 3), in TensorBoard."""
    if self._silent:
      return
    self._board.add_image(name, image_HWC, int(step), dataformats='HWC')

  def text(self, name: str, text: str) -> None:
    """Shows a text, such as the config, in TensorBoard."""
    if self._silent:
      return
    self._board.add_text(name, text, self._step)

  def flush(self) -> None:
    """Flushes all metrics to disk or to the bucket."""
    if self._silent:
      return
    self._lines.flush()
    self._board.flush()
    if self._remote:
      self._copied = time.monotonic()
      _copy(self._workdir, self._remote)

  def close(self) -> None:
    """Flushes and closes the files."""
    if self._silent:
      return
    self._lines.close()
    self._board.close()
    if self._remote:
      _copy(self._workdir, self._remote)
      shutil.rmtree(self._workdir, ignore_errors=True)


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, float]]:
  """The lines of WORKDIR/metrics.jsonl up to a half-written one."""
  path = epath.Path(workdir) / FILE
  if not path.exists():
    raise ValueError(f'{path} does not exist; change `workdir`')
  lines = []
  for text in path.read_text().splitlines():
    try:
      lines.append(json.loads(text))
    except json.JSONDecodeError:
      break
  return lines


def _scalar(name: str, value: float) -> float:
  array = np.asarray(value)
  if array.size != 1:
    raise ValueError(
      f'metric {name} has shape {array.shape}; expected one number'
    )
  return float(array.reshape(()).astype(np.float64))


def _truncate(path: pathlib.Path, *, step: int) -> None:
  """Drops the lines after `step`, and a half-written one."""
  if not path.exists():
    return
  lines = [line for line in read_metrics(path.parent) if line['step'] <= step]
  with files.atomic_write(path) as temporary:
    temporary.write_text(
      ''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8'
    )


def _copy(folder: pathlib.Path, target: epath.Path) -> None:
  """Copies the files of a folder to the same paths below another."""
  for path in folder.rglob('*'):
    if path.is_file():
      there = target / path.relative_to(folder).as_posix()
      there.parent.mkdir(parents=True, exist_ok=True)
      there.write_bytes(path.read_bytes())
