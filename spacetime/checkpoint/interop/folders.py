"""Opens, checks and reads folders and files of published weights.

A pipeline's folder, as diffusers writes it:

  model_index.json
  transformer/ [transformer_2/] vae/ text_encoder/   config.json, safetensors
  tokenizer/ scheduler/
"""

import dataclasses
import hashlib
import math
import os
import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np

from spacetime import SettingError
from spacetime.checkpoint.interop import (
  config_json,
  families,
  networks,
  tensor_files,
  umt5,
  wan_transformer,
  weight_files,
)
from spacetime.checkpoint.interop import parameters as parameters_lib
from spacetime.media import files as files_lib
from spacetime.models.autoencoder import wan
from spacetime.models.transformer import dit

INDEX, CONFIG = 'model_index.json', 'config.json'
SCHEDULER = 'scheduler/scheduler_config.json'
TOKENIZER = 'tokenizer'
SECOND = 'transformer_2'
PIPELINES = (
  'WanPipeline',
  'WanImageToVideoPipeline',
  'WanVACEPipeline',
  'AnyFlowPipeline',
)
SUFFIXES = (*tensor_files.PICKLES, '.safetensors', '.gguf')
# The level between the two transformers of Wan 2.2 A14B.
BOUNDARY = 0.875
IMAGE_BOUNDARY = 0.9  # of I2V-A14B
# The shift of each published model, and the scheduler of their folders.
SHIFTS = {'2.1': 3.0, '2.2': 5.0, 'A14B': 12.0}
SCHEDULER_CONFIG = dict(
  _class_name='UniPCMultistepScheduler',
  num_train_timesteps=1000,
  prediction_type='flow_prediction',
  use_flow_sigmas=True,
  flow_shift=3.0,
  solver_order=2,
  solver_type='bh2',
  final_sigmas_type='zero',
)
# Head size of every published transformer.
HEAD = 128


@dataclasses.dataclass(frozen=True)
class Part:
  """One network of a published model: its sizes and its tensors.

  Attributes:
    network: names, layouts and shapes of its tensors, with its config.
    parameters: parameters by path.
    path: the folder or file.
    extra: bytes that the file has besides, such as a tokenizer, by name.
  """

  network: networks.Network
  parameters: Mapping[str, parameters_lib.Parameter]
  path: pathlib.Path
  extra: Mapping[str, tensor_files.Tensor] = dataclasses.field(
    default_factory=dict
  )

  @property
  def config(self):
    """DiTConfig, WanAutoencoderConfig, TextConfig or ImageConfig."""
    return self.network.config

  @property
  def size(self) -> int:
    """Size of its tensors in bytes."""
    return sum(t.size for p in self.parameters.values() for t in p.tensors)

  @property
  def dtype(self) -> np.dtype:
    """The dtype of most of its bytes."""
    sizes = {}
    for parameter in self.parameters.values():
      for tensor in parameter.tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
    return max(sizes, key=sizes.get)

  def load(
    self,
    mesh: jax.sharding.Mesh,
    *,
    dtype=None,
    report: Callable[[int], None] = lambda size: None,
  ) -> dict:
    """Reads the parameters onto the mesh; see parameters.load."""
    root = networks.ROOTS[self.network.kind]
    return parameters_lib.load(
      root, self.parameters, mesh, dtype=dtype, report=report
    )

  def abstract(self, mesh: jax.sharding.Mesh, *, dtype=None) -> dict:
    """Shapes of the parameters that `load` reads, with their shardings."""
    root = networks.ROOTS[self.network.kind]
    return parameters_lib.abstract(root, self.parameters, mesh, dtype=dtype)

  def fingerprint(self) -> str:
    """Fingerprint of some bytes of each array, in hex digits."""
    digest, root = hashlib.sha256(), networks.ROOTS[self.network.kind]
    for path, parameter in sorted(self.parameters.items()):
      for tensor in parameter.tensors:
        digest.update(f'{root}.{path} {tensor.shape} {tensor.dtype}'.encode())
        data = tensor.raw()
        cut = 512 * tensor.dtype.itemsize
        digest.update(data[:cut].tobytes() + data[-cut:].tobytes())
        tensor.release()
    return digest.hexdigest()

  def stamp(self) -> str:
    """Fingerprint of the files' sizes and times of change, in hex digits.

    Unlike `fingerprint`, it reads no file and changes with every change of a
    file; but a copy of the files has another stamp.
    """
    tensors = (t for p in self.parameters.values() for t in p.tensors)
    digest = hashlib.sha256()
    for path in sorted({tensor.path for tensor in tensors}):
      stat = path.stat()
      digest.update(f'{path.name} {stat.st_size} {stat.st_mtime_ns}'.encode())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Files:
  """Single files of a published model's networks.

  Attributes:
    transformer, transformer_2, vae, text_encoder, image_encoder: a file or a
      folder of that network; None takes that of the model's folder.
    tokenizer: a sentencepiece model, tokenizer.json, or a folder with one.
  """

  transformer: str | None = None
  transformer_2: str | None = None
  vae: str | None = None
  text_encoder: str | None = None
  image_encoder: str | None = None
  tokenizer: str | None = None

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if value and files_lib.is_url(value):  # copied to this machine
        local = os.fspath(files_lib.mirror(value))
        object.__setattr__(self, name, local)

  def __bool__(self) -> bool:
    return any(dataclasses.astuple(self))

  def over(self, other: 'Files') -> 'Files':
    """These files, and those of another where these are None."""
    values = dataclasses.asdict(self)
    if values['transformer']:  # the second one belongs to the first
      other = dataclasses.replace(other, transformer_2=None)
    return Files(
      **{name: v or getattr(other, name) for name, v in values.items()}
    )


