"""Precomputes latents and prompt embeddings, which training does not change."""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator

import jax
import numpy as np
import tqdm
from absl import logging

from spacetime import SettingError
from spacetime.checkpoint import load
from spacetime.checkpoint.interop import network_files
from spacetime.config.experiment import Experiment
from spacetime.data import clip_list, geometry, latent_cache, unreadable
from spacetime.data.digits import world as world_lib
from spacetime.data.settings import DataConfig
from spacetime.data.splits import Splits
from spacetime.media import files
from spacetime.pipeline import encoder as encoder_lib
from spacetime.pipeline import prompt_embeds
from spacetime.pipeline.encode_settings import EncodeSettings
from spacetime.pipeline.encoder import Encoder
from spacetime.pipeline.engine import Engine


def encode(
  settings: EncodeSettings,
  *,
  experiment: Experiment | None = None,
  mesh=None,
) -> None:
  """Writes a cache, or the shards that a stopped call has not written.

  Args:
    settings: settings of the cache.
    experiment: experiment whose clips are encoded, instead of `settings.data`.
    mesh: devices, see sharding.as_mesh; None is the first device.

  Raises:
    SettingError: a setting that the clips or the checkpoint do not support.
    ValueError: no such checkpoint or clips, or another cache in the folder.
  """
  if (settings.data is None) == (experiment is None):
    raise SettingError('data', settings.data, 'one of `data` and `config`')
  encoder = encoder_lib.open_encoder(
    settings.checkpoint, files=network_files.Files(**settings.files), mesh=mesh
  )
  if experiment is None:
    data, seed = folder_section(settings.data, encoder), 0
  else:
    experiment.require('data')
    data, seed = experiment.data, experiment.seed
  data = dataclasses.replace(data, **settings.clips)
  if data.fps is None:
    data = dataclasses.replace(data, fps=encoder.fps)
  write_cache(
    encoder,
    data,
    settings.out,
    seed=seed,
    text=settings.text,
    dtype=settings.dtype,
    batch_size=settings.batch_size,
    shard=settings.shard,
  )


def folder_section(folder: str, encoder: Encoder) -> DataConfig:
  """The clips of a folder, at the encoder's size and frame rate."""
  frames, height, width = encoder.size
  return DataConfig(
    name='folder',
    dir=folder,
    clips=0,
    held_out_clips=0,
    frames=frames,
    height=height,
    width=width,
    world=world_lib.World(),
    batch_size=1,
    caption_dropout=0.0,
    crop=None,
    fps=encoder.fps,
  )


