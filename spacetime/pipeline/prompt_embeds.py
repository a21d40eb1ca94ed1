"""Prompt embeddings: the text encoder's output, in memory and in files.

The text encoder of a published model is four times as large as its
transformer: it is read when a prompt has to be encoded, and freed before other
networks are read. A safetensors file holds

  prompt_embeds           (n, S, Y), embeddings of n prompts
  negative_prompt_embeds  (n, S, Y) or (1, S, Y)

in float32, float16 or bfloat16, as in diffusers' pipelines. Rows past the end
of the text are zero and may be left out, as in the files of the cache, which
hold one prompt each.
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence

import numpy as np
import safetensors
import safetensors.numpy
from absl import logging

from spacetime.checkpoint import finite
from spacetime.checkpoint.interop.tensor_files import DTYPES
from spacetime.media import files
from spacetime.pipeline import prompts as prompts_lib
from spacetime.pipeline.engine import Engine

TEXT, NEGATIVE = 'prompt_embeds', 'negative_prompt_embeds'
DIGEST = 'sha256'  # metadata: hash of the bytes of prompt_embeds


@dataclasses.dataclass(frozen=True)
class PromptEmbeds:
  """Embeddings of every clip's prompt, (S, Y) each, without padding.

  Attributes:
    text: embeddings of the prompts.
    negative: embeddings of the negative prompts; () without guidance.
  """

  text: tuple[np.ndarray, ...]
  negative: tuple[np.ndarray, ...] = ()

  def repeated(self, times: int) -> 'PromptEmbeds':
    """Repeats each clip's embeddings `times` times, adjacent to each other."""
    return PromptEmbeds(
      *(
        tuple(row_SY for row_SY in rows for _ in range(times))
        for rows in (self.text, self.negative)
      )
    )


def encode(
  engine: Engine, texts: Sequence[str], *, cache: 'Cache | None' = None
) -> list[np.ndarray]:
  """Embeddings of texts, (S, Y) each, in the encoder's dtype.

  Each text is encoded alone, so that its embeddings do not depend on others.

  Args:
    engine: the model; its text encoder is read if a text is not in the cache.
    texts: texts, which may repeat.
    cache: cache on disk; used for published models only.
  """
  nets, model = engine.networks, engine.model
  tokens = {t: prompts_lib.tokens(engine, t) for t in dict.fromkeys(texts)}
  embeds, keys = {}, {}
  if cache and engine.published is not None:
    for text in tokens:
      keys[text] = cache_key(
        prompts_lib.clean(text),
        encoder=f'{model.text_hash} {model.text_stamp}',
        length=nets.text_length,
        dtype=nets.text.config.dtype,
      )
      cached_SY = cache.get(keys[text], width=nets.text.width)
      if cached_SY is not None:
        embeds[text] = cached_SY
  missing = [text for text in tokens if text not in embeds]
  if missing:
    params = {'text': engine.read('text')}
    embed = engine.program('embed', nets.embed)
    for text in missing:
      text_BSY = np.asarray(embed(params, tokens[text][None]))
      embeds[text] = text_BSY[0, : np.count_nonzero(tokens[text])]
      finite.check(embeds[text], f'prompt embeddings of {text[:80]!r}')
      if text in keys:
        cache.put(keys[text], embeds[text])
  return [embeds[text] for text in texts]


def from_prompts(
  engine: Engine,
  prompts: Sequence[str],
  *,
  negative: str | None,
  read: PromptEmbeds | None = None,
  cache: 'Cache | None' = None,
) -> PromptEmbeds:
  """Embeddings of each clip's prompt.

  Args:
    engine: see encode.
    prompts: a prompt for each clip.
    negative: negative prompt of all clips; None without guidance.
    read: embeddings that replace those of the prompts.
    cache: see encode.
  """
  negatives = [] if negative is None else [negative]
  if read:
    rows = encode(engine, negatives, cache=cache)
    return PromptEmbeds(read.text, tuple(rows) * len(prompts) or read.negative)
  rows = encode(engine, [*prompts, *negatives], cache=cache)
  text, rest = rows[: len(prompts)], rows[len(prompts) :]
  return PromptEmbeds(tuple(text), tuple(rest) * len(prompts))


def batch(rows: Sequence[np.ndarray], *, length: int) -> np.ndarray:
  """Embeddings of some clips, text_BSY, padded by zeros to `length`."""
  width = rows[0].shape[1]
  text_BSY = np.zeros((len(rows), length, width), rows[0].dtype)
  for row, text_SY in zip(text_BSY, rows, strict=True):
    row[: len(text_SY)] = text_SY
  return text_BSY


