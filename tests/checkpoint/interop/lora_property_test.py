"""LoRA files of random dialects against a plain reference.

SPACETIME_TEST_EXAMPLES=2000 draws more files than CI does.
"""

import json
import math
import os

import hypothesis
import ml_dtypes
import numpy as np
import safetensors.numpy
from hypothesis import strategies as st

from spacetime.checkpoint.interop import lora, networks
from tests.helpers import published_folder

MODEL = published_folder.TRANSFORMER
WIDTH, MLP = MODEL.width, MODEL.mlp
# Modules by diffusers' and by the original name: (out, in) of the weight.
MODULES = {
  ('condition_embedder.time_embedder.linear_2', 'time_embedding.2'): (24, 24),
  ('condition_embedder.text_embedder.linear_1', 'text_embedding.0'): (24, 12),
  ('condition_embedder.time_proj', 'time_projection.1'): (144, 24),
  ('proj_out', 'head.head'): (12, 24),
}
for _i in range(MODEL.layers):
  for _a, _b in (
    ('attn1.to_q', 'self_attn.q'),
    ('attn1.to_out.0', 'self_attn.o'),
    ('attn2.to_k', 'cross_attn.k'),
    ('attn2.to_v', 'cross_attn.v'),
  ):
    MODULES[f'blocks.{_i}.{_a}', f'blocks.{_i}.{_b}'] = (WIDTH, WIDTH)
  MODULES[f'blocks.{_i}.ffn.net.0.proj', f'blocks.{_i}.ffn.0'] = (MLP, WIDTH)
  MODULES[f'blocks.{_i}.ffn.net.2', f'blocks.{_i}.ffn.2'] = (WIDTH, MLP)

PREFIXES = ['', 'transformer.', 'unet.', 'module.', 'base_model.model.']
PREFIXES += ['diffusion_model.', 'model.diffusion_model.', 'pipe.dit.', 'dit.']
PREFIXES += ['model.', 'transformer.base_model.model.']
FLAT = ['lora_unet_', 'lora_unet__', 'lycoris_', 'lora_transformer_']
ENDS = [
  ('lora_A.weight', 'lora_B.weight'),
  ('lora_A.default.weight', 'lora_B.default.weight'),
  ('lora_A.my-adapter_2.weight', 'lora_B.my-adapter_2.weight'),
  ('lora_down.weight', 'lora_up.weight'),
  ('lora.down.weight', 'lora.up.weight'),
]
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
SOURCES = ['tensor', 'config', 'metadata', 'header', 'none']
ALPHAS = st.sampled_from([0.5, 1, 2, 3, 8, 16, 64.5])

SETTINGS = hypothesis.settings(
  max_examples=int(os.environ.get('SPACETIME_TEST_EXAMPLES', '25')),
  derandomize=True,
  deadline=None,
  database=None,
  suppress_health_check=list(hypothesis.HealthCheck),
)


@st.composite
def adapters(draw):
  """(names and options of a file, seeded factors by module)."""
  chosen = draw(
    st.lists(st.sampled_from(list(MODULES)), min_size=1, unique=True)
  )
  ranks = draw(
    st.lists(st.integers(1, 5), min_size=len(chosen), max_size=len(chosen))
  )
  patterns = draw(
    st.dictionaries(
      st.sampled_from(['to_q', 'attn2.to_k', 'q', 'ffn.0', 'net.2', 'head']),
      ALPHAS,
      max_size=3,
    )
  )
  return dict(
    modules=chosen,
    ranks=ranks,
    patterns=patterns,
    original=draw(st.booleans()),
    flat=draw(st.booleans()),
    prefix=draw(st.sampled_from(PREFIXES)),
    flat_prefix=draw(st.sampled_from(FLAT)),
    ends=draw(st.sampled_from(ENDS)),
    alpha=draw(ALPHAS),
    source=draw(st.sampled_from(SOURCES)),
    stabilised=draw(st.booleans()),
    conv=draw(st.booleans()),
    dtype=draw(st.sampled_from(DTYPES)),
    order=draw(st.randoms(use_true_random=False)),
    seed=draw(st.integers(0, 99)),
  )


