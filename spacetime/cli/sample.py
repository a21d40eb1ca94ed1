"""Samples videos from prompts, images and videos.

  spacetime sample --prompt="a red 3 moves to the right" --out=three.mp4
  spacetime sample --prompts_file=prompts.txt --num=2 --out=clips.mp4
  spacetime sample --prompt="..." --image=first.png --out=video.gif
  spacetime sample --prompt="..." --mode=extend --video=clip.mp4 \\
    --out=longer.mp4

Several videos are numbered: clips-000.mp4, clips-001.mp4, with a contact sheet,
clips-sheet.png. They are written as they are finished; started again, the same
command writes the rest. A JSON sidecar beside each records how it was made.

Modes, of --mode:

{modes}
"""

import pathlib
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags

from spacetime.cli import common, devices, help_pages, mesh
from spacetime.diffusion.settings import SamplingSettings
from spacetime.pipeline import modes
from spacetime.pipeline.request import Request

__doc__ = __doc__.format(modes=modes.table())
common.define_flags(Request)
common.define_flags(SamplingSettings, unset="the checkpoint's")
mesh.define_flags()
_SIGN = flags.DEFINE_string(
  'sign',
  None,
  'Folder of `spacetime keys`: videos get an invisible watermark and a signed '
  'manifest (C2PA).',
)
help_pages.group('output', 'sign')
help_pages.example('sign', 'keys/studio')
_PROGRAMS = flags.DEFINE_string(
  'programs',
  None,
  'Folder of programs that `spacetime compile --save` has compiled ahead of '
  'time, for the same devices.',
)
help_pages.group('devices', 'programs')
help_pages.example('programs', 'programs/v6e-8')


def main() -> None:
  """Flags -> files, one line each."""
  from spacetime.pipeline import pipeline  # here: it imports JAX

  sampling = common.flag_values(SamplingSettings)
  sampling = {k: v for k, v in sampling.items() if v is not None}
  request = Request(**common.flag_values(Request), sampling=sampling)
  pipe = pipeline.from_request(
    request,
    mesh=mesh.value(),
    programs=_PROGRAMS.value,
    program_cache=devices.program_cache(),
  )
  if _SIGN.value:
    _write_signed(pipe, request)
  else:
    pipe.write(request, command=_command(), report=_report)


def _write_signed(pipe, request: Request) -> None:
  """Writes videos with watermarks and signs each when it is finished."""
  from spacetime.provenance import keys, signed_files

  key = keys.load(_SIGN.value)
  signed_files.check(request.out)
  sources = {
    name: getattr(request, name)
    for name in ('image', 'last_image', 'video', 'video2', 'mask')
    if getattr(request, name)
  }
  inputs = signed_files.ingredients(sources, edited='video')

  def report(path: pathlib.Path, metadata: Mapping[str, Any]) -> None:
    if 'weights_hash' in metadata:  # not the contact sheet
      signed_files.sign_missing(path, metadata, key, inputs=inputs)
    _report(path, metadata)

  pipe.write(
    request,
    command=_command(),
    on_frames=lambda frames, metadata: signed_files.mark(frames, metadata, key),
    mark=key.fingerprint,
    report=report,
  )


def _command() -> str:
  """The command line, for sidecars."""
  return shlex.join([*sys.argv[0].split(), *sys.argv[1:]])


def _report(path: pathlib.Path, metadata: Mapping[str, Any]) -> None:
  """Prints a file that is written, and one that was there before."""
  kept = ' (kept: the same request wrote it)' if metadata.get('kept') else ''
  print(f'{path}: {metadata["prompt"]}{kept}', flush=True)
