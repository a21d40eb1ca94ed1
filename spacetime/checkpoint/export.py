"""Exports the trained weights of a run as a folder."""

import os
import pathlib
import shutil
import warnings
from collections.abc import Mapping

import jax
import numpy as np
from absl import logging

from spacetime import SettingError, SettingWarning, checkpoint, sharding
from spacetime.checkpoint import init_weights, load, paths
from spacetime.checkpoint.interop import (
  folders,
  network_files,
  parameters,
  sections,
  tensor_files,
)
from spacetime.checkpoint.interop import lora as lora_files
from spacetime.checkpoint.locate import locate
from spacetime.config import networks, parse
from spacetime.config.experiment import Experiment
from spacetime.media import files
from spacetime.models.transformer import lora as lora_lib

LORA = (*lora_files.DIALECTS, 'merged')
AUTOENCODER = 'autoencoder'  # the folder's copy of a trained one


def export(
  path: str,
  out: pathlib.Path,
  *,
  dtype: np.dtype | None = None,
  lora: str | None = None,
  base: str | None = None,
) -> str:
  """Writes the averaged parameters of a run as a folder.

  Args:
    path: the run.
    out: the folder to create.
    dtype: dtype of the files; None keeps that of the parameters.
    lora: form of a LoRA run, one of LORA.
    base: new path of the weights that the run started from, if they moved.

  Returns:
    The fingerprint of the weights, or the name of the LoRA file.

  Raises:
    SettingError: `lora` for a run without LoRA weights, or the reverse.
    ValueError: no such run, or another base than the run's.
  """
  folder = locate(path).folder
  experiment = checkpoint.read_experiment(folder)
  if experiment.stage == 'autoencoder':
    if lora:
      raise SettingError('lora', lora, f'none: {path} is an autoencoder')
    _warn_of_base(base, 'an autoencoder stands alone')
    params = _autoencoder_params(folder, experiment)
    return _write_weights(folder, out, experiment, params, dtype)
  trained, _ = load.find_autoencoder(experiment, beside=folder)
  nets = networks.networks(experiment, autoencoder=trained)
  if nets.lora.rank and lora not in LORA:
    raise SettingError('lora', lora, f'one of {LORA} for a LoRA run, {path}')
  if lora and not nets.lora.rank:
    raise SettingError('lora', lora, f'none: {path} has no LoRA weights')
  if lora in lora_files.DIALECTS:
    _warn_of_base(base, f'`lora`={lora} writes the LoRA weights alone')
    if nets.dit.config.flow_map:
      check_second_time(folder, experiment, nets, base, lora)
    return _write_lora(folder, out, nets, lora, dtype)
  if nets.text_kind == 'frozen' or nets.lora.rank:
    return _write_finetuned(folder, out, experiment, nets, dtype, base)
  _warn_of_base(base, f'{path} has all its weights')
  model = load.open_model(folder, mesh=sharding.single_device_mesh())
  params = {root: model.read(root) for root in ('text', 'dit')}
  return _write_weights(folder, out, experiment, params, dtype)


def _warn_of_base(base: str | None, reason: str) -> None:
  if base:
    warnings.warn(
      SettingWarning('base', base, f'no effect, since {reason}'), stacklevel=3
    )


def finetuned_params(
  folder: str,
  nets: networks.Networks,
  base: init_weights.Base,
  mesh: jax.sharding.Mesh,
  *,
  dtype=None,
) -> dict:
  """The parameters of a run that started from weights, with LoRA merged.

  Args:
    folder: the run.
    nets: networks of the run.
    base: the weights that it started from.
    mesh: mesh of the parameters.
    dtype: dtype that kernels are merged in; None keeps the base's. In 16 bits a
      warning tells how much of the change is rounded away.

  Returns:
    {'dit'}, and 'text' if the base has one that was trained with it.
  """
  if not nets.lora.rank:
    return trained_params(folder, nets, mesh)
  wide = dtype is not None and np.dtype(dtype).itemsize == 4
  params = base.load(nets, mesh, dtype=dtype if wide else None)
  adapter = trained_params(folder, nets, mesh)['lora']
  error = float(
    jax.jit(lora_lib.merge_error)(params['dit'], adapter, scale=nets.lora.scale)
  )
  if error > load.MERGE_ERROR:
    logging.warning(
      "%s: rounding loses %.2g of the LoRA weights' change; with "
      'dtype float32 nothing is lost',
      folder,
      error,
    )
  merge = jax.jit(lora_lib.merge, donate_argnums=0)
  return params | {'dit': merge(params['dit'], adapter, scale=nets.lora.scale)}


def trained_params(
  folder: str, nets: networks.Networks, mesh: jax.sharding.Mesh
) -> dict:
  """The averaged parameters that a run has trained."""
  shapes = load.sharded_shapes(nets.init_trainable, mesh)
  return checkpoint.load_params(folder, shapes, tree='ema')


