"""Why eight devices differ from one: rounding, and what amplifies it.

  PYTHONPATH=. python tests/benchmarks/device_rounding.py

Largest differences of a tiny Wan's latents, in deviations of the latents:
eight emulated devices against one, and one device against itself with initial
noise that is changed by one unit in the last place. Where both grow alike with
guidance and steps, the difference is that of the order of float32 sums.
"""

import dataclasses
import pathlib
import tempfile
from unittest import mock

import jax
import numpy as np

import spacetime
from spacetime.diffusion.sampler import Sampler
from spacetime.pipeline import decode
from tests.helpers import published_folder

MESH = {'fsdp': 2, 'context': 2, 'tensor': 2}
CASES = (
  dict(steps=1, guidance=1.0, solver='euler'),
  dict(steps=3, guidance=1.0, solver='euler'),
  dict(steps=3, guidance=1.0, solver='unipc'),
  dict(steps=1, guidance=5.0, solver='euler'),
  dict(steps=3, guidance=5.0, solver='euler'),
  dict(steps=3, guidance=5.0, solver='unipc'),
)


def main() -> None:
  """Prints a line for each case: eight devices, one unit."""
  jax.config.update('jax_num_cpu_devices', 8)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name) / 'wan'
    text = dataclasses.replace(published_folder.TEXT, d_model=16)
    with mock.patch.object(published_folder, 'TEXT', text):
      published_folder.write(folder, width=48, heads=8, mlp=48, text_width=16)
    for case in CASES:
      one = sampled(folder, None, case)
      eight = sampled(folder, MESH, case)
      moved = sampled(folder, None, case, ulp=True)
      scale = max(1.0, one.std())
      differences = [np.abs(z - one).max() / scale for z in (eight, moved)]
      print(case, *(f'{x:.1e}' for x in differences), flush=True)


def sampled(
  path: pathlib.Path, mesh, settings: dict, *, ulp: bool = False
) -> np.ndarray:
  """Latents of a clip.

  Args:
    path: the model.
    mesh: the mesh, or None.
    settings: settings of the sampler.
    ulp: whether the noise is changed by a unit in the last place.
  """
  seen, init = [], Sampler.init

  def keep(self, z_Bfhwc):
    seen.append(np.asarray(z_Bfhwc))
    raise StopIteration

  def change(self, *arguments):
    state = init(self, *arguments)
    return jax.tree.map(lambda x: x * np.float32(1 + 2**-23), state)

  with (
    mock.patch.object(decode.Decoder, '__call__', keep),
    mock.patch.object(Sampler, 'init', change if ulp else init),
  ):
    pipe = spacetime.load(str(path), mesh=mesh, progress=False)
    try:
      pipe(
        'a red 3 moves to the right',
        frames=5,
        size=(32, 16),
        seed=3,
        prompt_embeds_cache='',
        **settings,
      )
    except (StopIteration, RuntimeError):
      pass
  return seen[0][:1]  # without the rows that fill a batch


if __name__ == '__main__':
  main()
