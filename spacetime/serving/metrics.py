"""Metrics of the service in Prometheus' text format."""

import time

from spacetime.serving.service import Service

STATUSES = ('queued', 'in_progress', 'completed', 'failed')


def render(service: Service) -> str:
  """All metrics, a line each below its type."""
  counts = service.jobs.counts()
  supervisor = service.supervisor
  lines = [
    '# HELP spacetime_jobs Jobs by status.',
    '# TYPE spacetime_jobs gauge',
  ]
  lines += [
    f'spacetime_jobs{{status="{status}"}} {counts.get(status, 0)}'
    for status in STATUSES
  ]
  for name, kind, text, value in (
    ('worker_ready', 'gauge', '1 if it runs.', supervisor.state == 'ready'),
    ('worker_restarts', 'counter', 'Starts again.', supervisor.restarts),
    ('free_bytes', 'gauge', 'Free disk.', service.files.free_bytes()),
    ('uptime_seconds', 'gauge', 'Age.', round(time.time() - service.began)),
  ):
    full = f'spacetime_{name}'
    lines += [f'# HELP {full} {text}', f'# TYPE {full} {kind}']
    lines.append(f'{full} {int(value)}')
  return '\n'.join(lines) + '\n'
