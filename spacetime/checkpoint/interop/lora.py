"""Reads and writes LoRA files in the dialects of other programs.

  transformer.blocks.0.attn1.to_q.lora_A.weight              diffusers
  diffusion_model.blocks.0.self_attn.q.lora_down.weight      ComfyUI
  lora_unet_blocks_0_self_attn_q.lora_down.weight            kohya

LoRA, DoRA, LoKr, LoHa and plain differences are read. Names: lora_names.py;
alpha: lora_scale.py; what is done to a weight: lora_changes.py; how a model is
changed: lora_apply.py.
"""

import dataclasses
import hashlib
import itertools
import os
import pathlib
import re
from collections.abc import Iterable, Mapping

import numpy as np
import safetensors.numpy
from absl import logging

from spacetime.checkpoint import finite, mismatch
from spacetime.checkpoint.interop import (
  families,
  gguf_files,
  layouts,
  lora_apply,
  lora_changes,
  lora_names,
  lora_scale,
  networks,
  tensor_files,
  torch_files,
  wan_transformer,
  weight_files,
)
from spacetime.media import files as files_lib
from spacetime.models.transformer import dit as dit_lib
from spacetime.models.transformer import lora

DIALECTS = tuple(lora_names.DIALECTS)
FILES = {name: dialect.file for name, dialect in lora_names.DIALECTS.items()}
# Names of the weights in a folder, the first that exists.
STEMS = ('adapter_model', 'pytorch_lora_weights')
# Most names of each fault in a message.
MOST = 3
DECOMPOSED = ('dora_scale', 'magnitude')
LOKR = ('lokr_w1', 'lokr_w2')
LOHA = ('hada_w1_a', 'hada_w1_b', 'hada_w2_a', 'hada_w2_b')
LOKR_HALVES = ('lokr_w1_a', 'lokr_w1_b', 'lokr_w2_a', 'lokr_w2_b')
# Of each row, a module has the kinds of one entry: others would not count.
EITHER = (
  (('down', 'up', 'up_bias'), LOHA, (*LOKR, *LOKR_HALVES)),
  (LOKR[:1], LOKR_HALVES[:2]),
  (LOKR[1:], LOKR_HALVES[2:]),
  (DECOMPOSED[:1], DECOMPOSED[1:]),
)


@dataclasses.dataclass(frozen=True)
class LoraFile:
  """An opened file of LoRA weights.

  Attributes:
    path: the file.
    tensors: its tensors by name.
    scales: its alphas.
  """

  path: pathlib.Path
  tensors: Mapping[str, tensor_files.Tensor]
  scales: lora_scale.Scales

  @property
  def roots(self) -> set[str]:
    """The transformers that names are of: 'dit' and 'dit_2', or '' for names
    that do not say so."""
    return {lora_names.strip_prefixes(name)[0] for name in self.tensors}

  @property
  def has_both(self) -> bool:
    """Whether it has weights for both of two transformers."""
    return 'dit_2' in self.roots and len(self.roots) > 1

  def fingerprint(self) -> str:
    """Fingerprint of the file and its config, 16 hex digits."""
    with open(self.path, 'rb') as file:
      digest = hashlib.file_digest(file, 'sha256')
    digest.update(repr(sorted(self.scales.configs.items())).encode())
    return digest.hexdigest()[:16]


def find(path: str | os.PathLike) -> pathlib.Path:
  """The weights of a path: the file itself, or those of a folder.

  Raises:
    ValueError: a folder without LoRA weights, or with several files.
  """
  path = files_lib.mirror(path)
  if not path.is_dir():
    return path
  kinds = ('.safetensors', *tensor_files.PICKLES)
  for stem in STEMS:
    for kind in kinds:
      if (path / f'{stem}{kind}').is_file():
        return path / f'{stem}{kind}'
  files = sorted(p for p in path.iterdir() if p.suffix in kinds)
  if len(files) != 1:
    names = mismatch.listed([p.name for p in files], most=MOST)
    raise ValueError(
      f'{path} has {names or "no weights"}: expected one file of LoRA weights, '
      f'such as {STEMS[0]}.safetensors'
    )
  return files[0]


