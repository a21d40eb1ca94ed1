"""Sequence packing: several clips in one sequence of tokens.

For each token a packed batch has its clip, its position in that clip and its
latent frame, from which the transformer computes for each clip what it would
compute for that clip alone. data/packing.py fills the sequences: up to G clips
and T latent frames each.
"""

from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np

from spacetime.models.transformer import patchify, rope
from spacetime.models.transformer.attention_kernels import Segments


class PackedBatch(NamedTuple):
  """Layout of the tokens in packed sequences.

  Attributes:
    segment_ids_BN: int32, the clip of each token, from 1; 0 is padding, which
      comes last.
    positions_BN3: int32, position in the clip's grid of tokens.
    frame_ids_BN: int32, row of the sequence's table of timesteps.
    grids_BG3: int32, tokens of each clip along time, height and width; zeros
      where there is no clip.
  """

  segment_ids_BN: jax.Array
  positions_BN3: jax.Array
  frame_ids_BN: jax.Array
  grids_BG3: jax.Array

  def rope_tables(
    self, *, head_size: int, theta: float
  ) -> tuple[jax.Array, jax.Array]:
    """Returns cosines and sines of each token's position, (B, N, E / 2)."""
    return rope.packed_tables(
      self.positions_BN3,
      length=self.segment_ids_BN.shape[1],
      head_size=head_size,
      theta=theta,
    )

  def position_cosines(self, frequencies: int) -> jax.Array:
    """Returns patchify.position_cosines of each token, (B, N, 3 K)."""
    clip_BN1 = jnp.maximum(self.segment_ids_BN - 1, 0)[..., None]
    grid_BN3 = jnp.take_along_axis(self.grids_BG3, clip_BN1, axis=1)
    grid_BN3 = jnp.maximum(grid_BN3, 1)  # padding has no grid
    return patchify.cosine_features(
      self.positions_BN3, grid_BN3, frequencies, xp=jnp
    )

  def segments(self, text_tokens: int) -> tuple[Segments, Segments]:
    """Returns the segments of self-attention, and of cross-attention to S text
    tokens per clip.

    Padding attends to padding, and to the text of the first clip: its result is
    not read, but a softmax over no key would be NaN.
    """
    self_segments = Segments(self.segment_ids_BN, self.segment_ids_BN)
    rows, clips = self.grids_BG3.shape[:2]
    text_S = np.repeat(np.arange(1, clips + 1, dtype=np.int32), text_tokens)
    text_BS = jnp.broadcast_to(text_S, (rows, len(text_S)))
    cross_segments = Segments(jnp.maximum(self.segment_ids_BN, 1), text_BS)
    return self_segments, cross_segments


def concatenate_texts(text_BGSY: jax.Array) -> jax.Array:
  """Concatenates the texts of a sequence's clips, (B, G * S, Y)."""
  return einops.rearrange(text_BGSY, 'B G S Y -> B (G S) Y')
