"""Long videos: one program, no seams, bit for bit after an interruption."""

import json

import av
import jax
import numpy as np
import pytest

from spacetime import SettingError
from spacetime.diffusion import rollout
from spacetime.media import fragmented_mp4
from spacetime.models.autoencoder import streaming, wan
from spacetime.pipeline import (
  generate,
  long_video,
  outputs,
  pipeline,
  prompt_embeds,
  prompt_schedule,
  rollout_state,
)
from spacetime.pipeline import plan as plan_lib
from spacetime.pipeline.request import Request
from tests.helpers import published_folder

SCHEDULE = '0: a red 0 bounces; so it goes; 2.5: a blue 7 stands still'
SAMPLING = dict(steps=1, solver='euler', guidance=1.0)


def ask(tmp_path, rope_scaling=None, **changes):
  """A request of five seconds of the bundled model."""
  values = dict(
    checkpoint='digits',
    out=f'{tmp_path}/a.mp4',
    seed=3,
    prompt_embeds_cache='',
    batch_size=4,
    seconds=5.0,
    prompt_schedule=SCHEDULE,
  )
  sampling = SAMPLING | ({'rope_scaling': rope_scaling} if rope_scaling else {})
  return Request(**values | changes, sampling=sampling)


@pytest.fixture(scope='module')
def engine():
  return pipeline.load('digits', progress=False).engine


def resolve(engine, request):
  plan = plan_lib.resolve(request, engine)
  targets = outputs.targets(request, clips=plan.clips)
  outputs.check(targets, request, frames=plan.frames)
  return plan, targets


def embed(engine, plan):
  return prompt_embeds.from_prompts(engine, plan.prompts, negative=None)


def decode(path):
  with av.open(str(path)) as file:
    return np.stack(
      [f.to_ndarray(format='rgb24') for f in file.decode(video=0)]
    )


def test_a_schedule_is_read():
  assert prompt_schedule.parse(SCHEDULE) == (
    (0.0, 2.5),
    ('a red 0 bounces; so it goes', 'a blue 7 stands still'),
  )


@pytest.mark.parametrize(
  'seconds, frames', [(0.01, 1), (0.4, 5), (5, 41), (5.3, 41), (60, 481)]
)
def test_seconds_are_the_nearest_that_the_autoencoder_has(seconds, frames):
  assert prompt_schedule.length(seconds, stride=4, fps=8) == frames


@pytest.mark.parametrize(
  'changes, text',
  [
    ({'prompt_schedule': 'a; b'}, "'a; b': expected SECONDS: PROMPT, such as"),
    ({'prompt_schedule': '1: a'}, 'expected 0 seconds first'),
    (
      {'prompt_schedule': '0: a; 3: b; 2: c'},
      'expected times that rise, not 2 seconds after 3',
    ),
    ({'prompt_schedule': '0: a; 9: b'}, 'below the 5 seconds .*, not 9'),
    ({'prompt_schedule': '0: a; 2: b; 2.1: c'}, 'are in one latent frame'),
    ({'prompt_schedule': [('x', 'a')]}, 'expected pairs as in'),
    ({'seconds': None}, 'prompt_schedule=.*: expected `seconds` too'),
    ({'prompt': 'a'}, 'prompt_schedule=.*: expected none beside `prompt`'),
    ({'seconds': 0.0}, 'seconds=0.0: expected more than 0'),
    ({'seconds': float('nan')}, 'seconds=nan: expected more than 0'),
    ({'cond_frames': 17}, r'cond_frames=17: expected 4k\+1, at most 13'),
    ({'cond_frames': 6}, 'cond_frames=6: .* is conditioned on whole latent'),
    ({'context_noise': 1.0}, 'context_noise=1.0: expected 0 to less than 1'),
    ({'mode': 'still'}, "mode='still': expected one of text, image, extend"),
    ({'num': 5}, 'batch_size=4: expected 5 or more, or fewer videos'),
    ({'out': 'a.gif'}, "out='a.gif': expected FILE.mp4"),
    ({'decode_tiles': '2x1'}, "decode_tiles='2x1': expected none with"),
  ],
)
def test_refuses(changes, text, engine, tmp_path):
  with pytest.raises(ValueError, match=text):
    resolve(engine, ask(tmp_path, **changes))


