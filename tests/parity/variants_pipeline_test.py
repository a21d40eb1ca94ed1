"""Image-to-video, VACE and flow-map pipelines from a folder to frames, by a
user's call, against diffusers."""

import contextlib

import jax
import numpy as np
import pytest
from PIL import Image

import spacetime
from spacetime import SettingError
from spacetime.diffusion import sampler
from spacetime.models.transformer import dit
from tests.parity import (
  folder_parity_test,
  pipeline_parity_test,
  variants_parity_test,
)

pytestmark = pytest.mark.parity

FRAMES, STEPS, SEED = 5, 4, 3
SIDE = 32  # pixels; 4 latent cells
PROMPT = pipeline_parity_test.PROMPT
TEXT = folder_parity_test.TEXT['d_model']
BASE = dict(
  patch=(1, 2, 2),
  channels=4,
  width=24,
  heads=2,
  layers=3,
  mlp=40,
  text_width=TEXT,
  frequencies=32,
)
CLIP = dict(
  hidden_size=20,
  intermediate_size=40,
  num_hidden_layers=3,
  num_attention_heads=2,
  image_size=SIDE,
  patch_size=16,
)
TOKENS = 5  # of an image


def transformer(**variant):
  import diffusers

  config = dit.DiTConfig(**BASE, **variant)
  values = variants_parity_test.wan_transformer.write_config(config)
  cls = getattr(diffusers, values.pop('_class_name'))
  return variants_parity_test.randomised(cls.from_config(values))


def image_encoder():
  """CLIP and its processor, which keeps an image of its size as it is."""
  import transformers

  encoder = variants_parity_test.randomised(
    transformers.CLIPVisionModel(
      transformers.CLIPVisionConfig(**CLIP, hidden_act='gelu')
    )
  )
  processor = transformers.CLIPImageProcessor(
    size={'shortest_edge': SIDE}, crop_size={'height': SIDE, 'width': SIDE}
  )
  return encoder, processor


def published(folder, cls, more, **parts):
  """A random small pipeline of diffusers, saved to a folder."""
  import diffusers

  base = folder.with_name('base')
  base.mkdir()
  theirs = pipeline_parity_test.published(base / 'folder')
  components = {
    name: part
    for name, part in theirs.components.items()
    if name not in ('transformer', 'transformer_2')
  }
  if cls == 'AnyFlowPipeline':
    components['scheduler'] = diffusers.FlowMapEulerDiscreteScheduler(shift=5.0)
  theirs = getattr(diffusers, cls)(**components, **parts, **more)
  theirs.save_pretrained(folder)
  theirs.set_progress_bar_config(disable=True)
  return theirs


