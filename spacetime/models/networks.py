"""The three networks of a model as pure functions of their parameters."""

import dataclasses
import math
from collections.abc import Mapping

import jax

from spacetime.data import geometry
from spacetime.models import precision
from spacetime.models.autoencoder.interface import Autoencoder
from spacetime.models.image_encoder import ImageEncoder
from spacetime.models.text_encoder import TextEncoder
from spacetime.models.transformer import dit as dit_lib
from spacetime.models.transformer import first_block_cache, fsdp_cast, kv_cache
from spacetime.models.transformer import lora as lora_lib
from spacetime.models.transformer.attention import Context
from spacetime.models.transformer.dit import DiT
from spacetime.models.transformer.first_block_cache import BlockCache
from spacetime.models.transformer.packed import PackedBatch
from spacetime.models.transformer.rope import Scaling


@dataclasses.dataclass(frozen=True)
class Networks:
  """The three networks as pure functions of their parameters.

  Parameters are a dict of trees: 'dit', 'text', 'lora'; those of the
  autoencoder are among the frozen ones, under 'autoencoder'.

  Attributes:
    autoencoder: video <-> latents.
    text: tokens -> prompt embeddings.
    dit: latents, timesteps and prompt embeddings -> prediction.
    text_length: S.
    text_kind: 'trained' together with the transformer, or 'frozen'.
    lora: LoRA weights of the transformer; with them nothing else is trained.
    image: images -> image embeddings, of a transformer that sees them.
  """

  autoencoder: Autoencoder
  text: TextEncoder
  dit: DiT
  text_length: int
  text_kind: str = 'trained'
  lora: lora_lib.LoraConfig = lora_lib.LoraConfig()
  image: ImageEncoder | None = None

  def with_rope_scaling(self, kind: str, *, frames: int) -> 'Networks':
    """Returns networks whose positions along time are scaled in longer clips.

    Args:
      kind: one of rope.SCALINGS.
      frames: video frames of the longest clip in training.
    """
    if kind == 'none':
      return self
    trained = geometry.latent_frames(frames, stride=self.autoencoder.stride[0])
    dit = self.dit.clone(scaling=Scaling(kind, trained))
    return dataclasses.replace(self, dit=dit)

  def init_trainable(self, key: jax.Array) -> dict:
    """Returns fresh trainable parameters: {'dit'}, with 'text' if that is
    trained too, or {'lora'} alone."""
    if self.lora.rank:
      return {'lora': lora_lib.init(key, self.lora, self.dit.config)}
    params = self.init(key)
    return params if self.text_kind == 'trained' else {'dit': params['dit']}

  def init(self, key: jax.Array) -> dict:
    """Returns fresh parameters {'dit', 'text'}."""
    dit_key, text_key = jax.random.split(key)
    inputs, more = dit_lib.empty_inputs(self.dit.config)
    return {
      'dit': self.dit.init(dit_key, *inputs, **more)['params'],
      'text': self.text.init(text_key),
    }

  def init_frozen(self, key: jax.Array) -> dict:
    """Returns fresh parameters of what no run trains: {'image'}, if any."""
    return {} if self.image is None else {'image': self.image.init(key)}

  def embed_images(self, params: Mapping, pixels_BHWC: jax.Array) -> jax.Array:
    """Returns the embeddings (B, S, Y) of one or two images of each clip, their
    tokens one after the other.

    Args:
      params: 'image'.
      pixels_BHWC: normalised pixels, of all images of a clip in turn.
    """
    image_BSY = self.image.encode(params['image'], pixels_BHWC)
    images = -(-self.dit.config.image_tokens // image_BSY.shape[1]) or 1
    return image_BSY.reshape(len(image_BSY) // images, -1, image_BSY.shape[-1])

  def embed(self, params: Mapping, tokens_BS: jax.Array) -> jax.Array:
    """Returns the prompt embeddings text_BSY of tokens."""
    return self.text.encode(params['text'], tokens_BS)

  def variables(self, params: Mapping) -> dict:
    """Returns the transformer's Flax variables, with LoRA weights if any."""
    dit = fsdp_cast.cast_kernels(params['dit'], self.dit.config.dtype)
    if 'lora' not in params:
      return {'params': dit}
    adapter = params['lora']
    if self.lora.rank:  # that of a LoRA file has its scale already
      adapter = lora_lib.variables(adapter, self.lora)
    return {'params': dit, 'lora': adapter}

  def transform(
    self,
    params: Mapping,
    z_Bfhwc: jax.Array,
    t_BT: jax.Array,
    text: Context,
    key: jax.Array | None = None,
    **conditions: jax.Array | None,
  ) -> jax.Array:
    """Returns the transformer's prediction, (B, f, h, w, c).

    Args:
      params: 'dit', and 'lora' if there are LoRA weights.
      z_Bfhwc, t_BT, text: see DiT.__call__.
      key: for the dropout of the LoRA weights; None has no dropout.
      **conditions: t_index_fhw, cond_Bfhwc, control_Bfhwc, control_scale_B and
        end_BT of DiT.__call__.
    """
    variables, rngs = self.variables(params), self._rngs(params, key)
    with precision.products(self.dit.config.dtype):
      return self.dit.apply(
        variables, z_Bfhwc, t_BT, text, rngs=rngs, **conditions
      )

  def transform_packed(
    self,
    params: Mapping,
    x_BNV: jax.Array,
    t_BT: jax.Array,
    text_BGSY: jax.Array,
    batch: Mapping,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Returns the transformer's prediction for packed sequences, (B, N, V).

    Args:
      params: see `transform`.
      x_BNV, t_BT, text_BGSY: see DiT.predict_packed.
      batch: batch of data/packing.py, with 'segment_ids', 'positions',
        'frame_ids' and 'grids'.
      key: see `transform`.
    """
    packed_batch = PackedBatch(
      batch['segment_ids'],
      batch['positions'],
      batch['frame_ids'],
      batch['grids'],
    )
    with precision.products(self.dit.config.dtype):
      return self.dit.apply(
        self.variables(params),
        x_BNV,
        t_BT,
        text_BGSY,
        packed_batch,
        rngs=self._rngs(params, key),
        method=self.dit.predict_packed,
      )

  def _rngs(self, params: Mapping, key: jax.Array | None) -> dict:
    """Returns Flax' keys: of the dropout of LoRA weights."""
    if 'lora' in params and key is not None and self.lora.dropout:
      return {'dropout': key}
    return {}

  def precompute_kv(self, params: Mapping, text: Context) -> Context:
    """Returns the text's KV cache, which `transform` accepts in its place."""
    with precision.products(self.dit.config.dtype):
      return kv_cache.precompute_kv(
        self.dit.config, self.variables(params), text
      )

  def encode(self, frozen: Mapping, video_BFHWC: jax.Array) -> jax.Array:
    """Returns latents of unit scale."""
    return self.autoencoder.encode(frozen.get('autoencoder', {}), video_BFHWC)

  def decode(self, frozen: Mapping, z_Bfhwc: jax.Array) -> jax.Array:
    """Returns video in [-1, 1]."""
    return self.autoencoder.decode(frozen.get('autoencoder', {}), z_Bfhwc)


@dataclasses.dataclass(frozen=True)
class FirstBlockCache:
  """The transformer in a loop over solver steps, some of which skip blocks.

  Attributes:
    networks: the networks of this transformer.
    threshold: relative change below which blocks are skipped; see
      transformer/first_block_cache.py.
  """

  networks: Networks
  threshold: float

  def init(self, shape: tuple[int, ...]) -> BlockCache:
    """Returns the cache before the first step, for latents of a shape."""
    return first_block_cache.init(self.networks.dit.config, shape)

  def __call__(
    self,
    params: Mapping,
    z_Bfhwc: jax.Array,
    t_BT: jax.Array,
    text: Context,
    cache: BlockCache,
    **conditions: jax.Array | None,
  ) -> tuple[jax.Array, BlockCache]:
    """Returns (prediction, cache); arguments as in Networks.transform."""
    with precision.products(self.networks.dit.config.dtype):
      return first_block_cache.predict(
        self.networks.dit,
        self.networks.variables(params),
        z_Bfhwc,
        t_BT,
        text,
        cache,
        threshold=self.threshold,
        **conditions,
      )


def num_params(params) -> int:
  """Number of parameters in a tree of arrays or of their shapes."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
