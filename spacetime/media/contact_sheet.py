"""Clips -> one image: a row of frames for each, its caption above it."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from spacetime.media import codecs, video_writer

COLUMNS = 5  # frames of a clip


def draw(
  clips: Sequence[np.ndarray],
  captions: Sequence[str],
  *,
  columns: int = COLUMNS,
  scale: int = 2,
) -> np.ndarray:
  """One image of many clips: a row per clip, its caption above its frames.

  Args:
    clips: each uint8 (F, H, W, 3).
    captions: one per clip.
    columns: frames shown per clip, evenly from the first to the last.
    scale: enlargement, by nearest neighbour.

  Returns:
    uint8 (H, W, 3).

  Raises:
    ValueError: no clips, or not as many captions.
  """
  if not clips or len(clips) != len(captions):
    raise ValueError(
      f'{len(clips)} clips and {len(captions)} captions; expected as many, '
      'and at least one'
    )
  for frames_FHWC in clips:
    codecs.check_frames(frames_FHWC)
  gap, font = 4, ImageFont.load_default(14)
  rows = [_row(frames_FHWC, columns, scale, gap) for frames_FHWC in clips]
  width = max(row_HWC.shape[1] for row_HWC in rows)
  texts = [_wrap(text, font, width - 2 * gap) for text in captions]
  line = sum(font.getmetrics()) + 2
  height = sum(
    row_HWC.shape[0] + len(text) * line + 2 * gap
    for row_HWC, text in zip(rows, texts, strict=True)
  )
  sheet = Image.new('RGB', (width, height), 'white')
  pen, y = ImageDraw.Draw(sheet), 0
  for row_HWC, text in zip(rows, texts, strict=True):
    y += gap
    for words in text:
      pen.text((gap, y), words, fill='black', font=font)
      y += line
    sheet.paste(Image.fromarray(row_HWC), (0, y))
    y += row_HWC.shape[0] + gap
  return np.asarray(sheet)


def shown(frames_FHWC: np.ndarray, columns: int = COLUMNS) -> np.ndarray:
  """The frames of a clip that its row shows, from the first to the last."""
  picks = np.linspace(0, len(frames_FHWC) - 1, columns).round().astype(int)
  return frames_FHWC[picks]


def write(
  path: str | os.PathLike,
  clips: Sequence[np.ndarray],
  captions: Sequence[str],
  *,
  columns: int = COLUMNS,
  scale: int = 2,
) -> pathlib.Path:
  """Writes the contact sheet of the clips as an image."""
  sheet_HWC = draw(clips, captions, columns=columns, scale=scale)
  return video_writer.write_image(path, sheet_HWC)


# -- within --------------------------------------------------------------------


def _row(
  frames_FHWC: np.ndarray, columns: int, scale: int, gap: int
) -> np.ndarray:
  shown_FHWC = shown(frames_FHWC, columns).repeat(scale, 1).repeat(scale, 2)
  shown_FHWC = np.pad(
    shown_FHWC,
    ((0, 0), (0, 0), (gap // 2, gap // 2), (0, 0)),
    constant_values=255,
  )
  return np.concatenate(list(shown_FHWC), axis=1)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
  """Lines no wider than `width` pixels; a longer word is broken."""
  lines = ['']
  for word in text.split():
    longer = f'{lines[-1]} {word}'.strip()
    if font.getlength(longer) <= width:
      lines[-1] = longer
      continue
    if lines[-1]:
      lines.append('')
    for letter in word:
      if lines[-1] and font.getlength(lines[-1] + letter) > width:
        lines.append('')
      lines[-1] += letter
  return lines
