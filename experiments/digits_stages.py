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
SHIFTS = (4 / 3, 4 / 3, 4 / 3, 1.0, 0.5)
# (steps of each stage but the last, tokens of a batch in each stage). Batches
# are small, since on a CPU the number of steps limits what is learnt (see
# BUILD_NOTES.md).
CPU = ((900, 700, 400), (256, 256, 448, 640))
BUNDLED = ((1000, 800, 1700), (256, 256, 448, 640))
FULL = ((1000, 800, 1700, 6000), (256, 256, 448, 640, 640))
# Of packed rows, whose tokens are those of data.packing.
GPU = ((100, 100, 200, 600), (0, 0, 0, 0, 0))


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


def pair(share: float) -> dict:
  """Close-ups of two characters, side by side or one above the other."""
  return dict(
    share=share,
    framing='window',
    spread=0.5,
    height=48,
    width=48,
    world=EASY | dict(max_characters=2),
  )


def get_full_world() -> list[dict]:
  """All that the world holds, with half of the tokens for single characters."""
  return [
    centred(0.02),
    close(0.03),
    short(0.05),
    path_centred(0.08),
    clip(0.32),
    clip(0.07, cameras=MOVING_CAMERAS),
    pair(0.05),
    dict(share=0.05, height=64, width=64),
    clip(0.14, max_characters=2),
    dict(share=0.13, frames=17, height=64, width=64),
    dict(share=0.03, frames=17, height=48, width=96),
    dict(share=0.03, frames=33, height=64, width=64),
  ]


def get_stages(steps: tuple[int, ...], tokens: tuple[int, ...]) -> list[dict]:
  """Centred close-ups, close-ups, short clips, clips, and the whole world.

  Args:
    steps: of all stages but the last, which goes on to the end of the run;
      three leave the whole world out.
    tokens: of a batch in each.
  """
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
    get_full_world(),
  )
  return [
    dict(
      steps=count,
      tokens=budget,
      mix=mix,
      shift=SHIFTS[number],
      # Frames that are carried on from a first one teach to keep a shape.
      cond=0.8 if number >= 3 else 0.0,
    )
    for number, (count, budget, mix) in enumerate(
      zip((*steps, 1), tokens, mixtures[: len(steps) + 1], strict=True)
    )
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
