"""Requests are resolved and refused before a parameter is read."""

import dataclasses
import json
import pickle

import jax
import numpy as np
import pytest
import safetensors.numpy
from absl import logging
from PIL import Image

from spacetime.checkpoint import load
from spacetime.checkpoint.interop import lora
from spacetime.diffusion.settings import SamplingSettings
from spacetime.media import video_writer
from spacetime.models.transformer import lora as lora_lib
from spacetime.pipeline import outputs, pipeline, prompt_embeds, request
from spacetime.pipeline import plan as plan_lib
from spacetime.pipeline.video import Video
from tests.helpers import published_folder

WIDTH = published_folder.TEXT.d_model
SAMPLING = {f.name for f in dataclasses.fields(SamplingSettings)}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return published_folder.write(tmp_path_factory.mktemp('request') / 'tiny')


@pytest.fixture(autouse=True)
def nothing_is_read(monkeypatch):
  """Neither a parameter nor a program: only what the folder says of them."""

  def refuse(*args, **kwargs):
    raise AssertionError('a parameter was read')

  monkeypatch.setattr('spacetime.checkpoint.interop.parameters.load', refuse)


@pytest.fixture
def ask(folder, tmp_path):
  """A request of a small published model, with changes."""

  def make(**changes):
    base = dict(
      prompt='a red 3',
      checkpoint=str(folder),
      out=f'{tmp_path}/a.mp4',
      prompt_embeds_cache='',
      frames=3,
      size='16x8',
      batch_size=4,
      steps=3,
    )
    values = base | changes
    sampling = {k: values.pop(k) for k in SAMPLING & values.keys()}
    return request.Request(**values, sampling=sampling)

  return make


def resolve(sampling_request):
  """(engine, plan, targets) of a request, as `sample` checks them."""
  engine = pipeline.from_request(sampling_request).engine
  plan = plan_lib.resolve(sampling_request, engine)
  targets = outputs.targets(sampling_request, clips=plan.clips)
  outputs.check(targets, sampling_request, frames=plan.frames)
  return engine, plan, targets


def check(sampling_request):
  return resolve(sampling_request)[1]


def embeds(path, *, count=2, rows=7, width=WIDTH, negative=0, **more):
  rng = np.random.default_rng(0)
  arrays = {'prompt_embeds': rng.normal(size=(count, rows, width))}
  if negative:
    size = (negative, rows, width)
    arrays['negative_prompt_embeds'] = rng.normal(size=size)
  arrays = {k: v.astype(np.float32) for k, v in arrays.items()} | more
  safetensors.numpy.save_file(arrays, path)
  return str(path)


def test_a_plan_holds_all_that_a_request_resolves_to(ask, tmp_path):
  sampling_request = ask(num=2, guidance=1.0, prompt_embeds_cache='x')
  engine, plan, targets = resolve(sampling_request)
  assert isinstance(engine.model, load.Model)
  assert plan.prompts == ('a red 3', 'a red 3') and plan.prompt_embeds is None
  assert plan.negative_prompt is None  # not used without guidance
  assert [*targets.videos] == [f'{tmp_path}/a-00{i}.mp4' for i in (0, 1)]
  size = plan.geometry.frames, plan.geometry.height, plan.geometry.width
  assert size == (3, 8, 16)
  assert plan.settings.steps == 3 and plan.fps == 16
  assert str(plan.cache.folder) == 'x'
  assert check(ask(negative_prompt='snow')).negative_prompt == 'snow'


