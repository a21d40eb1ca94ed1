"""Training that starts from weights: published ones and our own."""

import json
import shutil

import jax
import numpy as np
import pytest

from experiments import digits_autoencoder
from spacetime import SettingWarning, checkpoint, sharding
from spacetime.checkpoint import export
from spacetime.checkpoint.interop import network_files, parts
from spacetime.config import networks, parse
from spacetime.data import latent_cache
from spacetime.pipeline import precompute
from spacetime.pipeline.encode_settings import EncodeSettings
from spacetime.training import init_state, run, setup, tasks
from tests.helpers import finetuned, published_folder
from tests.helpers.training import killed_after, leaves, losses

FORMS = {'2.1': published_folder.VAE, '2.2': published_folder.VAE22}
LORA = {'lora.rank': 2, 'lora.alpha': 6.0, 'lora.dropout': 0.1}
KINDS = {'full': {}, 'lora': LORA}


CASES = [('2.1', 'full'), ('2.1', 'lora'), ('2.2', 'full')]


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
def full(form, kind, folder, tmp_path_factory):
  """Four steps at a stretch, from the published folder."""
  workdir = tmp_path_factory.mktemp('full')
  state = run.train(
    finetuned.config(folder, vae=FORMS[form], **KINDS[kind]),
    str(workdir),
    checkpoint=str(folder / 'wan'),
  )
  return state, workdir


def published(folder):
  mesh = sharding.single_device_mesh()
  return parts.open_part(folder / 'wan', 'transformer').load(mesh)


def test_two_steps_and_two_are_four(form, kind, folder, full, tmp_path):
  workdir = killed_after(full[1], 2, tmp_path / 'run')
  config = finetuned.config(folder, vae=FORMS[form], **KINDS[kind])
  if kind == 'lora':
    second = run.train(config, str(workdir))
  else:
    # A full run no longer needs the weights that it started from.
    moved = (folder / 'wan').rename(tmp_path / 'elsewhere')
    try:
      second = run.train(config, str(workdir))
    finally:
      moved.rename(folder / 'wan')
  assert int(second.step) == 4
  for a, b in zip(leaves(second), leaves(full[0]), strict=True):
    np.testing.assert_array_equal(a, b)
  assert losses(workdir) == losses(full[1])
  assert set(losses(workdir)) == {1, 2, 3, 4}


def test_only_what_is_trained_is_in_the_checkpoint(kind, folder, full):
  state, workdir = full
  roots = {'full': {'dit'}, 'lora': {'lora'}}[kind]
  assert set(state.params) == set(state.ema) == roots
  saved = checkpoint.saved_shapes(
    checkpoint.absolute(workdir) / 'checkpoints' / '4'
  )
  trees = {key.split('/')[1] for key in saved if key.startswith('params/')}
  assert trees == roots
  if kind == 'lora':
    assert not any('kernel' in key for key in saved)
    pairs = state.params['lora']['blocks']
    assert set(pairs) == {'self_attention', 'cross_attention', 'mlp_out'}
    assert np.abs(pairs['self_attention']['q']['b']).max() > 0
  source = json.loads((workdir / 'config.json').read_text())['source']
  opened = parts.open_part(folder / 'wan', 'transformer')
  assert source['fingerprint'] == opened.fingerprint()


def test_an_export_names_the_frame_rate_that_it_cannot_hold(
  form, kind, full, tmp_path
):
  rate = {'2.1': 16, '2.2': 24}[form]
  with pytest.warns(
    SettingWarning,
    match=f'its clips have 8 frames per second.* --fps=8, not at {rate}$',
  ):
    export.export(
      str(full[1]), tmp_path / 'out', lora='merged' if kind == 'lora' else None
    )


