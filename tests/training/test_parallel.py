"""Results do not depend on the topology: one device, a mesh of eight, fsdp, tensor, pmap, two
processes of four devices. All agree to float32 rounding, by SGD, which hides nothing; and what one
saved, another goes on from.

The comparison needs eight devices, so it runs in processes of its own: `python
tests/training/test_parallel.py FOLDER` for eight in one, `... FOLDER PORT INDEX` for each of two with four
(XLA_FLAGS set by the test). A small network made by hand tries all that a step computes; a U-Net
with attention and a DiT try the places of their parameters, sampling and restoring.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import zlib
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from configs import base, digits
from diffusion_jax.assembly import conditions, experiment, sampling, trainer
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import generate
from diffusion_jax.training import (
    checkpoint,
    distributed,
    ema,
    loop,
    optimizer,
    sharding,
    state,
    step,
)

BATCH, STEPS = 32, 4
AVERAGES = ema.halflives((100,))
TX, RATE = optimizer.make_optimizer("sgd", learning_rate=0.3, total_steps=10, warmup=2)

WAYS = {  # name -> (door, number of devices, accumulate, steps per call)
    "one device": ("jit", 1, 1, 1),
    "mesh": ("jit", 8, 1, 2),
    "mesh, accumulated": ("jit", 8, 2, 1),
    "pmap, accumulated": ("pmap", 8, 2, 1),
}


def loss_fn(params, batch, keys, now):
    x = batch["image"]
    eps = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
    out = jnp.tanh((x + 0.3 * eps) @ params["in"]["kernel"] + params["in"]["bias"]) @ params["out"]
    return jnp.mean(jnp.square(out - x), axis=-1) / batch["fate"], {"level": 10 * eps[:, 0]}


def init(key):
    a, b = jax.random.split(key)
    params = {
        "in": {"kernel": 0.5 * jax.random.normal(a, (4, 8)), "bias": jnp.zeros(8)},
        "out": 0.5 * jax.random.normal(b, (8, 4)),
    }
    return state.init_state(params, TX, AVERAGES, key)


def batch(number, poison=None):
    fate = np.ones(BATCH, np.float32)
    fate[21:25] = number != poison
    return {
        "image": np.random.default_rng(number).normal(size=(BATCH, 4)).astype(np.float32),
        "fate": fate,
    }


def train(way, begin):
    """From a state on the host: that after STEPS steps, the metrics of each, the evaluation; and
    the report on two steps more, the first of them poisoned.
    """
    door, devices, accumulate, per_call = WAYS[way]
    runner = sharding.runner(door, devices=jax.devices()[:devices])
    assert runner.devices == devices
    chex.clear_trace_counter()
    one = step.make_train_step(
        loss_fn, TX, AVERAGES, schedule=RATE, axis_name=runner.axis_name, accumulate=accumulate
    )
    call = runner.compile(chex.assert_max_traces(step.multi_step(one, per_call), n=1))

    def advance(now, first, steps, poison=None):
        stacked, numbers = loop.stack(lambda k: batch(k, poison), per_call), []
        for number in range(first // per_call, (first + steps) // per_call):
            now, seen = call(now, runner.put_batch(stacked(number), axis=1))
            numbers.append(jax.device_get(seen))
        return now, jax.tree.map(lambda *parts: np.concatenate(parts), *numbers)

    now = runner.init(init, jax.random.key(0)) if way == "mesh" else runner.put_state(begin)
    places = jax.tree.map(lambda x: x.sharding, now)
    now, numbers = advance(now, 0, STEPS)
    assert (
        jax.tree.map(lambda x: x.sharding, now) == places
    )  # or the second call would have been compiled anew
    evaluation = runner.compile_eval(step.make_eval_step(loss_fn, axis_name=runner.axis_name))
    held_out = loop.evaluate(
        evaluation,
        now._replace(params=now.ema["100"]),
        [batch(99)],
        jax.random.key(7),
        put_batch=runner.put_batch,
    )
    _, bad = advance(runner.put_state(now), STEPS, 2, poison=STEPS)
    tree = now._replace(key=jax.random.key_data(now.key))
    return (
        now,
        jax.device_get((tree, numbers, held_out)),
        {k: v for k, v in bad["nonfinite"].items() if k != "layers"},
    )


def main(folder):
    """Write each way's largest difference from one device, leaf by leaf, and what the tests ask
    about the rest.
    """
    results, reports = {}, {}
    begin = jax.jit(init)(jax.random.key(0))
    for way in WAYS:
        now, results[way], reports[way] = train(way, begin)
        if way == "mesh":
            with contextlib.closing(
                checkpoint.open_checkpoints(folder / "checkpoints")
            ) as checkpoints:
                checkpoints.save(STEPS, now)
            spread = {len(x.sharding.device_set) for x in jax.tree.leaves(now.params)}

    def difference(a, b):
        return float(np.max(np.abs(np.float64(a) - np.float64(b)) / (1 + np.abs(np.float64(b)))))

    def finite(result):
        return (
            result[0],
            {k: v for k, v in result[1].items() if k != "nonfinite"},
            result[2],
        )

    def plain(result):
        return [x for x in jax.tree.leaves(finite(result)) if x is not None]

    answer = {
        "devices": len(jax.devices()),
        "spread": sorted(spread),
        "differences": {
            way: max(map(difference, plain(r), plain(results["one device"])))
            for way, r in results.items()
        },
        "moved": difference(results["mesh"][0].params["out"], begin.params["out"]),
        "reports": {
            way: {key: np.asarray(value).tolist() for key, value in report.items()}
            for way, report in reports.items()
        },
        "level": 10 * float(jax.jit(noise_of_first_poisoned)()),
    }
    with pytest.raises(UserError) as refused:
        sharding.runner().put_batch({"image": np.zeros((2, 12, 4))}, axis=1)
    answer["refused"] = str(refused.value)
    (folder / "answer.json").write_text(json.dumps(answer))
    np.savez(folder / "one.npz", *jax.tree.leaves(results["one device"][0].params))


# ---- real networks
NETWORKS = {  # (the middle of a U-Net has attention whatever `attention` says)
    "unet": {
        "name": "unet.UNet",
        "width": 8,
        "multipliers": (1,),
        "blocks": 1,
        "attention": (),
        "head_width": 4,
    },
    "dit": {"name": "dit.DiT", "width": 16, "depth": 1, "heads": 4},
}

TOPOLOGIES = {  # name -> (door, devices, mesh)
    "one device": ("jit", 1, {}),
    "8 data": ("jit", 8, {}),
    "4 data x 2 fsdp": ("jit", 8, {"fsdp": 2}),
    "2 data x 2 fsdp x 2 tensor": ("jit", 8, {"fsdp": 2, "tensor": 2}),
    "pmap": ("pmap", 8, {}),
}

TWO = "2 processes: 2 data x 2 fsdp x 2 tensor"

TRIED = {
    "unet": [*TOPOLOGIES, TWO],
    "dit": ["one device", "2 data x 2 fsdp x 2 tensor", TWO],
}

ELASTIC = {  # of the DiT, which compiles faster: saved at step -> where it was
    2: ("2 data x 2 fsdp x 2 tensor", 8, {"fsdp": 2, "tensor": 2}),
    4: ("4 fsdp", 4, {"fsdp": 4}),
    6: ("one device", 1, {}),
}

IMAGES = 5  # which no number of devices here divides
STATE_FROM = 64  # elements: with so small networks, sharding.FSDP_FROM would leave everything whole


class Ready:
    """A network on a topology: its steps, from a state whose every parameter matters (at init whole
    blocks give zero).
    """

    def __init__(self, network, door, devices, mesh):
        config = digits.get_config("vp")
        config.model = base.network(**NETWORKS[network])
        config.parallel, config.data.batch_size, config.sampler.nfe = door, BATCH, 4
        config.mesh.update(mesh)
        config.optimizer.update(name="sgd", learning_rate=0.2, schedule="constant", warmup=0)
        config.optimizer.update(b1=None, b2=None, weight_decay=None)  # which SGD has not
        self.built = experiment.assemble(config, (8, 8, 1), 10)
        self.parts = trainer.training(self.built, jax.devices()[:devices])
        self.runner = self.parts.runner

    def begin(self):
        """The same on every topology, and quickly compiled: each leaf's numbers come from the host,
        by its path.
        """
        shapes = jax.eval_shape(self.parts.init, jax.random.key(0))

        def value(path, x):
            draw = np.random.default_rng(zlib.crc32(sharding.path_name(path).encode()))
            return draw.normal(scale=0.2, size=x.shape).astype(x.dtype)

        params = jax.tree_util.tree_map_with_path(value, shapes.params)
        rest = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), (shapes.step, shapes.opt_state))
        averages = {name: params for name in shapes.ema}

        def make(key):
            return jax.tree.map(
                jnp.asarray, state.TrainState(rest[0], params, rest[1], averages, key)
            )

        return self.runner.init(make, jax.random.key(0))

    def template(self):
        return self.runner.template(self.parts.init, jax.random.key(0))

    def batch(self, number):
        """This process's rows of the batch."""
        draw = np.random.default_rng(number)
        image, label = (
            draw.uniform(-1, 1, (BATCH, 8, 8, 1)).astype(np.float32),
            draw.integers(0, 10, BATCH, np.int32),
        )
        return jax.tree.map(lambda x: x[self.runner.rows(BATCH)], {"image": image, "label": label})

    def advance(self, now, first, steps):
        numbers = []
        for number in range(first, first + steps):
            now, seen = self.parts.step(
                now,
                self.runner.put_batch(jax.tree.map(lambda x: x[None], self.batch(number)), axis=1),
            )
            numbers.append(seen)
        return now, numbers

    def images(self, params):
        draw = sampling.sample_with(self.built, params, sampling.plan(self.built), self.runner.mesh)
        return draw(
            generate.seeds_to_keys(range(IMAGES)),
            conditions.cond_for(self.built, np.arange(IMAGES)),
        )

    def results(self, now, numbers):
        """On the host, by name."""
        tree = {
            "params": now.params,
            "ema": now.ema,
            "step": now.step,
            "images": self.images(now.params),
        }
        tree |= {"metrics": [{**seen, "nonfinite": ()} for seen in numbers]}
        return {
            sharding.path_name(path): sharding.fetch(x)
            for path, x in jax.tree_util.tree_leaves_with_path(tree)
        }

    def shards(self, now):
        """The shapes of what the first device holds."""
        leaves = jax.tree_util.tree_leaves_with_path((now.params, now.ema))
        return {sharding.path_name(path): x.addressable_shards[0].data.shape for path, x in leaves}


