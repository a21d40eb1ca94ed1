"""Opens a network's weights in any file format, quantised ones too.

  safetensors       F32, F16, BF16; float8 as it is, or scaled
  GGUF              by the library `gguf`
  .pth, .pt, .bin   plain tensors of torch.save

The first bytes of a file decide, not its name. Values of float8 are returned as
float32 and have the dtype bfloat16, in which they are exact.
"""

import functools
import json
import pathlib
from collections.abc import Mapping

import numpy as np
from absl import logging

from spacetime.checkpoint import mismatch
from spacetime.checkpoint.interop import gguf_files, tensor_files, torch_files
from spacetime.checkpoint.interop.tensor_files import DTYPES, FLOAT8, Tensor

# A tensor that says that the file has scales.
MARKER = 'scaled_fp8'
# The scale of a weight, by the end of its name: two forms.
SCALES = ('scale_weight', 'weight_scale')
# Scales of the inputs of float8 products, which are not used here.
INPUT_SCALES = ('scale_input', 'input_scale')
FORMAT = 'comfy_quant'
METADATA = '_quantization_metadata'
FORMATS = ('float8_e4m3fn', 'float8_e5m2')
# Marks of other quantisations -> what they are.
UNSUPPORTED = {
  'weight_scale_2': 'NVFP4',
  '.absmax': 'bitsandbytes',
  'quant_state': 'bitsandbytes',
  '.qweight': 'GPTQ or AWQ',
  '.wscales': 'SVDQuant',
  '.SCB': 'bitsandbytes (LLM.int8)',
}
# Tensors that are bytes, not numbers.
BYTES = ('spiece_model',)


def open_tensors(path: pathlib.Path) -> dict[str, Tensor]:
  """The tensors of a file, or of all shards that an index names.

  Quantised weights are decoded when they are viewed; their scales are not among
  the tensors.

  Raises:
    ValueError: a file that is missing or damaged, of an unknown format or
      quantisation, or a pickle that needs code.
  """
  path = pathlib.Path(path)
  first = first_bytes(path)
  if first.startswith(gguf_files.MAGIC):
    return gguf_files.open_file(path)
  is_pickle = path.suffix in tensor_files.PICKLES
  if first.startswith(torch_files.MAGIC) or (
    is_pickle and not tensor_files.is_safetensors(path)
  ):
    return resolve(torch_files.open_file(path), {}, path)
  tensors = tensor_files.open_tensors(path, dtypes=_EveryDtype())
  metadata = {}
  for file in {tensor.path for tensor in tensors.values()}:
    metadata |= tensor_files.metadata(file)
  return resolve(tensors, metadata, path)


def resolve(
  tensors: Mapping[str, Tensor],
  metadata: Mapping[str, str],
  path,
  *,
  dtypes: Mapping[str, np.dtype] = DTYPES,
) -> dict[str, Tensor]:
  """Weights with their scales applied when they are viewed.

  Args:
    tensors: tensors of a file by name.
    metadata: the metadata in its header.
    path: the file, for messages.
    dtypes: dtypes that are accepted beside float8, by their names.

  Raises:
    ValueError: an unknown quantisation.
  """
  described = _check_formats(tensors, metadata, path)
  scales, result = {}, {}
  for name, tensor in tensors.items():
    stem, _, last = name.rpartition('.')
    weight = f'{stem}.weight'
    if last in SCALES and weight in tensors:
      if weight in scales:
        raise ValueError(
          f'{path} has {scales[weight].name} and {name}: expected one scale of '
          f'{weight}'
        )
      scales[weight] = tensor
    elif last == MARKER or last in (*INPUT_SCALES, FORMAT):
      continue
    else:
      result[name] = tensor
  float8 = [n for n, t in result.items() if t.dtype in FLOAT8.values()]
  lost = described & set(float8) - scales.keys()
  if not scales and any(n.rpartition('.')[2] == MARKER for n in tensors):
    lost |= set(float8)
  if lost:
    raise ValueError(
      f'{path} is scaled float8 without the scales of '
      f'{mismatch.listed(lost, most=3)}: expected {" or ".join(SCALES)} beside '
      'each; take the complete file'
    )
  if scales and (unscaled := set(float8) - scales.keys()):
    logging.warning(
      '%s has scales for %d of its %d float8 weights: the others are taken as '
      'they are: %s',
      path,
      len(scales),
      len(float8),
      mismatch.listed(unscaled, most=3),
    )
  for name, tensor in result.items():
    if tensor.dtype in FLOAT8.values():
      scale = scales.get(name)
      result[name] = _float8(tensor, scale, path)
  foreign = [
    f'{name} {tensor.dtype.name}'
    for name, tensor in result.items()
    if tensor.dtype not in dtypes.values()
    and name.rpartition('.')[2] not in BYTES
  ]
  if foreign:
    names = mismatch.listed(foreign, most=3)
    raise ValueError(
      f'{path} has {names}: expected {", ".join(DTYPES)}, float8 or GGUF; take '
      'weights of one of these'
    )
  if spare := scales.keys() - set(float8):
    raise ValueError(
      f'{path} has scales of {mismatch.listed(spare, most=3)}: expected float8 '
      'weights beside them; take the complete file'
    )
  return result


