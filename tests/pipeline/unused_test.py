"""Settings without effect, sizes beyond training and unknown words are told."""

import contextlib
import dataclasses
import json
import warnings

import numpy as np
import pytest
import safetensors.numpy

from spacetime import SettingError, SettingWarning
from spacetime.checkpoint.interop import folders
from spacetime.data.digits import captions, grammar, scenes, world
from spacetime.data.splits import Vocabulary
from spacetime.diffusion.settings import SamplingSettings
from spacetime.pipeline import plan as plan_lib
from spacetime.pipeline import request
from spacetime.pipeline.pipeline import Pipeline
from tests.helpers import published_folder

SAMPLING = {f.name for f in dataclasses.fields(SamplingSettings)}
PROMPT = 'a red 3 moves left'


@pytest.fixture(scope='module')
def engines(tmp_path_factory):
  """Opened models of which no parameter is read, and the folder of 'two'."""
  folder = published_folder.write(tmp_path_factory.mktemp('unused') / 'tiny')
  two = published_folder.write(tmp_path_factory.mktemp('unused') / 'two')
  published_folder.write_part(
    two / 'transformer_2', published_folder.TRANSFORMER
  )
  published_folder.change_index(two, boundary_ratio=0.875)
  return {
    'digits': Pipeline('digits').engine,
    'wan': Pipeline(folder).engine,
    'two': Pipeline(two).engine,
    'folder': two,
  }


@contextlib.contextmanager
def warned():
  """The SettingWarnings of a block, by setting."""
  messages = {}
  with warnings.catch_warnings(record=True) as record:
    warnings.simplefilter('always')
    yield messages
  for entry in record:
    if isinstance(entry.message, SettingWarning):
      messages[entry.message.name] = str(entry.message)


def resolve(engine, **changes):
  base = dict(
    prompt=PROMPT, size='32x32', frames=5, steps=2, prompt_embeds_cache=''
  )
  values = base | changes
  sampling = {k: values.pop(k) for k in SAMPLING & values.keys()}
  return plan_lib.resolve(request.Request(**values, sampling=sampling), engine)