@pytest.mark.parametrize(
  'changes, text',
  [
    ({'prompt': None}, 'one of `prompt`, `prompts_file` and `prompt_embeds`'),
    ({'prompts_file': 'x'}, "prompts_file='x': expected none beside `prompt`"),
    (
      {'prompt': None, 'prompt_embeds': 'x', 'expand_prompt': 'grammar'},
      "expand_prompt='grammar': expected `prompt` or `prompts_file`",
    ),
    ({'prompt_embeds': 'x'}, 'expected none beside `prompt`'),
    ({'prompt': 7}, 'prompt=7: expected text that'),
    ({'prompt': ['a', 7]}, 'expected text that'),
    ({'prompt': None, 'prompts_file': 'x.csv'}, 'exists'),
    ({'prompt': ' &nbsp; '}, 'expected text that describes the video'),
    ({'out': ''}, "out='': expected a file"),
    ({'out': 'x.avi'}, 'x.avi'),
    ({'num': 0}, 'num=0: expected 1 or more'),
    ({'batch_size': 0}, 'batch_size=0: expected 1 or more'),
    ({'seed': -1}, 'seed=-1: expected 0 or more'),
    ({'seeds': 'a,b'}, "seeds='a,b': expected whole numbers, such as 1,2,3"),
    ({'seeds': '1,2'}, "seeds='1,2': expected 1 of them"),
    ({'seeds': (-1,)}, 'seeds=-1: expected 0 or more'),
    ({'fps': 0.0}, 'fps=0.0: expected more than 0'),
    ({'size': 'big'}, "size='big': expected WIDTHxHEIGHT"),
    # Nothing that Python passes is rounded.
    ({'size': (16.9, 8)}, r'size=\(16.9, 8\): expected WIDTHxHEIGHT'),
    ({'seeds': (1.5,)}, r'seeds=\(1.5,\): expected whole numbers'),
    ({'seed': 1.5}, 'seed=1.5: expected 0 or more'),
    ({'cond_frames': 1.5}, 'cond_frames=1.5: expected a whole number'),
    ({'steps': 2.5}, 'steps=2.5: expected'),
    (
      {'prompt': None, 'seconds': 9, 'prompt_schedule': [(0, None)]},
      'prompt_schedule=.*: expected pairs',
    ),
    ({'size': '15x8'}, 'width=15: expected a multiple of 8 .* such as 8 or 16'),
    ({'size': (16, 0)}, 'height=0: .* such as 8 or 16'),
    ({'frames': 4}, r'frames=4: expected 2k\+1, such as 3 or 5'),
    ({'frames': 0}, 'frames=0: .* such as 1 or 3'),
    ({'frames': -3}, 'frames=-3: .* such as 1 or 3'),
    *(
      (
        {'mode': 'edit', 'video': 'a.mp4', 'strength': strength},
        f'strength={strength}: expected more than 0, at most 1',
      )
      for strength in (0.0, -0.5, 1.5, float('nan'))
    ),
    ({'solver': 'heun'}, 'heun'),
    ({'guidance_2': 3.0}, 'guidance_2=3.0: .*one transformer'),
    ({'guidance_kind': 'pag'}, "guidance_kind='pag': expected one of"),
    ({'guidance_kind': 'cfg_zero', 'steps': 1}, 'zero_steps=1'),
    ({'first_block_cache': 1.0}, 'first_block_cache=1.0: expected 0'),
    (
      {'rope_scaling': 'yarn'},
      r"rope_scaling='yarn': expected one of \('none', 'riflex', 'ntk'\)",
    ),
    (
      {
        'mode': 'edit',
        'video': 'a.mp4',
        'strength': 0.9,
        'temperature': 0.4,
      },
      'temperature=0.4: expected 1 with `strength`=0.9',
    ),
    ({'best_of': 0}, 'best_of=0: expected 1 or more'),
    ({'temperature': 1.5}, 'temperature=1.5: expected 0, '),
    ({'image': 'none.png'}, 'none.png'),
    ({'decode_tiles': '2'}, "decode_tiles='2': expected COLUMNSxROWS"),
    ({'decode_tiles': '2x1'}, '2 tiles over 4 latent cells, 8 shared'),
    (
      {'decode_tiles': '2x1', 'decode_overlap': 1, 'decode_shards': 2},
      "decode_tiles='2x1': expected none with `decode_shards`=2",
    ),
    ({'decode_shards': 9}, 'decode_shards=9: expected 1 to 8, the number of d'),
    ({'decode_shards': 0}, 'decode_shards=0: expected 1 to 8'),
    ({'decode_shards': 3}, '2 x 4 cells over 3 devices'),
    ({'lora': 'none.safetensors'}, "lora='none.safetensors': .* no such file"),
    ({'lora_2': 'x'}, "lora_2='x': expected none, since the model has one"),
    ({'lora_strength': float('nan')}, 'lora_strength=nan: expected a finite'),
    ({'lora_strength': 'a'}, "^lora_strength='a': expected a number"),
    ({'control_scale': '1'}, "^control_scale='1': expected a number"),
    ({'decode_tiles': (2, 2)}, r'^decode_tiles=\(2, 2\): expected a text'),
    ({'expand_prompt': 3}, '^expand_prompt=3: expected a text'),
    ({'guidance': 'a'}, "^guidance='a': expected a number"),
    ({'preset': ['rcm']}, r"^preset=\['rcm'\]: expected a text"),
    (
      {'seconds': 2.0, 'context_noise': 'a'},
      "^context_noise='a': expected a number",
    ),
    (
      {'prompt': None, 'prompts_file': 'none.txt'},
      "prompts_file='none.txt': expected a file that exists",
    ),
    (
      {'prompt': None, 'prompt_embeds': 'none.safetensors'},
      "prompt_embeds='none.safetensors': .*none.safetensors: no such file",
    ),
  ],
)
def test_refuses(changes, text, ask, tmp_path):
  with pytest.raises(ValueError, match=text):
    check(ask(**{'out': f'{tmp_path}/new/a.mp4'} | changes))
  assert not (tmp_path / 'new').exists()


