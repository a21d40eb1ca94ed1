"""Samples videos from a prompt, and from what is given beside it.

  python -m spacetime sample --prompt="a red 3 moving left" --out=three.mp4
  python -m spacetime sample --prompts_file=prompts.txt --num=2 --out=clips.mp4
  python -m spacetime sample --prompt="..." --image=first.png --out=video.gif
  python -m spacetime sample --prompt="..." --mode=extend --video=clip.mp4 \\
    --out=longer.mp4

--out chooses the form: .mp4 (H.264), .webm, .gif, .png (frames, or one still
image), and a JSON sidecar beside it tells how it was made. More than one clip
is numbered: clips-000.mp4, clips-001.mp4, with a sheet, clips-sheet.png.

--mode: an image (--image) as any frame; extend or extend_backward, loop
(--video); connect (--video, --video2); inpaint (--video, --mask), outpaint
(--video in a larger --size); edit (--video, --strength); still. --frames and
--size are then of the part that is made, with what of the video is given.
"""

import dataclasses
import time

from absl import flags

import spacetime
from spacetime.media import contact_sheet, video_writer
from spacetime.pipeline import (
  best_of_n,
  decode_tiles,
  generate,
  long_video,
  modes,
  prompt_embeds,
  request,
  rollout_state,
)

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
flags.DEFINE_string(
  'guidance_kind',
  None,
  'cfg, cfg_zero (CFG-Zero*) or apg (adaptive projected guidance).',
)
flags.DEFINE_float(
  'first_block_cache',
  None,
  'Skip all blocks but the first where its output changed by less than this '
  'share since they were last computed, such as 0.1; 0 skips none.',
)
flags.DEFINE_string(
  'rope_scaling',
  None,
  'Positions of time in clips longer than those trained on: none, riflex (one '
  'frequency lowered, against repetition) or ntk (all but the fastest).',
)
flags.DEFINE_float(
  'temperature',
  None,
  'Of what begins as noise: 1 is as trained; less, such as 0.4, makes what '
  'comes steadier and less varied. Edits begin with the noise of --strength.',
)
flags.DEFINE_integer(
  'candidates',
  1,
  'Draw so many of each video, 8 say, and keep the one whose motion changes '
  'least where what is made meets what is given (extend, loop, connect).',
)
flags.DEFINE_string('negative_prompt', '', 'What to stay away from.')
flags.DEFINE_string(
  'expand_prompt',
  None,
  "Tell each prompt at length: 'grammar' (the digits world's own), or the URL "
  "of a chat endpoint of OpenAI's form; its key is SPACETIME_API_KEY in the "
  'environment.',
)
flags.DEFINE_string('expand_model', 'default', "The endpoint's model.")
flags.DEFINE_float(
  'expand_timeout', 60.0, 'Seconds to wait for each of its answers.'
)
flags.DEFINE_string(
  'embeddings_cache',
  '~/.cache/spacetime/embeddings',
  'Folder for the features of prompts, so that a second run does without the '
  'text encoder of a published model; empty keeps none.',
)
flags.DEFINE_integer(
  'frames',
  None,
  'Frames of what is made at once; as trained if not set, and of --mode=loop '
  'and connect the longest trained on.',
)
flags.DEFINE_string('size', None, 'WIDTHxHEIGHT in pixels, as trained.')
flags.DEFINE_string(
  'mode', None, f'What is given: one of {", ".join(modes.MODES)}.'
)
flags.DEFINE_string('image', None, 'One frame of the video, an image file.')
flags.DEFINE_string(
  'image_at', None, 'Which frame that is: first, last or its number from 0.'
)
flags.DEFINE_string(
  'video', None, 'The video that is extended, looped, painted in or edited.'
)
flags.DEFINE_string('video2', None, 'The video that --video leads to.')
flags.DEFINE_string(
  'mask', None, 'An image of the size of --video, light where it is made anew.'
)
flags.DEFINE_float(
  'strength',
  None,
  'How much noise an edit starts from: above 0 (nothing changes) to 1 (nothing '
  'stays).',
)
flags.DEFINE_integer(
  'given',
  None,
  'Frames of a video that what is made goes on from, or leads to; with '
  '--mode=edit the last ones, that stay. About half of --frames if not set.',
)
flags.DEFINE_float(
  'seconds',
  None,
  'How long the video is, to the nearest length that the autoencoder has. What '
  'is longer than --frames is made in chunks of so many, each given the last '
  '--given frames of what there is, and written to FILE.part.mp4 as it comes; '
  'after a stop the same command goes on.',
)
flags.DEFINE_string(
  'schedule',
  None,
  'Prompts that change along the way, instead of --prompt: "0: PROMPT; 10: '
  'PROMPT" has the second from second 10 on.',
)
flags.DEFINE_float(
  'context_noise',
  None,
  'Level of noise on what a chunk of --seconds is given, against drift: 0 (as '
  'it is) to less than 1.',
)
flags.DEFINE_float('fps', None, 'Frames a second of the file.')
flags.DEFINE_integer('batch', 16, 'Videos sampled at once.')
flags.DEFINE_string(
  'lora',
  None,
  'A safetensors file of low-rank pairs, added to the transformer.',
)
flags.DEFINE_string(
  'lora_2', None, 'The same for the second of two transformers.'
)
flags.DEFINE_float('lora_strength', 1.0, 'What the pairs are multiplied by.')
flags.DEFINE_string(
  'decode_tiles',
  None,
  'COLUMNSxROWS: decode each frame in tiles, for a picture that memory does '
  'not hold whole; they are blended, but seams may be seen.',
)
flags.DEFINE_integer(
  'decode_overlap',
  decode_tiles.OVERLAP,
  'Latent cells that neighbouring tiles share.',
)
flags.DEFINE_integer(
  'decode_shards',
  1,
  'Devices that share the rows or columns of each frame while it is decoded: '
  'no seams.',
)


