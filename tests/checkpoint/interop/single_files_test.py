"""Single files as ComfyUI and Wan's own repository publish them."""

import dataclasses
import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from spacetime import SettingError, SettingWarning, sharding
from spacetime.checkpoint import convert, init_weights, load
from spacetime.checkpoint.interop import (
  folders,
  network_files,
  networks,
  parts,
  umt5,
  wan_transformer,
  wan_vae,
)
from spacetime.models import text_encoder
from spacetime.models.autoencoder import wan
from tests.helpers import original_names, published_folder, torch_archive

# Sizes that follow from the tensors: heads of 128, known latent channels.
TRANSFORMER = dataclasses.replace(
  published_folder.TRANSFORMER, width=128, heads=1, channels=16
)
VAE = dataclasses.replace(
  published_folder.VAE,
  z_dim=16,
  latents_mean=wan.WAN21_MEAN,
  latents_std=wan.WAN21_STD,
)
VAE22 = dataclasses.replace(
  published_folder.VAE22,
  z_dim=48,
  latents_mean=wan_vae.WAN22_MEAN,
  latents_std=wan_vae.WAN22_STD,
)
TEXT = published_folder.TEXT


def original(config) -> dict[str, np.ndarray]:
  """Seeded tensors with the original repository's names."""
  kind = networks.of(config).kind
  tensors = published_folder.drawn(config)
  if kind == 'transformer':
    rename = wan_transformer.original_name
  elif kind == 'text_encoder':
    rename = original_names.umt5
  else:

    def rename(name):
      return original_names.vae(
        name, blocks=config.num_res_blocks, residual=config.is_residual
      )

  return {rename(name): tensor for name, tensor in tensors.items()}


def save(path, tensors, metadata=None):
  path.parent.mkdir(exist_ok=True)
  tensors = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
  safetensors.numpy.save_file(tensors, path, metadata=metadata)
  return str(path)


def mesh():
  return sharding.single_device_mesh()


def same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The model as a diffusers folder."""
  path = published_folder.write(tmp_path_factory.mktemp('a') / 'wan')
  for name, config in (('transformer', TRANSFORMER), ('vae', VAE)):
    published_folder.write_part(path / name, config)
  return path


@pytest.fixture(scope='module')
def files(folder, tmp_path_factory):
  """The same model as single files, the tokenizer inside the text encoder's."""
  root = tmp_path_factory.mktemp('comfy')
  text = published_folder.drawn(TEXT)
  pieces = (folder / 'tokenizer/spiece.model').read_bytes()
  text['spiece_model'] = np.frombuffer(pieces, np.uint8)
  prefixed = {
    f'model.diffusion_model.{k}': v for k, v in original(TRANSFORMER).items()
  }
  return network_files.Files(
    transformer=save(root / 'wan.safetensors', prefixed),
    vae=save(root / 'vae.safetensors', original(VAE)),
    text_encoder=save(root / 'umt5.safetensors', text),
  )


@pytest.mark.slow
@pytest.mark.parametrize('config', [VAE, VAE22, TEXT, TRANSFORMER], ids=repr)
@pytest.mark.parametrize('form', ['safetensors', 'pth'])
def test_original_names(config, form, tmp_path):
  """One file with the original names, its sizes taken from its tensors."""
  kind = networks.of(config).kind
  path = tmp_path / f'x.{form}'
  writer = save if form == 'safetensors' else torch_archive.save
  writer(path, original(config))
  part = parts.open_part(path, kind)
  expected = dataclasses.replace(config)
  assert part.config == expected
  published_folder.write_part(tmp_path / 'd', config)
  other = parts.open_part(tmp_path / 'd', kind)
  same(part.load(mesh()), other.load(mesh()))


