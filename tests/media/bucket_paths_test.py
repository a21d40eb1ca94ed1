"""Paths in a bucket: each is read as on a disk, or refused in one line."""

import jax
import numpy as np
import pytest
from absl.testing import flagsaver
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from spacetime import checkpoint, sharding
from spacetime.checkpoint import load, locate, paths
from spacetime.checkpoint.interop import folders, network_files, tokenizers
from spacetime.cli import devices
from spacetime.data import latent_cache, video_folder
from spacetime.data.tokenizer import Tokenizer
from spacetime.media import files, image_reader, video_reader, video_writer
from tests.data import latent_cache_test
from tests.helpers import bucket, commands, published_folder, videos

URL = 'gs://bucket/folder'


@pytest.fixture(autouse=True)
def _bucket(monkeypatch, tmp_path_factory):
  bucket.in_memory(monkeypatch)
  monkeypatch.setattr(files, 'BUCKETS', tmp_path_factory.mktemp('buckets'))
  files._copied.cache_clear()


def same(tree, other):
  jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.parametrize(
  'path, shown',
  [
    ('gs://bucket/a/b.mp4', 'gs://bucket/a/b.mp4'),
    ('/a/b', '/a/b'),
    ('a', 'a'),
  ],
)
def test_as_path_keeps_urls(path, shown):
  opened = files.as_path(path)
  assert str(opened) == shown and files.as_path(opened) == opened
  assert str(opened / 'c') == f'{shown}/c'
  assert files.is_url(opened) == ('://' in path)


@pytest.mark.parametrize(
  'path, text',
  [
    ('ftp://host/a', 'ftp://host/a: expected gs://BUCKET/NAME'),
    ('http://host/a.mp4', 'http://host/a.mp4: expected gs://BUCKET/NAME'),
  ],
)
def test_as_path_refuses_other_schemes(path, text):
  with pytest.raises(ValueError, match=text):
    files.as_path(path)


def test_as_path_names_the_missing_extra(monkeypatch):
  monkeypatch.setattr(files.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r'gcsfs, which is not .*\[gcs\]'):
    files.as_path(URL)


def test_clips_of_a_folder(tmp_path):
  for name in ('a', 'sub/b'):
    path = tmp_path / f'{name}.mkv'
    path.parent.mkdir(exist_ok=True)
    videos.lossless(path, videos.gray_clip(9))
    path.with_suffix('.txt').write_text(f'clip {name}')
  size = {'frames': 5, 'height': 16, 'width': 24, 'fps': 8.0}
  local = video_folder.ClipFolder(tmp_path, **size)
  remote = video_folder.ClipFolder(bucket.upload(tmp_path, URL), **size)
  assert len(local) == len(remote) == 2
  for i in range(2):
    same(local[i]['video'], remote[i]['video'])
    assert local.caption(i) == remote.caption(i)
  with pytest.raises(ValueError, match='gs://bucket/none: no such folder'):
    video_folder.ClipFolder('gs://bucket/none', **size)


def test_videos_and_images(tmp_path):
  videos.lossless(tmp_path / 'a.mkv', videos.gray_clip(9))
  Image.new('RGB', (8, 6), 'red').save(tmp_path / 'a.png')
  url = bucket.upload(tmp_path, URL)
  same(
    video_reader.read_video(tmp_path / 'a.mkv'),
    video_reader.read_video(f'{url}/a.mkv'),
  )
  same(
    image_reader.read_image(tmp_path / 'a.png'),
    image_reader.read_image(f'{url}/a.png'),
  )
  for read in (video_reader.read_video, image_reader.read_image):
    with pytest.raises(ValueError, match='gs://bucket/none.mp4: no such file'):
      read('gs://bucket/none.mp4')


@pytest.mark.parametrize(
  'write',
  [
    lambda url: video_writer.write_video(url, videos.gray_clip(2), fps=8),
    lambda url: video_writer.write_image(url, videos.gray_clip(1)[0]),
    lambda url: video_writer.write_sidecar(url, {}),
    lambda url: paths.new_folder(url).__enter__(),
  ],
)
def test_results_are_not_written_to_a_bucket(tmp_path, monkeypatch, write):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="out='gs://bucket/a.png': expected"):
    write('gs://bucket/a.png')
  assert not list(tmp_path.iterdir())


def test_a_published_folder(tmp_path):
  folder = published_folder.write(tmp_path / 'wan')
  url = bucket.upload(folder, URL)
  located = locate.locate(url)
  assert located.kind == 'diffusers'
  local, remote = (
    folders.open_pipeline(folder),
    folders.open_pipeline(located.folder),
  )
  assert remote.fingerprint() == local.fingerprint()
  mesh = sharding.single_device_mesh()
  for root, part in local.parts.items():
    same(part.load(mesh), remote.parts[root].load(mesh))
  model = load.open_model(url, mesh=mesh)
  other = load.open_model(str(folder), mesh=mesh)
  assert model.weights_hash == other.weights_hash
  transformer = locate.locate(f'{url}/transformer')
  assert transformer.kind == 'transformer'
  assert transformer.pipeline == located.folder
  single = network_files.Files(transformer=f'{url}/transformer')
  assert single.transformer == f'{located.folder}/transformer'