def first_bytes(path: pathlib.Path) -> bytes:
  """The first bytes of a file, which say its format; b'' without a file."""
  if not path.is_file():
    return b''
  with path.open('rb') as file:
    return file.read(4)


class _EveryDtype(dict):
  """Accepts every dtype of safetensors; unknown ones are judged by name."""

  def __init__(self):
    more = {
      'I8': np.dtype(np.int8),
      'I16': np.dtype(np.int16),
      'U16': np.dtype(np.uint16),
      'U32': np.dtype(np.uint32),
      'U64': np.dtype(np.uint64),
      'BOOL': np.dtype(np.bool_),
    }
    super().__init__(tensor_files.READABLE | more)


def _float8(tensor: Tensor, scale: Tensor | None, path) -> Tensor:
  values = None
  if scale is not None:
    values = tensor_files.as_float32(scale)
    if not np.isfinite(values).all() or not values.any():
      raise ValueError(
        f'{path}: {scale.name}: expected a finite scale other than 0; the file '
        'is damaged; download it again'
      )
    rows = tensor.shape[:1]
    if values.size == 1:
      values = values.reshape(())
    elif values.shape in (rows, (*rows, 1)):
      values = values.reshape(-1, *[1] * (len(tensor.shape) - 1))
    else:
      raise ValueError(
        f'{path}: {scale.name} {scale.shape}: expected one scale of '
        f'{tensor.name}, or one of each row; block scales are not supported'
      )
  return Tensor(
    tensor.name,
    tensor.path,
    DTYPES['BF16'],
    tensor.shape,
    tensor.start,
    tensor.mapped,
    functools.partial(
      _decode, dtype=tensor.dtype, shape=tensor.shape, scale=values
    ),
    tensor.size,
  )


def _decode(raw, *, dtype, shape, scale) -> np.ndarray:
  values = tensor_files.decode_float8(raw, dtype=dtype).reshape(shape)
  return values if scale is None else values * scale


def _check_formats(tensors, metadata: Mapping[str, str], path) -> set[str]:
  """Names of the weights that the file says are quantised.

  Raises:
    ValueError: an unknown quantisation, by the name that the file gives it.
  """
  formats, described = set(), set()
  for name, tensor in tensors.items():
    for mark, form in UNSUPPORTED.items():
      if mark in name:
        _refuse(path, form, name)
    if name.rpartition('.')[2] == FORMAT:
      formats.add(_format(_json(bytes(tensor.raw()), path)))
      described.add(f'{name.removesuffix(FORMAT)}weight')
  if METADATA in metadata:
    layers = _json(metadata[METADATA], path).get('layers')
    layers = layers if isinstance(layers, dict) else {}
    formats |= {_format(layer) for layer in layers.values()}
    described |= {f'{name}.weight' for name in layers}
  for form in formats - set(FORMATS):
    _refuse(path, form, METADATA if METADATA in metadata else FORMAT)
  return described


def _format(values) -> str:
  return str(values.get('format') if isinstance(values, dict) else values)


def _json(data, path) -> dict:
  try:
    values = json.loads(data)
  except (ValueError, RecursionError) as e:
    raise ValueError(
      f'{path}: its quantisation is not described in JSON'
    ) from e
  return values if isinstance(values, dict) else {}


def _refuse(path, form: str, name: str) -> None:
  raise ValueError(
    f'{path} is quantised as {form} ({name}): expected 16 or 32 bits, float8 '
    'or GGUF; take weights of one of these'
  )