@pytest.mark.slow
@pytest.mark.parametrize(
  'config',
  [
    wan.PRESETS['wan2.1'],
    dataclasses.replace(
      wan.PRESETS['wan2.2'],
      latents_mean=wan_vae.WAN22_MEAN,
      latents_std=wan_vae.WAN22_STD,
    ),
    text_encoder.PRESETS['umt5-xxl'],
  ],
  ids=['vae 2.1', 'vae 2.2', 'umt5'],
)
def test_names_and_sizes_at_full_size(config):
  """Shapes alone: nothing is allocated."""
  network = networks.of(config)
  shapes = network.published_shapes()
  table = networks.FORMATS[network.kind]
  for name in shapes:
    if network.kind == 'text_encoder':
      other = original_names.umt5(name)
    else:
      other = original_names.vae(
        name, blocks=config.num_res_blocks, residual=config.is_residual
      )
    assert other != name or 'time_conv' in name
  names = (
    [original_names.umt5(name) for name in shapes]
    if network.kind == 'text_encoder'
    else [
      original_names.vae(
        name, blocks=config.num_res_blocks, residual=config.is_residual
      )
      for name in shapes
    ]
  )
  assert list(table.published_names(names).values()) == list(shapes)
  assert table.infer_config(shapes, 'here') == config


def test_a_model_of_single_files(folder, files):
  model = load.open_model(None, mesh=mesh(), files=files)
  other = load.open_model(str(folder), mesh=mesh())
  assert model.tokenizer.serialized == other.tokenizer.serialized
  assert model.networks == other.networks
  for root in ('dit', 'text', 'autoencoder'):
    same(model.read(root), other.read(root))
  # The file of a transformer as `checkpoint`, the rest as files.
  rest = dataclasses.replace(files, transformer=None)
  alone = load.open_model(files.transformer, mesh=mesh(), files=rest)
  assert alone.weights_hash == model.weights_hash
  # A folder with one network replaced.
  one = load.open_model(
    str(folder), mesh=mesh(), files=network_files.Files(vae=files.vae)
  )
  assert one.weights_hash == other.weights_hash


@pytest.mark.parametrize(
  'residual, second, shift', [(False, False, 3), (False, True, 12)]
)
def test_settings_of_single_files(residual, second, shift, files):
  del residual
  if second:
    files = dataclasses.replace(files, transformer_2=files.transformer)
  pipeline = folders.open_pipeline(None, files=files)
  assert pipeline.scheduler['flow_shift'] == shift
  assert pipeline.boundary == (0.875 if second else None)


def test_one_file_of_all_networks(folder, files, tmp_path):
  tensors = {}
  for name, prefix in (
    ('transformer', ''),
    ('vae', 'vae.'),
    ('text_encoder', 'text_encoders.umt5xxl.transformer.'),
  ):
    part = safetensors.numpy.load_file(getattr(files, name))
    tensors |= {f'{prefix}{key}': value for key, value in part.items()}
  path = save(tmp_path / 'all.safetensors', tensors)
  model = load.open_model(path, mesh=mesh())
  other = load.open_model(str(folder), mesh=mesh())
  for root in ('dit', 'text', 'autoencoder'):
    same(model.read(root), other.read(root))


def test_scaled_float8(files, tmp_path):
  """The transformer computes in bfloat16 with the scaled weights."""
  tensors = original(TRANSFORMER)
  expected = dict(tensors)
  for name in list(tensors):
    if tensors[name].ndim == 2 and name.startswith('blocks.'):
      half = (tensors[name] / 0.5).astype(ml_dtypes.float8_e4m3fn)
      expected[name] = 0.5 * np.float32(half)
      tensors[name] = half
      tensors[f'{name.removesuffix("weight")}scale_weight'] = np.float32([0.5])
    else:
      tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)
  tensors['scaled_fp8'] = np.zeros(2, ml_dtypes.float8_e4m3fn)
  path = save(tmp_path / 'fp8.safetensors', tensors)
  part = parts.open_part(path, 'transformer')
  assert part.dtype == ml_dtypes.bfloat16
  kernel = part.load(mesh())['blocks']['mlp_in']['kernel']
  assert kernel.dtype == jnp.bfloat16
  np.testing.assert_array_equal(
    np.float32(kernel[1]),
    np.float32(expected['blocks.1.ffn.0.weight'].T.astype(ml_dtypes.bfloat16)),
  )
  wide = part.load(mesh(), dtype=np.float32)['blocks']['mlp_in']['kernel']
  np.testing.assert_array_equal(wide[1], expected['blocks.1.ffn.0.weight'].T)
  model = load.open_model(
    None, mesh=mesh(), files=dataclasses.replace(files, transformer=path)
  )
  assert model.experiment.model.dtype == 'bfloat16'


