"""Samples videos from prompts, images and videos.

  spacetime sample --prompt="a red 3 moves to the right" --out=three.mp4
  spacetime sample --prompts_file=prompts.txt --num=2 --out=clips.mp4
  spacetime sample --prompt="..." --image=first.png --out=video.gif
  spacetime sample --prompt="..." --mode=extend --video=clip.mp4 \\
    --out=longer.mp4

Several videos are numbered: clips-000.mp4, clips-001.mp4, with a contact sheet,
clips-sheet.png. A JSON sidecar beside each records how it was made.

Modes, of --mode:

{modes}
"""

from spacetime.cli import common
from spacetime.diffusion.settings import SamplingSettings
from spacetime.pipeline import modes
from spacetime.pipeline.request import Request

__doc__ = __doc__.format(modes=modes.table())
common.define_flags(Request)
common.define_flags(SamplingSettings, unset="the checkpoint's")


def main() -> None:
  """Flags -> files, one line each."""
  from spacetime.pipeline import pipeline  # here: it imports JAX

  sampling = common.flag_values(SamplingSettings)
  sampling = {k: v for k, v in sampling.items() if v is not None}
  request = Request(**common.flag_values(Request), sampling=sampling)
  written = pipeline.from_request(request).write(request)
  for path, metadata in written.items():
    print(f'{path}: {metadata["prompt"]}')
