"""Contact sheets and curves of a run."""

import contextlib
import pathlib
import tempfile

import jax
import numpy as np
from etils import epath
from matplotlib import pyplot

from spacetime import checkpoint, sharding
from spacetime.config import networks, samplers
from spacetime.config.experiment import Experiment
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.diffusion import conditioning, sampler
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

  `empty_SY` is the embedded empty prompt where `held_out` has embeddings.
  """
  captions = held_out['captions'][:CLIPS]
  rows = len(captions)
  if empty_SY is None:
    tokens = held_out['tokens'][:rows]
    negative = np.zeros_like(tokens)
    negative[:, 0] = tokenizer_lib.END

  def texts(params):
    if empty_SY is not None:
      return held_out['text'][:rows], np.stack([empty_SY] * rows)
    return nets.embed(params, tokens), nets.embed(params, negative)

  make = samplers.sampler(experiment, nets, experiment.sampling)
  grid = networks.clip_geometry(experiment.data, nets)
  latent = (*grid.latent, nets.autoencoder.z_dim)

  @jax.jit
  def video(params, frozen, keys):
    condition = conditioning.pure_noise(len(captions), latent)
    params = frozen | params
    z = make(params, keys, *texts(params), condition)
    return everywhere(nets.decode(frozen, z))

  def draw(params, frozen):
    keys = sampler.clip_keys(0, len(captions))
    return to_frames(video(params, frozen, keys)), captions

  return draw


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


def action(draw, frozen, workdir, writer: metrics.MetricsWriter):
  """Returns (step, state) -> a sheet in WORKDIR/sheets and in TensorBoard."""

  def call(step, state):
    with jax.transfer_guard('allow'):
      clips, captions = draw(state.ema, frozen)
    if jax.process_index() == 0:
      path = checkpoint.absolute(workdir) / 'sheets' / f'{step:07d}.png'
      path.parent.mkdir(exist_ok=True)
      image = contact_sheet.draw(list(clips), captions)
      with written(path) as file:
        video_writer.write_image(file, image)
      writer.image(step, 'sheet', image)

  return call


@contextlib.contextmanager
def written(path: epath.Path):
  """Yields a local file that is copied to `path`, local or in a bucket."""
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / path.name
    yield file
    path.write_bytes(file.read_bytes())


def curve(workdir) -> epath.Path | None:
  """Draws WORKDIR/curve.png from metrics.jsonl: the training loss on the left,
  held-out metrics on the right. A run without metrics has no curve."""
  lines = metrics.read_metrics(workdir)
  names = sorted(
    {n for line in lines for n in line if n.startswith('held_out')}
  )
  if jax.process_index() or not lines:
    return None
  figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.5))
  for axes, shown in ((left, ['loss']), (right, names)):
    for name in shown:
      points = [(x['step'], x[name]) for x in lines if x.get(name) is not None]
      axes.plot(*zip(*points, strict=True), '.-', ms=2, label=name, lw=1)
    axes.set_xlabel('step')
    if not any('psnr' in name for name in shown):
      axes.set_yscale('log')
    axes.grid(alpha=0.3)
    if shown:
      axes.legend(fontsize=7)
  figure.tight_layout()
  path = checkpoint.absolute(workdir) / 'curve.png'
  with written(path) as file:
    figure.savefig(file, dpi=100)
  pyplot.close(figure)
  return path
