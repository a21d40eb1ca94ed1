"""Trains a text-to-video transformer, or an autoencoder.

  python -m spacetime train --config=experiments/digits.py:cpu \\
    --workdir=runs/digits [--config.train.steps=100] [--cpu_devices=8]

Started again with the same --workdir, a run goes on where it stopped, bit for
bit, data included. SIGTERM and Ctrl-C save and stop.

--checkpoint starts a new run from trained weights: a published folder, a run, a
weights folder or a bundled model. With --config.lora.rank=16 it trains low-rank
pairs beside them (see export).
"""

import contextlib
import os
import sys
import traceback
from typing import Any

import jax
from absl import flags, logging
from ml_collections import config_flags

from spacetime import checkpoint, sharding
from spacetime.checkpoint import lock
from spacetime.config import networks, parse
from spacetime.data import pipeline
from spacetime.data import sources as sources_lib
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.sharding import multihost
from spacetime.training import (
  artifacts,
  goodput,
  hooks,
  init_state,
  loop,
  metrics,
  profile,
  setup,
  sheets,
  state,
  step,
  watchdog,
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
_COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  'Of several processes: HOST:PORT of process 0, or auto on a TPU pod, GKE, '
  'SLURM or Open MPI. Default: JAX_COORDINATOR_ADDRESS.',
)
_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'How many there are. Default: JAX_NUM_PROCESSES.'
)
_PROCESS = flags.DEFINE_integer(
  'process_id', None, 'Which of them this is. Default: JAX_PROCESS_ID.'
)
_PREEMPTED = flags.DEFINE_integer(
  'preemption_exit_code',
  0,
  f'Exit code after SIGTERM, once all is saved: {watchdog.EXIT} for a '
  'supervisor that starts again on it, as it should on that code anyway (a '
  'hang, a lost peer, a full disk).',
)
_WATCHDOG = flags.DEFINE_float(
  'watchdog',
  1800.0,
  'Seconds without progress, compilation included, after which the process '
  'ends; 0 waits for ever.',
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
  traced = profile.parse(
    _PROFILE.value, checkpoint.absolute(_WORKDIR.value) / 'profile'
  )
  environment = os.environ.get
  multihost.join(
    _COORDINATOR.value or environment('JAX_COORDINATOR_ADDRESS', ''),
    processes=_or_number(_PROCESSES.value, environment('JAX_NUM_PROCESSES')),
    process=_or_number(_PROCESS.value, environment('JAX_PROCESS_ID')),
  )
  stop = multihost.Stop()
  try:
    run(
      config,
      _WORKDIR.value,
      start=_CHECKPOINT.value,
      stop=stop,
      patience=_WATCHDOG.value,
      traced=traced,
    )
  except OSError as e:
    fail(f'{e}; what was saved before is whole')
  except ValueError:
    raise
  except Exception as e:
    if jax.process_count() == 1:
      raise
    traceback.print_exc()
    # What the others wait for will not come; nor do they for this one.
    fail(
      f'process {jax.process_index()}: {type(e).__name__}; others may be gone'
    )
  if stop.preempted:
    sys.exit(_PREEMPTED.value)


def fail(message: str) -> None:
  """Ends the process so that a supervisor starts the run again."""
  print(
    f'error: {message}; started again, the run goes on from its last '
    f'checkpoint (exit code {watchdog.EXIT})',
    file=sys.stderr,
    flush=True,
  )
  if jax.process_count() > 1:
    os._exit(watchdog.EXIT)  # to shut down in order takes all of them
  sys.exit(watchdog.EXIT)


def _or_number(value: int | None, text: str | None) -> int | None:
  if value is None and text:
    if not text.isdigit():
      raise ValueError(
        f'{text!r}: expected a number in JAX_NUM_PROCESSES and JAX_PROCESS_ID'
      )
    return int(text)
  return value


def run(
  config,
  workdir: str,
  *,
  start: str | None = None,
  stop=lambda: False,
  traced: profile.Profile | None = None,
  patience: float = 0.0,
) -> state.State:
  """Trains as the config says, going on from what the work directory holds.

  Args:
    config: an experiment's ConfigDict; the same on all processes.
    workdir: made if there is none; the same for all processes.
    start: weights to start from; see base.py.
    stop: asked after each step; true saves and stops.
    traced: steps to trace, if any.
    patience: of the watchdog, in seconds; 0 has none.

  Returns:
    The last state.

  Raises:
    ValueError: see plan.check, or another run is writing there.
    OSError: something cannot be written.
  """
  place = checkpoint.absolute(workdir)
  ledger = goodput.Ledger(place if multihost.is_first() else None)
  guard = watchdog.Watchdog(ledger, patience=patience)
  plan = setup.check(config, workdir, checkpoint_path=start)
  with guard, contextlib.ExitStack() as stack:
    multihost.first(lambda: stack.enter_context(lock.held(workdir)))
    at, loader = train(plan, workdir, ledger, stop=stop, traced=traced)
    if multihost.is_first():
      sheets.curve(workdir)
    if plan.nets is None and int(at.step) == plan.train.steps:
      artifacts.save_moments(
        config, workdir, plan.codec, at.ema, loader, plan.mesh
      )
    ledger.write(now=True)
    if multihost.is_first():
      print(ledger.summary(), file=sys.stderr)
    multihost.barrier('done')  # process 0 goes last: it is what the others know
  return at


def train(
  plan: setup.Plan,
  workdir,
  ledger: goodput.Ledger,
  *,
  stop,
  traced: profile.Profile | None = None,
) -> tuple[state.State, Any]:
  """The run itself, of a plan that is good: (last state, loader)."""
  config, settings, nets = plan.config, plan.train, plan.nets
  if plan.frozen:
    artifacts.keep_autoencoder(config, workdir)
  sources, tokenizer = open_data(plan, workdir)
  length = nets.text_length if nets else None
  embedded = nets is not None and nets.text_kind == 'frozen'
  empty_SY = sources.cache.empty_SY if embedded else None
  loader = sources_lib.make_loader(
    plan.data,
    sources.train,
    tokenizer,
    length=length,
    seed=config.seed,
    empty_SY=empty_SY,
    share=sharding.data_share(plan.mesh, jax.process_index()),
    patchify=plan.cut,
  )
  held_out = sources_lib.held_out_batch(
    sources.held_out,
    tokenizer,
    count=settings.held_out,
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
  with checkpoint.Checkpoints(workdir, keep=settings.keep) as checkpoints:
    if checkpoints.latest_step() is None:
      at = init_state.begin(plan, sources.train, init_key)
    else:
      at = checkpoints.restore(plan.shapes, iterator=iterator)
      logging.info('going on from step %d', int(at.step))
    pipeline.start(iterator)
    ledger.resume(int(at.step))
    kept = checkpoint.absolute(workdir) if multihost.is_first() else None
    with metrics.MetricsWriter(kept, step=int(at.step)) as told:
      happens = hooks.events(plan, frozen, held_out, workdir, told, empty_SY)
      if traced:
        traced.begin(int(at.step))
        happens.append(traced)
      at = loop.run(
        step.make_step(
          plan.task.loss,
          plan.optimizer,
          ema=settings.ema,
          accumulate=settings.accumulate,
          limit=settings.limit,
        ),
        at,
        frozen,
        iterator,
        key=run_key,
        mesh=plan.mesh,
        steps=settings.steps,
        log_every=settings.log_every,
        writer=told,
        checkpoints=checkpoints,
        checkpoint_every=settings.checkpoint_every,
        ledger=ledger,
        events=happens,
        rates=networks.rates(config, nets),
        stop=stop,
      )
      if traced:
        traced.end()
  return at, loader


def open_data(
  plan: setup.Plan, workdir
) -> tuple[sources_lib.Sources, tokenizer_lib.Tokenizer]:
  """The clips and the tokenizer; leaves the run's config in its directory."""
  nets, seed = plan.nets, plan.config.seed
  embedded = nets is not None and nets.text_kind == 'frozen'
  if jax.process_count() > 1:  # one of them renders what is not there
    multihost.first(
      lambda: sources_lib.open_sources(plan.data, seed=seed, embedded=embedded)
    )
  sources = sources_lib.open_sources(plan.data, seed=seed, embedded=embedded)
  tokenizer = artifacts.get_tokenizer(plan.config, sources, workdir, plan.base)
  if nets:
    sources_lib.check_captions(sources, tokenizer, length=nets.text_length)
  plain = parse.plain(plan.config) | plan.origin
  checkpoint.write_config(
    workdir,
    artifacts.with_moments(plain, workdir),
    tokenizer=tokenizer.serialized,
    free=setup.FREE,
  )
  return sources, tokenizer
