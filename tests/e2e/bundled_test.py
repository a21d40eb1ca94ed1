"""The bundled models: that they load, are what was measured, and do follow."""

import dataclasses
import json
import pathlib
import types

import jax
import numpy as np
import pytest

import spacetime
from experiments import digits
from spacetime import checkpoint, sharding
from spacetime.checkpoint import load
from spacetime.config import networks, parse
from spacetime.data.digits import captions, examples
from spacetime.data.digits import world as world_lib
from spacetime.evaluation import world as measures
from spacetime.media.pixels import to_video
from spacetime.training import autoencoder_loss

ASSETS = pathlib.Path(__file__).parents[2] / 'spacetime' / 'assets'
CLIPS = 6


@pytest.fixture(scope='module')
def mesh():
  return sharding.single_device_mesh()


def records(world, split='validation'):
  """Clips of a seed of their own."""
  return [
    examples.example(i, world=world, split=split, seed=77) for i in range(CLIPS)
  ]


def test_the_models_have_at_most_40_megabytes():
  files = [p for p in ASSETS.rglob('*') if p.is_file()]
  assert 1e6 < sum(p.stat().st_size for p in files) <= 40e6


@pytest.mark.parametrize('name', ['digits', 'digits_autoencoder'])
def test_is_what_was_measured(name):
  metrics = json.loads((ASSETS / name / 'metrics.json').read_text())
  assert metrics['weights_hash'] == checkpoint.weights_hash(ASSETS / name)
  assert metrics['num'] >= 64
  assert metrics.get('checkpoint', name) == name


def test_the_model_follows_the_prompt():
  pipe = spacetime.load('digits', progress=False)
  world = pipe.engine.data.world.without_wandering()
  scenes = [world_lib.from_json(r['scene']) for r in records(world)]
  videos = pipe(
    [captions.canonical_caption(scene) for scene in scenes],
    steps=8,
    batch_size=CLIPS,
  )
  clips = [video.frames for video in videos]
  assert clips[0].shape == (17, 64, 64, 3)
  scores = [
    measures.score(measures.measure(clip), scene)
    for clip, scene in zip(clips, scenes, strict=True)
  ]
  # By chance one in eight, eleven and ten.
  assert np.mean([score['colour'] for score in scores]) >= 0.8
  assert np.mean([score['motion'] for score in scores]) >= 0.5
  assert np.mean([score['digit'] for score in scores]) >= 0.5


def test_the_autoencoder_gives_held_out_clips_back(mesh):
  folder = ASSETS / 'digits_autoencoder'
  experiment = checkpoint.read_experiment(folder)
  codec = networks.autoencoder(experiment.autoencoder)
  params = load.load_own(experiment.autoencoder, folder, mesh=mesh)[
    'autoencoder'
  ]
  world = experiment.data.world
  video = to_video(np.stack([r['video'] for r in records(world)]))
  z = jax.jit(codec.encode)(params, video)
  decoded = jax.jit(codec.decode)(params, z)
  recorded = json.loads((folder / 'metrics.json').read_text())['psnr']
  psnr = float(autoencoder_loss.psnr(video, decoded).mean())
  assert abs(psnr - recorded) < 4  # of six clips
  # Latents have unit scale, as the transformer wants them.
  assert 0.7 < float(z.std()) < 1.4 and abs(float(z.mean())) < 0.3


def test_a_cpu_computes_in_float32_what_was_trained_in_bfloat16(mesh):
  experiment = checkpoint.read_experiment(ASSETS / 'digits')
  experiment = dataclasses.replace(
    experiment, model=dataclasses.replace(experiment.model, dtype='bfloat16')
  )
  # Only where it is a CPU, and nothing else of it.
  chip = types.SimpleNamespace(
    devices=np.array([types.SimpleNamespace(platform='gpu')])
  )
  assert load.with_compute_dtype(experiment, chip) is experiment
  computed = load.with_compute_dtype(experiment, mesh)
  assert computed.model.dtype == 'float32'
  assert computed == dataclasses.replace(experiment, model=computed.model)


def test_is_the_preset_of_its_training():
  config = checkpoint.read_config(ASSETS / 'digits')
  preset = parse.plain(digits.get_config('bundled'))
  assert config == json.loads(json.dumps(preset))
