"""Frame conditioning for sampling: known latents, noise levels and a mask.

Every mode of sampling is a `ConditioningVideo`: frames some of whose pixels are
known. The autoencoder computes which values of the latents that makes known
(`latent_cond_mask`), and `from_mask` sets the noise level at which each latent
frame begins:

  0         conditioning frame: the network sees t = 0, as in training
            (training/frame_conditioning.py)
  1         noise
  between   edited: noised to this level and denoised from there (SDEdit)

A token that is known completely, in a frame that is not, is a conditioning
token too: the table of noise levels has an entry 0 for it, since a model
trained with conditioning frames follows conditioning tokens (far better than
the paths described next). Values that are known within a token that is not (an
edge of the mask, one of the four frames of a latent frame) follow the path of
their token from noise to data, whose end is known: z_t = (1 - t) z + t noise,
with their initial noise.
"""

import dataclasses

import einops
import jax
import jax.numpy as jnp
import numpy as np

from spacetime.diffusion import flow


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditioning:
  """Initial noise levels of sampling, and known values of its result.

  Attributes:
    z_Bfhwc: float32, finite; read where it is known or edited.
    t_BT: float32 in [0, 1], a table of initial noise levels: one a latent frame
      (B, f), one for all (B, 1), or as t_index_fhw refers to it.
    t_index_fhw: int32, index in the table for each latent cell; None is that of
      its frame.
    cond_mask_Bfhwc: bool, known values outside of conditioning frames and
      tokens; None is none.
    context_BT: bool, entries of the table whose latents are known and are given
      to the network with noise, at the level of the step and at most at t_BT,
      as conditioning frames with noise are in training; None is none.
    cond_Bfhwc: channels beside the latents, of models that see known pixels so
      (image to video); see cond_channels.
    control_Bfhwc: latents of control blocks (VACE); see control_mask.
    image_BSY: embeddings of the images that the model sees beside the text.
    control_scale_B: factor of what control blocks add; None is 1.
  """

  z_Bfhwc: jax.Array
  t_BT: jax.Array
  t_index_fhw: jax.Array | None = None
  cond_mask_Bfhwc: jax.Array | None = None
  context_BT: jax.Array | None = None
  cond_Bfhwc: jax.Array | None = None
  control_Bfhwc: jax.Array | None = None
  image_BSY: jax.Array | None = None
  control_scale_B: jax.Array | None = None

  @property
  def context(self) -> jax.Array | None:
    """`context_BT` of each latent cell, ready to select latents."""
    return None if self.context_BT is None else self.per_cell(self.context_BT)

  def per_cell(self, t_BT: jax.Array) -> jax.Array:
    """A table of noise levels, ready to multiply latents."""
    return flow.per_cell(t_BT, self.t_index_fhw)

  def repeat(self, count: int) -> 'Conditioning':
    """All clips `count` times, one batch after the other."""
    return concatenate([self] * count)


def concatenate(parts: list[Conditioning]) -> Conditioning:
  """The conditioning of several batches of clips of the same kind as one."""
  arrays = {
    field.name: [getattr(part, field.name) for part in parts]
    for field in dataclasses.fields(Conditioning)
    if field.name != 't_index_fhw'
  }
  return Conditioning(
    t_index_fhw=parts[0].t_index_fhw,
    **{
      name: None if xs[0] is None else jnp.concatenate(xs)
      for name, xs in arrays.items()
    },
  )


def pure_noise(batch: int, latent: tuple[int, int, int, int]) -> Conditioning:
  """Text to video: nothing is known. `latent` is (f, h, w, c)."""
  return Conditioning(
    np.zeros((batch, *latent), np.float32), np.ones((batch, 1), np.float32)
  )


def from_mask(
  z_Bfhwc: jax.Array,
  cond_mask_fhwc: np.ndarray,
  *,
  patch: tuple[int, int, int],
  strength: float = 1.0,
) -> Conditioning:
  """Conditioning on some values of latents; the others begin at `strength`.

  Args:
    z_Bfhwc: latents of the conditioning video.
    cond_mask_fhwc: bool, known values; a token of known values alone becomes a
      conditioning token.
    patch: latent cells of a token; time is 1.
    strength: initial noise level of the others: 1, or less to edit.
  """
  batch, frames = z_Bfhwc.shape[:2]
  token_mask_fhw = _token_mask(cond_mask_fhwc, patch)
  frame_mask_f = token_mask_fhw.all((1, 2))
  t_T = np.where(frame_mask_f, 0, strength)
  t_index_fhw = None
  if (token_mask_fhw & ~frame_mask_f[:, None, None]).any():
    t_T = np.append(t_T, 0)
    frame_f11 = np.arange(frames)[:, None, None]
    t_index_fhw = jnp.asarray(
      np.where(token_mask_fhw, frames, frame_f11), jnp.int32
    )
  elif not frame_mask_f.any():
    t_T = t_T[:1]
  t_T = t_T.astype(np.float32)
  rest_fhwc = cond_mask_fhwc & ~token_mask_fhw[..., None]
  return Conditioning(
    jnp.asarray(z_Bfhwc, jnp.float32),
    jnp.broadcast_to(t_T, (batch, len(t_T))),
    t_index_fhw,
    jnp.broadcast_to(rest_fhwc, z_Bfhwc.shape) if rest_fhwc.any() else None,
  )


