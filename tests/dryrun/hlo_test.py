"""Parsing the text of a compiled program."""

import pathlib

import pytest

from spacetime.dryrun import hlo, replica_groups, roofline

ROOT = pathlib.Path(__file__).parents[2]

# Like a training step for v6e: a loop over four layers, whose body gathers a
# kernel, runs another loop of three, and a Pallas kernel.
TEXT = (ROOT / 'tests/dryrun/compiled_step.txt').read_text()


def test_collectives_count_iterations_of_loops():
  by_kind = {c.kind: c for c in hlo.Program(TEXT).collectives()}
  gather = by_kind['all-gather']
  assert (gather.count, gather.group, gather.axes) == (4, 4, ('fsdp',))
  assert gather.bytes == 64 * 32 * 2
  assert gather.wire == gather.bytes * 3 / 4
  assert gather.scope == 'jit(step)/blocks/q/dot'
  assert by_kind['collective-permute'].count == 4 * 3
  assert by_kind['collective-permute'].bytes == 8 * 16 * 2
  assert by_kind['all-reduce'].group == 4
  assert by_kind['all-reduce'].bytes == 10 * 4
  assert by_kind['all-reduce'].wire == 2 * 40 * 3 / 4
  assert (by_kind['all-to-all'].group, by_kind['all-to-all'].count) == (2, 1)
  assert hlo.Program(TEXT).kernels() == {'splash_mha_fwd': 4}
  assert roofline.per_kind([gather]) == {('all-gather', 'bf16'): (4, 16384.0)}


def test_collectives_use_known_trip_count():
  text = TEXT.replace(
    'body=%body', 'body=%body, backend_config={"known_trip_count":{"n":"9"}}'
  )
  by_kind = {c.kind: c for c in hlo.Program(text).collectives()}
  assert by_kind['all-gather'].count == 9


def test_memory_traffic_counts_slices_of_stacks_and_no_vmem():
  # An iteration reads one of the stack of four; the gather's result is in VMEM.
  stack, part, row = 16 * 32 * 4, 16 * 32 * 4, 8 * 16 * 4
  body = (stack + part) + part + (part + row)
  inner = 3 * (8 * 16 * 2 * 3 + 2 * 4)
  entry = (4 * stack + 40) + (40 + 32)
  traffic = hlo.Program(TEXT).memory_traffic()
  assert abs(traffic - (4 * (body + inner) + entry)) < 200


def test_program_refuses_text_without_entry():
  with pytest.raises(ValueError, match='with an ENTRY'):
    hlo.Program('HloModule nothing')


# A SparseCore runs a gather: its line in the program is a custom call, and the
# gather is in a computation of its own.
CALL = (
  '  %gather.call-start = ((), (), (s32[8]{0:T(8)})) custom-call-start(), '
  'custom_call_target="TODO", called_computations={%called_computation.1}\n'
  '  %gather.call-done = bf16[64,32]{1,0} custom-call-done(%gather.call-start)'
  '\n'
)
COMPUTATION = (
  '%called_computation.1 (p.9: bf16[16,32]) -> bf16[64,32] {\n'
  '  %p.9 = bf16[16,32]{1,0} parameter(0)\n'
  '  ROOT %all-gather.9 = bf16[64,32]{1,0} all-gather(%p.9), channel_id=9, '
  "replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={0}\n"
  '}, execution_thread="sparsecore"\n'
)


def test_collectives_of_another_core_count():
  head, body, rest = TEXT.partition('  %while.2 =')
  text = head.replace('%body (', COMPUTATION + '%body (') + CALL + body + rest
  mesh = {'data': 2, 'fsdp': 4, 'context': 1, 'tensor': 1}
  before, after = hlo.Program(TEXT), hlo.Program(text)
  gathers = [c for c in after.collectives(mesh) if c.kind == 'all-gather']
  assert [(c.count, c.group, c.axes) for c in gathers] == [
    (4, 4, ('fsdp',)),
    (4, 8, ('data', 'fsdp')),
  ]
  # In and out of HBM once per layer.
  traffic = after.memory_traffic() - before.memory_traffic()
  assert traffic == 4 * (16 * 32 + 64 * 32) * 2


@pytest.mark.parametrize(
  'text, group, axes',
  [
    ("mesh['a'=16] {'a'}", 16, ('a',)),
    ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4, ('fsdp', 'context')),
    ("mesh['axis_0'=8] {'axis_0'}", 8, ('data', 'fsdp', 'context')),
    ("mesh['axis_0'=4,'axis_1'=2] {'axis_0':(2)2}", 2, ('fsdp',)),
    ('[2,4]<=[8]', 4, ('fsdp', 'context')),
    ('[4,2]<=[2,4]T(1,0)', 2, ('data',)),
    ('[4,2]<=[2,2,2]T(2,0,1)', 2, ('fsdp',)),
    ('{{0,1},{2,3},{4,5},{6,7}}', 2, ('context',)),
    ('{{0,3},{1,2},{4,7},{5,6}}', 2, ()),
    ('{}', 8, ()),
  ],
)
def test_read_replica_groups(text, group, axes):
  mesh = {'data': 2, 'fsdp': 2, 'context': 2, 'tensor': 1}
  text = f'x, replica_groups={text}, y=1'
  assert replica_groups.read(text, mesh) == (group, axes)
