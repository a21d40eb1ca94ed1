"""Attention on a mesh: chooses a kernel and a form of context parallelism.

On one device a kernel computes attention (attention_kernels.py, blockwise.py,
splash.py).
Where the mesh's context axis splits the tokens, queries reach all keys by
context parallelism:

  ulysses  all-to-all: devices exchange tokens for heads, so that each has every
           token of some heads. Sends little; its size has to divide the heads.
  ring     keys and values travel round a ring (ring.py); any number of devices.
  both     ulysses within groups whose size divides the heads, and a ring of
           these groups.

Source: Jacobs et al. 2023 (DeepSpeed-Ulysses), arXiv 2309.14509, section 3;
both together as in Fang & Zhao 2024 (USP), arXiv 2405.07719, section 3.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from spacetime import SettingError, sharding
from spacetime.models.transformer import attention_kernels, blockwise, ring

KERNELS = ('auto', 'xla', 'blockwise', 'cudnn', 'splash')
CONTEXT_ATTENTION = ('auto', 'ulysses', 'ring', 'both')
# By `device.platform`.
PLATFORMS = {
  'xla': None,
  'blockwise': None,
  'cudnn': ('gpu', 'cuda'),
  'splash': ('tpu',),
}
# Of 'auto', by `device.platform`; 'xla' elsewhere.
DEFAULTS = {
  'cpu': 'blockwise',
  'tpu': 'splash',
  'gpu': 'cudnn',
  'cuda': 'cudnn',
}
# Bytes of the mask of packed rows in cuDNN's attention, and of its gradient,
# above which a run is refused: no GPU of 80 GB has so much beside a model.
PACKED_BIAS_LIMIT = 16 * 2**30


@dataclasses.dataclass(frozen=True)
class AttentionPlan:
  """Kernel and context parallelism of attention on a mesh.

  Attributes:
    kernel: one of KERNELS, but not 'auto'.
    device_kind: the devices' kind, as JAX names it.
    ulysses: devices in a group that exchanges tokens for heads.
    ring: number of such groups in a ring.
  """

  kernel: str
  device_kind: str
  ulysses: int = 1
  ring: int = 1


def choose(
  kernel: str,
  context_attention: str,
  *,
  mesh: Mesh | AbstractMesh,
  heads: int,
  head_size: int,
  dtype: jax.typing.DTypeLike,
) -> AttentionPlan:
  """Chooses the plan for self-attention of a model on a mesh.

  Args:
    kernel: one of KERNELS; 'auto' takes the platform's.
    context_attention: one of CONTEXT_ATTENTION; 'auto' takes ulysses as far
      as the heads allow, and a ring beyond.
    mesh: the mesh; an empty one is the default device.
    heads: A.
    head_size: E.
    dtype: dtype of queries and keys.

  Raises:
    SettingError: a kernel that the platform does not have, heads that the mesh
      does not divide, or a ring of a kernel that cannot run in one.
  """
  platform, device_kind = device_of(mesh)
  kernel = _check_kernel(kernel, platform, head_size, dtype)
  tensor = sharding.num_shards('heads', mesh)
  if heads % tensor:
    raise SettingError(
      'mesh.tensor', tensor, f'a divisor of `model.heads`={heads}'
    )
  context = sharding.num_shards('tokens', mesh)
  ulysses = _ulysses_size(context_attention, heads // tensor, context)
  if ulysses < context and kernel == 'cudnn':
    raise SettingError(
      'mesh.context',
      context,
      f'a divisor of the {heads // tensor} heads of a device, since '
      "`model.attention`='cudnn' cannot run in a ring",
      hint="change `mesh.context`, or `model.attention` to 'xla'",
    )
  return AttentionPlan(kernel, device_kind, ulysses, context // ulysses)


def _check_kernel(
  kernel: str, platform: str, head_size: int, dtype: jax.typing.DTypeLike
) -> str:
  """Returns the kernel, that of the platform for 'auto'; see `choose`."""
  half = jnp.dtype(dtype).itemsize == 2
  if kernel == 'auto':
    kernel = DEFAULTS.get(platform, 'xla')
    if kernel == 'cudnn' and not _cudnn_supports(head_size, half):
      kernel = 'xla'
  allowed = PLATFORMS[kernel]
  if allowed and platform not in allowed:
    raise SettingError(
      'model.attention',
      kernel,
      f"'auto', 'blockwise' or 'xla' on {platform!r}: this kernel runs on "
      f'{allowed}',
    )
  if kernel == 'cudnn' and not _cudnn_supports(head_size, half):
    raise SettingError(
      'model.attention',
      'cudnn',
      f'heads of at most 128, a multiple of 8, in bfloat16, but they have '
      f'{head_size} in {jnp.dtype(dtype).name}',
      hint="change `model.attention` to 'xla', or `model.dtype`",
    )
  return kernel


def _cudnn_supports(head_size: int, half: bool) -> bool:
  return half and head_size <= 128 and head_size % 8 == 0


def _ulysses_size(context_attention: str, heads: int, context: int) -> int:
  """Devices in a ulysses group, of a device's heads and a context axis."""
  largest = math.gcd(heads, context)
  if context_attention == 'ulysses' and largest < context:
    raise SettingError(
      'mesh.context',
      context,
      f'a divisor of the {heads} heads of a device (`model.heads` / '
      "`mesh.tensor`) with `model.context_attention`='ulysses'",
      hint="'both' has no such limit",
    )
  return 1 if context_attention == 'ring' else largest


