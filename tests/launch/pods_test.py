"""Launchers against stand-ins of the vendors' tools: the exact arguments."""

import importlib
import json
import pathlib
import re
import subprocess
import sys
import tarfile
import types

import pytest
from absl.testing import flagsaver

from tests.helpers import commands

ROOT = pathlib.Path(__file__).parents[2]
POD = (
  '--project=p',
  '--zone=us-east5-a',
  '--type=v5p-256',
  '--name=wan',
  '--workdir=gs://b/wan',
  '--config=pods:14b-720p-v5p-256',
  '--nocheck_memory',
)
INPUTS = (
  '--checkpoint=gs://b/WAN',
  '--config.data.dir=gs://b/CACHE',
)
RUN = ('--', *INPUTS)
ZONE = ['--project=p', '--zone=us-east5-a']
QUEUE = ['compute', 'tpus', 'queued-resources']
NODE = ['compute', 'tpus', 'tpu-vm']


@pytest.fixture
def tools():
  """A function that launches, with a stand-in of gcloud and kubectl.

  `answers` are pairs of a part of a command and what its calls return in turn:
  lists of an exit code and an output. The function returns the result, the
  arguments of all calls, and the input of the last one.
  """

  def launch(module, *arguments, answers=()):
    calls, inputs = [], []
    left = {match: list(texts) for match, texts in answers}

    def run(command, *, input=None, stdout=None, text, check):
      calls.append(list(command[1:]))
      inputs.append(input)
      code, output = 0, ''
      for match, texts in left.items():
        if match in ' '.join(command) and texts:
          code, output = texts.pop(0)
          break
      return subprocess.CompletedProcess(
        command, code, output if stdout else ''
      )

    stand_in = types.SimpleNamespace(run=run, PIPE=subprocess.PIPE)
    result = commands.launch(module, *arguments, subprocess=stand_in)
    return result, calls, inputs[-1] if inputs else None

  return launch


def test_a_pod_from_nothing_to_done(tools):
  ran, calls, _ = tools(
    'launch.tpu_pod',
    *POD,
    '--spot',
    '--poll=0.01',
    *RUN,
    '--config.seed=3',
    answers=[
      ('describe', [[1, ''], [0, 'WAITING_FOR_RESOURCES'], [0, 'ACTIVE']]),
      ('cat ~/run.exit', [[0, '0']]),
    ],
  )
  assert ran.code == 0, ran.err
  describe = [*QUEUE, 'describe', 'wan', *ZONE, '--format=value(state.state)']
  create = [
    *(*QUEUE, 'create', 'wan', *ZONE),
    '--accelerator-type=v5p-256',
    '--runtime-version=v2-alpha-tpuv5',
    '--node-id=wan',
    '--spot',
  ]
  assert calls[:4] == [describe, create, describe, describe]
  copy, unpack, start, follow, code = calls[4:]
  assert copy[:4] == [*NODE, 'scp']
  assert copy[5:] == ['wan:spacetime.tar.gz', *ZONE, '--worker=all']
  for call, worker in (
    (unpack, 'all'),
    (start, 'all'),
    (follow, '0'),
    (code, '0'),
  ):
    assert call[:-1] == [*NODE, 'ssh', 'wan', *ZONE, f'--worker={worker}']
  assert 'bash launch/install_worker.sh' in unpack[-1]
  assert (
    'python -m spacetime train --coordinator=auto --preemption_exit_code=75 '
    '--config=experiments/pods.py:14b-720p-v5p-256 --workdir=gs://b/wan '
    '--checkpoint=gs://b/WAN --config.data.dir=gs://b/CACHE --config.seed=3; '
    'echo $? > ~/run.exit'
  ) in start[-1]
  assert 'tail -n +1 -F ~/run.log' in follow[-1]
  assert code[-1] == '--command=cat ~/run.exit'


