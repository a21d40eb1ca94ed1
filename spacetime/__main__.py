"""spacetime: text-to-video diffusion on spacetime patches, in JAX.

spacetime COMMAND [--flag=value ...]
spacetime COMMAND --help
"""

import importlib
import sys

COMMANDS = {
  'sample': 'Sample videos from prompts, images and videos.',
  'train': 'Train a text-to-video model or a video autoencoder.',
  'evaluate': 'Measure what the videos of a model show.',
  'encode': 'Cache latents and prompt embeddings of a data set.',
  'export': 'Write a trained model as a folder of safetensors.',
  'convert': 'Convert published weights, both ways.',
  'compile': 'Compile ahead: dry runs, programs of sampling.',
  'caption': 'Caption videos through a chat endpoint.',
  'serve': 'Serve videos over HTTP, with a page.',
  'keys': 'Make keys for signing, or for clients of a service.',
  'sign': 'Sign a video or image with a manifest (C2PA).',
  'verify': 'Show where a video or image comes from.',
}


def main() -> None:
  """Runs the command that the first argument names."""
  arguments = sys.argv[1:]
  if arguments[:1] == ['--version']:
    print(importlib.import_module('spacetime').__version__)
    return
  if not arguments or arguments[0] in ('-h', '-help', '--help', 'help'):
    if len(arguments) > 1 and arguments[1] in COMMANDS:
      arguments = [arguments[1], '--help']
    else:
      print(overview())
      return
  name = arguments[0]
  if name not in COMMANDS:
    print(f'error: unknown command {name!r}{suggestion(name)}', file=sys.stderr)
    sys.exit(2)
  try:
    command, common, devices = (
      importlib.import_module(f'spacetime.cli.{module}')
      for module in (name, 'common', 'devices')
    )
  except KeyboardInterrupt:
    print('error: interrupted', file=sys.stderr)
    sys.exit(130)
  sys.argv = [f'spacetime {name}', *arguments[1:]]
  setup = getattr(command, 'setup', devices.setup)
  try:
    common.run(
      command.main,
      setup=setup,
      docstring=command.__doc__,
      operands=getattr(command, 'OPERANDS', False),
    )
  except common.Interrupted as e:
    common.leave(e.code)


def overview() -> str:
  """The commands, a line each."""
  lines = [f'  {name:10}{summary}' for name, summary in COMMANDS.items()]
  return f'{__doc__}\nCommands:\n\n' + '\n'.join(lines)


def suggestion(name: str) -> str:
  """The nearest command, or all of them."""
  near = importlib.import_module('difflib').get_close_matches(name, COMMANDS)
  if near:
    return f'; did you mean {near[0]}?'
  return f': expected one of {", ".join(COMMANDS)}'


if __name__ == '__main__':
  main()
