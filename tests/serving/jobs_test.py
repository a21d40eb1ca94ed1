"""The queue: leases, limits, idempotency, paging."""

import dataclasses
import time

import pytest

from spacetime.serving import database, jobs
from spacetime.serving.jobs import Job, Limits
from tests.helpers import postgres

LIMITS = Limits(max_queued=3, max_per_day=9, max_stored_bytes=100)


@pytest.fixture(scope='module')
def postgres_url():
  if postgres.binaries() is None:
    pytest.skip('needs PostgreSQL')
  with postgres.running() as url:
    yield url


@pytest.fixture(params=['sqlite', 'postgres'])
def table(request, tmp_path):
  if request.param == 'sqlite':
    yield jobs.Jobs(database.SQLite(tmp_path / 'jobs.sqlite'))
    return
  store = database.Postgres(request.getfixturevalue('postgres_url'))
  yield jobs.Jobs(store)
  with store.transaction() as execute:
    names = ('jobs', 'audit', 'daily', 'marks', 'manifests')
    for name in (*names, 'webhooks', 'deliveries'):
      execute(f'drop table {name}')
  store.close()


def make(number, **changes):
  job = Job(f'video_{number}', 'ann', 'digits', 'a 3', {'steps': 2}, '2', '8x8')
  return dataclasses.replace(job, **changes)


def add(table, number, limits=LIMITS, **changes):
  return table.add(make(number, **changes), limits)


def claim(table, worker='w', lease=60.0, max_running=1):
  return table.claim(worker, lease_seconds=lease, max_running=max_running)


def beat(table, job, done=1):
  return table.beat(
    job, lease_seconds=60, stage='sampling', steps_done=done, steps=4
  )


def test_job_life(table):
  add(table, 1)
  job = claim(table)
  assert (job.id, job.status, job.attempt) == ('video_1', 'in_progress', 1)
  assert beat(table, job, done=3)
  assert table.get('video_1').progress == 75
  assert table.complete(job, {'variants': {}}, size=7, keep=60)
  ended = table.get('video_1')
  assert (ended.status, ended.progress, ended.bytes) == ('completed', 100, 7)
  assert ended.params == {'steps': 2}
  assert ended.expires_at - ended.completed_at == 60
  assert not beat(table, job)


def test_expired_lease_is_claimed_again(table):
  add(table, 1)
  first = claim(table, lease=-1)
  second = claim(table, 'other')
  assert (second.id, second.attempt) == (first.id, 2)
  # The first worker is told to stop, and cannot complete the job.
  assert not beat(table, first) and not table.goes_on(first)
  assert not table.complete(first, {}, size=0, keep=1)
  assert table.complete(second, {}, size=0, keep=1)


def test_dead_workers_job_is_released(table):
  add(table, 1)
  claim(table, 'w')
  assert table.release('other') == 0
  assert table.release('w') == 1
  assert table.get('video_1').status == 'queued'


def test_job_that_kills_its_worker_fails(table):
  add(table, 1)
  for _ in range(jobs.ATTEMPTS):
    assert claim(table, lease=-1)
  assert claim(table) is None
  job = table.get('video_1')
  assert (job.status, job.error['code']) == ('failed', 'worker_lost')


def test_claims_are_distinct_and_in_order(table):
  for i in range(3):
    add(table, i)
  names = [claim(table, f'w{i}', max_running=9).id for i in range(3)]
  assert names == ['video_0', 'video_1', 'video_2']
  assert claim(table) is None


def test_max_running_of_an_owner(table):
  add(table, 1)
  add(table, 2)
  add(table, 3, owner='bob')
  assert claim(table).id == 'video_1'
  assert claim(table).id == 'video_3'
  assert claim(table) is None


def test_limits(table):
  for i in range(3):
    add(table, i)
  with pytest.raises(jobs.LimitError, match='3 of your jobs wait') as error:
    add(table, 4)
  assert error.value.code == 'queue_limit_exceeded'
  add(table, 5, owner='bob')
  for i in range(3):
    table.delete(f'video_{i}', owner='ann')
  limits = dataclasses.replace(LIMITS, max_per_day=4)
  add(table, 6, limits)
  with pytest.raises(jobs.LimitError, match='4 jobs today'):  # deleted ones too
    add(table, 7, limits)
  with pytest.raises(jobs.LimitError, match='stored, and 101 of this request'):
    add(table, 8, bytes=101)


