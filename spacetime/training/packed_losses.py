"""The transformer's loss over packed rows (data/packing.py)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from spacetime.diffusion import flow
from spacetime.media.pixels import to_video
from spacetime.training import frame_conditioning
from spacetime.training.losses import Diffusion


@dataclasses.dataclass(frozen=True)
class PackedDiffusion:
  """The stage where a batch is rows of clips.

  Attributes:
    stage: of clips; what it knows of levels and given frames holds here.
    transform: (params, x_BNV, t_BT, text_BGSY, batch, key) -> prediction_BNV;
      see Diffusion.transform.
  """

  stage: Diffusion
  transform: Callable

  def inputs(self, params, batch):
    """(x_BNV, text_BGSY): patches of latents, and each clip's features."""
    x_BNV = batch['patches']
    if x_BNV.dtype == jnp.uint8:
      x_BNV = to_video(x_BNV)
    if 'text' in batch:
      return x_BNV, batch['text']
    rows, clips, length = batch['tokens'].shape
    tokens_BS = batch['tokens'].reshape(rows * clips, length)
    text_BSY = self.stage.embed(params, tokens_BS)
    return x_BNV, text_BSY.reshape(rows, clips, length, -1)

  def levels(self, key, batch):
    """A level for each clip, those of its given frames apart, as a table.

    Returns:
      (t_BT, given_BT): rows of the table that no clip has are given.
    """
    level_key, own_key, given_key, table_key = jax.random.split(key, 4)
    grids_BG3, levels_BT2 = batch['grids'], batch['frame_table']
    rows, clips = grids_BG3.shape[:2]
    most = levels_BT2.shape[1]
    tokens_BG = jnp.maximum(jnp.prod(grids_BG3, axis=-1), 1)
    t_BG = flow.sample_timesteps(
      level_key, (rows, clips), self.stage.flow, tokens=tokens_BG
    )
    own_BGf = flow.sample_timesteps(
      own_key,
      (rows, clips, most),
      self.stage.flow,
      tokens=tokens_BG[..., None],
    )
    given_Cf = frame_conditioning.sample_cond_mask(
      given_key,
      rows * clips,
      most,
      self.stage.conditioning,
      count_B=jnp.maximum(grids_BG3[..., 0], 1).reshape(-1),
    )
    clip_BT = jnp.maximum(levels_BT2[..., 0] - 1, 0)
    t_Cf = frame_conditioning.sample_levels(
      table_key,
      t_BG.reshape(-1, 1),
      own_BGf.reshape(-1, most),
      given_Cf,
      self.stage.conditioning,
    )
    place_BT = clip_BT * most + levels_BT2[..., 1]
    t_BT, given_BT = (
      jnp.take_along_axis(table_Cf.reshape(rows, -1), place_BT, axis=1)
      for table_Cf in (t_Cf, given_Cf)
    )
    empty_BT = levels_BT2[..., 0] == 0
    return jnp.where(empty_BT, 0.0, t_BT), given_BT | empty_BT

  def losses(self, params, batch, t_BT, key, dropout=None):
    """Squared error of the velocity for each token, (B, N)."""
    x_BNV, text_BGSY = self.inputs(params, batch)
    noise = jax.random.normal(key, x_BNV.shape)
    t_BN1 = jnp.take_along_axis(t_BT, batch['frame_ids'], axis=1)[..., None]
    x_t = flow.add_noise(x_BNV, noise, t_BN1)
    y_BNV = self.transform(params, x_t, t_BT, text_BGSY, batch, dropout)
    if self.stage.flow.prediction == 'sample':
      floor = self.stage.flow.floor
      y_BNV = flow.to_velocity(x_t, y_BNV, t_BN1, floor=floor)
    error = y_BNV.astype(jnp.float32) - flow.velocity(x_BNV, noise)
    return jnp.mean(jnp.square(error), axis=-1)

  def loss(self, params, frozen, batch, key):
    """The mean over the tokens that are neither given nor padding: a clip
    counts as it would among clips of its size, by what it has to say.

    Args:
      params: those that are trained.
      frozen: the others.
      batch: rows, see packing.pack.
      key: of this step.

    Returns:
      (loss, metrics); among them `padding`, the share of tokens that no clip
      has.
    """
    level_key, noise_key = jax.random.split(key)
    t_BT, given_BT = self.levels(level_key, batch)
    dropout_key = jax.random.fold_in(noise_key, 1)
    loss_BN = self.losses(frozen | params, batch, t_BT, noise_key, dropout_key)
    padding_BN = batch['segment_ids'] == 0
    given_BN = jnp.take_along_axis(given_BT, batch['frame_ids'], axis=1)
    loss = flow.masked_mean(loss_BN, given_BN | padding_BN)
    return loss, {'loss': loss, 'padding': jnp.mean(padding_BN)}
