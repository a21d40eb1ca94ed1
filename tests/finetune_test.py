"""Training that starts from weights: published ones and our own."""

import json

import finetuned
import jax
import numpy as np
import published_folder
import pytest

from spacetime import build, checkpoint, plan, sharding, train
from spacetime.interop import folders
from spacetime.training import metrics

FORMS = {'2.1': published_folder.VAE, '2.2': published_folder.VAE22}
LORA = {'lora.rank': 2, 'lora.alpha': 6.0, 'lora.dropout': 0.1}
KINDS = {'whole': {}, 'lora': LORA}


CASES = [('2.1', 'whole'), ('2.1', 'lora'), ('2.2', 'whole')]


@pytest.fixture(scope='module', params=CASES, ids='-'.join)
def case(request):
  return request.param


@pytest.fixture(scope='module')
def form(case):
  return case[0]


@pytest.fixture(scope='module')
def kind(case):
  return case[1]


@pytest.fixture(scope='module')
def folder(form, tmp_path_factory):
  parent = tmp_path_factory.mktemp('finetune')
  return finetuned.write(parent / 'all', vae=FORMS[form])


@pytest.fixture(scope='module')
def whole(form, kind, folder, tmp_path_factory):
  """Four steps at a stretch, from the published folder."""
  workdir = tmp_path_factory.mktemp('whole')
  state = train.run(
    finetuned.config(folder, vae=FORMS[form], **KINDS[kind]),
    str(workdir),
    start=str(folder / 'wan'),
  )
  return state, workdir


def leaves(tree):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def stop_after(steps):
  calls = []

  def stop():
    calls.append(None)
    return len(calls) == steps

  return stop


def losses(workdir):
  lines = metrics.read_metrics(workdir)
  return {line['step']: line['loss'] for line in lines if 'loss' in line}


def published(folder):
  mesh = sharding.make_mesh(
    sharding.MeshConfig(data=1), devices=jax.devices()[:1]
  )
  return folders.open_part(folder / 'wan', 'transformer').load(mesh)


def test_two_steps_and_two_are_four(form, kind, folder, whole, tmp_path):
  made = finetuned.config(folder, vae=FORMS[form], **KINDS[kind])
  workdir = str(tmp_path / 'run')
  train.run(made, workdir, start=str(folder / 'wan'), stop=stop_after(2))
  moved = folder / 'wan'
  if kind == 'whole':  # which needs the weights that it began with no more
    moved = moved.rename(tmp_path / 'elsewhere')
  try:
    made = finetuned.config(folder, vae=FORMS[form], **KINDS[kind])
    second = train.run(made, workdir)
  finally:
    if kind == 'whole':
      moved.rename(folder / 'wan')
  assert int(second.step) == 4
  for a, b in zip(leaves(second), leaves(whole[0]), strict=True):
    np.testing.assert_array_equal(a, b)
  assert losses(workdir) == losses(whole[1])


def test_only_what_is_trained_is_in_the_checkpoint(kind, folder, whole):
  state, workdir = whole
  roots = {'whole': {'dit'}, 'lora': {'lora'}}[kind]
  assert set(state.params) == set(state.ema) == roots
  saved = checkpoint._saved_shapes(
    checkpoint._absolute(workdir) / 'checkpoints' / '4'
  )
  trees = {key.split('/')[1] for key in saved if key.startswith('params/')}
  assert trees == roots
  if kind == 'lora':
    assert not any('kernel' in key for key in saved)
    pairs = state.params['lora']['blocks']
    assert set(pairs) == {'self_attention', 'cross_attention', 'mlp_out'}
    assert np.abs(pairs['self_attention']['q']['b']).max() > 0
  source = json.loads((workdir / 'config.json').read_text())['source']
  opened = folders.open_part(folder / 'wan', 'transformer')
  assert source['fingerprint'] == opened.fingerprint()
  lines = metrics.read_metrics(workdir)
  assert any('held_out/loss' in line for line in lines)


def test_begins_at_the_published_weights(form, kind, folder, tmp_path):
  """The loss of the first step is that of the folder's own transformer."""
  made = finetuned.config(folder, vae=FORMS[form], **KINDS[kind])
  ready = plan.check(made, str(tmp_path), checkpoint_path=str(folder / 'wan'))
  at = train.begin(ready, None, jax.random.key(0))
  frozen = {}
  if kind == 'lora':
    frozen = ready.base.load(ready.nets, ready.mesh)
  rng = np.random.default_rng(0)
  batch = {
    'latents': rng.normal(size=(8, 3, 4, 8, 3)).astype(np.float32),
    'text': rng.normal(size=(8, 512, 12)).astype(np.float32),
  }
  plain = finetuned.config(folder, vae=FORMS[form])
  task = build.diffusion_task(plain, build.networks(plain))
  wanted = jax.jit(task.held_out)({'dit': published(folder)}, {}, batch)
  for params in (at.params, at.ema):
    found = jax.jit(ready.task.held_out)(params, frozen, batch)
    for name, value in wanted.items():
      np.testing.assert_allclose(found[name], value, rtol=1e-5)