@pytest.mark.parametrize(
  ('model', 'changes', 'name', 'reason'),
  [
    ('digits', {'negative_prompt': 'blue', 'guidance': 1.0}, 'negative_prompt',
     "negative_prompt='blue': no effect, since `guidance` is 1"),
    ('wan', {'negative_prompt': 'blue', 'guidance': 1.0}, 'negative_prompt',
     '`guidance` is 1'),
    ('digits', {'guidance_kind': 'apg', 'guidance': 1.0}, 'guidance_kind',
     '`guidance` is 1'),
    ('digits', {'interval': (0.2, 0.8), 'guidance': 1.0}, 'interval',
     '`guidance` is 1'),
    ('digits', {'momentum': 0.0, 'guidance': 2.0}, 'momentum', 'not apg'),
    ('digits', {'eta': 0.5, 'guidance': 2.0}, 'eta', 'not apg'),
    ('digits', {'norm_threshold': 2.0}, 'norm_threshold', 'not apg'),
    ('digits', {'zero_steps': 0}, 'zero_steps', 'not cfg_zero'),
    ('digits', {'skip_layers': (), 'skip_layer_scale': 2.0},
     'skip_layer_scale', 'names none'),
    ('digits', {'skip_layers': (), 'skip_layer_interval': (0.1, 0.9)},
     'skip_layer_interval', 'names none'),
    ('digits', {'expand_model': 'x'}, 'expand_model', 'is no endpoint'),
    ('digits', {'expand_model': 'x', 'expand_prompt': 'grammar'},
     'expand_model', 'is no endpoint'),
    ('digits', {'expand_timeout': 3.0}, 'expand_timeout', 'is no endpoint'),
    ('digits', {'lora_strength': 0.5}, 'lora_strength', 'there is no `lora`'),
    ('digits', {'decode_overlap': 2}, 'decode_overlap', 'no `decode_tiles`'),
    ('digits', {'prompt_embeds_cache': 'x'}, 'prompt_embeds_cache', 'at once'),
    ('digits', {'seed': 3, 'seeds': '1'}, 'seed', '`seeds` has a seed'),
    ('digits', {'rope_scaling': 'ntk'}, 'rope_scaling', 'not longer than the'),
    ('digits', {'seconds': 0.6, 'context_noise': 0.1}, 'context_noise',
     '0.6 `seconds` are one chunk'),
    ('digits', {'seconds': 0.6, 'cond_frames': 1}, 'cond_frames', 'one chunk'),
    ('digits', {'seconds': 0.6, 'frames': 17}, 'frames', 'are 5 frames'),
    ('digits', {'timesteps': (1000, 500), 'steps': 2, 'schedule': 'published'},
     'schedule', '`timesteps` replace it'),
    ('wan', {'preset': 'lightx2v', 'steps': 4, 'schedule': 'even'},
     'schedule', '`timesteps` replace it'),
    ('two', {'timesteps': (1000, 950), 'shift': 5.0, 'guidance': 3.0,
             'guidance_2': 2.0},
     'guidance_2', 'every step is above the `boundary` 0.875'),
  ],
)  # fmt: skip
def test_settings_without_effect(engines, model, changes, name, reason):
  with warned() as messages:
    plan = resolve(engines[model], **changes)
  assert reason in messages.pop(name) and not messages
  assert [*plan.unused] == [name]
  record = plan_lib.metadata(plan, engines[model]) | plan_lib.recorded(plan)
  if (
    name in record and name != 'frames'
  ):  # the sidecar does not say that it was used
    assert record[name] is None


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'guidance': 2.0, 'negative_prompt': 'blue'},
    {'guidance': 2.0, 'guidance_kind': 'apg', 'momentum': 0.0, 'eta': 0.1},
    {'guidance': 2.0, 'guidance_kind': 'cfg_zero', 'zero_steps': 0},
    {'guidance': 1.0, 'guidance_kind': 'cfg'},  # the default
    {'guidance': 1.0, 'skip_layers': 1, 'skip_layer_scale': 2.0},
    {'seconds': 3.0, 'context_noise': 0.1, 'cond_frames': 1},
    {'expand_prompt': 'http://x/v1', 'expand_model': 'x'},
  ],
)
def test_settings_with_effect(engines, changes):
  with warned() as messages:
    plan = resolve(engines['digits'], **changes)
  assert not messages and not plan.unused


@pytest.mark.parametrize(
  'changes',
  [
    {'preset': 'lightx2v', 'steps': 4},
    {'preset': 'lightx2v', 'steps': 4, 'schedule': 'rounded'},
    {'preset': 'fastwan', 'steps': 3, 'schedule': 'published'},
    {'preset': 'rcm', 'steps': 4},
  ],
)
def test_presets_with_effect(engines, changes):
  with warned() as messages:
    plan = resolve(engines['wan'], **changes)
  assert not messages and not plan.unused


def lora_file(path):
  stem = 'diffusion_model.blocks.0.self_attn.q'
  arrays = {
    f'{stem}.lora_A.weight': np.ones((2, 24), np.float32),
    f'{stem}.lora_B.weight': np.ones((24, 2), np.float32),
  }
  safetensors.numpy.save_file(arrays, path)
  return str(path)


def test_lora_of_a_transformer_without_a_step(engines, tmp_path):
  path = lora_file(tmp_path / 'a.safetensors')
  steps = {'guidance': 1.0, 'shift': 1.0}
  for name, timesteps, reason in (
    ('lora', (800, 500), 'below'),
    ('lora_2', (1000, 900), 'above'),
  ):
    pipe = Pipeline(engines['folder'], **{name: path})
    with warned() as messages:
      resolve(
        pipe.engine,
        **steps | {'timesteps': timesteps, name: path},
      )
    assert f'every step is {reason} the `boundary` 0.875' in messages[name]
    with warned() as messages:
      resolve(pipe.engine, **steps | {'timesteps': (1000, 500), name: path})
    assert 'no effect' not in messages[name]


