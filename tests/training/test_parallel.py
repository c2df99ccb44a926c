"""Results do not depend on the topology.

One device, a mesh of eight, fsdp, tensor, pmap and two processes of four devices agree to float32
rounding, by SGD, which hides nothing; and what one saved, another resumes from.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from diffusion_jax.training import restoring, sharding
from tests.training import sharded_edm2, topologies
from tests.training.topologies import (
    STEPS,
    TRIED,
    TWO,
    WAYS,
    init,
)


def program(devices, *args, file=topologies.__file__):
    """A file as a program, with so many devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    here = str(Path(__file__).parents[2])
    environ = os.environ | {
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "PYTHONWARNINGS": "error",
        "PYTHONPATH": here,
    }
    line = [sys.executable, file, *map(str, args)]
    return subprocess.Popen(
        line, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eight")
    alone = program(8, folder)
    said, _ = alone.communicate()
    assert alone.returncode == 0, said
    return json.loads((folder / "answer.json").read_text()) | {"folder": folder}


@pytest.fixture(scope="module")
def both(answer):
    """What each of two processes saw; they resume where the eight devices of one process were."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [program(4, answer["folder"], port, index) for index in range(2)]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return [json.loads((answer["folder"] / f"two.{index}.json").read_text()) for index in range(2)]


def differences(folder, name, reference):
    """The largest, relative to 1 + |x|, over all that two runs left but the images; and that of the
    images.
    """
    with np.load(folder / f"{name}.npz") as ours, np.load(folder / f"{reference}.npz") as theirs:
        assert (
            ours.keys() == theirs.keys()
            and {"images", "metrics/0/loss", "params/last/kernel"} <= ours.keys()
        )
        found = {
            key: float(np.nanmax(np.abs(ours[key] - theirs[key]) / (1 + np.abs(theirs[key]))))
            for key in ours
        }
        return max(value for key, value in found.items() if key != "images"), found["images"]


@pytest.mark.parametrize("way", [way for way in WAYS if way != "one device"])
def test_every_way_is_the_step_of_one_device(answer, way):
    """Parameters, EMA, momentum-free SGD state, key, every metric, the loss by level and the
    held-out loss, after four steps.
    """
    assert answer["devices"] == 8 and answer["spread"] == [8]
    assert answer["differences"][way] < 2e-6 < 1e-2 < answer["moved"]


@pytest.mark.parametrize("way", WAYS)
def test_the_first_nonfinite_example_is_found_on_any_device(answer, way):
    """Examples 21 to 24 of the global batch are poisoned, on two devices of eight; the step after
    resumes from the good state.
    """
    report = answer["reports"][way]
    assert report["flag"] == [True, False] and report["example"] == [21, -1]
    np.testing.assert_allclose(report["level"][0], answer["level"], rtol=1e-5)


def test_a_batch_that_does_not_divide_is_refused(answer):
    assert answer["refused"].startswith("batch size 12 is not divisible by the 8 devices")


def test_a_checkpoint_of_eight_devices_restores_on_one(answer):
    runner = sharding.runner(devices=jax.devices()[:1])
    restored = restoring.restore(
        answer["folder"] / "checkpoints", runner.template(init, jax.random.key(0))
    )
    with np.load(answer["folder"] / "one.npz") as saved:
        one = list(saved.values())
    assert restored.step == STEPS and {
        len(x.sharding.device_set) for x in jax.tree.leaves(restored.state)
    } == {1}
    chex.assert_trees_all_close(
        jax.tree.leaves(jax.device_get(restored.state.params)), one, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    "network, topology",
    [
        pytest.param(n, t, marks=[pytest.mark.long] if t == TWO else [])
        for n, names in TRIED.items()
        for t in names
        if t != "one device"
    ],
)
def test_every_topology_trains_and_samples_as_one_device_does(answer, request, network, topology):
    """Parameters, EMA, every metric of every step, and the images of the same seeds, after four
    steps.

    Measured: 2e-7, and 4e-6 for the images, whose first step divides by a small alpha.
    """
    if topology == TWO:
        request.getfixturevalue("both")
    numbers, images = differences(
        answer["folder"], f"{network}, {topology}", f"{network}, one device"
    )
    assert numbers < 2e-6 and images < 5e-5
    with np.load(answer["folder"] / f"{network}, one device.npz") as one:
        assert one["metrics/3/loss"] < 0.95 * one["metrics/0/loss"] and one["images"].std() > 0.3


@pytest.mark.long
def test_forced_weight_normalization_is_the_same_over_shards(tmp_path):
    """EDM2's network: each kernel is normalized over an axis that fsdp or tensor may split."""
    run = program(8, tmp_path, file=sharded_edm2.__file__)
    said, _ = run.communicate()
    assert run.returncode == 0, said
    sharded = "edm2, 2 data x 2 fsdp x 2 tensor"
    numbers, images = differences(tmp_path, sharded, "edm2, one device")
    assert numbers < 1e-5 and images < 5e-5
    shards = json.loads((tmp_path / f"{sharded}.json").read_text())
    # inputs over fsdp and outputs over tensor, and the other way round
    assert shards["0/down_0_0/conv_1/kernel"] == [3, 3, 8, 8]
    assert shards["0/down_0_0/conv_2/kernel"] == [3, 3, 8, 8]
    with np.load(tmp_path / f"{sharded}.npz") as saved:
        kernel = saved["params/down_0_0/conv_1/kernel"]
    # normalized, but for the last update
    np.testing.assert_allclose(np.mean(np.square(kernel), axis=(0, 1, 2)), 1, atol=0.1)


@pytest.mark.long
def test_elastic_restore_goes_on_to_the_same_numbers(answer, both):
    """Two steps each on 8 devices, on 4, on one, on two processes, every time from a checkpoint:
    the run of one device.
    """
    numbers, images = differences(answer["folder"], "elastic", "straight")
    assert numbers < 2e-6 and images < 5e-5
    assert restoring.latest_step(answer["folder"] / "elastic") == 8


@pytest.mark.long
def test_parameters_and_averages_are_in_shards(answer, both):
    """What a device holds, under fsdp 2 and tensor 2, by hand."""
    shards = json.loads((answer["folder"] / "shards.json").read_text())
    for unet in (shards["unet, 2 data x 2 fsdp x 2 tensor"], both[1]["unet"]):
        for tree in ("0/", "1/5k/"):
            assert unet[tree + "down_0_0/conv_1/kernel"] == [
                3,
                3,
                4,
                4,
            ]  # fsdp on inputs, tensor on outputs
            assert unet[tree + "down_0_0/conv_1/bias"] == [4]
            assert unet[tree + "down_0_0/conv_2/kernel"] == [
                3,
                3,
                4,
                4,
            ]  # tensor on inputs, fsdp on outputs
            assert unet[tree + "down_0_0/conv_2/bias"] == [8]
            assert unet[tree + "middle_attention/qkv/kernel"] == [8, 12]  # fsdp alone
            assert unet[tree + "middle_attention/project/kernel"] == [4, 4]
    dit = both[0]["dit"]
    assert dit["0/block_0/qkv/kernel"] == [8, 24] and dit["0/block_0/qkv/bias"] == [24]
    assert dit["0/block_0/mlp_in/kernel"] == [8, 32] and dit["0/block_0/mlp_out/kernel"] == [32, 8]
    assert dit["0/block_0/mlp_gate/kernel"] == [8, 32]
    assert dit["0/block_0/modulation/kernel"] == [8, 48] and dit["0/block_0/modulation/bias"] == [
        48
    ]
    assert shards["unet, 4 data x 2 fsdp"]["0/down_0_0/conv_1/kernel"] in (
        [3, 3, 4, 8],
        [3, 3, 8, 4],
    )
    assert shards["unet, 8 data"]["0/down_0_0/conv_1/kernel"] == [3, 3, 8, 8]


@pytest.mark.long
def test_processes_feed_rows_that_do_not_overlap_and_agree(both):
    assert [seen["devices"] for seen in both] == [[8, 4], [8, 4]]
    for mesh in ({}, {"fsdp": 4}, {"tensor": 4}):
        first, second = (seen["rows"][str(mesh)] for seen in both)
        assert sorted(first + second) == list(range(16)) and len(first) == 8
    assert all(
        seen["rows"][str({"tensor": 8})] == list(range(16)) for seen in both
    )  # one example, all devices
    assert all(
        seen["agreed"] == [0, 0, 3, 0] and seen["anywhere"] == [True, False] for seen in both
    )
