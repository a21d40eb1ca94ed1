"""The clips and the tokenizer of a run: from a config to batches."""

import dataclasses
from typing import Any

import jax
import numpy as np

from spacetime.config import DataConfig
from spacetime.data import clips as folder_lib
from spacetime.data import digits_tfds, pipeline
from spacetime.data import tokenizer as tokenizer_lib

CAPTIONS = 5000  # enough to learn the pieces of the digits world's grammar
# Of the tokenizer where the config has no text: an autoencoder's stage.
MAX_LENGTH, VOCABULARY = 128, 512


@dataclasses.dataclass(frozen=True)
class Sources:
  """Records by split; see data/pipeline.py for what a record is."""

  train: Any
  held_out: Any


def open_sources(data: DataConfig, *, seed: int) -> Sources:
  """Opens the clips, rendering the digits first where they are not there."""
  world = data.world
  if data.name == 'digits':
    path = digits_tfds.prepare(
      data.dir,
      world=world,
      train=data.clips,
      validation=data.held_out_clips,
      compositions=data.held_out_clips,
      seed=seed,
    )
    return Sources(
      digits_tfds.source(path, 'train'), digits_tfds.source(path, 'validation')
    )
  source = folder_lib.ClipFolder(
    data.dir,
    frames=world.frames,
    height=world.height,
    width=world.width,
    fps=data.fps,
  )
  return Sources(source, source)


def train_tokenizer(source, *, vocab_size: int) -> tokenizer_lib.Tokenizer:
  """Learns pieces from the captions of the first records."""
  count = min(CAPTIONS, len(source))
  captions = (_text(source[i]['caption']) for i in range(count))
  return tokenizer_lib.train(captions, vocab_size=vocab_size)


def make_loader(data: DataConfig, source, tokenizer, *, length, seed):
  """This process's share of the batches."""
  world, processes = data.world, jax.process_count()
  return pipeline.make_loader(
    source,
    tokenizer=tokenizer,
    text_length=length,
    batch_size=data.batch_size // processes,
    seed=seed,
    caption_dropout=data.caption_dropout,
    size=(world.frames, world.height, world.width),
    crop=data.crop,
    process_index=jax.process_index(),
    process_count=processes,
  )


def held_out_batch(source, tokenizer, *, count: int, length: int) -> dict:
  """The first clips of the held-out split, whole and with their captions."""
  records = [source[i] for i in range(min(count, len(source)))]
  captions = [_text(r['caption']) for r in records]
  return {
    'frames': np.stack([r['video'] for r in records]),
    'tokens': np.stack([tokenizer.encode(c, length=length) for c in captions]),
    'captions': captions,
  }


def first(source, count: int) -> np.ndarray:
  """The first clips of a source, uint8 (B, F, H, W, 3)."""
  return np.stack([source[i]['video'] for i in range(min(count, len(source)))])


def _text(caption: str | bytes) -> str:
  return caption.decode() if isinstance(caption, bytes) else caption
