"""Files of a run beside its checkpoints: a copy of the autoencoder, the
tokenizer, the config with the moments of the latents."""

import json

import jax
import numpy as np
from etils import epath

from spacetime import checkpoint, sharding
from spacetime.config import parse
from spacetime.config.experiment import Experiment
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.data.splits import Splits
from spacetime.media import files
from spacetime.sharding import multihost
from spacetime.training import setup, tasks

MOMENTS = ('latents_mean', 'latents_std')

VOCABULARY = 512  # pieces of a tokenizer for a config without text


def copy_autoencoder(run: setup.Setup, workdir) -> None:
  """Copies a trained autoencoder into the run, which then needs no other
  folder."""
  target = checkpoint.absolute(workdir) / setup.AUTOENCODER

  def copy():
    if target.exists():
      return
    with files.atomic_folder(target) as temporary:
      for path in epath.Path(run.autoencoder_folder).iterdir():
        path.copy(temporary / path.name)

  if run.autoencoder_folder:
    multihost.on_first_process(copy)


def with_saved_moments(experiment: Experiment, workdir) -> Experiment:
  """Adds the latent moments that a finished run measured to its experiment."""
  path = checkpoint.absolute(workdir) / checkpoint.CONFIG
  if experiment.stage != 'autoencoder' or not path.exists():
    return experiment
  saved = json.loads(path.read_text())['autoencoder']
  return parse.replace(
    experiment,
    {f'autoencoder.{name}': saved[name] for name in MOMENTS if name in saved},
  )


def get_tokenizer(
  run: setup.Setup, splits: Splits, workdir
) -> tokenizer_lib.Tokenizer:
  """Returns the tokenizer of the run, of its initial weights, of its cache, or
  one trained on its captions, in this order."""
  path = checkpoint.absolute(workdir) / checkpoint.TOKENIZER
  if path.exists():
    return tokenizer_lib.Tokenizer.from_bytes(path.read_bytes())
  if run.base is not None and run.base.tokenizer is not None:
    return tokenizer_lib.Tokenizer.from_bytes(run.base.tokenizer)
  if not splits.captions:  # they are embedded
    return tokenizer_lib.Tokenizer.from_bytes(splits.tokenizer)
  text = run.experiment.text
  size = text.encoder.vocab_size if text else VOCABULARY
  return tokenizer_lib.train(splits.captions, vocab_size=size)


def save_config(
  run: setup.Setup, workdir, tokenizer: tokenizer_lib.Tokenizer
) -> None:
  """Writes config.json and the tokenizer."""
  checkpoint.write_config(
    workdir,
    with_saved_moments(run.experiment, workdir).values,
    tokenizer=tokenizer.serialized,
    free=setup.FREE_KEYS,
  )


def save_moments(
  run: setup.Setup, workdir, params, loader, *, batches: int = 16
) -> None:
  """Measures the mean and deviation of each latent channel, and writes them
  into the run's config."""
  stage = tasks.reconstruction_stage(run.experiment, run.autoencoder)
  compiled, moments = jax.jit(stage.moments), []
  iterator = iter(loader)
  for _ in range(batches):
    batch = sharding.put_batch(next(iterator), run.mesh)
    moments.append(jax.device_get(compiled(params, batch)))
  *sums, cells = zip(*moments, strict=True)  # batches may differ in size
  mean, square = (np.average(x, axis=0, weights=cells) for x in sums)
  deviation = np.sqrt(np.maximum(square - mean**2, 1e-8))
  experiment = parse.replace(
    run.experiment,
    {
      'autoencoder.latents_mean': [round(float(x), 5) for x in mean],
      'autoencoder.latents_std': [round(float(x), 5) for x in deviation],
    },
  )
  checkpoint.write_config(workdir, experiment.values, free=setup.FREE_KEYS)