def write_pairs(path, model=published_folder.TRANSFORMER, **kwargs):
  """Pairs of that base, none of them zero."""
  config = lora_lib.LoraConfig(rank=2, alpha=4.0)
  fresh = jax.eval_shape(
    lambda key: lora_lib.init(key, config, model), jax.random.key(0)
  )
  rng = np.random.default_rng(0)
  pairs = jax.tree.map(lambda x: rng.normal(size=x.shape), fresh)
  lora.write(path, pairs, config, model, **kwargs)
  return str(path)


@pytest.mark.parametrize('dialect', lora.DIALECTS)
def test_pairs_are_added_to_what_is_sampled(
  dialect, ask, tmp_path, monkeypatch
):
  path = write_pairs(tmp_path / 'a.safetensors', dialect=dialect)
  plain = resolve(ask())[0]
  tuned = resolve(ask(lora=path, lora_strength=0.5))[0]
  assert plain.model.weights_hash != tuned.model.weights_hash
  monkeypatch.undo()
  before, after = (
    np.asarray(
      engine.model.read_transformer('dit')['dit']['blocks']['mlp_in']['kernel']
    )
    for engine in (plain, tuned)
  )
  tensors = lora.read(path, published_folder.TRANSFORMER).lora['blocks']
  weights = tensors['mlp_in']
  np.testing.assert_allclose(
    after - before,
    0.5 * np.asarray(weights['a'] @ weights['b']),
    atol=1e-5,
  )


def test_pairs_of_another_base_are_refused_by_their_keys(ask, tmp_path):
  other = dataclasses.replace(published_folder.TRANSFORMER, mlp=44, layers=3)
  path = write_pairs(tmp_path / 'a.safetensors', other, dialect='diffusers')
  with pytest.raises(
    ValueError, match='expected LoRA weights of this model'
  ) as e:
    check(ask(lora=path))
  message = str(e.value)
  assert f'{path} does not fit this transformer of 2' in message
  assert 'unknown: transformer.blocks.2.' in message
  assert 'ffn.net.0.proj.lora_B.weight (44, 2), expected (40, 2)' in message


