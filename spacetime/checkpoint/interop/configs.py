"""The published networks' config.json and the sizes here, both ways."""

import difflib
import pathlib

from spacetime.models import text_encoder as text_encoder_lib
from spacetime.models.autoencoder import wan
from spacetime.models.transformer import dit

CLASSES = {
  'transformer': 'WanTransformer3DModel',
  'vae': 'AutoencoderKLWan',
  'text_encoder': 'UMT5EncoderModel',
}
# What a key is where a config.json does not have it: diffusers' own defaults.
TRANSFORMER = dict(
  patch_size=(1, 2, 2),
  num_attention_heads=40,
  attention_head_dim=128,
  in_channels=16,
  out_channels=16,
  text_dim=4096,
  freq_dim=256,
  ffn_dim=13824,
  num_layers=40,
  cross_attn_norm=True,
  qk_norm='rms_norm_across_heads',
  eps=1e-6,
  image_dim=None,
  added_kv_proj_dim=None,
  rope_max_seq_len=1024,
  pos_embed_seq_len=None,
)
# The same of the original repository's WanModel.
ORIGINAL = dict(
  patch_size=(1, 2, 2),
  model_type='t2v',
  text_len=512,
  in_dim=16,
  dim=2048,
  ffn_dim=8192,
  freq_dim=256,
  text_dim=4096,
  out_dim=16,
  num_heads=16,
  num_layers=32,
  window_size=(-1, -1),
  qk_norm=True,
  cross_attn_norm=True,
  eps=1e-6,
)
AUTOENCODER = dict(
  base_dim=96,
  decoder_base_dim=None,
  z_dim=16,
  dim_mult=(1, 2, 4, 4),
  num_res_blocks=2,
  attn_scales=(),
  temperal_downsample=(False, True, True),
  dropout=0.0,
  latents_mean=wan.WAN21_MEAN,
  latents_std=wan.WAN21_STD,
  is_residual=False,
  in_channels=3,
  out_channels=3,
  patch_size=None,
  scale_factor_temporal=4,
  scale_factor_spatial=8,
)
TEXT = dict(
  model_type='umt5',
  vocab_size=256384,
  d_model=4096,
  d_kv=64,
  d_ff=10240,
  num_layers=24,
  num_heads=64,
  relative_attention_num_buckets=32,
  relative_attention_max_distance=128,
  layer_norm_epsilon=1e-6,
  feed_forward_proj='gated-gelu',
)
# Keys of transformers' configs that say nothing about the encoder; nor does any
# of the decoder, and new ones of those come with its versions.
TEXT_IGNORED = frozenset(
  'architectures bad_words_ids bos_token_id chunk_size_feed_forward '
  'classifier_dropout dense_act_fn dropout_rate dtype eos_token_id id2label '
  'initializer_factor is_gated_act label2id n_positions output_attentions '
  'output_hidden_states output_past pad_token_id problem_type return_dict '
  'scalable_attention task_specific_params tie_word_embeddings '
  'tokenizer_class torch_dtype torchscript transformers_version use_bfloat16 '
  'use_cache'.split()
)
# Words in the class names of other families.
FAMILIES = {
  'LTX': 'LTX-Video',
  'Hunyuan': 'HunyuanVideo',
  'CogVideo': 'CogVideoX',
  'Mochi': 'Mochi',
  'Cosmos': 'Cosmos',
  'Allegro': 'Allegro',
  'SkyReels': 'SkyReels',
  'Flux': 'FLUX',
  'StableDiffusion': 'Stable Diffusion',
  'StableVideo': 'Stable Video Diffusion',
  'Qwen': 'Qwen-Image',
}
WAN_VARIANTS = {
  'ImageToVideo': 'image-to-video',
  'VideoToVideo': 'video-to-video',
  'VACE': 'VACE',
  'Animate': 'Animate',
  'S2V': 'speech-to-video',
}


def check_class(found: str | None, expected: tuple[str, ...], where) -> None:
  """Refuses another class than those expected; None may be any.

  Raises:
    ValueError: it tells which family or variant the class is of.
  """
  if found is None or found in expected:
    return
  told = 'a class that is not known here'
  for word, family in FAMILIES.items():
    if word in found:
      told = f'of {family}, another family of models'
  for word, variant in WAN_VARIANTS.items():
    if word in found and 'Wan' in found:
      told = f'the {variant} variant of Wan'
  raise ValueError(
    f'{where}: {found} is {told}: expected {" or ".join(expected)}; choose a '
    'text-to-video folder of Wan 2.1 or 2.2'
  )