def test_a_preempted_pod_is_requested_again(tools):
  ran, calls, _ = tools(
    'launch.tpu_pod',
    *POD,
    '--poll=0.01',
    *RUN,
    answers=[
      (
        'describe',
        [[0, 'ACTIVE'], [0, 'ACTIVE'], [0, 'SUSPENDED'], [0, 'ACTIVE']],
      ),
      ('cat ~/run.exit', [[255, ''], [0, '0']]),  # the connection is gone
    ],
  )
  assert ran.code == 0, ran.err
  verbs = [call[3] for call in calls]
  once = ['scp', 'ssh', 'ssh', 'ssh', 'ssh']
  assert verbs == [
    *('describe', 'describe', *once),
    *('describe', 'delete', 'create', 'describe', *once),
  ]
  assert calls[verbs.index('delete')] == [
    *(*QUEUE, 'delete', 'wan', *ZONE),
    '--force',
    '--quiet',
  ]


@pytest.mark.parametrize(
  ('codes', 'more', 'code', 'starts'),
  [
    ([[0, '75'], [0, '0']], (), 0, 2),
    ([[0, '2']], (), 2, 1),  # bad input: it would be refused again
    ([[0, '75'], [0, '134']], ('--max_restarts=1',), 75, 2),
    ([[0, '1']] * 9, (), 1, 3),  # an error at the start, again and again
    ([[0, '1'], [0, '1'], [0, '75'], [0, '1'], [0, '0']], (), 0, 5),
  ],
)
def test_which_exit_codes_start_again(tools, codes, more, code, starts):
  ran, calls, _ = tools(
    'launch.tpu_pod',
    *POD,
    *more,
    *RUN,
    answers=[('describe', [[0, 'ACTIVE']] * 20), ('cat ~/run.exit', codes)],
  )
  assert ran.code == code
  assert sum('nohup' in call[-1] for call in calls) == starts


def test_slices_start_the_same_command_on_every_node(tools):
  ran, calls, _ = tools(
    'launch.tpu_pod',
    *POD,
    '--slices=2',
    *RUN,
    '--config.mesh.data=2',
    '--config.data.batch_size=32',
    answers=[
      ('describe', [[1, ''], [0, 'ACTIVE']]),
      ('cat ~/run.exit', [[0, '0']]),
    ],
  )
  assert ran.code == 0, ran.err
  assert calls[1][-2:] == ['--node-count=2', '--node-prefix=wan']
  starts = [call for call in calls if 'nohup' in call[-1]]
  assert [call[4] for call in starts] == ['wan-0', 'wan-1']
  assert starts[0][-1] == starts[1][-1]
  assert '--config.mesh.num_slices=2' in starts[0][-1]


def test_delete(tools):
  ran, calls, _ = tools(
    'launch.tpu_pod', '--project=p', '--zone=z', '--name=wan', '--delete'
  )
  assert ran.code == 0
  assert calls == [
    [*QUEUE, 'delete', 'wan', '--project=p', '--zone=z', '--force', '--quiet']
  ]


def test_a_dry_run_runs_nothing_and_prints_all(tools):
  ran, calls, _ = tools('launch.tpu_pod', *POD, '--spot', '--dry_run', *RUN)
  assert (ran.code, calls) == (0, [])
  printed = [x for x in ran.err.splitlines() if x.startswith('$ gcloud ')]
  words = [line.split()[5] for line in printed]
  assert words == ['create', 'describe', 'scp', *['ssh'] * 4]


