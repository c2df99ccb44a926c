"""Parameters of our networks as the tensors of published ones: names and the order of axes.

`table` says, for each of our parameters, which of their tensors it consists of; `to_ours` and
`to_theirs` apply a table, and undo each other bit for bit. Parameters are flat:
{'down_0_0/conv_1/kernel': array}.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained.published import Flat, Layout, Options, Published, Shape


class TensorSource(NamedTuple):
    """The tensors of theirs of which one of our parameters consists.

    Attributes:
      names: the names of the tensors, which lie side by side along the last axis in our layout.
      layout: how each of them lies in ours.
    """

    names: tuple[str, ...]
    layout: Layout


SAME = Layout(lambda a: a, lambda a: a)
# (out, in), (in, out); of convolutions (out, in, N_1, ...), (N_1, ..., in, out)
KERNEL = Layout(
    lambda a: np.moveaxis(a, (0, 1), (-1, -2)), lambda a: np.moveaxis(a, (-1, -2), (0, 1))
)
# (out, in, 1, 1), (in, out)
POINT = Layout(lambda a: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None])
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "rows": "weight",
    "bias": "bias",
    "frequencies": "freqs",
    "phases": "phases",
    "embedding_gain": "emb_gain",
    "last_gain": "out_gain",
}


def table(
    network: Published, options: Options, shapes: Mapping[str, Shape]
) -> dict[str, TensorSource]:
    """Return {path of one of our parameters: where it comes from}.

    Args:
      network: the published network.
      options: our options.
      shapes: the shapes of all of our parameters, by path.
    """
    words, layouts = network.words(options), network.layouts(options)

    def source(path: str, shape: Shape) -> TensorSource:
        *parts, leaf = path.split("/")
        theirs = itertools.product(*(words[part].split(" ") for part in parts), [LEAVES[leaf]])
        usual = KERNEL if leaf == "kernel" and len(shape) > 1 else SAME
        return TensorSource(
            tuple(".".join(filter(None, name)) for name in theirs),
            layouts.get("/".join([*parts[-1:], leaf]), usual),
        )

    return {path: source(path, shape) for path, shape in shapes.items()}


def named(
    names: Mapping[str, str], shapes: Mapping[str, Shape], orders: Mapping[str, Layout]
) -> dict[str, TensorSource]:
    """Return the table of a network whose parameters are named one by one.

    Args:
      names: {path of one of our parameters: the name of its tensor}.
      shapes: the shapes of all of our parameters, by path.
      orders: {the end of our paths: layout}, where that is not the usual one.

    Raises:
      UserError: naming the parameters that have no name, the paths that are no parameters, and
        the orders that are of no path.
    """
    problems = {
        "parameters without a name": [path for path in shapes if path not in names],
        "paths that are no parameters": [path for path in names if path not in shapes],
        "orders of no path": [
            end for end in orders if not any(f"/{path}".endswith(f"/{end}") for path in shapes)
        ],
    }
    listed = "; ".join(f"{what}: {', '.join(paths)}" for what, paths in problems.items() if paths)
    if listed:
        raise UserError(f"the names are not those of the parameters of the network; {listed}")

    def layout(path: str, shape: Shape) -> Layout:
        own = [order for end, order in orders.items() if f"/{path}".endswith(f"/{end}")]
        usual = KERNEL if path.endswith("/kernel") and len(shape) > 1 else SAME
        return own[0] if own else usual

    return {path: TensorSource((names[path],), layout(path, shapes[path])) for path in shapes}


def flat(params: Any) -> dict[str, Any]:
    """Flatten a tree of parameters to {path: leaf}, in the order of its leaves.

    Args:
      params: nested dictionaries, whose keys become the parts of a path such as 'conv/kernel'.
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unstacked(params: Flat) -> dict[str, np.ndarray]:
    """Split the stacked parameters of `scan_blocks` into those of single blocks.

    Args:
      params: flat parameters. Those under 'blocks/' have the blocks as their first axis and become
        'block_0/...', 'block_1/...' and so on; the others stay as they are.
    """
    return {
        re.sub("^blocks/", f"block_{i}/", path): part
        for path, leaf in params.items()
        for i, part in (enumerate(leaf) if path.startswith("blocks/") else [(0, leaf)])
    }


def to_theirs(table: Mapping[str, TensorSource], params: Flat) -> dict[str, np.ndarray]:
    """Convert our flat parameters to their tensors, as views where that is possible.

    Args:
      table: for each of our paths, the tensors that it consists of.
      params: our flat parameters, one for each path of the table.

    Returns:
      {name of their tensor: array}.
    """
    return dict(_parts(table, params))


def _parts(table: Mapping[str, TensorSource], params: Flat) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name of their tensor, array) of each parameter; several may be of one tensor."""
    for path, source in table.items():
        for name, part in zip(source.names, _split(params[path], len(source.names))):
            yield name, source.layout.to_theirs(part)


def to_ours(
    table: Mapping[str, TensorSource], tensors: Flat, shapes: Mapping[str, Shape]
) -> dict[str, np.ndarray]:
    """Convert their tensors to our flat parameters.

    Args:
      table: the table of the network.
      tensors: their tensors by name.
      shapes: the shapes of all of our parameters, by path.

    Returns:
      {path: float32 array}.

    Raises:
      UserError: with the names of all tensors that do not fit, and for tensors that do not consist
        of finite floating-point numbers.
    """
    # arrays that have a shape and take no memory
    blank = {path: np.broadcast_to(np.int8(0), shape) for path, shape in shapes.items()}
    _fit(
        [(name, a.shape) for name, a in _parts(table, blank)],
        {name: a.shape for name, a in tensors.items()},
    )

    def param(source: TensorSource) -> np.ndarray:
        parts = [source.layout.to_ours(_numbers(name, tensors[name])) for name in source.names]
        return np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]

    return {path: param(source) for path, source in table.items()}


def _split(param: np.ndarray, count: int) -> list[np.ndarray]:
    """Split the last axis into equal parts; a scalar is one part."""
    return np.split(param, count, axis=-1) if count > 1 else [param]


def _numbers(name: str, tensor: np.ndarray) -> np.ndarray:
    """Return a tensor of weights as float32; UserError unless they are finite floats."""
    if tensor.dtype.kind not in "fV":  # bfloat16 is of kind V
        raise UserError(
            f"the tensor {name} is of type {tensor.dtype}; weights must be floating-point numbers"
        )
    with np.errstate(over="ignore"):  # of float64 values, which are found below
        found = np.asarray(tensor, np.float32)
    bad = int(found.size - np.isfinite(found).sum())
    if bad:
        raise UserError(
            f"the tensor {name} has {bad} of {found.size} values that are not finite; "
            "the file is damaged, download it again"
        )
    return found


def _fit(wanted: Sequence[tuple[str, Shape]], found: Mapping[str, Shape]) -> None:
    """Raise UserError unless the tensors have these names and shapes."""
    names = dict(wanted)
    problems = {
        "missing": [name for name in names if name not in found],
        "left over": [name for name in found if name not in names],
        "of another shape": [
            f"{name} {list(found[name])} for {list(shape)}"
            for name, shape in wanted
            if found.get(name, shape) != shape
        ],
    }
    listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
    if listed:
        raise UserError(
            f"the tensors are not those of the network that their config describes; {listed}"
        )
