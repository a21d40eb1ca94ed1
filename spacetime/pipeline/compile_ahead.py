"""Compiles the programs of sampling ahead of time, from shapes alone.

The programs are those that generate.py runs, with the same shapes, shardings
and options, so that sampling finds them (saved_programs.py). No parameter is
read: a model's files say their shapes.
"""

import time
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

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
  tokens_BS = jax.ShapeDtypeStruct((1, nets.text_length), jnp.int32)
  text_1SY = yield from _compile(
    store,
    'embed',
    engine.program('embed', nets.embed),
    {'text': model.abstract('text')},
    tokens_BS,
  )
  text_BSY = jax.ShapeDtypeStruct((clips, *text_1SY.shape[1:]), text_1SY.dtype)
  yield from _save_sampler(
    engine,
    generate.Programs(engine, settings, sizes.latent),
    store,
    text_BSY=text_BSY,
    negative_BSY=text_BSY if settings.guidance != 1 else None,
    cond=jax.eval_shape(
      lambda: conditions.empty(nets, sizes.latent, batch=clips)
    ),
  )
  yield from _save_decoder(engine, store, latent=sizes.latent, clips=clips)


def _save_sampler(
  engine: Engine,
  programs: generate.Programs,
  store: saved_programs.Store,
  *,
  text_BSY: jax.ShapeDtypeStruct,
  negative_BSY: jax.ShapeDtypeStruct | None,
  cond,
) -> Iterator[Saved]:
  """Saves the first and the later steps of each transformer."""
  keys = jax.eval_shape(
    lambda: generate.sampler.clip_keys(0, text_BSY.shape[0])
  )
  # Without parameters nothing says which described devices are meant.
  placed = not _is_described(engine) or engine.devices > 1
  if placed:
    yield from _compile(store, 'init', programs.init, keys, cond)
  state = _on_host(programs.init.eval_shape(keys, cond))
  for root in programs.roots:
    start, step = programs.parts(root)
    params = {'dit': engine.model.abstract(root)}
    state, context = yield from _compile(
      *(store, f'start-{root}', start),
      *(params, state, text_BSY, negative_BSY, cond),
    )
    number = jax.ShapeDtypeStruct((), np.int32)
    state = yield from _compile(
      *(store, f'step-{root}', step),
      *(params, state, context, cond, number),
    )
    state = _on_host(state)
  if placed:
    yield from _compile(store, 'finalize', programs.finalize, state)


def _save_decoder(
  engine: Engine,
  store: saved_programs.Store,
  *,
  latent: tuple[int, int, int],
  clips: int,
) -> Iterator[Saved]:
  """Saves the decoder of one device."""
  params, autoencoder = engine.model.abstract('autoencoder'), engine.autoencoder
  if params and decode_shards.shared_devices(engine.mesh, latent[1:]):
    return
  if _is_described(engine) and not params:
    return
  first, step = generate.decoder_programs(engine)
  z_B1hwc = jax.ShapeDtypeStruct(
    (clips, 1, *latent[1:], autoencoder.z_dim), jnp.float32
  )
  cache, _ = yield from _compile(store, 'decode_first', first, params, z_B1hwc)
  if latent[0] > 1:
    yield from _compile(store, 'decode_step', step, params, cache, z_B1hwc)


def _compile(
  store: saved_programs.Store, name: str, program: Program, *args
) -> Generator[Saved, None, Any]:
  """Compiles and saves a program; returns the shapes of its results."""
  began = time.monotonic()
  lowered = program.lower(*args)
  result, size = store.compile(name, lowered)
  yield Saved(name, time.monotonic() - began, size)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    lowered.out_info,
    result.output_shardings,
  )


def _is_described(engine: Engine) -> bool:
  """Whether the engine's devices are descriptions of others than are here."""
  return engine.mesh.devices.flat[0] not in jax.devices()


def _on_host(tree):
  """Shapes without shardings, of arrays that are on the host in between."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
