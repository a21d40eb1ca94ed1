"""A `spacetime` that starts at once: forked from a process that imported JAX.

  python warm.py serve SOCKET     imports the library; forks for each client
  python warm.py call SOCKET ...  runs a command in the server; stands in for
                                  the console script

The command runs with the client's arguments, folder, environment, input and
output, so that a shell cannot tell it from the console script. Only imports,
which take most of a short command's time, are shared.
"""

import json
import os
import socket
import sys

LENGTH = 1 << 20  # bytes of a request at most


def serve(path: str) -> None:
  """Answers clients until it is killed."""
  import importlib
  import pkgutil

  import spacetime

  for module in pkgutil.walk_packages(spacetime.__path__, 'spacetime.'):
    rooms = module.name.split('.')
    if rooms[1] not in ('cli', '__main__', 'assets', 'dryrun'):
      importlib.import_module(module.name)
  importlib.import_module('spacetime.cli.common')
  server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
  server.bind(path)
  server.listen()
  while True:
    client, _ = server.accept()
    pid = os.fork()
    if pid == 0:
      server.close()
      if os.fork() == 0:
        answer(client)
      os._exit(0)
    os.waitpid(pid, 0)
    client.close()


def answer(client: socket.socket) -> None:
  """Runs a client's command in this process and ends it."""
  text, descriptors, _, _ = socket.recv_fds(client, LENGTH, 3)
  request = json.loads(text)
  for number, descriptor in enumerate(descriptors):
    os.dup2(descriptor, number)
  os.chdir(request['cwd'])
  os.environ.clear()
  os.environ.update(request['environment'])
  sys.argv = ['spacetime', *request['arguments']]
  code = 70
  try:
    from spacetime import __main__

    __main__.main()
    code = 0
  except SystemExit as e:
    code = e.code or 0
  except BaseException:
    import traceback

    traceback.print_exc()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    client.sendall(bytes([code]))
    os._exit(0)


def call(path: str, arguments: list[str]) -> int:
  """Runs a command in the server; returns its exit code."""
  request = {
    'arguments': arguments,
    'cwd': os.getcwd(),
    'environment': dict(os.environ),
  }
  with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
    server.connect(path)
    socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
    code = server.recv(1)
  return code[0] if code else 70


if __name__ == '__main__':
  if sys.argv[1] == 'serve':
    serve(sys.argv[2])
  else:
    sys.exit(call(sys.argv[2], sys.argv[3:]))
