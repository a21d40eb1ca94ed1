"""From latents to frames: whole, in tiles, or over several devices."""

import dataclasses

import jax
import numpy as np

from spacetime.media.pixels import to_frames
from spacetime.models.autoencoder import streaming
from spacetime.pipeline import decode_shards, decode_tiles


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a picture is divided while it is decoded.

  Attributes:
    cut: into tiles, one after the other and blended where they meet; None
      cuts nothing.
    devices: that share each frame's rows or columns; () is one.
  """

  cut: decode_tiles.Tiles | None = None
  devices: tuple[jax.Device, ...] = ()


WHOLE = Layout()


def parse(
  cut: str | None, *, overlap: int, devices: int, latent: tuple[int, int]
) -> Layout:
  """The flags --decode_tiles, --decode_overlap and --decode_shards.

  Args:
    cut: 'COLUMNSxROWS' of tiles, or None.
    overlap: latent cells that neighbours share.
    devices: to shard over; 1 does not.
    latent: rows and columns of the latents.

  Raises:
    ValueError: they cannot be read, do not fit the latents or the devices, or
      are asked for together.
  """
  layout = Layout(_tiles(cut, overlap), _devices(devices))
  if layout.cut and layout.devices:
    raise ValueError(
      f'--decode_tiles={cut} and --decode_shards={devices}: expected one of '
      'them; shards have no seams'
    )
  if layout.cut:
    for size, count in zip(
      latent, (layout.cut.rows, layout.cut.columns), strict=True
    ):
      decode_tiles.spans(size, count, layout.cut.overlap)
  if layout.devices:
    decode_shards.choose_side(latent, devices)
  return layout


def _tiles(cut: str | None, overlap: int) -> decode_tiles.Tiles | None:
  if cut is None:
    return None
  parts = cut.lower().split('x')
  if len(parts) != 2 or not all(p.isdigit() for p in parts):
    raise ValueError(
      f'--decode_tiles={cut}: expected COLUMNSxROWS, such as 2x2'
    )
  columns, rows = map(int, parts)
  return decode_tiles.Tiles(rows=rows, columns=columns, overlap=overlap)


def _devices(count: int) -> tuple[jax.Device, ...]:
  found = jax.devices()
  if not 1 <= count <= len(found):
    raise ValueError(
      f'--decode_shards={count}: expected 1 to {len(found)}, the devices that '
      'there are; on a CPU --cpu_devices emulates more'
    )
  return tuple(found[:count]) if count > 1 else ()


class Decoder:
  """Latents -> frames on the host, a latent frame at a time, jitted once."""

  def __init__(self, codec, params, layout: Layout = WHOLE):
    self._codec, self._params, self._layout = codec, params, layout
    self._coder = None
    self._first = jax.jit(codec.decode_first)
    self._step = jax.jit(codec.decode_step, donate_argnums=1)

  def __call__(self, z_Bfhwc) -> np.ndarray:
    """uint8 frames_BFHWC; device memory does not grow with duration."""
    if self._layout.cut:
      return to_frames(
        decode_tiles.decode(
          self._codec,
          self._params,
          z_Bfhwc,
          self._layout.cut,
          first=self._first,
          step=self._step,
        )
      )
    stream = self.stream(z_Bfhwc.shape[2:4])
    chunks = [
      to_frames(stream(z_Bfhwc[:, i : i + 1])) for i in range(z_Bfhwc.shape[1])
    ]
    return np.concatenate(chunks, axis=1)

  def stream(self, latent: tuple[int, int], cache=None) -> streaming.Stream:
    """What decodes one latent frame after another; not in tiles.

    Args:
      latent: rows and columns of the latents.
      cache: of a stream that goes on.
    """
    params, first, step = self._params, self._first, self._step
    if self._layout.devices:
      coder = self._sharded(latent)
      params, first, step = coder.params, coder.first, coder.step
    return streaming.Stream(
      self._codec, params, first=first, step=step, cache=cache
    )

  def _sharded(self, latent: tuple[int, int]) -> decode_shards.Coder:
    if self._coder is None:
      self._coder = decode_shards.decoder(
        self._codec, self._params, self._layout.devices, latent=latent
      )
    return self._coder
