"""A minute of the bundled model: its drift, and memory against five seconds.

  python tests/benchmarks/rollout.py --out=runs/minute

Characters that stand or wander about, since others walk out of the picture.
Each ten seconds are measured in windows as long as the clips of training. Every
run is a process of its own.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys

import numpy as np

import spacetime
from spacetime.data.digits import captions, world
from spacetime.evaluation import world as measures
from spacetime.media import contact_sheet

FRAMES, FPS = 17, 8
COLOURS = tuple(world.COLOURS)
MOTIONS = ('still', 'wandering')
GROUNDS = ('black', 'navy', 'brown', 'charcoal')


def scene(i: int) -> world.Scene:
  """One character in the middle, of the bundled model's half of the world."""
  character = world.Character(
    digit=i % 10,
    glyph=0,
    colour=COLOURS[i % len(COLOURS)],
    size='medium',
    start=(32.0, 32.0),
    motion=MOTIONS[i % len(MOTIONS)],
    speed='fast',
  )
  ground = GROUNDS[i % len(GROUNDS)]
  return world.Scene(
    characters=(character,),
    background=world.Background('plain', ground, ground),
    camera='still',
  )


def run(out: pathlib.Path, seconds: float, *more: str) -> float:
  """Samples in a process of its own; its peak of memory in MiB."""
  command = [sys.executable, '-m', 'spacetime', 'sample', f'--out={out}']
  pid = subprocess.Popen([*command, f'--seconds={seconds}', *more]).pid
  _, status, used = os.wait4(pid, 0)
  if status:
    raise SystemExit(f'sampling of {seconds} seconds failed: {status}')
  return used.ru_maxrss / 1024


def drift(videos, scenes) -> list[dict[str, float]]:
  """Mean scores of every ten seconds."""
  report = []
  for start in range(0, len(videos[0]) - 10 * FPS + 1, 10 * FPS):
    scores = [
      measures.score(measures.measure(video[at : at + FRAMES]), target)
      for video, target in zip(videos, scenes, strict=True)
      for at in range(start, start + 10 * FPS - FRAMES + 2, FRAMES - 1)
    ]
    names = ('count', 'colour', 'digit', 'motion')
    report.append({n: float(np.mean([s[n] for s in scores])) for n in names})
  return report


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', default='runs/minute')
  parser.add_argument('--videos', type=int, default=8)
  parser.add_argument('--seconds', type=float, default=60.0)
  args, more = parser.parse_known_args()  # the rest are flags of sample
  out = pathlib.Path(args.out)
  out.mkdir(parents=True, exist_ok=True)
  scenes = [scene(i) for i in range(args.videos)]
  prompts = [captions.canonical_caption(target) for target in scenes]
  one = f'--prompt={prompts[0]}'
  peaks = [
    run(out / f'{name}.mp4', seconds, one, *more)
    for name, seconds in (('five', 5.0), ('minute', args.seconds))
  ]
  prompts_file = out / 'prompts.txt'
  prompts_file.write_text('\n'.join(prompts) + '\n')
  run(out / 'a.mp4', args.seconds, f'--prompts_file={prompts_file}', *more)
  videos = [
    spacetime.read_video(path).frames for path in sorted(out.glob('a-*.mp4'))
  ]
  contact_sheet.write(out / 'sheet.png', videos, prompts, columns=13, scale=1)
  report = {
    'frames': len(videos[0]),
    'peak_mib': peaks,
    'peak_ratio': peaks[1] / peaks[0],
    'drift': drift(videos, scenes),
  }
  (out / 'rollout.json').write_text(json.dumps(report, indent=2) + '\n')
  own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  print(f'peaks {peaks} MiB, ratio {report["peak_ratio"]:.3f} (here {own:.0f})')
  for i, row in enumerate(report['drift']):
    print(
      f'{10 * i:3}-{10 * i + 10} s', {k: round(v, 3) for k, v in row.items()}
    )


if __name__ == '__main__':
  main()
