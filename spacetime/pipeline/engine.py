"""Engine of a pipeline: parameters and programs, reused by later calls."""

import contextlib
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from spacetime import sharding
from spacetime.checkpoint import finite, load
from spacetime.config import samplers
from spacetime.data.settings import DataConfig
from spacetime.diffusion.settings import SamplingSettings
from spacetime.media.pixels import to_video
from spacetime.models.autoencoder import streaming
from spacetime.pipeline import decode_shards, saved_programs
from spacetime.pipeline import program_cache as program_cache_lib
from spacetime.pipeline import progress as progress_lib
from spacetime.sharding import chips, multihost

# Networks of at most this many bytes stay in memory between calls; larger ones
# are read when they are needed and freed before the next is read.
RESIDENT_BYTES = 256 * 2**20


class Program:
  """A jitted function that reports when it compiles.

  Args:
    function: the function.
    compiling: context in which a new signature is compiled.
    mesh: mesh of the arrays; None is the default device.
    find: looks up the compiled program of a lowered one, as
      saved_programs.Store; None compiles all.
    get: the compiled program of the jitted function and its arguments, as
      program_cache.ProgramCache; None leaves it to JAX.
    **options: options of jax.jit.
  """

  def __init__(
    self,
    function: Callable,
    compiling: Callable,
    *,
    mesh=None,
    find: Callable | None = None,
    get: Callable | None = None,
    **options,
  ):
    self._call = jax.jit(function, **options)
    self._compiling, self._signatures = compiling, {}
    self._mesh, self._find, self._get = mesh, find, get

  def __call__(self, *args):
    if self._mesh is not None and multihost.spans_processes(self._mesh):
      args = multihost.to_global(args, self._mesh)
    with self._on_mesh():
      return self._run(*args)

  def lower(self, *args) -> jax.stages.Lowered:
    """The lowered program of arguments or their shapes."""
    with self._on_mesh():
      return self._call.lower(*args)

  def _on_mesh(self):
    if self._mesh is None:
      return contextlib.nullcontext()
    return jax.set_mesh(self._mesh)

  def _run(self, *args):
    leaves, structure = jax.tree.flatten(args)
    shapes = tuple((np.shape(x), getattr(x, 'dtype', None)) for x in leaves)
    signature = (structure, shapes)
    if signature in self._signatures:
      return self._signatures[signature](*args)
    call = None
    if self._find is not None:
      call = self._find(self._call.lower(*args))
    if call is None and self._get is not None:
      call = self._get(self._call, args, self._compiling)
      self._signatures[signature] = call
      return call(*args)
    call = call or self._call
    with self._compiling():
      result = call(*args)
    self._signatures[signature] = call
    return result

  def __getattr__(self, name: str):
    return getattr(self._call, name)