def eight(folder):
    """Every network on every topology of one process; and a DiT that moves from eight devices to
    four and to one.
    """
    sharding.FSDP_FROM = STATE_FROM
    ready, shards = {}, {}
    for network, topologies in TRIED.items():
        for name in [name for name in topologies if name != TWO]:
            ready[network, name] = this = Ready(network, *TOPOLOGIES[name])
            now, numbers = this.advance(this.begin(), 0, STEPS)
            shards[f"{network}, {name}"] = this.shards(now)
            np.savez(folder / f"{network}, {name}.npz", **this.results(now, numbers))
    now = None
    for number, (name, devices, mesh) in ELASTIC.items():
        this = ready.get(("dit", name)) or Ready("dit", "jit", devices, mesh)
        if now is None:
            now = this.begin()
        else:
            now = checkpoint.restore(folder / "elastic", this.template()).state
        now, _ = this.advance(now, number - 2, 2)
        with contextlib.closing(
            checkpoint.open_checkpoints(folder / "elastic", after=number - 2)
        ) as checkpoints:
            checkpoints.save(number, now)
    this = ready["dit", "one device"]
    now, numbers = this.advance(this.begin(), 0, 8)
    np.savez(folder / "straight.npz", **this.results(now, numbers[6:]))
    (folder / "shards.json").write_text(json.dumps(shards))


