"""Files of the service: inputs and results of each job, by its id.

inputs/ID/         uploads and their decoded frames, until the job ends
work/ID/           what the worker writes; survives the worker
results/ID/        a finished job, renamed from work/ID
"""

import json
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

RESULT = 'result.json'


class Files:
  """Folders of the jobs.

  Args:
    root: the folder of the service's state.
  """

  def __init__(self, root: pathlib.Path):
    self.root = root
    for name in ('inputs', 'work', 'results'):
      (root / name).mkdir(parents=True, exist_ok=True)

  def inputs(self, job_id: str) -> pathlib.Path:
    """Folder of a job's inputs."""
    return self.root / 'inputs' / job_id

  def work(self, job_id: str) -> pathlib.Path:
    """Folder that the worker writes."""
    return self.root / 'work' / job_id

  def results(self, job_id: str) -> pathlib.Path:
    """Folder of a finished job."""
    return self.root / 'results' / job_id

  def finish(self, job_id: str, result: Mapping[str, Any]) -> None:
    """Makes the work of a job its results, complete."""
    work = self.work(job_id)
    (work / RESULT).write_text(json.dumps(result))
    work.rename(self.results(job_id))

  def finished(self, job_id: str) -> dict[str, Any] | None:
    """The result of a job whose files are complete, or None."""
    path = self.results(job_id) / RESULT
    return json.loads(path.read_text()) if path.exists() else None

  def remove(self, job_id: str) -> None:
    """Removes all files of a job."""
    for folder in (self.inputs, self.work, self.results):
      shutil.rmtree(folder(job_id), ignore_errors=True)

  def remove_inputs(self, job_id: str) -> None:
    """Removes the inputs of a job that has ended."""
    shutil.rmtree(self.inputs(job_id), ignore_errors=True)

  def remove_orphans(self, ids: Iterable[str], *, before: float) -> int:
    """Removes files of jobs that do not exist, unless newer than `before`."""
    known, count = set(ids), 0
    for name in ('inputs', 'work', 'results'):
      for folder in (self.root / name).iterdir():
        if folder.name not in known and folder.stat().st_mtime < before:
          shutil.rmtree(folder, ignore_errors=True)
          count += 1
    return count

  def size(self, folder: pathlib.Path) -> int:
    """Bytes of a folder's files."""
    return sum(p.stat().st_size for p in folder.rglob('*') if p.is_file())

  def free_bytes(self) -> int:
    """Free bytes of the disk."""
    return shutil.disk_usage(self.root).free