def test_refuses_features_that_do_not_fit(ask, tmp_path):
  def refused(text, path, **changes):
    with pytest.raises(ValueError, match=text):
      check(ask(prompt=None, prompt_embeds=str(path), **changes))

  path = tmp_path / 'x.safetensors'
  shape = rf'expected prompt_embeds of shape \(2, at most 512, {WIDTH}\)'
  refused(rf'{shape}.* not \(2, 7, 13\)', embeds(path, width=13))
  refused(rf'{shape}.* not \(2, 513, {WIDTH}\)', embeds(path, rows=513))
  refused(
    r'negative_prompt_embeds of shape \(1 or 2, .* not \(3,',
    embeds(path, negative=3),
  )
  refused(
    "negative_prompt='snow': expected none beside the negative_prompt_embeds",
    embeds(path, negative=1),
    negative_prompt='snow',
  )
  refused(
    'holds prompt_embeds F32, what F32: expected prompt_embeds and at most',
    embeds(path, what=np.ones(3, np.float32)),
  )
  refused(
    'holds negative_prompt_embeds I32, prompt_embeds F32: expected .* in F32',
    embeds(path, negative_prompt_embeds=np.ones((1, 2, WIDTH), np.int32)),
  )
  bad = {'prompt_embeds': np.ones((2, WIDTH), np.float32)}
  refused(
    r'\(2, 12\): expected \(prompts, tokens, width\)', embeds(path, **bad)
  )
  bad = {'prompt_embeds': np.full((1, 2, WIDTH), np.nan, np.float32)}
  refused('has values that are not finite', embeds(path, **bad))
  safetensors.numpy.save_file({}, path)
  refused('holds nothing: expected prompt_embeds', path)
  path.write_bytes(path.read_bytes()[:5])
  refused('it is damaged, or not safetensors', path)
  pickled = tmp_path / 'x.pt'
  pickled.write_bytes(pickle.dumps({}))
  refused('x.pt is a pickle, which may run any code', pickled)


