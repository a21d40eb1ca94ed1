"""Precomputes latents and prompt embeddings, which training does not change."""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterator

import jax
import numpy as np
import tqdm
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from spacetime import SettingError, checkpoint, sharding
from spacetime.checkpoint import finite, init_weights, load
from spacetime.checkpoint.interop import network_files
from spacetime.checkpoint.locate import locate
from spacetime.config import networks
from spacetime.config.experiment import Experiment
from spacetime.data import clip_list, geometry, latent_cache, unreadable
from spacetime.data.digits import world as world_lib
from spacetime.data.settings import DataConfig
from spacetime.data.splits import Splits
from spacetime.diffusion import conditioning
from spacetime.media import files
from spacetime.media.pixels import to_video
from spacetime.models.autoencoder import streaming
from spacetime.models.autoencoder.interface import Autoencoder
from spacetime.pipeline import conditions, decode_shards, prompt_embeds
from spacetime.pipeline.encode_settings import EncodeSettings
from spacetime.pipeline.engine import Engine


@dataclasses.dataclass(frozen=True)
class Encoder:
  """Encoder of a cache: an autoencoder and, optionally, a text encoder.

  Attributes:
    fingerprint: fingerprint of the autoencoder.
    autoencoder: functions of the autoencoder.
    read: reads the parameters of the autoencoder.
    model: the model with the text encoder; None if there is none.
    size: (frames, height, width) of the training clips.
    fps: frames per second of the training clips.
    known: frames that the model sees beside its latents, see CacheInfo.known.
    mesh: devices; None is the first device.
  """

  fingerprint: str
  autoencoder: Autoencoder
  read: Callable[[], dict] = dataclasses.field(repr=False)
  model: load.Model | None
  size: tuple[int, int, int]
  fps: float
  known: str = ''
  mesh: jax.sharding.Mesh | None = None

  @property
  def image(self) -> tuple[int, int]:
    """Tokens and width of the embeddings of the known frames."""
    if self.model is None or self.model.networks.image is None:
      return (0, 0)
    config = self.model.networks.image.config
    images = 2 if self.known == 'ends' else 1
    return images * config.tokens, config.hidden_size

  @property
  def control(self) -> int:
    """Channels of the control latents."""
    if self.model is None:
      return 0
    return self.model.networks.dit.config.control_channels


