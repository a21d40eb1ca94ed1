"""Shared by the commands: flags from dataclasses, parsing, errors in a line."""

import dataclasses
import os
import sys
import types
import typing
from collections.abc import Callable

from absl import flags, logging

from spacetime.cli import config_file, flag_names, help_pages


class NumbersParser(flags.ArgumentParser):
  """Parses `0,1` or `(0, 1)` into a tuple of numbers."""

  syntactic_help = 'numbers with commas between them'

  def parse(self, argument) -> tuple[float, ...]:
    """Parses a text, or numbers as they are."""
    if isinstance(argument, str):
      argument = argument.strip('()').split(',')
    return tuple(float(item) for item in argument)

  def flag_type(self) -> str:
    """Name of the type in `--help`."""
    return 'numbers'


def define_numbers(name: str, default, help_text: str) -> None:
  """Defines a flag of several numbers."""
  flags.DEFINE(NumbersParser(), name, default, help_text)


DEFINE = {
  bool: flags.DEFINE_bool,
  float: flags.DEFINE_float,
  int: flags.DEFINE_integer,
  str: flags.DEFINE_string,
  tuple: define_numbers,
}
# Config keys that $SPACETIME_TEST_STEPS limits, to so many for each step.
SHORTENED = {
  'train.steps': 1,
  'optimizer.warmup': 1,
  'data.clips': 32,
  'data.held_out_clips': 16,
  'data.batch_size': 4,
  'train.held_out': 4,
  'train.pca_init_clips': 16,
}
BAD_INPUT = 2  # exit code of a refusal
INTERRUPTED = 130  # exit code after Ctrl-C, as of shells


def define_flags(settings: type, *, unset: str = '') -> None:
  """Defines a flag for each field of a dataclass that has a help text.

  Args:
    settings: a dataclass whose fields have `metadata={'help': ..., 'group':
      ...}`; fields without help get no flag. Types are str, int, float and
      bool, or one of them and None.
    unset: where a flag that is not set takes its value from, such as "the
      checkpoint's"; the flags' defaults are then None. Empty: the fields' own
      defaults.
  """
  hints = typing.get_type_hints(settings)
  for field in dataclasses.fields(settings):
    if not field.metadata.get('help'):
      continue
    default = None if unset else _default(field)
    kind = field.metadata.get('type') or _plain_type(hints[field.name])
    if kind not in DEFINE:
      continue  # such as a tuple: a key of the config only
    DEFINE[kind](field.name, default, field.metadata['help'])
    help_pages.group(field.metadata.get('group', 'options'), field.name)
    if 'example' in field.metadata:
      help_pages.example(field.name, field.metadata['example'])
    if unset:
      help_pages.unset(field.name, unset)


def flag_values(settings: type) -> dict:
  """Values of the flags that define_flags made, by name."""
  return {
    field.name: flags.FLAGS[field.name].value
    for field in dataclasses.fields(settings)
    if field.metadata.get('help') and field.name in flags.FLAGS
  }


def _default(field: dataclasses.Field):
  if field.default is not dataclasses.MISSING:
    return field.default
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  return None


def _plain_type(hint) -> type:
  """The type of a flag: `int` of `int | None`."""
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    (hint,) = (
      kind for kind in typing.get_args(hint) if kind is not types.NoneType
    )
  if typing.get_origin(hint) is typing.Literal:
    return type(typing.get_args(hint)[0])
  return typing.get_origin(hint) or hint


def parse(argv: list[str]) -> list[str]:
  """Parses flags, with a config and its overrides; returns the rest.

  Raises:
    ValueError: no such flag, config or key, or a value of another type.
  """
  argv = [argv[0], *flag_names.own_names(argv[1:])]
  arguments = config_file.Arguments(argv, {})
  if 'config' in flags.FLAGS:
    arguments = config_file.resolve(argv)
  sys.argv = arguments.argv  # where config_flags looks for overrides
  try:
    rest = flags.FLAGS(arguments.argv)
    if arguments.additions:
      arguments.add_to(flags.FLAGS.config)
    return rest
  except flags.IllegalFlagValueError as e:
    raise ValueError(_illegal(str(e))) from e
  except (flags.Error, AttributeError, KeyError, OSError) as e:
    raise ValueError(f'{str(e).splitlines()[0]}; see --help') from e


def shorten() -> None:
  """Shortens the command to $SPACETIME_TEST_STEPS steps, if that is set.

  Tests of the documentation set it, to run its commands as they stand.
  """
  if not os.environ.get('SPACETIME_TEST_STEPS'):
    return
  limit = int(os.environ['SPACETIME_TEST_STEPS'])
  for name in ('steps', 'num'):
    if name in flags.FLAGS:
      flag = flags.FLAGS[name]
      flag.value = limit if flag.value is None else min(flag.value, limit)
  if 'config' in flags.FLAGS and hasattr(flags.FLAGS.config, 'unlocked'):
    config = flags.FLAGS.config
    with config.unlocked():
      for key, most in SHORTENED.items():
        section, name = key.split('.')
        value = config.get(section, {}).get(name)
        if isinstance(value, int) and value > most * limit:
          config[section][name] = most * limit


def _illegal(text: str) -> str:
  """Absl's 'flag --steps=abc: invalid literal ...' in this program's form."""
  text = text.removeprefix('flag ')
  if 'invalid literal for int' in text:
    return text.split(': ')[0] + ': expected a whole number'
  if 'could not convert string to float' in text:
    return text.split(': ')[0] + ': expected a number'
  return text.replace('value should be one of', 'expected one of')


def run(
  main: Callable,
  *,
  setup: Callable | None = None,
  docstring: str = '',
  operands: bool = False,
) -> None:
  """Parses sys.argv and runs a command; exits with its code.

  A ValueError is printed in one line (exit code 2), as is an OSError (exit code
  1), unless the environment has SPACETIME_TRACEBACK.

  Args:
    main: the command; returns an exit code or None.
    setup: called after the flags are parsed.
    docstring: what `--help` prints above the flags.
    operands: main takes the arguments behind `--`; else there may be none.
  """
  if help_pages.requested(sys.argv[1:]):
    help_pages.show(docstring)
  try:
    rest = parse(sys.argv)
    shorten()
    if not flags.FLAGS['verbosity'].present:  # Orbax logs every file it opens
      logging.set_verbosity(logging.WARNING)
    logging.use_absl_handler()
    if len(rest) > 1 and not operands:
      raise ValueError(
        f'arguments {rest[1:]}: expected flags only, as --name=value; see '
        '--help'
      )
    if setup:
      setup()
    code = main(rest[1:]) if operands else main()
  except ValueError as e:
    _fail(e, flag_names.message(e), BAD_INPUT)
  except OSError as e:
    _fail(e, str(e), 1)
  except KeyboardInterrupt as e:
    _fail(e, ' '.join(['interrupted', *map(str, e.args)]), INTERRUPTED)
  sys.exit(code or 0)


def _fail(error: BaseException, text: str, code: int) -> typing.NoReturn:
  if os.environ.get('SPACETIME_TRACEBACK'):
    raise error
  print(f'error: {text}', file=sys.stderr)
  sys.exit(code)
