"""Reads the tokenizer of a published folder as a sentencepiece model.

`tokenizer.json` holds the same model in another format: pieces with scores and
a table of characters. It is converted, so that one library reads both.
"""

import base64
import binascii
import pathlib
from collections.abc import Iterator

from sentencepiece import sentencepiece_model_pb2 as proto

from spacetime.checkpoint.interop.tensor_files import read_json
from spacetime.data.tokenizer import END, PAD, Tokenizer

MODELS = ('spiece.model', 'sentencepiece.bpe.model', 'tokenizer.model')
JSON = 'tokenizer.json'
# Steps of a tokenizer.json that every sentencepiece model performs.
STEPS = {
  'normalizer': ('Precompiled', 'Replace', 'Strip'),
  'pre_tokenizer': ('Metaspace', 'WhitespaceSplit'),
}
# Least share of an encoder's rows that its tokenizer has pieces for. The rest
# are sentinels and padding: UMT5 has 256,000 pieces for 256,384 rows, and T5's
# tokenizer of 32,000 belongs to another encoder.
LEAST = 0.25
Piece = proto.ModelProto.SentencePiece


def read(
  folder: pathlib.Path | bytes, *, vocabulary: int, where='the tokenizer'
) -> Tokenizer:
  """The tokenizer of a folder.

  Args:
    folder: folder with a sentencepiece model or a tokenizer.json; one of these
      files; or the bytes of a sentencepiece model.
    vocabulary: rows of the text encoder's embedding.
    where: the file that bytes are from, for messages.

  Raises:
    ValueError: no tokenizer, one of another kind, or one with another number of
      pieces than the encoder's.
  """
  path, data = where, folder
  if not isinstance(folder, bytes):
    path = _find(pathlib.Path(folder))
    data = from_json(path) if path.suffix == '.json' else path.read_bytes()
  try:
    tokenizer = Tokenizer.from_bytes(data)
  except ValueError as e:
    raise ValueError(
      f'{path}: no tokenizer: expected a sentencepiece model or {JSON} ({e})'
    ) from e
  if not LEAST * vocabulary <= tokenizer.size <= vocabulary:
    raise ValueError(
      f'{path} has {tokenizer.size} pieces, the text encoder an embedding of '
      f'{vocabulary} rows: expected a tokenizer and an encoder of one model'
    )
  return tokenizer


def _find(folder: pathlib.Path) -> pathlib.Path:
  """The file of a tokenizer."""
  if folder.is_file():
    return folder
  for name in (*MODELS, JSON):
    if (folder / name).is_file():
      return folder / name
  raise ValueError(f'{folder}: no tokenizer: expected {MODELS[0]} or {JSON}')


def from_json(path: pathlib.Path) -> bytes:
  """Converts a tokenizer.json to a sentencepiece model.

  Raises:
    ValueError: not a unigram model, or steps without a sentencepiece
      equivalent.
  """
  values = read_json(path)
  try:
    return _converted(values, path)
  except (TypeError, KeyError, AttributeError, IndexError, ValueError) as e:
    if str(e).startswith(f'{path}: '):
      raise
    raise ValueError(
      f'{path}: its values are not those of a tokenizer ({e}): download it '
      'again'
    ) from e


def _converted(values: dict, path: pathlib.Path) -> bytes:
  """The sentencepiece model of a tokenizer.json.

  Raises:
    ValueError: see from_json; or an error of whatever kind that values of
      another type raise.
  """
  model = values.get('model') or {}
  vocab = model.get('vocab')
  if not isinstance(vocab, list) or model.get('unk_id') is None:
    raise ValueError(
      f'{path}: model {model.get("type")!r}: expected a Unigram model with an '
      f'unknown piece, as in UMT5; use the {MODELS[0]} of its publisher'
    )
  table = b''
  for step in steps(values, 'normalizer', path):
    if step['type'] == 'Precompiled':
      try:
        table = base64.b64decode(step['precompiled_charsmap'], validate=True)
      except binascii.Error as e:
        raise ValueError(f'{path}: its table of characters: {e}') from e
  prefix = any(
    step.get('prepend_scheme', 'always') != 'never'
    and step.get('add_prefix_space', True)
    for step in steps(values, 'pre_tokenizer', path)
    if step['type'] == 'Metaspace'
  )
  fallback = bool(model.get('byte_fallback'))
  unknown = model['unk_id']
  result = proto.ModelProto()
  for i, (piece, score) in enumerate(vocab):
    kind = Piece.NORMAL
    if i in (PAD, END):
      kind = Piece.CONTROL
    elif i == unknown:
      kind = Piece.UNKNOWN
    elif fallback and len(piece) == 6 and piece.startswith('<0x'):
      kind = Piece.BYTE
    result.pieces.add(piece=piece, score=score, type=kind)
  result.trainer_spec.model_type = proto.TrainerSpec.UNIGRAM
  result.trainer_spec.vocab_size = len(vocab)
  result.trainer_spec.byte_fallback = fallback
  result.trainer_spec.pad_id, result.trainer_spec.eos_id = PAD, END
  result.trainer_spec.unk_id, result.trainer_spec.bos_id = unknown, -1
  for name, position in (('pad', PAD), ('eos', END), ('unk', unknown)):
    if position < len(vocab):
      setattr(result.trainer_spec, f'{name}_piece', vocab[position][0])
  result.normalizer_spec.precompiled_charsmap = table
  result.normalizer_spec.add_dummy_prefix = prefix
  result.normalizer_spec.remove_extra_whitespaces = True
  result.normalizer_spec.escape_whitespaces = True
  return result.SerializeToString()


def steps(values: dict, name: str, path: pathlib.Path) -> Iterator[dict]:
  """Yields the steps of a normalizer or a pre-tokenizer.

  Raises:
    ValueError: a step without a sentencepiece equivalent.
  """
  step = values.get(name)
  if not step:
    return
  if step['type'] == 'Sequence':
    parts = step.get('normalizers', step.get('pretokenizers', []))
    for part in parts:
      yield from steps({name: part}, name, path)
    return
  if step['type'] not in STEPS[name]:
    raise ValueError(
      f'{path}: {name} {step["type"]!r}: expected {" or ".join(STEPS[name])}; '
      f'use the {MODELS[0]} of its publisher'
    )
  yield step
