"""What the backward pass finds saved of a block, by name.

none       every activation.
full       the block's input; all else is computed again.
attention  that, and what the attention kernels leave for their backward
           pass, so that none of them runs forward twice. Of a long clip
           attention is most of the time; its result and sums are little.
offload    the same, kept in the host's memory.
"""

import flax.linen as nn
import jax

from spacetime.models.transformer.attention_kernels import RESIDUALS

NAMES = ('none', 'full', 'attention', 'offload')
BLOCK = 'block'  # the name of a block's input
# cuDNN's kernel names nothing: what its forward primitive returns is saved.
CUDNN = 'dot_product_attention_fwd'


def remat(block, name: str):
  """A module class whose calls save what the policy says.

  Args:
    block: a linen module class.
    name: of NAMES.
  """
  if name == 'none':
    return block
  return nn.remat(
    block, prevent_cse=False, static_argnums=(), policy=policy(name)
  )


def policy(name: str):
  """The policy of jax.checkpoint; None saves nothing."""
  policies = jax.checkpoint_policies
  if name == 'full':
    return None
  if name == 'attention':
    named = policies.save_only_these_names(RESIDUALS)
  else:
    named = policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=[RESIDUALS, BLOCK],
      offload_src='device',
      offload_dst='pinned_host',
    )

  def decide(primitive, *avals, **params):
    if primitive.name.startswith(CUDNN):
      return True
    return named(primitive, *avals, **params)

  return decide
