"""Remaining seams of divided decoding, against decoding full frames.

  python tests/benchmarks/decode_seams.py

A clip of the digits world, larger than the bundled autoencoder was trained on,
is encoded and decoded whole, in tiles and over devices. Differences are of
values in [-1, 1]; 'shared' are the pixels that two tiles have in common,
'elsewhere' the others.
"""

import argparse

import jax
import numpy as np

from spacetime import checkpoint, sharding
from spacetime.checkpoint import load
from spacetime.checkpoint.locate import locate
from spacetime.config import networks
from spacetime.data.digits import examples, render
from spacetime.data.digits import world as world_lib
from spacetime.media.pixels import to_video
from spacetime.models.autoencoder import streaming
from spacetime.pipeline import decode_shards, decode_tiles


def shared(cut: decode_tiles.Tiles, latent, stride) -> np.ndarray:
  """Which pixels (H, W) belong to two tiles or more."""
  counts = []
  for size, count, side in zip(
    latent, (cut.rows, cut.columns), stride, strict=True
  ):
    total = np.zeros(size * side)
    for cells in decode_tiles.spans(size, count, cut.overlap):
      total[cells.start * side : cells.stop * side] += 1
    counts.append(total)
  return np.einsum('H,W->HW', *counts) > 1


def row(name: str, actual, full, shared_HW=None) -> str:
  """A line of the table."""
  away = np.abs(actual - full)
  columns = []
  for mask in (shared_HW, None if shared_HW is None else ~shared_HW):
    values = away if mask is None else away[:, :, mask]
    columns += [f'{values.max():9.2e}', f'{values.mean():9.2e}']
  if shared_HW is None:
    columns[:2] = ['        -', '        -']
  decibels = -10 * np.log10(np.square(away).mean() / 4 + 1e-20)
  return f'{name:24} {"  ".join(columns)}  {decibels:6.1f}'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--height', type=int, default=192)
  parser.add_argument('--width', type=int, default=256)
  parser.add_argument('--frames', type=int, default=17)
  parser.add_argument('--checkpoint', default='digits_autoencoder')
  args = parser.parse_args()
  jax.config.update('jax_num_cpu_devices', 4)
  folder = locate(args.checkpoint).folder
  experiment = checkpoint.read_experiment(folder)
  mesh = sharding.single_device_mesh()
  codec = networks.autoencoder(experiment.autoencoder)
  params = load.load_own(experiment.autoencoder, folder, mesh=mesh)[
    'autoencoder'
  ]
  size = {'height': args.height, 'width': args.width, 'frames': args.frames}
  world = world_lib.World(**{**vars(experiment.data.world), **size})
  record = examples.example(3, world=world, split='validation', seed=77)
  frames = render.clip(world_lib.from_json(record['scene']), world)
  z = np.asarray(jax.jit(codec.encode)(params, to_video(frames)[None]))
  latent, stride = z.shape[2:4], codec.stride[1:]
  jitted = {'first': codec.decode_first, 'step': codec.decode_step}
  jitted = {name: jax.jit(function) for name, function in jitted.items()}

  def joined(chunks) -> np.ndarray:
    return np.concatenate([np.asarray(chunk) for chunk in chunks], axis=1)

  full = joined(streaming.decode_chunks(codec, params, z, **jitted))
  print(f'latents {latent}, a cell {stride} pixels, spread {full.std():.2f}')
  heads = ('max shared', 'mean', 'max elsewhere', 'mean', 'dB')
  print(f'{"":24} {"  ".join(heads)}')
  for columns, rows, overlap in (
    (2, 1, 2),
    (2, 1, 4),
    (2, 1, 8),
    (2, 2, 2),
    (2, 2, 4),
    (2, 2, 8),
  ):
    cut = decode_tiles.Tiles(rows=rows, columns=columns, overlap=overlap)
    actual = decode_tiles.decode(codec, params, z, cut, **jitted)
    name = f'tiles {columns}x{rows}, {overlap} shared'
    print(row(name, actual, full, shared(cut, latent, stride)), flush=True)
  for count in (2, 4):
    coder = decode_shards.decoder(
      codec, params, jax.devices()[:count], latent=latent
    )
    actual = joined(
      streaming.decode_chunks(
        codec, coder.params, z, first=coder.first, step=coder.step
      )
    )
    print(row(f'shards {count}, {coder.side}', actual, full), flush=True)


if __name__ == '__main__':
  main()
