"""A work directory's config and tokenizer."""

import json
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from spacetime.checkpoint import paths
from spacetime.checkpoint.paths import CONFIG, TOKENIZER, Path
from spacetime.config import parse
from spacetime.config.experiment import Experiment
from spacetime.media import files


def write_config(
  workdir: Path,
  config: Mapping[str, Any],
  *,
  tokenizer: bytes | None = None,
  free: tuple[str, ...] = (),
) -> None:
  """Writes config.json and tokenizer.model, or checks existing ones.

  Args:
    workdir: the run's directory, created if it does not exist.
    config: plain values, nested.
    tokenizer: sentencepiece model.
    free: dotted keys, or parents of keys, that a resumed run may change.

  Raises:
    ValueError: the directory holds a run with another config or tokenizer, or
      cannot be written.
  """
  check_config(workdir, config, free=free)
  files.check_writable(workdir)
  directory = paths.absolute(workdir)
  path = directory / CONFIG
  config = json.loads(json.dumps(config))
  saved = directory / TOKENIZER
  if tokenizer is not None and saved.exists():
    if saved.read_bytes() != tokenizer:
      raise ValueError(
        f'{workdir} holds a run with another tokenizer; use that one, or '
        'another folder'
      )
  if jax.process_index() == 0:
    if tokenizer is not None:
      paths.write_file(saved, tokenizer)
    paths.write_file(path, config_bytes(config))


def check_config(
  workdir: Path, config: Mapping[str, Any], *, free: tuple[str, ...] = ()
) -> None:
  """Raises ValueError if the directory holds a run with another config.

  Args:
    workdir: the run's directory, which may not exist.
    config: plain values, nested.
    free: dotted keys, or parents of keys, that a resumed run may change.
  """
  path = paths.absolute(workdir) / CONFIG
  if path.exists():  # a run may have been stopped before its first save
    changes = {
      key: pair
      for key, pair in config_changes(_read_json(path), config).items()
      if not any(key == f or key.startswith(f + '.') for f in free)
    }
    if changes:
      lines = [f'{k}: {old!r} -> {new!r}' for k, (old, new) in changes.items()]
      raise ValueError(
        f'{workdir} holds a run with another config: {"; ".join(lines)}; '
        'restore these values, or use another folder'
      )


def config_changes(
  old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
  """Maps dotted keys that differ to (old, new); None is a missing value."""
  old, new = (_flat_config(json.loads(json.dumps(c))) for c in (old, new))
  return {
    key: (old.get(key), new.get(key))
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
  }


def read_config(directory: Path) -> dict[str, Any]:
  """Reads the config of a work or weights directory.

  Raises:
    ValueError: no such directory, or one of another kind.
  """
  return _read_json(paths.check_directory(directory) / CONFIG)


def read_experiment(directory: Path) -> Experiment:
  """Reads and parses the config of a work or weights directory.

  Raises:
    ValueError: no such directory, no config in it, or an invalid one.
  """
  config = read_config(directory)
  try:
    return parse.experiment(config)
  except ValueError as e:
    raise ValueError(f'{paths.absolute(directory) / CONFIG}: {e}') from e


def read_tokenizer(directory: Path) -> bytes:
  """Reads the tokenizer of a work or weights directory.

  Raises:
    ValueError: no such directory, or no tokenizer in it.
  """
  path = paths.check_directory(directory) / TOKENIZER
  if not path.exists():
    raise ValueError(f'{directory} has no {TOKENIZER}')
  return path.read_bytes()


def _read_json(path: epath.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text())
  except (ValueError, RecursionError) as e:
    raise ValueError(f'{path} is not JSON ({e})') from e


def _flat_config(config: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(config, Mapping):
    return {prefix: config}
  flat = {}
  for key, value in config.items():
    flat |= _flat_config(value, f'{prefix}.{key}' if prefix else key)
  return flat


def config_bytes(config: Mapping[str, Any]) -> bytes:
  """Returns the contents of config.json: sorted keys, two spaces."""
  return (json.dumps(config, indent=2, sort_keys=True) + '\n').encode()
