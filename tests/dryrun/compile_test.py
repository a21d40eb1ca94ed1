"""The dry run: names of slices, the compiled text read, memory, verdicts."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import platform
import subprocess
import sys

import jax
import pytest

from experiments import digits, digits_autoencoder, pods
from spacetime.config import networks, parse
from spacetime.dryrun import hlo, programs, report, roofline
from spacetime.sharding import chips, topology
from spacetime.training import loop, run

ROOT = pathlib.Path(__file__).parents[2]
GIB = 2**30


@pytest.mark.parametrize(
  'name, raw, count, devices',
  [
    ('v5e-256', 'v5e:16x16', 256, 256),
    ('v5litepod-8', 'v5e:2x4', 8, 8),
    ('v6e-256', 'v6e:16x16', 256, 256),
    ('v5p-256', 'v5p:4x4x8', 128, 128),  # TensorCores
    ('tpu7x-128', 'tpu7x:4x4x4', 64, 128),  # TensorCores, a device each
    ('V6e:4x8', 'v6e:4x8', 32, 32),
    ('v5p:4x4x12', 'v5p:4x4x12', 192, 192),
  ],
)
def test_slices_by_name(name, raw, count, devices):
  found = topology.parse(name)
  assert (found.raw, found.chips, found.devices) == (raw, count, devices)
  assert topology.parse(name, slices=3).devices == 3 * devices


@pytest.mark.parametrize(
  'name, text',
  [
    ('v5p-250', 'no such slice; the nearest is v5p-256'),
    ('v6e-300', 'the nearest is v6e-256'),
    ('v5-litepod-16', 'the nearest is v5litepod-16'),
    ('v9:2x2', 'no such slice'),
    ('v6e:4x4x4', '3 sides, expected 2, such as v6e:4x4'),
    ('v5p:4by4', 'expected sides in chips after the colon.*v5p:4x4x4'),
  ],
)
def test_unknown_slices_name_the_nearest(name, text):
  with pytest.raises(ValueError, match=text):
    topology.parse(name)


def test_refuses_no_slices_and_a_missing_compiler(monkeypatch):
  with pytest.raises(ValueError, match='--num_slices=0: expected 1 or more'):
    topology.parse('v5e-8', slices=0)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r'pip install .*\[tpu-compile\]'):
    topology.devices(topology.parse('v5e-8'))


def test_peaks_and_options_by_kind_of_device():
  assert chips.utilisation(459e12, kind='TPU v5', devices=2) == 0.5
  assert chips.utilisation(1.0, kind='abacus', devices=2) is None
  assert chips.options('cpu') == {}
  fused = 'xla_tpu_enable_async_collective_fusion'
  exchanged = 'xla_tpu_enable_async_all_to_all'  # which v5e cannot
  assert exchanged not in chips.options('TPU v5 lite')
  assert exchanged in chips.options('TPU v5')
  assert fused in chips.options('TPU v5 lite')
  assert fused not in chips.options('TPU v6 lite')
  for chip in chips.CHIPS:
    assert all(isinstance(v, str) for v in chip.options.values())


def gather(shape, kind='all-gather', count=1, axes=('context',)):
  arrays = (hlo.Array('bf16', shape),)
  return hlo.Collective(kind, arrays, 8, axes, count, 'here')


def test_whole_activations_are_told_from_weights():
  weights = roofline.layer_weights(
    {'/dit/blocks/q/kernel': (4, 64, 96), '/dit/head/kernel': (96, 80)},
    layers=4,
    tensor=2,
  )
  assert 64 * 96 in weights and 96 * 80 // 2 in weights
  exchanged = [
    gather((64, 96)),
    gather((1, 100, 60)),
    gather((1, 10, 60)),
    gather((1, 50, 120), kind='all-reduce'),  # a gather by another name
    gather((1, 50, 120), kind='all-reduce', axes=('tensor',)),
    gather((64, 96), kind='all-reduce'),
    gather((1, 100, 60), kind='all-to-all'),
  ]

  whole = roofline.whole_activations(
    exchanged, elements=100 * 60, weights=weights
  )
  found = [(c.kind, c.arrays[0].shape) for c in whole]
  assert found == [
    ('all-gather', (1, 100, 60)),
    ('all-reduce', (1, 50, 120)),
  ]


OUT = (
  'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in '
  'memory space hbm. Used 120.24G of 95.74G hbm. Exceeded hbm capacity by 24G.'
)


def test_out_of_memory_is_read():
  used, limit = roofline.refused(OUT)
  assert (used / GIB, limit / GIB) == (pytest.approx(120.24), 95.74)
  assert roofline.refused('INTERNAL: something else') is None
  assert roofline.refused('Ran out of memory in memory space vmem') is None


def test_memory_adds_up_and_decides():
  fits = roofline.Memory({'parameters': 3.0, 'temporaries': 4.0}, 8.0)
  assert (fits.total, fits.fits) == (7.0, True)
  assert not roofline.Memory({'parameters': 9.0}, 8.0).fits
  assert not roofline.Memory({'parameters': 1.0}, 8.0, told=7.0).fits


@pytest.mark.parametrize(
  'state, mesh, rows, remat, text',
  [
    (7, dict(data=2, fsdp=4, context=1), 1, 'full', 'move mesh.data=2 to mesh'),
    (7, dict(data=1, fsdp=8, context=1), 1, 'full', 'slice of more chips'),
    (1, dict(data=1, fsdp=8, context=1), 1, 'none', "model.remat='attention'"),
    (1, dict(data=1, fsdp=8, context=1), 4, 'full', 'train.accumulate=4'),
    (1, dict(data=1, fsdp=8, context=4), 1, 'full', 'mesh.context=8'),
    (1, dict(data=1, fsdp=1, context=4), 1, 'attention', "'offload'"),
    (1, dict(data=1, fsdp=1, context=4), 1, 'full', 'slice of more chips'),
  ],
)
def test_what_does_not_fit_says_what_to_change(state, mesh, rows, remat, text):
  memory = roofline.Memory({'parameters': float(state)}, 8.0, told=12.0)
  told = roofline.advice(
    memory, mesh=mesh, rows=rows, remat=remat, moved=('parameters',)
  )
  assert text in told


def test_exchanges_take_the_links_that_they_span():
  chip = topology.parse('v5p-256').chip
  one = gather((1000, 1000))
  wire = 2e6 * 7 / 8

  def seconds(collective, **kwargs):
    return roofline.exchange_seconds(
      collective, chip, **dict(axes=1, dcn=False) | kwargs
    )

  assert seconds(one) == pytest.approx(wire / (2 * chip.link))
  assert seconds(one, axes=2) == pytest.approx(wire / (4 * chip.link))
  assert seconds(one, dcn=True) == pytest.approx(wire / chip.dcn)
  moved = gather((1000, 1000), kind='collective-permute', count=3)
  assert seconds(moved) == pytest.approx(3 * 2e6 / chip.link)
  swapped = gather((1000, 1000), kind='all-to-all')
  assert seconds(swapped) == pytest.approx(wire * 2 / (2 * chip.link))
  assert roofline.sides([(0, 0, 1), (0, 1, 2), (0, 1, 0)]) == 2
  assert roofline.sides([(0, 0, 0)]) == 1


def test_the_roofline_is_its_slowest_part():
  found = roofline.Roofline(
    matrix=2.0, hbm=1.0, interconnect=0.5, flops=3e12, peak=3e12
  )
  assert (found.overlapped, found.serial) == (2.0, 2.5)
  assert found.mfu(found.overlapped) == 0.5


def tiny(**values):
  config = digits.get_config('tiny')
  config.unlock()
  config.update_from_flattened_dict(
    {
      'data.batch_size': 8,
      'train.steps': 1,
      'train.sheet_every': 0,
      'train.evaluate_every': 0,
      'train.pca_init_clips': 0,
    }
    | values
  )
  return config


def test_the_dry_run_compiles_the_very_step_of_the_trainer(
  tmp_path, monkeypatch
):
  config = tiny(**{'data.dir': str(tmp_path / 'data'), 'mesh.fsdp': 2})
  lowered, jit_step = [], loop.jit_step

  def spied(step_fn, state, mesh):
    made = jit_step(step_fn, state, mesh)

    def call(*arguments):
      lowered.append(made.lower(*arguments).as_text())
      raise StopIteration  # no need to compile it

    return call

  monkeypatch.setattr(loop, 'jit_step', spied)
  with pytest.raises(StopIteration):
    run.train(config.copy_and_resolve_references(), str(tmp_path / 'run'))
  monkeypatch.undo()
  found = programs.lower(parse.experiment(config), 'train', jax.devices())
  assert found.lowered.as_text() == lowered[0]
  assert found.rows == 1
  parameters = report.bytes_of(found.parts['parameters'])
  assert parameters == report.bytes_of(found.parts['average'])


@pytest.mark.parametrize('program', ['sample', 'decode'])
def test_other_programs_are_lowered_too(program):
  found = programs.lower(parse.experiment(tiny()), program, jax.devices())
  assert 'main' in found.lowered.as_text()
  assert (found.flops > 0) == (program == 'sample')


def test_a_causal_autoencoder_decodes_with_its_cache():
  config = tiny()
  with config.unlocked():
    config.autoencoder = digits_autoencoder.get_config('tiny').autoencoder
    config.model.patch = (1, 2, 2)
  found = programs.lower(parse.experiment(config), 'decode', jax.devices())
  assert report.bytes_of(found.parts['carry']) > 0
  assert found.parts['latents'].shape[1] == 1


@pytest.mark.parametrize(
  'program, values, text',
  [
    ('tain', {}, '--program=tain: expected one of'),
    ('train', {'stage': 'autoencoder'}, "stage='autoencoder': expected"),
    ('train', {'mesh.data': 3}, '3 does not divide 8 devices'),
    ('train', {'data.batch_size': 12}, 'data.batch_size=12: .*such as 16'),
    (
      'train',
      {'autoencoder': dict(kind='weights', weights='digits_autoencoder')},
      "kind='weights': expected",
    ),
  ],
)
def test_refuses_before_lowering(program, values, text):
  with pytest.raises(ValueError, match=text):
    programs.lower(parse.experiment(tiny(**values)), program, jax.devices())


def test_a_compiler_that_refuses_is_told_in_one_line(monkeypatch):
  def refuse(*_, **__):
    raise jax.errors.JaxRuntimeError('UNIMPLEMENTED: not here\nline two')

  class Refuses:
    compile = refuse

  made = programs.lower(parse.experiment(tiny()), 'decode', jax.devices())
  made = dataclasses.replace(made, lowered=Refuses())
  monkeypatch.setattr(programs, 'lower', lambda *_: made)
  chip = topology.parse('v5e-4').chip
  with pytest.raises(ValueError, match='of v5e refuses.*: not here; the whole'):
    report.run(parse.experiment(tiny()), 'decode', jax.devices(), chip)


@pytest.mark.parametrize('name', pods.names())
def test_presets_for_pods_divide_their_slices(name):
  config = pods.get_config(name)
  slice_ = name.split('-', 2)[2]
  assert topology.parse(slice_).devices == pods.DEVICES[slice_]
  nets = networks.networks(parse.experiment(config))
  tokens = networks.clip_geometry(parse.experiment(config).data, nets).tokens
  assert tokens % config.mesh.context == 0
  assert config.mesh.fsdp * config.mesh.context == pods.DEVICES[slice_]
  assert parse.experiment(config).data.batch_size % config.mesh.fsdp == 0
  if 'minute' in name:
    assert tokens == 375_960


def test_an_unknown_preset_for_pods_is_refused():
  with pytest.raises(ValueError, match='expected one of'):
    pods.get_config('14b-minute-v5e-256')


# Seconds of compilation: a step so small that only its form is left.
LIVE = (
  '--config=experiments/digits.py:tiny',
  '--config.mesh.fsdp=4',
  '--config.mesh.data=1',
  '--config.model.layers=2',
  '--config.data.batch_size=4',
  '--topology=v5e-4',
)


def dry(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'spacetime', 'compile', *arguments],
    cwd=ROOT,
    env=dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu'),
    capture_output=True,
    text=True,
    timeout=600,
  )


def test_compiles_for_a_slice_that_is_not_there():
  ran = dry(*LIVE, '--json')
  if (platform.system(), platform.machine()) != ('Linux', 'x86_64'):
    assert ran.returncode == 2 and '[tpu-compile]' in ran.stderr
    return
  assert ran.returncode == 0, ran.stderr[-3000:]
  told = json.loads(ran.stdout.splitlines()[-1])
  assert told['fits'] and not told['whole']
  assert (told['topology'], told['devices']) == ('v5e:2x2', 4)
  kinds = {row['kind'] for row in told['collectives']}
  assert 'all-gather' in kinds
  assert sum(told['kernels'].values()) > 0
  assert told['flops'] > 0 and told['roofline']['matrix'] > 0


def test_the_command_refuses_in_one_line():
  ran = dry(*LIVE[:-1], '--topology=v5e-5')
  assert ran.returncode == 2
  assert ran.stderr.strip().endswith('such as v6e:4x8 or v5p:4x4x12')
  assert 'Traceback' not in ran.stderr
