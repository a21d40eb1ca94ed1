"""Videos of many chunks: one program, no seams, bit for bit after a stop."""

import dataclasses
import json

import av
import jax
import numpy as np
import pytest

from spacetime.diffusion import rollout
from spacetime.media import fragmented_mp4
from spacetime.models.autoencoder import streaming, wan
from spacetime.pipeline import (
  long_video,
  prompt_embeds,
  prompt_schedule,
  request,
  rollout_state,
)

SCHEDULE = '0: a red 0 bounces; so it goes; 2.5: a blue 7 stands still'


def ask(tmp_path, **changes):
  """A plan of five seconds of the bundled model."""
  fields = dataclasses.fields(request.Request)
  values = {field.name: None for field in fields}
  values |= {
    field.name: field.default
    for field in fields
    if field.default is not dataclasses.MISSING
  }
  values |= dict(
    checkpoint='digits',
    out=f'{tmp_path}/a.mp4',
    seed=3,
    num=1,
    steps=1,
    solver='euler',
    guidance=1.0,
    negative_prompt='',
    embeddings_cache='',
    batch=4,
    seconds=5.0,
    schedule=SCHEDULE,
  )
  return request.Request(**(values | changes))


def features(plan):
  return prompt_embeds.from_prompts(plan.model, plan.prompts, negative=None)


def decode(path):
  with av.open(str(path)) as file:
    return np.stack(
      [f.to_ndarray(format='rgb24') for f in file.decode(video=0)]
    )


def test_chunks_cover_the_video_and_end_where_a_text_does():
  plan = rollout.Rollout(13, 5, 3, (0, 6))
  spans = [(c.start, c.stop, c.prompt) for c in plan.chunks]
  assert spans == [(0, 5, 0), (5, 6, 0), (6, 8, 1), (8, 10, 1), (10, 12, 1)] + [
    (12, 13, 1)
  ]
  kept = [plan.output_slice(chunk) for chunk in plan.chunks]
  assert kept[:3] == [slice(0, 5), slice(3, 4), slice(3, 5)]
  # A first text shorter than what is given: there is no more to be given.
  short = rollout.Rollout(6, 5, 3, (0, 2))
  assert short.output_slice(short.chunks[1]) == slice(2, 4)
  for bad in ((0, 13), (1, 4), (0, 4, 4)):
    with pytest.raises(ValueError, match='change --schedule'):
      rollout.Rollout(13, 5, 3, bad)
  with pytest.raises(ValueError, match='given=5 of 5 latent frames: expected'):
    rollout.Rollout(13, 5, 5)


