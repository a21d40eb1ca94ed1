"""Scales of LoRA factors: alpha and rank from wherever files keep them.

A product of factors is scaled by alpha / rank, or by alpha / sqrt(rank) with
rank-stabilised LoRA. Alpha is, in this order,

  a tensor `.alpha` beside the factors (kohya, ComfyUI);
  in PEFT's config: adapter_config.json beside the file, or a value of the
    file's metadata, as diffusers' `lora_adapter_metadata`;
  a plain value of the metadata: lora_alpha, network_alpha, ss_network_alpha;
  the rank, so that the scale is 1.

Source: peft/utils/other.py, get_pattern_key: a pattern is a regular expression
for the end of a module's name.
"""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping

from spacetime.checkpoint.interop import lora_names, tensor_files

CONFIG = 'adapter_config.json'
PEFT_FILE = 'adapter_model'
METADATA = 'lora_adapter_metadata'  # where diffusers stores PEFT's config
PLAIN = ('lora_alpha', 'network_alpha', 'ss_network_alpha')
TYPES = ('LORA', 'LOHA', 'LOKR')
# Initialisations that subtract the first factors from the base model, whose
# published weights are then another base.
SUBTRACTED = ('pissa', 'olora', 'corda', 'loftq', 'lora_ga', 'milora')


@dataclasses.dataclass(frozen=True)
class Scales:
  """Alphas of a LoRA file.

  Attributes:
    path: the file, for messages.
    configs: PEFT's config by root: 'dit', 'dit_2', or '' for all of them.
    header: alpha of the plain metadata; None if it has none.
    rank_stabilised: whether the plain metadata says so.
  """

  path: pathlib.Path
  configs: Mapping[str, Mapping]
  header: str | None = None
  rank_stabilised: bool = False

  def scale(
    self, root: str, stem: str, rank: float, *, alpha: float | None = None
  ) -> float:
    """The scale of one module's factors.

    Args:
      root: transformer that the file names for them, '' if it names none.
      stem: the module's name in the file.
      rank: rank of the factors.
      alpha: value of the tensor beside them, if any.

    Raises:
      ValueError: an alpha or a rank that is not a finite number, or 0.
    """
    rank = self._number('rank', rank)
    if alpha is not None:
      return self._number('.alpha', alpha) / rank
    config = self.config(root)
    if config is not None:
      alpha = config.get('lora_alpha', config.get('alpha', rank))
      for pattern, value in (config.get('alpha_pattern') or {}).items():
        if matches(pattern, stem):
          alpha = value
          break
      alpha = self._number('lora_alpha', alpha)
      stabilised = config.get('use_rslora')
    else:
      alpha = self._number('lora_alpha in its metadata', self.header or rank)
      stabilised = self.rank_stabilised
    return alpha / (math.sqrt(rank) if stabilised else rank)

  @property
  def has_default(self) -> bool:
    """Whether a config or the metadata has an alpha for all modules."""
    return bool(self.configs) or self.header is not None

  def config(self, root: str) -> Mapping | None:
    """PEFT's config of a root; None if there is none."""
    for name in (root, '') if root else ('', 'dit', 'dit_2'):
      if name in self.configs:
        return self.configs[name]
    return None

  def _number(self, name: str, value) -> float:
    try:
      number = float(value)
    except (TypeError, ValueError):
      number = math.nan
    if not math.isfinite(number) or not number:
      raise ValueError(
        f'{self.path}: {name}={value!r}: expected a number other than 0'
      )
    return number


def matches(pattern: str, stem: str) -> bool:
  """Whether a pattern of PEFT's config is of a module.

  Args:
    pattern: a regular expression for the end of a name, or a name with the
      prefixes of its dialect.
    stem: the module's name without prefixes.
  """
  pattern = lora_names.strip_prefixes(pattern)[1]
  try:
    return re.match(rf'(.*\.)?({pattern})$', stem) is not None
  except re.error:
    return stem == pattern or stem.endswith(f'.{pattern}')


def read(path: pathlib.Path, metadata: Mapping[str, str]) -> Scales:
  """The scales of a file.

  Args:
    path: the file; adapter_config.json is read beside PEFT's adapter_model, or
      beside the only weights of a folder.
    metadata: the metadata in its header.

  Raises:
    ValueError: a config that is damaged, or of a form of adapter that is not
      supported.
  """
  configs = _of_metadata(metadata)
  beside = path.parent / CONFIG
  if not configs and beside.is_file() and _is_adapter_model(path):
    configs = {'': tensor_files.read_json(beside)}
  for config in configs.values():
    check(config, beside if beside.is_file() else path)
  plain = [metadata[key] for key in PLAIN if _is_set(metadata.get(key))]
  stabilised = str(metadata.get('use_rslora', '')).lower() in ('true', '1')
  return Scales(path, configs, plain[0] if plain else None, stabilised)


def check(config: Mapping, where) -> None:
  """Refuses configs of other forms of adapters.

  Raises:
    ValueError: it names the key.
  """
  kind = config.get('peft_type') or 'LORA'
  if str(kind).rpartition('.')[2] not in TYPES:
    raise ValueError(f'{where}: peft_type={kind!r}: expected one of {TYPES}')
  init = str(config.get('init_lora_weights')).lower()
  if init.startswith(SUBTRACTED):
    raise ValueError(
      f'{where}: init_lora_weights={init!r} has changed the base model: '
      'expected an adapter of the published weights; save it with '
      'path_initial_model_for_weight_conversion'
    )
  for key in ('alpha_pattern', 'rank_pattern'):
    if not isinstance(config.get(key) or {}, dict):
      raise ValueError(
        f'{where}: {key}={config[key]!r}: expected numbers by name'
      )
  if config.get('fan_in_fan_out'):
    raise ValueError(f'{where}: fan_in_fan_out: expected false')


def write_config(
  path: pathlib.Path, *, rank: int, alpha: float, targets
) -> None:
  """Writes the adapter_config.json of PEFT's save_pretrained."""
  values = dict(
    peft_type='LORA',
    r=rank,
    lora_alpha=alpha,
    target_modules=sorted(targets),
    use_rslora=False,
    use_dora=False,
    bias='none',
    inference_mode=True,
  )
  tensor_files.write_json(path, values)


def _of_metadata(metadata: Mapping[str, str]) -> dict[str, Mapping]:
  """PEFT's configs in a file's metadata, by root."""
  configs = {}
  for key, text in metadata.items():
    values = _json_object(text)
    if key != METADATA and 'lora_alpha' not in values:
      continue
    for name, value in values.items():
      prefix, dot, rest = name.partition('.')
      root = {'transformer': 'dit', 'transformer_2': 'dit_2'}.get(prefix)
      if root and dot:
        configs.setdefault(root, {})[rest] = value
      elif not dot:
        configs.setdefault('', {})[name] = value
  return configs


def _json_object(text) -> dict:
  try:
    values = json.loads(text)
  except (TypeError, ValueError, RecursionError):
    return {}
  return values if isinstance(values, dict) else {}


def _is_set(value) -> bool:
  return value not in (None, '', 'None', 'null')


def _is_adapter_model(path: pathlib.Path) -> bool:
  if path.stem == PEFT_FILE:
    return True
  kinds = ('.safetensors', *tensor_files.PICKLES)
  weights = [p for p in path.parent.iterdir() if p.suffix in kinds]
  return weights == [path]
