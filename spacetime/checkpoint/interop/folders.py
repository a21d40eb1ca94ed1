"""Opens and checks published models: folders of a pipeline, or single files.

A pipeline's folder, as diffusers writes it:

  model_index.json
  transformer/ [transformer_2/] vae/ text_encoder/   config.json, safetensors
  tokenizer/ scheduler/
"""

import dataclasses
import hashlib
import os
import pathlib
import warnings
from collections.abc import Mapping

from spacetime import SettingError, SettingWarning
from spacetime.checkpoint.interop import (
  config_json,
  families,
  network_files,
  networks,
  tensor_files,
  umt5,
  weight_files,
)
from spacetime.checkpoint.interop import parts as parts_lib
from spacetime.models.autoencoder import wan

SCHEDULER = 'scheduler/scheduler_config.json'
TOKENIZER = 'tokenizer'
SECOND = 'transformer_2'
PIPELINES = (
  'WanPipeline',
  'WanImageToVideoPipeline',
  'WanVACEPipeline',
  'AnyFlowPipeline',
)
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
  transformer: parts_lib.Part
  vae: parts_lib.Part
  text_encoder: parts_lib.Part
  index: dict
  scheduler: dict
  tokenizer: pathlib.Path | bytes
  transformer_2: parts_lib.Part | None = None
  image_encoder: parts_lib.Part | None = None

  @property
  def parts(self) -> dict[str, parts_lib.Part]:
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


def open_pipeline(
  folder,
  *,
  transformer: str | None = None,
  variant: str | None = None,
  files: network_files.Files = network_files.NO_FILES,
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
  index = tensor_files.read_json(folder / network_files.INDEX)
  config_json.check_class(
    index.get('_class_name'), PIPELINES, folder / network_files.INDEX
  )
  paths = {
    kind: getattr(files, kind) or folder / kind
    for kind in ('transformer', 'vae', 'text_encoder')
  }
  if not files.transformer:
    paths['transformer'] = folder / (transformer or 'transformer')
  if files.image_encoder or (folder / 'image_encoder').is_dir():
    paths['image_encoder'] = files.image_encoder or folder / 'image_encoder'
  parts = {
    kind: parts_lib.open_part(path, kind, variant=variant)
    for kind, path in paths.items()
  }
  model = parts['transformer']
  if model.config.image_width and 'image_encoder' not in parts:
    raise SettingError(
      'image_encoder',
      None,
      f'a file of {families.DESCRIPTIONS["image_encoder"]}, since '
      f'{model.path} sees embeddings of images and {folder} has no '
      'image_encoder',
    )
  if files.image_encoder and not model.config.image_width:
    raise _unseen_image_encoder(files.image_encoder, model.path)
  _check_fit(**parts)
  scheduler = tensor_files.read_json(folder / SCHEDULER)
  second = files.transformer_2
  if transformer is None and not (files.transformer and not second):
    if second or _has_two(folder, index):
      parts[SECOND] = _open_second(
        second or folder / SECOND, parts['transformer'], variant=variant
      )
  elif transformer is None and (folder / SECOND).is_dir():
    network_files.warn_of_one(files, folder)
  if second and index.get('boundary_ratio') is None:
    image = parts['transformer'].config.cond_channels > 0
    index |= {'boundary_ratio': IMAGE_BOUNDARY if image else BOUNDARY}
  tokenizer = find_tokenizer(files, parts['text_encoder'], folder / TOKENIZER)
  return Pipeline(
    folder, **parts, index=index, scheduler=scheduler, tokenizer=tokenizer
  )


def _open_second(
  path, first: parts_lib.Part, *, variant: str | None = None
) -> parts_lib.Part:
  second = parts_lib.open_part(path, 'transformer', variant=variant)
  sizes = dataclasses.asdict(first.config)
  differ = [
    f'{name}={value}, not {sizes[name]}'
    for name, value in dataclasses.asdict(second.config).items()
    if value != sizes[name]
  ]
  if differ:
    raise ValueError(
      f'{path} has {"; ".join(differ)}: expected the sizes of {first.path}, '
      'since two transformers are of one model'
    )
  if os.path.exists(path) and os.path.samefile(path, first.path):
    warnings.warn(
      SettingWarning(
        SECOND,
        os.fspath(path),
        'the same as `transformer`: expected that of the lower noise levels',
      ),
      stacklevel=2,
    )
  return second


def _open_files(files: network_files.Files) -> Pipeline:
  """A pipeline of single files, with the settings of the published ones."""
  path = pathlib.Path(files.transformer or '')
  names, paths, parts = [], {}, {}
  if files.transformer:
    parts['transformer'] = parts_lib.open_part(path, 'transformer')
    if path.is_file():
      names = families.components(weight_files.open_tensors(path))
  kinds = ['transformer', 'vae', 'text_encoder']
  if parts and parts['transformer'].config.image_width:
    kinds.append('image_encoder')
  elif files.image_encoder:
    raise _unseen_image_encoder(files.image_encoder, path)
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
    parts[kind] = parts_lib.open_part(paths[kind], kind)
  _check_fit(**parts)
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


def _unseen_image_encoder(encoder: str, transformer) -> SettingError:
  return SettingError(
    'image_encoder',
    encoder,
    f'none, since {transformer} sees no embeddings of images',
  )


def find_tokenizer(
  files: network_files.Files,
  encoder: parts_lib.Part,
  folder: pathlib.Path | None,
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
  index = tensor_files.read_json(folder / network_files.INDEX)
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
    f'{folder / network_files.INDEX}: boundary_ratio={boundary}, and {SECOND}/ '
    f'is {"there" if held else "missing"}: expected both, or neither; '
    'boundary_ratio is the level below which the second transformer is used, '
    'such as 0.875'
  )


def _check_fit(
  *,
  transformer: parts_lib.Part,
  vae: parts_lib.Part,
  text_encoder: parts_lib.Part,
  image_encoder: parts_lib.Part | None = None,
) -> None:
  config, latents = transformer.config, vae.config
  faults = []
  time, height, width = wan.WanAutoencoder(latents).stride
  if config.cond_channels not in (0, time + latents.z_dim):
    faults.append(
      f'{config.cond_channels} channels of conditioning beside its latents, '
      f'expected 0 or {time + latents.z_dim}, a mask and the latents of '
      f'{vae.path}'
    )
  control = 2 * latents.z_dim + height * width
  if config.control_layers and config.control_channels != control:
    faults.append(
      f'{config.control_channels} control channels, expected {control}, a mask '
      f'and two latents of {vae.path}'
    )
  expected = image_encoder.config.hidden_size if image_encoder else 0
  if config.image_width != expected:
    source = (
      f'that of {image_encoder.path}'
      if image_encoder
      else ('as there is no image encoder')
    )
    faults.append(
      f'embeddings of images of width {config.image_width}, expected '
      f'{expected}, {source}'
    )
  if config.channels != latents.z_dim:
    faults.append(
      f'{config.channels} latent channels, expected {latents.z_dim}, those of '
      f'{vae.path}'
    )
  if config.text_width != text_encoder.config.d_model:
    faults.append(
      f'text of width {config.text_width}, expected '
      f'{text_encoder.config.d_model}, that of {text_encoder.path}'
    )
  if faults:
    raise ValueError(
      f'{transformer.path} has {"; ".join(faults)}: take networks of one model'
    )