def picture(seed, *shape):
  shape = shape or (SIDE, SIDE, 3)
  return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def noise(frames, seed=SEED):
  """The initial noise of the first clip of a call with this seed."""
  shape = (frames, SIDE // 8, SIDE // 8, BASE['channels'])
  keys = sampler.clip_keys(seed, 1)
  return np.asarray(jax.vmap(lambda key: jax.random.normal(key, shape))(keys))


def expected(theirs, *, latent_frames=2, **call):
  arguments = dict(
    prompt=PROMPT,
    negative_prompt='',
    height=SIDE,
    width=SIDE,
    num_frames=FRAMES,
    num_inference_steps=STEPS,
    guidance_scale=4.0,
    latents=folder_parity_test.torch_of(noise(latent_frames)),
    output_type='np',
  )
  return theirs(**(arguments | call)).frames[0]


@contextlib.contextmanager
def float_frames(pipe):
  """Frames of a pipeline before they are rounded to bytes, in [0, 1]."""
  from spacetime.pipeline import decode

  seen = []

  def keep(video_BFHWC):
    seen.append(np.asarray(video_BFHWC))
    return np.uint8(np.clip(np.round(127.5 * (seen[-1] + 1)), 0, 255))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(decode, 'to_frames', keep)
    yield lambda: np.clip(np.concatenate(seen, 1)[0] * 0.5 + 0.5, 0, 1)


def ours(pipe, *args, call=None, **settings):
  values = dict(
    seed=SEED, steps=STEPS, frames=FRAMES, size=(SIDE, SIDE), guidance=4.0
  )
  call = call or pipe
  with float_frames(pipe) as frames:
    call(*args, **(values | settings))
    return frames()


def close(result, theirs):
  assert result.shape == theirs.shape
  print('difference', np.abs(result - theirs).max(), theirs.std())
  assert theirs.std() > 0.01
  np.testing.assert_allclose(result, theirs, atol=1e-5, rtol=0)


@pytest.fixture(autouse=True)
def _exact():
  with jax.default_matmul_precision('highest'):
    yield


def load(folder):
  return spacetime.load(str(folder), progress=False)


def test_a_first_image_for_two_transformers(tmp_path):
  """Wan 2.2 I2V-A14B, with and without a last image."""
  import torch

  first = transformer(cond_channels=8)
  torch.manual_seed(7)
  second = transformer(cond_channels=8)
  for parameter in second.parameters():
    parameter.data.mul_(1.1)
  theirs = published(
    tmp_path / 'folder',
    'WanImageToVideoPipeline',
    {'boundary_ratio': 0.9, 'image_encoder': None, 'image_processor': None},
    transformer=first,
    transformer_2=second,
  )
  pipe = load(tmp_path / 'folder')
  assert pipe.engine.data.size == (81, 480, 832)
  image, last = picture(0), picture(1)
  for more in ({}, {'last_image': last}):
    call = {name: Image.fromarray(x) for name, x in more.items()}
    reference = expected(
      theirs, image=Image.fromarray(image), guidance_scale_2=3.0, **call
    )
    result = ours(pipe, PROMPT, image=image, guidance_2=3.0, **more)
    close(result, reference)
  refused = {
    'image': dict(),
    'mode': dict(mode='extend', video=picture(0, 5, SIDE, SIDE, 3)),
    'seconds': dict(image=image, seconds=4.0),
    'image_at': dict(image=image, at='last'),
    'reference_images': dict(image=image, reference_images=[last]),
  }
  for name, settings in refused.items():
    with pytest.raises(SettingError, match=f'^{name}='):
      pipe(PROMPT, **settings)
  wide = np.zeros((100, 300, 3), np.uint8)
  request = pipe._request(prompt=PROMPT, image=wide)
  sizes = pipe.geometry(request)
  assert (sizes.height, sizes.width) == (352, 1088)  # 364.9, 1094.6


@pytest.mark.parametrize('ends', [False, True])
def test_images_that_the_model_sees(ends, tmp_path):
  """Wan 2.1 I2V-14B and FLF2V-14B."""
  encoder, processor = image_encoder()
  theirs = published(
    tmp_path / 'folder',
    'WanImageToVideoPipeline',
    {},
    image_encoder=encoder,
    image_processor=processor,
    transformer=transformer(
      cond_channels=8, image_width=20, image_tokens=2 * TOKENS * ends
    ),
  )
  pipe = load(tmp_path / 'folder')
  images = {'image': picture(0)} | ({'last_image': picture(1)} if ends else {})
  reference = expected(
    theirs, **{name: Image.fromarray(x) for name, x in images.items()}
  )
  close(ours(pipe, PROMPT, **images), reference)
  del images['last_image' if ends else 'image']
  images |= {} if ends else {'image': picture(0), 'last_image': picture(1)}
  with pytest.raises(SettingError, match='^last_image='):
    pipe(PROMPT, **images)


def test_vace_in_all_modes(tmp_path):
  theirs = published(
    tmp_path / 'folder',
    'WanVACEPipeline',
    {},
    transformer=transformer(control_layers=(0, 2), control_channels=2 * 4 + 64),
    transformer_2=None,
  )
  pipe = load(tmp_path / 'folder')
  clip = picture(2, FRAMES, SIDE, SIDE, 3)
  mask = np.zeros((SIDE, SIDE), bool)
  mask[:, 12:] = True
  references = [picture(3), picture(4)]

  def pil(frames):
    return [Image.fromarray(frame) for frame in frames]

  def mask_of(new_FHW):
    return pil(np.uint8(255) * new_FHW)

  # Zero in [-1, 1] has no byte: diffusers gets it as it stands.
  plain = theirs.preprocess_conditions

  def blank(*arguments):
    video, mask, images = plain(*arguments)
    return video * (mask < 0.5), mask, images

  new_FHW = np.broadcast_to(mask, (FRAMES, SIDE, SIDE))
  reference = expected(theirs, video=pil(clip))
  close(ours(pipe, clip, PROMPT, call=pipe.control), reference)
  theirs.preprocess_conditions = blank
  reference = expected(
    theirs,
    latent_frames=4,
    video=pil(clip),
    mask=mask_of(new_FHW),
    reference_images=pil(references),
  )
  result = ours(
    pipe, clip, mask, PROMPT, call=pipe.inpaint, reference_images=references
  )
  close(result, reference)
  new_F = np.arange(FRAMES) > 0
  new_FHW = np.broadcast_to(new_F[:, None, None], (FRAMES, SIDE, SIDE))
  reference = expected(theirs, video=pil(clip), mask=mask_of(new_FHW))
  close(ours(pipe, PROMPT, image=clip[0]), reference)
  extended = ours(pipe, clip[:1], PROMPT, call=pipe.extend, cond_frames=1)
  close(extended, reference)
  theirs.preprocess_conditions = plain
  close(ours(pipe, PROMPT), expected(theirs))
  with pytest.raises(SettingError, match="^mode='edit': expected one of"):
    pipe.edit(clip, PROMPT, strength=0.5)


def test_a_flow_map_in_one_step_and_in_four(tmp_path):
  theirs = published(
    tmp_path / 'folder',
    'AnyFlowPipeline',
    {},
    transformer=transformer(flow_map=0.25),
  )
  pipe = load(tmp_path / 'folder')
  settings = pipe.engine.settings()
  assert (settings.guidance, settings.shift) == (1.0, 5.0)
  for steps in (1, 4):
    reference = expected(theirs, num_inference_steps=steps, guidance_scale=1.0)
    close(ours(pipe, PROMPT, steps=steps, guidance=1.0), reference)
  with pytest.raises(SettingError, match="^solver='unipc': expected 'euler'"):
    pipe(PROMPT, solver='unipc', frames=FRAMES, size=(SIDE, SIDE))
