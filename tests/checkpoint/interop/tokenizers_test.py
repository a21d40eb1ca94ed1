"""Published tokenizers: both formats give the same tokens."""

import base64
import io
import json

import numpy as np
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto

from spacetime.checkpoint.interop import tokenizers
from spacetime.data.tokenizer import Tokenizer

CAPTIONS = ['a red 3 moves left', 'two blue digits, still', 'café naïve, snow']
TEXTS = (
  'a red 3 moves left',
  '  two   blue\tdigits,\n still ',
  'Ｆｕｌｌ ﬁne café',
  'unseen words: zyx! 日本',
  '',
)


def trained(*, byte_fallback: bool) -> bytes:
  """A small unigram model, as UMT5's is."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(50 * CAPTIONS),
    model_writer=model,
    model_type='unigram',
    vocab_size=330 if byte_fallback else 60,
    hard_vocab_limit=False,
    byte_fallback=byte_fallback,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  return model.getvalue()


def as_json(serialized: bytes) -> dict:
  """The model as a tokenizer.json says it."""
  model = proto.ModelProto()
  model.ParseFromString(serialized)
  table = base64.b64encode(model.normalizer_spec.precompiled_charsmap)
  return {
    'normalizer': {
      'type': 'Sequence',
      'normalizers': [
        {'type': 'Precompiled', 'precompiled_charsmap': table.decode()},
        {'type': 'Strip', 'strip_left': True, 'strip_right': True},
      ],
    },
    'pre_tokenizer': {'type': 'Metaspace', 'prepend_scheme': 'always'},
    'model': {
      'type': 'Unigram',
      'unk_id': model.trainer_spec.unk_id,
      'byte_fallback': model.trainer_spec.byte_fallback,
      'vocab': [[piece.piece, piece.score] for piece in model.pieces],
    },
  }


@pytest.mark.parametrize('byte_fallback', [True, False])
def test_either_dress_gives_the_same_tokens(byte_fallback, tmp_path):
  serialized = trained(byte_fallback=byte_fallback)
  plain = Tokenizer.from_bytes(serialized)
  rows = plain.size + 10
  (tmp_path / 'tokenizer.json').write_text(json.dumps(as_json(serialized)))
  dressed = tokenizers.read(tmp_path, vocabulary=rows)
  assert dressed.size == plain.size
  for text in TEXTS:
    np.testing.assert_array_equal(
      dressed.encode(text, length=80), plain.encode(text, length=80)
    )
  (tmp_path / 'spiece.model').write_bytes(serialized)
  assert tokenizers.read(tmp_path, vocabulary=rows).serialized == serialized


@pytest.mark.parity
def test_tokens_agree_with_transformers(tmp_path):
  import transformers

  source, saved = tmp_path / 'source', tmp_path / 'saved'
  source.mkdir()
  serialized = trained(byte_fallback=False)
  (source / 'spiece.model').write_bytes(serialized)
  config = {'tokenizer_class': 'T5Tokenizer', 'extra_ids': 0}
  (source / 'tokenizer_config.json').write_text(json.dumps(config))
  theirs = transformers.AutoTokenizer.from_pretrained(source)
  theirs.save_pretrained(saved)
  (saved / 'spiece.model').unlink(missing_ok=True)
  ours = tokenizers.read(saved, vocabulary=40)
  for text in TEXTS:
    ids = theirs(text, padding='max_length', max_length=80).input_ids
    np.testing.assert_array_equal(ours.encode(text, length=80), ids)


def test_what_is_refused(tmp_path):
  with pytest.raises(ValueError, match='no tokenizer: expected spiece.model'):
    tokenizers.read(tmp_path, vocabulary=400)
  path = tmp_path / 'tokenizer.json'
  good = as_json(trained(byte_fallback=False))

  def refused(text, **changes):
    path.write_text(json.dumps(good | changes))
    with pytest.raises(ValueError, match=text):
      tokenizers.read(tmp_path, vocabulary=400)

  refused("model 'BPE': expected a Unigram", model={'type': 'BPE', 'vocab': {}})
  refused(
    "tokenizer.json: normalizer 'Lowercase': expected Precompiled",
    normalizer={'type': 'Lowercase'},
  )
  refused(
    "pre_tokenizer 'ByteLevel': expected Metaspace",
    pre_tokenizer={'type': 'ByteLevel'},
  )
  refused(
    'its table of characters',
    normalizer={'type': 'Precompiled', 'precompiled_charsmap': '!'},
  )
  path.write_text(json.dumps(good))
  size = len(good['model']['vocab'])
  with pytest.raises(
    ValueError, match=f'has {size} pieces, .* embedding of 7 rows'
  ):
    tokenizers.read(tmp_path, vocabulary=7)
  # T5's tokenizer beside UMT5's encoder knows a share of its rows.
  with pytest.raises(
    ValueError, match=f'has {size} pieces, .* embedding of {9 * size} rows'
  ):
    tokenizers.read(tmp_path, vocabulary=9 * size)


@pytest.mark.parametrize(
  'changes',
  [
    {'model': 'x'},
    {'model': {'vocab': [1, 2], 'unk_id': 0}},
    {'model': {'vocab': [['a', 0], ['b', 'x']], 'unk_id': 0}},
    {'model': {'vocab': [['a', 0], ['b', 0]], 'unk_id': 'a'}},
    {'model': {'vocab': [['a', 0], ['b', 0]], 'unk_id': 2**40}},
    {'model': {'vocab': [[3, 0], ['b', 0]], 'unk_id': 0}},
    {'normalizer': 'x'},
    {'normalizer': {'type': 'Precompiled'}},
    {'pre_tokenizer': [1]},
    {'pre_tokenizer': {'no type': 1}},
  ],
)
def test_values_of_another_type_are_named(changes, tmp_path):
  path = tmp_path / 'tokenizer.json'
  good = as_json(trained(byte_fallback=False))
  path.write_text(json.dumps(good | changes))
  with pytest.raises(
    ValueError, match='tokenizer.json: its values are not those of a tokenizer'
  ):
    tokenizers.read(path, vocabulary=400)


@pytest.mark.parametrize('data', [b'', b'version https://git-lfs.github.com/'])
def test_what_is_no_model_is_named(data, tmp_path):
  path = tmp_path / 'spiece.model'
  path.write_bytes(data)
  for source in (tmp_path, path, data):
    with pytest.raises(ValueError, match='spiece.model: no tokenizer: expect'):
      tokenizers.read(source, vocabulary=400, where='umt5, spiece.model')
