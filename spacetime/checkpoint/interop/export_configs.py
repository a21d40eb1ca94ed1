"""The sizes here as the published networks' config.json."""

from spacetime.checkpoint.interop import configs
from spacetime.models import text_encoder as text_encoder_lib
from spacetime.models.autoencoder import wan
from spacetime.models.transformer import dit


def transformer(config: dit.DiTConfig) -> dict:
  """The config.json of a transformer.

  Raises:
    ValueError: the published code has no such transformer.
  """
  if config.theta != 10000:
    raise ValueError(
      f'model.theta={config.theta}: expected 10000, which the published code '
      'has for good; a model with other wavelengths cannot be written for it'
    )
  if config.pos_embed_frequencies:
    raise ValueError(
      f'model.pos_embed_frequencies={config.pos_embed_frequencies}: expected '
      '0; the published code has no absolute position embedding, so a model '
      'with one cannot be written for it'
    )
  return configs.TRANSFORMER | dict(
    _class_name=configs.CLASSES['transformer'],
    patch_size=config.patch,
    num_attention_heads=config.heads,
    attention_head_dim=config.width // config.heads,
    in_channels=config.channels,
    out_channels=config.channels,
    text_dim=config.text_width,
    freq_dim=config.frequencies,
    ffn_dim=config.mlp,
    num_layers=config.layers,
    eps=config.eps,
  )


def vae(config: wan.WanAutoencoderConfig) -> dict:
  """The config.json of an autoencoder."""
  patch = config.patch_size
  time, space, _ = config.stride
  return configs.AUTOENCODER | dict(
    _class_name=configs.CLASSES['vae'],
    base_dim=config.base_dim,
    decoder_base_dim=config.decoder_base_dim or None,
    z_dim=config.z_dim,
    dim_mult=config.dim_mult,
    num_res_blocks=config.num_res_blocks,
    temperal_downsample=config.temporal_downsample,
    latents_mean=config.latents_mean or (0.0,) * config.z_dim,
    latents_std=config.latents_std or (1.0,) * config.z_dim,
    is_residual=config.is_residual,
    in_channels=3 * patch**2,
    out_channels=3 * patch**2,
    patch_size=patch if patch > 1 else None,
    scale_factor_temporal=time,
    scale_factor_spatial=space,
  )


def text_encoder(config: text_encoder_lib.TextConfig) -> dict:
  """The config.json of a text encoder."""
  kind = 'umt5' if config.bias == 'layer' else 't5'
  return dict(
    architectures=['UMT5EncoderModel' if kind == 'umt5' else 'T5EncoderModel'],
    model_type=kind,
    vocab_size=config.vocab_size,
    d_model=config.d_model,
    d_kv=config.d_kv,
    d_ff=config.d_ff,
    num_layers=config.num_layers,
    num_heads=config.num_heads,
    relative_attention_num_buckets=config.buckets,
    relative_attention_max_distance=config.max_distance,
    layer_norm_epsilon=config.eps,
    feed_forward_proj='gated-gelu',
    is_encoder_decoder=True,
    tie_word_embeddings=True,
    pad_token_id=0,
    eos_token_id=1,
    decoder_start_token_id=0,
  )


WRITE = {'transformer': transformer, 'vae': vae, 'text_encoder': text_encoder}