@pytest.fixture
def checkout(tmp_path):
  """A checkout of three files, one of which is tracked."""
  for name in ('setup.py', 'clips/a.mp4', 'mine.py'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(name)
  for command in (['init', '-q'], ['add', 'setup.py']):
    subprocess.run(['git', *command], cwd=tmp_path, check=True)
  return tmp_path


def test_only_what_git_tracks_is_packed(tools, checkout, capsys, monkeypatch):
  tools('launch.tpu_pod', *POD[1:])  # for its flags
  module = sys.modules['launch.tpu_pod']
  monkeypatch.setattr(module, 'ROOT', checkout)
  with flagsaver.flagsaver(ship=[]):
    assert module.shipped() == ['setup.py']
    module.check_shipped('setup.py:tiny')
    with pytest.raises(ValueError, match='--ship=mine.py'):
      module.check_shipped('mine.py')
  with flagsaver.flagsaver(ship=['clips']):
    module.check_shipped('setup.py')
    assert module.shipped() == ['clips/a.mp4', 'setup.py']
  assert 'not shipped (untracked): mine.py' in capsys.readouterr().err
  with flagsaver.flagsaver(ship=['../x']), pytest.raises(ValueError, match='x'):
    module.shipped()


@pytest.mark.slow
def test_the_checkout_is_packed(tmp_path):
  # Not imported here: its flags are not those of other tests' commands.
  script = (
    'import pathlib, sys; from absl import flags; from launch import tpu_pod; '
    'flags.FLAGS(["x"]); tpu_pod.pack(pathlib.Path(sys.argv[1]))'
  )
  command = [sys.executable, '-c', script, str(tmp_path / 'a.tar.gz')]
  subprocess.run(command, cwd=ROOT, check=True)
  with tarfile.open(tmp_path / 'a.tar.gz') as file:
    names = set(file.getnames())
  assert {'setup.py', 'spacetime/cli/train.py', 'launch/tpu_pod.py'} <= names
  assert not any(name.startswith(('.git/', '.cache')) for name in names)


def test_an_install_that_fails_ends_the_launch(tools):
  ran, calls, _ = tools(
    'launch.tpu_pod',
    *POD,
    '--poll=0.01',
    *RUN,
    answers=[
      ('install_worker', [[1, '']] * 9),
      ('tpu-vm describe', [[0, 'READY']] * 9),
      ('describe', [[0, 'ACTIVE']] * 20),
    ],
  )
  assert ran.code == 2 and 'the installation failed 3 times' in ran.err
  assert sum('install_worker' in call[-1] for call in calls) == 3


def test_an_install_on_a_lost_slice_is_repeated(tools):
  ran, calls, _ = tools(
    'launch.tpu_pod',
    *POD,
    '--poll=0.01',
    *RUN,
    answers=[
      ('install_worker', [[1, '']] * 5 + [[0, '']]),
      ('tpu-vm describe', [[0, 'PREEMPTED'], [1, '']] * 9),
      ('cat ~/run.exit', [[0, '0']]),
      ('describe', [[0, 'ACTIVE']] * 20),
    ],
  )
  assert ran.code == 0, ran.err
  assert sum('install_worker' in call[-1] for call in calls) == 6


def test_folders_of_this_machine_are_brought_to_the_bucket(tools, tmp_path):
  for name in ('clips', 'weights'):
    (tmp_path / name).mkdir()
  (tmp_path / 'lora.safetensors').write_bytes(b'')
  ran, calls, _ = tools(
    'launch.tpu_pod',
    *POD,
    '--',
    f'--checkpoint={tmp_path}/weights',
    f'--config.data.dir={tmp_path}/clips',
    answers=[('describe', [[0, 'ACTIVE']] * 4), ('cat ~/run.exit', [[0, '0']])],
  )
  assert ran.code == 0, ran.err
  base = 'gs://b/wan-inputs'
  copy = ['storage', 'rsync', '--recursive']
  assert calls[:2] == [
    [*copy, f'{tmp_path}/weights', f'{base}/weights'],
    [*copy, f'{tmp_path}/clips', f'{base}/clips'],
  ]
  (start,) = [call[-1] for call in calls if 'nohup' in call[-1]]
  assert f'--checkpoint={base}/weights --config.data.dir={base}/clips' in start
  assert str(tmp_path) not in start


MESH = ('--', *INPUTS, '--config.mesh.fsdp=64')


@pytest.mark.parametrize(
  'overrides, text',
  [
    (MESH, '--config.mesh.fsdp=64: expected a mesh'),
    (('--', *INPUTS, '--config.mesh.context=3'), 'number of devices'),
    (('--', *INPUTS, '--config.data.batch_size=3'), 'such as 16'),
    (('--', *INPUTS, '--config.optimizer.learning_rat=1'), 'did you mean'),
    (('--', *INPUTS, '--config.model.heads=x'), '--config'),
    (('--', *INPUTS, '--checkpont=x'), 'did you mean --checkpoint'),
    (('--', *INPUTS, 'seed'), 'expected --name=value'),
    (('--', INPUTS[0]), '--config.data.dir=cache: expected a folder'),
    (('--', INPUTS[1], '--checkpoint=/no/such'), '--checkpoint=/no/such: ex'),
    (('--', *INPUTS, '--config.mesh.num_slices=2'), 'expected --slices=1 too'),
  ],
)
@pytest.mark.parametrize('dry_run', ['--dry_run', '--nodry_run'])
def test_config_and_mesh_are_checked_first(tools, overrides, text, dry_run):
  ran, calls, _ = tools('launch.tpu_pod', *POD, dry_run, *overrides)
  assert (ran.code, calls) == (2, [])
  assert len(ran.err.splitlines()) == 1 and text in ran.err, ran.err


@pytest.mark.parametrize(
  'code, out, err, text',
  [
    (0, '  total 9.00\n  fits\nexpected: 16 s, MFU 27%', '', ''),
    (1, '  does not fit by 3.00 GiB: use more', '', 'v5p-256: does not fit by'),
    (2, '', 'x\nerror: model.heads=3: expected 2', 'compile: model.heads=3'),
  ],
)
def test_memory_is_checked_first(tools, monkeypatch, code, out, err, text):
  preflight = importlib.import_module('launch.preflight')
  compiled = []

  def run(command, **_):
    compiled.append(command)
    return subprocess.CompletedProcess(command, code, out, err)

  monkeypatch.setattr(preflight, 'subprocess', types.SimpleNamespace(run=run))
  ran, calls, _ = tools(
    'launch.tpu_pod', *POD, '--check_memory', '--dry_run', *RUN
  )
  assert (ran.code, calls) == (2 if text else 0, [])
  assert text in ran.err and ('expected: 16 s' in ran.err) == (not text)
  (command,) = compiled
  assert command[1:4] == ['-m', 'spacetime', 'compile']
  assert {'--topology=v5p:4x4x8', '--num_slices=1'} <= set(command)
  assert '--config.data.dir=gs://b/CACHE' in command
  assert not any('checkpoint' in word for word in command)


def test_flags_that_are_passed_on_exist():
  preflight = importlib.import_module('launch.preflight')
  for name in preflight.PASSED:
    value = {'watchdog': '1', 'verbosity': '1'}.get(name, 'x')
    commands.parse('train', '--config=digits_pixels:tiny', f'--{name}={value}')


def test_the_image_holds_what_it_names():
  lines = (ROOT / 'Dockerfile').read_text().splitlines()
  listed = (ROOT / '.dockerignore').read_text().splitlines()
  copied = [
    name
    for line in lines
    if line.startswith('COPY ')
    for name in line.split()[1:-1]
  ]
  tracked = subprocess.run(
    ['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True
  ).stdout
  for name in copied:
    assert (ROOT / name).exists() and f'!{name}' in listed
    assert not tracked or name in tracked
  assert {'setup.py', 'spacetime', 'experiments', 'README.md'} <= set(copied)
  setup = (ROOT / 'setup.py').read_text()
  base = next(line for line in lines if line.startswith('FROM '))
  extras = next(line for line in lines if line.startswith('ARG EXTRAS='))
  assert any('pip install' in line and '.[$EXTRAS]' in line for line in lines)
  worker = (ROOT / 'launch/install_worker.sh').read_text()
  oldest = re.search(r"python_requires='>=3\.(\d+)'", setup)[1]
  for text, pattern in ((base, r'python:3\.(\d+)'), (worker, r"'3\.(\d+)'")):
    assert int(re.search(pattern, text)[1]) >= int(oldest)
  texts = [extras.replace('ARG ', ''), worker]
  for name in ('serve', 'serve_hosts'):
    texts.append((ROOT / f'launch/gke/{name}.yaml').read_text())
  for text in texts:
    listed = re.search(r'(?:EXTRAS=|\.\[)([\w,]+)', text)[1].split(',')
    for extra in listed:
      assert f"'{extra}': " in setup
    if 'serve' in text:  # what the flags of the deployment need
      assert {'gcs', 'postgres', 'serve'} < set(listed)


def test_a_jobset(tools):
  arguments = (*POD, '--slices=2', '--spot', '--image=i', '--queue=tpus')
  sizes = ('--config.mesh.data=2', '--config.data.batch_size=32')
  ran, calls, text = tools(
    'launch.gke.jobset', *arguments, '--apply', *RUN, *sizes
  )
  assert ran.code == 0, ran.err
  assert calls == [['apply', '--filename=-']]
  value = json.loads(text)
  assert (value['apiVersion'], value['kind']) == (
    'jobset.x-k8s.io/v1alpha2',
    'JobSet',
  )
  assert value['metadata']['labels'] == {'kueue.x-k8s.io/queue-name': 'tpus'}
  assert value['spec']['failurePolicy']['maxRestarts'] == 100
  (job,) = value['spec']['replicatedJobs']
  assert job['replicas'] == 2
  work = job['template']['spec']
  assert (work['parallelism'], work['completions']) == (32, 32)
  assert work['podFailurePolicy']['rules'][0]['onExitCodes']['values'] == [2]
  pod = work['template']['spec']
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5p-slice',
    'cloud.google.com/gke-tpu-topology': '4x4x8',
    'cloud.google.com/gke-spot': 'true',
  }
  (container,) = pod['containers']
  assert container['command'] == [
    *('python', '-m', 'spacetime', 'train', '--coordinator=auto'),
    '--preemption_exit_code=75',
    '--config=experiments/pods.py:14b-720p-v5p-256',
    '--workdir=gs://b/wan',
    *INPUTS,
    *sizes,
    '--config.mesh.num_slices=2',
  ]
  assert container['resources']['limits'] == {'google.com/tpu': 4}
  for flag, call in (
    ('--delete', ['delete', 'jobset', 'wan', '--namespace=default']),
    (
      '--follow',
      [
        'logs',
        '--follow',
        '--selector=jobset.sigs.k8s.io/jobset-name=wan,'
        'jobset.sigs.k8s.io/job-index=0,'
        'batch.kubernetes.io/job-completion-index=0',
        '--namespace=default',
      ],
    ),
  ):
    assert tools('launch.gke.jobset', '--name=wan', flag)[1] == [call]


@pytest.mark.parametrize(
  ('module', 'arguments', 'text'),
  [
    ('launch.tpu_pod', POD[1:], 'expected --project too'),
    ('launch.tpu_pod', (*POD, '--type=v5p-300'), 'the nearest is v5p-256'),
    (
      'launch.tpu_pod',
      (*POD, '--type=v9-8'),
      'the name of a slice; the nearest is',
    ),
    (
      'launch.tpu_pod',
      (*POD, '--type=tpu7x-128'),
      'sold on GKE alone; use python',
    ),
    ('launch.tpu_pod', (*POD, '--type=v4-8'), 'v4 is not supported'),
    ('launch.tpu_pod', (*POD, '--config=nosuch.py'), '--config=nosuch.py: '),
    (
      'launch.gke.jobset',
      (*POD, '--image=i', '--config=pods:14b-720-v5p-256'),
      'did you mean 14b-720p-v5p-256',
    ),
    ('launch.tpu_pod', (*POD, '--workdir=runs/a'), 'expected gs://BUCKET/RUN'),
    ('launch.tpu_pod', (*POD, '--slices=0'), '--slices=0'),
    ('launch.gke.jobset', POD, 'expected --image too'),
  ],
)
def test_refuses(tools, module, arguments, text):
  ran, calls, _ = tools(module, *arguments)
  assert (ran.code, calls) == (2, [])
  assert len(ran.err.splitlines()) == 1
  assert text in ran.err
