"""Trains on GKE: a JobSet of one Job per slice, ready for Kueue.

  python -m launch.gke.jobset --image=IMAGE --type=v5p-256 --slices=2 \\
    --name=wan --workdir=gs://BUCKET/wan --queue=tpus \\
    --config=pods:14b-720p-v5p-256 -- --checkpoint=gs://BUCKET/WAN \\
    --config.data.dir=gs://BUCKET/CACHE --config.mesh.data=2 \\
    --config.data.batch_size=32 | less

checks config, mesh and memory and prints the JobSet; --apply hands it to
kubectl, --follow shows the log of the first worker, --delete deletes it. The
image is that of the Dockerfile. Folders of this machine, such as
--config.data.dir=cache, are copied to gs://BUCKET/wan-inputs by --apply. A
slice that is lost, or a run that exits with code 75, restarts
all of them from the work directory; code 2 (bad input) does not.
"""

import shlex
import sys

from absl import flags

from launch import pods, preflight
from spacetime.cli import common, help_pages

_IMAGE = flags.DEFINE_string(
  'image', None, 'Container image that holds the project.'
)
_QUEUE = flags.DEFINE_string(
  'queue', None, "Kueue's LocalQueue; empty uses none."
)
_NAMESPACE = flags.DEFINE_string(
  'namespace', 'default', 'Kubernetes namespace.'
)
_ACCOUNT = flags.DEFINE_string(
  'service_account',
  None,
  'Kubernetes service account that may write to the bucket.',
)
_APPLY = flags.DEFINE_bool('apply', False, 'Create the JobSet.')
_FOLLOW = flags.DEFINE_bool('follow', False, "Show the first worker's log.")
help_pages.group('slice', 'image', 'queue', 'namespace', 'service_account')
help_pages.group('control', 'apply', 'follow')


def main(overrides: list[str]) -> int:
  """Prints, applies, follows or deletes the JobSet."""
  name, space = pods.NAME.value, f'--namespace={_NAMESPACE.value}'
  if pods.DELETE.value:
    return pods.call(['kubectl', 'delete', 'jobset', name, space])[0]
  if _FOLLOW.value:
    first = f'jobset.sigs.k8s.io/jobset-name={name},' + ','.join(
      (
        'jobset.sigs.k8s.io/job-index=0',
        'batch.kubernetes.io/job-completion-index=0',
      )
    )
    return pods.call(
      ['kubectl', 'logs', '--follow', f'--selector={first}', space]
    )[0]
  pods.check((_IMAGE, pods.TYPE, pods.WORKDIR, pods.CONFIG))
  slice_type = pods.parse(pods.TYPE.value)
  launch = preflight.check(slice_type, overrides)
  text = pods.pretty(jobset(slice_type, launch.command()))
  if not _APPLY.value or pods.DRY_RUN.value:
    print(text)
  if not _APPLY.value:
    for upload in launch.uploads:
      print(f'before: {shlex.join(upload.command)}', file=sys.stderr)
  if _APPLY.value:
    launch.copy_inputs()
    return pods.call(['kubectl', 'apply', '--filename=-'], stdin=text)[0]
  return 0


def jobset(slice_type: pods.Slice, command: list[str]) -> dict:
  """The JobSet of a command as nested dicts."""
  labels = {'kueue.x-k8s.io/queue-name': _QUEUE.value} if _QUEUE.value else {}
  bad_input = {
    'action': 'FailJob',
    'onExitCodes': {'operator': 'In', 'values': [pods.BAD_INPUT]},
  }
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': {
      'name': pods.NAME.value,
      'namespace': _NAMESPACE.value,
      'labels': labels,
      # One Job has one slice for itself.
      'annotations': {
        'alpha.jobset.sigs.k8s.io/exclusive-topology': (
          'cloud.google.com/gke-nodepool'
        )
      },
    },
    'spec': {
      'failurePolicy': {
        'maxRestarts': pods.RESTARTS.value,
        'rules': [
          {
            'name': 'bad-input',
            'action': 'FailJobSet',
            'onJobFailureReasons': ['PodFailurePolicy'],
          }
        ],
      },
      'replicatedJobs': [
        {
          'name': 'slice',
          'replicas': pods.SLICES.value,
          'template': {
            'spec': {
              'completionMode': 'Indexed',
              'completions': slice_type.hosts,
              'parallelism': slice_type.hosts,
              'backoffLimit': 0,
              'podFailurePolicy': {'rules': [bad_input]},
              'template': {'spec': pod(slice_type, command)},
            }
          },
        }
      ],
    },
  }


def pod(slice_type: pods.Slice, command: list[str]) -> dict:
  """The pod of one worker."""
  chips = min(slice_type.topology.chips, pods.PER_HOST)
  spot = {'cloud.google.com/gke-spot': 'true'} if pods.SPOT.value else {}
  account = {'serviceAccountName': _ACCOUNT.value} if _ACCOUNT.value else {}
  return {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': 300,  # time to save a checkpoint
    'nodeSelector': {
      'cloud.google.com/gke-tpu-accelerator': slice_type.machine.gke,
      'cloud.google.com/gke-tpu-topology': slice_type.grid,
      **spot,
    },
    **account,
    'containers': [
      {
        'name': 'train',
        'image': _IMAGE.value,
        'command': command,
        'ports': [{'containerPort': 8471}, {'containerPort': 8080}],
        'resources': {
          'requests': {'google.com/tpu': chips},
          'limits': {'google.com/tpu': chips},
        },
      }
    ],
  }


if __name__ == '__main__':
  common.run(main, docstring=__doc__, operands=True)