def test_begins_at_the_published_weights(form, kind, folder, tmp_path):
  """The loss of the first step is that of the folder's own transformer."""
  config = finetuned.config(folder, vae=FORMS[form], **KINDS[kind])
  ready = setup.check(
    parse.experiment(config), str(tmp_path), init_from=str(folder / 'wan')
  )
  at = init_state.init_state(ready, None, jax.random.key(0))
  frozen = {}
  if kind == 'lora':
    frozen = ready.base.load(ready.nets, ready.mesh)
  rng = np.random.default_rng(0)
  batch = {
    'latents': rng.normal(size=(8, 3, 4, 8, 3)).astype(np.float32),
    'text': rng.normal(size=(8, 512, 12)).astype(np.float32),
  }
  plain = finetuned.config(folder, vae=FORMS[form])
  task = tasks.diffusion_task(
    parse.experiment(plain), networks.networks(parse.experiment(plain))
  )
  expected = jax.jit(task.held_out)({'dit': published(folder)}, {}, batch)
  for params in (at.params, at.ema):
    held_out = jax.jit(ready.task.held_out)(params, frozen, batch)
    for name, value in expected.items():
      np.testing.assert_allclose(held_out[name], value, rtol=1e-5)


# -- what is refused -----------------------------------------------------------


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  return finetuned.write(tmp_path_factory.mktemp('refuse') / 'all')


def check(folder, workdir, start='wan', **values):
  start = start and str(folder / start)
  return setup.check(
    parse.experiment(finetuned.config(folder, **values)),
    str(workdir),
    init_from=start,
  )


@pytest.mark.parametrize(
  'values, text',
  [
    (
      {'data.name': 'folder', 'data.dir': 'clips'},
      "data.name='folder': expected 'cache' with `autoencoder.kind`='wan' and "
      "`text.kind`='frozen'.*spacetime encode",
    ),
    ({'train.sheet_every': 5}, 'train.sheet_every=5: expected 0'),
    ({'model.mlp': 36}, r'model.mlp=36, there 40'),
    ({'data.crop': (5, 16, 16)}, 'data.crop=.*latents are not cropped'),
    (
      {'data.width': 64, 'text.length': 77},
      'other sizes.*data.width=64, there 32; text.length=77, there 512',
    ),
    ({'data.dir': 'nowhere'}, 'nowhere is not a cache of latents'),
    (
      {'text.kind': 'trained'},
      "text.kind='trained': expected 'frozen'",
    ),
    ({'text.kind': 'half'}, "text.kind='half': expected one of"),
    (
      LORA | {'optimizer.name': 'muon'},
      "'muon': expected 'adamw' with `lora.rank`=2",
    ),
    (LORA | {'lora.targets': ('q',)}, r"lora.targets=.*unknown: \['q'\]"),
    ({'lora.rank': 99}, 'lora.rank=99: expected at most'),
  ],
)
def test_refuses(values, text, tiny, tmp_path):
  with pytest.raises(ValueError, match=text):
    check(tiny, tmp_path / 'run', **values)
  assert not (tmp_path / 'run' / 'config.json').exists()


def test_refuses_pairs_of_nothing(tiny, tmp_path):
  with pytest.raises(
    ValueError, match='checkpoint=None: expected .*`lora.rank`=2'
  ):
    check(tiny, tmp_path, start=None, **LORA)


def test_refuses_a_mesh_that_does_not_divide_the_weights_to_adapt(
  tiny, tmp_path
):
  """The adapters themselves are on every device."""
  wide = {'width': 36, 'heads': 6}
  published_folder.write(tmp_path / 'wan', **wide)
  values = {f'model.{name}': size for name, size in wide.items()}
  mesh = {'mesh.data': 1, 'mesh.fsdp': 8}
  config = finetuned.config(tiny, **LORA, **values, **mesh)
  with pytest.raises(ValueError, match='mesh.fsdp=8: .* to divide 36, an axis'):
    setup.check(
      parse.experiment(config),
      str(tmp_path / 'run'),
      init_from=str(tmp_path / 'wan'),
    )


def test_refuses_an_image_encoder_of_a_model_that_sees_no_images(
  tiny, tmp_path
):
  with pytest.raises(
    ValueError, match="^image_encoder='clip': expected none, since .*/wan sees"
  ):
    setup.check(
      parse.experiment(finetuned.config(tiny)),
      str(tmp_path / 'run'),
      init_from=str(tiny / 'wan'),
      files=network_files.Files(image_encoder='clip'),
    )


