"""Conditioning of models that see known pixels beside their latents.

Image-to-video models see a mask and latents as further channels, VACE's control
blocks see latents of the known pixels and of the others. Neither knows frames
at noise level 0, as a model of this package does: see
diffusion/conditioning.py.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from spacetime.diffusion import conditioning as conditioning_lib
from spacetime.diffusion import conditioning_video
from spacetime.diffusion.conditioning_video import ConditioningVideo
from spacetime.media.pixels import to_video
from spacetime.models.networks import Networks
from spacetime.pipeline.engine import Engine
from spacetime.pipeline.plan import Plan


def beside(
  engine: Engine,
  plan: Plan,
  video: ConditioningVideo | None,
  images: tuple[np.ndarray, ...],
  *,
  batch: int,
) -> conditioning_lib.Conditioning:
  """Conditioning of a model that sees known pixels beside its latents.

  Args:
    engine: the model.
    plan: plan of the clips, whose references the model sees too.
    video: conditioning video; None has no known pixels.
    images: images that the model sees beside the text, uint8 (H, W, 3).
    batch: clips.
  """
  if engine.networks.dit.config.sees == 'channels':
    return channels(engine, video, images, batch=batch)
  sizes = plan.geometry
  return control(
    engine,
    video,
    plan.references,
    (sizes.frames, sizes.height, sizes.width),
    batch=batch,
    scale=plan.request.control_scale,
  )


def continued(
  engine: Engine, plan: Plan, frames_BFHWC: np.ndarray
) -> conditioning_lib.Conditioning:
  """Conditioning of clips that begin with known frames, each with its own.

  Args:
    engine: a model that sees known pixels beside its latents.
    plan: plan of the clips.
    frames_BFHWC: uint8 first frames of each clip. A model that sees an image
      beside the text sees the last of them.
  """
  parts = []
  for frames_FHWC in frames_BFHWC:
    video = conditioning_video.forward(
      frames_FHWC, frames=plan.geometry.frames, cond_frames=len(frames_FHWC)
    )
    images = (frames_FHWC[-1],) if plan.images else ()
    parts.append(beside(engine, plan, video, images, batch=1))
  return conditioning_lib.concatenate(parts)


def channels(
  engine: Engine,
  video: ConditioningVideo,
  images: tuple[np.ndarray, ...],
  *,
  batch: int,
) -> conditioning_lib.Conditioning:
  """Conditioning of an image-to-video model.

  Args:
    engine: the model.
    video: conditioning video whose frames are known or not.
    images: images that the model sees beside the text, uint8 (H, W, 3) of any
      size; () for a model that sees none.
    batch: clips.
  """
  known_F = video.cond_mask_FHW[:, 0, 0]
  z_1fhwc = encode_known(engine, video.frames_FHWC, video.cond_mask_FHW)
  cond = conditioning_lib.cond_channels(
    z_1fhwc, known_F, stride=engine.autoencoder.stride[0]
  )
  image = embed_images(engine, images)
  return conditioning_lib.Conditioning(
    jnp.zeros((batch, *z_1fhwc.shape[1:]), jnp.float32),
    jnp.ones((batch, 1), jnp.float32),
    cond_Bfhwc=_repeated(cond, batch),
    image_BSY=None if image is None else _repeated(image, batch),
  )


def control(
  engine: Engine,
  video: ConditioningVideo | None,
  references: tuple[np.ndarray, ...],
  size: tuple[int, int, int],
  *,
  batch: int,
  scale: float | None = None,
) -> conditioning_lib.Conditioning:
  """Conditioning of a model with control blocks.

  Args:
    engine: the model.
    video: conditioning video; None has no known pixels.
    references: uint8 images of things that the video should show, at its size.
      Each has a latent frame before those of the clip.
    size: (frames, height, width) of the clip.
    batch: clips.
    scale: factor of what the control blocks add; None is 1.
  """
  stride = engine.autoencoder.stride
  known_FHW = np.zeros(size, bool)
  frames_FHWC = np.zeros((*size, 3), np.uint8)
  if video is not None:
    known_FHW, frames_FHWC = video.cond_mask_FHW, video.frames_FHWC
  guides = video is not None and video.guides
  new_FHW = ~known_FHW
  parts = [
    encode_known(engine, frames_FHWC, known_FHW),
    encode_known(engine, frames_FHWC, new_FHW & guides),
    jnp.asarray(conditioning_lib.control_mask(new_FHW, stride=stride))[None],
  ]
  control_1fhwc = jnp.concatenate(parts, axis=-1)
  for image_HWC in references:
    z_11hwc = encode_known(
      engine, image_HWC[None], np.ones((1, *image_HWC.shape[:2]), bool)
    )
    rest = control_1fhwc.shape[-1] - z_11hwc.shape[-1]
    z_11hwc = jnp.pad(z_11hwc, [(0, 0)] * 4 + [(0, rest)])
    control_1fhwc = jnp.concatenate([z_11hwc, control_1fhwc], axis=1)
  shape = control_1fhwc.shape[1:4]
  return conditioning_lib.Conditioning(
    jnp.zeros((batch, *shape, engine.autoencoder.z_dim), jnp.float32),
    jnp.ones((batch, 1), jnp.float32),
    control_Bfhwc=_repeated(control_1fhwc, batch),
    control_scale_B=None if scale is None else jnp.full((batch,), scale),
  )


def empty(
  nets: Networks, latent: tuple[int, int, int], *, batch: int
) -> conditioning_lib.Conditioning:
  """Conditioning of the shapes that a model sees, all zero.

  Args:
    nets: networks of the model.
    latent: (f, h, w) of the clips.
    batch: clips.
  """
  model, more = nets.dit.config, {}
  if model.cond_channels:
    more['cond_Bfhwc'] = jnp.zeros((batch, *latent, model.cond_channels))
  if model.control_layers:
    more['control_Bfhwc'] = jnp.zeros((batch, *latent, model.control_channels))
  if nets.image is not None:
    tokens = model.image_tokens or nets.image.config.tokens
    more['image_BSY'] = jnp.zeros((batch, tokens, model.image_width))
  cond = conditioning_lib.pure_noise(batch, (*latent, nets.autoencoder.z_dim))
  return dataclasses.replace(cond, **more)


def encode_known(
  engine: Engine, frames_FHWC: np.ndarray, known_FHW: np.ndarray
) -> jnp.ndarray:
  """Latents (1, f, h, w, c) of a clip whose unknown pixels are 0 in [-1, 1]."""
  video_FHWC = np.where(known_FHW[..., None], to_video(frames_FHWC), 0)
  z_1fhwc = engine.encode_video(
    np.float32(video_FHWC)[None], engine.read('autoencoder')
  )
  return jnp.asarray(z_1fhwc, jnp.float32)


def embed_images(engine: Engine, images: tuple[np.ndarray, ...]):
  """Embeddings (1, S, Y) of the images of a clip; None without images."""
  if not images:
    return None
  nets = engine.networks
  pixels_BHWC = np.stack([nets.image.pixels(image) for image in images])
  params = {'image': engine.read('image')}
  return engine.program('embed_images', nets.embed_images)(params, pixels_BHWC)


def _repeated(x, batch: int):
  return jnp.repeat(jnp.asarray(x, jnp.float32), batch, axis=0)
