"""From a folder's prompt to frames by our own stages, against diffusers."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from spacetime import sharding
from spacetime.checkpoint import load
from spacetime.config import samplers
from spacetime.diffusion import conditioning_video, sampler
from spacetime.pipeline import generate, prompt_embeds
from spacetime.pipeline.engine import Engine
from tests.checkpoint.interop import tokenizers_test
from tests.helpers import sampling
from tests.parity import folder_parity_test

pytestmark = pytest.mark.parity

SIZE = 2, 4  # latent rows and columns
FRAMES, STEPS = 5, 5
PROMPT, NEGATIVE = 'a red 3 &amp; snow', 'two   blue digits'


def published(folder, *, form='wan2.1', second=False):
  """A random small WanPipeline with a real tokenizer, and its folder."""
  import diffusers
  import torch
  import transformers

  parts = folder_parity_test.pipeline(form).components
  source = folder.with_name('tokenizer')
  source.mkdir()
  (source / 'spiece.model').write_bytes(
    tokenizers_test.trained(byte_fallback=False)
  )
  (source / 'tokenizer_config.json').write_text(
    json.dumps({'tokenizer_class': 'T5Tokenizer', 'extra_ids': 0})
  )
  parts['tokenizer'] = transformers.AutoTokenizer.from_pretrained(source)
  more = {'expand_timesteps': form == 'wan2.2'}
  if second:
    torch.manual_seed(1)
    config = parts['transformer'].config
    parts['transformer_2'] = diffusers.WanTransformer3DModel.from_config(config)
    more['boundary_ratio'] = 0.875
  theirs = diffusers.WanPipeline(**parts, **more)
  theirs.save_pretrained(folder)
  theirs.set_progress_bar_config(disable=True)
  return theirs


def opened(folder):
  mesh = sharding.single_device_mesh()
  return load.open_model(str(folder), mesh=mesh)


def ours(model, *, image_HWC=None, seed=3, **settings):
  """(noise, video) of our stages, float32 in [-1, 1]."""
  nets = model.networks
  _, height, width = nets.autoencoder.stride
  size = FRAMES, SIZE[0] * height, SIZE[1] * width
  video = None
  if image_HWC is not None:
    video = conditioning_video.images({0: image_HWC}, frames=FRAMES, hold=4)
  engine = Engine(model)
  plan = sampling.plan(
    engine,
    size=size,
    conditioning=video,
    seed=seed,
    steps=STEPS,
    **settings,
  )
  embeds = prompt_embeds.from_prompts(engine, [PROMPT], negative=NEGATIVE)
  condition = generate.conditioning(engine, plan, batch=1)
  shape = condition.z_Bfhwc.shape[1:]
  keys = sampler.clip_keys(seed, 1)
  noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
  frozen = {'autoencoder': model.read('autoencoder')}
  (z_Bfhwc,) = generate.sample(engine, plan, embeds, condition)
  return np.asarray(noise), np.asarray(jax.jit(nets.decode)(frozen, z_Bfhwc))


def arguments(model, noise, **more):
  _, height, width = model.networks.autoencoder.stride
  return dict(
    prompt=PROMPT,
    negative_prompt=NEGATIVE,
    height=SIZE[0] * height,
    width=SIZE[1] * width,
    num_frames=FRAMES,
    num_inference_steps=STEPS,
    latents=folder_parity_test.torch_of(noise),
    output_type='np',
    **more,
  )


def close(video, expected, atol) -> None:
  ours_FHWC = np.clip(video * 0.5 + 0.5, 0, 1)
  assert ours_FHWC.shape == expected.shape
  print('difference', np.abs(ours_FHWC - expected).max(), expected.std())
  assert expected.std() > 0.01
  np.testing.assert_allclose(ours_FHWC, expected, atol=atol, rtol=0)


def test_one_transformer(tmp_path):
  theirs = published(tmp_path / 'folder')
  model = opened(tmp_path / 'folder')
  noise, video = ours(model)
  expected = theirs(**arguments(model, noise, guidance_scale=5.0)).frames
  close(video, expected, 1e-5)


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """A pipeline with two transformers, and the same opened here."""
  folder = tmp_path_factory.mktemp('two') / 'folder'
  return published(folder, second=True), opened(folder)


@pytest.mark.parametrize(
  'solver, scale_2',
  [('unipc', None), ('unipc', 3.0), ('dpm', 3.0), ('euler', None)],
)
def test_two_transformers(solver, scale_2, two):
  import diffusers

  theirs, model = two
  schedulers = {
    'unipc': diffusers.UniPCMultistepScheduler,
    'dpm': diffusers.DPMSolverMultistepScheduler,
  }
  theirs.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
  if solver != 'euler':
    theirs.scheduler = schedulers[solver](
      prediction_type='flow_prediction', use_flow_sigmas=True, flow_shift=5.0
    )
  settings = model.experiment.sampling.with_changes(steps=STEPS, solver=solver)
  spans = [
    (part.steps.start, part.steps.stop)
    for part in samplers.samplers(
      model.experiment, model.networks, settings
    ).values()
  ]
  # Both have steps enough to carry history over the boundary.
  assert [stop - first > 1 for first, stop in spans] == [True, True]
  noise, video = ours(model, solver=solver, guidance=4.0, guidance_2=scale_2)
  scales = dict(guidance_scale=4.0, guidance_scale_2=scale_2)
  expected = theirs(**arguments(model, noise, **scales)).frames
  close(video, expected, 1e-5)


def test_a_first_image(tmp_path):
  import diffusers

  theirs = published(tmp_path / 'folder', form='wan2.2')
  theirs = diffusers.WanImageToVideoPipeline(
    **{k: v for k, v in theirs.components.items() if 'transformer_2' not in k},
    image_encoder=None,
    image_processor=None,
    expand_timesteps=True,
  )
  theirs.set_progress_bar_config(disable=True)
  model = opened(tmp_path / 'folder')
  _, height, width = model.networks.autoencoder.stride
  size = SIZE[0] * height, SIZE[1] * width, 3
  image_HWC = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
  noise, video = ours(model, image_HWC=image_HWC)
  expected = theirs(
    image=Image.fromarray(image_HWC),
    **arguments(model, noise, guidance_scale=5.0),
  ).frames
  close(video, expected, 1e-5)


def test_a_folder_in_bfloat16(tmp_path):
  """No further from float32, with the same weights, than diffusers' is.

  The two round at different points, so that they agree no better than either
  does with float32. The ratio of their errors varies: it was 0.5 to 1.7
  for single seeds, and 0.99 over these four.
  """
  import diffusers
  import torch

  published(tmp_path / 'plain')
  half = {'default': torch.bfloat16, 'vae': torch.float32}
  theirs = diffusers.WanPipeline.from_pretrained(
    tmp_path / 'plain', torch_dtype=half
  )
  theirs.save_pretrained(tmp_path / 'folder')
  exact = diffusers.WanPipeline.from_pretrained(
    tmp_path / 'folder', torch_dtype=torch.float32
  )
  model = opened(tmp_path / 'folder')
  assert model.experiment.model.dtype == 'bfloat16'
  clips = []
  for seed in range(4):
    noise, video = ours(model, seed=seed)
    clips.append([np.clip(video * 0.5 + 0.5, 0, 1)])
    for pipe in (theirs, exact):
      pipe.set_progress_bar_config(disable=True)
      call = arguments(model, noise, guidance_scale=5.0)
      clips[-1].append(pipe(**call).frames.astype(np.float32))
  clips = np.array(clips)  # seed, (ours, theirs, float32), ...
  error, reference, between = (
    float(np.sqrt(np.mean(np.square(clips[:, a] - clips[:, b]))))
    for a, b in ((0, 2), (1, 2), (0, 1))
  )
  print('ours', error, 'theirs', reference, 'between', between)
  assert reference > 1e-4  # it does compute in bfloat16
  assert error <= 1.25 * reference
  assert between <= 2 * reference
