"""The contents of scenes that an evaluation chooses."""

import dataclasses

from spacetime.data.digits import world as world_lib
from spacetime.evaluation import report
from spacetime.evaluation.settings import EvaluationSettings


def test_scenes_have_the_contents_that_are_set():
  settings = EvaluationSettings(
    characters=2, cameras='pan left, zoom in', motions='still', sizes='small'
  )
  world = dataclasses.replace(world_lib.World(frames=5), **settings.contents)
  _, scenes = report.real_clips(world, count=6, seed=0)
  assert {len(scene.characters) for scene in scenes} == {2}
  assert {scene.camera for scene in scenes} == {'pan left', 'zoom in'}
  characters = [c for scene in scenes for c in scene.characters]
  assert {(c.motion, c.size) for c in characters} == {('still', 'small')}


def test_the_training_data_decide_where_nothing_is_set():
  assert EvaluationSettings().contents == {}
