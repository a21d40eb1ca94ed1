"""The names and timesteps of the published transformers; no network runs."""

import math

import jax
import numpy as np
import pytest

from spacetime.checkpoint.interop import networks, wan_transformer
from spacetime.models.transformer import dit

SIZES = {
  'wan2.1 1.3B': dict(channels=16, width=1536, heads=12, layers=30, mlp=8960),
  'wan2.1 14B': dict(channels=16, width=5120, heads=40, layers=40, mlp=13824),
  'wan2.2 5B': dict(channels=48, width=3072, heads=24, layers=30, mlp=14336),
}
SMALL = dict(channels=3, width=12, heads=2, layers=2, mlp=20)


def shapes(sizes, text_width):
  """The parameter tree, as zeros that take no memory."""
  config = dit.DiTConfig(patch=(1, 2, 2), text_width=text_width, **sizes)
  z_Bfhwc = jax.ShapeDtypeStruct((1, 1, 2, 2, config.channels), np.float32)
  t_BT = jax.ShapeDtypeStruct((1, 1), np.float32)
  text_BSY = jax.ShapeDtypeStruct((1, 1, text_width), np.float32)
  tree = jax.eval_shape(
    dit.DiT(config).init, jax.random.key(0), z_Bfhwc, t_BT, text_BSY
  )['params']
  return jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), tree)


def small():
  """Small tensors by the published names, each entry another number."""
  names = wan_transformer.torch_names_from_params(shapes(SMALL, 7))
  rng = np.random.default_rng(0)
  return {
    name: rng.normal(size=zeros.shape).astype(np.float32)
    for name, zeros in names.items()
  }


@pytest.mark.parametrize(
  'size, tensors, parameters',
  [
    ('wan2.1 1.3B', 825, 1_418_996_800),
    ('wan2.1 14B', 1095, 14_288_491_584),
    ('wan2.2 5B', 825, 4_999_787_712),
  ],
)
def test_counts_of_the_published_models(size, tensors, parameters):
  tree = shapes(SIZES[size], 4096)
  named = list(wan_transformer.rows(SIZES[size]['layers']))
  assert len(named) == len({name for name, *_ in named}) == tensors
  paths = {path for _, path, *_ in named}
  assert len(paths) == len(jax.tree.leaves(tree))
  assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == parameters


def test_round_trip_is_exact_and_shapes_are_the_models():
  tensors = small()
  params = wan_transformer.params_from_torch_names(tensors)
  assert jax.tree.map(np.shape, params) == jax.tree.map(
    np.shape, shapes(SMALL, 7)
  )
  back = wan_transformer.torch_names_from_params(params)
  assert set(back) == set(tensors)
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(back[name], tensor)
  assert tensors['patch_embedding.weight'].shape == (12, 3, 1, 2, 2)
  assert tensors['blocks.1.scale_shift_table'].shape == (1, 6, 12)


@pytest.mark.parametrize('prefix', ['', *wan_transformer.PREFIXES])
def test_names_of_the_original_repository_are_understood(prefix):
  tensors = small()
  original = {
    prefix + wan_transformer.original_name(k): v for k, v in tensors.items()
  }
  for name in (
    'time_embedding.2.bias',
    'text_embedding.0.weight',
    'time_projection.1.weight',
    'head.modulation',
    'head.head.bias',
    'patch_embedding.weight',
    'blocks.1.modulation',
    'blocks.0.norm3.weight',
    'blocks.0.self_attn.q.weight',
    'blocks.0.cross_attn.norm_k.weight',
    'blocks.1.cross_attn.o.bias',
    'blocks.1.ffn.0.weight',
    'blocks.1.ffn.2.weight',
  ):
    assert prefix + name in original
  params = wan_transformer.params_from_torch_names(original)
  jax.tree.map(
    np.testing.assert_array_equal,
    params,
    wan_transformer.params_from_torch_names(tensors),
  )