def write_cache(
  encoder: Encoder,
  data: DataConfig,
  out: str | os.PathLike,
  *,
  seed: int = 0,
  text: str | None = None,
  dtype: str = 'float32',
  batch_size: int = 1,
  shard: int = 64,
) -> None:
  """Writes the missing shards of a cache.

  Args:
    encoder: encoder of latents and captions.
    data: the clips.
    out: folder of the cache, created if it does not exist.
    seed: seed of the digits world.
    text: 'embeddings' or 'captions'; None stores embeddings if the encoder has
      a text encoder.
    dtype: dtype of latents and embeddings.
    batch_size: clips encoded at once.
    shard: clips in a file.

  Raises:
    SettingError: a source without videos, clips of mixed sizes, of stages or
      with random crops, embeddings without a text encoder, or devices that
      cannot share the work.
    ValueError: clips that cannot be read, or another cache in the folder.
  """
  out = files.as_path(out)
  if data.source.HAS_LATENTS:
    raise SettingError('data.name', data.name, 'a source of videos')
  if data.stages:
    raise SettingError(
      'data.stages', None, 'none, since a cache has one list of clips'
    )
  for name, reason in {
    'mixed': 'the latents of a cache are of one size',
    'crop': 'latents are not cropped while training',
  }.items():
    if getattr(data, name):
      raise SettingError(
        f'data.{name}', getattr(data, name), f'None, since {reason}'
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
  encoder_lib.check_devices(
    encoder,
    batch_size=batch_size,
    latent=grid.latent[1:],
    embeds=model is not None,
  )
  splits = data.source.open_splits(data, seed=seed)
  info = latent_cache.CacheInfo(
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
    known=encoder.known,
    image=encoder.image,
    control=encoder.control,
    image_encoder=encoder.model.image_hash if encoder.model else '',
    mean=encoder.autoencoder.latents_mean,
    std=encoder.autoencoder.latents_std,
  )
  tokenizer = model.tokenizer.serialized if model else None
  latent_cache.create(out, info, tokenizer=tokenizer)
  # The text encoder is freed before the autoencoder is read.
  write_texts(out, info, splits, model, mesh=encoder.mesh)
  write_latents(
    out,
    info,
    splits,
    encoder,
    batch_size=batch_size,
    max_unreadable=data.max_unreadable,
  )


def write_texts(
  out: os.PathLike,
  info: latent_cache.CacheInfo,
  splits: Splits,
  model: load.Model | None,
  *,
  mesh: jax.sharding.Mesh | None = None,
) -> None:
  """Writes the missing shards of captions, embedded if there is a model."""
  missing = latent_cache.missing(out, info, 'text')
  empty = out / latent_cache.EMPTY
  if not missing and (model is None or empty.is_file()):
    return
  engine = None
  if model is not None:
    # The text encoder is read once for all shards, and freed on return.
    engine = Engine(model, mesh=mesh, resident_bytes=sys.maxsize)
    if not empty.is_file():
      latent_cache.write_shard(empty, text_records(engine, [''], info))

  def batches(split: str, indices: range) -> Iterator[list[dict]]:
    """Records of readable clips, encoded, `batch_size` at once."""
    source = getattr(splits, split)
    yield text_records(engine, [source.caption(i) for i in indices], info)

  write_shards(out, missing, batches, name='text', total=sum(info.counts))


def text_records(
  engine: Engine | None, captions: list[str], info: latent_cache.CacheInfo
) -> list[dict]:
  """Records of captions, with their embeddings if there is an engine."""
  if engine is None:
    return [latent_cache.text_record(caption) for caption in captions]
  dtype = latent_cache.DTYPES[info.dtype]
  return [
    latent_cache.text_record(caption, text_SY.astype(dtype))
    for caption, text_SY in zip(
      captions, prompt_embeds.encode(engine, captions), strict=True
    )
  ]


def write_latents(
  out: os.PathLike,
  info: latent_cache.CacheInfo,
  splits: Splits,
  encoder: Encoder,
  *,
  batch_size: int,
  max_unreadable: float,
) -> None:
  """Writes the missing shards of latents, and which clips were skipped.

  Raises:
    ValueError: more clips than `max_unreadable` of them cannot be read.
  """
  missing = latent_cache.missing(out, info, 'latents')
  if not missing:
    return
  encode_clips = encoder_lib.ClipEncoder(
    encoder, info, out=out, batch_size=batch_size
  )
  reader = _Reader(out, splits, limit=max_unreadable)

  def batches(split: str, indices: range) -> Iterator[list[dict]]:
    """Records of readable clips, encoded, `batch_size` at once."""
    for i in range(0, len(indices), batch_size):
      part = indices[i : i + batch_size]
      videos = {j: reader.read(split, j) for j in part}
      clips = {
        (latent_cache.SPLITS.index(split), j): video
        for j, video in videos.items()
        if video is not None
      }
      records = iter(encode_clips(clips) if clips else ())
      # A skipped clip has an empty record: the others keep their indices.
      yield [{} if videos[j] is None else next(records) for j in part]

  write_shards(out, missing, batches, name='latents', total=sum(info.counts))
  reader.report()


class _Reader:
  """Reads the videos of a cache, and records those that cannot be read.

  Args:
    out: folder of the cache.
    splits: the clips.
    limit: share of the clips that may be skipped.
  """

  def __init__(self, out: os.PathLike, splits: Splits, *, limit: float):
    self._out, self._splits, self._limit = out, splits, limit
    self._count = len(splits.train) + len(splits.held_out)
    self._skipped = latent_cache.read_skipped(out)

  def read(self, split: str, index: int) -> np.ndarray | None:
    """A video, or None of one that is skipped.

    Raises:
      ValueError: more clips than the limit cannot be read.
    """
    skipped = self._skipped[split]
    try:
      video_FHWC = getattr(self._splits, split)[index]['video']
    except unreadable.UnreadableClipError as e:
      skipped[index] = str(e)
    else:
      if skipped.pop(index, None):  # of a call that was stopped
        latent_cache.write_skipped(self._out, self._skipped)
      return video_FHWC
    latent_cache.write_skipped(self._out, self._skipped)
    logging.warning('%s: skipped', skipped[index])
    bad = sum(map(len, self._skipped.values()))
    if bad > unreadable.most(self._count, self._limit):
      raise unreadable.over_limit(
        skipped[index], bad=bad, count=self._count, share=self._limit
      )
    return None

  def report(self) -> None:
    """Prints which clips were skipped, if any were."""
    reasons = [r for split in self._skipped.values() for r in split.values()]
    if reasons:
      print(
        f'{len(reasons)} of {self._count} clips could not be read and were '
        f'skipped: {clip_list.shown(reasons)}',
        file=sys.stderr,
      )


def write_shards(
  out: os.PathLike,
  missing: list[tuple[str, str, range]],
  batches: Callable[[str, range], Iterator[list[dict]]],
  *,
  name: str,
  total: int,
) -> None:
  """Writes the missing shards and shows a progress bar.

  Args:
    out: folder of the cache.
    missing: (split, file name, indices of its records) of each shard.
    batches: split, indices -> batches of the records of these indices.
    name: label of the progress bar.
    total: records of the complete cache.
  """
  remaining = sum(len(indices) for _, _, indices in missing)
  with tqdm.tqdm(
    total=total, initial=total - remaining, desc=name, unit='clip'
  ) as bar:

    def records(split: str, indices: range) -> Iterator[dict]:
      for batch in batches(split, indices):
        yield from batch
        bar.update(len(batch))

    for split, file, indices in missing:
      latent_cache.write_shard(out / file, records(split, indices))
