"""The curriculum of the digits world's latent models, as `data.stages`.

The rule: at first everything that a caption does not say is fixed, so that each
word moves the mean picture; then one thing after another is freed, and a tenth
of what came before stays in the mixture. What it reaches: BUILD_NOTES.md.
"""

EASY = dict(
  max_characters=1,
  sizes=('medium', 'large'),
  speeds=('fast',),
  cameras=('still',),
)
TWO = EASY | dict(min_characters=2, max_characters=2)
# The two motions whose paths turn are the hardest: they come twice.
MOTIONS = (
  *('left', 'right', 'up', 'down'),
  *('up-left', 'up-right', 'down-left', 'down-right'),
  *('still', 'bouncing', 'circling', 'bouncing', 'circling'),
)
MOVING_CAMERAS = (
  'pan left',
  'pan right',
  'pan up',
  'pan down',
  'zoom in',
  'zoom out',
)
# Factors of flow.shift, by stage. A digit is decided at t = 0.3 to 0.7: a half
# brings 0.36 of the levels of a whole clip there, 1 only 0.15.
SHIFTS = (4 / 3, 4 / 3, 4 / 3, 1.0, 0.7)
# Chance of conditioning frames: frames that are carried on from a first one
# teach to keep a shape.
COND = (0.0, 0.0, 0.0, 0.8, 0.8)
# (steps of each stage but the last, tokens of a batch in each stage). Batches
# are small, since on a CPU the number of steps limits what is learnt (see
# BUILD_NOTES.md).
CPU = ((900, 700, 400), (256, 256, 448, 640))
BUNDLED = ((1000, 800, 1700), (256, 256, 448, 640))
# Steps of its fourth stage, and of those which get_bundled_stages adds.
BUNDLED_CLIPS, BUNDLED_LONG, BUNDLED_VARIED = 10500, 8000, 8500
PAIRS = ((2000, 1000, 1700), (256, 256, 448, 640))
# The last stage alone, from the weights of PAIRS.
FULL = ((), (640,))
# Of packed rows, whose tokens are those of data.packing.
GPU = ((150, 100, 200, 900), (0, 0, 0, 0, 0))


def centred(share: float = 1.0) -> dict:
  """Close-ups with the character in the middle."""
  return dict(
    share=share, framing='window', spread=0.0, height=32, width=32, world=EASY
  )


def close(share: float) -> dict:
  """Close-ups with the character anywhere."""
  return centred(share) | dict(spread=1.0)


def still(share: float) -> dict:
  """Whole scenes of one frame."""
  return dict(share=share, height=64, width=64, world=EASY)


def short(share: float) -> dict:
  """Nine frames with the middle of the path in the middle."""
  return dict(
    share=share,
    framing='window',
    spread=0.0,
    frames=9,
    height=40,
    width=40,
    world=EASY,
  )


def path_centred(share: float) -> dict:
  """Whole clips with the middle of the path in the middle."""
  return short(share) | dict(frames=17, height=64, width=64)


def clip(share: float, **world) -> dict:
  """Whole clips of whole scenes."""
  return dict(share=share, frames=17, height=64, width=64, world=EASY | world)


def one_of_two(kind: dict) -> dict:
  """The same around one of two characters, both of which the caption names.

  The picture holds one digit, which the caption names beside the colour that is
  seen: what binds a word to its neighbours is learnt as fast as the digits are.
  """
  return kind | dict(framing='one', world=TWO)


def pair(share: float) -> dict:
  """Close-ups of two characters, side by side or one above the other."""
  return dict(
    share=share,
    framing='window',
    spread=0.5,
    height=48,
    width=48,
    world=TWO,
  )


def short_pair(share: float) -> dict:
  """Nine frames of two characters."""
  return pair(share) | dict(frames=9, height=56, width=56)


def get_full_world() -> list[dict]:
  """All that the world holds, with half of the tokens for single characters."""
  everything = dict(
    max_characters=1,
    sizes=('small', 'medium', 'large'),
    speeds=('slow', 'fast'),
    motions=MOTIONS,
  )
  return [
    close(0.02),
    path_centred(0.05),
    clip(0.14, motions=MOTIONS),
    clip(0.12, **everything),
    clip(0.12, cameras=MOVING_CAMERAS),
    clip(0.03, motions=('wandering',)),
    pair(0.08),
    short_pair(0.1),
    dict(share=0.04, height=64, width=64),
    clip(0.14, max_characters=2),
    dict(share=0.1, frames=17, height=64, width=64),
    dict(share=0.02, frames=17, height=48, width=80),
    dict(share=0.02, frames=17, height=80, width=48),
    dict(share=0.02, frames=33, height=64, width=64),
  ]


def get_stages(
  steps: tuple[int, ...],
  tokens: tuple[int, ...],
  *,
  characters: int = 1,
  first: int = 0,
) -> list[dict]:
  """Centred close-ups, close-ups, short clips, clips, the whole world.

  Args:
    steps: of all stages but the last, which goes on to the end of the run;
      those after it are left out.
    tokens: of a batch in each.
    characters: 1, or 2 at most, in all stages but the whole world.
    first: number of stages that are left out at the beginning.
  """
  if characters == 1:
    mixtures = (
      [centred()],
      [centred(0.3), close(0.7)],
      [centred(0.1), close(0.3), still(0.05), short(0.55)],
      [
        centred(0.02),
        close(0.08),
        still(0.1),
        short(0.2),
        path_centred(0.2),
        clip(0.4),
      ],
    )
  else:
    mixtures = (
      [centred(0.4), one_of_two(centred(0.6))],
      [
        centred(0.15),
        close(0.3),
        one_of_two(centred(0.2)),
        one_of_two(close(0.35)),
      ],
      [
        close(0.1),
        one_of_two(close(0.15)),
        still(0.05),
        pair(0.1),
        short(0.25),
        one_of_two(short(0.25)),
        short_pair(0.1),
      ],
      [
        close(0.04),
        one_of_two(close(0.06)),
        still(0.05),
        still(0.05) | dict(world=TWO),
        short(0.08),
        one_of_two(short(0.08)),
        short_pair(0.06),
        path_centred(0.1),
        clip(0.22),
        clip(0.26, **TWO),
      ],
    )
  mixtures = (*mixtures, get_full_world())
  return [
    dict(
      steps=count,
      tokens=budget,
      mix=mixtures[number],
      shift=SHIFTS[number],
      cond=COND[number],
    )
    for number, (count, budget) in enumerate(
      zip((*steps, 1), tokens, strict=True), first
    )
  ]


