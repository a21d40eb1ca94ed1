"""Launchers against stand-ins of the vendors' tools: the exact arguments."""

import json
import pathlib
import subprocess
import sys
import tarfile
import types

import pytest

from tests.helpers import commands

ROOT = pathlib.Path(__file__).parents[2]
POD = (
  '--project=p',
  '--zone=us-east5-a',
  '--type=v5p-256',
  '--name=wan',
  '--workdir=gs://b/wan',
  '--config=experiments/wan_t2v_14b.py',
)
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
    '--',
    '--config.mesh.fsdp=64',
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
  assert "pip install -q '.[tpu,gcs]'" in unpack[-1]
  assert (
    'python -m spacetime train --coordinator=auto --preemption_exit_code=75 '
    '--config=experiments/wan_t2v_14b.py --workdir=gs://b/wan '
    '--config.mesh.fsdp=64; echo $? > ~/run.exit'
  ) in start[-1]
  assert 'tail -n +1 -F ~/run.log' in follow[-1]
  assert code[-1] == '--command=cat ~/run.exit'


def test_a_preempted_pod_is_requested_again(tools):
  ran, calls, _ = tools(
    'launch.tpu_pod',
    *POD,
    '--poll=0.01',
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
  ],
)
def test_which_exit_codes_start_again(tools, codes, more, code, starts):
  ran, calls, _ = tools(
    'launch.tpu_pod',
    *POD,
    *more,
    answers=[('describe', [[0, 'ACTIVE']] * 8), ('cat ~/run.exit', codes)],
  )
  assert ran.code == code
  assert sum('nohup' in call[-1] for call in calls) == starts


def test_slices_start_the_same_command_on_every_node(tools):
  ran, calls, _ = tools(
    'launch.tpu_pod',
    *POD,
    '--slices=2',
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


def test_delete(tools):
  ran, calls, _ = tools(
    'launch.tpu_pod', '--project=p', '--zone=z', '--name=wan', '--delete'
  )
  assert ran.code == 0
  assert calls == [
    [*QUEUE, 'delete', 'wan', '--project=p', '--zone=z', '--force', '--quiet']
  ]


def test_a_dry_run_runs_nothing_and_prints_all(tools):
  ran, calls, _ = tools('launch.tpu_pod', *POD, '--spot', '--dry_run')
  assert (ran.code, calls) == (0, [])
  printed = [x for x in ran.err.splitlines() if x.startswith('$ gcloud ')]
  words = [line.split()[5] for line in printed]
  assert words == ['create', 'describe', 'scp', *['ssh'] * 4]


def test_the_checkout_is_packed(tmp_path):
  # Not imported here: its flags are not those of other tests' commands.
  script = (
    'import pathlib, sys; from launch import tpu_pod; '
    'tpu_pod.pack(pathlib.Path(sys.argv[1]))'
  )
  command = [sys.executable, '-c', script, str(tmp_path / 'a.tar.gz')]
  subprocess.run(command, cwd=ROOT, check=True)
  with tarfile.open(tmp_path / 'a.tar.gz') as file:
    names = set(file.getnames())
  assert {'setup.py', 'spacetime/cli/train.py', 'launch/tpu_pod.py'} <= names
  assert not any(name.startswith(('.git/', '.cache')) for name in names)


def test_a_jobset(tools):
  arguments = (*POD, '--slices=2', '--spot', '--image=i', '--queue=tpus')
  ran, calls, text = tools(
    'launch.gke.jobset', *arguments, '--apply', '--', '--config.seed=1'
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
    '--config=experiments/wan_t2v_14b.py',
    '--workdir=gs://b/wan',
    '--config.seed=1',
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
