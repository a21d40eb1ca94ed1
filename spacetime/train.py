"""Trains a text-to-video transformer, or an autoencoder.

  python -m spacetime.train --config=experiments/digits.py:cpu \\
    --workdir=runs/digits [--config.train.steps=100] [--cpu_devices=8]

Started again with the same --workdir, a run goes on where it stopped, bit for
bit, data included. SIGTERM and Ctrl-C save and stop.
"""

import pathlib
import shutil
import signal
import sys

import jax
import numpy as np
from absl import flags, logging
from ml_collections import config_flags

from spacetime import build, checkpoint, clips, command, pretrained, sharding
from spacetime import config as config_lib
from spacetime import sheets as sheets_lib
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.training import loop, metrics, principal, state, step

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'An experiment, such as experiments/digits.py:cpu.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Where the run lives: checkpoints, metrics, sheets.'
)
KEPT = 'autoencoder'  # where a run has its copy of a trained one
# Keys that a resumed run may change: they do not bear on what is learnt.
FREE = (
  'train.log_every',
  'train.evaluate_every',
  'train.sheet_every',
  'train.checkpoint_every',
  'train.keep',
  'autoencoder.latents_mean',
  'autoencoder.latents_std',
  'data.dir',
  'mesh',
  'sampling',
)


def main() -> None:
  """Flags -> run."""
  if _CONFIG.value is None or not _WORKDIR.value:
    raise ValueError('--config and --workdir: expected both; see --help')
  try:
    config = _CONFIG.value.copy_and_resolve_references()
  except OSError as e:  # of a file that is not there; found on first use
    raise ValueError(f'--config: {e}') from e
  run(config, _WORKDIR.value, stop=stopper())


def run(config, workdir: str, *, stop=lambda: False) -> state.State:
  """Trains as the config says, going on from what the work directory holds.

  Args:
    config: an experiment's ConfigDict.
    workdir: made if there is none.
    stop: asked after each step; true saves and stops.

  Returns:
    The last state.

  Raises:
    ValueError: the config, or what the work directory holds, cannot be.
  """
  # Everything that can be refused is refused before anything is written.
  if config.get('stage') not in config_lib.STAGES:
    raise ValueError(
      f'stage={config.get("stage")!r}: expected one of {config_lib.STAGES}'
    )
  data, train = config_lib.data(config), config_lib.train(config)
  optimizer, mesh = build.make_optimizer(config), build.mesh(config)
  task, nets, codec, frozen = networks(config, mesh, workdir)
  checkpoint.check_writable(workdir)
  if frozen:
    keep_autoencoder(config, workdir)

  sources = clips.open_sources(data, seed=config.seed)
  tokenizer = get_tokenizer(config, sources.train, workdir)
  checkpoint.write_config(
    workdir,
    config_lib.plain(config),
    tokenizer=tokenizer.serialized,
    free=FREE,
  )
  length = nets.text_length if nets else clips.MAX_LENGTH
  loader = clips.make_loader(
    data, sources.train, tokenizer, length=length, seed=config.seed
  )
  held_out = clips.held_out_batch(
    sources.held_out, tokenizer, count=train.held_out, length=length
  )
  # Partitioned Threefry, so that a seed means the same on every mesh.
  init_key, run_key = jax.random.split(jax.random.key(config.seed))
  iterator = iter(loader)
  with checkpoint.Checkpoints(workdir, keep=train.keep) as checkpoints:
    if checkpoints.latest_step() is None:
      init = first_layers(config, task.init, nets, frozen, sources.train)
      at = state.init_state(init, init_key, optimizer, mesh)
    else:
      shapes = state.abstract_state(task.init, init_key, optimizer, mesh)
      at = checkpoints.restore(shapes, iterator=iterator)
      logging.info('going on from step %d', int(at.step))
    with metrics.MetricsWriter(workdir, step=int(at.step)) as told:
      draw = (
        sheets_lib.sampled(config, nets, held_out)
        if nets
        else sheets_lib.reconstructed(codec, held_out)
      )
      at = loop.run(
        step.make_step(
          task.loss, optimizer, ema=train.ema, accumulate=train.accumulate
        ),
        at,
        frozen,
        iterator,
        key=run_key,
        mesh=mesh,
        steps=train.steps,
        log_every=train.log_every,
        writer=told,
        checkpoints=checkpoints,
        checkpoint_every=train.checkpoint_every,
        events=[
          loop.Every(
            train.evaluate_every, evaluator(task, frozen, held_out, mesh)
          ),
          loop.Every(
            train.sheet_every, sheets_lib.event(draw, frozen, workdir, told)
          ),
        ],
        rates=build.rates(config, nets),
        stop=stop,
      )
  sheets_lib.curve(workdir)
  if nets is None and int(at.step) == train.steps:
    save_moments(config, workdir, codec, at, loader, mesh)
  return at


