"""Manifests: every format, tampering, ingredients, foreign roots."""

import socket

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import spacetime
from spacetime.media import video_writer
from spacetime.provenance import keys, manifest
from spacetime.provenance.manifest import Ingredient

SUFFIXES = ('.mp4', '.gif', '.png', '.webp', '.jpg', '.webm')
ABOUT = {'seed': 7, 'prompt_sha256': 'ab'}


@pytest.fixture(scope='module')
def key(tmp_path_factory):
  return keys.make(tmp_path_factory.mktemp('keys') / 'key')


def make(folder, suffix, name='clip'):
  path = folder / f'{name}{suffix}'
  frames = np.random.default_rng(0).integers(0, 255, (3, 32, 48, 3), np.uint8)
  if suffix in ('.webp', '.jpg'):
    Image.fromarray(frames[0]).save(path)
    return path
  frames = frames[:1] if suffix == '.png' else frames
  return video_writer.write_video(path, frames, fps=8)


def sign(path, key, name='signed', **options):
  target = path.with_name(name + path.suffix)
  return manifest.sign(path, target, key, generation=ABOUT, **options)


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_signed_files_are_trusted_until_a_byte_changes(tmp_path, key, suffix):
  path = make(tmp_path, suffix)
  signed = sign(path, key, payload=0xABCD1234)
  report = manifest.verify(signed, roots=[key.root])
  assert (report.state, report.problems) == ('trusted', ())
  assert report.issuer == 'spacetime'
  assert report.generator == f'spacetime {spacetime.__version__}'
  assert report.actions == ('c2pa.created', 'c2pa.watermarked.bound')
  assert report.generation == ABOUT and report.payload == 0xABCD1234
  assert manifest.verify(signed).state == 'valid'  # by an unknown root
  assert manifest.verify(path, roots=[key.root]).state == 'not_present'
  data = bytearray(signed.read_bytes())
  tail = path.read_bytes()[-300:-280]
  start = data.rindex(tail)
  data[start + 10] ^= 1
  signed.write_bytes(data)
  report = manifest.verify(signed, roots=[key.root])
  assert report.state == 'invalid' and report.problems


def test_other_root_is_not_trusted(tmp_path, key):
  other = keys.make(tmp_path / 'other', organization='Someone')
  signed = sign(make(tmp_path, '.png'), other)
  report = manifest.verify(signed, roots=[key.root])
  assert (report.state, report.issuer) == ('valid', 'Someone')
  assert report.problems == ('signingCredential.untrusted',)


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_edits_keep_the_history_of_their_source(tmp_path, key, suffix):
  original = sign(make(tmp_path, suffix), key, 'original')
  edited = sign(
    make(tmp_path, suffix, 'edit'),
    key,
    'edited',
    ingredients=[Ingredient(original, is_parent=True)],
  )
  report = manifest.verify(edited, roots=[key.root])
  assert report.state == 'trusted'
  assert report.actions == ('c2pa.opened', 'c2pa.edited')
  (ingredient,) = report.ingredients
  assert ingredient['relationship'] == 'parentOf' and ingredient['manifest']
  again = sign(
    make(tmp_path, '.mp4', 'third'),
    key,
    'again',
    ingredients=[Ingredient(edited, is_parent=True)],
  )
  report = manifest.verify(again, roots=[key.root])
  assert report.state == 'trusted'
  # Both earlier manifests are in the file, found by their labels.
  data = again.read_bytes()
  first = manifest.verify(edited).ingredients[0]['manifest'].encode()
  assert report.ingredients[0]['manifest'].encode() in data and first in data


@pytest.mark.parametrize('suffix', ('.webm', '.png'))
def test_history_of_a_changed_source_is_kept_as_invalid(tmp_path, key, suffix):
  original = sign(make(tmp_path, suffix), key, 'original')
  data = bytearray(original.read_bytes())
  data[-20] ^= 1
  original.write_bytes(data)
  assert manifest.verify(original).state == 'invalid'
  edited = sign(
    make(tmp_path, '.mp4'),
    key,
    'edited',
    ingredients=[Ingredient(original, is_parent=True)],
  )
  report = manifest.verify(edited, roots=[key.root])
  assert report.ingredients[0]['manifest'], report


