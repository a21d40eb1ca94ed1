"""Folders that are refused: each message names the file and the keys."""

import dataclasses
import json
import pickle
import struct

import numpy as np
import pytest
import safetensors.numpy

from spacetime.checkpoint import convert, paths
from spacetime.checkpoint.interop import (
  config_json,
  folders,
  network_files,
  networks,
  parameters,
  parts,
  sections,
  tensor_files,
  umt5,
)
from tests.helpers import published_folder

CONFIG = published_folder.TRANSFORMER
FILE = 'diffusion_pytorch_model.safetensors'


def refused(text, path, kind='transformer'):
  with pytest.raises(ValueError, match=text) as caught:
    parts.open_part(path, kind)
  return str(caught.value)


def test_no_weights(tmp_path):
  refused('nowhere: no such folder', tmp_path / 'nowhere')
  (tmp_path / 'config.json').write_text('{}')
  refused(f'{tmp_path} has no weights: .*holds config.json', tmp_path)
  refused('x.safetensors: no such', tmp_path / 'x.safetensors')


def test_pickles(tmp_path):
  for name in ('pytorch_model.bin', 'Wan2.1_VAE.pth', 'a.pt', 'b.ckpt'):
    path = tmp_path / name
    path.write_bytes(pickle.dumps({}))
    message = refused(f'{name} is a pickle, which may run any code', path)
    assert 'safetensors.torch.save_file' in message
  refused('has no weights: .*Wan2.1_VAE.pth', tmp_path)


def test_a_truncated_file(tmp_path):
  path = published_folder.write_part(tmp_path, CONFIG)
  data = path.read_bytes()
  path.write_bytes(data[:-4])
  message = refused(f'{FILE} is cut short at {len(data) - 4} bytes', tmp_path)
  assert 'scale_shift_table' in message or 'weight' in message
  path.write_bytes(data[:100])
  refused(f'{FILE} has 100 bytes, fewer than its header', tmp_path)
  path.write_bytes(b'')
  refused(f'{FILE} has 0 bytes', tmp_path)


def test_a_header_that_is_none(tmp_path):
  published_folder.write_part(tmp_path, CONFIG)
  for header in (b'no JSON!', b'[1]     ', b'{"a": 3}'):
    (tmp_path / FILE).write_bytes(struct.pack('<Q', len(header)) + header)
    refused(f'{FILE}: its header is not that of safetensors', tmp_path)


def test_dtypes_that_are_quantised(tmp_path):
  named = published_folder.drawn(CONFIG)
  named['proj_out.weight'] = named['proj_out.weight'].astype(np.int8)
  published_folder.write_part(tmp_path, CONFIG, tensors=named)
  refused(f'{FILE} has proj_out.weight int8: expected F32, F16, BF16', tmp_path)


def test_an_entry_of_other_bytes(tmp_path):
  header = {'a': {'dtype': 'F32', 'shape': [3], 'data_offsets': [0, 8]}}
  data = json.dumps(header).encode()
  path = tmp_path / 'x.safetensors'
  path.write_bytes(struct.pack('<Q', len(data)) + data + bytes(8))
  refused('x.safetensors: a: the size of the data differs', path)


@pytest.mark.parametrize(
  'changes',
  [
    {'data_offsets': ['0', '4']},
    {'data_offsets': [0, 4, 8]},
    {'data_offsets': 4},
    {'data_offsets': [-4, 0]},
    {'dtype': ['F32']},
    {'dtype': None},
    {'shape': 1},
    {'shape': [1.0]},
    {'shape': [-1, -1]},
    {'shape': None},
  ],
)
def test_an_entry_of_another_form(changes, tmp_path):
  entry = {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]} | changes
  data = json.dumps({'a': entry}).encode()
  path = tmp_path / 'x.safetensors'
  path.write_bytes(struct.pack('<Q', len(data)) + data + bytes(8))
  refused('x.safetensors: its header is not that of safetensors', path)


