"""From the settings of a job to the request of a pipeline, in the worker."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from spacetime import SettingError
from spacetime.diffusion.settings import SamplingSettings
from spacetime.media import video_writer
from spacetime.pipeline import modes, plan, prompt_schedule
from spacetime.pipeline.engine import Engine
from spacetime.pipeline.request import Request
from spacetime.pipeline.video import Video
from spacetime.serving import fields
from spacetime.serving.uploads import Upload

_SAMPLING = {field.name for field in dataclasses.fields(SamplingSettings)}
# The field `seconds` of these modes counts new frames, after the old ones.
EXTENSIONS = ('extend', 'extend_backward')
# The video of these modes is as long as the clip they change.
REPLACEMENTS = ('edit', 'inpaint', 'outpaint')


@dataclasses.dataclass(frozen=True)
class Size:
  """Size of the video that a request makes.

  Attributes:
    frames: frames of the file.
    height: height in pixels.
    width: width in pixels.
    fps: frames per second.
  """

  frames: int
  height: int
  width: int
  fps: float

  @property
  def seconds(self) -> str:
    """Duration as the API writes it."""
    return f'{self.frames / self.fps:g}'


def build(
  prompt: str,
  params: Mapping[str, Any],
  engine: Engine,
  *,
  inputs: pathlib.Path,
  out: pathlib.Path,
) -> Request:
  """The request of a job.

  Args:
    prompt: prompt of the job.
    params: settings of the job, see fields.parse, and its `inputs`.
    engine: the model.
    inputs: folder of the decoded inputs.
    out: file to write.

  Raises:
    SettingError: a value that Request refuses.
  """
  values = {
    name: params[name]
    for name in (*fields.REQUEST, 'size', 'expand_prompt')
    if name in params
  }
  if 'prompt_schedule' not in values:
    values['prompt'] = prompt
  for slot, upload in params.get('inputs', {}).items():
    upload = Upload(**upload)
    frames_FHWC = upload.read(inputs)
    values[slot] = (
      Video(frames_FHWC, upload.fps) if upload.fps else frames_FHWC[0]
    )
  if 'seconds' in params:
    values |= _length(values, params['seconds'], engine)
  elif values.get('mode') in REPLACEMENTS and 'frames' not in values:
    values |= _same_length(values.get('video'), engine)
  return Request(
    **values,
    out=str(out),
    batch_size=max(1, params.get('best_of', 1)),
    prompt_embeds_cache='',
    sampling={k: v for k, v in params.items() if k in _SAMPLING},
  )


def file_format(params: Mapping[str, Any]) -> str:
  """The format of a job's file, one of fields.FORMATS."""
  return params.get('format', 'png' if params.get('mode') == 'still' else 'mp4')


def size(request: Request, engine: Engine) -> Size:
  """Size of the video; checks everything that can be refused.

  Raises:
    SettingError: it names the setting to change.
  """
  resolved = plan.resolve(request, engine)
  sizes = resolved.geometry
  frames = resolved.frames
  if resolved.division is not None:
    step = sizes.stride[0]
    frames = 1 + (resolved.division.latent_frames - 1) * step
    if resolved.conditioning is not None:
      frames += len(resolved.conditioning.before_FHWC)
  video_writer.check_rate(request.out, fps=resolved.fps)
  _check_format(request, frames)
  return Size(frames, sizes.height, sizes.width, resolved.fps)


def _check_format(request: Request, frames: int) -> None:
  kind = pathlib.PurePath(request.out).suffix[1:]
  if video_writer.writes_folder(request.out, frames=frames):
    raise SettingError('format', kind, 'a format of videos, or `mode` still')
  if request.seconds is not None and kind != 'mp4':
    raise SettingError(
      'format', kind, 'mp4, since a long video is written chunk by chunk'
    )


def _length(
  values: Mapping[str, Any], seconds: float, engine: Engine
) -> dict[str, Any]:
  """Settings of a duration: one clip if the model was trained on such, else
  a long video of chunks."""
  data, step = engine.data, engine.autoencoder.stride[0]
  fps = values.get('fps') or data.fps
  if values.get('frames') is not None or 'prompt_schedule' in values:
    return {'seconds': seconds}  # `frames` is the length of a chunk
  longest = max(data.frames, data.max_frames)
  frames = prompt_schedule.length(seconds, stride=step, fps=fps)
  if values.get('mode') not in EXTENSIONS:
    long = frames > longest and modes.MODES[_mode(values)].extendable
    return {'seconds': seconds} if long else {'frames': frames}
  new = max(1, round(seconds * fps / step)) * step
  cond = values.get('cond_frames')
  if cond is None:
    cond = 1 + step * ((data.frames - 1) // step // 2)
  if values['mode'] == 'extend_backward':
    return {'frames': 1 + (cond + new - 1) // step * step, 'cond_frames': cond}
  if cond + new <= longest:
    return {'frames': cond + new, 'cond_frames': cond}
  return {'seconds': (cond + new) / fps, 'cond_frames': cond}


def _same_length(video: Video | None, engine: Engine) -> dict[str, int]:
  """Frames of a changed clip: those of the clip that the model supports."""
  if video is None:
    return {}
  data, step = engine.data, engine.autoencoder.stride[0]
  frames = int(len(video) / video.fps * data.fps + 1e-3)
  frames = min(max(1, frames), max(data.frames, data.max_frames))
  return {'frames': 1 + (frames - 1) // step * step}


def _mode(values: Mapping[str, Any]) -> str:
  return values.get('mode') or ('image' if 'image' in values else 'text')