def open_lora(path: str | os.PathLike) -> LoraFile:
  """Opens a file of LoRA weights, or the folder of one.

  Raises:
    ValueError: no such file, a damaged one, or an adapter of another form.
  """
  path = find(path)
  first, metadata = weight_files.first_bytes(path), {}
  if first.startswith(gguf_files.MAGIC):
    raise ValueError(
      f'{path} is a GGUF file: expected LoRA weights in safetensors'
    )
  if first.startswith(torch_files.MAGIC):
    tensors = torch_files.open_file(path)
  else:
    tensors = tensor_files.open_tensors(path, dtypes=tensor_files.READABLE)
    metadata = tensor_files.metadata(path)
  tensors = weight_files.resolve(
    tensors, metadata, path, dtypes=tensor_files.READABLE
  )
  return LoraFile(path, tensors, lora_scale.read(path, metadata))


def read(
  path: str | os.PathLike | LoraFile,
  model: dit_lib.DiTConfig,
  *,
  root: str = 'dit',
) -> lora_apply.Adapter:
  """Reads LoRA weights for a transformer of these sizes.

  Args:
    path: a file, a folder with one, or an opened file.
    model: sizes of the base model.
    root: 'dit', or 'dit_2' for the second of two transformers; a file that does
      not distinguish them fits both.

  Raises:
    ValueError: no weights for this root, weights for another base model, or
      values that are not finite; the message names the keys.
  """
  file = path if isinstance(path, LoraFile) else open_lora(path)
  network = networks.of(model)
  rows = {name: row for name, *row in network.rows}
  shapes = network.published_shapes()
  modules, faults = _by_module(file, rows, root)
  for parts in modules.values():
    for fault, names in _faults(parts, shapes).items():
      faults.setdefault(fault, []).extend(names)
  text = mismatch.report(faults, most=MOST)
  if text or not modules:
    raise ValueError(
      f'{file.path} does not fit this transformer of {model.layers} layers of '
      f'width {model.width}; {text or "it has no LoRA weights"}; '
      f'{_reason(file, shapes)}'
    )
  changes = {}
  for parts in modules.values():
    for target, change in _changes(file, parts, shapes):
      param, layer, layout = rows[target]
      changes.setdefault((param, layer), []).append(change)
  _check_floats(file.path, modules)
  _check_finite(file.path, modules)
  _check_decomposed(file, modules)
  if not any(
    lora_changes.has_effect(change)
    for parts in changes.values()
    for change in parts
  ):
    logging.warning(
      '%s has no effect: all of its changes are 0, as before the first step of '
      'training',
      file.path,
    )
  _warn_of_parts(file, modules, model.layers)
  ignored = sorted(n for n in file.tensors if _is_ignored(n, rows))
  return lora_apply.Adapter(network, changes, tuple(ignored))


def _reason(file: LoraFile, shapes: Mapping) -> str:
  """Why a file does not fit, as far as its names say."""
  form = lora_names.unsupported(file.tensors)
  if form:
    return f'{form} is not supported'
  family = families.identify(file.tensors)
  if family is not None and family.kind:
    return f'it is {family.name}, not LoRA weights'
  own = [n for n in file.tensors if lora_names.published_name(n) in shapes]
  if own:
    return (
      f'it has weights of the model itself, {mismatch.listed(own, most=MOST)}, '
      "as PEFT's `bias` and `modules_to_save` write: expected those of LoRA"
    )
  return 'it belongs to another base model'


@dataclasses.dataclass
class _Module:
  """The tensors of a module, by kind, with what their names have in common."""

  root: str
  stem: str
  tensors: dict[str, tensor_files.Tensor]
  targets: dict[str, str]


def _by_module(
  file: LoraFile, rows: Mapping, root: str
) -> tuple[dict[str, _Module], dict[str, list[str]]]:
  """Groups the tensors of a root by module; (modules, names by fault)."""
  lookup = lora_names.Modules(rows)
  modules, unknown, twice = {}, [], []
  split = file.has_both
  for name, tensor in file.tensors.items():
    parsed = lookup.parse(name)
    if split and (parsed.root or 'dit') != root:
      continue
    if not split and root == 'dit' and parsed.root == 'dit_2':
      continue
    if _is_ignored(name, rows):
      continue
    if not parsed.target:
      unknown.append(name)
      continue
    key = parsed.target.removesuffix('.weight').removesuffix('.bias')
    module = modules.setdefault(key, _Module(parsed.root, parsed.stem, {}, {}))
    if parsed.kind in module.tensors:
      twice.append(name)
    module.tensors[parsed.kind] = tensor
    module.targets[parsed.kind] = parsed.target
  return modules, {'unknown': unknown, 'twice': twice}


