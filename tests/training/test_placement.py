"""Where the rules place parameters, averages and optimizer state on a mesh, by shapes alone."""

from __future__ import annotations

import jax
import pytest
from jax.sharding import PartitionSpec

from diffusion_jax.training import ema, optimizer, placement, sharding, state
from tests.training.topologies import STATE_FROM, Ready


@pytest.mark.parametrize("name", ["adamw", "contrib.muon", "adafactor"])
def test_averages_and_optimizer_state_lie_where_their_parameter_lies(monkeypatch, name):
    """The test needs shapes alone, and no devices: the mesh is 4 x 2 x 2."""
    monkeypatch.setattr(placement, "FSDP_FROM", STATE_FROM)
    mesh = jax.sharding.AbstractMesh((4, 2, 2), sharding.AXES)
    this = Ready("dit", "jit", 1, {})
    tx, _ = optimizer.make_optimizer(name, learning_rate=1e-3, total_steps=10)
    averages = ema.halflives((5_000, 50_000))
    shapes = jax.eval_shape(
        lambda key: state.init_state(this.parts.init(key).params, tx, averages, key),
        jax.random.key(0),
    )
    places = {
        placement.path_name(path): placement.place(placement.path_name(path), x.shape, mesh)
        for path, x in jax.tree_util.tree_leaves_with_path(shapes)
    }
    size = {
        placement.path_name(path): x.shape
        for path, x in jax.tree_util.tree_leaves_with_path(shapes)
    }
    params = {
        path.removeprefix("params/"): where
        for path, where in places.items()
        if path.startswith("params/")
    }
    assert params["block_0/mlp_in/kernel"] == PartitionSpec("fsdp", "tensor")
    followed = 0
    for path, where in places.items():
        own = next(
            (p for p in params if path.endswith("/" + p) and size[path] == size["params/" + p]),
            None,
        )
        followed += own is not None and where == params[own]
        assert own is None or where == params[own], path
    assert followed >= 3 * len(params)  # parameters, two averages, and the moments
    assert places["step"] == places["key"] == PartitionSpec()


def test_an_axis_that_does_not_divide_is_whole():
    mesh = jax.sharding.AbstractMesh((1, 3, 2), sharding.AXES)
    assert placement.place("params/x/kernel", (300, 500), mesh) == PartitionSpec("fsdp")
    assert placement.place("params/x/kernel", (500, 500), mesh) == PartitionSpec()
    assert placement.place("params/conv_1/kernel", (3, 3, 100, 301), mesh) == PartitionSpec("fsdp")
    assert placement.place("params/x/kernel", (3, 3), mesh) == PartitionSpec()  # small


def test_both_streams_of_a_joint_block_and_both_halves_of_a_gated_mlp_are_split():
    """What a device holds of queries, keys and values are whole heads, and of hidden units the same
    ones of gate and value.
    """
    mesh = jax.sharding.AbstractMesh((1, 1, 4), sharding.AXES)
    by_output, by_input = PartitionSpec(None, "tensor"), PartitionSpec("tensor")
    for stream in ("", "image_", "text_"):
        for layer, where in (
            ("qkv", by_output),
            ("mlp_in", by_output),
            ("project", by_input),
            ("mlp_out", by_input),
            ("modulation", by_input),
        ):
            path = f"params/block_0/{stream}{layer}/kernel"
            assert placement.place(path, (64, 64), mesh) == where, path
    assert placement.place("params/block_0/mlp_gate/kernel", (64, 64), mesh) == by_output
    for layer, where in (("query", by_output), ("key", by_output), ("project", by_input)):
        assert placement.place(f"params/block_0/text/{layer}/kernel", (64, 64), mesh) == where
    for leaf in ("params/registers", "params/block_0/query_norm/scale"):
        assert placement.place(leaf, (64,), mesh) == PartitionSpec()


def test_stacked_layers_lie_as_single_ones_do():
    mesh = jax.sharding.AbstractMesh((1, 4, 4), sharding.AXES)
    assert placement.place("params/block_3/qkv/kernel", (400, 1200), mesh) == PartitionSpec(
        "fsdp", "tensor"
    )
    assert placement.place("params/blocks/qkv/kernel", (800, 400, 1200), mesh) == PartitionSpec(
        None, "fsdp", "tensor"
    )
    assert placement.place("params/blocks/qkv/bias", (800, 1200), mesh) == PartitionSpec(
        None, "tensor"
    )
    assert placement.place("params/blocks/mlp_out/kernel", (8, 1600, 400), mesh) == PartitionSpec(
        None, "tensor", "fsdp"
    )