@pytest.mark.parametrize(
  'missing, text',
  [
    ('vae', 'vae=None: expected a file of an autoencoder, which .*wan.safet'),
    ('text_encoder', 'text_encoder=None: expected a file of a UMT5 text'),
  ],
)
def test_missing_files(missing, text, files):
  files = dataclasses.replace(files, **{missing: None})
  with pytest.raises(SettingError, match=text):
    folders.open_pipeline(None, files=files)


def test_wrong_files(files, tmp_path):
  swapped = dataclasses.replace(files, vae=files.text_encoder)
  with pytest.raises(
    ValueError, match='umt5.safetensors is a text encoder .*: expected an auto'
  ):
    folders.open_pipeline(None, files=swapped)
  text = published_folder.drawn(TEXT)
  path = save(tmp_path / 'umt5.safetensors', text)
  without = dataclasses.replace(files, text_encoder=path)
  with pytest.raises(SettingError, match='tokenizer=None: expected a sentence'):
    folders.open_pipeline(None, files=without)
  bad = tmp_path / 'spiece.model'
  bad.write_bytes(b'no model')
  without = dataclasses.replace(without, tokenizer=str(bad))
  with pytest.raises(ValueError, match='spiece.model: no tokenizer'):
    load.open_model(None, mesh=mesh(), files=without)
  with pytest.raises(
    SettingError, match="checkpoint='digits': expected a publ"
  ):
    load.open_model(
      'digits', mesh=mesh(), files=network_files.Files(vae=files.vae)
    )
  tiny = published_folder.drawn(published_folder.VAE)
  path = save(tmp_path / 'vae.safetensors', tiny)
  with pytest.raises(
    ValueError, match='statistics of 3 latent channels are un'
  ):
    parts.open_part(path, 'vae')


@pytest.mark.parametrize(
  'config, name',
  [
    (TRANSFORMER, 'patch_embedding.weight'),
    (TRANSFORMER, 'head.head.weight'),
    (TRANSFORMER, 'time_embedding.0.weight'),
    (TRANSFORMER, 'text_embedding.0.weight'),
    (TRANSFORMER, 'blocks.0.ffn.0.weight'),
    (VAE, 'encoder.conv1.weight'),
    (VAE, 'conv2.weight'),
    (VAE, 'decoder.head.2.weight'),
    (VAE, 'encoder.downsamples.0.residual.6.weight'),
    (TEXT, 'token_embedding.weight'),
    (TEXT, 'blocks.0.pos_embedding.embedding.weight'),
    (TEXT, 'blocks.0.attn.q.weight'),
    (TEXT, 'blocks.0.ffn.gate.0.weight'),
  ],
)
def test_sizes_of_damaged_tensors(config, name, tmp_path):
  """Sizes that follow from no tensor of such axes are refused by its name."""
  tensors, kind = original(config), networks.of(config).kind
  for shape in ((), (3,), (3, 0)):
    damaged = tensors | {name: np.zeros(shape, np.float32)}
    path = save(tmp_path / 'x.safetensors', damaged)
    with pytest.raises(ValueError, match='x.safetensors: .* of 1 or more, fro'):
      parts.open_part(path, kind)


def test_sizes_that_fit_no_network(tmp_path):
  tensors = original(TRANSFORMER) | {'head.head.weight': np.zeros((512, 128))}
  tensors = {k: np.float32(v) for k, v in tensors.items()}
  path = save(tmp_path / 'x.safetensors', tensors)
  with pytest.raises(ValueError, match='x.safetensors: model.cond_channels=-'):
    parts.open_part(path, 'transformer')


@pytest.mark.parametrize(
  'config, name',
  [
    (TRANSFORMER, 'blocks.999999999.ffn.0.weight'),
    (TEXT, 'blocks.999999999.attn.q.weight'),
  ],
)
def test_a_layer_of_a_large_number(config, name, tmp_path):
  tensors = original(config) | {name: np.zeros(3, np.float32)}
  path = save(tmp_path / 'x.safetensors', tensors)
  with pytest.raises(
    ValueError, match='x.safetensors: expected the .* missing'
  ):
    parts.open_part(path, networks.of(config).kind)


