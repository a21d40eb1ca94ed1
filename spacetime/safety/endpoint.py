"""A moderation endpoint in OpenAI's format, asked beside the rules."""

import dataclasses
import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request

from spacetime import SettingError
from spacetime.safety.policy import CheckError, Verdict

KEY = 'SPACETIME_MODERATION_KEY'  # environment variable of its API key
LARGEST = 2**20  # bytes of an answer


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """A moderation endpoint.

  Attributes:
    url: such as http://localhost:8001/v1.
    timeout: seconds to wait.

  Raises:
    SettingError: not a URL.
  """

  url: str
  timeout: float = 20.0

  def __post_init__(self):
    parts = urllib.parse.urlsplit(self.url)
    if parts.scheme not in ('http', 'https') or not parts.netloc:
      raise SettingError(
        'moderation', self.url, 'a URL such as http://localhost:8001/v1'
      )

  def check_text(self, text: str) -> Verdict:
    """The endpoint's verdict.

    Raises:
      CheckError: no answer, or one in another format.
    """
    request = urllib.request.Request(
      self.url.rstrip('/') + '/moderations',
      json.dumps({'input': text}).encode(),
      {'Content-Type': 'application/json'},
    )
    if os.environ.get(KEY):
      request.add_header('Authorization', f'Bearer {os.environ[KEY]}')
    try:
      with urllib.request.urlopen(request, timeout=self.timeout) as answer:
        reply = json.loads(answer.read(LARGEST))
      (result,) = reply['results']
      flagged = bool(result['flagged'])
      categories = [k for k, v in result['categories'].items() if v]
      scores = result.get('category_scores') or {}
      checker = f'endpoint {reply["model"]}'
    except (
      *(OSError, http.client.HTTPException, ValueError, KeyError),
      *(TypeError, AttributeError),
    ) as e:
      raise CheckError(f'the moderation endpoint failed ({e!r})') from e
    if not flagged:
      return Verdict(True, checker)
    category = categories[0] if categories else 'flagged'
    return Verdict(False, checker, category, category, scores.get(category))