def changed_cache(tiny, folder, **values):
  """A copy of the cache that says it was made by others."""
  shutil.copytree(tiny / 'cache', folder)
  path = folder / 'cache.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | values))
  return {'data.dir': str(folder)}


@pytest.mark.parametrize(
  'values, text',
  [
    (
      {'autoencoder': 'x'},
      'latents of another autoencoder, x: expected those of .*, the run',
    ),
    (
      {'text': 'x'},
      'of another text encoder or tokenizer, x: expected those of',
    ),
    (
      {'length': 0, 'features': 0, 'text': ''},
      'captions that are not embedded: expected embeddings',
    ),
    (
      {'mean': (0.5, -0.25, 2.0)},
      'another normalisation, .*: expected `autoencoder.latents_mean`=',
    ),
    ({'std': (1.0, 1.0, 1.0)}, 'expected `autoencoder.latents_std`='),
    (
      {'latent': (3, 2, 4, 3)},
      r'latents=\(3, 4, 8, 3\), there \(3, 2, 4, 3\)',
    ),
    (
      {'counts': (7, 0)},
      'held_out.* shards such as .*, expected 0|no held_out',
    ),
  ],
)
def test_refuses_a_cache_of_other_networks(values, text, tiny, tmp_path):
  other = changed_cache(tiny, tmp_path / 'cache', **values)
  with pytest.raises(ValueError, match=text):
    check(tiny, tmp_path / 'run', **other)


def test_a_run_has_the_frame_rate_of_its_cache(tiny, tmp_path):
  ready = check(tiny, tmp_path / 'run')
  assert ready.experiment.data.fps == 8
  assert ready.experiment.values['data']['fps'] == 8
  check(tiny, tmp_path / 'run', **{'data.fps': 8.0})
  with pytest.raises(ValueError, match='data.fps=16, there 8; change these'):
    check(tiny, tmp_path / 'run', **{'data.fps': 16})
  # A resumed run keeps its rate.
  checkpoint.write_config(tmp_path / 'run', ready.experiment.values)
  check(tiny, tmp_path / 'run')
  other = changed_cache(tiny, tmp_path / 'cache', fps=24)
  with pytest.raises(ValueError, match='another config: data.fps: 8 -> 24'):
    check(tiny, tmp_path / 'run', **other)


def test_clips_without_a_cache_need_a_frame_rate(tmp_path):
  config = digits_autoencoder.get_config('tiny')
  with config.unlocked():
    config.data.fps, config.data.batch_size = None, 8
  with pytest.raises(
    ValueError, match="^data.fps=None: .* with `data.name`='d"
  ):
    setup.check(parse.experiment(config), str(tmp_path))


def test_clips_that_are_encoded_have_the_rate_of_the_model(tiny, tmp_path):
  experiment = finetuned.config(
    tiny, **{'data.name': 'folder', 'data.dir': str(tiny / 'clips')}
  )
  precompute.encode(
    EncodeSettings(checkpoint=str(tiny / 'wan'), out=str(tmp_path / 'cache')),
    experiment=parse.experiment(experiment),
  )
  assert latent_cache.Cache(tmp_path / 'cache').info.fps == 16


def test_refuses_two_transformers_and_takes_one(tiny, tmp_path):
  folder = tmp_path / 'all'
  shutil.copytree(tiny, folder)
  (folder / 'wan/transformer_2').symlink_to(folder / 'wan/transformer')
  with pytest.raises(ValueError, match='two transformers.*/transformer_2'):
    check(folder, tmp_path / 'run')
  with pytest.raises(
    ValueError, match='boundary_ratio=None, and transformer_2'
  ):
    check(folder, tmp_path / 'run', start='wan/transformer_2')
  index = folder / 'wan/model_index.json'
  values = json.loads(index.read_text()) | {'boundary_ratio': 0.875}
  index.write_text(json.dumps(values))
  for name, bounds in (
    ('transformer', (0.875, 1.0)),
    ('transformer_2', (0.0, 0.875)),
  ):
    ready = check(folder, tmp_path / 'run', start=f'wan/{name}')
    assert ready.experiment.flow.bounds == bounds
    # A config's own bounds stay, and a resumed run finds those of its base.
    own = check(
      folder, tmp_path / 'run', start=f'wan/{name}', **{'flow.low': 0.8}
    )
    assert own.experiment.flow.bounds == (0.8, 1.0)
    workdir = tmp_path / name
    checkpoint.write_config(workdir, ready.experiment.values)
    resumed = setup.check(
      parse.experiment(finetuned.config(folder)), str(workdir)
    )
    assert resumed.experiment.flow.bounds == bounds


