"""Published folders downloaded by the name of their repository."""

import pathlib
import re

# Files of a published folder that are downloaded: no pickles, no images.
PATTERNS = (
  '*.json',
  '*.safetensors',
  '*/*.json',
  '*/*.safetensors',
  '*/*.model',
)


def is_name(path: str) -> bool:
  """Whether the path could be a repository, as 'Wan-AI/Wan2.1-T2V-1.3B'."""
  return re.fullmatch(r'\w[\w.-]*/\w[\w.-]*', path) is not None


def fetch(name: str) -> pathlib.Path:
  """Downloads a repository unless it is cached; returns its folder.

  Raises:
    ValueError: huggingface_hub is not installed, or the download fails.
  """
  try:
    import huggingface_hub
  except ImportError as e:
    raise ValueError(
      f'{name!r}: no such folder, and huggingface_hub, which would download a '
      'repository of that name, is not installed'
    ) from e
  try:
    return pathlib.Path(
      huggingface_hub.snapshot_download(name, allow_patterns=list(PATTERNS))
    )
  except Exception as e:
    raise ValueError(
      f'{name!r}: no such folder, and no repository of that name that can be '
      f'downloaded ({type(e).__name__}: {str(e)[:200]})'
    ) from e
