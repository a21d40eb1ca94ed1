"""Samples videos from a prompt.

  python -m spacetime.sample --prompt="a red 3 moving left" --out=three.mp4
  python -m spacetime.sample --prompts_file=prompts.txt --num=2 --out=clips.mp4
  python -m spacetime.sample --prompt="..." --image=first.png --out=video.gif

--out chooses the form: .mp4 (H.264), .webm, .gif, .png (frames, or one still
image), and a JSON sidecar beside it tells how it was made. More than one clip
is numbered: clips-000.mp4, clips-001.mp4, with a sheet, clips-sheet.png.
"""

import dataclasses
import time

from absl import flags

import spacetime
from spacetime import command, generate, request, texts
from spacetime.sampling import writer

flags.DEFINE_string('prompt', None, 'What the video shows.')
flags.DEFINE_string(
  'prompts_file',
  None,
  'A file with a prompt on each line, instead of --prompt.',
)
flags.DEFINE_string(
  'prompt_embeds',
  None,
  'A safetensors file of features in place of prompts: prompt_embeds (n, S, Y) '
  'and, if you like, negative_prompt_embeds.',
)
flags.DEFINE_string('out', None, 'Where to write, such as video.mp4.')
flags.DEFINE_string(
  'checkpoint',
  'digits',
  'A work directory, a weights folder, or a bundled one.',
)
flags.DEFINE_integer('seed', 0, 'Same seed, same video.')
flags.DEFINE_integer('num', 1, 'Videos for each prompt.')
flags.DEFINE_integer('steps', None, 'Steps of the solver.')
flags.DEFINE_string('solver', None, 'euler, heun, dpm or unipc.')
flags.DEFINE_float(
  'shift', None, 'Above 1 spends more steps where there is much noise.'
)
flags.DEFINE_float(
  'guidance', None, 'How hard to follow the prompt; 1 is unguided and faster.'
)
flags.DEFINE_float(
  'guidance_2', None, 'Guidance of the second of two transformers.'
)
flags.DEFINE_string('negative_prompt', '', 'What to stay away from.')
flags.DEFINE_string(
  'embeddings_cache',
  '~/.cache/spacetime/embeddings',
  'Folder for the features of prompts, so that a second run does without the '
  'text encoder of a published model; empty keeps none.',
)
flags.DEFINE_integer('frames', None, 'Frames; as trained if not set.')
flags.DEFINE_string('size', None, 'WIDTHxHEIGHT in pixels, as trained.')
flags.DEFINE_string('image', None, 'The first frame, an image file.')
flags.DEFINE_float('fps', None, 'Frames a second of the file.')
flags.DEFINE_integer('batch', 16, 'Videos sampled at once.')


def main() -> None:
  """Flags -> plan -> sample -> write."""
  names = (field.name for field in dataclasses.fields(request.Request))
  asked = request.Request(**{name: flags.FLAGS[name].value for name in names})
  plan = request.check(asked)
  began = time.monotonic()
  told = texts.from_prompts(
    plan.model,
    plan.prompts,
    negative=plan.negative,
    given=plan.given,
    cache=plan.cache,
  )
  videos = generate.from_texts(
    plan.model,
    told,
    grid=plan.grid,
    settings=plan.settings,
    seed=asked.seed,
    image_HWC=plan.image_HWC,
    batch=asked.batch,
  )
  about = {
    'version': spacetime.__version__,
    'checkpoint': asked.checkpoint,
    'weights_hash': plan.model.weights_hash,
    'seed': asked.seed,
    'negative_prompt': asked.negative_prompt,
    'prompt_embeds': asked.prompt_embeds,
    'image': asked.image,
    'frames': plan.grid.frames,
    'height': plan.grid.height,
    'width': plan.grid.width,
    'fps': plan.fps,
    'sampling': dataclasses.asdict(plan.settings),
    'seconds': round(time.monotonic() - began, 3),
  }
  write(plan, videos, about)


def write(plan: request.Plan, videos, about: dict) -> None:
  """Writes each video with its sidecar, and a contact sheet of several."""
  rows = zip(plan.targets.videos, videos, plan.prompts, strict=True)
  for i, (path, video, prompt) in enumerate(rows):
    written = writer.write_video(path, video, fps=plan.fps)
    writer.write_sidecar(path, {'prompt': prompt, 'number': i} | about)
    print(f'{written}: {prompt}')
  if plan.targets.sheet:
    sheet = writer.write_sheet(plan.targets.sheet, videos, plan.prompts)
    print(f'{sheet}: all of them')


if __name__ == '__main__':
  command.run(main)
