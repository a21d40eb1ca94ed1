"""Traces: which steps, and that a run writes them."""

import warnings

import jax
import jax.numpy as jnp
import pytest

from spacetime.training import profile


def walk(traced, steps, done=0):
  """What the loop does; the steps that a trace was under way."""
  traced.begin(done, steps)
  inside = []
  for step in range(done + 1, steps + 1):
    inside += [step] * traced.running
    if traced.due(step, steps):
      traced.call(step, jnp.ones(2))
  traced.end()
  return inside


@pytest.fixture
def calls(monkeypatch):
  traces = []
  monkeypatch.setattr(
    jax.profiler, 'start_trace', lambda folder: traces.append(folder)
  )
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: traces.append('stop'))
  return traces


@pytest.mark.parametrize(
  'text, steps, done, expected',
  [
    ('2:3', 5, 0, [2, 3]),
    ('1:1', 5, 0, [1]),
    ('4:9', 5, 0, [4, 5]),  # the run ends before
    ('2:5', 6, 3, [4, 5]),  # and one that goes on
    ('2:3', 6, 3, []),
    ('7:8', 6, 0, []),
  ],
)
def test_the_requested_steps_are_traced(calls, text, steps, done, expected):
  with warnings.catch_warnings(record=True) as record:
    warnings.simplefilter('always')
    assert walk(profile.parse(text, 'here'), steps, done) == expected
  assert [str(entry.message) for entry in record] == (
    []
    if expected
    else [
      f"profile='{text}': no effect, since the steps to come are {done + 1} to "
      f'{steps}'
    ]
  )
  assert calls == (['here', 'stop'] if expected else [])


@pytest.mark.parametrize('text', ['3', '3:2', '0:4', 'a:b', '1:2:3'])
def test_refuses_other_spans(text):
  with pytest.raises(
    ValueError, match=f'profile=.{text}.: expected START:STOP'
  ):
    profile.parse(text, 'here')


def test_no_span_is_no_trace():
  assert profile.parse(None, 'here') is None


def test_a_trace_is_written(tmp_path):
  traced = profile.parse('1:1', tmp_path)
  walk(traced, 2)
  assert list(tmp_path.rglob('*.xplane.pb'))
