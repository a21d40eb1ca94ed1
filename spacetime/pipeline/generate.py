"""From a trained model and prompts to frames, a network at a time.

Texts, then latents (with two transformers one after the other), then frames:
each stage reads its network and lets it go before the next is read, so that
the largest of them is what has to fit.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
import tqdm

from spacetime.config import samplers
from spacetime.data import geometry
from spacetime.diffusion import conditioning, conditioning_video, sampler
from spacetime.diffusion.settings import SamplingSettings
from spacetime.media.pixels import to_video
from spacetime.models.autoencoder import streaming
from spacetime.pipeline import decode as decode_lib
from spacetime.pipeline import prompt_embeds, prompt_embeds_files


def sample(
  model: prompt_embeds.Model,
  prompts: list[str],
  *,
  grid: geometry.Geometry,
  settings: SamplingSettings,
  negative: str = '',
  seed: int = 0,
  window: conditioning_video.ConditioningVideo | None = None,
  batch: int = 16,
  cache: prompt_embeds_files.Cache | None = None,
) -> list[np.ndarray]:
  """Samples a video for every prompt.

  Args:
    model: opened, or loaded whole.
    prompts: clip i of the seed is prompts[i].
    grid: sizes of the video.
    settings: of the sampler.
    negative: prompt to steer away from.
    seed: of the noise.
    window: what is given, or None.
    batch: clips at once; the last batch is filled up, so that one program
      serves all.
    cache: of the prompts' features, for published models.

  Returns:
    uint8 frames_FHWC for every prompt.
  """
  guided = settings.guidance != 1.0
  told = prompt_embeds.from_prompts(
    model, prompts, negative=negative if guided else None, cache=cache
  )
  return from_texts(
    model,
    told,
    grid=grid,
    settings=settings,
    seed=seed,
    window=window,
    batch=batch,
  )


def from_texts(
  model: prompt_embeds.Model,
  told: prompt_embeds.Texts,
  *,
  grid: geometry.Geometry,
  settings: SamplingSettings,
  seed: int = 0,
  window: conditioning_video.ConditioningVideo | None = None,
  batch: int = 16,
  layout: decode_lib.Layout = decode_lib.WHOLE,
) -> list[np.ndarray]:
  """As sample, of texts that have been encoded: a video for each."""
  codec, count = model.networks.autoencoder, len(told.text)
  batch = min(batch, count)
  condition = conditioning.pure_noise(batch, (*grid.latent, codec.z_dim))
  if window is not None:
    condition = given(model, window, settings=settings, batch=batch)
  latents = draw(
    model, told, condition, settings=settings, seed=seed, batch=batch
  )
  params = model.read('autoencoder')
  decode, encode = decode_lib.Decoder(codec, params, layout), None
  # Without parameters a cell is its own pixels, whatever is beside it.
  if window is not None and params and needs_place(codec, window):
    encode = _encoder(codec, params)
  videos = []
  for z_Bfhwc in tqdm.tqdm(latents, desc='decode', unit='batch'):
    frames_BFHWC = decode(z_Bfhwc)
    if encode:
      z_Bfhwc = in_place(codec, encode, window, z_Bfhwc, frames_BFHWC)
      frames_BFHWC = decode(z_Bfhwc)
    videos += list(frames_BFHWC)
  if window is not None:
    videos = [window.assemble(video) for video in videos]
  return videos[:count]


def given(
  model: prompt_embeds.Model,
  window: conditioning_video.ConditioningVideo,
  *,
  settings: SamplingSettings,
  batch: int,
) -> conditioning.Conditioning:
  """The window encoded, up to the last latent frame that is needed of it."""
  nets = model.networks
  cond_mask_fhwc = nets.autoencoder.latent_cond_mask(window.cond_mask_FHW)
  count = len(cond_mask_fhwc)
  strength = 1.0
  if settings.strength < 1:
    # What the grid begins at, which is less where it was published.
    parts = samplers.samplers(
      model.experiment, nets, settings, latent=cond_mask_fhwc.shape[:3]
    )
    strength = next(iter(parts.values())).schedule.sigmas[0]
  else:
    count = 1 + max(np.flatnonzero(cond_mask_fhwc.any((1, 2, 3))), default=0)
  encode = _encoder(nets.autoencoder, model.read('autoencoder'))
  stop = 1 + (count - 1) * nets.autoencoder.stride[0]
  z_1fhwc = np.zeros((1, *cond_mask_fhwc.shape), np.float32)
  z_1fhwc[:, :count] = encode(window.frames_FHWC[None, :stop])
  return conditioning.from_mask(
    np.repeat(z_1fhwc, batch, axis=0),
    cond_mask_fhwc,
    patch=nets.dit.config.patch,
    strength=strength,
  )


def needs_place(codec, window: conditioning_video.ConditioningVideo) -> bool:
  """Whether a value of the latents is known in or after a latent frame that is
  not known whole, so that it was encoded beside what was filled."""
  cond_mask_fhwc = codec.latent_cond_mask(window.cond_mask_FHW)
  opening_f = np.logical_and.accumulate(cond_mask_fhwc.all((1, 2, 3)))
  return bool(cond_mask_fhwc[~opening_f].any())


def in_place(
  codec,
  encode: Callable,
  window: conditioning_video.ConditioningVideo,
  z_Bfhwc: np.ndarray,
  made_BFHWC: np.ndarray,
) -> np.ndarray:
  """Latents with the known ones encoded anew, beside what was made.

  At first what was not known was filled, and the decoder would meet another
  past than the encoder had: moving frames lost up to 3 dB
  (tests/given_frames_test.py).

  Args:
    codec: the autoencoder.
    encode: bytes of a window's frames -> its latents.
    window: what is known.
    z_Bfhwc: latents that were made.
    made_BFHWC: their frames, uint8.
  """
  cond_mask_FHW1 = window.cond_mask_FHW[..., None]
  frames_BFHWC = np.where(cond_mask_FHW1, window.frames_FHWC, made_BFHWC)
  cond_mask_fhwc = codec.latent_cond_mask(window.cond_mask_FHW)
  return np.where(cond_mask_fhwc, encode(frames_BFHWC), z_Bfhwc)


def draw(
  model: prompt_embeds.Model,
  told: prompt_embeds.Texts,
  condition: conditioning.Conditioning,
  *,
  settings: SamplingSettings,
  seed: int,
  batch: int,
) -> list[np.ndarray]:
  """Latents of all clips on the host, in batches; the last is filled up.

  A transformer takes all batches over its steps before the next one is read.
  """
  nets, count = model.networks, len(told.text)
  run = programs(model, settings, latent=condition.z_Bfhwc.shape[1:4])
  rows = [
    [min(first + i, count - 1) for i in range(batch)]
    for first in range(0, count, batch)
  ]
  carries = [
    jax.device_get(
      run.init(sampler.clip_keys(seed, batch, first=i * batch), condition)
    )
    for i in range(len(rows))
  ]
  for root, advance in run.steps.items():
    # Transformers of one model are one function of their own parameters.
    params = {'dit': model.read(root)}
    name = 'sample' if len(run.steps) == 1 else f'sample {root}'
    with tqdm.tqdm(total=count, desc=name, unit='clip') as bar:
      for i, text in enumerate(batches(told, rows, nets.text_length)):
        carries[i] = jax.device_get(
          advance(params, carries[i], *text, condition)
        )
        bar.update(min(batch, count - i * batch))
    del params
  return [np.asarray(run.finalize(carry)) for carry in carries]


@dataclasses.dataclass(frozen=True)
class Programs:
  """A sampler's parts, jitted; see sampler.Sampler.

  Attributes:
    init: as Sampler.init.
    steps: Sampler.run by the transformer that has steps, in their
      order; the carry is given away.
    finalize: as Sampler.finalize.
  """

  init: Callable
  steps: Mapping[str, Callable]
  finalize: Callable


def programs(
  model: prompt_embeds.Model,
  settings: SamplingSettings,
  *,
  latent: tuple[int, int, int],
) -> Programs:
  """The programs of these settings, for latents of (f, h, w); each call
  compiles its own."""
  parts = samplers.samplers(
    model.experiment, model.networks, settings, latent=latent
  )
  whole = next(iter(parts.values()))
  return Programs(
    jax.jit(whole.init),
    {root: jax.jit(part.run, donate_argnums=1) for root, part in parts.items()},
    jax.jit(whole.finalize),
  )


def batches(told: prompt_embeds.Texts, rows, length: int) -> Iterator[tuple]:
  """(text_BSY, negative_BSY or None) of each batch."""
  for batch in rows:
    text_BSY = prompt_embeds.batch([told.text[i] for i in batch], length=length)
    negative_BSY = None
    if told.negative:
      away = [told.negative[i] for i in batch]
      negative_BSY = prompt_embeds.batch(away, length=length)
    yield text_BSY, negative_BSY


def _encoder(codec, params) -> Callable:
  """uint8 frames_BFHWC -> z_Bfhwc on the host, a latent frame at a time."""
  first = jax.jit(codec.encode_first)
  step = jax.jit(codec.encode_step, donate_argnums=1)

  def encode(frames_BFHWC):
    video_BFHWC = np.asarray(to_video(frames_BFHWC))
    codes = streaming.encode_chunks(
      codec, params, video_BFHWC, first=first, step=step
    )
    return np.concatenate([np.asarray(z) for z in codes], axis=1)

  return encode
