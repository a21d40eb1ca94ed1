"""Conversion between uint8 frames (0 to 255) and video in [-1, 1]."""

import jax.numpy as jnp
import numpy as np


def to_video(frames):
  """Converts uint8 frames to float32 video in [-1, 1], on the device."""
  return frames.astype(jnp.float32) / 127.5 - 1.0


def psnr(video_BFHWC, decoded_BFHWC):
  """Peak signal-to-noise ratio in dB of each clip, (B,); range [-1, 1]."""
  error = jnp.mean(jnp.square(video_BFHWC - decoded_BFHWC), axis=(1, 2, 3, 4))
  return 10.0 * jnp.log10(4.0 / jnp.maximum(error, 1e-10))


def to_frames(video) -> np.ndarray:
  """Converts video, clipped to [-1, 1], to uint8 frames, on the host."""
  video = np.asarray(video, np.float32)
  return np.clip(np.round((video + 1.0) * 127.5), 0, 255).astype(np.uint8)
