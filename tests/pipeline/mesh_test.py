"""Sampling and encoding on several devices equal those on one."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from PIL import Image

import spacetime
from spacetime import SettingError
from spacetime.checkpoint import load
from spacetime.data import latent_cache
from spacetime.evaluation import report
from spacetime.evaluation.settings import EvaluationSettings
from spacetime.pipeline import decode, precompute
from spacetime.pipeline import encoder as encoder_lib
from tests.helpers import finetuned, published_folder

PROMPT = 'a red 3 moves to the right'
MESHES = {
  'data': {'data': 8},
  'fsdp': {'data': 1, 'fsdp': 8},
  'context': {'data': 1, 'context': 8},
  'tensor': {'data': 4, 'tensor': 2},
  'all': {'fsdp': 2, 'context': 2, 'tensor': 2},
}
VARIANTS = {
  'text': {},
  'image': {'cond_channels': published_folder.COND_CHANNELS},
  'vace': {'control_layers': (0,), 'control_channels': 6 + 4 * 4},
}
# Little guidance, which multiplies differences of rounding.
WAN = dict(
  frames=5,
  size=(32, 16),
  seed=3,
  steps=2,
  guidance=1.5,
  prompt_embeds_cache='',
)


@pytest.fixture(scope='module')
def wan(tmp_path_factory):
  """Tiny folders whose sizes eight devices divide."""
  folder = tmp_path_factory.mktemp('mesh')
  text = dataclasses.replace(published_folder.TEXT, d_model=16)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(published_folder, 'TEXT', text)
    for name, variant in VARIANTS.items():
      published_folder.write(
        folder / name, width=48, heads=8, mlp=48, text_width=16, **variant
      )
  picture = np.random.default_rng(0).integers(0, 256, (16, 32, 3), np.uint8)
  Image.fromarray(picture).save(folder / 'image.png')
  return folder


def sampled(path, mesh, prompt, **settings):
  """(latents, frames) of the clips of a call."""
  pipe = spacetime.load(str(path), mesh=mesh, progress=False)
  seen, decode_frames = [], decode.Decoder.__call__

  def keep(self, z_Bfhwc):
    seen.append(np.asarray(z_Bfhwc))
    return decode_frames(self, z_Bfhwc)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(decode.Decoder, '__call__', keep)
    videos = pipe(prompt, **settings)
  videos = videos if isinstance(videos, list) else [videos]
  return seen[0][: len(videos)], np.stack([v.frames for v in videos])


@functools.cache
def expected(path, prompt, settings):
  """The same on one device."""
  return sampled(path, None, list(prompt), **dict(settings))


def check(path, mesh, *prompt, **settings):
  with jax.default_matmul_precision('highest'):
    one = expected(str(path), prompt, tuple(settings.items()))
    z, frames = sampled(path, mesh, list(prompt), **settings)
  deviation = max(1, one[0].std())
  print('difference', np.abs(z - one[0]).max(), deviation)
  np.testing.assert_allclose(z, one[0], atol=1e-5 * deviation, rtol=0)
  assert np.abs(np.int16(frames) - one[1]).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize('mesh', MESHES)
def test_a_published_model(mesh, wan):
  check(wan / 'text', MESHES[mesh], PROMPT, **WAN)


@pytest.mark.slow
@pytest.mark.parametrize('model', ['image', 'vace'])
def test_variants(model, wan):
  check(wan / model, MESHES['all'], PROMPT, image=str(wan / 'image.png'), **WAN)


@pytest.mark.slow
@pytest.mark.parametrize(
  'model, mesh', [('text', 'data'), ('text', 'all'), ('vace', 'all')]
)
def test_skipped_layers(model, mesh, wan):
  settings = WAN | dict(skip_layers=1)
  if model == 'vace':
    settings |= dict(image=str(wan / 'image.png'))
  check(wan / model, MESHES[mesh], PROMPT, **settings)


@pytest.mark.slow
def test_the_bundled_model():
  mesh = dict(data=2, fsdp=2, context=2)  # its heads stay together
  check('digits', mesh, PROMPT, 'a blue 7', seed=3, steps=2)


@pytest.mark.parametrize(
  'mesh, settings, message',
  [
    ({'context': 3}, {}, '^mesh.context=3: expected a mesh .* divides 8'),
    ({'row': 2}, {}, '^mesh.row=2: expected an axis of'),
    (
      {'data': 1, 'context': 8},
      {'size': (16, 16)},
      '^mesh.context=8: expected a divisor of the 12 tokens of a clip',
    ),
    (
      {'data': 1, 'tensor': 8},
      {'heads': 6},
      '^mesh.tensor=8: expected a divisor of `model.heads`=6',
    ),
  ],
)
def test_refuses_a_mesh_that_does_not_divide(
  mesh, settings, message, wan, tmp_path
):
  path, settings = wan / 'text', dict(settings)
  if 'heads' in settings:
    path = tmp_path / 'six'
    published_folder.write(path, width=36, heads=settings.pop('heads'))
  with pytest.raises(SettingError, match=message):
    pipe = spacetime.load(str(path), mesh=mesh, progress=False)
    pipe(PROMPT, **(WAN | settings))


def test_refuses_a_transformer_before_the_text_encoder_runs(tmp_path):
  """The devices divide the text encoder, but not the transformer's width."""
  text = dataclasses.replace(published_folder.TEXT, d_model=16)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(published_folder, 'TEXT', text)
    published_folder.write(
      tmp_path / 'wan', width=36, heads=6, mlp=48, text_width=16
    )
    patch.setattr(load.Model, 'read', lambda self, root: pytest.fail(root))
    pipe = spacetime.load(
      str(tmp_path / 'wan'), mesh={'data': 1, 'fsdp': 8}, progress=False
    )
    with pytest.raises(SettingError, match='^mesh.fsdp=8: .* to divide 36, '):
      pipe(PROMPT, **WAN)


