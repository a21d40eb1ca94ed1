"""What the golden numbers are of: sizes and inputs, for torch and for JAX."""

import numpy as np

from spacetime.models import text_encoder
from spacetime.models.autoencoder import wan
from spacetime.models.transformer import dit
from tests.helpers.seeded_weights import draw

AUTOENCODERS = {
  'wan21': wan.WanAutoencoderConfig(
    base_dim=4,
    z_dim=3,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temporal_downsample=(False, True),
    latents_mean=(0.5, -0.25, 1.0),
    latents_std=(2.0, 0.5, 1.5),
  ),
  'wan22': wan.WanAutoencoderConfig(
    base_dim=4,
    decoder_base_dim=6,
    z_dim=3,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temporal_downsample=(True, True),
    is_residual=True,
    patch_size=2,
  ),
}
TEXT = text_encoder.TextConfig(
  vocab_size=19, d_model=12, d_kv=4, num_heads=2, d_ff=20, num_layers=3
)
TOKENS = ((3, 7, 7, 11, 2, 18, 5, 4, 12, 1, 0, 0), (9, 1, *[0] * 10))
TRANSFORMER = dit.DiTConfig(
  channels=3,
  patch=(1, 2, 2),
  width=48,
  heads=3,
  layers=2,
  mlp=20,
  text_width=7,
  frequencies=16,
)
# Levels of two clips of three frames, in thousandths; the first has its first
# conditioning frame.
TIMESTEPS = ((0, 511, 511), (999, 875, 127))

# A solver and the published schedule that it is compared on.
SOLVERS = {
  'unipc': 'wan_unipc_schedule',
  'dpm': 'flow_dpm_schedule',
  'euler': 'flow_match_euler_schedule',
}
SCHEDULES = ((50, 3.0), (20, 5.0), (10, 8.0), (2, 3.0))


def transformer_inputs():
  """Latents and text of two clips."""
  size = 2, len(TIMESTEPS[0]), 4, 6, TRANSFORMER.channels
  return draw('z', size), draw('text', (2, 5, TRANSFORMER.text_width))


def noise():
  """Where the solvers start: of a size at which float32 tells 1e-6."""
  return draw('noise', (2, 3, 2, 1, 2), 0.5)


def velocity(z_Bfhwc, t):
  """Away from a sample that is linear in the latents and in the level.

  Unlike in every entry. As with a network that has learnt something, paths
  draw together on their way to the data, and rounding fades with them.
  """
  shape = noise().shape
  gain, drift = draw('gain', shape, 0.3), draw('drift', shape, 0.5)
  sample = gain * z_Bfhwc + (2 * t - 1) * drift
  return (z_Bfhwc - sample) / t.clip(np.float32(0.1))


def video(config: wan.WanAutoencoderConfig):
  """Two chunks after the first, height unlike width."""
  time, height, width = config.stride
  size = 1, 1 + 2 * time, 2 * height, width, 3
  return draw('video', size, 0.5).clip(-1, 1)


def latents(config: wan.WanAutoencoderConfig):
  """Un-normalised latents of three frames."""
  return draw('latents', (1, 3, 2, 1, config.z_dim))
