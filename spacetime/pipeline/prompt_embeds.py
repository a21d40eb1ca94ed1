"""From prompts to the features that the transformer attends to, on the host.

The text encoder of a published model is four times its transformer: it is read
when a prompt has to be encoded, and freed before anything else is read.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from spacetime.checkpoint import load
from spacetime.pipeline import prompt_cleaning, prompt_embeds_files

Model = load.Model | load.Opened


@dataclasses.dataclass(frozen=True)
class Texts:
  """Features of every clip's text, (S, Y) each; rows past the text left out.

  Attributes:
    text: what each clip shows.
    negative: what each clip steers away from; () without guidance.
  """

  text: tuple[np.ndarray, ...]
  negative: tuple[np.ndarray, ...] = ()

  def repeated(self, times: int) -> 'Texts':
    """Each clip's so many times, one after another."""
    return Texts(
      *(
        tuple(one_SY for one_SY in texts for _ in range(times))
        for texts in (self.text, self.negative)
      )
    )


def is_published(model: Model) -> bool:
  """Whether prompts are read as the published pipelines read them."""
  return bool(model.experiment.published)


def check(model: Model, text: str) -> np.ndarray:
  """Tokens of a text as the model reads it, int32 (S,).

  Raises:
    ValueError: it is too long for a model of our own; for a published one it
      is cut with a warning, as its pipeline does.
  """
  length = model.networks.text_length
  if is_published(model):
    return prompt_cleaning.tokens(
      model.tokenizer, prompt_cleaning.clean(text), length=length
    )
  return model.tokenizer.encode(text, length=length)


def encode(
  model: Model,
  texts: Sequence[str],
  *,
  cache: prompt_embeds_files.Cache | None = None,
) -> list[np.ndarray]:
  """Features of texts, (S, Y) each, in the dtype that the encoder computes in.

  Each text is encoded alone, so that its features do not depend on others.

  Args:
    model: whose encoder is read if a text is not in the cache, and let go.
    texts: any number of any texts.
    cache: of features on disk; for published models alone.
  """
  nets = model.networks
  tokens = {text: check(model, text) for text in dict.fromkeys(texts)}
  found, keys = {}, {}
  if cache and is_published(model):
    for text in tokens:
      keys[text] = prompt_embeds_files.key(
        prompt_cleaning.clean(text),
        encoder=f'{model.text_hash} {model.text_stamp}',
        length=nets.text_length,
        dtype=nets.text.config.dtype,
      )
      cached_SY = cache.get(keys[text], width=nets.text.width)
      if cached_SY is not None:
        found[text] = cached_SY
  missing = [text for text in tokens if text not in found]
  if missing:
    params, embed = {'text': model.read('text')}, jax.jit(nets.embed)
    for text in missing:
      text_BSY = np.asarray(embed(params, tokens[text][None]))
      found[text] = text_BSY[0, : np.count_nonzero(tokens[text])]
      if text in keys:
        cache.put(keys[text], found[text])
  return [found[text] for text in texts]


def from_prompts(
  model: Model,
  wanted: Sequence[str],
  *,
  negative: str | None,
  given: Texts | None = None,
  cache: prompt_embeds_files.Cache | None = None,
) -> Texts:
  """The features of each clip's text.

  Args:
    model: see encode.
    wanted: a prompt for each clip.
    negative: what all steer away from; None without guidance.
    given: features to take instead of those of the prompts.
    cache: see encode.
  """
  away = [] if negative is None else [negative]
  if given:
    found = encode(model, away, cache=cache)
    return Texts(given.text, tuple(found) * len(wanted) or given.negative)
  found = encode(model, [*wanted, *away], cache=cache)
  text = tuple(found[: len(wanted)])
  return Texts(text, tuple(found[len(wanted) :]) * len(wanted))


def batch(rows: Sequence[np.ndarray], *, length: int) -> np.ndarray:
  """Features of some clips, text_BSY, with rows of zeros up to `length`."""
  width = rows[0].shape[1]
  text_BSY = np.zeros((len(rows), length, width), rows[0].dtype)
  for row, text_SY in zip(text_BSY, rows, strict=True):
    row[: len(text_SY)] = text_SY
  return text_BSY
