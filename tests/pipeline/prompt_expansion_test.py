"""Prompts and captions from a chat endpoint: a local server in a thread."""

import base64
import contextlib
import dataclasses
import http.server
import io
import json
import threading
import time
import types

import numpy as np
import pytest
from PIL import Image

from spacetime import checkpoint
from spacetime.checkpoint.locate import locate
from spacetime.data import chat_endpoint, recaption
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.data.digits import world as world_lib
from spacetime.data.sources import digits as digits_source
from spacetime.data.sources import folder as folder_source
from spacetime.media import video_writer
from spacetime.pipeline import prompts as prompts_lib
from spacetime.pipeline.request import Request
from tests.helpers import commands


@dataclasses.dataclass
class Server:
  """What it answers with, and what it was asked."""

  url: str
  answer: object = 'a long prompt'
  status: int = 200
  wait: float = 0.0
  requests: list = dataclasses.field(default_factory=list)


@pytest.fixture
def server():
  state = Server('')

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      body = self.rfile.read(int(self.headers['Content-Length']))
      state.requests.append((self.path, self.headers, json.loads(body)))
      time.sleep(state.wait)
      answer = state.answer
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
  yield state
  listening.shutdown()
  thread.join()
  listening.server_close()


@pytest.fixture(scope='module')
def model():
  """Of the digits world; nothing else of a model is read."""
  folder = locate('digits').folder
  tokenizer = tokenizer_lib.Tokenizer.from_bytes(
    checkpoint.read_tokenizer(folder)
  )
  return types.SimpleNamespace(
    data=data('digits'),
    model=types.SimpleNamespace(tokenizer=tokenizer),
    networks=types.SimpleNamespace(text_length=80),
    published=None,
  )


def data(name):
  source = {'digits': digits_source, 'folder': folder_source}[name]
  return types.SimpleNamespace(
    name=name, source=source, world=world_lib.World(max_characters=1)
  )


def expand_request(expand_prompt, **changes):
  settings = dict(expand_model='m', expand_timeout=5.0) | changes
  return Request(expand_prompt=expand_prompt, **settings)


def test_the_grammar_expands_and_none_does_not(model):
  prompts = ['a red 3 moving left', 'a cat']
  assert prompts_lib.expand(expand_request(None), model, prompts) == prompts
  answers = prompts_lib.expand(expand_request('grammar'), model, prompts)
  assert 'red 3 moves' in answers[0] and 'background' in answers[0]
  assert answers[1] == 'a cat'


def test_an_endpoint_expands_each_prompt_once(model, server, monkeypatch):
  monkeypatch.setenv(chat_endpoint.KEY, 'secret')
  prompts = ['a red 3', 'a red 3', 'a blue 4']
  answers = prompts_lib.expand(expand_request(server.url), model, prompts)
  assert answers == ['a long prompt'] * 3 and len(server.requests) == 2
  path, headers, body = server.requests[0]
  assert path == '/v1/chat/completions'
  assert headers['Authorization'] == 'Bearer secret'
  assert body['model'] == 'm' and body['messages'][1]['content'] == 'a red 3'
  assert 'at most 40 words' in body['messages'][0]['content']
  chat_endpoint.Endpoint(server.url + '/chat/completions').chat('', 'x')
  assert server.requests[-1][0] == '/v1/chat/completions'


@pytest.mark.parametrize(
  'fault, message',
  [
    ({'status': 500}, 'HTTP Error 500'),
    ({'answer': {'error': 'no'}}, 'unexpected format of the answer: KeyError'),
    ({'answer': ['x']}, 'unexpected format of the answer: TypeError'),
    ({'answer': ' '}, 'an empty answer'),
    ({'wait': 0.6}, 'timed out'),
    ({'answer': 'word ' * 99}, 'the model takes at most'),
    ({'url': 'http://127.0.0.1:9/v1'}, 'refused'),
  ],
)
def test_an_endpoint_that_fails_leaves_the_prompt(
  model, server, caplog, fault, message
):
  for name, value in fault.items():
    setattr(server, name, value)
  request = expand_request(
    server.url, expand_timeout=0.3 if server.wait else 5.0
  )
  with caplog.at_level('WARNING', logger='absl'):
    assert prompts_lib.expand(request, model, ['a red 3']) == ['a red 3']
  assert 'continuing with the original prompt: a red 3' in caplog.text
  assert message in caplog.text


