"""The digits world from cached latents: the same run as from pixels."""

import json
import shutil

import jax
import numpy as np
import pytest

from experiments import digits_pixels
from spacetime import checkpoint
from spacetime.checkpoint import export
from spacetime.config import parse
from spacetime.data import latent_cache
from spacetime.pipeline import encoder as encoder_lib
from spacetime.pipeline import precompute
from spacetime.training import init_state, metrics, run, setup
from tests.helpers import training


@pytest.fixture(scope='module', autouse=True)
def two_devices():
  with pytest.MonkeyPatch.context() as patch:
    training.limit_devices(patch, 2)
    yield


def config(folder, **values):
  experiment = digits_pixels.get_config('tiny')
  experiment.update_from_flattened_dict(
    {
      'data.dir': str(folder / 'data'),
      'data.batch_size': 8,
      'train.steps': 2,
      'train.log_every': 1,
      'train.evaluate_every': 2,
      'train.sheet_every': 0,
      'train.pca_init_clips': 8,
      'optimizer.name': 'adamw',
    }
    | values
  )
  return experiment


def losses(workdir):
  return [
    value
    for line in metrics.read_metrics(workdir)
    for name, value in sorted(line.items())
    if 'loss' in name
  ]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """DIR/data, DIR/cache, and DIR/run from pixels."""
  folder = tmp_path_factory.mktemp('digits')
  run.train(config(folder), str(folder / 'run'))
  encoder = encoder_lib.open_encoder(str(folder / 'run'))
  data = parse.experiment(config(folder)).data
  for text in ('captions', 'embeddings'):
    precompute.write_cache(
      encoder, data, folder / text, text=text, batch_size=3, shard=16
    )
  return folder


def test_latents_in_a_cache_give_the_same_run(folder, tmp_path):
  cached = {'data.name': 'cache', 'data.dir': str(folder / 'captions')}
  run.train(config(folder, **cached), str(tmp_path))
  expected = losses(folder / 'run')
  assert len(expected) == 2 + 7
  np.testing.assert_allclose(losses(tmp_path), expected, rtol=1e-4)
  tokenizers = [p / 'tokenizer.model' for p in (folder / 'run', tmp_path)]
  assert tokenizers[0].read_bytes() == tokenizers[1].read_bytes()


def test_a_run_starts_from_a_model_of_our_own(folder, tmp_path):
  """With its text encoder frozen and embedded: the transformer goes on."""
  embedded = {'data.name': 'cache', 'data.dir': str(folder / 'embeddings')}
  ready = setup.check(
    parse.experiment(config(folder, **embedded)),
    str(tmp_path / 'both'),
    init_from=str(folder / 'run'),
  )
  at = init_state.init_state(ready, None, jax.random.key(0))
  assert set(at.params) == {'dit', 'text'} and int(at.step) == 0
  # A cache of another frame rate: what is exported has it.
  slow = tmp_path / 'slow'
  shutil.copytree(folder / 'embeddings', slow)
  info = json.loads((slow / latent_cache.FILE).read_text()) | {'fps': 4}
  (slow / latent_cache.FILE).write_text(json.dumps(info))
  embedded |= {'data.dir': str(slow), 'data.fps': 4}
  experiment = config(folder, **embedded, **{'train.sheet_every': 2})
  with experiment.unlocked():
    experiment.text.kind = 'frozen'
  state = run.train(
    experiment, str(tmp_path / 'run'), checkpoint=str(folder / 'run')
  )
  assert set(state.params) == {'dit'}
  assert (tmp_path / 'run/sheets/0000002.png').exists()
  first, last = (losses(p)[0] for p in (folder / 'run', tmp_path / 'run'))
  assert last < first
  export.export(str(tmp_path / 'run'), tmp_path / 'out')
  assert checkpoint.read_experiment(tmp_path / 'out').data.fps == 4
