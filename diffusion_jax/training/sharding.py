"""Where arrays live: one mesh over all devices, one rule from a leaf's path to its place, two doors
to one pure step.

`runner('jit')` compiles with shardings over a mesh with axes data, fsdp and tensor: examples are
spread over data and fsdp, parameters with their averages and optimizer state over fsdp and tensor
(`place`). `runner('pmap')` maps the step over the axis 'data' of all local devices (make the step
with axis_name=runner.axis_name); its state is whole on every device. In both the state is one
logical array per leaf, so checkpoints and samples do not know the door, nor how many processes
there are: a process feeds the rows of the batch that its devices hold (`Runner.rows`) and gets
results whole (`fetch`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffusion_jax.errors import UserError, unknown

AXES = ("data", "fsdp", "tensor")
EXAMPLES = ("data", "fsdp")  # the mesh axes over which a batch is spread


class Runner(NamedTuple):
    """How a pure step meets the devices.

    axis_name: what make_train_step and make_eval_step must be given. devices: a global batch must
      be a multiple of it.
    mesh: over which `spread` may sample with the parameters of a state.
    rows(batch_size): the rows of a global batch that this process feeds, ascending.
    init(fn, *args): fn of arrays, compiled, its result placed. template(fn, *args): its shapes and
    places, for restore. put_state(tree): a placed copy, which shares no memory with the tree (a
    step that donates it leaves the caller's arrays alone). put_batch(batch, axis=0): those rows of
    host arrays -> global arrays; axis is that of the examples (1 for stacked steps). compile(step):
    a multi_step (state, batches) -> (state, metrics); the state given is donated. Like what jax.jit
    returns it has `trace`, for shapes instead of arrays (planning.py). compile_eval(step): (state,
    batch, key) -> metrics, nothing donated.
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
    """A mesh of all devices with the axes data, fsdp and tensor; -1 (by default data) takes what
    the others leave.

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
    return jax.make_mesh(
        [sizes[axis] for axis in AXES],
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=devices,
    )


# The layers, by the end of a path, whose output channels (kernel and bias) or input channels
# (kernel alone) are spread over tensor. Of two matrices in a row the first is split by outputs and
# the second by inputs, so that what is between them, hidden units or whole attention heads, never
# leaves its device, and one sum over the devices ends the pair (Shoeybi et al. 2019, Megatron-LM,
# section 3). `modulation` multiplies every token: split by outputs it would split the tokens'
# channels too, by inputs it costs one sum of a row per example. The DiT's qkv is ordered by head
# first, so its parts are whole heads; the U-Net's by (q, k, v) first, where parts would be gathered
# before and after the attention (B T 3c numbers each way): it is whole on tensor, each device takes
# its heads from it, and only `project` is split.
BY_OUTPUT = re.compile(
    r"(^|/)(conv_1|embedding|mlp_in|query|key|value|block(_\d+|s)/qkv)/(kernel|bias)$"
)

BY_INPUT = re.compile(r"(^|/)(conv_2|project|mlp_out|modulation)/kernel$")

WHOLE = re.compile(
    r"(^|/)condition/"
)  # embeds noise level and class: small, once per example; sharded, it would shard what it makes

STACKED = re.compile(
    r"(^|/)blocks/"
)  # leaves of many layers in one, over whose first axis a loop runs: it stays whole

FSDP_FROM = (
    2**14
)  # elements: a smaller leaf is whole on every device, for a message about it costs more than it saves


def place(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Where the leaf 'params/block_0/qkv/kernel' lives.

    tensor: as the end of its path says, above. fsdp: the largest axis that is left and divisible,
    of leaves from FSDP_FROM elements on (Rajbhandari et al. 2020, ZeRO-3). An axis that does not
    divide, and what no rule names, is whole. An average ('ema/5k/block_0/qkv/kernel') or a moment
    ('opt_state/1/0/mu/block_0/qkv/kernel') of a parameter ends like the parameter's path and has
    its shape, so it lies where the parameter lies.
    """
    if WHOLE.search(path):
        return PartitionSpec()
    parts: list[str | None] = [None] * len(shape)
    layers = 1 if STACKED.search(path) else 0
    axis = _tensor_axis(path, len(shape), layers)
    if axis is not None and _divides(mesh, "tensor", shape[axis]):
        parts[axis] = "tensor"
    if np.prod(shape) >= FSDP_FROM:
        left = [
            i
            for i in range(layers, len(shape))
            if parts[i] is None and _divides(mesh, "fsdp", shape[i])
        ]
        if left:
            parts[max(left, key=lambda i: shape[i])] = "fsdp"
    while (
        parts and parts[-1] is None
    ):  # as jax writes it: a compiled step's output lies "elsewhere" otherwise
        parts.pop()
    return PartitionSpec(*parts)


def _tensor_axis(path: str, ndim: int, layers: int) -> int | None:
    """The axis of a leaf that is spread over tensor. A leaf of another rank (adafactor's row and
    column sums) is whole.
    """
    if ndim - layers not in {"kernel": (2, 4), "bias": (1,)}.get(path.rpartition("/")[2], ()):
        return None
    return ndim - 1 if BY_OUTPUT.search(path) else ndim - 2 if BY_INPUT.search(path) else None


def _divides(mesh: Mesh, axis: str, size: int) -> bool:
    count = mesh.shape.get(axis, 1)
    return count > 1 and size % count == 0


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The NamedSharding of every leaf of a tree of arrays or shapes, by the rule `place`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: NamedSharding(mesh, place(path_name(path), x.shape, mesh)), tree
    )