def _is_ignored(name: str, rows: Mapping) -> bool:
  """Whether a name is of an image input that this model does not have."""
  image = wan_transformer.IMAGE.search(name)
  flat = lora_names.FLAT.match(lora_names.strip_prefixes(name)[1])
  if flat:
    image = image or name.partition('.')[0].endswith('_img')
  return bool(image) and not any(map(wan_transformer.IMAGE.search, rows))


def _faults(module: _Module, shapes: Mapping) -> dict[str, list[str]]:
  """Names of a module's tensors by fault: halves, several forms, and other
  shapes."""
  kinds, other, empty = module.tensors.keys(), [], []
  required = []
  if kinds & {'down', 'up', 'up_bias'}:
    required += ['down', 'up']
  if any(kind.startswith('hada') for kind in kinds):
    required += LOHA
  for factor in LOKR if any(k.startswith('lokr') for k in kinds) else ():
    if factor not in kinds:
      required += [f'{factor}_a', f'{factor}_b']
  alone = {'alpha', *DECOMPOSED}  # they need a change to scale
  if kinds & alone and not required and not kinds & set(LOKR):
    required += ['down', 'up']
  if any(kind not in kinds for kind in required):
    names = (t.name for t in module.tensors.values())
    return {'without its other half': list(names)}
  for row in EITHER:
    forms = [kinds & set(form) for form in row]
    if sum(map(bool, forms)) > 1:
      names = (module.tensors[kind].name for form in forms for kind in form)
      return {'two forms of one change': list(names)}
  for kind, expected in _expected(module, shapes).items():
    tensor = module.tensors[kind]
    if not all(tensor.shape):
      empty.append(f'{tensor.name} {tensor.shape}')
    elif not _fits(tensor.shape, expected):
      other.append(f'{tensor.name} {tensor.shape}, expected {expected}')
  lokr = [kind for kind in kinds if kind.startswith('lokr')]
  if lokr and not other:
    product = _lokr_product(module)
    expected = shapes[module.targets[lokr[0]]]
    if not _fits(product, expected):
      name = module.tensors[lokr[0]].name
      other.append(f'{name} of a product {product}, expected {expected}')
  return {'without values': empty, 'of other shapes': other}


def _expected(module: _Module, shapes: Mapping) -> dict[str, tuple[int, ...]]:
  """The expected shapes of a module's tensors by kind."""
  tensors, expected = module.tensors, {}
  for kind, target in module.targets.items():
    shape = shapes[target]
    if kind in ('weight', 'bias', 'modulation', 'up_bias'):
      expected[kind] = shape
    elif kind == 'down':
      expected[kind] = (tensors[kind].shape[:1] or (0,)) + shape[1:]
    elif kind == 'up':
      expected[kind] = (shape[0], *tensors['down'].shape[:1])
    elif kind.startswith('hada'):
      rank = tensors[f'{kind[:7]}_a'].shape[-1:] or (0,)
      size = (int(np.prod(shape[1:])),)
      is_a = kind.endswith('_a')
      expected[kind] = shape[:1] + rank if is_a else rank + size
    elif kind in DECOMPOSED:
      row = (shape[0], *[1] * (len(shape) - 1))
      column = (1, shape[1], *[1] * (len(shape) - 2))
      by_column = tensors[kind].shape == column and shape[0] != 1
      expected[kind] = column if by_column and kind == 'dora_scale' else row
    elif kind == 'alpha':
      expected[kind] = ()
    elif kind.startswith('lokr') and kind[-2:] in ('_a', '_b'):
      factor = kind[:-2]
      rank = tensors[f'{factor}_a'].shape[-1:] or (0,)
      own = tensors[kind].shape
      expected[kind] = own[:1] + rank if kind.endswith('_a') else rank + own[1:]
  return expected


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
  """Whether shapes agree but for axes of one value and flat convolutions.

  Kohya's trainers write linear layers as convolutions with a kernel of 1.
  """
  if shape == expected:
    return True
  squeezed = tuple(n for n in shape if n != 1)
  if squeezed == tuple(n for n in expected if n != 1):
    return True
  flat = (*expected[:1], int(np.prod(expected[1:])))
  return len(expected) > 2 and shape[:1] + shape[1:] == flat


