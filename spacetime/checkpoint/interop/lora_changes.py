"""Changes of a weight that a LoRA file describes, and how they are applied.

A weight W (out, in, ...) in the published layout becomes

  LowRank    W + s B A                       LoRA: B `up`, A `down`
  Kronecker  W + s kron(w1, w2)              LoKr
  Hadamard   W + s (a1 b1) * (a2 b2)         LoHa
  Plain      W + D                           differences of norms and biases
  Decomposed m (W + D) / |W + D|             DoRA, D being one of the others

Sources: Hu et al. 2021 (LoRA), arXiv 2106.09685; Hyeon-Woo et al. 2021 (LoHa),
arXiv 2108.06098; Yeh et al. 2023 (LyCORIS: LoKr), arXiv 2309.14859; Liu et al.
2024 (DoRA), arXiv 2402.09353; comfy/weight_adapter/base.py, weight_decompose.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class LowRank:
  """s B A. Attributes: down (r, in, ...), up (out, r), scale."""

  down: np.ndarray
  up: np.ndarray
  scale: float

  def delta(self) -> np.ndarray:
    """The change (out, in, ...), float32."""
    rank = len(self.down)
    product = self.up @ self.down.reshape(rank, -1)
    return self.scale * product.reshape(len(self.up), *self.down.shape[1:])


@dataclasses.dataclass(frozen=True)
class Kronecker:
  """s kron(w1, w2). Attributes: w1 (a, b), w2 (c, d, ...), scale."""

  w1: np.ndarray
  w2: np.ndarray
  scale: float

  def delta(self) -> np.ndarray:
    """The change (a c, b d, ...), float32."""
    w1 = self.w1.reshape(*self.w1.shape[:2], *[1] * (self.w2.ndim - 2))
    return self.scale * np.kron(w1, self.w2)


@dataclasses.dataclass(frozen=True)
class Hadamard:
  """s (a1 b1) * (a2 b2), elementwise. Attributes: a (out, r), b (r, in)."""

  a1: np.ndarray
  b1: np.ndarray
  a2: np.ndarray
  b2: np.ndarray
  scale: float

  def delta(self) -> np.ndarray:
    """The change (out, in), float32."""
    return self.scale * (self.a1 @ self.b1) * (self.a2 @ self.b2)


@dataclasses.dataclass(frozen=True)
class Plain:
  """A difference. Attributes: difference, of the weight's shape; scale."""

  difference: np.ndarray
  scale: float = 1.0

  def delta(self) -> np.ndarray:
    """The change, float32."""
    return self.scale * self.difference


Additive = LowRank | Kronecker | Hadamard | Plain


@dataclasses.dataclass(frozen=True)
class Decomposed:
  """DoRA: the changed weight gets new norms.

  Attributes:
    inner: change before the norms are set.
    magnitude: norms: (out,), or (in,) with `by` 'column'.
    by: the norm that the changed weight is divided by.
      'row': of the rows of the changed weight: PEFT's
        `lora_magnitude_vector`.
      'base': of the rows of the weight itself: ComfyUI's `dora_scale` of shape
        (out, 1).
      'column': of the columns of the changed weight: `dora_scale` of shape
        (1, in).
  """

  inner: Additive
  magnitude: np.ndarray
  by: str


Change = Additive | Decomposed


def has_effect(change: Change) -> bool:
  """Whether a change is other than 0: whether all of its factors are. DoRA sets
  norms, whatever its factors."""
  if isinstance(change, Decomposed):
    return True
  return all(np.any(value) for value in vars(change).values())


def changed(weight: np.ndarray, change: Change, strength: float) -> np.ndarray:
  """The changed weight, float32.

  Args:
    weight: (out, in, ...), float32.
    change: the change.
    strength: factor of additive changes and of PEFT's DoRA; ComfyUI's DoRA is
      interpolated instead, as in the programs that write these tensors.
  """
  if not isinstance(change, Decomposed):
    return weight + (strength * change.delta()).reshape(weight.shape)
  factor = strength if change.by == 'row' else 1.0
  delta = factor * change.inner.delta().reshape(weight.shape)
  axis = 1 if change.by == 'column' else 0
  rows = weight if change.by == 'base' else weight + delta
  others = tuple(i for i in range(weight.ndim) if i != axis)
  norm = np.sqrt(np.sum(np.square(rows), axis=others, keepdims=True))
  is_zero = norm == 0
  if change.by != 'row':
    norm = norm + np.finfo(np.float32).eps
  shape = [1] * weight.ndim
  shape[axis] = -1
  # A row of zeros has no direction: it stays, as in a block that was added.
  factors = np.zeros(norm.shape, np.float32)
  magnitude = change.magnitude.reshape(shape)
  np.divide(magnitude, norm, out=factors, where=~is_zero)
  result = (weight + delta) * factors
  if change.by == 'row':
    return result
  return weight + strength * (result - weight)
