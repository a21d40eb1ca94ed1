"""The house: imports go down only."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / 'spacetime').rglob('*.py'))
MAINS = (
  'train',
  'sample',
  'evaluate',
  'export',
  'convert',
  'encode',
  'compile',
  'caption',
  'command',
)
FLOORS = (
  ('__init__', 'geometry', 'flops', 'chips', 'hlo'),
  (
    *('sharding', 'cluster', 'checkpoint', 'flow', 'solver', 'guidance'),
    *('pixels', 'data', 'topology', 'estimate'),
  ),
  ('models',),
  ('training', 'sampling', 'interop', 'evaluation'),
  (
    *('settings', 'config', 'build', 'meshes', 'packs', 'pretrained', 'texts'),
    *('generate', 'clips'),
    *('base', 'decoding', 'encoders', 'exports', 'plan', 'request'),
    *(
      'footage',
      'modes',
      'wording',
      'schedule',
      'rollouts',
      'workdirs',
      'beginning',
    ),
    *('chat', 'captioning', 'prompting', 'networks'),
    *('dry_run', 'programs'),
  ),
  ('sheets', 'events', *MAINS),
)
STDLIB = {'collections', 'dataclasses', 'itertools', 'math', 're'}  # of floor 0
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}


def part(path: pathlib.Path) -> str:
  return path.relative_to(ROOT / 'spacetime').with_suffix('').parts[0]


def imports(path: pathlib.Path) -> set[str]:
  """Full names of what a file imports, of functions' own imports too."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      found |= {f'{node.module}.{alias.name}' for alias in node.names}
  return found


def inner(path: pathlib.Path) -> set[str]:
  """Parts of spacetime that a file imports."""
  return {
    name.split('.')[1]
    for name in imports(path)
    if name.startswith('spacetime.') and name.split('.')[1] in FLOOR
  }


def outer(path: pathlib.Path) -> set[str]:
  return {name.split('.')[0] for name in imports(path)} | imports(path)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
  mine = part(path)
  assert mine in FLOOR, f'{path}: give it a floor'
  for other in inner(path) - {mine}:
    same = FLOOR[mine] == FLOOR[other]
    # Leaves may use pixels' and flow's arithmetic; mains and builders share
    # a floor with their like.
    allowed = (
      FLOOR[other] < FLOOR[mine]
      or (same and FLOOR[mine] >= 4)
      or (same and (mine, other) == ('solver', 'flow'))
    )
    assert allowed, f'{path} imports {other}, which is not below it'


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_who_may_import_what(path):
  mine, used = part(path), outer(path)
  if mine == 'data':
    assert not used & {'jax', 'flax', 'optax'}
  if mine != 'models':
    assert not {'flax', 'flax.linen'} & used
  if mine not in ('config', *MAINS):
    assert 'ml_collections' not in used
  if mine not in MAINS:
    assert 'absl.flags' not in used
  if FLOOR[mine] == 0:
    tops = {name.split('.')[0] for name in used}  # of ours: its own files
    assert tops <= STDLIB | {'spacetime'}, f'{path}: floor 0 is arithmetic'
  assert not used & {'torch', 'tensorflow', 'diffusers', 'transformers'}
  if mine == 'sampling':
    assert 'training' not in inner(path)
  if mine == 'training':
    assert 'sampling' not in inner(path)


def test_experiments_import_nothing_but_configs():
  for path in (ROOT / 'experiments').glob('*.py'):
    assert {n.split('.')[0] for n in imports(path)} <= {
      'ml_collections',
      'experiments',
    }
    assert len(path.read_text().splitlines()) <= 100


def test_experiments_load_without_jax():
  code = (
    'import sys; from experiments import digits, digits_autoencoder; '
    'digits.get_config(); digits_autoencoder.get_config(); '
    'assert not {"jax", "numpy"} & set(sys.modules), "heavy import"'
  )
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)
