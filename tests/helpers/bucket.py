"""A stand-in of Google Cloud Storage: its JSON API, a bucket in memory.

Serves what gcsfs and tensorstore ask of it, with generations and preconditions,
upon which tensorstore's writers rely not to overwrite each other.
"""

import base64
import contextlib
import http.server
import json
import re
import threading
import urllib.parse

import fsspec
import google_crc32c
from fsspec.implementations.memory import MemoryFileSystem

NAME = 'bucket'


class Objects:
  """Of one bucket: name -> (bytes, generation)."""

  def __init__(self):
    self.lock = threading.RLock()
    self.held: dict[str, tuple[bytes, int]] = {}
    self.uploads: dict[str, tuple[str, bytearray]] = {}
    self.count = 0

  def put(self, name: str, data: bytes) -> dict:
    with self.lock:
      self.count += 1
      self.held[name] = data, self.count
      return self.resource(name)

  def resource(self, name: str) -> dict:
    data, generation = self.held[name]
    check = google_crc32c.Checksum(data).digest()
    return {
      'kind': 'storage#object',
      'bucket': NAME,
      'name': name,
      'size': str(len(data)),
      'generation': str(generation),
      'metageneration': '1',
      'crc32c': base64.b64encode(check).decode(),
      'timeCreated': '2026-01-01T00:00:00Z',
      'updated': '2026-01-01T00:00:00Z',
      'storageClass': 'STANDARD',
      'contentType': 'application/octet-stream',
    }

  def listed(self, query: dict) -> dict:
    """By name; everything between two slashes is one prefix."""
    prefix, delimiter = query.get('prefix', ''), query.get('delimiter')
    first = max(query.get('startOffset', ''), query.get('pageToken', ''))
    limit = int(query.get('maxResults', 1000))
    items, prefixes = [], []
    for name in sorted(self.held):
      if not name.startswith(prefix) or name < first:
        continue
      if query.get('endOffset') and name >= query['endOffset']:
        continue
      rest = name[len(prefix) :]
      inner = delimiter and delimiter in rest
      folder = prefix + rest.split(delimiter)[0] + delimiter if inner else ''
      if folder in prefixes:
        continue
      if len(items) + len(prefixes) == limit:
        return {'items': items, 'prefixes': prefixes, 'nextPageToken': name}
      if inner:
        prefixes.append(folder)
      else:
        items.append(self.resource(name))
    return {'items': items, 'prefixes': prefixes}


