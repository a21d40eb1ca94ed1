"""Analytic FLOPs of the networks (stdlib only).

XLA's own count sees the body of a scan once and no Pallas kernel, so FLOPs
are counted here: two for a multiply and add, attention whole.
"""


def transformer(
  *,
  tokens: int,
  text_tokens: int,
  width: int,
  layers: int,
  mlp: int,
  text_width: int,
  patch_volume: int,
  levels: int,
  frequencies: int,
) -> float:
  """Forward FLOPs of the diffusion transformer for one clip."""
  d, n, s = width, tokens, text_tokens
  block = 2 * n * (4 * d * d + 2 * d * d + 2 * d * mlp)  # self, cross, MLP
  block += 2 * s * 2 * d * d  # keys and values of the text
  block += attention(tokens=n, text_tokens=s, width=d)
  ends = 2 * n * 2 * patch_volume * d
  ends += 2 * s * (text_width * d + d * d)
  ends += 2 * levels * (frequencies * d + d * d + 6 * d * d)
  return float(layers * block + ends)


def attention(*, tokens: int, text_tokens: int, width: int) -> float:
  """Forward FLOPs of the two attentions of a block, projections apart."""
  return 4.0 * tokens * (tokens + text_tokens) * width


def training(forward: float) -> float:
  """Model FLOPs of a training step: the backward pass counts twice."""
  return 3.0 * forward


def executed(forward: float, attended: float, *, remat: str) -> float:
  """FLOPs that a training step runs, with what it computes again.

  Args:
    forward: FLOPs of the forward pass.
    attended: those of them in attention kernels.
    remat: of the config. Where the kernels' residuals are saved, the forward
      pass runs again without them.

  A flash kernel's backward pass multiplies seven times where the forward pass
  does twice, since both its halves compute the logits again (Dao 2023, arXiv
  2307.08691, section 3.1, with the gradients of queries apart): one and a half
  forward passes more than is counted for the model.
  """
  again = {'none': 0.0, 'full': forward}.get(remat, forward - attended)
  return training(forward) + again + 1.5 * attended
