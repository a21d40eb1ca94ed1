"""The digits world's data, shared by its experiments."""

# How often which frames are given.
GIVEN = dict(
  none=0.75, first=0.1, first_k=0.05, last_k=0.04, ends=0.03, random=0.03
)
SAFE = dict(skip_nan=True, spike=0.0)  # steps that are left out: config.py


def get_data(size: str, *, batch: int) -> dict:
  """The `data` section; `tiny` is a smaller world of a few clips."""
  tiny, mixed = 'tiny' in size, 'mixed' in size
  # What two cores can learn in an hour: the world's easier half.
  easy = size in ('cpu', 'bundled', 'mixed')
  fewer = (
    dict(sizes=('medium', 'large'), speeds=('fast',), cameras=('still',))
    if easy
    else {}
  )
  return dict(
    name='digits',
    dir='data',
    clips=32 if tiny else 20000,
    held_out_clips=16 if tiny else 512,
    world=dict(
      frames=5 if tiny else 17,
      height=32 if tiny else 64,
      width=32 if tiny else 64,
      max_characters=1 if tiny or easy else 3,
      **(dict(mixed=_sizes(tiny)) if mixed else {}),
      **fewer,
    ),
    batch_size=batch,
    caption_dropout=0.1,
    crop=None,
    fps=8,
    **(dict(packing=_packing(tiny)) if mixed else {}),
  )


def get_flow(size: str) -> dict:
  """Of pixels: why 30, see BUILD_NOTES.md; that is for 80 tokens."""
  reference = dict(reference=80) if 'mixed' in size else {}
  return dict(prediction='sample', std=1.8, shift=30.0, **reference)


def _sizes(tiny: bool) -> dict:
  """32 to 128 a side, 1 to 49 frames, images too; large clips are short."""
  if tiny:
    return dict(frames=(1, 9), height=(32, 48), width=(32, 64))
  return dict(frames=(1, 49), volume=49 * 64 * 64)


def _packing(tiny: bool) -> dict:
  """Rows of the longest clip or a little more: 2 % of them is padding."""
  if tiny:
    return dict(kind='rows', length=48, clips=4, frames=8, look_ahead=16)
  return dict(kind='rows', length=256, clips=4, frames=24, look_ahead=64)
