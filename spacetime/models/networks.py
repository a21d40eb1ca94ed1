"""The three networks of a model as pure functions of their parameters."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from spacetime.data import geometry
from spacetime.models.transformer import dit as dit_lib
from spacetime.models.transformer import (
  first_block_cache,
  gathering,
  kv_cache,
  packed,
  rope,
)
from spacetime.models.transformer import lora as lora_lib


@dataclasses.dataclass(frozen=True)
class Networks:
  """The three networks as pure functions of their parameters.

  Attributes:
    autoencoder: video <-> latents.
    text: tokens -> text features.
    dit: latents, levels and text -> prediction.
    text_length: S.
    text_kind: 'trained' with the transformer, or 'frozen'.
    lora: pairs beside the transformer's kernels, trained in its place.
  """

  autoencoder: Any
  text: Any
  dit: dit_lib.DiT
  text_length: int
  text_kind: str = 'trained'
  lora: lora_lib.LoraConfig = lora_lib.LoraConfig()

  def with_rope_scaling(self, kind: str, *, frames: int) -> 'Networks':
    """With positions of time scaled where a clip is longer than `frames`, the
    longest of training; `kind` is of rope.SCALINGS."""
    if kind == 'none':
      return self
    trained = geometry.latent_frames(frames, stride=self.autoencoder.stride[0])
    dit = self.dit.clone(scaling=rope.Scaling(kind, trained))
    return dataclasses.replace(self, dit=dit)

  def init_trainable(self, key) -> dict:
    """Fresh parameters that training moves: {'dit'}, with 'text' where that is
    trained too, or {'lora'} alone."""
    if self.lora.rank:
      return {'lora': lora_lib.init(key, self.lora, self.dit.config)}
    params = self.init(key)
    return params if self.text_kind == 'trained' else {'dit': params['dit']}

  def init(self, key) -> dict:
    """Fresh parameters of both networks: {'dit', 'text'}."""
    dit_key, text_key = jax.random.split(key)
    _, height, width = self.dit.config.patch
    z = jnp.zeros((1, 1, height, width, self.autoencoder.z_dim))
    text = jnp.zeros((1, 1, self.dit.config.text_width))
    return {
      'dit': self.dit.init(dit_key, z, jnp.zeros((1, 1)), text)['params'],
      'text': self.text.init(text_key),
    }

  def embed(self, params, tokens_BS):
    """Text features text_BSY."""
    return self.text.encode(params['text'], tokens_BS)

  def variables(self, params) -> dict:
    """The transformer's, with pairs if there are any."""
    dit = gathering.cast(params['dit'], self.dit.config.dtype)
    if 'lora' not in params:
      return {'params': dit}
    pairs = lora_lib.variables(params['lora'], self.lora)
    return {'params': dit, 'lora': pairs}

  def transform(
    self, params, z_Bfhwc, t_BT, text, key=None, *, t_index_fhw=None
  ):
    """The transformer's prediction; a key drops inputs of the pairs."""
    variables, rngs = self.variables(params), self._rngs(params, key)
    return self.dit.apply(
      variables, z_Bfhwc, t_BT, text, t_index_fhw, rngs=rngs
    )

  def transform_packed(self, params, x_BNV, t_BT, text_BGSY, batch, key=None):
    """The same for rows of clips; `batch` says where the tokens are."""
    rows = packed.Rows(
      batch['segment_ids'],
      batch['positions'],
      batch['frame_ids'],
      batch['grids'],
    )
    return self.dit.apply(
      self.variables(params),
      x_BNV,
      t_BT,
      text_BGSY,
      rows,
      rngs=self._rngs(params, key),
      method=self.dit.packed,
    )

  def _rngs(self, params, key) -> dict:
    """Flax' keys: of the pairs' dropout."""
    if 'lora' in params and key is not None and self.lora.dropout:
      return {'dropout': key}
    return {}

  def prepare(self, params, text_BSY):
    """The text as `transform` takes it too, for many calls."""
    return kv_cache.prepare(self.dit.config, self.variables(params), text_BSY)

  def encode(self, frozen, video_BFHWC):
    """Latents of unit scale."""
    return self.autoencoder.encode(frozen.get('autoencoder', {}), video_BFHWC)

  def decode(self, frozen, z_Bfhwc):
    """Video in [-1, 1]."""
    return self.autoencoder.decode(frozen.get('autoencoder', {}), z_Bfhwc)


@dataclasses.dataclass(frozen=True)
class Skipping:
  """The transformer in a loop over steps, of which near ones skip blocks.

  Attributes:
    networks: whose transformer it is.
    threshold: see first_block_cache.predict.
  """

  networks: Networks
  threshold: float

  def init(self, shape):
    """What is remembered before the first step; `shape` is of latents."""
    return first_block_cache.begin(self.networks.dit.config, shape)

  def __call__(self, params, z_Bfhwc, t_BT, text, memory, *, t_index_fhw=None):
    """(prediction, memory)."""
    return first_block_cache.predict(
      self.networks.dit,
      self.networks.variables(params),
      z_Bfhwc,
      t_BT,
      text,
      memory,
      t_index_fhw=t_index_fhw,
      threshold=self.threshold,
    )


def num_params(params) -> int:
  """Number of parameters in a tree of arrays or of their shapes."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
