"""A training run: data, state, loop and artifacts in one call."""

import contextlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import grain
import jax
from absl import logging

from spacetime import checkpoint as checkpoint_lib
from spacetime import sharding
from spacetime.checkpoint import lock
from spacetime.checkpoint.interop import network_files
from spacetime.config import experiment_files, parse
from spacetime.config.experiment import Experiment
from spacetime.data import batches, pipeline, unreadable
from spacetime.data import splits as splits_lib
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.sharding import multihost
from spacetime.training import (
  artifacts,
  clips,
  flow_map_loss,
  goodput,
  hooks,
  init_state,
  loop,
  metrics,
  progress,
  setup,
  sheets,
  state,
  step,
  summary,
  tasks,
  watchdog,
)
from spacetime.training import profile as profile_lib


def train(
  config: Experiment | Mapping | str,
  workdir: str,
  *,
  checkpoint: str | None = None,
  files: network_files.Files = network_files.NO_FILES,
  stop: Callable[[], bool] = lambda: False,
  profile: profile_lib.Profile | None = None,
  patience: float = 0.0,
) -> state.State:
  """Trains an experiment, resuming from what the output folder holds.

  Args:
    config: an Experiment, its ConfigDict or mapping, or the name of one, such
      as 'digits:cpu'; the same on all processes.
    workdir: output folder, made if absent; the same for all processes.
    checkpoint: weights to start from: a run, a weights folder, a bundled name
      or a published folder. None starts from random weights.
    files: files of published networks, which replace those of `checkpoint`.
    stop: called after each step; true saves and stops.
    profile: steps to trace, if any.
    patience: seconds without progress after which the process ends; 0 waits
      for ever.

  Returns:
    the last state.

  Raises:
    ValueError: see setup.check, or another run is writing there.
    OSError: something cannot be written.
  """
  if isinstance(config, str):
    config = experiment_files.load(config)
  if not isinstance(config, Experiment):
    config = parse.experiment(config)
  folder = checkpoint_lib.absolute(workdir)
  time_log = goodput.Goodput(folder if multihost.is_first() else None)
  guard = watchdog.Watchdog(time_log, patience=patience)
  run = setup.check(config, workdir, init_from=checkpoint, files=files)
  with guard, contextlib.ExitStack() as stack:
    multihost.on_first_process(lambda: stack.enter_context(lock.held(workdir)))
    last, loader = _train(run, workdir, time_log, stop=stop, profile=profile)
    if multihost.is_first():
      sheets.curve(workdir, stages=run.experiment.data.stages)
    if run.nets is None and int(last.step) == run.experiment.train.steps:
      artifacts.save_moments(run, workdir, last.ema, loader)
    time_log.write(now=True)
    if multihost.is_first():
      print(time_log.summary(), file=sys.stderr)
      ending = summary.ending(run, workdir, step=int(last.step))
      print(ending, file=sys.stderr)
    # Process 0 leaves last: the others know the run by it.
    multihost.barrier('done')
  return last