def get_varied(legs: float = 0.0) -> list[dict]:
  """What the bundled model sees at last: one character, much of it moving.

  Args:
    legs: World.legs of wandering characters.
  """
  return [
    close(0.04),
    still(0.08),
    short(0.05),
    path_centred(0.06),
    clip(0.15),
    clip(0.23, motions=MOTIONS),
    clip(0.1, cameras=MOVING_CAMERAS),
    clip(0.12, motions=('bouncing', 'circling')),
    clip(0.08, motions=('wandering',), **(dict(legs=legs) if legs else {})),
    clip(0.02) | dict(height=48, width=80),
    clip(0.02) | dict(height=80, width=48),
    clip(0.02) | dict(height=96, width=64),
    clip(0.03) | dict(frames=33),
  ]


def get_bundled_stages() -> list[dict]:
  """BUNDLED, and then more whole clips, half of them with conditioning frames.

  At the end most clips are whole, the hard motions come more often, and noise
  levels are lower: what is left is to keep a shape from frame to frame. The
  last two stages add wandering characters, which long videos need, a moving
  camera, and other sizes, so that positions and durations vary.
  """
  stages = get_stages(*BUNDLED)
  tokens = BUNDLED[1][-1]
  # Of conditioning.none = 0.4: a third of the clips, and a half.
  stages[-1] |= dict(steps=BUNDLED_CLIPS, cond=0.53)
  clips = [
    close(0.04),
    still(0.08),
    short(0.1),
    path_centred(0.1),
    clip(0.3),
    clip(0.38, motions=MOTIONS),
  ]
  last = dict(tokens=tokens, shift=0.7, cond=0.8)
  return [
    *stages,
    last | dict(steps=BUNDLED_LONG, mix=clips),
    last | dict(steps=BUNDLED_VARIED, mix=get_varied()),
    # Three of four wandering clips have legs: what follows another motion.
    last | dict(steps=1, mix=get_varied(legs=0.75)),
  ]


def get_camera_clips(share: float, *, centred: float) -> list[dict]:
  """Clips with a moving camera.

  Args:
    share: of all of them.
    centred: the part of it that shows a character which stands still, with the
      middle of its path in the middle: the mean clip depends on the camera
      alone.
  """
  moving = dict(cameras=MOVING_CAMERAS)
  stands = EASY | moving | dict(motions=('still',))
  rest = share * (1 - centred)
  return [
    path_centred(round(share * centred, 4)) | dict(world=stands),
    clip(round(0.4 * rest, 4), motions=('still',), **moving),
    clip(round(0.6 * rest, 4), **moving),
  ]


def get_deep_stages() -> list[dict]:
  """Moving cameras in half of the tokens, then in a third.

  A tenth did not teach them, and nor did half of the clips while everything
  else varied (BUILD_NOTES.md): the camera's word has to move the mean clip, as
  the motion's word did.
  """
  rest = (
    close(0.06),
    still(0.1),
    short(0.05),
    path_centred(0.05),
    clip(0.2),
    clip(0.2, motions=MOTIONS),
    clip(0.12, motions=('bouncing', 'circling')),
    clip(0.12, motions=('wandering',), legs=0.75),
    clip(0.02) | dict(height=48, width=80),
    clip(0.02) | dict(height=80, width=48),
    clip(0.02) | dict(height=96, width=64),
    clip(0.04) | dict(frames=33),
  )

  def stage(steps: int, share: float, *, centred: float, **values) -> dict:
    others = [
      kind | dict(share=round(kind['share'] * (1 - share), 4)) for kind in rest
    ]
    mix = [*get_camera_clips(share, centred=centred), *others]
    return dict(steps=steps, tokens=BUNDLED[1][-1], mix=mix, **values)

  return [
    stage(9000, 0.55, centred=0.5, shift=1.2, cond=0.6),
    stage(1, 0.35, centred=0.25, shift=0.7, cond=0.8),
  ]


def get_tiny_stages() -> list[dict]:
  """Seconds, for tests: two stages of two sizes."""
  tiny = dict(framing='window', height=16, width=16, world=EASY)
  return [
    dict(steps=2, tokens=32, mix=[tiny | dict(spread=0.0)], cond=0.0),
    dict(
      steps=1,
      tokens=32,
      mix=[tiny, dict(frames=5, height=32, width=32, world=EASY)],
      shift=2.0,
    ),
  ]


def get_autoencoder_stages() -> list[dict]:
  """Windows near characters of the whole world at many sizes and speeds."""
  others = [
    (9, 32, 32),
    (13, 48, 64),
    (25, 96, 64),
    (33, 64, 128),
    (49, 96, 96),
    (17, 128, 128),
  ]
  near = dict(framing='near', frames=9, height=32, width=32)
  mix = [near | dict(share=0.6)] + [
    near
    | dict(
      share=0.4 / len(others),
      world=dict(frames=frames, height=height, width=width),
    )
    for frames, height, width in others
  ]
  return [dict(steps=1, mix=mix)]