def load(source) -> dict[str, np.ndarray]:
  """Embeddings by name, from a file or arrays.

  Args:
    source: a file; an array (n, S, Y) or (S, Y) of prompt_embeds; or a mapping
      of both names.

  Raises:
    ValueError: no such file, a damaged file, or other arrays than the above.
  """
  if isinstance(source, (str, os.PathLike)):
    return read_file(source)
  arrays = source if isinstance(source, Mapping) else {TEXT: source}
  arrays = {name: np.asarray(array) for name, array in arrays.items()}
  arrays = {k: x[None] if x.ndim == 2 else x for k, x in arrays.items()}
  if TEXT not in arrays or arrays.keys() - {TEXT, NEGATIVE}:
    raise ValueError(f'expected {TEXT} and at most {NEGATIVE} beside it')
  for name, array in arrays.items():
    _check('arrays', name, array)
  return arrays


def read_file(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Embeddings of a file, by name.

  Raises:
    ValueError: no such file, a damaged file, or other arrays than the above.
  """
  path = files.local_copy(path)
  files.check_file(path)
  if path.suffix in ('.pt', '.pth', '.bin', '.pkl'):
    raise ValueError(
      f'{path} is a pickle, which may run any code when it is read: expected '
      f'safetensors; write it with safetensors.torch.save_file({{{TEXT!r}: '
      f'embeds}}, FILE)'
    )
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      digest = (file.metadata() or {}).get(DIGEST)
      dtypes = {key: file.get_slice(key).get_dtype() for key in file.keys()}
      foreign = [key for key, dtype in dtypes.items() if dtype not in DTYPES]
      arrays = {k: file.get_tensor(k) for k in dtypes if k not in foreign}
  except (safetensors.SafetensorError, OSError) as e:
    raise ValueError(
      f'{path}: {e}: it is damaged, or not safetensors; write it again'
    ) from e
  if TEXT not in arrays or arrays.keys() - {TEXT, NEGATIVE} or foreign:
    names = ', '.join(f'{key} {dtype}' for key, dtype in dtypes.items())
    raise ValueError(
      f'{path} holds {names or "nothing"}: expected {TEXT} and at most '
      f'{NEGATIVE} beside it, in {", ".join(DTYPES)}'
    )
  for name, array in arrays.items():
    _check(path, name, array)
  if digest and digest != _digest(arrays[TEXT]):
    raise ValueError(f'{path}: its bytes differ from its hash: it is damaged')
  return arrays


def write_file(path: str | os.PathLike, text_nSY: np.ndarray) -> None:
  """Writes embeddings (n, S, Y) to a file, atomically."""
  text_nSY = np.ascontiguousarray(text_nSY)
  metadata = {'format': 'pt', DIGEST: _digest(text_nSY)}
  data = safetensors.numpy.save({TEXT: text_nSY}, metadata=metadata)
  with files.atomic_write(files.as_path(path)) as temporary:
    temporary.write_bytes(data)


class Cache:
  """Embeddings on disk, by a hash of the prompt and its encoder.

  If the folder cannot be written or a file cannot be read, a warning is logged
  and the prompt is encoded again.

  Args:
    folder: folder of the cache, created at the first write.
  """

  def __init__(self, folder: str | os.PathLike):
    self.folder = files.as_path(folder)

  def get(self, key: str, *, width: int) -> np.ndarray | None:
    """The embeddings (S, Y) of a key; None if there are none."""
    path = self._path(key)
    if not path.exists():
      return None
    try:
      text_nSY = read_file(path)[TEXT]
      if text_nSY.shape[0] != 1 or text_nSY.shape[2] != width:
        raise ValueError(
          f'{path}: {TEXT} {text_nSY.shape}: expected (1, S, {width})'
        )
    except ValueError as e:
      logging.warning('a cached prompt is encoded again: %s', e)
      return None
    return text_nSY[0]

  def put(self, key: str, text_SY: np.ndarray) -> None:
    """Stores embeddings (S, Y) under a key."""
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      write_file(self._path(key), text_SY[None])
    except OSError as e:
      logging.warning('no cache of prompts: %s: %s', self.folder, e.strerror)

  def _path(self, key: str) -> os.PathLike:
    return self.folder / f'{key}.safetensors'


def cache_key(text: str, *, encoder: str, length: int, dtype: str) -> str:
  """The key of a text's embeddings.

  Args:
    text: cleaned text.
    encoder: fingerprint of the tokenizer and the text encoder.
    length: number of tokens that the text is truncated to.
    dtype: compute dtype of the encoder.
  """
  parts = (encoder, str(length), dtype, text)
  # The lengths make different lists of parts different bytes.
  data = ''.join(f'{len(part)}:{part}' for part in parts)
  return hashlib.sha256(data.encode('utf-8', 'surrogatepass')).hexdigest()


def _check(path, name: str, array: np.ndarray) -> None:
  if array.ndim != 3 or 0 in array.shape:
    raise ValueError(
      f'{path}: {name} {array.shape}: expected (prompts, tokens, width)'
    )
  if not np.isfinite(array.astype(np.float32)).all():
    raise ValueError(f'{path}: {name} has values that are not finite')


def _digest(array: np.ndarray) -> str:
  return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
