"""Eight emulated CPU devices and float32 matmuls for every test."""

import os

from tests.helpers import xla_flags

_flags = [
  os.environ.get('XLA_FLAGS', ''),
  '--xla_force_host_platform_device_count=8',
  xla_flags.COMPILE_QUICKLY,
]
if 'PYTEST_XDIST_WORKER' in os.environ:
  # The workers are the parallelism; their thread pools would only fight.
  _flags.append('--xla_cpu_multi_thread_eigen=false')
  for _name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS'):
    os.environ.setdefault(_name, '1')
os.environ['XLA_FLAGS'] = ' '.join(_flags).strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_default_matmul_precision', 'float32')
# The same program is compiled by many tests, and by the next run.
jax.config.update(
  'jax_compilation_cache_dir',
  os.path.join(os.path.dirname(__file__), '..', '.cache', 'jax_tests'),
)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


# The longest tests, which start first, so that no worker ends with one alone.
LONGEST = 'e2e/notebook_test.py', 'e2e/docs_test.py'


def pytest_collection_modifyitems(items):
  """Moves the longest tests to the front; all others keep their order."""
  items.sort(key=lambda item: not item.path.as_posix().endswith(LONGEST))


@pytest.fixture(autouse=True)
def no_leaking_mesh():
  """A bare `jax.set_mesh` in one test would change the next."""
  yield
  assert jax.sharding.get_abstract_mesh().empty, (
    'the test left a mesh set; use `with jax.set_mesh(mesh):`'
  )
