"""Opens the encoder of a cache, and encodes clips with it."""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from spacetime import SettingError, checkpoint, sharding
from spacetime.checkpoint import finite, init_weights, load
from spacetime.checkpoint.interop import network_files
from spacetime.checkpoint.locate import locate
from spacetime.config import networks
from spacetime.data import latent_cache
from spacetime.diffusion import conditioning
from spacetime.media.pixels import to_video
from spacetime.models.autoencoder import streaming
from spacetime.models.autoencoder.interface import Autoencoder
from spacetime.pipeline import conditions, decode_shards
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


def check_devices(
  encoder: Encoder,
  *,
  batch_size: int,
  latent: tuple[int, int],
  embeds: bool,
) -> None:
  """Checks that the devices share a batch or a frame, and the parameters.

  Args:
    encoder: the encoder, of which nothing has been read.
    batch_size: clips encoded at once.
    latent: rows and columns of the latents.
    embeds: whether captions are embedded.

  Raises:
    SettingError: several devices that divide neither, or a parameter that they
      do not divide.
  """
  mesh = sharding.as_mesh(encoder.mesh)
  if mesh.size == 1:
    return
  shared = decode_shards.shared_devices(mesh, latent)
  if batch_size % mesh.size and not shared:
    raise SettingError(
      'batch_size',
      batch_size,
      f'a multiple of {mesh.size}, the number of devices, which do not divide '
      f'latents of {latent[0]} x {latent[1]} cells either',
    )
  if encoder.model is not None:
    for root in ('text',) * embeds + ('image',) * (encoder.image[0] > 0):
      encoder.model.abstract(root)


class ClipEncoder:
  """Encodes batches of clips to the arrays of a cache.

  Args:
    encoder: the autoencoder, and the model whose conditions are cached.
    info: description of the cache: which arrays it has, and their dtype.
    out: folder of the cache, for messages.
    batch_size: clips encoded at once.
  """

  def __init__(
    self,
    encoder: Encoder,
    info: latent_cache.CacheInfo,
    *,
    out: os.PathLike,
    batch_size: int,
  ):
    self._info, self._out, self._batch_size = info, out, batch_size
    self._dtype = latent_cache.DTYPES[info.dtype]
    self._stride = encoder.autoencoder.stride
    self._known_F, self._engine = None, None
    if info.known:
      self._known_F = conditioning.known_mask(info.known, info.frames)
      self._engine = Engine(
        encoder.model, mesh=encoder.mesh, resident_bytes=sys.maxsize
      )
    self._encode_chunks = _chunk_encoder(encoder, batch_size, info.latent[1:3])

  def __call__(
    self, clips: Mapping[tuple[int, int], np.ndarray]
  ) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of each clip, of at most a batch of them.

    Args:
      clips: videos, uint8 (F, H, W, 3), by their numbers: (split, index).
    """
    numbers, frames = list(clips), list(clips.values())
    # An incomplete batch is padded, so that one program serves all.
    missing = self._batch_size - len(clips)
    arrays = self._arrays(
      np.stack(frames + frames[-1:] * missing), numbers + numbers[-1:] * missing
    )
    for i in range(len(clips)):
      yield {name: array[i] for name, array in arrays.items()}

  def _arrays(
    self, frames_BFHWC: np.ndarray, numbers: Sequence[tuple[int, int]]
  ) -> dict[str, np.ndarray]:
    video_BFHWC = to_video(frames_BFHWC)
    arrays = {'latents': self._latents(video_BFHWC)}
    if self._info.control:
      arrays['control_latents'] = self._control(video_BFHWC, numbers)
    known_F = self._known_F
    if known_F is None:
      return arrays
    known_F111 = known_F[:, None, None, None]
    arrays['cond_latents'] = self._latents(
      np.where(known_F111, np.asarray(video_BFHWC), np.float32(0))
    )
    if self._info.image[0]:
      arrays['image'] = np.concatenate(
        [
          conditions.embed_images(self._engine, tuple(clip_FHWC[known_F]))
          for clip_FHWC in frames_BFHWC
        ]
      ).astype(self._dtype)
    return arrays

  def _latents(self, video_BFHWC) -> np.ndarray:
    z_Bfhwc = np.concatenate(
      [np.asarray(chunk) for chunk in self._encode_chunks(video_BFHWC)], axis=1
    )
    finite.check(z_Bfhwc, f'latents of the clips for {self._out}')
    return z_Bfhwc.astype(self._dtype)

  def _control(
    self, video_BFHWC, numbers: Sequence[tuple[int, int]]
  ) -> np.ndarray:
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
      conditioning.control_mask(~known_FHW, stride=self._stride)
      for known_FHW in known_BFHW
    ]
    return np.concatenate(
      [
        self._latents(np.where(known_BFHW1, video_BFHWC, np.float32(0))),
        self._latents(np.zeros_like(video_BFHWC)),  # no pixels guide new ones
        np.stack(masks).astype(self._dtype),
      ],
      axis=-1,
    )


def _chunk_encoder(
  encoder: Encoder, batch_size: int, latent: tuple[int, int]
) -> Callable:
  """video_BFHWC -> its latents, chunk after chunk.

  The devices share the clips of a batch, or the rows or columns of a frame; see
  check_devices.
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

  def encode(video_BFHWC):
    return streaming.encode_chunks(
      autoencoder, params, shard_rows(video_BFHWC), first=first, step=step
    )

  return encode