def test_the_file_of_a_transformer_beside_another(folder, files, tmp_path):
  other = save(tmp_path / 'other.safetensors', original(TRANSFORMER))
  text = (
    'other.safetensors.*expected none beside .*, which is a transformer too'
  )
  both = dataclasses.replace(files, transformer=other)
  for path in (files.transformer, str(folder / 'transformer')):
    with pytest.raises(SettingError, match=text):
      load.open_model(path, mesh=mesh(), files=both)
    with pytest.raises(SettingError, match=text):
      convert.convert(path, tmp_path / 'ours', files=both)
    nets = load.open_model(str(folder), mesh=mesh()).networks
    frozen = dataclasses.replace(nets, text_kind='frozen')
    with pytest.raises(SettingError, match=text):
      init_weights.open_base(path, frozen, files=both)
  with pytest.warns(SettingWarning, match="variant='bf16': no effect"):
    convert.convert(None, tmp_path / 'ours', files=files, variant='bf16')


def test_converts_single_files(folder, files, tmp_path):
  convert.convert(None, tmp_path / 'ours', files=files)
  convert.convert(tmp_path / 'ours', tmp_path / 'back')
  for name in ('transformer', 'vae', 'text_encoder'):
    back = published_folder.tensors(tmp_path / 'back' / name)
    expected = published_folder.tensors(folder / name)
    assert back.keys() == expected.keys()
    for key, tensor in expected.items():
      np.testing.assert_array_equal(back[key], tensor)
  rest = dataclasses.replace(files, transformer=None)
  convert.convert(files.transformer, tmp_path / 'again', files=rest)
  with pytest.raises(SettingError, match='a published folder beside files'):
    convert.convert(tmp_path / 'ours', tmp_path / 'c', files=rest)


def test_training_starts_from_single_files(folder, files):
  nets = load.open_model(str(folder), mesh=mesh()).networks
  frozen = dataclasses.replace(nets, text_kind='frozen')
  base = init_weights.open_base(None, frozen, files=files)
  other = init_weights.open_base(str(folder), frozen)
  assert base.fingerprint == other.fingerprint
  assert (base.autoencoder, base.text) == (other.autoencoder, other.text)
  assert base.source()['path'].endswith('wan.safetensors')


WRAPPERS = [
  *('module.', '_orig_mod.', 'module._orig_mod.', '_fsdp_wrapped_module.'),
  *('model.', 'net.', 'generator.model.', 'model._fsdp_wrapped_module.'),
]


@pytest.mark.slow
@pytest.mark.parametrize('prefix', WRAPPERS)
@pytest.mark.parametrize('config', [TRANSFORMER, VAE, VAE22, TEXT], ids=repr)
def test_modules_that_wrap_a_network(config, prefix, tmp_path):
  """Names of checkpoints of trainers, of each network and dialect."""
  kind = networks.of(config).kind
  for tensors in (original(config), published_folder.drawn(config)):
    wrapped = {f'{prefix}{name}': array for name, array in tensors.items()}
    path = save(tmp_path / 'x.safetensors', wrapped)
    assert parts.open_part(path, kind).config == config
    wrapped[min(tensors)] = tensors[min(tensors)]  # the same tensor twice
    path = save(tmp_path / 'y.safetensors', wrapped)
    with pytest.raises(ValueError, match='has tensors under two names: '):
      parts.open_part(path, kind)


def test_modules_that_wrap_blocks(tmp_path):
  tensors = {
    name.replace('attn1.', '_checkpoint_wrapped_module._orig_mod.attn1.'): array
    for name, array in published_folder.drawn(TRANSFORMER).items()
  }
  path = save(tmp_path / 'x.safetensors', tensors)
  assert parts.open_part(path, 'transformer').config == TRANSFORMER


@pytest.mark.parametrize('end', ['.pt', '.pth', '.bin', '.ckpt', '.json', ''])
def test_safetensors_of_any_name(end, files, tmp_path):
  for kind in ('transformer', 'vae', 'text_encoder'):
    path = tmp_path / f'{kind}{end}'
    shutil.copy(getattr(files, kind), path)
    part = parts.open_part(path, kind)
    assert part.config == parts.open_part(getattr(files, kind), kind).config


