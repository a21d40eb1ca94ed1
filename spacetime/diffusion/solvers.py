"""ODE solvers: Euler, Heun, DPM++ 2M and UniPC; and re-noising.

A solver moves latents along a schedule from noise to data with a function
`denoise(z_Bfhwc, t, cache) -> (velocity, cache)`; it imports no network.
Timesteps may differ from sigmas: published schedules round them.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spacetime import SettingError
from spacetime.diffusion.denoiser import Denoise
from spacetime.diffusion.schedules import MARGIN, Schedule


@dataclasses.dataclass(frozen=True)
class Solver:
  """A solver in parts, so that a caller can step and change the denoiser.

  Attributes:
    init: z_Bfhwc -> state, before the first step.
    step: (denoise, state, cache, *row) -> (state, cache), with a row of
      `table`.
    finalize: state -> z_Bfhwc, after the last step.
    coefficients: Schedule -> what `step` needs besides (t, sigma, next sigma),
      (R, K).
    renoises: whether `step` takes `renoise` too, a function from the noise that
      was predicted to the noise of the next latents; and whether latents begin
      as noise times the first sigma, where that is below 1.
  """

  init: Callable
  step: Callable
  finalize: Callable
  coefficients: Callable = lambda schedule: ()
  renoises: bool = False

  def table(self, schedule: Schedule) -> tuple[jax.Array, ...]:
    """The columns t, sigma, next sigma and coefficients, each float32 (K,)."""
    sigmas, timesteps = (
      np.asarray(x, np.float32) for x in (schedule.sigmas, schedule.timesteps)
    )
    columns = (timesteps, sigmas[:-1], sigmas[1:])
    columns += tuple(np.float32(self.coefficients(schedule)))
    return tuple(jnp.asarray(column) for column in columns)


def solve(
  denoise: Denoise,
  z_Bfhwc: jax.Array,
  schedule: Schedule,
  *,
  solver: Solver,
  cache=(),
) -> jax.Array:
  """Moves latents from the first sigma to 0, as one scan.

  Args:
    denoise: (z_Bfhwc, t, cache) -> (velocity, cache).
    z_Bfhwc: latents at the first sigma.
    schedule: K steps.
    solver: one of SOLVERS that does not re-noise.
    cache: cache of denoise before the first step.

  Returns:
    z_Bfhwc at sigma 0.
  """
  state, _ = jax.lax.scan(
    lambda carry, row: (solver.step(denoise, *carry, *row), None),
    (solver.init(z_Bfhwc), cache),
    solver.table(schedule),
  )[0]
  return solver.finalize(state)


def _identity(z):
  return z


def _euler_step(denoise, z, cache, t, sigma, sigma_next):
  v, cache = denoise(z, t, cache)
  return z + (sigma_next - sigma) * v, cache


# First order, one prediction a step; exact on a straight path.
euler = Solver(_identity, _euler_step, _identity)


def _renoise_step(denoise, z, cache, t, sigma, sigma_next, *, renoise):
  v, cache = denoise(z, t, cache)
  x, noise = z - sigma * v, z + (1 - sigma) * v
  return (1 - sigma_next) * x + sigma_next * renoise(noise), cache


# Predicts the sample and noises it anew to the next sigma, as models that were
# distilled by distribution matching or consistency are sampled.
# Source: Song et al. 2023 (Consistency Models), arXiv 2303.01469, algorithm 1.
renoise = Solver(_identity, _renoise_step, _identity, renoises=True)


def _heun_coefficients(schedule):
  return np.append(schedule.timesteps[1:], 0.0)[None]


def _heun_step(denoise, z, cache, t, sigma, sigma_next, t_next):
  v, cache = denoise(z, t, cache)
  v_end, cache = jax.lax.cond(
    sigma_next > 0,
    lambda: denoise(z + (sigma_next - sigma) * v, t_next, cache),
    lambda: (v, cache),
  )
  return z + (sigma_next - sigma) * 0.5 * (v + v_end), cache


# Second order, two predictions a step; the last step, to 0, is Euler's.
# Source: Karras et al. 2022 (EDM), arXiv 2206.00364, algorithm 1.
heun = Solver(_identity, _heun_step, _identity, _heun_coefficients)


def _dpm_init(z):
  return z, jnp.zeros_like(z)


def _dpm_step(
  denoise, state, cache, t, sigma, sigma_next, advance, extrapolate
):
  z, x_before = state
  v, cache = denoise(z, t, cache)
  x = z - sigma * v
  z = z + advance * (x - z) + extrapolate * (x - x_before)
  return (z, x), cache


def _dpm_finalize(state):
  return state[0]


def _dpm_coefficients(schedule):
  return multistep_weights(schedule.sigmas)[:2]


# DPM++ 2M: second order, one prediction a step; its first step and its last,
# to sigma 0, are of first order.
# Source: Lu et al. 2022, arXiv 2211.01095, algorithm 2, with signal 1 - t and
# noise t.
dpm = Solver(_dpm_init, _dpm_step, _dpm_finalize, _dpm_coefficients)


def _unipc_init(z):
  return z, jnp.zeros_like(z), jnp.zeros_like(z)


def _unipc_step(
  denoise,
  state,
  cache,
  t,
  sigma,
  sigma_next,
  advance,
  extrapolate,
  backward,
  forward,
):
  corrected, x_1, x_2 = state
  # The step that ends here began at `corrected`.
  base = corrected + advance * (x_1 - corrected)
  z = base + extrapolate * (x_1 - x_2)
  v, cache = denoise(z, t, cache)
  x = z - sigma * v
  corrected = base + backward * (x_2 - x_1) + forward * (x - x_1)
  return (corrected, x, x_1), cache


def _unipc_finalize(state):
  corrected, x, _ = state
  return corrected + (x - corrected)


def _unipc_coefficients(schedule):
  # A row has the step that ends at its sigma; none ends at the first.
  return [
    np.append(0.0, weights[:-1])
    for weights in multistep_weights(schedule.sigmas)
  ]


# UniPC of order 2 (bh2), Wan's solver: one prediction a step. DPM++ 2M predicts
# the next latents; the prediction there also corrects the step that led to
# them. The first step and the last, to sigma 0, are of first order.
# Source: Zhao et al. 2023, arXiv 2302.04867: multistep, of the predicted
# sample, B_2(h) = e^h - 1; with signal 1 - t and noise t.
unipc = Solver(_unipc_init, _unipc_step, _unipc_finalize, _unipc_coefficients)


SOLVERS = {
  'euler': euler,
  'heun': heun,
  'dpm': dpm,
  'unipc': unipc,
  'renoise': renoise,
}


def get(name: str) -> Solver:
  """A solver by name.

  Raises:
    SettingError: no solver has that name.
  """
  if name not in SOLVERS:
    raise SettingError('solver', name, f'one of {sorted(SOLVERS)}')
  return SOLVERS[name]


def multistep_weights(sigmas: Sequence[float]) -> np.ndarray:
  """Weights of the steps of UniPC and DPM++, float64 (4, K).

  With x the predicted sample at the start of a step, x_before the one before
  it and x_after the one at its end, z becomes

    z + advance (x - z) + extrapolate (x - x_before)           as predicted,
    z + advance (x - z) + backward (x_before - x)
      + forward (x_after - x)                                  as corrected.

  `advance` is (1 - s) (1 - e^-h) of the papers, s the sigma at the end: 1 - s
  / t, which is finite where the step h in the log-ratio of signal to noise is
  not.
  """
  t = np.asarray(sigmas, np.float32).astype(np.float64)
  steps = len(t) - 1
  advance = 1 - t[1:] / t[:-1]
  extrapolate, backward, forward = np.zeros((3, steps))
  forward[0] = 0.5 * advance[0]
  t[0] = min(t[0], np.float32(1 - MARGIN))
  ratio = np.log1p(-t[:-1]) - np.log(t[:-1])
  for i in range(1, steps - 1):
    h = ratio[i + 1] - ratio[i]
    r = (ratio[i - 1] - ratio[i]) / h
    extrapolate[i] = -0.5 * advance[i] / r
    b_h = np.expm1(-h)
    phi_1 = b_h / -h - 1
    phi_2 = phi_1 / -h - 0.5
    backward[i], forward[i] = advance[i] * np.linalg.solve(
      [[1.0, 1.0], [r, 1.0]], [phi_1 / b_h, 2 * phi_2 / b_h]
    )
    backward[i] /= r
  return np.stack([advance, extrapolate, backward, forward])
