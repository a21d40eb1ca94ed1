"""LoRA files: names of every dialect, and refusals."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from spacetime import sharding
from spacetime.checkpoint import load
from spacetime.checkpoint.interop import lora, wan_transformer
from spacetime.models.transformer import lora as lora_lib
from tests.helpers import published_folder

MODEL = published_folder.TRANSFORMER
CONFIG = lora_lib.LoraConfig(rank=3, alpha=6.0)
RNG = np.random.default_rng(0)
DOWN = RNG.normal(size=(3, 24)).astype(np.float32)
UP = RNG.normal(size=(24, 3)).astype(np.float32)


def save(path, arrays, metadata=None):
  safetensors.numpy.save_file(arrays, path, metadata=metadata)
  return path


def pair(stem, down='lora_A', up='lora_B'):
  return {f'{stem}.{down}.weight': DOWN, f'{stem}.{up}.weight': UP}


NAMES = [
  pair('transformer.blocks.1.attn1.to_out.0'),
  pair('blocks.1.attn1.to_out.0', 'lora_A.default', 'lora_B.default'),
  pair('base_model.model.blocks.1.attn1.to_out.0'),
  pair('diffusion_model.blocks.1.self_attn.o'),
  pair('diffusion_model.blocks.1.self_attn.o', 'lora_down', 'lora_up'),
  pair('lora_unet_blocks_1_self_attn_o', 'lora_down', 'lora_up'),
  pair('transformer_2.blocks.1.attn1.to_out.0'),
]


@pytest.mark.parametrize('arrays', NAMES, ids=lambda x: next(iter(x)))
def test_every_dialect_is_the_same_pair(arrays, tmp_path):
  second = 'transformer_2' in next(iter(arrays))
  path = save(tmp_path / 'a.safetensors', arrays)
  loaded = lora.read(path, MODEL, root='dit_2' if second else 'dit').lora
  assert set(loaded['blocks']) == {'self_attention'}
  weights = loaded['blocks']['self_attention']['out']
  np.testing.assert_array_equal(weights['a'][1], DOWN.T)
  np.testing.assert_array_equal(weights['b'][1], UP.T)
  assert not weights['a'][0].any() and not weights['b'][0].any()


STEM = 'diffusion_model.blocks.0.cross_attn.k'


def test_alpha_stands_beside_the_pair_or_in_the_metadata(tmp_path):
  arrays = pair(STEM) | {f'{STEM}.alpha': np.array(1.5, np.float32)}
  beside = lora.read(save(tmp_path / 'a.safetensors', arrays), MODEL).lora
  alphas = {'transformer.lora_alpha': 6, 'transformer.r': 3}
  alphas['transformer.alpha_pattern'] = {'blocks.1.ffn.net.0.proj': 12}
  arrays = pair('transformer.blocks.0.attn2.to_k') | {
    'transformer.blocks.1.ffn.net.0.proj.lora_A.weight': DOWN,
    'transformer.blocks.1.ffn.net.0.proj.lora_B.weight': np.ones(
      (40, 3), np.float32
    ),
  }
  path = save(
    tmp_path / 'b.safetensors', arrays, {lora.METADATA: json.dumps(alphas)}
  )
  inside = lora.read(path, MODEL).lora['blocks']
  key = beside['blocks']['cross_attention']['k']['b'][0]
  np.testing.assert_allclose(key, 0.5 * UP.T)
  np.testing.assert_allclose(inside['cross_attention']['k']['b'][0], 2 * UP.T)
  np.testing.assert_allclose(inside['mlp_in']['b'][1], 4.0)


def zeros():
  shapes = {
    path: np.zeros(shape, np.float32)
    for path, shape in lora.networks.of(MODEL).shapes.items()
  }
  tree = {}
  for path, leaf in shapes.items():
    lora.layouts.put(tree, path.split('.'), jax.numpy.asarray(leaf))
  return tree


def test_other_modules_and_plain_changes_are_added_too(tmp_path):
  out = RNG.normal(size=(12, 3)).astype(np.float32)
  arrays = pair('diffusion_model.time_embedding.2') | {
    'diffusion_model.head.head.lora_down.weight': DOWN,
    'diffusion_model.head.head.lora_up.weight': out,
    f'{STEM}.diff_b': np.arange(24, dtype=np.float32),
    'diffusion_model.blocks.1.norm3.diff': np.ones(24, np.float32),
  }
  adapter = lora.read(save(tmp_path / 'a.safetensors', arrays), MODEL)
  merged = adapter.merge(zeros(), strength=0.5)
  np.testing.assert_allclose(
    merged['time_out']['kernel'], 0.5 * (UP @ DOWN).T, atol=1e-5
  )
  np.testing.assert_allclose(
    merged['head']['kernel'], 0.5 * (out @ DOWN).T, atol=1e-5
  )
  bias = merged['blocks']['cross_attention']['k']['bias']
  np.testing.assert_allclose(bias, [0.5 * np.arange(24), np.zeros(24)])
  scale = merged['blocks']['norm_cross']['scale']
  np.testing.assert_allclose(scale, [np.zeros(24), 0.5 * np.ones(24)])
  assert not merged['blocks']['mlp_in']['kernel'].any()


def test_unlike_ranks_share_a_stack(tmp_path):
  arrays = pair('transformer.blocks.0.attn1.to_q') | {
    'transformer.blocks.1.attn1.to_q.lora_A.weight': DOWN[:1],
    'transformer.blocks.1.attn1.to_q.lora_B.weight': UP[:, :1].copy(),
  }
  adapter = lora.read(save(tmp_path / 'a.safetensors', arrays), MODEL)
  kernel = adapter.merge(zeros())['blocks']['self_attention']['q']['kernel']
  np.testing.assert_allclose(kernel[0], (UP @ DOWN).T, atol=1e-5)
  np.testing.assert_allclose(kernel[1], (UP[:, :1] @ DOWN[:1]).T, atol=1e-5)


@pytest.mark.parametrize('dialect', lora.DIALECTS)
def test_what_is_written_comes_back(dialect, tmp_path):
  shapes = jax.eval_shape(
    lambda key: lora_lib.init(key, CONFIG, MODEL), jax.random.key(0)
  )
  pairs = jax.tree.map(
    lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), shapes
  )
  path = tmp_path / 'a.safetensors'
  lora.write(path, pairs, CONFIG, MODEL, dialect=dialect)
  names = set(safetensors.numpy.load_file(path))
  assert len(names) == 2 * 10 * (2 if dialect == 'diffusers' else 3)
  if dialect == 'original':
    assert f'{STEM}.lora_down.weight' in names and f'{STEM}.alpha' in names
  back = lora.read(path, MODEL).lora
  for name in ('mlp_in', 'mlp_out'):
    expected = pairs['blocks'][name]
    np.testing.assert_array_equal(back['blocks'][name]['a'], expected['a'])
    np.testing.assert_allclose(back['blocks'][name]['b'], 2 * expected['b'])


def test_refuses_a_file_of_another_base(tmp_path):
  path = tmp_path / 'a.safetensors'
  other = dataclasses.replace(MODEL, layers=3, width=36)
  pairs = lora_lib.init(jax.random.key(0), CONFIG, other)
  lora.write(path, pairs, CONFIG, other, dialect='diffusers')
  with pytest.raises(
    ValueError,
    match=r'2 layers of width 24; unknown: transformer.blocks.2.*'
    r'of other shapes: .*attn1.to_q.lora_A.weight \(3, 36\), expected '
    r'\(3, 24\).*another base model',
  ):
    lora.read(path, MODEL)


@pytest.mark.parametrize(
  'arrays, text',
  [
    ({'lora_te_x.lora_down.weight': DOWN}, 'unknown: lora_te_x.lora_down'),
    (
      {'transformer.blocks.0.attn1.to_q.lora_A.weight': DOWN},
      'without its other half: transformer.blocks.0.attn1.to_q.lora_A.weight',
    ),
    (
      pair(f'{STEM}') | {f'{STEM}.dora_scale': UP},
      'unknown: .*cross_attn.k.dora_scale',
    ),
    (
      pair('diffusion_model.patch_embedding'),
      'of other shapes: .*patch_embedding.lora_A.weight',
    ),
    (pair('transformer_2.blocks.0.attn1.to_q'), 'it has no LoRA weights'),
  ],
)
def test_refuses(arrays, text, tmp_path):
  path = save(tmp_path / 'a.safetensors', arrays)
  with pytest.raises(ValueError, match=text):
    lora.read(path, MODEL)


def test_refuses_a_pickle_and_half_a_file(tmp_path):
  (tmp_path / 'a.pt').write_bytes(b'\x80\x02')
  with pytest.raises(ValueError, match='is a pickle, which may run any code'):
    lora.read(tmp_path / 'a.pt', MODEL)
  path = save(tmp_path / 'a.safetensors', NAMES[0])
  path.write_bytes(path.read_bytes()[:-8])
  with pytest.raises(ValueError, match='is cut short'):
    lora.read(path, MODEL)


def test_every_kernel_has_a_name_in_the_original_dialect():
  for name, path, *_ in wan_transformer.rows(2):
    if path.removeprefix('blocks.').removesuffix('.kernel') in lora_lib.TARGETS:
      assert wan_transformer.original_name(name) != name


def test_a_model_is_opened_with_lora(tmp_path):
  mesh = sharding.single_device_mesh()
  published_folder.write(tmp_path / 'wan')
  model = load.open_model(str(tmp_path / 'wan'), mesh=mesh)
  path = save(tmp_path / 'a.safetensors', NAMES[0])
  plain = model.read('dit')['blocks']['self_attention']['out']['kernel']
  for strength in (1.0, 0.25):
    tuned = model.with_lora(path, strength=strength)
    loaded = tuned.read('dit')['blocks']['self_attention']['out']['kernel']
    change = np.asarray(loaded) - np.asarray(plain)
    assert not change[0].any()
    np.testing.assert_allclose(change[1], strength * (UP @ DOWN).T, atol=1e-5)
    assert tuned.weights_hash != model.weights_hash
  with pytest.raises(ValueError, match='no such file'):
    model.with_lora(tmp_path / 'nowhere.safetensors')
