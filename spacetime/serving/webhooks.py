"""Webhooks: endpoints of owners, events of ended jobs, signed deliveries.

Signatures are those of Standard Webhooks, as OpenAI's client verifies them.
"""

import base64
import hashlib
import hmac
import http.client
import json
import re
import secrets
import threading
import time
import urllib.parse
from typing import Any

from spacetime.serving import fields
from spacetime.serving.database import Database, create_tables, is_id
from spacetime.serving.errors import ApiError, bad_field, unknown_id

FIELDS = ('name', 'url', 'event_types')
EVENTS = ('video.completed', 'video.failed')
RETRY_SECONDS = (5, 30, 300, 1800, 7200)  # after each failed delivery
SECONDS = 10.0  # of one delivery
OLD_SECRET_SECONDS = 24 * 3600
MAX_ENDPOINTS = 20  # of an owner
SCHEMA = """
create table if not exists webhooks (
  seq SERIAL,
  id text not null unique,
  owner text not null,
  name text not null,
  url text not null,
  events text not null,
  secret text not null,
  old_secret text,
  old_until double precision not null default 0,
  created_at double precision not null,
  updated_at double precision not null
);
create table if not exists deliveries (
  seq SERIAL,
  webhook text not null,
  event text not null,
  type text not null,
  job text not null,
  created_at double precision not null,
  attempt bigint not null default 0,
  next_at double precision not null
);
create index if not exists deliveries_next on deliveries (next_at)
"""


def add_deliveries(execute, job_id: str, owner: str, event: str) -> None:
  """Adds a delivery to each endpoint that wants an event of a job.

  Args:
    execute: of the transaction that ends the job.
    job_id: the job.
    owner: its owner.
    event: an entry of EVENTS.
  """
  now = time.time()
  rows = execute('select id, events from webhooks where owner = ?', (owner,))
  for row in rows:
    if event in json.loads(row['events']):
      execute(
        'insert into deliveries (webhook, event, type, job, created_at, '
        'next_at) values (?, ?, ?, ?, ?, ?)',
        (row['id'], f'evt_{secrets.token_hex(16)}', event, job_id, now, now),
      )


def sign(secret: str, event_id: str, timestamp: int, body: bytes) -> str:
  """The signature of a delivery: 'v1,BASE64'."""
  key = base64.b64decode(secret.removeprefix('whsec_'))
  signed = f'{event_id}.{timestamp}.'.encode() + body
  digest = hmac.new(key, signed, hashlib.sha256).digest()
  return f'v1,{base64.b64encode(digest).decode()}'