def transformer(values: dict, where: pathlib.Path | str) -> dit.DiTConfig:
  """Sizes of a transformer by its config.json, diffusers' or the original.

  Raises:
    ValueError: another family, a variant, or a key that is not known.
  """
  name = values.get('_class_name')
  if name == 'WanModel':
    return _original_transformer(values, where)
  check_class(name, (CLASSES['transformer'], 'WanModel'), where)
  found = _known(values, TRANSFORMER, where)
  for key in ('image_dim', 'added_kv_proj_dim', 'pos_embed_seq_len'):
    if found[key] is not None:
      _refuse_image(where, f'{key}={found[key]}')
  if found['in_channels'] != found['out_channels']:
    told = f'in_channels={found["in_channels"]}, not out_channels'
    _refuse_image(where, f'{told}={found["out_channels"]}')
  _demand(found, where, qk_norm='rms_norm_across_heads', cross_attn_norm=True)
  return dit.DiTConfig(
    channels=found['in_channels'],
    patch=tuple(found['patch_size']),
    width=found['num_attention_heads'] * found['attention_head_dim'],
    heads=found['num_attention_heads'],
    layers=found['num_layers'],
    mlp=found['ffn_dim'],
    text_width=found['text_dim'],
    frequencies=found['freq_dim'],
    eps=found['eps'],
  )


def _original_transformer(values, where) -> dit.DiTConfig:
  found = _known(values, ORIGINAL, where)
  if found['model_type'] not in ('t2v', 'ti2v'):
    _refuse_image(where, f'model_type={found["model_type"]!r}')
  if found['in_dim'] != found['out_dim']:
    _refuse_image(
      where, f'in_dim={found["in_dim"]}, not out_dim={found["out_dim"]}'
    )
  _demand(found, where, qk_norm=True, cross_attn_norm=True)
  return dit.DiTConfig(
    channels=found['in_dim'],
    patch=tuple(found['patch_size']),
    width=found['dim'],
    heads=found['num_heads'],
    layers=found['num_layers'],
    mlp=found['ffn_dim'],
    text_width=found['text_dim'],
    frequencies=found['freq_dim'],
    eps=found['eps'],
  )


def vae(values: dict, where) -> wan.WanAutoencoderConfig:
  """Sizes of an autoencoder by its config.json.

  Raises:
    ValueError: another family, or a form that there is not here.
  """
  check_class(values.get('_class_name'), (CLASSES['vae'],), where)
  found = _known(values, AUTOENCODER, where)
  patch = found['patch_size'] or 1
  config = wan.WanAutoencoderConfig(
    base_dim=found['base_dim'],
    decoder_base_dim=found['decoder_base_dim'] or 0,
    z_dim=found['z_dim'],
    dim_mult=tuple(found['dim_mult']),
    num_res_blocks=found['num_res_blocks'],
    temporal_downsample=tuple(found['temperal_downsample']),
    is_residual=found['is_residual'],
    patch_size=patch,
    latents_mean=tuple(found['latents_mean']),
    latents_std=tuple(found['latents_std']),
  )
  channels = 3 * patch**2
  _demand(found, where, in_channels=channels, out_channels=channels)
  _demand(found, where, attn_scales=())
  return config


def text_encoder(values: dict, where) -> text_encoder_lib.TextConfig:
  """Sizes of a text encoder by its config.json.

  Raises:
    ValueError: not UMT5 or T5 v1.1, or a key that is not known.
  """
  kind = values.get('model_type', 'umt5')
  if kind not in ('umt5', 't5'):
    raise ValueError(
      f'{where}: model_type={kind!r}: expected umt5 or t5; choose a folder of '
      'Wan 2.1 or 2.2'
    )
  values = {
    k: v
    for k, v in values.items()
    if k not in TEXT_IGNORED and 'decoder' not in k
  }
  found = _known(values, TEXT, where)
  _demand(found, where, feed_forward_proj='gated-gelu')
  return text_encoder_lib.TextConfig(
    vocab_size=found['vocab_size'],
    d_model=found['d_model'],
    d_kv=found['d_kv'],
    num_heads=found['num_heads'],
    d_ff=found['d_ff'],
    num_layers=found['num_layers'],
    eps=found['layer_norm_epsilon'],
    buckets=found['relative_attention_num_buckets'],
    max_distance=found['relative_attention_max_distance'],
    bias='layer' if kind == 'umt5' else 'shared',
  )


READ = {'transformer': transformer, 'vae': vae, 'text_encoder': text_encoder}


def _known(values: dict, defaults: dict, where) -> dict:
  """The values over the defaults; lists become tuples."""
  told = []
  for key in sorted(values.keys() - defaults.keys()):
    if not key.startswith('_'):
      near = difflib.get_close_matches(key, defaults, n=1)
      told.append(f'{key}, like {near[0]}' if near else key)
  if told:
    raise ValueError(
      f'{where}: unknown keys {"; ".join(told)}: expected those of '
      f'{sorted(defaults)}; the weights are of a model that is not known here'
    )
  found = {k: v for k, v in values.items() if not k.startswith('_')}
  return defaults | {
    k: tuple(v) if isinstance(v, list) else v for k, v in found.items()
  }


def _demand(found: dict, where, **wanted) -> None:
  for key, value in wanted.items():
    if found[key] != value:
      raise ValueError(
        f'{where}: {key}={found[key]!r}: expected {value!r}, as in every '
        'text-to-video model of Wan 2.1 and 2.2'
      )


def _refuse_image(where, told: str) -> None:
  raise ValueError(
    f'{where}: {told} is of an image-to-video variant of Wan: expected a '
    'text-to-video transformer; choose a T2V or TI2V folder'
  )
