"""Settings of the video service: the flags of `spacetime serve`."""

import dataclasses
import ipaddress
import pathlib

from spacetime import SettingError
from spacetime.media.files import as_path, is_url, with_home

LOOPBACK = ('localhost', '127.0.0.1', '::1')


def _setting(default, group: str, text: str, example: str | None = None):
  metadata = {'help': text, 'group': group}
  if example is not None:
    metadata['example'] = example
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class ServeSettings:
  """Settings of one server.

  Raises:
    SettingError: a value out of its range, or an open address without keys.
  """

  checkpoint: str = _setting(
    'digits',
    'input',
    'Models with commas between them, each a path or NAME=PATH; the first is '
    'the default of requests.',
    example='digits,wan=weights/wan',
  )
  state: str = _setting(
    'service',
    'input',
    'Folder of jobs, uploads and results.',
    example='/var/lib/spacetime',
  )
  database: str = _setting(
    '',
    'input',
    'URL of a PostgreSQL database that several servers share; the default is '
    'a SQLite file in `state`.',
    example='postgresql://localhost/spacetime',
  )
  files: str = _setting(
    '',
    'input',
    'Folder of inputs and results that the servers of one `database` share: on '
    'a common file system, or in a bucket; the default is `state`, which each '
    'has for itself.',
    example='gs://BUCKET/spacetime',
  )
  host: str = _setting(
    '127.0.0.1',
    'server',
    'Address to listen on; any other than this machine requires `api_keys`.',
  )
  port: int = _setting(8000, 'server', 'Port to listen on; 0 picks a free one.')
  api_keys: str = _setting(
    '',
    'server',
    'File of API keys, written by `spacetime keys`.',
    example='api_keys.json',
  )
  webhook_hosts: str = _setting(
    '',
    'server',
    'Hosts that webhooks may be sent to, with commas between them.',
    example='hooks.example.com',
  )
  sign: str = _setting(
    '',
    'provenance',
    'Folder of the signing key, written by `spacetime keys`; the default makes '
    'one in `state`. "off" signs nothing.',
  )
  watermark: bool = _setting(
    True, 'provenance', 'Whether videos get an invisible watermark.'
  )
  policy: str = _setting(
    'standard', 'safety', 'Safety policy: off, standard, strict, or a file.'
  )
  moderation: str = _setting(
    '',
    'safety',
    "URL of a moderation endpoint in OpenAI's format, asked for every prompt.",
    example='http://localhost:8001/v1',
  )
  keep_hours: float = _setting(
    24.0 * 7, 'limits', 'Hours that a finished video is kept.'
  )
  max_upload_mb: int = _setting(64, 'limits', 'Largest request, in MiB.')
  max_queued: int = _setting(20, 'limits', 'Queued jobs of one key.')
  max_running: int = _setting(
    1, 'limits', 'Jobs of one key that run at a time on several workers.'
  )
  max_per_day: int = _setting(1000, 'limits', 'Jobs of one key in 24 hours.')
  max_pixels: int = _setting(
    2**31, 'limits', 'Largest width x height x frames of a video.'
  )
  max_steps: int = _setting(200, 'limits', 'Most solver steps of a request.')
  max_stored_mb: int = _setting(
    20_000, 'limits', 'MiB of results and inputs kept for one key.'
  )
  min_free_mb: int = _setting(
    1024, 'limits', 'MiB that stay free on the disk: no job starts with less.'
  )
  lease_seconds: float = _setting(
    60.0,
    'limits',
    'Seconds without a sign of life after which the job of a worker is given '
    'to another.',
  )
  coordinator: str = _setting(
    '',
    'server',
    'HOST:PORT of process 0, of a model over several hosts. Process 0 serves; '
    'the others compute with it.',
    example='10.0.0.2:8476',
  )
  num_processes: int = _setting(
    0, 'server', 'Number of processes, with `coordinator`.'
  )
  process_id: int = _setting(
    0, 'server', 'Number of this process, with `coordinator`.'
  )
  warm: bool = _setting(
    True, 'server', 'Whether programs are compiled before the first request.'
  )

  def __post_init__(self):
    if not 0 <= self.port < 65536:
      raise SettingError('port', self.port, '0 to 65535')
    for name in (
      *('keep_hours', 'max_upload_mb', 'max_queued', 'max_running'),
      *('max_per_day', 'max_pixels', 'max_steps', 'max_stored_mb'),
      'lease_seconds',
    ):
      value = getattr(self, name)
      if not 0 < value < float('inf'):
        raise SettingError(name, value, 'more than 0')
    if self.min_free_mb < 0:
      raise SettingError('min_free_mb', self.min_free_mb, '0 or more')
    if not self.state:
      raise SettingError('state', self.state, 'a folder')
    if self.bucket:
      try:
        as_path(self.bucket)
      except ValueError as e:
        raise SettingError(
          'files', self.files, 'gs://BUCKET/NAME', hint=f'{e}'
        ) from e
    if self.database and not self.database.startswith('postgres'):
      raise SettingError('database', self.database, 'postgresql://HOST/NAME')
    if self.database and (not self.files or not self.sign):
      raise SettingError(
        'database',
        self.database,
        '`files` and `sign` too, which the servers share',
      )
    if not self.is_local and not self.api_keys:
      raise SettingError(
        'host',
        self.host,
        '127.0.0.1, or `api_keys` too',
        hint='others on the network could use the service',
      )
    if bool(self.coordinator) != (self.num_processes > 1):
      raise SettingError(
        'num_processes',
        self.num_processes,
        '2 or more with `coordinator`, and none without',
      )
    if not 0 <= self.process_id < max(1, self.num_processes):
      raise SettingError(
        'process_id', self.process_id, '0 to one less than `num_processes`'
      )
    self.models  # noqa: B018 - refused here

  @property
  def is_local(self) -> bool:
    """Whether only this machine can connect."""
    try:
      return ipaddress.ip_address(self.host).is_loopback
    except ValueError:
      return self.host in LOOPBACK

  @property
  def models(self) -> dict[str, str]:
    """Path of each model by its name; the first is the default."""
    result = {}
    for entry in self.checkpoint.split(','):
      name, equals, path = entry.strip().partition('=')
      path = path if equals else name
      name = name if equals else pathlib.PurePath(path).name
      if not name or not path:
        raise SettingError('checkpoint', self.checkpoint, 'NAME=PATH,...')
      if name in result:
        raise SettingError(
          'checkpoint', self.checkpoint, f'{name} once, as NAME=PATH'
        )
      result[name] = path
    return result

  @property
  def folder(self) -> pathlib.Path:
    """The folder of this server's state."""
    return with_home(self.state).absolute()

  @property
  def files_folder(self) -> pathlib.Path:
    """The folder of inputs and results on this machine."""
    files = self.state if self.bucket else self.files or self.state
    return with_home(files).absolute()

  @property
  def bucket(self) -> str | None:
    """URL of the inputs and results, if they are in a bucket."""
    return self.files if is_url(self.files) else None
