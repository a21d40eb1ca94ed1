"""What the golden numbers are of: sizes and inputs, for torch and for JAX."""

from seeded_weights import draw

from spacetime.models import autoencoder, text

AUTOENCODERS = {
  'wan21': autoencoder.AutoencoderConfig(
    base_dim=4,
    z_dim=3,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temporal_downsample=(False, True),
    latents_mean=(0.5, -0.25, 1.0),
    latents_std=(2.0, 0.5, 1.5),
  ),
  'wan22': autoencoder.AutoencoderConfig(
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
TEXT = text.TextConfig(
  vocab_size=19, d_model=12, d_kv=4, num_heads=2, d_ff=20, num_layers=3
)
TOKENS = ((3, 7, 7, 11, 2, 18, 5, 4, 12, 1, 0, 0), (9, 1, *[0] * 10))


def video(config: autoencoder.AutoencoderConfig):
  """Two chunks after the first, height unlike width."""
  time, height, width = config.stride
  size = 1, 1 + 2 * time, 2 * height, width, 3
  return draw('video', size, 0.5).clip(-1, 1)


def latents(config: autoencoder.AutoencoderConfig):
  """Un-normalised latents of three frames."""
  return draw('latents', (1, 3, 2, 1, config.z_dim))
