"""The service behind the routes: creates, shows and removes jobs."""

import dataclasses
import hashlib
import io
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from PIL import Image

from spacetime.media import video_reader
from spacetime.provenance import keys as signing_keys
from spacetime.safety import endpoint as endpoint_lib
from spacetime.safety import policy as policy_lib
from spacetime.safety import texts as texts_lib
from spacetime.serving import (
  checks,
  database,
  decode_upload,
  fields,
  jobs,
  uploads,
)
from spacetime.serving.errors import ApiError, bad_field, unknown_id
from spacetime.serving.files import Files
from spacetime.serving.jobs import Job, Jobs
from spacetime.serving.keys import ApiKeys
from spacetime.serving.settings import ServeSettings
from spacetime.serving.supervisor import Supervisor
from spacetime.serving.webhooks import Webhooks

MIB = 2**20
# Noise level that an edit or a remix starts from.
EDIT_STRENGTH, REMIX_STRENGTH = 0.6, 0.8
ORPHAN_SECONDS = 3600.0
# Of an upload: 0.8 GB of frames, such as 12 seconds of 720p at 24 a second.
MAX_FRAMES, MAX_PIXELS = 5000, 2**28
# Settings that a remix does not take from its source.
_NOT_INHERITED = (
  *fields.INTERNAL,
  *('mode', 'strength', 'image_at', 'prompt_schedule'),
)


@dataclasses.dataclass(frozen=True)
class Source:
  """An input of a request before it is stored.

  Attributes:
    param: field of the API.
    data: its bytes; None if it is the result of a job.
    job: the job whose result it is, or None.
    manifest: the manifest that was sent with a WebM, or None.
  """

  param: str
  data: bytes | None = None
  job: Job | None = None
  manifest: bytes | None = None

  @property
  def slot(self) -> str:
    """Input of the pipeline's request."""
    return fields.INPUTS[self.param]


