"""Time and memory of Wan's networks on a CPU, against diffusers'.

  python tests/benchmarks/wan_cpu.py                       # every timed case
  python tests/benchmarks/wan_cpu.py vae_decode umt5 --repeats=9
  python tests/benchmarks/wan_cpu.py vae_decode vae_decode_long --repeats=0
  python tests/benchmarks/wan_cpu.py --side=ours           # without torch
  python tests/benchmarks/wan_cpu.py --vectors=avx2        # as without AVX-512

spacetime and diffusers (transformers for the text encoder) do the same work
with the same random weights in float32, each in a process of its own, so that
thread pools do not mix, and take turns, so that what else the machine does
falls on both. The first line names the processor, since ratios depend on it,
and the last cases are one kernel alone. Then one line a case:

  seconds    medians of the runs, ours and theirs
  ratio      the median of the pairs' ratios: below 1 spacetime is faster
  cpu ratio  the same of processor seconds, which another load disturbs less
  MiB        the most memory each process has held, compilation included; in
             brackets what it held before it ran: libraries and weights
  difference of the results, the largest, and the largest value of theirs

Bars (ratio): dit 0.95, vae_encode 0.9, vae_decode 1, umt5 0.7; memory of
vae_decode_long: theirs.
"""

import argparse
import ctypes
import gc
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time

import wan_cases

ROOT = pathlib.Path(__file__).parents[2]
TIMED = (
  *('dit_forward', 'dit_backward', 'i2v_forward', 'vace_forward'),
  *('four_steps', 'vae_encode', 'vae_decode', 'umt5'),
  *('matmul', 'conv', 'attention', 'attention_xla'),
)
SIDES = ('ours', 'theirs')
# What keeps torch, its oneDNN and MKL, and XLA from wider vectors.
NARROW = {
  'ATEN_CPU_CAPABILITY': 'avx2',
  'ONEDNN_MAX_CPU_ISA': 'AVX2',
  'MKL_ENABLE_INSTRUCTIONS': 'AVX2',
  'XLA_FLAGS': '--xla_cpu_max_isa=AVX2',
}


