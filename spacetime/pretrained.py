"""A trained model from its folder: what sampling and evaluation start from."""

import dataclasses
import os

import jax

from spacetime import build, checkpoint, sharding
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.interop import folders, sections, tokenizers


@dataclasses.dataclass(frozen=True)
class Model:
  """Networks with their parameters.

  Attributes:
    config: as trained, plain values.
    networks: functions.
    params: {'dit', 'text'}, the average (EMA) of training.
    frozen: {'autoencoder'}, or {} where that has no parameters.
    tokenizer: of prompts.
    weights_hash: names the parameters.
  """

  config: dict
  networks: build.Networks
  params: dict
  frozen: dict
  tokenizer: tokenizer_lib.Tokenizer
  weights_hash: str


def load(path: str, *, mesh: jax.sharding.Mesh) -> Model:
  """Loads a work directory, a weights folder, a folder as diffusers writes it,
  or a bundled model by name.

  Raises:
    ValueError: nothing there, half-written, or not a text-to-video model.
  """
  folder = build.resolve(path)
  if folders.is_pipeline(folder):
    return load_published(folder, mesh=mesh)
  config = checkpoint.read_config(folder)
  if config.get('stage') != 'diffusion':
    raise ValueError(
      f'{path} holds stage {config.get("stage")!r}: expected a text-to-video '
      "model, stage 'diffusion'; change --checkpoint"
    )
  codec_config, frozen = load_autoencoder(config, beside=folder, mesh=mesh)
  networks = build.networks(config, weights=codec_config)
  tokenizer = tokenizer_lib.Tokenizer.from_bytes(
    checkpoint.read_tokenizer(folder)
  )
  params = checkpoint.load_params(
    folder, placed(networks.init, mesh), tree='ema'
  )
  return Model(
    config,
    networks,
    params,
    frozen,
    tokenizer,
    checkpoint.weights_hash(folder),
  )


def load_published(
  folder: str | os.PathLike, *, mesh: jax.sharding.Mesh, dtype=None
) -> Model:
  """Loads a folder as diffusers writes it.

  Args:
    folder: that of model_index.json.
    mesh: where the parameters go.
    dtype: of the transformer and the text encoder; None keeps it as stored.

  Raises:
    ValueError: see folders.open_pipeline; or a tokenizer of another model.
  """
  pipeline = folders.open_pipeline(folder)
  config = sections.from_pipeline(pipeline, dtype=dtype)
  networks = build.networks(config)
  tokenizer = tokenizers.read(
    pipeline.tokenizer, vocabulary=networks.text.cfg.vocab_size
  )
  params = {
    root: part.load(mesh, dtype=dtype) for root, part in pipeline.parts.items()
  }
  frozen = {'autoencoder': params.pop('autoencoder')}
  return Model(
    config, networks, params, frozen, tokenizer, pipeline.fingerprint()
  )


def load_autoencoder(
  config, *, beside: str | os.PathLike, mesh: jax.sharding.Mesh
) -> tuple[dict | None, dict]:
  """The trained autoencoder that a config names, if it names one.

  Returns:
    (its config, {'autoencoder': params}), or (None, {}).
  """
  values = config['autoencoder']
  if values['kind'] != 'weights':
    return None, {}
  folder = build.resolve(values['weights'], beside=beside)
  found = checkpoint.read_config(folder)
  if found.get('stage') != 'autoencoder':
    raise ValueError(
      f'{folder} holds stage {found.get("stage")!r}: expected an autoencoder; '
      'change autoencoder.weights'
    )
  if not os.path.exists(os.path.join(folder, checkpoint.WEIGHTS)):
    raise ValueError(
      f'{folder} is a run: make a weights folder of it with python -m '
      f'spacetime.export --checkpoint={folder} --out=DIR, and name that in '
      'autoencoder.weights'
    )
  return found, load_own(found, folder, mesh=mesh)


def load_own(config, folder, *, mesh: jax.sharding.Mesh) -> dict:
  """The parameters of an autoencoder's own folder: {'autoencoder'}."""
  codec = build.autoencoder(config)
  shapes = placed(lambda key: {'autoencoder': codec.init(key)}, mesh)
  return checkpoint.load_params(folder, shapes, tree='ema')


def placed(init, mesh: jax.sharding.Mesh):
  """The shapes of init's parameters, with their shardings on the mesh."""
  shapes = jax.eval_shape(init, jax.random.key(0))
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    shapes,
    sharding.param_shardings(shapes, mesh),
  )
