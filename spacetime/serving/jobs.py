"""Jobs of the service: a durable queue with leases, limits and paging.

A worker holds a job by a lease that it renews. A job whose lease has run out,
because its worker died, is queued again; a job that has lost ATTEMPTS workers
fails.
"""

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any

from spacetime.serving import webhooks
from spacetime.serving.database import (
  Database,
  Postgres,
  create_tables,
  is_id,
)

# A job that kills its worker, by its memory say, is not tried for ever.
ATTEMPTS = 5
DAY = 24 * 3600
SCHEMA = """
create table if not exists jobs (
  seq SERIAL,
  id text not null unique,
  owner text not null,
  created_at double precision not null,
  status text not null,
  model text not null,
  prompt text not null,
  params text not null,
  seconds text not null,
  size text not null,
  stage text not null default 'queued',
  steps_done bigint not null default 0,
  steps bigint not null default 0,
  attempt bigint not null default 0,
  worker text,
  lease_until double precision,
  started_at double precision,
  completed_at double precision,
  expires_at double precision,
  error text,
  remixed_from text,
  bytes bigint not null default 0,
  cancelled bigint not null default 0,
  result text,
  idempotency_key text,
  idempotency_hash text
);
create index if not exists jobs_owner on jobs (owner, seq);
create index if not exists jobs_status on jobs (status, seq);
create unique index if not exists jobs_idempotency
  on jobs (owner, idempotency_key);
create table if not exists audit (
  seq SERIAL,
  at double precision not null,
  job text not null,
  stage text not null,
  policy text not null,
  checker text not null,
  digest text not null,
  score double precision,
  verdict text not null,
  rule text not null
);
create table if not exists daily (
  owner text not null,
  day bigint not null,
  jobs bigint not null,
  primary key (owner, day)
);
create table if not exists manifests (
  digest text primary key,
  job text not null
);
create table if not exists marks (
  payload bigint primary key,
  job text not null,
  at double precision not null
)
"""
_JSON = ('params', 'error', 'result')


class LimitError(Exception):
  """A limit of the owner is reached.

  Attributes:
    code: machine-readable name of the limit.
  """

  def __init__(self, code: str, message: str):
    super().__init__(message)
    self.code = code


class IdempotencyError(Exception):
  """The idempotency key belongs to a request with another body."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits of one owner, see ServeSettings."""

  max_queued: int
  max_per_day: int
  max_stored_bytes: int


@dataclasses.dataclass(frozen=True)
class Job:
  """A video to make, in progress or made.

  Attributes:
    params: settings of the request, plain values.
    stage: what the worker does: queued, sampling, encoding, ...
    steps_done: solver steps that are computed.
    steps: solver steps in all.
    attempt: how many workers have begun it.
    error: {'code', 'message'} of a failed job.
    bytes: bytes of inputs and results on disk.
    result: files of a completed job: name -> media type, and their metadata.
  """

  id: str
  owner: str
  model: str
  prompt: str
  params: Mapping[str, Any]
  seconds: str
  size: str
  created_at: float = 0.0
  status: str = 'queued'
  seq: int = 0
  stage: str = 'queued'
  steps_done: int = 0
  steps: int = 0
  attempt: int = 0
  worker: str | None = None
  lease_until: float | None = None
  started_at: float | None = None
  completed_at: float | None = None
  expires_at: float | None = None
  error: Mapping[str, Any] | None = None
  remixed_from: str | None = None
  bytes: int = 0
  cancelled: int = 0
  result: Mapping[str, Any] | None = None
  idempotency_key: str | None = None
  idempotency_hash: str | None = None

  @property
  def progress(self) -> int:
    """Percent, 100 only when it is completed."""
    if self.status == 'completed':
      return 100
    return min(99, int(100 * self.steps_done / self.steps)) if self.steps else 0


def _job(row: Mapping[str, Any]) -> Job:
  values = dict(row)
  for name in _JSON:
    values[name] = json.loads(values[name]) if values[name] else None
  return Job(**values)


