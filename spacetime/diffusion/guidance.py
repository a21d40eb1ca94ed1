"""Classifier-free guidance and its variants: combines conditional and
unconditional velocities."""

import dataclasses
import math
import numbers
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from spacetime import SettingError

KINDS = ('cfg', 'cfg_zero', 'apg')


@dataclasses.dataclass(frozen=True)
class Guidance:
  """Settings of guidance, and the combination of branches into one velocity.

  Attributes:
    scale: guidance scale; 1 is the conditional prediction, then the only
      branch.
    kind: one of KINDS: 'cfg' is classifier_free, 'cfg_zero' zero_star, 'apg'
      projected.
    interval: noise levels (low, high) at which to guide; outside, the scale is
      1. Source: Kynkaanniemi et al. 2024, arXiv 2404.07724.
    zero_steps: for 'cfg_zero', first steps that are left out of the schedule;
      see settings.SamplingSettings.
    momentum: for 'apg', weight of earlier updates; negative pushes away from
      them, 0 ignores them.
    norm_threshold: for 'apg', largest Euclidean norm of a clip's update; None
      sets no bound.
    eta: for 'apg', weight of the part of the update parallel to the sample.
    skip_layers: layers that a further branch leaves out; () has no such branch.
    skip_layer_scale: weight of the difference of the conditional prediction
      from that branch. Source: Hyung et al. 2024 (STG), arXiv 2411.18664.
    skip_layer_interval: noise levels (low, high) at which to add it.

  Raises:
    SettingError: a value out of range.
  """

  scale: float = 1.0
  kind: str = 'cfg'
  interval: tuple[float, float] = (0.0, 1.0)
  zero_steps: int = 1
  momentum: float = -0.5
  norm_threshold: float | None = None
  eta: float = 0.0
  skip_layers: tuple[int, ...] = ()
  skip_layer_scale: float = 1.0
  skip_layer_interval: tuple[float, float] = (0.0, 1.0)

  def __post_init__(self):
    if self.kind not in KINDS:
      raise SettingError('guidance_kind', self.kind, f'one of {KINDS}')
    if not 0 <= self.scale < float('inf'):
      raise SettingError('guidance', self.scale, '0 or more')
    for name in ('interval', 'skip_layer_interval'):
      interval = getattr(self, name)
      is_pair = isinstance(interval, tuple) and len(interval) == 2
      if not is_pair or not 0 <= interval[0] < interval[1] <= 1:
        raise SettingError(name, interval, '0 <= low < high <= 1')
    self._check_skipping()
    if self.zero_steps < 0:
      raise SettingError('zero_steps', self.zero_steps, '0 or more')
    if self.norm_threshold is not None and not self.norm_threshold > 0:
      raise SettingError(
        'norm_threshold',
        self.norm_threshold,
        'more than 0, or None for no bound',
      )
    if not -1 < self.momentum < 1:
      raise SettingError('momentum', self.momentum, 'more than -1, less than 1')
    if not math.isfinite(self.eta):
      raise SettingError('eta', self.eta, 'a finite number')

  def _check_skipping(self) -> None:
    layers = self.skip_layers
    if not isinstance(layers, tuple) or not all(
      isinstance(layer, numbers.Integral) and not isinstance(layer, bool)
      for layer in layers
    ):
      raise SettingError(
        'skip_layers', layers, 'numbers of layers from 0, such as 3 or 9,10'
      )
    if len(set(layers)) < len(layers) or any(layer < 0 for layer in layers):
      raise SettingError(
        'skip_layers', layers, 'numbers of layers from 0, each once'
      )
    if not 0 < self.skip_layer_scale < math.inf:
      raise SettingError(
        'skip_layer_scale',
        self.skip_layer_scale,
        'more than 0',
        hint='without `skip_layers` no layer is left out',
      )

  @property
  def uses_cfg(self) -> bool:
    """Whether there is an unconditional branch."""
    return self.scale != 1.0

  @property
  def branches(self) -> tuple[str, ...]:
    """Names of the predictions of each clip at a step, in order."""
    return (
      'cond',
      *(('uncond',) if self.uses_cfg else ()),
      *(('skipped',) if self.skip_layers else ()),
    )

  def init(self, z_Bfhwc: jax.Array):
    """The running update before the first step; () where there is none."""
    if self.uses_cfg and self.kind == 'apg' and self.momentum:
      return jnp.zeros_like(z_Bfhwc)
    return ()

  def combine(
    self,
    branches: Sequence[jax.Array],
    z_Bfhwc: jax.Array,
    t: jax.Array,
    update,
    *,
    fixed: jax.Array | None = None,
  ):
    """One velocity from those of the branches.

    Args:
      branches: velocities (B, f, h, w, c), as `branches` names them.
      z_Bfhwc: latents.
      t: noise level, a scalar.
      update: running update of the step before, or `init`.
      fixed: bool, broadcast to z_Bfhwc: conditioning latents, which are no part
        of the direction.

    Returns:
      (velocity_Bfhwc, update).
    """
    velocity = dict(zip(self.branches, branches, strict=True))
    v_cond = velocity['cond']
    v, update = self._guide(velocity, z_Bfhwc, t, update, fixed=fixed)
    if self.skip_layers:
      low, high = self.skip_layer_interval
      inside = (t >= low) & (t <= high)
      scale = jnp.where(inside, self.skip_layer_scale, 0.0)
      v += scale * (v_cond - velocity['skipped'])
    return v, update

  def _guide(self, velocity, z_Bfhwc, t, update, *, fixed):
    """The velocity guided away from the unconditional one."""
    v_cond = velocity['cond']
    if not self.uses_cfg:
      return v_cond, update
    v_uncond = velocity['uncond']
    low, high = self.interval
    inside = (t >= low) & (t <= high)
    scale = jnp.where(inside, self.scale, 1.0)
    if self.kind == 'cfg':
      return classifier_free(v_cond, v_uncond, scale), update
    if self.kind == 'cfg_zero':
      return zero_star(v_cond, v_uncond, scale), update
    sample = z_Bfhwc - t * v_cond
    if fixed is not None:
      sample = jnp.where(fixed, 0.0, sample)
    change = t * (v_cond - v_uncond)
    if self.momentum:
      change = change + self.momentum * update
      update = jnp.where(inside, change, update)
    change = projected(
      change, sample, norm_threshold=self.norm_threshold, eta=self.eta
    )
    return v_cond + (scale - 1) * change / t, update