def _lokr_product(module: _Module) -> tuple[int, ...]:
  """The shape of the product of LoKr's factors."""
  first, second = (_lokr_shape(module, factor) for factor in LOKR)
  if any(n != 1 for n in first[2:]):  # the kernel is the second factor's
    return first
  axes = itertools.zip_longest(first, second, fillvalue=1)
  return tuple(a * b for a, b in axes)


def _lokr_shape(module: _Module, factor: str) -> tuple[int, ...]:
  if factor in module.tensors:
    shape = module.tensors[factor].shape
    return shape + (1,) * (2 - len(shape))
  rows = module.tensors[f'{factor}_a'].shape[0]
  return rows, module.tensors[f'{factor}_b'].shape[1]


def _changes(
  file: LoraFile, module: _Module, shapes: Mapping
) -> Iterable[tuple[str, lora_changes.Change]]:
  """Yields (published name, change) of a module's tensors."""
  arrays = {
    kind: np.asarray(tensor_files.as_float32(tensor))
    for kind, tensor in module.tensors.items()
  }
  alpha = float(arrays['alpha'].reshape(())) if 'alpha' in arrays else None
  target = next(
    (
      name
      for kind, name in module.targets.items()
      if kind not in ('bias', 'up_bias', 'modulation', 'alpha')
    ),
    '',
  )
  shape = shapes.get(target, ())

  def scale(rank: int) -> float:
    return file.scales.scale(module.root, module.stem, rank, alpha=alpha)

  change = None
  if 'down' in arrays:
    down = arrays['down'].reshape(len(arrays['down']), *shape[1:])
    up = arrays['up'].reshape(shape[0], len(down))
    change = lora_changes.LowRank(down, up, scale(len(down)))
  elif 'hada_w1_a' in arrays:
    a1, b1, a2, b2 = (arrays[kind] for kind in LOHA)
    change = lora_changes.Hadamard(a1, b1, a2, b2, scale(len(b1)))
  elif any(kind.startswith('lokr') for kind in arrays):
    change = _kronecker(file, module, arrays, alpha)
  for kind in DECOMPOSED:
    if kind in arrays:
      change = _decomposed(change, arrays[kind], kind, shape)
  if change is not None:
    yield target, change
  if 'up_bias' in arrays:
    factor = scale(len(arrays['down']))
    bias = arrays['up_bias'].reshape(shapes[module.targets['up_bias']])
    yield module.targets['up_bias'], lora_changes.Plain(bias, factor)
  for kind in ('weight', 'bias', 'modulation'):
    if kind in arrays:
      name = module.targets[kind]
      yield name, lora_changes.Plain(arrays[kind].reshape(shapes[name]))


def _decomposed(change, magnitude, kind: str, shape) -> lora_changes.Decomposed:
  by = 'row'
  if kind == 'dora_scale':
    by = 'base' if magnitude.size == shape[0] else 'column'
    if magnitude.shape[:1] == (1,) and shape[0] != 1 and magnitude.ndim > 1:
      by = 'column'
  return lora_changes.Decomposed(change, magnitude.reshape(-1), by)


def _kronecker(file: LoraFile, module: _Module, arrays, alpha):
  """LoKr: alpha counts if a factor is a product, or in PEFT's config."""
  factors, rank = [], None
  for name in LOKR:
    if name in arrays:
      factors.append(arrays[name])
    else:
      factors.append(arrays[f'{name}_a'] @ arrays[f'{name}_b'])
      rank = len(arrays[f'{name}_b'])
  factors = [w if w.ndim > 1 else w.reshape(-1, 1) for w in factors]
  config = file.scales.config(module.root)
  if rank is None and alpha is None and config is not None:
    rank = config.get('r')
    for pattern, value in (config.get('rank_pattern') or {}).items():
      if lora_scale.matches(pattern, module.stem):
        rank = value
        break
  if rank is None:
    return lora_changes.Kronecker(*factors, 1.0)
  scale = file.scales.scale(module.root, module.stem, rank, alpha=alpha)
  return lora_changes.Kronecker(*factors, scale)


def _check_floats(path, modules: Mapping[str, _Module]) -> None:
  integers = [
    tensor.name
    for module in modules.values()
    for kind, tensor in module.tensors.items()
    if kind != 'alpha' and tensor.dtype.kind in 'iub'
  ]
  if integers:
    raise ValueError(
      f'{path} has integers, in {mismatch.listed(integers, most=MOST)}: '
      'expected floats; quantised weights are not supported'
    )


