"""Writes a trained model as a weights folder: safetensors, config, tokenizer.

python -m spacetime.export --checkpoint=runs/digits --out=models/digits
"""

import pathlib
import shutil

import jax
from absl import flags

from spacetime import build, checkpoint, command, pretrained, sharding

_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'A work directory.')
_OUT = flags.DEFINE_string('out', None, 'The folder to make.')
_DTYPE = flags.DEFINE_enum(
  'dtype',
  'float32',
  ['float32', 'float16', 'bfloat16'],
  'What the numbers are stored as; loading makes them float32 again.',
)


def main() -> None:
  """Loads the averaged parameters and writes them."""
  if not _CHECKPOINT.value or not _OUT.value:
    raise ValueError('--checkpoint and --out: expected both; see --help')
  mesh = sharding.make_mesh(
    sharding.MeshConfig(data=1), devices=jax.devices()[:1]
  )
  folder = build.resolve(_CHECKPOINT.value)
  config = checkpoint.read_config(folder)
  if config['stage'] == 'autoencoder':
    codec = build.autoencoder(config)
    if not codec.cfg.latents_std:
      raise ValueError(
        f'{folder}: its latents have not been measured, which happens when '
        'training ends; train it to train.steps, or change --checkpoint'
      )
    params = pretrained.load_own(config, folder, mesh=mesh)
  else:
    params = pretrained.load(folder, mesh=mesh).params
  # The folder of somebody's clips is not a part of a model.
  config['data']['dir'] = pathlib.Path(config['data']['dir']).name
  checkpoint.save_weights(
    _OUT.value,
    jax.tree.map(lambda leaf: leaf.astype(_DTYPE.value), params),
    config=config,
    tokenizer=checkpoint.read_tokenizer(folder),
  )
  if config['autoencoder']['kind'] == 'weights':
    name = config['autoencoder']['weights']  # a run's copy, by a name within
    shutil.copytree(
      pathlib.Path(folder) / name, pathlib.Path(_OUT.value) / name
    )
  print(f'{_OUT.value}: {checkpoint.weights_hash(_OUT.value)}')


if __name__ == '__main__':
  command.run(main)
