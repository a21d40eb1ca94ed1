import numpy as np
import pytest

from spacetime.data.digits import glyphs


def test_glyphs_are_masks_of_all_ten_digits():
  glyph_NGG, digit_N = glyphs.load()
  assert glyph_NGG.shape == (1797, 8, 8)
  assert glyph_NGG.dtype == np.float32
  assert glyph_NGG.min() == 0 and glyph_NGG.max() == 1
  assert set(digit_N) == set(range(10))


def test_held_out_glyphs_are_every_fifth_of_a_class_and_no_training_glyph():
  digit_N = glyphs.load()[1]
  for digit in range(10):
    train = glyphs.indices(digit, held_out=False)
    held_out = glyphs.indices(digit, held_out=True)
    assert not set(train) & set(held_out)
    both = sorted([*train, *held_out])
    np.testing.assert_array_equal(both, np.flatnonzero(digit_N == digit))
    assert len(held_out) == len(both) // 5


def test_unknown_digit():
  with pytest.raises(ValueError, match='digit=10: expected 0 to 9'):
    glyphs.indices(10, held_out=False)


def test_extents_hold_the_ink():
  glyph_NGG, _ = glyphs.load()
  half_N2 = glyphs.extents()
  for n in range(0, 1797, 97):
    rows, columns = np.nonzero(glyph_NGG[n] > 0.125)
    for axis, cell in ((0, rows), (1, columns)):
      reach = (np.abs(cell - 3.5).max() + 0.5) / 8
      assert half_N2[n, axis] == pytest.approx(reach)
