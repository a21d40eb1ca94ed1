"""The training state: everything that a checkpoint must hold to resume."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from spacetime import sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """The training state, a pytree of arrays.

  Attributes:
    step: int32 scalar, number of updates.
    params: float32 tree.
    ema: float32 tree, the average of params.
    opt_state: the optimizer's.
  """

  step: jax.Array
  params: dict
  ema: dict
  opt_state: optax.OptState


def new_state(params: dict, optimizer: optax.GradientTransformation) -> State:
  """The state before the first step."""
  return State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    ema=jax.tree.map(jnp.copy, params),
    opt_state=optimizer.init(params),
  )


def state_shardings(state: State, mesh: jax.sharding.Mesh) -> State:
  """Returns the sharding of every array of the state, which may be abstract."""
  placed = sharding.param_shardings(state.params, mesh)
  return State(
    step=NamedSharding(mesh, PartitionSpec()),
    params=placed,
    ema=placed,
    opt_state=sharding.state_shardings(state.opt_state, state.params, mesh),
  )


def init_state(init, key, optimizer, mesh: jax.sharding.Mesh) -> State:
  """Initialises the state sharded: no device ever holds more than its share.

  Args:
    init: key -> params.
    key: for the parameters.
    optimizer: transformation of make_optimizer.
    mesh: devices of the state.
  """
  make = lambda key: new_state(init(key), optimizer)  # noqa: E731
  placed = state_shardings(jax.eval_shape(make, key), mesh)
  with jax.set_mesh(mesh):
    return jax.jit(make, out_shardings=placed)(key)


def state_from(params: dict, optimizer, mesh: jax.sharding.Mesh) -> State:
  """The state before the first step of a run that starts from weights.

  Args:
    params: float32, sharded over the mesh; donated.
    optimizer: transformation of make_optimizer.
    mesh: devices of the parameters.
  """
  make = lambda params: new_state(params, optimizer)  # noqa: E731
  placed = state_shardings(jax.eval_shape(make, params), mesh)
  with jax.set_mesh(mesh):
    return jax.jit(make, out_shardings=placed, donate_argnums=0)(params)


def abstract_state(init, key, optimizer, mesh: jax.sharding.Mesh) -> State:
  """Returns shapes and shardings of the state, to restore into."""
  state = jax.eval_shape(lambda key: new_state(init(key), optimizer), key)
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    state,
    state_shardings(state, mesh),
  )
