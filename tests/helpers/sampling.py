"""Samples of a model for tests, below the requests of a user."""

import numpy as np

from spacetime.config import networks
from spacetime.pipeline import decode, generate, prompt_embeds
from spacetime.pipeline.engine import Engine
from spacetime.pipeline.plan import Plan
from spacetime.pipeline.request import Request


def plan(
  engine: Engine,
  *,
  size=None,
  conditioning=None,
  prompts=('a red 3',),
  seed=0,
  batch=16,
  cache=None,
  **settings,
) -> Plan:
  """A plan of clips of (frames, height, width), by default the model's."""
  resolved = engine.settings(**settings)
  return Plan(
    request=Request(batch_size=batch),
    mode='text',
    prompts=tuple(prompts),
    original_prompts=tuple(prompts),
    prompt_embeds=None,
    negative_prompt='' if resolved.guidance != 1 else None,
    seed=seed,
    seeds=None,
    geometry=networks.clip_geometry(engine.data, engine.networks, size),
    settings=resolved,
    conditioning=conditioning,
    fps=8,
    cache=cache,
    layout=decode.FULL_FRAMES,
  )


def frames(model, prompts, *, embeds=None, resident_bytes=0, **options):
  """uint8 frames_FHWC of each prompt; `options` are those of plan."""
  engine = Engine(model, resident_bytes=resident_bytes)
  resolved = plan(engine, prompts=prompts, **options)
  embeds = embeds or prompt_embeds.from_prompts(
    engine,
    resolved.prompts,
    negative=resolved.negative_prompt,
    cache=resolved.cache,
  )
  return generate.frames(engine, resolved, embeds)


def conditioning(model, video, *, batch, **options):
  """The encoded conditioning of a video, for a batch."""
  engine = Engine(model)
  size = np.shape(video.frames_FHWC)[:3]
  resolved = plan(engine, size=size, conditioning=video, **options)
  return generate.conditioning(engine, resolved, batch=batch)
