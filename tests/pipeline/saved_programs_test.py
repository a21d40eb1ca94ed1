"""Programs of sampling, compiled ahead of time and loaded."""

import dataclasses
import hashlib
import json
import shutil

import jax
import numpy as np
import pytest

import spacetime
from spacetime import SettingError, SettingWarning, sharding
from spacetime.pipeline import compile_ahead, saved_programs
from spacetime.pipeline import pipeline as pipeline_lib
from spacetime.pipeline.request import Request
from tests.helpers import published_folder

SETTINGS = dict(frames=5, size='32x16', prompt_embeds_cache='')
SAMPLING = dict(steps=2, guidance=1.5)


@pytest.fixture(scope='module')
def wan(tmp_path_factory):
  """A tiny folder whose sizes eight devices divide, and its programs."""
  folder = tmp_path_factory.mktemp('saved')
  text = dataclasses.replace(published_folder.TEXT, d_model=16)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(published_folder, 'TEXT', text)
    published_folder.write(
      folder / 'wan', width=48, heads=8, mlp=48, text_width=16
    )
  return folder


def saved(path, folder, mesh=None):
  """The names of the programs that were saved."""
  request = Request(
    checkpoint=str(path), prompt='', sampling=SAMPLING, **SETTINGS
  )
  mesh = sharding.as_mesh(mesh)
  pipe = pipeline_lib.from_request(request, mesh=mesh)
  store = saved_programs.Store(folder, mesh, new=True)
  return [
    entry.name for entry in compile_ahead.save(request, pipe.engine, store)
  ]


@pytest.mark.slow
@pytest.mark.parametrize(
  'mesh', [None, {'fsdp': 2, 'context': 2, 'tensor': 2, 'data': 1}]
)
def test_sampling_finds_the_programs_that_were_saved(
  mesh, wan, tmp_path, monkeypatch
):
  names = saved(wan / 'wan', tmp_path / 'programs', mesh)
  assert names[:5] == ['embed', 'init', 'start-dit', 'step-dit', 'finalize']
  hits, find = [], saved_programs.Store.find

  def record(self, lowered, name):
    program = find(self, lowered, name)
    hits.append(program is not None)
    return program

  monkeypatch.setattr(saved_programs.Store, 'find', record)
  pipe = spacetime.load(
    str(wan / 'wan'),
    mesh=mesh,
    programs=str(tmp_path / 'programs'),
    progress=False,
  )
  clip = pipe('a red 3', seed=1, **SETTINGS, **SAMPLING)
  assert hits == [True] * len(names)
  if mesh is not None:
    return
  plain = spacetime.load(str(wan / 'wan'), progress=False)
  expected = plain('a red 3', seed=1, **SETTINGS, **SAMPLING)
  np.testing.assert_array_equal(clip.frames, expected.frames)
  # Another shape or setting has programs of its own.
  with pytest.warns(
    SettingWarning, match="its program 'step-dit' is of another"
  ):
    pipe('a red 3', seed=1, **SETTINGS, **(SAMPLING | {'steps': 3}))
  assert not all(hits)


def edited(folder, **changes):
  """A folder of programs with another target."""
  index = folder / saved_programs.INDEX
  values = json.loads(index.read_text())
  values['target'] |= changes
  index.write_text(json.dumps(values))
  return folder


def test_refuses_other_chips_versions_and_flags(wan, tmp_path, monkeypatch):
  mesh = sharding.single_device_mesh()
  folder = tmp_path / 'programs'
  lowered = jax.jit(lambda x: x + 1).lower(np.float32(1))
  store = saved_programs.Store(folder, mesh, new=True)
  store.compile('add', lowered)
  again = saved_programs.Store(folder, mesh)
  assert again.names == ['add']
  assert again.find(lowered)(np.float32(1)) == 2
  assert again.find(jax.jit(lambda x: x + 2).lower(np.float32(1))) is None
  for name, value in (
    ('chips', '8 x TPU v6 lite'),
    ('jaxlib', '0.1.2'),
    ('LIBTPU_INIT_ARGS', '--xla_tpu_scoped_vmem_limit_kib=1'),
    ('mesh', 'data=8'),
    ('processor', 'abacus'),
  ):
    shutil.copytree(folder, tmp_path / name)
    with pytest.raises(
      SettingError, match=f"^programs=.*expected programs for {name} '.*, not "
    ):
      saved_programs.Store(edited(tmp_path / name, **{name: value}), mesh)
  with pytest.raises(SettingError, match='^programs=.*made by spacetime compi'):
    spacetime.load(
      str(wan / 'wan'), programs=str(tmp_path / 'none'), progress=False
    )
  with pytest.raises(SettingError, match='^save=.*a new folder'):
    saved_programs.Store(wan / 'wan', mesh, new=True)
  (file,) = folder.glob('*.bin')
  file.write_bytes(file.read_bytes()[:-1])
  with pytest.raises(ValueError, match='missing or damaged'):
    again.find(lowered)
  with pytest.raises(ValueError, match='missing or damaged'):
    saved_programs.Store(folder, mesh)
  index = folder / saved_programs.INDEX
  values = json.loads(index.read_text())
  (entry,) = values['programs'].values()
  for key in entry:
    programs = {'0': {k: v for k, v in entry.items() if k != key}}
    for other in (programs, {'0': [1]}, [1]):
      index.write_text(json.dumps(values | {'programs': other}))
      with pytest.raises(ValueError, match='programs.json: damaged'):
        saved_programs.Store(folder, mesh)
  index.write_text('{')
  with pytest.raises(ValueError, match='programs.json: damaged'):
    saved_programs.Store(folder, mesh)