def expected_scale(case, stem: str, rank: int) -> float:
  """The scale by the rules of each program, written out once more."""
  source, alpha = case['source'], case['alpha']
  if source == 'none':
    return 1.0
  if source == 'tensor':
    return alpha / rank
  if source != 'header':
    parts = stem.split('.')
    for pattern, value in case['patterns'].items():
      tails = ['.'.join(parts[i:]) for i in range(len(parts))]
      if pattern in tails:
        alpha = value
        break
  return alpha / (math.sqrt(rank) if case['stabilised'] else rank)


def write(folder, case):
  """Writes the file; returns its path and the change of each module."""
  rng = np.random.default_rng(case['seed'])
  down_end, up_end = case['ends']
  arrays, expected = {}, {}
  for names, rank in zip(case['modules'], case['ranks'], strict=True):
    out, size = MODULES[names]
    name = names[1 if case['original'] else 0]
    stem = case['prefix'] + name
    if case['flat']:
      stem = case['flat_prefix'] + name.replace('.', '_')
    down = rng.normal(size=(rank, size)).astype(case['dtype'])
    up = rng.normal(size=(out, rank)).astype(case['dtype'])
    delta = np.float32(up) @ np.float32(down)
    matched = case['flat_prefix'] + name.replace('.', '_')
    scale = expected_scale(case, matched if case['flat'] else name, rank)
    expected[names[0]] = scale * delta
    if case['conv']:
      down, up = down[:, :, None, None], up[:, :, None, None]
    arrays[f'{stem}.{down_end}'], arrays[f'{stem}.{up_end}'] = down, up
    if case['source'] == 'tensor':
      arrays[f'{stem}.alpha'] = np.asarray(case['alpha'], np.float32)
  items = list(arrays.items())
  case['order'].shuffle(items)
  values = dict(
    lora_alpha=case['alpha'],
    alpha_pattern=case['patterns'],
    use_rslora=case['stabilised'],
  )
  metadata = {'format': 'pt'}
  if case['source'] == 'metadata':
    text = {f'transformer.{key}': value for key, value in values.items()}
    metadata['lora_adapter_metadata'] = json.dumps(text)
  if case['source'] == 'header':
    metadata |= {
      'lora_alpha': str(case['alpha']),
      'use_rslora': str(case['stabilised']),
    }
  path = folder / 'adapter_model.safetensors'
  safetensors.numpy.save_file(dict(items), path, metadata=metadata)
  config = folder / 'adapter_config.json'
  config.unlink(missing_ok=True)
  if case['source'] == 'config':
    config.write_text(json.dumps(dict(peft_type='LORA', **values)))
  return path, expected


@SETTINGS
@hypothesis.given(case=adapters())
def test_files_of_every_dialect(case, tmp_path_factory):
  """The changes are those of the reference; every tensor is used."""
  path, expected = write(tmp_path_factory.mktemp('lora'), case)
  adapter = lora.read(path, MODEL)
  rows = {row[1:3]: row[0] for row in networks.of(MODEL).rows}
  changes = {
    rows[key].removesuffix('.weight'): changes
    for key, changes in adapter.changes.items()
  }
  assert changes.keys() == expected.keys() and not adapter.ignored
  for name, delta in expected.items():
    (change,) = changes[name]
    unit = max(1.0, np.abs(delta).max())
    np.testing.assert_allclose(change.delta() / unit, delta / unit, atol=2e-5)


@SETTINGS
@hypothesis.given(
  case=adapters(), junk=st.sampled_from(['', 'blocks.0.new', 'te.0', '..', 'é'])
)
def test_one_unknown_tensor_is_refused(case, junk, tmp_path_factory):
  """Nothing is dropped silently: one more tensor ends in one line."""
  folder = tmp_path_factory.mktemp('lora')
  path, _ = write(folder, case)
  arrays = (
    dict(safetensors.numpy.load_file(path))
    if (case['dtype'] is not ml_dtypes.float8_e4m3fn)
    else {}
  )
  arrays[f'{junk}.lora_A.weight'] = np.ones((2, 24), np.float32)
  safetensors.numpy.save_file(arrays, path)
  try:
    lora.read(path, MODEL)
  except ValueError as e:
    assert str(path) in str(e) and len(str(e)) < 2000
  else:
    raise AssertionError('accepted')