class Engine:
  """A model in use: reads its networks and compiles its programs once.

  Attributes:
    model: the opened model; no parameters are read.
    progress: progress of the current call.
    mesh: devices of the parameters and programs.

  Args:
    model: an opened checkpoint.
    mesh: mesh that the model was opened on; None is the first device.
    resident_bytes: networks up to this size stay in memory.
    programs: folder of compiled programs, see saved_programs; None compiles
      all.
    program_cache: folder of the programs that earlier commands compiled, see
      program_cache; used on one CPU device.
  """

  def __init__(
    self,
    model: load.Model,
    *,
    mesh: jax.sharding.Mesh | None = None,
    resident_bytes: int = RESIDENT_BYTES,
    programs: saved_programs.Store | None = None,
    program_cache: str | None = None,
  ):
    self.model = model
    self.mesh = sharding.as_mesh(mesh)
    self.progress = progress_lib.SILENT
    self._resident_bytes, self._saved = resident_bytes, programs
    self._cache = None
    if program_cache and self._is_cpu:
      self._cache = program_cache_lib.ProgramCache(
        program_cache, model.settings, self.mesh
      )
    self._params: dict[str, Any] = {}
    self._programs: dict[Any, Any] = {}

  @property
  def spans_processes(self) -> bool:
    """Whether several processes share the transformers. Each then runs the
    text encoder and the autoencoder by itself, on its first device."""
    return multihost.spans_processes(self.mesh)

  @property
  def _is_cpu(self) -> bool:
    return self.mesh.size == 1 and self.mesh.devices.flat[0].platform == 'cpu'

  @property
  def devices(self) -> int:
    """Number of devices."""
    return self.mesh.size

  def rows(self, clips: int, branches: int) -> int:
    """Clips of a batch, rounded up so that the devices share its rows.

    Args:
      clips: clips to generate.
      branches: branches of guidance, a row of each clip.
    """
    shards = sharding.num_shards('batch', self.mesh)
    multiple = shards // math.gcd(branches, shards)
    return -(-clips // multiple) * multiple

  @property
  def networks(self):
    """The three networks as pure functions."""
    return self.model.networks

  @property
  def autoencoder(self):
    """The autoencoder's functions."""
    return self.model.networks.autoencoder

  @property
  def data(self) -> DataConfig:
    """Settings of the clips that the model was trained on."""
    return self.model.experiment.data

  @property
  def published(self) -> Mapping | None:
    """The index of a published model; None for a model of this package."""
    return self.model.experiment.published or None

  def settings(self, **changes) -> SamplingSettings:
    """The checkpoint's sampling settings with changes."""
    return self.model.experiment.sampling.with_changes(**changes)

  def read(self, root: str):
    """The parameters of a network: 'text', 'image' or 'autoencoder'."""
    read = self.model.read
    if self.spans_processes:
      return self._read(root, lambda root: multihost.to_local(read(root)))
    return self._read(root, read)

  def read_transformer(self, root: str) -> dict:
    """The parameters of 'dit' or 'dit_2', with LoRA weights: {'dit', 'lora'};
    see load.Model.read_transformer."""
    return self._read(root, self.model.read_transformer)

  def _read(self, root: str, read: Callable):
    if root in self._params:
      return self._params[root]
    with self.progress.stage(f'reading {root}'):
      params = read(root)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if size <= self._resident_bytes:
      self._params[root] = params
    return params

  def program(
    self, key, function: Callable, *, shared: bool = False, **options
  ) -> Program:
    """The jitted `function` of a key, the same object at every call.

    Args:
      key: key of the program.
      function: the function.
      shared: whether processes that share the model run it together; they run
        others each by itself.
      **options: options of jax.jit.
    """
    if key not in self._programs:
      mesh = self.mesh if self.devices > 1 else None
      if self.spans_processes and not shared:
        mesh = None
      kind = self.mesh.devices.flat[0].device_kind
      self._programs[key] = Program(
        function,
        self._compiling,
        mesh=mesh,
        find=self._saved
        and functools.partial(self._saved.find, name=_program_name(key)),
        get=self._cache and functools.partial(self._cache.get, key),
        compiler_options=chips.options(kind) or None,
        **options,
      )
    return self._programs[key]

  def samplers(self, settings: SamplingSettings, latent) -> dict:
    """Samplers by the transformer that runs their steps, in order of use."""
    key = ('samplers', settings, latent)
    if key not in self._programs:
      self._programs[key] = samplers.samplers(
        self.model.experiment, self.networks, settings, latent=latent
      )
    return self._programs[key]

  def encode(self, frames_BFHWC: np.ndarray, params) -> np.ndarray:
    """Encodes uint8 frames to z_Bfhwc on the host, a latent frame at a time.

    Args:
      frames_BFHWC: a batch of clips.
      params: parameters of the autoencoder.
    """
    return self.encode_video(np.asarray(to_video(frames_BFHWC)), params)

  def encode_video(self, video_BFHWC: np.ndarray, params) -> np.ndarray:
    """The same for pixels in [-1, 1]."""
    autoencoder = self.autoencoder
    latent = tuple(
      size // cell
      for size, cell in zip(
        video_BFHWC.shape[2:4], autoencoder.stride[1:], strict=True
      )
    )
    shared = decode_shards.shared_devices(self.mesh, latent)
    if shared and params:
      coder = decode_shards.encoder(autoencoder, params, shared, latent=latent)
      params, first, step = coder.params, coder.first, coder.step
    else:
      first = self.program('encode_first', autoencoder.encode_first)
      step = self.program(
        'encode_step', autoencoder.encode_step, donate_argnums=1
      )
    codes = streaming.encode_chunks(
      autoencoder, params, video_BFHWC, first=first, step=step
    )
    z_Bfhwc = np.concatenate([np.asarray(z) for z in codes], axis=1)
    finite.check(z_Bfhwc, 'latents of the conditioning video')
    return z_Bfhwc

  @contextlib.contextmanager
  def _compiling(self):
    with self.progress.stage('compiling'):
      yield


def _program_name(key) -> str:
  """The name of a key's program in a folder of saved ones."""
  parts = key if isinstance(key, tuple) else (key,)
  return '-'.join(part for part in parts if isinstance(part, str))
