"""CLIP's image encoder, as far as image-to-video models use it.

Its output is that of all blocks but the last, class token first, without the
last norm.

Source: Radford et al. 2021 (CLIP), arXiv 2103.00020; the weights that Wan 2.1
uses are open_clip's ViT-H/14.
"""

import dataclasses

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from spacetime import SettingError
from spacetime.sharding import constrain

# Moments of the colours of CLIP's training images, red, green and blue.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class ImageConfig:
  """Sizes of the image encoder, named as transformers' CLIPVisionConfig names
  them.

  Attributes:
    hidden_size: width Y of the embeddings.
    intermediate_size: hidden layer of the MLP.
    num_hidden_layers: blocks, of which all but the last are used.
    num_attention_heads: heads A; they divide hidden_size.
    image_size: side of the square image in pixels.
    patch_size: side of a patch in pixels.
    layer_norm_eps: epsilon of the norms.
    dtype: compute dtype; norms and softmax are float32.

  Raises:
    SettingError: sizes that do not fit each other.
  """

  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  image_size: int
  patch_size: int
  layer_norm_eps: float = 1e-5
  dtype: str = 'float32'

  def __post_init__(self):
    for name, divisor in (
      ('hidden_size', 'num_attention_heads'),
      ('image_size', 'patch_size'),
    ):
      value, by = getattr(self, name), getattr(self, divisor)
      if value < 1 or by < 1 or value % by:
        raise SettingError(
          f'image.{name}', value, f'a multiple of `image.{divisor}`={by}'
        )
    if self.num_hidden_layers < 2:
      raise SettingError(
        'image.num_hidden_layers', self.num_hidden_layers, '2 or more'
      )

  @property
  def tokens(self) -> int:
    """Tokens of an image: the class token and the patches."""
    return 1 + (self.image_size // self.patch_size) ** 2


class Block(nn.Module):
  """Pre-norm block: attention and an MLP with the exact GELU."""

  config: ImageConfig

  @nn.compact
  def __call__(self, x_BSY):
    config, dtype = self.config, x_BSY.dtype

    def dense(features, name):
      return nn.Dense(features, dtype=dtype, name=name)

    x_BSY = constrain(x_BSY, 'batch', None, 'width')
    y_BSY = _norm(config, 'norm_attention', x_BSY)
    q, k, v = (dense(config.hidden_size, name)(y_BSY) for name in 'qkv')
    q_BASE, k_BATE, v_BATE = (
      einops.rearrange(x, 'B S (A E) -> B A S E', A=config.num_attention_heads)
      for x in (q, k, v)
    )
    score_BAST = jnp.einsum(
      'BASE,BATE->BAST', q_BASE, k_BATE, preferred_element_type=jnp.float32
    )
    score_BAST *= q_BASE.shape[-1] ** -0.5
    weight_BAST = nn.softmax(score_BAST).astype(dtype)
    y_BASE = jnp.einsum('BAST,BATE->BASE', weight_BAST, v_BATE)
    y_BSY = einops.rearrange(y_BASE, 'B A S E -> B S (A E)')
    x_BSY += dense(config.hidden_size, 'out')(y_BSY)

    y_BSY = _norm(config, 'norm_mlp', x_BSY)
    y_BSM = dense(config.intermediate_size, 'mlp_in')(y_BSY)
    y_BSM = nn.gelu(y_BSM, approximate=False)
    x_BSY += dense(config.hidden_size, 'mlp_out')(y_BSM)
    return x_BSY, x_BSY


class Network(nn.Module):
  """Image encoder: normalised pixels (B, H, W, 3) -> image_BSY."""

  config: ImageConfig

  @nn.compact
  def __call__(self, pixels_BHWC):
    config, dtype = self.config, jnp.dtype(self.config.dtype)
    x_BNV = einops.rearrange(
      pixels_BHWC.astype(dtype),
      'B (h a) (w b) c -> B (h w) (a b c)',
      a=config.patch_size,
      b=config.patch_size,
    )
    x_BNY = nn.Dense(
      config.hidden_size, use_bias=False, dtype=dtype, name='patch_embed'
    )(x_BNV)
    first = self.param(
      'class_embed', nn.initializers.normal(0.02), (config.hidden_size,)
    )
    position = self.param(
      'pos_embed',
      nn.initializers.normal(0.02),
      (config.tokens, config.hidden_size),
    )
    first_B1Y = jnp.broadcast_to(
      first.astype(dtype), (len(x_BNY), 1, config.hidden_size)
    )
    x_BSY = jnp.concatenate([first_B1Y, x_BNY], axis=1) + position.astype(dtype)
    x_BSY = _norm(config, 'norm_in', x_BSY)
    blocks = nn.scan(
      Block,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      length=config.num_hidden_layers,
    )(config, name='blocks')
    last_BSY, outputs_LBSY = blocks(x_BSY)
    # Part of the published weights; their outputs are not used.
    _norm(config, 'norm_out', last_BSY[:, 0])
    return outputs_LBSY[-2]


@dataclasses.dataclass(frozen=True)
class ImageEncoder:
  """Image encoder whose methods are pure functions of the parameters."""

  config: ImageConfig

  def init(self, key: jax.Array) -> dict:
    """Returns fresh parameters: nested dicts of float32 arrays."""
    side = self.config.image_size
    pixels = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return Network(self.config).lazy_init(key, pixels)['params']

  def encode(self, params: dict, pixels_BHWC: jax.Array) -> jax.Array:
    """Returns embeddings image_BSY of normalised pixels, class token first."""
    return Network(self.config).apply({'params': params}, pixels_BHWC)

  def pixels(self, image_HWC: np.ndarray) -> np.ndarray:
    """Resizes, crops and normalises an image for `encode`.

    The shorter side becomes the encoder's, by cubic interpolation; the centre
    is kept.

    Args:
      image_HWC: uint8, of any size.

    Returns:
      float32 (side, side, 3).
    """
    side, image = self.config.image_size, Image.fromarray(image_HWC)
    short = min(image.size)
    size = [int(side * length / short) for length in image.size]
    if image.size != tuple(size):
      image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = ((length - side) // 2 for length in size)
    image = image.crop((left, top, left + side, top + side))
    pixels = np.asarray(image, np.float32) / 255
    return (pixels - np.float32(MEAN)) / np.float32(STD)


def _norm(config: ImageConfig, name: str, x: jax.Array) -> jax.Array:
  norm = nn.LayerNorm(
    epsilon=config.layer_norm_eps,
    dtype=jnp.float32,
    use_fast_variance=False,
    name=name,
  )
  return norm(x.astype(jnp.float32)).astype(x.dtype)
