"""The digits world's data, shared by its experiments."""

# How often which frames are given.
GIVEN = dict(
  none=0.75, first=0.1, first_k=0.05, last_k=0.04, ends=0.03, random=0.03
)
# Where a model shall go on for a minute: with noise on some that are given.
GIVEN_LONG = dict(
  none=0.6,
  first=0.1,
  first_k=0.1,
  last_k=0.05,
  ends=0.1,
  random=0.05,
  noisy=0.3,
  noise=0.3,
  independent=0.05,
)
MIXED = ('tiny_mixed', 'mixed', 'bundled')
MOTIONS = (
  *('left', 'right', 'up', 'down'),
  *('up-left', 'up-right', 'down-left', 'down-right'),
  *('bouncing', 'still', 'circling'),
  *(3 * ('wandering',)),  # drawn three times as often as another
)
SAFE = dict(skip_nan=True, spike=0.0)  # steps that are left out: config.py


def get_data(size: str, *, batch: int) -> dict:
  """The `data` section; `tiny` is a smaller world of a few clips."""
  tiny, mixed = 'tiny' in size, size in MIXED
  # What two cores can learn in an hour: the world's easier half.
  easy = size in ('cpu', 'bundled', 'mixed')
  fewer = (
    dict(sizes=('medium', 'large'), speeds=('fast',), cameras=('still',))
    if easy
    else {}
  )
  if size == 'bundled':
    fewer['motions'] = MOTIONS
  return dict(
    name='digits',
    dir='data',
    clips=32 if tiny else 10**6 if size == 'bundled' else 20000,
    # A million is too many for files, and one reader too few for a GPU.
    **(dict(render='live', workers=14) if size == 'bundled' else {}),
    held_out_clips=16 if tiny else 512,
    world=dict(
      frames=5 if tiny else 17,
      height=32 if tiny else 64,
      width=32 if tiny else 64,
      max_characters=1 if tiny or easy else 3,
      **(dict(mixed=_sizes(size)) if mixed else {}),
      **fewer,
    ),
    batch_size=batch,
    caption_dropout=0.1,
    crop=None,
    fps=8,
    **(dict(packing=_packing(size)) if mixed else {}),
  )


def get_flow(size: str) -> dict:
  """Of pixels: why 30, see BUILD_NOTES.md; that is for 80 tokens."""
  if size == 'latent':
    return dict(prediction='velocity', shift=3.0)
  if size == 'bundled':
    # Of patches a quarter as large; more of what is seen through less noise.
    return dict(prediction='sample', std=2.0, shift=24.0, reference=320)
  reference = dict(reference=80) if size in MIXED else {}
  return dict(prediction='sample', std=1.8, shift=30.0, **reference)


def get_sampling(size: str) -> dict:
  """As many evaluations of the network as a user waits for."""
  solver = dict(solver='heun', steps=16)
  if size == 'bundled':
    solver = dict(solver='unipc', steps=16)
  shift = 3.0 if size == 'latent' else 24.0
  return dict(**solver, guidance=2.5, interval=(0.0, 1.0), shift=shift)


def _sizes(size: str) -> dict:
  """32 to 128 a side, 1 to 49 frames, images too; large clips are short. One
  size is never seen: what it then looks like tells whether sizes are learnt."""
  if 'tiny' in size:
    return dict(frames=(1, 9), height=(32, 48), width=(32, 64))
  return dict(frames=(1, 49), volume=49 * 64 * 64, held_out=((33, 48, 96),))


def _packing(size: str) -> dict:
  """Rows of the longest clip or a little more: 2 % of them is padding."""
  if 'tiny' in size:
    return dict(kind='rows', length=48, clips=4, frames=8, look_ahead=16)
  if size == 'bundled':
    return dict(kind='rows', length=1024, clips=6, frames=32, look_ahead=64)
  return dict(kind='rows', length=256, clips=4, frames=24, look_ahead=64)
