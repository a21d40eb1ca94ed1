"""Client of an OpenAI-compatible chat endpoint, with text and images."""

import base64
import dataclasses
import http.client
import io
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence

import numpy as np
from PIL import Image

from spacetime import SettingError
from spacetime.data import text_files

# Environment variable of the API key; a flag would be visible to other users.
KEY = 'SPACETIME_API_KEY'
PATH = '/chat/completions'
# Answers of a busy server, after which it is asked again.
BUSY = (408, 425, 429, 500, 502, 503, 504, 529)
TRIES = 3
PAUSE = 1.0  # seconds before the second try; twice as many before the third
LONGEST_PAUSE = 30.0  # of the seconds that a server may ask for
# Reasons of servers to end an answer that is complete.
COMPLETE = ('stop', 'eos', 'eos_token', 'stop_sequence', 'end_turn')
# Reasoning before the answer, by the marks of the models' templates.
_OPEN = re.compile(
  r'<(?:seed:)?(?:think|thinking|thought|thoughts|reasoning|reason|reflection)>'
  r'|\[THINK\]|\u25c1think\u25b7|<\|begin_of_thought\|>|<unused94>'
  r'|<\|channel\|>(?:analysis|commentary)[^<]*<\|message\|>|<\|think\|>',
  re.IGNORECASE,
)
_CLOSE = re.compile(
  r'</(?:seed:)?(?:think|thinking|thought|thoughts|reasoning|reason|reflection)>'
  r'|\[/THINK\]|\u25c1/think\u25b7|<\|end_of_thought\|>|<unused95>'
  r'|<\|channel\|>final[^<]*<\|message\|>|<\|/think\|>',
  re.IGNORECASE,
)
# Marks round the answer itself.
_ANSWER = re.compile(
  r'</?answer>|<\|(?:begin|end)_of_(?:box|solution)\|>'
  r'|<\|(?:return|end|im_end|eot_id)\|>',
  re.IGNORECASE,
)


class EndpointError(Exception):
  """The endpoint gave no complete answer in the expected format.

  Attributes:
    reached: whether the server answered this message; if not, the next one is
      likely to fail too.
  """

  def __init__(self, message: str, *, reached: bool = True):
    super().__init__(message)
    self.reached = reached


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """A chat endpoint.

  Attributes:
    url: such as http://localhost:8000/v1.
    model: name of one of its models.
    timeout: seconds to wait for an answer; a server that does not answer, or
      is busy, is asked three times.

  Raises:
    SettingError: not a URL, or a timeout of 0 or less.
  """

  url: str
  model: str = 'default'
  timeout: float = 60.0

  def __post_init__(self):
    try:
      parts = urllib.parse.urlsplit(self.url)
      valid = parts.scheme in ('http', 'https') and parts.hostname
      valid = valid and (parts.port is None or parts.port)
    except ValueError:  # such as a port that is no number
      valid = False
    if not valid or re.search(r'[\s\x00-\x1f\x7f]', self.url):
      raise SettingError(
        'endpoint', self.url, 'a URL such as http://localhost:8000/v1'
      )
    if not 0 < self.timeout < float('inf'):
      raise SettingError('timeout', self.timeout, 'more than 0 seconds')

  def chat(
    self, system: str, text: str, images: Sequence[np.ndarray] = ()
  ) -> str:
    """Returns the answer to one message, without reasoning and blanks.

    Args:
      system: the instructions.
      text: the message.
      images: uint8 (H, W, 3) each, sent as PNG with the message.

    Raises:
      EndpointError: no answer, one in another format, or one that is cut off,
        filtered or refused.
    """
    content = text
    if images:
      content = [{'type': 'text', 'text': text}]
      content += [_image(image) for image in images]
    body = {
      'model': self.model,
      'messages': [
        {'role': 'system', 'content': system},
        {'role': 'user', 'content': content},
      ],
    }
    url = self.url.rstrip('/')
    url = url if url.endswith(PATH) else url + PATH
    data = self._post(url, json.dumps(body).encode())
    try:
      choice = json.loads(data)['choices'][0]
      message, reason = choice['message'], choice.get('finish_reason')
      reply = _content(message.get('content'))
      refusal = message.get('refusal')
    except (
      *(ValueError, LookupError, TypeError, AttributeError),
      RecursionError,
    ) as e:
      start = data[:200].decode(errors='replace')
      raise EndpointError(
        f'{url}: unexpected format of the answer: {e!r} in {start!r}'
      ) from e
    if reason and str(reason).lower() not in COMPLETE:
      raise EndpointError(
        f'{url}: the answer is incomplete, finish_reason={reason!r}'
      )
    if refusal:
      raise EndpointError(f'{url}: the model refuses: {str(refusal)[:200]}')
    return _without_reasoning(url, reply, message)

  def _post(self, url: str, body: bytes) -> bytes:
    """The body of the server's answer, which is asked again if it is busy."""
    headers = {'Content-Type': 'application/json'}
    if os.environ.get(KEY):
      headers['Authorization'] = f'Bearer {os.environ[KEY]}'
    for left in reversed(range(TRIES)):
      request = urllib.request.Request(url, body, headers)
      wait = PAUSE * 2 ** (TRIES - 1 - left)
      try:
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
          return answer.read()
      except urllib.error.HTTPError as e:
        error = EndpointError(f'{url}: {e}{_reason(e)}', reached=False)
        wait = max(wait, _retry_after(e))
        if e.code not in BUSY or wait > LONGEST_PAUSE:
          raise error from e
      except (OSError, http.client.HTTPException, ValueError) as e:
        error = EndpointError(f'{url}: {e}', reached=False)
      if left:
        time.sleep(wait)
    raise error