NO_FILES = Files()


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """A published text-to-video model.

  Attributes:
    folder: folder of model_index.json, or the file of the transformer.
    transformer, vae, text_encoder: the networks.
    index: contents of model_index.json.
    scheduler: contents of scheduler_config.json.
    tokenizer: the tokenizer's file or folder, or the bytes of its model.
    transformer_2: the transformer of the lower noise levels, of two.
    image_encoder: the encoder of images, if the transformer sees them.
  """

  folder: pathlib.Path
  transformer: Part
  vae: Part
  text_encoder: Part
  index: dict
  scheduler: dict
  tokenizer: pathlib.Path | bytes
  transformer_2: Part | None = None
  image_encoder: Part | None = None

  @property
  def parts(self) -> dict[str, Part]:
    """The networks by the roots of their parameters; 'dit_2' is the second
    transformer."""
    parts = (self.transformer, self.text_encoder, self.vae)
    if self.image_encoder:
      parts += (self.image_encoder,)
    by_root = {networks.ROOTS[part.network.kind]: part for part in parts}
    return by_root | ({'dit_2': self.transformer_2} if self.boundary else {})

  @property
  def boundary(self) -> float | None:
    """The noise level below which the second of two transformers is used."""
    return self.transformer_2 and self.index['boundary_ratio']

  def fingerprint(self) -> str:
    """Fingerprint of some bytes of each array, 16 hex digits."""
    prints = (part.fingerprint() for part in self.parts.values())
    return hashlib.sha256(''.join(prints).encode()).hexdigest()[:16]


def original_files(folder) -> Files:
  """The files of a folder of Wan's own repository, as far as it has them.

  It holds config.json and shards of the transformer, or high_noise_model/ and
  low_noise_model/; Wan2.1_VAE.pth, models_t5_umt5-xxl-enc-bf16.pth and
  google/umt5-xxl/.
  """
  folder = pathlib.Path(folder)
  first, second = (folder / f'{name}_noise_model' for name in ('high', 'low'))
  two = first.is_dir() and second.is_dir()
  paths = dict(
    transformer=first if two else folder,
    transformer_2=second if two else None,
    vae=next(iter(sorted(folder.glob('Wan2*_VAE.*'))), None),
    text_encoder=next(iter(sorted(folder.glob('models_t5_*'))), None),
    tokenizer=folder / 'google/umt5-xxl',
  )
  return Files(
    **{
      kind: os.fspath(path) if path and path.exists() else None
      for kind, path in paths.items()
    }
  )


def is_original(path) -> bool:
  """Whether the path is a folder of Wan's own repository."""
  path = pathlib.Path(path)
  return path.is_dir() and original_files(path).vae is not None


def is_pipeline(path) -> bool:
  """Whether the path is the folder of a published pipeline."""
  return (pathlib.Path(path) / INDEX).is_file()


