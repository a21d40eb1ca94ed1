"""Decodes latents to frames: at once, in tiles, or over several devices."""

import dataclasses

import jax
import numpy as np

from spacetime import SettingError
from spacetime.checkpoint import finite
from spacetime.media.pixels import to_frames
from spacetime.models.autoencoder import streaming
from spacetime.pipeline import decode_shards, decode_tiles
from spacetime.pipeline.request import Request


@dataclasses.dataclass(frozen=True)
class Layout:
  """Division of a frame while it is decoded.

  Attributes:
    tiles: tiles that are decoded one after the other and blended where they
      overlap; None decodes frames at once.
    devices: devices that share the rows or columns of each frame; () is one
      device.
  """

  tiles: decode_tiles.Tiles | None = None
  devices: tuple[jax.Device, ...] = ()


FULL_FRAMES = Layout()


def parse(
  request: Request,
  *,
  latent: tuple[int, int],
  mesh: jax.sharding.Mesh | None = None,
) -> Layout:
  """The layout of `decode_tiles`, `decode_overlap` and `decode_shards`.

  Args:
    request: request with these settings.
    latent: rows and columns of the latents.
    mesh: devices that share a frame without these settings, if they divide it.

  Raises:
    SettingError: they cannot be read, do not fit the latents or the devices,
      or exclude each other.
  """
  layout = Layout(_tiles(request), _devices(request.decode_shards))
  if layout.tiles and layout.devices:
    raise SettingError(
      'decode_tiles',
      request.decode_tiles,
      f'none with `decode_shards`={request.decode_shards}, which has no seams',
    )
  if layout.tiles:
    tiles = layout.tiles
    for size, count in zip(latent, (tiles.rows, tiles.columns), strict=True):
      decode_tiles.spans(size, count, tiles.overlap)
  if layout.devices:
    decode_shards.choose_side(latent, len(layout.devices))
  elif mesh is not None and not layout.tiles:
    shared = decode_shards.shared_devices(mesh, latent)
    return dataclasses.replace(layout, devices=shared)
  return layout


def _tiles(request: Request) -> decode_tiles.Tiles | None:
  text = request.decode_tiles
  if text is None:
    return None
  parts = text.lower().split('x')
  if len(parts) != 2 or not all(part.isdigit() for part in parts):
    raise SettingError('decode_tiles', text, 'COLUMNSxROWS, such as 2x2')
  columns, rows = map(int, parts)
  return decode_tiles.Tiles(
    rows=rows, columns=columns, overlap=request.decode_overlap
  )


def _devices(count: int) -> tuple[jax.Device, ...]:
  devices = jax.devices()
  if not 1 <= count <= len(devices):
    raise SettingError(
      'decode_shards',
      count,
      f'1 to {len(devices)}, the number of devices',
      hint='on a CPU `cpu_devices` emulates more',
    )
  return tuple(devices[:count]) if count > 1 else ()


def frames(video_BFHWC) -> np.ndarray:
  """uint8 frames of decoded video in [-1, 1].

  Raises:
    ValueError: values that are not finite.
  """
  video_BFHWC = np.asarray(video_BFHWC, np.float32)
  finite.check(video_BFHWC, 'frames after decoding', 'check the autoencoder')
  return to_frames(video_BFHWC)


class Decoder:
  """Latents -> frames on the host, one latent frame at a time.

  Attributes:
    params: parameters of the autoencoder.

  Args:
    autoencoder: functions of the autoencoder.
    params: parameters of the autoencoder.
    layout: division of frames.
    first: `decode_first`, jitted; None jits it.
    step: `decode_step`, jitted, its cache donated; None jits it.
  """

  def __init__(
    self,
    autoencoder,
    params,
    layout: Layout = FULL_FRAMES,
    *,
    first=None,
    step=None,
  ):
    self._autoencoder, self.params = autoencoder, params
    self._layout, self._coder = layout, None
    self._first = first or jax.jit(autoencoder.decode_first)
    self._step = step or jax.jit(autoencoder.decode_step, donate_argnums=1)

  def __call__(self, z_Bfhwc) -> np.ndarray:
    """uint8 frames_BFHWC; device memory does not grow with duration."""
    if self._layout.tiles:
      return frames(
        decode_tiles.decode(
          self._autoencoder,
          self.params,
          z_Bfhwc,
          self._layout.tiles,
          first=self._first,
          step=self._step,
        )
      )
    stream = self.stream(z_Bfhwc.shape[2:4])
    chunks = [
      frames(stream(z_Bfhwc[:, i : i + 1])) for i in range(z_Bfhwc.shape[1])
    ]
    return np.concatenate(chunks, axis=1)

  def stream(self, latent: tuple[int, int], cache=None) -> streaming.Stream:
    """A decoder of one latent frame after another, without tiles.

    Args:
      latent: rows and columns of the latents.
      cache: cache of a stream that is resumed; None starts a stream.
    """
    params, first, step = self.params, self._first, self._step
    if self._layout.devices:
      coder = self._sharded(latent)
      params, first, step = coder.params, coder.first, coder.step
    return streaming.Stream(
      self._autoencoder, params, first=first, step=step, cache=cache
    )

  def _sharded(self, latent: tuple[int, int]) -> decode_shards.Coder:
    if self._coder is None:
      self._coder = decode_shards.decoder(
        self._autoencoder, self.params, self._layout.devices, latent=latent
      )
    return self._coder
