"""Precision of matrix products: what is called float32 is computed in float32.

By default a TPU multiplies float32 operands in one pass of bfloat16, with 8
bits of mantissa, and an NVIDIA GPU in TF32, with 11. On a CPU every precision
is float32 itself.
"""

import contextlib

import jax
import jax.numpy as jnp

# Six passes of bfloat16 on a TPU, plain float32 on a GPU.
FLOAT32 = jax.lax.Precision.HIGHEST


def products(dtype) -> contextlib.AbstractContextManager:
  """Context in which products of a float32 network have float32 precision.

  It holds for the products that are traced within, for their derivatives, and
  for those inside of Pallas kernels; products that state a precision keep it.

  Args:
    dtype: compute dtype of the network; others than float32 have no context.
  """
  return _context(dtype, 'highest')


def autoencoder_products(dtype) -> contextlib.AbstractContextManager:
  """The same for an autoencoder: three passes of bfloat16 on a TPU.

  Its float32 results become pixels of 8 bits or normalised latents. One pass
  has a relative error of 2^-9 in every operand, about a step of a pixel; three
  passes have 2^-17, below anything that a pixel shows, at half the price of
  six. Published pipelines decode in float32, which PyTorch's convolutions
  compute in TF32 on a GPU.
  """
  return _context(dtype, 'high')


def _context(dtype, name: str) -> contextlib.AbstractContextManager:
  if jnp.dtype(dtype) != jnp.float32:
    return contextlib.nullcontext()
  return jax.default_matmul_precision(name)
