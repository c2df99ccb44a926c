"""Where the leaves of a state live on a mesh, by one rule for the path and shape of a leaf."""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Layers, by the end of a path, whose output channels (kernel and bias) or input channels (kernel
# alone) are spread over the axis `tensor`. Of two matrices in a row the first is split by outputs
# and the second by inputs, so that what lies between them, hidden units or whole attention heads,
# never leaves its device, and one sum over the devices ends the pair (Shoeybi et al. 2019,
# Megatron-LM, section 3). `modulation` multiplies every token: split by outputs it would split the
# channels of the tokens too, by inputs it costs one sum of a row per example. The qkv layer of the
# DiT is ordered by head first, so its parts are whole heads. That of the U-Net is ordered by
# (q, k, v) first, where parts would be gathered before and after the attention (B T 3c numbers each
# way): it is whole on `tensor`, each device takes its heads from it, and only `project` is split.
SPLIT_BY_OUTPUT = re.compile(
    r"(^|/)(conv_1|embedding|(image_|text_)?mlp_in|mlp_gate|query|key|value"
    r"|block(_\d+|s)/(image_|image_2_|text_)?qkv)/(kernel|bias)$"
)

SPLIT_BY_INPUT = re.compile(
    r"(^|/)(conv_2|(image_|image_2_|text_)?(project|mlp_out|modulation))/kernel$"
)

# The embedding of noise level and class is small and computed once per example; if it were
# sharded, its results would be sharded too.
WHOLE = re.compile(r"(^|/)condition/")

# Leaves of many layers stacked along a first axis, over which a loop runs: that axis stays whole.
STACKED = re.compile(r"(^|/)blocks/")

# A leaf of fewer elements is whole on every device, because communicating it costs more than the
# memory that sharding would save.
FSDP_FROM = 2**14


def place(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Choose the placement of a leaf on the mesh.

    The axis `tensor` is placed by the end of the path, by the expressions above. The axis `fsdp`
    takes the largest axis of the leaf that is left and divisible, for leaves of at least FSDP_FROM
    elements (Rajbhandari et al. 2020, ZeRO-3). An axis that does not divide, and one that no rule
    names, is whole. An average ('ema/5k/block_0/qkv/kernel') or a moment
    ('opt_state/1/0/mu/block_0/qkv/kernel') of a parameter ends like the parameter's path and has
    its shape, so it lies where the parameter lies.

    Args:
      path: the path of the leaf, such as 'params/block_0/qkv/kernel'.
      shape: its shape.
      mesh: a mesh with the axes data, fsdp and tensor.
    """
    if WHOLE.search(path):
        return PartitionSpec()
    parts: list[str | None] = [None] * len(shape)
    layers = 1 if STACKED.search(path) else 0
    axis = _tensor_axis(path, len(shape), layers)
    if axis is not None and _divides(mesh, "tensor", shape[axis]):
        parts[axis] = "tensor"
    if np.prod(shape) >= FSDP_FROM:
        free = [
            i
            for i in range(layers, len(shape))
            if parts[i] is None and _divides(mesh, "fsdp", shape[i])
        ]
        if free:
            parts[max(free, key=lambda i: shape[i])] = "fsdp"
    # as JAX writes it; otherwise the output of a compiled step would seem to lie elsewhere
    while parts and parts[-1] is None:
        parts.pop()
    return PartitionSpec(*parts)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Return the NamedSharding of every leaf of a tree, by the rule `place`.

    Args:
      tree: arrays, or their shapes.
      mesh: the mesh with the axes data, fsdp and tensor.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, x: NamedSharding(mesh, place(path_name(path), x.shape, mesh)), tree
    )


def placed(shapes: Any, mesh: Mesh) -> Any:
    """Give shapes their shardings, to restore a checkpoint straight into shards.

    Args:
      shapes: a tree of jax.ShapeDtypeStruct.
      mesh: the mesh with the axes data, fsdp and tensor.
    """
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings(shapes, mesh),
    )


def put(tree: Any, mesh: Mesh) -> Any:
    """Place a tree of host arrays on the mesh.

    Args:
      tree: the whole arrays, the same on every process.
      mesh: the mesh with the axes data, fsdp and tensor.
    """
    return jax.tree.map(
        lambda x, sharding: jax.make_array_from_callback(
            x.shape, sharding, lambda index: np.asarray(x)[index]
        ),
        tree,
        shardings(tree, mesh),
    )


def path_name(path: tuple) -> str:
    """Write the path of a leaf as text, such as 'params/Dense_0/kernel'.

    Args:
      path: the keys that jax.tree_util gives for the leaf.
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by their paths as text, in the order of the tree.

    Args:
      tree: any pytree.
    """
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _tensor_axis(path: str, ndim: int, layers: int) -> int | None:
    """The axis of a leaf that is spread over `tensor`; None if it is whole.

    A leaf of another rank, such as the row and column sums of adafactor, is whole.
    """
    if ndim - layers not in {"kernel": (2, 4), "bias": (1,)}.get(path.rpartition("/")[2], ()):
        return None
    if SPLIT_BY_OUTPUT.search(path):
        return ndim - 1
    return ndim - 2 if SPLIT_BY_INPUT.search(path) else None


def _divides(mesh: Mesh, axis: str, size: int) -> bool:
    count = mesh.shape.get(axis, 1)
    return count > 1 and size % count == 0