def two(folder, port, index):
    """One of two processes: every network from the start; and the DiT that eight, four and one
    device had before.
    """
    distributed.initialize(f"127.0.0.1:{port}", 2, index)
    sharding.FSDP_FROM = STATE_FROM
    seen = {"devices": (len(jax.devices()), len(jax.local_devices()))}
    for network in NETWORKS:
        this = Ready(network, "jit", 8, {"fsdp": 2, "tensor": 2})
        now, numbers = this.advance(this.begin(), 0, STEPS)
        results = this.results(now, numbers)  # by both: what is sharded is gathered
        if distributed.first():
            np.savez(folder / f"{network}, {TWO}.npz", **results)
        seen |= {network: this.shards(now)}
        if network == "dit":
            now = checkpoint.restore(folder / "elastic", this.template()).state
            now, numbers = this.advance(now, 6, 2)
            with contextlib.closing(
                checkpoint.open_checkpoints(folder / "elastic", after=6)
            ) as checkpoints:
                checkpoints.save(8, now)
            results = this.results(now, numbers)
            if distributed.first():
                np.savez(folder / "elastic.npz", **results)
    meshes = ({}, {"fsdp": 4}, {"tensor": 4}, {"tensor": 8})
    seen["rows"] = {str(mesh): sharding.runner(mesh=mesh).rows(16).tolist() for mesh in meshes}
    agree = distributed.agreement()
    seen["agreed"] = [agree(number) for number in (0, 3 * index, 0, 0)]
    seen["anywhere"] = [distributed.anywhere(index == 1), distributed.anywhere(False)]
    (folder / f"two.{index}.json").write_text(json.dumps(seen))


def noise_of_first_poisoned():
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), STEPS), 21)
    return jax.random.normal(key, (4,))[0]