def test_lora_of_one_of_two_transformers(engines, tmp_path):
  """Those of Wan 2.2 A14B come in pairs of files."""
  path = lora_file(tmp_path / 'a.safetensors')
  for name, levels, other in (
    ('lora', 'above', 'lora_2'),
    ('lora_2', 'below', 'lora'),
  ):
    pipe = Pipeline(engines['folder'], **{name: path})
    with warned() as messages:
      resolve(pipe.engine, **{name: path})
    assert messages == {
      name: f"{name}='{path}': changes the transformer of noise levels "
      f'{levels} the `boundary` 0.875 alone; set `{other}` for the other'
    }
  pipe = Pipeline(engines['folder'], lora=path, lora_2=path)
  with warned() as messages:
    resolve(pipe.engine, lora=path, lora_2=path)
  assert not messages


@pytest.fixture(scope='module')
def flow_map(tmp_path_factory):
  """An opened flow map whose published weights include guidance."""
  folder = tmp_path_factory.mktemp('flow_map') / 'wan'
  published_folder.write(folder, flow_map=0.25)
  scheduler = folder / folders.SCHEDULER
  values = json.loads(scheduler.read_text()) | {'flow_shift': 3.0}
  scheduler.write_text(json.dumps(values))
  return Pipeline(folder).engine


def test_guidance_of_a_flow_map_that_has_it(engines, flow_map):
  with warned() as messages:
    resolve(flow_map, guidance=5.0)
  assert messages == {
    'guidance': 'guidance=5.0: guides twice, since this flow map has guidance '
    '3 in its weights: expected 1, which takes half the time'
  }
  with warned() as messages:
    resolve(flow_map)
    resolve(flow_map, steps=1000, guidance=1.0)
    resolve(flow_map, timesteps=(1000, 500), guidance=1.0)
    resolve(engines['wan'], guidance=5.0)
  assert not messages


def test_a_flow_map_with_the_scheduler_of_another_model(flow_map):
  """As of its file beside a folder of Wan 2.1."""
  settings = flow_map.settings()
  assert flow_map.published['scheduler']['flow_shift'] == 3
  assert (settings.solver, settings.shift) == ('euler', 5)
  assert (settings.steps, settings.guidance) == (4, 1)


@pytest.mark.parametrize('solver', ['unipc', 'renoise', 'heun', 'dpm'])
def test_a_flow_map_is_solved_by_euler(flow_map, solver):
  """Before anything is computed."""
  with pytest.raises(SettingError, match=f"^solver='{solver}': expected 'eul"):
    resolve(flow_map, solver=solver)


@pytest.mark.parametrize('lora', ['{}:0', '{}:0.0,{}:1', '{}'])
def test_lora_of_strength_0(engines, lora, tmp_path):
  path = lora_file(tmp_path / 'a.safetensors')
  strength = 0.0 if lora == '{}' else 1.0
  with warned() as messages:
    pipe = Pipeline(
      engines['folder'], lora=lora.format(path, path), lora_strength=strength
    )
    assert pipe.engine
  assert 'no effect, since its strength is 0' in messages['lora']
  with warned() as messages:
    assert Pipeline(engines['folder'], lora=f'{path}:-1').engine
  assert not messages


