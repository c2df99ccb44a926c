"""How a pure step runs on all devices: one mesh, and two ways to compile for it.

`runner('jit')` compiles with shardings over a mesh with the axes data, fsdp and tensor: examples
are spread over data and fsdp, parameters with their averages and optimizer state over fsdp and
tensor (placement.py). `runner('pmap')` maps the step over the axis 'data' of all local devices
(make the step with axis_name=runner.axis_name); its state is whole on every device. In both the
state is one logical array per leaf, so checkpoints and samples depend neither on the way nor on the
number of processes: a process feeds the rows of the batch that its devices hold (`Runner.rows`) and
gets whole results (`fetch`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.training.placement import placed, shardings

AXES = ("data", "fsdp", "tensor")
EXAMPLES = ("data", "fsdp")  # the mesh axes over which a batch is spread


class Runner(NamedTuple):
    """The functions that run a pure step on the devices.

    Attributes:
      axis_name: the axis_name for make_train_step and make_eval_step.
      devices: the number of parts of a batch; a global batch must be a multiple of it.
      mesh: the mesh, over which `spread` may sample with the parameters of a state.
      rows: rows(batch_size) are the rows of a global batch that this process feeds, ascending.
      init: init(fn, *args) calls a function of arrays, compiled, and places its result.
      template: template(fn, *args) gives the shapes and shardings of that result, for restoring.
      put_state: a placed copy of a tree, which shares no memory with it (a step that donates the
        copy leaves the caller's arrays alone).
      put_batch: put_batch(batch, axis=0) turns those rows, as host arrays, into global arrays;
        axis is that of the examples (1 for stacked steps).
      compile: compiles a multi_step, (state, batches) -> (state, metrics); the given state is
        donated. Like the result of jax.jit it has `trace`, for shapes instead of arrays.
      compile_eval: compiles (state, batch, key) -> metrics; nothing is donated.
    """

    axis_name: str | None
    devices: int
    mesh: Mesh
    rows: Callable[[int], np.ndarray]
    init: Callable[..., Any]
    template: Callable[..., Any]
    put_state: Callable[[Any], Any]
    put_batch: Callable[..., Any]
    compile: Callable[[Callable], Callable]
    compile_eval: Callable[[Callable], Callable]


def make_mesh(
    shape: Mapping[str, int] | None = None, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of devices with the axes data, fsdp and tensor.

    Args:
      shape: the size of each axis; -1, the default of data, takes what the others leave.
      devices: the devices; None takes all of them.

    Raises:
      UserError: for an unknown axis, or sizes whose product is not the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {"data": -1, "fsdp": 1, "tensor": 1} | dict(shape or {})
    for axis in sizes.keys() - set(AXES):
        raise unknown("mesh axis", axis, AXES)
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    free = [axis for axis in AXES if sizes[axis] == -1]
    if fixed < 1 or len(free) > 1 or len(devices) % fixed or (not free and fixed != len(devices)):
        raise UserError(
            f"mesh {sizes} does not fit {len(devices)} devices; the product must be "
            f"{len(devices)}, and one axis may be -1"
        )
    sizes |= {axis: len(devices) // fixed for axis in free}
    # Explicit axes, JAX's default, refuse convolutions with sharded parameters
    return jax.make_mesh(
        [sizes[axis] for axis in AXES],
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=devices,
    )


def runner(
    parallel: str = "jit",
    *,
    mesh: Mapping[str, int] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Runner:
    """The runner that compiles in a given way.

    Args:
      parallel: 'jit', over a mesh, or 'pmap', over all local devices.
      mesh: the shape of the mesh (`make_mesh`).
      devices: the devices; None takes all of them.

    Raises:
      UserError: for another value of parallel, or a mesh that does not fit.
    """
    if parallel not in _RUNNERS:
        raise unknown("value of parallel", parallel, _RUNNERS)
    return _RUNNERS[parallel](make_mesh(mesh, devices=devices))


def examples(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the sharding of arrays that have examples along an axis.

    Args:
      mesh: the mesh; examples are spread over its axes data and fsdp.
      axis: number of the axis of the array that runs over examples.
    """
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, EXAMPLES))


