"""Tests of the chat endpoint and of the captions that it writes."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from spacetime.data import chat_endpoint, recaption
from spacetime.media import video_writer
from tests.helpers import chat_server, commands


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setattr(chat_endpoint, 'PAUSE', 0.0)
  with chat_server.start() as state:
    yield state


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


THOUGHT = 'The user wants a caption. I see a gray square.'
ANSWER = 'A gray square stands still.'


@pytest.mark.parametrize(
  'text',
  [
    f'<think>\n{THOUGHT}\n</think>\n\n{ANSWER}',
    f'{THOUGHT}</think>{ANSWER}',  # the template holds the opening mark
    f'<think></think>{ANSWER}',
    f'<THINKING>{THOUGHT}</THINKING>\n{ANSWER}',
    f'<think>{THOUGHT} <think> is a mark </think> {ANSWER}',
    f'<think>{THOUGHT} <think>x</think> y </think> {ANSWER}',
    f'{ANSWER}<think>{THOUGHT}</think>',
    f'<reasoning>{THOUGHT}</reasoning><answer>{ANSWER}</answer>',
    f'[THINK]{THOUGHT}[/THINK]{ANSWER}',
    f'\u25c1think\u25b7{THOUGHT}\u25c1/think\u25b7{ANSWER}',
    f'<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant'
    f'<|channel|>final<|message|>{ANSWER}<|return|>',
    f'<think>{THOUGHT}</think><|begin_of_box|>{ANSWER}<|end_of_box|>',
    f'<seed:think>{THOUGHT}</seed:think>{ANSWER}',
  ],
)
def test_reasoning_is_no_answer(text, server):
  server.answer = text
  assert chat_endpoint.Endpoint(server.url).chat('', 'x') == ANSWER


def reply(content, reason='stop', **more):
  message = {'role': 'assistant', 'content': content} | more
  return {'choices': [{'message': message, 'finish_reason': reason}]}


@pytest.mark.parametrize(
  'answer, text',
  [
    (reply(ANSWER), ANSWER),
    (reply(ANSWER, None), ANSWER),
    (reply(ANSWER, 'eos_token'), ANSWER),
    (reply(ANSWER, reasoning_content=THOUGHT), ANSWER),
    (reply([{'type': 'text', 'text': ANSWER}]), ANSWER),
    (
      reply(
        [
          {'type': 'thinking', 'thinking': 'x'},
          {'type': 'text', 'text': ANSWER},
        ]
      ),
      ANSWER,
    ),
    (reply(['A gray square ', 'stands still.']), ANSWER),
  ],
)
def test_complete_answers(answer, text, server):
  server.answer = answer
  assert chat_endpoint.Endpoint(server.url).chat('', 'x') == text


@pytest.mark.parametrize(
  'answer, message',
  [
    (reply('A gray square and', 'length'), "finish_reason='length'"),
    (reply('A gray', 'content_filter'), "finish_reason='content_filter'"),
    (reply(None, 'tool_calls'), "finish_reason='tool_calls'"),
    (reply('', refusal='I cannot help.'), 'the model refuses: I cannot help.'),
    (reply(f'<think>{THOUGHT}'), 'reasoning without an end'),
    (reply(f'<think>{THOUGHT}</think>\n'), 'reasoning, and no answer'),
    (reply(None, reasoning_content=THOUGHT), 'reasoning, and no answer'),
    (reply('', reasoning=THOUGHT), 'reasoning, and no answer'),
    (reply(None), 'an empty answer'),
    (reply([]), 'an empty answer'),
    (reply([{'type': 'image_url'}]), 'an empty answer'),
    (reply(7), 'unexpected format'),
    (reply([{'text': 'x'}]), 'unexpected format'),
    ({'choices': []}, 'unexpected format'),
    ({'error': {'message': 'no such model'}}, 'no such model'),
  ],
)
def test_incomplete_answers_are_failures(answer, message, films, server):
  server.answer = answer
  endpoint = chat_endpoint.Endpoint(server.url)
  with pytest.raises(chat_endpoint.EndpointError, match=message):
    endpoint.chat('', 'x')
  report = recaption.caption_folder(films, endpoint, overwrite=True)
  assert report.written == 0 and len(report.failed) == 2
  assert message in report.failed[0]
  assert (films / 'a.txt').read_text() == 'as it was'
  assert not (films / 'b.txt').exists()


def test_a_busy_server_is_retried(server):
  server.busy = 2
  assert chat_endpoint.Endpoint(server.url).chat('', 'x') == 'a long prompt'
  assert len(server.requests) == 3
  server.busy = 3
  with pytest.raises(chat_endpoint.EndpointError, match='503'):
    chat_endpoint.Endpoint(server.url).chat('', 'x')
  server.status, count = 404, len(server.requests)
  with pytest.raises(chat_endpoint.EndpointError, match='404.*long prompt'):
    chat_endpoint.Endpoint(server.url).chat('', 'x')
  assert len(server.requests) == count + 1  # it would answer the same


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


def test_captions_end_where_no_answer_is_to_be_had(films, server):
  for i in range(7):
    (films / f'c{i}.mp4').write_bytes((films / 'a.mp4').read_bytes())
  server.status = 401
  endpoint = chat_endpoint.Endpoint(server.url)
  report = recaption.caption_folder(films, endpoint, frames=1)
  assert (report.written, report.skipped, report.pending) == (0, 1, 3)
  assert len(report.failed) == recaption.UNREACHED == len(server.requests)
  arguments = [f'--data={films}', f'--endpoint={server.url}', '--frames=1']
  refusal = commands.run('caption', *arguments).refusal()
  assert '5 videos have no new caption, and 3 were not tried' in refusal


def test_captions_that_would_not_be_read(films, server):
  endpoint = chat_endpoint.Endpoint(server.url)
  (films / 'a.txt').write_text(' \n')  # as a failed captioner leaves it
  (films / 'b.webm').write_bytes((films / 'b.mp4').read_bytes())
  report = recaption.caption_folder(films, endpoint, frames=1)
  assert (report.written, report.skipped) == (2, 0)
  assert (films / 'a.txt').read_text() == 'a long prompt\n'
  assert len(report.failed) == 1 and 'b.webm: its text is' in report.failed[0]
  (films / 'captions.jsonl').write_text('{}')
  with pytest.raises(ValueError, match='captions.jsonl has the captions'):
    recaption.caption_folder(films, endpoint)
  (films / 'captions.jsonl').unlink()
  (films / 'a.txt').write_bytes(b'caf\xe9')
  with pytest.raises(ValueError, match='a.txt is not UTF-8'):
    recaption.caption_folder(films, endpoint)


@pytest.mark.parametrize(
  'url',
  ['x', 'ftp://a/v1', 'http://', 'http://a:b/v1', 'http://a:0', 'http://a b'],
)
def test_addresses_that_are_none(url):
  with pytest.raises(ValueError, match='expected a URL such as'):
    chat_endpoint.Endpoint(url)


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