@pytest.mark.parametrize(
  'name, levels',
  [
    ('wan2.2_low_noise_4steps', 'low'),
    ('Wan22_LOW_rank64', 'low'),
    ('A14B-HighNoise', 'high'),
    ('high_noise_model/model', 'high'),
  ],
)
def test_files_of_the_other_transformer(engines, name, levels, tmp_path):
  path = tmp_path / f'{name}.safetensors'
  path.parent.mkdir(exist_ok=True)
  path = lora_file(path)
  right, wrong = ('lora_2', 'lora') if levels == 'low' else ('lora', 'lora_2')
  with warned() as messages:
    assert Pipeline(engines['folder'], **{wrong: path}).engine
  assert f'named after the {levels} noise levels' in messages[wrong]
  with warned() as messages:
    assert Pipeline(engines['folder'], **{right: path}).engine
  assert not messages


def test_names_that_say_nothing_of_noise_levels(engines, tmp_path):
  for name in ('slow_noise', 'low_vram', 'high_and_low_noise'):
    for setting in ('lora', 'lora_2'):
      path = lora_file(tmp_path / f'{name}.safetensors')
      with warned() as messages:
        assert Pipeline(engines['folder'], **{setting: path}).engine
      assert not messages


@pytest.mark.parametrize('setting', ['lora', 'transformer'])
@pytest.mark.parametrize('levels', ['low', 'high'])
def test_files_of_some_noise_levels_for_one_transformer(
  engines, setting, levels, tmp_path
):
  folder = engines['folder']
  path = tmp_path / f'wan2.2_{levels}_noise.safetensors'
  if setting == 'lora':
    path = lora_file(path)
  else:  # beside its config
    published_folder.write_part(tmp_path, published_folder.TRANSFORMER)
    (tmp_path / 'diffusion_pytorch_model.safetensors').rename(path)
  published_folder.write(tmp_path / 'one')
  with warned() as messages:
    assert Pipeline(tmp_path / 'one', **{setting: path}).engine
  assert (
    f'named after the {levels} noise levels, but is used for all of'
    in (messages[setting])
  )
  with warned() as messages:
    assert Pipeline(folder, **{setting: path}).engine
  assert 'is used for all' not in str(messages.get('lora'))


def test_a_lora_twice(engines, tmp_path):
  path = lora_file(tmp_path / 'a.safetensors')
  (tmp_path / 'b.safetensors').symlink_to(path)
  other = lora_file(tmp_path / 'c.safetensors')
  lora = f'{path}:0.5,{tmp_path}/b.safetensors:0.25,{other}'
  with warned() as messages:
    assert Pipeline(engines['folder'], lora=lora, lora_2=path).engine
  assert 'named 2 times: its strengths add up to 0.75' in messages['lora']
  assert messages.keys() == {'lora'}


@pytest.mark.parametrize('value', [float('nan'), float('inf'), '1', None, True])
def test_strengths_of_python(value):
  with pytest.raises(
    SettingError, match='^lora_strength=.*: expected a finite'
  ):
    Pipeline('digits', lora_strength=value)


@pytest.mark.parametrize('name', ['vae', 'transformer', 'tokenizer'])
def test_files_of_python_are_paths(name):
  with pytest.raises(SettingError, match=f'^{name}=3: expected a path'):
    Pipeline('digits', **{name: 3})


def test_a_model_of_python_is_a_path():
  with pytest.raises(SettingError, match='^checkpoint=3: expected a path'):
    Pipeline(3)


@pytest.mark.parametrize(
  'name', ['lora', 'lora_2', 'vae', 'transformer', 'checkpoint', 'tokenizer']
)
def test_a_call_has_no_settings_of_the_model(engines, name):
  """They would be recorded and not used."""
  pipe = Pipeline(engines['folder'])
  with pytest.raises(SettingError, match=rf'^{name}=.*load\(\.\.\., {name}='):
    pipe(PROMPT, **{name: 'a.safetensors'})
  with pytest.raises(
    SettingError, match='^lora_strength=0.5: expected none in'
  ):
    pipe.stream(PROMPT, seconds=1, lora_strength=0.5)


