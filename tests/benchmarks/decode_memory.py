"""Peak memory of streaming decode: a short and a long video compared.

  python tests/benchmarks/decode_memory.py

Each length runs in a process of its own. Decoding is streamed if the two
peaks differ by less than a tenth.
"""

import argparse
import resource
import subprocess
import sys

LENGTHS = (17, 169)


def measure(frames: int, size: int) -> None:
  """Decodes random latents chunk by chunk; prints peak RSS in MiB."""
  import jax
  import numpy as np

  from spacetime.models.autoencoder import streaming, wan

  model = wan.WanAutoencoder(wan.PRESETS['digits'])
  time, height, width = model.stride
  params = jax.jit(model.init)(jax.random.key(0))
  latents = 1 + (frames - 1) // time
  shape = 1, latents, size // height, size // width, model.z_dim
  z_Bfhwc = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  decoded = 0
  for chunk in streaming.decode_chunks(
    model,
    params,
    z_Bfhwc,
    first=jax.jit(model.decode_first),
    step=jax.jit(model.decode_step, donate_argnums=1),
  ):
    decoded += np.asarray(chunk).shape[1]
  if decoded != frames:
    raise SystemExit(f'{decoded} frames came out: expected {frames}')
  print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', type=int, default=64, help='pixels a side')
  parser.add_argument('--frames', type=int, help='measure this length, here')
  args = parser.parse_args()
  if args.frames:
    measure(args.frames, args.size)
    return
  peaks = []
  for frames in LENGTHS:
    command = [sys.executable, __file__, '--frames', str(frames)]
    command += ['--size', str(args.size)]
    output = subprocess.run(
      command, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    peaks.append(float(output))
    print(f'{frames} frames: {peaks[-1]:.0f} MiB')
  print(f'ratio: {peaks[1] / peaks[0]:.3f}')


if __name__ == '__main__':
  main()