def test_a_tensor_twice_in_a_header(tmp_path):
  entries = [
    f'"{name}": {{"dtype": "F32", "shape": [2], "data_offsets": {offsets}}}'
    for name, offsets in (('a', [0, 8]), ('b', [8, 16]), ('a', [8, 16]))
  ]
  path = tmp_path / 'x.safetensors'
  for chosen, text in (
    (entries, 'x.safetensors has a twice: the file is damaged'),
    (
      entries[1:],
      'x.safetensors: [ab]: their data are those of another tensor',
    ),
  ):
    data = f'{{{", ".join(chosen)}}}'.encode()
    path.write_bytes(struct.pack('<Q', len(data)) + data + bytes(16))
    refused(text, path)


@pytest.mark.parametrize('value', [None, 3, ['a'], {}])
def test_an_index_of_other_values(value, tmp_path):
  index = published_folder.write_shards(tmp_path, CONFIG)
  values = json.loads(index.read_text())
  values['weight_map'][min(values['weight_map'])] = value
  index.write_text(json.dumps(values))
  refused("index.json: expected a 'weight_map' of names to files", tmp_path)


def test_shards_in_a_folder_beside_their_index(tmp_path):
  index = published_folder.write_shards(tmp_path, CONFIG)
  values = json.loads(index.read_text())
  (tmp_path / 'parts').mkdir()
  for name in set(values['weight_map'].values()):
    (tmp_path / name).rename(tmp_path / 'parts' / name)
  names = {k: f'parts/{name}' for k, name in values['weight_map'].items()}
  # As some editors write it.
  text = '\ufeff' + json.dumps(values | {'weight_map': names})
  index.write_text(text, 'utf-8')
  assert parts.open_part(tmp_path, 'transformer').config == CONFIG


def test_an_index_of_any_name(tmp_path):
  published_folder.write_shards(tmp_path, CONFIG, stem='wan2.1')
  assert parts.open_part(tmp_path, 'transformer').config == CONFIG
  (tmp_path / 'other.safetensors.index.json').write_text('{}')
  refused(f'{tmp_path} has no weights', tmp_path)


def test_one_of_several_shards(tmp_path):
  published_folder.write_shards(tmp_path, CONFIG, count=2)
  path = tmp_path / 'diffusion_pytorch_model-00001-of-00002.safetensors'
  refused('00001-of-00002.safetensors is one of 2 shards: expected its', path)


def test_an_index_that_names_a_missing_file(tmp_path):
  index = published_folder.write_shards(tmp_path, CONFIG, count=2)
  shard = tmp_path / 'diffusion_pytorch_model-00002-of-00002.safetensors'
  data = shard.read_bytes()
  shard.unlink()
  message = refused('index.json names .*-00002-of-00002', tmp_path)
  assert 'blocks.' in message and 'proj_out.weight' in message
  shard.write_bytes(data[:-1])
  refused('-00002-of-00002.safetensors is cut short', tmp_path)
  shard.write_bytes(data)
  values = json.loads(index.read_text())
  first = min(values['weight_map'])
  second = sorted(values['weight_map'])[1]
  values['weight_map']['more'] = values['weight_map'].pop(first)
  values['weight_map'][second] = values['weight_map'][
    sorted(values['weight_map'])[1]
  ]
  index.write_text(json.dumps(values))
  message = refused('index.json does not agree with its shards', tmp_path)
  assert 'in no shard: more' in message
  assert f'not in the index: {first}' in message
  assert f'in another shard than it says: {second}' in message
  index.write_text('{}')
  refused("index.json: expected a 'weight_map'", tmp_path)
  index.write_text('{')
  refused('index.json is not JSON', tmp_path)
  index.write_text('[]')
  refused('index.json: expected a JSON object', tmp_path)


def test_a_tensor_in_two_shards(tmp_path):
  published_folder.write_shards(tmp_path, CONFIG, count=2)
  paths = sorted(tmp_path.glob('*.safetensors'))
  first, second = (safetensors.numpy.load_file(p) for p in paths)
  name = min(first)
  safetensors.numpy.save_file(second | {name: first[name]}, paths[1])
  refused(f'in two shards: {name}', tmp_path)