def test_a_mirror_copies_what_has_changed(tmp_path, monkeypatch):
  (tmp_path / 'wan/a').mkdir(parents=True)
  for name in ('b.json', 'a/c.json'):
    (tmp_path / 'wan' / name).write_text(name)
  url = bucket.upload(tmp_path / 'wan', URL)
  copied, copy = [], files.copy

  def count(source, target):
    copied.append(source.name)
    copy(source, target)

  monkeypatch.setattr(files, 'copy', count)
  local = files.mirror(url)
  assert (local / 'a/c.json').read_text() == 'a/c.json'
  assert sorted(copied) == ['b.json', 'c.json'] and files.mirror(url) == local
  assert len(copied) == 2
  (files.as_path(url) / 'b.json').write_text('longer than before')
  assert (files.mirror(url) / 'b.json').read_text() == 'longer than before'
  assert copied[2:] == ['b.json']
  assert files.mirror(tmp_path) == tmp_path
  with pytest.raises(ValueError, match='gs://bucket/none: no such file'):
    files.mirror('gs://bucket/none')


def test_a_weights_folder():
  bundled = locate.ASSETS / 'digits_autoencoder'
  url = bucket.upload(bundled, URL)
  assert checkpoint.weights_hash(url) == checkpoint.weights_hash(bundled)
  assert checkpoint.stored(url) == checkpoint.stored(bundled)


def test_tokenizers(tmp_path):
  folder = published_folder.write(tmp_path / 'wan')
  local = tokenizers.read(folder / 'tokenizer', vocabulary=320)
  model = 'gs://bucket/t.model'
  files.as_path(model).write_bytes(local.serialized)
  assert Tokenizer.load(model).size == local.size
  with pytest.raises(ValueError, match='gs://bucket/x.model: no such file'):
    Tokenizer.load('gs://bucket/x.model')


def test_a_cache_of_latents(tmp_path, monkeypatch):
  """Written to the bucket, and read by ArrayRecord's own client of buckets."""
  local = latent_cache.Cache(latent_cache_test.fill(tmp_path / 'cache'))
  latent_cache_test.fill(files.as_path(URL))
  with bucket.served() as (objects, where):
    for name, file in bucket.MemoryBucket.store.items():
      objects.put(name.removeprefix('/bucket/'), file.getvalue())
    monkeypatch.setenv(
      'CLOUD_STORAGE_EMULATOR_ENDPOINT', where['STORAGE_EMULATOR_HOST']
    )
    remote = latent_cache.Cache(URL)
    assert remote.info == local.info and remote.tokenizer == b'pieces'
    same(remote.empty_SY, local.empty_SY)
    for name in latent_cache.SPLITS:
      one, other = local.split(name), remote.split(name)
      assert len(one) == len(other)
      for i in range(len(one)):
        assert one[i]['caption'] == other[i]['caption']
        same(one[i]['latents'], other[i]['latents'])
  for url in ('gs://bucket/none', 'gs://bucket'):
    with pytest.raises(ValueError, match=f'^{url} is not a cache of latents'):
      latent_cache.Cache(url)


def test_a_cache_of_compiled_programs():
  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_enable_xla_caches',
    'jax_persistent_cache_min_compile_time_secs',
  )
  before = {name: getattr(jax.config, name) for name in names}
  commands.parse('train', '--config=digits_pixels:tiny')
  compilation_cache.reset_cache()
  try:
    with flagsaver.flagsaver(compilation_cache='gs://bucket/compiled'):
      devices.setup()
    with (
      flagsaver.flagsaver(compilation_cache='ftp://host/compiled'),
      pytest.raises(ValueError, match='ftp://host/compiled: expected gs://'),
    ):
      devices.setup()
    jax.config.update(names[2], 0.0)
    jax.jit(lambda x: x * 123.25 + 0.5)(np.ones(3, np.float32))
    stored = [*bucket.MemoryBucket.store]
    assert stored and all(s.startswith('/bucket/compiled/') for s in stored)
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.parametrize(
  'command, arguments, text',
  [
    (
      'sample',
      ('--prompt=a 7', '--out=gs://b/a.gif'),
      '--out=gs://b/a.gif: ',
    ),
    ('evaluate', ('--checkpoint=digits', '--out=gs://b/a'), '--out=gs://b/a: '),
    ('export', ('--checkpoint=digits', '--out=gs://b/a'), '--out=gs://b/a: '),
    (
      'train',
      (
        *('--config=digits_pixels:tiny', '--config.data.dir=gs://b/d'),
        *('--config.data.batch_size=8', '--workdir=W'),
      ),
      '--config.data.dir=gs://b/d: expected a path of this machine',
    ),
    (
      'train',
      (
        *('--config=digits_pixels:tiny', '--config.data.name=cache'),
        '--config.data.batch_size=8',
        *('--config.data.dir=gs://b/d', '--workdir=W'),
      ),
      'gs://b/d is not a cache of latents',
    ),
    (
      'sample',
      ('--prompt=a 7', '--checkpoint=gs://b/none', '--out=a.mp4'),
      'gs://b/none: no such folder',
    ),
  ],
)
def test_refusals(tmp_path, monkeypatch, command, arguments, text):
  monkeypatch.chdir(tmp_path)
  with flagsaver.flagsaver():
    refusal = commands.run(command, *arguments).refusal()
  assert text in refusal
  assert not list(tmp_path.rglob('gs:*'))
