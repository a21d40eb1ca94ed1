"""The text of a compiled program, read."""

import pathlib

import pytest

from spacetime.dryrun import hlo, replica_groups, roofline

ROOT = pathlib.Path(__file__).parents[2]

# In the form of a training step for v6e: a loop of four layers, whose body
# gathers a kernel, runs another loop of three, and a kernel of Pallas.
TEXT = (ROOT / 'tests/dryrun/compiled_step.txt').read_text()


def test_a_loop_counts_as_often_as_it_runs():
  found = {c.kind: c for c in hlo.Program(TEXT).collectives()}
  gather = found['all-gather']
  assert (gather.count, gather.group, gather.axes) == (4, 4, ('fsdp',))
  assert gather.bytes == 64 * 32 * 2
  assert gather.wire == gather.bytes * 3 / 4
  assert gather.scope == 'jit(step)/blocks/q/dot'
  assert found['collective-permute'].count == 4 * 3
  assert found['collective-permute'].bytes == 8 * 16 * 2
  assert found['all-reduce'].group == 4
  assert found['all-reduce'].bytes == 10 * 4
  assert found['all-reduce'].wire == 2 * 40 * 3 / 4
  assert (found['all-to-all'].group, found['all-to-all'].count) == (2, 1)
  assert hlo.Program(TEXT).kernels() == {'splash_mha_fwd': 4}
  assert roofline.per_kind([gather]) == {('all-gather', 'bf16'): (4, 16384.0)}


def test_a_known_number_of_rounds_is_taken():
  text = TEXT.replace(
    'body=%body', 'body=%body, backend_config={"known_trip_count":{"n":"9"}}'
  )
  found = {c.kind: c for c in hlo.Program(text).collectives()}
  assert found['all-gather'].count == 9


def test_memory_traffic_takes_a_slice_a_round_and_no_vmem():
  # Of the stack of four a round takes one; the gather's result is in VMEM.
  stack, part, row = 16 * 32 * 4, 16 * 32 * 4, 8 * 16 * 4
  body = (stack + part) + part + (part + row)
  inner = 3 * (8 * 16 * 2 * 3 + 2 * 4)
  entry = (4 * stack + 40) + (40 + 32)
  traffic = hlo.Program(TEXT).memory_traffic()
  assert abs(traffic - (4 * (body + inner) + entry)) < 200


def test_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match='with an ENTRY'):
    hlo.Program('HloModule nothing')


# A SparseCore carries a gather out beside the rest: its line tells only when it
# begins, what it does is in a computation of its own.
BEGUN = (
  '  %gather.call-start = ((), (), (s32[8]{0:T(8)})) custom-call-start(), '
  'custom_call_target="TODO", called_computations={%called_computation.1}\n'
  '  %gather.call-done = bf16[64,32]{1,0} custom-call-done(%gather.call-start)'
  '\n'
)
CARRIED = (
  '%called_computation.1 (p.9: bf16[16,32]) -> bf16[64,32] {\n'
  '  %p.9 = bf16[16,32]{1,0} parameter(0)\n'
  '  ROOT %all-gather.9 = bf16[64,32]{1,0} all-gather(%p.9), channel_id=9, '
  "replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={0}\n"
  '}, execution_thread="sparsecore"\n'
)


def test_what_another_core_carries_out_counts_too():
  head, body, rest = TEXT.partition('  %while.2 =')
  text = head.replace('%body (', CARRIED + '%body (') + BEGUN + body + rest
  mesh = {'data': 2, 'fsdp': 4, 'context': 1, 'tensor': 1}
  before, after = hlo.Program(TEXT), hlo.Program(text)
  gathers = [c for c in after.collectives(mesh) if c.kind == 'all-gather']
  assert [(c.count, c.group, c.axes) for c in gathers] == [
    (4, 4, ('fsdp',)),
    (4, 8, ('data', 'fsdp')),
  ]
  # In and out of HBM once a layer.
  moved = after.memory_traffic() - before.memory_traffic()
  assert moved == 4 * (16 * 32 + 64 * 32) * 2


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
def test_groups_are_told_by_axes_of_the_mesh(text, group, axes):
  mesh = {'data': 2, 'fsdp': 2, 'context': 2, 'tensor': 1}
  found = replica_groups.read(f'x, replica_groups={text}, y=1', mesh)
  assert found == (group, axes)