def test_all_faults_of_the_keys_in_one_message(tmp_path):
  named = published_folder.drawn(CONFIG)
  del named['proj_out.bias'], named['blocks.0.norm2.weight']
  del named['blocks.1.norm2.weight']
  named['blocks.0.norm9.weight'] = np.ones(3, np.float32)
  named['blocks.1.attn2.add_k_proj.weight'] = np.ones(3, np.float32)
  named['patch_embedding.bias'] = np.ones(5, np.float32)
  published_folder.write_part(tmp_path, CONFIG, tensors=named)
  message = refused('expected the 69 tensors of the transformer', tmp_path)
  assert str(tmp_path) in message
  assert 'missing: blocks.{0-1}.norm2.weight, proj_out.bias;' in message
  assert 'unexpected: blocks.0.norm9.weight;' in message
  assert (
    'image-to-video variant, which its config is not: blocks.1.attn2' in message
  )
  assert 'of other shapes: patch_embedding.bias (5,), expected (24,)' in message


def test_two_dialects_in_one_file(tmp_path):
  named = published_folder.drawn(CONFIG)
  named['head.head.bias'] = named['proj_out.bias']
  published_folder.write_part(tmp_path, CONFIG, tensors=named)
  refused('two names: head.head.bias, proj_out.bias', tmp_path)


def test_a_single_file_of_unknown_sizes(tmp_path):
  path = tmp_path / 'x.safetensors'
  safetensors.numpy.save_file(published_folder.drawn(CONFIG), path)
  refused('width of 24: expected a multiple of 128', path)
  refused('is a Wan transformer: expected an autoencoder', path, 'vae')
  for name, family in (
    ('double_blocks.0.img_attn.qkv.weight', 'HunyuanVideo'),
    ('caption_projection.linear_1.weight', 'LTX-Video'),
  ):
    safetensors.numpy.save_file({name: np.ones(3, np.float32)}, path)
    message = refused(f'x.safetensors is of {family}, another family', path)
    assert name in message


@pytest.mark.parametrize(
  'kind, values, text',
  [
    (
      'transformer',
      {'_class_name': 'LTXVideoTransformer3DModel'},
      'here: LTXVideoTransformer3DModel is of LTX-Video, another family',
    ),
    (
      'transformer',
      {'_class_name': 'HunyuanVideoTransformer3DModel'},
      'of HunyuanVideo, another family',
    ),
    ('vae', {'_class_name': 'AutoencoderKLCogVideoX'}, 'of CogVideoX'),
    ('vae', {'_class_name': 'AutoencoderKL'}, 'an unknown class'),
    (
      'transformer',
      {'_class_name': 'WanAnimateTransformer3DModel'},
      'the Animate variant of Wan',
    ),
    ('transformer', {'image_dim': 1280}, 'added_kv_proj_dim=None: expected 5'),
    (
      'transformer',
      {'added_kv_proj_dim': 5},
      'added_kv_proj_dim=5: expected N',
    ),
    ('transformer', {'in_channels': 8}, 'in_channels=8: expected 16'),
    (
      'transformer',
      {'_class_name': 'AnyFlowTransformer3DModel', 'deltatime_type': 't-r'},
      "deltatime_type='t-r': expected 'r'",
    ),
    ('transformer', {'cross_attn_norm': False}, 'cross_attn_norm=False: exp'),
    ('transformer', {'qk_norm': None}, "qk_norm=None: expected 'rms_norm"),
    ('transformer', {'nlayers': 3}, 'unknown keys nlayers, like num_layers'),
    ('vae', {'latents_shift': 3}, 'here: unknown keys latents_shift'),
    ('vae', {'attn_scales': [1]}, r'attn_scales=\(1,\): expected \(\)'),
    ('vae', {'in_channels': 12}, 'in_channels=12: expected 3'),
    ('text_encoder', {'model_type': 'clip'}, "model_type='clip': expected um"),
    (
      'text_encoder',
      {'feed_forward_proj': 'relu'},
      "feed_forward_proj='relu': expected 'gated-gelu'",
    ),
    ('text_encoder', {'rope_theta': 1.0}, 'unknown keys rope_theta'),
  ],
)
def test_configs(kind, values, text):
  with pytest.raises(ValueError, match=text):
    networks.FORMATS[kind].read_config(values, 'here')


