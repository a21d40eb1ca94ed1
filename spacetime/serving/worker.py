"""Worker process: the only one that imports JAX; runs one job at a time.

  python -m spacetime.serving.worker < settings.json

Reads its settings and, afterwards, questions from stdin; writes answers to
stdout, a line of JSON each. It ends when stdin closes, which happens when the
HTTP process dies. A lock on the state folder admits one worker at a time, so
that the jobs of the one before are free.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from spacetime import SettingError, SettingWarning
from spacetime.media import image_reader, video_reader, video_writer
from spacetime.pipeline.pipeline import Pipeline
from spacetime.provenance import manifest, watermark
from spacetime.safety import frames as frames_lib
from spacetime.safety import policy as policy_lib
from spacetime.serving import (
  database,
  fields,
  hosts,
  job_request,
  notices,
  renditions,
  service,
  uploads,
)
from spacetime.serving.files import Files
from spacetime.serving.hosts import StoppedError
from spacetime.serving.jobs import Job, Jobs
from spacetime.serving.settings import ServeSettings
from spacetime.sharding import multihost

IDLE_SECONDS = 0.05  # between looks at the queue
WARM_PROMPT = 'a test'
REPORT_SECONDS = 0.25  # between reports of progress
VARIANTS = {
  'thumbnail': ('thumbnail.webp', 'image/webp', renditions.thumbnail),
  'spritesheet': ('spritesheet.jpg', 'image/jpeg', renditions.spritesheet),
}


class JobError(Exception):
  """A job that cannot be completed, with a reason for its owner."""

  def __init__(self, code: str, message: str, *, param: str | None = None):
    super().__init__(message)
    self.code, self.param = code, param


class Report:
  """Progress of the running job: renews its lease and notices its end.

  Args:
    jobs: the table of jobs.
    job: the job.
    lease_seconds: length of its lease.
  """

  def __init__(self, jobs: Jobs, job: Job, *, lease_seconds: float):
    self._jobs, self._job, self._lease = jobs, job, lease_seconds
    self._stage, self._done, self._steps = 'starting', 0, 0
    self._reported, self._stopped = 0.0, False
    self._lock, self._ended = threading.Lock(), threading.Event()

  def __enter__(self) -> 'Report':
    self._thread = threading.Thread(target=self._renew, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *exception) -> None:
    self._ended.set()
    self._thread.join()

  def stage(self, name: str) -> None:
    """Names what happens next."""
    self._stage = name
    self._beat()
    self._check()

  def step(self, done: int, steps: int) -> None:
    """Counts solver steps; raises StoppedError if the job must stop."""
    self._done, self._steps = done, steps
    if time.monotonic() - self._reported > REPORT_SECONDS or done == steps:
      self._beat()
    elif not self._jobs.goes_on(self._job):
      self._stopped = True
    self._check()

  def _check(self) -> None:
    if self._stopped:
      raise StoppedError(self._job.id)

  def _beat(self) -> None:
    with self._lock:
      self._reported = time.monotonic()
      if not self._jobs.beat(
        self._job,
        lease_seconds=self._lease,
        stage=self._stage,
        steps_done=self._done,
        steps=self._steps,
      ):
        self._stopped = True

  def _renew(self) -> None:
    # Compiling and reading weights take longer than a lease.
    while not self._ended.wait(min(5.0, self._lease / 4)):
      with contextlib.suppress(Exception):  # tried again in a moment
        self._beat()
    self._jobs.database.close()


class Worker:
  """Runs the jobs of a service.

  Args:
    settings: settings of the service.
    name: name of the worker in leases, the same after a restart.
    pipelines: a pipeline for each model name; they are opened here.
  """

  def __init__(
    self,
    settings: ServeSettings,
    *,
    name: str,
    pipelines: Mapping[str, Pipeline] | None = None,
  ):
    self.settings, self.name = settings, name
    self.files = Files(settings.files_folder, bucket=settings.bucket)
    self.jobs = Jobs(database.connect(settings.database, settings.folder))
    self.pipelines = pipelines or open_pipelines(settings)
    self.policy = policy_lib.load(settings.policy)
    self.signing_key = service.signing_key(settings)

  def models(self) -> list[dict[str, Any]]:
    """Each model with the sizes and settings that it defaults to."""
    return [
      {
        'id': name,
        'size': f'{engine.data.width}x{engine.data.height}',
        'frames': engine.data.frames,
        'fps': engine.data.fps,
        'seconds': f'{engine.data.frames / engine.data.fps:g}',
        'longest': max(engine.data.frames, engine.data.max_frames),
        'weights_hash': engine.model.weights_hash,
        'sampling': dataclasses.asdict(engine.settings()),
        'example': _example(engine),
      }
      for name, engine in ((n, p.engine) for n, p in self.pipelines.items())
    ]

  def warm_up(self) -> None:
    """Compiles the programs of each model's default request."""
    for pipeline in self.pipelines.values():
      with warnings.catch_warnings():
        # Of words that the model does not know.
        warnings.simplefilter('ignore', SettingWarning)
        frames_FHWC = pipeline(WARM_PROMPT).frames
      if self._marks:
        watermark.embed(frames_FHWC, 0, self.signing_key.watermark)
      if self.policy.frames is not None:
        with contextlib.suppress(policy_lib.CheckError):  # jobs will say so
          frames_lib.check(frames_FHWC[:1], self.policy.frames)

  def check(self, job: Mapping[str, Any]) -> dict[str, Any]:
    """Checks a job that is not queued yet: its size and warnings, or an error.

    Args:
      job: {'id', 'model', 'prompt', 'params'}.
    """
    try:
      engine = self.pipelines[job['model']].engine
      params = job['params']
      out = pathlib.Path(f'video.{job_request.file_format(params)}')
      request = self._request(job['id'], job['prompt'], params, engine, out)
      with notices.collected() as warned:
        size = job_request.size(request, engine)
    except SettingError as e:
      return {'error': str(e), 'param': e.name}
    except (ValueError, OverflowError) as e:
      # The one setting that is refused without its name.
      return {'error': str(e), 'param': 'prompt'}
    answer = {'seconds': size.seconds, 'warnings': warned}
    return dataclasses.asdict(size) | answer

  def run_next(self) -> bool:
    """Runs the next job, if there is one and the disk has room."""
    if self.files.free_bytes() < self.settings.min_free_mb * 2**20:
      return False
    job = self.jobs.claim(
      self.name,
      lease_seconds=self.settings.lease_seconds,
      max_running=self.settings.max_running,
    )
    if job is None:
      return False
    self.run(job)
    return True

  def run(self, job: Job) -> None:
    """Runs a leased job to its end: completed, failed or stopped."""
    keep = self.settings.keep_hours * 3600
    lease, is_sound = self.settings.lease_seconds, True
    try:
      with Report(self.jobs, job, lease_seconds=lease) as report:
        result = self.files.finished(job.id)
        if result is None:
          result = self._make(job, report)
          report.stage('finishing')
          self.files.finish(job.id, result)
      size = result['bytes']
      done = self.jobs.complete(job, result, size=size, keep=keep)
    except StoppedError:
      done = self._stopped(job, keep)
    except JobError as e:
      error = {'code': e.code, 'message': str(e), 'param': e.param}
      done = self.jobs.fail(job, error, keep=keep)
    except SettingError as e:
      error = fields.from_setting_error(e.name, str(e))
      done = self.jobs.fail(
        job,
        {'code': error.code, 'message': error.message, 'param': error.param},
        keep=keep,
      )
    except OSError as e:
      traceback.print_exc()
      error = {'code': 'storage_error', 'message': e.strerror or str(e)}
      done, is_sound = self.jobs.fail(job, error, keep=keep), False
    except Exception as e:
      traceback.print_exc()
      message = f'The video could not be made ({type(e).__name__}).'
      error = {'code': 'internal_error', 'message': message}
      done, is_sound = self.jobs.fail(job, error, keep=keep), False
    self._clean(job, done)
    if not is_sound:  # other processes of the model may wait for this one
      hosts.end_group()

  def _make(self, job: Job, report: Report) -> dict[str, Any]:
    """Makes the files of a job in its work folder; returns their names."""
    pipeline = self.pipelines.get(job.model)
    if pipeline is None:
      raise JobError('model_not_found', f'The model {job.model} is gone.')
    work = self.files.work(job.id)
    if hosts.count() > 1:  # the others have no chunks to go on from
      shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    kind = job_request.file_format(job.params)
    path = work / f'video.{kind}'
    request = self._request(
      job.id, job.prompt, job.params, pipeline.engine, path
    )
    report.stage('checking inputs')
    for upload in _uploads(job):
      frames_FHWC = upload.read(self.files.inputs(job.id))
      self._check_frames(job, frames_FHWC, upload.original)
    report.stage('sampling')
    payload = watermark.payload_of(
      pipeline.engine.model.weights_hash,
      job.params.get('seed', 0),
      job.prompt,
      json.dumps(_public(job.params), sort_keys=True),
    )

    def check_and_mark(frames_FHWC):
      report.stage('checking frames')
      self._check_frames(job, frames_FHWC, 'output')
      if self._marks:
        frames_FHWC = watermark.embed(
          frames_FHWC, payload, self.signing_key.watermark
        )
      report.stage('sampling')
      return frames_FHWC

    if hosts.count() > 1:
      hosts.share(
        {
          'id': job.id,
          'model': job.model,
          'prompt': job.prompt,
          'params': job.params,
          'name': path.name,
        }
      )
    written = pipeline.write(
      request,
      callback=lambda *steps: hosts.on_first(lambda: report.step(*steps)),
      on_frames=lambda frames_FHWC, _: hosts.on_first(
        lambda: check_and_mark(frames_FHWC)
      ),
    )
    (path,) = written
    report.stage('encoding')
    frames_FHWC = _frames(path)
    variants = {'video': {'name': path.name, 'type': fields.FORMATS[kind]}}
    for variant, (name, media_type, render) in VARIANTS.items():
      (work / name).write_bytes(render(frames_FHWC))
      variants[variant] = {'name': name, 'type': media_type}
    result = {
      'variants': variants,
      'metadata': dict(written[path]),
      'frames': len(frames_FHWC),
    }
    if self.signing_key is not None:
      report.stage('signing')
      result['provenance'] = self._sign(
        job, work, variants, frames_FHWC, payload, written[path]
      )
    result['bytes'] = self.files.size(work)
    return result

  @property
  def _marks(self) -> bool:
    return self.settings.watermark and self.signing_key is not None

  def _check_frames(self, job: Job, frames_FHWC, name: str) -> None:
    """Refuses frames by the policy; every verdict is recorded.

    Raises:
      JobError: they are refused, or the classifier cannot run.
    """
    settings = self.policy.frames
    if settings is None:
      return
    try:
      verdict = frames_lib.check(frames_FHWC, settings)
    except policy_lib.CheckError as e:
      raise JobError('safety_check_failed', f'{e}.') from e
    self.jobs.audit(
      job.id,
      stage=f'frames of {name}',
      policy=f'{self.policy.name} {self.policy.version}',
      checker=verdict.checker,
      digest=uploads.digest(frames_FHWC.tobytes()),
      score=verdict.score,
      verdict='allowed' if verdict.allowed else 'refused',
      rule=verdict.rule,
    )
    if not verdict.allowed:
      raise JobError(
        'moderation_blocked',
        f'The frames of {name} are refused by policy {self.policy.name}: '
        f'{verdict.category} (rule {verdict.rule}).',
      )

  def _sign(
    self, job: Job, work: pathlib.Path, variants, frames_FHWC, payload, metadata
  ) -> dict[str, Any]:
    """Signs the files of a job in place, checks them, records the watermark.

    Raises:
      JobError: a file is not trusted by our own root.
    """
    key = self.signing_key
    mark = None
    if self._marks:
      reading = watermark.read(frames_FHWC, key.watermark, search=False)
      mark = 'exact' if reading.payload == payload else 'fragile'
      self.jobs.add_mark(payload, job.id)
    generation = {
      'model': job.model,
      'weights_hash': metadata['weights_hash'],
      'seed': job.params.get('seed', 0),
      'mode': metadata['mode'],
      'prompt_sha256': uploads.digest(job.prompt.encode()),
      'created_at': int(job.created_at),
    }
    for variant in list(variants):
      path = work / variants[variant]['name']
      signed = path.with_name(f'signed{path.suffix}')
      manifest.sign(
        path,
        signed,
        key,
        generation=generation,
        payload=payload if self._marks else None,
        ingredients=self._ingredients(job),
      )
      signed.replace(path)
      beside = manifest.sidecar(signed)
      if beside.exists():
        beside.replace(manifest.sidecar(path))
        variants['manifest'] = {
          'name': manifest.sidecar(path).name,
          'type': 'application/c2pa',
        }
        self.jobs.add_manifest(uploads.digest(path.read_bytes()), job.id)
      report = manifest.verify(path, roots=[key.root])
      if report.state != 'trusted':
        raise JobError('signing_failed', f'The {variant} is {report.state}.')
    return {
      'state': report.state,
      'issuer': report.issuer,
      'actions': list(report.actions),
      'watermark': None if mark is None else f'{payload:08x}',
      'watermark_state': mark,
    }

  def _ingredients(self, job: Job) -> list[manifest.Ingredient]:
    """The files that a job was made from."""
    folder = self.files.inputs(job.id)
    inputs = job.params.get('inputs', {})
    return [
      manifest.Ingredient(folder / upload['original'], slot == 'video')
      for slot, upload in inputs.items()
      if pathlib.Path(upload['original']).suffix in manifest.TYPES
    ]

  def _request(self, job_id, prompt, params, engine, out: pathlib.Path):
    folder = self.files.inputs(job_id)
    if params.get('inputs'):
      folder = self.files.fetch_inputs(job_id)
    return job_request.build(prompt, params, engine, inputs=folder, out=out)

  def _stopped(self, job: Job, keep: float) -> bool:
    error = {'code': 'cancelled', 'message': 'The job was cancelled.'}
    return self.jobs.fail(job, error, keep=keep)

  def _clean(self, job: Job, done: bool) -> None:
    """Removes files that nobody needs after a job."""
    now = self.jobs.get(job.id)
    if now is None:  # deleted
      self.files.remove(job.id)
    elif done:
      self.files.remove_inputs(job.id)
      if now.status == 'failed':
        self.files.remove(job.id)


