"""LoRA files: names of every dialect, and refusals."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from spacetime import sharding
from spacetime.checkpoint import load
from spacetime.checkpoint.interop import (
  lora,
  lora_scale,
  parts,
  wan_transformer,
)
from spacetime.models.transformer import lora as lora_lib
from tests.helpers import published_folder, torch_archive

MODEL = published_folder.TRANSFORMER
CONFIG = lora_lib.LoraConfig(rank=3, alpha=6.0)
RNG = np.random.default_rng(0)
DOWN = RNG.normal(size=(3, 24)).astype(np.float32)
UP = RNG.normal(size=(24, 3)).astype(np.float32)


def save(path, arrays, metadata=None):
  arrays = {name: np.asarray(array) for name, array in arrays.items()}
  safetensors.numpy.save_file(arrays, path, metadata=metadata)
  return path


def pair(stem, down='lora_A', up='lora_B'):
  return {f'{stem}.{down}.weight': DOWN, f'{stem}.{up}.weight': UP}


Q, TO_Q = 'blocks.1.self_attn.o', 'blocks.1.attn1.to_out.0'
FLAT = Q.replace('.', '_')
# Every prefix with every spelling of the two factors.
STEMS = [
  *(f'{prefix}{TO_Q}' for prefix in ('', 'transformer.', 'unet.', 'module.')),
  *(f'transformer_2.{TO_Q}', f'base_model.model.{TO_Q}'),
  *(f'diffusion_model.{Q}', f'model.diffusion_model.{Q}', f'pipe.dit.{Q}'),
  *(f'dit.{Q}', f'model.{Q}', Q, f'base_model.model.diffusion_model.{Q}'),
  *(f'lora_unet_{FLAT}', f'lora_unet__{FLAT}', f'lycoris_{FLAT}'),
  f'lora_transformer_{TO_Q.replace(".", "_")}',
  *(f'transformer._orig_mod.{TO_Q}', f'module._orig_mod.{Q}'),
]
ENDS = [
  ('lora_A.weight', 'lora_B.weight'),
  ('lora_A.default.weight', 'lora_B.default.weight'),
  ('lora_A.learner.weight', 'lora_B.learner.weight'),
  ('lora_down.weight', 'lora_up.weight'),
  ('lora.down.weight', 'lora.up.weight'),
  ('lora_A', 'lora_B'),
]


@pytest.mark.parametrize('stem', STEMS)
def test_every_dialect_has_the_same_factors(stem, tmp_path):
  for i, (down, up) in enumerate(ENDS):
    arrays = {f'{stem}.{down}': DOWN, f'{stem}.{up}': UP}
    path = save(tmp_path / f'{i}.safetensors', arrays)
    root = 'dit_2' if 'transformer_2' in stem else 'dit'
    loaded = lora.read(path, MODEL, root=root).lora
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
    tmp_path / 'b.safetensors',
    arrays,
    {lora_scale.METADATA: json.dumps(alphas)},
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
  in_tensors = dialect in ('original', 'kohya', 'videox_fun')
  assert len(names) == 2 * 10 * (3 if in_tensors else 2)
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
    r'of other shapes: .*attn1.to_k.lora_A.weight \(3, 36\), expected '
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
      r'of other shapes: .*dora_scale \(24, 3\), expected \(24, 1\)',
    ),
    (
      pair(STEM) | {f'{STEM}.lora_mid.weight': UP},
      'unknown: .*lora_mid.weight; Tucker factors .* is not supported',
    ),
    (
      {f'{STEM}.oft_blocks': UP, f'{STEM}.alpha': UP[0, 0]},
      'oft_blocks.*OFT is not supported',
    ),
    (
      pair(STEM) | pair(STEM, 'lora_down', 'lora_up'),
      'twice: diffusion_model.blocks.0.cross_attn.k.lora_down.weight',
    ),
    ({f'{STEM}.alpha': UP[0, 0]}, 'without its other half: .*alpha'),
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
  path = save(tmp_path / 'a.safetensors', pair(STEM))
  path.write_bytes(path.read_bytes()[:-8])
  with pytest.raises(ValueError, match='is cut short'):
    lora.read(path, MODEL)


def test_the_first_bytes_say_the_format(tmp_path):
  expected = lora.read(save(tmp_path / 'a.safetensors', pair(STEM)), MODEL).lora
  for name in ('b.pt', 'c.safetensors'):
    path = torch_archive.save(tmp_path / name, {'state_dict': pair(STEM)})
    actual = lora.read(path, MODEL).lora
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
  for name in ('e.ckpt', 'f.bin', 'g.json'):  # alpha is in the header
    path = save(tmp_path / name, pair(STEM), {'lora_alpha': '6'})
    factors = lora.read(path, MODEL).lora['blocks']['cross_attention']['k']
    np.testing.assert_allclose(factors['b'][0], 2 * UP.T)
  (tmp_path / 'd.safetensors').write_bytes(b'GGUF' + bytes(60))
  with pytest.raises(ValueError, match='is a GGUF file: expected LoRA weights'):
    lora.read(tmp_path / 'd.safetensors', MODEL)


@pytest.mark.parametrize(
  'config, text',
  [(MODEL, 'a Wan transformer'), (published_folder.VAE, 'a Wan autoencoder')],
)
def test_other_networks_are_called_what_they_are(config, text, tmp_path):
  path = published_folder.write_part(tmp_path, config)
  with pytest.raises(ValueError, match=f'it is {text}, not LoRA weights'):
    lora.read(path, MODEL)
  for arrays in (PRODUCT, HADAMARD):  # and the other way round
    path = save(tmp_path / 'b.safetensors', arrays)
    with pytest.raises(ValueError, match='a file of LoRA weights, which belo'):
      parts.open_part(path, 'transformer')


def test_every_kernel_has_a_name_in_the_original_dialect():
  for name, path, *_ in wan_transformer.rows(2):
    if path.removeprefix('blocks.').removesuffix('.kernel') in lora_lib.TARGETS:
      assert wan_transformer.original_name(name) != name


def test_a_model_is_opened_with_lora(tmp_path):
  mesh = sharding.single_device_mesh()
  published_folder.write(tmp_path / 'wan')
  model = load.open_model(str(tmp_path / 'wan'), mesh=mesh)
  path = save(tmp_path / 'a.safetensors', pair(f'transformer.{TO_Q}'))
  plain = model.read('dit')['blocks']['self_attention']['out']['kernel']
  for strength in (1.0, 0.25):
    tuned = model.with_lora(path, strength=strength)
    tree = tuned.read_transformer('dit')
    assert tree.keys() == {'dit'}
    loaded = tree['dit']['blocks']['self_attention']['out']['kernel']
    change = np.asarray(loaded) - np.asarray(plain)
    assert not change[0].any()
    np.testing.assert_allclose(change[1], strength * (UP @ DOWN).T, atol=1e-5)
    assert tuned.weights_hash != model.weights_hash
  with pytest.raises(ValueError, match='no such file'):
    model.with_lora(tmp_path / 'nowhere.safetensors')


# -- scales --------------------------------------------------------------------


def scale_of(path, root='dit'):
  """The scale of the factors, by the change of the kernel."""
  weights = lora.read(path, MODEL, root=root).lora['blocks']['cross_attention']
  change = (weights['k']['a'][0] @ weights['k']['b'][0]).T
  product = UP @ DOWN
  return float((change * product).sum() / (product * product).sum())


PEFT = 'base_model.model.blocks.0.attn2.to_k'
# A config of PEFT -> the scale of factors of rank 3.
PEFT_SCALES = [
  (dict(lora_alpha=6), 2.0),
  (dict(lora_alpha=6, use_rslora=True), 6 / 3**0.5),
  (dict(lora_alpha=6, alpha_pattern={'to_k': 12}), 4.0),
  (dict(lora_alpha=6, alpha_pattern={'k': 12}), 2.0),  # no whole name
  (dict(lora_alpha=6, alpha_pattern={r'blocks\.\d+\.attn2\.to_k': 12}), 4.0),
  (dict(lora_alpha=6, alpha_pattern={'to_q': 9, 'attn2.to_k': 12}), 4.0),
  (dict(lora_alpha=6, r=8, rank_pattern={'to_k': 3}), 2.0),
  (dict(lora_alpha=6, alpha_pattern={f'transformer.{PEFT[17:]}': 12}), 4.0),
  (dict(r=3), 1.0),
]


@pytest.mark.parametrize('config, scale', PEFT_SCALES)
def test_alpha_of_peft(config, scale, tmp_path):
  folder = tmp_path / 'peft'
  folder.mkdir()
  path = save(folder / 'adapter_model.safetensors', pair(PEFT))
  (folder / 'adapter_config.json').write_text(
    json.dumps(dict(peft_type='LORA') | config)
  )
  for prefix, root in (('transformer', 'dit'), ('transformer_2', 'dit_2')):
    values = {f'{prefix}.{key}': value for key, value in config.items()}
    other = {'transformer.lora_alpha': 99} if root == 'dit_2' else {}
    inside = save(
      tmp_path / f'{prefix}.safetensors',
      pair(f'{prefix}.blocks.0.attn2.to_k'),
      {lora_scale.METADATA: json.dumps(values | other)},
    )
    assert scale_of(inside, root) == pytest.approx(scale, rel=1e-6)
  for source in (path, folder):  # the file, and the folder of it
    assert scale_of(source) == pytest.approx(scale, rel=1e-6)
  # A tensor beside the factors comes first.
  own = save(path, pair(PEFT) | {f'{PEFT}.alpha': np.float32([1.5])[0]})
  assert scale_of(own) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize(
  'header, scale',
  [
    ({'lora_alpha': '6', 'r': '3'}, 2.0),
    ({'network_alpha': '6.0', 'rank': '3'}, 2.0),
    ({'ss_network_alpha': '6', 'ss_network_dim': '3'}, 2.0),
    ({'ss_network_alpha': 'None'}, 1.0),
    ({'lora_alpha': '6', 'use_rslora': 'true'}, 6 / 3**0.5),
    ({'lora_config': json.dumps({'r': 3, 'lora_alpha': 6})}, 2.0),
    ({}, 1.0),
  ],
)
def test_alpha_of_a_plain_header(header, scale, tmp_path):
  path = save(tmp_path / 'a.safetensors', pair(STEM), header)
  assert scale_of(path) == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'int64', 'float64'])
def test_alpha_of_a_tensor(dtype, tmp_path):
  alpha = np.asarray(6, jax.numpy.bfloat16 if dtype == 'bfloat16' else dtype)
  arrays = pair(STEM) | {f'{STEM}.alpha': alpha}
  # An alpha in the metadata that is no number is not needed.
  path = save(tmp_path / 'a.safetensors', arrays, {'ss_network_alpha': 'auto'})
  assert scale_of(path) == pytest.approx(2.0)


def test_alpha_of_the_second_transformer_without_its_prefix(tmp_path):
  values = json.dumps({'transformer_2.lora_alpha': 6, 'transformer_2.r': 3})
  metadata = {lora_scale.METADATA: values}
  path = save(tmp_path / 'a.safetensors', pair(STEM), metadata)
  for root in ('dit', 'dit_2'):
    assert scale_of(path, root) == pytest.approx(2.0)


def test_a_lora_without_effect_is_reported(tmp_path, caplog):
  arrays = pair(STEM)
  lora.read(save(tmp_path / 'a.safetensors', arrays), MODEL)
  assert not caplog.text
  arrays[f'{STEM}.lora_B.weight'] = 0 * UP
  lora.read(save(tmp_path / 'b.safetensors', arrays), MODEL)
  assert 'b.safetensors has no effect: all of its changes are 0' in caplog.text


def test_refuses_dora_without_magnitudes(tmp_path):
  values = {'transformer.lora_alpha': 6, 'transformer.use_dora': True}
  metadata = {lora_scale.METADATA: json.dumps(values)}
  arrays = pair('transformer.blocks.0.attn2.to_k')
  path = save(tmp_path / 'a.safetensors', arrays, metadata)
  with pytest.raises(ValueError, match='use_dora, but it holds no magnitudes'):
    lora.read(path, MODEL)


def test_refuses_scales_that_are_no_numbers(tmp_path):
  path = save(tmp_path / 'a.safetensors', pair(STEM), {'lora_alpha': 'auto'})
  with pytest.raises(ValueError, match="lora_alpha .*='auto': expected a numb"):
    lora.read(path, MODEL)
  arrays = pair(STEM) | {f'{STEM}.alpha': np.float32([np.nan])[0]}
  path = save(tmp_path / 'b.safetensors', arrays)
  with pytest.raises(ValueError, match='alpha=nan: expected a number'):
    lora.read(path, MODEL)
  arrays = pair(STEM) | {f'{STEM}.alpha': np.float32([0])[0]}
  path = save(tmp_path / 'c.safetensors', arrays)
  with pytest.raises(ValueError, match='alpha=0.0: expected .* other than 0'):
    lora.read(path, MODEL)


def test_refuses_dora_of_some_modules_without_magnitudes(tmp_path):
  values = {'transformer.lora_alpha': 6, 'transformer.use_dora': True}
  metadata = {lora_scale.METADATA: json.dumps(values)}
  arrays = pair('transformer.blocks.0.attn2.to_k')
  arrays['transformer.blocks.0.attn2.to_k.lora_magnitude_vector'] = M
  arrays |= pair('transformer.blocks.1.attn1.to_q')
  path = save(tmp_path / 'a.safetensors', arrays, metadata)
  with pytest.raises(
    ValueError, match='no magnitudes of blocks.1.attn1.to_q; save it again'
  ):
    lora.read(path, MODEL)


@pytest.mark.parametrize(
  'config, text',
  [
    (dict(peft_type='IA3'), "peft_type='IA3': expected one of"),
    (dict(init_lora_weights='pissa_niter_4'), 'has changed the base model'),
    (dict(fan_in_fan_out=True), 'fan_in_fan_out: expected false'),
  ],
)
def test_refuses_configs_of_peft(config, text, tmp_path):
  save(tmp_path / 'adapter_model.safetensors', pair(PEFT))
  (tmp_path / 'adapter_config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match=text):
    lora.read(tmp_path, MODEL)


def test_refuses_folders_without_one_file(tmp_path):
  with pytest.raises(ValueError, match='no weights: expected one file of LoRA'):
    lora.read(tmp_path, MODEL)
  for name in 'ab':
    save(tmp_path / f'{name}.safetensors', pair(STEM))
  with pytest.raises(
    ValueError, match='a.safetensors, b.safetensors: expected'
  ):
    lora.read(tmp_path, MODEL)


def test_messages_are_short(tmp_path):
  arrays = {
    f'diffusion_model.blocks.{i}.other_{j}.lora_down.weight': DOWN
    for i in range(40)
    for j in range(30)
  }
  path = save(tmp_path / 'a.safetensors', arrays)
  with pytest.raises(ValueError, match='and 27 more') as e:
    lora.read(path, MODEL)
  assert len(str(e.value)) < 1000


# -- changes -------------------------------------------------------------------


BASE = RNG.normal(size=(24, 24)).astype(np.float32)
A, B = DOWN, UP


def merged(tmp_path, arrays, *, strength=1.0, metadata=None, config=None):
  """The changed key kernel (out, in) and its bias, of base weights BASE."""
  path = save(tmp_path / 'adapter_model.safetensors', arrays, metadata)
  if config:
    (tmp_path / 'adapter_config.json').write_text(json.dumps(config))
  base = zeros()
  key = base['blocks']['cross_attention']['k']
  key['kernel'] = key['kernel'].at[0].set(BASE.T)
  tree = lora.read(path, MODEL).merge(base, strength=strength)
  key = tree['blocks']['cross_attention']['k']
  assert not np.asarray(key['kernel'][1]).any()
  return np.asarray(key['kernel'][0]).T, np.asarray(key['bias'][0])


def rows(w):
  return np.sqrt((w * w).sum(1, keepdims=True))


def random(*shape):
  return RNG.normal(size=shape).astype(np.float32)


M = np.abs(random(24))
SUM = BASE + 2 * B @ A
W1, W2 = random(4, 4), random(6, 6)
WA, WB = random(6, 2), random(2, 6)
ALPHA = {f'{STEM}.alpha': np.float32(6.0)}
CASES = {
  'bias': (
    pair(STEM) | {f'{STEM}.lora_B.bias': M, **ALPHA},
    SUM,
  ),
  'kernel of 1': (
    {
      f'{STEM}.lora_down.weight': A[:, :, None, None],
      f'{STEM}.lora_up.weight': B[:, :, None, None],
      **ALPHA,
    },
    SUM,
  ),
  'magnitude': (
    pair(STEM) | {f'{STEM}.lora_magnitude_vector': M, **ALPHA},
    M[:, None] * SUM / rows(SUM),
  ),
  'magnitude.weight': (
    pair(STEM) | {f'{STEM}.lora_magnitude_vector.default.weight': M, **ALPHA},
    M[:, None] * SUM / rows(SUM),
  ),
  'dora_scale (out, 1)': (
    pair(STEM, 'lora_down', 'lora_up')
    | {f'{STEM}.dora_scale': M[:, None], **ALPHA},
    M[:, None] * SUM / rows(BASE),
  ),
  'dora_scale (1, in)': (
    pair(STEM, 'lora_down', 'lora_up')
    | {f'{STEM}.dora_scale': M[None], **ALPHA},
    M[None] * SUM / rows(SUM.T).T,
  ),
  'lokr': (
    {f'{STEM}.lokr_w1': W1, f'{STEM}.lokr_w2': W2, **ALPHA},
    BASE + np.kron(W1, W2),  # alpha does not count
  ),
  'lokr of a product': (
    {
      f'{STEM}.lokr_w1': W1,
      f'{STEM}.lokr_w2_a': WA,
      f'{STEM}.lokr_w2_b': WB,
      **ALPHA,
    },
    BASE + 3 * np.kron(W1, WA @ WB),
  ),
  'loha': (
    {
      f'{STEM}.hada_w1_a': B,
      f'{STEM}.hada_w1_b': A,
      f'{STEM}.hada_w2_a': B[::-1].copy(),
      f'{STEM}.hada_w2_b': A[::-1].copy(),
      **ALPHA,
    },
    BASE + 2 * (B @ A) * (B[::-1] @ A[::-1]),
  ),
}


@pytest.mark.parametrize('case', CASES)
def test_merges(case, tmp_path):
  arrays, expected = CASES[case]
  kernel, bias = merged(tmp_path, arrays)
  np.testing.assert_allclose(kernel, expected, rtol=2e-5, atol=2e-5)
  np.testing.assert_allclose(bias, 2 * M if case == 'bias' else 0 * M)


def test_lokr_beside_a_bias(tmp_path):
  arrays = {f'{STEM}.lokr_w1': W1, f'{STEM}.lokr_w2': W2, f'{STEM}.diff_b': M}
  kernel, bias = merged(tmp_path, arrays)
  np.testing.assert_allclose(kernel, BASE + np.kron(W1, W2), rtol=1e-5)
  np.testing.assert_allclose(bias, M)


def test_lokr_of_a_convolution(tmp_path):
  """The second factor has the kernel, of 5 axes or flat."""
  stem, w1 = 'diffusion_model.patch_embedding', random(4, 1)
  w2 = random(6, 3, 1, 2, 2)
  delta = np.kron(w1, w2.reshape(6, 12)).reshape(24, 3, 1, 2, 2)
  expected = wan_transformer.from_torch(delta, 'patch')
  for i, second in enumerate((w2, w2.reshape(6, 12))):
    arrays = {f'{stem}.lokr_w1': w1, f'{stem}.lokr_w2': second}
    path = save(tmp_path / f'{i}.safetensors', arrays)
    kernel = lora.read(path, MODEL).merge(zeros())['patch_embed']['kernel']
    np.testing.assert_allclose(kernel, expected, rtol=1e-5)


PRODUCT = {f'{STEM}.lokr_w1': W1, f'{STEM}.lokr_w2': W2}
HADAMARD = {
  f'{STEM}.hada_w{i}_{half}': B if half == 'a' else A
  for i in (1, 2)
  for half in 'ab'
}


@pytest.mark.parametrize(
  'arrays, text',
  [
    (pair(STEM) | HADAMARD, 'two forms of one change: .*hada_w1_a'),
    (pair(STEM) | PRODUCT, 'two forms of one change: .*lokr_w1'),
    (
      PRODUCT | {f'{STEM}.lokr_w1_a': WA, f'{STEM}.lokr_w1_b': WB},
      'two forms of one change: .*lokr_w1, .*lokr_w1_a',
    ),
    (
      pair(STEM)
      | {
        f'{STEM}.dora_scale': M[:, None],
        f'{STEM}.lora_magnitude_vector': M,
      },
      'two forms of one change: .*dora_scale, .*lora_magnitude_vector',
    ),
    (
      {f'{STEM}.lokr_w1': W1, f'{STEM}.lokr_w2': random(6, 6, 3)},
      r'of a product \(24, 24, 3\), expected \(24, 24\)',
    ),
    (
      {f'{STEM}.lokr_w1': random(4, 4, 2), f'{STEM}.lokr_w2': W2},
      'of a product .*, expected',
    ),
    (
      {f'{STEM}.lora_A.weight': A[:0], f'{STEM}.lora_B.weight': B[:, :0]},
      r'without values: .*lora_A.weight \(0, 24\)',
    ),
    (
      {k: v[:0] if k.endswith('b') else v[:, :0] for k, v in HADAMARD.items()}
      | ALPHA,
      'without values: .*hada_w1_a',
    ),
    (
      {
        f'{STEM}.lokr_w1': W1,
        f'{STEM}.lokr_w2_a': WA[:, :0],
        f'{STEM}.lokr_w2_b': WB[:0],
      },
      'without values: .*lokr_w2_a',
    ),
  ],
)
def test_refuses_forms_of_changes(arrays, text, tmp_path):
  arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
  path = save(tmp_path / 'a.safetensors', arrays)
  with pytest.raises(ValueError, match=f'a.safetensors does not fit .*{text}'):
    lora.read(path, MODEL)


def test_dora_of_a_zero_change_has_an_effect(tmp_path, caplog):
  arrays = pair(STEM) | {f'{STEM}.dora_scale': 0 * M[:, None]}
  kernel, _ = merged(tmp_path, arrays)
  assert not kernel.any() and not caplog.text


@pytest.mark.parametrize(
  'values, text',
  [
    ({'alpha_pattern': [1]}, r'alpha_pattern=\[1\]: expected numbers by name'),
    ({'rank_pattern': 'x'}, "rank_pattern='x': expected numbers by name"),
    ({'r': 'x'}, "rank='x': expected a number"),
    ({'r': 0}, 'rank=0: expected a number other than 0'),
  ],
)
def test_refuses_values_of_peft(values, text, tmp_path):
  config = json.dumps(dict(lora_alpha=3) | values)
  path = save(
    tmp_path / 'a.safetensors', PRODUCT, {lora_scale.METADATA: config}
  )
  with pytest.raises(ValueError, match=f'a.safetensors: {text}'):
    lora.read(path, MODEL)


def test_lokr_of_peft_has_alpha(tmp_path):
  arrays = {f'{PEFT}.lokr_w1': W1, f'{PEFT}.lokr_w2': W2}
  config = dict(peft_type='LOKR', r=4, alpha=8, alpha_pattern={})
  kernel, _ = merged(tmp_path, arrays, config=config)
  np.testing.assert_allclose(kernel, BASE + 2 * np.kron(W1, W2), rtol=1e-5)


def test_strength_of_dora(tmp_path):
  """PEFT scales the product, ComfyUI goes from the old weight to the new."""
  half = BASE + B @ A
  kernel, _ = merged(tmp_path, CASES['magnitude'][0], strength=0.5)
  expected = M[:, None] * half / rows(half)
  np.testing.assert_allclose(kernel, expected, rtol=2e-5, atol=1e-5)
  arrays, full = CASES['dora_scale (out, 1)']
  kernel, _ = merged(tmp_path, arrays, strength=0.5)
  np.testing.assert_allclose(kernel, (BASE + full) / 2, rtol=2e-5, atol=1e-5)


def test_modulation_changes(tmp_path):
  arrays = pair(STEM, 'lora_down', 'lora_up')
  arrays['diffusion_model.blocks.1.diff_m'] = np.ones((1, 6, 24), np.float32)
  arrays['diffusion_model.head.diff_m'] = np.ones((1, 2, 24), np.float32)
  arrays['diffusion_model.blocks.0.self_attn.norm_q.diff'] = M
  path = save(tmp_path / 'a.safetensors', arrays)
  tree = lora.read(path, MODEL).merge(zeros(), strength=0.5)
  assert (tree['blocks']['modulation'][1] == 0.5).all()
  assert not tree['blocks']['modulation'][0].any()
  assert (tree['head_modulation'] == 0.5).all()
  norm = tree['blocks']['self_attention']['norm_q']['scale']
  np.testing.assert_allclose(norm[0], M / 2)


def test_patch_embedding(tmp_path):
  """A pair of convolutions, of 5 axes or flat."""
  down, up = random(3, 3, 1, 2, 2), random(24, 3)
  stem = 'diffusion_model.patch_embedding'
  for i, (a, b) in enumerate(
    [(down, up[:, :, None, None, None]), (down.reshape(3, 12), up)]
  ):
    arrays = {f'{stem}.lora_down.weight': a, f'{stem}.lora_up.weight': b}
    path = save(tmp_path / f'{i}.safetensors', arrays)
    kernel = lora.read(path, MODEL).merge(zeros())['patch_embed']['kernel']
    delta = np.einsum('or,rcthw->octhw', up, down)
    expected = wan_transformer.from_torch(delta, 'patch')
    np.testing.assert_allclose(kernel, expected, rtol=2e-5, atol=2e-5)


def test_fp8_factors(tmp_path):
  arrays = {k: v.astype(jax.numpy.float8_e4m3fn) for k, v in pair(STEM).items()}
  a, b = arrays.values()
  kernel, _ = merged(tmp_path, arrays)
  expected = BASE + np.float32(b) @ np.float32(a)
  np.testing.assert_allclose(kernel, expected, rtol=1e-5, atol=1e-5)


FLOAT8 = jax.numpy.float8_e4m3fn


@pytest.mark.parametrize('form', ['scale_weight', 'weight_scale'])
def test_scaled_fp8_factors(form, tmp_path):
  arrays = {k: v.astype(FLOAT8) for k, v in pair(STEM).items()}
  a, b = arrays.values()
  arrays |= {
    f'{STEM}.lora_A.{form}': np.float32(0.5),
    f'{STEM}.lora_B.{form}': np.float32([3]),
    f'{STEM}.alpha': np.int64(3),
  }
  if form == 'scale_weight':
    arrays['scaled_fp8'] = np.zeros(2, FLOAT8)
  kernel, _ = merged(tmp_path, arrays)
  expected = BASE + 1.5 * np.float32(b) @ np.float32(a)
  np.testing.assert_allclose(kernel, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  'more, metadata',
  [
    ({'scaled_fp8': np.zeros(2, FLOAT8)}, None),
    ({f'{STEM}.lora_A.scale_weight': np.float32(2)}, 'header'),
  ],
)
def test_refuses_fp8_factors_without_their_scales(more, metadata, tmp_path):
  arrays = {k: v.astype(FLOAT8) for k, v in pair(STEM).items()} | more
  if metadata:
    layers = {f'{STEM}.lora_B': {'format': 'float8_e4m3fn'}}
    metadata = {'_quantization_metadata': json.dumps({'layers': layers})}
  path = save(tmp_path / 'a.safetensors', arrays, metadata)
  with pytest.raises(
    ValueError, match='scaled float8 without the scales of .*lora_B.weight'
  ):
    lora.read(path, MODEL)


@pytest.mark.parametrize('dtype', [np.int64, np.uint8])
def test_refuses_integers(tmp_path, dtype):
  arrays = {
    name: np.ones(array.shape, dtype)
    for name, array in pair('transformer.blocks.0.attn1.to_q').items()
  }
  path = save(tmp_path / 'a.safetensors', arrays)
  with pytest.raises(ValueError, match='integers, in .*lora_A.*expected float'):
    lora.read(path, MODEL)


def test_refuses_values_that_are_not_finite(tmp_path):
  for i, bad in enumerate((np.nan, np.inf)):
    down = DOWN.copy()
    down[0, 0] = bad
    arrays = pair(STEM) | {f'{STEM}.lora_A.weight': down}
    path = save(tmp_path / f'{i}.safetensors', arrays)
    with pytest.raises(
      ValueError, match='not finite, in .*lora_A.weight: expected finite'
    ):
      lora.read(path, MODEL)


@pytest.mark.parametrize(
  'name, shape',
  [
    ('base_model.model.blocks.0.attn1.to_q.bias', (24,)),
    ('base_model.model.proj_out.weight', (12, 24)),
    ('diffusion_model.head.head.weight', (12, 24)),
  ],
)
def test_refuses_weights_of_the_model_itself(name, shape, tmp_path):
  arrays = pair(STEM) | {name: random(*shape)}
  path = save(tmp_path / 'a.safetensors', arrays)
  with pytest.raises(
    ValueError, match=f'unknown: {name}; it has weights of the model itself, '
  ):
    lora.read(path, MODEL)


def test_alphas_of_some_modules_are_reported(tmp_path, caplog):
  other = 'diffusion_model.blocks.1.cross_attn.k'
  arrays = pair(STEM) | pair(other) | {f'{STEM}.diff_b': M}
  arrays |= {f'{name}.alpha': np.float32(1.5) for name in (STEM, other)}
  lora.read(save(tmp_path / 'a.safetensors', arrays), MODEL)
  assert not caplog.text
  del arrays[f'{other}.alpha']
  for metadata, text in (
    (None, '1 of its 2 modules alone: the others are scaled by 1'),
    ({'lora_alpha': '6'}, 'scaled by that of its config or metadata'),
  ):
    caplog.clear()
    path = save(tmp_path / 'a.safetensors', arrays, metadata)
    lora.read(path, MODEL)
    assert text in caplog.text


def test_weights_of_fewer_layers_are_reported(tmp_path, caplog):
  """As those for a model that was deepened since."""
  deeper = dataclasses.replace(MODEL, layers=3)
  arrays = pair(STEM) | pair('diffusion_model.blocks.1.self_attn.q')
  path = save(tmp_path / 'a.safetensors', arrays)
  lora.read(path, MODEL)
  assert not caplog.text
  lora.read(path, deeper)
  assert 'a.safetensors changes the first 2 of 3 layers alone' in caplog.text
  # The last layers, or one of several, are a choice of its trainer.
  caplog.clear()
  for blocks in ((1, 2), (0,), (0, 2)):
    arrays = {}
    for block in blocks:
      arrays |= pair(f'diffusion_model.blocks.{block}.self_attn.q')
    lora.read(save(tmp_path / 'b.safetensors', arrays), deeper)
  assert not caplog.text


@pytest.mark.parametrize('name', ['lora_magnitude_vector', 'dora_scale'])
def test_dora_of_a_row_of_zeros(name, tmp_path):
  """Outputs of added blocks are zero: they stay so, whatever the norms."""
  up = UP.copy()
  up[-1] = 0 if name == 'lora_magnitude_vector' else 1
  arrays = pair(STEM) | {f'{STEM}.lora_B.weight': up}
  arrays[f'{STEM}.{name}'] = (
    M if name == 'lora_magnitude_vector' else M[:, None]
  )
  base = zeros()
  key = base['blocks']['cross_attention']['k']
  rows_of_base = BASE.copy()
  rows_of_base[-1] = 0
  key['kernel'] = key['kernel'].at[0].set(rows_of_base.T)
  adapter = lora.read(save(tmp_path / 'a.safetensors', arrays), MODEL)
  tree = adapter.merge(base)
  kernel = np.asarray(tree['blocks']['cross_attention']['k']['kernel'][0])
  assert np.isfinite(kernel).all() and not kernel[:, -1].any()
  assert (np.abs(kernel[:, :-1]).max(0) > 0).all()


IMAGE_KEYS = [
  'diffusion_model.blocks.0.cross_attn.k_img',
  'lora_unet_blocks_0_cross_attn_v_img',
  'transformer.blocks.0.attn2.add_k_proj',
]


def test_keys_of_an_image_are_named(tmp_path, caplog):
  arrays = pair(STEM)
  for stem in IMAGE_KEYS:
    arrays |= pair(stem, 'lora_down', 'lora_up')
  arrays['diffusion_model.blocks.0.cross_attn.norm_k_img.diff'] = M
  path = save(tmp_path / 'a.safetensors', arrays)
  adapter = lora.read(path, MODEL)
  assert len(adapter.ignored) == 7
  assert list(adapter.changes) == [('blocks.cross_attention.k.kernel', 0)]


# -- models --------------------------------------------------------------------


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """A model with two transformers, opened."""
  folder = tmp_path_factory.mktemp('two') / 'wan'
  published_folder.write(folder)
  published_folder.write_part(folder / 'transformer_2', MODEL)
  published_folder.change_index(folder, boundary_ratio=0.875)
  return load.open_model(str(folder), mesh=sharding.single_device_mesh())


def change(model, root):
  """The change of the key kernel of a transformer, (out, in)."""
  kernels = [
    np.asarray(tree['blocks']['cross_attention']['k']['kernel'][0])
    for tree in (model.read_transformer(root)['dit'], model.read(root))
  ]
  return (kernels[0] - kernels[1]).T


def test_a_file_for_both_transformers_changes_both(two, tmp_path):
  halves = pair('transformer.blocks.0.attn2.to_k')
  other = {'transformer_2.blocks.0.attn2.to_k.lora_A.weight': 2 * DOWN}
  other |= {'transformer_2.blocks.0.attn2.to_k.lora_B.weight': UP}
  path = save(tmp_path / 'a.safetensors', halves | other)
  tuned = two.with_lora(path)
  np.testing.assert_allclose(change(tuned, 'dit'), UP @ DOWN, atol=1e-5)
  np.testing.assert_allclose(change(tuned, 'dit_2'), 2 * UP @ DOWN, atol=1e-5)
  with pytest.raises(ValueError, match='both transformers: expected it as `lo'):
    two.with_lora(path, root='dit_2')
  second = save(tmp_path / 'b.safetensors', other)
  with pytest.raises(
    ValueError, match='second of two .*: expected it as `lora'
  ):
    two.with_lora(second)
  assert not change(two.with_lora(second, root='dit_2'), 'dit').any()
  readers = {k: v for k, v in two.readers.items() if k != 'dit_2'}
  one = dataclasses.replace(two, readers=readers)
  with pytest.raises(ValueError, match='for two transformers: expected those'):
    one.with_lora(path)
  # As `lora_2` it is refused too: neither advises the other.
  with pytest.raises(
    ValueError, match='second of two transformers, and the model has one'
  ):
    one.with_lora(second)


def test_several_files_add_up(two, tmp_path):
  path = save(tmp_path / 'a.safetensors', pair(STEM))
  other = save(
    tmp_path / 'b.safetensors', pair('lora_unet_blocks_0_cross_attn_k')
  )
  tuned = two.with_lora(path, strength=0.5).with_lora(other, strength=0.25)
  np.testing.assert_allclose(change(tuned, 'dit'), 0.75 * UP @ DOWN, atol=1e-5)