def test_processors_of_one_name_may_lack_instructions(tmp_path):
  """Virtual machines of several generations share a name."""
  names = []
  for number, text in enumerate(
    (
      'model name\t: Intel Xeon\nflags\t\t: fpu avx2 amx_bf16\n',
      'model name\t: Intel Xeon\nflags\t\t: avx2 fpu amx_bf16\n',
      'model name\t: Intel Xeon\nflags\t\t: fpu avx2\n',
      'processor\t: 0\nFeatures\t: fp asimd\n',
      'processor\t: 0\nFeatures\t: fp asimd sve\n',
    )
  ):
    path = tmp_path / str(number)
    path.write_text(text)
    names.append(saved_programs.processor(str(path)))
  assert names[0] == names[1] and len(set(names)) == 4
  assert names[0].startswith('Intel Xeon (')
  assert saved_programs.processor(str(tmp_path / 'none'))


def test_a_program_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
  mesh = sharding.single_device_mesh()
  lowered = jax.jit(lambda x: x + 1).lower(np.float32(1))
  saved_programs.Store(tmp_path / 'a', mesh, new=True).compile('add', lowered)
  index = tmp_path / 'a' / saved_programs.INDEX
  values = json.loads(index.read_text())
  (entry,) = values['programs'].values()
  data = b'of another runtime'
  (tmp_path / 'a' / entry['file']).write_bytes(data)
  entry['sha256'] = hashlib.sha256(data).hexdigest()
  index.write_text(json.dumps(values))
  store = saved_programs.Store(tmp_path / 'a', mesh)
  with pytest.raises(
    ValueError, match='add-.*bin: cannot be loaded here .*; m'
  ):
    store.find(lowered)


def test_programs_of_other_settings_are_reported_once(tmp_path, recwarn):
  mesh = sharding.single_device_mesh()
  folder = tmp_path / 'programs'
  add = jax.jit(lambda x: x + 1)
  store = saved_programs.Store(folder, mesh, new=True)
  store.compile('step-dit', add.lower(np.float32(1)))
  again = saved_programs.Store(folder, mesh)
  other = add.lower(np.ones(2, np.float32))
  assert again.find(other, 'encode_first') is None
  assert not recwarn
  for _ in range(2):
    assert again.find(other, 'step-dit') is None
  (warning,) = recwarn
  assert str(warning.message).startswith(
    f"programs='{folder}': its program 'step-dit' is of another model, size"
  )


def test_refuses_a_folder_that_cannot_be_written(tmp_path):
  mesh = sharding.single_device_mesh()
  file = tmp_path / 'file'
  file.write_text('')
  for folder in (file, file / 'programs', '/proc/none/programs'):
    with pytest.raises(SettingError, match='^save=.*cannot be written'):
      saved_programs.Store(folder, mesh, new=True)


@pytest.mark.slow
def test_programs_of_an_image_to_video_model(tmp_path):
  published_folder.write(
    tmp_path / 'wan', cond_channels=published_folder.COND_CHANNELS
  )
  names = saved(tmp_path / 'wan', tmp_path / 'programs')
  assert 'step-dit' in names
  picture = np.zeros((16, 32, 3), np.uint8)
  pipe = spacetime.load(
    str(tmp_path / 'wan'),
    programs=str(tmp_path / 'programs'),
    progress=False,
  )
  with pytest.MonkeyPatch.context() as patch:
    hits, find = {}, saved_programs.Store.find

    def record(self, lowered, name):
      program = find(self, lowered, name)
      hits[len(hits)] = program is not None
      return program

    patch.setattr(saved_programs.Store, 'find', record)
    pipe('a red 3', image=picture, **SETTINGS, **SAMPLING)
  assert sum(hits.values()) == len(names)
