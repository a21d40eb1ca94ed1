"""Every preset of experiments/pods.py compiled for its slice, as a table.

  PYTHONPATH=. python tests/benchmarks/dry_runs.py --out=runs.jsonl [NAME ...]

A minute or several each, one at a time. What is in the file already is not
compiled again; the table is of the whole file.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from experiments import pods

HEAD = (
  '| preset | mesh | GiB a device | of | fits | whole activations '
  '| seconds to compile | step, s (estimate) | MFU at most |\n'
  + '| --- ' * 9
  + '|'
)


def main() -> None:
  """Compiles what is missing, prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', default='dry_runs.jsonl')
  parser.add_argument('names', nargs='*')
  flags = parser.parse_args()
  out = pathlib.Path(flags.out)
  done = {entry['name']: entry for entry in read(out)}
  for name in flags.names or pods.names():
    if name not in done:
      done[name] = compiled(name)
      with out.open('a') as f:
        f.write(json.dumps(done[name]) + '\n')
  print(HEAD)
  for entry in done.values():
    print(row(entry))


def read(path: pathlib.Path) -> list[dict]:
  """Lines of an earlier run."""
  return (
    [json.loads(x) for x in path.read_text().splitlines()]
    if (path.exists())
    else []
  )


def compiled(name: str) -> dict:
  """What the dry run of a preset says; without `total` where it failed."""
  ran = subprocess.run(
    [
      *(sys.executable, '-m', 'spacetime', 'compile', '--json'),
      f'--config=experiments/pods.py:{name}',
      f'--topology={name.split("-", 2)[2]}',
    ],
    capture_output=True,
    text=True,
  )
  lines = [x for x in ran.stdout.splitlines() if x.startswith('{')]
  entry = json.loads(lines[-1]) if lines else {'error': ran.stderr[-2000:]}
  return {'name': name} | entry


def row(entry: dict) -> str:
  """A line of the table."""
  if 'total' not in entry:
    return f'| {entry["name"]} | failed: {entry["error"].splitlines()[-1:]} |'
  mesh = ', '.join(f'{k} {n}' for k, n in entry['mesh'].items() if n > 1)
  limit = entry['memory']['limit']
  cells = [
    entry['name'],
    mesh,
    f'{entry["total"] / 2**30:.1f}',
    f'{limit / 2**30:.1f}',
    'yes' if entry['fits'] else f'no: {entry["advice"]}',
    str(len(entry['gathered'])),
    f'{entry["seconds"]:.0f}',
  ]
  if 'estimate' in entry:
    best, worst = entry['estimate']['seconds']
    cells += [
      f'{best:.1f} to {worst:.1f}',
      f'{entry["estimate"]["mfu"][0]:.0%}',
    ]
  else:
    cells += ['', '']
  return '| ' + ' | '.join(cells) + ' |'


if __name__ == '__main__':
  main()
