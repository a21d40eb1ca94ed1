"""LoRA files: diffusers loads those written here, and peft's are read."""

import jax
import numpy as np
import pytest

from spacetime.checkpoint.interop import lora, parameters
from spacetime.models.transformer import dit
from spacetime.models.transformer import lora as lora_lib

pytestmark = pytest.mark.parity

MODEL = dit.DiTConfig(
  channels=4,
  patch=(1, 2, 2),
  width=24,
  heads=2,
  layers=3,
  mlp=40,
  text_width=12,
  frequencies=32,
)
CONFIG = lora_lib.LoraConfig(rank=4, alpha=6.0)
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(2, 3, 4, 6, 4)).astype(np.float32)
TEXT = RNG.normal(size=(2, 7, 12)).astype(np.float32)
# One timestep per clip as in 2.1, and one per frame with a conditioning frame
# as in 2.2's 5B; integer thousandths.
LEVELS = {
  '2.1': np.float32([[0.999], [0.251]]),
  '2.2': np.float32([[0.0, 0.999, 0.999], [0.0, 0.251, 0.251]]),
}


def drawn(tree, scale):
  rng = np.random.default_rng(7)
  return jax.tree.map(
    lambda leaf: np.float32(scale * rng.normal(size=leaf.shape)), tree
  )


@pytest.fixture(scope='module')
def base():
  """Random parameters; every one matters."""
  shapes = jax.eval_shape(
    dit.DiT(MODEL).init, jax.random.key(0), Z, LEVELS['2.1'], TEXT
  )
  return drawn(shapes['params'], 0.2)


def make_adapter(config=CONFIG):
  fresh = jax.eval_shape(
    lambda key: lora_lib.init(key, config, MODEL), jax.random.key(0)
  )
  return drawn(fresh, 0.2)


@pytest.fixture(scope='module')
def theirs(base, tmp_path_factory):
  """A WanPipeline with these parameters and nothing but a transformer."""
  import diffusers

  folder = tmp_path_factory.mktemp('base') / 'transformer'
  parameters.write(folder, MODEL, base)

  def fresh():
    model = diffusers.WanTransformer3DModel.from_pretrained(folder).eval()
    return diffusers.WanPipeline(
      tokenizer=None,
      text_encoder=None,
      vae=None,
      scheduler=diffusers.UniPCMultistepScheduler(),
      transformer=model,
    )

  return fresh


def run_ours(base, adapter, levels):
  variables = {'params': base}
  if adapter is not None:
    variables['lora'] = lora_lib.variables(adapter, CONFIG)
  with jax.default_matmul_precision('highest'):
    return np.asarray(jax.jit(dit.DiT(MODEL).apply)(variables, Z, levels, TEXT))


def run_theirs(pipeline, levels):
  import torch

  z = torch.from_numpy(np.ascontiguousarray(np.moveaxis(Z, -1, 1)))
  steps = torch.from_numpy(np.round(levels * 1000))
  steps = steps[:, 0] if levels.shape[1] == 1 else steps.repeat_interleave(6, 1)
  with torch.no_grad():
    prediction = pipeline.transformer(z, steps, torch.from_numpy(TEXT)).sample
  return np.moveaxis(prediction.numpy(), 1, -1)


@pytest.mark.parametrize('form', LEVELS)
# Dialects that diffusers loads; peft's folder has its own test.
@pytest.mark.parametrize('dialect', ['diffusers', 'original', 'kohya'])
def test_diffusers_loads_written_adapter(dialect, form, base, theirs, tmp_path):
  adapter, levels = make_adapter(), LEVELS[form]
  path = tmp_path / lora.FILES[dialect]
  lora.write(path, adapter, CONFIG, MODEL, dialect=dialect)
  pipeline = theirs()
  plain = run_theirs(pipeline, levels)
  pipeline.load_lora_weights(tmp_path, weight_name=path.name)
  y, expected = run_theirs(pipeline, levels), run_ours(base, adapter, levels)
  assert np.abs(y - plain).max() > 0.1
  unit = max(1.0, np.abs(expected).max())
  print('difference', np.abs(y - expected).max(), np.abs(expected).max())
  np.testing.assert_allclose(y / unit, expected / unit, atol=2e-5)
  # It comes back as what it was.
  back = lora.read(path, MODEL).merge(base)
  merged = lora_lib.merge(base, adapter, scale=CONFIG.scale)
  for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(merged), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize('alpha', [8, 3])
