"""Shared by the commands: flags from dataclasses, parsing, errors in a line."""

import atexit
import dataclasses
import os
import signal
import sys
import types
import typing
import warnings
from collections.abc import Callable, Collection

from absl import flags, logging

import spacetime
from spacetime.cli import config_file, flag_names, help_pages


class Interrupted(SystemExit):
  """The end of a command by a signal; the process ends by `leave`."""


class NumbersParser(flags.ArgumentParser):
  """Parses `0,1` or `(0, 1)` into a tuple of numbers."""

  syntactic_help = 'numbers with commas between them'

  def parse(self, argument) -> tuple[float, ...]:
    """Parses a text, or numbers as they are; `()` and '' are none."""
    if isinstance(argument, str):
      argument = argument.strip('() ')
      argument = argument.rstrip(',').split(',') if argument else ()
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
  'train.scored_clips': 4,
  'train.pca_init_clips': 16,
}
BAD_INPUT = 2  # exit code of a refusal
INTERRUPTED = 130  # exit code after Ctrl-C, as of shells
LESS_MEMORY = 'a smaller size, fewer frames or a smaller batch needs less'


def define_flags(
  settings: type, *, unset: str = '', names: Collection[str] = ()
) -> None:
  """Defines a flag for each field of a dataclass that has a help text.

  Args:
    settings: a dataclass whose fields have `metadata={'help': ..., 'group':
      ...}`; fields without help get no flag. Types are str, int, float and
      bool, or one of them and None.
    unset: where a flag that is not set takes its value from, such as "the
      checkpoint's"; the flags' defaults are then None. Empty: the fields' own
      defaults.
    names: fields that get a flag; () is all.
  """
  hints = typing.get_type_hints(settings)
  for field in dataclasses.fields(settings):
    if not field.metadata.get('help') or names and field.name not in names:
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
  # A launcher's --config is text that it passes on, with what follows --.
  flag = flags.FLAGS['config'] if 'config' in flags.FLAGS else None
  if hasattr(type(flag), 'config_filename'):
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
  for name in ('steps', 'num', 'best_of'):
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

  A ValueError is printed in one line (exit code 2), as are an OSError and a
  lack of memory (exit code 1), unless the environment has SPACETIME_TRACEBACK.
  A SettingWarning is a line, too. SIGTERM and SIGHUP end a command like Ctrl-C,
  so that nothing half-written stays; training handles SIGTERM itself.

  Args:
    main: the command; returns an exit code or None.
    setup: called after the flags are parsed.
    docstring: what `--help` prints above the flags.
    operands: main takes the arguments behind `--`; else there may be none.
  """
  if help_pages.requested(sys.argv[1:]):
    help_pages.show(docstring)
  for number in (signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_DFL:
      signal.signal(number, _stop)
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
    with warnings.catch_warnings():
      warnings.simplefilter('always', spacetime.SettingWarning)
      warnings.showwarning = _show_warning
      code = main(rest[1:]) if operands else main()
  except ValueError as e:
    _fail(e, flag_names.message(e), BAD_INPUT)
  except OSError as e:
    _fail(e, str(e), 1)
  except KeyboardInterrupt as e:
    codes = [value for value in e.args if isinstance(value, int)]
    words = [value for value in e.args if isinstance(value, str)]
    code = codes[0] if codes else INTERRUPTED
    _fail(e, ' '.join(['interrupted', *words]), code, end=Interrupted)
  except (MemoryError, RuntimeError) as e:
    if not _is_out_of_memory(e):
      raise
    _fail(e, f'out of memory: {str(e).splitlines()[0]}; {LESS_MEMORY}', 1)
  sys.exit(code or 0)


def leave(code: int) -> typing.NoReturn:
  """Ends the process after a signal.

  A signal may leave a compilation of XLA running. The interpreter would wait
  for it when it shuts down, and then crash with exit code 139.
  """
  atexit._run_exitfuncs()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _stop(number: int, frame) -> typing.NoReturn:
  """Ends the command with the exit code of shells for a signal."""
  del frame
  raise KeyboardInterrupt(128 + number)


def _is_out_of_memory(error: Exception) -> bool:
  """Whether the host, or JAX on a device, is out of memory."""
  text = str(error).upper()
  return isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in text


def _show_warning(message, category, filename, lineno, file=None, line=None):
  """Prints a SettingWarning in one line, and others as Python does."""
  if isinstance(message, spacetime.SettingWarning):
    text = f'warning: {flag_names.message(message)}'
  else:
    text = warnings.formatwarning(message, category, filename, lineno, line)
  print(text, file=file or sys.stderr)


def _fail(
  error: BaseException,
  text: str,
  code: int,
  *,
  end: type[SystemExit] = SystemExit,
) -> typing.NoReturn:
  if os.environ.get('SPACETIME_TRACEBACK'):
    raise error
  notes = getattr(error, '__notes__', ())
  print(f'error: {"; ".join([text, *notes])}', file=sys.stderr)
  raise end(code)