def placed(shapes: Any, mesh: Mesh) -> Any:
    """A tree of shapes with their places, for a restore straight into shards."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        shardings(shapes, mesh),
    )


def put(tree: Any, mesh: Mesh) -> Any:
    """A tree of host arrays, the same on every process, in its places."""
    return jax.tree.map(
        lambda x, place: jax.make_array_from_callback(
            x.shape, place, lambda part: np.asarray(x)[part]
        ),
        tree,
        shardings(tree, mesh),
    )


def path_name(path) -> str:
    """A leaf's path as text: 'params/Dense_0/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def runner(
    parallel: str = "jit",
    *,
    mesh: Mapping[str, int] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Runner:
    """The runner for parallel = 'jit' (a mesh, see make_mesh) or 'pmap' (all local devices); else
    UserError.
    """
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
    """A tree of arrays as numpy on every process, gathered where sharded (by all at once). Typed
    keys stay as they are.
    """
    return jax.tree.map(_to_host, tree)


def spread(run: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """call(params, examples, *rest): run(params, *examples, *rest), jitted, with its examples over
    the mesh, as numpy.

    examples: a tuple of trees of (B, ...) arrays, typed keys among them, the same on every process;
    any B (it is filled up with copies of the last, whose results are dropped). params: of the host,
    or anywhere on the mesh's devices. The result is whole on every process.
    """

    def call(params, examples, *rest):
        count = len(jax.tree.leaves(examples)[0])
        index = np.minimum(np.arange(multiple(count, mesh)), count - 1)
        placed = jax.tree.map(lambda x: _put_rows(x, index, mesh), examples)
        return jax.tree.map(lambda x: x[:count], fetch(run(params, *placed, *rest)))

    return call


def _put_rows(x, index: np.ndarray, mesh: Mesh) -> jax.Array:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        words = _put_rows(jax.random.key_data(x), index, mesh)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
    x = np.asarray(x)[index]
    return jax.make_array_from_callback(x.shape, examples(mesh), lambda part: x[part])


def _rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Of a batch over this mesh, the rows that this process's devices hold; several processes may
    hold the same (tensor).
    """
    _check_divisible(batch_size, mesh)
    parts = examples(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts]))


def _jit(mesh: Mesh) -> Runner:
    everywhere = NamedSharding(mesh, PartitionSpec())
    count = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = functools.lru_cache(functools.partial(_rows, mesh))

    def put_batch(batch, axis=0):
        def put(x):
            size = (
                x.shape[axis] * count // len(rows(count))
            )  # this process feeds so many of `count` equal parts
            fed = rows(size)

            def part(
                index,
            ):  # a device's rows are neighbours in the batch, so also among this process's
                start, stop, _ = index[axis].indices(size)
                first = np.searchsorted(fed, start)
                return x[(slice(None),) * axis + (slice(first, first + stop - start),)]

            shape = x.shape[:axis] + (size,) + x.shape[axis + 1 :]
            return jax.make_array_from_callback(shape, examples(mesh, axis), part)

        return jax.tree.map(put, batch)

    def compile(step):
        return _by_state(
            lambda places: jax.jit(
                step,
                in_shardings=(places, examples(mesh, 1)),
                out_shardings=(places, everywhere),
                donate_argnums=0,
            ),
            mesh,
        )

    def compile_eval(step):
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

    def put_batch(batch, axis=0):  # (..., B, ...) -> (..., devices, B / devices, ...)
        _check_divisible(jax.tree.leaves(batch)[0].shape[axis], mesh)
        return jax.tree.map(
            lambda x: np.reshape(x, x.shape[:axis] + (count, -1) + x.shape[axis + 1 :]), batch
        )

    def compile(step):  # the state is not mapped: it goes in and comes out whole, on every device
        return jax.pmap(
            step,
            axis_name="data",
            in_axes=(None, 1),
            out_axes=(None, None),
            donate_argnums=0,
            devices=list(devices),
        )

    def compile_eval(step):
        return jax.pmap(
            step, axis_name="data", in_axes=(None, 0, None), out_axes=None, devices=list(devices)
        )

    return Runner(
        "data",
        count,
        mesh,
        functools.partial(_rows, mesh),
        *_placing(own),
        put_batch,
        compile,
        compile_eval,
    )


_DOORS = {"jit": _jit, "pmap": _pmap}


def _placing(mesh: Mesh) -> tuple[Callable, Callable, Callable]:
    def init(fn, *args):
        return jax.jit(fn, out_shardings=shardings(jax.eval_shape(fn, *args), mesh))(*args)

    def template(fn, *args):
        return placed(jax.eval_shape(fn, *args), mesh)

    # device_put alone may share a buffer (to several devices even with may_alias=False), which
    # donation would delete
    def put_state(tree):
        return jax.tree.map(
            lambda x, place: jax.device_put(jnp.copy(x), place), tree, shardings(tree, mesh)
        )

    return init, template, put_state


def _by_state(compiled: Callable[[Any], Callable], mesh: Mesh) -> Callable:
    """A function whose first argument's structure, known at the first call, fixes the shardings it
    is compiled with.

    Its attribute `trace` takes shapes instead of arrays, as that of jax.jit does.
    """
    cache: dict[Any, Callable] = {}

    def of(state):
        structure = jax.tree.structure(state)
        if structure not in cache:
            cache[structure] = compiled(shardings(state, mesh))
        return cache[structure]

    def call(state, *rest):
        return of(state)(state, *rest)

    call.trace = lambda state, *rest: of(state).trace(state, *rest)
    return call


def _check_divisible(size: int, mesh: Mesh) -> None:
    if size % (count := mesh.shape["data"] * mesh.shape["fsdp"]):
        raise UserError(
            f"batch size {size} is not divisible by the {count} devices it is spread over; choose a multiple of {count}"
        )


def _to_host(x):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)