def remote_picture(folder, url):
  """A picture that names an address as that of its manifest."""
  info = PngImagePlugin.PngInfo()
  info.add_itxt(
    'XML:com.adobe.xmp',
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/'
    '1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" xmlns:dcterms='
    f'"http://purl.org/dc/terms/" dcterms:provenance="{url}"/></rdf:RDF>'
    '</x:xmpmeta>',
  )
  path = folder / 'remote.png'
  Image.new('RGB', (32, 32), (200, 0, 0)).save(path, pnginfo=info)
  return path


def test_no_manifest_is_fetched(tmp_path, key):
  with socket.create_server(('127.0.0.1', 0)) as server:
    url = f'http://127.0.0.1:{server.getsockname()[1]}/manifest.c2pa'
    path = remote_picture(tmp_path, url)
    report = manifest.verify(path, roots=[key.root])
    assert (report.state, report.problems) == (
      'not_present',
      (manifest.REMOTE,),
    )
    signed = sign(make(tmp_path, '.mp4'), key, ingredients=[Ingredient(path)])
    assert manifest.verify(signed, roots=[key.root]).state == 'trusted'
    server.setblocking(False)
    with pytest.raises(BlockingIOError):  # nobody has connected
      server.accept()


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_broken_manifest_of_an_input_is_left_out(tmp_path, key, suffix):
  original = sign(make(tmp_path, suffix), key, 'original')
  store = manifest.sidecar(original)
  path = store if store.exists() else original
  data, clip = path.read_bytes(), make(tmp_path, '.mp4')
  # The name of a box, and text of the claim.
  for at in (data.index(b'jumb'), data.index(b'claim_generator') + 3):
    path.write_bytes(data[:at] + b'\xff' * 8 + data[at + 8 :])
    ingredients = [Ingredient(original, is_parent=True)]
    signed = sign(clip, key, 'edited', ingredients=ingredients)
    report = manifest.verify(signed, roots=[key.root])
    assert (report.state, len(report.ingredients)) == ('trusted', 1)
    assert report.actions == ('c2pa.opened', 'c2pa.edited')


def test_inputs_are_ingredients(tmp_path, key):
  picture = make(tmp_path, '.png', 'picture')
  signed = sign(make(tmp_path, '.mp4'), key, ingredients=[Ingredient(picture)])
  report = manifest.verify(signed, roots=[key.root])
  assert (report.state, report.actions) == ('trusted', ('c2pa.created',))
  assert report.ingredients[0]['relationship'] == 'inputTo'


def test_refusals(tmp_path, key):
  path = make(tmp_path, '.mp4')
  before = path.read_bytes()
  with pytest.raises(spacetime.SettingError, match='another file than the'):
    manifest.sign(path, path, key, generation={})
  assert path.read_bytes() == before
  text = tmp_path / 'a.txt'
  text.write_text('x')
  with pytest.raises(spacetime.SettingError, match='a file of .mp4'):
    manifest.verify(text)
  with pytest.raises(ValueError, match='no such file'):
    manifest.verify(tmp_path / 'b.mp4')
  broken = tmp_path / 'broken.mp4'
  broken.write_bytes(b'broken')
  with pytest.raises(ValueError, match='cannot be signed'):
    sign(broken, key)
  assert not (tmp_path / 'signed.mp4').exists()
  assert manifest.verify(broken).state in ('invalid', 'not_present')
  with pytest.raises(spacetime.SettingError, match='a new folder'):
    keys.make(tmp_path)
  with pytest.raises(spacetime.SettingError, match='signing.pem'):
    keys.load(tmp_path)


def test_private_files_are_private(key):
  for name in keys.FILES:
    assert (key.folder / name).stat().st_mode & 0o077 == 0
  assert 'PRIVATE' not in repr(key)