def test_a_run_continues_from_its_own_start(tiny, tmp_path):
  workdir = tmp_path / 'run'
  config = finetuned.config(tiny, **LORA)
  ready = setup.check(
    parse.experiment(config), str(workdir), init_from=str(tiny / 'wan')
  )
  checkpoint.write_config(workdir, ready.experiment.values)
  # Pairs need their base again, and know where it was.
  again = setup.check(
    parse.experiment(finetuned.config(tiny, **LORA)), str(workdir)
  )
  assert again.base.path == str(tiny / 'wan')
  other = tmp_path / 'other'
  shutil.copytree(tiny / 'wan', other)
  published_folder.write_part(
    other / 'transformer',
    published_folder.TRANSFORMER,
    tensors={
      name: tensor + 1
      for name, tensor in published_folder.tensors(
        tiny / 'wan/transformer'
      ).items()
    },
  )
  with pytest.raises(ValueError, match='another config: source.fingerprint'):
    setup.check(
      parse.experiment(finetuned.config(tiny, **LORA)),
      str(workdir),
      init_from=str(other),
    )


def test_a_run_continues_from_a_file_or_its_folder(tiny, tmp_path):
  """Neither has to say which autoencoder and text encoder made the cache."""
  (file,) = (tiny / 'wan/transformer').glob('*.safetensors')
  starts = {
    'file': {'files': network_files.Files(transformer=str(file))},
    'folder': {'init_from': str(tiny / 'wan')},
    'none': {},
  }
  experiment = parse.experiment(finetuned.config(tiny, **LORA))
  for first in ('file', 'folder'):
    workdir = tmp_path / first
    ready = setup.check(experiment, str(workdir), **starts[first])
    checkpoint.write_config(workdir, ready.experiment.values)
    for start in starts.values():
      again = setup.check(experiment, str(workdir), **start).experiment
      assert (
        again.source['fingerprint'] == ready.experiment.source['fingerprint']
      )
      assert again.cache == ready.experiment.cache


def test_an_autoencoder_starts_from_weights(tiny, tmp_path):
  """A run, a weights folder of it, or a bundled name of its sizes."""
  config = digits_autoencoder.get_config('tiny')
  config.update_from_flattened_dict(
    {
      'data.batch_size': 8,
      'data.dir': str(tmp_path / 'data'),
      'train.steps': 1,
      'train.evaluate_every': 0,
      'train.sheet_every': 0,
    }
  )

  def started(name, **values):
    """The state before the first step, from what is given."""
    ready = setup.check(
      parse.experiment(config), str(tmp_path / 'new'), init_from=name
    )
    return ready, init_state.init_state(ready, None, jax.random.key(5))

  first = run.train(config.copy_and_resolve_references(), str(tmp_path / 'a'))
  export.export(str(tmp_path / 'a'), tmp_path / 'weights')
  for name in ('a', 'weights'):
    ready, state = started(str(tmp_path / name))
    jax.tree.map(np.testing.assert_array_equal, state.params, first.ema)
    assert ready.experiment.source['path'] == str(tmp_path / name)
    assert int(state.step) == 0
  with pytest.raises(ValueError, match='of other sizes than the config: autoe'):
    started('digits_autoencoder')
  with pytest.raises(ValueError, match="holds stage 'diffusion': expected an"):
    started('digits')
  config.data.name = 'cache'
  with pytest.raises(
    ValueError, match="data.name='cache': expected a source of"
  ):
    setup.check(parse.experiment(config), str(tmp_path))
