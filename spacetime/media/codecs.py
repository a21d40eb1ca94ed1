"""Codecs of the video streams that are written, and their colours."""

import fractions
from collections.abc import Iterator, Mapping

import av
import numpy as np

from spacetime import SettingError

# Suffix -> codec and its options. H.264 at CRF 16 is hard to distinguish from
# the source. Without `cpu-independent`, equal frames may give other bytes.
CODECS = {
  '.mp4': (
    'libx264',
    {'crf': '16', 'preset': 'medium', 'x264-params': 'cpu-independent=1'},
  ),
  '.webm': ('libvpx-vp9', {'crf': '20', 'b': '0', 'row-mt': '1'}),
}


def add_stream(
  container,
  suffix: str,
  *,
  rate: fractions.Fraction,
  height: int,
  width: int,
  options: Mapping[str, str] | None = None,
):
  """Adds a video stream to a container that is opened for writing.

  Players need even sides in YUV 4:2:0: an odd side gets one pixel more.

  Args:
    container: the container.
    suffix: a key of CODECS.
    rate: frames per second.
    height: height of the frames in pixels.
    width: width of the frames in pixels.
    options: options of the codec, beside those of CODECS.
  """
  codec, defaults = CODECS[suffix]
  stream = container.add_stream(
    codec, rate=rate, options=defaults | dict(options or {})
  )
  stream.height, stream.width = height + height % 2, width + width % 2
  stream.pix_fmt = 'yuv420p'
  context = stream.codec_context
  context.time_base = 1 / rate
  context.color_primaries = context.color_trc = context.colorspace = 1
  context.color_range = 1
  return stream


def video_frames(frames_FHWC: np.ndarray) -> Iterator[av.VideoFrame]:
  """Converts uint8 frames for a stream of add_stream, without timestamps.

  An odd side is padded by its last row or column.
  """
  height, width = frames_FHWC.shape[1:3]
  frames_FHWC = np.pad(
    frames_FHWC, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), 'edge'
  )
  for image_HWC in frames_FHWC:
    frame = av.VideoFrame.from_ndarray(
      np.ascontiguousarray(image_HWC), format='rgb24'
    )
    # BT.709, named in the file, else players guess and colours drift.
    yield frame.reformat(
      format='yuv420p', src_colorspace='ITU709', dst_colorspace='ITU709'
    )


def check_frames(frames_FHWC: np.ndarray) -> None:
  """Raises ValueError unless frames are uint8 (F, H, W, 3), at least one."""
  shape = np.shape(frames_FHWC)
  if len(shape) != 4 or shape[3] != 3 or 0 in shape:
    raise ValueError(f'frames are {shape}; expected (F, H, W, 3)')
  if frames_FHWC.dtype != np.uint8:
    raise ValueError(f'frames are {frames_FHWC.dtype}; expected uint8')


def frame_rate(fps: float) -> fractions.Fraction:
  """A frame rate as containers store it.

  Raises:
    SettingError: below 1/1000 or above 1000 frames per second.
  """
  if not 1e-3 <= fps <= 1000:
    raise SettingError('fps', fps, '0.001 to 1000')
  return fractions.Fraction(fps).limit_denominator(1001)
