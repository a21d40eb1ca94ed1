"""Tokens: special ids, lengths, determinism and truncation."""

import pickle

import numpy as np
import pytest
import sentencepiece

from spacetime.data import tokenizer as tokenizer_lib
from spacetime.data.tokenizer import Tokenizer

CAPTIONS = [
  f'a {color} {digit} moves {direction} over a plain background'
  for color in ('red', 'green', 'blue')
  for digit in ('three', 'seven', 'nine')
  for direction in ('left', 'right', 'up')
]


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizer_lib.train(CAPTIONS, vocab_size=400)


def test_ends_and_pads(tokenizer):
  tokens_S = tokenizer.encode('a red seven', length=13)
  end = int(np.argmax(tokens_S == tokenizer_lib.END))
  assert tokens_S.dtype == np.int32
  assert tokens_S.shape == (13,)
  assert end > 0
  assert (tokens_S[:end] > tokenizer_lib.UNKNOWN).all()
  assert (tokens_S[end + 1 :] == tokenizer_lib.PAD).all()
  assert tokens_S.max() < tokenizer.size


def test_empty_text_is_a_lone_end(tokenizer):
  np.testing.assert_array_equal(tokenizer.encode('', length=3), [1, 0, 0])


def test_round_trip_and_folded_case(tokenizer):
  tokens_S = tokenizer.encode('A RED seven moves left', length=31)
  assert tokenizer.decode(tokens_S) == 'a red seven moves left'


def test_unseen_text_falls_back_to_bytes(tokenizer):
  tokens_S = tokenizer.encode('数字 é', length=31)
  assert tokenizer_lib.UNKNOWN not in tokens_S
  assert tokenizer.decode(tokens_S) == '数字 é'


def test_a_known_word_is_one_token(tokenizer):
  tokens_S = tokenizer.encode(CAPTIONS[0], length=40)
  assert np.count_nonzero(tokens_S) == len(CAPTIONS[0].split()) + 1


def test_training_is_deterministic(tokenizer):
  again = tokenizer_lib.train(CAPTIONS, vocab_size=400)
  assert again.serialized == tokenizer.serialized


def test_saved_bytes_and_pickled_are_equal(tokenizer, tmp_path):
  path = tmp_path / 'text.model'
  saved = tokenizer_lib.train(CAPTIONS, vocab_size=400, path=path)
  assert path.read_bytes() == saved.serialized
  assert [p.name for p in tmp_path.iterdir()] == ['text.model']
  for copy in (
    Tokenizer.load(path),
    Tokenizer.from_bytes(tokenizer.serialized),
    pickle.loads(pickle.dumps(tokenizer)),
  ):
    np.testing.assert_array_equal(
      copy.encode('a blue nine', length=11),
      tokenizer.encode('a blue nine', length=11),
    )


def test_longest_prompt_fits_and_one_more_does_not(tokenizer):
  pieces = np.count_nonzero(tokenizer.encode('a red seven', length=31)) - 1
  tokens_S = tokenizer.encode('a red seven', length=pieces + 1)
  assert tokens_S[-1] == tokenizer_lib.END
  with pytest.raises(
    ValueError,
    match=rf'prompt has {pieces} tokens; the model takes at most {pieces - 1} ',
  ):
    tokenizer.encode('a red seven', length=pieces)


def test_check_prompt(tokenizer):
  assert tokenizer.check_prompt(' a red six\n', length=20) == 'a red six'
  with pytest.raises(ValueError, match="prompt='': expected a"):
    tokenizer.check_prompt(' \n\t', length=20)
  with pytest.raises(ValueError, match='at most 19'):
    tokenizer.check_prompt('red ' * 50, length=20)


def test_bad_models(tmp_path):
  with pytest.raises(ValueError, match='absent.model: no such file'):
    Tokenizer.load(tmp_path / 'absent.model')
  for data in (b'', b'not a model'):
    with pytest.raises(ValueError, match=f'{len(data)} bytes that are not a'):
      Tokenizer.from_bytes(data)


def test_other_special_ids_are_refused(tmp_path):
  prefix = str(tmp_path / 'other')
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CAPTIONS),
    model_prefix=prefix,
    vocab_size=60,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  with pytest.raises(ValueError, match='pad is -1 and </s> is 2; expected 0'):
    Tokenizer.load(prefix + '.model')


def test_bad_training():
  with pytest.raises(ValueError, match='vocab_size=256: expected 300 or more'):
    tokenizer_lib.train(CAPTIONS, vocab_size=256)
  with pytest.raises(ValueError, match='no captions; expected'):
    tokenizer_lib.train(['', ' '], vocab_size=400)
  letters = [''.join(map(chr, range(0x4E00, 0x4E00 + 200)))]
  with pytest.raises(ValueError, match='vocab_size=300: expected a size'):
    tokenizer_lib.train(letters, vocab_size=300)
