"""Requests made from the OpenAPI document; 1,000 of them are a benchmark."""

import pytest

from tests.benchmarks import service_fuzz
from tests.helpers import service as service_lib


@pytest.mark.slow
def test_generated_requests_are_answered(tmp_path):
  service = service_lib.make(
    tmp_path,
    webhook_hosts='hooks.example',
    sign='off',
    **service_fuzz.LIMITS,
  )
  known = service_fuzz.prepare(service)
  with service_lib.running(service) as url:
    answers, failures = service_fuzz.fuzz(url, known, cases=90)
  assert not failures, failures[0]
  assert answers.total() >= 80
  statuses = {status for _, _, status in answers}
  assert {200, 400, 404} <= statuses