@pytest.fixture(scope='module')
def complete(engine, tmp_path_factory):
  """A video written in one go: its plan, file, programs and tail lengths."""
  folder = tmp_path_factory.mktemp('whole')
  plan, targets = resolve(engine, ask(folder))
  chunks = long_video.Chunks(engine, plan, embed(engine, plan))
  (writer,) = [
    fragmented_mp4.Writer(path, fps=plan.fps) for path in targets.parts
  ]
  ends, frames = [], []
  for chunk in chunks.remaining:
    frames.append(chunks.generate(chunk)[0])
    writer.append(frames[-1])
    writer.cut()
    ends.append(chunks.tail.z_Bfhwc.shape[1])
  return plan, folder, ends, np.concatenate(frames)


@pytest.mark.slow
def test_one_program_runs_all_chunks_and_only_the_tail_remains(
  engine, complete
):
  plan, folder, ends, _ = complete
  run = generate.Programs(engine, plan.settings, plan.geometry.latent)
  programs = [run.init, *run._parts['dit'], run.finalize]
  assert [program._cache_size() for program in programs] == [1] * 4
  assert len(plan.division.chunks) == 5 and ends == [3] * 5
  assert len(decode(folder / 'a.part.mp4')) == 41


@pytest.mark.slow
def test_a_stream_yields_the_chunks_of_the_file(complete):
  pipe = pipeline.load('digits', progress=False)
  videos = list(
    pipe.stream(
      seconds=5,
      prompt_schedule=list(zip(*prompt_schedule.parse(SCHEDULE), strict=True)),
      seed=3,
      **SAMPLING,
    )
  )
  assert [video.metadata['chunk']['frames'] for video in videos] == [
    [0, 17],
    [17, 21],
    [21, 29],
    [29, 37],
    [37, 41],
  ]
  frames = np.concatenate([video.frames for video in videos])
  np.testing.assert_array_equal(frames, complete[3])


@pytest.mark.slow
def test_a_stream_goes_on_as_the_decode_in_one_piece(tmp_path):
  codec = wan.WanAutoencoder(wan.PRESETS['tiny'])
  params = jax.jit(codec.init)(jax.random.key(0))
  z = np.asarray(
    jax.random.normal(jax.random.key(1), (1, 5, 2, 3, codec.z_dim))
  )
  first, step = jax.jit(codec.decode_first), jax.jit(codec.decode_step)
  stream = streaming.Stream(codec, params, first=first, step=step)
  decoded = [stream(z[:, i : i + 1]) for i in range(3)]
  path, tail = tmp_path / 'state', rollout.Tail(z, z, stream.cache)
  rollout_state.write(path, tail, chunks=1, marks=(), identity={})
  shapes = jax.eval_shape(codec.decode_first, params, z[:, :1])[0]
  cache = rollout_state.read(path, {}).tail(shapes).cache
  again = streaming.Stream(codec, params, first=first, step=step, cache=cache)
  decoded += [again(z[:, i : i + 1]) for i in (3, 4)]
  complete = jax.jit(codec.decode)(params, z)
  np.testing.assert_allclose(np.concatenate(decoded, 1), complete, atol=1e-5)


def test_resumes_bit_for_bit(engine, complete, tmp_path):
  plan, targets = resolve(engine, ask(tmp_path))
  identity = long_video.identity(plan, {'seed': 3})
  embeds = embed(engine, plan)
  chunks = long_video.Chunks(engine, plan, embeds)
  writer = fragmented_mp4.Writer(targets.parts[0], fps=plan.fps)
  for chunk in plan.division.chunks[:2]:
    writer.append(chunks.generate(chunk)[0])
    writer.cut()
    rollout_state.write(
      targets.state,
      chunks.tail,
      chunks=chunks.done,
      marks=(writer.mark,),
      identity=identity,
    )
  # After a kill: a chunk that the state does not know, cut off within.
  with open(targets.parts[0], 'ab') as file:
    file.write(b'half a fragment')
  state = rollout_state.read(targets.state, identity)
  assert state.chunks == 2
  long_video.write(
    engine, plan, embeds, targets, state=state, identity=identity
  )
  data = targets.parts[0].read_bytes()
  assert data == (complete[1] / 'a.part.mp4').read_bytes()
  long_video.finish(plan, targets, {'seed': 3})
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a.mp4', 'a.mp4.json']
  assert len(decode(tmp_path / 'a.mp4')) == 41
  sidecar = json.loads((tmp_path / 'a.mp4.json').read_text())
  borders = [c['frames'] for c in sidecar['chunks']]
  assert borders == [[0, 17], [17, 21], [21, 29], [29, 37], [37, 41]]
  prompts = [c['prompt'] for c in sidecar['chunks']]
  assert prompts == [plan.prompts[0]] * 2 + [plan.prompts[1]] * 3
  assert sidecar['chunks'][0]['seed'] == [3, 0]
  assert sidecar['chunks'][4]['seed'] == [3, 0, 4]


