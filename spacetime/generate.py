"""From a trained model and prompts to frames."""

import jax
import numpy as np
import tqdm

from spacetime import build, geometry, pretrained
from spacetime import config as config_lib
from spacetime.models import streaming
from spacetime.pixels import to_frames, to_video
from spacetime.sampling import conditions, sampler


def sample(
  model: pretrained.Model,
  prompts: list[str],
  *,
  grid: geometry.Geometry,
  settings: config_lib.SamplingConfig,
  negative: str = '',
  seed: int = 0,
  image_HWC: np.ndarray | None = None,
  batch: int = 16,
) -> list[np.ndarray]:
  """Samples a video for every prompt.

  Args:
    model: networks and parameters.
    prompts: clip i of the seed is prompts[i].
    grid: sizes of the video.
    settings: of the sampler.
    negative: prompt to steer away from.
    seed: of the noise.
    image_HWC: the first frame, uint8, or None.
    batch: clips at once; the last batch is filled up, so that one program
      serves all.

  Returns:
    uint8 frames_FHWC for every prompt.
  """
  nets, batch = model.networks, min(batch, len(prompts))
  latent = (*grid.latent, nets.autoencoder.z_dim)
  condition = conditions.nothing(batch, latent)
  if image_HWC is not None:
    video = np.repeat(to_video(image_HWC)[None, None], batch, axis=0)
    z = jax.jit(nets.encode)(model.frozen, video)
    condition = conditions.first_image(z, latent)
  draw = jax.jit(build.sampler(model.config, nets, settings))
  decode = Decoder(model)
  encode = model.tokenizer.encode
  negative_BS = np.stack([encode(negative, length=nets.text_length)] * batch)
  videos = []
  with tqdm.tqdm(total=len(prompts), desc='sample', unit='clip') as bar:
    for first in range(0, len(prompts), batch):
      rows = prompts[first : first + batch]
      filled = rows + [rows[-1]] * (batch - len(rows))
      tokens = np.stack([encode(p, length=nets.text_length) for p in filled])
      keys = sampler.clip_keys(seed, batch, first=first)
      z = draw(model.params, keys, tokens, negative_BS, condition)
      videos += list(decode(z)[: len(rows)])
      bar.update(len(rows))
  return videos


class Decoder:
  """Latents -> frames on the host, a latent frame at a time, jitted once."""

  def __init__(self, model: pretrained.Model):
    self._codec = model.networks.autoencoder
    self._params = model.frozen.get('autoencoder', {})
    self._first = jax.jit(self._codec.decode_first)
    self._step = jax.jit(self._codec.decode_step)

  def __call__(self, z_Bfhwc) -> np.ndarray:
    """uint8 frames_BFHWC; device memory does not grow with duration."""
    chunks = streaming.decode_chunks(
      self._codec, self._params, z_Bfhwc, first=self._first, step=self._step
    )
    return np.concatenate([to_frames(chunk) for chunk in chunks], axis=1)
