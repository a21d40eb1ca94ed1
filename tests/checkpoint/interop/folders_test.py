"""Reading published folders: every form on disk, and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from spacetime import sharding
from spacetime.checkpoint import mismatch
from spacetime.checkpoint.interop import (
  networks,
  parameters,
  parts,
  tensor_files,
  umt5,
  wan_transformer,
  wan_vae,
)
from spacetime.models import text_encoder
from spacetime.models.autoencoder import wan
from spacetime.models.transformer import dit
from tests.helpers import published_folder

CONFIGS = {
  'transformer': published_folder.TRANSFORMER,
  'vae': published_folder.VAE,
  'text_encoder': published_folder.TEXT,
}
TABLES = {'transformer': wan_transformer, 'vae': wan_vae, 'text_encoder': umt5}


def mesh(**axes):
  return sharding.make_mesh(sharding.MeshConfig(**axes))


def expected(config):
  """The tree by the tables alone, of the whole dict of tensors."""
  table = TABLES[networks.of(config).kind]
  return table.params_from_torch_names(published_folder.drawn(config))


def same(actual, target):
  assert jax.tree.structure(actual) == jax.tree.structure(target)
  jax.tree.map(np.testing.assert_array_equal, actual, target)


@pytest.mark.parametrize(
  'config',
  [*CONFIGS.values(), published_folder.VAE22],
  ids=[*CONFIGS, 'vae 2.2'],
)
@pytest.mark.parametrize('form', ['file', 'shards'])
def test_reads_what_the_tables_say(config, form, tmp_path):
  if form == 'file':
    published_folder.write_part(tmp_path, config)
  else:
    published_folder.write_shards(tmp_path, config, count=3)
  kind = networks.of(config).kind
  part = parts.open_part(tmp_path, kind)
  assert part.config == config
  reported = []
  actual = part.load(mesh(), report=reported.append)
  same(actual, expected(config))
  assert sum(reported) == part.size


def test_every_device_gets_its_part(tmp_path):
  published_folder.write_part(tmp_path, CONFIGS['transformer'])
  part = parts.open_part(tmp_path, 'transformer')
  actual = part.load(mesh(data=2, fsdp=2, tensor=2))
  kernel = actual['blocks']['mlp_in']['kernel']
  assert kernel.shape == (2, 24, 40)
  assert kernel.sharding.shard_shape(kernel.shape) == (2, 12, 20)
  same(actual, expected(CONFIGS['transformer']))


@pytest.mark.parametrize('stored', [np.float16, jnp.bfloat16, np.float32])
@pytest.mark.parametrize('dtype_setting', [None, np.float32, jnp.bfloat16])
def test_dtypes_are_stored_or_requested(stored, dtype_setting, tmp_path):
  config = CONFIGS['transformer']
  published_folder.write_part(tmp_path, config, dtype=stored)
  part = parts.open_part(tmp_path, 'transformer')
  assert part.dtype == stored
  actual = part.load(mesh(), dtype=dtype_setting)
  target = expected(config)
  kernel = actual['blocks']['cross_attention']['q']['kernel']
  assert kernel.dtype == (dtype_setting or stored)
  np.testing.assert_array_equal(
    kernel,
    target['blocks']['cross_attention']['q']['kernel']
    .astype(stored)
    .astype(dtype_setting or stored),
  )
  # The published code keeps these in float32, so no half type is forced.
  assert actual['blocks']['modulation'].dtype == stored


def test_layers_of_unlike_dtypes_become_float32(tmp_path):
  config = CONFIGS['transformer']
  named = published_folder.drawn(config)
  name = 'blocks.1.attn1.to_q.weight'
  named[name] = named[name].astype(jnp.bfloat16)
  published_folder.write_part(tmp_path, config, tensors=named)
  part = parts.open_part(tmp_path, 'transformer')
  kernel = part.load(mesh())['blocks']['self_attention']['q']['kernel']
  assert kernel.dtype == np.float32
  np.testing.assert_array_equal(kernel[1], named[name].astype(np.float32).T)


def test_variants_stand_in_for_the_plain_file(tmp_path):
  config = CONFIGS['vae']
  published_folder.write_part(
    tmp_path, config, dtype=jnp.bfloat16, mark='.bf16'
  )
  half = {
    name: 2 * tensor.astype(np.float16)
    for name, tensor in published_folder.drawn(config).items()
  }
  published_folder.write_part(tmp_path, config, tensors=half, mark='.fp16')
  assert parts.open_part(tmp_path, 'vae').dtype == jnp.bfloat16
  part = parts.open_part(tmp_path, 'vae', variant='fp16')
  assert part.dtype == np.float16
  published_folder.write_part(tmp_path, config)
  assert parts.open_part(tmp_path, 'vae').dtype == np.float32
  with pytest.raises(ValueError, match='no weights of variant fp32: .*bf16'):
    parts.open_part(tmp_path, 'vae', variant='fp32')


def test_shards_of_a_variant(tmp_path):
  index = published_folder.write_shards(
    tmp_path, CONFIGS['vae'], stem='diffusion_pytorch_model.fp16'
  )
  same(parts.open_part(tmp_path, 'vae').load(mesh()), expected(CONFIGS['vae']))
  index.rename(tmp_path / 'diffusion_pytorch_model.safetensors.index.fp16.json')
  assert parts.open_part(tmp_path, 'vae', variant='fp16').size


def test_a_lone_file_of_original_names_tells_its_sizes(tmp_path):
  config = dataclasses.replace(
    CONFIGS['transformer'], width=256, frequencies=32
  )
  named = published_folder.drawn(config)
  for prefix in ('', *wan_transformer.PREFIXES):
    original = {
      prefix + wan_transformer.original_name(name): tensor
      for name, tensor in named.items()
    }
    path = tmp_path / f'{len(prefix)}.safetensors'
    safetensors.numpy.save_file(original, path)
    part = parts.open_part(path, 'transformer')
    assert part.config == config
    same(part.load(mesh()), expected(config))


def test_a_config_of_the_original_repository(tmp_path):
  config = CONFIGS['transformer']
  published_folder.write_part(tmp_path, config)
  original = dict(
    _class_name='WanModel',
    dim=24,
    num_heads=2,
    num_layers=2,
    ffn_dim=40,
    freq_dim=16,
    in_dim=3,
    out_dim=3,
    text_dim=12,
    text_len=512,
    model_type='t2v',
    eps=1e-6,
  )
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(original))
  assert parts.open_part(tmp_path, 'transformer').config == config
  path.write_text(json.dumps(original | {'model_type': 's2v'}))
  with pytest.raises(ValueError, match="model_type='s2v': expected t2v, ti2v"):
    parts.open_part(tmp_path, 'transformer')
  path.write_text(json.dumps(original | {'in_dim': 7}))
  with pytest.raises(ValueError, match='of other shapes: patch_embedding'):
    parts.open_part(tmp_path, 'transformer')


@pytest.mark.parametrize('held', ['both', *umt5.EMBEDDINGS])
def test_either_or_both_embeddings(held, tmp_path):
  config = CONFIGS['text_encoder']
  named = published_folder.drawn(config)
  first, second = umt5.EMBEDDINGS
  if held == 'both':  # the second is at times left at zero
    named[second] = np.zeros_like(named[first])
  elif held == second:
    named[second] = named.pop(first)
  published_folder.write_part(tmp_path, config, tensors=named)
  part = parts.open_part(tmp_path, 'text_encoder')
  same(part.load(mesh()), expected(config))


def test_t5_shares_its_bias(tmp_path):
  config = dataclasses.replace(CONFIGS['text_encoder'], bias='shared')
  published_folder.write_part(tmp_path, config)
  part = parts.open_part(tmp_path, 'text_encoder')
  assert part.config.bias == 'shared'
  same(part.load(mesh()), expected(config))


@pytest.mark.parametrize('kind', list(CONFIGS))
@pytest.mark.parametrize('limit', [tensor_files.LIMIT, 9000])
def test_written_back_byte_for_byte(kind, limit, tmp_path):
  config = CONFIGS[kind]
  published_folder.write_part(tmp_path / 'a', config, dtype=jnp.bfloat16)
  params = parts.open_part(tmp_path / 'a', kind).load(
    mesh(data=4, fsdp=2) if kind == 'transformer' else mesh()
  )
  parameters.write(tmp_path / 'b', config, params, limit=limit)
  actual = published_folder.tensors(tmp_path / 'b')
  target = published_folder.tensors(tmp_path / 'a')
  assert actual.keys() == target.keys()
  for name, tensor in target.items():
    assert actual[name].tobytes() == tensor.tobytes(), name
  again = parts.open_part(tmp_path / 'b', kind)
  assert again.config == config
  files = sorted((tmp_path / 'b').glob('*.safetensors'))
  if limit == tensor_files.LIMIT:
    assert len(files) == 1
    return
  assert len(files) >= 2
  assert files[0].name.endswith(f'-00001-of-{len(files):05d}.safetensors')
  assert max(f.stat().st_size for f in files[:-1]) < 3 * limit


def test_published_configs_are_read(tmp_path):
  """Each preset's config.json says the preset again."""
  for config in (
    wan.PRESETS['wan2.1'],
    text_encoder.PRESETS['umt5-xxl'],
    dit.DiTConfig(
      channels=48,
      patch=(1, 2, 2),
      width=3072,
      heads=24,
      layers=30,
      mlp=14336,
      text_width=4096,
    ),
  ):
    kind = {
      wan.WanAutoencoderConfig: 'vae',
      text_encoder.TextConfig: 'text_encoder',
      dit.DiTConfig: 'transformer',
    }[type(config)]
    values = json.loads(json.dumps(networks.FORMATS[kind].write_config(config)))
    assert networks.FORMATS[kind].read_config(values, 'here') == config
  empty = wan_transformer.read_config({}, 'here')
  assert (empty.width, empty.layers, empty.mlp) == (5120, 40, 13824)
  assert wan_vae.read_config({}, 'here') == wan.PRESETS['wan2.1']
  assert umt5.read_config({}, 'here') == text_encoder.PRESETS['umt5-xxl']


def test_a_part_of_a_parameter_is_read_alone(tmp_path):
  config = CONFIGS['transformer']
  published_folder.write_part(tmp_path, config)
  part = parts.open_part(tmp_path, 'transformer')
  parameter = part.parameters['blocks.mlp_in.kernel']
  full = parameter.read()
  cut = parameter.read((slice(1, 2), slice(3, 9), slice(None, 7)))
  np.testing.assert_array_equal(cut, full[1:2, 3:9, :7])
  assert not parameter.tensors[0].view().flags.writeable


def test_listed_names_every_layer_once():
  names = ['blocks.0.a', 'blocks.2.a', 'blocks.1.a', 'blocks.1.b', 'c']
  names += ['encoder.block.3.layer.0.x', 'encoder.block.7.layer.0.x']
  assert mismatch.listed(names) == (
    'blocks.{0-2}.a, blocks.1.b, c, encoder.block.{3,7}.layer.0.x'
  )
