"""Frame conditioning in training: which latent frames are known, at which noise
levels.

A conditioning frame enters at timestep 0, or with a little noise, and has no
part in the loss. A model can sample with the kinds of conditioning that it was
trained with: an image, a clip to extend either way, two ends to join. Noise on
conditioning frames makes a model trust them less, so that errors accumulate
more slowly in a long video.
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
  """Samples the conditioning frames of each clip.

  Args:
    key: random key.
    batch: B.
    frames: f.
    config: weights of the kinds.
    count_B: frames of each clip, at most f; None is f.

  Returns:
    bool (B, f), true for conditioning frames: never all frames of a clip, and
    none of a clip with one frame.
  """
  if frames == 1:
    return jnp.zeros((batch, 1), bool)
  frames_B1 = jnp.full((batch, 1), frames)
  if count_B is not None:
    frames_B1 = count_B[:, None]
  kind_key, count_key, coin_key, ends_key = jax.random.split(key, 4)
  weights = jnp.asarray(config.weights)
  kind_B = jax.random.categorical(kind_key, jnp.log(weights), shape=(batch,))
  count_B1 = jax.random.randint(
    count_key, (batch, 1), 1, jnp.maximum(frames_B1, 2)
  )
  index_f = jnp.arange(frames)
  coins_Bf = jax.random.bernoulli(coin_key, 0.5, (batch, frames))
  inside_Bf = index_f < frames_B1
  coins_Bf &= ~jnp.all(coins_Bf | ~inside_Bf, axis=1, keepdims=True)
  head_B1, tail_B1 = _sample_ends(ends_key, frames_B1)
  ends_Bf = (index_f < head_B1) | (index_f >= frames_B1 - tail_B1)
  kinds_KBf = jnp.stack(  # in the order of CONDITIONING_KINDS
    [
      jnp.zeros((batch, frames), bool),
      jnp.broadcast_to(index_f == 0, (batch, frames)),
      index_f < count_B1,
      index_f >= frames_B1 - count_B1,
      ends_Bf,
      coins_Bf,
    ]
  )
  cond_mask_Bf = kinds_KBf[kind_B, jnp.arange(batch)]
  return cond_mask_Bf & inside_Bf & (frames_B1 > 1)


def sample_clips(key: jax.Array, chance_B: jax.Array) -> jax.Array:
  """Samples which clips have conditioning frames at all, bool (B,).

  Args:
    key: of sample_cond_mask; another draw.
    chance_B: chance of each clip.
  """
  key = jax.random.fold_in(key, 1)
  return jax.random.uniform(key, chance_B.shape) < chance_B


def _sample_ends(key: jax.Array, frames_B1: jax.Array):
  """Conditioning frames at the start and at the end: together at least one less
  than all, and frames at the end only in clips of three or more."""
  u_2B1 = jax.random.uniform(key, (2, *frames_B1.shape)) ** 2
  head_B1 = 1 + jnp.floor(u_2B1[0] * (frames_B1 - 2)).astype(int)
  rest_B1 = jnp.maximum(frames_B1 - 1 - head_B1, 0)
  tail_B1 = 1 + jnp.floor(u_2B1[1] * rest_B1).astype(int)
  return jnp.maximum(head_B1, 1), jnp.minimum(tail_B1, rest_B1)


def frame_timesteps(
  key: jax.Array,
  t_B1: jax.Array,
  independent_Bf: jax.Array,
  cond_mask_Bf: jax.Array,
  config: FrameConditioningConfig,
) -> jax.Array:
  """The timestep of every latent frame.

  Args:
    key: random key.
    t_B1: timestep of each clip.
    independent_Bf: timesteps for clips whose frames have one each.
    cond_mask_Bf: bool, conditioning frames.
    config: noise of conditioning frames, share of independent timesteps.

  Returns:
    float32 (B, f).
  """
  noisy_key, noise_key, independent_key = jax.random.split(key, 3)
  noisy_B1 = jax.random.bernoulli(
    noisy_key, config.context_noise_prob, t_B1.shape
  )
  noise_B1 = config.context_noise * jax.random.uniform(noise_key, t_B1.shape)
  # A conditioning frame never has more noise than the frames to generate.
  noise_B1 = jnp.where(noisy_B1, jnp.minimum(noise_B1, t_B1), 0.0)
  is_independent_B1 = jax.random.bernoulli(
    independent_key, config.independent_noise_prob, t_B1.shape
  )
  t_Bf = jnp.where(is_independent_B1, independent_Bf, t_B1)
  return jnp.where(cond_mask_Bf, noise_B1, t_Bf)
