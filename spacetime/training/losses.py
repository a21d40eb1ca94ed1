"""Diffusion loss of clips and of packed rows, with held-out loss at fixed t."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from spacetime.config.sections import FrameConditioningConfig
from spacetime.diffusion import conditioning, flow
from spacetime.media.pixels import to_video
from spacetime.models.transformer.attention import ImageContext
from spacetime.training import frame_conditioning, means

# Timesteps of the held-out loss, from little noise to much.
HELD_OUT_TIMESTEPS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.97)


@dataclasses.dataclass(frozen=True)
class DiffusionLoss:
  """The loss of a batch of clips of one size.

  Attributes:
    encode: (frozen, video_BFHWC) -> z_Bfhwc, unit scale.
    embed: (params, tokens_BS) -> text_BSY.
    transform: (params, z_Bfhwc, t_Bf, text_BSY, key) -> prediction_Bfhwc; the
      key is for dropout, None drops nothing.
    flow: prediction and distribution of timesteps.
    conditioning: conditioning frames.
    patch: latent cells of a token; the timesteps of a size depend on its
      tokens.
    known: frames that an image-to-video model sees beside its latents, see
      DiTConfig.known_frames.
    stride: frames of a latent frame.
  """

  encode: Callable
  embed: Callable
  transform: Callable
  flow: flow.FlowConfig
  conditioning: FrameConditioningConfig
  patch: tuple[int, int, int] = (1, 1, 1)
  known: str = ''
  stride: int = 1

  def latents(self, params, frozen, batch):
    """z_Bfhwc, computed unless the batch has them."""
    del params
    if 'latents' in batch:
      return batch['latents'].astype(jnp.float32)
    return self.encode(frozen, to_video(batch['frames']))

  def inputs(self, params, frozen, batch):
    """Returns (z_Bfhwc, text_BSY), computed unless the batch has them.

    With embeddings of images the text is an ImageContext of both.
    """
    z_Bfhwc, text_BSY = self._inputs(params, frozen, batch)
    if 'image' in batch:
      return z_Bfhwc, ImageContext(text_BSY, batch['image'])
    return z_Bfhwc, text_BSY

  def conditions(self, batch) -> dict:
    """Further inputs of the network: the channels of known frames, or the
    latents of control blocks."""
    if 'control_latents' in batch:
      return {'control_Bfhwc': batch['control_latents'].astype(jnp.float32)}
    if 'cond_latents' not in batch:
      return {}
    z_Bfhwc = batch['cond_latents'].astype(jnp.float32)
    frames = 1 + (z_Bfhwc.shape[1] - 1) * self.stride
    mask_F = conditioning.known_mask(self.known, frames)
    channels = conditioning.cond_channels(z_Bfhwc, mask_F, stride=self.stride)
    return {'cond_Bfhwc': channels}

  def _inputs(self, params, frozen, batch):
    z_Bfhwc = self.latents(params, frozen, batch)
    if 'text' in batch:
      return z_Bfhwc, batch['text']
    return z_Bfhwc, self.embed(params, batch['tokens'])

  def velocity(self, params, z_t_Bfhwc, t_Bf, text_BSY, key=None, **conditions):
    """Returns the velocity, whichever quantity the network predicts."""
    y_Bfhwc = self.transform(
      params, z_t_Bfhwc, t_Bf, text_BSY, key, **conditions
    )
    if self.flow.prediction == 'velocity':
      return y_Bfhwc
    return flow.to_velocity(z_t_Bfhwc, y_Bfhwc, t_Bf, floor=self.flow.floor)

  def frame_losses(
    self, params, z_Bfhwc, text_BSY, t_Bf, noise, dropout=None, **conditions
  ):
    """Squared error of the velocity of each latent frame, (B, f); t_Bf may be
    (B, 1), one timestep for all frames of a clip."""
    z_t = flow.add_noise(z_Bfhwc, noise, t_Bf)
    v = self.velocity(params, z_t, t_Bf, text_BSY, dropout, **conditions)
    return flow.frame_loss(v, flow.velocity(z_Bfhwc, noise))

  def tokens(self, z_Bfhwc) -> int:
    """Tokens of each clip of latents, or of their shape."""
    return math.prod(z_Bfhwc.shape[1:4]) // math.prod(self.patch)

  def cond_mask(self, key, rows: int, frames: int, batch) -> jax.Array:
    """Draws the conditioning frames of a batch, bool (B, f)."""
    cond_mask_Bf = frame_conditioning.sample_cond_mask(
      key, rows, frames, self.conditioning
    )
    if 'cond' in batch:
      clips_B = frame_conditioning.sample_clips(key, batch['cond'])
      cond_mask_Bf &= clips_B[:, None]
    return cond_mask_Bf

  def draw(self, params, frozen, batch, key):
    """What is random in the loss of a batch but for dropout.

    Args:
      params: trained parameters; only their shapes are used.
      frozen: the other parameters, likewise.
      batch: see `loss`.
      key: of this step.

    Returns:
      t (B, f), timesteps; cond_mask bool (B, f), conditioning frames; noise
      (B, f, h, w, c).
    """
    latents = jax.eval_shape(self.latents, frozen | params, frozen, batch)
    t_key, independent_key, mask_key, frame_key, noise_key = jax.random.split(
      key, 5
    )
    rows, frames = latents.shape[:2]
    tokens = self.tokens(latents)
    factor = batch['shift'][:, None] if 'shift' in batch else 1.0
    t_B1, independent_Bf = (
      flow.sample_timesteps(key, shape, self.flow, tokens=tokens, factor=factor)
      for key, shape in (
        (t_key, (rows, 1)),
        (independent_key, (rows, frames)),
      )
    )
    cond_mask_Bf = self.cond_mask(mask_key, rows, frames, batch)
    # One timestep for the clip is a table of one row, which no token gathers
    # from and no gradient is scattered into.
    t_Bf = t_B1
    if not self.conditioning.has_one_timestep:
      t_Bf = frame_conditioning.frame_timesteps(
        frame_key, t_B1, independent_Bf, cond_mask_Bf, self.conditioning
      )
    noise = jax.random.normal(noise_key, latents.shape)
    return {'t': t_Bf, 'cond_mask': cond_mask_Bf, 'noise': noise}

  def loss(self, params, frozen, batch, key, draws=None):
    """The training loss of a batch, over frames that are not conditioning.

    Args:
      params: trained parameters.
      frozen: the other parameters.
      batch: 'frames' (uint8) or 'latents', and 'tokens' (int32) or 'text'; of
        training stages 'shift' and 'cond', (B,), see data/stages.py.
      key: of this step.
      draws: see `draw`; None draws from the key.

    Returns:
      (loss, metrics), each a Mean.
    """
    if draws is None:
      draws = self.draw(params, frozen, batch, key)
    params = frozen | params
    z_Bfhwc, text_BSY = self.inputs(params, frozen, batch)
    loss_Bf = self.frame_losses(
      params,
      z_Bfhwc,
      text_BSY,
      draws['t'],
      draws['noise'],
      dropout_key(key, 5),
      **self.conditions(batch),
    )
    loss = _masked_mean(loss_Bf, draws['cond_mask'])
    return loss.value, {'loss': loss}

  def held_out(self, params, frozen, batch):
    """The loss at each of `held_out_timesteps`, with noise that never changes.

    Args:
      params: trained parameters.
      frozen: the other parameters.
      batch: clips; 'counted' (B,) has 0 for those that only fill the batch.
    """
    params = frozen | params
    z_Bfhwc, text_BSY = self.inputs(params, frozen, batch)
    timesteps = held_out_timesteps(self.flow)
    conditions = self.conditions(batch)

    def at(t):
      rows, frames = z_Bfhwc.shape[:2]
      columns = 1 if self.conditioning.has_one_timestep else frames
      t_Bf = jnp.full((rows, columns), t)
      noise = jax.random.normal(jax.random.key(0), z_Bfhwc.shape)
      loss_Bf = self.frame_losses(
        params, z_Bfhwc, text_BSY, t_Bf, noise, **conditions
      )
      if 'counted' not in batch:
        return jnp.mean(loss_Bf)
      return means.over_clips(jnp.mean(loss_Bf, axis=1), batch['counted'])

    losses = jax.lax.map(at, jnp.asarray(timesteps))
    metrics = {
      f'held_out/loss_t{t}': losses[i] for i, t in enumerate(timesteps)
    }
    return dict(metrics, **{'held_out/loss': jnp.mean(losses)})


@dataclasses.dataclass(frozen=True)
class PackedDiffusionLoss:
  """The loss of a batch of packed rows (data/packing.py).

  Attributes:
    clips: the loss of clips, for its text encoder, flow and conditioning.
    transform: (params, x_BNV, t_BT, text_BGSY, batch, key) -> prediction_BNV;
      the key is for dropout, None drops nothing.
  """

  clips: DiffusionLoss
  transform: Callable

  def inputs(self, params, batch):
    """Returns (x_BNV, text_BGSY): latent patches and prompt embeddings."""
    x_BNV = batch['patches']
    if x_BNV.dtype == jnp.uint8:
      x_BNV = to_video(x_BNV)
    if 'text' in batch:
      return x_BNV, batch['text']
    rows, clips, length = batch['tokens'].shape
    tokens_BS = batch['tokens'].reshape(rows * clips, length)
    text_BSY = self.clips.embed(params, tokens_BS)
    return x_BNV, text_BSY.reshape(rows, clips, length, -1)

  def timesteps(self, key, batch):
    """Samples a timestep for each clip and for its conditioning frames.

    Returns:
      (t_BT, cond_mask_BT): tables over the frames of a row; entries that no
      clip has are conditioning frames at timestep 0.
    """
    t_key, independent_key, mask_key, frame_key = jax.random.split(key, 4)
    grids_BG3, table_BT2 = batch['grids'], batch['frame_table']
    rows, clips = grids_BG3.shape[:2]
    frames = table_BT2.shape[1]
    tokens_BG = jnp.maximum(jnp.prod(grids_BG3, axis=-1), 1)
    factor_BG = batch.get('shift', jnp.ones((rows, clips)))
    factor_BG = jnp.where(factor_BG > 0, factor_BG, 1.0)  # 0 without a clip
    t_BG = flow.sample_timesteps(
      t_key,
      (rows, clips),
      self.clips.flow,
      tokens=tokens_BG,
      factor=factor_BG,
    )
    independent_BGf = flow.sample_timesteps(
      independent_key,
      (rows, clips, frames),
      self.clips.flow,
      tokens=tokens_BG[..., None],
      factor=factor_BG[..., None],
    )
    # C: all clips of the batch, B x G.
    cond_mask_Cf = frame_conditioning.sample_cond_mask(
      mask_key,
      rows * clips,
      frames,
      self.clips.conditioning,
      count_B=jnp.maximum(grids_BG3[..., 0], 1).reshape(-1),
    )
    if 'cond' in batch:
      chance_C = batch['cond'].reshape(-1)
      clips_C = frame_conditioning.sample_clips(mask_key, chance_C)
      cond_mask_Cf &= clips_C[:, None]
    clip_BT = jnp.maximum(table_BT2[..., 0] - 1, 0)
    t_Cf = frame_conditioning.frame_timesteps(
      frame_key,
      t_BG.reshape(-1, 1),
      independent_BGf.reshape(-1, frames),
      cond_mask_Cf,
      self.clips.conditioning,
    )
    index_BT = clip_BT * frames + table_BT2[..., 1]
    t_BT, cond_mask_BT = (
      jnp.take_along_axis(table_Cf.reshape(rows, -1), index_BT, axis=1)
      for table_Cf in (t_Cf, cond_mask_Cf)
    )
    empty_BT = table_BT2[..., 0] == 0
    return jnp.where(empty_BT, 0.0, t_BT), cond_mask_BT | empty_BT

  def token_losses(self, params, batch, t_BT, noise, dropout=None):
    """Squared error of the velocity of each token, (B, N)."""
    x_BNV, text_BGSY = self.inputs(params, batch)
    t_BN1 = jnp.take_along_axis(t_BT, batch['frame_ids'], axis=1)[..., None]
    x_t = flow.add_noise(x_BNV, noise, t_BN1)
    y_BNV = self.transform(params, x_t, t_BT, text_BGSY, batch, dropout)
    if self.clips.flow.prediction == 'sample':
      floor = self.clips.flow.floor
      y_BNV = flow.to_velocity(x_t, y_BNV, t_BN1, floor=floor)
    error = y_BNV.astype(jnp.float32) - flow.velocity(x_BNV, noise)
    return jnp.mean(jnp.square(error), axis=-1)

  def draw(self, params, frozen, batch, key):
    """What is random in the loss of a batch but for dropout: t and cond_mask
    (B, T) as of `timesteps`, and noise (B, N, V)."""
    del params, frozen
    t_key, noise_key = jax.random.split(key)
    t_BT, cond_mask_BT = self.timesteps(t_key, batch)
    noise = jax.random.normal(noise_key, batch['patches'].shape)
    return {'t': t_BT, 'cond_mask': cond_mask_BT, 'noise': noise}

  def loss(self, params, frozen, batch, key, draws=None):
    """The mean over tokens that are neither conditioning nor padding, so that a
    clip weighs as much as its tokens to predict.

    Args:
      params: trained parameters.
      frozen: the other parameters.
      batch: packed rows, see packing.collate.
      key: of this step.
      draws: see `draw`; None draws from the key.

    Returns:
      (loss, metrics), each a Mean; the metric `padding` is the share of tokens
      that no clip has.
    """
    if draws is None:
      draws = self.draw(params, frozen, batch, key)
    loss_BN = self.token_losses(
      frozen | params, batch, draws['t'], draws['noise'], dropout_key(key, 2)
    )
    padding_BN = batch['segment_ids'] == 0
    cond_mask_BN = jnp.take_along_axis(
      draws['cond_mask'], batch['frame_ids'], axis=1
    )
    loss = _masked_mean(loss_BN, cond_mask_BN | padding_BN)
    padding = means.Mean(jnp.mean(padding_BN), padding_BN.size)
    return loss.value, {'loss': loss, 'padding': padding}


def held_out_timesteps(config: flow.FlowConfig) -> tuple[float, ...]:
  """The timesteps of the held-out loss: those that the model is trained on."""
  inside = tuple(t for t in HELD_OUT_TIMESTEPS if config.trains(t))
  return inside or (round(sum(config.bounds) / 2, 3),)


def _masked_mean(loss_BN: jax.Array, mask_BN: jax.Array) -> means.Mean:
  """The mean over items outside of the mask, with their number."""
  count = jnp.sum(1.0 - mask_BN.astype(jnp.float32))
  return means.Mean(flow.masked_mean(loss_BN, mask_BN), count)


def dropout_key(key: jax.Array, keys: int) -> jax.Array:
  """The key of dropout: beside that of the noise, the last of so many."""
  return jax.random.fold_in(jax.random.split(key, keys)[-1], 1)
