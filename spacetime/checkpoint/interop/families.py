"""Families of models, recognised by the names of their tensors.

A row of FAMILIES says what a file is. The first row whose marks all occur is
used; rows with a kind are networks that this package reads. Another family is
added by a row here and by modules of names and configs in networks.FORMATS.
"""

import dataclasses
import re
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Family:
  """What a file of weights is.

  Attributes:
    name: description for messages.
    marks: regular expressions, each of which matches in some name.
    kind: network that it is, as in networks.FORMATS; '' if it is not read.
  """

  name: str
  marks: tuple[str, ...]
  kind: str = ''


_LORA = (
  r'\.(lora[_.](A|B|up|down)|hada_w\d_[ab]|lokr_w\d(_[ab])?|dora_scale|diff_b)\b'
  r'|lora_up'
)
FAMILIES = (
  Family('a file of LoRA weights, which belongs to `lora`', (_LORA,)),
  Family('of HunyuanVideo, another family of models', (r'double_blocks\.',)),
  Family(
    'of HunyuanVideo or FLUX, another family of models',
    (r'single_transformer_blocks\.',),
  ),
  Family('of LTX-Video, another family of models', (r'caption_projection\.',)),
  Family(
    'of Stable Diffusion 3, another family of models', (r'joint_blocks\.',)
  ),
  Family(
    'of Stable Diffusion, another family of models',
    (r'(^|\.)(input_blocks|down_blocks\.\d+\.attentions)\.\d.*attn1\.',),
  ),
  Family('of Qwen-Image, another family of models', (r'img_mlp\.', r'txt_mlp')),
  Family(
    'the Animate variant of Wan, which is not supported',
    (r'(^|\.)(motion_encoder|face_adapter|pose_patch_embedding)\.',),
  ),
  Family(
    'the speech-to-video variant of Wan, which is not supported',
    (r'(^|\.)(audio_injector|casual_audio_encoder)\.',),
  ),
  Family(
    'the camera-control variant of Wan, which is not supported',
    (r'(^|\.)control_adapter\.',),
  ),
  Family(
    'a CLIP image encoder',
    (
      r'(^|\.)(embeddings\.class_embedding$|vision_model\.)',
      r'encoder\.layers\.0\.',
    ),
    'image_encoder',
  ),
  Family(
    "a CLIP image encoder with names of open_clip instead of transformers'",
    (r'(^|\.)visual\.', r'(resblocks|transformer)\.0\.'),
  ),
  Family('a CLIP text encoder', (r'text_model\.encoder\.layers\.0\.',)),
  Family(
    'a Wan transformer',
    (r'patch_embedding\.', r'blocks\.0\.(self_attn|attn1)\.'),
    'transformer',
  ),
  Family(
    'a Wan autoencoder',
    (
      r'(^|\.)encoder\.(conv1|conv_in)\.',
      r'(^|\.)(conv2|post_quant_conv)\.weight$',
      r'decoder\.(middle|mid_block)\.',
    ),
    'vae',
  ),
  Family(
    'a text encoder of T5 or UMT5',
    (r'SelfAttention\.q\.weight$|(^|\.)blocks\.0\.attn\.q\.weight$',),
    'text_encoder',
  ),
  Family(
    'a text encoder of another family',
    (r'(embed_tokens|wte)\.weight$', r'layers?\.0\.'),
  ),
)
# Prefixes of the networks in a file that holds all of a model.
COMPONENTS = {
  'transformer': ('model.diffusion_model.',),
  'vae': ('vae.', 'first_stage_model.'),
  'text_encoder': ('text_encoders.', 'cond_stage_model.'),
  'image_encoder': ('clip_vision.',),
}
DESCRIPTIONS = {
  'transformer': 'a transformer',
  'vae': 'an autoencoder',
  'text_encoder': 'a UMT5 text encoder',
  'image_encoder': 'a CLIP image encoder',
}


def identify(names: Iterable[str]) -> Family | None:
  """The first family whose marks occur in the names; None if none does."""
  text = '\n'.join(names)
  for family in FAMILIES:
    if all(re.search(mark, text, re.MULTILINE) for mark in family.marks):
      return family
  return None


def component(kind: str, names: Iterable[str]) -> list[str]:
  """Names of one network: all, unless the file holds several networks."""
  names = list(names)
  by_kind = {
    other: [name for name in names if name.startswith(prefixes)]
    for other, prefixes in COMPONENTS.items()
  }
  if sum(bool(group) for group in by_kind.values()) < 2:
    return names
  return by_kind.get(kind, names)


def components(names: Iterable[str]) -> list[str]:
  """Kinds of the networks in a file that holds several; else []."""
  names = list(names)
  kinds = [
    kind
    for kind, prefixes in COMPONENTS.items()
    if any(name.startswith(prefixes) for name in names)
  ]
  return kinds if len(kinds) > 1 else []


def check(kind: str, names: Iterable[str], where) -> None:
  """Refuses the names of anything but a kind of network.

  Raises:
    ValueError: it says what the file is.
  """
  names = sorted(names)
  family = identify(names)
  if family is not None and family.kind != kind:
    name = next(n for n in names if re.search(family.marks[0], n))
    raise ValueError(
      f'{where} is {family.name}: expected {DESCRIPTIONS[kind]} of Wan 2.1 or '
      f'2.2; it has {name}'
    )
