"""One step, four ways: one device, a mesh of eight (two steps a call), accumulation, pmap. All agree to float32
rounding, by SGD, which hides nothing.

The comparison needs eight devices, so it runs in a process of its own: `python tests/test_parallel.py FOLDER`
(XLA_FLAGS set by the test).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.training import checkpoint, ema, loop, optimizer, sharding, state, step

BATCH, STEPS = 32, 4
AVERAGES = ema.halflives((100,))
TX, RATE = optimizer.make_optimizer("sgd", learning_rate=0.3, total_steps=10, warmup=2)
WAYS = {  # name -> (door, number of devices, accumulate, steps per call)
    "one device": ("jit", 1, 1, 1),
    "mesh": ("jit", 8, 1, 2),
    "mesh, accumulated": ("jit", 8, 2, 1),
    "pmap, accumulated": ("pmap", 8, 2, 1),
}


def loss_fn(params, batch, keys, train):
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
    return {"image": np.random.default_rng(number).normal(size=(BATCH, 4)).astype(np.float32), "fate": fate}


def train(way, begin):
    """From a state on the host: that after STEPS steps, the metrics of each, the evaluation; and the report on two
    steps more, the first of them poisoned."""
    door, devices, accumulate, per_call = WAYS[way]
    runner = sharding.runner(door, devices=jax.devices()[:devices])
    assert runner.devices == devices
    chex.clear_trace_counter()
    one = step.make_train_step(loss_fn, TX, AVERAGES, schedule=RATE, axis_name=runner.axis_name, accumulate=accumulate)
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
    assert jax.tree.map(lambda x: x.sharding, now) == places  # or the second call would have been compiled anew
    evaluation = runner.compile_eval(step.make_eval_step(loss_fn, axis_name=runner.axis_name))
    held_out = loop.evaluate(evaluation, now.ema["100"], [batch(99)], jax.random.key(7), put_batch=runner.put_batch)
    _, bad = advance(runner.put_state(now), STEPS, 2, poison=STEPS)
    tree = now._replace(key=jax.random.key_data(now.key))
    return now, jax.device_get((tree, numbers, held_out)), {k: v for k, v in bad["nonfinite"].items() if k != "layers"}


def main(folder):
    """Write each way's largest difference from one device, leaf by leaf, and what the tests ask about the rest."""
    results, reports = {}, {}
    begin = jax.jit(init)(jax.random.key(0))
    for way in WAYS:
        now, results[way], reports[way] = train(way, begin)
        if way == "mesh":
            with contextlib.closing(checkpoint.open_checkpoints(folder / "checkpoints")) as checkpoints:
                checkpoints.save(STEPS, now)
            spread = {len(x.sharding.device_set) for x in jax.tree.leaves(now.params)}
    difference = lambda a, b: float(np.max(np.abs(np.float64(a) - np.float64(b)) / (1 + np.abs(np.float64(b)))))  # noqa: E731
    finite = lambda result: (result[0], {k: v for k, v in result[1].items() if k != "nonfinite"}, result[2])  # noqa: E731
    plain = lambda result: [x for x in jax.tree.leaves(finite(result)) if x is not None]  # noqa: E731
    answer = {
        "devices": len(jax.devices()),
        "spread": sorted(spread),
        "differences": {
            way: max(map(difference, plain(r), plain(results["one device"]))) for way, r in results.items()
        },
        "moved": difference(results["mesh"][0].params["out"], begin.params["out"]),
        "reports": {
            way: {key: np.asarray(value).tolist() for key, value in report.items()} for way, report in reports.items()
        },
        "level": 10 * float(jax.jit(noise_of_first_poisoned)()),
    }
    with pytest.raises(UserError) as refused:
        sharding.runner().put_batch({"image": np.zeros((2, 12, 4))}, axis=1)
    answer["refused"] = str(refused.value)
    (folder / "answer.json").write_text(json.dumps(answer))
    np.savez(folder / "one.npz", *jax.tree.leaves(results["one device"][0].params))


def noise_of_first_poisoned():
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), STEPS), 21)
    return jax.random.normal(key, (4,))[0]


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eight")
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    here = str(Path(__file__).parents[1])
    environ = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "error", "PYTHONPATH": here}
    done = subprocess.run([sys.executable, __file__, str(folder)], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "answer.json").read_text()) | {"folder": folder}


@pytest.mark.parametrize("way", [way for way in WAYS if way != "one device"])
def test_every_way_is_the_step_of_one_device(answer, way):
    """Parameters, EMA, momentum-free SGD state, key, every metric, the loss by level and the held-out loss, after four
    steps."""
    assert answer["devices"] == 8 and answer["spread"] == [8]
    assert answer["differences"][way] < 2e-6 < 1e-2 < answer["moved"]


@pytest.mark.parametrize("way", WAYS)
def test_the_first_nonfinite_example_is_found_on_any_device(answer, way):
    """Examples 21 to 24 of the global batch are poisoned, on two devices of eight; the step after goes on from the good
    state."""
    report = answer["reports"][way]
    assert report["flag"] == [True, False] and report["example"] == [21, -1]
    np.testing.assert_allclose(report["level"][0], answer["level"], rtol=1e-5)


def test_a_batch_that_does_not_divide_is_refused(answer):
    assert answer["refused"].startswith("batch size 12 is not divisible by the 8 devices")


def test_a_checkpoint_of_eight_devices_restores_on_one(answer):
    runner = sharding.runner(devices=jax.devices()[:1])
    restored = checkpoint.restore(answer["folder"] / "checkpoints", runner.template(init, jax.random.key(0)))
    with np.load(answer["folder"] / "one.npz") as saved:
        one = list(saved.values())
    assert restored.step == STEPS and {len(x.sharding.device_set) for x in jax.tree.leaves(restored.state)} == {1}
    chex.assert_trees_all_close(jax.tree.leaves(jax.device_get(restored.state.params)), one, rtol=1e-6, atol=1e-6)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
