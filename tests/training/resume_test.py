"""A run that stops goes on as if it had not; on another mesh, nearly so."""

import json

import jax
import numpy as np
import pytest

from experiments import digits
from spacetime.training import metrics, run

STEPS = 4


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp('data'))


def config(data_dir, **values):
  made = digits.get_config('tiny')
  made.update_from_flattened_dict(
    {
      'data.dir': data_dir,
      'data.batch_size': 8,
      'train.steps': STEPS,
      'train.sheet_every': 0,
      'train.evaluate_every': 0,
      'train.pca_init_clips': 0,
      'optimizer.name': 'adamw',
    }
    | values
  )
  return made


def losses(workdir):
  lines = metrics.read_metrics(workdir)
  return {line['step']: line['loss'] for line in lines if 'loss' in line}


def stop_after(steps):
  calls = []

  def stop():
    calls.append(None)
    return len(calls) == steps

  return stop


def leaves(state):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


@pytest.fixture(scope='module')
def whole(data_dir, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  state = run.train(config(data_dir), str(workdir))
  return state, losses(workdir), workdir


def test_two_steps_and_two_are_four(data_dir, whole, tmp_path):
  first = run.train(config(data_dir), str(tmp_path), stop=stop_after(2))
  assert int(first.step) == 2
  second = run.train(config(data_dir), str(tmp_path))
  assert int(second.step) == STEPS
  for a, b in zip(leaves(second), leaves(whole[0]), strict=True):
    np.testing.assert_array_equal(a, b)
  assert losses(tmp_path) == whole[1]
  assert set(whole[1]) == {1, 2, 3, 4}


def test_resumes_on_another_mesh(data_dir, whole, tmp_path):
  run.train(config(data_dir), str(tmp_path), stop=stop_after(2))
  split = config(data_dir, **{'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2})
  second = run.train(split, str(tmp_path))
  for a, b in zip(leaves(second.params), leaves(whole[0].params), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  kernel = second.params['dit']['blocks']['mlp_in']['kernel']
  assert kernel.addressable_shards[0].data.size == kernel.size // 4


def test_context_and_fsdp_give_the_same_losses(data_dir, whole, tmp_path):
  sizes = {'mesh.data': 1, 'mesh.fsdp': 4, 'mesh.context': 2}
  run.train(config(data_dir, **sizes), str(tmp_path))
  for step, loss in losses(tmp_path).items():
    assert loss == pytest.approx(whole[1][step], rel=1e-4), step


def test_a_finished_run_does_nothing_more(data_dir, whole):
  state = run.train(config(data_dir), str(whole[2]))
  assert int(state.step) == STEPS
  assert losses(whole[2]) == whole[1]


def test_refuses_a_work_directory_of_another_config(data_dir, whole):
  other = config(data_dir, **{'optimizer.learning_rate': 0.5})
  with pytest.raises(ValueError, match='optimizer.learning_rate'):
    run.train(other, str(whole[2]))
  saved = json.loads((whole[2] / 'config.json').read_text())
  assert saved['optimizer']['learning_rate'] != 0.5


def test_overfits_a_handful_of_clips(data_dir, tmp_path):
  made = config(
    data_dir,
    **{
      'data.clips': 8,
      'data.caption_dropout': 0.0,
      'train.steps': 60,
      'train.log_every': 5,
      'optimizer.warmup': 5,
      'optimizer.learning_rate': 3e-3,
      'train.checkpoint_every': 0,
    },
  )
  run.train(made, str(tmp_path))
  seen = losses(tmp_path)
  assert seen[60] < 0.5 * seen[5]


def test_muon_and_principal_components_go_on_bit_for_bit(data_dir, tmp_path):
  """As the bundled model is trained."""
  values = {'optimizer.name': 'muon', 'train.pca_init_clips': 8}
  states = []
  for name, stops in (('whole', (None,)), ('parts', (2, None))):
    for stop in stops:
      state = run.train(
        config(data_dir, **values),
        str(tmp_path / name),
        **({'stop': stop_after(stop)} if stop else {}),
      )
    states.append(leaves(state))
  for a, b in zip(*states, strict=True):
    np.testing.assert_array_equal(a, b)
  assert losses(tmp_path / 'whole') == losses(tmp_path / 'parts')


def test_refuses_more_principal_components_than_the_width(data_dir, tmp_path):
  values = {'train.pca_init_clips': 8, 'train.pca_init_rank': 49}
  with pytest.raises(ValueError, match='pca_init_rank=49: expected at most 48'):
    run.train(config(data_dir, **values), str(tmp_path / 'refused'))
  assert not (tmp_path / 'refused').exists()
