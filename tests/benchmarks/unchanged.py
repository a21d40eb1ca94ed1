"""Hashes the results of 33 commands, to show that a change leaves them as is.

  python tests/benchmarks/unchanged.py --inputs=DIR --out=before.json
  ... change the code ...
  python tests/benchmarks/unchanged.py --inputs=DIR --out=after.json \\
    --compare=before.json

Every case is a command line in a process of its own. Sampling cases hash the
decoded frames and their shape, from PNG files (lossless) unless the case tests
a video file. Training cases hash the exact loss of each step, evaluation cases
all numbers but times. With --compare, one line for each case says whether it is
the same, and the exit code is 1 if any differs.

The first run writes the inputs into DIR: a tiny random model in diffusers'
layout (wan/), LoRA weights of it (lora.safetensors), clips of the bundled model
and images (seven.mp4, zero.mp4, first.png, mask.png). Compare two versions of
the code on the same DIR, and on the same number of cores: XLA divides its work
by it.

The numbers are those of one machine and of one set of packages: XLA compiles
for the CPU that it runs on. Both are stored beside the hashes, and a comparison
reports where they differ. To run an older version of the code, write its names
of commands, flags and config keys into COMMANDS and FLAGS.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import time

import av
import jax
import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from spacetime.checkpoint.interop import lora as lora_files  # noqa: E402
from spacetime.models.transformer import lora as lora_lib  # noqa: E402
from tests.helpers import published_folder, seeded_weights  # noqa: E402

# What follows `python`, by the name of a command in CASES.
COMMANDS = {
  'sample': ('-m', 'spacetime', 'sample'),
  'train': ('-m', 'spacetime', 'train'),
  'evaluate': ('-m', 'spacetime', 'evaluate'),
}
# Other names of flags and config keys in the code that is run, such as
# 'frames': 'num_frames'. The longest prefix of a dotted key counts.
FLAGS = {}
# One thread, so that no sum depends on who comes first.
ENVIRONMENT = {
  'JAX_PLATFORMS': 'cpu',
  'XLA_FLAGS': '--xla_cpu_multi_thread_eigen=false',
  'OMP_NUM_THREADS': '1',
  'OPENBLAS_NUM_THREADS': '1',
  'PYTHONHASHSEED': '0',
  'TF_CPP_MIN_LOG_LEVEL': '3',
}
PACKAGES = ('jax', 'jaxlib', 'numpy', 'av', 'pillow', 'optax', 'grain')

RED = 'prompt=a red 3 moves to the right'
BLUE = 'prompt=a blue 7 wanders about'
SNOW = 'prompt=snow over a lake'
SAMPLE = ('sample', 'checkpoint=digits', 'steps=6')
WAN = (
  *('sample', 'checkpoint=@wan', 'steps=6', 'size=32x32', 'frames=9'),
  *('seed=5', 'prompt_embeds_cache='),
)
LITTLE = (
  'config.train.checkpoint_every=100',
  'config.train.evaluate_every=0',
  'config.train.sheet_every=0',
  'config.train.log_every=1',
  'config.data.held_out_clips=8',
  'config.train.held_out=4',
)
# No decay: its steps are counted from the last one, which a resume moves.
DIGITS = (
  *('train', 'config=experiments/digits.py:cpu'),
  *LITTLE,
  *('config.data.clips=64', 'config.data.batch_size=4'),
  'config.train.evaluate_every=10',
  'config.train.pca_init_clips=8',
  'config.optimizer.decay=0.0',
  'config.optimizer.warmup=5',
)
# A case is one command, or several of one work directory, of which the last
# one's result counts. '@NAME' is a file of --inputs; a command without `out` or
# `workdir` gets one.
CASES = {
  'text': [(*SAMPLE, RED, 'seed=7')],
  'text_mp4': [(*SAMPLE, RED, 'seed=7', 'out=video.mp4')],
  'text_fast': [
    (
      *('sample', RED, 'steps=12', 'guidance_kind=cfg_zero'),
      *('solver=unipc', 'first_block_cache=0.1'),
    )
  ],
  'text_apg': [(*SAMPLE, RED, 'guidance_kind=apg', 'solver=heun')],
  'text_negative': [
    (*SAMPLE, BLUE, 'negative_prompt=a red 0 stands still', 'solver=dpm')
  ],
  'text_wide': [(*SAMPLE, BLUE, 'size=96x48', 'frames=33', 'solver=euler')],
  'text_long': [(*SAMPLE, BLUE, 'frames=65', 'rope_scaling=riflex')],
  'prompts_file': [(*SAMPLE, 'prompts_file=@prompts.txt', 'num=2')],
  'image_first': [(*SAMPLE, RED, 'image=@first.png')],
  'image_last': [(*SAMPLE, RED, 'image=@first.png', 'image_at=last')],
  'extend': [
    (*SAMPLE, RED, 'mode=extend', 'video=@seven.mp4', 'cond_frames=9')
  ],
  'extend_backward': [
    (*SAMPLE, RED, 'mode=extend_backward', 'video=@seven.mp4')
  ],
  'connect': [
    (
      *(*SAMPLE, BLUE, 'mode=connect', 'frames=33', 'temperature=0.6'),
      *('video=@seven.mp4', 'video2=@zero.mp4'),
    )
  ],
  'loop': [(*SAMPLE, BLUE, 'mode=loop', 'frames=33', 'video=@seven.mp4')],
  'loop_best_of': [
    (
      *(*SAMPLE, BLUE, 'mode=loop', 'frames=33', 'video=@seven.mp4'),
      *('best_of=2', 'guidance=1'),
    )
  ],
  'inpaint': [
    (*SAMPLE, BLUE, 'mode=inpaint', 'video=@seven.mp4', 'mask=@mask.png')
  ],
  'outpaint': [
    (*SAMPLE, RED, 'mode=outpaint', 'video=@seven.mp4', 'size=96x64')
  ],
  'edit': [(*SAMPLE, BLUE, 'mode=edit', 'video=@seven.mp4', 'strength=0.8')],
  'edit_masked': [
    (
      *(*SAMPLE, BLUE, 'mode=edit', 'video=@seven.mp4', 'strength=0.8'),
      *('mask=@mask.png', 'cond_frames=4'),
    )
  ],
  'still': [(*SAMPLE, BLUE, 'mode=still', 'seed=3')],
  'seconds': [(*SAMPLE, BLUE, 'seconds=10', 'out=video.mp4')],
  'seconds_extend': [
    (
      *(*SAMPLE, RED, 'seconds=4', 'mode=extend', 'video=@seven.mp4'),
      *('context_noise=0.1', 'out=video.mp4'),
    )
  ],
  'schedule': [
    (
      *(*SAMPLE, 'seconds=5', 'out=video.mp4'),
      'prompt_schedule=0: a red 0 wanders about; 2: a blue 7 stands still',
    )
  ],
  'wan': [(*WAN, SNOW)],
  'wan_lora': [(*WAN, SNOW, 'lora=@lora.safetensors', 'lora_strength=0.8')],
  'wan_tiles': [(*WAN, SNOW, 'decode_tiles=2x1', 'decode_overlap=2')],
  'wan_image': [(*WAN, SNOW, 'image=@first.png')],
  'evaluate': [
    ('evaluate', 'checkpoint=digits', 'num=4', 'steps=6', 'batch_size=4')
  ],
  'evaluate_autoencoder': [
    ('evaluate', 'checkpoint=digits_autoencoder', 'num=2')
  ],
  'train': [(*DIGITS, 'config.train.steps=20')],
  'train_resumed': [
    (*DIGITS, 'config.train.steps=10'),
    (*DIGITS, 'config.train.steps=20'),
  ],
  'train_packed': [
    (
      *('train', 'config=experiments/digits_mixed.py:tiny', *LITTLE),
      *('config.train.steps=6', 'config.train.evaluate_every=6'),
    )
  ],
  'train_autoencoder': [
    (
      *('train', 'config=experiments/digits_autoencoder.py:tiny', *LITTLE),
      *('config.train.steps=6', 'config.train.evaluate_every=6'),
    )
  ],
}
# Cases of which only the losses after a step count: those of a resume.
AFTER = {'train_resumed': 10}
# Pairs whose losses must agree: an interrupted run and an uninterrupted one.
SAME = {'train_resumed': 'train'}
FAILED = 'failed'
PROMPTS = 'a green 0 bounces\na yellow 4 circles\n'


def main() -> None:
  """Runs the cases, writes their hashes, compares them."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--inputs', type=pathlib.Path, required=True)
  parser.add_argument('--out', type=pathlib.Path, help='the hashes, a JSON')
  parser.add_argument(
    '--compare', type=pathlib.Path, help='hashes of an earlier version'
  )
  parser.add_argument('--only', nargs='+', choices=CASES, metavar='CASE')
  parser.add_argument(
    '--root', type=pathlib.Path, default='.', help='the code that is run'
  )
  parser.add_argument(
    '--keep', type=pathlib.Path, help='an empty folder for what cases write'
  )
  flags = parser.parse_args()
  runner = Runner(flags.root.resolve(), flags.inputs.resolve())
  before = json.loads(flags.compare.read_text()) if flags.compare else None
  hashes, seconds = {}, {}
  with tempfile.TemporaryDirectory(prefix='spacetime_unchanged_') as temporary:
    folder = (flags.keep or pathlib.Path(temporary)).resolve()
    make_inputs(runner, folder)
    for name in flags.only or CASES:
      began = time.monotonic()
      try:
        hashes[name] = run_case(runner, name, folder / name)
      except RuntimeError as e:  # reported; the others still run
        print(e, flush=True)
        hashes[name] = FAILED
      seconds[name] = round(time.monotonic() - began, 1)
      print(f'{name:21} {hashes[name][:16]} {seconds[name]:6.1f} s', flush=True)
    check_resumed(folder, hashes)
  report = {'machine': machine(), 'seconds': seconds, 'hashes': hashes}
  if flags.out:
    flags.out.write_text(json.dumps(report, indent=2) + '\n')
  failed = [name for name, value in hashes.items() if value == FAILED]
  if failed:
    print(f'failed: {", ".join(failed)}')
  changed = bool(before) and compare(before, report)
  sys.exit(int(changed or bool(failed)))


