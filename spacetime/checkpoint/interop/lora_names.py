"""Names of tensors in LoRA files: every dialect, read and written.

A name has up to five parts:

  transformer_2.  blocks.0.attn1.to_q    .lora_A  .default  .weight
  diffusion_model.blocks.0.self_attn.q   .lora_down         .weight
  lora_unet_      blocks_0_self_attn_q   .lora_down         .weight
  root and prefix module                 kind     adapter

Modules have the names of diffusers or of the original repository; kohya's
trainers write underscores for their dots.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping

from spacetime.checkpoint.interop import layouts, wan_transformer

# What trainers and savers put before the name of a module.
PREFIXES = (
  'base_model.model.',
  'transformer.',
  'model.diffusion_model.',
  'diffusion_model.',
  'pipe.dit.',
  'dit.',
  'unet.',
  'module.',
  'model.',
)
# Prefixes that name one of two transformers -> its root.
ROOTS = {'transformer.': 'dit', 'transformer_2.': 'dit_2'}
# Prefixes of names with underscores for dots; VideoX-Fun writes two at the end.
FLAT = re.compile(r'(?:lora_unet|lora_transformer|lora_dit|lycoris)_+')

# PEFT's name of an adapter, which a saved file may contain.
_ADAPTER = r'(?:\.(?!weight$|bias$)[^.]+)?'
_WEIGHT = rf'{_ADAPTER}(?:\.weight)?'
# The end of a name -> the kind of tensor.
KINDS = (
  (rf'lora[_.](?:A|down){_WEIGHT}', 'down'),
  (rf'lora[_.](?:B|up){_WEIGHT}', 'up'),
  (rf'lora[_.](?:B|up){_ADAPTER}\.bias', 'up_bias'),
  (r'alpha', 'alpha'),
  (r'diff', 'weight'),
  (r'w_norm', 'weight'),
  (r'diff_b', 'bias'),
  (r'b_norm', 'bias'),
  (r'diff_m', 'modulation'),
  (r'dora_scale', 'dora_scale'),
  (rf'lora_magnitude_vector{_WEIGHT}', 'magnitude'),
  *(
    (rf'(?:{name}){_ADAPTER}', name)
    for name in (
      *('lokr_w1', 'lokr_w1_a', 'lokr_w1_b'),
      *('lokr_w2', 'lokr_w2_a', 'lokr_w2_b'),
      *('hada_w1_a', 'hada_w1_b', 'hada_w2_a', 'hada_w2_b'),
    )
  ),
)
_KINDS = tuple(
  (re.compile(rf'(.+)\.{pattern}', re.DOTALL), kind) for pattern, kind in KINDS
)
# Forms of adapters that are not supported, by a part of their names.
UNSUPPORTED = {
  r'\.(oft|boft)_|\.oft_blocks': 'OFT',
  r'\.[ab][12]\.weight$': 'GLoRA',
  r'lokr_t[12]|hada_t[12]|lora_mid': 'Tucker factors of a convolution',
  r'\.ia3_|\.on_input$': 'IA3',
  r'\.vera_|\.lora_lambda': 'VeRA',
  r'(^|[._])lora_te|text_encoder|^te\d?[._]': 'LoRA of a text encoder',
  r'reshape_weight|\.set_weight': 'a replaced weight',
}


@dataclasses.dataclass(frozen=True)
class Name:
  """A tensor's name, taken apart.

  Attributes:
    root: 'dit' or 'dit_2' if the name says so, else ''.
    stem: name of the module in the file's dialect, without prefixes.
    kind: one of KINDS; '' if the name is of none.
    target: published name of the tensor that it changes; '' if none.
  """

  root: str
  stem: str
  kind: str = ''
  target: str = ''


class Modules:
  """Looks up the modules of a transformer by their names in any dialect.

  Args:
    names: published names of the transformer's tensors.
  """

  def __init__(self, names: Iterable[str]):
    self._names = set(names)
    self._flat = {
      spell(name.removesuffix('.weight')).replace('.', '_'): name
      for name in self._names
      for spell in (wan_transformer.original_name, str)
    }

  def parse(self, name: str) -> Name:
    """Takes a name of a LoRA file apart."""
    root, stem = strip_prefixes(name)
    for pattern, kind in _KINDS:
      match = pattern.fullmatch(stem)
      if match:
        return Name(root, match[1], kind, self._target(match[1], kind))
    return Name(root, stem)

  def _target(self, stem: str, kind: str) -> str:
    flat = FLAT.match(stem)
    if flat:
      published = self._flat.get(stem[flat.end() :], stem)
    elif kind == 'modulation':
      published = wan_transformer.published_name(f'{stem}.modulation')
    else:
      published = wan_transformer.published_name(f'{stem}.weight')
    if kind in ('bias', 'up_bias'):
      published = f'{published.removesuffix(".weight")}.bias'
    if published not in self._names:  # a parameter, not a module's weight
      published = published.removesuffix('.weight')
      published = wan_transformer.published_name(published)
    return published if published in self._names else ''


def strip_prefixes(name: str) -> tuple[str, str]:
  """(root or '', the name without prefixes)."""
  root, stem = '', layouts.unwrapped(name)
  while True:
    for prefix in (*PREFIXES, *ROOTS):
      if stem.startswith(prefix):
        stem, root = stem.removeprefix(prefix), ROOTS.get(prefix, root)
        break
    else:
      return root, stem


def published_name(name: str) -> str:
  """The published name of a tensor, whatever its dialect and prefixes."""
  return wan_transformer.published_name(strip_prefixes(name)[1])


def unsupported(names: Iterable[str]) -> str:
  """The unsupported form of adapter that names are of; '' if of none."""
  for pattern, form in UNSUPPORTED.items():
    if any(re.search(pattern, name) for name in names):
      return form
  return ''


# -- writing -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Dialect:
  """Names of the LoRA files that a program writes.

  Attributes:
    file: name of the file.
    prefix: before the name of a module.
    down, up: ends of the names of the factors.
    original: whether modules have the original repository's names.
    flat: whether they have underscores for dots.
    alpha: 'tensor' beside the factors, 'config' in adapter_config.json, or
      'none': it is contained in the factor `up`.
  """

  file: str
  prefix: str
  down: str
  up: str
  original: bool = True
  flat: bool = False
  alpha: str = 'none'

  def module(self, published: str) -> str:
    """The name of a module, from its published name."""
    name = published
    if self.original:
      name = wan_transformer.original_name(f'{published}.weight')
      name = name.removesuffix('.weight')
    return self.prefix + (name.replace('.', '_') if self.flat else name)


_PEFT = dict(down='lora_A.weight', up='lora_B.weight')
_KOHYA = dict(down='lora_down.weight', up='lora_up.weight', alpha='tensor')
# By program; `original` is read by ComfyUI, `kohya` is musubi-tuner's.
DIALECTS: Mapping[str, Dialect] = {
  'diffusers': Dialect(
    'pytorch_lora_weights.safetensors', 'transformer.', **_PEFT, original=False
  ),
  'peft': Dialect(
    'adapter_model.safetensors',
    'base_model.model.',
    **_PEFT,
    original=False,
    alpha='config',
  ),
  'original': Dialect('lora.safetensors', 'diffusion_model.', **_KOHYA),
  'kohya': Dialect('lora.safetensors', 'lora_unet_', **_KOHYA, flat=True),
  'videox_fun': Dialect('lora.safetensors', 'lora_unet__', **_KOHYA, flat=True),
  'diffsynth': Dialect(
    'lora.safetensors',
    '',
    down='lora_A.default.weight',
    up='lora_B.default.weight',
  ),
  'diffusion_pipe': Dialect(
    'adapter_model.safetensors', 'diffusion_model.', **_PEFT
  ),
}
