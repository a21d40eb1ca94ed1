"""Writes golden.npz: what diffusers and transformers make of small weights.

  pip install torch diffusers transformers
  python tests/interop/make_golden.py

Run it again only if a case in golden_cases.py changes; then say so in the
commit, with the versions printed.
"""

import pathlib
import sys

import numpy as np

FILE = pathlib.Path(__file__).with_name('golden.npz')
sys.path.insert(0, str(FILE.parents[2]))

import diffusers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from tests.helpers import seeded_weights  # noqa: E402
from tests.parity import golden_cases, published_solvers  # noqa: E402


def load(model) -> None:
  """Fills a torch model with seeded weights."""
  state = model.state_dict()
  state.pop('encoder.embed_tokens.weight', None)
  drawn = seeded_weights.weights({k: tuple(v.shape) for k, v in state.items()})
  drawn = {k: torch.from_numpy(v) for k, v in drawn.items()}
  if 'shared.weight' in drawn:
    drawn['encoder.embed_tokens.weight'] = drawn['shared.weight']
  model.load_state_dict(drawn)


def autoencoder_numbers(name: str) -> dict[str, np.ndarray]:
  """Posterior and video of one form."""
  config = golden_cases.AUTOENCODERS[name]
  side = config.patch_size
  model = diffusers.AutoencoderKLWan(
    base_dim=config.base_dim,
    decoder_base_dim=config.decoder_base_dim or None,
    z_dim=config.z_dim,
    dim_mult=list(config.dim_mult),
    num_res_blocks=config.num_res_blocks,
    temperal_downsample=list(config.temporal_downsample),
    is_residual=config.is_residual,
    in_channels=3 * side**2,
    out_channels=3 * side**2,
    patch_size=side if side > 1 else None,
    scale_factor_spatial=config.stride[1],
    scale_factor_temporal=config.stride[0],
  ).eval()
  load(model)
  video = np.moveaxis(golden_cases.video(config), -1, 1)
  z = np.moveaxis(golden_cases.latents(config), -1, 1)
  posterior = model.encode(torch.from_numpy(video.copy())).latent_dist
  decoded = model.decode(torch.from_numpy(z.copy())).sample
  return {
    f'{name}_mean': np.moveaxis(posterior.mean.numpy(), 1, -1),
    f'{name}_logvar': np.moveaxis(posterior.logvar.numpy(), 1, -1),
    f'{name}_video': np.moveaxis(decoded.numpy(), 1, -1),
  }


def text_numbers() -> dict[str, np.ndarray]:
  """Features of two prompts, rows of padding zero."""
  config = golden_cases.TEXT
  model = transformers.UMT5EncoderModel(
    transformers.UMT5Config(
      vocab_size=config.vocab_size,
      d_model=config.d_model,
      d_kv=config.d_kv,
      num_heads=config.num_heads,
      d_ff=config.d_ff,
      num_layers=config.num_layers,
      feed_forward_proj='gated-gelu',
    )
  ).eval()
  load(model)
  tokens = torch.tensor(golden_cases.TOKENS)
  mask = (tokens != 0).long()
  features = model(tokens, mask).last_hidden_state * mask[..., None]
  return {'text': features.numpy()}


def transformer_numbers() -> dict[str, np.ndarray]:
  """Velocity of two clips, a level for each frame."""
  config = golden_cases.TRANSFORMER
  model = diffusers.WanTransformer3DModel(
    patch_size=config.patch,
    num_attention_heads=config.heads,
    attention_head_dim=config.width // config.heads,
    in_channels=config.channels,
    out_channels=config.channels,
    text_dim=config.text_width,
    freq_dim=config.frequencies,
    ffn_dim=config.mlp,
    num_layers=config.layers,
  ).eval()
  load(model)
  z, text = golden_cases.transformer_inputs()
  tokens = z.shape[2] * z.shape[3] // 4
  timesteps = torch.tensor(golden_cases.TIMESTEPS)
  velocity = model(
    torch.from_numpy(np.moveaxis(z, -1, 1).copy()),
    timesteps.repeat_interleave(tokens, 1),
    torch.from_numpy(text),
    return_dict=False,
  )[0]
  return {'transformer': np.moveaxis(velocity.numpy(), 1, -1)}


def solver_numbers() -> dict[str, np.ndarray]:
  """Latents after the last step of each schedule."""
  numbers = {}
  for name, grid in golden_cases.SOLVERS.items():
    for steps, shift in golden_cases.SCHEDULES:
      numbers[f'{name}_{steps}'] = published_solvers.trace(
        grid,
        golden_cases.velocity,
        golden_cases.noise(),
        steps=steps,
        shift=shift,
      )[-1]
  return numbers


if __name__ == '__main__':
  with torch.no_grad():
    numbers = text_numbers() | transformer_numbers() | solver_numbers()
    for form in golden_cases.AUTOENCODERS:
      numbers |= autoencoder_numbers(form)
  np.savez_compressed(FILE, **numbers)
  print('torch', torch.__version__, 'diffusers', diffusers.__version__)
  print('transformers', transformers.__version__)
  print(FILE.name, FILE.stat().st_size, 'bytes')
