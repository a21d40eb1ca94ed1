"""The loss of the autoencoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime.config.sections import ReconstructionConfig
from spacetime.training import autoencoder_loss, step


def test_psnr():
  video = jnp.zeros((2, 1, 4, 4, 3))
  error = jnp.array([0.2, 0.02]).reshape(2, 1, 1, 1, 1)
  np.testing.assert_allclose(
    autoencoder_loss.psnr(video, video + error), [20, 40], atol=1e-3
  )


@pytest.mark.slow
def test_reconstruction_loss_is_least_at_the_truth():
  def stage(offset):
    return autoencoder_loss.Reconstruction(
      posterior=lambda params, video: (video, jnp.full_like(video, -30.0)),
      decode_raw=lambda params, z: z + offset,
      config=ReconstructionConfig(kl=0.0),
    )

  frames = jax.random.randint(
    jax.random.key(9), (4, 5, 2, 3, 3), 0, 256, jnp.uint8
  )
  batch = {'frames': frames.repeat(4, 2).repeat(4, 3)}
  losses = [
    float(stage(x).loss({}, {}, batch, jax.random.key(0))[0])
    for x in (0.0, 0.1, 0.3)
  ]
  assert losses[0] < 1e-3 < losses[1] < losses[2]
  metrics = stage(0.0).held_out({}, {}, batch)
  assert float(metrics['held_out/psnr']) > 60
  mean, square, cells = stage(0.0).moments({}, batch)
  assert mean.shape == square.shape == (3,) and cells == 4 * 5 * 8 * 12


@pytest.mark.slow
def test_accumulation_and_filled_batches_change_nothing():
  stage = autoencoder_loss.Reconstruction(
    posterior=lambda params, video: (video, jnp.zeros_like(video)),
    decode_raw=lambda params, z: params['w'] * z,
    config=ReconstructionConfig(),
  )
  frames = jax.random.randint(
    jax.random.key(9), (4, 2, 8, 8, 3), 0, 256, jnp.uint8
  )
  params, key = {'w': jnp.float32(0.5)}, jax.random.key(1)
  results = [
    step.gradients(
      stage.loss,
      params,
      {},
      {'frames': frames},
      key,
      accumulate=parts,
      draw=stage.draw,
    )
    for parts in (1, 2, 4)
  ]
  for metrics, gradient in results[1:]:
    for name, value in results[0][0].items():
      # 1 is added to each term of the divergence and taken away again.
      rtol = 1e-5 if name == 'kl' else 1e-6
      np.testing.assert_allclose(metrics[name], value, rtol=rtol)
    np.testing.assert_allclose(gradient['w'], results[0][1]['w'], rtol=1e-5)
  expected = stage.held_out(params, {}, {'frames': frames[:3]})
  filled = {'frames': frames, 'counted': jnp.array([1.0, 1, 1, 0])}
  got = stage.held_out(params, {}, filled)
  np.testing.assert_allclose(
    got['held_out/psnr'], expected['held_out/psnr'], rtol=1e-5
  )
