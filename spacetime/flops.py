"""Analytic FLOPs of the networks and peaks of the chips (stdlib only).

XLA's own count sees the body of a scan once and no Pallas kernel, so FLOPs
are counted here: two for a multiply and add, attention whole.
"""

# Dense bfloat16 peak of one JAX device, FLOP/s, by `device.device_kind`.
# Vendors' datasheets; a v4 or v5p device is a chip, a tpu7x device is half.
PEAKS = {
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5e': 197e12,
  'TPU v5': 459e12,
  'TPU v5p': 459e12,
  'TPU v6 lite': 918e12,
  'TPU v6e': 918e12,
  'TPU7x': 1153.5e12,
  'NVIDIA H100 80GB HBM3': 989e12,
  'NVIDIA H200': 989e12,
  'NVIDIA B200': 2250e12,
}


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
  block += 4 * n * n * d + 4 * n * s * d  # attention
  ends = 2 * n * 2 * patch_volume * d
  ends += 2 * s * (text_width * d + d * d)
  ends += 2 * levels * (frequencies * d + d * d + 6 * d * d)
  return float(layers * block + ends)


def training(forward: float) -> float:
  """Model FLOPs of a training step: the backward pass counts twice."""
  return 3.0 * forward


def utilisation(flops_per_second: float, *, kind: str, devices: int):
  """Model FLOPs utilisation in [0, 1]; None where the peak is not known."""
  peak = PEAKS.get(kind)
  return None if peak is None else flops_per_second / (peak * devices)
