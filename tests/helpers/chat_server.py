"""A chat endpoint that answers as a test says: a local server in a thread."""

import contextlib
import dataclasses
import http.server
import json
import threading
import time


@dataclasses.dataclass
class Server:
  """What it answers with, and what it was asked."""

  url: str
  answer: object = 'a long prompt'
  status: int = 200
  wait: float = 0.0
  busy: int = 0  # answers of 503 before the first good one
  requests: list = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def start():
  """A server while the block runs; its address and answers are a Server."""
  state = Server('')

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      body = self.rfile.read(int(self.headers['Content-Length']))
      state.requests.append((self.path, self.headers, json.loads(body)))
      time.sleep(state.wait)
      answer = state.answer
      if state.busy:
        state.busy -= 1
        self.send_response(503)
        self.end_headers()
        return
      if isinstance(answer, str):
        answer = {'choices': [{'message': {'content': answer}}]}
      with contextlib.suppress(BrokenPipeError):  # it has not waited
        self.send_response(state.status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *args):
      del args

  listening = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  state.url = f'http://127.0.0.1:{listening.server_port}/v1'
  thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
  thread.start()
  try:
    yield state
  finally:
    listening.shutdown()
    thread.join()
    listening.server_close()