def test_a_later_chunk_is_given_the_tail():
  rng = np.random.default_rng(0)
  tail = rollout.Tail(rng.normal(size=(2, 3, 4, 5, 6)), None, {})
  opening = rng.normal(size=(2, 1, 4, 5, 6)).astype(np.float32)
  found = rollout.next_conditioning(tail, opening, frames=7, context_noise=0.25)
  np.testing.assert_array_equal(found.t_BT, [[0.25] * 3 + [1.0] * 4] * 2)
  np.testing.assert_array_equal(found.z_Bfhwc[:, :1], opening)
  np.testing.assert_allclose(found.z_Bfhwc[:, 1:3], tail.z_Bfhwc[:, 1:], 1e-6)
  assert not found.z_Bfhwc[:, 3:].any()


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
    ({'schedule': 'a; b'}, "'a; b': expected SECONDS: PROMPT, such as"),
    ({'schedule': '1: a'}, '--schedule begins at 1 seconds: expected 0'),
    ({'schedule': '0: a; 3: b; 2: c'}, '2 seconds after 3: expected times'),
    ({'schedule': '0: a; 9: b'}, '9 seconds in a video of 5: expected less'),
    ({'schedule': '0: a; 2: b; 2.1: c'}, 'are in one latent frame: expected'),
    ({'seconds': None}, '--schedule: expected --seconds too'),
    ({'prompt': 'a'}, '--schedule and --prompt: expected one of them'),
    ({'seconds': 0.0}, '--seconds=0.0: expected more than 0'),
    ({'seconds': float('nan')}, '--seconds=nan: expected more than 0'),
    ({'given': 17}, '--given=17: a chunk of 17 frames .* 4k.1 of at most 13'),
    ({'given': 6}, '--given=6: a chunk of 17 frames is given whole latent'),
    ({'context_noise': 1.0}, '--context_noise=1.0: expected 0 to less than 1'),
    ({'mode': 'still'}, '--mode=still: expected one of text, image, extend'),
    ({'num': 5}, '--batch=4: 5 videos of --seconds are made side by side'),
    (
      {'out': 'a.gif'},
      '--out=a.gif: a video of --seconds .* expected FILE.mp4',
    ),
    ({'decode_tiles': '2x1'}, 'with --decode_tiles: expected --decode_shards'),
  ],
)
def test_refuses(changes, text, tmp_path):
  with pytest.raises(ValueError, match=text):
    request.check(ask(tmp_path, **changes))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A video that was made in one go: its plan, folder and latents."""
  folder = tmp_path_factory.mktemp('whole')
  plan = request.check(ask(folder))
  maker = long_video.Maker(plan, features(plan), seed=3)
  latents, ends = [], []
  for chunk in plan.division.chunks:
    maker.make(chunk)
    latents += list(maker._z)[chunk.start - chunk.stop :] if chunk.index else []
    ends.append(len(maker._z))
  programs = [maker.run.init, *maker.run.steps.values(), maker.run.finalize]
  sizes = [program._cache_size() for program in programs]
  return plan, folder, sizes, ends, np.stack(latents, 1)


def test_one_program_makes_all_chunks_and_no_more_than_the_tail_is_kept(whole):
  plan, folder, sizes, ends, _ = whole
  assert sizes == [1, 1, 1] and len(plan.division.chunks) == 5
  assert ends == [3] * 5
  assert len(decode(folder / 'a.part.mp4')) == 41


def test_the_file_shows_the_latents_that_were_made(whole):
  plan, folder, *_, later = whole
  codec = plan.model.networks.autoencoder
  video = np.asarray(codec.decode({}, np.concatenate([later[:, :1], later], 1)))
  away = np.abs(decode(folder / 'a.part.mp4')[17:] - (video[0, 1:] + 1) * 127.5)
  assert later.shape[1] == 6 and away.mean() < 3


def test_a_stream_goes_on_as_the_decode_in_one_piece(tmp_path):
  codec = wan.WanAutoencoder(wan.PRESETS['tiny'])
  params = jax.jit(codec.init)(jax.random.key(0))
  z = np.asarray(
    jax.random.normal(jax.random.key(1), (1, 5, 2, 3, codec.z_dim))
  )
  first, step = jax.jit(codec.decode_first), jax.jit(codec.decode_step)
  stream = streaming.Stream(codec, params, first=first, step=step)
  found = [stream(z[:, i : i + 1]) for i in range(3)]
  path, tail = tmp_path / 'state', rollout.Tail(z, z, stream.cache)
  rollout_state.write(path, tail, chunks=1, marks=(), about={})
  shapes = jax.eval_shape(codec.decode_first, params, z[:, :1])[0]
  cache = rollout_state.read(path, {}).tail(shapes).cache
  again = streaming.Stream(codec, params, first=first, step=step, cache=cache)
  found += [again(z[:, i : i + 1]) for i in (3, 4)]
  whole = jax.jit(codec.decode)(params, z)
  np.testing.assert_allclose(np.concatenate(found, 1), whole, atol=1e-5)


def test_after_a_stop_the_same_video_bit_for_bit(whole, tmp_path):
  plan = request.check(ask(tmp_path))
  about = long_video.identity(plan, {'seed': 3})
  told = features(plan)
  maker = long_video.Maker(plan, told, seed=3)
  for chunk in plan.division.chunks[:2]:
    maker.make(chunk)
    maker.save(about)
  # What a kill leaves: a chunk that no state knows of, cut off within.
  with open(plan.targets.parts[0], 'ab') as file:
    file.write(b'half a fragment')
  state = rollout_state.read(plan.targets.state, about)
  assert state.chunks == 2
  long_video.make(plan, told, seed=3, state=state, about=about)
  found = plan.targets.parts[0].read_bytes()
  assert found == (whole[1] / 'a.part.mp4').read_bytes()
  long_video.finish(plan, {'seed': 3}, seed=3)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a.mp4', 'a.mp4.json']
  assert len(decode(tmp_path / 'a.mp4')) == 41
  side = json.loads((tmp_path / 'a.mp4.json').read_text())
  borders = [c['frames'] for c in side['chunks']]
  assert borders == [[0, 17], [17, 21], [21, 29], [29, 37], [37, 41]]
  prompts = [c['prompt'] for c in side['chunks']]
  assert prompts == [plan.prompts[0]] * 2 + [plan.prompts[1]] * 3
  assert side['chunks'][0]['seed'] == [3, 0]
  assert side['chunks'][4]['seed'] == [3, 0, 4]


def test_a_state_of_another_request_is_refused(tmp_path):
  path = tmp_path / 'a.safetensors'
  tail = rollout.Tail(np.zeros((1, 2, 3)), np.zeros((1, 2)), {'a': np.ones(3)})
  marks = (fragmented_mp4.Mark(1, 17, 99),)
  rollout_state.write(
    path, tail, chunks=4, marks=marks, about={'seed': 3, 'a': (1,)}
  )
  state = rollout_state.read(path, {'seed': 3, 'a': (1,)})
  assert state.marks == marks and state.chunks == 4
  found = state.tail(tail.cache)
  np.testing.assert_array_equal(found.z_Bfhwc, tail.z_Bfhwc)
  np.testing.assert_array_equal(found.last_frame_BfHWC, tail.last_frame_BfHWC)
  np.testing.assert_array_equal(found.cache['a'], tail.cache['a'])
  with pytest.raises(ValueError, match='request: seed is 3 there, 4 here; ask'):
    rollout_state.read(path, {'seed': 4, 'a': (1,)})
  path.write_bytes(b'nonsense')
  with pytest.raises(ValueError, match='not the state of a video under way'):
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
    found = decode(tmp_path / 'a.part.mp4')
    assert len(found) == start + 4
  fragmented_mp4.finish(tmp_path / 'a.part.mp4', tmp_path / 'a.mp4')
  found = decode(tmp_path / 'a.mp4')[:, :33]
  assert np.abs(found - frames.astype(int)).max() <= 3
  with av.open(str(tmp_path / 'a.mp4')) as opened:
    times = [float(f.pts * f.time_base) for f in opened.decode(video=0)]
  np.testing.assert_allclose(times, np.arange(12) / 8)


# The bundled model has learnt up to 49 frames.
@pytest.mark.parametrize('frames, same', [(17, True), (65, False)])
def test_positions_are_scaled_where_a_window_is_longer(frames, same, tmp_path):
  asked = dict(seconds=9.0, schedule=None, prompt='a red 0', frames=frames)
  made = []
  for kind in ('none', 'riflex'):
    plan = request.check(ask(tmp_path, **asked, rope_scaling=kind))
    maker = long_video.Maker(plan, features(plan), seed=3)
    made.append(maker._draw(plan.division.chunks[0]))
  assert made[0].shape[1] == 1 + frames // 4
  assert np.array_equal(*made) == same
