"""The architecture: a folder imports only what stands below it."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# From the ground up; folders of one floor do not import each other.
FLOORS = (
  ('media', 'sharding', 'safety'),
  ('data', 'provenance'),
  ('models',),
  ('diffusion',),
  ('config',),
  ('checkpoint',),
  ('pipeline',),
  ('evaluation',),
  ('training', 'serving'),
  ('dryrun',),
  ('cli',),
)
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
# Pairs that may not meet although one stands above the other.
STRANGERS = {('training', 'pipeline')}
# Modules of the HTTP process and of reading uploads, which import no JAX.
WITHOUT_JAX = ('serving/', 'safety/', 'provenance/')
WITH_JAX = ('serving/hosts.py', 'serving/worker.py', 'provenance/watermark.py')
# Packages that only some folders may import.
RESERVED = {
  'flax': {'models'},
  'ml_collections': {'config', 'cli'},
  'absl.flags': {'cli'},
}
FORBIDDEN = {'torch', 'tensorflow', 'diffusers', 'transformers'}


def imports(path: pathlib.Path) -> set[str]:
  """Full names of all imports of a file, those inside functions too."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


@functools.cache
def modules() -> dict[pathlib.Path, set[str]]:
  """The modules of all rooms with their imports."""
  files = (ROOT / 'spacetime').glob('*/**/*.py')
  return {path.relative_to(ROOT): imports(path) for path in sorted(files)}


def test_imports_go_down():
  offenders = []
  for path, names in modules().items():
    room = path.parts[1]
    if room not in FLOOR:
      offenders.append(f'{path}: no floor')
      continue
    for name in sorted(names):
      parts = name.split('.')
      if parts[0] != 'spacetime' or len(parts) < 2 or parts[1] == room:
        continue
      other = parts[1]
      if other not in FLOOR:
        continue  # a name of spacetime/__init__.py
      if FLOOR[other] >= FLOOR[room] or (room, other) in STRANGERS:
        offenders.append(f'{path} imports {name}')
  assert not offenders, '\n'.join(offenders)


def test_reserved_packages():
  offenders = []
  for path, names in modules().items():
    room = path.parts[1]
    tops = {name.split('.')[0] for name in names}
    if room == 'data' and tops & {'jax', 'flax', 'optax'}:
      offenders.append(f'{path}: data imports no JAX')
    for package, rooms in RESERVED.items():
      used = any(f'{name}.'.startswith(f'{package}.') for name in names)
      if used and room not in rooms:
        offenders.append(f'{path} imports {package}')
    offenders += [f'{path} imports {name}' for name in tops & FORBIDDEN]
  assert not offenders, '\n'.join(offenders)


def test_rooms_of_the_http_process_import_no_jax():
  offenders = [
    f'{path} imports {name}'
    for path, names in modules().items()
    for name in names
    if str(path.relative_to('spacetime')).startswith(WITHOUT_JAX)
    and str(path.relative_to('spacetime')) not in WITH_JAX
    and name.split('.')[0] in ('jax', 'flax')
  ]
  assert not offenders, '\n'.join(offenders)


def test_no_import_cycles():
  graph = {}
  for path, names in modules().items():
    name = '.'.join(path.with_suffix('').parts).removesuffix('.__init__')
    graph[name] = names
  edges = {
    name: {n if n in graph else n.rpartition('.')[0] for n in names}
    & graph.keys() - {name}
    for name, names in graph.items()
  }
  done, path, cycles = set(), [], []

  def visit(name):
    if name in path:
      cycles.append(' -> '.join([*path[path.index(name) :], name]))
      return
    if name in done:
      return
    path.append(name)
    for other in sorted(edges[name]):
      visit(other)
    path.pop()
    done.add(name)

  for name in edges:
    visit(name)
  assert not cycles, '\n'.join(cycles)


def module_path(name: str) -> pathlib.Path | None:
  """The file of a module of the project; None of a package or another name."""
  path = ROOT.joinpath(*name.split('.')).with_suffix('.py')
  return path if path.is_file() else None


@functools.cache
def defined(path: pathlib.Path) -> set[str]:
  """Names that a module binds, those inside its functions too."""
  names = {'__doc__', '__file__', '__name__'}
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
      names.add(node.name)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
      names.add(node.id)
    elif isinstance(node, ast.Import | ast.ImportFrom):
      names |= {(a.asname or a.name).split('.')[0] for a in node.names}
  return names


@pytest.mark.slow
def test_names_that_are_read_from_modules_exist():
  offenders = []
  for path in sorted((ROOT / 'spacetime').rglob('*.py')):
    tree, imported, other = ast.parse(path.read_text()), {}, set()
    for node in ast.walk(tree):
      if isinstance(node, ast.ImportFrom):
        for alias in node.names:
          name = f'{node.module}.{alias.name}'
          imported[alias.asname or alias.name] = module_path(name)
      elif isinstance(node, ast.arg):
        other.add(node.arg)
      elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        other.add(node.id)
    offenders += [
      f'{path.relative_to(ROOT)}:{node.lineno}: {node.value.id}.{node.attr}'
      for node in ast.walk(tree)
      if isinstance(node, ast.Attribute)
      and isinstance(node.value, ast.Name)
      and node.value.id not in other
      and imported.get(node.value.id)
      and node.attr not in defined(imported[node.value.id])
    ]
  assert not offenders, '\n'.join(offenders)


def test_rooms():
  entries = [
    p.name for p in (ROOT / 'spacetime').iterdir() if p.name != '__pycache__'
  ]
  assert len(entries) <= 18, entries
  for room in FLOOR:
    docstring = ast.get_docstring(
      ast.parse((ROOT / 'spacetime' / room / '__init__.py').read_text())
    )
    assert docstring, f'{room}/__init__.py: say what belongs here'


def test_experiments_import_only_configs():
  for path in (ROOT / 'experiments').glob('*.py'):
    tops = {name.split('.')[0] for name in imports(path)}
    assert tops <= {'ml_collections', 'experiments'}, path


def test_experiments_load_without_jax():
  code = (
    'import sys; from experiments import digits, digits_autoencoder; '
    'digits.get_config(); digits_autoencoder.get_config(); '
    'assert not {"jax", "numpy"} & set(sys.modules), "heavy import"'
  )
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)
