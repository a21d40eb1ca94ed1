"""Where queries meet keys: the one choice of how, by platform and config.

On one device a kernel computes it. Where tokens are split over the mesh's
context axis, keys come to queries in one of two ways, or both:

  ulysses  all-to-all: tokens are exchanged for heads, so that a device has
           every token of some heads. Little is sent; the devices divide the
           heads.
  ring     keys and values go round (ring.py). Any number of devices.
  both     ulysses among as many neighbours as divide the heads, and a ring of
           such groups.

Source: Jacobs et al. 2023 (DeepSpeed-Ulysses), arXiv 2309.14509, section 3;
both together as in Fang & Zhao 2024 (USP), arXiv 2405.07719, section 3.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from spacetime import sharding
from spacetime.models.transformer import attention_kernels, ring, splash

KERNELS = ('auto', 'xla', 'cudnn', 'splash')
EXCHANGES = ('auto', 'ulysses', 'ring', 'both')
# By `device.platform`.
PLATFORMS = {'xla': None, 'cudnn': ('gpu', 'cuda'), 'splash': ('tpu',)}


@dataclasses.dataclass(frozen=True)
class Way:
  """How attention is computed on a mesh.

  Attributes:
    kernel: 'xla', 'cudnn' or 'splash'.
    device_kind: as JAX names it.
    ulysses: neighbours among which tokens are exchanged for heads.
    ring: groups of these in a ring.
  """

  kernel: str
  device_kind: str
  ulysses: int = 1
  ring: int = 1


def choose(
  kernel: str,
  exchange: str,
  *,
  mesh,
  heads: int,
  head_size: int,
  dtype,
) -> Way:
  """The way for self-attention of a model on a mesh.

  Args:
    kernel: of KERNELS; 'auto' takes the platform's.
    exchange: of EXCHANGES; 'auto' takes ulysses as far as heads allow.
    mesh: a Mesh or AbstractMesh; an empty one is the default device.
    heads: A.
    head_size: E.
    dtype: of queries and keys.

  Raises:
    ValueError: a kernel that this platform has not, heads that the mesh does
      not divide, or a ring of a kernel that cannot.
  """
  platform, device_kind = device_of(mesh)
  half = jnp.dtype(dtype).itemsize == 2
  if kernel == 'auto':
    kernel = {'tpu': 'splash', 'gpu': 'cudnn', 'cuda': 'cudnn'}.get(
      platform, 'xla'
    )
    if kernel == 'cudnn' and not _cudnn_takes(head_size, half):
      kernel = 'xla'
  allowed = PLATFORMS[kernel]
  if allowed and platform not in allowed:
    raise ValueError(
      f'model.attention={kernel!r} on {platform!r}: expected a device of '
      f"{allowed}; change model.attention to 'auto' or 'xla'"
    )
  if kernel == 'cudnn' and not _cudnn_takes(head_size, half):
    raise ValueError(
      f"model.attention='cudnn' with heads of {head_size} in "
      f'{jnp.dtype(dtype).name}: expected at most 128, a multiple of 8, in '
      "bfloat16; change model.attention to 'xla', or model.dtype"
    )
  tensor = sharding.num_shards('heads', mesh)
  if heads % tensor:
    raise ValueError(
      f'model.heads={heads}: mesh.tensor={tensor} does not divide it; change '
      'mesh.tensor'
    )
  context = sharding.num_shards('tokens', mesh)
  ulysses = _neighbours(exchange, heads // tensor, context)
  if ulysses < context and kernel == 'cudnn':
    raise ValueError(
      f"model.attention='cudnn' with mesh.context={context}, which does not "
      f'divide the {heads // tensor} heads of a device: that kernel has no '
      "ring; change mesh.context, or model.attention to 'xla'"
    )
  return Way(kernel, device_kind, ulysses, context // ulysses)


def _cudnn_takes(head_size: int, half: bool) -> bool:
  return half and head_size <= 128 and head_size % 8 == 0


def _neighbours(exchange: str, heads: int, context: int) -> int:
  """Of how many devices' tokens ulysses makes one."""
  most = math.gcd(heads, context)
  if exchange == 'ulysses' and most < context:
    raise ValueError(
      f"model.context_attention='ulysses' with mesh.context={context}: "
      f'expected a divisor of the {heads} heads of a device (model.heads / '
      "mesh.tensor); change mesh.context, or take 'both'"
    )
  return 1 if exchange == 'ring' else most


def device_of(mesh) -> tuple[str, str]:
  """(platform, device_kind) of a mesh, whose devices need not be there."""
  if not mesh.empty:
    device = getattr(mesh, 'abstract_mesh', mesh).abstract_device
    if device is not None:
      return device.platform, device.device_kind
  device = jax.local_devices()[0]
  return device.platform, device.device_kind


def get_kernel(way: Way) -> attention_kernels.Kernel:
  """The kernel of a way."""
  if way.kernel == 'splash':
    return splash.kernel(way.device_kind)
  if way.kernel == 'cudnn':
    return attention_kernels.CUDNN
  return attention_kernels.PLAIN


