"""Loading a transformer of Wan 2.1's 1.3B shape: peak memory and seconds.

  python tests/benchmarks/wan_load.py --dir=DIR [--dtype=float32]

Writes random bfloat16 weights in two shards, 2.8 GB, and loads them in a
process of its own, from the disk and not from the system's cache of it. The
bar: a peak of 1.3 times the size, and 60 seconds on two cores.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
STEM = 'diffusion_pytorch_model'


def write(folder: pathlib.Path) -> None:
  """Writes the weights and puts them out of the system's cache."""
  import jax.numpy as jnp
  import numpy as np

  from spacetime.checkpoint.interop import (
    networks,
    tensor_files,
    wan_transformer,
  )
  from spacetime.models.transformer import dit

  config = dit.DiTConfig(
    channels=16,
    patch=(1, 2, 2),
    width=1536,
    heads=12,
    layers=30,
    mlp=8960,
    text_width=4096,
  )
  shapes = networks.of(config).published_shapes()
  described = {
    name: (shape, np.dtype(jnp.bfloat16)) for name, shape in shapes.items()
  }
  folder.mkdir(parents=True)
  tensor_files.write_json(
    folder / 'config.json', wan_transformer.write_config(config)
  )
  noise = np.random.default_rng(0).normal(size=1 << 22).astype(jnp.bfloat16)
  files = tensor_files.Shards(folder, STEM, described, limit=1_500_000_000)
  for name, shape in shapes.items():
    files.put(name, np.resize(noise, shape))
  files.close()
  for path in folder.glob('*.safetensors'):
    with path.open('rb') as file:
      os.fsync(file.fileno())
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load(folder: pathlib.Path, dtype: str | None) -> None:
  """Loads them; prints seconds, sizes and peaks in MiB."""
  import jax

  from spacetime import sharding
  from spacetime.checkpoint.interop import parts

  mesh = sharding.single_device_mesh()
  base, began = peak(), time.monotonic()
  part = parts.open_part(folder, 'transformer')
  params = part.load(mesh, dtype=dtype)
  seconds = time.monotonic() - began
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  print(
    f'{part.size / 2**20:.0f} MiB on disk, {size / 2**20:.0f} MiB loaded in '
    f'{seconds:.1f} s; peak {peak():.0f} MiB, {base:.0f} of it before; '
    f'{peak() * 2**20 / size:.3f} of the size'
  )


def peak() -> float:
  """The most memory that this process has held, in MiB."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(r'VmHWM:\s+(\d+) kB', status)[1]) / 1024


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--dir', required=True, help='made, and removed after')
  parser.add_argument('--dtype', help='to load as; as stored if not set')
  parser.add_argument('--load', action='store_true', help='load only, here')
  args = parser.parse_args()
  folder = pathlib.Path(args.dir)
  sys.path.insert(0, str(ROOT))
  if args.load:
    load(folder, args.dtype)
    return
  write(folder)
  try:
    command = [sys.executable, __file__, '--load', f'--dir={folder}']
    command += [f'--dtype={args.dtype}'] if args.dtype else []
    subprocess.run(command, check=True)
  finally:
    shutil.rmtree(folder)


if __name__ == '__main__':
  main()
