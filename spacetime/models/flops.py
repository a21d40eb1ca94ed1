"""Analytic FLOPs of the networks (stdlib only).

XLA's own count sees the body of a scan once and no Pallas kernel. Here a
multiply-add is two FLOPs, and attention has no causal discount.
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
  timesteps: int,
  frequencies: int,
) -> float:
  """Forward FLOPs of the diffusion transformer for one clip.

  Args:
    tokens: N.
    text_tokens: S.
    width: D.
    layers: L.
    mlp: M.
    text_width: Y.
    patch_volume: V.
    timesteps: rows of the timestep table, such as latent frames.
    frequencies: features of the timestep embedding.
  """
  d, n, s = width, tokens, text_tokens
  block = 2 * n * (4 * d * d + 2 * d * d + 2 * d * mlp)  # self, cross, MLP
  block += 2 * s * 2 * d * d  # keys and values of the text
  block += attention(tokens=n, text_tokens=s, width=d)
  ends = 2 * n * 2 * patch_volume * d
  ends += 2 * s * (text_width * d + d * d)
  ends += 2 * timesteps * (frequencies * d + d * d + 6 * d * d)
  return float(layers * block + ends)


def attention(*, tokens: int, text_tokens: int, width: int) -> float:
  """Forward FLOPs of a block's two attentions, without projections."""
  return 4.0 * tokens * (tokens + text_tokens) * width


def training(forward: float) -> float:
  """Model FLOPs of a training step: the backward pass counts twice."""
  return 3.0 * forward


def executed_attention(attended: float, *, remat: str) -> float:
  """FLOPs that the attention kernels run in a training step.

  The backward pass of a flash kernel has seven products to two of the forward
  pass, since both its halves recompute the logits (Dao 2023, arXiv 2307.08691,
  section 3.1, with the gradients of queries apart): one and a half forward
  passes more than the model counts.

  Args:
    attended: FLOPs of the kernels in the forward pass.
    remat: model.remat. Only 'full' runs their forward pass twice.
  """
  return training(attended) + (1.5 + (remat == 'full')) * attended


def executed_dense(dense: float, *, remat: str, frozen: bool = False) -> float:
  """FLOPs that everything else runs in a training step.

  Args:
    dense: FLOPs of the forward pass without the attention kernels.
    remat: model.remat; all but 'none' run the forward pass twice.
    frozen: whether kernels have no gradients, below LoRA weights.
  """
  return (3 + (remat != 'none') - frozen) * dense