def open_pipeline(
  folder,
  *,
  transformer: str | None = None,
  variant: str | None = None,
  files: Files = NO_FILES,
) -> Pipeline:
  """Opens a pipeline's folder and checks all of its networks.

  Args:
    folder: folder of model_index.json; None if there are files of all networks.
    transformer: 'transformer' or 'transformer_2' opens one of two alone; None
      opens all transformers.
    variant: dtype variant of the files, such as 'bf16'.
    files: files that replace networks of the folder.

  Raises:
    SettingError: a network of which there is neither a folder nor a file.
    ValueError: another family, a variant that is not supported, or weights
      that are missing, damaged or of other sizes than their configs.
  """
  if folder is None:
    return _open_files(files)
  folder = pathlib.Path(folder)
  index = tensor_files.read_json(folder / INDEX)
  config_json.check_class(index.get('_class_name'), PIPELINES, folder / INDEX)
  paths = {
    kind: getattr(files, kind) or folder / kind
    for kind in ('transformer', 'vae', 'text_encoder')
  }
  if not files.transformer:
    paths['transformer'] = folder / (transformer or 'transformer')
  if files.image_encoder or (folder / 'image_encoder').is_dir():
    paths['image_encoder'] = files.image_encoder or folder / 'image_encoder'
  parts = {
    kind: open_part(path, kind, variant=variant) for kind, path in paths.items()
  }
  _check_fit(folder, **{kind: part.config for kind, part in parts.items()})
  scheduler = tensor_files.read_json(folder / SCHEDULER)
  second = files.transformer_2
  if transformer is None and not (files.transformer and not second):
    if second or _has_two(folder, index):
      parts[SECOND] = _open_second(
        second or folder / SECOND, parts['transformer'], variant=variant
      )
  if second and index.get('boundary_ratio') is None:
    image = parts['transformer'].config.cond_channels > 0
    index |= {'boundary_ratio': IMAGE_BOUNDARY if image else BOUNDARY}
  tokenizer = find_tokenizer(files, parts['text_encoder'], folder / TOKENIZER)
  return Pipeline(
    folder, **parts, index=index, scheduler=scheduler, tokenizer=tokenizer
  )


def _open_second(path, first: Part, *, variant: str | None = None) -> Part:
  second = open_part(path, 'transformer', variant=variant)
  if second.config != first.config:
    raise ValueError(
      f'{path} is {second.config}, {first.path} {first.config}: expected two '
      'of the same sizes'
    )
  return second


def _open_files(files: Files) -> Pipeline:
  """A pipeline of single files, with the settings of the published ones."""
  path = pathlib.Path(files.transformer or '')
  names, paths, parts = [], {}, {}
  if files.transformer:
    parts['transformer'] = open_part(path, 'transformer')
    if path.is_file():
      names = families.components(weight_files.open_tensors(path))
  kinds = ['transformer', 'vae', 'text_encoder']
  if parts and parts['transformer'].config.image_width:
    kinds.append('image_encoder')
  elif files.image_encoder:
    raise SettingError(
      'image_encoder',
      files.image_encoder,
      f'none, since {path} sees no embeddings of images',
    )
  for kind in kinds:
    paths[kind] = getattr(files, kind)
    if not paths[kind] and kind in names:  # one file of all networks
      paths[kind] = files.transformer
    if not paths[kind]:
      raise SettingError(
        kind,
        None,
        f'a file of {families.DESCRIPTIONS[kind]}'
        + (f', which {path} does not contain' if files.transformer else ''),
        hint='or set `checkpoint` to a folder with all networks',
      )
  for kind in kinds[1:]:
    parts[kind] = open_part(paths[kind], kind)
  _check_fit(path, **{kind: part.config for kind, part in parts.items()})
  if files.transformer_2:
    parts[SECOND] = _open_second(files.transformer_2, parts['transformer'])
  residual = parts['vae'].config.is_residual
  boundary, image = None, parts['transformer'].config.cond_channels > 0
  if files.transformer_2:
    boundary = IMAGE_BOUNDARY if image else BOUNDARY
  index = {
    '_class_name': 'WanPipeline',
    'boundary_ratio': boundary,
    'expand_timesteps': residual,
  }
  model = '2.2' if residual else 'A14B' if boundary else '2.1'
  shift = SHIFTS['2.2' if image and boundary else model]
  tokenizer = find_tokenizer(files, parts['text_encoder'], None)
  return Pipeline(
    path,
    **parts,
    index=index,
    scheduler=SCHEDULER_CONFIG | {'flow_shift': shift},
    tokenizer=tokenizer,
  )


