"""Shows where a video or image comes from: manifest (C2PA) and watermark.

  spacetime verify clip.mp4
  spacetime verify --key=keys/studio clip.mp4
  spacetime verify --root=root.pem clip.mp4

Reads anyone's MP4, GIF, PNG, WebP, JPEG and, with a manifest beside it, WebM.
`trusted` needs the root of the signer; `valid` is an intact file of an unknown
signer. The watermark is read with the key that made it. Exit code 3: the
manifest is invalid. Needs the extra [provenance].
"""

import json

from absl import flags

from spacetime import SettingError
from spacetime.media.files import with_home

OPERANDS = True
INVALID = 3  # exit code
_FILE = flags.DEFINE_string('file', None, 'File to verify, such as clip.mp4.')
_KEY = flags.DEFINE_string(
  'key', None, 'Folder of `spacetime keys`: its root is trusted, its watermark '
  'read.',
)  # fmt: skip
_ROOT = flags.DEFINE_string(
  'root', None, 'Certificate of a root to trust, such as root.pem.'
)


def setup() -> None:
  """Nothing: no JAX."""


def main(operands: list[str]) -> int:
  """Flags -> a JSON report; exit code."""
  from spacetime.provenance import keys, report

  files = [*operands, *filter(None, [_FILE.value])]
  if len(files) != 1:
    raise SettingError('file', files, 'one file')
  key = keys.load(_KEY.value) if _KEY.value else None
  roots = [key.root] if key else []
  if _ROOT.value:
    path = with_home(_ROOT.value)
    if not path.is_file():
      raise SettingError('root', str(path), 'a certificate, such as root.pem')
    roots.append(path.read_text())
  result = report.of_file(with_home(files[0]), key, roots)
  print(json.dumps(result, indent=2))
  return INVALID if result['c2pa']['state'] == 'invalid' else 0