def open_base_of_run(
  folder: str,
  experiment: Experiment,
  nets: networks.Networks,
  path: str | None,
) -> init_weights.Base:
  """Opens the weights that a run started from.

  Args:
    folder: the run.
    experiment: config of the run.
    nets: networks of the run.
    path: new path of the weights, if they moved.

  Raises:
    SettingError: no path for a run that did not start from weights.
    ValueError: no weights there, or other ones.
  """
  source = experiment.source
  if not source and not path:
    raise SettingError(
      'base',
      path,
      'a published folder of the same sizes, for its text encoder and '
      f'autoencoder, since {folder} did not start from weights',
    )
  base = init_weights.open_base(path or source['path'], nets)
  if source and base.fingerprint != source['fingerprint']:
    raise ValueError(
      f'{base.path} has other weights ({base.fingerprint[:16]}) than those '
      f'that {folder} started from ({source["fingerprint"][:16]}); set `base`'
    )
  return base


def _write_finetuned(folder, out, experiment, nets, dtype, path) -> str:
  base = open_base_of_run(folder, experiment, nets, path)
  mesh = sharding.single_device_mesh()
  params = finetuned_params(folder, nets, base, mesh, dtype=dtype)
  if base.part is None:  # not published: the base's folder has the rest
    own = checkpoint.read_experiment(base.folder)
    own = _as_flow_map(own, experiment)
    own = parse.replace(own, {'data.fps': experiment.data.fps})
    return _write_weights(base.folder, out, own, params, dtype)
  _warn_of_rate(folder, out, experiment)
  with paths.new_folder(out) as target:
    name = 'transformer'
    if base.pipeline is not None:
      name = base.part.path.name
      ignore = shutil.ignore_patterns(name)
      shutil.copytree(base.pipeline, target, dirs_exist_ok=True, ignore=ignore)
    parameters.write(target / name, nets.dit.config, params['dit'], dtype=dtype)
    if nets.dit.config.flow_map and base.pipeline is not None:
      index, scheduler = sections.as_flow_map(
        tensor_files.read_json(target / network_files.INDEX),
        shift=experiment.sampling.shift,
      )
      tensor_files.write_json(target / network_files.INDEX, index)
      tensor_files.write_json(target / folders.SCHEDULER, scheduler)
  return f'{experiment.source["fingerprint"][:16]}, trained'


def _warn_of_rate(folder, out, experiment: Experiment) -> None:
  """Warns of a frame rate that a published folder cannot hold."""
  autoencoder, fps = experiment.autoencoder, experiment.data.fps
  if autoencoder.kind != 'wan' or fps is None:
    return
  _, rate = sections.clips(autoencoder.network)
  if fps != rate:
    warnings.warn(
      SettingWarning(
        'checkpoint',
        os.fspath(folder),
        f'its clips have {fps:g} frames per second, for which {out} has no '
        f'place: sample with --fps={fps:g}, not at {rate}',
      ),
      stacklevel=4,
    )


def check_second_time(
  folder: str,
  experiment: Experiment,
  nets: networks.Networks,
  path: str | None,
  lora: str,
) -> None:
  """Refuses LoRA files of a flow map whose base has one time alone.

  Raises:
    SettingError: such a base; see open_base_of_run for other errors.
  """
  base = open_base_of_run(folder, experiment, nets, path)
  if not base.model.flow_map:
    raise SettingError(
      'lora',
      lora,
      f"'merged': {folder} is a flow map of {base.path}, whose second time no "
      'LoRA file holds',
    )


def _as_flow_map(own: Experiment, trained: Experiment) -> Experiment:
  """The config of a base, with what makes a flow map of it."""
  if own.model.flow_map == trained.model.flow_map:
    return own
  return parse.replace(
    own,
    {
      'model.flow_map': trained.model.flow_map,
      'flow_map': trained.values.get('flow_map', {}),
      'sampling': trained.values['sampling'],
    },
  )


def _write_lora(folder, out, nets, dialect: str, dtype) -> str:
  params = trained_params(folder, nets, sharding.single_device_mesh())['lora']
  with paths.new_folder(out) as target:
    lora_files.write(
      target / lora_files.FILES[dialect],
      jax.device_get(params),
      nets.lora,
      nets.dit.config,
      dialect=dialect,
      dtype=dtype or 'float32',
    )
  return lora_files.FILES[dialect]


def _write_weights(
  folder: str,
  out: pathlib.Path,
  experiment: Experiment,
  params: Mapping,
  dtype: np.dtype | None,
) -> str:
  # A released model does not contain the path of the training clips.
  values = {'data.dir': pathlib.Path(experiment.data.dir).name}
  # A folder within it, as in a run, or another model, such as a bundled one.
  _, autoencoder = load.find_autoencoder(experiment, beside=folder)
  if autoencoder:
    values['autoencoder.weights'] = AUTOENCODER
  experiment = parse.replace(experiment, values)
  checkpoint.save_weights(
    out,
    jax.tree.map(lambda leaf: leaf.astype(dtype or leaf.dtype), params),
    config=experiment.values,
    tokenizer=checkpoint.read_tokenizer(folder),
  )
  if autoencoder:
    files.copy_folder(files.as_path(autoencoder), out / AUTOENCODER)
  return checkpoint.weights_hash(out)


def _autoencoder_params(folder: str, experiment: Experiment) -> dict:
  if not experiment.autoencoder.network.latents_std:
    raise ValueError(
      f'{folder}: its latents have not been measured, which happens at the end '
      'of training; continue it to train.steps'
    )
  mesh = sharding.single_device_mesh()
  return load.load_own(experiment.autoencoder, folder, mesh=mesh)
