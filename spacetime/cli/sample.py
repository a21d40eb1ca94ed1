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

from absl import flags

from spacetime.cli import common, help_pages
from spacetime.diffusion.settings import SamplingSettings
from spacetime.pipeline import modes
from spacetime.pipeline.request import Request

__doc__ = __doc__.format(modes=modes.table())
common.define_flags(Request)
common.define_flags(SamplingSettings, unset="the checkpoint's")
_SIGN = flags.DEFINE_string(
  'sign',
  None,
  'Folder of `spacetime keys`: videos get an invisible watermark and a signed '
  'manifest (C2PA).',
)
help_pages.group('output', 'sign')
help_pages.example('sign', 'keys/studio')


def main() -> None:
  """Flags -> files, one line each."""
  from spacetime.pipeline import pipeline  # here: it imports JAX

  sampling = common.flag_values(SamplingSettings)
  sampling = {k: v for k, v in sampling.items() if v is not None}
  request = Request(**common.flag_values(Request), sampling=sampling)
  pipe = pipeline.from_request(request)
  if _SIGN.value:
    written = _write_signed(pipe, request)
  else:
    written = pipe.write(request)
  for path, metadata in written.items():
    print(f'{path}: {metadata["prompt"]}')


def _write_signed(pipe, request: Request):
  """Writes videos with watermarks and signs them."""
  from spacetime.provenance import keys, signed_files

  key = keys.load(_SIGN.value)
  signed_files.check(request.out)
  written = pipe.write(
    request,
    on_frames=lambda frames, metadata: signed_files.mark(frames, metadata, key),
  )
  sources = {
    name: getattr(request, name)
    for name in ('image', 'video', 'video2', 'mask')
    if getattr(request, name)
  }
  inputs = signed_files.ingredients(sources, edited='video')
  for path, metadata in written.items():
    if 'weights_hash' in metadata:  # not the contact sheet
      signed_files.sign(path, metadata, key, inputs=inputs)
  return written
