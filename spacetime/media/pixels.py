"""Bytes <-> video: the one place where 0 to 255 meets -1 to 1."""

import jax.numpy as jnp
import numpy as np


def to_video(frames):
  """Bytes (uint8, 0 to 255) -> float32 in [-1, 1], on the device."""
  return frames.astype(jnp.float32) / 127.5 - 1.0


def to_frames(video) -> np.ndarray:
  """Video in [-1, 1], clipped -> bytes (uint8, 0 to 255), on the host."""
  video = np.asarray(video, np.float32)
  return np.clip(np.round((video + 1.0) * 127.5), 0, 255).astype(np.uint8)
