"""Commands run in this process: as `spacetime COMMAND ...`, without a start."""

import contextlib
import dataclasses
import importlib
import io
import signal
import sys

from absl import flags, logging

from spacetime.cli import common, devices

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclasses.dataclass(frozen=True)
class Result:
  """Exit code and output of a command."""

  code: int
  out: str
  err: str

  def ok(self) -> 'Result':
    """Itself, of a command that succeeded."""
    assert self.code == 0, self.err[-3000:]
    return self

  def refusal(self) -> str:
    """The error of a command that refused its input, a single line."""
    assert self.code == 2, (self.code, self.err[-3000:])
    lines = [line for line in self.err.splitlines() if 'error: ' in line]
    assert len(lines) == 1 and 'Traceback' not in self.err, self.err[-3000:]
    return lines[0].partition('error: ')[2]


def run(command: str, *arguments) -> Result:
  """Runs a command of spacetime/cli with these flags."""
  module = load(command)
  return _call(f'spacetime {command}', module, arguments)


def launch(name: str, *arguments, subprocess) -> Result:
  """Runs a launcher, such as `launch.tpu_pod`, with another subprocess.

  It packs no checkout.
  """
  _remove_flags()
  _import('launch.pods').subprocess = subprocess
  module = _import(name)
  module.pack = lambda archive: None
  return _call(name, module, arguments, operands=True)


def parse(command: str, *arguments) -> None:
  """Parses the flags of a command and runs nothing.

  Raises:
    ValueError: a flag or a config key does not exist.
  """
  load(command)
  before = sys.argv
  try:
    common.parse([f'spacetime {command}', *map(str, arguments)])
  finally:
    sys.argv = before


def load(command: str):
  """The command's module with its flags, those of other commands removed."""
  _remove_flags()
  return _import(f'spacetime.cli.{command}')


def _call(program: str, module, arguments, **options) -> Result:
  out, err = io.StringIO(), io.StringIO()
  before, verbosity = sys.argv, logging.get_verbosity()
  signals = {n: signal.getsignal(n) for n in SIGNALS}
  handler = logging.get_absl_handler().python_handler
  stream, handler.stream = handler.stream, err
  sys.argv = [program, *map(str, arguments)]
  try:
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      common.run(module.main, docstring=module.__doc__, **options)
  except SystemExit as e:
    code = e.code or 0
  finally:
    sys.argv, handler.stream = before, stream
    logging.set_verbosity(verbosity)
    for number, action in signals.items():
      signal.signal(number, action)
  return Result(code, out.getvalue(), err.getvalue())


def _remove_flags() -> None:
  for name in list(flags.FLAGS):
    module = str(flags.FLAGS.find_module_defining_flag(name))
    own = module.startswith(('spacetime.cli.', 'launch.'))
    if (own and module != devices.__name__) or name.startswith('config.'):
      delattr(flags.FLAGS, name)
    else:
      flags.FLAGS[name].unparse()


def _import(name: str):
  """A module, run anew so that it defines its flags."""
  if name in sys.modules:
    return importlib.reload(sys.modules[name])
  return importlib.import_module(name)