def test_keys_of_the_decoder_say_nothing():
  """A new version of transformers writes new ones; only the encoder is read."""
  values = {'d_model': 24, 'scale_decoder_outputs': True}
  assert umt5.read_config(values, 'here').d_model == 24


@pytest.mark.slow
def test_pipelines(tmp_path):
  folder = published_folder.write(tmp_path / 'tiny')
  assert network_files.is_pipeline(folder)
  pipeline = folders.open_pipeline(folder)
  assert list(pipeline.parts) == ['dit', 'text', 'autoencoder']
  assert len(pipeline.fingerprint()) == 16
  index = folder / 'model_index.json'
  for name, text in (
    ('LTXPipeline', 'model_index.json: LTXPipeline is of LTX-Video'),
    ('WanVideoToVideoPipeline', 'the video-to-video variant of Wan'),
  ):
    index.write_text(json.dumps({'_class_name': name}))
    with pytest.raises(ValueError, match=text):
      folders.open_pipeline(folder)
  index.write_text(json.dumps({'_class_name': 'WanPipeline'}))
  published_folder.write_part(
    folder / 'vae',
    dataclasses.replace(
      published_folder.VAE22, z_dim=4, latents_mean=(), latents_std=()
    ),
  )
  published_folder.write_part(
    folder / 'text_encoder',
    dataclasses.replace(published_folder.TEXT, d_model=14),
  )
  with pytest.raises(
    ValueError,
    match='transformer has 3 latent channels, expected 4, those of .*vae; text '
    'of width 12, expected 14, that of .*text_encoder: take networks of one',
  ):
    folders.open_pipeline(folder)


def test_settings_of_a_scheduler_that_no_solver_has():
  assert not sections.unread(folders.SCHEDULER_CONFIG)
  published = dict(disable_corrector=[], solver_p=None, thresholding=False)
  published |= dict(use_karras_sigmas=False, predict_x0=True, solver_order=2)
  assert not sections.unread(folders.SCHEDULER_CONFIG | published)
  changed = dict(use_karras_sigmas=True, solver_order=3, disable_corrector=[0])
  messages = sections.unread(folders.SCHEDULER_CONFIG | changed)
  assert sorted(text.partition(' ')[0] for text in messages) == [
    'disable_corrector=[0]',
    'solver_order=3',
    'use_karras_sigmas=True',
  ]
  assert 'solver_order=3 is not implemented; it counts as 2' in messages


def test_of_two_transformers_one_may_be_chosen(tmp_path):
  folder = published_folder.write(tmp_path / 'tiny')
  other = published_folder.drawn(CONFIG)
  other['proj_out.bias'] += 1
  published_folder.write_part(folder / 'transformer_2', CONFIG, tensors=other)
  published_folder.change_index(folder, boundary_ratio=0.875)
  names = ('transformer', 'transformer_2')
  both = folders.open_pipeline(folder)
  assert list(both.parts) == ['dit', 'text', 'autoencoder', 'dit_2']
  assert both.boundary == 0.875
  one = [folders.open_pipeline(folder, transformer=name) for name in names]
  assert len({p.fingerprint() for p in (both, *one)}) == 3
  assert [p.boundary for p in one] == [None, None]
  with pytest.raises(ValueError, match="'transformer' or 'transformer_2'"):
    convert.to_weights(both, tmp_path / 'ours')
  # A folder made of one of them claims no other.
  convert.to_weights(one[1], tmp_path / 'ours')
  convert.to_published(tmp_path / 'ours', tmp_path / 'back')
  back = folders.open_pipeline(tmp_path / 'back')
  assert back.transformer_2 is None
  assert back.transformer.fingerprint() == one[1].transformer.fingerprint()


