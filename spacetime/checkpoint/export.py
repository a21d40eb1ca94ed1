"""From a run to folders that others load."""

import pathlib
import shutil

import jax

from spacetime import checkpoint, sharding
from spacetime.checkpoint import init_weights, load, paths
from spacetime.checkpoint.interop import folders, parameters
from spacetime.checkpoint.interop import lora as lora_lib
from spacetime.checkpoint.locate import locate
from spacetime.config import networks, parse
from spacetime.config.experiment import Experiment
from spacetime.models.transformer import lora as transformer_lora

LORA = (*lora_lib.DIALECTS, 'merged')


def write(
  path: str,
  out: pathlib.Path,
  *,
  dtype=None,
  lora: str | None = None,
  base: str | None = None,
) -> str:
  """Writes the averaged parameters of a run.

  Args:
    path: the run.
    out: the folder, made anew.
    dtype: of what is written; None keeps it.
    lora: of low-rank pairs, one of LORA.
    base: the weights that the run started from, if they have moved.

  Returns:
    what the weights are called.

  Raises:
    ValueError: nothing there, another base than the run's, or pairs without
      `lora`.
  """
  folder = locate(path).folder
  experiment = checkpoint.read_experiment(folder)
  if experiment.stage == 'autoencoder':
    params = _autoencoder(folder, experiment)
    return _write_own(folder, out, experiment, params, dtype)
  trained, _ = load.find_autoencoder(experiment, beside=folder)
  nets = networks.networks(experiment, autoencoder=trained)
  if nets.lora.rank and not lora:
    raise ValueError(
      f'{path} holds low-rank pairs: expected --lora, one of {", ".join(LORA)}'
    )
  if lora and not nets.lora.rank:
    raise ValueError(
      f'--lora={lora}: {path} holds whole weights: expected none'
    )
  if lora in lora_lib.DIALECTS:
    return _write_pairs(folder, out, nets, lora, dtype)
  if nets.text_kind == 'frozen' or nets.lora.rank:
    return _write_tuned(folder, out, experiment, nets, dtype, base)
  params = load.load(folder, mesh=_mesh()).params
  return _write_own(folder, out, experiment, params, dtype)


def tuned(
  folder, nets: networks.Networks, base: init_weights.Base, mesh
) -> dict:
  """The parameters of a run that started from weights: {'dit'}, and 'text'
  where the base has one that was trained with it."""
  if not nets.lora.rank:
    return load_trained(folder, nets, mesh)
  params = base.load(nets, mesh, dtype=None)
  pairs = load_trained(folder, nets, mesh)['lora']
  merge = jax.jit(transformer_lora.merge, donate_argnums=0)
  return params | {'dit': merge(params['dit'], pairs, scale=nets.lora.scale)}


def load_trained(folder, nets: networks.Networks, mesh) -> dict:
  """What a run has trained, averaged."""
  shapes = load.placed(nets.init_trainable, mesh)
  return checkpoint.load_params(folder, shapes, tree='ema')


def find_base(
  folder, experiment: Experiment, nets, path: str | None
) -> init_weights.Base:
  """The very weights that a run started from.

  Raises:
    ValueError: none there, or others.
  """
  source = experiment.source
  if not source and not path:
    raise ValueError(
      f'{folder} did not start from weights: expected --base, a published '
      'folder of the same sizes, for its text encoder and autoencoder'
    )
  found = init_weights.open_base(path or source['path'], nets)
  if source and found.fingerprint != source['fingerprint']:
    raise ValueError(
      f'{found.path} has other weights ({found.fingerprint[:16]}) than '
      f'{folder} started from ({source["fingerprint"][:16]}); change --base'
    )
  return found


def _write_tuned(folder, out, experiment, nets, dtype, path) -> str:
  base = find_base(folder, experiment, nets, path)
  params = tuned(folder, nets, base, _mesh())
  if base.part is None:
    # The base's own folder has the rest: it is our own model, changed.
    own = checkpoint.read_experiment(base.folder)
    return _write_own(base.folder, out, own, params, dtype)
  place = base.part.path
  root = place.parent if place.is_dir() else None
  with paths.new_folder(out) as made:
    if root is None or not folders.is_pipeline(root):
      parameters.write(
        made / 'transformer', nets.dit.config, params['dit'], dtype=dtype
      )
    else:
      ignore = shutil.ignore_patterns(place.name)
      shutil.copytree(root, made, dirs_exist_ok=True, ignore=ignore)
      parameters.write(
        made / place.name, nets.dit.config, params['dit'], dtype=dtype
      )
  return f'{experiment.source["fingerprint"][:16]}, trained'


def _write_pairs(folder, out, nets, dialect: str, dtype) -> str:
  pairs = load_trained(folder, nets, _mesh())['lora']
  with paths.new_folder(out) as made:
    lora_lib.write(
      made / lora_lib.FILES[dialect],
      jax.device_get(pairs),
      nets.lora,
      nets.dit.config,
      dialect=dialect,
      dtype=dtype or 'float32',
    )
  return lora_lib.FILES[dialect]


def _write_own(folder, out, experiment: Experiment, params, dtype) -> str:
  # The folder of somebody's clips is not a part of a model.
  name = pathlib.Path(experiment.data.dir).name
  experiment = parse.replace(experiment, {'data.dir': name})
  checkpoint.save_weights(
    out,
    jax.tree.map(lambda leaf: leaf.astype(dtype or leaf.dtype), params),
    config=experiment.values,
    tokenizer=checkpoint.read_tokenizer(folder),
  )
  if experiment.autoencoder.kind == 'weights':
    name = experiment.autoencoder.weights  # a copy, by a name within
    shutil.copytree(pathlib.Path(folder) / name, out / name)
  return checkpoint.weights_hash(out)


def _autoencoder(folder, experiment: Experiment) -> dict:
  if not experiment.autoencoder.network.latents_std:
    raise ValueError(
      f'{folder}: its latents have not been measured, which happens when '
      'training ends; train it to train.steps, or change --checkpoint'
    )
  return load.load_own(experiment.autoencoder, folder, mesh=_mesh())


def _mesh():
  return sharding.single_device_mesh()
