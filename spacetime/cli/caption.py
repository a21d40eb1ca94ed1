"""Writes captions beside videos, asked of a chat endpoint that sees pictures.

  python -m spacetime caption --data=clips --model=NAME \\
    --endpoint=http://localhost:8000/v1

Every VIDEO.mp4 gets a VIDEO.txt, as training on a folder reads it. Captions
that are there stay, unless --overwrite. The key of an endpoint that wants one
is read from the environment, SPACETIME_API_KEY.
"""

import pathlib

from absl import flags

from spacetime.data import chat_endpoint, recaption

_DATA = flags.DEFINE_string('data', None, 'A folder of videos.')
_ENDPOINT = flags.DEFINE_string(
  'endpoint', None, "URL of a chat endpoint of OpenAI's form."
)
_MODEL = flags.DEFINE_string('model', 'default', 'Which of its models.')
_TIMEOUT = flags.DEFINE_float('timeout', 60.0, 'Seconds to wait for a caption.')
_FRAMES = flags.DEFINE_integer('frames', 4, 'Frames of a video that it sees.')
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Replace captions that are there.'
)


def main() -> None:
  """Flags -> frames of each video -> a caption beside it."""
  if not _DATA.value:
    raise ValueError('--data: expected a folder of videos')
  if not _ENDPOINT.value:
    raise ValueError('--endpoint: expected the URL of a chat endpoint')
  if _FRAMES.value < 1:
    raise ValueError(f'--frames={_FRAMES.value}: expected 1 or more')
  endpoint = chat_endpoint.Endpoint(
    _ENDPOINT.value, _MODEL.value, _TIMEOUT.value
  )
  counts = recaption.write_all(
    pathlib.Path(_DATA.value),
    endpoint,
    frames=_FRAMES.value,
    overwrite=_OVERWRITE.value,
  )
  print(f'{counts.written} captions written, {counts.kept} were there')
  if counts.failed:
    raise ValueError(
      f'{len(counts.failed)} videos have no new caption, such as '
      f'{counts.failed[0]}; run it again for these'
    )