def _token_mask(cond_mask_fhwc: np.ndarray, patch) -> np.ndarray:
  """Cells of tokens all of whose values are known, bool (f, h, w)."""
  _, a, b = patch
  token_fhw = einops.reduce(
    cond_mask_fhwc, 'f (h a) (w b) c -> f h w', np.all, a=a, b=b
  )
  return einops.repeat(token_fhw, 'f h w -> f (h a) (w b)', a=a, b=b)


def known_mask(known: str, frames: int) -> np.ndarray:
  """The frames (F,) that are known: 'first', or 'ends' for the last too."""
  mask_F = np.arange(frames) == 0
  if known == 'ends':
    mask_F[-1] = True
  return mask_F


def cond_channels(
  z_Bfhwc: jax.Array, cond_mask_F: np.ndarray, *, stride: int
) -> jax.Array:
  """Channels of a model that sees known frames beside its latents.

  Args:
    z_Bfhwc: latents of a clip whose unknown pixels are 0.
    cond_mask_F: bool, known frames.
    stride: frames of a latent frame; the first latent frame has one, which
      counts `stride` times.

  Returns:
    (B, f, h, w, stride + c): the mask of the frames of each latent frame, then
    the latents.

  Source: Wan 2.1, arXiv 2503.20314, section 5.1.
  """
  mask_F = np.concatenate([np.repeat(cond_mask_F[:1], stride), cond_mask_F[1:]])
  mask_fm = mask_F.reshape(-1, stride).astype(np.float32)
  mask_Bfhwm = jnp.broadcast_to(
    mask_fm[:, None, None], (*z_Bfhwc.shape[:4], stride)
  )
  return jnp.concatenate([mask_Bfhwm, z_Bfhwc], axis=-1)


def draw_known(
  rng: np.random.Generator, size: tuple[int, int, int]
) -> np.ndarray:
  """Draws the known pixels of a training clip of a model with control blocks.

  They are none; the first frames, the last ones or both; or the pixels inside
  or outside of a box, as in extending, connecting, inpainting and outpainting.

  Args:
    rng: source of randomness.
    size: (frames, height, width) of the clip.

  Returns:
    bool (F, H, W), not all of them.
  """
  frames, height, width = size
  known_FHW = np.zeros(size, bool)
  kind = rng.choice(['none', 'first', 'last', 'ends', 'inside', 'outside'])
  if kind in ('inside', 'outside'):
    (top, bottom), (left, right) = (
      sorted(rng.choice(n + 1, 2, replace=False)) for n in (height, width)
    )
    known_FHW[:, top:bottom, left:right] = True
    known_FHW = known_FHW if kind == 'inside' else ~known_FHW
  elif frames > 1:
    count = int(rng.integers(1, frames))
    if kind in ('first', 'ends'):
      known_FHW[: count if kind == 'first' else -(-count // 2)] = True
    if kind == 'last' or kind == 'ends' and count > 1:
      known_FHW[-(count if kind == 'last' else count // 2) :] = True
  return np.zeros(size, bool) if known_FHW.all() else known_FHW


def control_mask(new_FHW: np.ndarray, *, stride) -> np.ndarray:
  """Pixels to generate as channels of latents, float32 (f, h, w, y x).

  A latent frame has the mask of the frame in the middle of its share of the
  clip; a channel is one pixel of a latent cell.

  Args:
    new_FHW: bool, pixels to generate.
    stride: pixels of a latent cell along time, height and width.

  Source: Jiang et al. 2025 (VACE), arXiv 2503.07598, section 3.2.
  """
  time, height, width = stride
  count = len(new_FHW)
  latent = (count + time - 1) // time
  index_f = np.floor((np.arange(latent) + 0.5) * count / latent).astype(int)
  return einops.rearrange(
    new_FHW[index_f].astype(np.float32),
    'f (h y) (w x) -> f h w (y x)',
    y=height,
    x=width,
  )
