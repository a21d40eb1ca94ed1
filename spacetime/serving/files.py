"""Files of the service: inputs and results of each job, by its id.

inputs/ID/         uploads and their decoded frames, until the job ends
work/ID/           what the worker writes; survives the worker
results/ID/        a finished job, renamed from work/ID

Beside a bucket (gs://BUCKET/NAME), which servers of one database share, these
are copies: inputs and results are uploaded, result.json as the last of them,
and fetched by the server or worker that needs them. work/ID stays on the
machine of its worker.
"""

import json
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

from spacetime.media import files as media_files

RESULT = 'result.json'


class Files:
  """Folders of the jobs.

  Args:
    root: the folder of the service's state.
    bucket: URL of the files that servers share, or None.
  """

  def __init__(self, root: pathlib.Path, *, bucket: str | None = None):
    self.root = root
    self._bucket = None if bucket is None else media_files.as_path(bucket)
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

  def result(self, job_id: str, name: str) -> pathlib.Path:
    """A file of a finished job, fetched from the bucket if it is not here."""
    path = self.results(job_id) / name
    if self._bucket is not None and not path.exists():
      with media_files.atomic_write(path) as temporary:
        media_files.copy(self._bucket / 'results' / job_id / name, temporary)
    return path

  def store_inputs(self, job_id: str) -> None:
    """Uploads the inputs of a job, for the worker that will run it."""
    if self._bucket is not None:
      self._upload(self.inputs(job_id), 'inputs', job_id)

  def fetch_inputs(self, job_id: str) -> pathlib.Path:
    """Folder of a job's inputs, fetched from the bucket if they are not here.

    Raises:
      FileNotFoundError: they are nowhere.
    """
    folder = self.inputs(job_id)
    if self._bucket is not None and not folder.exists():
      with media_files.atomic_folder(folder) as temporary:
        for path in (self._bucket / 'inputs' / job_id).iterdir():
          media_files.copy(path, temporary / path.name)
    return folder

  def finish(self, job_id: str, result: Mapping[str, Any]) -> None:
    """Makes the work of a job its results, complete."""
    work = self.work(job_id)
    (work / RESULT).write_text(json.dumps(result))
    if self._bucket is not None:
      self._upload(work, 'results', job_id)
    work.rename(self.results(job_id))

  def finished(self, job_id: str) -> dict[str, Any] | None:
    """The result of a job whose files are complete, or None."""
    path = self.results(job_id) / RESULT
    if path.exists():
      return json.loads(path.read_text())
    if self._bucket is None:
      return None
    path = self._bucket / 'results' / job_id / RESULT
    return json.loads(path.read_text()) if path.exists() else None

  def remove(self, job_id: str) -> None:
    """Removes all files of a job."""
    for folder in (self.inputs, self.work, self.results):
      shutil.rmtree(folder(job_id), ignore_errors=True)
    self._remove_remote(job_id, 'inputs', 'results')

  def remove_inputs(self, job_id: str) -> None:
    """Removes what a job that has ended no longer needs."""
    for folder in (self.inputs, self.work):
      shutil.rmtree(folder(job_id), ignore_errors=True)
    self._remove_remote(job_id, 'inputs')

  def remove_orphans(self, ids: Iterable[str], *, before: float) -> int:
    """Removes files of jobs that do not exist, unless newer than `before`.

    Beside a bucket, old copies of its files are removed too.

    Returns:
      Number of folders.
    """
    known, count = set(ids), 0
    for name in ('inputs', 'work', 'results'):
      for folder in (self.root / name).iterdir():
        is_copy = self._bucket is not None and name != 'work'
        if folder.name in known and not is_copy:
          continue
        if folder.stat().st_mtime < before:
          shutil.rmtree(folder, ignore_errors=True)
          count += 1
    if self._bucket is None:
      return count
    for name in ('inputs', 'results'):
      for job_id in self._remote_ids(name) - known:
        folder = self._bucket / name / job_id
        times = [media_files.changed(path) for path in folder.iterdir()]
        # Zero is a time that the storage does not tell.
        if times and 0 < max(times) < before:
          folder.rmtree(missing_ok=True)
          count += 1
    return count

  def size(self, folder: pathlib.Path) -> int:
    """Bytes of a folder's files."""
    return sum(p.stat().st_size for p in folder.rglob('*') if p.is_file())

  def free_bytes(self) -> int:
    """Free bytes of the disk."""
    return shutil.disk_usage(self.root).free

  # -- within ------------------------------------------------------------------

  def _upload(self, folder: pathlib.Path, name: str, job_id: str) -> None:
    """Copies a folder to the bucket; its RESULT, which completes it, last."""
    target = self._bucket / name / job_id
    paths = [path for path in folder.iterdir() if path.is_file()]
    for path in sorted(paths, key=lambda path: path.name == RESULT):
      media_files.copy(path, target / path.name)

  def _remove_remote(self, job_id: str, *names: str) -> None:
    if self._bucket is None:
      return
    for name in names:
      (self._bucket / name / job_id).rmtree(missing_ok=True)

  def _remote_ids(self, name: str) -> set[str]:
    folder = self._bucket / name
    if not folder.exists():  # nothing was ever uploaded
      return set()
    return {path.name for path in folder.iterdir()} - {''}
