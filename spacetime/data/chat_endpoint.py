"""A chat endpoint that speaks OpenAI's form, asked with a text and pictures."""

import base64
import dataclasses
import http.client
import io
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence

import numpy as np
from PIL import Image

# Of the key, which would be seen by others were it a flag.
KEY = 'SPACETIME_API_KEY'
PATH = '/chat/completions'


class Unanswered(Exception):
  """The endpoint did not answer, or not in its form."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """Where to ask.

  Attributes:
    url: such as http://localhost:8000/v1.
    model: the name of a model that it has.
    timeout: seconds to wait for an answer.

  Raises:
    ValueError: no such URL, or no time to wait.
  """

  url: str
  model: str = 'default'
  timeout: float = 60.0

  def __post_init__(self):
    parts = urllib.parse.urlsplit(self.url)
    if parts.scheme not in ('http', 'https') or not parts.netloc:
      raise ValueError(
        f'endpoint {self.url!r}: expected a URL such as '
        'http://localhost:8000/v1'
      )
    if not 0 < self.timeout < float('inf'):
      raise ValueError(
        f'timeout of {self.timeout} seconds for {self.url}: expected more than '
        '0'
      )

  def ask(
    self, system: str, text: str, images: Sequence[np.ndarray] = ()
  ) -> str:
    """The answer, without space around it.

    Args:
      system: what to do.
      text: with what.
      images: uint8 (H, W, 3) each, sent as PNG.

    Raises:
      Unanswered: see there; it says why.
    """
    content = text
    if images:
      content = [{'type': 'text', 'text': text}]
      content += [_picture(image) for image in images]
    body = {
      'model': self.model,
      'messages': [
        {'role': 'system', 'content': system},
        {'role': 'user', 'content': content},
      ],
    }
    url = self.url.rstrip('/')
    request = urllib.request.Request(
      url if url.endswith(PATH) else url + PATH,
      json.dumps(body).encode(),
      {'Content-Type': 'application/json'},
    )
    if os.environ.get(KEY):
      request.add_header('Authorization', f'Bearer {os.environ[KEY]}')
    try:
      with urllib.request.urlopen(request, timeout=self.timeout) as answer:
        found = json.load(answer)['choices'][0]['message']['content'].strip()
    except (OSError, http.client.HTTPException) as e:  # HTTPError and time-outs
      raise Unanswered(f'{url}: {e}') from e
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as e:
      raise Unanswered(f'{url}: an answer of another form: {e!r}') from e
    if not found:
      raise Unanswered(f'{url}: an empty answer')
    return found


def _picture(image_HWC: np.ndarray) -> dict:
  buffer = io.BytesIO()
  Image.fromarray(image_HWC).save(buffer, 'PNG')
  data = base64.b64encode(buffer.getvalue()).decode()
  return {
    'type': 'image_url',
    'image_url': {'url': f'data:image/png;base64,{data}'},
  }
