"""Prompts told at length before they are sampled: --expand_prompt.

An expander is a function of a prompt to a longer one: the grammar of the digits
world, or a chat endpoint.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from absl import logging

from spacetime.checkpoint import load
from spacetime.data import chat_endpoint
from spacetime.pipeline import prompts as prompts_lib

GRAMMAR = 'grammar'
SYSTEM = (
  'You write prompts for a text-to-video model. Tell the prompt that you are '
  'given again, longer and in plain sentences: each thing and how it looks, '
  'where it is, how it moves, the background, the camera. Keep all that it '
  'says and contradict none of it. Use at most {words} words. Answer with the '
  'prompt alone.'
)


class Asked(Protocol):
  """The flags that are read here, by their names."""

  expand_prompt: str | None
  expand_model: str
  expand_timeout: float


def expander(request: Asked, model: load.Opened) -> Callable[[str], str] | None:
  """The expander of --expand_prompt; None where none is asked for.

  Raises:
    ValueError: neither 'grammar' nor a URL; a grammar that the model was not
      trained on; or no time to wait.
  """
  wanted = request.expand_prompt
  if not wanted:
    return None
  if wanted == GRAMMAR:
    data = model.experiment.data
    grammar = data.source.prompt_grammar(data)
    if grammar is None:
      raise ValueError(
        f"--expand_prompt=grammar: the model's data are {data.name!r}: the "
        'grammar is of the digits world; give the URL of a chat endpoint'
      )
    return grammar
  try:
    endpoint = chat_endpoint.Endpoint(
      wanted, request.expand_model, request.expand_timeout
    )
  except ValueError as e:
    raise ValueError(f"--expand_prompt: {e}, or 'grammar'") from e
  system = SYSTEM.format(words=max(16, model.networks.text_length // 2))
  return lambda prompt: endpoint.chat(system, prompt)


def expand(
  request: Asked, model: load.Opened, prompts: Sequence[str]
) -> list[str]:
  """Prompts as they are sampled.

  Where an endpoint does not answer, or with more than the encoder takes, the
  prompt stays as it is, with a warning.

  Raises:
    ValueError: see expander.
  """
  call = expander(request, model)
  if call is None:
    return list(prompts)
  found = {}
  for prompt in dict.fromkeys(prompts):
    try:
      found[prompt] = prompts_lib.prompt(model, call(prompt))
    except (chat_endpoint.EndpointError, ValueError) as e:
      logging.warning(
        '--expand_prompt: %s; going on with the prompt as it is: %s', e, prompt
      )
      found[prompt] = prompt
  return [found[prompt] for prompt in prompts]