def test_idempotency_key(table):
  first = add(table, 1, idempotency_key='k', idempotency_hash='h')
  assert add(table, 2, idempotency_key='k', idempotency_hash='h').id == first.id
  with pytest.raises(jobs.IdempotencyError):
    add(table, 3, idempotency_key='k', idempotency_hash='other')
  other = add(table, 4, idempotency_key='k', idempotency_hash='h', owner='bob')
  assert other.id == 'video_4'


def test_pages(table):
  for i in range(5):
    add(table, i, Limits(99, 99, 99))
  add(table, 'b', owner='bob')

  def page(after=None, limit=2, descending=True):
    jobs_of_page, more = table.page(
      'ann', after=after, limit=limit, descending=descending
    )
    return [job.id[-1] for job in jobs_of_page], more

  assert page() == (['4', '3'], True)
  assert page('video_3') == (['2', '1'], True)
  assert page('video_1') == (['0'], False)
  assert page(descending=False, limit=5) == (list('01234'), False)
  with pytest.raises(KeyError):
    page('video_b')


def test_cancel(table):
  add(table, 1)
  add(table, 2)
  running = claim(table)
  table.cancel('video_2', owner='ann')
  assert table.get('video_2').error['code'] == 'cancelled'
  assert table.cancel('video_1', owner='bob') is None
  assert beat(table, running)
  table.cancel('video_1', owner='ann')
  assert not beat(table, running) and not table.goes_on(running)


def test_deleted_job_stops(table):
  add(table, 1)
  running = claim(table)
  assert table.delete('video_1', owner='bob') is None
  assert table.delete('video_1', owner='ann')
  assert not beat(table, running)


def test_odd_ids_are_unknown(table):
  for name in ('a\0b', '\ud800', '', 'x' * 200, "'; drop table jobs"):
    assert table.get(name) is None
    assert table.delete(name, owner='ann') is None
    assert table.cancel(name, owner='ann') is None
    with pytest.raises(KeyError):
      table.page('ann', after=name, limit=1, descending=True)


def test_job_of_a_file_and_of_a_watermark(table):
  for i in (1, 2):  # the newest counts
    add(table, i)
    table.add_manifest('ab', f'video_{i}')
    table.add_mark(7, f'video_{i}')
  assert table.of_file('ab').id == table.marked(7).id == 'video_2'
  table.delete('video_2', owner='ann')
  assert table.of_file('ab') is table.marked(7) is table.of_file('c') is None


def test_queued_job_is_changed(table):
  add(table, 1)
  changed = make(1, model='other', prompt='b 4', params={}, seconds='3')
  assert not table.change('video_1', owner='bob', job=changed)
  assert table.change('video_1', owner='ann', job=changed)
  job = table.get('video_1')
  assert (job.model, job.prompt, job.params) == ('other', 'b 4', {})
  claim(table)
  assert not table.change('video_1', owner='ann', job=make(1))


def test_expiry(table):
  add(table, 1)
  table.complete(claim(table), {}, size=0, keep=-1)
  add(table, 2)
  assert table.expired(keep=60) == ['video_1']
  assert table.ids() == {'video_2'}


@pytest.mark.slow
def test_page_of_many_jobs_is_fast(table):
  with table.database.transaction() as execute:
    execute(
      'insert into jobs (id, owner, created_at, status, model, prompt, params,'
      ' seconds, size) with recursive n(i) as (select 0 union all select i + 1 '
      "from n where i < 99999) select 'j' || i, 'ann', i, 'completed', 'm', '',"
      " '{}', '', '' from n order by i"
    )
  times = []
  for _ in range(5):
    began = time.perf_counter()
    page, more = table.page('ann', after='j50000', limit=20, descending=True)
    table.get('j777')
    times.append(time.perf_counter() - began)
  assert [job.id for job in page][:2] == ['j49999', 'j49998'] and more
  # 1 ms; a scan of the table takes 100 times as long, a busy machine longer.
  assert min(times) < 0.05
