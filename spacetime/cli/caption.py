"""Writes a caption beside each video of a folder, by a chat endpoint.

  spacetime caption --data=clips --model=NAME --endpoint=http://localhost:8000/v1

Every VIDEO.mp4 gets a VIDEO.txt, as training on a folder reads it. Captions
that exist stay, unless --overwrite. Reasoning is cut off; answers that are cut
off, filtered or refused are counted as failed. The API key, if the endpoint
needs one, is read from the environment variable SPACETIME_API_KEY.
"""

from absl import flags

from spacetime import SettingError
from spacetime.data import chat_endpoint, recaption
from spacetime.media import files

_DATA = flags.DEFINE_string(
  'data', None, 'Folder of videos, such as clips/; subfolders are searched.'
)
_ENDPOINT = flags.DEFINE_string(
  'endpoint',
  None,
  'URL of an OpenAI-compatible chat endpoint whose model sees images, such as '
  'http://localhost:8000/v1.',
)
_MODEL = flags.DEFINE_string(
  'model', 'default', 'Model of the endpoint, such as Qwen2.5-VL-7B-Instruct.'
)
_TIMEOUT = flags.DEFINE_float(
  'timeout', 60.0, 'Seconds to wait for one caption.'
)
_FRAMES = flags.DEFINE_integer(
  'frames', 4, 'Frames of each video that are sent to the endpoint.'
)
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Replace captions that exist.'
)


def main() -> None:
  """Flags -> recaption.caption_folder -> a line of counts."""
  if not _DATA.value:
    raise SettingError('data', _DATA.value, 'a folder of videos')
  if not _ENDPOINT.value:
    raise SettingError('endpoint', _ENDPOINT.value, 'URL of a chat endpoint')
  report = recaption.caption_folder(
    files.as_path(_DATA.value),
    chat_endpoint.Endpoint(_ENDPOINT.value, _MODEL.value, _TIMEOUT.value),
    frames=_FRAMES.value,
    overwrite=_OVERWRITE.value,
  )
  print(f'{report.written} captions written, {report.skipped} existed before')
  if report.failed:
    rest = f', and {report.pending} were not tried' if report.pending else ''
    raise ValueError(
      f'{len(report.failed)} videos have no new caption{rest}, such as '
      f'{report.failed[0]}; run it again for these'
    )
