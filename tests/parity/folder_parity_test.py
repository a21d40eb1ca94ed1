"""Whole folders against diffusers and transformers, live and in both ways."""

import dataclasses
import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime import sharding
from spacetime.checkpoint import convert
from spacetime.checkpoint.interop import folders, networks, parts
from spacetime.diffusion import guidance, schedules, solvers
from spacetime.models import text_encoder
from spacetime.models.autoencoder import wan
from spacetime.models.transformer import dit
from tests.helpers import published_folder

pytestmark = pytest.mark.parity

FORMS = {
  'wan2.1': dict(z_dim=4, base_dim=4),
  'wan2.2': dict(
    z_dim=4,
    base_dim=4,
    decoder_base_dim=6,
    is_residual=True,
    patch_size=2,
    in_channels=12,
    out_channels=12,
    scale_factor_spatial=16,
  ),
}
TEXT = dict(vocab_size=97, d_model=24, d_kv=5, num_heads=3, d_ff=40)


def pipeline(form: str):
  """A random small WanPipeline of diffusers."""
  import diffusers
  import tokenizers
  import torch
  import transformers

  torch.manual_seed(0)
  sizes = FORMS[form]
  rng = np.random.default_rng(0)
  vae = diffusers.AutoencoderKLWan(
    **sizes,
    dim_mult=[1, 2, 4, 4],
    num_res_blocks=1,
    temperal_downsample=[False, True, True],
    latents_mean=rng.normal(size=4).tolist(),
    latents_std=rng.uniform(0.5, 2, size=4).tolist(),
  )
  transformer = diffusers.WanTransformer3DModel(
    num_attention_heads=2,
    attention_head_dim=12,
    in_channels=4,
    out_channels=4,
    text_dim=TEXT['d_model'],
    freq_dim=32,
    ffn_dim=40,
    num_layers=2,
  )
  encoder = transformers.UMT5EncoderModel(
    transformers.UMT5Config(
      **TEXT, num_layers=2, feed_forward_proj='gated-gelu'
    )
  )
  special = [(piece, 0.0) for piece in ('<pad>', '</s>', '<unk>')]
  letters = [(letter, -1.0) for letter in string.ascii_lowercase]
  pieces = tokenizers.Tokenizer(
    tokenizers.models.Unigram([*special, *letters], unk_id=2)
  )
  return diffusers.WanPipeline(
    tokenizer=transformers.PreTrainedTokenizerFast(
      tokenizer_object=pieces, eos_token='</s>', pad_token='<pad>'
    ),
    text_encoder=encoder.eval(),
    vae=vae.eval(),
    scheduler=diffusers.UniPCMultistepScheduler(
      prediction_type='flow_prediction', use_flow_sigmas=True, flow_shift=5.0
    ),
    transformer=transformer.eval(),
    expand_timesteps=form == 'wan2.2',
  )


def load(folder):
  """An opened folder's configs and parameters, by root."""
  mesh = sharding.single_device_mesh()
  opened = folders.open_pipeline(folder)
  return {
    root: (part.config, part.load(mesh)) for root, part in opened.parts.items()
  }


def check_outputs(loaded, theirs) -> None:
  """The three networks of a folder read here against torch's."""
  import torch

  rng = np.random.default_rng(1)
  config, params = loaded['dit']
  z = rng.normal(size=(2, 3, 4, 6, config.channels)).astype(np.float32)
  words = rng.normal(size=(2, 7, config.text_width)).astype(np.float32)
  tokens = rng.integers(2, TEXT['vocab_size'], size=(2, 9)).astype(np.int32)
  tokens[1, 5:] = 0
  mask = tokens != 0
  autoencoder = wan.WanAutoencoder(loaded['autoencoder'][0])
  _, height, width = autoencoder.stride
  size = (1, 5, height, 2 * width, 3)
  video = rng.uniform(-1, 1, size=size).astype(np.float32)
  with torch.no_grad(), jax.default_matmul_precision('highest'):
    expected = theirs.transformer(
      torch_of(z), torch.tensor([999, 251]), torch.from_numpy(words)
    ).sample
    result = jax.jit(dit.DiT(config).apply)(
      {'params': params}, z, np.float32([[0.999], [0.251]]), words
    )
    close(result, expected, 2e-5)
    config, params = loaded['text']
    expected = theirs.text_encoder(
      torch.from_numpy(tokens).long(), torch.from_numpy(mask).long()
    ).last_hidden_state.numpy()
    result = jax.jit(text_encoder.TextEncoder(config).encode)(params, tokens)
    np.testing.assert_allclose(result, expected * mask[..., None], atol=5e-6)
    params = loaded['autoencoder'][1]
    posterior = jax.jit(autoencoder.posterior)(params, video)
    expected = theirs.vae.encode(torch_of(video)).latent_dist.mean
    close(posterior.mean_Bfhwc, expected, 5e-6)
    decoded = jax.jit(autoencoder.decode)(
      params, autoencoder.normalise(numpy_of(expected))
    )
    close(decoded, theirs.vae.decode(expected).sample, 5e-6)


