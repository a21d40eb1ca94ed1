"""Prompts of a request: files, expansion, cleaning and limits of length."""

import html
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from spacetime import SettingError, SettingWarning
from spacetime.data import caption_files, chat_endpoint, text_files
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.media import files
from spacetime.pipeline.engine import Engine
from spacetime.pipeline.request import Request, describe

GRAMMAR = 'grammar'
SYSTEM = (
  'You write prompts for a text-to-video model. Rewrite the prompt, longer and '
  'in plain sentences: describe each thing, how it looks, where it is, how it '
  'moves, the background and the camera. Keep everything that the prompt says '
  'and contradict none of it. Use at most {words} words. Answer with the '
  'prompt only.'
)
MOST_WORDS = 5  # of a prompt that a warning lists
DESCRIPTION = 'text that describes the video'


def read(request: Request) -> list[str] | None:
  """The prompts of `prompt` or `prompts_file`; None with `prompt_embeds`.

  Raises:
    SettingError: none of the three settings, two of them, or no text.
  """
  sources = ('prompt', 'prompts_file', 'prompt_embeds')
  present = [name for name in sources if getattr(request, name) is not None]
  if len(present) > 1:
    name = present[-1]
    raise SettingError(
      name,
      describe(getattr(request, name)),
      f'none beside `{present[0]}`: prompts come from one place',
    )
  if not present:
    raise SettingError(
      'prompt', None, 'one of `prompt`, `prompts_file` and `prompt_embeds`'
    )
  if request.prompt is not None:
    prompts = request.prompt
    prompts = [prompts] if isinstance(prompts, str) else prompts
    valid = isinstance(prompts, Sequence) and len(prompts)
    if not valid or not all(map(_is_text, prompts)):
      raise SettingError('prompt', describe(request.prompt), DESCRIPTION)
    return list(prompts)
  if request.prompts_file is not None:
    return _read_lines(request.prompts_file)
  if request.expand_prompt:
    raise SettingError(
      'expand_prompt',
      request.expand_prompt,
      '`prompt` or `prompts_file`, since embeddings have no words',
    )
  return None


def _is_text(prompt) -> bool:
  """Whether a prompt is a text of UTF-8 that can be seen."""
  if not isinstance(prompt, str) or text_files.is_blank(prompt):
    return False
  try:
    prompt.encode()
  except UnicodeEncodeError:  # bytes of another encoding, on a command line
    return False
  return True


def _read_lines(path: str) -> list[str]:
  file = files.local_copy(path)
  if not file.is_file():
    raise SettingError('prompts_file', path, 'a file that exists')
  if file.suffix.lower() in caption_files.FORMATS:
    raise SettingError(
      'prompts_file',
      path,
      f'a text with a prompt on each line, not {file.suffix}',
    )
  try:
    text = text_files.read(file)
  except ValueError as e:
    raise SettingError('prompts_file', path, 'UTF-8 text', hint=str(e)) from e
  lines = [line.strip() for line in text_files.lines(text)]
  prompts = [line for line in lines if not text_files.is_blank(line)]
  if not prompts:
    raise SettingError('prompts_file', path, 'a prompt on each line')
  return prompts


def check(engine: Engine, prompt: str) -> str:
  """Checks a prompt and returns it stripped.

  Raises:
    ValueError: the prompt is empty or too long.
  """
  if engine.published is None:
    return engine.model.tokenizer.check_prompt(
      prompt, length=engine.networks.text_length
    )
  if not clean(prompt):
    raise SettingError('prompt', prompt, DESCRIPTION)
  return prompt.strip()


def check_negative(engine: Engine, prompt: str) -> None:
  """Refuses a negative prompt that is too long.

  Raises:
    SettingError: the prompt is too long.
  """
  if engine.published is None:
    try:
      tokens(engine, prompt)
    except ValueError as e:
      raise SettingError(
        'negative_prompt', prompt[:40], 'a shorter text', hint=str(e)
      ) from e


