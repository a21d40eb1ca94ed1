"""Every mode of the bundled model, measured on held-out clips.

  python tests/benchmarks/modes.py --num=32 --out=runs/modes

Joins: the step in pixels, place and velocity from what is given to what is
made, as ratios to the steps within real clips (spacetime/evaluation/seams.py);
beside them the steps within clips that are made whole, which no join can be
expected to be below; and of extensions, how many of their last frames show the
characters of the clip. Given frames: decibels of what comes out. Edits to
another colour or digit: how many have it, how many have kept all else, how far
characters are from where they were.
Writes metrics.json and sheet.png (what is given, then what is made).
"""

import argparse
import dataclasses
import functools
import json
import pathlib

import jax
import maker as maker_lib
import numpy as np
import tqdm

from spacetime.data.digits import captions, world
from spacetime.evaluation import seams
from spacetime.evaluation import world as measures
from spacetime.media import contact_sheet

STRENGTHS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
HEAD, TAIL = 9, 8  # frames given at the ends of a loop
HEAD_SHORT, TAIL_SHORT = 5, 4  # and of a connection
JOINS = ('extend', 'extend_backward', 'connect', 'loop', 'loop_whole')
# Frames left out at both ends of a clip that is looped: what it does next is
# known there. A whole clip of one who bounces ends as it hits the ground, so
# that all of its loops turn at once where they close: `loop_whole`.
INSET = 2
LOOP = 33  # frames of its window: the way back is as long as the way there
# Real clips whose steps are the usual ones: few bounce, and these have more
# than half of all change in velocity.
REAL, SEED = 256, 5
SHOWN = 1  # clips of each mode in the sheet
COLUMNS = 9  # frames of each