def program(devices, *args):
    """This file as a program, with so many devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    here = str(Path(__file__).parents[2])
    environ = os.environ | {
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "PYTHONWARNINGS": "error",
        "PYTHONPATH": here,
    }
    line = [sys.executable, __file__, *map(str, args)]
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
    """What each of two processes saw; they go on where the eight devices of one process were."""
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
    goes on from the good state.
    """
    report = answer["reports"][way]
    assert report["flag"] == [True, False] and report["example"] == [21, -1]
    np.testing.assert_allclose(report["level"][0], answer["level"], rtol=1e-5)


def test_a_batch_that_does_not_divide_is_refused(answer):
    assert answer["refused"].startswith("batch size 12 is not divisible by the 8 devices")


def test_a_checkpoint_of_eight_devices_restores_on_one(answer):
    runner = sharding.runner(devices=jax.devices()[:1])
    restored = checkpoint.restore(
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


# ---- the matrix
@pytest.mark.parametrize(
    "network, topology", [(n, t) for n, names in TRIED.items() for t in names if t != "one device"]
)
def test_every_topology_trains_and_samples_as_one_device_does(answer, both, network, topology):
    """Parameters, EMA, every metric of every step, and the images of the same seeds, after four
    steps.

    Measured: 2e-7, and 4e-6 for the images, whose first step divides by a small alpha.
    """
    numbers, images = differences(
        answer["folder"], f"{network}, {topology}", f"{network}, one device"
    )
    assert numbers < 2e-6 and images < 5e-5
    with np.load(answer["folder"] / f"{network}, one device.npz") as one:
        assert one["metrics/3/loss"] < 0.95 * one["metrics/0/loss"] and one["images"].std() > 0.3


def test_elastic_restore_goes_on_to_the_same_numbers(answer, both):
    """Two steps each on 8 devices, on 4, on one, on two processes, every time from a checkpoint:
    the run of one device.
    """
    numbers, images = differences(answer["folder"], "elastic", "straight")
    assert numbers < 2e-6 and images < 5e-5
    assert checkpoint.latest_step(answer["folder"] / "elastic") == 8


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
    assert dit["0/block_0/modulation/kernel"] == [8, 48] and dit["0/block_0/modulation/bias"] == [
        48
    ]
    assert shards["unet, 4 data x 2 fsdp"]["0/down_0_0/conv_1/kernel"] in (
        [3, 3, 4, 8],
        [3, 3, 8, 4],
    )
    assert shards["unet, 8 data"]["0/down_0_0/conv_1/kernel"] == [3, 3, 8, 8]


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


@pytest.mark.parametrize("name", ["adamw", "contrib.muon", "adafactor"])
def test_averages_and_optimizer_state_lie_where_their_parameter_lies(monkeypatch, name):
    """By shapes alone, on a mesh that is not here: 4 x 2 x 2."""
    monkeypatch.setattr(sharding, "FSDP_FROM", STATE_FROM)
    mesh = jax.sharding.AbstractMesh((4, 2, 2), sharding.AXES)
    this = Ready("dit", "jit", 1, {})
    tx, _ = optimizer.make_optimizer(name, learning_rate=1e-3, total_steps=10)
    averages = ema.halflives((5_000, 50_000))
    shapes = jax.eval_shape(
        lambda key: state.init_state(this.parts.init(key).params, tx, averages, key),
        jax.random.key(0),
    )
    places = {
        sharding.path_name(path): sharding.place(sharding.path_name(path), x.shape, mesh)
        for path, x in jax.tree_util.tree_leaves_with_path(shapes)
    }
    size = {
        sharding.path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(shapes)
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
    assert sharding.place("params/x/kernel", (300, 500), mesh) == PartitionSpec("fsdp")
    assert sharding.place("params/x/kernel", (500, 500), mesh) == PartitionSpec()
    assert sharding.place("params/conv_1/kernel", (3, 3, 100, 301), mesh) == PartitionSpec("fsdp")
    assert sharding.place("params/x/kernel", (3, 3), mesh) == PartitionSpec()  # small


def test_stacked_layers_lie_as_single_ones_do():
    mesh = jax.sharding.AbstractMesh((1, 4, 4), sharding.AXES)
    assert sharding.place("params/block_3/qkv/kernel", (400, 1200), mesh) == PartitionSpec(
        "fsdp", "tensor"
    )
    assert sharding.place("params/blocks/qkv/kernel", (800, 400, 1200), mesh) == PartitionSpec(
        None, "fsdp", "tensor"
    )
    assert sharding.place("params/blocks/qkv/bias", (800, 1200), mesh) == PartitionSpec(
        None, "tensor"
    )
    assert sharding.place("params/blocks/mlp_out/kernel", (8, 1600, 400), mesh) == PartitionSpec(
        None, "tensor", "fsdp"
    )


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
        eight(Path(sys.argv[1]))
    else:
        two(Path(sys.argv[1]), *map(int, sys.argv[2:]))
