"""The digits world's data, shared by its experiments."""

MIXED = ('tiny_mixed', 'mixed', 'bundled')
MOTIONS = (
  *('left', 'right', 'up', 'down'),
  *('up-left', 'up-right', 'down-left', 'down-right'),
  *('bouncing', 'still', 'circling'),
  *(3 * ('wandering',)),  # drawn three times as often as another
)


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
    fewer |= dict(motions=MOTIONS, legs=0.75)
  return dict(
    name='digits',
    dir='data',
    clips=32 if tiny else 2 * 10**6 if size == 'bundled' else 20000,
    # Two millions are too many for files, and one reader too few for a GPU.
    **(dict(render='live', workers=14) if size == 'bundled' else {}),
    held_out_clips=16 if tiny else 512,
    frames=5 if tiny else 17,
    height=32 if tiny else 64,
    width=32 if tiny else 64,
    **(dict(mixed=_sizes(size)) if mixed else {}),
    world=dict(max_characters=1 if tiny or easy else 3, **fewer),
    batch_size=batch,
    caption_dropout=0.1,
    crop=None,
    fps=8,
    **(dict(packing=_packing(size)) if mixed else {}),
  )


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
