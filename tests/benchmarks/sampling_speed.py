"""Cost and gain of the first-block cache and of the KV cache, measured.

  PYTHONPATH=. python tests/benchmarks/sampling_speed.py --num=64

Prints a row for each threshold: steps computed whole, seconds of sampling
without compilation (the least of --rounds), PSNR in dB to what is sampled
without a cache, and the measures of the digits world; then the same seconds
with the text projected at every step.
"""

import argparse
import dataclasses
import time

import jax
import numpy as np

from spacetime.config import networks
from spacetime.data.digits import captions, examples
from spacetime.data.digits import world as world_lib
from spacetime.diffusion import conditioning, sampler
from spacetime.evaluation import world as measures
from spacetime.media.pixels import to_frames
from spacetime.pipeline import pipeline, prompt_embeds


@dataclasses.dataclass(frozen=True)
class Run:
  """What one way of sampling came to."""

  video_BFHWC: np.ndarray
  seconds: float
  computed: str


def main() -> None:
  """Flags -> a table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--checkpoint', default='digits')
  parser.add_argument('--num', type=int, default=64)
  parser.add_argument('--batch', type=int, default=16)
  parser.add_argument('--steps', type=int, default=20)
  parser.add_argument('--solver', default='unipc')
  parser.add_argument('--rounds', type=int, default=2)
  parser.add_argument(
    '--thresholds', type=float, nargs='*', default=[0.02, 0.05, 0.1, 0.2, 0.4]
  )
  flags = parser.parse_args()
  engine = pipeline.load(flags.checkpoint, progress=False).engine
  world = engine.data.world
  scenes = [scene(i, world) for i in range(flags.num)]
  embeds = prompt_embeds.from_prompts(
    engine, [captions.canonical_caption(s) for s in scenes], negative=''
  )
  plain = sample(engine, embeds, flags, first_block_cache=0.0)
  print('threshold  computed  seconds  PSNR dB  colour  count  motion')
  print(row('none', plain, plain, scenes))
  for threshold in flags.thresholds:
    run = sample(engine, embeds, flags, first_block_cache=threshold)
    print(row(f'{threshold:g}', run, plain, scenes), flush=True)
  each = sample(engine, embeds, flags, first_block_cache=0.0, prepare=False)
  print(
    f'text projected once {plain.seconds:.2f} s, at every step '
    f'{each.seconds:.2f} s: {each.seconds / plain.seconds:.3f} times; PSNR '
    f'{psnr(each, plain):.1f} dB'
  )


def scene(i: int, world: world_lib.World) -> world_lib.Scene:
  """A held-out scene that no training uses."""
  record = examples.example(
    i, world=world, split=world_lib.SPLITS[1], seed=1_000_003
  )
  return world_lib.from_json(record['scene'])


def sample(
  engine, embeds, flags, *, first_block_cache: float, prepare=True
) -> Run:
  """All clips in batches; the first round compiles and is not counted."""
  nets = engine.networks
  settings = engine.settings(
    steps=flags.steps,
    solver=flags.solver,
    first_block_cache=first_block_cache,
  )
  sampling = engine.samplers(settings, None)['dit']
  if not prepare:
    sampling = dataclasses.replace(sampling, precompute_kv=None)
  params = {'dit': engine.read('dit')}
  grid = networks.clip_geometry(engine.data, nets)
  condition = conditioning.pure_noise(
    flags.batch, (*grid.latent, nets.autoencoder.z_dim)
  )
  run = jax.jit(sampling.run)
  seconds = []
  for _ in range(flags.rounds + 1):
    videos, counts, spent = [], [], 0.0
    for first in range(0, flags.num, flags.batch):
      keys = sampler.clip_keys(0, flags.batch, first=first)
      text_BSY, negative_BSY = (
        prompt_embeds.batch(
          rows[first : first + flags.batch], length=nets.text_length
        )
        for rows in (embeds.text, embeds.negative)
      )
      carry = sampling.init(keys, condition)
      began = time.perf_counter()
      carry = jax.block_until_ready(
        run(params, carry, text_BSY, negative_BSY, condition)
      )
      spent += time.perf_counter() - began
      z_Bfhwc = sampling.finalize(carry)
      frozen = {'autoencoder': engine.read('autoencoder')}
      videos.append(to_frames(np.asarray(nets.decode(frozen, z_Bfhwc))))
      if sampling.cached_transform is not None:
        counts.append((int(carry.cache[0].computed), int(carry.cache[0].steps)))
    seconds.append(spent)
  computed, of = np.sum(counts, 0) if counts else (1, 1)
  return Run(
    np.concatenate(videos), min(seconds[1:]), f'{100 * computed / of:.0f} %'
  )


def psnr(run: Run, plain: Run) -> float:
  """Of pixels, in dB; infinite where nothing differs."""
  error = np.float64(run.video_BFHWC) - plain.video_BFHWC
  with np.errstate(divide='ignore'):
    return float(20 * np.log10(255 / np.sqrt(np.mean(error**2))))


def row(name: str, run: Run, plain: Run, scenes) -> str:
  """A line of the table."""
  metrics = measures.summarise(
    measures.score(measures.measure(clip), scene)
    for clip, scene in zip(run.video_BFHWC, scenes, strict=True)
  )
  return (
    f'{name:9}  {run.computed:>8}  {run.seconds:7.2f}  '
    f'{psnr(run, plain):7.1f}  {metrics["colour"]:6.3f} '
    f'{metrics["count"]:6.3f}  {metrics["motion"]:6.3f}'
  )


if __name__ == '__main__':
  main()