@pytest.mark.slow
def test_each_chunk_is_the_best_of_its_candidates(
  engine, tmp_path, monkeypatch
):
  compared = []

  def second(samples, joins):
    compared.append((len(samples), samples[0].shape, joins))
    return 1

  monkeypatch.setattr(long_video.best_of_n, 'best', second)
  sizes = dict(seconds=2.5, prompt_schedule=None, prompt='a red 0', best_of=2)
  plan, _ = resolve(engine, ask(tmp_path, **sizes))
  chunks = long_video.Chunks(engine, plan, embed(engine, plan))
  chosen = [chunks.generate(chunk)[0] for chunk in chunks.remaining]
  assert [len(frames_FHWC) for frames_FHWC in chosen] == [17, 4]
  # The second chunk is conditioned on 3 latent frames, which are 9 frames.
  assert compared == [(2, (17, 64, 64, 3), ()), (2, (17, 64, 64, 3), (9,))]
  # The candidates are those of short clips: videos of the same seed.
  plan, _ = resolve(engine, ask(tmp_path, **sizes | {'best_of': 1, 'num': 2}))
  chunks = long_video.Chunks(engine, plan, embed(engine, plan))
  other = chunks.generate(plan.division.chunks[0])[1]
  assert np.abs(chosen[0].astype(int) - other).max() <= 1


def test_a_state_of_another_request_is_refused(tmp_path):
  path = tmp_path / 'a.safetensors'
  tail = rollout.Tail(np.zeros((1, 2, 3)), np.zeros((1, 2)), {'a': np.ones(3)})
  marks = (fragmented_mp4.Mark(1, 17, 99),)
  rollout_state.write(
    path, tail, chunks=4, marks=marks, identity={'seed': 3, 'a': (1,)}
  )
  state = rollout_state.read(path, {'seed': 3, 'a': (1,)})
  assert state.marks == marks and state.chunks == 4
  end = state.tail(tail.cache)
  np.testing.assert_array_equal(end.z_Bfhwc, tail.z_Bfhwc)
  np.testing.assert_array_equal(end.frames_BFHWC, tail.frames_BFHWC)
  np.testing.assert_array_equal(end.cache['a'], tail.cache['a'])
  with pytest.raises(ValueError, match='seed is 3 there, 4 here; repeat'):
    rollout_state.read(path, {'seed': 4, 'a': (1,)})
  path.write_bytes(b'nonsense')
  with pytest.raises(ValueError, match='not the state of a long video'):
    rollout_state.read(path, {})
  assert rollout_state.read(tmp_path / 'none', {}) is None
  with pytest.raises(ValueError, match='has 0 bytes: expected 99 or more'):
    fragmented_mp4.Writer(tmp_path / 'b.mp4', fps=8, mark=marks[0])


def test_fragments_play_while_there_are_more_to_come(tmp_path):
  frames = np.zeros((12, 33, 48, 3), np.uint8)
  frames += np.arange(60, 180, 10, dtype=np.uint8)[:, None, None, None]
  file = fragmented_mp4.Writer(tmp_path / 'a.part.mp4', fps=8)
  for start in (0, 4, 8):
    file.append(frames[start : start + 4])
    file.cut()
    decoded = decode(tmp_path / 'a.part.mp4')
    assert len(decoded) == start + 4
  fragmented_mp4.finish(tmp_path / 'a.part.mp4', tmp_path / 'a.mp4')
  decoded = decode(tmp_path / 'a.mp4')[:, :33]
  assert np.abs(decoded - frames.astype(int)).max() <= 3
  with av.open(str(tmp_path / 'a.mp4')) as opened:
    times = [float(f.pts * f.time_base) for f in opened.decode(video=0)]
  np.testing.assert_allclose(times, np.arange(12) / 8)


