from matplotlib import image

from spacetime.data import stages
from spacetime.data.digits import examples
from spacetime.data.digits import world as world_lib
from spacetime.training import metrics, sheets

WORLD = world_lib.World(max_characters=1, cameras=('still',))


def test_real_clips_are_scored_as_right_and_others_are_not():
  records = [
    examples.example(i, world=WORLD, split='validation', seed=0)
    for i in range(4)
  ]
  clips = [record['video'] for record in records]
  texts = [record['scene'] for record in records]
  right = sheets.scores(clips, texts)
  wrong = sheets.scores(clips, texts[1:] + texts[:1])
  assert right['world/count'] == right['world/colour'] == 1
  assert right['world/digit'] >= 0.75 > wrong['world/digit']
  assert wrong['world/all'] == 0


def test_the_curve_has_a_panel_for_each_kind_of_metric(tmp_path):
  with metrics.MetricsWriter(tmp_path) as writer:
    for step in (1, 2):
      writer.write(step, {'loss': 1 / step, 'held_out/loss': 1.0})
  two = _size(sheets.curve(tmp_path))
  with metrics.MetricsWriter(tmp_path, step=2) as writer:
    writer.write(3, {'world/digit': 0.5, 'probe/digit_t0.5': 2.0})
  assert _size(sheets.curve(tmp_path))[1] == 2 * two[1]


def test_the_curve_marks_where_stages_begin(tmp_path, monkeypatch):
  figures = []
  monkeypatch.setattr(sheets.pyplot, 'close', figures.append)
  with metrics.MetricsWriter(tmp_path) as writer:
    for step in range(1, 11):
      writer.write(step, {'loss': 1 / step, 'held_out/loss': 1.0})
  kind = stages.Kind()
  four = [stages.Stage(steps, (kind,)) for steps in (4, 5, 6, 1)]
  sheets.curve(tmp_path, stages=four)
  for axes in figures[0].axes:
    dashed = [line for line in axes.lines if line.get_linestyle() == '--']
    # The last stage begins after the steps so far.
    assert [line.get_xdata()[0] for line in dashed] == [4, 9]


def _size(path) -> tuple[int, int]:
  return image.imread(str(path)).shape[:2]
