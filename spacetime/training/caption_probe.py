"""Caption probe: held-out loss with one word of the caption wrong.

Held-out clips are noised with noise that never changes and predicted with
their right canonical captions, and with captions of which one word is wrong.
By how many per cent the loss is higher tells, hundreds of steps before samples
do, whether the word is used, and at which noise level.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spacetime.data.digits import captions, wrong_captions
from spacetime.data.digits import world as world_lib
from spacetime.training import losses

TIMESTEPS = (0.3, 0.5, 0.7, 0.9)


def prompts(
  scenes: Sequence[world_lib.Scene], encode: Callable[[str], np.ndarray]
) -> dict[str, np.ndarray]:
  """Tokenizes right and wrong captions of some clips, for a batch.

  Args:
    scenes: scenes of the clips.
    encode: caption -> tokens_S.

  Returns:
    right_BS, the canonical captions' tokens; wrong_BKS, with one word wrong, of
    each of wrong_captions.KINDS; applies_BK, whether the scene has it.
  """
  rng = np.random.default_rng(0)
  wrong_BK = [
    [wrong_captions.changed(scene, kind, rng) for kind in wrong_captions.KINDS]
    for scene in scenes
  ]

  def tokens(scene) -> np.ndarray:
    return encode(captions.canonical_caption(scene))

  return {
    'right': np.stack([tokens(scene) for scene in scenes]),
    'wrong': np.stack(
      [
        np.stack([tokens(wrong or scene) for wrong in row])
        for scene, row in zip(scenes, wrong_BK, strict=True)
      ]
    ),
    'applies': np.array([[w is not None for w in row] for row in wrong_BK]),
  }


def measure(task: losses.DiffusionLoss, params, frozen, batch) -> dict:
  """Computes by how many per cent a wrong word raises the loss.

  Args:
    task: the transformer's stage.
    params: trained parameters.
    frozen: the other parameters.
    batch: 'frames' or 'latents', and what `prompts` returns; 'counted' (B,) has
      0 for clips that only fill the batch.

  Returns:
    'probe/KIND_tTIMESTEP': float32 scalars; NaN where no clip has the kind.
  """
  variables = frozen | params
  z_Bfhwc, right_BSY = task.inputs(
    variables, frozen, batch | {'tokens': batch['right']}
  )
  texts = [right_BSY] + [
    task.embed(variables, batch['wrong'][:, kind])
    for kind in range(len(wrong_captions.KINDS))
  ]
  texts_KBSY = jnp.stack(texts)

  def at(t):
    t_Bf = jnp.full(z_Bfhwc.shape[:2], t)
    noise = jax.random.normal(jax.random.key(0), z_Bfhwc.shape)
    losses_KBf = jax.lax.map(
      lambda text: task.frame_losses(variables, z_Bfhwc, text, t_Bf, noise),
      texts_KBSY,
    )
    return jnp.mean(losses_KBf, axis=-1)

  loss_TKB = jax.lax.map(at, jnp.asarray(TIMESTEPS))
  applies_KB = batch['applies'].T.astype(jnp.float32)
  if 'counted' in batch:
    applies_KB *= batch['counted']
  wrong_TK = jnp.sum(loss_TKB[:, 1:] * applies_KB, axis=-1)
  right_TK = jnp.sum(loss_TKB[:, :1] * applies_KB, axis=-1)
  excess_TK = 100 * (wrong_TK / right_TK - 1)
  return {
    f'probe/{kind}_t{t}': excess_TK[i, k]
    for i, t in enumerate(TIMESTEPS)
    for k, kind in enumerate(wrong_captions.KINDS)
  }