def test_reads_adapter_of_peft(alpha, base, theirs, tmp_path):
  """With an alpha that stands in the file's metadata alone."""
  import peft
  import torch

  pipeline, levels = theirs(), LEVELS['2.1']
  pipeline.transformer.add_adapter(
    peft.LoraConfig(
      r=8,
      lora_alpha=alpha,
      target_modules=['to_q', 'to_out.0', 'net.0.proj', 'proj_out'],
    )
  )
  torch.manual_seed(0)
  for name, parameter in pipeline.transformer.named_parameters():
    if 'lora' in name:
      parameter.data.normal_(0, 0.2)
  state = peft.get_peft_model_state_dict(pipeline.transformer)
  pipeline.save_lora_weights(
    tmp_path,
    transformer_lora_layers=state,
    transformer_lora_adapter_metadata=pipeline.transformer.peft_config[
      'default'
    ].to_dict(),
  )
  adapter = lora.read(tmp_path / lora.FILES['diffusers'], MODEL)
  expected = run_theirs(pipeline, levels)
  y = run_ours(adapter.merge(base), None, levels)
  unit = max(1.0, np.abs(expected).max())
  assert np.abs(expected - run_ours(base, None, levels)).max() > 0.1
  np.testing.assert_allclose(y / unit, expected / unit, atol=2e-5)


def configs():
  """Adapters of peft by name."""
  import peft

  targets = ['to_q', 'to_out.0', 'net.0.proj', 'proj_out']
  common = dict(r=4, target_modules=targets)
  pattern = dict(
    alpha_pattern={'to_q': 9, r'blocks\.1\..*proj': 2},
    rank_pattern={'to_out.0': 3},
  )
  return {
    'patterns': peft.LoraConfig(**common, lora_alpha=6, **pattern),
    'rslora': peft.LoraConfig(**common, lora_alpha=6, use_rslora=True),
    'bias': peft.LoraConfig(**common, lora_alpha=6, lora_bias=True),
    'dora': peft.LoraConfig(**common, lora_alpha=6, use_dora=True),
    'loha': peft.LoHaConfig(**common, alpha=6, alpha_pattern={'to_q': 9}),
    'lokr': peft.LoKrConfig(**common, alpha=6, decompose_both=True),
    'lokr of one product': peft.LoKrConfig(**common, alpha=6),
  }


NAMES = ['patterns', 'rslora', 'bias', 'dora', 'loha', 'lokr']
NAMES += ['lokr of one product']


@pytest.mark.parametrize('name', NAMES)
def test_reads_folders_of_peft(name, base, theirs, tmp_path):
  """adapter_model.safetensors with adapter_config.json beside it."""
  import peft
  import safetensors.torch
  import torch

  config, levels = configs()[name], LEVELS['2.1']
  pipeline = theirs()
  pipeline.transformer.add_adapter(config)
  torch.manual_seed(0)
  for key, parameter in pipeline.transformer.named_parameters():
    if 'magnitude' in key:
      parameter.data *= torch.rand_like(parameter) + 0.5
    elif any(part in key for part in ('lora_', 'hada_', 'lokr_')):
      parameter.data.normal_(0, 0.2)
  state = peft.get_peft_model_state_dict(pipeline.transformer)
  state = {f'base_model.model.{k}': v.contiguous() for k, v in state.items()}
  safetensors.torch.save_file(state, tmp_path / 'adapter_model.safetensors')
  config.save_pretrained(tmp_path)
  expected = run_theirs(pipeline, levels)
  y = run_ours(lora.read(tmp_path, MODEL).merge(base), None, levels)
  unit = max(1.0, np.abs(expected).max())
  assert np.abs(expected - run_ours(base, None, levels)).max() > 0.1
  np.testing.assert_allclose(y / unit, expected / unit, atol=2e-5)


def test_peft_loads_written_folder(base, theirs, tmp_path):
  """What is written with adapter_config.json is what peft reads."""
  import peft
  import safetensors.torch

  adapter, levels = make_adapter(), LEVELS['2.1']
  path = tmp_path / lora.FILES['peft']
  lora.write(path, adapter, CONFIG, MODEL, dialect='peft')
  config = peft.PeftConfig.from_pretrained(tmp_path)
  pipeline = theirs()
  pipeline.transformer.add_adapter(config)
  state = safetensors.torch.load_file(path)
  state = {k.removeprefix('base_model.model.'): v for k, v in state.items()}
  result = peft.set_peft_model_state_dict(pipeline.transformer, state)
  assert not result.unexpected_keys
  y, expected = run_theirs(pipeline, levels), run_ours(base, adapter, levels)
  unit = max(1.0, np.abs(expected).max())
  np.testing.assert_allclose(y / unit, expected / unit, atol=2e-5)
