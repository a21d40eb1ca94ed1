"""Expansion of prompts by the grammar and by a chat endpoint."""

import types

import pytest

from spacetime import checkpoint
from spacetime.checkpoint.locate import locate
from spacetime.data import chat_endpoint
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.data.digits import world as world_lib
from spacetime.data.sources import digits as digits_source
from spacetime.data.sources import folder as folder_source
from spacetime.pipeline import prompts as prompts_lib
from spacetime.pipeline.request import Request
from tests.helpers import chat_server


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setattr(chat_endpoint, 'PAUSE', 0.0)
  with chat_server.start() as state:
    yield state


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