def _check_finite(path, modules: Mapping[str, _Module]) -> None:
  bad = [
    tensor.name
    for module in modules.values()
    for tensor in module.tensors.values()
    if not np.isfinite(tensor_files.as_float32(tensor)).all()
  ]
  if bad:
    raise ValueError(
      f'{path} has values that are not finite, in '
      f'{mismatch.listed(bad, most=MOST)}: expected finite numbers; its '
      'training has diverged, or it is damaged'
    )


def _check_decomposed(file: LoraFile, modules: Mapping[str, _Module]) -> None:
  """Refuses a DoRA whose magnitudes are missing: it would count as a LoRA."""
  missing = []
  for name, module in modules.items():
    config, kinds = file.scales.config(module.root), module.tensors.keys()
    is_dora = config is not None and config.get('use_dora') is True
    if is_dora and 'down' in kinds and not kinds & set(DECOMPOSED):
      missing.append(name)
  if missing:
    raise ValueError(
      f'{file.path}: its config has use_dora, but it holds no magnitudes of '
      f'{mismatch.listed(missing, most=MOST)}; save it again'
    )


def _warn_of_parts(
  file: LoraFile, modules: Mapping[str, _Module], layers: int
) -> None:
  """Logs alphas of some modules alone, and a file of fewer layers."""
  factors = {'down', *LOHA, *LOKR_HALVES}
  scaled = [m.tensors for m in modules.values() if m.tensors.keys() & factors]
  alphas = sum('alpha' in tensors for tensors in scaled)
  if 0 < alphas < len(scaled):
    logging.warning(
      '%s has an alpha for %d of its %d modules alone: the others are scaled '
      'by %s',
      file.path,
      alphas,
      len(scaled),
      'that of its config or metadata' if file.scales.has_default else '1',
    )
  # Weights for a model that was deepened since: checkpoint/deepen.py.
  blocks = {
    int(match[1])
    for name in modules
    if (match := re.match(r'blocks\.(\d+)\.', name))
  }
  count = 1 + max(blocks, default=-1)
  if 2 <= count < layers <= 2 * count and blocks == set(range(count)):
    logging.warning(
      '%s changes the first %d of %d layers alone, as LoRA weights of a model '
      'of fewer layers do',
      file.path,
      count,
      layers,
    )


# -- writing -------------------------------------------------------------------


def write(
  path: str | os.PathLike,
  params: Mapping,
  config: lora.LoraConfig,
  model: dit_lib.DiTConfig,
  *,
  dialect: str,
  dtype=np.float32,
) -> None:
  """Writes LoRA weights with the names of another program.

  Args:
    path: the file; PEFT's adapter_config.json is written beside it.
    params: LoRA parameters, as lora.init makes them.
    config: rank and alpha.
    model: sizes of the base model.
    dialect: one of DIALECTS.
    dtype: dtype of the file.

  Raises:
    ValueError: values that are not finite, or that the dtype cannot hold.
  """
  path, names = pathlib.Path(path), lora_names.DIALECTS[dialect]
  network, arrays, targets = networks.of(model), {}, set()
  leaves = {'.'.join(p): np.asarray(leaf) for p, leaf in layouts.leaves(params)}
  for name, target, layer, _ in network.rows:
    stem = target.removesuffix('.kernel')
    if f'{stem}.a' not in leaves or not target.endswith('.kernel'):
      continue
    published = name.removesuffix('.weight')
    module = names.module(published)
    up = leaves[f'{stem}.b'][layer].T
    if names.alpha == 'none':
      up = config.scale * up
    arrays[f'{module}.{names.down}'] = leaves[f'{stem}.a'][layer].T
    arrays[f'{module}.{names.up}'] = up
    if names.alpha == 'tensor':
      arrays[f'{module}.alpha'] = np.float32(config.alpha)
    targets.add(published.partition('.')[2].partition('.')[2])
  with np.errstate(over='ignore'):  # checked below
    arrays = {k: np.array(v, dtype, order='C') for k, v in arrays.items()}
  for name, array in arrays.items():
    finite.check_cast(array, f'{path}: {name}')
  data = safetensors.numpy.save(arrays, metadata={'format': 'pt'})
  # save_file would write it for its owner alone, whatever the umask.
  pathlib.Path(path).write_bytes(data)

  if names.alpha == 'config':
    lora_scale.write_config(
      path.parent / lora_scale.CONFIG,
      rank=config.rank,
      alpha=config.alpha,
      targets=targets,
    )