def attend(
  q_BNAE: jax.Array,
  k_BSAE: jax.Array,
  v_BSAE: jax.Array,
  mask_BS: jax.Array | attention_kernels.Segments | None = None,
  *,
  keys: str | None = None,
  kernel: str = 'auto',
  exchange: str = 'auto',
) -> jax.Array:
  """softmax(q k' / sqrt(E)) v for every head; softmax in float32.

  Args:
    q_BNAE: queries, split along the context axis where there is one.
    k_BSAE: keys.
    v_BSAE: values.
    mask_BS: bool, true where a key is real; padding follows what is real. Or
      Segments, of packed rows.
    keys: 'tokens' where keys are split as queries are, None where they are
      whole along the context axis, as a text is.
    kernel: of KERNELS.
    exchange: of EXCHANGES.

  Returns:
    (B, N, A, E), in the dtype of q.

  Raises:
    ValueError: see `choose`; or tokens that the context axis does not divide.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if isinstance(mask_BS, attention_kernels.Segments):
    lengths = q_BNAE.shape[1], k_BSAE.shape[1]
    kernel = check_segments(kernel, mesh, lengths=lengths)
  way = choose(
    kernel,
    exchange,
    mesh=mesh,
    heads=q_BNAE.shape[2],
    head_size=q_BNAE.shape[3],
    dtype=q_BNAE.dtype,
  )
  exchanged = keys == 'tokens' and way.ulysses * way.ring > 1
  if mesh.empty or (way.kernel == 'xla' and not exchanged):
    # What XLA partitions by itself.
    return get_kernel(way).attend(q_BNAE, k_BSAE, v_BSAE, mask_BS)
  check_tokens(q_BNAE.shape[1], mesh)
  return on_mesh(
    get_kernel(way), way if exchanged else None, keys=keys, mesh=mesh
  )(q_BNAE, k_BSAE, v_BSAE, mask_BS)


def check_segments(kernel: str, mesh, *, lengths: tuple[int, int]) -> str:
  """The kernel for packed rows of so many queries and keys: where 'auto' would
  be cuDNN's, and cannot, it is 'xla'.

  Raises:
    ValueError: cuDNN's kernel with odd lengths, or tokens that are split over
      devices.
  """
  odd = any(length % 2 for length in lengths)
  if kernel == 'cudnn' and odd:
    raise ValueError(
      f"model.attention='cudnn' on packed rows of {lengths[0]} tokens and "
      f'{lengths[1]} keys: expected even numbers; change data.packing.length, '
      "or model.attention to 'auto'"
    )
  if sharding.num_shards('tokens', mesh) > 1:
    raise ValueError(
      f'mesh.context={sharding.num_shards("tokens", mesh)} with packed rows: '
      "expected 1; change mesh.context, or data.packing.kind to 'buckets'"
    )
  on_gpu = device_of(mesh)[0] in PLATFORMS['cudnn']
  return 'xla' if kernel == 'auto' and on_gpu and odd else kernel


def check_tokens(tokens: int, mesh) -> None:
  """Raises ValueError where the context axis does not divide the tokens."""
  context = sharding.num_shards('tokens', mesh)
  if tokens % context:
    raise ValueError(
      f'{tokens} tokens: mesh.context={context} does not divide them; change '
      'mesh.context, or the frames, height or width of the clips'
    )


def on_mesh(kernel, way: Way | None, *, keys: str | None, mesh):
  """A kernel on every device's share of the mesh.

  Args:
    kernel: a Kernel.
    way: of the exchange between devices; None has none.
    keys: 'tokens' or None, see `attend`.
    mesh: a Mesh or AbstractMesh.

  Returns:
    (q_BNAE, k_BSAE, v_BSAE, mask_BS or None) -> y_BNAE.
  """

  def part(q, k, v, mask_BS):
    if way is None:
      return _parts(kernel, 1, 1, q, k, v, mask_BS)
    return _exchanged(kernel, way, q, k, v, mask_BS)

  def call(q_BNAE, k_BSAE, v_BSAE, mask_BS=None):
    rows = sharding.divisible_axis('batch', q_BNAE.shape[0], mesh)
    queries = sharding.spec(rows, 'tokens', 'heads', None)
    others = sharding.spec(rows, keys, 'heads', None)
    masks = sharding.spec(rows, keys)
    if isinstance(mask_BS, attention_kernels.Segments):
      masks = type(mask_BS)(sharding.spec(rows, 'tokens'), masks)
    return jax.shard_map(
      part,
      mesh=mesh,
      in_specs=(queries, others, others, masks),
      out_specs=queries,
      # A kernel's results do not tell along which axes they vary.
      check_vma=False,
    )(q_BNAE, k_BSAE, v_BSAE, mask_BS)

  return call


def _exchanged(kernel, way: Way, q, k, v, mask_BS):
  """Inside shard_map: neighbours exchange, and groups of them make a ring."""
  axis = sharding.LOGICAL_AXIS_RULES['tokens']
  count, size = way.ulysses * way.ring, way.ulysses
  groups = [[*range(i, i + size)] for i in range(0, count, size)]
  groups = groups if way.ring > 1 else None

  def swap(x, split, joined):
    if size == 1:
      return x
    return jax.lax.all_to_all(
      x, axis, split, joined, tiled=True, axis_index_groups=groups
    )

  q, k, v = (swap(x, 2, 1) for x in (q, k, v))
  if mask_BS is not None and size > 1:
    mask_BS = jax.lax.all_gather(
      mask_BS, axis, axis=1, tiled=True, axis_index_groups=groups
    )
  return swap(_parts(kernel, way.ring, size, q, k, v, mask_BS), 1, 2)


def _parts(kernel, count: int, step: int, q, k, v, mask_BS):
  """A kernel, or a ring of it over so many groups of `step` neighbours."""
  if kernel.backward is None:
    return kernel.attend(q, k, v, mask_BS)
  around = ring.Ring(sharding.LOGICAL_AXIS_RULES['tokens'], count, step)
  return ring.attend(q, k, v, mask_BS, kernel, around)
