"""The state of a run before its first step."""

import jax
import numpy as np

from spacetime import SettingError
from spacetime.data import batches
from spacetime.media.pixels import to_video
from spacetime.models.transformer import patchify
from spacetime.training import pca_init, setup, state


def init_state(run: setup.Setup, source, key: jax.Array) -> state.State:
  """Builds the state of a run before its first step.

  Args:
    run: a checked run.
    source: training records, for layers of principal components.
    key: for the parameters.
  """
  if run.base is not None and run.nets is None:
    params = run.base.load(run.mesh)
    return state.state_from(params, run.optimizer, run.mesh)
  if run.base is not None and not run.nets.lora.rank:
    params = run.base.load(run.nets, run.mesh)
    # Weights that the published code computes in float32 may be stored as less.
    params = {
      root: jax.tree.map(lambda leaf: leaf.astype('float32'), params[root])
      for root in run.shapes.params
    }
    return state.state_from(params, run.optimizer, run.mesh)
  init = _with_pca_layers(run, source)
  return state.init_state(init, key, run.optimizer, run.mesh)


def _with_pca_layers(run: setup.Setup, source):
  """Returns the task's init, with first and last layers from PCA of patches."""
  clips = run.experiment.train.pca_init_clips
  if run.nets is None or run.nets.lora.rank or not clips:
    return run.task.init
  components = _components(run, source)

  def init(key):
    params = run.task.init(key)
    return params | {'dit': pca_init.start(params['dit'], components)}

  return init


def check_clips(run: setup.Setup, clips: int) -> None:
  """Checks that the training clips have patches for the principal components.

  Args:
    run: checked.
    clips: number of training clips.

  Raises:
    SettingError: fewer patches than components.
  """
  nets, train = run.nets, run.experiment.train
  if nets is None or run.base is not None or not train.pca_init_clips:
    return
  rank = pca_init.rank(train.pca_init_rank, nets.dit.config)
  count = min(train.pca_init_clips, clips)
  data = run.experiment.data
  shapes = data.mixed.shapes if data.mixed is not None else [data.size]
  tokens = max(run.grid(*size).tokens for size in shapes)
  if count * tokens >= rank:
    return
  name, value = 'train.pca_init_clips', train.pca_init_clips
  if clips < value:
    raise SettingError(
      'data.dir',
      data.dir,
      f'{-(-rank // tokens)} training clips or more, not {clips}: the first '
      f'layers begin as {rank} principal components, and a clip has {tokens} '
      'patches',
      hint='add clips, or set `train.pca_init_clips` to 0',
    )
  raise SettingError(
    name,
    value,
    f'{-(-rank // tokens)} or more, for {rank} principal components of clips '
    f'of {tokens} patches, or 0',
  )


def _components(run: setup.Setup, source) -> pca_init.Components:
  """Computes the principal components of patches of the first clips."""
  nets, packed, train = run.nets, run.patchify, run.experiment.train

  @jax.jit
  def encoded(frames_FHWC):
    return nets.encode(run.frozen, to_video(frames_FHWC)[None])

  def tokens(record):
    if packed is not None:
      return np.asarray(to_video(packed.patches(record['video'])))
    z = record['latents'][None] if 'latents' in record else None
    z = encoded(record['video']) if z is None else z.astype(np.float32)
    return np.asarray(patchify.patchify(z, nets.dit.config.patch)[0])

  records = batches.first(source, train.pca_init_clips)
  # As one clip, since clips may differ in size.
  x_BNV = np.concatenate([tokens(record) for record in records])[None]
  rank = pca_init.rank(train.pca_init_rank, nets.dit.config)
  return pca_init.components(x_BNV, rank=rank)
