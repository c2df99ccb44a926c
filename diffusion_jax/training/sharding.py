"""Where arrays live: one mesh over all devices, one rule from a leaf's path to its place, two doors to one pure step.

`runner('jit')` compiles with shardings over a mesh with axes data, fsdp and tensor; examples are spread over data and
fsdp.
`runner('pmap')` maps the step over the axis 'data' of all local devices (make the step with
axis_name=runner.axis_name).
In both the state is one logical array per leaf, whole on every device, so checkpoints and samples do not know the door.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffusion_jax.errors import UserError, unknown

AXES = ("data", "fsdp", "tensor")
EXAMPLES = ("data", "fsdp")  # the mesh axes over which a batch is spread


class Runner(NamedTuple):
    """How a pure step meets the devices.

    axis_name: what make_train_step and make_eval_step must be given. devices: a global batch must be a multiple of it.
    init(fn, *args): fn of arrays, compiled, its result placed. template(fn, *args): its shapes and places, for restore.
    put_state(tree): a placed copy, which shares no memory with the tree (a step that donates it leaves the caller's
    arrays alone).
    put_batch(batch, axis=0): this process's rows of host arrays -> global arrays; axis is that of the examples (1 for
    stacked steps).
    compile(step): a multi_step (state, batches) -> (state, metrics); the state given is donated. Like what jax.jit returns
    it has `lower`, for shapes instead of arrays (planning.py).
    compile_eval(step): (params, batch, key) -> metrics, nothing donated.
    """

    axis_name: str | None
    devices: int
    init: Callable[..., Any]
    template: Callable[..., Any]
    put_state: Callable[[Any], Any]
    put_batch: Callable[..., Any]
    compile: Callable[[Callable], Callable]
    compile_eval: Callable[[Callable], Callable]


def make_mesh(shape: Mapping[str, int] | None = None, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices with the axes data, fsdp and tensor; -1 (by default data) takes what the others leave.

    Raises UserError for an unknown axis, or sizes that do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {"data": -1, "fsdp": 1, "tensor": 1} | dict(shape or {})
    for axis in sizes.keys() - set(AXES):
        raise unknown("mesh axis", axis, AXES)
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    free = [axis for axis in AXES if sizes[axis] == -1]
    if fixed < 1 or len(free) > 1 or len(devices) % fixed or (not free and fixed != len(devices)):
        raise UserError(
            f"mesh {sizes} does not fit {len(devices)} devices; the product must be {len(devices)}, one axis may be -1"
        )
    sizes |= {axis: len(devices) // fixed for axis in free}
    # Explicit axes, jax's default, refuse convolutions with sharded parameters
    return jax.make_mesh([sizes[axis] for axis in AXES], AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def place(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Where the leaf 'params/Dense_0/kernel' lives. Rules for fsdp and tensor belong here; now: whole everywhere."""
    return PartitionSpec()


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The NamedSharding of every leaf of a tree of arrays or shapes, by the rule `place`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: NamedSharding(mesh, place(path_name(path), x.shape, mesh)), tree
    )


def path_name(path) -> str:
    """A leaf's path as text: 'params/Dense_0/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def runner(
    parallel: str = "jit", *, mesh: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Runner:
    """The runner for parallel = 'jit' (a mesh, see make_mesh) or 'pmap' (all local devices); else UserError."""
    if parallel not in _DOORS:
        raise unknown("value of parallel", parallel, _DOORS)
    return _DOORS[parallel](make_mesh(mesh, devices=devices))


def examples(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The sharding of arrays whose axis `axis` runs over examples."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, EXAMPLES))


def multiple(size: int, mesh: Mesh) -> int:
    """The least batch size from `size` up that the mesh divides."""
    count = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-size // count) * count


def fetch(tree: Any) -> Any:
    """A tree of arrays as numpy on every process, gathered where sharded. Typed keys stay as they are."""
    return jax.tree.map(_to_host, tree)


def _jit(mesh: Mesh) -> Runner:
    count = mesh.shape["data"] * mesh.shape["fsdp"]
    everywhere = NamedSharding(mesh, PartitionSpec())

    def put_batch(batch, axis=0):
        _check_divisible(batch, axis, count)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(examples(mesh, axis), x), batch)

    def compile(step):
        return _by_state(
            lambda places: jax.jit(
                step, in_shardings=(places, examples(mesh, 1)), out_shardings=(places, everywhere), donate_argnums=0
            ),
            mesh,
        )

    def compile_eval(step):
        return _by_state(
            lambda places: jax.jit(step, in_shardings=(places, examples(mesh), everywhere), out_shardings=everywhere),
            mesh,
        )

    return Runner(None, count, *_placing(mesh), put_batch, compile, compile_eval)


def _pmap(mesh: Mesh) -> Runner:
    if jax.process_count() > 1 or mesh.shape["data"] != mesh.size:
        raise UserError("parallel=pmap is for the devices of one process, data-parallel only; use parallel=jit")
    devices = mesh.devices.ravel()
    count = len(devices)
    # pmap's own mesh: for a state placed otherwise the step would be compiled twice
    mesh = Mesh(devices, ("data",), axis_types=(AxisType.Auto,))

    def put_batch(batch, axis=0):  # (..., B, ...) -> (..., devices, B / devices, ...)
        _check_divisible(batch, axis, count)
        return jax.tree.map(lambda x: np.reshape(x, x.shape[:axis] + (count, -1) + x.shape[axis + 1 :]), batch)

    def compile(step):  # the state is not mapped: it goes in and comes out whole, on every device
        return jax.pmap(
            step, axis_name="data", in_axes=(None, 1), out_axes=(None, None), donate_argnums=0, devices=list(devices)
        )

    def compile_eval(step):
        return jax.pmap(step, axis_name="data", in_axes=(None, 0, None), out_axes=None, devices=list(devices))

    return Runner("data", count, *_placing(mesh), put_batch, compile, compile_eval)


_DOORS = {"jit": _jit, "pmap": _pmap}


def _placing(mesh: Mesh) -> tuple[Callable, Callable, Callable]:
    def init(fn, *args):
        return jax.jit(fn, out_shardings=shardings(jax.eval_shape(fn, *args), mesh))(*args)

    def template(fn, *args):
        shapes = jax.eval_shape(fn, *args)
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, shardings(shapes, mesh)
        )

    # device_put alone may share a buffer (to several devices even with may_alias=False), which donation would delete
    def put_state(tree):
        return jax.tree.map(lambda x, place: jax.device_put(jnp.copy(x), place), tree, shardings(tree, mesh))

    return init, template, put_state


def _by_state(compiled: Callable[[Any], Callable], mesh: Mesh) -> Callable:
    """A function whose first argument's structure, known at the first call, fixes the shardings it is compiled with.

    Its attribute `lower` takes shapes instead of arrays, as that of jax.jit does.
    """
    cache: dict[Any, Callable] = {}

    def of(state):
        structure = jax.tree.structure(state)
        if structure not in cache:
            cache[structure] = compiled(shardings(state, mesh))
        return cache[structure]

    def call(state, *rest):
        return of(state)(state, *rest)

    call.lower = lambda state, *rest: of(state).lower(state, *rest)
    return call


def _check_divisible(batch: Any, axis: int, count: int) -> None:
    size = jax.tree.leaves(batch)[0].shape[axis] * jax.process_count()
    if size % count:
        raise UserError(
            f"batch size {size} is not divisible by the {count} devices it is spread over; choose a multiple of {count}"
        )


def _to_host(x):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)