def test_placeholders_of_files_that_were_not_downloaded(files, tmp_path):
  folder = tmp_path / 'x.safetensors'
  folder.mkdir()
  pointer, page = tmp_path / 'lfs', tmp_path / 'page'
  pointer.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:')
  page.write_text('\n<!DOCTYPE html><html>Not Found</html>')
  for path, text in (
    (folder, 'x.safetensors: a folder: expected a file'),
    (pointer, 'lfs.* is a pointer of git-lfs: expected the file itself'),
    (page, 'page.* is a web page: expected the file itself; download it again'),
  ):
    for end in ('.safetensors', '.pth', '.gguf', '.json'):
      if path != folder:
        path = shutil.copy(path, path.with_suffix(end))
      with pytest.raises(ValueError, match=text):
        parts.open_part(path, 'vae')


def test_transformers_of_other_sizes(files, tmp_path):
  other = dataclasses.replace(TRANSFORMER, layers=3, mlp=44)
  path = save(tmp_path / 'x.safetensors', original(other))
  both = dataclasses.replace(files, transformer_2=path)
  with pytest.raises(
    ValueError, match='x.safetensors has layers=3, not 2; mlp=44, not 40: exp'
  ) as e:
    folders.open_pipeline(None, files=both)
  assert len(str(e.value)) < 400


def test_one_file_as_both_transformers(files):
  both = dataclasses.replace(files, transformer_2=files.transformer)
  with pytest.warns(
    SettingWarning, match='transformer_2=.*: the same as `transformer`: exp'
  ):
    folders.open_pipeline(None, files=both)


def test_weights_that_are_not_finite(folder, tmp_path):
  tensors = published_folder.drawn(TRANSFORMER, jnp.bfloat16)
  tensors['blocks.1.attn1.to_q.weight'][3, 4] = np.inf
  published_folder.write_part(tmp_path, TRANSFORMER, tensors=tensors)
  part = parts.open_part(tmp_path, 'transformer')
  with pytest.raises(
    ValueError, match=r'blocks.1.attn1.to_q.weight: expected finite numbers'
  ):
    part.load(mesh())


def test_config_of_another_network_is_not_read(files, tmp_path):
  """Wan's own folders hold one config.json, of the transformer."""
  save(tmp_path / 'diffusion_pytorch_model.safetensors', original(TRANSFORMER))
  values = dict(_class_name='WanModel', dim=128, num_heads=2, ffn_dim=40)
  values |= dict(num_layers=2, in_dim=16, out_dim=16, freq_dim=16, text_dim=12)
  (tmp_path / 'config.json').write_text(json.dumps(values))
  save(tmp_path / 'Wan2.1_VAE.safetensors', original(VAE))
  assert parts.open_part(tmp_path, 'transformer').config.heads == 2
  path = tmp_path / 'Wan2.1_VAE.safetensors'
  assert parts.open_part(path, 'vae').config == VAE
  assert umt5.TOKENIZER not in parts.open_part(path, 'vae').extra


@pytest.mark.parametrize('two', [False, True])
def test_folders_of_the_original_repository(two, folder, files, tmp_path):
  """config.json and shards beside .pth files of the other networks."""
  parts = ('high_noise_model', 'low_noise_model') if two else ('.',)
  for part in parts:
    save(
      tmp_path / part / 'diffusion_pytorch_model.safetensors',
      original(TRANSFORMER),
    )
  torch_archive.save(tmp_path / 'Wan2.1_VAE.pth', original(VAE))
  torch_archive.save(tmp_path / 'models_t5_umt5-xxl.pth', original(TEXT))
  tokenizer = tmp_path / 'google/umt5-xxl'
  tokenizer.mkdir(parents=True)
  pieces = (folder / 'tokenizer/spiece.model').read_bytes()
  (tokenizer / 'spiece.model').write_bytes(pieces)
  model = load.open_model(str(tmp_path), mesh=mesh())
  other = load.open_model(str(folder), mesh=mesh())
  assert ('dit_2' in model.readers) == two
  for root in ('dit', 'text', 'autoencoder'):
    same(model.read(root), other.read(root))
  target = tmp_path / 'ours'
  chosen = 'transformer_2' if two else None
  convert.convert(tmp_path, target, transformer=chosen)
  frozen = dataclasses.replace(model.networks, text_kind='frozen')
  if two:
    with pytest.raises(SettingError, match='one of its two transformers'):
      init_weights.open_base(str(tmp_path), frozen)
  else:
    base = init_weights.open_base(str(tmp_path), frozen)
    assert (
      base.autoencoder
      == init_weights.open_base(None, frozen, files=files).autoencoder
    )


