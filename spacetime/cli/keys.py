"""Makes keys: for signing videos, or for clients of a service.

  spacetime keys --key=keys/studio --organization="Studio"
  spacetime keys --api_keys=api_keys.json --owner=ann --days=90

The first makes a folder with a signing key, its certificates and a watermark
key. Give root.pem to whoever verifies; keep the rest. The second adds a key for
an owner to a file and prints it once. Needs the extra [provenance].
"""

from absl import flags

from spacetime import SettingError
from spacetime.media.files import with_home

_KEY = flags.DEFINE_string(
  'key', None, 'New folder of a signing key, such as keys/studio.'
)
_ORGANIZATION = flags.DEFINE_string(
  'organization', 'spacetime', 'Name in the certificate, shown by verifiers.'
)
_API_KEYS = flags.DEFINE_string(
  'api_keys', None, 'File of API keys to add one to, such as api_keys.json.'
)
_OWNER = flags.DEFINE_string(
  'owner', None, 'Owner of the API key: it sees the videos of this owner only.'
)
_DAYS = flags.DEFINE_float(
  'days', None, 'Days until the API key expires; the default is never.'
)


def setup() -> None:
  """Nothing: no JAX."""


def main() -> None:
  """Flags -> a folder of keys, or a new API key."""
  if (_KEY.value is None) == (_API_KEYS.value is None):
    raise SettingError('key', _KEY.value, 'a new folder, or `api_keys`')
  if _KEY.value is not None:
    from spacetime.provenance import keys

    key = keys.make(_KEY.value, organization=_ORGANIZATION.value)
    print(f'{key.folder}: give {key.folder / "root.pem"} to verifiers')
    return
  from spacetime.serving import keys as api_keys

  path = with_home(_API_KEYS.value)
  key = api_keys.add(path, _OWNER.value or '', days=_DAYS.value)
  print(key)
