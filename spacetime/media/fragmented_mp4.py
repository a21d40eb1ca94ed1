"""Fragmented MP4 files: playable while they grow, resumable after a kill.

The file grows by self-contained fragments (ISO/IEC 14496-12, 8.8). Each has its
own encoder: its bytes depend only on its frames and on the number of frames
before it. A file that is truncated after any fragment therefore continues to
the same bytes as one that was never interrupted.
"""

import dataclasses
import io
import os
import pathlib

import av
import numpy as np

from spacetime.media import codecs, files

SUFFIX = '.mp4'


@dataclasses.dataclass(frozen=True)
class Mark:
  """The end of the last complete fragment of a file.

  Attributes:
    fragments: number of fragments.
    frames: number of frames in them.
    size: their size in bytes.
  """

  fragments: int = 0
  frames: int = 0
  size: int = 0


class Writer:
  """Appends fragments to a file, in memory constant in its length.

  Attributes:
    mark: the end of the last fragment.

  Args:
    path: FILE.mp4; its bytes after `mark` are cut off.
    fps: frames per second.
    mark: end of the fragments to continue from; None starts a new file.

  Raises:
    ValueError: the file is shorter than the mark.
  """

  def __init__(
    self, path: str | os.PathLike, *, fps: float, mark: Mark | None = None
  ):
    self.path = pathlib.Path(path)
    self.mark = mark or Mark()
    self._rate = codecs.frame_rate(fps)
    self._container = self._stream = self._bytes = None
    self._frames = 0
    self.path.parent.mkdir(parents=True, exist_ok=True)
    size = self.path.stat().st_size if self.path.exists() else 0
    if size < self.mark.size:
      raise ValueError(
        f'{self.path} has {size} bytes: expected {self.mark.size} or more, '
        'which were written before; remove it and its .part files to start '
        'again'
      )
    with open(self.path, 'ab') as file:
      file.truncate(self.mark.size)

  def append(self, frames_FHWC: np.ndarray) -> None:
    """Encodes frames, uint8 (F, H, W, 3), into the current fragment."""
    codecs.check_frames(frames_FHWC)
    if self._container is None:
      self._open(*frames_FHWC.shape[1:3])
    for frame in codecs.video_frames(frames_FHWC):
      frame.pts = self.mark.frames + self._frames
      self._container.mux(self._stream.encode(frame))
      self._frames += 1

  def cut(self) -> None:
    """Ends the current fragment and writes it, if it has frames."""
    if self._container is None:
      return
    self._container.mux(self._stream.encode())
    self._container.close()
    self._container, data = None, self._bytes.getvalue()
    if self.mark.fragments:
      # The header of the file is written once.
      data = data[_start(data, b'moof') :]
    with open(self.path, 'ab', buffering=0) as file:
      try:
        rest = memoryview(data)
        while rest:
          rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
      except BaseException:  # such as a full disk
        file.truncate(self.mark.size)
        raise
    self.mark = Mark(
      self.mark.fragments + 1,
      self.mark.frames + self._frames,
      self.mark.size + len(data),
    )
    self._frames = 0

  def _open(self, height: int, width: int) -> None:
    self._bytes = io.BytesIO()
    self._container = av.open(
      self._bytes,
      'w',
      format=SUFFIX[1:],
      options={
        'movflags': 'empty_moov+default_base_moof+frag_discont+skip_trailer',
        'fragment_index': str(self.mark.fragments + 1),
        # Otherwise each fragment would start at time 0.
        'avoid_negative_ts': 'make_non_negative',
      },
    )
    # B-frames would be decoded before the fragment starts.
    self._stream = codecs.add_stream(
      self._container,
      SUFFIX,
      rate=self._rate,
      height=height,
      width=width,
      options={'bf': '0'},
    )


def finish(path: str | os.PathLike, target: str | os.PathLike) -> pathlib.Path:
  """Remuxes a file of fragments into an ordinary MP4 with its index first.

  Nothing is encoded again. `path` is removed when `target` is complete.
  """
  path, target = pathlib.Path(path), pathlib.Path(target)
  with (
    files.atomic_write(target) as temporary,
    av.open(os.fspath(path)) as source,
    av.open(
      os.fspath(temporary),
      'w',
      format=SUFFIX[1:],
      options={'movflags': '+faststart'},
    ) as container,
  ):
    stream = source.streams.video[0]
    copy = container.add_stream_from_template(stream)
    for packet in source.demux(stream):
      if packet.dts is not None:  # the last one is empty
        packet.stream = copy
        container.mux(packet)
  path.unlink()
  return target


def _start(data: bytes, name: bytes) -> int:
  """The offset of the first box of a name."""
  offset = 0
  while data[offset + 4 : offset + 8] != name:
    offset += int.from_bytes(data[offset : offset + 4], 'big')
  return offset
