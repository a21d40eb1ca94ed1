"""Close-ups of one character: a small task on which training is compared.

What a curriculum begins with (experiments/digits_stages.py): one frame of 32x32
pixels, 16 tokens of latents, the character in the middle. Digits can be read
after minutes of one core.
"""

import functools
import math
import pathlib
from collections.abc import Mapping

import jax
import ml_collections
import numpy as np

from experiments import digits, digits_stages
from spacetime.config import parse
from spacetime.data import stages
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.data.digits import captions, framing
from spacetime.data.digits import world as world_lib
from spacetime.media import contact_sheet
from spacetime.models import flops
from spacetime.training import caption_probe, losses, sheets, tasks

CLIPS = 64  # of a batch
HELD_OUT, SAMPLED, SHOWN = 256, 64, 12
DROPOUT = 0.1  # of captions


def get_config(changes: Mapping) -> ml_collections.ConfigDict:
  """The config of `digits:cpu` with one stage, and some keys changed."""
  config = digits.get_config('cpu')
  config.data.stages = [
    dict(
      steps=1,
      tokens=16 * CLIPS,
      mix=[digits_stages.centred()],
      shift=4 / 3,
      cond=0.0,
    )
  ]
  config.optimizer.warmup = 20
  config.update_from_flattened_dict(dict(changes))
  return config


class Draw:
  """Batches of close-ups: each hangs on the seed and its number alone.

  Args:
    run: checked, of a config of `get_config`.
    tokenizer: of captions.
    seed: of the clips.
    caption: (rng, scene, caption) -> caption; None leaves captions as they are.
    clips: of a batch.
  """

  def __init__(
    self, run, tokenizer, *, seed: int, caption=None, clips: int = CLIPS
  ):
    self._run, self._tokenizer = run, tokenizer
    self._caption, self._seed, self._clips = caption, seed, clips
    self._read = framing.StageReader(run.experiment.data.world)
    self._kind = run.experiment.data.stages[0].mix[0]

  def __call__(self, number: int) -> dict:
    frames, tokens = [], []
    rng = np.random.default_rng([self._seed, number % 2**32])
    for _ in range(self._clips):
      record = self._read(rng, self._kind, self._kind.draw(rng))
      # Drawn in any case: the same clips whatever the captions.
      choice = np.random.default_rng(rng.integers(2**32))
      dropped = choice.random() < DROPOUT
      scene = world_lib.from_json(record['scene'])
      caption = record['caption']
      if self._caption:
        caption = self._caption(choice, scene, caption)
      tokens.append(
        encode(self._run, self._tokenizer, '' if dropped else caption)
      )
      frames.append(record['video'])
    shift = self._run.experiment.data.stages[0].shift
    return {
      'frames': np.stack(frames),
      'tokens': np.stack(tokens),
      'shift': np.full(self._clips, shift, np.float32),
      'cond': np.zeros(self._clips, np.float32),
    }


def encode(run, tokenizer, text: str) -> np.ndarray:
  """Tokens of a caption, cut to the text's length."""
  return tokenizer.encode_cut(text, length=run.nets.text_length)[0]


def get_tokenizer(run, out: pathlib.Path) -> tokenizer_lib.Tokenizer:
  """The tokenizer that all runs share, trained once."""
  path = out / 'tokenizer.model'
  if not path.exists():
    data = run.experiment.data
    splits = data.source.open_splits(data, seed=0, embedded=False)
    size = run.experiment.text.encoder.vocab_size
    trained = tokenizer_lib.train(splits.captions, vocab_size=size)
    path.write_bytes(trained.serialized)
  return tokenizer_lib.Tokenizer.load(path)


def base_loss(run) -> losses.DiffusionLoss:
  """The loss of the base, as tasks.diffusion_task makes it."""
  return losses.DiffusionLoss(
    encode=run.nets.encode,
    embed=run.nets.embed,
    transform=run.nets.transform,
    flow=run.experiment.flow,
    conditioning=run.experiment.conditioning,
    patch=run.nets.dit.config.patch,
    stride=run.nets.autoencoder.stride[0],
  )


def training_flops(run, clips: int = CLIPS) -> dict[str, float]:
  """FLOPs of a training step on so many clips, of the text encoder's part of
  it, and of the forward pass of one block on them."""
  nets, text = run.nets, run.experiment.text.encoder
  length = nets.text_length
  kind = run.experiment.data.stages[0].mix[0]
  grid = run.grid(kind.frames, kind.height, kind.width)
  inner = text.num_heads * text.d_kv
  words = text.num_layers * (
    2 * length * (4 * text.d_model * inner + 3 * text.d_model * text.d_ff)
    + 4 * length**2 * inner
  )
  return {
    'step': clips
    * (
      tasks.clip_flops(run.experiment, nets)(grid.grid) + flops.training(words)
    ),
    'text': clips * flops.training(words),
    'block': clips * block_flops(grid.tokens, length, nets.dit.config.width),
  }


def block_flops(tokens: int, text_tokens: int, width: int) -> float:
  """Forward FLOPs of one block on one clip, its MLP four times as wide."""
  return (
    2 * tokens * 14 * width**2
    + 4 * text_tokens * width**2
    + flops.attention(tokens=tokens, text_tokens=text_tokens, width=width)
  )


def held_out_clips(run, tokenizer) -> dict:
  """Close-ups of handwriting that no training has, with their captions."""
  data = run.experiment.data
  read = framing.StageReader(data.world, split='validation')
  source = stages.StageSource(data.stages[0], 0, (1.0,), read, 1_000_003)
  records = [source[i] for i in range(HELD_OUT)]
  scenes = [world_lib.from_json(record['scene']) for record in records]
  texts = [captions.canonical_caption(scene) for scene in scenes]
  return {
    'frames': np.stack([record['video'] for record in records]),
    'captions': texts,
    'scenes': [record['scene'] for record in records],
    'tokens': np.stack([encode(run, tokenizer, text) for text in texts]),
  }


def scorer(run, tokenizer, out: pathlib.Path):
  """Returns (params, name) -> (scores, clips): held-out loss, what a wrong word
  costs, and how sampled close-ups score, whose sheet is OUT/NAME.png."""
  held_out = held_out_clips(run, tokenizer)
  scenes = [world_lib.from_json(text) for text in held_out['scenes']]
  arrays = {name: held_out[name] for name in ('frames', 'tokens')}
  probe = caption_probe.prompts(
    scenes, functools.partial(encode, run, tokenizer)
  ) | {'frames': held_out['frames']}
  shown = parse.replace(
    run.experiment,
    {
      'data.stages': None,
      'data.packing': None,
      'data.frames': 1,
      'data.height': 32,
      'data.width': 32,
      'train.held_out': HELD_OUT,
      'train.scored_clips': SAMPLED,
    },
  )
  sample = sheets.sampled(shown, run.nets, held_out)
  measures = [(run.task.held_out, arrays), (run.task.probe, probe)]
  jitted = [(jax.jit(function), batch) for function, batch in measures]

  def call(params, name: str) -> dict:
    values = {}
    for function, batch in jitted:
      values |= jax.device_get(function(params, run.frozen, batch))
    clips, texts = sample(params, run.frozen)
    contact_sheet.write(out / f'{name}.png', clips[:SHOWN], texts[:SHOWN])
    values |= sheets.scores(clips, held_out['scenes'][: len(clips)])
    values = {
      name: round(float(value), 5)
      for name, value in values.items()
      if math.isfinite(float(value))
    }
    return values, clips

  return call