def main() -> None:
  """Flags -> plan -> sample -> write."""
  names = (field.name for field in dataclasses.fields(request.Request))
  asked = request.Request(**{name: flags.FLAGS[name].value for name in names})
  plan = request.check(asked)
  began = time.monotonic()
  about = {
    'version': spacetime.__version__,
    'checkpoint': asked.checkpoint,
    'weights_hash': plan.model.weights_hash,
    'seed': asked.seed,
    'negative_prompt': asked.negative_prompt,
    'prompt_embeds': asked.prompt_embeds,
    'expand_prompt': asked.expand_prompt,
    'mode': plan.mode,
    'candidates': asked.candidates,
    **{name: getattr(asked, name) for name in modes.FLAGS},
    'lora': asked.lora,
    'lora_2': asked.lora_2,
    'lora_strength': asked.lora_strength,
    'decode_tiles': asked.decode_tiles,
    'decode_shards': asked.decode_shards,
    'frames': plan.grid.frames,
    'height': plan.grid.height,
    'width': plan.grid.width,
    'fps': plan.fps,
    'sampling': dataclasses.asdict(plan.settings),
  }
  state = identity = None
  if plan.division:
    identity = long_video.identity(plan, about)
    state = rollout_state.read(plan.targets.state, identity)
  told = prompt_embeds.from_prompts(
    plan.model,
    plan.prompts,
    negative=plan.negative,
    given=plan.given,
    cache=plan.cache,
  )
  if plan.division:
    long_video.make(plan, told, seed=asked.seed, state=state, about=identity)
    spent = {'seconds': round(time.monotonic() - began, 3)}
    long_video.finish(plan, about | spent, seed=asked.seed)
    return
  drawn = generate.from_texts(
    plan.model,
    told.repeated(asked.candidates),
    grid=plan.grid,
    settings=plan.settings,
    seed=asked.seed,
    window=plan.window,
    batch=asked.batch,
    layout=plan.layout,
  )
  at = best_of_n.of(plan.window) if plan.window else ()
  videos, chosen = best_of_n.smoothest(drawn, at, candidates=asked.candidates)
  about |= {'seconds': round(time.monotonic() - began, 3)}
  write(plan, videos, about, chosen=chosen)


def write(plan: request.Plan, videos, about: dict, *, chosen) -> None:
  """Writes each video with its sidecar, and a contact sheet of several."""
  names = zip(plan.prompts, plan.asked, strict=True)
  rows = zip(plan.targets.videos, videos, names, strict=True)
  for i, (path, video, (prompt, asked)) in enumerate(rows):
    written = video_writer.write_video(path, video, fps=plan.fps)
    words = {'prompt': prompt, 'prompt_asked': asked}
    numbers = {'number': i, 'candidate': chosen[i]}
    video_writer.write_sidecar(path, words | numbers | about)
    print(f'{written}: {prompt}')
  if plan.targets.sheet:
    sheet = contact_sheet.write(plan.targets.sheet, videos, plan.prompts)
    print(f'{sheet}: all of them')