def test_refuses(model):
  for value in ('gramar', 'ftp://x/v1', 'http://'):
    with pytest.raises(ValueError, match=r"expand_prompt=.* or 'grammar'"):
      prompts_lib.expand(expand_request(value), model, ['a red 3'])
  with pytest.raises(ValueError, match='timeout=0: expected more'):
    prompts_lib.expand(
      expand_request('http://x', expand_timeout=0), model, ['a red 3']
    )
  other = types.SimpleNamespace(data=data('folder'))
  with pytest.raises(
    ValueError, match="data are 'folder', which have no grammar"
  ):
    prompts_lib.expand(expand_request('grammar'), other, ['a red 3'])


@pytest.fixture
def films(tmp_path):
  rng = np.random.default_rng(0)
  for name, level in (('a', np.uint8(40)), ('b', np.uint8(200))):
    video = np.full((9, 32, 48, 3), level) + rng.integers(0, 9, (9, 32, 48, 3))
    video_writer.write_video(
      str(tmp_path / f'{name}.mp4'), video.astype(np.uint8), fps=4
    )
  (tmp_path / 'a.txt').write_text('as it was')
  return tmp_path


def test_captions_are_written_beside_videos_and_none_is_lost(films, server):
  server.answer = 'A grey\nfilm. '
  endpoint = chat_endpoint.Endpoint(server.url)
  counts = recaption.caption_folder(films, endpoint, frames=3, overwrite=False)
  assert counts == recaption.Report(1, 1, ())
  assert (films / 'a.txt').read_text() == 'as it was'
  assert (films / 'b.txt').read_text() == 'A grey film.\n'
  text, *pictures = server.requests[0][2]['messages'][1]['content']
  assert text == {'type': 'text', 'text': '3 frames.'} and len(pictures) == 3
  data = pictures[2]['image_url']['url'].removeprefix('data:image/png;base64,')
  image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
  assert image.shape == (32, 48, 3) and abs(image.mean() - 204) < 4
  counts = recaption.caption_folder(films, endpoint, frames=3, overwrite=True)
  assert counts == recaption.Report(2, 0, ())
  assert (films / 'a.txt').read_text() == 'A grey film.\n'


def test_a_video_without_an_answer_keeps_the_caption_it_has(films, server):
  server.status = 503
  (films / 'c.mp4').write_bytes(b'no film')
  endpoint = chat_endpoint.Endpoint(server.url)
  counts = recaption.caption_folder(films, endpoint, frames=3, overwrite=True)
  assert counts.written == 0 and len(counts.failed) == 3
  assert '503' in counts.failed[0] and 'c.mp4' in counts.failed[2]
  assert (films / 'a.txt').read_text() == 'as it was'
  assert not list(films.glob('b.txt*'))


def test_the_command_writes_and_refuses(films, server):
  arguments = [f'--data={films}', f'--endpoint={server.url}']
  cases = {
    '--data: expected a folder': arguments[1:],
    '--endpoint: expected URL': arguments[:1],
    '--frames=0: expected 1': [*arguments, '--frames=0'],
    'none: no such folder': ['--data=none', arguments[1]],
    '--endpoint=x: expected a URL': [arguments[0], '--endpoint=x'],
    '1 captions written, 1 existed before': arguments,
  }
  *refused, accepted = cases.items()
  for expected, flags in refused:
    assert expected in commands.run('caption', *flags).refusal()
  assert accepted[0] in commands.run('caption', *accepted[1]).ok().out
  assert (films / 'b.txt').read_text() == 'a long prompt\n'
