"""Dry run: names of slices, memory, roofline, advice, the command."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import platform
import subprocess
import sys
import types

import jax
import pytest

from experiments import digits_mixed, digits_pixels, pods, sampling_presets
from spacetime.config import experiment_files, networks, parse
from spacetime.dryrun import (
  calibration,
  hlo,
  programs,
  render,
  report,
  roofline,
)
from spacetime.models import flops
from spacetime.models.networks import num_params
from spacetime.sharding import chips, topology
from spacetime.training import loop, run
from tests.helpers import commands

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
    ('v6e-1', 'v6e:1x1', 1, 1),
  ],
)
def test_parse_topology(name, raw, count, devices):
  slices = topology.parse(name)
  assert (slices.raw, slices.chips, slices.devices) == (raw, count, devices)
  assert topology.parse(name, slices=3).devices == 3 * devices


@pytest.mark.parametrize(
  'name, text',
  [
    (
      'v5p-250',
      'the name of a slice; the nearest is v5p-256',
    ),
    ('v6e-300', 'the nearest is v6e-256'),
    ('v4-8', 'a slice of v5e, v5p, v6e, tpu7x; v4 is not supported'),
    ('v3:2x2', 'v3 is not supported'),
    ('v5-litepod-16', 'the nearest is v5litepod-16'),
    ('v9:2x2', 'the name of a slice'),
    ('v3:2x2', 'v3 is not supported'),
    ('v6e:4x4x4', '2 sides instead of 3, such as v6e:4x4'),
    ('v5p:4by4', 'expected sides in chips after the colon.*v5p:4x4x4'),
  ],
)
def test_parse_topology_refuses(name, text):
  with pytest.raises(ValueError, match=text):
    topology.parse(name)


def test_topology_refuses_no_slices_and_missing_compiler(monkeypatch):
  with pytest.raises(ValueError, match='num_slices=0: expected 1 or more'):
    topology.parse('v5e-8', slices=0)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r'pip install .*\[tpu-compile\]'):
    topology.devices(topology.parse('v5e-8'))


def test_chips_peaks_and_options_by_device_kind():
  assert chips.utilisation(459e12, kind='TPU v5', devices=2) == 0.5
  assert chips.utilisation(1.0, kind='abacus', devices=2) is None
  assert chips.options('cpu') == {}
  fused = 'xla_tpu_enable_async_collective_fusion'
  all_to_all = 'xla_tpu_enable_async_all_to_all'  # which v5e refuses
  assert all_to_all not in chips.options('TPU v5 lite')
  assert all_to_all in chips.options('TPU v5')
  assert fused in chips.options('TPU v5 lite')
  assert fused not in chips.options('TPU v6 lite')
  for chip in chips.CHIPS:
    assert all(isinstance(v, str) for v in chip.options.values())


def gather(shape, kind='all-gather', count=1, axes=('context',)):
  arrays = (hlo.Array('bf16', shape),)
  return hlo.Collective(kind, arrays, 8, axes, count, 'here')


def test_gathered_activations_excludes_weights():
  weights = roofline.layer_weights(
    {'/dit/blocks/q/kernel': (4, 64, 96), '/dit/head/kernel': (96, 80)},
    layers=4,
    tensor=2,
  )
  assert 64 * 96 in weights and 96 * 80 // 2 in weights
  collectives = [
    gather((64, 96)),
    gather((1, 100, 60)),
    gather((1, 10, 60)),
    gather((1, 50, 120), kind='all-reduce'),  # a gather by another name
    gather((1, 50, 120), kind='all-reduce', axes=('tensor',)),
    gather((64, 96), kind='all-reduce'),
    gather((1, 100, 60), kind='all-to-all'),
  ]
  gathered = roofline.gathered_activations(
    collectives, elements=100 * 60, weights=weights
  )
  assert [(c.kind, c.arrays[0].shape) for c in gathered] == [
    ('all-gather', (1, 100, 60)),
    ('all-reduce', (1, 50, 120)),
  ]


# A message, and the GiB that it names: of all, of temporaries, the limit.
OUT_OF_MEMORY = [
  (
    'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in '
    'memory space hbm. Used 120.24G of 95.74G hbm. Exceeded hbm capacity by '
    '24G.',
    (120.24, None, 95.74),
  ),
  (
    'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required '
    'for HLO temporaries (32.01G) exceeds available HBM (31.25G)',
    (None, 32.01, 31.25),
  ),
  (
    'RESOURCE_EXHAUSTED: Attempting to reserve 18.50G at the bottom of memory. '
    'That was not possible. There are 15.75G free, 0B reserved, and 15.75G '
    'reservable.',
    (18.5, None, 15.75),
  ),
  (
    'RESOURCE_EXHAUSTED: The program requires 40.00GiB of memory, which '
    'exceeds the available 31.25GiB',
    (40.0, None, 31.25),
  ),
  ('RESOURCE_EXHAUSTED: a form that nobody has seen', (None, None, None)),
  ('INTERNAL: Out of memory while trying to assign', (None, None, None)),
  ('Program exceeds the HBM of the chip', (None, None, None)),
]
ON_CHIP = (
  'RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem while allocating '
  'on stack. Scoped allocation with size 20.00M and limit 16.00M exceeded '
  'scoped vmem limit by 4.00M.'
)


@pytest.mark.parametrize('message, amounts', OUT_OF_MEMORY)
def test_parse_out_of_memory(message, amounts):
  parsed = roofline.parse_out_of_memory(message + '\nline two')
  assert parsed.message == message and not parsed.on_chip
  values = parsed.used, parsed.temporaries, parsed.limit
  for value, expected in zip(values, amounts, strict=True):
    assert value == (expected and pytest.approx(expected * GIB))


def test_parse_out_of_memory_of_a_kernel_and_of_nothing():
  assert roofline.parse_out_of_memory(ON_CHIP).on_chip
  for message in ('INTERNAL: something else', 'UNIMPLEMENTED: hbm to vmem'):
    assert roofline.parse_out_of_memory(message) is None


@pytest.mark.parametrize(
  'message', [*(message for message, _ in OUT_OF_MEMORY), ON_CHIP]
)
def test_a_compiler_out_of_memory_gives_a_table_and_a_verdict(
  monkeypatch, message
):
  class Refuses:
    def compile(self, **_):
      raise jax.errors.JaxRuntimeError(message)

  lowered = programs.lower(parse.experiment(tiny()), 'decode', jax.devices())
  lowered = dataclasses.replace(lowered, lowered=Refuses())
  monkeypatch.setattr(programs, 'lower', lambda *_: lowered)
  slices = topology.parse('v6e-4')
  refused = report.compile_program(
    parse.experiment(tiny()), 'decode', jax.devices(), slices.chip
  )
  assert not refused.passes and refused.advice and refused.versions['jax']
  text = render.as_text(refused, slices)
  assert (
    'does not fit' in text and message[:40] in text and refused.advice in text
  )
  assert (
    'latents' in text
    and not json.loads(render.as_json(refused, slices))['fits']
  )


def test_memory_total_and_fits():
  fits = roofline.Memory({'parameters': 3.0, 'temporaries': 4.0}, 8.0)
  assert (fits.total, fits.fits) == (7.0, True)
  assert not roofline.Memory({'parameters': 9.0}, 8.0).fits
  assert not roofline.Memory({'parameters': 1.0}, 8.0, 'no').fits


@pytest.mark.parametrize(
  'state, mesh, rows, remat, text',
  [
    (1, dict(data=1, fsdp=8, context=1), 1, None, 'mesh.context=2'),
    (7, dict(data=2, fsdp=4, context=1), 1, 'full', 'move mesh.data=2 to mesh'),
    (7, dict(data=1, fsdp=8, context=1), 1, 'full', 'a slice of more chips'),
    (1, dict(data=1, fsdp=8, context=1), 1, 'none', "model.remat='attention'"),
    (1, dict(data=1, fsdp=8, context=1), 4, 'full', '4 rows at once on a dev'),
    (1, dict(data=1, fsdp=8, context=1), 4, None, 'set FEWER'),
    (1, dict(data=1, fsdp=8, context=4), 1, 'full', 'mesh.context=8'),
    (1, dict(data=1, fsdp=1, context=4), 1, 'attention', "'offload'"),
    (1, dict(data=1, fsdp=1, context=4), 1, 'full', 'a slice of more chips'),
  ],
)
def test_advice(state, mesh, rows, remat, text):
  memory = roofline.Memory({'parameters': float(state)}, 8.0, 'no')
  advice = roofline.advice(
    memory,
    mesh=mesh,
    rows=rows,
    fewer='FEWER',
    remat=remat,
    sharded=('parameters',),
  )
  assert text in advice


@pytest.mark.slow
@pytest.mark.parametrize(
  'program, settings, text',
  [
    ('train', {'train.accumulate': 2}, 'train.accumulate=8, or a smaller data'),
    ('held_out', {'train.held_out': 16}, 'set a smaller train.held_out'),
    ('sample', {}, 'set a smaller data.batch_size'),
    ('sample', {'data.batch_size': 1}, 'use a slice of more chips'),
    ('decode', {}, 'set a smaller data.batch_size'),
    ('decode', {'data.batch_size': 1}, '--decode_tiles'),
  ],
)
def test_advice_names_settings_of_its_program(program, settings, text):
  config = tiny()
  config.update_from_flattened_dict({'data.batch_size': 8} | settings)
  experiment = parse.experiment(config)
  lowered = programs.lower(experiment, program, jax.devices()[:1])
  full = roofline.Memory({}, 8.0, 'no')
  remat = 'full' if program == 'train' else None
  assert text in report.advice(full, lowered, remat)


def test_collective_seconds_use_spanned_links():
  chip = topology.parse('v5p-256').chip
  one = gather((1000, 1000))
  wire = 2e6 * 7 / 8

  def seconds(collective, **kwargs):
    return roofline.collective_seconds(
      collective, chip, **dict(axes=1, dcn=False) | kwargs
    )

  assert seconds(one) == pytest.approx(wire / (2 * chip.link))
  assert seconds(one, axes=2) == pytest.approx(wire / (4 * chip.link))
  assert seconds(one, dcn=True) == pytest.approx(wire / chip.dcn)
  permute = gather((1000, 1000), kind='collective-permute', count=3)
  assert seconds(permute) == pytest.approx(3 * 2e6 / chip.link)
  all_to_all = gather((1000, 1000), kind='all-to-all')
  assert seconds(all_to_all) == pytest.approx(wire * 2 / (2 * chip.link))
  assert roofline.torus_axes([(0, 0, 1), (0, 1, 2), (0, 1, 0)]) == 2
  assert roofline.torus_axes([(0, 0, 0)]) == 1


def test_roofline_expects_the_slowest_unit():
  estimate = roofline.Roofline(
    matrix=2.0, measured=4.0, hbm=1.0, interconnect=0.5, flops=3e12, peak=3e12
  )
  assert (estimate.expected, estimate.mfu) == (4.0, 0.25)
  slow = dataclasses.replace(estimate, interconnect=6.0)
  assert slow.expected == 6.0


def test_calibration_reproduces_the_published_runs():
  """Seconds of Wan 14B at 720p, of one clip on one device."""
  peaks = {chip.name: chip.flops for chip in chips.CHIPS}
  dense, attended = 4 * 1.81e15, 4.714e15
  for chip, remat, seconds in (
    ('v5p', 'full', 36.0 * 4),
    ('v5p', 'offload', 32.8 * 4),
  ):
    share = calibration.efficiency(chip, 'train')
    kernels = flops.executed_attention(attended, remat=remat)
    got = (dense / share.dense + kernels / share.attention) / peaks[chip]
    assert got == pytest.approx(seconds, rel=0.06)
  for published in calibration.RUNS:
    # Heads of 128 fill half of a unit of 256.
    assert 0.2 < published.attention < 0.5
  for chip in peaks:
    for program in programs.PROGRAMS:
      share = calibration.efficiency(chip, program)
      assert 0.2 < share.attention < 0.5 and 'MaxDiffusion' in share.basis
  assert 'another generation' in calibration.efficiency('v5e', 'train').basis


def tiny(module=digits_pixels, **values):
  config = module.get_config('tiny')
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


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['clips', 'crop', 'rows'])
def test_lower_train_equals_the_step_of_the_trainer(
  tmp_path, monkeypatch, kind
):
  module = digits_mixed if kind == 'rows' else digits_pixels
  config = tiny(
    module,
    **{
      'data.dir': str(tmp_path / 'data'),
      'data.clips': 40,
      'data.crop': (1, 16, 16) if kind == 'crop' else None,
      'mesh.fsdp': 2,
    },
  )
  lowered, jit_step = [], loop.jit_step

  def record(step_fn, state, mesh):
    jitted = jit_step(step_fn, state, mesh)

    def call(*arguments):
      lowered.append(jitted.lower(*arguments).as_text())
      raise StopIteration  # no need to compile it

    return call

  monkeypatch.setattr(loop, 'jit_step', record)
  with pytest.raises(StopIteration):
    run.train(config.copy_and_resolve_references(), str(tmp_path / 'run'))
  monkeypatch.undo()
  program = programs.lower(parse.experiment(config), 'train', jax.devices())
  assert program.lowered.as_text() == lowered[0]
  assert program.rows == 1
  parameters = report.bytes_per_device(program.parts['parameters'])
  assert parameters == report.bytes_per_device(program.parts['average'])


@pytest.mark.slow
def test_lower_train_describes_the_batch_with_the_most_tokens():
  mix = [dict(height=16, width=16), dict(frames=5, height=32, width=16)]
  config = tiny(
    **{
      'data.stages': [
        dict(steps=1, tokens=tokens, mix=mix) for tokens in (9, 64)
      ],
      'data.render': 'live',
      'data.packing': dict(kind='buckets', look_ahead=99),
    }
  )
  program = programs.lower(parse.experiment(config), 'train', jax.devices())
  shapes = {k: leaf.shape for k, leaf in program.parts['batch'].items()}
  assert shapes['frames'] == (16, 5, 32, 16, 3)
  assert shapes['shift'] == shapes['cond'] == (16,)
  assert program.rows == 2 and program.flops > 0


@pytest.mark.slow
@pytest.mark.parametrize('name', ['held_out', 'sample', 'decode'])
def test_lower_programs(name):
  program = programs.lower(parse.experiment(tiny()), name, jax.devices())
  assert 'main' in program.lowered.as_text()
  assert (program.flops > 0) == (name != 'decode')
  assert program.flops == program.dense + program.attention


@pytest.mark.slow
def test_a_teacher_is_counted_among_the_frozen_parameters():
  config = tiny()
  with config.unlocked():
    config.model.flow_map = 0.25
    config.flow_map = {'teacher': 'model'}
    config.sampling.solver, config.sampling.guidance = 'euler', 1.0
  program = programs.lower(parse.experiment(config), 'train', jax.devices())
  frozen, trained = (
    num_params(program.parts[name]) for name in ('frozen', 'parameters')
  )
  assert frozen == trained > 0


def test_branches_of_guidance_share_the_devices():
  """One clip on two rows of devices, as sample runs it."""
  values = {'data.batch_size': 1, 'mesh.data': 2, 'mesh.context': 4}
  experiment = parse.experiment(tiny(**values))
  program = programs.lower(experiment, 'sample', jax.devices())
  assert program.rows == 1
  with pytest.raises(ValueError, match='data.batch_size=1: .*such as 2'):
    programs.lower(experiment, 'train', jax.devices())


@pytest.mark.parametrize('name', sampling_presets.names())
def test_sampling_presets_divide_their_hardware(name):
  model, size, hardware, steps = sampling_presets.split(name)
  axes = sampling_presets.mesh(name)
  devices = sampling_presets.DEVICES[hardware]
  assert axes['data'] * axes['context'] == devices
  if not hardware.startswith('h100'):
    assert topology.parse(hardware).devices == devices
  assert sampling_presets.TOKENS[model, size] % axes['context'] == 0
  rows = sampling_presets.videos(name) * (1 if steps == 4 else 2)
  assert rows % axes['data'] == 0


def test_sampling_presets_have_the_tokens_of_their_clips():
  for (model, size), tokens in sampling_presets.TOKENS.items():
    config = sampling_presets.get_config(f'{model}-{size}-v6e-8-50')
    experiment = parse.experiment(config)
    nets = networks.networks(experiment)
    assert networks.clip_geometry(experiment.data, nets).tokens == tokens
    assert experiment.model.heads == sampling_presets.HEADS[model]
  flags = sampling_presets.flags('14b-720p-v6e-8-4')
  assert flags == '--mesh.data=1 --mesh.context=8 --steps=4 --guidance=1'


@pytest.mark.slow
def test_batches_in_flight_and_the_held_out_loss_are_counted():
  parts = {'parameters': 10.0, 'batch': 4.0, 'batches in flight': 4.0}
  parts = {name: size * GIB for name, size in parts.items()}
  analysis = types.SimpleNamespace(
    argument_size_in_bytes=14 * GIB,
    temp_size_in_bytes=GIB,
    output_size_in_bytes=0,
    alias_size_in_bytes=0,
    generated_code_size_in_bytes=0,
  )
  memory = report.memory_of(analysis, parts, 20 * GIB)
  assert memory.total == 19 * GIB
  beside = report.memory_of(
    analysis, parts | {'optimizer': 5.0 * GIB}, 20 * GIB, beside=('optimizer',)
  )
  assert beside.total == 24 * GIB
  program = programs.lower(parse.experiment(tiny()), 'train', jax.devices())
  assert program.waiting == programs.IN_FLIGHT - 1 == 1
  fits = report.Report({}, memory, '', 1.0, held_out=memory)
  assert fits.passes
  assert not dataclasses.replace(fits, held_out=beside).passes


def test_lower_decode_of_wan_autoencoder_has_a_cache():
  config = tiny()
  with config.unlocked():
    config.autoencoder = dict(
      kind='wan',
      base_dim=4,
      z_dim=8,
      dim_mult=(1, 2, 2),
      num_res_blocks=1,
      temporal_downsample=(True, True),
      is_residual=True,
      patch_size=2,
    )
    config.model.patch = (1, 2, 2)
  program = programs.lower(parse.experiment(config), 'decode', jax.devices())
  assert report.bytes_per_device(program.parts['cache']) > 0
  assert program.parts['latents'].shape[1] == 1


@pytest.mark.parametrize(
  'program, values, text',
  [
    ('tain', {}, "program='tain': expected one of"),
    ('train', {'stage': 'autoencoder'}, "stage='autoencoder': expected"),
    ('train', {'mesh.data': 3}, 'mesh.data=3: .* is 8, the'),
    ('train', {'data.batch_size': 12}, 'data.batch_size=12: .*such as 16'),
    (
      'train',
      {'autoencoder': dict(kind='weights', weights='digits_autoencoder')},
      "kind='weights': expected",
    ),
  ],
)
def test_lower_refuses(program, values, text):
  with pytest.raises(ValueError, match=text):
    programs.lower(parse.experiment(tiny(**values)), program, jax.devices())


def test_compile_program_reports_refusal_in_one_line(monkeypatch):
  def refuse(*_, **__):
    raise jax.errors.JaxRuntimeError('UNIMPLEMENTED: not here\nline two')

  class Refuses:
    compile = refuse

  lowered = programs.lower(parse.experiment(tiny()), 'decode', jax.devices())
  lowered = dataclasses.replace(lowered, lowered=Refuses())
  monkeypatch.setattr(programs, 'lower', lambda *_: lowered)
  chip = topology.parse('v5e-4').chip
  with pytest.raises(
    ValueError, match='of v5e refuses.*: not here; set SPACETIME'
  ):
    report.compile_program(
      parse.experiment(tiny()), 'decode', jax.devices(), chip
    )


@pytest.mark.parametrize('name', pods.names())
def test_pod_presets_divide_their_slices(name):
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


def test_pod_presets_refuse_unknown_names():
  with pytest.raises(ValueError, match='did you mean 14b-720p-v5p-256') as e:
    experiment_files.load('pods:14b-720-v5p-256')
  assert len(str(e.value)) < 200
  with pytest.raises(ValueError, match='did you mean'):
    experiment_files.load('pods:14b-minute-v5e-256')


# A step so small that it compiles in seconds.
LIVE = (
  '--config=experiments/digits_pixels.py:tiny',
  '--config.mesh.fsdp=4',
  '--config.mesh.data=1',
  '--config.model.layers=2',
  '--config.data.batch_size=4',
  '--config.train.held_out=4',
  '--topology=v5e-4',
)


def run_command(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'spacetime', 'compile', *arguments],
    cwd=ROOT,
    env=dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu'),
    capture_output=True,
    text=True,
    timeout=600,
  )


@pytest.mark.e2e
def test_command_reports_json():
  ran = run_command(*LIVE, '--json')
  if (platform.system(), platform.machine()) != ('Linux', 'x86_64'):
    assert ran.returncode == 2 and '[tpu-compile]' in ran.stderr
    return
  assert ran.returncode == 0, ran.stderr[-3000:]
  values = json.loads(ran.stdout.splitlines()[-1])
  assert values['fits'] and not values['gathered']
  assert (values['topology'], values['devices']) == ('v5e:2x2', 4)
  kinds = {row['kind'] for row in values['collectives']}
  assert 'all-gather' in kinds
  assert sum(values['kernels'].values()) > 0
  assert values['flops'] > 0 and values['roofline']['matrix'] > 0
  assert values['held_out']['rows'] and values['versions']['libtpu']
  assert 0 < values['estimate']['mfu'] < 1


def test_command_refuses_in_one_line():
  ran = commands.run('compile', *LIVE[:-1], '--topology=v5e-5')
  assert ran.refusal().endswith('such as v6e:4x8 or v5p:4x4x12')
