"""Words and phrases of the digits world's captions."""

import functools
import itertools

from spacetime.data.digits import world

DIGIT_WORDS = (
  *('zero', 'one', 'two', 'three', 'four'),
  *('five', 'six', 'seven', 'eight', 'nine'),
)
COUNT_WORDS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven')

# Each motion's phrases: the participle, then the verb; '@' is where an adverb
# of speed goes. The first is the canonical one. No phrase of one motion is
# part of a phrase of another, so that captions name motions unambiguously.
MOTION_PHRASES = {
  'left': (
    ('moving@ left', 'moves@ left'),
    ('sliding@ to the left', 'slides@ to the left'),
    ('drifting@ leftward', 'drifts@ leftward'),
  ),
  'right': (
    ('moving@ right', 'moves@ right'),
    ('sliding@ to the right', 'slides@ to the right'),
    ('drifting@ rightward', 'drifts@ rightward'),
  ),
  'up': (
    ('moving@ up', 'moves@ up'),
    ('rising@ straight up', 'rises@ straight up'),
    ('floating@ upward', 'floats@ upward'),
  ),
  'down': (
    ('moving@ down', 'moves@ down'),
    ('sinking@ straight down', 'sinks@ straight down'),
    ('gliding@ downward', 'glides@ downward'),
  ),
  'up-left': (
    ('moving@ diagonally up and left', 'moves@ diagonally up and left'),
    ('sliding@ to the upper left', 'slides@ to the upper left'),
  ),
  'up-right': (
    ('moving@ diagonally up and right', 'moves@ diagonally up and right'),
    ('sliding@ to the upper right', 'slides@ to the upper right'),
  ),
  'down-left': (
    ('moving@ diagonally down and left', 'moves@ diagonally down and left'),
    ('sliding@ to the lower left', 'slides@ to the lower left'),
  ),
  'down-right': (
    ('moving@ diagonally down and right', 'moves@ diagonally down and right'),
    ('sliding@ to the lower right', 'slides@ to the lower right'),
  ),
  'bouncing': (
    ('bouncing@', 'bounces@'),
    ('hopping@', 'hops@'),
  ),
  'still': (
    ('standing still', 'stands still'),
    ('staying in place', 'stays in place'),
    ('resting', 'rests'),
  ),
  'circling': (
    ('circling@', 'circles@'),
    ('moving@ in a circle', 'moves@ in a circle'),
    ('going@ round', 'goes@ round'),
  ),
  'wandering': (
    ('wandering@ about', 'wanders@ about'),
    ('roaming@', 'roams@'),
  ),
}
SPEED_WORDS = {
  'slow': ('slowly', 'gently'),
  'fast': ('quickly', 'swiftly'),
}
CAMERA_PHRASES = {
  'still': ('the camera is still', 'the camera does not move'),
  **{
    f'pan {side}': (f'the camera pans {side}', f'the camera turns {side}')
    for side in ('left', 'right', 'up', 'down')
  },
  'zoom in': ('the camera zooms in', 'the camera moves closer'),
  'zoom out': ('the camera zooms out', 'the camera pulls back'),
}
SIZE_WORDS = {
  'small': ('small', 'tiny', 'little'),
  'medium': ('medium', 'medium-sized'),
  'large': ('large', 'big', 'huge'),
}
EXAMPLE = 'a small red 3 moves slowly left on a navy background'
# Words of captions that stand between those of the tables.
_BETWEEN = (
  'a an and at background behind bottom digit digits from front gradient in '
  'is left middle number numbers of on over right the there to top video while '
  'with'
)


@functools.cache
def words() -> frozenset[str]:
  """All words of captions, in lower case; digits as numerals too."""
  phrases = [
    _BETWEEN,
    *DIGIT_WORDS,
    *COUNT_WORDS,
    *map(str, range(10)),
    *(
      phrase.replace('@', '')
      for pairs in MOTION_PHRASES.values()
      for phrase in itertools.chain(*pairs)
    ),
    *(
      phrase
      for table in (SPEED_WORDS, CAMERA_PHRASES, SIZE_WORDS)
      for phrases in table.values()
      for phrase in phrases
    ),
    *world.COLOURS,
    *world.BACKGROUND_COLOURS,
  ]
  return frozenset(' '.join(phrases).split())
