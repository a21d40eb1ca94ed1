"""Source 'digits': clips of the built-in digits world, with their captions."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable

from spacetime.data.clip_list import ClipList
from spacetime.data.settings import DataConfig
from spacetime.data.splits import Splits, Vocabulary, first_captions

HAS_LATENTS = False
HAS_MIXED_SIZES = True
HAS_FILES = False


def open_splits(
  data: DataConfig,
  *,
  seed: int,
  embedded: bool = False,
  recorded: ClipList | None = None,
) -> Splits:
  """Renders the missing clips, or opens clips that are rendered when read."""
  del embedded, recorded  # captions are text, and the config names the clips
  if data.render == 'live':
    # Rendering imports SciPy and scikit-learn, which sampling never needs.
    from spacetime.data.digits import examples

    train = examples.LiveExamples(data.world, 'train', data.clips, seed)
    held_out = examples.LiveExamples(
      data.world, 'validation', data.held_out_clips, seed
    )
  else:
    from spacetime.data.digits import examples, tfds

    path = tfds.prepare(
      data.dir,
      world=data.world,
      train=data.clips,
      validation=data.held_out_clips,
      compositions=data.held_out_clips,
      seed=seed,
    )
    clip_size = functools.partial(
      examples.clip_size, world=data.world, split='train', seed=seed
    )
    train = tfds.source(path, 'train', clip_size=clip_size)
    held_out = tfds.source(path, 'validation')
  return Splits(
    train, held_out, first_captions(train), identity(data, seed=seed)
  )


def identity(data: DataConfig, *, seed: int) -> str:
  """Fingerprint of the list of clips of a config."""
  parts = [repr(dataclasses.replace(data, dir='')), str(seed)]
  parts += [repr(part) for part in (data.mixed, data.world.legs) if part]
  return hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:16]


def stage_reader(data: DataConfig, records) -> Callable:
  """Draws clips of training stages: framings of random scenes."""
  del records  # scenes are drawn by the stage
  from spacetime.data.digits import framing

  return framing.StageReader(data.world)


def prompt_grammar(data: DataConfig) -> Callable[[str], str]:
  """Completes short prompts within the grammar of the captions."""
  from spacetime.data.digits import expansion

  return functools.partial(expansion.expand, world=data.world)


def prompt_vocabulary(data: DataConfig) -> Vocabulary:
  """The words of the grammar of the captions."""
  del data
  from spacetime.data.digits import grammar

  return Vocabulary('moving digits', grammar.EXAMPLE, grammar.words())
