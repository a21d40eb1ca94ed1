"""Meshes that share the sampling of Wan's models over a few chips.

  spacetime compile --config=sampling_presets:14b-720p-v6e-8-50 \\
    --topology=v6e-8 --program=sample

A name is MODEL-SIZE-HARDWARE-STEPS: 1.3b, 5b or 14b; 480p or 720p; v6e-4,
v6e-8, v5e-8, v5e-16, v5p-8 (4 chips), tpu7x-8 (4 chips, 8 devices), or h100-1,
h100-2, h100-4, h100-8; 50 steps with guidance, or 4 without, as distilled
weights take them. A clip has 81 frames; of the 5B 121. `flags` has the flags of
`spacetime sample`; tests/benchmarks/sampling_presets.py computes memory and
seconds of each.

mesh.data takes the two branches of guidance, mesh.context the tokens of a clip,
as far as it divides them (and on GPUs the heads, since their kernel runs in no
ring). Devices that are left make further videos at once.
"""

import ml_collections

from experiments import wan_t2v_1_3b, wan_t2v_14b, wan_ti2v_5b

DEVICES = {
  **{'v6e-4': 4, 'v6e-8': 8, 'v5e-8': 8, 'v5e-16': 16},
  **{'v5p-8': 4, 'tpu7x-8': 8},
  **{'h100-1': 1, 'h100-2': 2, 'h100-4': 4, 'h100-8': 8},
}
MODELS = {'1.3b': wan_t2v_1_3b, '5b': wan_ti2v_5b, '14b': wan_t2v_14b}
SIZES = ('480p', '720p')
STEPS = (4, 50)
HEADS = {'1.3b': 12, '5b': 24, '14b': 40}
# Of a clip.
TOKENS = {
  ('1.3b', '480p'): 32_760,
  ('1.3b', '720p'): 75_600,
  ('5b', '480p'): 12_090,
  ('5b', '720p'): 27_280,
  ('14b', '480p'): 32_760,
  ('14b', '720p'): 75_600,
}


def names() -> list[str]:
  """All presets."""
  return [
    f'{model}-{size}-{hardware}-{steps}'
    for hardware in DEVICES
    for model in MODELS
    for size in SIZES
    for steps in STEPS
  ]


def split(name: str) -> tuple[str, str, str, int]:
  """(model, size, hardware, steps) of a name."""
  model, size, rest = name.split('-', 2)
  hardware, steps = rest.rsplit('-', 1)
  return model, size, hardware, int(steps)


def mesh(name: str) -> dict[str, int]:
  """Devices along data and context."""
  model, size, hardware, steps = split(name)
  devices, share = DEVICES[hardware], DEVICES[hardware]
  if steps > 4 and devices > 1:
    share //= 2
  heads = HEADS[model] if hardware.startswith('h100') else share
  while TOKENS[model, size] % share or heads % share:
    share //= 2  # numbers of devices are powers of 2
  return {'data': devices // share, 'context': share}


def videos(name: str) -> int:
  """Videos that are made at once, the fewest that share the devices."""
  data = mesh(name)['data']
  return data if split(name)[3] == 4 else -(-data // 2)


def flags(name: str) -> str:
  """The flags of `spacetime sample`."""
  _, _, _, steps = split(name)
  axes = [f'--mesh.{axis}={n}' for axis, n in mesh(name).items()]
  few = '--steps=4 --guidance=1' if steps == 4 else '--steps=50'
  return ' '.join([*axes, few])


def get_config(name: str = '14b-720p-v6e-8-50') -> ml_collections.ConfigDict:
  if name not in names():
    raise ValueError(
      f'expected MODEL-SIZE-HARDWARE-STEPS of {[*MODELS]}, {[*SIZES]}, '
      f'{[*DEVICES]} and {[*STEPS]}'
    )
  model, size, _, steps = split(name)
  base = '480p' if model == '1.3b' else size
  config = MODELS[model].get_config(base)
  if (model, size) == ('1.3b', '720p'):
    config.data.height, config.data.width = 720, 1280
  config.data.batch_size = videos(name)
  config.mesh.update(mesh(name) | {'fsdp': 1, 'tensor': 1})
  config.sampling.steps = steps
  if steps == 4:
    config.sampling.guidance = 1.0
  return config
