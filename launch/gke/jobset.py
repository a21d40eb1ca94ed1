"""Trains on GKE: a JobSet of one Job per slice, ready for Kueue.

  python -m launch.gke.jobset --image=IMAGE --type=v5p-256 --slices=2 \\
    --name=wan --workdir=gs://BUCKET/wan --queue=tpus \\
    --config=experiments/wan_t2v_14b.py -- --config.mesh.fsdp=64 | less

prints it; --apply hands it to kubectl, --follow shows what the first worker
says, --delete takes it away. The image holds the project and its `tpu` and
`gcs` extras. A slice that is lost, or a run that ends with code 75, starts all
of them again from the work directory; code 2, which is a mistake, does not.
"""

from absl import app, flags

from launch import pods

_IMAGE = flags.DEFINE_string('image', None, 'Container with the project.')
_QUEUE = flags.DEFINE_string(
  'queue', None, "Kueue's LocalQueue; none if empty."
)
_NAMESPACE = flags.DEFINE_string('namespace', 'default', 'Of Kubernetes.')
_ACCOUNT = flags.DEFINE_string(
  'service_account', None, 'Of Kubernetes, that may write to the bucket.'
)
_APPLY = flags.DEFINE_bool('apply', False, 'Creates it.')
_FOLLOW = flags.DEFINE_bool('follow', False, "Shows the first worker's log.")


def main(argv: list[str]) -> int:
  """Prints, applies, follows or deletes."""
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
  text = pods.pretty(jobset(pods.parse(pods.TYPE.value), argv[1:]))
  if not _APPLY.value or pods.DRY_RUN.value:
    print(text)
  if _APPLY.value:
    return pods.call(['kubectl', 'apply', '--filename=-'], stdin=text)[0]
  return 0


def jobset(wanted: pods.Slice, overrides: list[str]) -> dict:
  """The JobSet."""
  labels = {'kueue.x-k8s.io/queue-name': _QUEUE.value} if _QUEUE.value else {}
  mistake = {
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
      # One Job has one slice, and shares it with no other.
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
            'name': 'mistake',
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
              'completions': wanted.hosts,
              'parallelism': wanted.hosts,
              'backoffLimit': 0,
              'podFailurePolicy': {'rules': [mistake]},
              'template': {'spec': pod(wanted, overrides)},
            }
          },
        }
      ],
    },
  }


def pod(wanted: pods.Slice, overrides: list[str]) -> dict:
  """One worker."""
  chips = min(wanted.topology.chips, pods.PER_HOST)
  spot = {'cloud.google.com/gke-spot': 'true'} if pods.SPOT.value else {}
  account = {'serviceAccountName': _ACCOUNT.value} if _ACCOUNT.value else {}
  return {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': 300,  # a checkpoint is saved in it
    'nodeSelector': {
      'cloud.google.com/gke-tpu-accelerator': wanted.machine.gke,
      'cloud.google.com/gke-tpu-topology': wanted.grid,
      **spot,
    },
    **account,
    'containers': [
      {
        'name': 'train',
        'image': _IMAGE.value,
        'command': pods.train_command(overrides),
        'ports': [{'containerPort': 8471}, {'containerPort': 8080}],
        'resources': {
          'requests': {'google.com/tpu': chips},
          'limits': {'google.com/tpu': chips},
        },
      }
    ],
  }


if __name__ == '__main__':
  app.run(main)
