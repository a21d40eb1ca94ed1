"""Names of Wan's own repository for tensors with diffusers' names.

Independent of the tables in checkpoint/interop, which go the other way.
"""

import re

T5 = {
  'layer.0.layer_norm': 'norm1',
  'layer.1.layer_norm': 'norm2',
  'layer.0.SelfAttention.relative_attention_bias': 'pos_embedding.embedding',
  'layer.1.DenseReluDense.wi_0': 'ffn.gate.0',
  'layer.1.DenseReluDense.wi_1': 'ffn.fc1',
  'layer.1.DenseReluDense.wo': 'ffn.fc2',
}


def umt5(name: str) -> str:
  """The name of a text encoder's tensor."""
  if name == 'shared.weight':
    return 'token_embedding.weight'
  if name == 'encoder.final_layer_norm.weight':
    return 'norm.weight'
  layer, module = re.fullmatch(
    r'encoder\.block\.(\d+)\.(.*)\.weight', name
  ).groups()
  short = T5.get(module, module.replace('layer.0.SelfAttention.', 'attn.'))
  return f'blocks.{layer}.{short}.weight'


def vae(name: str, *, blocks: int, residual: bool) -> str:
  """The name of an autoencoder's tensor.

  Args:
    name: diffusers' name.
    blocks: residual blocks of the encoder's levels.
    residual: whether it is of Wan 2.2.
  """
  if name.startswith(('quant_conv', 'post_quant_conv')):
    name = re.sub('^quant_conv', 'conv1', name)
    return re.sub('^post_quant_conv', 'conv2', name)
  if 'resnets' in name or (not residual and 'down_blocks' in name):
    for there, index in (
      ('norm1', 0),
      ('conv1', 2),
      ('norm2', 3),
      ('conv2', 6),
    ):
      name = re.sub(rf'(?<=\d)\.{there}\.', f'.residual.{index}.', name)
  for there, here in (
    ('.conv_in.', '.conv1.'),
    ('.norm_out.', '.head.0.'),
    ('.conv_out.', '.head.2.'),
    ('mid_block.resnets.0', 'middle.0'),
    ('mid_block.attentions.0', 'middle.1'),
    ('mid_block.resnets.1', 'middle.2'),
    ('conv_shortcut', 'shortcut'),
  ):
    name = name.replace(there, here)
  if residual:
    for side, last in (('down', blocks), ('up', blocks + 1)):
      nested = rf'{side}samples.\1.{side}samples'
      name = re.sub(
        rf'{side}_blocks\.(\d+)\.resnets\.(\d+)', rf'{nested}.\2', name
      )
      name = re.sub(
        rf'{side}_blocks\.(\d+)\.{side}sampler\.', rf'{nested}.{last}.', name
      )
    return name
  name = re.sub(r'down_blocks\.(\d+)', r'downsamples.\1', name)
  period = blocks + 2

  def flat(match):
    last = match[2] == 'upsamplers'
    index = blocks + 1 if last else int(match[3])
    return f'upsamples.{int(match[1]) * period + index}'

  return re.sub(r'up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)', flat, name)