def test_features_of_a_file_for_every_clip(ask, tmp_path):
  path = embeds(tmp_path / 'x.safetensors', negative=2)
  plan = check(ask(prompt=None, prompt_embeds=path, num=2))
  assert plan.prompts == (
    'x.safetensors[0]',
    'x.safetensors[0]',
    'x.safetensors[1]',
    'x.safetensors[1]',
  )
  tensors = safetensors.numpy.load_file(path)
  for i in range(4):
    for name, rows in (
      ('prompt_embeds', plan.prompt_embeds.text),
      ('negative_prompt_embeds', plan.prompt_embeds.negative),
    ):
      np.testing.assert_array_equal(rows[i], tensors[name][i // 2])
  assert plan.negative_prompt is None
  path = embeds(tmp_path / 'x.safetensors')
  plan = check(ask(prompt=None, prompt_embeds=path))
  assert plan.negative_prompt == '' and plan.prompt_embeds.negative == ()


@pytest.mark.slow
def test_embeds_of_a_file_sample_what_their_prompts_do(
  ask, tmp_path, monkeypatch
):
  monkeypatch.undo()
  pipe = pipeline.from_request(ask())
  expected = pipe.generate(ask(prompt=['a red 3', 'snow']))
  rows = prompt_embeds.encode(pipe.engine, ['a red 3', 'snow', ''])
  arrays = {
    'prompt_embeds': prompt_embeds.batch(rows[:2], length=40),
    'negative_prompt_embeds': rows[2][None],
  }
  path = tmp_path / 'x.safetensors'
  safetensors.numpy.save_file(arrays, path)
  sampling_request = ask(prompt=None, prompt_embeds=str(path))
  pipe.engine.model.readers.pop('text')  # all is in the file
  videos = pipe.generate(sampling_request)
  for video, other in zip(videos, expected, strict=True):
    np.testing.assert_array_equal(video.frames, other.frames)
  # Files of the cache are such files too.
  prompt_embeds.write_file(path, rows[1][None])
  plan = check(ask(prompt=None, prompt_embeds=str(path)))
  np.testing.assert_array_equal(plan.prompt_embeds.text[0], rows[1])


def test_every_target_is_checked(ask, tmp_path):
  out = f'{tmp_path}/a.mp4'
  cases = [
    ('a-001.mp4', {'num': 2}),
    ('a-000.mp4.json', {'num': 2}),
    ('a-sheet.png', {'num': 2}),
    ('a.mp4.json', {}),
  ]
  for name, changes in cases:
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f'{name}.*folder'):
      check(ask(out=out, **changes))
    (tmp_path / name).rmdir()
  (tmp_path / 'a-002').mkdir()
  (tmp_path / 'a-002' / 'mine.txt').write_text('')
  with pytest.raises(ValueError, match='a-002 holds other files, such as mine'):
    check(ask(out=f'{tmp_path}/a.png', num=3))
  with pytest.raises(ValueError, match='a-002 holds other files'):
    check(ask(out=f'{tmp_path}/a/', num=3))
  (tmp_path / 'a').write_text('')
  with pytest.raises(ValueError, match='a is a file; expected a folder for'):
    check(ask(out=f'{tmp_path}/a.png'))
  # One frame is an image, no folder; a former video is replaced, as always.
  check(ask(out=f'{tmp_path}/a.png', num=3, frames=1))
  (tmp_path / 'a.mp4').write_text('')
  check(ask(out=out))


def test_what_is_read_is_not_written_over(ask, tmp_path):
  image = str(tmp_path / 'a.mp4.json')
  Image.new('RGB', (16, 8)).save(image, format='PNG')
  with pytest.raises(
    ValueError, match='another file than .*mp4.json, which `image` reads'
  ):
    check(ask(image=image))
  (tmp_path / 'a-sheet.png').write_text('a red 3\n')
  with pytest.raises(ValueError, match='which `prompts_file` reads'):
    path = f'{tmp_path}/a-sheet.png'
    check(ask(prompt=None, prompts_file=path, num=2))


def test_prompts_of_a_file(ask, tmp_path):
  path = tmp_path / 'prompts.txt'
  path.write_text('a red 3\n\n  snow \n')
  plan = check(ask(prompt=None, prompts_file=str(path)))
  assert plan.prompts == ('a red 3', 'snow')
  path.write_text('\n')
  with pytest.raises(ValueError, match='expected a prompt on each line'):
    check(ask(prompt=None, prompts_file=str(path)))


def test_an_image_for_a_model_of_one_level_is_warned_of(ask, tmp_path, caplog):
  logging.use_absl_handler()
  Image.new('RGB', (16, 8)).save(tmp_path / 'first.png')
  with caplog.at_level('WARNING'):
    plan = check(ask(image=str(tmp_path / 'first.png')))
  assert plan.mode == 'image' and plan.conditioning.frames_FHWC.shape[1:3] == (
    8,
    16,
  )
  assert 'one noise level for a whole clip' in caplog.records[0].getMessage()


def test_two_transformers(ask, tmp_path):
  source = published_folder.write(tmp_path / 'two')
  path = str(source)
  published_folder.change_index(source, boundary_ratio=0.875)
  with pytest.raises(ValueError, match='0.875, and transformer_2/ is missing'):
    check(ask(checkpoint=path))
  config = published_folder.TRANSFORMER
  published_folder.write_part(
    source / 'transformer_2', dataclasses.replace(config, layers=1)
  )
  with pytest.raises(
    ValueError, match='has layers=1, not 2: expected the sizes of'
  ):
    check(ask(checkpoint=path))
  published_folder.write_part(source / 'transformer_2', config)
  for boundary in (None, 0, 1, 875, 'x'):
    published_folder.change_index(source, boundary_ratio=boundary)
    with pytest.raises(ValueError, match=f'boundary_ratio={boundary}, and tra'):
      check(ask(checkpoint=path))
  pairs = write_pairs(tmp_path / 'a.safetensors', dialect='diffusers')
  published_folder.change_index(source, boundary_ratio=0.9)
  names = {
    resolve(ask(checkpoint=path, **changes))[0].model.weights_hash
    for changes in ({}, {'lora': pairs}, {'lora': pairs, 'lora_2': pairs})
  }
  assert len(names) == 3
  _, plan, _ = resolve(ask(checkpoint=path, guidance_2=3.0))
  assert plan.settings.boundary == 0.9 and plan.settings.guidance_2 == 3.0
  with pytest.raises(
    ValueError, match='guidance_2=3.0: expected 1, since `gui'
  ):
    check(ask(checkpoint=path, guidance=1.0, guidance_2=3.0))
  with pytest.raises(ValueError, match='guidance_2=-1.0: expected 0 or more'):
    check(ask(checkpoint=path, guidance_2=-1.0))
  index = json.loads((source / 'model_index.json').read_text())
  assert index['boundary_ratio'] == 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
  'changes, frames, length',
  [
    # From one place to another: as long as the longest clips of training.
    ({'mode': 'loop'}, 17, 17 + 8),
    ({'mode': 'connect', 'video2': 'a.mp4'}, 17, 17 + 8 + 17),
    ({'mode': 'loop', 'frames': 33}, 33, 17 + 16),
    ({'mode': 'extend'}, 17, 17 + 8),
  ],
)
def test_what_leads_somewhere_has_time_for_it(
  tmp_path, monkeypatch, ask, changes, frames, length
):
  video_writer.write_video(
    tmp_path / 'a.mp4', np.zeros((17, 64, 64, 3), np.uint8), fps=8
  )
  monkeypatch.chdir(tmp_path)
  usual = dict(checkpoint='digits', out='b.mp4', video='a.mp4', size=None)
  plan = check(ask(**(usual | {'frames': None} | changes)))
  assert plan.geometry.frames == frames == len(plan.conditioning.frames_FHWC)
  assert plan.conditioning.length == length


