"""The commands as a user meets them: what they write and what they refuse."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest
from PIL import Image

from spacetime.media import video_writer
from spacetime.pipeline import best_of_n
from tests.helpers import commands, xla_flags

ROOT = pathlib.Path(__file__).parents[2]
TINY = 'experiments/digits_pixels.py:tiny'
TINY_AUTOENCODER = 'experiments/digits_autoencoder.py:tiny'
ENVIRONMENT = dict(
  os.environ,
  PYTHONPATH=str(ROOT),
  JAX_PLATFORMS='cpu',
  XLA_FLAGS=xla_flags.COMPILE_QUICKLY,
)
CACHE = f'--compilation_cache={ROOT}/.cache/jax_tests'


def python(*arguments, **kwargs):
  if arguments[0] == '-m':
    arguments = (*arguments, CACHE)
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    env=ENVIRONMENT,
    capture_output=True,
    text=True,
    timeout=600,
    **kwargs,
  )


def refused(command, cases):
  """Checks that each list of arguments is answered with its text."""
  answers = {
    text: commands.run(command, *arguments).refusal()
    for text, arguments in cases.items()
  }
  wrong = {
    text: answer for text, answer in answers.items() if text not in answer
  }
  assert not wrong, wrong


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('commands')


def arguments(folder, workdir, *more, config=TINY):
  """Flags of a training run."""
  return (
    f'--config={config}',
    f'--workdir={workdir}',
    f'--config.data.dir={folder / "data"}',
    '--config.optimizer.name=adamw',
    *more,
  )


def train(folder, workdir, *more, config=TINY):
  more = (*more, '--config.data.batch_size=8')  # eight emulated devices
  commands.run('train', *arguments(folder, workdir, *more, config=config)).ok()


@pytest.fixture(scope='module')
def model(folder):
  """A work directory of a tiny model, of two steps."""
  workdir = folder / 'model'
  more = ('--config.train.steps=2', '--cpu_devices=2')
  ran = python('-m', 'spacetime', 'train', *arguments(folder, workdir, *more))
  assert ran.returncode == 0, ran.stderr[-3000:]
  return workdir


@pytest.fixture(scope='module')
def codec(folder):
  """A weights folder of a tiny autoencoder."""
  workdir, out = folder / 'codec_run', folder / 'codec'
  train(folder, workdir, '--config.train.steps=2', config=TINY_AUTOENCODER)
  commands.run('export', f'--checkpoint={workdir}', f'--out={out}').ok()
  return out


def sample(model, out, *more):
  return commands.run(
    'sample', f'--checkpoint={model}', f'--out={out}', '--steps=2', *more
  ).ok()


def frames(path):
  with av.open(str(path)) as container:
    return [f.to_ndarray(format='rgb24') for f in container.decode(video=0)]


def test_train_writes_a_complete_run(model):
  names = {path.name for path in model.iterdir()}
  assert {
    'config.json',
    'tokenizer.model',
    'checkpoints',
    'metrics.jsonl',
    'tensorboard',
    'sheets',
    'curve.png',
  } <= names
  lines = [
    json.loads(x) for x in (model / 'metrics.jsonl').read_text().splitlines()
  ]
  assert any('held_out/loss_t0.5' in line for line in lines)
  assert Image.open(model / 'sheets' / '0000002.png').width > 100


def test_sample_writes_a_video_and_its_sidecar(model, tmp_path):
  out = tmp_path / 'three.mp4'
  ran = python(
    *('-m', 'spacetime', 'sample', f'--checkpoint={model}', f'--out={out}'),
    *('--steps=2', '--prompt=a red 3 moving left', '--seed=5'),
  )
  assert ran.returncode == 0, ran.stderr[-3000:]
  video = frames(out)
  assert len(video) == 5 and video[0].shape == (32, 32, 3)
  metadata = json.loads((tmp_path / 'three.mp4.json').read_text())
  assert metadata['prompt'] == 'a red 3 moving left' and metadata['seed'] == 5
  assert (
    metadata['sampling']['steps'] == 2 and len(metadata['weights_hash']) == 16
  )


def test_a_video_longer_than_those_trained_on(tmp_path):
  videos = {}
  for kind in ('none', 'riflex'):
    out = tmp_path / f'{kind}.mp4'
    sample(
      'digits',
      out,
      '--prompt=a red 3 moving left',
      '--frames=53',
      '--steps=2',
      f'--rope_scaling={kind}',
    )
    videos[kind] = frames(out)
    assert len(videos[kind]) == 53
    metadata = json.loads((tmp_path / f'{kind}.mp4.json').read_text())
    assert metadata['sampling']['rope_scaling'] == kind
  assert not np.array_equal(videos['none'], videos['riflex'])


def test_sample_many_prompts_from_a_file(model, tmp_path):
  (tmp_path / 'prompts.txt').write_text('a red 3 moving left\n\na blue 5\n')
  sample(
    model,
    tmp_path / 'clip.gif',
    f'--prompts_file={tmp_path / "prompts.txt"}',
    '--num=2',
    '--batch_size=3',
    '--frames=9',
  )
  assert len(list(tmp_path.glob('clip-00?.gif'))) == 4
  assert (tmp_path / 'clip-sheet.png').exists()
  assert Image.open(tmp_path / 'clip-000.gif').n_frames > 1


def test_the_first_frame_comes_from_an_image(model, tmp_path):
  image = np.zeros((32, 32, 3), np.uint8)
  image[8:24, 4:20] = (250, 30, 200)
  Image.fromarray(image).save(tmp_path / 'first.png')
  sample(
    model,
    tmp_path / 'frames.png',
    '--prompt=a red 3 moving left',
    f'--image={tmp_path / "first.png"}',
  )
  first = sorted(tmp_path.rglob('frames*/*.png'))[0]
  np.testing.assert_allclose(
    np.asarray(Image.open(first), np.int32), image, atol=1
  )


def test_a_video_goes_on(model, tmp_path):
  levels = np.arange(40, 180, 20, dtype=np.uint8)[:, None, None, None]
  source = tmp_path / 'clip.mp4'
  video_writer.write_video(
    source, levels + np.zeros((32, 32, 3), np.uint8), fps=8
  )
  sample(
    model,
    tmp_path / 'longer.png',
    '--prompt=a red 3 moving left',
    '--mode=extend',
    f'--video={source}',
    '--cond_frames=3',
    '--best_of=3',
    '--decode_shards=2',
  )
  pictures = sorted((tmp_path / 'longer').iterdir())
  assert len(pictures) == 7 + 5 - 3
  for picture, frame in zip(pictures, frames(source), strict=False):
    np.testing.assert_allclose(
      np.asarray(Image.open(picture), np.int32), frame, atol=2
    )
  metadata = json.loads((tmp_path / 'longer.png.json').read_text())
  assert metadata['mode'] == 'extend' and metadata['cond_frames'] == 3
  assert metadata['decode_shards'] == 2 and metadata['video'] == str(source)
  # The result is the smoothest of those that --num samples.
  assert metadata['best_of'] == 3
  sample(
    model,
    tmp_path / 'all.png',
    '--prompt=a red 3 moving left',
    '--mode=extend',
    f'--video={source}',
    '--cond_frames=3',
    '--num=3',
  )
  videos = [
    np.stack([np.asarray(Image.open(p)) for p in sorted(folder.iterdir())])
    for folder in (tmp_path / 'longer', *sorted(tmp_path.glob('all-0*/')))
  ]
  rough = [best_of_n.roughness(video, 7) for video in videos[1:]]
  assert metadata['candidate'] == np.argmin(rough) and len(set(rough)) == 3
  np.testing.assert_array_equal(videos[0], videos[1 + metadata['candidate']])


def test_an_endpoint_that_does_not_answer_leaves_the_prompt(model, tmp_path):
  ran = sample(
    model,
    tmp_path / 'a.png',
    '--prompt=a red 3 moving left',
    '--frames=1',
    '--expand_prompt=http://127.0.0.1:9/v1',
  )
  assert 'expand_prompt: http://127.0.0.1:9/v1' in ran.err
  assert 'continuing with the original prompt: a red 3 moving left' in ran.err
  metadata = json.loads((tmp_path / 'a.png.json').read_text())
  assert (
    metadata['prompt'] == metadata['original_prompt'] == 'a red 3 moving left'
  )
  assert metadata['expand_prompt'] == 'http://127.0.0.1:9/v1'


def test_export_samples_the_same(model, folder, tmp_path):
  ran = commands.run('export', f'--checkpoint={model}', f'--out={folder}/out')
  ran.ok()
  for name, path in (('a', model), ('b', folder / 'out')):
    sample(path, tmp_path / f'{name}.png', '--prompt=a red 3')
  pictures = [sorted(tmp_path.rglob(f'{name}*/*.png')) for name in 'ab']
  assert len(pictures[0]) == 5
  for a, b in zip(*pictures, strict=True):
    assert a.read_bytes() == b.read_bytes()


def test_evaluate_measures_samples_and_real_clips(model, tmp_path):
  ran = commands.run(
    'evaluate',
    '--world=digits',
    f'--checkpoint={model}',
    '--num=4',
    '--steps=2',
    '--guidance=1',
    '--temperature=0.5',
    '--size=48x32',
    '--frames=9',
    '--characters=1',
    '--motions=up,down',
    '--cameras=pan left, pan right',
    f'--out={tmp_path}',
  )
  ran.ok()
  metrics = json.loads((tmp_path / 'metrics.json').read_text())
  assert (metrics['frames'], metrics['size']) == (9, '48x32')
  assert (metrics['guidance'], metrics['temperature']) == (1.0, 0.5)
  assert metrics['sampled']['clips'] == metrics['real']['clips'] == 4
  assert metrics['real']['colour'] == metrics['real']['motion'] == 1.0
  assert metrics['scenes']['cameras'] == ['pan left', 'pan right']
  assert {p.name for p in tmp_path.iterdir()} >= {'sheet.png', 'chart.png'}


SMALL_LATENT = (
  '--config.autoencoder.kind=weights',
  '--config.flow.prediction=velocity',
  '--config.optimizer.freeze=()',
  '--config.train.pca_init_clips=0',
  '--config.model.width=48',
  '--config.model.heads=2',
  '--config.model.layers=2',
  '--config.model.mlp=96',
  '--config.model.patch=(1,2,2)',
  '--config.data.frames=5',
  '--config.data.height=32',
  '--config.data.width=32',
  '--config.data.world.max_characters=1',
  '--config.data.clips=32',
  '--config.data.held_out_clips=16',
  '--config.data.batch_size=4',
  '--config.train.steps=2',
  '--config.train.held_out=4',
)


def test_trains_on_the_latents_of_an_autoencoder(codec, folder, tmp_path):
  train(
    folder,
    tmp_path / 'run',
    *SMALL_LATENT,
    f'--config.autoencoder.weights={codec}',
    config=TINY,
  )
  # The run stands alone: it has its own copy of the autoencoder.
  assert (tmp_path / 'run' / 'autoencoder' / 'weights.safetensors').exists()
  saved = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert saved['autoencoder']['weights'] == 'autoencoder'
  sample(tmp_path / 'run', tmp_path / 'a.mp4', '--prompt=a red 3')
  assert len(frames(tmp_path / 'a.mp4')) == 5


def test_encodes_once_and_trains_on_the_cache(codec, folder, tmp_path):
  clips = [
    flag
    for flag in SMALL_LATENT
    if flag.startswith('--config.data') and 'batch' not in flag
  ]
  ran = commands.run(
    'encode',
    f'--checkpoint={codec}',
    f'--config={TINY}',
    f'--config.data.dir={folder / "data"}',
    *clips,
    f'--out={tmp_path / "cache"}',
    '--batch_size=16',
    '--dtype=bfloat16',
  )
  ran.ok()
  assert '48/48' in ran.err and 'latents: 100%' in ran.err
  train(
    folder,
    tmp_path / 'run',
    *SMALL_LATENT,
    f'--config.autoencoder.weights={codec}',
    '--config.data.name=cache',
    f'--config.data.dir={tmp_path / "cache"}',
    '--config.train.sheet_every=0',  # as from pixels, above
    config=TINY,
  )
  saved = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert len(saved['cache']['autoencoder']) == 16


def test_encode_refuses(codec, tmp_path):
  good = [f'--checkpoint={codec}', f'--out={tmp_path}/cache']
  data = f'--data={tmp_path}'
  cases = {
    '--checkpoint: expected a model': [*good[1:], data],
    '--out: expected a folder': [good[0], data],
    'expected one of --data and --config': good,
    '--batch_size=0: expected 1 or more': [*good, data, '--batch_size=0'],
    'has no videos': [*good, data],
    "'nowhere': no such folder": ['--checkpoint=nowhere', *good[1:], data],
    'expected captions, since an autoencoder': [
      *good,
      data,
      '--text=embeddings',
    ],
    'frames=6: expected 4k+1': [*good, data, '--frames=6'],
    '--dtype=int8: expected one of': [*good, data, '--dtype=int8'],
  }
  refused('encode', cases)
  assert not (tmp_path / 'cache').exists()


def test_sigterm_saves_and_exits_well(folder, tmp_path):
  run = subprocess.Popen(
    [
      sys.executable,
      '-m',
      'spacetime',
      'train',
      f'--config={TINY}',
      f'--workdir={tmp_path}',
      f'--config.data.dir={folder / "data"}',
      '--config.train.steps=1000000',
      '--config.optimizer.name=adamw',
      '--config.train.checkpoint_every=0',
      '--config.train.log_every=1',
      CACHE,
    ],
    cwd=ROOT,
    env=ENVIRONMENT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )
  until = time.monotonic() + 300
  metrics = tmp_path / 'metrics.jsonl'
  while not (metrics.exists() and metrics.read_text().count('\n') > 3):
    assert time.monotonic() < until and run.poll() is None, run.stdout.read()
    time.sleep(0.2)
  run.send_signal(signal.SIGTERM)
  output, _ = run.communicate(timeout=120)
  assert run.returncode == 0, output[-2000:]
  steps = [int(p.name) for p in (tmp_path / 'checkpoints').iterdir()]
  assert len(steps) == 1 and steps[0] >= 4


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
  ran = python(
    '-m', 'spacetime', 'sample', '--prompt=', f'--out={tmp_path}/a.mp4'
  )
  assert ran.returncode == 2
  assert ran.stderr.startswith("error: --prompt='': expected text")
  assert len(ran.stderr.splitlines()) == 1
  assert not list(tmp_path.iterdir())


def test_sample_refuses(model, tmp_path):
  good = [
    '--prompt=a red 3',
    f'--out={tmp_path}/a.mp4',
    f'--checkpoint={model}',
  ]
  (tmp_path / 'half').mkdir()
  (tmp_path / 'text.png').write_text('no picture')
  cases = {
    'expected one of --prompt, --prompts_file and --prompt_embeds': good[1:],
    '--out: expected a file': [good[0], good[2]],
    'prompt has': ['--prompt=' + 'seven ' * 200, *good[1:]],
    'frames=6: expected 4k+1, such as 5 or 9': [*good, '--frames=6'],
    '--size=40: expected a multiple of 16': [*good, '--size=40x32'],
    '--size=big: expected WIDTHxHEIGHT': [*good, '--size=big'],
    'steps=0': [*good, '--steps=0'],
    '--solver=rk4: expected one of': [*good, '--solver=rk4'],
    "--rope_scaling=yarn: expected one of ('none', 'riflex', 'ntk')": [
      *good,
      '--rope_scaling=yarn',
    ],
    '--guidance=-1.0: expected 0 or more': [*good, '--guidance=-1'],
    '--num=0: expected 1 or more': [*good, '--num=0'],
    '--seed=-1: expected 0 or more': [*good, '--seed=-1'],
    '--fps=-3.0: expected more than 0': [*good, '--fps=-3'],
    'expected a shorter text; prompt has': [
      *good,
      '--negative_prompt=' + 'seven ' * 200,
    ],
    "'nowhere': no such folder": [*good[:2], '--checkpoint=nowhere'],
    'is not a checkpoint': [*good[:2], f'--checkpoint={tmp_path}/half'],
    'cannot be written': [good[0], '--out=/proc/none/a.mp4', good[2]],
    'text.png': [*good, f'--image={tmp_path}/text.png'],
    'missing.png': [*good, f'--image={tmp_path}/missing.png'],
    '--mode=dream: expected one of': [*good, '--mode=dream'],
    'none.mp4: no such file': [*good, '--mode=loop', '--video=none.mp4'],
    'strength=1.5: expected more than 0, at most 1': [
      *good,
      '--mode=edit',
      '--video=none.mp4',
      '--strength=1.5',
    ],
    'unknown flag --stepz; did you mean --steps?': [*good, '--stepz=3'],
    '--decode_tiles=2: expected COLUMNSxROWS': [*good, '--decode_tiles=2'],
    '--decode_shards=9: expected 1 to 8': [*good, '--decode_shards=9'],
    'none.safetensors: no such file': [*good, '--lora=none.safetensors'],
  }
  refused('sample', cases)
  assert not (tmp_path / 'a.mp4').exists()


def test_train_refuses(model, codec, tmp_path):
  good = [
    f'--config={TINY}',
    f'--workdir={tmp_path}/run',
    f'--config.data.dir={tmp_path}/data',
    '--config.data.batch_size=8',
  ]
  cases = {
    '--workdir: expected an output folder': good[:1],
    '--config.train.stepz: no such key; did you mean --config.train.steps': [
      *good,
      '--config.train.stepz=3',
    ],
    "size 'sice': expected 'cpu'": [
      good[0].replace('tiny', 'sice'),
      *good[1:],
    ],
    'missing.py': ['--config=experiments/missing.py', *good[1:]],
    'mesh.data=3: expected a mesh': [*good, '--config.mesh.data=3'],
    'frames=6: expected 4k+1': [*good, '--config.data.frames=6'],
    '=40: expected a multiple of 16': [
      *good,
      '--config.data.height=40',
    ],
    '--config.model.heads=5: expected a divisor': [
      *good,
      '--config.model.heads=5',
    ],
    '--config.data.name=films': [*good, '--config.data.name=films'],
    'cannot be written': [good[0], '--workdir=/proc/none', *good[2:]],
    'holds a run with another config': [
      good[0],
      f'--workdir={model}',
      *good[2:],
    ],
    'expected an autoencoder': [
      f'--config={TINY}',
      *good[1:],
      '--config.autoencoder.kind=weights',
      f'--config.autoencoder.weights={model}',
    ],
  }
  refused('train', cases)
  assert not (tmp_path / 'run' / 'config.json').exists()
  assert not (tmp_path / 'data').exists()
  case = ['--prompt=a', f'--out={tmp_path}/a.mp4', f'--checkpoint={codec}']
  refused('sample', {"expected a text-to-video model, stage 'diffusion'": case})


def test_evaluate_refuses(tmp_path):
  cases = {
    '--world=films: expected one of digits': ['--world=films'],
    "--out='': expected a folder": ['--out='],
    '--num=1: expected 2 or more': [f'--out={tmp_path}/a', '--num=1'],
    '--cameras=left: expected names among still, pan': ['--cameras=left'],
    '--motions=wandering: expected names': ['--motions=wandering'],
    "--sizes='': expected names among small": ['--sizes='],
    '--characters=4: expected 1, 2 or 3': ['--characters=4'],
  }
  refused('evaluate', cases)
