"""Variants of training that tests/benchmarks/learning.py compares.

Each changes one thing of the base: a loss, an option of the config, the
captions or the text encoder's initial weights. Those that are worth it become
options of the package; the others stay here, as what was tried.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spacetime.data.digits import world as world_lib
from spacetime.diffusion import flow
from spacetime.models.transformer import dit
from spacetime.training import losses, means

CLIPS = 16  # of a batch; fewer learn faster than the 64 of compute.py
# It ramps up, so that in a few hundred steps longer averages are alike.
AVERAGE = 0.98
CONTRAST = 0.05  # weight of the contrastive term
ROUTED = (1, 3)  # blocks that half of the tokens pass by, of four
SELF_FLOW = dict(share=0.25, weight=0.5, student=1, teacher=3)
CAPTION_STEPS, CAPTION_RATE, MASKED = 100, 1e-3, 0.3
MASK = 2  # the token of unknown text, which no caption has


@dataclasses.dataclass(frozen=True)
class Variant:
  """What one variant changes.

  Attributes:
    name: for the table.
    config: keys of the config, with their values.
    loss: base loss -> loss of this variant.
    flops: (FLOPs of a step of the base, FLOPs of one block, of all) -> those of
      this variant.
    caption: (rng, scene, caption) -> caption; None changes none.
    pretrain: whether the text encoder is trained on captions first.
    clips: of a batch; fewer clips make more steps of the same FLOPs.
    average: decay of the average of the weights that is measured.
  """

  name: str
  config: Mapping = dataclasses.field(default_factory=dict)
  loss: Callable = lambda base: base
  flops: Callable = lambda step, block: step
  caption: Callable | None = None
  pretrain: bool = False
  clips: int = CLIPS
  average: float = AVERAGE


class Contrastive(losses.DiffusionLoss):
  """Moves predictions away from the velocity of another clip of the batch.

  Source: Stoica et al. 2025, arXiv 2506.05350.
  """

  def frame_losses(
    self, params, z_Bfhwc, text_BSY, t_Bf, noise, dropout=None, **conditions
  ):
    """See DiffusionLoss."""
    z_t = flow.add_noise(z_Bfhwc, noise, t_Bf)
    v = self.velocity(params, z_t, t_Bf, text_BSY, dropout, **conditions)
    target = flow.velocity(z_Bfhwc, noise)
    away = flow.frame_loss(v, jnp.roll(target, 1, axis=0))
    return flow.frame_loss(v, target) - CONTRAST * away


class Routed(losses.DiffusionLoss):
  """A random half of the tokens passes some blocks by.

  Source: Krause et al. 2025 (TREAD), arXiv 2501.04765.
  """

  def velocity(self, params, z_t_Bfhwc, t_Bf, text_BSY, key=None, **conditions):
    """See DiffusionLoss."""
    if key is not None:
      conditions['stack'] = route(jax.random.fold_in(key, 7))
    return super().velocity(
      params, z_t_Bfhwc, t_Bf, text_BSY, key, **conditions
    )


def route(key: jax.Array) -> Callable:
  """A stack of blocks in which half of the tokens pass some blocks by."""
  first, last = ROUTED

  def stack(bound, x_BND, modulation, text, tables, t_index_N, segments):
    tokens = x_BND.shape[1]
    kept_n = jax.random.permutation(key, tokens)[: tokens // 2]
    fewer = tuple(jnp.take(table, kept_n, axis=0) for table in tables)
    inputs = modulation, text, tables, t_index_N, segments
    x_BND = run_blocks(bound, x_BND, inputs, 0, first)
    few = modulation, text, fewer, jnp.asarray(t_index_N)[kept_n], segments
    part_BnD = run_blocks(bound, x_BND[:, kept_n], few, first, last)
    x_BND = x_BND.at[:, kept_n].set(part_BnD)
    return run_blocks(bound, x_BND, inputs, last, bound.config.layers)

  return stack


def run_blocks(bound: dit.DiT, x_BND, inputs: tuple, first: int, stop: int):
  """Runs blocks first to stop - 1 of a bound transformer."""
  block = dit.Block(bound.config, parent=None)
  stacked = bound.variables['params']['blocks']
  for number in range(first, stop):
    layer = jax.tree.map(lambda leaf, i=number: leaf[i], stacked)
    x_BND, _ = block.apply({'params': layer}, x_BND, *inputs)
  return x_BND


class SelfFlow(losses.DiffusionLoss):
  """Some tokens are noisier or cleaner than the others.

  Features of an early block predict those of a late block of the averaged
  weights, which see all tokens at the cleaner level.

  Source: Chefer et al. 2026, arXiv 2603.06507. The head of the published method
  is left out: features are compared as they are, after normalisation.
  """

  def loss(self, params, frozen, batch, key, draws=None):
    """See DiffusionLoss; frozen['teacher'] has the averaged weights."""
    del draws
    teacher = frozen['teacher']
    params = frozen | params
    z_Bfhwc, text_BSY = self.inputs(params, frozen, batch)
    draw = self.draw(params, frozen, batch, key)
    mask_key, level_key = jax.random.split(jax.random.fold_in(key, 7))
    t_B1, noise = draw['t'][:, :1], draw['noise']
    s_B1 = flow.sample_timesteps(
      level_key,
      t_B1.shape,
      self.flow,
      tokens=self.tokens(z_Bfhwc),
      factor=batch['shift'][:, None],
    )
    masked_fhw = jax.random.bernoulli(
      mask_key, SELF_FLOW['share'], z_Bfhwc.shape[1:4]
    )
    index_fhw = masked_fhw.astype(jnp.int32)
    t_BT = jnp.concatenate([t_B1, s_B1], axis=1)
    z_t = flow.add_noise(z_Bfhwc, noise, flow.per_cell(t_BT, index_fhw))
    features = {}
    v = self.velocity(
      params,
      z_t,
      t_BT,
      text_BSY,
      t_index_fhw=index_fhw,
      stack=observed(features, 'student', SELF_FLOW['student']),
    )
    error = jnp.mean(jnp.square(v - flow.velocity(z_Bfhwc, noise)))
    clean_B1 = jnp.minimum(t_B1, s_B1)
    z_clean = flow.add_noise(z_Bfhwc, noise, clean_B1)
    cleaner_text_BSY = self.embed(teacher, batch['tokens'])
    self.velocity(
      teacher,
      z_clean,
      clean_B1,
      cleaner_text_BSY,
      stack=observed(features, 'teacher', SELF_FLOW['teacher']),
    )
    x_BND, y_BND = (
      features[name] / jnp.linalg.norm(features[name], axis=-1, keepdims=True)
      for name in ('student', 'teacher')
    )
    y_BND = jax.lax.stop_gradient(y_BND)
    alike = jnp.mean(jnp.sum(x_BND * y_BND, axis=-1))
    total = error - SELF_FLOW['weight'] * alike
    weight = z_Bfhwc.shape[0]
    return total, {
      'loss': means.Mean(total, weight),
      'flow': means.Mean(error, weight),
    }


def observed(features: dict, name: str, after: int) -> Callable:
  """A stack of blocks that notes what the tokens are after some of them."""

  def stack(bound, x_BND, *inputs):
    x_BND = run_blocks(bound, x_BND, inputs, 0, after)
    features[name] = x_BND
    return run_blocks(bound, x_BND, inputs, after, bound.config.layers)

  return stack


def as_class(kind: type) -> Callable:
  """base loss -> the same settings in another class."""

  def make(base):
    fields = dataclasses.fields(base)
    return kind(**{field.name: getattr(base, field.name) for field in fields})

  return make


def one_thing(
  rng: np.random.Generator, scene: world_lib.Scene, caption: str
) -> str:
  """Half of the captions say the digit alone."""
  return f'a {scene.characters[0].digit}' if rng.random() < 0.5 else caption


def pretrained_text(nets, params: dict, tokens: Sequence[np.ndarray]) -> dict:
  """Trains a text encoder to name masked tokens of captions.

  Args:
    nets: the networks.
    params: fresh parameters of the text encoder.
    tokens: tokens_BS of a batch, for each step.

  Returns:
    its parameters.
  """
  vocabulary = int(max(batch.max() for batch in tokens)) + 1
  width = jax.eval_shape(nets.embed, {'text': params}, tokens[0]).shape[-1]
  head = 0.02 * jax.random.normal(jax.random.key(0), (width, vocabulary))
  trained = {'text': params, 'head': head}
  optimizer = optax.adamw(CAPTION_RATE)
  state = optimizer.init(trained)

  def loss(trained, tokens_BS, key):
    hidden_BS = jax.random.bernoulli(key, MASKED, tokens_BS.shape)
    hidden_BS &= tokens_BS > MASK
    seen_BS = jnp.where(hidden_BS, MASK, tokens_BS)
    logits = nets.embed(trained, seen_BS) @ trained['head']
    error_BS = optax.softmax_cross_entropy_with_integer_labels(
      logits, tokens_BS
    )
    return jnp.sum(error_BS * hidden_BS) / jnp.maximum(jnp.sum(hidden_BS), 1)

  @jax.jit
  def step(trained, state, tokens_BS, key):
    gradient = jax.grad(loss)(trained, tokens_BS, key)
    updates, state = optimizer.update(gradient, state, trained)
    return optax.apply_updates(trained, updates), state

  for number, tokens_BS in enumerate(tokens):
    trained, state = step(trained, state, tokens_BS, jax.random.key(number))
  return trained['text']


VARIANTS = (
  Variant('base'),
  Variant('64 clips a step', clips=64),
  Variant('32 clips a step', clips=32),
  Variant('8 clips a step', clips=8),
  Variant(
    'adamw', {'optimizer.name': 'adamw', 'optimizer.learning_rate': 1e-3}
  ),
  Variant('sample prediction', {'flow.prediction': 'sample'}),
  Variant('contrastive', loss=as_class(Contrastive)),
  Variant(
    'TREAD',
    loss=as_class(Routed),
    # Half of the tokens pass half of the four blocks by.
    flops=lambda step, block: step - 3 * (ROUTED[1] - ROUTED[0]) * block / 2,
  ),
  Variant(
    'Self-Flow',
    loss=as_class(SelfFlow),
    flops=lambda step, block: step + SELF_FLOW['teacher'] * block,
  ),
  Variant('one thing at a time', caption=one_thing),
  Variant('text encoder first', pretrain=True),
  Variant('average 0.95', average=0.95),
  Variant('average 0.99', average=0.99),
)
