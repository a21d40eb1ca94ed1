"""Trains a text-to-video transformer, or an autoencoder.

  python -m spacetime.train --config=experiments/digits.py:cpu \\
    --workdir=runs/digits [--config.train.steps=100] [--cpu_devices=8]

Started again with the same --workdir, a run goes on where it stopped, bit for
bit, data included. SIGTERM and Ctrl-C save and stop.

--checkpoint starts a new run from trained weights: a published folder, a run, a
weights folder or a bundled model. With --config.lora.rank=16 it trains low-rank
pairs beside them (see export).
"""

import json
import pathlib
import shutil
import signal
import sys

import jax
import numpy as np
from absl import flags, logging
from ml_collections import config_flags

from spacetime import base as base_lib
from spacetime import build, checkpoint, clips, command, sharding
from spacetime import config as config_lib
from spacetime import plan as plan_lib
from spacetime import sheets as sheets_lib
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.training import (
  loop,
  metrics,
  principal,
  profile,
  state,
  step,
)

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'An experiment, such as experiments/digits.py:cpu.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Where the run lives: checkpoints, metrics, sheets.'
)
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  None,
  'Weights to start from; nothing starts from chance. A run that goes on needs '
  'it no more, but for low-rank pairs, whose base may have moved.',
)

_PROFILE = flags.DEFINE_string(
  'profile',
  None,
  'START:STOP: writes a trace of these steps for xprof into WORKDIR/profile.',
)


def main() -> None:
  """Flags -> run."""
  if _CONFIG.value is None or not _WORKDIR.value:
    raise ValueError('--config and --workdir: expected both; see --help')
  try:
    config = _CONFIG.value.copy_and_resolve_references()
  except OSError as e:  # of a file that is not there; found on first use
    raise ValueError(f'--config: {e}') from e
  run(
    config,
    _WORKDIR.value,
    start=_CHECKPOINT.value,
    stop=stopper(),
    traced=profile.parse(
      _PROFILE.value, pathlib.Path(_WORKDIR.value) / 'profile'
    ),
  )


def run(
  config,
  workdir: str,
  *,
  start: str | None = None,
  stop=lambda: False,
  traced: profile.Profile | None = None,
) -> state.State:
  """Trains as the config says, going on from what the work directory holds.

  Args:
    config: an experiment's ConfigDict.
    workdir: made if there is none.
    start: weights to start from; see base.py.
    stop: asked after each step; true saves and stops.
    traced: steps to trace, if any.

  Returns:
    The last state.

  Raises:
    ValueError: see plan.check.
  """
  plan = plan_lib.check(config, workdir, checkpoint_path=start)
  train, nets = plan.train, plan.nets
  if plan.frozen:
    keep_autoencoder(config, workdir)
  embedded = nets is not None and nets.text_kind == 'frozen'
  sources = clips.open_sources(plan.data, seed=config.seed, embedded=embedded)
  tokenizer = get_tokenizer(config, sources, workdir, plan.base)
  length = nets.text_length if nets else None
  if length:
    clips.check_captions(sources, tokenizer, length=length)
  checkpoint.write_config(
    workdir,
    with_moments(config_lib.plain(config) | plan.origin, workdir),
    tokenizer=tokenizer.serialized,
    free=plan_lib.FREE,
  )
  empty_SY = sources.cache.empty_SY if embedded else None
  loader = clips.make_loader(
    plan.data,
    sources.train,
    tokenizer,
    length=length,
    seed=config.seed,
    empty_SY=empty_SY,
  )
  held_out = clips.held_out_batch(
    sources.held_out,
    tokenizer,
    count=train.held_out,
    length=length,
    embedded=embedded,
  )
  frozen = plan.frozen
  if nets and nets.lora.rank:
    frozen = frozen | plan.base.load(
      nets, plan.mesh, dtype=nets.dit.config.dtype
    )
  init_key, run_key = jax.random.split(jax.random.key(config.seed))
  iterator = iter(loader)
  with checkpoint.Checkpoints(workdir, keep=train.keep) as checkpoints:
    if checkpoints.latest_step() is None:
      at = begin(plan, sources.train, init_key)
    else:
      at = checkpoints.restore(plan.shapes, iterator=iterator)
      logging.info('going on from step %d', int(at.step))
    with metrics.MetricsWriter(workdir, step=int(at.step)) as told:
      happens = events(plan, frozen, held_out, workdir, told, empty_SY)
      if traced:
        traced.begin(int(at.step))
        happens.append(traced)
      at = loop.run(
        step.make_step(
          plan.task.loss,
          plan.optimizer,
          ema=train.ema,
          accumulate=train.accumulate,
          limit=train.limit,
        ),
        at,
        frozen,
        iterator,
        key=run_key,
        mesh=plan.mesh,
        steps=train.steps,
        log_every=train.log_every,
        writer=told,
        checkpoints=checkpoints,
        checkpoint_every=train.checkpoint_every,
        events=happens,
        rates=build.rates(config, nets),
        stop=stop,
      )
      if traced:
        traced.end()
  sheets_lib.curve(workdir)
  if nets is None and int(at.step) == train.steps:
    save_moments(config, workdir, plan.codec, at, loader, plan.mesh)
  return at