def open_pipelines(settings: ServeSettings, mesh=None) -> dict[str, Pipeline]:
  """A pipeline for each model name, opened, so that errors are raised here.

  Args:
    settings: settings of the service.
    mesh: devices along each axis; None is the first device.
  """
  pipelines = {
    model: Pipeline(path, progress=False, mesh=mesh)
    for model, path in settings.models.items()
  }
  for pipeline in pipelines.values():
    pipeline.engine  # noqa: B018
  return pipelines


def _example(engine) -> str | None:
  """A prompt of a model that knows certain words only."""
  vocabulary = engine.data.source.prompt_vocabulary(engine.data)
  return None if vocabulary is None else vocabulary.example


def _uploads(job: Job) -> list[uploads.Upload]:
  inputs = job.params.get('inputs', {})
  return [uploads.Upload(**upload) for upload in inputs.values()]


def _public(params: Mapping[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in params.items() if k not in fields.INTERNAL}


def _frames(path: pathlib.Path):
  if path.suffix == '.png':
    return image_reader.read_image(path)[None]
  return video_reader.read_video(path)


def listen(worker: Worker, questions, answer: Callable[[dict], None]) -> None:
  """Answers questions about jobs; ends the process when there are no more.

  Args:
    worker: the worker.
    questions: lines of JSON, each a job to check with a `question` number.
    answer: sends a message to the HTTP process.
  """
  for line in questions:
    question = json.loads(line)
    try:
      result = worker.check(question)
    except Exception:  # the job is queued, and fails with its reason
      traceback.print_exc()
      result = {'unchecked': True}
    answer({'answer': question['question'], **result})
  os._exit(0)  # the HTTP process is gone; the job's lease runs out


def serve(worker: Worker) -> None:
  """Runs jobs for ever."""
  while True:
    try:
      busy = worker.run_next()
    except Exception:  # the database is locked or away
      traceback.print_exc()
      busy = False
    if not busy:
      if hosts.count() > 1:
        hosts.share()  # the others wait for less time than a network allows
      time.sleep(IDLE_SECONDS)


def name_of(folder: pathlib.Path) -> str:
  """Name of the worker of a state folder, the same after a restart."""
  path = folder / 'worker-name'
  if not path.exists():
    with video_writer.files.atomic_write(path) as temporary:
      temporary.write_text(f'{socket.gethostname()}-{os.urandom(4).hex()}')
  return path.read_text()


def main() -> None:
  """stdin -> settings, then questions; stdout -> answers."""
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # whatever prints does not disturb the answers
  lock = threading.Lock()

  def answer(message: dict) -> None:
    with lock:
      print(json.dumps(message), file=answers, flush=True)

  message = json.loads(sys.stdin.readline())
  settings = ServeSettings(**message['settings'])
  _configure(message)
  settings.folder.mkdir(parents=True, exist_ok=True)
  lock_file = (settings.folder / 'worker.lock').open('w')
  fcntl.flock(lock_file, fcntl.LOCK_EX)
  try:
    worker = Worker(
      settings,
      name=name_of(settings.folder),
      pipelines=open_pipelines(settings, message['mesh']),
    )
  except (ValueError, OSError) as e:
    answer({'failed': str(e)})
    return
  worker.jobs.release(worker.name)
  answer({'models': worker.models()})
  threading.Thread(
    target=listen, args=(worker, sys.stdin, answer), daemon=True
  ).start()
  waiting = worker.jobs.counts().get('queued')
  if hosts.count() == 1 and settings.warm and not waiting:
    try:
      worker.warm_up()
    except Exception:  # such as too little memory: smaller videos may fit
      traceback.print_exc()
  answer({'ready': True})
  serve(worker)


def follow(message: Mapping[str, Any]) -> None:
  """Any process but the first of those that share the models.

  Args:
    message: as the worker's first line of input.
  """
  settings = ServeSettings(**message['settings'])
  _configure(message)
  pipelines = open_pipelines(settings, message['mesh'])
  files = Files(settings.files_folder, bucket=settings.bucket)
  hosts.follow(pipelines, files)


def _configure(message: Mapping[str, Any]) -> None:
  """Sets JAX's devices and compilation cache; joins the other processes."""
  import jax

  for name, value in message['jax'].items():
    jax.config.update(name, value)
  settings = message['settings']
  multihost.join(
    settings['coordinator'],
    processes=settings['num_processes'] or None,
    process=settings['process_id'] if settings['num_processes'] else None,
  )


if __name__ == '__main__':
  main()