@pytest.mark.parametrize(
  'mesh, changes, message',
  [
    (
      {'data': 8},
      {'width': 16},
      '^batch_size=3: expected a multiple of 8.* latents of 4 x 4 cells',
    ),
    ({'fsdp': 8}, {}, '^mesh.fsdp=8: expected .* to divide 12, an axis of'),
  ],
)
def test_a_mesh_is_refused_before_a_cache_begins(
  mesh, changes, message, tmp_path
):
  published_folder.write(tmp_path / 'wan')
  finetuned.write_clips(tmp_path / 'clips')
  data = dataclasses.replace(finetuned.data(tmp_path), **changes)
  encoder = encoder_lib.open_encoder(str(tmp_path / 'wan'), mesh=mesh)
  with pytest.raises(SettingError, match=message):
    precompute.write_cache(encoder, data, tmp_path / 'cache', batch_size=3)
  assert not (tmp_path / 'cache').exists()


@pytest.mark.slow
def test_an_autoencoder_is_evaluated_by_all_devices(tmp_path):
  """As on one device, with fewer clips than devices and with more."""
  measured = []
  for mesh in (None, {'data': 8}, {'context': 4, 'tensor': 2}):
    settings = EvaluationSettings(
      checkpoint='digits_autoencoder', num=9, out=str(tmp_path / str(mesh))
    )
    report.write(settings, mesh=mesh)
    text = (tmp_path / str(mesh) / report.METRICS).read_text()
    measured.append(json.loads(text))
  assert measured[0] == measured[1] == measured[2]


@pytest.mark.slow
@pytest.mark.parametrize('batch_size', [8, 1])
def test_a_cache_does_not_depend_on_the_devices(batch_size, tmp_path):
  folder = finetuned.write(tmp_path / 'all')
  caches = [latent_cache.Cache(folder / 'cache')]
  data = dataclasses.replace(finetuned.data(folder))
  encoder = encoder_lib.open_encoder(
    str(folder / 'wan'),
    mesh={'data': 8 if batch_size == 8 else 4, 'tensor': -1},
  )
  precompute.write_cache(
    encoder, data, tmp_path / 'cache', shard=3, batch_size=batch_size
  )
  caches.append(latent_cache.Cache(tmp_path / 'cache'))
  for i in range(len(caches[0].split('train'))):
    a, b = (cache.split('train')[i] for cache in caches)
    np.testing.assert_allclose(a['latents'], b['latents'], atol=1e-5)
    np.testing.assert_allclose(a['text'], b['text'], atol=1e-5)
