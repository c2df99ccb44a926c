"""The runs that test_parallel.py compares, as a program: they need eight devices.

`python tests/training/topologies.py FOLDER` runs on eight devices of one process;
`python tests/training/topologies.py FOLDER PORT INDEX` is one of two processes with four devices
each (the test sets XLA_FLAGS). A small hand-made network covers all that a step computes; a U-Net
with attention and a DiT cover the placement of their parameters, sampling and restoring.
"""

from __future__ import annotations

import contextlib
import json
import sys
import zlib
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, digits
from diffusion_jax.assembly import sampling, trainer
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation import generate
from diffusion_jax.models import magnitude
from diffusion_jax.training import (
    checkpoint,
    distributed,
    ema,
    loop,
    optimizer,
    placement,
    restoring,
    sharding,
    state,
    step,
)

BATCH, STEPS = 32, 4


AVERAGES = ema.halflives((100,))


TX, RATE = optimizer.make_optimizer("sgd", learning_rate=0.3, total_steps=10, warmup=2)


WAYS = {  # name -> (entry, number of devices, accumulate, steps per call)
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


def constrain(params):
    """Forced weight normalization of one kernel, as for EDM2's network."""
    kernel = magnitude.unit_kernel(params["in"]["kernel"])
    return params | {"in": params["in"] | {"kernel": kernel}}


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
    entry, devices, accumulate, per_call = WAYS[way]
    runner = sharding.runner(entry, devices=jax.devices()[:devices])
    assert runner.devices == devices
    chex.clear_trace_counter()
    one = step.make_train_step(
        loss_fn,
        TX,
        AVERAGES,
        schedule=RATE,
        axis_name=runner.axis_name,
        accumulate=accumulate,
        forensics=True,
        constrain=constrain,
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
            with contextlib.closing(checkpoint.Checkpointer(folder / "checkpoints")) as checkpoints:
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


NETWORKS = {  # (the middle of a U-Net has attention whatever `attention` says)
    "unet": {
        "name": "unet.UNet",
        "width": 8,
        "multipliers": (1,),
        "blocks": 1,
        "attention": (),
        "head_width": 4,
    },
    # a gated MLP of 64 hidden units
    "dit": dict(name="dit.DiT", width=16, depth=1, heads=4, mlp_ratio=6.0, rms_norm=True)
    | dict(qk_norm="rms", rope=True, swiglu=True, registers=2),
}


TOPOLOGIES = {  # name -> (entry, devices, mesh)
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


STATE_FROM = (
    64  # elements: with so small networks, placement.FSDP_FROM would leave everything whole
)


class Ready:
    """A network on a topology: its steps, from a state whose every parameter matters (at init whole
    blocks give zero).
    """

    def __init__(self, network, entry, devices, mesh):
        config = digits.get_config("vp")
        config.model = base.network(**NETWORKS[network])
        config.parallel, config.data.batch_size, config.sampler.nfe = entry, BATCH, 4
        config.mesh.update(mesh)
        config.optimizer.update(name="sgd", learning_rate=0.2, schedule="constant", warmup=0)
        config.optimizer.update(b1=None, b2=None, weight_decay=None)  # which SGD has not
        self.experiment = assemble(config, (8, 8, 1), 10)
        self.parts = trainer.training(self.experiment, jax.devices()[:devices])
        self.runner = self.parts.runner

    def begin(self):
        """The same on every topology, and quickly compiled: each leaf's numbers come from the host,
        by its path.
        """
        shapes = jax.eval_shape(self.parts.init, jax.random.key(0))

        def value(path, x):
            draw = np.random.default_rng(zlib.crc32(placement.path_name(path).encode()))
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
        draw = sampling.sample_with(
            self.experiment, params, sampling.method(self.experiment), self.runner.mesh
        )
        return draw(
            generate.seeds_to_keys(range(IMAGES)),
            self.experiment.conditions.of_labels(np.arange(IMAGES)),
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
            placement.path_name(path): sharding.fetch(x)
            for path, x in jax.tree_util.tree_leaves_with_path(tree)
        }

    def shards(self, now):
        """The shapes of what the first device holds."""
        leaves = jax.tree_util.tree_leaves_with_path((now.params, now.ema))
        return {placement.path_name(path): x.addressable_shards[0].data.shape for path, x in leaves}


def eight(folder):
    """Every network on every topology of one process; and a DiT that moves from eight devices to
    four and to one.
    """
    placement.FSDP_FROM = STATE_FROM
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
            now = restoring.restore(folder / "elastic", this.template()).state
        now, _ = this.advance(now, number - 2, 2)
        with contextlib.closing(
            checkpoint.Checkpointer(folder / "elastic", restored_step=number - 2)
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
    placement.FSDP_FROM = STATE_FROM
    seen = {"devices": (len(jax.devices()), len(jax.local_devices()))}
    for network in TRIED:
        this = Ready(network, "jit", 8, {"fsdp": 2, "tensor": 2})
        now, numbers = this.advance(this.begin(), 0, STEPS)
        results = this.results(now, numbers)  # by both: what is sharded is gathered
        if distributed.first():
            np.savez(folder / f"{network}, {TWO}.npz", **results)
        seen |= {network: this.shards(now)}
        if network == "dit":
            now = restoring.restore(folder / "elastic", this.template()).state
            now, numbers = this.advance(now, 6, 2)
            with contextlib.closing(
                checkpoint.Checkpointer(folder / "elastic", restored_step=6)
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


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
        eight(Path(sys.argv[1]))
    else:
        two(Path(sys.argv[1]), *map(int, sys.argv[2:]))
