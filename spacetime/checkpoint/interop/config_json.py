"""Checks the class and the values of published config.json files."""

import difflib
import math

CLASSES = {
  'transformer': 'WanTransformer3DModel',
  'vae': 'AutoencoderKLWan',
  'text_encoder': 'UMT5EncoderModel',
  'image_encoder': 'CLIPVisionModel',
}
# Words in the class names of other families.
FAMILIES = {
  'LTX': 'LTX-Video',
  'Hunyuan': 'HunyuanVideo',
  'CogVideo': 'CogVideoX',
  'Mochi': 'Mochi',
  'Cosmos': 'Cosmos',
  'Allegro': 'Allegro',
  'SkyReels': 'SkyReels',
  'Flux': 'FLUX',
  'StableDiffusion': 'Stable Diffusion',
  'StableVideo': 'Stable Video Diffusion',
  'Qwen': 'Qwen-Image',
}
WAN_VARIANTS = {
  'VideoToVideo': 'video-to-video',
  'Animate': 'Animate',
  'S2V': 'speech-to-video',
}


def check_class(name: str | None, expected: tuple[str, ...], where) -> None:
  """Refuses a class of another family or variant; None is accepted.

  Raises:
    ValueError: another class; the message names its family or variant.
  """
  if name is None or name in expected:
    return
  text = 'an unknown class'
  if not isinstance(name, str):
    name = repr(name)
  for word, family in FAMILIES.items():
    if word in name:
      text = f'of {family}, another family of models'
  for word, variant in WAN_VARIANTS.items():
    if word in name and 'Wan' in name:
      text = f'the {variant} variant of Wan'
  raise ValueError(
    f'{where}: {name} is {text}: expected {" or ".join(expected)}; choose a '
    'folder of Wan 2.1 or 2.2'
  )


def with_defaults(values: dict, defaults: dict, where) -> dict:
  """Merges the values of a config.json into defaults; lists become tuples.

  Raises:
    ValueError: keys that are not in the defaults, or values of another kind.
  """
  unknown = []
  for key in sorted(values.keys() - defaults.keys()):
    if not key.startswith('_'):
      near = difflib.get_close_matches(key, defaults, n=1)
      unknown.append(f'{key}, like {near[0]}' if near else key)
  if unknown:
    raise ValueError(
      f'{where}: unknown keys {"; ".join(unknown)}: expected keys of '
      f'{sorted(defaults)}; the weights are of an unknown model'
    )
  for key in values.keys() & defaults.keys():
    if not _is_like(values[key], defaults[key]):
      raise ValueError(
        f'{where}: {key}={values[key]!r}: expected a value such as '
        f'{defaults[key]!r}'
      )
  return defaults | {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in values.items()
    if not key.startswith('_')
  }


def require(values: dict, where, **expected) -> None:
  """Raises ValueError unless the values are as expected."""
  for key, value in expected.items():
    if values[key] != value:
      raise ValueError(
        f'{where}: {key}={values[key]!r}: expected {value!r}, as in every '
        'model of Wan 2.1 and 2.2 that is supported'
      )


def _is_like(value, default) -> bool:
  """Whether a value of a config.json is of the kind of its default. Of None
  nothing follows but that texts and sections are no sizes."""
  if default is None:
    return not isinstance(value, (str, dict))
  if isinstance(default, bool):
    return isinstance(value, bool)
  if isinstance(default, (int, float)):
    kinds = int if isinstance(default, int) else (int, float)
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    # Sizes and epsilons: what is positive is positive in every model.
    return is_number and math.isfinite(value) and (value > 0 or default <= 0)
  if isinstance(default, tuple):
    integral = bool(default) and all(isinstance(n, int) for n in default)
    kinds = int if integral else (int, float)
    return isinstance(value, (list, tuple)) and all(
      isinstance(item, kinds) and math.isfinite(item) for item in value
    )
  return True
