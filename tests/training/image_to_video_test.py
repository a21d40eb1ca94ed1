"""Training of image-to-video models: caches, losses, full runs and LoRA."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import wan_i2v_14b
from spacetime import SettingError, sharding
from spacetime.checkpoint import convert, load
from spacetime.checkpoint.interop import folders, network_files, parts
from spacetime.config import networks, parse
from spacetime.data import latent_cache
from spacetime.diffusion import conditioning
from spacetime.media import video_reader
from spacetime.media.pixels import to_video
from spacetime.training import run, setup, tasks
from tests.helpers import finetuned, published_folder

IMAGE = published_folder.IMAGE
VARIANTS = {
  'first': {'cond_channels': published_folder.COND_CHANNELS},
  'ends': {
    'cond_channels': published_folder.COND_CHANNELS,
    'image_width': IMAGE.hidden_size,
    'image_tokens': 2 * IMAGE.tokens,
  },
}


@pytest.fixture(scope='module', params=VARIANTS)
def model(request, tmp_path_factory):
  """(known frames, folder of the model, its clips and its cache)."""
  known = request.param
  variant = dict(VARIANTS[known])
  if known == 'ends':
    variant['image'] = IMAGE
  folder = tmp_path_factory.mktemp(known) / 'all'
  return known, finetuned.write(folder, **variant)


def config(model, **values):
  known, folder = model
  result = finetuned.config(folder, **values)
  with result.unlocked():
    result.model.update(VARIANTS[known])
    if known == 'ends':
      result.image = dataclasses.asdict(IMAGE)
  return result


@pytest.mark.slow
def test_a_cache_holds_what_the_model_sees(model):
  known, folder = model
  cache = latent_cache.Cache(folder / 'cache')
  assert cache.info.known == known
  record = cache.split('train')[3]
  video = video_reader.read_video(
    folder / 'clips/clip3.mp4', frames=5, height=16, width=32, fps=8
  )
  seen_F = [True, False, False, False, known == 'ends']
  opened = load.open_model(
    str(folder / 'wan'), mesh=sharding.single_device_mesh()
  )
  blank = jnp.where(np.reshape(seen_F, (5, 1, 1, 1)), to_video(video), 0)
  nets, frozen = opened.networks, {'autoencoder': opened.read('autoencoder')}
  z = jax.jit(nets.encode)(frozen, blank[None])[0]
  np.testing.assert_allclose(record['cond_latents'], z, atol=1e-5)
  if known == 'first':
    assert cache.info.image == (0, 0) and 'image' not in record
    return
  pixels = np.stack([nets.image.pixels(video[i]) for i in (0, 4)])
  image = jax.jit(nets.image.encode)(opened.read('image'), pixels)
  assert cache.info.image == (10, 8)
  np.testing.assert_allclose(record['image'], np.concatenate(image), atol=1e-5)


@pytest.mark.slow
def test_a_run_trains_on_it(model, tmp_path):
  """Low-rank adapters of the one, every parameter of the other."""
  known, folder = model
  rank = 2 if known == 'first' else 0
  settings = config(model, **{'lora.rank': rank, 'train.steps': 2})
  state = run.train(
    settings, str(tmp_path / 'run'), checkpoint=str(folder / 'wan')
  )
  assert int(state.step) == 2
  if rank:
    moved = state.params['lora']['blocks']['self_attention']['q']['b']
    assert np.abs(np.asarray(moved)).max() > 0
    return
  mesh = sharding.single_device_mesh()
  before = parts.open_part(folder / 'wan', 'transformer').load(mesh)
  names = [
    ('patch_embed', 'kernel'),
    ('image_embed', 'position'),
    ('image_embed', 'in', 'kernel'),
    ('blocks', 'cross_attention', 'v_image', 'kernel'),
  ]
  for name in names:
    new, old = state.params['dit'], before
    for key in name:
      new, old = new[key], old[key]
    change = np.abs(np.asarray(new) - np.asarray(old))
    # Every row of the input's kernel: those of noise, mask and latents.
    assert change.max(-1).min() > 0 if 'patch' in name[0] else change.max() > 0


@pytest.mark.slow
def test_refuses_embeddings_of_another_image_encoder(model, tmp_path):
  known, folder = model
  if known == 'first':  # it sees no embeddings of images
    return
  start, other = tmp_path / 'wan', tmp_path / 'run'
  shutil.copytree(folder / 'wan', start)
  ready = setup.check(
    parse.experiment(config(model)), str(other), init_from=str(start)
  )
  cached = ready.experiment.cache['image_encoder']
  assert cached == ready.experiment.source['image_encoder']
  tensors = published_folder.tensors(start / 'image_encoder')
  published_folder.write_part(
    start / 'image_encoder',
    IMAGE,
    tensors={name: tensor + 1 for name, tensor in tensors.items()},
  )
  with pytest.raises(ValueError, match=f'another image encoder, {cached}: exp'):
    setup.check(
      parse.experiment(config(model)), str(other), init_from=str(start)
    )
  # As a file of its own, without the folder's.
  encoder = (folder / 'wan/image_encoder').rename(tmp_path / 'clip')
  try:
    check = functools.partial(
      setup.check,
      parse.experiment(config(model)),
      str(other),
      init_from=str(folder / 'wan'),
    )
    assert 'image_encoder' not in check().experiment.source
    for path, fits in ((encoder, True), (start / 'image_encoder', False)):
      files = network_files.Files(image_encoder=str(path))
      if fits:
        assert check(files=files).experiment.source['image_encoder'] == cached
        continue
      with pytest.raises(ValueError, match='another image encoder'):
        check(files=files)
  finally:
    encoder.rename(folder / 'wan/image_encoder')


@pytest.mark.slow
def test_converted_to_a_weights_folder_and_back(model, tmp_path):
  known, folder = model
  source = folder / 'wan'
  weights, back = tmp_path / 'weights', tmp_path / 'back'
  convert.to_weights(folders.open_pipeline(source), weights)
  convert.to_published(weights, back)
  for part in ('transformer', *(['image_encoder'] if known == 'ends' else [])):
    result = published_folder.tensors(back / part)
    expected = published_folder.tensors(source / part)
    assert result.keys() == expected.keys()
    for name, tensor in expected.items():
      np.testing.assert_array_equal(result[name], tensor, name)
  mesh = sharding.single_device_mesh()
  opened = load.open_model(str(weights), mesh=mesh)
  assert set(opened.readers) == (
    {'dit', 'text', 'autoencoder'} | ({'image'} if known == 'ends' else set())
  )


@pytest.mark.parametrize(
  'values, message',
  [
    ({'conditioning.first': 0.5}, '^conditioning.none=1.0: expected 1, and 0'),
    (
      {'model.cond_channels': 0},
      'known frames beside its latents: expected no',
    ),
  ],
)
def test_refuses_what_does_not_fit(model, values, message, tmp_path):
  settings = config(model)
  settings.update_from_flattened_dict(values)
  if 'model.cond_channels' in values:
    settings.model.image_width = settings.model.image_tokens = 0
  with pytest.raises((SettingError, ValueError), match=message):
    setup.check(parse.experiment(settings), str(tmp_path / 'run'))


@pytest.mark.parametrize('name', wan_i2v_14b.MODELS)
def test_experiments_have_the_published_sizes(name):
  experiment = parse.experiment(wan_i2v_14b.get_config(name))
  nets = networks.networks(experiment)
  task = tasks.diffusion_task(experiment, nets)
  params = jax.eval_shape(task.init, jax.random.key(0))
  count = sum(leaf.size for leaf in jax.tree.leaves(params['dit']))
  assert (
    count
    == {
      'high': 14_288_901_184,
      'low': 14_288_901_184,
      'i2v': 16_394_878_784,
      'flf2v': 16_395_536_704,
    }[name]
  )
  latent = (2, 3, 60, 104, 16)
  batch = {
    'latents': jax.ShapeDtypeStruct(latent, 'bfloat16'),
    'cond_latents': jax.ShapeDtypeStruct(latent, 'bfloat16'),
    'text': jax.ShapeDtypeStruct((2, 512, 4096), 'bfloat16'),
  }
  if nets.image:
    tokens = nets.image.config.tokens * (2 if name == 'flf2v' else 1)
    batch['image'] = jax.ShapeDtypeStruct((2, tokens, 1280), 'bfloat16')
  loss, _ = jax.eval_shape(task.loss, params, {}, batch, jax.random.key(0))
  assert loss.shape == ()


def test_mask_of_known_frames():
  z = jnp.zeros((1, 3, 1, 1, 2))
  for known, last in (('first', 0), ('ends', 1)):
    mask_F = conditioning.known_mask(known, 9)
    cond = conditioning.cond_channels(z, mask_F, stride=4)
    mask = np.asarray(cond)[0, :, 0, 0, :4]
    np.testing.assert_array_equal(
      mask, [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, last]]
    )


def test_control_mask_takes_the_middle_of_a_latent_frame():
  new_FHW = np.zeros((5, 4, 6), bool)
  new_FHW[1, 3, 4] = True
  mask = conditioning.control_mask(new_FHW, stride=(4, 2, 3))
  assert mask.shape == (2, 2, 2, 6)
  # Frames 1 and 3 of 5; row 1 and column 1 of the last cell.
  assert np.argwhere(mask).tolist() == [[0, 1, 1, 4]]