@pytest.mark.parametrize('name', ['lora', 'lora_2', 'vae', 'transformer'])
def test_a_request_of_other_files(engines, name, tmp_path):
  pipe = Pipeline(engines['folder'])
  values = {name: 'a.safetensors', 'prompt': PROMPT}
  text = f"^{name}='a.safetensors': expected that of the pipeline, None"
  with pytest.raises(SettingError, match=text):
    pipe.generate(request.Request(**values))
  with pytest.raises(SettingError, match=text):
    pipe.write(request.Request(**values, out=str(tmp_path / 'a.mp4')))
  assert not [*tmp_path.iterdir()]


def test_a_call_writes_no_file(engines):
  pipe = Pipeline(engines['folder'])
  for settings in ({'out': 'a.mp4'}, {'overwrite': True}):
    with pytest.raises(SettingError, match='their `save` writes files'):
      pipe(PROMPT, **settings)


def test_names_of_a_call(engines):
  """The flag's name of `at`, and a field that is no setting."""
  pipe = Pipeline(engines['folder'])
  with pytest.raises(SettingError, match="^image_at='mid': expected first, l"):
    image_HWC = np.zeros((32, 32, 3), np.uint8)
    pipe(PROMPT, image=image_HWC, image_at='mid', size=(32, 32), frames=5)
  with pytest.raises(
    SettingError, match="^image_at='last': expected none beside at"
  ):
    pipe(PROMPT, image_at='last', at='first')
  with pytest.raises(SettingError, match='^sampling=.*a known setting'):
    pipe(PROMPT, sampling={'steps': 1})


def test_presets_of_other_weights(engines):
  with warned() as messages:
    resolve(engines['wan'], preset='lightx2v', steps=4)
    resolve(engines['two'], preset='rcm', steps=4)
  assert not messages
  with warned() as messages:
    resolve(engines['two'], preset='lightx2v', steps=4, guidance=3.5)
  assert (
    'guides twice, since weights of `preset`=lightx2v' in (messages['guidance'])
  )
  with warned() as messages:
    resolve(engines['digits'], preset='fastwan', steps=3)
  assert 'distilled to few steps, and this model was not' in messages['preset']


@pytest.mark.parametrize(
  ('name', 'is_distilled'),
  [
    ('Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32', True),
    ('wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise', True),
    ('Wan2.2-Lightning_T2V-A14B-4steps-lora', True),
    ('FastWan2.1-T2V-1.3B', True),
    ('rcm_1.3b_480p', True),
    ('style-4000-steps', False),
    ('anime_24step', False),
    ('wan2.1_t2v_1.3B_bf16', False),
    ('charcm', False),
  ],
)
def test_few_step_weights_without_their_levels(engines, name, is_distilled):
  for setting in ('lora', 'lora_2', 'transformer', 'checkpoint'):
    files = {setting: f'/models/{name}.safetensors'}
    with warned() as messages:
      resolve(engines['two'], **files)
    text = messages.get(setting, '')
    assert ('distilled to few steps, at noise' in text) == is_distilled
    with warned() as messages:
      resolve(engines['two'], preset='lightx2v', steps=4, **files)
      resolve(engines['two'], timesteps=(1000, 500), **files)
      resolve(engines['digits'], **files)  # no published weights
    assert setting not in messages


def test_timesteps_that_begin_late(engines):
  with warned() as messages:
    resolve(engines['digits'], timesteps=(500, 250), shift=1.0)
  assert '500, 250): the first is the noise level 0.50' in messages['timesteps']
  zero = {'guidance_kind': 'cfg_zero', 'guidance': 2.0}
  for late in (
    {'preset': 'rcm', 'steps': 4},
    {'timesteps': (980, 500)},
    # Its first step is left out, and changes nothing.
    {'timesteps': (1000, 500), 'shift': 1.0} | zero,
  ):
    with warned() as messages:
      resolve(engines['wan'], **late)
    assert not messages