def _reason(error: urllib.error.HTTPError) -> str:
  """The start of what the server says about an error, in one line."""
  try:
    text = ' '.join(error.read(1000).decode(errors='replace').split())
  except (OSError, http.client.HTTPException):
    return ''
  return f': {text[:200]}' if text else ''


def _retry_after(error: urllib.error.HTTPError) -> float:
  """Seconds after which the server asks to be asked again."""
  value = error.headers.get('Retry-After') or ''
  return float(value) if value.isdecimal() else 0.0


def _content(content) -> str:
  """The text of a message's content: a text, or parts of which some are."""
  if content is None:
    return ''
  if isinstance(content, str):
    return content
  return ''.join(
    part if isinstance(part, str) else part['text']
    for part in content
    if isinstance(part, str) or part['type'] in ('text', 'output_text')
  )


def _without_reasoning(url: str, text: str, message: dict) -> str:
  """The answer after a model's reasoning.

  Templates may write the opening mark themselves, so that the answer holds the
  closing one alone.

  Raises:
    EndpointError: there is no answer besides reasoning.
  """
  marks = [(m.start(), m.end(), True) for m in _OPEN.finditer(text)]
  marks += [(m.start(), m.end(), False) for m in _CLOSE.finditer(text)]
  answer, reasoning, start = [], False, 0
  for first, stop, opens in sorted(marks):
    if opens and not reasoning:
      answer.append(text[start:first])
    elif not opens and not reasoning:
      answer = []  # all before it was reasoning
    reasoning, start = opens, stop
  if reasoning:
    raise EndpointError(f'{url}: reasoning without an end, and no answer')
  reply = ''.join([*answer, text[start:]])
  reply = _ANSWER.sub('', reply).strip()
  if not text_files.is_blank(reply):
    return reply
  thoughts = message.get('reasoning_content') or message.get('reasoning')
  if thoughts or text.strip():
    raise EndpointError(f'{url}: reasoning, and no answer')
  raise EndpointError(f'{url}: an empty answer')


def _image(image_HWC: np.ndarray) -> dict:
  buffer = io.BytesIO()
  Image.fromarray(image_HWC).save(buffer, 'PNG')
  data = base64.b64encode(buffer.getvalue()).decode()
  return {
    'type': 'image_url',
    'image_url': {'url': f'data:image/png;base64,{data}'},
  }
