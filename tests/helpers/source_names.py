"""Settings that error messages of the source name, and who can raise them."""

import ast
import dataclasses
import functools
import pathlib
import re

import spacetime

ROOT = pathlib.Path(spacetime.__file__).parent
BACKTICKS = re.compile(r'`([A-Za-z_][\w.]*)`')
# Backticked words of messages that are methods of Pipeline, not settings.
WORDS = {'stream', 'write'}
MESSAGES = ('SettingError', 'SettingWarning')


@dataclasses.dataclass(frozen=True)
class Mention:
  """A setting in an error message. `prefix`: the rest of it is computed."""

  module: str
  line: int
  name: str
  prefix: bool = False


def modules() -> dict[str, pathlib.Path]:
  """Files of the package by the names of their modules."""
  return {
    '.'.join(('spacetime', *path.relative_to(ROOT).with_suffix('').parts))
    .removesuffix('.__init__'): path
    for path in sorted(ROOT.rglob('*.py'))
    if 'assets' not in path.parts
  }  # fmt: skip


@functools.cache
def _tree(path: pathlib.Path) -> ast.Module:
  return ast.parse(path.read_text())


def mentions() -> list[Mention]:
  """Names of `SettingError(...)` and `SettingWarning(...)`, and backticked
  names in their messages and those of other errors."""
  result = []
  for module, path in modules().items():
    for node in ast.walk(_tree(path)):
      if isinstance(node, ast.Call) and _name(node.func) in MESSAGES:
        result += _first(module, node)
      if isinstance(node, ast.Raise | ast.Call) and (
        isinstance(node, ast.Raise) or _name(node.func) in MESSAGES
      ):
        result += [
          Mention(module, node.lineno, name)
          for part in ast.walk(node)
          if isinstance(part, ast.Constant) and isinstance(part.value, str)
          for name in BACKTICKS.findall(part.value)
          if name not in WORDS
        ]
  return sorted(set(result), key=dataclasses.astuple)


def _name(node: ast.expr) -> str:
  return (
    node.attr if isinstance(node, ast.Attribute) else getattr(node, 'id', '')
  )


def _first(module: str, call: ast.Call) -> list[Mention]:
  first = call.args[0] if call.args else None
  if isinstance(first, ast.Constant):
    return [Mention(module, call.lineno, first.value)]
  if isinstance(first, ast.JoinedStr) and first.values:
    start = first.values[0]
    if isinstance(start, ast.Constant):
      return [Mention(module, call.lineno, start.value, prefix=True)]
  return []


@functools.cache
def imports(module: str) -> frozenset[str]:
  """Modules of the package that a module imports, inside functions too."""
  known, result = modules(), set()
  for node in ast.walk(_tree(known[module])):
    if isinstance(node, ast.Import):
      result |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      result |= {node.module, *(f'{node.module}.{a.name}' for a in node.names)}
    elif isinstance(node, ast.Attribute) and _name(node.value) == 'spacetime':
      result.add(spacetime._PUBLIC.get(node.attr, ''))  # lazily imported names
  return frozenset(name for name in result if name in known)


def reachable(module: str) -> set[str]:
  """A module with all that it imports."""
  done, todo = set(), [module]
  while todo:
    name = todo.pop()
    if name not in done and name != 'spacetime':
      done.add(name)
      todo += imports(name)
  return done


def spelled_flags() -> list[str]:
  """Places below cli/ where a raised message spells a flag, such as --steps.

  A message may name a whole command, `spacetime encode --text=embeddings`.
  """
  result = []
  for module, path in modules().items():
    if module.startswith(('spacetime.cli', 'spacetime.__main__')):
      continue
    for node in ast.walk(_tree(path)):
      if isinstance(node, ast.Raise):
        text = ''.join(
          part.value
          for part in ast.walk(node)
          if isinstance(part, ast.Constant) and isinstance(part.value, str)
        )
        flag = re.search(r'(?<![\w-])--[a-z]', text)
        if flag and not re.search(r'spacetime [a-z]+ .*--[a-z]', text):
          result.append(f'{module}:{node.lineno}: {text}')
  return result
