"""A published pipeline as the plain config of a weights folder, and back."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from absl import logging

from spacetime.checkpoint.interop import config_json, wan_transformer
from spacetime.checkpoint.interop.folders import SCHEDULER_CONFIG, Pipeline

# Text tokens, padding included, that the published pipelines attend to.
TEXT_LENGTH = 512
FLOW_MAP_SCHEDULER = 'FlowMapEulerDiscreteScheduler'
FLOW_MAP_SHIFT = 5.0  # of AnyFlow
SOLVERS = {
  'UniPCMultistepScheduler': 'unipc',
  'DPMSolverMultistepScheduler': 'dpm',
  'FlowMatchEulerDiscreteScheduler': 'euler',
  FLOW_MAP_SCHEDULER: 'euler',
}
# Keys of a scheduler_config.json that change what is sampled, with the values
# that the solvers here have.
IMPLEMENTED = {
  **dict.fromkeys(
    (
      *('use_karras_sigmas', 'use_exponential_sigmas', 'use_beta_sigmas'),
      *('use_lu_lambdas', 'use_dynamic_shifting', 'invert_sigmas'),
      *('stochastic_sampling', 'rescale_betas_zero_snr', 'thresholding'),
      'euler_at_final',
    ),
    (False,),
  ),
  **dict.fromkeys(('shift_terminal', 'solver_p', 'variance_type'), (None,)),
  'num_train_timesteps': (1000,),
  'prediction_type': ('flow_prediction',),
  'final_sigmas_type': ('zero',),
  'solver_order': (2,),
  'solver_type': ('bh2', 'midpoint'),
  'algorithm_type': ('dpmsolver++',),
  'predict_x0': (True,),
  'lower_order_final': (True,),
  'disable_corrector': ([],),
}


def from_pipeline(pipeline: Pipeline, *, dtype=None) -> dict:
  """The config of a pipeline, with every section that sampling reads.

  Args:
    pipeline: an opened pipeline.
    dtype: dtype of the parameters; None keeps the stored one. With 16-bit
      dtypes the transformer and the text encoder compute in bfloat16.

  Raises:
    ValueError: a scheduler that is unknown, or not of a flow model.
  """
  stored = np.dtype(dtype or pipeline.transformer.dtype)
  compute = 'float32' if stored.itemsize == 4 else 'bfloat16'
  vae = pipeline.vae.config
  text = dataclasses.asdict(pipeline.text_encoder.config)
  model = dataclasses.asdict(pipeline.transformer.config)
  del model['channels'], model['text_width']  # sizes of the other networks
  shift, solver = schedule(pipeline.scheduler, pipeline.folder)
  for text in unread(pipeline.scheduler):
    logging.warning('%s: scheduler_config.json: %s', pipeline.folder, text)
  size, fps = clips(vae)
  image = {}
  if pipeline.image_encoder is not None:
    sizes = dataclasses.asdict(pipeline.image_encoder.config)
    image['image'] = sizes | {'dtype': compute}
  sampling = {'steps': 50, 'guidance': 5.0, 'schedule': 'published'}
  if pipeline.transformer.config.flow_map:
    # Guidance is part of the weights; any number of steps will do.
    if pipeline.scheduler.get('_class_name') != FLOW_MAP_SCHEDULER:
      # A file of the transformer with the scheduler of another model.
      shift, solver = FLOW_MAP_SHIFT, 'euler'
    sampling = {'steps': 4, 'guidance': 1.0, 'schedule': 'even'}
  elif pipeline.boundary and pipeline.transformer.config.cond_channels:
    sampling |= {'steps': 40, 'guidance': 3.5}
  return image | {
    'stage': 'diffusion',
    'seed': 0,
    'data': {
      'name': 'folder',
      'dir': '',
      'clips': 0,
      'held_out_clips': 0,
      **dict(zip(('frames', 'height', 'width'), size, strict=True)),
      'batch_size': 1,
      'caption_dropout': 0.1,
      'crop': None,
      'fps': fps,
    },
    'autoencoder': {'kind': 'wan'} | dataclasses.asdict(vae),
    'text': {'length': TEXT_LENGTH} | text | {'dtype': compute},
    'model': model | {'dtype': compute},
    'flow': {'prediction': 'velocity', 'shift': shift},
    'sampling': sampling
    | {
      'solver': solver,
      'interval': (0.0, 1.0),
      'shift': shift,
      'boundary': pipeline.boundary,
    },
    'published': {'index': pipeline.index, 'scheduler': pipeline.scheduler},
  }


def clips(vae) -> tuple[tuple[int, int, int], int]:
  """((frames, height, width), frames per second) of a model's training clips.

  Wan 2.2 5B, which has a residual autoencoder, has 720p at 24 fps; the others
  have 480p at 16 fps.
  """
  return ((121, 704, 1280), 24) if vae.is_residual else ((81, 480, 832), 16)


def schedule(scheduler: Mapping, where) -> tuple[float, str]:
  """The shift and the solver of a scheduler_config.json.

  Raises:
    ValueError: a scheduler that is unknown, or not of a flow model.
  """
  name = str(scheduler.get('_class_name'))
  flow_euler = SOLVERS.get(name) == 'euler'
  if name not in SOLVERS or not (
    flow_euler or scheduler.get('use_flow_sigmas')
  ):
    raise ValueError(
      f'{where}: scheduler {name} with use_flow_sigmas='
      f'{scheduler.get("use_flow_sigmas")}: expected a scheduler of a flow '
      f'model, one of {sorted(SOLVERS)}'
    )
  key = 'shift' if flow_euler else 'flow_shift'
  shift = scheduler.get(key, 1.0)
  if isinstance(shift, bool) or not isinstance(shift, (int, float)):
    raise ValueError(f'{where}: scheduler {key}={shift!r}: expected a number')
  return float(shift), SOLVERS[name]


def as_flow_map(index: Mapping, *, shift: float) -> tuple[dict, dict]:
  """model_index.json and scheduler_config.json of a flow map that was trained
  from a published model, to be sampled with this shift."""
  index = dict(index) | {
    '_class_name': 'AnyFlowPipeline',
    'scheduler': ['diffusers', FLOW_MAP_SCHEDULER],
    'transformer': ['diffusers', wan_transformer.ANYFLOW],
  }
  for key in ('transformer_2', 'boundary_ratio', 'expand_timesteps'):
    index.pop(key, None)
  return index, {
    '_class_name': FLOW_MAP_SCHEDULER,
    'num_train_timesteps': 1000,
    'shift': shift,
  }


def unread(scheduler: Mapping) -> list[str]:
  """Values of a scheduler_config.json that the solvers here do not have, a
  phrase each: sampling goes on as if they were the expected ones."""
  return [
    f'{name}={scheduler[name]!r} is not implemented; it counts as {values[0]!r}'
    for name, values in IMPLEMENTED.items()
    if name in scheduler and scheduler[name] not in values
  ]


def to_index(config: Mapping, *, residual: bool) -> tuple[dict, dict]:
  """model_index.json and scheduler_config.json of a weights folder's config.

  Args:
    config: plain values; its section `published` has the files of the folder
      that it was converted from, if any.
    residual: whether the autoencoder has the residual form of Wan 2.2.

  Raises:
    ValueError: the model does not predict a velocity.
  """
  flow = config['flow']
  if flow.get('prediction', 'velocity') != 'velocity':
    raise ValueError(
      f'flow.prediction={flow["prediction"]!r}: expected velocity, as in the '
      'published code'
    )
  published = config.get('published', {})
  text = config['text'].get('bias', 'layer')
  encoder = 'UMT5EncoderModel' if text == 'layer' else 'T5EncoderModel'
  index = {
    '_class_name': 'WanPipeline',
    'boundary_ratio': None,
    'expand_timesteps': residual,
    'scheduler': ['diffusers', 'UniPCMultistepScheduler'],
    'text_encoder': ['transformers', encoder],
    'tokenizer': ['transformers', 'T5TokenizerFast'],
    'transformer': ['diffusers', config_json.CLASSES['transformer']],
    'transformer_2': [None, None],
    'vae': ['diffusers', config_json.CLASSES['vae']],
  }
  shift = config['sampling']['shift']
  index = dict(published.get('index', index))
  # A weights folder has one transformer, even if the source had two.
  index |= {'boundary_ratio': None, 'transformer_2': [None, None]}
  return index, published.get(
    'scheduler', SCHEDULER_CONFIG | {'flow_shift': shift}
  )