class Handler(http.server.BaseHTTPRequestHandler):
  """One request of one client."""

  protocol_version = 'HTTP/1.1'
  objects: Objects

  def handle(self):
    # A client may have left with what it expected.
    with contextlib.suppress(ConnectionError):
      super().handle()

  def log_message(self, *_):
    pass

  def answer(self, status: int, body=b'', **headers):
    if not isinstance(body, bytes):
      body = json.dumps(body).encode()
      headers['Content-Type'] = 'application/json'
    self.send_response(status)
    for key, value in headers.items():
      self.send_header(key.replace('_', '-'), value)
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def refuse(self, status: int, why: str):
    self.answer(status, {'error': {'code': status, 'message': why}})

  def handle_one(self):
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
    path = url.path.removeprefix('/download')
    upload = path.startswith('/upload')
    match = re.fullmatch(
      r'/storage/v1/b/([^/]+)(/o(?:/([^/]+)(?:/(\w+)/(?:b/[^/]+/)?o/([^/]+))?)?)?',
      path.removeprefix('/upload'),
    )
    if not match or match[1] != NAME:
      return self.refuse(404, f'no such path: {path}')
    name = urllib.parse.unquote(match[3] or query.get('name', ''))
    target = urllib.parse.unquote(match[5] or '')
    with self.objects.lock:
      if upload:
        return self.upload(name, query, body)
      if not match[2]:
        return self.answer(200, {'kind': 'storage#bucket', 'name': NAME})
      if not name:
        return self.answer(200, self.objects.listed(query))
      if name not in self.objects.held:
        return self.refuse(404, f'no such object: {name}')
      return self.one(name, query, target, verb=match[4])

  do_GET = do_POST = do_PUT = do_DELETE = handle_one  # noqa: N815 (http.server's)

  def stale(self, name: str, query: dict) -> bool:
    """Whether another generation is there than the one asked for."""
    generation = self.objects.held.get(name, (b'', 0))[1]
    expected = query.get('ifGenerationMatch', generation)
    return int(expected) != generation

  def one(self, name: str, query: dict, target: str, *, verb: str | None):
    if self.stale(name, query):
      return self.refuse(412, f'{name}: another generation')
    data, generation = self.objects.held[name]
    if self.command == 'DELETE':
      del self.objects.held[name]
      return self.answer(204)
    if verb in ('rewriteTo', 'moveTo'):
      stored = self.objects.put(target, data)
      if verb == 'moveTo':
        del self.objects.held[name]
        return self.answer(200, stored)
      return self.answer(200, {'done': True, 'resource': stored})
    if verb:
      return self.refuse(501, f'{verb} is not served')
    if query.get('alt') != 'media':
      return self.answer(200, self.objects.resource(name))
    if query.get('ifGenerationNotMatch') == str(generation):
      return self.answer(304)
    extra = {'x_goog_generation': str(generation)}
    requested = re.fullmatch(
      r'bytes=(\d*)-(\d*)', self.headers.get('Range', '')
    )
    if not requested:
      return self.answer(200, data, **extra)
    size = len(data)
    first = (
      int(requested[1]) if requested[1] else max(size - int(requested[2]), 0)
    )
    last = int(requested[2]) if requested[1] and requested[2] else size - 1
    last = min(last, size - 1)
    if first > last:
      return self.refuse(416, f'{name} has {size} bytes')
    extra['Content_Range'] = f'bytes {first}-{last}/{size}'
    return self.answer(206, data[first : last + 1], **extra)

  def upload(self, name: str, query: dict, body: bytes):
    if 'upload_id' in query:
      return self.resume(query['upload_id'], body)
    kind = query['uploadType']
    if kind == 'multipart':
      edge = self.headers['Content-Type'].split('boundary=')[1].strip('"')
      _, head, content, _ = body.split(f'--{edge}'.encode())
      name = name or json.loads(head.split(b'\n\n', 1)[1])['name']
      body = content.split(b'\n\n', 1)[1].removesuffix(b'\n')
    if self.stale(name, query):
      return self.refuse(412, f'{name}: another generation')
    if kind != 'resumable':
      return self.answer(200, self.objects.put(name, body))
    self.objects.count += 1
    self.objects.uploads[key := str(self.objects.count)] = name, bytearray()
    where = f'http://{self.headers["Host"]}{self.path}&upload_id={key}'
    return self.answer(200, Location=where)

  def resume(self, key: str, body: bytes):
    name, held = self.objects.uploads[key]
    held += body
    if self.headers.get('Content-Range', '/0').endswith('/*'):
      return self.answer(308, Range=f'bytes=0-{len(held) - 1}')
    return self.answer(200, self.objects.put(name, bytes(held)))


@contextlib.contextmanager
def served():
  """Serves an empty bucket, gs://bucket.

  Yields:
    (Objects, the environment that sends gcsfs and tensorstore to it).
  """
  objects = Objects()
  handler = type('Bound', (Handler,), {'objects': objects})
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  url = f'http://127.0.0.1:{server.server_port}'
  try:
    yield (
      objects,
      {
        'STORAGE_EMULATOR_HOST': url,
        'TENSORSTORE_GCS_HTTP_URL': url,
        'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'none',
        'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
      },
    )
  finally:
    server.shutdown()
    server.server_close()


class MemoryBucket(MemoryFileSystem):
  """Google's, in memory; like it, it knows no appending."""

  protocol = ('gcs', 'gs')
  store = {}
  pseudo_dirs = ['']

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(path.replace('gs://', '/', 1))

  def _open(self, path, mode='rb', **kwargs):
    assert 'a' not in mode, 'a bucket cannot append'
    return super()._open(path, mode=mode, **kwargs)


def in_memory(monkeypatch) -> None:
  """Lets gs:// be a bucket in the memory of this process, empty at first."""
  fsspec.register_implementation('gcs', MemoryBucket, clobber=True)
  monkeypatch.setattr(MemoryBucket, 'store', {})
  monkeypatch.setattr(MemoryBucket, 'pseudo_dirs', [''])


def upload(folder, url: str) -> str:
  """Copies a folder of this machine into the bucket in memory."""
  file_system = MemoryBucket()
  for path in folder.rglob('*'):
    if path.is_file():
      name = f'{url}/{path.relative_to(folder)}'
      with file_system.open(name, 'wb') as file:
        file.write(path.read_bytes())
  return url
