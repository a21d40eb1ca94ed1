"""Decodes frames in tiles, one after the other, in the memory of one tile.

Used on request only, for pictures that do not fit on a device: the network
attends within a tile and not within the frame, and its convolutions see zeros
past the tile's edge, so that tiles differ where they meet. They overlap and are
blended there; BUILD_NOTES.md has the remaining difference by overlap. A tile is
decoded for the duration of the clip, with a cache of its own, before the next.
"""

import dataclasses

import numpy as np

from spacetime.models.autoencoder import streaming

# Default number of latent cells that neighbours share; see `Tiles`.
OVERLAP = 8


@dataclasses.dataclass(frozen=True)
class Tiles:
  """Division of a picture into tiles.

  Attributes:
    rows: number of rows of tiles.
    columns: number of columns of tiles.
    overlap: least number of latent cells that neighbours share. A quarter of
      them at either tile's edge is discarded, because the edge is wrong; over
      the half between, one tile fades linearly into the other.
  """

  rows: int
  columns: int
  overlap: int = OVERLAP

  def __post_init__(self):
    if self.rows < 1 or self.columns < 1 or self.overlap < 0:
      raise ValueError(
        f'tiles {self.rows} x {self.columns}, overlap {self.overlap}: expected '
        'positive numbers of tiles; change `decode_tiles`'
      )


def spans(size: int, count: int, overlap: int) -> list[slice]:
  """Splits `size` cells into `count` evenly spaced slices of one length.

  Neighbours share at least `overlap` cells.

  Raises:
    ValueError: too many tiles for the size.
  """
  length = -(-(size + (count - 1) * overlap) // count)
  free = size - length
  if count > 1 and not (overlap < length and free >= count - 1):
    raise ValueError(
      f'{count} tiles over {size} latent cells, {overlap} shared: expected '
      'fewer tiles or fewer shared cells; change `decode_tiles`'
    )
  starts = [round(i * free / max(count - 1, 1)) for i in range(count)]
  return [slice(start, start + length) for start in starts]


def weights(cells: list[slice], stride: int) -> list[np.ndarray]:
  """Blending weights of each tile's pixels along one axis, float32 in [0, 1].

  The weights of a pixel sum to 1.
  """
  total = np.zeros((len(cells), cells[-1].stop * stride))
  shares = [w[_pixels(c, stride)] for w, c in zip(total, cells, strict=True)]
  for share in shares:
    share[:] = 1
  for i, (before, after) in enumerate(zip(cells, cells[1:], strict=False)):
    shared = (before.stop - after.start) * stride
    if shared:
      ramp = fade(shared)
      shares[i][-shared:] *= 1 - ramp
      shares[i + 1][:shared] *= ramp
  # Where three narrow tiles overlap, the weights sum to more than 1.
  total /= total.sum(axis=0)
  return [share.astype(np.float32) for share in shares]


def fade(pixels: int) -> np.ndarray:
  """A ramp from 0 to 1 over the middle half of some pixels."""
  position = (np.arange(pixels) + 0.5) / pixels
  return np.clip(2 * position - 0.5, 0, 1)


def decode(
  autoencoder, params, z_Bfhwc, tiles: Tiles, *, first=None, step=None
):
  """Decodes latents tile by tile into a video on the host.

  Args:
    autoencoder: an `Autoencoder` or `IdentityAutoencoder`.
    params: parameters of the autoencoder.
    z_Bfhwc: latents, on a device or on the host.
    tiles: division of the picture.
    first: `decode_first`, jitted; None runs it without jit.
    step: `decode_step`, jitted; None runs it without jit.

  Returns:
    float32 video_BFHWC in [-1, 1], in host memory.

  Raises:
    ValueError: tiles that do not fit the latents.
  """
  batch, frames, height, width, _ = z_Bfhwc.shape
  time, *side = autoencoder.stride
  rows = spans(height, tiles.rows, tiles.overlap)
  columns = spans(width, tiles.columns, tiles.overlap)
  row_weights, column_weights = (
    weights(rows, side[0]),
    weights(columns, side[1]),
  )
  video_BFHWC = np.zeros(
    (batch, 1 + (frames - 1) * time, height * side[0], width * side[1], 3),
    np.float32,
  )
  for row, row_weight in zip(rows, row_weights, strict=True):
    for column, column_weight in zip(columns, column_weights, strict=True):
      weight_HWC = np.einsum('H,W->HW', row_weight, column_weight)[..., None]
      view_BFHWC = video_BFHWC[
        :, :, _pixels(row, side[0]), _pixels(column, side[1])
      ]
      at = 0
      for chunk in streaming.decode_chunks(
        autoencoder, params, z_Bfhwc[:, :, row, column], first=first, step=step
      ):
        chunk = np.asarray(chunk)
        view_BFHWC[:, at : at + chunk.shape[1]] += chunk * weight_HWC
        at += chunk.shape[1]
  return video_BFHWC


def _pixels(cells: slice, stride: int) -> slice:
  return slice(cells.start * stride, cells.stop * stride)
