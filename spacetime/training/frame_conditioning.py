"""Which latent frames are given while training: the seeds of every mode.

A given frame enters at level 0, or with a little noise, and is not in the loss.
What a model has seen given, it can be given when sampling: an image, a clip to
extend either way, two ends to join. What it has seen given with noise it trusts
less, so that in a long video it hands on less of its own faults.
"""

import jax
import jax.numpy as jnp

from spacetime.config.sections import FrameConditioningConfig


def sample_cond_mask(
  key: jax.Array,
  batch: int,
  frames: int,
  config: FrameConditioningConfig,
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
  kind_key, count_key, coin_key, ends_key = jax.random.split(key, 4)
  weights = jnp.asarray(config.weights)
  kind_B = jax.random.categorical(kind_key, jnp.log(weights), shape=(batch,))
  count_B1 = jax.random.randint(
    count_key, (batch, 1), 1, jnp.maximum(most_B1, 2)
  )
  place_f = jnp.arange(frames)
  coins_Bf = jax.random.bernoulli(coin_key, 0.5, (batch, frames))
  inside_Bf = place_f < most_B1
  coins_Bf &= ~jnp.all(coins_Bf | ~inside_Bf, axis=1, keepdims=True)
  head_B1, tail_B1 = _ends(ends_key, most_B1)
  ends_Bf = (place_f < head_B1) | (place_f >= most_B1 - tail_B1)
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


def _ends(key: jax.Array, most_B1: jax.Array):
  """How many frames are given first and last; together at least one less than
  there are, and the last ones only where there are three or more."""
  u_2B1 = jax.random.uniform(key, (2, *most_B1.shape)) ** 2
  head_B1 = 1 + jnp.floor(u_2B1[0] * (most_B1 - 2)).astype(int)
  rest_B1 = jnp.maximum(most_B1 - 1 - head_B1, 0)
  tail_B1 = 1 + jnp.floor(u_2B1[1] * rest_B1).astype(int)
  return jnp.maximum(head_B1, 1), jnp.minimum(tail_B1, rest_B1)


def sample_levels(
  key: jax.Array, t_B1: jax.Array, own_Bf: jax.Array, given_Bf, config
) -> jax.Array:
  """The level of every latent frame.

  Args:
    key: of the draw.
    t_B1: of each clip.
    own_Bf: levels that frames have where they are independent.
    given_Bf: bool, which are given.
    config: FrameConditioningConfig.

  Returns:
    float32 (B, f).
  """
  noisy_key, noise_key, own_key = jax.random.split(key, 3)
  noisy_B1 = jax.random.bernoulli(
    noisy_key, config.context_noise_prob, t_B1.shape
  )
  noise_B1 = config.context_noise * jax.random.uniform(noise_key, t_B1.shape)
  # What is given has never more noise than what is made.
  noise_B1 = jnp.where(noisy_B1, jnp.minimum(noise_B1, t_B1), 0.0)
  free_B1 = jax.random.bernoulli(
    own_key, config.independent_noise_prob, t_B1.shape
  )
  t_Bf = jnp.where(free_B1, own_Bf, t_B1)
  return jnp.where(given_Bf, noise_B1, t_Bf)