# The bundled model was trained on up to 49 frames.
@pytest.mark.slow
@pytest.mark.parametrize('frames, same', [(17, True), (65, False)])
def test_positions_are_scaled_in_long_chunks(frames, same, engine, tmp_path):
  settings = dict(
    seconds=9.0, prompt_schedule=None, prompt='a red 0', frames=frames
  )
  latents = []
  for kind in ('none', 'riflex'):
    request = ask(tmp_path, **settings, rope_scaling=kind)
    plan, _ = resolve(engine, request)
    chunks = long_video.Chunks(engine, plan, embed(engine, plan))
    latents.append(chunks._sample(plan.division.chunks[0]))
  assert latents[0].shape[1] == 1 + frames // 4
  assert np.array_equal(*latents) == same


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """Tiny published folders that see known frames beside their latents."""
  folder = tmp_path_factory.mktemp('wan')
  channels = published_folder.COND_CHANNELS
  published_folder.write(folder / 'image', cond_channels=channels)
  published_folder.write(
    folder / 'vace', control_layers=(0,), control_channels=6 + 4 * 4
  )
  return folder


@pytest.mark.slow
@pytest.mark.parametrize('kind, known', [('image', 1), ('vace', 5)])
def test_a_model_that_sees_images_continues_with_clips(kind, known, published):
  pipe = pipeline.load(str(published / kind), progress=False)
  picture = np.random.default_rng(0).integers(0, 256, (16, 32, 3), np.uint8)
  # No noise, which the chunks do not share with clips.
  settings = dict(
    frames=9,
    size=(32, 16),
    steps=1,
    guidance=1.0,
    temperature=0.0,
    prompt_embeds_cache='',
  )
  prompts = ['a red 3', 'a blue 7']
  rate = pipe.engine.data.fps
  videos = list(
    pipe.stream(
      seconds=21 / rate,
      prompt_schedule=[(0, prompts[0]), (14.5 / rate, prompts[1])],
      image=picture,
      cond_frames=known,
      **settings,
    )
  )
  first = pipe(prompts[0], image=picture, **settings).frames

  def extended(frames, prompt):
    if kind == 'image':
      return pipe(prompt, image=frames[-1], **settings).frames
    longer = pipe.extend(frames, prompt, cond_frames=known, **settings).frames
    return longer[len(frames) - known :]

  expected = [first]
  for video in videos[1:]:
    prompt = video.metadata['chunk']['prompt']
    clip = extended(expected[-1], prompt)
    expected.append(clip[: known + len(video.frames)])
  np.testing.assert_array_equal(videos[0].frames, first)
  assert (
    len(videos) >= 3 and videos[-1].metadata['chunk']['prompt'] == prompts[1]
  )
  for video, clip in zip(videos[1:], expected[1:], strict=True):
    np.testing.assert_array_equal(video.frames, clip[known:])


@pytest.mark.slow
def test_a_video_of_clips_resumes_bit_for_bit(published, tmp_path):
  picture = np.random.default_rng(0).integers(0, 256, (16, 32, 3), np.uint8)
  request = Request(
    prompt='a red 3',
    image=picture,
    frames=9,
    size=(32, 16),
    seconds=21 / 16,
    prompt_embeds_cache='',
    out=f'{tmp_path}/a.mp4',
    sampling=SAMPLING,
  )
  engine = pipeline.load(str(published / 'image'), progress=False).engine
  plan, targets = resolve(engine, request)
  embeds = embed(engine, plan)
  chunks = long_video.Chunks(engine, plan, embeds)
  frames = [chunks.generate(chunk) for chunk in chunks.remaining[:2]]
  rollout_state.write(
    targets.state, chunks.tail, chunks=2, marks=(), identity={}
  )
  frames += [chunks.generate(chunk) for chunk in chunks.remaining]
  state = rollout_state.read(targets.state, {})
  again = long_video.Chunks(engine, plan, embeds, state=state)
  for chunk, expected in zip(again.remaining, frames[2:], strict=True):
    np.testing.assert_array_equal(again.generate(chunk), expected)


@pytest.mark.parametrize(
  'kind, changes, text',
  [
    ('image', {'context_noise': 0.1}, 'context_noise=0.1: expected none with'),
    ('image', {'cond_frames': 5}, 'cond_frames=5: expected 1 with an image'),
    ('vace', {'context_noise': 0.1}, 'context_noise=0.1: expected none with'),
    ('vace', {'cond_frames': 4}, r'cond_frames=4: expected 2k\+1'),
  ],
)
def test_refuses_what_clips_cannot_do(kind, changes, text, published):
  pipe = pipeline.load(str(published / kind), progress=False)
  picture = np.zeros((16, 32, 3), np.uint8)
  with pytest.raises(SettingError, match=text):
    next(pipe.stream('a', seconds=1.3, frames=9, image=picture, **changes))
