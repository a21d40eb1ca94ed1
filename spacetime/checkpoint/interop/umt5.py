"""The published T5 and UMT5 encoders: names, layouts and config.json.

A row has the published name, the path of the parameter and the layout. Names in
a block contain its layer `i`; here the layers of a parameter are stacked along
a leading axis.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from spacetime.checkpoint import mismatch
from spacetime.checkpoint.interop import config_json, layouts
from spacetime.models import text_encoder

# Tied weights: a file holds one of the names or both; the first is read.
EMBEDDINGS = ('shared.weight', 'encoder.embed_tokens.weight')

TABLE = (
  ('shared.weight', 'embed.embedding', 'same'),
  ('encoder.final_layer_norm.weight', 'norm_out.scale', 'same'),
)
BLOCK = 'encoder.block.{i}.'
BLOCK_TABLE = (
  ('layer.0.layer_norm.weight', 'norm_attention.scale', 'same'),
  ('layer.0.SelfAttention.q.weight', 'q.kernel', 'linear'),
  ('layer.0.SelfAttention.k.weight', 'k.kernel', 'linear'),
  ('layer.0.SelfAttention.v.weight', 'v.kernel', 'linear'),
  ('layer.0.SelfAttention.o.weight', 'out.kernel', 'linear'),
  ('layer.1.layer_norm.weight', 'norm_mlp.scale', 'same'),
  ('layer.1.DenseReluDense.wi_0.weight', 'mlp_gate.kernel', 'linear'),
  ('layer.1.DenseReluDense.wi_1.weight', 'mlp_in.kernel', 'linear'),
  ('layer.1.DenseReluDense.wo.weight', 'mlp_out.kernel', 'linear'),
)
# UMT5 has this in every block, T5 in block 0 for all of them.
POSITION = 'layer.0.SelfAttention.relative_attention_bias.weight'


# The original repository's names -> transformers'.
ORIGINAL = (
  (r'token_embedding\.', 'shared.'),
  (r'norm\.', 'encoder.final_layer_norm.'),
  *(
    (rf'blocks\.(\d+)\.{there}\.', rf'encoder.block.\1.layer.{here}.')
    for there, here in (
      ('norm1', '0.layer_norm'),
      (r'attn\.(q|k|v|o)', r'0.SelfAttention.\2'),
      (r'pos_embedding\.embedding', '0.SelfAttention.relative_attention_bias'),
      ('norm2', '1.layer_norm'),
      (r'ffn\.gate\.0', '1.DenseReluDense.wi_0'),
      (r'ffn\.fc1', '1.DenseReluDense.wi_1'),
      (r'ffn\.fc2', '1.DenseReluDense.wo'),
    )
  ),
)
PREFIXES = ('text_encoders.umt5xxl.transformer.', 'text_encoder.')
TOKENIZER = 'spiece_model'  # ComfyUI's files contain the tokenizer's bytes


def published_names(names: Iterable[str]) -> dict[str, str]:
  """Maps names in any dialect to those of transformers.

  Tied tensors that a file holds twice are returned once.
  """
  result = {}
  for name in names:
    short = name
    for prefix in PREFIXES:
      short = short.removeprefix(prefix)
    for pattern, target in ORIGINAL:
      match = re.match(pattern, short)
      if match:
        short = match.expand(target) + short[match.end() :]
        break
    result[name] = short
  tied = [name for name in EMBEDDINGS if name in result.values()]
  return {
    name: EMBEDDINGS[0] if short in tied else short
    for name, short in result.items()
    if short not in tied[1:]
  }


def infer_config(
  shapes: Mapping[str, tuple[int, ...]], where
) -> text_encoder.TextConfig:
  """Infers the sizes of a text encoder from its tensors, without a config.

  Args:
    shapes: shapes by published name.
    where: the file, for the message.

  Raises:
    ValueError: missing tensors.
  """
  first = BLOCK.format(i=0)
  names = dict(
    embedding='shared.weight',
    bias=first + POSITION,
    query=f'{first}layer.0.SelfAttention.q.weight',
    gate=f'{first}layer.1.DenseReluDense.wi_0.weight',
  )
  missing = [name for name in names.values() if name not in shapes]
  if missing:
    raise ValueError(
      f'{where} lacks {", ".join(missing)}: expected the tensors of UMT5'
    )
  size = {
    key: mismatch.sizes(shapes, name, axes=2, where=where)
    for key, name in names.items()
  }
  (vocabulary, width), (buckets, heads) = size['embedding'], size['bias']
  layers = layouts.count(r'encoder\.block\.(\d+)\.', shapes)
  biases = sum(name.endswith(POSITION) for name in shapes)
  return text_encoder.TextConfig(
    vocab_size=vocabulary,
    d_model=width,
    d_kv=size['query'][0] // heads,
    num_heads=heads,
    d_ff=size['gate'][0],
    num_layers=layers,
    buckets=buckets,
    bias='layer' if biases == layers else 'shared',
  )


def rows(
  shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[str, str, int | None, str]]:
  """Yields (published name, path, layer or None, layout) of every tensor.

  Args:
    shapes: shapes of the parameters by path.
  """
  for name, path, layout in TABLE:
    yield name, path, None, layout
  if 'position_bias' in shapes:
    yield BLOCK.format(i=0) + POSITION, 'position_bias', None, 'same'
  stacked = [*BLOCK_TABLE]
  if 'blocks.position_bias' in shapes:
    stacked.append((POSITION, 'position_bias', 'same'))
  for i in range(shapes['blocks.q.kernel'][0]):
    for tail, path, layout in stacked:
      yield BLOCK.format(i=i) + tail, 'blocks.' + path, i, layout


def params_from_torch_names(tensors: dict[str, np.ndarray]) -> dict:
  """Converts published tensors by name to the params of `TextEncoder`.

  Raises:
    ValueError: a missing name, or one that is in no row of the table.
  """
  left = dict(tensors)

  def take(name):
    if name not in left:
      raise ValueError(
        f'tensor {name!r} is missing among {len(tensors)}: expected the '
        'encoder of UMT5 or T5 v1.1'
      )
    return left.pop(name)

  embeddings = [name for name in EMBEDDINGS if name in left]
  if embeddings:
    left['shared.weight'] = left.pop(embeddings[0])
    left.pop('encoder.embed_tokens.weight', None)
  params = {}
  for name, path, layout in TABLE:
    layouts.put(params, path.split('.'), layouts.FROM_TORCH[layout](take(name)))
  indices = [re.match(r'encoder\.block\.(\d+)\.', name) for name in left]
  layers = 1 + max((int(m[1]) for m in indices if m), default=0)
  biases = [BLOCK.format(i=i) + POSITION for i in range(layers)]
  rows = list(BLOCK_TABLE)
  if layers == 1 or sum(name in left for name in biases) > 1:
    rows.append((POSITION, 'position_bias', 'same'))
  else:
    params['position_bias'] = take(biases[0])
  for tail, path, layout in rows:
    convert = layouts.FROM_TORCH[layout]
    names = [BLOCK.format(i=i) + tail for i in range(layers)]
    stack = np.stack([convert(take(name)) for name in names])
    layouts.put(params, ['blocks', *path.split('.')], stack)
  if left:
    raise ValueError(
      f'tensor {min(left)!r} and {len(left) - 1} more are unknown; the file is '
      'of another model'
    )
  return params


def torch_names_from_params(params: dict) -> dict[str, np.ndarray]:
  """Converts the params of `TextEncoder` to published tensors by name."""
  arrays = {
    '.'.join(path): np.asarray(array) for path, array in layouts.leaves(params)
  }
  tensors = {}
  for name, path, layout in TABLE:
    tensors[name] = layouts.TO_TORCH[layout](arrays[path])
  for tail, path, layout in (*BLOCK_TABLE, (POSITION, 'position_bias', 'same')):
    convert = layouts.TO_TORCH[layout]
    for i, array in enumerate(arrays.get('blocks.' + path, ())):
      tensors[BLOCK.format(i=i) + tail] = convert(array)
  if 'position_bias' in arrays:
    tensors[BLOCK.format(i=0) + POSITION] = arrays['position_bias']
  return tensors


# -- config.json --------------------------------------------------------------

# transformers' defaults.
CONFIG = dict(
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
# Keys of transformers' configs that do not affect the encoder. Keys of the
# decoder are ignored too; new versions of transformers add more of them.
IGNORED = frozenset(
  'architectures bad_words_ids bos_token_id chunk_size_feed_forward '
  'classifier_dropout dense_act_fn dropout_rate dtype eos_token_id id2label '
  'initializer_factor is_gated_act label2id n_positions output_attentions '
  'output_hidden_states output_past pad_token_id problem_type return_dict '
  'scalable_attention task_specific_params tie_word_embeddings '
  'tokenizer_class torch_dtype torchscript transformers_version use_bfloat16 '
  'use_cache'.split()
)


def read_config(values: dict, where) -> text_encoder.TextConfig:
  """Reads the sizes of a text encoder from its config.json.

  Raises:
    ValueError: not UMT5 or T5 v1.1, or an unknown key.
  """
  kind = values.get('model_type', 'umt5')
  if kind not in ('umt5', 't5'):
    raise ValueError(
      f'{where}: model_type={kind!r}: expected umt5 or t5; choose a folder of '
      'Wan 2.1 or 2.2'
    )
  values = {
    k: v for k, v in values.items() if k not in IGNORED and 'decoder' not in k
  }
  values = config_json.with_defaults(values, CONFIG, where)
  config_json.require(values, where, feed_forward_proj='gated-gelu')
  return text_encoder.TextConfig(
    vocab_size=values['vocab_size'],
    d_model=values['d_model'],
    d_kv=values['d_kv'],
    num_heads=values['num_heads'],
    d_ff=values['d_ff'],
    num_layers=values['num_layers'],
    eps=values['layer_norm_epsilon'],
    buckets=values['relative_attention_num_buckets'],
    max_distance=values['relative_attention_max_distance'],
    bias='layer' if kind == 'umt5' else 'shared',
  )


def write_config(config: text_encoder.TextConfig) -> dict:
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