class Jobs:
  """The table of jobs; every statement about one names its owner or worker."""

  def __init__(self, database: Database):
    self._database = database
    create_tables(database, SCHEMA)
    create_tables(database, webhooks.SCHEMA)

  @property
  def database(self) -> Database:
    """The database of all tables."""
    return self._database

  # -- the HTTP process --------------------------------------------------------

  def add(self, job: Job, limits: Limits) -> Job:
    """Queues a job, or returns the earlier one of its idempotency key.

    Raises:
      LimitError: a limit of the owner is reached.
      IdempotencyError: the key belongs to another request.
    """
    now = time.time()
    with self._database.transaction() as execute:
      if isinstance(self._database, Postgres):
        # Requests of one owner are counted one after the other.
        execute('select pg_advisory_xact_lock(hashtext(?))', (job.owner,))
      earlier = self._same_key(execute, job)
      if earlier is not None:
        return earlier
      _check_limits(execute, job, limits, day=int(now // DAY))
      execute(
        'insert into daily (owner, day, jobs) values (?, ?, 1) on conflict '
        '(owner, day) do update set jobs = daily.jobs + 1',
        (job.owner, int(now // DAY)),
      )
      execute(
        'insert into jobs (id, owner, created_at, status, model, prompt, '
        'params, seconds, size, remixed_from, bytes, idempotency_key, '
        "idempotency_hash) values (?, ?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?, "
        '?)',
        (
          *(job.id, job.owner, now, job.model, job.prompt),
          *(json.dumps(job.params), job.seconds, job.size, job.remixed_from),
          *(job.bytes, job.idempotency_key, job.idempotency_hash),
        ),
      )
    return dataclasses.replace(job, created_at=now)

  def earlier(self, job: Job) -> Job | None:
    """The job of the same idempotency key, or None.

    Raises:
      IdempotencyError: the key belongs to another request.
    """
    with self._database.reading() as execute:
      return self._same_key(execute, job)

  def get(self, job_id: str, *, owner: str | None = None) -> Job | None:
    """A job; None if there is none or it has another owner."""
    if not is_id(job_id):
      return None
    with self._database.reading() as execute:
      rows = execute('select * from jobs where id = ?', (job_id,))
    if not rows or (owner is not None and rows[0]['owner'] != owner):
      return None
    return _job(rows[0])

  def page(
    self, owner: str, *, after: str | None, limit: int, descending: bool
  ) -> tuple[list[Job], bool]:
    """Jobs of an owner by age, and whether more follow.

    Args:
      owner: their owner.
      after: id of the last job of the page before.
      limit: most jobs of the page.
      descending: newest first.

    Raises:
      KeyError: the owner has no job `after`.
    """
    order, sign = ('desc', '<') if descending else ('asc', '>')
    values: tuple = (owner,)
    where = 'owner = ?'
    if after is not None:
      job = self.get(after, owner=owner)
      if job is None:
        raise KeyError(after)
      where += f' and seq {sign} ?'
      values += (job.seq,)
    with self._database.reading() as execute:
      rows = execute(
        f'select * from jobs where {where} order by seq {order} limit ?',
        (*values, limit + 1),
      )
    return [_job(row) for row in rows[:limit]], len(rows) > limit

  def cancel(self, job_id: str, *, owner: str) -> Job | None:
    """Cancels a job: at once if it is queued, else within a solver step."""
    error = {'code': 'cancelled', 'message': 'The job was cancelled.'}
    if not is_id(job_id):
      return None
    with self._database.transaction() as execute:
      rows = execute(
        "update jobs set status = 'failed', stage = 'failed', error = ?, "
        'completed_at = ?, cancelled = 1 where id = ? and owner = ? and status '
        "= 'queued' returning id",
        (json.dumps(error), time.time(), job_id, owner),
      )
      if rows:
        webhooks.add_deliveries(execute, job_id, owner, 'video.failed')
      execute(
        'update jobs set cancelled = 1 where id = ? and owner = ? and status = '
        "'in_progress'",
        (job_id, owner),
      )
    return self.get(job_id, owner=owner)

  def change(self, job_id: str, *, owner: str, job: Job) -> bool:
    """Replaces the settings of a job that is still queued."""
    with self._database.transaction() as execute:
      rows = execute(
        'update jobs set model = ?, prompt = ?, params = ?, seconds = ?, size '
        "= ? where id = ? and owner = ? and status = 'queued' returning id",
        (
          *(job.model, job.prompt, json.dumps(job.params), job.seconds),
          *(job.size, job_id, owner),
        ),
      )
    return bool(rows)

  def delete(self, job_id: str, *, owner: str) -> Job | None:
    """Removes a job; its worker notices within a solver step."""
    if not is_id(job_id):
      return None
    with self._database.transaction() as execute:
      rows = execute(
        'delete from jobs where id = ? and owner = ? returning *',
        (job_id, owner),
      )
    return _job(rows[0]) if rows else None

  def expired(self, *, keep: float) -> list[str]:
    """Removes ended jobs that are past their time; returns their ids."""
    now = time.time()
    with self._database.transaction() as execute:
      rows = execute(
        "delete from jobs where status in ('completed', 'failed') and "
        'coalesce(expires_at, completed_at + ?) < ? returning id',
        (keep, now),
      )
    return [row['id'] for row in rows]

  def ids(self) -> set[str]:
    """Ids of all jobs."""
    with self._database.reading() as execute:
      return {row['id'] for row in execute('select id from jobs')}

  def counts(self) -> dict[str, int]:
    """Number of jobs by status."""
    with self._database.reading() as execute:
      rows = execute('select status, count(*) as n from jobs group by status')
    return {row['status']: row['n'] for row in rows}

  # -- workers -----------------------------------------------------------------

  def claim(
    self, worker: str, *, lease_seconds: float, max_running: int
  ) -> Job | None:
    """Leases the oldest queued job whose owner runs fewer than max_running."""
    now = time.time()
    with self._database.transaction() as execute:
      if isinstance(self._database, Postgres):
        # Else two workers could both see an owner below max_running.
        execute('select pg_advisory_xact_lock(7416)')
      self._requeue(execute, 'lease_until < ?', (now,))
      lock = self._database.skip_locked.replace('update', 'update of j')
      rows = execute(
        "select id from jobs j where status = 'queued' and (select count(*) "
        'from jobs r where r.owner = j.owner and r.status = '
        f"'in_progress') < ? order by seq limit 1{lock}",
        (max_running,),
      )
      if not rows:
        return None
      rows = execute(
        "update jobs set status = 'in_progress', stage = 'starting', worker = "
        '?, lease_until = ?, attempt = attempt + 1, steps_done = 0, '
        'started_at = coalesce(started_at, ?) where id = ? returning *',
        (worker, now + lease_seconds, now, rows[0]['id']),
      )
    return _job(rows[0])

  def beat(
    self,
    job: Job,
    *,
    lease_seconds: float,
    stage: str,
    steps_done: int,
    steps: int,
  ) -> bool:
    """Renews a lease and reports progress.

    Returns:
      Whether the work should go on: False if the job was deleted or cancelled,
      or belongs to another worker by now.
    """
    with self._database.transaction(durable=False) as execute:
      rows = execute(
        'update jobs set lease_until = ?, stage = ?, steps_done = ?, steps = ? '
        "where id = ? and worker = ? and attempt = ? and status = 'in_progress'"
        ' returning cancelled',
        (
          *(time.time() + lease_seconds, stage, steps_done, steps),
          *(job.id, job.worker, job.attempt),
        ),
      )
    return bool(rows) and not rows[0]['cancelled']

  def goes_on(self, job: Job) -> bool:
    """Whether a job still belongs to this attempt and is not cancelled."""
    with self._database.reading() as execute:
      rows = execute(
        'select cancelled from jobs where id = ? and worker = ? and attempt = '
        "? and status = 'in_progress'",
        (job.id, job.worker, job.attempt),
      )
    return bool(rows) and not rows[0]['cancelled']

  def complete(
    self, job: Job, result: Mapping[str, Any], *, size: int, keep: float
  ) -> bool:
    """Marks a job completed; False if it is no longer this worker's."""
    return self._end(
      job,
      "status = 'completed', stage = 'completed', steps_done = steps, result = "
      '?, bytes = bytes + ?',
      (json.dumps(result), size),
      keep=keep,
      event='video.completed',
    )

  def fail(self, job: Job, error: Mapping[str, Any], *, keep: float) -> bool:
    """Marks a job failed; False if it is no longer this worker's."""
    return self._end(
      job,
      "status = 'failed', stage = 'failed', error = ?",
      (json.dumps(error),),
      keep=keep,
      event='video.failed',
    )

  def release(self, worker: str) -> int:
    """Queues the jobs of a worker that died; returns their number."""
    with self._database.transaction() as execute:
      return self._requeue(execute, 'worker = ?', (worker,))

  # -- audit and watermarks ----------------------------------------------------

  def audit(self, job: str, **row) -> None:
    """Adds an audit row; see the schema for its columns."""
    names = ('stage', 'policy', 'checker', 'digest', 'score', 'verdict', 'rule')
    with self._database.transaction() as execute:
      execute(
        f'insert into audit (at, job, {", ".join(names)}) values '
        '(?, ?, ?, ?, ?, ?, ?, ?, ?)',
        (time.time(), job, *(row[name] for name in names)),
      )

  def audit_rows(self, job: str) -> list[dict[str, Any]]:
    """The audit rows of a job, in order."""
    with self._database.reading() as execute:
      return execute('select * from audit where job = ? order by seq', (job,))

  def add_mark(self, payload: int, job: str) -> None:
    """Records the job of a watermark; the newest with a payload counts."""
    with self._database.transaction() as execute:
      execute('delete from marks where payload = ?', (payload,))
      execute(
        'insert into marks (payload, job, at) values (?, ?, ?)',
        (payload, job, time.time()),
      )

  def marked(self, payload: int) -> Job | None:
    """The job whose video has a watermark, or None."""
    with self._database.reading() as execute:
      rows = execute('select job from marks where payload = ?', (payload,))
    return self.get(rows[0]['job']) if rows else None

  def add_manifest(self, digest: str, job: str) -> None:
    """Records the job of a file that has its manifest beside it.

    Args:
      digest: SHA-256 of the file.
      job: id of the job; the newest counts.
    """
    with self._database.transaction() as execute:
      execute(
        'insert into manifests (digest, job) values (?, ?) on conflict '
        '(digest) do update set job = excluded.job',
        (digest, job),
      )

  def of_file(self, digest: str) -> Job | None:
    """The job of a file that has its manifest beside it, or None."""
    with self._database.reading() as execute:
      rows = execute('select job from manifests where digest = ?', (digest,))
    return self.get(rows[0]['job']) if rows else None

  # -- within ------------------------------------------------------------------

  def _same_key(self, execute, job: Job) -> Job | None:
    if job.idempotency_key is None:
      return None
    rows = execute(
      'select * from jobs where owner = ? and idempotency_key = ?',
      (job.owner, job.idempotency_key),
    )
    if not rows:
      return None
    if rows[0]['idempotency_hash'] != job.idempotency_hash:
      raise IdempotencyError(job.idempotency_key)
    return _job(rows[0])

  def _end(
    self, job: Job, changes: str, values: tuple, *, keep: float, event: str
  ) -> bool:
    now = time.time()
    with self._database.transaction() as execute:
      rows = execute(
        f'update jobs set {changes}, completed_at = ?, expires_at = ?, '
        'lease_until = null where id = ? and worker = ? and attempt = ? and '
        "status = 'in_progress' returning id",
        (*values, now, now + keep, job.id, job.worker, job.attempt),
      )
      if rows:
        webhooks.add_deliveries(execute, job.id, job.owner, event)
    return bool(rows)

  def _requeue(self, execute, where: str, values: tuple) -> int:
    error = {
      'code': 'worker_lost',
      'message': f'The worker died {ATTEMPTS} times while it ran this job.',
    }
    where = f"status = 'in_progress' and {where}"
    lost = execute(
      "update jobs set status = 'failed', stage = 'failed', error = ?, "
      f'completed_at = ? where {where} and attempt >= ? returning id, owner',
      (json.dumps(error), time.time(), *values, ATTEMPTS),
    )
    for row in lost:
      webhooks.add_deliveries(execute, row['id'], row['owner'], 'video.failed')
    rows = execute(
      "update jobs set status = 'queued', stage = 'queued', worker = null, "
      f'lease_until = null where {where} returning id',
      values,
    )
    return len(rows)


def _check_limits(execute, job: Job, limits: Limits, *, day: int) -> None:
  """Raises LimitError if the owner may not queue another job."""
  usage = execute(
    "select coalesce(sum(case when status = 'queued' then 1 else 0 end), 0) as "
    'queued, coalesce(sum(bytes), 0) as stored from jobs where owner = ?',
    (job.owner,),
  )[0]
  # Deleted jobs count too.
  today = execute(
    'select jobs from daily where owner = ? and day = ?', (job.owner, day)
  )
  today = today[0]['jobs'] if today else 0
  if usage['queued'] >= limits.max_queued:
    raise LimitError(
      'queue_limit_exceeded',
      f'{usage["queued"]} of your jobs wait; at most {limits.max_queued} may.',
    )
  if today >= limits.max_per_day:
    raise LimitError(
      'daily_limit_exceeded',
      f'{today} jobs today (UTC); at most {limits.max_per_day} may be.',
    )
  if usage['stored'] + job.bytes > limits.max_stored_bytes:
    raise LimitError(
      'storage_limit_exceeded',
      f'{usage["stored"]} bytes are stored, and {job.bytes} of this request '
      f'would be; at most {limits.max_stored_bytes} may. Delete videos, or '
      'upload less.',
    )