@pytest.mark.parametrize('form', list(FORMS))
def test_reads_and_writes_diffusers_folder(form, tmp_path):
  import diffusers
  import torch

  theirs = pipeline(form)
  source, ours = tmp_path / 'theirs', tmp_path / 'ours'
  theirs.save_pretrained(source, max_shard_size='20KB')
  assert list((source / 'transformer').glob('*.index.json'))
  loaded = load(source)
  check_outputs(loaded, theirs)
  convert.to_weights(folders.open_pipeline(source), ours)
  back = tmp_path / 'back'
  convert.to_published(ours, back, limit=30_000)
  for part in ('transformer', 'vae', 'text_encoder'):
    result = published_folder.tensors(back / part)
    expected = published_folder.tensors(source / part)
    assert result.keys() == expected.keys()
    for name, tensor in expected.items():
      assert result[name].tobytes() == tensor.tobytes(), name
  again = diffusers.WanPipeline.from_pretrained(back)
  assert again.scheduler.config.flow_shift == 5.0
  assert again.config.expand_timesteps == (form == 'wan2.2')
  assert again.tokenizer('a').input_ids == theirs.tokenizer('a').input_ids
  for part in ('transformer', 'vae', 'text_encoder'):
    state = getattr(again, part).state_dict()
    for name, tensor in getattr(theirs, part).state_dict().items():
      assert torch.equal(state[name], tensor), name
  check_outputs(loaded, again)


@pytest.mark.parametrize('form', list(FORMS))
def test_pipeline_agrees_from_prompt_to_frames(form, tmp_path):
  import torch

  theirs, steps, scale = pipeline(form), 4, 5.0
  theirs.save_pretrained(tmp_path)
  loaded = load(tmp_path)
  autoencoder = wan.WanAutoencoder(loaded['autoencoder'][0])
  _, height, width = autoencoder.stride
  rng = np.random.default_rng(2)
  noise = rng.normal(size=(1, 2, 2, 4, autoencoder.z_dim)).astype(np.float32)
  theirs.set_progress_bar_config(disable=True)
  expected = theirs(
    prompt='aaa',
    negative_prompt='a',
    height=2 * height,
    width=4 * width,
    num_frames=5,
    num_inference_steps=steps,
    guidance_scale=scale,
    latents=torch_of(noise),
    output_type='np',
  ).frames
  # With text first, without second, as guidance has it.
  tokens = theirs.tokenizer(
    ['aaa', 'a'], padding='max_length', max_length=512, return_tensors='np'
  ).input_ids
  schedule = schedules.wan_unipc_schedule(steps, shift=5.0)
  (model, params), (words, text_params) = loaded['dit'], loaded['text']

  def sample(params, text_params, autoencoder_params):
    text_BSY = text_encoder.TextEncoder(words).encode(text_params, tokens)

    def pair(z_Bfhwc, t):
      t_B1 = np.ones((2, 1), np.float32) * t
      return dit.DiT(model).apply({'params': params}, z_Bfhwc, t_B1, text_BSY)

    def guided(z_Bfhwc, t, cache):
      branches = jnp.split(pair(jnp.concatenate([z_Bfhwc] * 2), t), 2)
      return guidance.classifier_free(*branches, scale), cache

    z_Bfhwc = solvers.solve(guided, noise, schedule, solver=solvers.unipc)
    return autoencoder.decode(autoencoder_params, z_Bfhwc)

  with torch.no_grad(), jax.default_matmul_precision('highest'):
    video = jax.jit(sample)(params, text_params, loaded['autoencoder'][1])
  result = np.clip(np.asarray(video) * 0.5 + 0.5, 0, 1)
  assert result.shape == expected.shape
  print('difference', np.abs(result - expected).max(), expected.std())
  assert expected.std() > 0.01
  np.testing.assert_allclose(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize('vae', ['wan2.1', 'wan2.2'])
def test_diffusers_loads_written_folder(vae, tmp_path):
  """Nothing of the folder came from diffusers."""
  import diffusers
  import transformers

  config = published_folder.VAE if vae == 'wan2.1' else published_folder.VAE22
  source = published_folder.write(tmp_path / 'source', vae=config)
  classes = {
    'transformer': diffusers.WanTransformer3DModel,
    'vae': diffusers.AutoencoderKLWan,
    'text_encoder': transformers.UMT5EncoderModel,
  }
  theirs = {
    name: kind.from_pretrained(source / name).eval()
    for name, kind in classes.items()
  }
  check_sizes(theirs, source)
  holder = dataclasses.make_dataclass('Theirs', theirs)(**theirs)
  check_outputs(load(source), holder)


def check_sizes(theirs, source) -> None:
  for kind, part in theirs.items():
    opened = parts.open_part(source, kind)
    shapes = networks.of(opened.config).published_shapes()
    state = {k: tuple(v.shape) for k, v in part.state_dict().items()}
    state.pop('encoder.embed_tokens.weight', None)
    assert state == shapes


def torch_of(x_BFHWC):
  import torch

  return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x_BFHWC, -1, 1)))


def numpy_of(x_BCFHW):
  return np.moveaxis(x_BCFHW.numpy(), 1, -1)


def close(result, expected, atol) -> None:
  expected = numpy_of(expected)
  assert result.shape == expected.shape
  print('difference', np.abs(result - expected).max(), np.abs(expected).max())
  np.testing.assert_allclose(result, expected, atol=atol, rtol=0)