def test_the_speed_of_a_video_stays(ask, tmp_path):
  frames_FHWC = np.zeros((9, 8, 16, 3), np.uint8)
  path = tmp_path / 'clip.mp4'
  video_writer.write_video(path, frames_FHWC, fps=16)
  extend = dict(mode='extend', frames=9, cond_frames=5)
  for clip in (str(path), path, Video(frames_FHWC, 16)):
    message = 'fps=32.*expected 16 with `video`, .* would play 2 times as fast'
    with pytest.raises(ValueError, match=message):
      resolve(ask(video=clip, fps=32, **extend))
    assert resolve(ask(video=clip, fps=16, **extend))[1].fps == 16
  # An array has the rate that is asked for.
  assert resolve(ask(video=frames_FHWC, fps=32, **extend))[1].fps == 32
  with pytest.raises(ValueError, match='expected 16 with `video2`'):
    resolve(
      ask(mode='connect', video=frames_FHWC, video2=path, fps=8, frames=9)
    )


def test_lora_settings_are_paths_with_strengths(tmp_path):
  odd = tmp_path / 'a,b:2'
  odd.write_text('')
  for value, expected in (
    (None, ()),
    ('a.safetensors', (('a.safetensors', 1.0),)),
    ('a:0.5,b', (('a', 0.5), ('b', 1.0))),
    ('a:-1e-1, b:+2', (('a', -0.1), ('b', 2.0))),
    ('C:/a', (('C:/a', 1.0),)),
    (str(odd), ((str(odd), 1.0),)),  # a path that exists is one path
    (odd, ((str(odd), 1.0),)),
    (['a', ('b', 0.5), [odd, 2]], (('a', 1.0), ('b', 0.5), (str(odd), 2.0))),
    (('a', 0.5), (('a', 0.5),)),
    # A comma in the name of a file, with a strength and beside others.
    (f'{odd}:0.5', ((str(odd), 0.5),)),
    (
      f'a, {odd}:0.5,{odd},b:2',
      (('a', 1.0), (str(odd), 0.5), (str(odd), 1.0), ('b', 2.0)),
    ),
    ('a: 0.5 , b :2', (('a', 0.5), ('b', 2.0))),
  ):
    assert request.parse_loras('lora', value) == expected
  # Behind the colon of a file that exists stands a strength.
  plain = tmp_path / 'c:3'
  plain.write_text('')
  for text in ('', 'abc', '1e', '--1', '0x1'):
    with pytest.raises(ValueError, match='lora=.*: expected paths, each with'):
      request.parse_loras('lora', f'a:2,{plain}:{text}')
  for value in (
    *('', 'a,', ',a', 'a:nan', 'a:NaN', 'a:inf', 'a:-inf', ('a', None)),
    *(['a:1..2'], {'a': 0.5}, 7, [('a',)], [('a', 1, 2)]),
  ):
    with pytest.raises(ValueError, match='lora=.*: expected paths, each with'):
      request.parse_loras('lora', value)