def classifier_free(v_cond, v_uncond, scale):
  """v = v_uncond + scale (v_cond - v_uncond).

  Source: Ho & Salimans 2022, arXiv 2207.12598, equation 6.
  """
  return v_uncond + scale * (v_cond - v_uncond)


def zero_star(v_cond, v_uncond, scale):
  """Guidance away from the part of v_uncond that v_cond shares.

  v = s v_uncond + scale (v_cond - s v_uncond), where s v_uncond is the
  projection of v_cond on v_uncond, for each clip.

  Source: Fan et al. 2025 (CFG-Zero*), arXiv 2503.18886.
  """
  return classifier_free(v_cond, _projection(v_cond, v_uncond), scale)


def projected(
  change_Bfhwc, sample_Bfhwc, *, norm_threshold: float | None, eta: float
):
  """Update of adaptive projected guidance, which avoids saturated colours.

  The change of the predicted sample by the condition, with its norm clipped;
  its part parallel to the sample, which saturates it, is weighted by `eta`. An
  eta of 1 without a threshold is classifier-free guidance.

  Args:
    change_Bfhwc: conditional sample less the unconditional one, or the reverse.
    sample_Bfhwc: the conditional sample; zero where it is to have no part.
    norm_threshold: largest norm of a clip's change, or None.
    eta: weight of the part parallel to the sample.

  Source: Sadat et al. 2024 (APG), arXiv 2410.02416, algorithm 1; momentum is
  added before.
  """
  if norm_threshold is not None:
    norm = jnp.sqrt(_dot(change_Bfhwc, change_Bfhwc))
    change_Bfhwc = change_Bfhwc / jnp.maximum(norm / norm_threshold, 1.0)
  parallel = _projection(change_Bfhwc, sample_Bfhwc)
  return change_Bfhwc - (1 - eta) * parallel


def _dot(a_Bfhwc, b_Bfhwc):
  """Inner product of each clip, (B, 1, 1, 1, 1)."""
  return jnp.sum(a_Bfhwc * b_Bfhwc, axis=(1, 2, 3, 4), keepdims=True)


def _projection(a_Bfhwc, b_Bfhwc):
  """The part of each clip of a along that of b; zero where b is zero."""
  square = _dot(b_Bfhwc, b_Bfhwc)
  return b_Bfhwc * _dot(a_Bfhwc, b_Bfhwc) / jnp.where(square > 0, square, 1.0)
