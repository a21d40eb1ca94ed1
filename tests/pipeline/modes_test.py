"""Conditioning modes: their conditioning videos and refusals."""

import dataclasses
import warnings

import numpy as np
import pytest
from PIL import Image

from spacetime.data import geometry
from spacetime.media import video_writer
from spacetime.pipeline import inputs, modes
from spacetime.pipeline.request import Request
from tests.corpus import media
from tests.diffusion.conditioning_test import CELLS, PIXELS
from tests.helpers import videos

GRID = geometry.Geometry(9, 32, 48, (4, 1, 1), (1, 16, 16))
CELL_GRID = geometry.Geometry(9, 32, 48, CELLS.stride, (1, 2, 2))


def request(strength=None, **settings):
  sampling = {} if strength is None else {'strength': strength}
  return Request(**settings, sampling=sampling)


def window(grid=GRID, codec=PIXELS, **settings):
  sampling_request = request(**settings)
  mode = modes.choose(sampling_request)
  target = modes.Target(mode, grid, codec, fps=8)
  return modes.condition(sampling_request, target)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """clip.webm-like PNG-exact clips of 14 and 6 frames, an image and masks."""
  path = tmp_path_factory.mktemp('modes')
  rng = np.random.default_rng(0)
  for name, frames, height, width in (
    ('long', 14, 32, 48),
    ('short', 6, 32, 48),
    ('one', 1, 32, 48),
    ('large', 9, 64, 96),
    ('tall', 9, 48, 32),
    ('small', 9, 16, 32),
  ):
    levels = rng.integers(40, 200, (frames, 1, 1, 3))
    clip = np.broadcast_to(levels, (frames, height, width, 3))
    video_writer.write_video(path / f'{name}.mp4', clip.astype(np.uint8), fps=8)
  image = np.zeros((32, 48, 3), np.uint8)
  image[:, :16] = 255
  Image.fromarray(image).save(path / 'mask.png')
  Image.fromarray(image[:16]).save(path / 'flat.png')
  Image.fromarray(0 * image).save(path / 'black.png')
  Image.fromarray(image).resize((96, 64)).save(path / 'mask_large.png')
  (path / 'text.png').write_text('no image')
  videos.sound_only(path / 'sound.mkv')
  long = (path / 'long.mp4').read_bytes()
  (path / 'half.mp4').write_bytes(long[: len(long) // 2])
  return path


def test_the_mode_follows_from_the_flags():
  assert modes.choose(request()) == 'text'
  assert modes.choose(request(image='a.png')) == 'image'
  assert modes.choose(request(mode='still', frames=1)) == 'still'
  assert window() is None and window(mode='still') is None


@pytest.mark.parametrize(
  'changes, text',
  [
    ({'mode': 'dream'}, "mode='dream': expected one of text, still, image"),
    ({'mode': 'extend'}, 'expected `video` too'),
    ({'mode': 'connect', 'video': 'a'}, 'expected `video2` too'),
    ({'mode': 'inpaint', 'video': 'a'}, 'expected `mask` too'),
    ({'mode': 'edit', 'video': 'a'}, 'expected `strength` too'),
    ({'mode': 'image'}, 'expected `image` too'),
    ({'video': 'a'}, 'expected none, since `mode`=text takes no files'),
    (
      {'mode': 'extend', 'video': 'a', 'mask': 'm'},
      'since `mode`=extend takes `video`, `cond_frames`;',
    ),
    ({'image_at': 'last'}, "image_at='last': expected none, since `mode`=text"),
    ({'mode': 'still', 'frames': 9}, 'frames=9: expected 1 with `mode`=still'),
  ],
)
def test_refuses_flags(changes, text):
  with pytest.raises(ValueError, match=text):
    modes.choose(request(**changes))


def test_every_mode_gives_something(folder):
  video, mask = str(folder / 'long.mp4'), str(folder / 'mask.png')
  cases = {
    'extend': ({}, 14 + 4, [0, 1, 2, 3, 4]),
    'extend_backward': ({}, 14 + 5, [5, 6, 7, 8]),
    'loop': ({'cond_frames': 3}, 14 + 3, [0, 1, 2, 6, 7, 8]),
    'connect': (
      {'video2': str(folder / 'short.mp4'), 'cond_frames': 3},
      20 + 3,
      [0, 1, 2, 6, 7, 8],
    ),
    'edit': ({'strength': 0.5, 'cond_frames': 4}, 14, [5, 6, 7, 8]),
  }
  for mode, (more, length, cond) in cases.items():
    result = window(mode=mode, video=video, **more)
    assert result.length == length, mode
    assert np.flatnonzero(result.cond_mask_FHW.all((1, 2))).tolist() == cond, (
      mode
    )
  result = window(mode='inpaint', video=video, mask=mask)
  expected = np.arange(48) >= 16
  assert (result.cond_mask_FHW == expected).all() and result.length == 9
  result = window(mode='edit', video=video, mask=mask, strength=0.5)
  assert (result.cond_mask_FHW == expected).all()
  # A mask of a video that is read smaller; what it touches is new.
  large = str(folder / 'large.mp4')
  result = window(
    mode='inpaint', video=large, mask=str(folder / 'mask_large.png')
  )
  assert (
    result.cond_mask_FHW[:, :, 18:].all()
    and not result.cond_mask_FHW[:, :, :16].any()
  )
  result = window(mode='outpaint', video=str(folder / 'small.mp4'))
  assert result.cond_mask_FHW[:, 8:24, 8:40].all()
  assert result.cond_mask_FHW.sum() == 9 * 16 * 32


@pytest.mark.parametrize(
  'settings',
  [
    {'mode': 'inpaint', 'mask': 'mask.png'},
    {'mode': 'edit', 'strength': 0.5},
    {'mode': 'outpaint'},
    {'mode': 'control'},
  ],
)
def test_the_rest_of_a_longer_video_is_reported(folder, settings):
  settings = dict(settings)
  if 'mask' in settings:
    settings['mask'] = str(folder / settings['mask'])
  size = (16, 32) if settings['mode'] == 'outpaint' else (32, 48)
  for count in (9, 10, 14):
    clip = np.full((count, *size, 3), 90, np.uint8)
    clip[:] += np.arange(count, dtype=np.uint8)[:, None, None, None]
    with warnings.catch_warnings(record=True) as record:
      warnings.simplefilter('always')
      result = window(video=clip, **settings)
    messages = [str(entry.message) for entry in record]
    assert result.length == 9 and len(messages) == (count > 9)
    for message in messages:
      assert 'all after its first 9 frames, 1.125 seconds, is left' in message


def test_an_image_is_held_for_a_latent_frame(folder):
  image = str(folder / 'mask.png')
  for at, known in (
    ('last', [5, 6, 7, 8]),
    ('first', [0]),
    (None, [0]),
    ('3', [1, 2, 3, 4]),
  ):
    result = window(image=image, image_at=at)
    assert np.flatnonzero(result.cond_mask_FHW[:, 0, 0]).tolist() == known


EDIT = {'mode': 'edit', 'video': 'long.mp4', 'strength': 0.5}


@pytest.mark.parametrize(
  'changes, text',
  [
    (
      {'mode': 'extend', 'video': 'none.mp4'},
      'video=.*none.mp4.: expected a video file; ',
    ),
    (
      {'mode': 'extend', 'video': 'text.png'},
      'video=.*text.png.: expected a video file; .* cannot be read as a video',
    ),
    ({'mode': 'edit', 'strength': 1.0, 'video': 'half.mp4'}, 'half.mp4 cannot'),
    (
      {'mode': 'outpaint', 'video': 'sound.mkv'},
      'video=.*: expected a video file; .*sound.mkv has no video stream',
    ),
    (
      {'mode': 'connect', 'video': 'long.mp4', 'video2': 'sound.mkv'},
      'video2=.*: expected a video file; .*sound.mkv has no video stream',
    ),
    (
      {'mode': 'extend', 'video': 'tall.mp4'},
      'tall.mp4.: expected the proportions of 48x32, not 32x48 pixels; crop '
      'it, or change `size`, such as `size`=32x48',
    ),
    (
      {'mode': 'extend', 'video': 'short.mp4', 'cond_frames': 7},
      'video=.*short.mp4.: expected 7 frames or more at 8 a second, not 6; the '
      'largest that fits is `cond_frames`=6',
    ),
    (
      {'mode': 'connect', 'video': 'long.mp4', 'video2': 'one.mp4'},
      'video2=.*one.mp4.: expected 4 frames or more at 8 a second, not 1; .*=1',
    ),
    (
      {'mode': 'loop', 'video': 'one.mp4'},
      'video=.*one.mp4.: expected 4 frames or more at 8 a second, not 1',
    ),
    (
      {'mode': 'connect', 'video': 'long.mp4', 'video2': 'tall.mp4'},
      'video2=.*tall.mp4.: expected the proportions',
    ),
    (
      {'mode': 'edit', 'video': 'short.mp4', 'strength': 0.5},
      'expected 9 frames or more .* the largest that fits is `frames`=5',
    ),
    (
      {'mode': 'extend', 'video': 'long.mp4', 'cond_frames': 0},
      'cond_frames=0: expected 1 or more',
    ),
    (
      {'mode': 'extend', 'video': 'long.mp4', 'cond_frames': 9},
      'cond_frames=9: expected at most 8 of the 9 .* `frames` of 13 or more',
    ),
    (
      {'mode': 'loop', 'video': 'long.mp4', 'cond_frames': 5},
      'cond_frames=5: expected at most 4 of the 9 .* `frames` of 13 or more',
    ),
    (EDIT | {'cond_frames': 9}, 'cond_frames=9: expected 0 to 8'),
    (
      EDIT | {'mask': 'flat.png'},
      'mask=.*flat.png.: expected 48x32 pixels, the size of `video`, or 48x32',
    ),
    (
      {'mode': 'inpaint', 'video': 'large.mp4', 'mask': 'flat.png'},
      'expected 96x64 pixels, .* or 48x32, .* generated, not 48x16',
    ),
    (EDIT | {'mask': 'none.png'}, 'mask=.*none.png: no such file'),
    (EDIT | {'mask': 'text.png'}, 'mask=.*text.png.: expected an image file'),
    (EDIT | {'mask': 'black.png'}, 'expected light pixels .*, not all black'),
    (
      {'mode': 'outpaint', 'video': 'long.mp4'},
      'expected less than the 48x32 pixels of the picture .*, not 48x32',
    ),
    (
      {'image': 'mask.png', 'image_at': '9'},
      "image_at='9': expected first, last or 0 to 8",
    ),
    ({'image': 'mask.png', 'image_at': 'mid'}, "image_at='mid': expected fir"),
    ({'image': 'none.png'}, 'image=.*none.png.: expected an image file; '),
    ({'image': 'long.mp4'}, 'long.mp4 cannot be read as an image'),
  ],
)
def test_refuses_files(changes, text, folder):
  for flag in ('video', 'video2', 'mask', 'image'):
    if changes.get(flag):
      changes = changes | {flag: str(folder / changes[flag])}
  with pytest.raises(ValueError, match=text):
    window(**changes)


@pytest.mark.parametrize(
  'mode, cond, known',
  [
    ('extend', 4, [0]),
    ('extend', 7, [0, 1, 2, 3, 4]),
    ('extend_backward', 7, [13, 14, 15, 16]),
    ('connect', 6, [0, 1, 2, 3, 4, 13, 14, 15, 16]),
    ('loop', 7, [0, 1, 2, 3, 4, 13, 14, 15, 16]),
  ],
)
def test_no_conditioning_frame_is_lost_in_a_latent_frame(
  folder, caplog, mode, cond, known
):
  grid = dataclasses.replace(CELL_GRID, frames=17)
  more = {'video2': str(folder / 'long.mp4')} if mode == 'connect' else {}
  video = str(folder / 'long.mp4')
  with caplog.at_level('WARNING', logger='absl'):
    result = window(
      grid, CELLS, mode=mode, video=video, cond_frames=cond, **more
    )
  assert (
    f'cond_frames={cond}: the autoencoder encodes 1 frame at the' in caplog.text
  )
  assert np.flatnonzero(result.cond_mask_FHW.all((1, 2))).tolist() == known
  # All frames of the videos, and of those the known ones once.
  new = 17 - len(known)
  assert result.length == new + (28 if mode == 'connect' else 14)


@pytest.mark.parametrize('orientation', range(2, 9))
def test_a_video_that_lies_is_taken_upright(tmp_path, orientation):
  upright_HWC = np.full((32, 48, 3), 50, np.uint8)
  upright_HWC[:16, :24, 0] = 200
  settings = {'orientation': orientation, 'count': 12}
  media.shown(tmp_path / 'a.mp4', upright_HWC, **settings)
  for more in ({'mode': 'extend'}, EDIT):
    result = window(**more | {'video': str(tmp_path / 'a.mp4')})
    output = result.assemble(result.frames_FHWC).astype(int)
    assert output.shape[1:] == (32, 48, 3)
    assert np.abs(output[:5] - upright_HWC).max() <= 12
  # What is upright after turning is judged by its proportions, too.
  media.shown(tmp_path / 'b.mp4', np.rot90(upright_HWC), **settings)
  with pytest.raises(ValueError, match='b.mp4.: expected the proportions'):
    window(mode='extend', video=str(tmp_path / 'b.mp4'))


def test_a_video_of_variable_rate_keeps_its_time(tmp_path):
  # At 8 a second: what stands at 0, 125, ... 625 ms, or comes within half a
  # period after, as frame 2 does at 375 ms, if it is nearer.
  path = videos.lossless(
    tmp_path / 'a.mkv',
    videos.gray_clip(6),
    fps=1000,
    times=[0, 200, 380, 420, 700, 800],
  )
  result = window(mode='extend', video=str(path), cond_frames=5)
  numbers = videos.frame_numbers(result.assemble(result.frames_FHWC))
  assert numbers[:6] == [0, 0, 1, 2, 3, 3]


def test_refuses_what_cells_cannot_hold(folder):
  with pytest.raises(ValueError, match='cond_frames=3: expected 4 or more'):
    window(
      CELL_GRID,
      CELLS,
      mode='extend_backward',
      video=str(folder / 'long.mp4'),
      cond_frames=3,
    )
  with pytest.raises(
    ValueError, match='a part of the video that stays: none of it'
  ):
    window(
      CELL_GRID,
      CELLS,
      **EDIT | {'video': str(folder / 'long.mp4'), 'cond_frames': 2},
    )
  one = dataclasses.replace(GRID, frames=1)
  with pytest.raises(
    ValueError, match='frames=1: expected 5 or more with `image`'
  ):
    window(one, image=str(folder / 'mask.png'))


def test_the_nearest_size_has_the_proportions():
  assert inputs.nearest_size(1080, 1920, GRID) == '48x32'
  wide = geometry.Geometry(9, 480, 832, (4, 8, 8), (1, 2, 2))
  assert inputs.nearest_size(1080, 1920, wide) == '848x480'
  assert inputs.nearest_size(1920, 1080, wide) == '480x848'


def test_default_frames_are_complete_latent_frames():
  grid = dataclasses.replace(GRID, frames=17)
  output = {
    mode: modes.default_cond_frames(mode, grid)
    for mode in ('extend', 'extend_backward', 'connect', 'loop')
  }
  assert output == {
    'extend': (9, 0),
    'extend_backward': (0, 8),
    'connect': (5, 4),
    'loop': (5, 4),
  }
  assert modes.default_cond_frames('loop', GRID) == (1, 4)