def open_encoder(
  path: str | None,
  *,
  files: network_files.Files = network_files.NO_FILES,
  mesh=None,
) -> Encoder:
  """Opens a published folder, a text-to-video model or an autoencoder.

  Args:
    path: path or name of the model; None if there are files of all networks.
    files: files of published networks, which replace those of the folder.
    mesh: devices, see sharding.as_mesh; None is the first device.

  Raises:
    ValueError: none of these, or damaged.
  """
  mesh = sharding.as_mesh(mesh)
  located = locate(path) if path else None
  folder = located.folder if located else ''
  if located is None or located.is_published or located.kind == 'transformer':
    model = load.open_model(path or None, mesh=mesh, files=files)
    name = model.autoencoder_hash
  elif files:
    raise SettingError('checkpoint', path, 'a published folder or file')
  else:
    experiment = checkpoint.read_experiment(folder)
    if experiment.stage == 'autoencoder':
      section, data = experiment.autoencoder, experiment.data
      return Encoder(
        checkpoint.weights_hash(folder),
        networks.autoencoder(section),
        lambda: load.load_own(section, folder, mesh=mesh)['autoencoder'],
        None,
        data.size,
        data.fps,
        mesh=mesh,
      )
    model = load.open_model(path, mesh=mesh)
    name = init_weights.fingerprint_of_autoencoder(experiment, beside=folder)
  return Encoder(
    name,
    model.networks.autoencoder,
    functools.partial(model.read, 'autoencoder'),
    model,
    model.experiment.data.size,
    model.experiment.data.fps,
    model.networks.dit.config.known_frames,
    mesh=mesh,
  )


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
  encoder = open_encoder(
    settings.checkpoint, files=network_files.Files(**settings.files), mesh=mesh
  )
  if experiment is None:
    data, seed = folder_section(settings.data, encoder), 0
  else:
    experiment.require('data')
    data, seed = experiment.data, experiment.seed
  write_cache(
    encoder,
    dataclasses.replace(data, **settings.clips),
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
    SettingError: a source without videos, clips of mixed sizes, or embeddings
      without a text encoder.
    ValueError: clips that cannot be read, or another cache in the folder.
  """
  out = files.as_path(out)
  if data.source.HAS_LATENTS:
    raise SettingError('data.name', data.name, 'a source of videos')
  if data.mixed is not None:
    raise SettingError(
      'data.mixed',
      data.mixed,
      'None, since the latents of a cache are of one size',
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
  dtype = latent_cache.DTYPES[info.dtype]
  known_F, engine = None, None
  if info.known:
    known_F = conditioning.known_mask(info.known, info.frames)
    engine = Engine(
      encoder.model, mesh=encoder.mesh, resident_bytes=sys.maxsize
    )
  encode_chunk = _chunk_encoder(encoder, batch_size, info.latent[1:3])

  def encode_video(video_BFHWC):
    z_Bfhwc = np.concatenate(
      [np.asarray(chunk) for chunk in encode_chunk(video_BFHWC)], axis=1
    )
    finite.check(z_Bfhwc, f'latents of the clips for {out}')
    return z_Bfhwc.astype(dtype)

  def encode_control(video_BFHWC, numbers):
    """Control latents of known pixels, which a clip's number determines."""
    known_BFHW = np.stack(
      [
        conditioning.draw_known(
          np.random.default_rng(number), video_BFHWC.shape[1:4]
        )
        for number in numbers
      ]
    )
    known_BFHW1 = known_BFHW[..., None]
    video_BFHWC = np.asarray(video_BFHWC)
    masks = [
      conditioning.control_mask(~known_FHW, stride=encoder.autoencoder.stride)
      for known_FHW in known_BFHW
    ]
    return np.concatenate(
      [
        encode_video(np.where(known_BFHW1, video_BFHWC, np.float32(0))),
        encode_video(np.zeros_like(video_BFHWC)),  # no pixels guide new ones
        np.stack(masks).astype(dtype),
      ],
      axis=-1,
    )

  def encode_frames(frames_BFHWC, numbers):
    video_BFHWC = to_video(frames_BFHWC)
    arrays = {'latents': encode_video(video_BFHWC)}
    if info.control:
      arrays['control_latents'] = encode_control(video_BFHWC, numbers)
    if known_F is None:
      return arrays
    known_F111 = known_F[:, None, None, None]
    arrays['cond_latents'] = encode_video(
      np.where(known_F111, np.asarray(video_BFHWC), np.float32(0))
    )
    if info.image[0]:
      arrays['image'] = np.concatenate(
        [
          conditions.embed_images(engine, tuple(clip_FHWC[known_F]))
          for clip_FHWC in frames_BFHWC
        ]
      ).astype(dtype)
    return arrays

  skipped = latent_cache.read_skipped(out)

  def read(split: str, index: int) -> np.ndarray | None:
    """A video, or None of one that is skipped."""
    try:
      video_FHWC = getattr(splits, split)[index]['video']
    except unreadable.UnreadableClipError as e:
      skipped[split][index] = str(e)
    else:
      if skipped[split].pop(index, None):  # of a call that was stopped
        latent_cache.write_skipped(out, skipped)
      return video_FHWC
    latent_cache.write_skipped(out, skipped)
    logging.warning('%s: skipped', skipped[split][index])
    bad, count = sum(map(len, skipped.values())), sum(info.counts)
    if bad > unreadable.most(count, max_unreadable):
      raise unreadable.over_limit(
        skipped[split][index], bad=bad, count=count, share=max_unreadable
      )
    return None

  def batches(split: str, indices: range) -> Iterator[list[dict]]:
    for i in range(0, len(indices), batch_size):
      part = indices[i : i + batch_size]
      videos = [read(split, j) for j in part]
      frames = [video for video in videos if video is not None]
      records = iter(())
      if frames:
        # An incomplete batch is padded, so that one program serves all.
        padded = frames + frames[-1:] * (batch_size - len(frames))
        numbers = [
          (latent_cache.SPLITS.index(split), j)
          for j, video in zip(part, videos, strict=True)
          if video is not None
        ]
        numbers += numbers[-1:] * (batch_size - len(frames))
        arrays = encode_frames(np.stack(padded), numbers)
        records = iter(
          {name: array[j] for name, array in arrays.items()}
          for j in range(len(frames))
        )
      # A skipped clip has an empty record: the others keep their indices.
      yield [{} if video is None else next(records) for video in videos]

  write_shards(out, missing, batches, name='latents', total=sum(info.counts))
  reasons = [r for split in skipped.values() for r in split.values()]
  if reasons:
    print(
      f'{len(reasons)} of {sum(info.counts)} clips could not be read and were '
      f'skipped: {clip_list.shown(reasons)}',
      file=sys.stderr,
    )


def _chunk_encoder(
  encoder: Encoder, batch_size: int, latent: tuple[int, int]
) -> Callable:
  """video_BFHWC -> its latents, chunk after chunk.

  The devices share the clips of a batch, or the rows or columns of a frame.

  Raises:
    SettingError: several devices that divide neither.
  """
  autoencoder, params = encoder.autoencoder, encoder.read()
  mesh = sharding.as_mesh(encoder.mesh)
  first, step, shard_rows = (
    jax.jit(autoencoder.encode_first),
    jax.jit(autoencoder.encode_step),
    lambda video_BFHWC: video_BFHWC,
  )
  shared = decode_shards.shared_devices(mesh, latent)
  if mesh.size > 1 and batch_size % mesh.size == 0:
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    shard_rows = functools.partial(jax.device_put, device=rows)
  elif shared:
    coder = decode_shards.encoder(autoencoder, params, shared, latent=latent)
    params, first, step = coder.params, coder.first, coder.step
  elif mesh.size > 1:
    raise SettingError(
      'batch_size',
      batch_size,
      f'a multiple of {mesh.size}, the number of devices, which do not divide '
      f'latents of {latent[0]} x {latent[1]} cells either',
    )

  def encode(video_BFHWC):
    return streaming.encode_chunks(
      autoencoder, params, shard_rows(video_BFHWC), first=first, step=step
    )

  return encode


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
