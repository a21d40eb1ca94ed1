"""The flag `--config`: its file, and keys that it does not have."""

import difflib

from spacetime.config import experiment_files


def checked(argv: list[str]) -> list[str]:
  """Arguments with the path of the config's file; its overrides are keys.

  Raises:
    ValueError: no such experiment or size, or a key that it does not have.
  """
  result, config = [], None
  for argument in argv:
    name, equals, value = argument.partition('=')
    name = name.lstrip('-')
    if name == 'config' and equals and value:
      config = experiment_files.load(value)
      argument = f'--config={experiment_files.find(value)}'
    elif name.removeprefix('no').startswith('config.') and config is not None:
      _check_key(config, name.partition('.')[2])
    result.append(argument)
  return result


def _check_key(config, name: str) -> None:
  *sections, key = name.split('.')
  for depth, section in enumerate([*sections, key]):
    if isinstance(config, (tuple, list)):
      return  # config_flags parses indices
    known = [str(key) for key in config] if hasattr(config, 'keys') else []
    if section not in known:
      near = difflib.get_close_matches(section, known, n=1, cutoff=0.5)
      before = ''.join(f'{part}.' for part in sections[:depth])
      hint = (
        f'did you mean --config.{before}{near[0]}?'
        if near
        else f'expected one of {known}'
        if known
        else f'{before.rstrip(".")} is a value'
      )
      raise ValueError(f'--config.{name}: no such key; {hint}')
    config = config[section]