def begin(plan: plan_lib.Plan, source, key) -> state.State:
  """The state of a run that has made no step."""
  if plan.base is not None and not plan.nets.lora.rank:
    params = plan.base.load(plan.nets, plan.mesh)
    # What the published code computes in float32 may be stored as less.
    kept = {
      root: jax.tree.map(lambda leaf: leaf.astype('float32'), params[root])
      for root in plan.shapes.params
    }
    return state.state_from(kept, plan.optimizer, plan.mesh)
  init = first_layers(plan, source)
  return state.init_state(init, key, plan.optimizer, plan.mesh)


def events(
  plan: plan_lib.Plan, frozen: dict, held_out: dict, workdir, told, empty_SY
) -> list[loop.Every]:
  """The held-out measures and the contact sheets."""
  draw = (
    sheets_lib.sampled(plan.config, plan.nets, held_out, empty_SY=empty_SY)
    if plan.nets
    else sheets_lib.reconstructed(plan.codec, held_out)
  )
  return [
    loop.Every(
      plan.train.evaluate_every,
      evaluator(plan.task, frozen, held_out, plan.mesh),
    ),
    loop.Every(
      plan.train.sheet_every,
      sheets_lib.event(draw, frozen, workdir, told),
    ),
  ]


def first_layers(plan: plan_lib.Plan, source):
  """The task's init, with first and last layers of principal components."""
  count = plan.train.principal_clips
  if plan.nets is None or plan.nets.lora.rank or not count:
    return plan.task.init
  found = build.components(plan.nets, plan.frozen, clips.first(source, count))

  def begin(key):
    params = plan.task.init(key)
    return params | {'dit': principal.start(params['dit'], found)}

  return begin


def keep_autoencoder(config, workdir) -> None:
  """Copies the autoencoder into the run, so that the run is whole by itself."""
  kept = pathlib.Path(workdir) / plan_lib.KEPT
  if not kept.exists() and jax.process_index() == 0:
    source = build.resolve(config.autoencoder.weights, beside=workdir)
    half = kept.with_name(f'.{plan_lib.KEPT}.tmp')
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(source, half)
    half.replace(kept)
  config.autoencoder.weights = plan_lib.KEPT


def with_moments(plain: dict, workdir) -> dict:
  """The config with the latents' moments that a finished run has measured."""
  if plain['stage'] == 'autoencoder':
    path = pathlib.Path(workdir) / checkpoint.CONFIG
    if path.exists():
      saved = json.loads(path.read_text())['autoencoder']
      for name in ('latents_mean', 'latents_std'):
        if name in saved:
          plain['autoencoder'][name] = saved[name]
  return plain


def get_tokenizer(
  config, sources, workdir, base: base_lib.Base | None
) -> tokenizer_lib.Tokenizer:
  """The run's tokenizer: the one it has, that of the weights it starts from or
  of its cache, or one learnt from its captions."""
  path = pathlib.Path(workdir) / checkpoint.TOKENIZER
  if path.exists():
    return tokenizer_lib.Tokenizer.load(path)
  if base is not None and base.tokenizer is not None:
    return tokenizer_lib.Tokenizer.from_bytes(base.tokenizer)
  if sources.cache is not None and not sources.captions:  # they are embedded
    return tokenizer_lib.Tokenizer.from_bytes(sources.cache.tokenizer)
  size = config.text.vocab_size if 'text' in config else clips.VOCABULARY
  return tokenizer_lib.train(sources.captions, vocab_size=size)


def evaluator(task, frozen, held_out, mesh):
  """step, state -> held-out metrics of the averaged parameters."""
  rows = mesh.shape['data'] * mesh.shape['fsdp']
  count = -(-len(held_out['captions']) // rows) * rows
  batch = {
    name: np.resize(held_out[name], (count, *held_out[name].shape[1:]))
    for name in held_out
    if name != 'captions'
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
  checkpoint.write_config(workdir, plain, free=plan_lib.FREE)


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