def test_one_file_that_replaces_two_transformers(folder, files, tmp_path):
  two = tmp_path / 'two'
  shutil.copytree(folder, two)
  shutil.copytree(folder / 'transformer', two / 'transformer_2')
  published_folder.change_index(two, boundary_ratio=0.875)
  one = network_files.Files(transformer=files.transformer)
  with pytest.warns(SettingWarning, match='in place of both transformers of'):
    model = load.open_model(str(two), mesh=mesh(), files=one)
  assert 'dit_2' not in model.readers
  copy = shutil.copy(files.transformer, tmp_path / 'copy.safetensors')
  both = dataclasses.replace(one, transformer_2=str(copy))
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    model = load.open_model(str(two), mesh=mesh(), files=both)
    assert 'dit_2' in model.readers
    load.open_model(str(two / 'transformer'), mesh=mesh())


def test_the_transformer_is_judged_first(files):
  """A wrong file is named before the missing ones."""
  with pytest.raises(ValueError, match='vae.safetensors is a Wan autoencoder'):
    load.open_model(files.vae, mesh=mesh())


def test_image_encoder_file(folder, files, tmp_path):
  """Image to video of Wan 2.1 as single files: CLIP's sizes are inferred."""
  sizes = dataclasses.replace(
    published_folder.IMAGE, hidden_size=80, num_attention_heads=1
  )
  transformer = dataclasses.replace(
    TRANSFORMER, cond_channels=18, image_width=80
  )
  path = save(tmp_path / 'clip.safetensors', published_folder.drawn(sizes))
  part = parts.open_part(path, 'image_encoder')
  assert part.config == sizes
  own = dataclasses.replace(
    files,
    transformer=save(tmp_path / 'i2v.safetensors', original(transformer)),
  )
  with pytest.raises(SettingError, match='^image_encoder=None: expected a f'):
    load.open_model(None, mesh=mesh(), files=own)
  complete = dataclasses.replace(own, image_encoder=path)
  model = load.open_model(None, mesh=mesh(), files=complete)
  assert model.networks.image.config.hidden_size == 80
  same(model.read('image'), part.load(mesh()))
  text = dataclasses.replace(files, image_encoder=path)
  with pytest.raises(SettingError, match='^image_encoder=.*expected none'):
    load.open_model(None, mesh=mesh(), files=text)
  names = {
    'visual.transformer.0.attn.to_qkv.weight': np.zeros((3, 1), np.float32)
  }
  other = save(tmp_path / 'open_clip.safetensors', names)
  with pytest.raises(ValueError, match='with names of open_clip'):
    parts.open_part(other, 'image_encoder')
  published_folder.write_part(tmp_path / 'narrow', published_folder.IMAGE)
  (tmp_path / 'narrow' / 'config.json').unlink()
  with pytest.raises(ValueError, match='heads do not follow from a width of 8'):
    parts.open_part(tmp_path / 'narrow', 'image_encoder')


def test_a_folder_without_its_image_encoder(tmp_path):
  """Wan 2.1 I2V sees embeddings of CLIP, whose weights are a network of their
  own."""
  image = published_folder.IMAGE
  folder = published_folder.write(
    tmp_path / 'wan',
    image=image,
    cond_channels=published_folder.COND_CHANNELS,
    image_width=image.hidden_size,
  )
  encoder = (folder / 'image_encoder').rename(tmp_path / 'clip')
  with pytest.raises(
    SettingError,
    match='^image_encoder=None: expected a file of a CLIP image encoder, since '
    '.*/transformer sees embeddings of images and .*/wan has no image_encoder$',
  ):
    folders.open_pipeline(folder)
  files = network_files.Files(image_encoder=str(encoder))
  text = published_folder.write(tmp_path / 'text')
  with pytest.raises(
    SettingError, match='^image_encoder=.*: expected none, since .*/text/transf'
  ):
    folders.open_pipeline(text, files=files)
  assert folders.open_pipeline(folder, files=files).image_encoder
