"""Decoded video frames -> RGB as shown: matrix, range, alpha, HDR."""

import functools

import av
import numpy as np
from av.video.reformatter import Colorspace

# Matrix coefficients by their code in ITU-T H.273, table 4.
MATRICES = {
  1: Colorspace.ITU709,
  4: Colorspace.FCC,
  5: Colorspace.ITU601,
  6: Colorspace.ITU601,
  7: Colorspace.SMPTE240M,
  9: Colorspace.BT2020,
}
UNSPECIFIED = (0, 2, 3)
# Transfer characteristics of HDR, table 3.
PQ, HLG = 16, 18
# Light of diffuse white in HDR, in nits: ITU-R BT.2408. It is SDR's white.
WHITE = 203.0
HLG_PEAK = 1000.0  # nits of the display that HLG is shown on
# The tone curve is straight up to here, and keeps the order of what is above.
KNEE = 0.9
DISPLAY_GAMMA = 2.4  # ITU-R BT.1886
# Linear light of other primaries (table 2) -> BT.709's.
TO_BT709 = {
  9: np.array(
    [
      [1.660491, -0.587641, -0.072850],
      [-0.124550, 1.132900, -0.008349],
      [-0.018151, -0.100579, 1.118730],
    ],
    np.float32,
  ),
  12: np.array(
    [
      [1.224940, -0.224940, 0.0],
      [-0.042057, 1.042057, 0.0],
      [-0.019638, -0.078636, 1.098274],
    ],
    np.float32,
  ),
}


def to_rgb(frame: av.VideoFrame) -> np.ndarray:
  """The pixels of a frame, uint8 (H, W, 3), as stored: not turned, not scaled.

  Frames without a stated matrix are BT.709 in high definition, and BT.601
  below, as players have it (mpv, `mp_csp_guess_colorspace`). HDR is tone-mapped
  to SDR; wide gamuts (BT.2020, Display P3) are converted to BT.709's. What is
  transparent is laid over white.

  Raises:
    ValueError: a colour matrix that is not converted, such as YCgCo.
  """
  options = {'src_colorspace': _matrix(frame)}
  if is_hdr(frame):
    signal_HWC = frame.to_ndarray(format='rgb48le', **options)
    return tone_map(
      signal_HWC, transfer=frame.color_trc, primaries=frame.color_primaries
    )
  if _has_alpha(frame):
    return over(frame.to_ndarray(format='rgba', **options), 255)
  if frame.color_primaries in TO_BT709:
    signal_HWC = frame.to_ndarray(format='rgb48le', **options)
    return to_bt709(signal_HWC, primaries=frame.color_primaries)
  return frame.to_ndarray(format='rgb24', **options)


def is_hdr(frame: av.VideoFrame) -> bool:
  """Whether a frame has a transfer function of HDR: PQ or HLG."""
  return frame.color_trc in (PQ, HLG)


def is_transparent(frame: av.VideoFrame) -> bool:
  """Whether any pixel of a frame is not opaque."""
  if not _has_alpha(frame):
    return False
  return bool(frame.to_ndarray(format='rgba')[..., 3].min() < 255)


def over(image_HWC: np.ndarray, ground: int) -> np.ndarray:
  """Lays uint8 (H, W, 4) over a plain gray: uint8 (H, W, 3)."""
  alpha_HWC = image_HWC[..., 3:]
  if alpha_HWC.min(initial=255) == 255:
    return np.ascontiguousarray(image_HWC[..., :3])
  alpha_HWC = alpha_HWC.astype(np.float32) / 255
  mixed = alpha_HWC * image_HWC[..., :3] + (1 - alpha_HWC) * np.float32(ground)
  return np.round(mixed).astype(np.uint8)


def from_srgb(signal: np.ndarray) -> np.ndarray:
  """Signals of sRGB, 0 to 1, -> light. Source: IEC 61966-2-1."""
  return np.where(
    signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4
  )


def to_srgb(light: np.ndarray) -> np.ndarray:
  """The inverse of from_srgb."""
  steep = 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055
  return np.where(light <= 0.0031308, 12.92 * light, steep)


