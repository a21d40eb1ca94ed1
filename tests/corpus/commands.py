"""Malformed commands: each must be refused in a line, and change nothing.

A case is a command with its arguments. Names in capitals stand for files that
`write_inputs` writes, such as {BAD}; {OUT} is a new path.
"""

import json
import os
import pathlib
import struct

import numpy as np
from PIL import Image

from spacetime.media import video_writer
from tests.corpus import tables

SAMPLE = ('--prompt=a red 3 moves left', '--out={OUT}.mp4')
EXTEND = (*SAMPLE, '--mode=extend')
EDIT = (*SAMPLE, '--mode=edit', '--video={GOOD}', '--strength=0.5')
TRAIN = ('--config=digits_pixels:tiny', '--workdir={OUT}')
FOLDER = (*TRAIN, '--config.data.name=folder')
EVALUATE = ('--out={OUT}',)
ENCODE = ('--checkpoint=digits_autoencoder', '--out={OUT}')
EXPORT = ('--checkpoint=digits', '--out={OUT}')
CONVERT = ('--source=digits', '--target={OUT}')
COMPILE = ('--config=digits_pixels:tiny', '--topology=v5e-4')
CAPTION = ('--data={FOLDER}', '--endpoint=http://127.0.0.1:9/v1')

NOT_NUMBERS = ('abc', '', '1.5.2', '0x10', '--')
# Paths that no file can have, or none that can be read.
PATHS = ('{LOOP}', '{LOOP}/a', '{GONE}', '{PIPE}', '/dev/zero', '~nobody-/a')
PATHS += ('a\0b', 300 * 'x', 5000 * 'x', '{TEXT}/a', 'https://localhost:9/a')
NUMBERS = ('nan', 'inf', '-inf', '-1', '1e400')


