"""What a run keeps beside its checkpoints: an autoencoder, a tokenizer, the
moments of its latents."""

import json

import jax
import numpy as np
from etils import epath

from spacetime import checkpoint, sharding
from spacetime.checkpoint import init_weights
from spacetime.config import networks, parse
from spacetime.data import sources as sources_lib
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.media import files
from spacetime.sharding import multihost
from spacetime.training import setup


def keep_autoencoder(config, workdir) -> None:
  """Copies the autoencoder into the run, so that the run is whole by itself."""
  kept = checkpoint.absolute(workdir) / setup.KEPT

  def copy():
    if kept.exists():
      return
    source = networks.resolve(config.autoencoder.weights, beside=workdir)
    with files.atomic_folder(kept) as temporary:
      for path in epath.Path(source).iterdir():
        path.copy(temporary / path.name)

  multihost.first(copy)
  config.autoencoder.weights = setup.KEPT


def with_moments(plain: dict, workdir) -> dict:
  """The config with the latents' moments that a finished run has measured."""
  if plain['stage'] == 'autoencoder':
    path = checkpoint.absolute(workdir) / checkpoint.CONFIG
    if path.exists():
      saved = json.loads(path.read_text())['autoencoder']
      for name in ('latents_mean', 'latents_std'):
        if name in saved:
          plain['autoencoder'][name] = saved[name]
  return plain


def get_tokenizer(
  config, sources, workdir, base: init_weights.Base | None
) -> tokenizer_lib.Tokenizer:
  """The run's tokenizer: the one it has, that of the weights it starts from or
  of its cache, or one learnt from its captions."""
  path = checkpoint.absolute(workdir) / checkpoint.TOKENIZER
  if path.exists():
    return tokenizer_lib.Tokenizer.from_bytes(path.read_bytes())
  if base is not None and base.tokenizer is not None:
    return tokenizer_lib.Tokenizer.from_bytes(base.tokenizer)
  if sources.cache is not None and not sources.captions:  # they are embedded
    return tokenizer_lib.Tokenizer.from_bytes(sources.cache.tokenizer)
  size = config.text.vocab_size if 'text' in config else sources_lib.VOCABULARY
  return tokenizer_lib.train(sources.captions, vocab_size=size)


def save_moments(
  config, workdir, codec, params, loader, mesh, *, batches: int = 16
) -> None:
  """Puts each latent channel's mean and deviation into the run's config."""
  stage = networks.reconstruction_stage(config, codec)
  compiled, found = jax.jit(stage.moments), []
  iterator = iter(loader)
  for _ in range(batches):
    batch = sharding.put_batch(next(iterator), mesh)
    found.append(jax.device_get(compiled(params, batch)))
  mean, square = (np.mean(x, axis=0) for x in zip(*found, strict=True))
  deviation = np.sqrt(np.maximum(square - mean**2, 1e-8))
  plain = parse.plain(config)
  plain['autoencoder'] |= {
    'latents_mean': [round(float(x), 5) for x in mean],
    'latents_std': [round(float(x), 5) for x in deviation],
  }
  checkpoint.write_config(workdir, plain, free=setup.FREE)