def find_tokenizer(
  files: Files, encoder: Part, folder: pathlib.Path | None
) -> pathlib.Path | bytes:
  """The tokenizer: a setting's, that in the text encoder's file, or the
  folder's.

  Raises:
    SettingError: none of these.
  """
  if files.tokenizer:
    return pathlib.Path(files.tokenizer)
  if umt5.TOKENIZER in encoder.extra:
    return bytes(encoder.extra[umt5.TOKENIZER].raw())
  if folder is None:
    raise SettingError(
      'tokenizer',
      None,
      f'a sentencepiece model or tokenizer.json, since {encoder.path} has none',
    )
  return folder


def read_boundary(folder: pathlib.Path) -> float | None:
  """The noise level below which the second of two transformers is used, though
  one of them may not be there; None of a model with one transformer.

  Raises:
    ValueError: a second transformer without a boundary level, or a level that
      is not one.
  """
  index = tensor_files.read_json(folder / INDEX)
  boundary = index.get('boundary_ratio')
  if isinstance(boundary, (int, float)) and 0 < boundary < 1:
    return float(boundary)
  if boundary is None and not (folder / SECOND).is_dir():
    return None
  raise _bad_boundary(folder, boundary)


def _has_two(folder: pathlib.Path, index: Mapping) -> bool:
  """Whether the folder has a second transformer, with its boundary level.

  Raises:
    ValueError: a second transformer without a boundary level, or the reverse.
  """
  boundary, held = index.get('boundary_ratio'), (folder / SECOND).is_dir()
  if boundary is None and not held:
    return False
  number = isinstance(boundary, (int, float)) and 0 < boundary < 1
  if not held or not number:
    raise _bad_boundary(folder, boundary)
  return True


def _bad_boundary(folder: pathlib.Path, boundary) -> ValueError:
  held = (folder / SECOND).is_dir()
  return ValueError(
    f'{folder / INDEX}: boundary_ratio={boundary}, and {SECOND}/ is '
    f'{"there" if held else "missing"}: expected both, or neither; '
    'boundary_ratio is the level below which the second transformer is used, '
    'such as 0.875'
  )


def open_part(path, kind: str, *, variant: str | None = None) -> Part:
  """Opens one network from its folder, a file, or an index of shards.

  Args:
    path: path of the network; in a pipeline's folder, the folder of that kind
      is opened.
    kind: 'transformer', 'vae', 'text_encoder' or 'image_encoder'.
    variant: dtype variant of the files, such as 'bf16'.

  Raises:
    ValueError: weights that are missing, damaged, of another model, or of
      other sizes than the config beside them.
  """
  path = pathlib.Path(path)
  if is_pipeline(path):
    path = path / kind
  weights = path
  if not path.is_file() and path.suffix not in SUFFIXES:
    weights = tensor_files.find(path, variant=variant)
  opened = weight_files.open_tensors(weights)
  names = families.component(kind, opened)
  families.check(kind, names, path)
  extra = {
    name.rpartition('.')[2]: opened[name]
    for name in opened
    if name.rpartition('.')[2] in weight_files.BYTES
  }
  names = [n for n in names if n.rpartition('.')[2] not in extra]
  names = networks.published_names(kind, names, path)
  tensors = {published: opened[name] for name, published in names.items()}
  sizes = weights.parent / CONFIG
  if _belongs(sizes, weights):
    values = tensor_files.read_json(sizes)
    config = networks.FORMATS[kind].read_config(values, sizes)
    if values.get('_class_name') == 'WanModel':
      config = wan_transformer.without_images(config, tensors)
  elif kind == 'transformer':
    config = infer_config(tensors, weights)
  else:
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    config = networks.FORMATS[kind].infer_config(shapes, weights)
  network = networks.of(config)
  networks.check(network, tensors, path)
  params = parameters_lib.parameters(network, tensors)
  return Part(network, params, path, extra)