def multiple(size: int, mesh: Mesh) -> int:
    """Round a batch size up to one that the mesh divides.

    Args:
      size: number of examples, at least 1.
      mesh: the mesh, over whose axes data and fsdp examples are spread.
    """
    count = _parts(mesh)
    return -(-size // count) * count


def fetch(tree: Any) -> Any:
    """Copy a tree of arrays to every process as numpy arrays.

    All processes call it at once, because sharded arrays are gathered. Typed keys stay as they are.

    Args:
      tree: arrays on the devices.
    """
    return jax.tree.map(_to_host, tree)


def spread(run: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A function that runs `run` with its examples spread over the mesh.

    Args:
      run: (params, *examples, *rest) -> a tree of (B, ...) arrays.
      mesh: the mesh.

    Returns:
      call(params, examples, *rest), whose result is numpy and whole on every process. `examples`
      is a tuple of trees of (B, ...) arrays, typed keys among them, the same on every process. B
      is arbitrary: the batch is padded with copies of its last example, whose results are dropped.
      `params` are on the host, or anywhere on the devices of the mesh.
    """

    def call(params: Any, examples: tuple, *rest: Any) -> Any:
        count = len(jax.tree.leaves(examples)[0])
        index = np.minimum(np.arange(multiple(count, mesh)), count - 1)
        padded = jax.tree.map(lambda x: _put_rows(x, index, mesh), examples)
        return jax.tree.map(lambda x: x[:count], fetch(run(params, *padded, *rest)))

    return call


def _put_rows(x: Any, index: np.ndarray, mesh: Mesh) -> jax.Array:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        words = _put_rows(jax.random.key_data(x), index, mesh)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
    x = np.asarray(x)[index]
    return jax.make_array_from_callback(x.shape, examples(mesh), lambda part: x[part])


def _parts(mesh: Mesh) -> int:
    """The number of parts into which the mesh divides a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def _rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a batch that the devices of this process hold.

    Several processes may hold the same rows (under tensor).
    """
    _check_divisible(batch_size, mesh)
    parts = examples(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts]))


def _jit(mesh: Mesh) -> Runner:
    everywhere = NamedSharding(mesh, PartitionSpec())
    count = _parts(mesh)
    rows = functools.lru_cache(functools.partial(_rows, mesh))

    def put_batch(batch: Any, axis: int = 0) -> Any:
        def put(x: np.ndarray) -> jax.Array:
            # this process feeds len(rows(count)) of `count` equal parts
            size = x.shape[axis] * count // len(rows(count))
            fed = rows(size)

            def part(index: tuple[slice, ...]) -> np.ndarray:
                # a device's rows are adjacent in the batch, so also among those of this process
                start, stop, _ = index[axis].indices(size)
                first = np.searchsorted(fed, start)
                return x[(slice(None),) * axis + (slice(first, first + stop - start),)]

            shape = x.shape[:axis] + (size,) + x.shape[axis + 1 :]
            return jax.make_array_from_callback(shape, examples(mesh, axis), part)

        return jax.tree.map(put, batch)

    def compile(step: Callable) -> Callable:
        return _by_state(
            lambda places: jax.jit(
                step,
                in_shardings=(places, examples(mesh, 1)),
                out_shardings=(places, everywhere),
                donate_argnums=0,
            ),
            mesh,
        )

    def compile_eval(step: Callable) -> Callable:
        return _by_state(
            lambda places: jax.jit(
                step, in_shardings=(places, examples(mesh), everywhere), out_shardings=everywhere
            ),
            mesh,
        )

    return Runner(None, count, mesh, rows, *_placing(mesh), put_batch, compile, compile_eval)


def _pmap(mesh: Mesh) -> Runner:
    if jax.process_count() > 1 or mesh.shape["data"] != mesh.size:
        raise UserError(
            "parallel=pmap is for the devices of one process, data-parallel only; use parallel=jit"
        )
    devices = mesh.devices.ravel()
    count = len(devices)
    # pmap's own mesh: for a state placed otherwise the step would be compiled twice
    own = Mesh(devices, ("data",), axis_types=(AxisType.Auto,))
    rows = functools.partial(_rows, mesh)

    def put_batch(batch: Any, axis: int = 0) -> Any:
        """(..., B, ...) -> (..., devices, B / devices, ...)."""
        _check_divisible(jax.tree.leaves(batch)[0].shape[axis], mesh)
        return jax.tree.map(
            lambda x: np.reshape(x, x.shape[:axis] + (count, -1) + x.shape[axis + 1 :]), batch
        )

    def compile(step: Callable) -> Callable:
        # the state is not mapped: it goes in and comes out whole, on every device
        return jax.pmap(
            step,
            axis_name="data",
            in_axes=(None, 1),
            out_axes=(None, None),
            donate_argnums=0,
            devices=list(devices),
        )

    def compile_eval(step: Callable) -> Callable:
        return jax.pmap(
            step, axis_name="data", in_axes=(None, 0, None), out_axes=None, devices=list(devices)
        )

    return Runner("data", count, mesh, rows, *_placing(own), put_batch, compile, compile_eval)


_RUNNERS = {"jit": _jit, "pmap": _pmap}


def _placing(mesh: Mesh) -> tuple[Callable, Callable, Callable]:
    """The functions init, template and put_state of a Runner."""

    def init(fn: Callable, *args: Any) -> Any:
        return jax.jit(fn, out_shardings=shardings(jax.eval_shape(fn, *args), mesh))(*args)

    def template(fn: Callable, *args: Any) -> Any:
        return placed(jax.eval_shape(fn, *args), mesh)

    # device_put alone may share a buffer (for several devices even with may_alias=False), which
    # donation would delete
    def put_state(tree: Any) -> Any:
        return jax.tree.map(
            lambda x, place: jax.device_put(jnp.copy(x), place), tree, shardings(tree, mesh)
        )

    return init, template, put_state


def _by_state(compiled: Callable[[Any], Callable], mesh: Mesh) -> Callable:
    """A function that is compiled with the shardings of its first argument, at its first call.

    Its attribute `trace` takes shapes instead of arrays, as that of jax.jit does.
    """
    cache: dict[Any, Callable] = {}

    def of(state: Any) -> Callable:
        structure = jax.tree.structure(state)
        if structure not in cache:
            cache[structure] = compiled(shardings(state, mesh))
        return cache[structure]

    def call(state: Any, *rest: Any) -> Any:
        return of(state)(state, *rest)

    call.trace = lambda state, *rest: of(state).trace(state, *rest)
    return call


def _check_divisible(size: int, mesh: Mesh) -> None:
    if size % (count := _parts(mesh)):
        raise UserError(
            f"batch size {size} is not divisible by the {count} devices it is spread over; choose "
            f"a multiple of {count}"
        )


def _to_host(x: Any) -> Any:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)