class Service:
  """Jobs of all owners.

  Args:
    settings: settings of the service.
    supervisor: the worker process.
  """

  def __init__(self, settings: ServeSettings, supervisor: Supervisor):
    self.settings, self.supervisor = settings, supervisor
    self.files = Files(settings.files_folder, bucket=settings.bucket)
    self.jobs = Jobs(database.connect(settings.database, settings.folder))
    self.keys = ApiKeys(settings.api_keys or None)
    self.policy = policy_lib.load(settings.policy)
    self.endpoint = None
    if settings.moderation:
      self.endpoint = endpoint_lib.Endpoint(settings.moderation)
    self.signing_key = signing_key(settings)
    hosts = tuple(filter(None, settings.webhook_hosts.split(',')))
    self.webhooks = Webhooks(self.jobs.database, hosts)
    self.began = time.time()

  # -- requests ----------------------------------------------------------------

  def create(
    self,
    owner: str,
    values: Mapping[str, Any],
    *,
    idempotency_key: str | None = None,
    remixed_from: str | None = None,
  ) -> Job:
    """Queues a video.

    Args:
      owner: whose job it is.
      values: fields and inputs of the body; an input is bytes, a data: URL or
        {'id'}, {'file_id'}, {'image_url'}.
      idempotency_key: the same key returns the same job.
      remixed_from: id of the job that it is derived from.

    Raises:
      ApiError: it names the field; nothing is stored.
    """
    values = _stated(values)
    sources = self._sources(owner, values)
    inputs = (*fields.INPUTS, *fields.MANIFESTS)
    plain = {k: v for k, v in values.items() if k not in inputs}
    checked = fields.parse(
      plain, models=tuple(self.models), max_steps=self.settings.max_steps
    )
    job = Job(
      id=f'video_{secrets.token_hex(16)}',
      owner=owner,
      model=checked.model,
      prompt=checked.prompt,
      params=checked.settings,
      seconds='',
      size='',
      remixed_from=remixed_from,
      idempotency_key=_idempotency_key(idempotency_key),
      idempotency_hash=_fingerprint(checked, sources),
    )
    try:
      earlier = self.jobs.earlier(job)
      if earlier is not None:
        return earlier
      self._check_room()
      self._check_text(job)
      self._check_attested(checked, sources)
      job = self._with_inputs(job, sources)
      return self.jobs.add(self._with_size(job), self._limits())
    except jobs.LimitError as e:
      self.files.remove(job.id)
      raise ApiError(
        429, str(e), code=e.code, headers={'x-should-retry': 'false'}
      ) from e
    except jobs.IdempotencyError as e:
      self.files.remove(job.id)
      raise ApiError(
        400,
        'This Idempotency-Key belongs to a request with other fields.',
        code='idempotency_key_reused',
      ) from e
    except BaseException:
      self.files.remove(job.id)
      raise

  def edit(self, owner: str, values: Mapping[str, Any], **options) -> Job:
    """Queues an edit of a video: see create."""
    values = {'mode': 'edit'} | _stated(values)
    _require(values, 'video')
    if values['mode'] == 'edit':
      values.setdefault('strength', EDIT_STRENGTH)
    return self._derive(owner, values, **options)

  def extend(self, owner: str, values: Mapping[str, Any], **options) -> Job:
    """Queues an extension of a video; `seconds` are those of the new frames."""
    values = {'mode': 'extend'} | _stated(values)
    _require(values, 'video')
    _require(values, 'seconds')
    return self._derive(owner, values, **options)

  def remix(
    self, owner: str, job_id: str, values: Mapping[str, Any], **options
  ) -> Job:
    """Queues a remix: the settings and seed of a video with another prompt.

    It starts from the frames of the video at REMIX_STRENGTH, if they are one
    clip of the model; a still or a long video is generated anew.
    """
    job = self.completed(owner, job_id)
    _require(values, 'prompt')
    for name in fields.INPUTS:
      if name in values:
        raise bad_field(name, f'{name}: expected none in a remix.', 'unknown')
    inherited = {k: v for k, v in job.params.items() if k not in _NOT_INHERITED}
    inherited |= {'model': job.model, 'size': job.size}
    longest = self.model(job.model)['longest']
    if job.params.get('mode') == 'still':
      inherited['mode'] = 'still'
    elif job.result['frames'] <= longest:
      inherited.pop('seconds', None)
      inherited.pop('frames', None)
      inherited |= {
        'mode': 'edit',
        'strength': REMIX_STRENGTH,
        'video': {'id': job_id},
      }
    return self.create(
      owner, inherited | _stated(values), remixed_from=job_id, **options
    )

  def change(self, owner: str, job_id: str, values: Mapping[str, Any]) -> Job:
    """Changes fields of a job that is still queued.

    Raises:
      ApiError: 400 once it runs.
    """
    job = self.get(owner, job_id)
    for name in fields.INPUTS:
      if name in values:
        raise bad_field(name, f'{name}: inputs cannot be changed.', 'unknown')
    params = dict(job.params)
    inputs = params.pop('inputs', None)
    params.pop('warnings', None)
    prompt = {} if 'prompt_schedule' in params else {'prompt': job.prompt}
    checked = fields.parse(
      {'model': job.model, **prompt, **params, **values},
      models=tuple(self.models),
      max_steps=self.settings.max_steps,
    )
    params = dict(checked.settings) | ({'inputs': inputs} if inputs else {})
    job = dataclasses.replace(
      job, model=checked.model, prompt=checked.prompt, params=params
    )
    self._check_text(job)
    job = self._with_size(job)
    if not self.jobs.change(job_id, owner=owner, job=job):
      raise ApiError(
        400, 'Only a queued video can be changed.', code='not_queued'
      )
    return job

  def delete(self, owner: str, job_id: str) -> None:
    """Removes a video and its files; stops it if it runs."""
    job = self.jobs.delete(job_id, owner=owner)
    if job is None:
      raise unknown_id('video', job_id)
    self.files.remove(job_id)

  def cancel(self, owner: str, job_id: str) -> Job:
    """Cancels a video: at once if it is queued, else within a solver step."""
    job = self.jobs.cancel(job_id, owner=owner)
    if job is None:
      raise unknown_id('video', job_id)
    if job.status == 'failed':
      self.files.remove_inputs(job_id)
    return job

  def get(self, owner: str, job_id: str, param: str | None = None) -> Job:
    """A job of an owner.

    Args:
      owner: its owner.
      job_id: its id.
      param: field of the request that named it.

    Raises:
      ApiError: 404, for the jobs of others too.
    """
    job = self.jobs.get(job_id, owner=owner)
    if job is None:
      raise unknown_id('video', job_id, param)
    return job

  def completed(self, owner: str, job_id: str, param: str | None = None) -> Job:
    """A job whose result exists.

    Raises:
      ApiError: 404, or 400 while it is not completed.
    """
    job = self.get(owner, job_id, param)
    if job.status != 'completed':
      raise bad_field(
        param,
        f'The video is {job.status}; expected a completed one.',
        'video_not_ready',
      )
    if self.files.finished(job_id) is None:  # it is being deleted
      raise unknown_id('video', job_id, param)
    return job

  def show(self, job: Job) -> dict[str, Any]:
    """A job as the API shows it."""
    error = None
    if job.error is not None:
      error = {'param': None, 'type': None, **job.error}
    settings = {k: v for k, v in job.params.items() if k not in fields.INTERNAL}
    return {
      'id': job.id,
      'object': 'video',
      'created_at': int(job.created_at),
      'completed_at': _integer(job.completed_at),
      'expires_at': _integer(job.expires_at),
      'status': job.status,
      'progress': job.progress,
      'model': job.model,
      'prompt': job.prompt,
      'seconds': job.seconds,
      'size': job.size,
      'remixed_from_video_id': job.remixed_from,
      'error': error,
      # Our own fields.
      'stage': job.stage,
      'steps_done': job.steps_done,
      'steps_total': job.steps,
      'seconds_left': _seconds_left(job),
      'settings': settings,
      'warnings': job.params.get('warnings', []),
      'provenance': (job.result or {}).get('provenance'),
    }

  def check_provenance(self, owner: str, data: bytes) -> dict[str, Any]:
    """Manifest and watermark of a file; the owner's video that it is."""
    beside = self._manifest(self._job_of(data))
    answer = checks.provenance(data, self.signing_key, beside=beside)
    for result in answer['results']:
      if 'payload' in result:
        job = self.jobs.marked(int(result['payload'], 16))
        is_own = job is not None and job.owner == owner
        result['video_id'] = job.id if is_own else None
        result['model'] = job.model if job is not None else None
    return answer

  # -- state of the service ----------------------------------------------------

  @property
  def models(self) -> dict[str, dict[str, Any]]:
    """Models by name; their sizes once a worker has read them."""
    cards = {card['id']: card for card in self.supervisor.models}
    return {name: cards.get(name, {}) for name in self.settings.models}

  def model(self, name: str) -> dict[str, Any]:
    """A model's sizes.

    Raises:
      ApiError: 503 before a worker has read it.
    """
    card = self.models.get(name)
    if not card:
      raise ApiError(503, 'The worker is starting.', code='worker_starting')
    return card

  def sweep(self) -> None:
    """Removes what has expired and files without a job."""
    keep = self.settings.keep_hours * 3600
    for job_id in self.jobs.expired(keep=keep):
      self.files.remove(job_id)
    self.files.remove_orphans(
      self.jobs.ids(), before=time.time() - ORPHAN_SECONDS
    )

  # -- within ------------------------------------------------------------------

  def _derive(self, owner: str, values: dict[str, Any], **options) -> Job:
    """Queues a video made of another, at that one's size and model."""
    reference = values['video']
    name = None
    if isinstance(reference, dict):
      name = reference.get('id', reference.get('file_id'))
    if isinstance(name, str):
      job = self.completed(owner, name[:100], 'video')
      options['remixed_from'] = job.id
      if values['mode'] != 'outpaint':
        values.setdefault('size', job.size)
      values.setdefault('model', job.model)
    return self.create(owner, values, **options)

  def _sources(self, owner: str, values: Mapping[str, Any]) -> list[Source]:
    sources = {
      param: self._source(owner, param, values[param])
      for param in fields.INPUTS
      if param in values
    }
    for name, param in fields.MANIFESTS.items():
      if name not in values:
        continue
      source = sources.get(param)
      if source is None or source.data is None:
        raise bad_field(name, f'{name}: expected an uploaded {param}.')
      data = values[name]
      if isinstance(data, str):
        data = uploads.data_url(data, param=name)
      if not isinstance(data, bytes):
        raise bad_field(
          name, f'{name}: expected a file or a data: URL.', 'invalid_type'
        )
      sources[param] = dataclasses.replace(source, manifest=data)
    return list(sources.values())

  def _source(self, owner: str, param: str, value) -> Source:
    if isinstance(value, bytes):
      return Source(param, value)
    if isinstance(value, str):
      return Source(param, uploads.data_url(value, param=param))
    if isinstance(value, dict) and len(value) == 1:
      ((kind, content),) = value.items()
      if kind == 'image_url' and isinstance(content, str):
        return Source(param, uploads.data_url(content, param=param))
      if kind in ('id', 'file_id') and isinstance(content, str):
        return Source(param, job=self.completed(owner, content[:100], param))
    raise bad_field(
      param, f'{param}: expected a file, an id or a data: URL.', 'invalid_type'
    )

  def _with_inputs(self, job: Job, sources: list[Source]) -> Job:
    """The job with its inputs stored and decoded."""
    if not sources:
      return job
    folder, stored = self.files.inputs(job.id), {}
    for source in sources:
      try:
        upload = self._add(folder, source)
      except FileNotFoundError as e:
        if source.job is None:
          raise
        # Its video was deleted in the meantime.
        raise unknown_id('video', source.job.id, source.param) from e
      stored[source.slot] = dataclasses.asdict(upload)
    self.files.store_inputs(job.id)
    return dataclasses.replace(
      job,
      params={**job.params, 'inputs': stored},
      bytes=self.files.size(folder),
    )

  def _add(self, folder, source: Source) -> uploads.Upload:
    """An input, stored and decoded in a folder.

    Raises:
      FileNotFoundError: the result that it is was deleted.
    """
    data, original = source.data, None
    job_of_file = source.job or self._job_of(data)
    if source.job is not None:
      name = source.job.result['variants']['video']['name']
      data = self.files.result(source.job.id, name)
      data.stat()  # raises FileNotFoundError
      if source.slot in ('image', 'mask') and data.suffix != '.png':
        original, data = data, _last_frame(data)
    upload = uploads.add(
      folder,
      source.slot,
      data,
      param=source.param,
      max_frames=MAX_FRAMES,
      max_pixels=min(MAX_PIXELS, self.settings.max_pixels),
      original=original,
    )
    beside = source.manifest or self._manifest(job_of_file)
    if beside is not None:
      uploads.add_manifest(
        folder / upload.original, beside, param=f'{source.param}_manifest'
      )
    return upload

  def _job_of(self, data: bytes) -> Job | None:
    """The job whose WebM has these bytes, of any owner."""
    if decode_upload.container_of(data[:16]) != 'webm':
      return None
    return self.jobs.of_file(uploads.digest(data))

  def _manifest(self, job: Job | None) -> bytes | None:
    """The manifest beside the result of a job, if its format needs one."""
    if job is None or self.files.finished(job.id) is None:
      return None
    entry = job.result['variants'].get('manifest')
    if entry is None:
      return None
    return self.files.result(job.id, entry['name']).read_bytes()

  def _with_size(self, job: Job) -> Job:
    """The job with its size, checked by the worker if there is one."""
    answer = self.supervisor.check(
      {
        'id': job.id,
        'model': job.model,
        'prompt': job.prompt,
        'params': job.params,
      }
    )
    if answer is None:
      # The worker restarts. It checks the job again before it begins.
      card = self.models.get(job.model) or {}
      size = job.params.get('size') or card.get('size', '')
      seconds = job.params.get('seconds') or card.get('seconds', '')
      return dataclasses.replace(job, size=size, seconds=f'{seconds}')
    if 'error' in answer:
      name = answer['param']
      raise fields.from_setting_error(name or '', answer['error'])
    pixels = answer['frames'] * answer['height'] * answer['width']
    if pixels > self.settings.max_pixels:
      raise bad_field(
        'size',
        f'{answer["frames"]} frames of {answer["width"]}x{answer["height"]} '
        f'are {pixels} pixels; expected at most {self.settings.max_pixels}.',
      )
    size = f'{answer["width"]}x{answer["height"]}'
    params = job.params
    if answer.get('warnings'):
      params = {**params, 'warnings': answer['warnings']}
    return dataclasses.replace(
      job, size=size, seconds=answer['seconds'], params=params
    )

  def _check_room(self) -> None:
    least = self.settings.min_free_mb * MIB
    if self.files.free_bytes() < least:
      raise ApiError(503, 'The disk of the service is full.', code='disk_full')

  def _check_text(self, job: Job) -> None:
    """Refuses a prompt by the policy; every verdict is recorded."""
    checkers = texts_lib.checkers(self.policy)
    if self.endpoint and self.policy.categories:
      checkers.append(self.endpoint)
    for checker in checkers:
      try:
        verdict = checker.check_text(job.prompt)
      except policy_lib.CheckError as e:
        raise ApiError(503, f'{e}.', code='safety_check_failed') from e
      self.jobs.audit(
        job.id,
        stage='prompt',
        policy=f'{self.policy.name} {self.policy.version}',
        checker=verdict.checker,
        digest=uploads.digest(job.prompt.encode()),
        score=verdict.score,
        verdict='allowed' if verdict.allowed else 'refused',
        rule=verdict.rule,
      )
      if not verdict.allowed:
        raise bad_field(
          'prompt',
          f'The prompt is refused by policy {self.policy.name}: '
          f'{verdict.category} (rule {verdict.rule}).',
          'moderation_blocked',
        )

  def _check_attested(self, checked: fields.Fields, sources) -> None:
    uploaded = any(source.data is not None for source in sources)
    if self.policy.attest and uploaded and not checked.settings.get('attest'):
      raise bad_field(
        'attest',
        'attest: expected true: the upload is yours, and the people in it '
        'consent.',
        'attestation_required',
      )

  def _limits(self) -> jobs.Limits:
    settings = self.settings
    return jobs.Limits(
      settings.max_queued, settings.max_per_day, settings.max_stored_mb * MIB
    )