def test_what_cannot_be_written(tmp_path):
  with pytest.raises(ValueError, match='a is int8: expected float32'):
    tensor_files.File(tmp_path / 'x', {'a': ((2,), np.dtype(np.int8))})
  (tmp_path / 'there').mkdir()
  (tmp_path / 'there' / 'x').write_text('')
  with pytest.raises(ValueError, match='nothing is overwritten'):
    with paths.new_folder(tmp_path / 'there'):
      pass
  with pytest.raises(ValueError, match='cannot be written'):
    with paths.new_folder(tmp_path / 'there' / 'x' / 'y'):
      pass
  with pytest.raises(RuntimeError):
    with paths.new_folder(tmp_path / 'half') as folder:
      (folder / 'x').write_text('')
      raise RuntimeError
  assert [p.name for p in tmp_path.iterdir()] == ['there']
  with pytest.raises(
    ValueError, match='missing: .*time_in.*unexpected: head.x'
  ):
    parameters.write(tmp_path / 'z', CONFIG, {'head': {'x': np.ones(2)}})
  assert not (tmp_path / 'z').exists()


def test_every_pickle_ending_is_known():
  assert (
    '.bin' in tensor_files.PICKLES
    and '.safetensors' not in tensor_files.PICKLES
  )


@pytest.mark.parametrize(
  'part, key, value',
  [
    ('transformer', 'num_attention_heads', '2'),
    ('transformer', 'num_layers', None),
    ('transformer', 'ffn_dim', True),
    ('transformer', 'freq_dim', None),
    ('transformer', 'out_channels', [12]),
    ('transformer', 'patch_size', '1,2,2'),
    ('transformer', 'patch_size', [1, '2', 2]),
    ('transformer', 'eps', float('nan')),
    ('transformer', 'image_dim', '1280'),
    ('vae', 'dim_mult', '1,2'),
    ('vae', 'latents_std', [1.0, 'a', 1.0]),
    ('vae', 'is_residual', 'no'),
    ('text_encoder', 'num_layers', '3'),
    ('text_encoder', 'd_kv', {}),
    ('transformer', 'num_attention_heads', 2.5),
    ('transformer', 'num_layers', 0),
    ('transformer', 'freq_dim', 0),
    ('transformer', 'patch_size', [1, 2, 2.5]),
    ('vae', 'base_dim', 0),
    ('vae', 'z_dim', 1.5),
    ('text_encoder', 'layer_norm_epsilon', -1),
    ('image_encoder', 'hidden_size', 0),
    ('image_encoder', 'num_hidden_layers', '2'),
  ],
)
def test_values_of_another_kind(tmp_path, part, key, value):
  published_folder.write(tmp_path, image=published_folder.IMAGE)
  path = tmp_path / part / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
  with pytest.raises(ValueError, match=f'{part}/config.json: {key}=') as error:
    folders.open_pipeline(tmp_path)
  assert 'expected a value such as' in str(error.value)


@pytest.mark.parametrize(
  'part, key, value, text',
  [
    (
      'transformer',
      'patch_size',
      [1, 2],
      r'model.patch=\(1, 2\): expected three',
    ),
    ('transformer', 'patch_size', [0, 2, 2], 'model.patch='),
    (
      'transformer',
      'attention_head_dim',
      7,
      'model.heads=2: expected a divisor',
    ),
    (
      'vae',
      'dim_mult',
      [0, 1, 2],
      'autoencoder.dim_mult=.*: expected one or mo',
    ),
    (
      'text_encoder',
      'relative_attention_num_buckets',
      3,
      'text.buckets=3: exp',
    ),
  ],
)
def test_sizes_that_no_network_has(tmp_path, part, key, value, text):
  published_folder.write(tmp_path)
  path = tmp_path / part / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
  with pytest.raises(ValueError, match=f'{part}/config.json: {text}'):
    folders.open_pipeline(tmp_path)


@pytest.mark.parametrize('value', [None, 'abc', [3], True])
def test_a_shift_that_is_no_number(value):
  values = folders.SCHEDULER_CONFIG | {'flow_shift': value}
  with pytest.raises(
    ValueError, match='here: scheduler flow_shift=.*: expected'
  ):
    sections.schedule(values, 'here')


@pytest.mark.parametrize('name', [3, ['WanPipeline']])
def test_a_class_that_is_no_name(name):
  with pytest.raises(ValueError, match='is an unknown class: expected WanPipe'):
    config_json.check_class(name, ('WanPipeline',), 'here')
  with pytest.raises(ValueError, match='expected a scheduler of a flow model'):
    sections.schedule({'_class_name': name}, 'here')
