"""Reports of files: damaged ones too."""

import pytest

from spacetime.provenance import report
from tests.provenance import manifest_test

key = manifest_test.key


@pytest.mark.slow
@pytest.mark.parametrize('suffix', manifest_test.SUFFIXES)
def test_damaged_frames_are_reported_as_invalid(tmp_path, key, suffix):
  """Whether or not the frames can still be read."""
  path = manifest_test.make(tmp_path, suffix)
  signed = manifest_test.sign(path, key)
  intact = report.of_file(signed, key, [key.root])
  assert intact['c2pa']['state'] == 'trusted'
  assert intact['watermark']['state'] == 'unknown'
  data = signed.read_bytes()
  frames = data.rindex(path.read_bytes()[-300:-280])
  states = set()
  for start in range(frames, frames + 240, 60):
    damaged = bytes(b ^ 0xFF for b in data[start : start + 40])
    signed.write_bytes(data[:start] + damaged + data[start + 40 :])
    result = report.of_file(signed, key, [key.root])
    assert result['c2pa']['state'] == 'invalid', start
    states.add(result['watermark']['state'])
  assert states <= {'unknown', 'unreadable'}


def test_unreadable_file_without_a_manifest_is_refused(tmp_path, key):
  path = tmp_path / 'clip.png'
  path.write_bytes(b'no picture')
  with pytest.raises(ValueError, match='clip.png'):
    report.of_file(path, key, [key.root])
