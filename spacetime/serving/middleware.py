"""ASGI middleware: size and time of bodies, headers, origins, errors."""

import asyncio
import contextlib
import http
import json
import logging
import secrets
import urllib.parse

from spacetime.serving import errors
from spacetime.serving.errors import ApiError
from spacetime.serving.uploads import too_large

BODY_SECONDS = 300.0
DRAIN_SECONDS = 30.0  # of a body that is refused
HEADERS = {
  'content-security-policy': "default-src 'self'; img-src 'self' data: blob:; "
  "media-src 'self' blob:; object-src 'none'; base-uri 'none'; frame-ancestors "
  "'none'; form-action 'self'",
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'cross-origin-resource-policy': 'same-origin',
}
_LOG = logging.getLogger('spacetime.serving')


class Guard:
  """Outermost layer: whatever goes wrong becomes an error of the API.

  Args:
    app: the application.
    max_body_bytes: largest body.
    hosts: names of this server that a browser may use; None is all.
  """

  def __init__(self, app, *, max_body_bytes: int, hosts: set[str] | None):
    self._app, self._most, self._hosts = app, max_body_bytes, hosts

  async def __call__(self, scope, receive, send) -> None:
    if scope['type'] != 'http':
      await self._app(scope, receive, send)
      return
    request_id = f'req_{secrets.token_hex(16)}'
    headers = {k.decode('latin-1').lower(): v for k, v in scope['headers']}
    began, received, refusal, is_read = False, 0, None, False

    async def tracked():
      nonlocal is_read
      message = await receive()
      is_read = not message.get('more_body')
      return message

    async def limited():
      nonlocal received
      try:
        message = await asyncio.wait_for(tracked(), BODY_SECONDS)
      except TimeoutError as e:
        raise ApiError(408, 'The body took too long.', code='timeout') from e
      received += len(message.get('body', b''))
      if received > self._most:
        raise too_large(self._most)
      return message

    async def decorated(message):
      nonlocal began, refusal
      if _is_plain_error(message):
        refusal = message
        return
      if refusal is not None:
        error, refusal = _shaped(refusal, message), None
        await _answer(error, decorated)
        return
      if message['type'] == 'http.response.start':
        began = True
        is_sent = is_read or 'expect' in headers
        if message['status'] == 413 and not is_sent:
          await _drain(receive)
        own = {name.lower() for name, _ in message.get('headers', ())}
        message['headers'] = [
          *message.get('headers', ()),
          (b'x-request-id', request_id.encode()),
          *(
            (name.encode(), value.encode())
            for name, value in HEADERS.items()
            if name.encode() not in own
          ),
        ]
      await send(message)

    try:
      self._check(scope, headers)
      # Streams last longer than a body may take to arrive.
      is_body = scope['method'] in ('POST', 'PUT', 'PATCH', 'DELETE')
      await self._app(scope, limited if is_body else receive, decorated)
    except ApiError as e:
      if began:
        raise
      await _answer(e, decorated)
    except Exception:
      _LOG.exception('request %s', request_id)
      if began:
        raise
      error = ApiError(
        500, f'Internal error; request {request_id}.', code='internal_error'
      )
      await _answer(error, decorated)

  def _check(self, scope, headers) -> None:
    length = headers.get('content-length', b'0')
    if length.isdigit() and int(length) > self._most:
      raise too_large(self._most)
    host = headers.get('host', b'').decode('latin-1')
    try:
      name = urllib.parse.urlsplit(f'//{host}').hostname
      origin = headers.get('origin', b'').decode('latin-1')
      source = urllib.parse.urlsplit(origin).netloc
    except ValueError as e:
      raise ApiError(400, 'Invalid Host or Origin.', code='bad_header') from e
    if self._hosts is not None and name not in self._hosts:
      # A page of another site whose name was pointed at this machine.
      raise ApiError(403, 'Unknown host name.', code='unknown_host')
    unsafe = scope['method'] not in ('GET', 'HEAD', 'OPTIONS')
    if origin and unsafe and source != host:
      raise ApiError(
        403, 'Requests of other sites are refused.', code='cross_origin'
      )


async def _drain(receive) -> None:
  """Reads the rest of a refused body: a client that is still sending would lose
  the answer with its connection."""
  with contextlib.suppress(TimeoutError):
    async with asyncio.timeout(DRAIN_SECONDS):
      while (await receive()).get('more_body'):
        pass


def _is_plain_error(message) -> bool:
  """Whether a message begins an error that the framework wrote as text."""
  if message['type'] != 'http.response.start' or message['status'] < 400:
    return False
  kind = dict(message['headers']).get(b'content-type', b'')
  return kind.startswith(b'text/plain')


def _shaped(start, message) -> ApiError:
  """The error of a text, such as of a range outside of a file."""
  phrase = http.HTTPStatus(start['status']).phrase
  text = message.get('body', b'').decode(errors='replace').strip()
  return ApiError(
    start['status'],
    text or f'{phrase}.',
    code=phrase.lower().replace(' ', '_'),
    headers={
      name.decode(): value.decode()
      for name, value in start['headers']
      if name not in (b'content-type', b'content-length')
    },
  )


async def _answer(error: ApiError, send) -> None:
  data = json.dumps(errors.body(error)).encode()
  await send(
    {
      'type': 'http.response.start',
      'status': error.status,
      'headers': [
        (b'content-type', b'application/json'),
        (b'content-length', str(len(data)).encode()),
        *((k.encode(), v.encode()) for k, v in error.headers.items()),
      ],
    }
  )
  await send({'type': 'http.response.body', 'body': data})
