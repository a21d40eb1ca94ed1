"""Compiles the programs of sampling ahead of time, from shapes alone.

The programs are those that generate.py runs, with the same shapes, shardings
and options, so that sampling finds them (saved_programs.py). No parameter is
read: a model's files say their shapes.
"""

import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spacetime.config import mesh as mesh_lib
from spacetime.pipeline import (
  conditions,
  decode_shards,
  generate,
  saved_programs,
)
from spacetime.pipeline import plan as plan_lib
from spacetime.pipeline.engine import Engine, Program
from spacetime.pipeline.request import Request


class Saved(NamedTuple):
  """A program that was compiled and saved."""

  name: str
  seconds: float
  size: int  # bytes


def save(
  request: Request, engine: Engine, store: saved_programs.Store
) -> Iterator[Saved]:
  """Compiles and saves the programs of a request, one after another.

  These are the text encoder, the transformers' steps and, on one device, the
  decoder. With several devices that share its frames the decoder is compiled
  when it is used.

  Args:
    request: sizes, number of clips and settings of the sampler; its prompt,
      images and videos are not read.
    engine: the model, on a mesh of the devices or their descriptions.
    store: where the programs go.

  Raises:
    SettingError: settings that the model does not support.
  """
  nets, model = engine.networks, engine.model
  sizes = plan_lib.geometry(request, engine)
  mesh_lib.check_model(nets.dit.config, sizes.tokens, engine.mesh)
  settings = engine.settings(preset=request.preset, **request.sampling)
  branches = len(settings.make_guidance().branches)
  clips = engine.rows(min(request.num, request.batch_size), branches)
  described = engine.mesh.devices.flat[0] not in jax.devices()

  def compiled(name: str, program: Program, *args):
    """(what was saved, shapes of the program's results)."""
    began = time.monotonic()
    lowered = program.lower(*args)
    result, size = store.compile(name, lowered)
    shapes = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      lowered.out_info,
      result.output_shardings,
    )
    return Saved(name, time.monotonic() - began, size), shapes

  text = {'text': model.abstract('text')}
  tokens_BS = jax.ShapeDtypeStruct((1, nets.text_length), jnp.int32)
  saved, text_1SY = compiled(
    'embed', engine.program('embed', nets.embed), text, tokens_BS
  )
  yield saved
  text_BSY = jax.ShapeDtypeStruct((clips, *text_1SY.shape[1:]), text_1SY.dtype)
  cond = jax.eval_shape(
    lambda: conditions.empty(nets, sizes.latent, batch=clips)
  )
  keys = jax.eval_shape(lambda: generate.sampler.clip_keys(0, clips))
  programs = generate.Programs(engine, settings, sizes.latent)
  # Without parameters nothing says which described devices are meant.
  if not described or engine.devices > 1:
    saved, state = compiled('init', programs.init, keys, cond)
    yield saved
  state = _on_host(programs.init.eval_shape(keys, cond))
  for root in programs.roots:
    start, step = programs.parts(root)
    params = {'dit': model.abstract(root)}
    texts = text_BSY, text_BSY if settings.guidance != 1 else None
    saved, (state, context) = compiled(
      f'start-{root}', start, params, state, *texts, cond
    )
    yield saved
    number = jax.ShapeDtypeStruct((), np.int32)
    saved, state = compiled(
      f'step-{root}', step, params, state, context, cond, number
    )
    yield saved
    state = _on_host(state)
  if not described or engine.devices > 1:
    saved, _ = compiled('finalize', programs.finalize, state)
    yield saved
  autoencoder = model.abstract('autoencoder')
  if autoencoder and decode_shards.shared_devices(
    engine.mesh, sizes.latent[1:]
  ):
    return
  if described and not autoencoder:
    return
  first, step = generate.decoder_programs(engine)
  z = jax.ShapeDtypeStruct(
    (clips, 1, *sizes.latent[1:], nets.autoencoder.z_dim), jnp.float32
  )
  saved, (cache, _) = compiled('decode_first', first, autoencoder, z)
  yield saved
  if sizes.latent[0] > 1:
    saved, _ = compiled('decode_step', step, autoencoder, cache, z)
    yield saved


def _on_host(tree):
  """Shapes without shardings, of arrays that are on the host in between."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