def _train(
  run: setup.Setup,
  workdir,
  time_log: goodput.Goodput,
  *,
  stop: Callable[[], bool],
  profile: profile_lib.Profile | None,
) -> tuple[state.State, Any]:
  """Trains a checked run; returns (last state, loader)."""
  settings, nets = run.experiment.train, run.nets
  splits, tokenizer = _open_data(run, workdir)
  loader, held_out = _batches(run, splits, tokenizer)
  skipped = unreadable.Report(
    splits.train, share=run.experiment.data.max_unreadable
  )
  frozen = run.frozen
  if nets and nets.lora.rank:
    frozen = frozen | run.base.load(nets, run.mesh, dtype=nets.dit.config.dtype)
  elif run.experiment.has_teacher:
    teacher = run.base.load(nets, run.mesh, dtype=nets.dit.config.dtype)
    frozen = frozen | {flow_map_loss.TEACHER: teacher}
  init_key, run_key = jax.random.split(jax.random.key(run.experiment.seed))
  iterator = iter(loader)
  with checkpoint_lib.Checkpoints(workdir, keep=settings.keep) as checkpoints:
    at = _first_state(run, splits, checkpoints, iterator, key=init_key)
    if multihost.is_first():
      rates = tasks.rates(run.experiment, nets)
      lines = summary.heading(run, workdir, start=int(at.step), rates=rates)
      print(lines, file=sys.stderr)
    pipeline.start(iterator)
    time_log.resume(int(at.step))
    folder = checkpoint_lib.absolute(workdir) if multihost.is_first() else None
    with metrics.MetricsWriter(folder, step=int(at.step)) as writer:
      actions = hooks.periodic_actions(
        run,
        frozen,
        held_out,
        workdir,
        writer,
        splits.empty_SY,
        encode=lambda text: tokenizer.encode_cut(
          text, length=nets.text_length if nets else 1
        )[0],
      )
      if profile:
        profile.begin(int(at.step), settings.steps)
        actions.append(profile)
      at = loop.run(
        step.make_step(
          run.task.loss,
          run.optimizer,
          ema=settings.ema,
          accumulate=settings.accumulate,
          limit=settings.limit,
          draw=run.task.draw,
        ),
        at,
        frozen,
        iterator,
        key=run_key,
        mesh=run.mesh,
        steps=settings.steps,
        log_every=settings.log_every,
        writer=writer,
        checkpoints=checkpoints,
        checkpoint_every=settings.checkpoint_every,
        time_log=time_log,
        actions=actions,
        rates=tasks.batch_rates(run.experiment, nets),
        stop=stop,
        receive=skipped.take,
      )
      if profile:
        profile.end()
  if skipped.summary:
    print(skipped.summary, file=sys.stderr)
  return at, loader


def _batches(
  run: setup.Setup,
  splits: splits_lib.Splits,
  tokenizer: tokenizer_lib.Tokenizer,
) -> tuple[grain.IterDataset, dict]:
  """The batches of training, and the batch of held-out clips."""
  experiment, nets = run.experiment, run.nets
  length = nets.text_length if nets else None
  loader = batches.make_loader(
    experiment.data,
    splits.train,
    tokenizer,
    length=length,
    seed=experiment.seed,
    empty_SY=splits.empty_SY,
    share=sharding.data_share(run.mesh, jax.process_index()),
    patchify=run.patchify,
    grid=run.grid,
  )
  held_out = batches.held_out_batch(
    splits.held_out,
    tokenizer,
    count=experiment.train.held_out,
    length=length,
    embedded=nets is not None and nets.text_kind == 'frozen',
  )
  return loader, held_out


def _first_state(
  run: setup.Setup,
  splits: splits_lib.Splits,
  checkpoints: checkpoint_lib.Checkpoints,
  iterator: grain.DatasetIterator,
  *,
  key: jax.Array,
) -> state.State:
  """The state of the newest checkpoint, which also sets the position in the
  data; without one, the initial state."""
  if checkpoints.latest_step() is None:
    with progress.answered_signals():
      return init_state.init_state(run, splits.train, key)
  at = checkpoints.restore(run.shapes, iterator=iterator)
  logging.info('resuming from step %d', int(at.step))
  return at


def _open_data(
  run: setup.Setup, workdir
) -> tuple[splits_lib.Splits, tokenizer_lib.Tokenizer]:
  """Opens the clips and the tokenizer; then writes what a run has before its
  first step."""
  nets, experiment = run.nets, run.experiment
  embedded = nets is not None and nets.text_kind == 'frozen'

  def open_splits():
    return clips.open_splits(experiment, workdir, embedded=embedded)

  if jax.process_count() > 1:  # the first process renders missing clips
    multihost.on_first_process(open_splits)
  splits = open_splits()
  tokenizer = artifacts.get_tokenizer(run, splits, workdir)
  if nets:
    length = nets.text_length
    batches.check_captions(splits.captions, tokenizer, length=length)
  if not checkpoint_lib.has_step(workdir):
    init_state.check_clips(run, len(splits.train))
  artifacts.copy_autoencoder(run, workdir)
  artifacts.save_config(run, workdir, tokenizer)
  clips.save(experiment, workdir, splits)
  return splits, tokenizer
