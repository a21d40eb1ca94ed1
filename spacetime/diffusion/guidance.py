"""Guidance: predictions with and without what is told, as one velocity.

A step asks the network for one row of predictions, or for several at once:
with the text, without it, and (of the last of these) without the given frames.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Guidance:
  """How rows of predictions become one velocity.

  Attributes:
    scale: of the text; 1 is the prediction with text, which is then the only
      row.
    kind: one of KINDS: 'cfg' is classifier_free, 'cfg_zero' zero_star, 'apg'
      projected.
    interval: levels (low, high) at which to guide; outside, scales are 1.
      Source: Kynkaanniemi et al. 2024, arXiv 2404.07724.
    given: scale of the given frames; 1 leaves that row out.
    zero_steps: of 'cfg_zero', the first steps that are left out; see
      config.SamplingConfig.grid.
    momentum: of 'apg', what earlier directions count; negative pushes away
      from them, 0 forgets them.
    radius: of 'apg', a longer direction (the Euclidean norm of the change of a
      clip's sample) is shortened to this; None shortens nothing.
    parallel: of 'apg', the weight of the part along the sample.

  Raises:
    ValueError: a value that cannot be; it names the flag or the key.
  """

  scale: float = 1.0
  kind: str = 'cfg'
  interval: tuple[float, float] = (0.0, 1.0)
  given: float = 1.0
  zero_steps: int = 1
  momentum: float = -0.5
  radius: float | None = None
  parallel: float = 0.0

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(
        f'guidance_kind={self.kind!r}: expected one of {KINDS}; change '
        '--guidance_kind'
      )
    for name, value in (('', self.scale), ('_given', self.given)):
      if not 0 <= value < float('inf'):
        raise ValueError(
          f'guidance{name}={value}: expected 0 or more; change --guidance{name}'
        )
    low, high = self.interval
    if not 0 <= low < high <= 1:
      raise ValueError(
        f'guidance interval {self.interval}: expected 0 <= low < high <= 1; '
        'change sampling.interval'
      )
    if self.zero_steps < 0:
      raise ValueError(
        f'sampling.zero_steps={self.zero_steps}: expected 0 or more'
      )
    if self.radius is not None and not self.radius > 0:
      raise ValueError(
        f'sampling.radius={self.radius}: expected more than 0, or None, which '
        'shortens nothing'
      )
    if not -1 < self.momentum < 1:
      raise ValueError(
        f'sampling.momentum={self.momentum}: expected more than -1, less than 1'
      )

  @property
  def tells_text(self) -> bool:
    """Whether there is a row without the text."""
    return self.scale != 1.0

  @property
  def tells_given(self) -> bool:
    """Whether there is a row, the last, without the given frames."""
    return self.given != 1.0

  @property
  def rows(self) -> int:
    """Predictions of each clip at a step."""
    return 1 + self.tells_text + self.tells_given

  def begin(self, z_Bfhwc: jax.Array):
    """What is remembered before the first step."""
    if self.tells_text and self.kind == 'apg' and self.momentum:
      return jnp.zeros_like(z_Bfhwc)
    return ()

  def __call__(
    self,
    rows: Sequence[jax.Array],
    z_Bfhwc: jax.Array,
    t: jax.Array,
    memory,
    *,
    given: jax.Array | None = None,
  ):
    """One velocity of the predictions at a level.

    Args:
      rows: velocities: with text; without, if tells_text; of the same text as
        the last of these, without the given frames, if tells_given.
      z_Bfhwc: latents.
      t: their level, a scalar.
      memory: of the step before, or `begin`.
      given: bool, latents that are given, by broadcasting: no part of a
        direction.

    Returns:
      (velocity_Bfhwc, memory).
    """
    low, high = self.interval
    inside = (t >= low) & (t <= high)
    v_Bfhwc = told = rows[0]
    if self.tells_text:
      told = rows[1]
      weight = jnp.where(inside, self.scale, 1.0)
      if self.kind == 'apg':
        sample = z_Bfhwc - t * rows[0]
        if given is not None:
          sample = jnp.where(given, 0.0, sample)
        change = t * (rows[0] - told)
        if self.momentum:
          change = change + self.momentum * memory
          memory = jnp.where(inside, change, memory)
        change = projected(
          change, sample, radius=self.radius, parallel=self.parallel
        )
        v_Bfhwc = rows[0] + (weight - 1) * change / t
      else:
        combine = zero_star if self.kind == 'cfg_zero' else classifier_free
        v_Bfhwc = combine(rows[0], told, weight)
    if self.tells_given:
      weight = jnp.where(inside, self.given, 1.0)
      v_Bfhwc = v_Bfhwc + (weight - 1) * (told - rows[-1])
    return v_Bfhwc, memory


KINDS = ('cfg', 'cfg_zero', 'apg')


def classifier_free(v_with, v_without, weight):
  """v = v_without + weight (v_with - v_without).

  Source: Ho & Salimans 2022, arXiv 2207.12598, equation 6. With a second
  condition the differences add: Brooks et al. 2022 (InstructPix2Pix), arXiv
  2211.09800, equation 3.
  """
  return v_without + weight * (v_with - v_without)


def zero_star(v_with, v_without, weight):
  """Guidance from the part of v_without that v_with shares.

  v = s v_without + weight (v_with - s v_without), where s v_without is the
  projection of v_with on v_without, for each clip.

  Source: Fan et al. 2025 (CFG-Zero*), arXiv 2503.18886.
  """
  return classifier_free(v_with, _projection(v_with, v_without), weight)


def projected(
  change_Bfhwc, sample_Bfhwc, *, radius: float | None, parallel: float
):
  """Adaptive projected guidance's direction: less colour burnt in.

  Of the change that the text makes to the predicted sample, shortened to the
  radius, the part along the sample itself, which saturates it, is weighed by
  `parallel`; 1 and no radius are plain classifier-free guidance.

  Args:
    change_Bfhwc: sample with text less the one without, or the reverse.
    sample_Bfhwc: the one with text; zero where it is to have no part.
    radius: longest change of a clip, or None.
    parallel: weight of the part along the sample.

  Source: Sadat et al. 2024 (APG), arXiv 2410.02416, algorithm 1; momentum is
  added before.
  """
  if radius is not None:
    length = jnp.sqrt(_dot(change_Bfhwc, change_Bfhwc))
    change_Bfhwc = change_Bfhwc / jnp.maximum(length / radius, 1.0)
  along = _projection(change_Bfhwc, sample_Bfhwc)
  return change_Bfhwc - (1 - parallel) * along


def _dot(a_Bfhwc, b_Bfhwc):
  """Inner product of each clip, (B, 1, 1, 1, 1)."""
  return jnp.sum(a_Bfhwc * b_Bfhwc, axis=(1, 2, 3, 4), keepdims=True)


def _projection(a_Bfhwc, b_Bfhwc):
  """The part of each clip of a along that of b; zero where b is zero."""
  square = _dot(b_Bfhwc, b_Bfhwc)
  return b_Bfhwc * _dot(a_Bfhwc, b_Bfhwc) / jnp.where(square > 0, square, 1.0)