class Runner:
  """Runs commands of the code in a folder.

  Args:
    root: the folder; its package is the one that is imported.
    inputs: what '@NAME' is in.

  Raises:
    SystemExit: another package would be imported.
  """

  def __init__(self, root: pathlib.Path, inputs: pathlib.Path):
    self.inputs, self._root = inputs, root
    self._environment = os.environ | ENVIRONMENT | {'PYTHONPATH': str(root)}
    imported = self._python('-c', 'import spacetime; print(spacetime.__file__)')
    if not pathlib.Path(imported.stdout.strip()).is_relative_to(root):
      sys.exit(f'{imported.stdout.strip()} is not under {root}; change --root')
    print(f'{root}: {imported.stdout.strip()}', flush=True)

  def __call__(self, command: tuple[str, ...], folder: pathlib.Path) -> None:
    """Runs a command of CASES that writes to a folder."""
    kind, *arguments = command
    # In this order: --config comes before its overrides.
    options = dict(argument.split('=', 1) for argument in arguments)
    if kind == 'sample':
      options['out'] = str(folder / options.get('out', 'video.png'))
    elif kind == 'evaluate':
      options['out'] = str(folder)
    else:
      options['workdir'] = str(folder)
      options['config.data.dir'] = str(folder.with_name(f'{folder.name}_data'))
    # Of this run alone: many cases have the same programs.
    options['compilation_cache'] = str(folder.with_name('compiled'))
    self._python(
      *COMMANDS[kind],
      *(f'--{spelled(k)}={self._path(v)}' for k, v in options.items()),
    )

  def _path(self, value: str) -> str:
    return str(self.inputs / value[1:]) if value.startswith('@') else value

  def _python(self, *arguments: str) -> subprocess.CompletedProcess:
    ran = subprocess.run(
      [sys.executable, *arguments],
      cwd=self._root,
      env=self._environment,
      capture_output=True,
      text=True,
    )
    if ran.returncode:
      raise RuntimeError(f'{" ".join(arguments)}:\n{ran.stderr[-3000:]}')
    return ran


