"""The text encoder against transformers, live, on random small instances."""

import jax
import numpy as np
import pytest

from spacetime.checkpoint.interop import umt5
from spacetime.models import text_encoder

pytestmark = pytest.mark.parity

CONFIG = text_encoder.TextConfig(
  vocab_size=41, d_model=24, d_kv=5, num_heads=3, d_ff=40, num_layers=3
)


def build(kind: str):
  """A transformers model and (TextEncoder, params) of the same weights."""
  import torch
  import transformers

  torch.manual_seed(0)
  config_class, model_class, bias = {
    'umt5': (transformers.UMT5Config, transformers.UMT5EncoderModel, 'layer'),
    't5': (transformers.T5Config, transformers.T5EncoderModel, 'shared'),
  }[kind]
  theirs = model_class(
    config_class(
      vocab_size=CONFIG.vocab_size,
      d_model=CONFIG.d_model,
      d_kv=CONFIG.d_kv,
      num_heads=CONFIG.num_heads,
      d_ff=CONFIG.d_ff,
      num_layers=CONFIG.num_layers,
      feed_forward_proj='gated-gelu',
    )
  ).eval()
  for parameter in theirs.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
  config = text_encoder.TextConfig(**{**vars(CONFIG), 'bias': bias})
  state = {k: v.numpy() for k, v in theirs.state_dict().items()}
  return theirs, text_encoder.TextEncoder(config), state


@pytest.mark.parametrize('kind', ['umt5', 't5'])
@pytest.mark.parametrize('lengths', [(7, 3), (150, 90)])
def test_encode_agrees_with_transformers(kind, lengths):
  import torch

  theirs, ours, state = build(kind)
  params = umt5.params_from_torch_names(state)
  rng = np.random.default_rng(0)
  tokens = rng.integers(1, CONFIG.vocab_size, size=(2, max(lengths) + 4))
  mask = np.arange(tokens.shape[1]) < np.array(lengths)[:, None]
  tokens = np.where(mask, tokens, 0).astype(np.int32)
  with torch.no_grad(), jax.default_matmul_precision('highest'):
    expected = theirs(
      torch.from_numpy(tokens).long(), torch.from_numpy(mask).long()
    ).last_hidden_state.numpy()
    expected = expected * mask[..., None]
    encoded = ours.encode(params, tokens)
  print('difference', np.abs(encoded - expected).max(), np.abs(expected).max())
  np.testing.assert_allclose(encoded, expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize('kind', ['umt5', 't5'])
def test_name_table_is_invertible_and_complete(kind):
  _, ours, state = build(kind)
  params = umt5.params_from_torch_names(state)
  shapes = jax.eval_shape(ours.init, jax.random.key(0))
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
  back = umt5.torch_names_from_params(params)
  state.pop('encoder.embed_tokens.weight')
  assert set(back) == set(state)
  for name, tensor in state.items():
    np.testing.assert_array_equal(back[name], tensor)


@pytest.mark.parametrize('name_in_file', umt5.EMBEDDINGS)
def test_either_name_of_the_embedding_is_read(name_in_file):
  _, _, state = build('umt5')
  embedding = state['shared.weight']
  for name in umt5.EMBEDDINGS:
    if name != name_in_file:
      del state[name]
  params = umt5.params_from_torch_names(state)
  np.testing.assert_array_equal(params['embed']['embedding'], embedding)


def test_position_buckets_agree_with_transformers():
  import torch
  import transformers

  config = transformers.UMT5Config(vocab_size=3, d_model=8, num_layers=1)
  theirs = transformers.UMT5EncoderModel(config).encoder.block[0]
  attention = theirs.layer[0].SelfAttention
  position = torch.arange(600)
  distance = position[None, :] - position[:, None]
  expected = attention._relative_position_bucket(distance).numpy()
  buckets = text_encoder.position_buckets(600, buckets=32, max_distance=128)
  np.testing.assert_array_equal(buckets, expected)
