"""Rematerialisation: what a block saves for the backward pass, by policy.

none       every activation.
full       the block's input; everything else is recomputed.
attention  the input and the residuals of the attention kernels, so that none
           of them runs forward twice. In long clips attention takes most of
           the time, and its residuals little memory.
offload    as attention, in host memory.
"""

from collections.abc import Callable

import flax.linen as nn
import jax

from spacetime.models.transformer.attention_kernels import RESIDUALS

NAMES = ('none', 'full', 'attention', 'offload')
BLOCK = 'block'  # name of a block's input
# cuDNN's kernel has no names: the results of its forward primitive are saved.
CUDNN = 'dot_product_attention_fwd'


def remat(block: type[nn.Module], name: str) -> type[nn.Module]:
  """Returns a module class that rematerialises by a policy.

  Args:
    block: the module class.
    name: one of NAMES.
  """
  if name == 'none':
    return block
  return nn.remat(
    block, prevent_cse=False, static_argnums=(), policy=policy(name)
  )


def policy(name: str) -> Callable | None:
  """Returns the policy for jax.checkpoint; None saves nothing."""
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