def spelled(name: str) -> str:
  """A flag as the code calls it now."""
  parts = name.split('.')
  for i in range(len(parts), 0, -1):
    head = '.'.join(parts[:i])
    if head in FLAGS:
      return '.'.join([FLAGS[head], *parts[i:]])
  return name


def make_inputs(runner: Runner, folder: pathlib.Path) -> None:
  """Writes the inputs that do not exist yet."""
  inputs = runner.inputs
  if not (inputs / 'wan').exists():
    published_folder.write(inputs / 'wan')
  if not (inputs / 'lora.safetensors').exists():
    write_lora(inputs / 'lora.safetensors')
  clips = {'seven': (RED, 'seed=7'), 'zero': (BLUE, 'seed=11')}
  for name, arguments in clips.items():
    path = inputs / f'{name}.mp4'
    if not path.exists():
      sampled = folder / 'inputs'
      runner((*SAMPLE, *arguments, f'out={name}.mp4'), sampled)
      path.write_bytes((sampled / f'{name}.mp4').read_bytes())
      print(f'{path}: written', flush=True)
  if not (inputs / 'first.png').exists():
    Image.fromarray(read_video(inputs / 'seven.mp4')[8]).save(
      inputs / 'first.png'
    )
  if not (inputs / 'mask.png').exists():
    mask_HW = np.zeros((64, 64), np.uint8)
    mask_HW[16:48, 24:56] = 255
    Image.fromarray(mask_HW).save(inputs / 'mask.png')
  (inputs / 'prompts.txt').write_text(PROMPTS)


