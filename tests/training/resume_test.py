"""A run that stops goes on as if it had not; on another mesh, nearly so."""

import json

import numpy as np
import pytest

from experiments import digits_pixels
from spacetime.training import run
from tests.helpers.training import (
  killed_after,
  leaves,
  limit_devices,
  losses,
)

pytestmark = pytest.mark.slow

STEPS = 4


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp('data'))


def config(data_dir, **values):
  config_dict = digits_pixels.get_config('tiny')
  config_dict.update_from_flattened_dict(
    {
      'data.dir': data_dir,
      'data.batch_size': 8,
      'train.steps': STEPS,
      'train.checkpoint_every': 2,
      'train.sheet_every': 0,
      'train.evaluate_every': 0,
      'train.pca_init_clips': 0,
      'optimizer.name': 'adamw',
    }
    | values
  )
  return config_dict


@pytest.fixture(scope='module')
def full(data_dir, tmp_path_factory):
  """(state, losses, work directory) of an uninterrupted run of two devices."""
  workdir = tmp_path_factory.mktemp('full')
  with pytest.MonkeyPatch.context() as patch:
    limit_devices(patch, 2)
    state = run.train(config(data_dir), str(workdir))
  return state, losses(workdir), workdir


def test_two_steps_and_two_are_four(data_dir, full, tmp_path, monkeypatch):
  limit_devices(monkeypatch, 2)
  workdir = killed_after(full[2], 2, tmp_path / 'run')
  state = run.train(config(data_dir), str(workdir))
  assert int(state.step) == STEPS
  for a, b in zip(leaves(state), leaves(full[0]), strict=True):
    np.testing.assert_array_equal(a, b)
  assert losses(workdir) == full[1]
  assert set(full[1]) == {1, 2, 3, 4}


def test_resumes_on_another_mesh(data_dir, full, tmp_path):
  """Of all axes, the state and each clip divided among devices."""
  workdir = killed_after(full[2], 2, tmp_path / 'run')
  sizes = {
    'mesh.data': 1,
    'mesh.fsdp': 2,
    'mesh.context': 2,
    'mesh.tensor': 2,
  }
  state = run.train(config(data_dir, **sizes), str(workdir))
  for a, b in zip(leaves(state.params), leaves(full[0].params), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  assert losses(workdir) == pytest.approx(full[1], rel=1e-4)
  kernel = state.params['dit']['blocks']['mlp_in']['kernel']
  assert kernel.addressable_shards[0].data.size == kernel.size // 8


def test_a_finished_run_does_nothing_more(data_dir, full, monkeypatch):
  limit_devices(monkeypatch, 2)
  state = run.train(config(data_dir), str(full[2]))
  assert int(state.step) == STEPS
  assert losses(full[2]) == full[1]


def test_refuses_a_work_directory_of_another_config(
  data_dir, full, monkeypatch
):
  limit_devices(monkeypatch, 2)
  other = config(data_dir, **{'optimizer.learning_rate': 0.5})
  with pytest.raises(ValueError, match='optimizer.learning_rate'):
    run.train(other, str(full[2]))
  saved = json.loads((full[2] / 'config.json').read_text())
  assert saved['optimizer']['learning_rate'] != 0.5


def test_goes_on_with_other_conditioning_frames(
  data_dir, full, tmp_path, monkeypatch
):
  limit_devices(monkeypatch, 2)
  workdir = killed_after(full[2], 2, tmp_path / 'run')
  shares = dict(none=0.0, first=1.0, first_k=0.0, last_k=0.0, ends=0.0)
  values = {
    f'conditioning.{k}': x for k, x in (shares | {'random': 0.0}).items()
  }
  state = run.train(config(data_dir, **values), str(workdir))
  assert int(state.step) == STEPS
  assert losses(workdir)[2] == full[1][2]
  assert losses(workdir)[4] != full[1][4]
  saved = json.loads((workdir / 'config.json').read_text())
  assert saved['conditioning']['first'] == 1.0


@pytest.mark.e2e
def test_overfits_a_handful_of_clips(data_dir, tmp_path, monkeypatch):
  limit_devices(monkeypatch, 1)
  config_dict = config(
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
  run.train(config_dict, str(tmp_path))
  seen = losses(tmp_path)
  assert seen[60] < 0.5 * seen[5]


@pytest.mark.e2e
def test_muon_and_principal_components_go_on_bit_for_bit(
  data_dir, tmp_path, monkeypatch
):
  """As the bundled model is trained, on one device."""
  limit_devices(monkeypatch, 1)
  values = {'optimizer.name': 'muon', 'train.pca_init_clips': 8}
  full = run.train(config(data_dir, **values), str(tmp_path / 'full'))
  workdir = killed_after(tmp_path / 'full', 2, tmp_path / 'parts')
  state = run.train(config(data_dir, **values), str(workdir))
  for a, b in zip(leaves(state), leaves(full), strict=True):
    np.testing.assert_array_equal(a, b)
  assert losses(workdir) == losses(tmp_path / 'full')


def test_refuses_more_principal_components_than_the_width(data_dir, tmp_path):
  values = {'train.pca_init_clips': 8, 'train.pca_init_rank': 49}
  with pytest.raises(ValueError, match='pca_init_rank=49: expected at most 48'):
    run.train(config(data_dir, **values), str(tmp_path / 'refused'))
  assert not (tmp_path / 'refused').exists()