def peak() -> float:
  """The most memory that this process has held, in MiB."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(r'VmHWM:\s+(\d+) kB', status)[1]) / 1024


def work(case: str, side: str, threads: int, result: str) -> None:
  """Runs once for every line of stdin; answers with numbers in JSON."""
  import numpy as np

  # Before either library counts the processors.
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
  if side == 'theirs':
    import torch

    torch.set_num_threads(threads)
  run = getattr(wan_cases, side)(case)
  # What drawing the weights took is not the network's.
  gc.collect()
  ctypes.CDLL(None).malloc_trim(0)
  pathlib.Path('/proc/self/clear_refs').write_text('5')
  start = peak()
  np.save(result, np.asarray(run()))
  print(json.dumps({'start': start, 'peak': peak()}), flush=True)
  for _ in sys.stdin:
    began, busy = time.perf_counter(), time.process_time()
    np.asarray(run())
    values = {
      'seconds': time.perf_counter() - began,
      'cpu': time.process_time() - busy,
      'peak': peak(),
    }
    print(json.dumps(values), flush=True)


class Worker:
  """A process that waits for its turn."""

  def __init__(
    self, case: str, side: str, threads: int, result: str, vectors: str
  ):
    command = [sys.executable, __file__, case, f'--work={side}']
    command += [f'--threads={threads}', f'--result={result}']
    path = f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'
    narrow = NARROW if vectors == 'avx2' else {}
    self._process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, **narrow, 'PYTHONPATH': path},
    )
    self.built = self._answer()

  def run(self) -> dict[str, float]:
    """One turn: seconds, cpu and peak."""
    self._process.stdin.write('\n')
    self._process.stdin.flush()
    return self._answer()

  def close(self) -> None:
    """Lets it end."""
    self._process.stdin.close()
    self._process.wait()

  def _answer(self) -> dict[str, float]:
    line = self._process.stdout.readline()
    if not line:
      raise SystemExit(f'{self._process.args}: ended; its error is above')
    return json.loads(line)


def compare(case: str, sides, repeats: int, threads: int, vectors: str) -> None:
  """Takes turns, and prints the line of a case."""
  with tempfile.TemporaryDirectory() as folder:
    files = {side: f'{folder}/{side}.npy' for side in sides}
    # One after the other: a peak must not be that of a machine short of it.
    workers = {s: Worker(case, s, threads, files[s], vectors) for s in sides}
    runs = {side: [] for side in sides}
    for _ in range(repeats):
      for side in sides:
        runs[side].append(workers[side].run())
    for worker in workers.values():
      worker.close()
    values = [f'{case}:']
    for side in sides:
      values.append(_summary(side, runs[side], workers[side].built))
    if len(sides) == 2:
      values += [*_ratios(runs), _difference(files)]
    print(*values, flush=True)


def processor() -> str:
  """The processor's name, its widest vectors and the threads of a process: on
  another one the ratios are others."""
  text = pathlib.Path('/proc/cpuinfo').read_text()
  name = re.search(r'model name\s*: (.*)', text)
  vectors = [v for v in ('avx512f', 'avx2', 'asimd') if f' {v} ' in text]
  name = name[1] if name else platform.machine()
  return f'{name}, {vectors[0] if vectors else "no wide vectors"}'


def _summary(side: str, runs, built) -> str:
  most = max(run['peak'] for run in [built, *runs])
  memory = f'{most:.0f} MiB ({built["start"]:.0f});'
  if not runs:
    return f'{side} {memory}'
  each = ' '.join(f'{run["seconds"]:.2f}' for run in runs)
  middle = statistics.median(run['seconds'] for run in runs)
  return f'{side} {middle:.2f} s ({each}), {memory}'


def _ratios(runs):
  pairs = list(zip(runs['ours'], runs['theirs'], strict=True))
  if not pairs:
    return
  for name, key in (('ratio', 'seconds'), ('cpu ratio', 'cpu')):
    ratio = statistics.median(ours[key] / other[key] for ours, other in pairs)
    yield f'{name} {ratio:.3f},'


def _difference(files) -> str:
  import numpy as np

  ours, other = (np.load(files[side]) for side in SIDES)
  difference = np.abs(ours - other).max()
  return f'difference {difference:.1e} of {np.abs(other).max():.2g}'


def main() -> None:
  values = '\n'.join(
    f'  {name:17} {what}' for name, what in wan_cases.CASES.items()
  )
  parser = argparse.ArgumentParser(
    description=__doc__,
    epilog=f'cases:\n{values}',
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    'cases', nargs='*', metavar='case', help='see below; the timed ones if none'
  )
  parser.add_argument(
    '--repeats',
    type=int,
    default=5,
    help='pairs of runs after the first; 0 tells memory only',
  )
  parser.add_argument('--threads', type=int, default=2, help='of each process')
  parser.add_argument(
    '--vectors',
    choices=('widest', 'avx2'),
    default='widest',
    help='avx2: no library uses wider ones, by its own setting',
  )
  parser.add_argument('--side', choices=SIDES, help='only this one')
  parser.add_argument('--work', choices=SIDES, help=argparse.SUPPRESS)
  parser.add_argument('--result', help=argparse.SUPPRESS)
  args = parser.parse_args()
  unknown = set(args.cases) - set(wan_cases.CASES)
  if unknown:
    parser.error(f'{sorted(unknown)}: expected of {list(wan_cases.CASES)}')
  if args.repeats < 0 or args.threads < 1:
    parser.error('--repeats: expected 0 or more; --threads: 1 or more')
  if args.work:
    work(args.cases[0], args.work, args.threads, args.result)
    return
  load = os.getloadavg()[0]
  print(
    f'{processor()}; vectors: {args.vectors}; load before: {load:.1f}',
    flush=True,
  )
  for case in args.cases or TIMED:
    sides = [args.side] if args.side else SIDES
    compare(case, sides, args.repeats, args.threads, args.vectors)


if __name__ == '__main__':
  main()
