"""Generates the latents and frames of a plan, one network at a time.

The text encoder, the transformers and the decoder run one after the other: each
stage reads its network and releases it before the next is read, so that the
largest network determines the memory that is needed. Clips are complete batch
by batch, so that they can be written before the next batch begins.
"""

from collections.abc import Callable, Container, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spacetime.checkpoint import finite
from spacetime.diffusion import conditioning as conditioning_lib
from spacetime.diffusion import conditioning_video, sampler
from spacetime.diffusion.settings import SamplingSettings
from spacetime.pipeline import conditions
from spacetime.pipeline import decode as decode_lib
from spacetime.pipeline import prompt_embeds as prompt_embeds_lib
from spacetime.pipeline.engine import Engine, Program
from spacetime.pipeline.plan import Plan
from spacetime.sharding import constrain, multihost


def frames(
  engine: Engine, plan: Plan, embeds: prompt_embeds_lib.PromptEmbeds
) -> list[np.ndarray]:
  """uint8 frames_FHWC of every clip of a plan; see clips."""
  return [frames_FHWC for _, frames_FHWC in clips(engine, plan, embeds)]


def clips(
  engine: Engine,
  plan: Plan,
  embeds: prompt_embeds_lib.PromptEmbeds,
  *,
  pending: Container[int] | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (number, uint8 frames_FHWC) of clips, batch after batch.

  A batch is decoded before the next is sampled, so that its clips can be
  written; batches hold the same clips whichever are pending.

  Args:
    engine: the model.
    plan: plan of clips, not of long videos.
    embeds: prompt embeddings of every clip.
    pending: numbers of the clips that are needed; batches without one are left
      out. None needs all.
  """
  autoencoder, video = engine.autoencoder, plan.conditioning
  count = len(embeds.text)
  branches = len(plan.settings.make_guidance().branches)
  batch = engine.rows(min(plan.batch_size, count), branches)
  starts = [
    first
    for first in range(0, count, batch)
    if pending is None
    or any(i in pending for i in range(first, min(first + batch, count)))
  ]
  latents = sample(
    engine,
    plan,
    embeds,
    conditioning(engine, plan, batch=batch),
    starts=starts,
  )
  reencode = video is not None and engine.networks.dit.config.sees == 'frames'
  reencode = reencode and depends_on_filling(autoencoder, video)
  for first, z_Bfhwc in zip(starts, latents, strict=True):
    z_Bfhwc = z_Bfhwc[:, len(plan.references) :]
    with engine.progress.stage('decoding'):
      decode = decoder(engine, plan.layout)
      frames_BFHWC = decode(z_Bfhwc)
      # Latents of an autoencoder without parameters depend on no neighbour.
      if reencode and decode.params:
        z_Bfhwc = encode_known(
          engine, decode.params, video, z_Bfhwc, frames_BFHWC
        )
        frames_BFHWC = decode(z_Bfhwc)
      del decode  # its parameters are freed before the next batch is sampled
    for i, frames_FHWC in enumerate(frames_BFHWC[: count - first], first):
      yield i, frames_FHWC if video is None else video.assemble(frames_FHWC)


def conditioning(
  engine: Engine, plan: Plan, *, batch: int
) -> conditioning_lib.Conditioning:
  """Conditioning of a batch: encodes the plan's conditioning video.

  It is encoded up to the last latent frame that is used.
  """
  nets, settings, video = engine.networks, plan.settings, plan.conditioning
  latent = plan.geometry.latent
  if nets.dit.config.sees != 'frames':
    return conditions.beside(engine, plan, video, plan.images, batch=batch)
  if video is None:
    return conditioning_lib.pure_noise(
      batch, (*latent, engine.autoencoder.z_dim)
    )
  cond_mask_fhwc = nets.autoencoder.latent_cond_mask(video.cond_mask_FHW)
  count, strength = len(cond_mask_fhwc), 1.0
  if settings.strength < 1:
    # The first noise level, which published schedules round.
    samplers = engine.samplers(settings, latent)
    strength = next(iter(samplers.values())).schedule.sigmas[0]
  else:
    count = 1 + max(np.flatnonzero(cond_mask_fhwc.any((1, 2, 3))), default=0)
  stop = 1 + (count - 1) * nets.autoencoder.stride[0]
  z_1fhwc = np.zeros((1, *cond_mask_fhwc.shape), np.float32)
  z_1fhwc[:, :count] = engine.encode(
    video.frames_FHWC[None, :stop], engine.read('autoencoder')
  )
  return conditioning_lib.from_mask(
    np.repeat(z_1fhwc, batch, axis=0),
    cond_mask_fhwc,
    patch=nets.dit.config.patch,
    strength=strength,
  )


def depends_on_filling(
  autoencoder, video: conditioning_video.ConditioningVideo
) -> bool:
  """Whether known latent values were encoded beside filled pixels.

  They were if they stand in or after a latent frame that is not known
  completely.
  """
  cond_mask_fhwc = autoencoder.latent_cond_mask(video.cond_mask_FHW)
  opening_f = np.logical_and.accumulate(cond_mask_fhwc.all((1, 2, 3)))
  return bool(cond_mask_fhwc[~opening_f].any())


def encode_known(
  engine: Engine,
  params,
  video: conditioning_video.ConditioningVideo,
  z_Bfhwc: np.ndarray,
  frames_BFHWC: np.ndarray,
) -> np.ndarray:
  """Encodes the known values of latents again, beside the generated pixels.

  Before sampling, unknown pixels were filled with a placeholder, so that the
  decoder would see other past frames than the encoder did: moving frames lost
  up to 3 dB (tests/e2e/conditioning_frames_test.py).

  Args:
    engine: the model.
    params: parameters of the autoencoder.
    video: the conditioning video with the known pixels.
    z_Bfhwc: generated latents.
    frames_BFHWC: frames of the latents, uint8.
  """
  cond_mask_FHW1 = video.cond_mask_FHW[..., None]
  frames_BFHWC = np.where(cond_mask_FHW1, video.frames_FHWC, frames_BFHWC)
  cond_mask_fhwc = engine.autoencoder.latent_cond_mask(video.cond_mask_FHW)
  return np.where(cond_mask_fhwc, engine.encode(frames_BFHWC, params), z_Bfhwc)


def sample(
  engine: Engine,
  plan: Plan,
  embeds: prompt_embeds_lib.PromptEmbeds,
  conditioning: conditioning_lib.Conditioning,
  *,
  starts: Sequence[int] | None = None,
) -> Iterator[np.ndarray]:
  """Samples latents z_Bfhwc on the host, a batch at a time; the last is padded.

  Args:
    engine: the model.
    plan: plan of clips.
    embeds: prompt embeddings of every clip.
    conditioning: conditioning of a batch.
    starts: number of the first clip of each batch to sample; None samples all.
  """
  count, batch = len(embeds.text), len(conditioning.z_Bfhwc)
  keys = clip_keys(plan, -(-count // batch) * batch)
  run = Programs(engine, plan.settings, plan.geometry.latent)
  starts = range(0, count, batch) if starts is None else starts
  with engine.progress.steps(run.steps * len(starts)):
    for first in starts:
      rows = [[min(first + i, count - 1) for i in range(batch)]]
      state = to_host(run.init(keys[first : first + batch], conditioning))
      for root in run.roots:
        params = engine.read_transformer(root)
        text = next(batches(embeds, rows, engine.networks.text_length))
        state = to_host(run.run(root, params, state, text, conditioning))
        del params  # freed before the next network is read
      z_Bfhwc = np.asarray(to_host(run.finalize(state)))
      check_latents(z_Bfhwc)
      yield z_Bfhwc


def to_host(state):
  """Arrays of the sampler in memory of the host."""
  return jax.device_get(multihost.to_local(state))


def check_latents(z_Bfhwc: np.ndarray) -> None:
  """Refuses latents that are not finite, as float16 weights may make them.

  Raises:
    ValueError: it says what to change.
  """
  finite.check(
    z_Bfhwc,
    'latents after sampling',
    'check `lora` and `checkpoint`, or lower `guidance`',
  )


def clip_keys(plan: Plan, count: int, *, chunk: int = 0) -> jax.Array:
  """Random keys of `count` clips, for a chunk of a long video.

  The keys of the first chunk are those of short clips, so that a long video
  starts like the short clip with its seed.
  """
  if plan.seeds is None:
    keys_B = sampler.clip_keys(plan.seed, count)
  else:
    seeds = plan.seeds + plan.seeds[-1:] * count
    keys_B = jnp.concatenate(
      [
        sampler.clip_keys(seed, plan.candidates)
        for seed in seeds[: -(-count // plan.candidates)]
      ]
    )[:count]
  if chunk == 0:
    return keys_B
  return jax.vmap(lambda key: jax.random.fold_in(key, chunk))(keys_B)


class Programs:
  """The compiled programs of a sampler.

  Attributes:
    roots: transformers that have steps, in order of use.
    steps: solver steps of a clip.

  Args:
    engine: the model.
    settings: settings of the sampler.
    latent: (f, h, w) of the clips.
  """

  def __init__(
    self,
    engine: Engine,
    settings: SamplingSettings,
    latent: tuple[int, int, int],
  ):
    self._samplers = engine.samplers(settings, latent)
    self._progress, key = engine.progress, (settings, latent)
    self.roots = tuple(self._samplers)
    self.steps = sum(len(part.steps) for part in self._samplers.values())
    first = self._samplers[self.roots[0]]
    self.init = engine.program(
      ('init', key),
      lambda *args: shard_state(first.init(*args)),
      shared=True,
    )
    self.finalize = engine.program(
      ('finalize', key), first.finalize, shared=True
    )
    self._parts = {
      root: (
        engine.program(
          ('start', root, key),
          start_program(part),
          shared=True,
          donate_argnums=1,
        ),
        engine.program(
          ('step', root, key),
          step_program(part),
          shared=True,
          donate_argnums=1,
        ),
      )
      for root, part in self._samplers.items()
    }

  def parts(self, root: str) -> tuple[Program, Program]:
    """The programs `start` and `step` of one transformer."""
    return self._parts[root]

  def run(self, root: str, params, state, text, conditioning):
    """The state after the steps of one transformer."""
    start, step = self._parts[root]
    state, text = start(params, state, *text, conditioning)
    for i in self._samplers[root].steps:
      state = step(params, state, text, conditioning, np.int32(i))
      # Dispatch is asynchronous: progress counts the steps that are computed.
      jax.block_until_ready(state)
      self._progress.step()
    return state


def start_program(part: sampler.Sampler) -> Callable:
  """`part.start` with placed results; jitted with its state donated."""

  def start(*args):
    state, text = part.start(*args)
    return shard_state(state), shard_context(text)

  return start


def step_program(part: sampler.Sampler) -> Callable:
  """`part.step` with a placed result; jitted with its state donated."""

  def step(*args):
    return shard_state(part.step(*args))

  return step


def shard_state(state: sampler.SamplerState) -> sampler.SamplerState:
  """Splits the rows of a state over the mesh, if it divides them.

  Otherwise the compiler would choose, and a choice that differs from that of
  the step before compile the next step again.
  """

  def leaf(x):
    return constrain(x, 'batch', *[None] * (x.ndim - 1)) if x.ndim else x

  return jax.tree.map(leaf, state)


def shard_context(text):
  """Splits the KV cache of a text over the mesh, its rows and heads; or, of
  networks that cache nothing, the rows of the text itself."""

  def leaf(x):
    if x.ndim == 5:  # x_LBSAE
      return constrain(x, None, 'batch', None, 'heads', None)
    return constrain(x, 'batch', *[None] * (x.ndim - 1))

  return jax.tree.map(leaf, text)


def batches(
  embeds: prompt_embeds_lib.PromptEmbeds, rows: Sequence, length: int
) -> Iterator[tuple]:
  """(text_BSY, negative_BSY or None) of each batch of clips."""
  for clips in rows:
    text_BSY = prompt_embeds_lib.batch(
      [embeds.text[i] for i in clips], length=length
    )
    negative_BSY = None
    if embeds.negative:
      negative_BSY = prompt_embeds_lib.batch(
        [embeds.negative[i] for i in clips], length=length
      )
    yield text_BSY, negative_BSY


def decoder(engine: Engine, layout: decode_lib.Layout) -> decode_lib.Decoder:
  """A decoder with the engine's programs."""
  first, step = decoder_programs(engine)
  return decode_lib.Decoder(
    engine.autoencoder,
    engine.read('autoencoder'),
    layout,
    first=first,
    step=step,
  )


def decoder_programs(engine: Engine) -> tuple[Program, Program]:
  """The programs of the decoder: its first latent frame, and another."""
  autoencoder = engine.autoencoder
  return (
    engine.program('decode_first', autoencoder.decode_first),
    engine.program('decode_step', autoencoder.decode_step, donate_argnums=1),
  )
