"""The digits world's data, shared by its experiments."""

SAFE = dict(skip_nan=True, spike=0.0)  # steps that are left out: config.py


def get_data(size: str, *, batch: int) -> dict:
  """The `data` section; `tiny` is a smaller world of a few clips."""
  tiny = size == 'tiny'
  # What two cores can learn in an hour: the world's easier half.
  easy = size in ('cpu', 'bundled')
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
      **fewer,
    ),
    batch_size=batch,
    caption_dropout=0.1,
    crop=None,
    fps=8,
  )