class Webhooks:
  """Endpoints of all owners.

  Args:
    database: the service's database.
    hosts: hosts that deliveries may go to; plain http is for loopback only.
  """

  def __init__(self, database: Database, hosts: tuple[str, ...]):
    self._database, self._hosts = database, hosts
    create_tables(database, SCHEMA)
    self._stopping = threading.Event()

  def create(self, owner: str, values: dict[str, Any]) -> dict[str, Any]:
    """Adds an endpoint; its secret is shown once."""
    checked = self._check(values, required=True)
    now, secret = time.time(), _secret()
    row = {
      'id': f'wh_{secrets.token_hex(12)}',
      'owner': owner,
      **checked,
      'secret': secret,
      'created_at': now,
      'updated_at': now,
    }
    with self._database.transaction() as execute:
      count = execute(
        'select count(*) as n from webhooks where owner = ?', (owner,)
      )
      if count[0]['n'] >= MAX_ENDPOINTS:
        raise ApiError(
          429, f'At most {MAX_ENDPOINTS} endpoints.', code='limit_exceeded'
        )
      names = ', '.join(row)
      marks = ', '.join('?' * len(row))
      execute(
        f'insert into webhooks ({names}) values ({marks})', tuple(row.values())
      )
    return _show(row) | {'signing_secret': secret}

  def list(self, owner: str, *, after: str | None, limit: int):
    """A page of endpoints, oldest first."""
    seq = 0 if after is None else self._row(owner, after, 'after')['seq']
    with self._database.reading() as execute:
      rows = execute(
        'select * from webhooks where owner = ? and seq > ? order by seq '
        'limit ?',
        (owner, seq, limit + 1),
      )
    page = [_show(row) for row in rows[:limit]]
    return {
      'object': 'list',
      'data': page,
      'first_id': page[0]['id'] if page else None,
      'last_id': page[-1]['id'] if page else None,
      'has_more': len(rows) > limit,
    }

  def get(self, owner: str, webhook_id: str) -> dict[str, Any]:
    """An endpoint of an owner."""
    return _show(self._row(owner, webhook_id))

  def update(self, owner: str, webhook_id: str, values: dict[str, Any]):
    """Changes name, URL or events of an endpoint."""
    self._row(owner, webhook_id)
    checked = self._check(values, required=False)
    with self._database.transaction() as execute:
      for name, value in {**checked, 'updated_at': time.time()}.items():
        execute(
          f'update webhooks set {name} = ? where id = ? and owner = ?',
          (value, webhook_id, owner),
        )
    return self.get(owner, webhook_id)

  def delete(self, owner: str, webhook_id: str) -> dict[str, Any]:
    """Removes an endpoint and what is yet to be sent to it."""
    self._row(owner, webhook_id)
    with self._database.transaction() as execute:
      execute('delete from webhooks where id = ?', (webhook_id,))
      execute('delete from deliveries where webhook = ?', (webhook_id,))
    return {
      'id': webhook_id,
      'object': 'webhook_endpoint.deleted',
      'deleted': True,
    }

  def rotate(self, owner: str, webhook_id: str, *, keep_old: bool):
    """Replaces the secret of an endpoint; both sign for a day if kept."""
    row = self._row(owner, webhook_id)
    secret, now = _secret(), time.time()
    old = row['secret'] if keep_old else None
    with self._database.transaction() as execute:
      execute(
        'update webhooks set secret = ?, old_secret = ?, old_until = ?, '
        'updated_at = ? where id = ?',
        (secret, old, now + OLD_SECRET_SECONDS, now, webhook_id),
      )
    return self.get(owner, webhook_id) | {'signing_secret': secret}

  def test(self, owner: str, webhook_id: str, event: Any) -> dict[str, Any]:
    """Sends a test event; its answer's status."""
    row = self._row(owner, webhook_id)
    if event not in EVENTS:
      names = ', '.join(EVENTS)
      raise bad_field('event_type', f'event_type: expected one of {names}.')
    try:
      status = self._send(row, f'evt_{secrets.token_hex(16)}', event, 'video_0')
    except OSError as e:
      raise bad_field('url', 'The endpoint does not answer.') from e
    return {
      'object': 'webhook_endpoint.test',
      'event_type': event,
      'status_code': status,
      'success': True,
      'webhook_endpoint_id': webhook_id,
    }

  # -- deliveries --------------------------------------------------------------

  def start(self) -> None:
    """Delivers events in a thread until stop."""
    self._thread = threading.Thread(target=self._deliver, daemon=True)
    self._thread.start()

  def stop(self) -> None:
    """Ends the thread."""
    self._stopping.set()
    self._thread.join(SECONDS)

  def deliver_due(self) -> int:
    """Sends what is due, once each; returns the number of attempts."""
    now = time.time()
    with self._database.transaction() as execute:
      # Taken by this process until then; later it counts as failed.
      due = execute(
        'select * from deliveries where next_at <= ? order by next_at limit 20'
        + self._database.skip_locked,
        (now,),
      )
      for row in due:
        wait = RETRY_SECONDS[min(row['attempt'], len(RETRY_SECONDS) - 1)]
        execute(
          'update deliveries set attempt = attempt + 1, next_at = ? where seq '
          '= ?',
          (now + wait, row['seq']),
        )
    for row in due:
      if self._try(row) or row['attempt'] + 1 >= len(RETRY_SECONDS):
        with self._database.transaction() as execute:
          execute('delete from deliveries where seq = ?', (row['seq'],))
    return len(due)

  def _deliver(self) -> None:
    while not self._stopping.wait(0.5):
      try:
        self.deliver_due()
      except Exception:  # the database is away; tried again
        self._stopping.wait(5)
    self._database.close()

  def _try(self, delivery: dict[str, Any]) -> bool:
    with self._database.reading() as execute:
      rows = execute(
        'select * from webhooks where id = ?', (delivery['webhook'],)
      )
    if not rows:
      return True
    try:
      status = self._send(
        rows[0], delivery['event'], delivery['type'], delivery['job']
      )
    except OSError:
      return False
    return 200 <= status < 300

  def _send(self, row, event_id: str, event: str, job_id: str) -> int:
    """Sends one event; the status of the answer. Redirects are not followed.

    Raises:
      OSError: no answer.
    """
    now = int(time.time())
    body = json.dumps(
      {
        'id': event_id,
        'object': 'event',
        'created_at': now,
        'type': event,
        'data': {'id': job_id},
      }
    ).encode()
    signatures = [sign(row['secret'], event_id, now, body)]
    if row['old_secret'] and row['old_until'] > now:
      signatures.append(sign(row['old_secret'], event_id, now, body))
    url = self._check_url(row['url'])
    kind = (
      http.client.HTTPSConnection
      if url.scheme == 'https'
      else http.client.HTTPConnection
    )
    connection = kind(url.hostname, url.port, timeout=SECONDS)
    try:
      connection.request(
        'POST',
        f'{url.path or "/"}{"?" + url.query if url.query else ""}',
        body,
        {
          'Content-Type': 'application/json',
          'webhook-id': event_id,
          'webhook-timestamp': str(now),
          'webhook-signature': ' '.join(signatures),
        },
      )
      return connection.getresponse().status
    except http.client.HTTPException as e:
      raise OSError(str(e)) from e
    finally:
      connection.close()

  # -- within ------------------------------------------------------------------

  def _row(
    self, owner: str, webhook_id: str, param: str | None = None
  ) -> dict[str, Any]:
    if not is_id(webhook_id):
      raise unknown_id('webhook endpoint', webhook_id, param)
    with self._database.reading() as execute:
      rows = execute(
        'select * from webhooks where id = ? and owner = ?', (webhook_id, owner)
      )
    if not rows:
      raise unknown_id('webhook endpoint', webhook_id, param)
    return rows[0]

  def _check(self, values: dict[str, Any], *, required: bool) -> dict[str, Any]:
    result = {}
    fields.check_names(values, FIELDS)
    for name in FIELDS:
      if values.get(name) is None:
        if required:
          raise bad_field(name, f'{name}: expected a value.', 'missing')
        continue
      value = values[name]
      if name == 'event_types':
        result['events'] = json.dumps(_events(value))
        continue
      result[name] = fields.text(name, value, 2000)
      if not result[name]:
        raise bad_field(name, f'{name}: expected a value.', 'missing')
    if 'url' in result:
      try:
        self._check_url(result['url'])
      except OSError as e:
        raise bad_field('url', f'url: {e}.', 'host_not_allowed') from e
    return result

  def _check_url(self, text: str) -> urllib.parse.SplitResult:
    """The parts of a URL that deliveries may go to.

    Raises:
      OSError: not a URL, or of another host.
    """
    if not re.fullmatch('[!-~]+', text):
      raise OSError('expected ASCII without spaces')
    try:
      url = urllib.parse.urlsplit(text)
      url.port  # noqa: B018 - a property that checks
    except ValueError as e:
      raise OSError(f'{e}') from e
    local = url.hostname in ('127.0.0.1', 'localhost')
    if url.scheme not in (('https', 'http') if local else ('https',)):
      raise OSError('expected https')
    if url.hostname not in self._hosts or url.username is not None:
      raise OSError('the operator of this service has not allowed this host')
    return url


def _events(value) -> list[str]:
  """The types of events of an endpoint, each once.

  Raises:
    ApiError: not a list of EVENTS.
  """
  if (
    not isinstance(value, list)
    or not value
    or any(event not in EVENTS for event in value)
  ):
    names = ', '.join(EVENTS)
    raise bad_field('event_types', f'event_types: expected a list of {names}.')
  return [event for event in EVENTS if event in value]


def _secret() -> str:
  return f'whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}'


def _show(row: dict[str, Any]) -> dict[str, Any]:
  return {
    'id': row['id'],
    'object': 'webhook_endpoint',
    'created_at': int(row['created_at']),
    'updated_at': int(row['updated_at']),
    'name': row['name'],
    'url': row['url'],
    'event_types': json.loads(row['events']),
    'signing_secret_hint': f'whsec_...{row["secret"][-4:]}',
  }
