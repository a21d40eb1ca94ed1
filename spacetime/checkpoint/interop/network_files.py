"""Places of the networks of a published model: one folder, or single files.

The folder is a pipeline's, as diffusers writes it, or Wan's own repository.
"""

import dataclasses
import os
import pathlib
import warnings

from spacetime import SettingError, SettingWarning
from spacetime.media import files as files_lib

INDEX = 'model_index.json'


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


def of_transformer(path, *, transformer: str | None = None) -> Files:
  """The files of a published transformer, or of Wan's own repository.

  Args:
    path: file or folder of the transformer, or folder of the repository.
    transformer: 'transformer' or 'transformer_2' takes one of a repository's
      two alone; None takes both.
  """
  if not is_original(path):
    return Files(transformer=os.fspath(path))
  files = original_files(path)
  if transformer is None:
    return files
  return dataclasses.replace(
    files, transformer=getattr(files, transformer), transformer_2=None
  )


def with_transformer(
  files: Files, path, *, transformer: str | None = None
) -> Files:
  """Files, and those of a published transformer or of Wan's own repository.

  Args:
    files: files, which replace those of the repository.
    path, transformer: see of_transformer.

  Raises:
    SettingError: the file of a transformer beside another transformer.
  """
  if files.transformer and not is_original(path):
    raise SettingError(
      'transformer',
      files.transformer,
      f'none beside {path}, which is a transformer too; leave one of them out',
    )
  other = of_transformer(path, transformer=transformer)
  if other.transformer_2:
    warn_of_one(files, path)
  return files.over(other)


def warn_of_one(files: Files, path) -> None:
  """Warns of one file from elsewhere in place of two transformers."""
  if not files.transformer or files.transformer_2:
    return
  if pathlib.Path(files.transformer).parent != pathlib.Path(path):
    warnings.warn(
      SettingWarning(
        'transformer',
        files.transformer,
        f'it serves all noise levels, in place of both transformers of {path}: '
        'for two, set `transformer_2` too',
      ),
      stacklevel=2,
    )


def is_pipeline(path) -> bool:
  """Whether the path is the folder of a published pipeline."""
  return (pathlib.Path(path) / INDEX).is_file()
