"""Which latent frames are given while training: the seeds of every mode.

A given frame enters at level 0 and is not in the loss. What a model has seen
given, it can be given when sampling: an image, a clip to extend either way,
two ends to join.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class GivenConfig:
  """Weights of the ways to give frames; they need not add to one.

  Attributes:
    none: everything is noise.
    first: the first frame.
    first_k: the first 1 to f - 1 frames.
    last_k: the last 1 to f - 1 frames.
    ends: the first and the last frame.
    random: each frame by the toss of a coin.
  """

  none: float = 0.7
  first: float = 0.1
  first_k: float = 0.05
  last_k: float = 0.05
  ends: float = 0.05
  random: float = 0.05

  def __post_init__(self):
    weights = dataclasses.astuple(self)
    if min(weights) < 0 or sum(weights) <= 0:
      raise ValueError(
        f'given={weights}: expected weights that are not negative, one above 0'
      )


def sample_given(
  key: jax.Array,
  batch: int,
  frames: int,
  config: GivenConfig,
  *,
  count_B: jax.Array | None = None,
) -> jax.Array:
  """Draws which latent frames each clip is given.

  Args:
    key: of the draw.
    batch: B.
    frames: f.
    config: weights.
    count_B: frames that each clip has, of at most f; None is f.

  Returns:
    bool (B, f); of the frames of a clip never all. One frame alone is never
    given.
  """
  if frames == 1:
    return jnp.zeros((batch, 1), bool)
  most_B1 = jnp.full((batch, 1), frames)
  if count_B is not None:
    most_B1 = count_B[:, None]
  kind_key, count_key, coin_key = jax.random.split(key, 3)
  weights = jnp.asarray(dataclasses.astuple(config))
  kind_B = jax.random.categorical(kind_key, jnp.log(weights), shape=(batch,))
  count_B1 = jax.random.randint(
    count_key, (batch, 1), 1, jnp.maximum(most_B1, 2)
  )
  place_f = jnp.arange(frames)
  coins_Bf = jax.random.bernoulli(coin_key, 0.5, (batch, frames))
  inside_Bf = place_f < most_B1
  coins_Bf &= ~jnp.all(coins_Bf | ~inside_Bf, axis=1, keepdims=True)
  ends_Bf = (place_f == 0) | ((place_f == most_B1 - 1) & (most_B1 > 2))
  ways = jnp.stack(
    [
      jnp.zeros((batch, frames), bool),
      jnp.broadcast_to(place_f == 0, (batch, frames)),
      place_f < count_B1,
      place_f >= most_B1 - count_B1,
      ends_Bf,
      coins_Bf,
    ]
  )
  given_Bf = ways[kind_B, jnp.arange(batch)]
  return given_Bf & inside_Bf & (most_B1 > 1)
