"""Features of clips of the digits world, by a small network trained here.

  python -m spacetime.evaluation.features FOLDER [STEPS]

trains the network and writes its weights; those of `assets/digits_features` are
what `load` reads. The network learns to name what a clip shows: which digits,
colours, motions and sizes, and how the camera moves. Its pooled activations are
compared by `distances`.

Letters: D features, K classes.
"""

import functools
import pathlib
import sys
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
import tqdm

from spacetime.data.digits import framing
from spacetime.data.digits import world as world_lib
from spacetime.media import files

FOLDER = pathlib.Path(__file__).parents[1] / 'assets' / 'digits_features'
FILE = 'weights.safetensors'
# Channels of the layers in space, and the stride of each; then those in time.
SPACE, STRIDES = (24, 48, 64, 96), (2, 2, 2, 1)
TIME = (96, 64)
STEPS = 900
RATE = 2e-3
SEED = 2_000_003  # of training scenes: those of no other training

# What a clip shows: names and the characters' attribute.
KINDS = {
  'digit': tuple(range(10)),
  'colour': tuple(world_lib.COLOURS),
  'motion': world_lib.MOTIONS,
  'size': tuple(world_lib.SIZES),
}
CLASSES = sum(map(len, KINDS.values()))

# (share of the steps, clips of a batch, frames, height, width, characters):
# windows near characters first, where shapes are learnt at a fifth of the cost.
PHASES = (
  (0.4, 64, 5, 32, 32, 1),
  (0.35, 64, 9, 40, 40, 2),
  (0.25, 24, 17, 64, 64, 3),
)


def init(key: jax.Array) -> dict[str, jax.Array]:
  """Fresh parameters: kernels scaled by their fan-in, biases of zero."""
  shapes, inputs = {}, 6  # a frame, and its change from the one before
  for level, width in enumerate(SPACE):
    shapes[f'space{level}'] = (3, 3, inputs, width)
    inputs = width
  for level, width in enumerate(TIME):
    shapes[f'time{level}'] = (3, inputs, width)
    inputs = width
  shapes['head'] = (2 * inputs, CLASSES + len(world_lib.CAMERAS))
  params = {}
  for name, shape in shapes.items():
    key, draw = jax.random.split(key)
    scale = (2 / np.prod(shape[:-1])) ** 0.5
    params[f'{name}/kernel'] = scale * jax.random.normal(draw, shape)
    params[f'{name}/bias'] = jnp.zeros(shape[-1])
  return params


def activations(
  params: Mapping[str, jax.Array], video_BFHWC: jax.Array
) -> jax.Array:
  """Pooled activations of clips, (B, D) float32: means, then maxima.

  Args:
    params: of `init` or `load`.
    video_BFHWC: float in [-1, 1], any size of at least 16 pixels a side.
  """
  before = jnp.concatenate([video_BFHWC[:, :1], video_BFHWC[:, :-1]], 1)
  x = jnp.concatenate([video_BFHWC, video_BFHWC - before], -1)
  batch, frames = x.shape[:2]
  x = x.reshape(batch * frames, *x.shape[2:])
  for level, stride in enumerate(STRIDES):
    x = _layer(params, f'space{level}', x, stride=stride)
  x = x.reshape(batch, frames, *x.shape[1:]).swapaxes(1, 3)
  x = x.reshape(-1, *x.shape[3:])  # (B w h, F, C)
  for level in range(len(TIME)):
    x = _layer(params, f'time{level}', x, stride=1)
  x = x.reshape(batch, -1, x.shape[-1])
  return jnp.concatenate([x.mean(1), x.max(1)], -1)


def _layer(params, name: str, x, *, stride: int):
  """A convolution over all axes but the first and the last, normalised."""
  axes = x.ndim - 2
  letters = 'HW'[:axes]
  y = jax.lax.conv_general_dilated(
    x,
    params[f'{name}/kernel'],
    (stride,) * axes,
    'SAME',
    dimension_numbers=(f'N{letters}C', f'{letters}IO', f'N{letters}C'),
  )
  y += params[f'{name}/bias']
  y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + 0.1)
  return jax.nn.relu(y)


@functools.cache
def load() -> dict[str, np.ndarray]:
  """The bundled parameters."""
  return safetensors.numpy.load_file(FOLDER / FILE)


@functools.cache
def _jitted():
  return jax.jit(activations)


def extract(clips: Sequence[np.ndarray], *, batch_size: int = 16) -> np.ndarray:
  """The features of clips of one size, (N, D) float32.

  Args:
    clips: frames_FHWC, uint8.
    batch_size: clips at once; the last batch is filled up with its last clip.
  """
  params, rows = load(), []
  for start in range(0, len(clips), batch_size):
    part = list(clips[start : start + batch_size])
    filled = np.stack(part + part[-1:] * (batch_size - len(part)))
    video = filled.astype(np.float32) / 127.5 - 1
    rows.append(np.asarray(_jitted()(params, video))[: len(part)])
  return np.concatenate(rows)


