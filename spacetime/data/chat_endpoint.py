"""Client of an OpenAI-compatible chat endpoint, with text and images."""

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

from spacetime import SettingError

# Environment variable of the API key; a flag would be visible to other users.
KEY = 'SPACETIME_API_KEY'
PATH = '/chat/completions'


class EndpointError(Exception):
  """The endpoint did not answer, or not in the expected format."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """A chat endpoint.

  Attributes:
    url: such as http://localhost:8000/v1.
    model: name of one of its models.
    timeout: seconds to wait for an answer.

  Raises:
    SettingError: not a URL, or a timeout of 0 or less.
  """

  url: str
  model: str = 'default'
  timeout: float = 60.0

  def __post_init__(self):
    parts = urllib.parse.urlsplit(self.url)
    if parts.scheme not in ('http', 'https') or not parts.netloc:
      raise SettingError(
        'endpoint', self.url, 'a URL such as http://localhost:8000/v1'
      )
    if not 0 < self.timeout < float('inf'):
      raise SettingError('timeout', self.timeout, 'more than 0 seconds')

  def chat(
    self, system: str, text: str, images: Sequence[np.ndarray] = ()
  ) -> str:
    """Returns the answer to one message, without surrounding blanks.

    Args:
      system: the instructions.
      text: the message.
      images: uint8 (H, W, 3) each, sent as PNG with the message.

    Raises:
      EndpointError: no answer, or one in another format.
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
    request = urllib.request.Request(
      url if url.endswith(PATH) else url + PATH,
      json.dumps(body).encode(),
      {'Content-Type': 'application/json'},
    )
    if os.environ.get(KEY):
      request.add_header('Authorization', f'Bearer {os.environ[KEY]}')
    try:
      with urllib.request.urlopen(request, timeout=self.timeout) as answer:
        reply = json.load(answer)['choices'][0]['message']['content'].strip()
    except (OSError, http.client.HTTPException) as e:  # HTTPError and time-outs
      raise EndpointError(f'{url}: {e}') from e
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as e:
      raise EndpointError(
        f'{url}: unexpected format of the answer: {e!r}'
      ) from e
    if not reply:
      raise EndpointError(f'{url}: an empty answer')
    return reply


def _image(image_HWC: np.ndarray) -> dict:
  buffer = io.BytesIO()
  Image.fromarray(image_HWC).save(buffer, 'PNG')
  data = base64.b64encode(buffer.getvalue()).decode()
  return {
    'type': 'image_url',
    'image_url': {'url': f'data:image/png;base64,{data}'},
  }
