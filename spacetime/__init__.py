"""spacetime: text-to-video diffusion on spacetime patches, in JAX.

Dimension letters, the suffix of every array's name:

  B  batch                    f h w c  latent frames, height, width, channels
  F H W C  pixel frames, height, width, channels
  N  tokens (patches)         V  patch volume: values in one patch
  D  model width              A  attention heads       E  head size
  M  MLP width                S  text tokens           Y  text width
  K  solver steps             L  layers (stacked)
  T  rows of a table of timesteps                G  clips in a packed sequence

Conventions, stated once:

  video_BFHWC   float32 in [-1, 1]; as bytes (uint8, 0 to 255): frames_BFHWC
  z_Bfhwc       latents, unit scale per channel
  timestep t    in [0, 1]; t = 0 is data, t = 1 is noise; one per latent frame
  noising       z_t = (1 - t) * z + t * noise
  velocity      noise - z, the derivative of z_t in t
  tokens_BS     int32 text tokens; 0 pads, 1 ends the text
"""

import importlib

__version__ = '0.1.0'

# Public names, imported on first use: `import spacetime` imports no JAX.
_PUBLIC = {
  'Pipeline': 'spacetime.pipeline.pipeline',
  'Video': 'spacetime.pipeline.video',
  'load': 'spacetime.pipeline.pipeline',
  'read_video': 'spacetime.pipeline.video',
  'train': 'spacetime.training.run',
}
__all__ = [*_PUBLIC, 'SettingError', 'SettingWarning', '__version__']


class SettingError(ValueError):
  """A setting whose value cannot work.

  Args:
    name: the setting in Python: a field of the sampling settings or of a
      request (`steps`), or a dotted config key (`train.accumulate`).
    value: the value that was refused.
    expected: the values that work. Other settings stand in backticks here and
      in the hint, so that a command can print them as flags.
    hint: a way out, if one is known.
  """

  def __init__(self, name: str, value, expected: str, *, hint: str = ''):
    self.name, self.value = name, value
    self.expected, self.hint = expected, hint
    message = f'{name}={value!r}: expected {expected}'
    super().__init__(f'{message}; {hint}' if hint else message)

  def __reduce__(self):
    return _setting_error, (self.name, self.value, self.expected, self.hint)


def _setting_error(name, value, expected, hint) -> SettingError:
  return SettingError(name, value, expected, hint=hint)


class SettingWarning(UserWarning):
  """A setting that works, but hardly as it was meant.

  Args:
    name: the setting, as of SettingError.
    value: its value.
    reason: such as 'no effect, since `guidance` is 1'; other settings stand in
      backticks.
  """

  def __init__(self, name: str, value, reason: str):
    self.name, self.value, self.reason = name, value, reason
    super().__init__(f'{name}={value!r}: {reason}')


def __getattr__(name: str):
  if name not in _PUBLIC:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
  return sorted(__all__)
