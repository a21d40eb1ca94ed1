"""Diffusers' names of settings, accepted by Pipeline and by the flags."""

from spacetime import SettingError

# Diffusers' name -> the setting.
ALIASES = {
  'num_inference_steps': 'steps',
  'guidance_scale': 'guidance',
  'guidance_scale_2': 'guidance_2',
  'flow_shift': 'shift',
  'skip_guidance_layers': 'skip_layers',
  'skip_layer_guidance_scale': 'skip_layer_scale',
  'num_frames': 'frames',
  'num_videos_per_prompt': 'num',
}
# Diffusers' two names of one setting, `size`: (width, height).
SIZE = ('width', 'height')


def renamed(settings: dict) -> dict:
  """Settings by their own names, from keywords that may use diffusers'.

  Raises:
    SettingError: a setting is there twice, or `width` without `height`.
  """
  result = {}
  for name, value in settings.items():
    own = ALIASES.get(name, name)
    if own in result or (own != name and own in settings):
      raise SettingError(name, value, f'`{own}` once', hint='leave one out')
    result[own] = value
  sides = {name: result.pop(name, None) for name in SIZE}
  present = [name for name in SIZE if sides[name] is not None]
  if len(present) == 1:
    (other,) = set(SIZE) - set(present)
    raise SettingError(present[0], sides[present[0]], f'`{other}` too')
  if present:
    if result.get('size') is not None:
      raise SettingError('size', result['size'], '`size` or `width`, not both')
    result['size'] = tuple(sides.values())
  return result
