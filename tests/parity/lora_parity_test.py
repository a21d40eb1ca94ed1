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
@pytest.mark.parametrize('dialect', lora.DIALECTS)
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
