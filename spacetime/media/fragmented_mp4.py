"""An MP4 that plays while it grows, and goes on after a kill.

It grows by fragments, each whole in itself (ISO/IEC 14496-12, 8.8), with an
encoder of its own: the bytes of one depend on its frames and on how many came
before, on nothing else. A file that is cut off after any of them goes on to the
bytes that it would have had.
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
  """How far a file has come.

  Attributes:
    fragments: that it has.
    frames: in them.
    size: of them, in bytes.
  """

  fragments: int = 0
  frames: int = 0
  size: int = 0


class Writer:
  """Appends fragments to a file, in memory constant in its length.

  Attributes:
    mark: after the last fragment.

  Args:
    path: FILE.mp4; what is there after `mark` is cut off.
    fps: frames a second.
    mark: where the file goes on.

  Raises:
    ValueError: the file is shorter than the mark.
  """

  def __init__(
    self, path: str | os.PathLike, *, fps: float, mark: Mark | None = None
  ):
    self.path = pathlib.Path(path)
    self.mark = mark or Mark()
    self._rate = codecs.check_fps(fps)
    self._container = self._stream = self._bytes = None
    self._frames = 0
    self.path.parent.mkdir(parents=True, exist_ok=True)
    size = self.path.stat().st_size if self.path.exists() else 0
    if size < self.mark.size:
      raise ValueError(
        f'{self.path} has {size} bytes: expected {self.mark.size} or more, as '
        'were written of it; remove it and what is beside it to begin anew'
      )
    with open(self.path, 'ab') as file:
      file.truncate(self.mark.size)

  def append(self, frames_FHWC: np.ndarray) -> None:
    """Encodes frames, uint8, as part of the fragment under way."""
    codecs.check_frames(frames_FHWC)
    if self._container is None:
      self._open(*frames_FHWC.shape[1:3])
    for frame in codecs.pictures(frames_FHWC):
      frame.pts = self.mark.frames + self._frames
      self._container.mux(self._stream.encode(frame))
      self._frames += 1

  def cut(self) -> None:
    """Ends the fragment under way and writes it; without frames, nothing."""
    if self._container is None:
      return
    self._container.mux(self._stream.encode())
    self._container.close()
    self._container, data = None, self._bytes.getvalue()
    if self.mark.fragments:
      # What opens the file stands in it once.
      data = data[_start(data, b'moof') :]
    with open(self.path, 'ab') as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
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
        # Else a fragment would begin at time 0.
        'avoid_negative_ts': 'make_non_negative',
      },
    )
    # Frames that look ahead would be decoded before the fragment begins.
    self._stream = codecs.add_stream(
      self._container,
      SUFFIX,
      rate=self._rate,
      height=height,
      width=width,
      options={'bf': '0'},
    )


def finish(path: str | os.PathLike, target: str | os.PathLike) -> pathlib.Path:
  """A file of fragments as an ordinary one, its index first; it is removed.

  Nothing is encoded again. The target appears whole or not at all.
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
  """Where the first box of a name begins."""
  at = 0
  while data[at + 4 : at + 8] != name:
    at += int.from_bytes(data[at : at + 4], 'big')
  return at
