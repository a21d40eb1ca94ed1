"""Files of weights: torch.save, float8, GGUF, and what is refused."""

import collections
import json
import os
import pickle
import zipfile

import gguf
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from spacetime.checkpoint.interop import (
  families,
  tensor_files,
  torch_files,
  weight_files,
)
from tests.helpers import torch_archive

RNG = np.random.default_rng(0)


def random(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def opened(path):
  """Values by name in float32."""
  tensors = weight_files.open_tensors(path)
  return {name: np.float32(tensor.view()) for name, tensor in tensors.items()}


def save(path, arrays, metadata=None):
  arrays = {name: np.asarray(array) for name, array in arrays.items()}
  safetensors.numpy.save_file(arrays, path, metadata=metadata)
  return path


# -- torch.save ----------------------------------------------------------------


@pytest.mark.parametrize('dtype', torch_archive.STORAGES)
def test_plain_tensors_of_torch(dtype, tmp_path):
  kind = ml_dtypes.bfloat16 if dtype == 'bfloat16' else dtype
  arrays = {'a': random(3, 4).astype(kind), 'b.c': random(5).astype(kind)}
  path = torch_archive.save(tmp_path / 'x.pth', arrays)
  tensors = torch_files.open_file(path)
  for name, array in arrays.items():
    assert tensors[name].dtype == array.dtype
    np.testing.assert_array_equal(tensors[name].view(), array)


def test_views_and_nested_weights_of_torch(tmp_path):
  base = random(4, 6)
  tree = collections.OrderedDict(a=base.T, b=base[:, ::2], c=random())
  tree = {'generator': {'a': random(2)}, 'generator_ema': tree, 'step': 3}
  path = torch_archive.save(tmp_path / 'x.pt', tree)
  values = opened(path)
  assert values.keys() == {'a', 'b', 'c'}
  np.testing.assert_array_equal(values['a'], base.T)
  np.testing.assert_array_equal(values['b'], base[:, ::2])
  # The first bytes decide, not the name.
  os.rename(path, tmp_path / 'x.safetensors')
  assert opened(tmp_path / 'x.safetensors').keys() == {'a', 'b', 'c'}


class Attack:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (self.path,)


def test_code_in_a_pickle_is_refused(tmp_path):
  target = str(tmp_path / 'executed')
  for i, tree in enumerate(({'a': Attack(target)}, {'a': os.path.join})):
    path = torch_archive.save(tmp_path / f'{i}.pth', tree)
    with pytest.raises(ValueError, match=r'is a pickle, .*: it needs posix'):
      weight_files.open_tensors(path)
  path = tmp_path / 'old.pth'
  path.write_bytes(pickle.dumps(Attack(target)))
  with pytest.raises(ValueError, match='not an archive of torch >= 1.6'):
    weight_files.open_tensors(path)
  assert not os.path.exists(target)


def test_damaged_archives(tmp_path):
  tree = {'a': random(30, 40)}
  path = torch_archive.save(tmp_path / 'x.pth', tree)
  data = path.read_bytes()
  path.write_bytes(data[:-900])
  with pytest.raises(ValueError, match='x.pth is damaged or cut short'):
    weight_files.open_tensors(path)
  torch_archive.save(path, tree, compression=zipfile.ZIP_DEFLATED)
  with pytest.raises(ValueError, match='a is compressed'):
    weight_files.open_tensors(path)
  for contents in ([1, 2], {'a': 3}, 7):
    torch_archive.save(path, contents)
    with pytest.raises(ValueError, match='x.pth .*(no tensors|no dict of te)'):
      weight_files.open_tensors(path)
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('photo.jpg', b'x')
  with pytest.raises(ValueError, match='expected an archive of torch.save'):
    weight_files.open_tensors(path)
  # A tensor that is larger than its storage.
  array = random(3)
  torch_archive.save(path, {'a': array})
  data = path.read_bytes()
  with zipfile.ZipFile(path, 'w') as archive:
    with zipfile.ZipFile(tmp_path / 'y.pth', 'w'):
      pass
    with zipfile.ZipFile(__import__('io').BytesIO(data)) as source:
      for name in source.namelist():
        entry = source.read(name)
        archive.writestr(name, entry[:4] if '/data/' in name else entry)
  with pytest.raises(ValueError, match='a is larger than its storage'):
    weight_files.open_tensors(path)


# -- float8 --------------------------------------------------------------------


W = random(6, 4)
FLOAT8 = [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]


@pytest.mark.parametrize('dtype', FLOAT8)
def test_cast_to_float8(dtype, tmp_path):
  path = save(tmp_path / 'x.safetensors', {'a.weight': W.astype(dtype)})
  tensor = weight_files.open_tensors(path)['a.weight']
  assert tensor.dtype == ml_dtypes.bfloat16 and tensor.size == W.size
  expected = np.float32(W.astype(dtype))
  np.testing.assert_array_equal(tensor.view(), expected)
  np.testing.assert_array_equal(tensor.view().astype(tensor.dtype), expected)


@pytest.mark.parametrize('form', ['old', 'new', 'header', 'rows'])
def test_scaled_float8(form, tmp_path):
  dtype = ml_dtypes.float8_e4m3fn
  arrays = {'a.weight': W.astype(dtype), 'a.bias': random(6)}
  metadata, scale = None, np.float32(0.25)
  if form == 'old':
    arrays |= {'scaled_fp8': np.zeros(2, dtype), 'a.scale_weight': scale}
    arrays['a.scale_input'] = np.float32(3)
  elif form == 'rows':
    scale = random(6, 1)
    arrays['a.weight_scale'] = scale
  else:
    arrays |= {'a.weight_scale': scale[None], 'a.input_scale': np.float32(3)}
    if form == 'new':
      text = json.dumps({'format': 'float8_e4m3fn'}).encode()
      arrays['a.comfy_quant'] = np.frombuffer(text, np.uint8)
    else:
      layers = {'a': {'format': 'float8_e4m3fn'}}
      metadata = {weight_files.METADATA: json.dumps({'layers': layers})}
  path = save(tmp_path / 'x.safetensors', arrays, metadata)
  values = opened(path)
  assert values.keys() == {'a.weight', 'a.bias'}
  expected = np.float32(W.astype(dtype)) * scale
  np.testing.assert_array_equal(values['a.weight'], expected)
  np.testing.assert_array_equal(values['a.bias'], arrays['a.bias'])


QUANT = np.frombuffer(b'{"format": "float8_e4m3fn"}', np.uint8)


@pytest.mark.parametrize(
  'arrays, text',
  [
    ({'a.weight_scale_2': W}, 'is quantised as NVFP4'),
    ({'a.weight.absmax': W}, 'is quantised as bitsandbytes'),
    ({'a.qweight': W}, 'is quantised as GPTQ or AWQ'),
    ({'a.weight': W.astype(np.int8)}, 'has a.weight int8: expected F32'),
    (
      {'a.comfy_quant': np.frombuffer(b'{"format": "mxfp8"}', np.uint8)},
      'is quantised as mxfp8',
    ),
    ({'a.comfy_quant': np.frombuffer(b'?', np.uint8)}, 'not described in JSON'),
    (
      {
        'a.weight': W.astype(ml_dtypes.float8_e4m3fn),
        'a.weight_scale': random(3, 2),
      },
      r'a.weight_scale \(3, 2\): expected one scale',
    ),
    (
      {'a.weight': W.astype(ml_dtypes.float8_e4m3fn), 'a.comfy_quant': QUANT},
      'without the scales of a.weight: expected scale_weight or weight_scale',
    ),
    (
      {
        'a.weight': W.astype(ml_dtypes.float8_e4m3fn),
        'scaled_fp8': np.zeros(2, ml_dtypes.float8_e4m3fn),
      },
      'without the scales of a.weight',
    ),
    (
      {
        'a.weight': W.astype(ml_dtypes.float8_e4m3fn),
        'a.scale_weight': np.float32(2),
        'a.weight_scale': np.float32(3),
      },
      'has a.scale_weight and a.weight_scale: expected one scale of a.weight',
    ),
    *(
      (
        {
          'a.weight': W.astype(ml_dtypes.float8_e4m3fn),
          'a.weight_scale': np.float32(scale),
        },
        'a.weight_scale: expected a finite scale other than 0',
      )
      for scale in (0, np.nan, np.inf, [np.nan])
    ),
    (
      {'a.weight': W, 'a.scale_weight': np.float32(2)},
      'has scales of a.weight: expected float8 weights',
    ),
  ],
)
def test_unsupported_quantisations(arrays, text, tmp_path):
  path = save(tmp_path / 'x.safetensors', arrays)
  with pytest.raises(ValueError, match=text):
    weight_files.open_tensors(path)


def test_scales_of_some_weights_are_reported(tmp_path, caplog):
  dtype = ml_dtypes.float8_e4m3fn
  arrays = {'a.weight': W.astype(dtype), 'a.scale_weight': np.float32(2)}
  assert opened(save(tmp_path / 'x.safetensors', arrays)) and not caplog.text
  arrays['b.weight'] = W.astype(dtype)
  values = opened(save(tmp_path / 'x.safetensors', arrays))
  np.testing.assert_array_equal(values['a.weight'], 2 * values['b.weight'])
  assert (
    'scales for 1 of its 2 float8 weights: the others are taken as they '
    in (caplog.text)
  )


@pytest.mark.parametrize(
  'layers, text',
  [
    ({'a': {'format': 'float8_e4m3fn'}}, 'without the scales of a.weight'),
    ({'a': 'int4'}, 'is quantised as int4'),
    ({'a': None}, 'is quantised as None'),
  ],
)
def test_quantisations_of_the_header(layers, text, tmp_path):
  arrays = {'a.weight': W.astype(ml_dtypes.float8_e4m3fn)}
  metadata = {weight_files.METADATA: json.dumps({'layers': layers})}
  path = save(tmp_path / 'x.safetensors', arrays, metadata)
  with pytest.raises(ValueError, match=text):
    weight_files.open_tensors(path)
  for other in (None, [1]):  # it says nothing
    metadata = {weight_files.METADATA: json.dumps({'layers': other})}
    path = save(tmp_path / 'x.safetensors', arrays, metadata)
    assert opened(path).keys() == {'a.weight'}


# -- GGUF ----------------------------------------------------------------------


SHAPE = 'comfy.gguf.orig_shape.patch_embedding.weight'


def write_gguf(
  path, kinds=('F32', 'Q8_0', 'F16'), architecture='wan', shape=None
):
  writer = gguf.GGUFWriter(path, architecture)
  values = {}
  for kind in kinds:
    values[kind] = random(8, 64)
    quant = gguf.GGMLQuantizationType[kind]
    data = gguf.quants.quantize(values[kind], quant)
    writer.add_tensor(f'{kind}.weight', data, raw_dtype=quant)
  conv = random(8, 4, 1, 2, 2)
  writer.add_tensor('patch_embedding.weight', conv.reshape(8, 16))
  writer.add_array(SHAPE, shape or conv.shape)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return values | {'patch_embedding': conv}


def test_gguf(tmp_path):
  path = tmp_path / 'x.gguf'
  expected = write_gguf(path)
  tensors = weight_files.open_tensors(path)
  assert tensors['Q8_0.weight'].shape == (8, 64)
  assert tensors['Q8_0.weight'].dtype == ml_dtypes.bfloat16
  values = {name: tensor.view() for name, tensor in tensors.items()}
  np.testing.assert_array_equal(values['F32.weight'], expected['F32'])
  np.testing.assert_allclose(values['F16.weight'], expected['F16'], rtol=1e-3)
  np.testing.assert_allclose(values['Q8_0.weight'], expected['Q8_0'], atol=0.02)
  conv = values['patch_embedding.weight']
  np.testing.assert_array_equal(conv, expected['patch_embedding'])


def test_gguf_files_that_are_refused(tmp_path, monkeypatch):
  path = tmp_path / 'x.safetensors'  # the first bytes decide, not the name
  write_gguf(path, architecture='flux')
  with pytest.raises(ValueError, match="GGUF file of architecture 'flux'"):
    weight_files.open_tensors(path)
  path.write_bytes(path.read_bytes()[:40])
  with pytest.raises(ValueError, match='damaged or cut short'):
    weight_files.open_tensors(path)
  monkeypatch.setitem(__import__('sys').modules, 'gguf', None)
  with pytest.raises(
    ValueError, match=r"pip install 'spacetime-video\[gguf\]'"
  ):
    weight_files.open_tensors(path)


@pytest.mark.parametrize(
  'kind, text',
  [
    (9, 'Q8_0.weight has the quantisation Q8_1, which is not supported'),
    (26, 'Q8_0.weight has the quantisation I32, which is not supported'),
    (99, 'has a quantisation that the library gguf does not know'),
  ],
)
def test_gguf_quantisations_that_are_refused(tmp_path, kind, text):
  """When the file is opened, before anything is computed."""
  path = tmp_path / 'x.gguf'
  write_gguf(path)
  data, name = bytearray(path.read_bytes()), b'Q8_0.weight'
  start = data.index(name) + len(name) + 4 + 8 * 2  # two axes
  data[start : start + 4] = kind.to_bytes(4, 'little')
  path.write_bytes(data)
  with pytest.raises(ValueError, match=f'x.gguf:? {text}'):
    weight_files.open_tensors(path)


@pytest.mark.parametrize('shape', [(8, 4, 1, 2, 3), (-8, -16), ('a',)])
def test_gguf_shapes_that_are_refused(tmp_path, shape):
  path = tmp_path / 'x.gguf'
  write_gguf(path, shape=shape)
  with pytest.raises(ValueError, match='x.gguf is a GGUF file that is damaged'):
    weight_files.open_tensors(path)


@pytest.mark.parametrize(
  'old, new, message',
  [
    (b'wan', b'wa\x80', 'x.gguf is a GGUF file that is damaged'),
    (b'patch_embedding.weight', b'patch_embedding.weigh\xff', 'x.gguf'),
  ],
)
def test_gguf_text_that_is_not_utf8(tmp_path, old, new, message):
  path = tmp_path / 'x.gguf'
  write_gguf(path)
  path.write_bytes(path.read_bytes().replace(old, new))
  with pytest.raises(ValueError, match=message):
    weight_files.open_tensors(path)


# -- families ------------------------------------------------------------------


@pytest.mark.parametrize(
  'kind, name, text',
  [
    ('vae', 'blocks.0.attn1.to_q.lora_A.weight', 'is a file of LoRA weights'),
    ('transformer', 'double_blocks.0.img_attn.qkv.weight', 'of HunyuanVideo'),
    ('vae', 'caption_projection.linear_1.weight', 'of LTX-Video'),
    ('transformer', 'joint_blocks.0.x', 'of Stable Diffusion 3'),
    ('transformer', 'face_adapter.fuser_blocks.0.k.weight', 'Animate variant'),
    ('transformer', 'audio_injector.injector.0.q.weight', 'speech-to-video'),
    (
      'text_encoder',
      'vision_model.encoder.layers.0.mlp.fc1.weight',
      'a CLIP image encoder: expected a UMT5',
    ),
  ],
)
def test_files_are_called_what_they_are(kind, name, text):
  with pytest.raises(ValueError, match=text):
    families.check(kind, [name, 'x'], 'here')


def test_a_file_of_all_networks():
  names = ['model.diffusion_model.a', 'vae.b', 'text_encoders.umt5xxl.c', 'd']
  assert families.component('vae', names) == ['vae.b']
  assert len(families.components(names)) == 3
  assert families.component('vae', names[:1] + names[3:]) == [names[0], 'd']


def test_metadata_of_other_files(tmp_path):
  path = save(tmp_path / 'x.safetensors', {'a': W}, {'b': 'c'})
  assert tensor_files.metadata(path) == {'b': 'c'}
  assert tensor_files.metadata(tmp_path / 'x.pth') == {}
