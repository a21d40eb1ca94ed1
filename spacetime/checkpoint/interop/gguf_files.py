"""Reads GGUF files by the library `gguf`, an optional dependency.

Tensors are dequantised one at a time when they are read. Shapes are stored in
reverse, and those of more than four axes in the metadata. Names are those of
the original repository; a text encoder has llama.cpp's.
"""

import functools
import math
import mmap
import pathlib
import re

import numpy as np

from spacetime.checkpoint.interop.tensor_files import DTYPES, Tensor

MAGIC = b'GGUF'
SHAPE = 'comfy.gguf.orig_shape.'
# llama.cpp's names of T5's tensors -> transformers'.
T5 = (
  (r'token_embd\.weight', 'shared.weight'),
  (r'enc\.output_norm\.weight', 'encoder.final_layer_norm.weight'),
  *(
    (
      rf'enc\.blk\.(\d+)\.{there}\.weight',
      rf'encoder.block.\1.layer.{here}.weight',
    )
    for there, here in (
      ('attn_q', '0.SelfAttention.q'),
      ('attn_k', '0.SelfAttention.k'),
      ('attn_v', '0.SelfAttention.v'),
      ('attn_o', '0.SelfAttention.o'),
      ('attn_rel_b', '0.SelfAttention.relative_attention_bias'),
      ('attn_norm', '0.layer_norm'),
      ('ffn_norm', '1.layer_norm'),
      ('ffn_gate', '1.DenseReluDense.wi_0'),
      ('ffn_up', '1.DenseReluDense.wi_1'),
      ('ffn_down', '1.DenseReluDense.wo'),
    )
  ),
)
ARCHITECTURES = ('wan', 't5', 't5encoder')


def open_file(path: pathlib.Path) -> dict[str, Tensor]:
  """The tensors of a GGUF file; they are dequantised when they are read.

  Raises:
    ValueError: the library is not installed, a damaged file, another
      architecture, or an unknown quantisation.
  """
  try:
    import gguf
  except ImportError as e:
    raise ValueError(
      f'{path} is a GGUF file, quantised for llama.cpp and ComfyUI: expected '
      "the library that reads it, pip install 'spacetime-video[gguf]', or a "
      'safetensors file of the same model'
    ) from e
  try:
    reader = gguf.GGUFReader(path)
    field = reader.get_field('general.architecture')
    architecture = field.contents() if field else None
    shapes = {entry.name: _shape(reader, entry) for entry in reader.tensors}
  except (ValueError, TypeError, IndexError, KeyError, OSError) as e:
    if 'GGMLQuantizationType' in str(e):
      raise ValueError(
        f'{path} has a quantisation that the library gguf does not know '
        f'({str(e)[:200]}): update it, or take another file of the model'
      ) from e
    raise ValueError(
      f'{path} is a GGUF file that is damaged or cut short ({str(e)[:200]}): '
      'download it again'
    ) from e
  if architecture not in ARCHITECTURES:
    raise ValueError(
      f'{path} is a GGUF file of architecture {architecture!r}: expected '
      f'{" or ".join(ARCHITECTURES)}'
    )
  _check_kinds(reader.tensors, path)
  with pathlib.Path(path).open('rb') as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  tensors = {}
  for entry in reader.tensors:
    name = _name(entry.name)
    if entry.data_offset + entry.n_bytes > len(mapped):
      raise ValueError(
        f'{path} is a GGUF file that is cut short within {name}: download it '
        'again'
      )
    tensors[name] = Tensor(
      name,
      pathlib.Path(path),
      DTYPES['F32' if entry.tensor_type.name == 'F32' else 'BF16'],
      shapes[entry.name],
      int(entry.data_offset),
      mapped,
      functools.partial(
        _dequantise, kind=entry.tensor_type, rows=entry.data.shape
      ),
      int(entry.n_bytes),
    )
  return tensors


def _check_kinds(entries, path) -> None:
  """Refuses quantisations that the library does not decode, by a block each.

  Raises:
    ValueError: it names the quantisation and a tensor.
  """
  import gguf

  first = {entry.tensor_type: _name(entry.name) for entry in reversed(entries)}
  for kind, name in first.items():
    size = gguf.constants.GGML_QUANT_SIZES[kind][1]
    try:
      gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError as e:
      raise ValueError(
        f'{path}: {name} has the quantisation {kind.name}, which is not '
        'supported: expected floats, or a Q or IQ quantisation such as Q8_0'
      ) from e


def _shape(reader, entry) -> tuple[int, ...]:
  """The shape of a tensor.

  Raises:
    ValueError, TypeError: the metadata has no shape of as many values.
  """
  shape = tuple(int(n) for n in reversed(entry.shape))
  original = reader.get_field(f'{SHAPE}{entry.name}')
  if original is None:
    return shape
  stated = tuple(int(n) for n in original.contents())
  if min(stated, default=1) < 0 or math.prod(stated) != math.prod(shape):
    raise ValueError(f'{entry.name} is {shape}, and {stated} in the metadata')
  return stated


def _dequantise(raw: np.ndarray, *, kind, rows) -> np.ndarray:
  from gguf import quants

  items = raw.reshape(*rows[:-1], -1) if len(rows) > 1 else raw
  return quants.dequantize(items, kind).astype(np.float32, copy=False)


def _name(name: str) -> str:
  for pattern, target in T5:
    match = re.fullmatch(pattern, name)
    if match:
      return match.expand(target)
  return name
