"""Source 'cache': latents and captions that spacetime encode has written."""

from spacetime.data import latent_cache
from spacetime.data.clip_list import ClipList
from spacetime.data.settings import DataConfig
from spacetime.data.splits import Splits, first_captions

HAS_LATENTS = True
HAS_MIXED_SIZES = False
HAS_FILES = False


def open_splits(
  data: DataConfig,
  *,
  seed: int,
  embedded: bool = False,
  recorded: ClipList | None = None,
) -> Splits:
  """Opens a cache of latents."""
  del seed, recorded  # nothing is drawn, and a cache has one list
  cache = latent_cache.Cache(data.dir)
  train = cache.split('train')
  return Splits(
    train,
    cache.split('held_out'),
    [] if embedded else first_captions(train),
    identity=cache.identity,
    tokenizer=cache.tokenizer,
    empty_SY=cache.empty_SY if embedded else None,
    clips=ClipList(cache.identity),
  )


def prompt_grammar(data: DataConfig) -> None:
  """None: captions of a cache have no grammar."""


def prompt_vocabulary(data: DataConfig) -> None:
  """None: captions of a cache may have any words."""