def labels(scene: world_lib.Scene) -> tuple[np.ndarray, int]:
  """(shown_K, camera): whether a character has each name of KINDS, and the
  number of the camera."""
  shown = [
    any(getattr(character, kind) == name for character in scene.characters)
    for kind, names in KINDS.items()
    for name in names
  ]
  return np.array(shown), world_lib.CAMERAS.index(scene.camera)


def loss(params, batch) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Sum of cross-entropies, and how often the likeliest name of each kind is
  shown.

  Args:
    params: of `init`.
    batch: video (B, F, H, W, 3) uint8; shown (B, K) and camera (B,), see
      `labels`.
  """
  pooled = activations(params, batch['video'].astype(jnp.float32) / 127.5 - 1)
  logits = pooled @ params['head/kernel'] + params['head/bias']
  sizes = [*map(len, KINDS.values())]
  *parts, camera = jnp.split(logits, np.cumsum(sizes), -1)
  shown = jnp.split(batch['shown'], np.cumsum(sizes)[:-1], -1)
  total, right = 0.0, {}
  for kind, logit_BK, shown_BK in zip(KINDS, parts, shown, strict=True):
    entropy = optax.sigmoid_binary_cross_entropy(logit_BK, shown_BK)
    total += entropy.sum(-1).mean()
    best_B1 = logit_BK.argmax(-1)[:, None]
    right[kind] = jnp.take_along_axis(shown_BK, best_B1, -1).mean()
  total += optax.softmax_cross_entropy_with_integer_labels(
    camera, batch['camera']
  ).mean()
  right['camera'] = (camera.argmax(-1) == batch['camera']).mean()
  return total, right


def draw(seed: int, phase: tuple, *, split: str, clips: int) -> dict:
  """Clips of a phase with their labels.

  Args:
    seed: of the scenes.
    phase: of PHASES.
    split: one of world.SPLITS.
    clips: how many.
  """
  _, _, frames, height, width, characters = phase
  world = world_lib.World(max_characters=characters)
  is_scene = (frames, height, width) == (
    world.frames,
    world.height,
    world.width,
  )
  videos, shown, cameras = [], [], []
  for i in range(clips):
    record = framing.example(
      np.random.default_rng([SEED, seed, i]),
      world=world,
      split=split,
      framing='wide' if is_scene else 'window',
      frames=frames,
      height=height,
      width=width,
      spread=1.0,
    )
    videos.append(record['video'])
    shown_K, camera = labels(world_lib.from_json(record['scene']))
    shown.append(shown_K)
    cameras.append(camera)
  return {
    'video': np.stack(videos),
    'shown': np.stack(shown),
    'camera': np.array(cameras),
  }


def train(steps: int) -> tuple[dict, dict[str, float]]:
  """Trains the network: (parameters, shares right on held-out clips)."""
  optimizer = optax.adamw(
    optax.cosine_decay_schedule(RATE, steps), weight_decay=1e-3
  )
  params = init(jax.random.key(0))
  state = optimizer.init(params)

  @jax.jit
  def step(params, state, batch):
    (value, right), gradient = jax.value_and_grad(loss, has_aux=True)(
      params, batch
    )
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value, right

  ends = np.cumsum([phase[0] for phase in PHASES]) * steps
  bar = tqdm.tqdm(range(steps), desc='training', unit='step')
  for number in bar:
    phase = PHASES[int(np.searchsorted(ends, number, 'right'))]
    clips = draw(number, phase, split='train', clips=phase[1])
    params, state, value, right = step(params, state, clips)
    if number % 20 == 0:
      shown = {name: f'{float(share):.2f}' for name, share in right.items()}
      bar.set_postfix(loss=f'{float(value):.3f}', **shown)
  held_out = draw(steps, PHASES[-1], split='validation', clips=256)
  _, right = jax.jit(loss)(params, held_out)
  return params, {name: float(share) for name, share in right.items()}


def main(folder: str, steps: str = str(STEPS)) -> None:
  """Trains the network and writes its weights into a folder."""
  out = pathlib.Path(folder)
  files.check_writable(out)
  params, right = train(int(steps))
  with files.atomic_write(out / FILE) as temporary:
    safetensors.numpy.save_file(jax.device_get(params), temporary)
  print(', '.join(f'{name} {share:.3f}' for name, share in right.items()))


if __name__ == '__main__':
  main(*sys.argv[1:])
