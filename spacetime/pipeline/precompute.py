"""Precomputes what training does not change: latents and embeddings."""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm

from spacetime import SettingError, checkpoint, sharding
from spacetime.checkpoint import init_weights, load
from spacetime.checkpoint.interop import folders
from spacetime.checkpoint.locate import locate
from spacetime.config import networks
from spacetime.data import geometry, latent_cache
from spacetime.data.settings import DataConfig
from spacetime.data.splits import Splits
from spacetime.media.pixels import to_video
from spacetime.models.autoencoder import streaming
from spacetime.pipeline import prompt_embeds
from spacetime.pipeline.engine import Engine


@dataclasses.dataclass(frozen=True)
class Encoder:
  """Encoder of a cache: an autoencoder and, optionally, a text encoder.

  Attributes:
    fingerprint: of the autoencoder.
    autoencoder: video <-> latents.
    read: -> its parameters.
    model: that has a text encoder; None where there is none.
    size: (frames, height, width) of the training clips.
    fps: likewise.
  """

  fingerprint: str
  autoencoder: Any
  read: Callable[[], dict] = dataclasses.field(repr=False)
  model: load.Opened | None
  size: tuple[int, int, int]
  fps: float


def open_encoder(path: str) -> Encoder:
  """Opens a published folder, a text-to-video model or an autoencoder.

  Raises:
    ValueError: none of these, or damaged.
  """
  mesh = sharding.single_device_mesh()
  located = locate(path)
  folder = located.folder
  if located.is_published:
    model = load.open_published(folder, mesh=mesh)
    name = folders.open_part(folder, 'vae').fingerprint()
  else:
    experiment = checkpoint.read_experiment(folder)
    if experiment.stage == 'autoencoder':
      autoencoder = networks.autoencoder(experiment.autoencoder)
      name = checkpoint.weights_hash(folder)
      read = functools.partial(
        load.load_own, experiment.autoencoder, folder, mesh=mesh
      )
      data = experiment.data
      return Encoder(
        name,
        autoencoder,
        lambda: read()['autoencoder'],
        None,
        data.size,
        data.fps,
      )
    model = load.open_model(path, mesh=mesh)
    name = init_weights.fingerprint_of_autoencoder(experiment, beside=folder)
  return Encoder(
    name,
    model.networks.autoencoder,
    lambda: model.read('autoencoder'),
    model,
    model.experiment.data.size,
    model.experiment.data.fps,
  )


def encode(
  encoder: Encoder,
  data: DataConfig,
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
    encoder: of latents and captions.
    data: the clips.
    out: the cache's folder, created if missing.
    seed: of the digits world.
    text: 'embeddings' or 'captions'; None embeds where there is an encoder.
    dtype: of latents and embeddings.
    batch: clips at once.
    shard: clips in a file.

  Raises:
    ValueError: clips or sizes that cannot be, or another cache there.
  """
  if data.source.HAS_LATENTS:
    raise SettingError('data.name', data.name, 'a source of videos')
  if data.mixed is not None:
    raise ValueError(
      'data.mixed: expected None, since the latents of a cache are of one size'
    )
  if text == 'embeddings' and encoder.model is None:
    raise SettingError(
      'text',
      text,
      'captions, since an autoencoder as `checkpoint` has no text encoder',
    )
  model = None if text == 'captions' else encoder.model
  nets = model and model.networks
  grid = geometry.Geometry(*data.size, encoder.autoencoder.stride, (1, 1, 1))
  splits = data.source.open_splits(data, seed=seed)
  about = latent_cache.About(
    autoencoder=encoder.fingerprint,
    text=model.text_hash if model else '',
    frames=data.frames,
    height=data.height,
    width=data.width,
    fps=data.fps,
    latent=(*grid.latent, encoder.autoencoder.z_dim),
    length=nets.text_length if nets else 0,
    features=nets.text.width if nets else 0,
    dtype=dtype,
    source=splits.identity,
    counts=(len(splits.train), len(splits.held_out)),
    shard=shard,
  )
  tokenizer = model.tokenizer.serialized if model else None
  latent_cache.create(out, about, tokenizer=tokenizer)
  # The text encoder is let go before the autoencoder is read.
  write_texts(pathlib.Path(out), about, splits, model)
  write_latents(pathlib.Path(out), about, splits, encoder, batch=batch)


def write_texts(out, about: latent_cache.About, splits: Splits, model) -> None:
  """Writes the shards of captions, embedded if there is a model."""
  missing = latent_cache.missing(out, about, 'text')
  empty = out / latent_cache.EMPTY
  if not missing and (model is None or empty.is_file()):
    return
  engine = None
  if model is not None:
    # The text encoder is read once for all shards, and freed on return.
    engine = Engine(model, resident_bytes=sys.maxsize)
    if not empty.is_file():
      latent_cache.write_shard(empty, [embedded(engine, [''], about)[0]])

  def records(split, numbers) -> Iterator[list[dict]]:
    source = getattr(splits, split)
    yield embedded(engine, [source.caption(i) for i in numbers], about)

  write(out, missing, records, name='text', total=sum(about.counts))


def embedded(
  engine: Engine | None, captions: list[str], about: latent_cache.About
) -> list[dict]:
  """Records of captions, with their embeddings if there is an engine."""
  if engine is None:
    return [latent_cache.text_record(caption) for caption in captions]
  dtype = latent_cache.DTYPES[about.dtype]
  return [
    latent_cache.text_record(caption, text_SY.astype(dtype))
    for caption, text_SY in zip(
      captions, prompt_embeds.encode(engine, captions), strict=True
    )
  ]


def write_latents(
  out, about: latent_cache.About, splits, encoder: Encoder, *, batch: int
) -> None:
  """Writes the shards of latents."""
  missing = latent_cache.missing(out, about, 'latents')
  if not missing:
    return
  params = encoder.read()
  first = jax.jit(encoder.autoencoder.encode_first)
  step = jax.jit(encoder.autoencoder.encode_step)

  def latents(frames_BFHWC):
    chunks = streaming.encode_chunks(
      encoder.autoencoder,
      params,
      to_video(frames_BFHWC),
      first=first,
      step=step,
    )
    z_Bfhwc = np.concatenate([np.asarray(chunk) for chunk in chunks], axis=1)
    return z_Bfhwc.astype(latent_cache.DTYPES[about.dtype])

  def records(split, numbers) -> Iterator[list[dict]]:
    source = getattr(splits, split)
    for rows in parts(numbers, batch):
      frames = [source[i]['video'] for i in rows]
      # The last batch is filled up, so that one program serves all.
      filled = frames + frames[-1:] * (batch - len(frames))
      z_Bfhwc = latents(np.stack(filled))[: len(rows)]
      yield [{'latents': z_fhwc} for z_fhwc in z_Bfhwc]

  write(out, missing, records, name='latents', total=sum(about.counts))


def write(out, missing, records, *, name: str, total: int) -> None:
  """Writes the missing shards; a bar tells how far."""
  left = sum(len(numbers) for _, _, numbers in missing)
  with tqdm.tqdm(
    total=total, initial=total - left, desc=name, unit='clip'
  ) as bar:

    def counted(split, numbers):
      for batch in records(split, numbers):
        yield from batch
        bar.update(len(batch))

    for split, file, numbers in missing:
      latent_cache.write_shard(out / file, counted(split, numbers))


def parts(numbers: range, size: int) -> list[range]:
  """Runs of at most `size`."""
  return [numbers[i : i + size] for i in range(0, len(numbers), size)]