def main() -> None:
  """Samples every mode, prints a table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--checkpoint', default='digits')
  parser.add_argument('--num', type=int, default=32)
  parser.add_argument('--seed', type=int, default=5)
  parser.add_argument('--steps', type=int)
  parser.add_argument('--solver')
  parser.add_argument('--guidance', type=float)
  parser.add_argument('--temperature', type=float)
  parser.add_argument(
    '--best_of', type=int, default=1, help='candidates of clips with joins'
  )
  parser.add_argument(
    '--only', help='joins, images, inpaintings, outpaintings, edits or stills'
  )
  parser.add_argument(
    '--joins', nargs='+', choices=JOINS, default=JOINS, help='of --only=joins'
  )
  parser.add_argument('--out', type=pathlib.Path, default='runs/modes')
  flags = parser.parse_args()
  flags.out.mkdir(parents=True, exist_ok=True)
  # The same few programs again and again, each from its own call.
  jax.config.update('jax_compilation_cache_dir', '.cache/jax_tests')
  maker = maker_lib.Maker(
    flags.checkpoint,
    best_of=flags.best_of,
    steps=flags.steps,
    solver=flags.solver,
    guidance=flags.guidance,
    temperature=flags.temperature,
  )
  clips, scenes = maker_lib.real(maker.world, flags.num, seed=flags.seed)
  metrics, rows = {}, []
  kinds = {
    'joins': functools.partial(joins, names=flags.joins),
    'images': images,
    'inpaintings': inpaintings,
    'outpaintings': outpaintings,
    'edits': edits,
    'stills': stills,
  }
  for name, measure in kinds.items():
    if flags.only in (None, name):
      more, shown = measure(maker, clips, scenes)
      metrics |= more
      rows += shown
  (flags.out / 'metrics.json').write_text(json.dumps(metrics, indent=2))
  contact_sheet.write(
    flags.out / 'sheet.png',
    [frames for _, frames in rows],
    [text for text, _ in rows],
    columns=COLUMNS,
    scale=1,
  )
  for name, values in metrics.items():
    report = ', '.join(f'{key} {value:.3g}' for key, value in values.items())
    print(f'{name}: {report}')


def onward(scene: world.Scene) -> world.Scene:
  """What comes of a scene when its clip is over: what moved goes about, since
  nothing can go on to the right and stay in the picture."""
  return dataclasses.replace(
    scene,
    characters=tuple(
      c
      if c.motion == 'still'
      else dataclasses.replace(c, motion=world.WANDERING)
      for c in scene.characters
    ),
  )


def joins(maker, clips, scenes, *, names=JOINS):
  """Modes that go on from a clip: where what is made meets what is given."""
  usual = seams.within(maker_lib.real(maker.world, REAL, seed=SEED)[0])
  frames = maker.frames
  half = frames // 2
  metrics, rows = {}, []

  def tell(name, steps):
    report = seams.summarise(steps, usual)
    metrics[name] = {key: report[f'ratio/{key}'] for key in seams.MEASURES} | {
      'tracked': report['tracked']
    }

  sampled = [
    maker(scene, seed=i)
    for i, scene in enumerate(tqdm.tqdm(scenes, desc='text'))
  ]
  tell('within clips made whole', seams.within(sampled))
  # What modes would have made, had they known: few clips are not the usual.
  ends, cut = (HEAD_SHORT, frames - TAIL_SHORT), (INSET, frames - INSET)
  for mode, places in (('connect', ends), ('loop', cut)):
    real = [seams.step(clip, join) for clip in clips for join in places]
    tell(f'real clips where {mode} joins', real)
  video = lambda clip: {'video': clip}  # noqa: E731
  for name, mode, inputs_of, cond_frames, at, next_scene in (
    ('extend', 'extend', video, half + 1, (frames,), onward),
    (
      'extend_backward',
      'extend_backward',
      video,
      half,
      (frames - half,),
      onward,
    ),
    (
      'connect',
      'connect',
      lambda clip: {
        'video': clip[:HEAD_SHORT],
        'video2': clip[-TAIL_SHORT:],
        'frames': frames,
      },
      None,
      ends,
      lambda scene: scene,
    ),
    (
      'loop',
      'loop',
      lambda clip: {'video': clip[slice(*cut)], 'frames': LOOP},
      HEAD,
      (frames - 2 * INSET, 0),
      onward,
    ),
    (
      'loop_whole',
      'loop',
      lambda clip: {'video': clip, 'frames': LOOP},
      HEAD,
      (frames, 0),
      onward,
    ),
  ):
    if name not in names:
      continue
    steps, after = [], []
    for i, clip in enumerate(tqdm.tqdm(clips, desc=name)):
      scene = next_scene(scenes[i])
      result = maker(
        scene,
        seed=i,
        joins=True,
        mode=mode,
        cond_frames=cond_frames,
        **inputs_of(clip),
      )
      steps += [seams.step(result, join, looped=not join) for join in at]
      if name == 'extend':
        report = measures.measure(result[-frames:])
        after.append(measures.score(report, scenes[i]))
      if i < SHOWN:
        rows.append((f'{name}: {captions.canonical_caption(scene)}', result))
    tell(name, steps)
    if after:
      metrics[name] |= shares(after, ('count', 'colour', 'digit'))
  return metrics, rows


def images(maker, clips, scenes):
  """One frame is given: what comes out in its place."""
  metrics, rows = {}, []
  for at in (0, maker.frames // 2, maker.frames - 1):
    decibels = []
    for i, clip in enumerate(tqdm.tqdm(clips, desc=f'image at {at}')):
      sampled = maker(scenes[i], seed=i, image=clip[at], at=at)
      decibels.append(psnr(sampled[at], clip[at]))
      if i < SHOWN:
        rows.append((f'image at {at}, the real clip below', sampled))
        rows.append(('', clip))
    metrics[f'image at {at}'] = {'dB of the image': np.mean(decibels)}
  return metrics, rows


def inpaintings(maker, clips, scenes):
  """The right half is made: what is given stays, and what is asked is there."""
  decibels, scores, rows = [], [], []
  new_HW = np.zeros(clips[0].shape[1:3], bool)
  new_HW[:, new_HW.shape[1] // 2 :] = True
  for i, clip in enumerate(tqdm.tqdm(clips, desc='inpaint')):
    sampled = maker(scenes[i], seed=i, mode='inpaint', video=clip, mask=new_HW)
    decibels.append(psnr(sampled[:, ~new_HW], clip[:, ~new_HW]))
    scores.append(measures.score(measures.measure(sampled), scenes[i]))
    if i < SHOWN:
      rows.append(('inpaint: the right half is new', sampled))
  return {
    'inpaint': {'dB of the clip': np.mean(decibels)} | shares(scores)
  }, rows


def outpaintings(maker, clips, scenes):
  """The middle is given: it stays, and what is around it is made."""
  _, height, width, _ = clips[0].shape
  top, left = height // 8, width // 8
  decibels, scores, rows = [], [], []
  for i, clip in enumerate(tqdm.tqdm(clips, desc='outpaint')):
    middle = clip[:, top : height - top, left : width - left]
    sampled = maker(
      scenes[i], seed=i, mode='outpaint', video=middle, size=(width, height)
    )
    middle_FHWC = sampled[:, top : height - top, left : width - left]
    decibels.append(psnr(middle_FHWC, middle))
    scores.append(measures.score(measures.measure(sampled), scenes[i]))
    if i < SHOWN:
      rows.append(('outpaint: all but the middle is new', sampled))
  return {
    'outpaint': {'dB of the clip': np.mean(decibels)} | shares(scores)
  }, rows


def stills(maker, clips, scenes):
  """Images: clips of one frame; as many as fill a row of the sheet, or more."""
  _, scenes = maker_lib.real(maker.world, max(len(clips), COLUMNS), seed=SEED)
  images_NHWC = np.concatenate(
    [
      maker(scene, seed=i, mode='still')
      for i, scene in enumerate(tqdm.tqdm(scenes, desc='still'))
    ]
  )
  scores = [
    measures.score(measures.measure(image[None]), scene)
    for image, scene in zip(images_NHWC, scenes, strict=True)
  ]
  return {'still': shares(scores)}, [
    ('stills, of a prompt each', images_NHWC[:COLUMNS])
  ]


def shares(scores: list[dict], names=('count', 'colour', 'digit', 'motion')):
  """How many show what the prompt says, by attribute."""
  return {name: np.mean([score[name] for score in scores]) for name in names}


def edits(maker, clips, scenes):
  """Another colour or digit, over strengths: is it there, is the rest as it
  was?"""
  metrics, rows = {}, []
  for attribute, change in (('colour', repainted), ('digit', renumbered)):
    for strength in STRENGTHS:
      scores, away = [], []
      name = f'edit {attribute} {strength}'
      for i, clip in enumerate(tqdm.tqdm(clips, desc=name)):
        target = change(scenes[i])
        sampled = maker(
          target,
          seed=i,
          mode='edit',
          video=clip,
          strength=strength,
          temperature=None,
        )
        report = measures.measure(sampled)
        scores.append(measures.score(report, target))
        before = measures.measure(clip)
        if len(report.tracks) == len(before.tracks) == 1:
          offset_F2 = report.tracks[0].path_F2 - before.tracks[0].path_F2
          away.append(np.hypot(*offset_F2.T).mean())
        if i < SHOWN:
          text = f'{name}: {captions.canonical_caption(target)}'
          rows.append((text, sampled))
      metrics[name] = shares(scores) | {'pixels away': np.mean(away)}
  return metrics, rows


def repainted(scene: world.Scene) -> world.Scene:
  """The scene with characters of colours three further on."""
  colours = list(world.COLOURS)
  return changed(
    scene,
    lambda c: {'colour': colours[(colours.index(c.colour) + 3) % len(colours)]},
  )


def renumbered(scene: world.Scene) -> world.Scene:
  """The scene with digits three further on."""
  return changed(scene, lambda c: {'digit': (c.digit + 3) % 10})


def changed(scene: world.Scene, change) -> world.Scene:
  """The scene with fields of each character changed."""
  return dataclasses.replace(
    scene,
    characters=tuple(
      dataclasses.replace(c, **change(c)) for c in scene.characters
    ),
  )


def psnr(sampled: np.ndarray, expected: np.ndarray) -> float:
  """Of uint8; 99 where they are equal."""
  error = np.square((sampled.astype(np.float64) - expected) / 255).mean()
  return -10 * np.log10(max(error, 10**-9.9))


if __name__ == '__main__':
  main()
