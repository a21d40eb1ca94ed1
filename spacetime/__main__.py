"""`spacetime COMMAND` and `python -m spacetime COMMAND`."""

import importlib
import sys

COMMANDS = {
  'train': 'Trains a text-to-video model or a video autoencoder.',
  'sample': 'Samples videos from prompts, images and videos.',
  'evaluate': 'Measures what the videos of a model show.',
  'encode': 'Caches latents and prompt embeddings of a data set.',
  'export': 'Writes a trained model as a folder of safetensors.',
  'convert': 'Converts published weights, both ways.',
  'compile': 'Dry run: compiles for TPUs that are not there.',
  'caption': 'Captions videos through a chat endpoint.',
}


def main() -> None:
  """Runs the command that the first argument names."""
  arguments = sys.argv[1:]
  if not arguments or arguments[0] in ('-h', '--help', 'help'):
    print(__doc__)
    for name, summary in COMMANDS.items():
      print(f'  {name:10}{summary}')
    sys.exit(0 if arguments else 2)
  name = arguments[0]
  if name not in COMMANDS:
    print(
      f'error: unknown command {name!r}: expected one of {", ".join(COMMANDS)}',
      file=sys.stderr,
    )
    sys.exit(2)
  sys.argv = [f'spacetime {name}', *arguments[1:]]
  command = importlib.import_module(f'spacetime.cli.{name}')
  importlib.import_module('spacetime.cli.common').run(command.main)


if __name__ == '__main__':
  main()