def warn_of_words(engine: Engine, prompts: Sequence[str]) -> None:
  """Warns of prompts with words that no caption of a closed world has."""
  vocabulary = engine.data.source.prompt_vocabulary(engine.data)
  if vocabulary is None:
    return
  outside = {}
  for prompt in prompts:
    words = vocabulary.unknown(prompt)
    if words or not vocabulary.known(prompt):
      outside[prompt] = words
  if not outside:
    return
  prompt, words = next(iter(outside.items()))
  more = f'{len(outside)} of {len(prompts)} prompts; ' * (len(prompts) > 1)
  more_words = ', ...' * (len(words) > MOST_WORDS)
  listed = f'{", ".join(words[:MOST_WORDS])}{more_words}' if words else 'this'
  warnings.warn(
    SettingWarning(
      'prompt',
      f'{prompt[:57]}...' if len(prompt) > 60 else prompt,
      f'{more}the model knows {vocabulary.subject}, as in '
      f'{vocabulary.example!r}; no caption of its training has {listed}',
    ),
    stacklevel=2,
  )


# -- cleaning and tokens ------------------------------------------------------


def clean(text: str) -> str:
  """Repairs broken characters, decodes HTML entities and merges spaces.

  Source: diffusers 0.42.1, prompt_clean of the Wan pipelines.
  """
  # Nothing of it is broken, and the import takes as long as a step of sampling.
  if not (text.isascii() and text.isprintable() and '&' not in text):
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
  return ' '.join(text.split())


def tokens(engine: Engine, text: str) -> np.ndarray:
  """Tokens of a text as the model reads it, int32 (S,).

  Raises:
    ValueError: the text is too long for a model of this package; for a
      published model it is truncated with a warning, as in its pipeline.
  """
  length, tokenizer = engine.networks.text_length, engine.model.tokenizer
  if engine.published is None:
    return tokenizer.encode(text, length=length)
  return cut_tokens(tokenizer, clean(text), length=length)


def cut_tokens(
  tokenizer: tokenizer_lib.Tokenizer, text: str, *, length: int
) -> np.ndarray:
  """Tokens of a cleaned text, int32 (length,), truncated with a warning.

  The published models were trained on texts that were truncated like this.
  """
  tokens_S, cut = tokenizer.encode_cut(text, length=length)
  if cut:
    logging.warning(
      'prompt has %d tokens, of which the last %d are cut: the model takes at '
      'most %d: %r',
      length - 1 + cut,
      cut,
      length - 1,
      text[:57] + '...',
    )
  return tokens_S


# -- expansion -----------------------------------------------------------------


def expander(request: Request, engine: Engine) -> Callable[[str], str] | None:
  """The function that expands a prompt; None without `expand_prompt`.

  Raises:
    SettingError: neither 'grammar' nor a URL; a grammar that the model was not
      trained on; or a timeout that is not positive.
  """
  value = request.expand_prompt
  if not value:
    return None
  if value == GRAMMAR:
    data = engine.data
    grammar = data.source.prompt_grammar(data)
    if grammar is None:
      raise SettingError(
        'expand_prompt',
        value,
        f"the URL of a chat endpoint, since the model's data are "
        f'{data.name!r}, which have no grammar',
      )
    return grammar
  try:
    endpoint = chat_endpoint.Endpoint(
      value, request.expand_model, request.expand_timeout
    )
  except ValueError as e:
    raise SettingError(
      'expand_prompt',
      value,
      "the URL of a chat endpoint, or 'grammar'",
      hint=str(e),
    ) from e
  words = max(16, engine.networks.text_length // 2)
  system = SYSTEM.format(words=words)
  return lambda prompt: endpoint.chat(system, prompt)


def expand(
  request: Request, engine: Engine, prompts: Sequence[str]
) -> list[str]:
  """Expands each distinct prompt once.

  If the endpoint does not answer, or its answer is too long for the encoder,
  the prompt is unchanged, with a warning.

  Raises:
    SettingError: see expander.
  """
  call = expander(request, engine)
  if call is None:
    return list(prompts)
  expanded = {}
  for prompt in dict.fromkeys(prompts):
    try:
      expanded[prompt] = check(engine, call(prompt))
    except (chat_endpoint.EndpointError, ValueError) as e:
      logging.warning(
        'expand_prompt: %s; continuing with the original prompt: %s', e, prompt
      )
      expanded[prompt] = prompt
  return [expanded[prompt] for prompt in prompts]
