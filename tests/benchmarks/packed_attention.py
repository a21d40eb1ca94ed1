"""Attention on packed rows by every kernel of this machine's chip.

  python tests/benchmarks/packed_attention.py --rows=32

Rows of the bundled model's training: 1,024 tokens of a few clips, four heads of
64, bfloat16. Each kernel's result and gradients are compared with those of
plain products in float32, then timed, forward and backward.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from spacetime.models.transformer import attention_plan
from spacetime.models.transformer.attention_kernels import Segments

KERNELS = {'cpu': ('xla',), 'gpu': ('xla', 'cudnn'), 'tpu': ('xla', 'splash')}


def segments(rng, rows: int, length: int, clips: int) -> Segments:
  """Some clips and a little padding in each row."""
  clip_BN = np.zeros((rows, length), np.int32)
  for row in clip_BN:
    cuts = np.sort(rng.choice(np.arange(1, length), clips, replace=False))
    for number, (a, b) in enumerate(zip([0, *cuts[:-1]], cuts, strict=True)):
      row[a:b] = number + 1
  return Segments(jnp.asarray(clip_BN), jnp.asarray(clip_BN))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rows', type=int, default=32)
  parser.add_argument('--length', type=int, default=1024)
  parser.add_argument('--repeats', type=int, default=20)
  args = parser.parse_args()
  rng = np.random.default_rng(0)
  shape = (args.rows, args.length, 4, 64)
  q, k, v, dy = (
    jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(4)
  )
  where = segments(rng, args.rows, args.length, 3)

  def run(kernel, dtype):
    @jax.jit
    def both(q, k, v, dy):
      call = lambda *x: attention_plan.attend(*x, where, kernel=kernel)  # noqa: E731
      y, back = jax.vjp(call, *(x.astype(dtype) for x in (q, k, v)))
      return y, *back(dy.astype(dtype))

    actual = jax.block_until_ready(both(q, k, v, dy))
    took = []
    for _ in range(args.repeats):
      began = time.perf_counter()
      jax.block_until_ready(both(q, k, v, dy))
      took.append(time.perf_counter() - began)
    return actual, float(np.median(took))

  with jax.default_matmul_precision('highest'):
    exact, _ = run('xla', jnp.float32)
  print(f'{jax.devices()[0].device_kind}, {shape}, bfloat16')
  for kernel in KERNELS[jax.default_backend()]:
    actual, seconds = run(kernel, jnp.bfloat16)
    away = [
      float(jnp.max(jnp.abs(a - b.astype(jnp.float32))))
      for a, b in zip(exact, actual, strict=True)
    ]
    differences = ', '.join(
      f'{n} {x:.4f}' for n, x in zip(('y', 'dq', 'dk', 'dv'), away, strict=True)
    )
    print(
      f'{kernel:8} {1e3 * seconds:8.2f} ms, largest difference {differences}'
    )


if __name__ == '__main__':
  main()