def to_bt709(
  signal_HWC: np.ndarray, *, primaries: int, is_image: bool = False
) -> np.ndarray:
  """SDR signals of wide primaries -> those of BT.709; what lies outside of its
  gamut is clipped.

  Args:
    signal_HWC: full-range signals, uint16 (H, W, 3).
    primaries: code of the primaries, a key of TO_BT709.
    is_image: whether signals are those of sRGB, not of video.

  Returns:
    uint8 (H, W, 3).
  """
  result = np.empty(signal_HWC.shape, np.uint8)
  levels = np.arange(2**16) / (2**16 - 1)
  levels = from_srgb(levels) if is_image else levels**DISPLAY_GAMMA
  table = levels.astype(np.float32)
  for rows in range(0, len(signal_HWC), 128):  # bounds the memory
    light = table[signal_HWC[rows : rows + 128]] @ TO_BT709[primaries].T
    light = np.clip(light, 0, 1)
    shown = to_srgb(light) if is_image else light ** (1 / DISPLAY_GAMMA)
    result[rows : rows + 128] = np.round(255 * shown)
  return result


def tone_map(
  signal_HWC: np.ndarray, *, transfer: int, primaries: int = 9
) -> np.ndarray:
  """HDR signals -> SDR.

  Light is scaled so that diffuse white (203 nits, 75 % of HLG) becomes SDR's
  white, converted to BT.709's primaries, and compressed: with x the largest of
  a pixel's three, y = x up to KNEE k, and k + (1 - k) u / (1 + u) with
  u = (x - k) / (1 - k) above. The three keep their ratio. Diffuse white comes
  out as 250 of 255, and highlights lie above it. The result is encoded for a
  display of gamma 2.4.

  Args:
    signal_HWC: full-range signals, uint16 (H, W, 3).
    transfer: PQ or HLG.
    primaries: code of the primaries; BT.2020 if unspecified.

  Returns:
    uint8 (H, W, 3).

  Source: ITU-R BT.2100-2, tables 4 and 5 (PQ and HLG), BT.2408-7 (white).
  """
  result = np.empty(signal_HWC.shape, np.uint8)
  matrix = TO_BT709.get(9 if primaries in UNSPECIFIED else primaries)
  for rows in range(0, len(signal_HWC), 128):  # bounds the memory
    light = _linear(transfer)[signal_HWC[rows : rows + 128]]
    if transfer == HLG:
      luma = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
      light = light * (HLG_PEAK * luma[..., None] ** 0.2)
    light /= WHITE
    if matrix is not None:
      light = np.maximum(light @ matrix.T, 0)
    peak = light.max(axis=-1, keepdims=True)
    above = np.maximum(peak - KNEE, 0) / (1 - KNEE)
    mapped = np.minimum(peak, KNEE) + (1 - KNEE) * above / (1 + above)
    light *= mapped / np.maximum(peak, 1e-9)
    result[rows : rows + 128] = np.round(255 * light ** (1 / DISPLAY_GAMMA))
  return result


# -- within --------------------------------------------------------------------


def _matrix(frame: av.VideoFrame) -> Colorspace:
  """The matrix of a frame; of RGB it has no effect.

  Raises:
    ValueError: none that is converted.
  """
  code = frame.colorspace
  if code in MATRICES:
    return MATRICES[code]
  if is_hdr(frame) and code in UNSPECIFIED:
    return Colorspace.BT2020
  if code in UNSPECIFIED or frame.format.is_rgb:
    large = frame.width >= 1280 or frame.height > 576
    return Colorspace.ITU709 if large else Colorspace.ITU601
  raise ValueError(
    f'the colour matrix is code {code} of ITU-T H.273; expected one of '
    f'{", ".join(map(str, MATRICES))}, or none'
  )


def _has_alpha(frame: av.VideoFrame) -> bool:
  kinds = frame.format
  return kinds.has_palette or any(part.is_alpha for part in kinds.components)


@functools.cache
def _linear(transfer: int) -> np.ndarray:
  """Light of each 16-bit signal: nits (PQ), or of the scene, 0 to 1 (HLG)."""
  signal = np.arange(2**16) / (2**16 - 1)
  if transfer == HLG:
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    light = np.where(
      signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12
    )
  else:
    m1, m2 = 2610 / 16384, 2523 / 32
    c1, c2, c3 = 3424 / 4096, 2413 / 128, 2392 / 128
    root = signal ** (1 / m2)
    ratio = np.maximum(root - c1, 0) / (c2 - c3 * root)
    light = 10000 * ratio ** (1 / m1)
  return light.astype(np.float32)