def write_inputs(root: pathlib.Path) -> dict[str, str]:
  """Writes the files that cases name; returns their paths by name."""
  paths = {
    name: root / file
    for name, file in {
      'GOOD': 'good.mp4',
      'BAD': 'bad.mp4',
      'CUT': 'cut.mp4',
      'EMPTY': 'empty.mp4',
      'TEXT': 'text.txt',
      'LATIN': 'latin.txt',
      'BLANK': 'blank.txt',
      'IMAGE': 'image.png',
      'CUT_IMAGE': 'cut.png',
      'BLACK': 'black.png',
      'RANDOM': 'random.safetensors',
      'HEADER': 'header.safetensors',
      'NESTED': 'nested.safetensors',
      'JSON': 'prompts.jsonl',
      'FOLDER': 'folder',
      'NOTHING': 'nothing',
      'BROKEN': 'broken',
      'HALF': 'half',
      'MINE': 'mine.mp4',
      'LOOP': 'loop',
      'GONE': 'gone',
      'PIPE': 'pipe.mp4',
    }.items()
  }
  frames = np.zeros((9, 64, 64, 3), np.uint8)
  frames += np.arange(0, 90, 10, dtype=np.uint8)[:, None, None, None]
  video_writer.write_video(paths['GOOD'], frames)
  data = paths['GOOD'].read_bytes()
  paths['CUT'].write_bytes(data[: len(data) // 3])
  paths['BAD'].write_bytes(b'no video ' * 99)
  paths['EMPTY'].write_bytes(b'')
  paths['TEXT'].write_text('a red 3 moves left\n')
  paths['LATIN'].write_bytes('a caf\xe9\n'.encode('latin-1'))
  paths['BLANK'].write_text('\n \n')
  paths['JSON'].write_text('{"prompt": "a red 3"}\n')
  Image.fromarray(frames[3]).save(paths['IMAGE'])
  image = paths['IMAGE'].read_bytes()
  paths['CUT_IMAGE'].write_bytes(image[: len(image) // 2])
  Image.new('L', (64, 64)).save(paths['BLACK'])
  rng = np.random.default_rng(0)
  paths['RANDOM'].write_bytes(rng.bytes(999))
  paths['HEADER'].write_bytes(struct.pack('<Q', 2**40) + b'{}')
  nested = b'[' * 5000
  paths['NESTED'].write_bytes(struct.pack('<Q', len(nested)) + nested)
  paths['FOLDER'].mkdir()
  (paths['FOLDER'] / 'a.mp4').write_bytes(data)
  paths['NOTHING'].mkdir()
  paths['BROKEN'].mkdir()
  (paths['BROKEN'] / 'config.json').write_text('{"stage": ')
  paths['HALF'].mkdir()
  (paths['HALF'] / 'model_index.json').write_text(
    json.dumps({'_class_name': 'WanPipeline'})
  )
  paths['MINE'].write_bytes(b'my own file')
  (root / 'locked').mkdir()
  paths['LOOP'].symlink_to('loop')
  paths['GONE'].symlink_to('nowhere')
  os.mkfifo(paths['PIPE'])
  result = {name: str(path) for name, path in paths.items()}
  return result | {'LOCKED': '/proc/none', 'OUT': str(root / 'new')}


def write_tables(root: pathlib.Path) -> list[tuple[str, ...]]:
  """Folders of the refused tables of tables.py, as cases of commands."""
  cases = []
  for i, case in enumerate(tables.CASES.values()):
    if case.refusal:
      folder = root / f'table{i}'
      folder.mkdir()
      case.write(folder)
      command = ('encode', *ENCODE, f'--data={folder}')
      if i % 2:
        command = ('train', *FOLDER, f'--config.data.dir={folder}')
      cases.append(command)
  return cases


def with_each(command, base, name: str, values) -> list[tuple[str, ...]]:
  return [(command, *base, f'--{name}={value}') for value in values]


def cases() -> list[tuple[str, ...]]:
  """(command, argument, ...) of every malformed command but those of tables."""
  sample = [
    (),
    SAMPLE[:1],
    SAMPLE[1:],
    ('--prompt=', SAMPLE[1]),
    ('--prompt= ', SAMPLE[1]),
    (*SAMPLE, '--prompts_file={TEXT}'),
    (*SAMPLE, '--prompt_embeds={RANDOM}'),
    ('--prompt=' + 'seven ' * 500, SAMPLE[1]),
    (*SAMPLE, '--negative_prompt=' + 'seven ' * 500, '--guidance=2'),
    (*SAMPLE, 'a positional prompt'),
    (*SAMPLE, '--stepz=3'),
    (*SAMPLE, '-x'),
    (*SAMPLE, '--width=64'),
    (*SAMPLE, '--frames=5', '--num_frames=9', '--mode=dream'),
    *[
      (f'--prompts_file={{{name}}}', SAMPLE[1])
      for name in ('LATIN', 'BLANK', 'EMPTY', 'NOTHING', 'JSON', 'IMAGE')
    ],
    ('--prompts_file=none.txt', SAMPLE[1]),
    *[
      (f'--prompt_embeds={{{name}}}', SAMPLE[1])
      for name in ('RANDOM', 'HEADER', 'NESTED', 'EMPTY', 'TEXT', 'NOTHING')
    ],
    *[
      (*SAMPLE, f'--image={{{name}}}')
      for name in ('CUT_IMAGE', 'TEXT', 'EMPTY', 'NOTHING', 'BAD')
    ],
    (*SAMPLE, '--image=none.png'),
    (*SAMPLE, '--image={IMAGE}', '--image_at=99'),
    (*SAMPLE, '--image={IMAGE}', '--image_at=middle'),
    (*SAMPLE, '--image={IMAGE}', '--image_at=last', '--last_image={IMAGE}'),
    (*SAMPLE, '--last_image={IMAGE}'),
    (*SAMPLE, '--image={IMAGE}', '--last_image={TEXT}'),
    (*SAMPLE, '--image={IMAGE}', '--last_image={IMAGE}', '--seconds=4'),
    (*SAMPLE, '--image={IMAGE}', '--frames=1'),
    (*SAMPLE, '--image_at=last'),
    EXTEND,
    *[
      (*EXTEND, f'--video={{{name}}}')
      for name in ('BAD', 'CUT', 'EMPTY', 'TEXT', 'NOTHING')
    ],
    (*EXTEND, '--video=none.mp4'),
    (*EXTEND, '--video={GOOD}', '--cond_frames=99'),
    (*EXTEND, '--video={GOOD}', '--cond_frames=0'),
    (*EXTEND, '--video={GOOD}', '--size=96x32'),
    (*SAMPLE, '--mode=connect', '--video={GOOD}'),
    (*SAMPLE, '--mode=connect', '--video={GOOD}', '--video2={BAD}'),
    (*SAMPLE, '--mode=inpaint', '--video={GOOD}'),
    (*SAMPLE, '--mode=inpaint', '--video={GOOD}', '--mask={BLACK}'),
    (*SAMPLE, '--mode=inpaint', '--video={GOOD}', '--mask={TEXT}'),
    (*SAMPLE, '--mode=inpaint', '--video={GOOD}', '--mask={NOTHING}'),
    (*SAMPLE, '--mode=outpaint', '--video={GOOD}', '--size=32x32'),
    (*SAMPLE, '--mode=still', '--frames=5'),
    (*SAMPLE, '--video={GOOD}'),
    (*SAMPLE, '--mask={IMAGE}'),
    (*SAMPLE, '--strength=0.5'),
    (*EDIT[:-1],),
    *with_each('', EDIT[:-1], 'strength', ('0', '2', 'nan', '-1')),
    *with_each('', SAMPLE, 'size', ('64', 'x', '63x64', '-64x64', '0x0')),
    *with_each('', SAMPLE, 'size', ('64x64x64', '1e3x64', '99999x99999')),
    *with_each('', SAMPLE, 'frames', ('0', '-5', '18', '1000001', '10**9')),
    *with_each('', SAMPLE, 'frames', NOT_NUMBERS),
    *with_each('', SAMPLE, 'seconds', ('0', '-1', 'nan', 'inf', '1e9')),
    *with_each('', SAMPLE, 'fps', ('0', '-3', 'nan', '1e9')),
    (SAMPLE[0], '--out={OUT}.gif', '--fps=60'),
    *with_each('', SAMPLE, 'steps', ('0', '-1', 'abc', '1e3')),
    *with_each('', SAMPLE, 'guidance', ('-1', 'nan', 'inf', 'strong')),
    *with_each('', SAMPLE, 'shift', ('0', '-1', 'nan')),
    *with_each('', SAMPLE, 'seed', ('-1', str(2**63), '1.5', '')),
    *with_each('', SAMPLE, 'seeds', ('', 'a', '1,2', '1,', '-1', str(2**64))),
    *with_each('', SAMPLE, 'num', ('0', '-1', '100000', '')),
    *with_each('', SAMPLE, 'batch_size', ('0', '-4')),
    *with_each('', SAMPLE, 'best_of', ('0', '100000')),
    *with_each('', SAMPLE, 'solver', ('rk4', '')),
    *with_each('', SAMPLE, 'schedule', ('karras', '')),
    *with_each('', SAMPLE, 'boundary', ('0.5', '2', 'nan')),
    *with_each('', SAMPLE, 'temperature', ('-1', '2', 'nan')),
    *with_each('', SAMPLE, 'first_block_cache', ('-1', '1', 'nan')),
    *with_each('', SAMPLE, 'skip_layers', ('6', '-1', '1.5', '2,2', 'x')),
    *with_each('', SAMPLE, 'rope_scaling', ('yarn', '')),
    *with_each('', SAMPLE, 'guidance_kind', ('pag', '')),
    *with_each('', SAMPLE, 'guidance_2', ('2', 'nan')),
    *with_each('', SAMPLE, 'decode_tiles', ('2', '0x0', 'axb', '99x99')),
    *with_each('', SAMPLE, 'decode_shards', ('0', '99')),
    *with_each('', SAMPLE, 'context_noise', ('0.5', 'nan')),
    *with_each('', SAMPLE, 'mode', ('dream', '')),
    *with_each('', SAMPLE, 'prompt_schedule', ('0: a; 5: b', 'a')),
    *with_each('', SAMPLE, 'expand_prompt', ('gramar', 'ftp://x', 'http://')),
    (*SAMPLE, '--expand_prompt=http://127.0.0.1:9', '--expand_timeout=nan'),
    *with_each('', SAMPLE, 'lora_strength', ('nan', 'inf')),
    *with_each('', SAMPLE, 'lora_2', ('{RANDOM}',)),
    *[
      (*SAMPLE, f'--lora={{{name}}}')
      for name in ('RANDOM', 'HEADER', 'NESTED', 'EMPTY', 'TEXT', 'NOTHING')
    ],
    *[
      (SAMPLE[0], f'--out={out}')
      for out in (
        *('', '{OUT}', '-', '/dev/null', '{OUT}.avi', '{OUT}.jpg'),
        *('{FOLDER}/', '{LOCKED}/a.mp4', '{TEXT}/a.mp4', '{MINE}', '/'),
        *('{OUT}.mp4\0', 'x' * 300 + '.mp4'),
      )
    ],
    (*EXTEND, '--video={MINE}', '--out={MINE}'),
    *[
      (*SAMPLE, f'--checkpoint={path}')
      for path in (
        *('none', '', '{NOTHING}', '{BROKEN}', '{HALF}', '{TEXT}', '{RANDOM}'),
        *('digits_autoencoder', 'a/b/c', 'gs://', '{HEADER}'),
      )
    ],
    *with_each('', SAMPLE, 'cpu_devices', ('abc',)),
    *with_each('', SAMPLE, 'image', PATHS),
    *with_each('', EXTEND, 'video', PATHS),
    *with_each('', SAMPLE[1:], 'prompts_file', PATHS),
    *with_each('', SAMPLE, 'prompt_embeds', PATHS),
    *with_each('', SAMPLE, 'lora', PATHS),
    *with_each('', SAMPLE, 'checkpoint', PATHS),
  ]  # fmt: skip
  sample = [case[1:] if case[:1] == ('',) else case for case in sample]
  train = [
    (),
    TRAIN[:1],
    TRAIN[1:],
    ('--config=none', TRAIN[1]),
    ('--config=digits:huge', TRAIN[1]),
    ('--config={TEXT}', TRAIN[1]),
    ('--config={NOTHING}', TRAIN[1]),
    (TRAIN[0], '--workdir={LOCKED}'),
    (TRAIN[0], '--workdir={TEXT}'),
    (*TRAIN, '--config.trian.steps=3'),
    (*TRAIN, '--config.train.steps=abc'),
    (*TRAIN, '--config.train.steps=0'),
    (*TRAIN, '--config.train.accumulate=7'),
    (*TRAIN, '--config.train.ema=2.0'),
    (*TRAIN, '--config.data.batch_size=0'),
    (*TRAIN, '--config.data.batch_size=-8'),
    (*TRAIN, '--config.data.frames=6'),
    (*TRAIN, '--config.data.height=40'),
    (*TRAIN, '--config.data.width=0'),
    (*TRAIN, '--config.data.name=films'),
    (*TRAIN, '--config.data.clips=-1'),
    (*TRAIN, '--config.data.caption_dropout=2.0'),
    (*TRAIN, '--config.data.fps=0.0'),
    (*TRAIN, '--config.model.heads=5'),
    (*TRAIN, '--config.model.width=0'),
    (*TRAIN, '--config.model.layers=-1'),
    (*TRAIN, '--config.mesh.data=7'),
    (*TRAIN, '--config.optimizer.name=sgd'),
    (*TRAIN, '--config.optimizer.learning_rate=-1.0'),
    (*TRAIN, '--config.optimizer.decay=2.0'),
    (*TRAIN, '--config.sampling.steps=0'),
    (*TRAIN, '--config.conditioning.none=-1.0'),
    (*TRAIN, '--config.lora.rank=4'),
    (*TRAIN, '--config.seed=-1'),
    (*TRAIN, '--checkpoint=none'),
    (*TRAIN, '--checkpoint={NOTHING}'),
    (*TRAIN, '--checkpoint={BROKEN}'),
    (*TRAIN, '--checkpoint={RANDOM}'),
    (*TRAIN, '--profile=abc'),
    (*TRAIN, '--profile=9:3'),
    (*TRAIN, '--num_processes=2'),
    (*TRAIN, '--coordinator=x'),
    (*FOLDER, '--config.data.dir=none'),
    (*FOLDER, '--config.data.dir={NOTHING}'),
    (*FOLDER, '--config.data.dir={FOLDER}'),
    (*FOLDER, '--config.data.dir={TEXT}'),
    (*TRAIN, '--config.data.name=cache', '--config.data.dir={NOTHING}'),
    (*TRAIN, '--config.data.name=cache', '--config.data.dir={TEXT}'),
    *with_each('', FOLDER, 'config.data.dir', PATHS),
    *with_each('', TRAIN, 'checkpoint', PATHS),
    *with_each('', TRAIN[:1], 'workdir', PATHS[:3]),
    (*FOLDER, '--config.data.dir={FOLDER}', '--config.data.fps=0'),
  ]
  evaluate = [
    ('--out=',),
    ('--out={LOCKED}/a',),
    ('--out={TEXT}',),
    *with_each('', EVALUATE, 'world', ('films', '')),
    *with_each('', EVALUATE, 'num', ('1', '0', '-5', 'abc')),
    *with_each('', EVALUATE, 'seed', ('-1', 'x')),
    *with_each('', EVALUATE, 'steps', ('0', '-1')),
    *with_each('', EVALUATE, 'solver', ('rk4',)),
    *with_each('', EVALUATE, 'size', ('1', '63x64')),
    *with_each('', EVALUATE, 'frames', ('6', '0')),
    *with_each('', EVALUATE, 'checkpoint', ('none', '{NOTHING}', '{BROKEN}')),
  ]
  encode = [
    (),
    ENCODE,
    ENCODE[:1],
    (*ENCODE, '--data=none'),
    (*ENCODE, '--data={NOTHING}'),
    (*ENCODE, '--data={TEXT}'),
    (*ENCODE, '--data={FOLDER}'),
    (*ENCODE, '--data={FOLDER}', '--config=digits_pixels:tiny'),
    (*ENCODE, '--config=digits:tiny'),
    (*ENCODE, '--config=digits_mixed:tiny'),
    (*ENCODE, '--config=digits_pixels:tiny', '--config.data.crop=(1, 16, 16)'),
    (*ENCODE, '--data={FOLDER}', '--text=words'),
    (*ENCODE, '--data={FOLDER}', '--text=embeddings'),
    (*ENCODE, '--data={FOLDER}', '--dtype=int8'),
    *with_each('', (*ENCODE, '--data={FOLDER}'), 'frames', ('6', '0', 'x')),
    *with_each('', (*ENCODE, '--data={FOLDER}'), 'height', ('7', '-8')),
    *with_each('', (*ENCODE, '--data={FOLDER}'), 'fps', ('0', 'nan', '-1')),
    *with_each('', (*ENCODE, '--data={FOLDER}'), 'batch_size', ('0',)),
    *with_each('', (*ENCODE, '--data={FOLDER}'), 'shard', ('0', '-1')),
    ('--checkpoint=none', ENCODE[1], '--data={FOLDER}'),
    ('--checkpoint={BROKEN}', ENCODE[1], '--data={FOLDER}'),
    (ENCODE[0], '--out={LOCKED}', '--data={FOLDER}'),
    (ENCODE[0], '--out={TEXT}', '--data={FOLDER}'),
  ]
  export = [
    (),
    EXPORT[:1],
    EXPORT[1:],
    (EXPORT[0], '--out={FOLDER}'),
    (EXPORT[0], '--out={LOCKED}'),
    (*EXPORT, '--lora=diffusers'),
    (*EXPORT, '--lora=kohya'),
    (*EXPORT, '--dtype=int8'),
    ('--checkpoint=none', EXPORT[1]),
    ('--checkpoint={NOTHING}', EXPORT[1]),
    ('--checkpoint={BROKEN}', EXPORT[1]),
    ('--checkpoint=digits_autoencoder', EXPORT[1], '--lora=diffusers'),
  ]
  convert = [
    (),
    CONVERT[:1],
    CONVERT[1:],
    CONVERT,
    ('--source=none', CONVERT[1]),
    ('--source={NOTHING}', CONVERT[1]),
    ('--source={HALF}', CONVERT[1]),
    ('--source={BROKEN}', CONVERT[1]),
    (*CONVERT, '--dtype=int8'),
    (*CONVERT, '--shard_gb=0'),
    (*CONVERT, '--shard_gb=nan'),
    (*CONVERT, '--shard_gb=inf'),
  ]
  compiled = [
    (),
    COMPILE[:1],
    ('--config=digits:huge', COMPILE[1]),
    (COMPILE[0], '--topology=v4-8'),
    (COMPILE[0], '--topology=v5e-3'),
    (COMPILE[0], '--topology='),
    (*COMPILE, '--program=dream'),
    (*COMPILE, '--config.mesh.data=3'),
    # Flags of --save, which a dry run does not read.
    *with_each('', COMPILE, 'mesh.context', ('2',)),
    *with_each('', COMPILE, 'size', ('64x64',)),
    *with_each('', COMPILE, 'steps', ('9',)),
    *with_each('', COMPILE, 'checkpoint', ('digits',)),
    *with_each('', COMPILE, 'hlo', ('{LOCKED}/a.txt', '{TEXT}')),
    ('--program=sample', '--save={OUT}', '--json'),
    ('--program=sample', '--save={OUT}', '--num_slices=2'),
  ]
  caption = [
    (),
    CAPTION[:1],
    CAPTION[1:],
    ('--data=none', CAPTION[1]),
    ('--data={NOTHING}', CAPTION[1]),
    ('--data={TEXT}', CAPTION[1]),
    *with_each('', CAPTION[:1], 'endpoint', ('x', 'ftp://a', 'http://a:b')),
    *with_each('', CAPTION, 'frames', ('0', '-1', 'x')),
    *with_each('', CAPTION, 'timeout', ('0', 'nan', 'inf', '-1')),
  ]
  groups = {
    'sample': sample,
    'train': train,
    'evaluate': evaluate,
    'encode': encode,
    'export': export,
    'convert': convert,
    'compile': compiled,
    'caption': caption,
  }
  return [
    (command, *(a for i, a in enumerate(case) if a or i))
    for command, group in groups.items()
    for case in group
  ]


def snapshot(root: pathlib.Path) -> dict[str, tuple]:
  """Size and time of every file below a folder."""
  return {
    str(path.relative_to(root)): (
      path.lstat().st_size,
      path.lstat().st_mtime_ns,
    )
    for path in sorted(root.rglob('*'))
    if path.is_symlink() or not path.is_dir()
  }


def arguments(case: tuple[str, ...], paths: dict[str, str]) -> list[str]:
  """The arguments of a case with the paths of its files."""
  result = []
  for argument in case[1:]:
    for name, path in paths.items():
      argument = argument.replace(f'{{{name}}}', os.fspath(path))
    result.append(argument)
  return result