def test_refuses_names_of_another_model():
  tensors = small()
  del tensors['blocks.1.norm2.bias'], tensors['proj_out.weight']
  tensors['blocks.0.norm3.scale'] = np.ones(3)
  message = (
    'the 69 tensors .* missing: blocks.1.norm2.bias, proj_out.weight; '
    'unknown: blocks.0.norm3.scale'
  )
  with pytest.raises(ValueError, match=message):
    wan_transformer.params_from_torch_names(tensors)
  with pytest.raises(ValueError, match='missing: blocks.0.attn1.norm_k.weight'):
    wan_transformer.params_from_torch_names({})


@pytest.mark.parametrize(
  'name, missing',
  [
    ('condition_embedder.image_embedder.norm1.weight', 'add_k_proj'),
    ('blocks.0.attn2.add_k_proj.weight', 'add_v_proj'),
    ('img_emb.proj.0.weight', 'add_v_proj'),
    ('vace_blocks.0.after_proj.weight', 'vace_blocks.0.attn1.norm_k'),
  ],
)
def test_a_tensor_of_a_variant_brings_the_others(name, missing):
  with pytest.raises(ValueError, match=f'missing: .*{missing}'):
    wan_transformer.params_from_torch_names(small() | {name: np.ones(3)})


# Sizes that each published variant adds to those of text to video, with the
# number of its tensors and of its values.
PUBLISHED = {
  'wan2.1_i2v_14b': (
    dict(cond_channels=20, image_width=1280),
    (1303, 16_394_878_784),
  ),
  'wan2.1_flf2v_14b': (
    dict(cond_channels=20, image_width=1280, image_tokens=514),
    (1304, 16_395_536_704),
  ),
  'wan2.2_i2v_a14b': (dict(cond_channels=20), (1095, 14_288_901_184)),
  'wan2.1_vace_1.3b': (
    dict(control_layers=tuple(range(0, 30, 2)), control_channels=96),
    (1264, 2_153_972_032),
  ),
  'wan2.1_vace_14b': (
    dict(control_layers=tuple(range(0, 40, 5)), control_channels=96),
    (1331, 17_337_592_896),
  ),
  'anyflow_14b': (dict(flow_map=0.25), (1099, 14_316_026_944)),
}
SIZES_14B = dict(width=5120, heads=40, layers=40, mlp=13824)
SIZES_1_3B = dict(width=1536, heads=12, layers=30, mlp=8960)


@pytest.mark.slow
@pytest.mark.parametrize('name', PUBLISHED)
def test_variants_have_the_published_tensors(name, tmp_path):
  sizes, (tensors, values) = PUBLISHED[name]
  base = SIZES_1_3B if '1.3b' in name else SIZES_14B
  config = dit.DiTConfig(
    channels=16, patch=(1, 2, 2), text_width=4096, **base, **sizes
  )
  shapes = networks.of(config).published_shapes()
  assert len(shapes) == tensors
  assert sum(math.prod(shape) for shape in shapes.values()) == values
  assert wan_transformer.variant_of_names(shapes) == wan_transformer.variant(
    config
  )
  written = wan_transformer.write_config(config)
  assert wan_transformer.read_config(written, tmp_path) == config
  for tensor in shapes:
    original = wan_transformer.original_name(tensor)
    assert wan_transformer.published_name(original) == tensor


def test_refuses_a_tensor_that_is_there_twice():
  tensors = small()
  tensors['head.head.bias'] = tensors['proj_out.bias']
  with pytest.raises(ValueError, match='70 tensors of 69 names'):
    wan_transformer.params_from_torch_names(tensors)


@pytest.mark.parametrize('form', [lambda f: f, jax.jit])
def test_levels_in_float32_are_integer_timesteps(form):
  timestep = np.arange(1001, dtype=np.float32)[None]
  features = form(lambda t: dit.timestep_features(t, 2))(timestep / 1000)
  expected = np.stack([np.cos(timestep), np.sin(timestep)], axis=-1)
  np.testing.assert_allclose(features, expected, atol=1e-6)
  # Levels between the thousandths keep their place.
  features = form(lambda t: dit.timestep_features(t, 2))(timestep / 1024)
  angle = timestep.astype(np.float64) * 1000 / 1024
  expected = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
  np.testing.assert_allclose(features, expected, atol=5e-5)
