"""Random videos against a plain reference: timing, turns, pixel aspect."""

import bisect
import dataclasses
import fractions
import os
import pathlib
import tempfile

import hypothesis
import numpy as np
from hypothesis import strategies

from spacetime.media import video_reader
from tests.corpus import media
from tests.helpers import videos

# A run for a release sets 2000.
EXAMPLES = int(os.environ.get('SPACETIME_TEST_EXAMPLES', '25'))
SETTINGS = hypothesis.settings(
  max_examples=EXAMPLES,
  derandomize=True,
  deadline=None,
  database=None,
)
X264 = ('libx264', 'yuv444p', {'crf': '4', 'preset': 'ultrafast'})
FORMATS = {
  '.mp4': X264,
  '.mov': X264,
  '.mkv': X264,
  '.ts': X264,
  '.avi': ('ffv1', 'bgr0', {}),
  '.gif': ('gif', 'gray', {}),
}
# Seconds by which a container rounds a time, or more.
ROUNDING = {'.mkv': 1e-3, '.gif': 6e-3}
NTSC = fractions.Fraction(30000, 1001)
RATES = [5, 8, 10, 12, 16, 24, 25, NTSC, 30, 50]


@dataclasses.dataclass(frozen=True)
class Video:
  """Frames at `times`, in periods of the rate from 0 on."""

  suffix: str
  rate: fractions.Fraction
  times: tuple[int, ...]
  offset: int
  b_frames: int
  orientation: int
  pixel_aspect: fractions.Fraction

  @property
  def seconds(self) -> list[float]:
    return [float(t / self.rate) for t in self.times]

  @property
  def is_constant(self) -> bool:
    return self.times == tuple(range(len(self.times)))

  def write(self, folder) -> pathlib.Path:
    codec, pixels, options = FORMATS[self.suffix]
    if codec == 'libx264':
      options = options | {'bf': str(self.b_frames), 'g': '4'}
    matrix, stored = media.ORIENTATIONS[self.orientation]
    frames = [
      np.ascontiguousarray(stored(picture(i))) for i in range(len(self.times))
    ]
    return videos.encode(
      pathlib.Path(folder) / f'a{self.suffix}',
      np.stack(frames),
      codec=codec,
      pixels=pixels,
      options=options,
      fps=self.rate,
      times=[self.offset + t for t in self.times],
      matrix=None if self.orientation == 1 else matrix,
      pixel_aspect=self.pixel_aspect,
    )


def picture(number) -> np.ndarray:
  """Gray by the number, with a white quarter at the upper left."""
  image_HWC = np.full((32, 48, 3), 8 * number, np.uint8)
  image_HWC[:16, :24] = 255
  return image_HWC


@strategies.composite
def video_files(draw):
  suffix = draw(strategies.sampled_from(sorted(FORMATS)))
  # FFmpeg does not know a transport stream of a few packets.
  count = draw(strategies.integers(4 if suffix == '.ts' else 1, 12))
  steps = [1] * (count - 1)
  # AVI has one rate, and a GIF's first delay is not stored.
  if suffix not in ('.avi', '.gif') and draw(strategies.booleans()):
    steps = draw(
      strategies.lists(
        strategies.integers(1, 4), min_size=count - 1, max_size=count - 1
      )
    )
  offsets = [0] if suffix in ('.avi', '.gif') else [0, 1, 100]
  shown = suffix in ('.mp4', '.mov')
  aspects = [1] if suffix in ('.gif', '.avi', '.ts') else [1, 2, (4, 3), (8, 9)]
  aspect = draw(strategies.sampled_from(aspects))
  return Video(
    suffix,
    fractions.Fraction(draw(strategies.sampled_from(RATES))),
    tuple(int(t) for t in np.cumsum([0, *steps])),
    draw(strategies.sampled_from(offsets)),
    draw(strategies.sampled_from([0, 2])),
    draw(strategies.integers(1, 8)) if shown else 1,
    fractions.Fraction(*aspect)
    if isinstance(aspect, tuple)
    else fractions.Fraction(aspect),
  )


def check(video: Video, numbers, *, fps, start, seconds):
  """Nearest in time if less than half a period away, else the last before."""
  times, slack = video.seconds, 2 * ROUNDING.get(video.suffix, 1e-4) + 1.1e-3
  for k, number in enumerate(numbers):
    at = start + k / fps
    distance = abs(times[number] - at)
    nearest = min(abs(time - at) for time in times)
    shown = {
      max(0, bisect.bisect_right(times, at + shift) - 1)
      for shift in (-slack, 0, slack)
    }
    is_nearest = nearest < 0.5 / fps + slack and distance <= nearest + slack
    is_shown = nearest > 0.5 / fps - slack and number in shown
    assert is_nearest or is_shown, (k, at, number, times)
  expected = (seconds - start) * fps
  assert abs(len(numbers) - max(expected, 0.5)) <= 0.5 + slack * fps


@hypothesis.given(
  video=video_files(),
  fps=strategies.sampled_from([4, 8, 10, 16, 24, 30, 60]),
  part=strategies.sampled_from([0, 0, 0.3, 0.8]),
)
@SETTINGS
def test_frames_are_those_of_their_times(video, fps, part):
  with tempfile.TemporaryDirectory() as folder:
    path = video.write(folder)
    info = video_reader.probe(path)
    tail = info.seconds - video.seconds[-1]
    assert 0.4 / video.rate < tail < 4.5 / video.rate + 0.02
    start = part * video.seconds[-1]
    video_FHWC = video_reader.read_video(path, fps=fps, start=start)
    own_FHWC = video_reader.read_video(path, fps=float(video.rate))
    cut_FHWC = video_reader.read_video(
      path, fps=fps, start=start, frames=1, height=16, width=24
    )
  dark_FHWC = video_FHWC[:, -12:, -12:]
  numbers = videos.frame_numbers(dark_FHWC)
  check(video, numbers, fps=fps, start=start, seconds=info.seconds)
  if video.is_constant:
    own = videos.frame_numbers(own_FHWC[:, -12:, -12:])
    assert own == list(range(len(video.times)))
  # The white quarter is at the upper left, and only there.
  height, width = video_FHWC.shape[1:3]
  sideways = video.orientation >= 5
  stored = (48, 32) if sideways else (32, 48)
  shown = (stored[0], round(stored[1] * video.pixel_aspect))
  assert (height, width) == (shown[::-1] if sideways else shown)
  assert (info.height, info.width) == (height, width)
  for image_HWC in (video_FHWC[0], cut_FHWC[0]):
    quarters = [
      part.mean()
      for half in np.array_split(image_HWC, 2)
      for part in np.array_split(half, 2, axis=1)
    ]
    assert np.argmax(quarters) == 0 and quarters[0] > 200