def device_of(mesh: Mesh | AbstractMesh) -> tuple[str, str]:
  """Returns (platform, device_kind) of a mesh; its devices need not exist."""
  if not mesh.empty:
    device = getattr(mesh, 'abstract_mesh', mesh).abstract_device
    if device is not None:
      return device.platform, device.device_kind
  device = jax.local_devices()[0]
  return device.platform, device.device_kind


def get_kernel(plan: AttentionPlan) -> attention_kernels.Kernel:
  """The kernel of a plan."""
  if plan.kernel == 'splash':
    from spacetime.models.transformer import splash  # here: a slow import

    return splash.kernel(plan.device_kind)
  if plan.kernel == 'cudnn':
    return attention_kernels.CUDNN
  if plan.kernel == 'blockwise':
    return blockwise.KERNEL
  return attention_kernels.PLAIN


def attend(
  q_BNAE: jax.Array,
  k_BSAE: jax.Array,
  v_BSAE: jax.Array,
  mask_BS: jax.Array | attention_kernels.Segments | None = None,
  *,
  keys: str | None = None,
  kernel: str = 'auto',
  context_attention: str = 'auto',
) -> jax.Array:
  """Attention, softmax(q k' / sqrt(E)) v per head, on the current mesh.

  Args:
    q_BNAE: queries, split along the context axis if there is one.
    k_BSAE: keys.
    v_BSAE: values.
    mask_BS: bool, true where a key is real; padding comes last. Or the Segments
      of packed sequences.
    keys: 'tokens' if keys are split as queries are, None if every device of the
      context axis has all of them, as it has of a text.
    kernel: one of KERNELS.
    context_attention: one of CONTEXT_ATTENTION.

  Returns:
    y_BNAE, in the dtype of q; the softmax is in float32.

  Raises:
    ValueError: see `choose`; or tokens that the context axis does not divide.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if isinstance(mask_BS, attention_kernels.Segments):
    lengths = q_BNAE.shape[1], k_BSAE.shape[1]
    rows = -(-q_BNAE.shape[0] // sharding.num_shards('batch', mesh))
    kernel = check_segments(kernel, mesh, lengths=lengths, rows=rows)
  plan = choose(
    kernel,
    context_attention,
    mesh=mesh,
    heads=q_BNAE.shape[2],
    head_size=q_BNAE.shape[3],
    dtype=q_BNAE.dtype,
  )
  parallel = keys == 'tokens' and plan.ulysses * plan.ring > 1
  if mesh.empty or (plan.kernel == 'xla' and not parallel):
    # XLA partitions plain products by itself.
    return get_kernel(plan).attend(q_BNAE, k_BSAE, v_BSAE, mask_BS)
  check_tokens(q_BNAE.shape[1], mesh)
  return on_mesh(
    get_kernel(plan), plan if parallel else None, keys=keys, mesh=mesh
  )(q_BNAE, k_BSAE, v_BSAE, mask_BS)


def check_segments(
  kernel: str,
  mesh: Mesh | AbstractMesh,
  *,
  lengths: tuple[int, int],
  rows: int = 1,
) -> str:
  """Returns the kernel for packed sequences: 'xla' where 'auto' would choose
  cuDNN's, which cannot mask odd lengths.

  Args:
    kernel: one of KERNELS.
    mesh: the mesh.
    lengths: numbers of queries and of keys.
    rows: rows of a device.

  Raises:
    SettingError: cuDNN's kernel with odd lengths or with rows so long that its
      mask would not fit, or tokens that are split over devices.
  """
  odd = any(length % 2 for length in lengths)
  if kernel == 'cudnn' and odd:
    raise SettingError(
      'model.attention',
      'cudnn',
      f'even numbers of tokens and keys in packed sequences, not {lengths[0]} '
      f'and {lengths[1]}',
      hint="change `data.packing.length`, or `model.attention` to 'auto'",
    )
  check_packed(mesh)
  on_gpu = device_of(mesh)[0] in PLATFORMS['cudnn']
  if kernel == 'auto' and on_gpu and odd:
    return 'xla'
  size = attention_kernels.packed_bias_bytes(rows, *lengths)
  if size > PACKED_BIAS_LIMIT and (kernel == 'cudnn' or on_gpu):
    raise SettingError(
      'data.packing.length',
      lengths[0],
      f'shorter rows: on a GPU the mask of {rows} rows of {lengths[0]} tokens '
      f'and {lengths[1]} keys takes {size / 2**30:.0f} GiB in each attention',
      hint='or fewer rows in `data.batch_size`, or `data.packing.kind`='
      "'buckets'",
    )
  return kernel


def check_packed(mesh: Mesh | AbstractMesh) -> None:
  """Checks that no axis splits the tokens of packed sequences.

  Raises:
    SettingError: the context axis does.
  """
  context = sharding.num_shards('tokens', mesh)
  if context > 1:
    raise SettingError(
      'mesh.context',
      context,
      '1 with packed sequences',
      hint="or change `data.packing.kind` to 'buckets'",
    )


def check_tokens(tokens: int, mesh: Mesh | AbstractMesh) -> None:
  """Checks that the context axis divides the tokens of a clip.

  Raises:
    SettingError: it does not.
  """
  context = sharding.num_shards('tokens', mesh)
  if tokens % context:
    raise SettingError(
      'mesh.context',
      context,
      f'a divisor of the {tokens} tokens of a clip',
      hint='change `mesh.context`, or the frames, height or width of the clips',
    )


def on_mesh(
  kernel: attention_kernels.Kernel,
  plan: AttentionPlan | None,
  *,
  keys: str | None,
  mesh: Mesh | AbstractMesh,
) -> Callable:
  """Wraps a kernel so that it runs on every device's part of the mesh.

  Args:
    kernel: the kernel.
    plan: context parallelism; None runs none.
    keys: 'tokens' or None, see `attend`.
    mesh: the mesh.

  Returns:
    (q_BNAE, k_BSAE, v_BSAE, mask_BS or None) -> y_BNAE.
  """

  def local(q, k, v, mask_BS):
    if plan is None:
      return _ring(kernel, 1, 1, q, k, v, mask_BS)
    return _context_parallel(kernel, plan, q, k, v, mask_BS)

  def call(q_BNAE, k_BSAE, v_BSAE, mask_BS=None):
    """Attention of global arrays, divided over the mesh."""
    rows = sharding.divisible_axis('batch', q_BNAE.shape[0], mesh)
    queries = sharding.spec(rows, 'tokens', 'heads', None)
    others = sharding.spec(rows, keys, 'heads', None)
    masks = sharding.spec(rows, keys)
    if isinstance(mask_BS, attention_kernels.Segments):
      masks = type(mask_BS)(sharding.spec(rows, 'tokens'), masks)
    return jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(queries, others, others, masks),
      out_specs=queries,
      # A kernel's outputs carry no types of the axes along which they vary.
      check_vma=False,
    )(q_BNAE, k_BSAE, v_BSAE, mask_BS)

  return call


def _context_parallel(
  kernel: attention_kernels.Kernel, plan: AttentionPlan, q, k, v, mask_BS
):
  """Inside shard_map: ulysses within groups, a ring of the groups."""
  axis = sharding.LOGICAL_AXIS_RULES['tokens']
  count, size = plan.ulysses * plan.ring, plan.ulysses
  groups = [[*range(i, i + size)] for i in range(0, count, size)]
  groups = groups if plan.ring > 1 else None

  def all_to_all(x, split, joined):
    if size == 1:
      return x
    return jax.lax.all_to_all(
      x, axis, split, joined, tiled=True, axis_index_groups=groups
    )

  q, k, v = (all_to_all(x, 2, 1) for x in (q, k, v))
  if mask_BS is not None and size > 1:
    mask_BS = jax.lax.all_gather(
      mask_BS, axis, axis=1, tiled=True, axis_index_groups=groups
    )
  return all_to_all(_ring(kernel, plan.ring, size, q, k, v, mask_BS), 1, 2)


def _ring(
  kernel: attention_kernels.Kernel, size: int, step: int, q, k, v, mask_BS
):
  """A ring of `size` groups of `step` devices; of one, the kernel itself."""
  if kernel.backward is None:
    return kernel.attend(q, k, v, mask_BS)
  devices = ring.Ring(sharding.LOGICAL_AXIS_RULES['tokens'], size, step)
  return ring.attend(q, k, v, mask_BS, kernel, devices)