def _belongs(config: pathlib.Path, weights: pathlib.Path) -> bool:
  """Whether a config.json beside weights is theirs: in a folder of several
  models it is not."""
  if not config.is_file():
    return False
  names = (f'{stem}.' for stem in tensor_files.STEMS)
  if weights.name.startswith(tuple(names)) or weights.suffix == '.json':
    return True
  kinds = ('.safetensors', *tensor_files.PICKLES, '.gguf')
  beside = [p for p in weights.parent.iterdir() if p.suffix in kinds]
  return beside == [weights]


def infer_config(
  tensors: Mapping[str, tensor_files.Tensor], where: pathlib.Path
) -> dit.DiTConfig:
  """Infers the sizes of a transformer from its tensors, without a config.

  Raises:
    ValueError: missing tensors, or a head size other than HEAD.
  """
  wan_transformer.check_names(tensors)
  width, channels, *patch = tensors['patch_embedding.weight'].shape
  out = tensors['proj_out.weight'].shape[0] // math.prod(patch)
  kind = wan_transformer.variant_of_names(tensors)
  if width % HEAD:
    raise ValueError(
      f'{where}: the number of heads does not follow from a width of {width}: '
      f'expected a multiple of {HEAD}, or {CONFIG} beside the file'
    )
  time, words = (
    tensors[f'condition_embedder.{name}_embedder.linear_1.weight']
    for name in ('time', 'text')
  )
  return dit.DiTConfig(
    channels=out,
    patch=tuple(patch),
    width=width,
    heads=width // HEAD,
    layers=wan_transformer.count_layers(tensors),
    mlp=tensors['blocks.0.ffn.net.0.proj.weight'].shape[0],
    text_width=words.shape[1],
    frequencies=time.shape[1],
    cond_channels=channels - out,
    **_variant_sizes(tensors, kind),
  )


def _variant_sizes(tensors, kind: wan_transformer.Variant) -> dict:
  """Sizes of a transformer that only some variants have."""
  sizes = {}
  if kind.image:
    name = wan_transformer.IMAGE_EMBEDDER + 'norm1.weight'
    sizes['image_width'] = tensors[name].shape[0]
  if kind.image_position:
    sizes['image_tokens'] = tensors[wan_transformer.IMAGE_POSITION].shape[1]
  if kind.control:
    # Published models have them at equal distances, from the first layer on.
    step = wan_transformer.count_layers(tensors) // kind.control
    sizes['control_layers'] = tuple(step * i for i in range(kind.control))
    name = 'vace_patch_embedding.weight'
    sizes['control_channels'] = tensors[name].shape[1]
  if kind.flow_map:
    sizes['flow_map'] = wan_transformer.CLASS_CONFIG[wan_transformer.ANYFLOW][
      'gate_value'
    ]
  return sizes


def _check_fit(
  folder, *, transformer, vae, text_encoder, image_encoder=None
) -> None:
  faults = []
  time, height, width = wan.WanAutoencoder(vae).stride
  if transformer.cond_channels not in (0, time + vae.z_dim):
    faults.append(
      f'transformer/ has {transformer.cond_channels} channels of conditioning '
      f'beside its latents, not 0 or {time + vae.z_dim}, a mask and latents'
    )
  control = 2 * vae.z_dim + height * width
  if transformer.control_layers and transformer.control_channels != control:
    faults.append(
      f'transformer/ has {transformer.control_channels} control channels, not '
      f'{control}, two latents and a mask'
    )
  if transformer.image_width != (
    image_encoder.hidden_size if image_encoder else 0
  ):
    has = (
      f'of width {image_encoder.hidden_size}' if image_encoder else 'missing'
    )
    faults.append(
      f'transformer/ has embeddings of images of width '
      f'{transformer.image_width}, image_encoder/ is {has}'
    )
  if transformer.channels != vae.z_dim:
    faults.append(
      f'transformer/ has {transformer.channels} input channels, vae/ has '
      f'{vae.z_dim} latent channels'
    )
  if transformer.text_width != text_encoder.d_model:
    faults.append(
      f'transformer/ has text of width {transformer.text_width}, '
      f'text_encoder/ has {text_encoder.d_model}'
    )
  if faults:
    raise ValueError(
      f'{folder}: {"; ".join(faults)}: expected networks of one model'
    )
