"""Computes the latents and texts of clips once, for training.

  python -m spacetime.encode --checkpoint=WAN --data=DIR --out=CACHE
  python -m spacetime.encode --checkpoint=digits_autoencoder \\
    --config=experiments/digits.py:latent --out=CACHE

--checkpoint is what encodes: a published folder, a text-to-video model or an
autoencoder. --data is a folder of clips with captions; --config takes the clips
of an experiment. Training reads the cache with --config.data.name=cache
--config.data.dir=CACHE. Run again, it goes on after the last whole shard.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
import tqdm
from absl import flags
from ml_collections import config_flags

from spacetime import clips, command, encoders, geometry, texts
from spacetime import config as config_lib
from spacetime.data import cache
from spacetime.data import world as world_lib
from spacetime.models import streaming
from spacetime.pixels import to_video

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', None, 'What encodes: a folder, or a bundled model by name.'
)
_DATA = flags.DEFINE_string('data', None, 'A folder of clips with captions.')
_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'An experiment, whose clips are taken.'
)
_OUT = flags.DEFINE_string('out', None, 'The folder of the cache.')
_TEXT = flags.DEFINE_enum(
  'text',
  None,
  ['embeddings', 'captions'],
  'What is kept of the captions: embeddings, for text.kind=frozen, where '
  '--checkpoint has a text encoder; captions alone, for text.kind=trained.',
)
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', sorted(cache.DTYPES), 'Of latents and embeddings.'
)
_FRAMES = flags.DEFINE_integer(
  'frames', None, 'Frames of a clip; as --checkpoint was made for if not set.'
)
_HEIGHT = flags.DEFINE_integer('height', None, 'Rows, likewise.')
_WIDTH = flags.DEFINE_integer('width', None, 'Columns, likewise.')
_FPS = flags.DEFINE_float('fps', None, 'Frames a second, likewise.')
_BATCH = flags.DEFINE_integer('batch', 1, 'Clips that are encoded at once.')
_SHARD = flags.DEFINE_integer('shard', 64, 'Clips in a file of the cache.')


def main() -> None:
  """Flags -> a cache."""
  if not _CHECKPOINT.value or not _OUT.value:
    raise ValueError('--checkpoint and --out: expected both; see --help')
  if (_DATA.value is None) == (_CONFIG.value is None):
    raise ValueError('expected one of --data and --config')
  if _BATCH.value < 1:
    raise ValueError(f'--batch={_BATCH.value}: expected 1 or more')
  found = encoders.open_encoder(_CHECKPOINT.value)
  data, seed = clips_section(found)
  run(
    found,
    data,
    _OUT.value,
    seed=seed,
    text=_TEXT.value,
    dtype=_DTYPE.value,
    batch=_BATCH.value,
    shard=_SHARD.value,
  )
  print(f'{_OUT.value}: written')


def run(
  found: encoders.Encoder,
  data: config_lib.DataConfig,
  out,
  *,
  seed: int = 0,
  text: str | None = None,
  dtype: str = 'float32',
  batch: int = 1,
  shard: int = 64,
) -> None:
  """Writes what is not there of a cache.

  Args:
    found: what encodes.
    data: the clips.
    out: the cache's folder, made if it is not there.
    seed: of the digits world.
    text: 'embeddings' or 'captions'; None embeds where there is an encoder.
    dtype: of latents and embeddings.
    batch: clips at once.
    shard: clips in a file.

  Raises:
    ValueError: clips or sizes that cannot be, or another cache there.
  """
  if data.name == 'cache':
    raise ValueError("data.name='cache': expected clips, 'digits' or 'folder'")
  if text == 'embeddings' and found.model is None:
    raise ValueError(
      '--text=embeddings: --checkpoint is an autoencoder, which has no text '
      'encoder: expected captions; change --text or --checkpoint'
    )
  model = None if text == 'captions' else found.model
  nets, world = model and model.networks, data.world
  grid = geometry.Geometry(
    world.frames, world.height, world.width, found.codec.stride, (1, 1, 1)
  )
  sources = clips.open_sources(data, seed=seed)
  about = cache.About(
    autoencoder=found.fingerprint,
    text=model.text_hash if model else '',
    frames=world.frames,
    height=world.height,
    width=world.width,
    fps=data.fps,
    latent=(*grid.latent, found.codec.z_dim),
    length=nets.text_length if nets else 0,
    features=nets.text.width if nets else 0,
    dtype=dtype,
    source=clips.identity(data, sources, seed=seed),
    counts=(len(sources.train), len(sources.held_out)),
    shard=shard,
  )
  tokenizer = model.tokenizer.serialized if model else None
  cache.begin(out, about, tokenizer=tokenizer)
  # The text encoder is let go before the autoencoder is read.
  write_texts(pathlib.Path(out), about, sources, model)
  write_latents(pathlib.Path(out), about, sources, found, batch=batch)


def write_texts(out, about: cache.About, sources: clips.Sources, model) -> None:
  """Writes the shards of captions, embedded if there is a model."""
  missing = cache.missing(out, about, 'text')
  empty = out / cache.EMPTY
  if not missing and (model is None or empty.is_file()):
    return
  if model is not None:
    # Read once for all shards, and gone with this function.
    params = model.read('text')
    model = dataclasses.replace(model, readers={'text': lambda: params})
    if not empty.is_file():
      cache.write_shard(empty, [embedded(model, [''], about)[0]])

  def records(split, numbers) -> Iterator[list[dict]]:
    source = getattr(sources, split)
    yield embedded(model, [clips.caption(source, i) for i in numbers], about)

  write(out, missing, records, name='text', total=sum(about.counts))


def embedded(model, captions: list[str], about: cache.About) -> list[dict]:
  """Records of captions, with their embeddings if there is a model."""
  if model is None:
    return [cache.text_record(caption) for caption in captions]
  dtype = cache.DTYPES[about.dtype]
  return [
    cache.text_record(caption, text_SY.astype(dtype))
    for caption, text_SY in zip(
      captions, texts.encode(model, captions), strict=True
    )
  ]


def write_latents(
  out, about: cache.About, sources, found: encoders.Encoder, *, batch: int
) -> None:
  """Writes the shards of latents."""
  missing = cache.missing(out, about, 'latents')
  if not missing:
    return
  params = found.read()
  first = jax.jit(found.codec.encode_first)
  step = jax.jit(found.codec.encode_step)

  def encode(frames_BFHWC):
    chunks = streaming.encode_chunks(
      found.codec, params, to_video(frames_BFHWC), first=first, step=step
    )
    z_Bfhwc = np.concatenate([np.asarray(chunk) for chunk in chunks], axis=1)
    return z_Bfhwc.astype(cache.DTYPES[about.dtype])

  def records(split, numbers) -> Iterator[list[dict]]:
    source = getattr(sources, split)
    for rows in parts(numbers, batch):
      frames = [source[i]['video'] for i in rows]
      # The last batch is filled up, so that one program serves all.
      filled = frames + frames[-1:] * (batch - len(frames))
      z_Bfhwc = encode(np.stack(filled))[: len(rows)]
      yield [{'latents': z_fhwc} for z_fhwc in z_Bfhwc]

  write(out, missing, records, name='latents', total=sum(about.counts))


def write(out, missing, records, *, name: str, total: int) -> None:
  """Writes the missing shards; a bar tells how far."""
  left = sum(len(numbers) for _, _, numbers in missing)
  with tqdm.tqdm(
    total=total, initial=total - left, desc=name, unit='clip'
  ) as bar:

    def told(split, numbers):
      for batch in records(split, numbers):
        yield from batch
        bar.update(len(batch))

    for split, file, numbers in missing:
      cache.write_shard(out / file, told(split, numbers))


def parts(numbers: range, size: int) -> list[range]:
  """Runs of at most `size`."""
  return [numbers[i : i + size] for i in range(0, len(numbers), size)]


def clips_section(
  found: encoders.Encoder,
) -> tuple[config_lib.DataConfig, int]:
  """The clips that the flags name, and the seed of the digits."""
  sizes = dict(zip(('frames', 'height', 'width'), found.size, strict=True))
  flagged = (_FRAMES.value, _HEIGHT.value, _WIDTH.value)
  changes = {
    name: value
    for name, value in zip(sizes, flagged, strict=True)
    if value is not None
  }
  if _CONFIG.value is not None:
    config = _CONFIG.value.copy_and_resolve_references()
    data, seed = config_lib.data(config), config.seed
  else:
    seed = 0
    data = config_lib.DataConfig(
      name='folder',
      dir=_DATA.value,
      clips=0,
      held_out_clips=0,
      world=world_lib.World(**sizes),
      batch_size=1,
      caption_dropout=0.0,
      crop=None,
      fps=found.fps,
    )
  world = dataclasses.replace(data.world, **changes)
  fps = data.fps if _FPS.value is None else _FPS.value
  return dataclasses.replace(data, world=world, fps=fps), seed


if __name__ == '__main__':
  command.run(main)