def test_sizes_beyond_training(engines):
  engine = engines['digits']
  longest = engine.data.max_frames
  with warned() as messages:
    resolve(engine, frames=longest)
    assert not messages
    resolve(engine, frames=longest + 32)
  assert f'trained on at most {longest} frames' in messages['frames']
  with warned() as messages:
    resolve(engine, frames=longest + 32, rope_scaling='riflex')
  assert not messages
  with warned() as messages:
    resolve(engine, size='512x512', frames=1)
  assert '43 times the largest area' in messages['size']  # of 64x96


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'frames': 1_000_001},
      'frames=1000001: expected a clip of at most 1,048,',
    ),
    (
      {'size': '8192x8192', 'frames': 17},
      'expected a clip of at most 1,048,57',
    ),
    ({'size': '1024x1024', 'frames': 17}, "size='1024x1024': expected a small"),
    ({'seconds': 1e9}, 'seconds=1000000000.0: expected more than 0, at most'),
    ({'seconds': 86_401}, 'at most 86,400'),
    (
      {'seed': 2**63},
      'seed=9223372036854775808: expected 0 or more, at most 9',
    ),
    ({'seeds': f'1,{2**63}'}, 'seeds=9223372036854775808: expected 0 or more'),
    ({'seed': 1.5}, 'seed=1.5: expected 0 or more'),
    ({'num': 100_000}, 'num=100000: expected 1 or more, at most 10,000'),
    ({'batch_size': 10**9}, 'batch_size=1000000000: expected 1 or more'),
    ({'best_of': 10**6}, 'best_of=1000000: expected 1 or more, at most 1,000'),
    ({'fps': float('nan')}, 'fps=nan: expected more than 0, at most 240'),
    ({'frames': 5.0}, 'frames=5.0: expected a whole number'),
    ({'boundary': 0.5}, 'boundary=0.5: expected None, since the model has one'),
  ],
)
def test_limits(engines, changes, message, monkeypatch):
  monkeypatch.setattr('spacetime.pipeline.unused._memory', lambda: 2**30)
  with pytest.raises(ValueError, match=message):
    resolve(engines['digits'], **changes)


@pytest.mark.parametrize(
  ('prompt', 'words'),
  [
    ('a red 3 moves to the right', None),
    ('A Blue seven, wandering about!', None),
    ('a red 3 moves up-left', None),
    (grammar.EXAMPLE, None),
    ('a cat walks along the beach, now', 'cat, walks, along, beach, now'),
    ('\U0001f680 \u0434\u0432\u0438\u0436\u0435\u0442\u0441\u044f \u65e5\u672c',
     '\U0001f680, \u0434\u0432\u0438\u0436\u0435\u0442\u0441\u044f, '),
    ('a red 12 moves left', '12'),
    ('snow', 'snow'),
    ('?! ...', 'this'),
  ],
)  # fmt: skip
def test_words_that_no_caption_has(engines, prompt, words):
  with warned() as messages:
    resolve(engines['digits'], prompt=prompt)
    resolve(engines['wan'], prompt=prompt)  # of an open world
  if words is None:
    assert not messages
  else:
    assert 'the model knows moving digits, as in' in messages['prompt']
    assert f'no caption of its training has {words}' in messages['prompt']


def test_several_prompts_are_one_warning(engines):
  with warned() as messages:
    resolve(engines['digits'], prompt=['a cat', 'a red 3', 'a dog', 'a cat'])
  assert '2 of 4 prompts; the model knows' in messages['prompt']


def test_the_vocabulary_has_every_word_of_captions():
  vocabulary = Vocabulary('digits', grammar.EXAMPLE, grammar.words())
  full = world.World(max_characters=3)
  full = dataclasses.replace(full, motions=(*world.MOTIONS, world.WANDERING))
  for i in range(300):
    rng = scenes.np.random.default_rng(i)
    scene = scenes.sample_scene(rng, world=full, split='train')
    texts = [captions.caption(scene, rng, world=full) for _ in range(4)]
    texts.append(captions.canonical_caption(scene))
    for text in texts:
      assert not vocabulary.unknown(text), text
