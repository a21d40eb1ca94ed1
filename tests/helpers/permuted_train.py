"""spacetime train on a mesh whose devices are in another order.

  python -m tests.helpers.permuted_train 0,1,4,5,2,3,6,7 --config=... ...

On v5p and TPU7x a host holds chips of a cube, whose rows of the batch are no
run: with two processes of four devices the order above is such a one.
"""

import sys
from collections.abc import Sequence

import jax
import numpy as np

from spacetime import __main__ as spacetime_main
from spacetime.sharding import mesh


def permute(order: Sequence[int]) -> None:
  """Places the devices of every mesh in this order."""

  def create(shape, devices: Sequence[jax.Device], **options):
    del options
    return np.array(devices)[list(order)].reshape(shape)

  mesh.mesh_utils.create_device_mesh = create


if __name__ == '__main__':
  permute([int(number) for number in sys.argv[1].split(',')])
  sys.argv[1] = 'train'
  spacetime_main.main()
