"""Rows of several clips: what a token needs to be told apart.

Of a token, a row tells its clip, its place in it and the latent frame that it
is of; with these the transformer makes of each clip what it would have made of
it alone. Rows are packed by data/packing.py; G clips at most, T latent frames.
"""

from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np

from spacetime.models.transformer import patchify, rope
from spacetime.models.transformer.attention_kernels import Segments


class Rows(NamedTuple):
  """Where the tokens of packed rows are.

  Attributes:
    clip_BN: int32, from 1; 0 is padding, which follows what is real.
    position_BN3: int32, place in the clip's grid of tokens.
    frame_BN: int32, row in the table of levels.
    grids_BG3: int32, tokens of each clip along time, height and width; zeros
      where there is no clip.
  """

  clip_BN: jax.Array
  position_BN3: jax.Array
  frame_BN: jax.Array
  grids_BG3: jax.Array

  def rope_tables(self, *, head_size: int, theta: float):
    """Cosines and sines of each token's place, (B, N, E / 2) each."""
    return rope.packed_tables(
      self.position_BN3,
      length=self.clip_BN.shape[1],
      head_size=head_size,
      theta=theta,
    )

  def position_cosines(self, cosines: int) -> jax.Array:
    """See patchify.position_cosines, (B, N, 3 K)."""
    clip_BN1 = jnp.maximum(self.clip_BN - 1, 0)[..., None]
    grid_BN3 = jnp.take_along_axis(self.grids_BG3, clip_BN1, axis=1)
    grid_BN3 = jnp.maximum(grid_BN3, 1)  # of padding there is none
    return patchify.cosine_features(
      self.position_BN3, grid_BN3, cosines, xp=jnp
    )

  def segments(self, text_tokens: int) -> tuple[Segments, Segments]:
    """Of self-attention, and of cross-attention to S tokens for each clip.

    Padding meets padding, and the text of the first clip: nobody reads what
    it finds, but a softmax over no key at all would not be a number.
    """
    own = Segments(self.clip_BN, self.clip_BN)
    rows, clips = self.grids_BG3.shape[:2]
    text_S = np.repeat(np.arange(1, clips + 1, dtype=np.int32), text_tokens)
    text_BS = jnp.broadcast_to(text_S, (rows, len(text_S)))
    return own, Segments(jnp.maximum(self.clip_BN, 1), text_BS)


def text_row(text_BGSY: jax.Array) -> jax.Array:
  """The texts of a row's clips end to end, (B, G * S, Y)."""
  return einops.rearrange(text_BGSY, 'B G S Y -> B (G S) Y')
