"""Contact sheets and curves of a run."""

import contextlib
import itertools
import pathlib
import tempfile
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from matplotlib import pyplot

from spacetime import checkpoint, sharding
from spacetime.config import networks, samplers
from spacetime.config.experiment import Experiment
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.data.digits import world as world_lib
from spacetime.data.stages import Stage
from spacetime.diffusion import conditioning, sampler
from spacetime.evaluation import world
from spacetime.media import contact_sheet, video_writer
from spacetime.media.pixels import to_frames, to_video
from spacetime.models.networks import Networks
from spacetime.training import metrics

CLIPS = 6
pyplot.switch_backend('agg')  # writes files, opens no window


def sampled(
  experiment: Experiment, nets: Networks, held_out: dict, *, empty_SY=None
):
  """Returns (params, frozen) -> clips and captions of held-out prompts.

  There are CLIPS, or more if more are scored. `empty_SY` is the embedded empty
  prompt where `held_out` has embeddings.
  """
  total = max(CLIPS, experiment.train.scored_clips)
  captions = held_out['captions'][:total]
  rows = min(CLIPS, len(captions))
  name = 'tokens' if empty_SY is None else 'text'
  prompts = held_out[name][: len(captions)]
  make = samplers.sampler(experiment, nets, experiment.sampling)
  grid = networks.clip_geometry(experiment.data, nets)
  latent = (*grid.latent, nets.autoencoder.z_dim)

  def texts(params, prompts):
    if empty_SY is not None:
      return prompts, np.stack([empty_SY] * rows)
    negative = np.zeros_like(held_out['tokens'][:rows])
    negative[:, 0] = tokenizer_lib.END
    return nets.embed(params, prompts), nets.embed(params, negative)

  @jax.jit
  def video(params, frozen, keys, prompts):
    condition = conditioning.pure_noise(rows, latent)
    params = frozen | params
    z = make(params, keys, *texts(params, prompts), condition)
    return everywhere(nets.decode(frozen, z))

  def draw(params, frozen):
    keys = sampler.clip_keys(0, len(captions))
    clips = []
    # Batches of one size: the last one begins earlier if it has to.
    for start in range(0, len(captions), rows):
      at = min(start, len(captions) - rows)
      part = slice(at, at + rows)
      frames = to_frames(video(params, frozen, keys[part], prompts[part]))
      clips += list(frames[start - at :])
    return clips, captions

  return draw


def scores(clips, scenes: Sequence[str]) -> dict[str, float]:
  """'world/NAME' of sampled clips of the digits world; see evaluation/world.py.

  Args:
    clips: frames_FHWC, uint8, of each.
    scenes: what each should show, as JSON.
  """
  scored = [
    world.score(world.measure(np.asarray(clip)), world_lib.from_json(scene))
    for clip, scene in zip(clips, scenes, strict=True)
  ]
  summary = world.summarise(scored)
  return {f'world/{name}': summary[name] for name in world.SCORES}


def reconstructed(codec, held_out: dict):
  """Returns (params, frozen) -> held-out clips beside their reconstructions."""
  frames = held_out['frames'][: CLIPS // 2]

  @jax.jit
  def video(params):
    z = codec.encode(params, to_video(frames))
    return everywhere(codec.decode(params, z))

  def draw(params, frozen):
    del frozen
    decoded = to_frames(video(params['autoencoder']))
    pairs = zip(frames, decoded, strict=True)
    clips = [clip for pair in pairs for clip in pair]
    return clips, ['held-out clip', 'its reconstruction'] * len(frames)

  return draw


def everywhere(video_BFHWC: jax.Array) -> jax.Array:
  """Replicates an array on every device, so that any process can read it."""
  return sharding.constrain(video_BFHWC, *[None] * video_BFHWC.ndim)


def action(draw, frozen, workdir, writer: metrics.MetricsWriter, *, scenes=()):
  """Returns (step, state) -> scores, which also draws a contact sheet.

  Args:
    draw: (params, frozen) -> clips and captions.
    frozen: parameters that are not trained.
    workdir: output folder of the run.
    writer: of metrics and pictures.
    scenes: what the first clips should show, as JSON; they are scored.
  """

  def call(step, state):
    with jax.transfer_guard('allow'):
      clips, captions = draw(state.ema, frozen)
    values = scores(clips[: len(scenes)], scenes) if len(scenes) else None
    clips, captions = clips[:CLIPS], captions[:CLIPS]
    if jax.process_index() == 0:
      path = checkpoint.absolute(workdir) / 'sheets' / f'{step:07d}.png'
      path.parent.mkdir(exist_ok=True)
      image = contact_sheet.draw(list(clips), captions)
      with written(path) as file:
        video_writer.write_image(file, image)
      writer.image(step, 'sheet', image)
    return values

  return call


@contextlib.contextmanager
def written(path: epath.Path):
  """Yields a local file that is copied to `path`, local or in a bucket."""
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / path.name
    yield file
    path.write_bytes(file.read_bytes())


def curve(workdir, *, stages: Sequence[Stage] = ()) -> epath.Path | None:
  """Draws WORKDIR/curve.png from metrics.jsonl, panels beside each other: the
  training loss, held-out metrics, and, if the run has them, the scores of
  sampled clips and the caption probe. A run without metrics has no curve.

  Args:
    workdir: folder of the run.
    stages: of its data; a dashed line marks where each but the first begins.
  """
  lines = metrics.read_metrics(workdir)
  if jax.process_index() or not lines:
    return None
  names = sorted({name for line in lines for name in line})
  panels = [['loss']]
  for prefix in ('held_out', 'world/', 'probe/'):
    panels.append([name for name in names if name.startswith(prefix)])
  panels = panels[:2] + [shown for shown in panels[2:] if shown]
  figure, all_axes = pyplot.subplots(
    1, len(panels), figsize=(5 * len(panels), 3.5)
  )
  for axes, shown in zip(all_axes, panels, strict=True):
    for name in shown:
      points = [(x['step'], x[name]) for x in lines if x.get(name) is not None]
      axes.plot(*zip(*points, strict=True), '.-', ms=2, label=name, lw=1)
    for start in itertools.accumulate(stage.steps for stage in stages[:-1]):
      if start < lines[-1]['step']:
        axes.axvline(start, color='gray', ls='--', lw=0.8)
    axes.set_xlabel('step')
    if shown[:1] == ['loss'] or any('held_out/loss' in name for name in shown):
      axes.set_yscale('log')
    axes.grid(alpha=0.3)
    if shown:
      axes.legend(fontsize=7 if len(shown) < 8 else 4)
  figure.tight_layout()
  path = checkpoint.absolute(workdir) / 'curve.png'
  with written(path) as file:
    figure.savefig(file, dpi=100)
  pyplot.close(figure)
  return path