def networks(config, mesh, workdir):
  """(task, networks or None, autoencoder, frozen) of the config's stage."""
  if config.stage == 'autoencoder':
    codec = build.autoencoder(config)
    return build.reconstruction_task(config, codec), None, codec, {}
  if config.autoencoder.kind == 'weights':
    if (pathlib.Path(workdir) / KEPT).exists():
      config.autoencoder.weights = KEPT
  weights, frozen = pretrained.load_autoencoder(
    config, beside=workdir, mesh=mesh
  )
  nets = build.networks(config, weights=weights)
  build.grids(config, nets)
  return build.diffusion_task(config, nets), nets, nets.autoencoder, frozen


def first_layers(config, init, nets, frozen, source):
  """`init`, with first and last layers of principal components if wanted."""
  count = config_lib.train(config).principal_clips
  if nets is None or not count:
    return init
  found = build.components(nets, frozen, clips.first(source, count))

  def begin(key):
    params = init(key)
    return params | {'dit': principal.start(params['dit'], found)}

  return begin


def keep_autoencoder(config, workdir) -> None:
  """Copies the autoencoder into the run, so that the run is whole by itself."""
  source = pathlib.Path(
    build.resolve(config.autoencoder.weights, beside=workdir)
  )
  if config.autoencoder.weights != KEPT and jax.process_index() == 0:
    shutil.copytree(source, pathlib.Path(workdir) / KEPT)
  config.autoencoder.weights = KEPT


def get_tokenizer(config, source, workdir) -> tokenizer_lib.Tokenizer:
  """The run's tokenizer: the one it has, or one learnt from its captions."""
  path = pathlib.Path(workdir) / checkpoint.TOKENIZER
  if path.exists():
    return tokenizer_lib.Tokenizer.load(path)
  size = config.text.vocab_size if 'text' in config else clips.VOCABULARY
  return clips.train_tokenizer(source, vocab_size=size)


def evaluator(task, frozen, held_out, mesh):
  """step, state -> held-out metrics of the averaged parameters."""
  rows = mesh.shape['data'] * mesh.shape['fsdp']
  count = -(-len(held_out['captions']) // rows) * rows
  batch = {
    name: np.resize(held_out[name], (count, *held_out[name].shape[1:]))
    for name in ('frames', 'tokens')
  }
  batch = sharding.put_batch(batch, mesh)
  compiled = jax.jit(task.held_out)

  def call(step, at):
    del step
    found = jax.device_get(compiled(at.ema, frozen, batch))
    return {name: float(value) for name, value in found.items()}

  return call


def save_moments(
  config, workdir, codec, at, loader, mesh, *, batches: int = 16
):
  """Puts each latent channel's mean and deviation into the run's config."""
  stage = build.reconstruction_stage(config, codec)
  compiled, found = jax.jit(stage.moments), []
  iterator = iter(loader)
  for _ in range(batches):
    batch = sharding.put_batch(next(iterator), mesh)
    found.append(jax.device_get(compiled(at.ema, batch)))
  mean, square = (np.mean(x, axis=0) for x in zip(*found, strict=True))
  deviation = np.sqrt(np.maximum(square - mean**2, 1e-8))
  plain = config_lib.plain(config)
  plain['autoencoder'] |= {
    'latents_mean': [round(float(x), 5) for x in mean],
    'latents_std': [round(float(x), 5) for x in deviation],
  }
  checkpoint.write_config(workdir, plain, free=FREE)


def stopper():
  """A function that says whether SIGTERM or Ctrl-C has come."""
  caught = []

  def handle(number, frame):
    del frame
    if caught:
      sys.exit(128 + number)
    caught.append(number)
    print('\nsaving and stopping', file=sys.stderr)

  signal.signal(signal.SIGTERM, handle)
  signal.signal(signal.SIGINT, handle)
  return lambda: bool(caught)


if __name__ == '__main__':
  command.run(main)