def write_lora(path: pathlib.Path) -> None:
  """Writes random LoRA weights of the tiny published model."""
  config = lora_lib.LoraConfig(rank=3, alpha=6.0)
  model = published_folder.TRANSFORMER
  shapes = jax.eval_shape(
    lambda key: lora_lib.init(key, config, model), jax.random.key(0)
  )
  params = jax.tree_util.tree_map_with_path(
    lambda path, leaf: seeded_weights.draw(
      jax.tree_util.keystr(path), leaf.shape, 0.3
    ),
    shapes,
  )
  lora_files.write(path, params, config, model, dialect='diffusers')


def run_case(runner: Runner, name: str, folder: pathlib.Path) -> str:
  """Runs a case's commands; the hash of what the last one has left."""
  commands = CASES[name]
  for command in commands:
    runner(command, folder)
  kind = commands[-1][0]
  if kind == 'sample':
    return hash_frames(folder)
  if kind == 'evaluate':
    numbers = list(leaves(json.loads((folder / 'metrics.json').read_text())))
    return digest(json.dumps(numbers).encode())
  return digest(json.dumps(losses(folder, after=AFTER.get(name, 0))).encode())


def hash_frames(folder: pathlib.Path) -> str:
  """The hash of all videos and images in a folder, by their order."""
  parts = []
  for path in sorted(folder.iterdir()):
    if path.suffix == '.json' or path.stem.endswith('-sheet'):
      continue
    frames_FHWC = read_video(path)
    parts += [f'{frames_FHWC.shape}'.encode(), frames_FHWC.tobytes()]
  if not parts:
    raise RuntimeError(f'{folder}: no video was written')
  return digest(*parts)


def read_video(path: pathlib.Path) -> np.ndarray:
  """A video, an image, or a folder of images as uint8 (F, H, W, 3)."""
  if path.is_dir():
    files = sorted(path.iterdir())
    return np.concatenate([read_video(file) for file in files])
  if path.suffix == '.png':
    return np.asarray(Image.open(path).convert('RGB'))[None]
  with av.open(str(path)) as container:
    frames = [f.to_ndarray(format='rgb24') for f in container.decode(video=0)]
  return np.stack(frames)


def losses(folder: pathlib.Path, *, after: int = 0) -> list[list]:
  """[step, losses of training and of held-out clips] of a run's lines."""
  rows = []
  for text in (folder / 'metrics.jsonl').read_text().splitlines():
    line = json.loads(text)
    values = [v for k, v in line.items() if 'loss' in k or 'held_out' in k]
    if values and line['step'] > after:
      rows.append([line['step'], *values])
  if not rows:
    raise RuntimeError(f'{folder}: no losses were written')
  return rows


def leaves(value, name: str = ''):
  """All numbers of nested values but times, in their order."""
  if isinstance(value, dict):
    for key, inner in value.items():
      yield from leaves(inner, key)
  elif isinstance(value, (int, float)) and 'second' not in name:
    yield value


def digest(*parts: bytes) -> str:
  """SHA-256 of bytes, one after the other."""
  sha = hashlib.sha256()
  for part in parts:
    sha.update(part)
  return sha.hexdigest()


def check_resumed(folder: pathlib.Path, hashes: dict[str, str]) -> None:
  """Says whether resumed runs went on as the uninterrupted ones did."""
  for resumed, uninterrupted in SAME.items():
    if FAILED not in (hashes.get(n, FAILED) for n in (resumed, uninterrupted)):
      rows = [
        losses(folder / n, after=AFTER[resumed])
        for n in (resumed, uninterrupted)
      ]
      same = 'the losses' if rows[0] == rows[1] else 'OTHER LOSSES than those'
      print(f'{resumed}: {same} of {uninterrupted} after step {AFTER[resumed]}')


def machine() -> dict[str, str]:
  """What the numbers depend on beside the code."""
  versions = {name: importlib.metadata.version(name) for name in PACKAGES}
  model = platform.processor()
  cpu = pathlib.Path('/proc/cpuinfo')
  if cpu.exists():
    named = re.search(r'model name\s*: (.*)', cpu.read_text())
    model = named[1] if named else model
  return versions | {'python': platform.python_version(), 'cpu': model}


def compare(before: dict, after: dict) -> bool:
  """Prints a line for each case; whether any has changed."""
  for name, value in before['machine'].items():
    if after['machine'][name] != value:
      print(f'{name}: {value}, now {after["machine"][name]}: hashes may differ')
  changed = 0
  for name, value in after['hashes'].items():
    was = before['hashes'].get(name)
    changed += was != value
    verdict = 'the same' if was == value else f'CHANGED: {was} -> {value}'
    print(f'{name:21} {verdict}')
  print(f'{changed} of {len(after["hashes"])} cases changed')
  return bool(changed)


if __name__ == '__main__':
  main()
