"""The words that are asked for: prompts, files of them, their features."""

import pathlib
from typing import Protocol

from spacetime.checkpoint import load
from spacetime.pipeline import prompt_cleaning, prompt_embeds_files
from spacetime.pipeline import prompt_embeds as prompt_embeds_lib


class Asked(Protocol):
  """The flags that are read here, by their names."""

  prompt: str | None
  prompts_file: str | None
  prompt_embeds: str | None
  negative_prompt: str
  expand_prompt: str | None
  num: int


def wanted(request: Asked) -> tuple[list[str], dict | None]:
  """What is wanted, at least one, and the arrays of --prompt_embeds.

  Raises:
    ValueError: none of the flags, two of them, or nothing in them.
  """
  sources = (request.prompt, request.prompts_file, request.prompt_embeds)
  if sum(source is not None for source in sources) != 1:
    raise ValueError(
      'expected one of --prompt, --prompts_file and --prompt_embeds'
    )
  if request.prompt is not None:
    if not request.prompt.strip():
      raise ValueError('prompt is empty; expected what the video shows')
    return [request.prompt], None
  if request.prompts_file is not None:
    return _lines(pathlib.Path(request.prompts_file)), None
  if request.expand_prompt:
    raise ValueError(
      f'--expand_prompt={request.expand_prompt}: expected --prompt or '
      '--prompts_file; the features of --prompt_embeds have no words'
    )
  try:
    found = prompt_embeds_files.read(request.prompt_embeds)
  except ValueError as e:
    raise ValueError(f'--prompt_embeds: {e}') from e
  name = pathlib.Path(request.prompt_embeds).name
  return [
    f'{name}[{i}]' for i in range(len(found[prompt_embeds_files.TEXT]))
  ], found


def _lines(path: pathlib.Path) -> list[str]:
  if not path.is_file():
    raise ValueError(f'--prompts_file={path}: no such file')
  try:
    lines = [line.strip() for line in path.read_text('utf-8').splitlines()]
  except UnicodeDecodeError as e:
    raise ValueError(f'--prompts_file={path}: not UTF-8 text ({e})') from e
  found = [line for line in lines if line]
  if not found:
    raise ValueError(f'--prompts_file={path}: expected a prompt on each line')
  return found


def prompt(model: load.Opened, prompt: str) -> str:
  """A prompt as the model takes it.

  Raises:
    ValueError: it is empty or too long.
  """
  if not prompt_embeds_lib.is_published(model):
    length = model.networks.text_length
    return model.tokenizer.check_prompt(prompt, length=length)
  if not prompt_cleaning.clean(prompt):
    raise ValueError('prompt is empty; expected what the video shows')
  return prompt.strip()


def negative(request: Asked, model, given, *, guided: bool) -> str | None:
  """What is to be encoded to steer away from, if anything is.

  Raises:
    ValueError: it is too long, or told twice.
  """
  if given and given.negative:
    if request.negative_prompt:
      raise ValueError(
        f'--negative_prompt and {prompt_embeds_files.NEGATIVE} in '
        f'{request.prompt_embeds}: expected one of them'
      )
    return None
  if not prompt_embeds_lib.is_published(model):
    try:
      prompt_embeds_lib.check(model, request.negative_prompt)
    except ValueError as e:
      raise ValueError(f'--negative_prompt: {e}') from e
  return request.negative_prompt if guided else None


def given(request: Asked, model, found: dict) -> prompt_embeds_lib.Texts:
  """The features of --prompt_embeds for each clip.

  Raises:
    ValueError: of other sizes than the model's.
  """
  rows, width = model.networks.text_length, model.networks.text.width
  count = len(found[prompt_embeds_files.TEXT])
  for name, array in found.items():
    fits = array.shape[1] <= rows and array.shape[2] == width
    counts = (count,) if name == prompt_embeds_files.TEXT else (1, count)
    if not fits or len(array) not in counts:
      raise ValueError(
        f'--prompt_embeds={request.prompt_embeds}: {name} {array.shape}: '
        f'expected ({" or ".join(map(str, counts))}, at most {rows}, {width}), '
        'as the text encoder of --checkpoint gives them'
      )
  away = found.get(prompt_embeds_files.NEGATIVE, ())
  return prompt_embeds_lib.Texts(
    tuple(
      row for row in found[prompt_embeds_files.TEXT] for _ in range(request.num)
    ),
    tuple(
      away[i % len(away)]
      for i in range(count if len(away) else 0)
      for _ in range(request.num)
    ),
  )
