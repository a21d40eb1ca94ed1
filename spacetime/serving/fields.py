"""Fields of a video request: OpenAI's and our own, checked and described.

Imports no JAX. Everything that depends on the model is checked by the worker
(job_request.py); what stands here depends on the service alone.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from spacetime.diffusion.settings import SamplingSettings
from spacetime.pipeline.request import Request
from spacetime.serving.errors import ApiError, bad_field

PROMPT_CHARACTERS = 8000
LONGEST = 24 * 3600  # seconds of a video
MOST_PAIRS = 1000  # prompts of a schedule
FORMATS = {
  'mp4': 'video/mp4',
  'webm': 'video/webm',
  'gif': 'image/gif',
  'png': 'image/png',
}
# Field of the API -> input of a Request.
INPUTS = {
  'input_reference': 'image',
  'video': 'video',
  'video2': 'video2',
  'mask': 'mask',
}
# Manifest (C2PA) of an uploaded WebM, which has no room for it -> its video.
MANIFESTS = {'video_manifest': 'video', 'video2_manifest': 'video2'}
MODES = (
  *('text', 'still', 'image', 'extend', 'extend_backward', 'loop', 'connect'),
  *('inpaint', 'outpaint', 'edit'),
)
TEXT = {'negative_prompt': PROMPT_CHARACTERS, 'prompt_schedule': 16_000}
# Settings of Request that a client may choose.
REQUEST = (
  *('negative_prompt', 'mode', 'image_at', 'cond_frames', 'frames', 'fps'),
  *('prompt_schedule', 'context_noise', 'seed', 'best_of'),
)
# Settings of the sampler are numbers or short words.
SAMPLING = tuple(
  field.name
  for field in dataclasses.fields(SamplingSettings)
  if field.name not in ('interval', 'boundary')
)
RANGES = {
  'steps': (1, 100_000),
  'seed': (0, 2**32 - 1),
  'frames': (1, 100_000),
  'cond_frames': (0, 100_000),
  'best_of': (1, 8),
  'zero_steps': (0, 1000),
}
CHOICES = {
  'mode': MODES,
  'format': tuple(FORMATS),
  'expand_prompt': ('grammar',),
}
OPENAI = ('prompt', 'model', 'seconds', 'size')
OWN = (*REQUEST, *SAMPLING, 'format', 'expand_prompt', 'attest')
# Beside the settings in a job's params: its inputs, warnings of the model.
INTERNAL = ('inputs', 'warnings')
_SIZE = re.compile(r'[1-9]\d{0,4}x[1-9]\d{0,4}', re.ASCII)
_NEXT = re.compile(r';\s*\d+(?:\.\d+)?\s*:')  # begins another prompt
_NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?', re.ASCII)
_KINDS = {
  field.name: field.metadata.get('type', str)
  for field in dataclasses.fields(Request)
} | {
  field.name: next(
    (kind for kind in (int, float) if str(kind.__name__) in str(field.type)),
    str,
  )
  for field in dataclasses.fields(SamplingSettings)
}


@dataclasses.dataclass(frozen=True)
class Fields:
  """The checked fields of a request.

  Attributes:
    prompt: the prompt, or the prompts of the schedule.
    model: name of the model.
    settings: all other settings, plain values.
  """

  prompt: str
  model: str
  settings: Mapping[str, Any]


def parse(
  values: Mapping[str, Any], *, models: tuple[str, ...], max_steps: int
) -> Fields:
  """Checks the fields of a create call.

  Args:
    values: fields of the form or of the JSON body, without inputs.
    models: names of the models; the first is the default.
    max_steps: most solver steps.

  Raises:
    ApiError: 400, with the field.
  """
  check_names(values, (*OPENAI, *OWN))
  model = values.get('model')
  model = models[0] if model in (None, '') else text('model', model, 8000)
  if model not in models:
    names = ', '.join(models)
    raise bad_field(
      'model', f'Unknown model; expected one of {names}.', 'model_not_found'
    )
  settings = {}
  for name in OWN:
    value = values.get(name)
    if value is not None and value != '':
      settings[name] = _convert(name, value, max_steps=max_steps)
  if values.get('seconds') not in (None, ''):
    seconds = number('seconds', values['seconds'])
    if not 0 < seconds <= LONGEST:
      raise bad_field(
        'seconds', f'seconds: expected more than 0, at most {LONGEST}.'
      )
    settings['seconds'] = seconds
  if values.get('size') not in (None, ''):
    size = text('size', values['size'], 20).lower()
    if not _SIZE.fullmatch(size):
      raise bad_field('size', 'size: expected WIDTHxHEIGHT, such as 64x64.')
    settings['size'] = size
  prompt = prompt_text(values.get('prompt'))
  if 'prompt_schedule' in settings:
    if 'seconds' not in settings:
      raise bad_field(
        'prompt_schedule',
        'prompt_schedule: expected `seconds` too, the length of the video.',
      )
    prompt = settings['prompt_schedule']
  if not prompt:
    raise bad_field('prompt', 'prompt: expected a text.', 'missing')
  return Fields(prompt, model, settings)


def check_names(values: Mapping[str, Any], known: tuple[str, ...]) -> None:
  """Refuses fields that a request does not have.

  Raises:
    ApiError: it names the field.
  """
  for name in values:
    if name not in known:
      raise bad_field(name[:80], f'Unknown field {name[:80]!r}.', 'unknown')


def prompt_text(value, name: str = 'prompt') -> str:
  """A prompt of printable characters, stripped; '' if there is none."""
  return '' if value is None else text(name, value, PROMPT_CHARACTERS)


def text(name: str, value, length: int) -> str:
  """A string without control characters, stripped.

  Raises:
    ApiError: not a string, too long, or not Unicode.
  """
  if not isinstance(value, str):
    raise bad_field(name, f'{name}: expected a text.', 'invalid_type')
  if len(value) > length:
    raise bad_field(name, f'{name}: expected at most {length} characters.')
  try:
    value.encode()
  except UnicodeEncodeError as e:
    raise bad_field(name, f'{name}: expected valid Unicode.') from e
  kept = (c if c.isprintable() or c.isspace() else ' ' for c in value)
  return ''.join(kept).strip()


def number(
  name: str,
  value,
  kind: type = float,
  *,
  between: tuple[int, int] = (-(10**9), 10**9),
) -> Any:
  """A finite number, from JSON or from the text of a form.

  Args:
    name: the field, for messages.
    value: a number or a text.
    kind: int or float.
    between: the least and the greatest number.

  Raises:
    ApiError: not a number, or out of the field's range.
  """
  noun = 'a whole number' if kind is int else 'a number'
  error = bad_field(name, f'{name}: expected {noun}.', 'invalid_type')
  if isinstance(value, bool) or not isinstance(value, (int, float, str)):
    raise error
  if isinstance(value, str):
    value = value[:41].strip()
    if len(value) > 40 or not _NUMBER.fullmatch(value):
      raise error
  try:
    result = float(value)
  except (ValueError, OverflowError) as e:
    raise error from e
  if not math.isfinite(result):
    raise error
  if kind is int:
    if result != int(result):
      raise error
    result = int(result)
  low, high = between
  if not low <= result <= high:
    raise bad_field(name, f'{name}: expected {low} to {high}.')
  return result


def flag(name: str, value) -> bool:
  """A boolean, from JSON or from the text of a form."""
  if value in (True, 'true', '1'):
    return True
  if value in (False, 'false', '0'):
    return False
  raise bad_field(name, f'{name}: expected true or false.', 'invalid_type')


def _convert(name: str, value, *, max_steps: int) -> Any:
  if name == 'attest':
    return flag(name, value)
  if name in CHOICES:
    choice = text(name, value, 100)
    if choice not in CHOICES[name]:
      names = ', '.join(CHOICES[name])
      raise bad_field(name, f'{name}: expected one of {names}.')
    return choice
  if name == 'prompt_schedule' and isinstance(value, list):
    return _schedule(value)
  if name == 'image_at' and isinstance(value, int):
    value = str(value)
  kind = _KINDS.get(name, str)
  if kind is str:
    return text(name, value, TEXT.get(name, 100))
  if name == 'steps':
    return number(name, value, kind, between=(1, max_steps))
  return number(name, value, kind, **_between(name))


def _between(name: str) -> dict[str, tuple[int, int]]:
  return {'between': RANGES[name]} if name in RANGES else {}


def _schedule(pairs: list) -> str:
  """'0: PROMPT; 10: PROMPT' of [[0, PROMPT], [10, PROMPT]]."""
  name, parts = 'prompt_schedule', []
  if not 0 < len(pairs) <= MOST_PAIRS:
    raise bad_field(name, f'{name}: expected 1 to {MOST_PAIRS} prompts.')
  for pair in pairs:
    if not isinstance(pair, list) or len(pair) != 2:
      raise bad_field(name, f'{name}: expected [seconds, prompt] pairs.')
    seconds = number(name, pair[0], between=(0, LONGEST))
    prompt = text(name, pair[1], PROMPT_CHARACTERS)
    if _NEXT.search(prompt):
      raise bad_field(name, f'{name}: expected no "; NUMBER:" in a prompt.')
    parts.append(f'{seconds:.4f}: {prompt}')
  return text(name, '; '.join(parts), TEXT[name])


def schema(*, required: tuple[str, ...], inputs: tuple[str, ...]) -> dict:
  """The JSON schema of a request's body, for the OpenAPI document.

  Args:
    required: fields that must be there.
    inputs: names of inputs, each a file, an id or a data URL.
  """
  helps = {
    field.name: field.metadata.get('help', '')
    for cls in (Request, SamplingSettings)
    for field in dataclasses.fields(cls)
  }
  properties: dict[str, Any] = {
    'prompt': {'type': 'string', 'maxLength': PROMPT_CHARACTERS},
    'model': {'type': 'string'},
    'seconds': {'anyOf': [{'type': 'string'}, {'type': 'number'}]},
    'size': {'type': 'string', 'pattern': f'^{_SIZE.pattern}$'},
  }
  for name in OWN:
    kind = _KINDS.get(name, str)
    entry = {'type': {int: 'integer', float: 'number'}.get(kind, 'string')}
    if name in CHOICES:
      entry['enum'] = list(CHOICES[name])
    if name in RANGES:
      entry |= dict(zip(('minimum', 'maximum'), RANGES[name], strict=True))
    if helps.get(name):
      entry['description'] = helps[name]
    properties[name] = entry
  properties['attest'] = {
    'type': 'boolean',
    'description': 'The uploads are yours, or the people in them consent.',
  }
  for name in inputs:
    properties[name] = {
      'type': 'object',
      'properties': {
        'id': {'type': 'string'},
        'file_id': {'type': 'string'},
        'image_url': {'type': 'string', 'description': 'A data: URL.'},
      },
    }
  for name, video in MANIFESTS.items():
    if video in inputs:
      properties[name] = {
        'type': 'string',
        'description': f'Manifest (C2PA) of {video}, if that is an uploaded '
        'WebM: a file or a data: URL.',
      }
  return {
    'type': 'object',
    'properties': properties,
    'required': list(required),
    'additionalProperties': False,
  }


def from_setting_error(name: str, message: str) -> ApiError:
  """The answer to a setting that the model refuses."""
  renamed = {own: field for field, own in INPUTS.items()}
  renamed |= {'width': 'size', 'height': 'size'}
  name = name.split('.')[-1]
  for field, own in INPUTS.items():  # settings that the message mentions
    message = message.replace(f'`{own}`', f'`{field}`')
  return bad_field(renamed.get(name, name) or None, message)
