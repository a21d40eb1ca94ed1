"""Signs a video or image with a manifest (C2PA), as a copy.

  spacetime sign --file=clip.mp4 --key=keys/studio --out=signed.mp4

The manifest names the source, whose own manifests are kept, and says that it
was published, not that a model made it. `spacetime sample --sign` says that of
what it generates. Needs the extra [provenance].
"""

from absl import flags

from spacetime import SettingError
from spacetime.media.files import with_home

_FILE = flags.DEFINE_string('file', None, 'File to sign, such as clip.mp4.')
_KEY = flags.DEFINE_string('key', None, 'Folder of `spacetime keys`.')
_OUT = flags.DEFINE_string('out', None, 'Signed copy, such as signed.mp4.')


def setup() -> None:
  """Nothing: no JAX."""


def main() -> None:
  """Flags -> a signed copy."""
  from spacetime.provenance import keys, manifest

  for flag in (_FILE, _KEY, _OUT):
    if not flag.value:
      raise SettingError(flag.name, flag.value, 'a path')
  source, out = (with_home(f.value) for f in (_FILE, _OUT))
  if not source.is_file():
    raise SettingError('file', str(source), 'a file that exists')
  if source.suffix.lower() != out.suffix.lower():
    raise SettingError('out', str(out), f'a file of {source.suffix}')
  if source.suffix.lower() in manifest.BESIDE:
    raise SettingError(
      'file', str(source), 'a format that holds the manifest of its source'
    )
  manifest.sign(
    source,
    out,
    keys.load(_KEY.value),
    generation={},
    ingredients=[manifest.Ingredient(source, is_parent=True)],
    generated=False,
  )
  print(out)
