"""Opens, checks and reads folders and files of published weights.

A pipeline's folder, as diffusers writes it:

  model_index.json
  transformer/ [transformer_2/] vae/ text_encoder/   config.json, safetensors
  tokenizer/ scheduler/
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np

from spacetime.checkpoint.interop import (
  config_json,
  networks,
  tensor_files,
  wan_transformer,
)
from spacetime.checkpoint.interop import parameters as parameters_lib
from spacetime.models.transformer import dit

INDEX, CONFIG = 'model_index.json', 'config.json'
SCHEDULER = 'scheduler/scheduler_config.json'
TOKENIZER = 'tokenizer'
SECOND = 'transformer_2'
# Head size of every published transformer.
HEAD = 128


@dataclasses.dataclass(frozen=True)
class Part:
  """One network of a published model: its sizes and its tensors.

  Attributes:
    network: names, layouts and shapes of its tensors, with its config.
    parameters: parameters by path.
    path: the folder or file.
  """

  network: networks.Network
  parameters: Mapping[str, parameters_lib.Parameter]
  path: pathlib.Path

  @property
  def config(self):
    """DiTConfig, WanAutoencoderConfig or TextConfig."""
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

  def fingerprint(self) -> str:
    """Fingerprint of some bytes of each array, in hex digits."""
    digest, root = hashlib.sha256(), networks.ROOTS[self.network.kind]
    for path, parameter in sorted(self.parameters.items()):
      for tensor in parameter.tensors:
        digest.update(f'{root}.{path} {tensor.shape} {tensor.dtype}'.encode())
        data = tensor.view().reshape(-1)
        digest.update(data[:512].tobytes() + data[-512:].tobytes())
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
class Pipeline:
  """A published text-to-video model.

  Attributes:
    folder: folder of model_index.json.
    transformer, vae, text_encoder: the networks.
    index: contents of model_index.json.
    scheduler: contents of scheduler_config.json.
    transformer_2: the transformer of the lower noise levels, of two.
  """

  folder: pathlib.Path
  transformer: Part
  vae: Part
  text_encoder: Part
  index: dict
  scheduler: dict
  transformer_2: Part | None = None

  @property
  def parts(self) -> dict[str, Part]:
    """The networks by the roots of their parameters; 'dit_2' is the second
    transformer."""
    parts = (self.transformer, self.text_encoder, self.vae)
    by_root = {networks.ROOTS[part.network.kind]: part for part in parts}
    return by_root | ({'dit_2': self.transformer_2} if self.boundary else {})

  @property
  def boundary(self) -> float | None:
    """The noise level below which the second of two transformers is used."""
    return self.transformer_2 and self.index['boundary_ratio']

  @property
  def tokenizer(self) -> pathlib.Path:
    """The tokenizer's folder."""
    return self.folder / TOKENIZER

  def fingerprint(self) -> str:
    """Fingerprint of some bytes of each array, 16 hex digits."""
    prints = (part.fingerprint() for part in self.parts.values())
    return hashlib.sha256(''.join(prints).encode()).hexdigest()[:16]


def is_pipeline(path) -> bool:
  """Whether the path is the folder of a published pipeline."""
  return (pathlib.Path(path) / INDEX).is_file()


def open_pipeline(
  folder,
  *,
  transformer: str | None = None,
  variant: str | None = None,
) -> Pipeline:
  """Opens a pipeline's folder and checks all of its networks.

  Args:
    folder: folder of model_index.json.
    transformer: 'transformer' or 'transformer_2' opens one of two alone; None
      opens all transformers.
    variant: dtype variant of the files, such as 'bf16'.

  Raises:
    ValueError: another family, a variant that is not supported, or weights
      that are missing, damaged or of other sizes than their configs.
  """
  folder = pathlib.Path(folder)
  index = tensor_files.read_json(folder / INDEX)
  config_json.check_class(
    index.get('_class_name'), ('WanPipeline',), folder / INDEX
  )
  kinds = {
    'transformer': transformer or 'transformer',
    'vae': 'vae',
    'text_encoder': 'text_encoder',
  }
  parts = {
    kind: open_part(folder / name, kind, variant=variant)
    for kind, name in kinds.items()
  }
  _check_fit(folder, **{kind: part.config for kind, part in parts.items()})
  scheduler = tensor_files.read_json(folder / SCHEDULER)
  if transformer is None and _has_two(folder, index):
    second = open_part(folder / SECOND, 'transformer', variant=variant)
    if second.config != parts['transformer'].config:
      raise ValueError(
        f'{folder}: {SECOND}/ is {second.config}, transformer/ '
        f'{parts["transformer"].config}: expected two of the same sizes'
      )
    parts['transformer_2'] = second
  return Pipeline(folder, **parts, index=index, scheduler=scheduler)


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
    raise ValueError(
      f'{folder / INDEX}: boundary_ratio={boundary}, and {SECOND}/ is '
      f'{"there" if held else "missing"}: expected both, or neither; '
      'boundary_ratio is the level below which the second transformer is used, '
      'such as 0.875'
    )
  return True


def open_part(path, kind: str, *, variant: str | None = None) -> Part:
  """Opens one network from its folder, a file, or an index of shards.

  Args:
    path: path of the network; in a pipeline's folder, the folder of that kind
      is opened.
    kind: 'transformer', 'vae' or 'text_encoder'.
    variant: dtype variant of the files, such as 'bf16'.

  Raises:
    ValueError: weights that are missing, damaged, of another model, or of
      other sizes than the config beside them.
  """
  path = pathlib.Path(path)
  if is_pipeline(path):
    path = path / kind
  weights = path
  if not path.is_file() and path.suffix not in tensor_files.PICKLES:
    weights = tensor_files.find(path, variant=variant)
  opened = tensor_files.open_tensors(weights)
  names = networks.published_names(kind, opened, path)
  tensors = {published: opened[name] for name, published in names.items()}
  sizes = weights.parent / CONFIG
  if sizes.is_file():
    config = networks.FORMATS[kind].read_config(
      tensor_files.read_json(sizes), sizes
    )
  elif kind == 'transformer':
    config = infer_config(tensors, weights)
  else:
    raise ValueError(f"{sizes}: no such file; expected the {kind}'s sizes")
  network = networks.of(config)
  networks.check(network, tensors, path)
  return Part(network, parameters_lib.parameters(network, tensors), path)


def infer_config(
  tensors: Mapping[str, tensor_files.Tensor], where: pathlib.Path
) -> dit.DiTConfig:
  """Infers the sizes of a transformer from its tensors, without a config.

  Raises:
    ValueError: missing tensors, or a head size other than HEAD.
  """
  networks.refuse_foreign('transformer', tensors, where)
  wan_transformer.check_names(tensors)
  width, channels, *patch = tensors['patch_embedding.weight'].shape
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
    channels=channels,
    patch=tuple(patch),
    width=width,
    heads=width // HEAD,
    layers=wan_transformer.count_layers(tensors),
    mlp=tensors['blocks.0.ffn.net.0.proj.weight'].shape[0],
    text_width=words.shape[1],
    frequencies=time.shape[1],
  )


def _check_fit(folder, *, transformer, vae, text_encoder) -> None:
  faults = []
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