def signing_key(settings: ServeSettings) -> signing_keys.SigningKey | None:
  """The key that signs results, made in the state folder if none is set."""
  if settings.sign == 'off':
    return None
  if settings.sign:
    return signing_keys.load(settings.sign)
  folder = settings.folder / 'signing'
  if not folder.exists():
    signing_keys.make(folder)
  return signing_keys.load(folder)


def _stated(values: Mapping[str, Any]) -> dict[str, Any]:
  """The fields that are neither null nor empty."""
  return {k: v for k, v in values.items() if v is not None and v != ''}


def _require(values: Mapping[str, Any], name: str) -> None:
  if values.get(name) in (None, '', b''):
    raise bad_field(name, f'{name}: expected a value.', 'missing')


def _idempotency_key(value: str | None) -> str | None:
  if value is None:
    return None
  return hashlib.sha256(value.encode(errors='replace')).hexdigest()


def _fingerprint(checked: fields.Fields, sources: list[Source]) -> str:
  """Digest of everything that a request says."""
  inputs = {
    source.param: source.job.id if source.job else uploads.digest(source.data)
    for source in sources
  }
  manifests = {
    source.param: uploads.digest(source.manifest)
    for source in sources
    if source.manifest is not None
  }
  text = json.dumps(
    [dataclasses.asdict(checked), inputs, manifests], sort_keys=True
  )
  return hashlib.sha256(text.encode()).hexdigest()


def _last_frame(path) -> bytes:
  """The last frame of one of our own videos, as PNG."""
  buffer = io.BytesIO()
  Image.fromarray(video_reader.read_video(path)[-1]).save(buffer, 'PNG')
  return buffer.getvalue()


def _integer(value: float | None) -> int | None:
  return None if value is None else int(value)


def _seconds_left(job: Job) -> float | None:
  """Estimate from the steps that are done."""
  if job.status != 'in_progress' or not job.steps_done:
    return None
  spent = time.time() - (job.started_at or time.time())
  left = (job.steps - job.steps_done) / job.steps_done * spent
  return round(left, 1)
