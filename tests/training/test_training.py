"""EMAs, optimizers, the pure step, rows of metrics and the loop, on a regression model of two
layers.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from diffusion_jax.errors import UserError
from diffusion_jax.training import ema, loop, metrics, optimizer, runtime, sharding, state, step

BATCH = 16


def loss_fn(params, batch, keys, now):
    """Denoise by two dense layers; the level is drawn per example, far enough to leave the bins on
    both sides.
    """
    x = batch["image"]
    eps = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
    level = 30.0 * jax.vmap(jax.random.uniform)(keys) - 15.0
    out = jnp.tanh((x + 0.3 * eps) @ params["in"]["kernel"] + params["in"]["bias"]) @ params["out"]
    losses = jnp.mean(jnp.square(out - x), axis=-1)
    return losses, {"level": level, "double": 2 * losses}


def init_params(key):
    a, b = jax.random.split(key)
    return {
        "in": {"kernel": 0.5 * jax.random.normal(a, (4, 8)), "bias": jnp.zeros(8)},
        "out": 0.5 * jax.random.normal(b, (8, 4)),
    }


def batch(number):
    return {"image": np.random.default_rng(number).normal(size=(BATCH, 4)).astype(np.float32)}


AVERAGES = ema.halflives((200, 5_000))


@pytest.fixture(scope="module")
def trainer():
    """SGD by calls of two steps: the runner, the compiled call, a fresh state and its feed."""
    tx, rate = optimizer.make_optimizer(
        "sgd", learning_rate=0.1, total_steps=12, warmup=3, momentum=0.9
    )
    runner = sharding.runner(devices=jax.devices()[:1])
    chex.clear_trace_counter()
    two = step.multi_step(step.make_train_step(loss_fn, tx, AVERAGES, schedule=rate), 2)
    call = runner.compile(chex.assert_max_traces(two, n=1))
    stacked = loop.stack(batch, 2)

    def feed(start):
        return ((2 * n, runner.put_batch(stacked(n), axis=1)) for n in range(start // 2, 100))

    def init(key):
        return state.init_state(init_params(key), tx, AVERAGES, key)

    def fresh():
        return runner.init(init, jax.random.key(1))

    return SimpleNamespace(tx=tx, rate=rate, runner=runner, call=call, feed=feed, fresh=fresh)


# ---- EMA ----
def test_ema_of_constant_parameters_halves_its_distance_each_halflife():
    average = ema.halflives((100,), ramp=None)
    value = {"100": jnp.float32(3.0)}
    for k in range(40):
        value = average.update(value, jnp.float32(1.0), jnp.float32(10 * k), 10)
        # e_k - c = (e_0 - c) beta^k with beta = 0.5^(10/100)
        np.testing.assert_allclose(value["100"] - 1.0, 2.0 * 0.5 ** ((k + 1) / 10), rtol=2e-5)


def test_ema_of_linear_parameters_lags_by_the_geometric_sum():
    average, beta = ema.halflives((50,), ramp=0), 0.5 ** (8 / 50)
    value = {"50": jnp.float32(0.0)}
    for k in range(1, 60):
        value = average.update(value, jnp.float32(k), jnp.float32(8 * (k - 1)), 8)
    # d_k = beta (d_{k-1} + 1), d_0 = 0  =>  e_k = k - beta (1 - beta^k) / (1 - beta)
    np.testing.assert_allclose(value["50"], 59 - beta * (1 - beta**59) / (1 - beta), rtol=1e-5)


@pytest.mark.parametrize(
    "seen, share", [(0, 1.0), (1000, 0.5), (10_000_000, 1 - 0.5 ** (50 / 50_000))]
)
def test_ema_ramp(seen, share):
    """h = min(50k, 0.05 seen): nothing seen forgets the start, 1000 seen has half-life 50 = one
    batch, much seen has 50k.
    """
    value = ema.halflives((50_000,), ramp=0.05).update(
        {"50k": jnp.float32(0)}, jnp.float32(1), jnp.float32(seen), 50
    )
    np.testing.assert_allclose(value["50k"], share, rtol=1e-5)


def test_ema_names():
    assert [ema.name(h) for h in (500, 2_000, 50_000, 1_500_000)] == ["500", "2k", "50k", "1.5M"]
    with pytest.raises(UserError, match="half-lives"):
        ema.halflives((500, 500))


# ---- optimizers ----
@pytest.mark.parametrize("name", ["adam", "adamw", "lion", "nadamw", "contrib.muon"])
def test_optimizers_by_name_descend(name):
    tx, _ = optimizer.make_optimizer(name, learning_rate=0.1, total_steps=10)
    w = {"w": jnp.ones((2, 2))}

    @jax.jit
    def move(w, memory):
        updates, memory = tx.update(w, memory, w)  # the gradient of |w|^2 / 2
        return jax.tree.map(jnp.add, w, updates), memory

    memory = tx.init(w)
    for _ in range(3):
        w, memory = move(w, memory)
    assert jnp.all(w["w"] < 1)


def test_clipping_is_by_global_norm():
    gradient = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}  # norm 5
    for clip, scale in ((1.0, 0.2), (10.0, 1.0), (0, 1.0)):
        tx, _ = optimizer.make_optimizer("sgd", learning_rate=1.0, total_steps=10, clip=clip)
        updates, _ = tx.update(gradient, tx.init(gradient), gradient)
        np.testing.assert_allclose(updates["b"], -4.0 * scale, rtol=1e-6)


@pytest.mark.parametrize(
    "kind, values",
    [
        ("constant", {10: 2.0, 60: 2.0, 110: 2.0}),
        ("linear", {10: 2.0, 60: 1.0 + 0.1, 110: 0.2, 500: 0.2}),
        ("cosine", {10: 2.0, 60: 1.0 + 0.1, 110: 0.2, 500: 0.2}),
        ("rsqrt", {10: 2.0, 40: 1.0, 160: 0.5}),
    ],
)
def test_schedules(kind, values):
    """Warm-up over 10 of 110 steps to 2, to a tenth of it at the end; rsqrt halves at four times
    its reference step.
    """
    rate = optimizer.learning_rate_schedule(
        2.0, total_steps=110, warmup=10, schedule=kind, final=0.1
    )
    np.testing.assert_allclose([rate(0), rate(4), rate(9)], [0.2, 1.0, 2.0], rtol=1e-6)
    for at, value in values.items():
        np.testing.assert_allclose(rate(at), value, rtol=1e-6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "adanw"}, "unknown optimizer 'adanw'.*adamw"),
        ({"name": "chain"}, "unknown optimizer 'chain'"),
        ({"name": "contrib.mu"}, "unknown optimizer"),
        ({"name": "sgd", "b1": 0.9}, r"optimizer.b1=0.9: sgd has no such argument .*momentum"),
        (
            {"name": "adam", "weight_decay": 0.1},
            "optimizer.weight_decay=0.1: adam has no such argument",
        ),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"clip": -1.0}, "optimizer.clip=-1.0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
    ],
)
def test_optimizer_mistakes(arguments, message):
    with pytest.raises(UserError, match=message):
        optimizer.make_optimizer(**{"learning_rate": 0.1, "total_steps": 10} | arguments)


# ---- the step ----
def test_step_reports_the_loss_by_level(trainer):
    one = jax.jit(
        step.make_train_step(loss_fn, trainer.tx, AVERAGES, levels=step.Levels(-12, 12, 3))
    )
    before = trainer.fresh()
    _, numbers = one(before, batch(0))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.fold_in(before.key, 0), jnp.arange(BATCH)
    )
    losses, examples = jax.device_get(
        jax.jit(loss_fn)(before.params, batch(0), keys, step.Now(0, {}))
    )
    level = examples["level"]
    assert np.abs(level).max() > 12
    inside = [level < -4, np.abs(level) < 4, level > 4]  # what is beyond +-12 counts at the ends
    by_level = numbers["loss_by_level"]
    np.testing.assert_array_equal(by_level["edges"], [-12, -4, 4, 12])
    np.testing.assert_array_equal(by_level["count"], [member.sum() for member in inside])
    np.testing.assert_allclose(
        by_level["sum"], [losses[member].sum() for member in inside], rtol=1e-5
    )
    np.testing.assert_allclose(numbers["loss"], losses.mean(), rtol=1e-6)
    np.testing.assert_allclose(numbers["double"], 2 * losses.mean(), rtol=1e-6)
    assert "level" not in numbers and not numbers["nonfinite"]["flag"]


def test_step_norms_and_rate(trainer):
    before = trainer.fresh()
    after, numbers = jax.jit(
        step.make_train_step(loss_fn, trainer.tx, AVERAGES, schedule=trainer.rate)
    )(before, batch(0))

    def flat(tree):
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(np.float64)

    np.testing.assert_allclose(numbers["learning_rate"], 0.1 / 3, rtol=1e-6)
    np.testing.assert_allclose(numbers["param_norm"], np.linalg.norm(flat(after.params)), rtol=1e-6)
    np.testing.assert_allclose(
        numbers["update_norm"], np.linalg.norm(flat(after.params) - flat(before.params)), rtol=1e-4
    )
    assert numbers["grad_norm"] > 1  # clipped to 1, so the first SGD update is the rate
    np.testing.assert_allclose(numbers["update_norm"], 0.1 / 3, rtol=1e-5)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_nonfinite_step_leaves_the_state_and_names_the_example(trainer, what):
    def broken(params, batch, keys, now):
        losses, examples = loss_fn(params, batch, keys, now)
        zero = params["out"][0, 0] * 0
        wrong = jnp.where(
            jnp.arange(BATCH) >= 5, 1 / zero if what == "loss" else jnp.sqrt(zero), 0.0
        )  # sqrt has no slope at 0
        return losses + wrong, examples | {"level": jnp.arange(BATCH) / 2.0}

    before = trainer.fresh()
    after, numbers = jax.jit(step.make_train_step(broken, trainer.tx, AVERAGES))(before, batch(0))
    chex.assert_trees_all_equal(
        (after.params, after.opt_state, after.ema), (before.params, before.opt_state, before.ema)
    )
    layers, losses, levels = (
        numbers["nonfinite"].pop(name) for name in ("layers", "losses", "levels")
    )
    norms = [np.linalg.norm(leaf) for leaf in jax.tree.leaves(jax.device_get(before.params))]
    np.testing.assert_allclose(layers["parameter"], norms, rtol=1e-6)
    np.testing.assert_array_equal(np.isfinite(losses), what == "gradient" or np.arange(BATCH) < 5)
    np.testing.assert_array_equal(levels, np.arange(BATCH) / 2.0)
    if what == "gradient":  # that of the one parameter whose root was taken
        assert [bool(x) for x in np.isfinite(layers["gradient"])] == [True, True, False]
    report = jax.tree.map(float, numbers["nonfinite"])
    if what == "loss":
        assert report == {"flag": 1, "gradient": 0, "update": 0, "example": 5, "level": 2.5}
    else:
        assert (report["flag"], report["gradient"], report["example"]) == (1, 1, -1) and np.isnan(
            report["level"]
        )


def test_accumulation_must_divide_the_batch(trainer):
    with pytest.raises(UserError, match="accumulate=3 does not divide"):
        jax.eval_shape(
            step.make_train_step(loss_fn, trainer.tx, AVERAGES, accumulate=3),
            trainer.fresh(),
            batch(0),
        )


def test_donation_takes_the_placed_copy_and_nothing_else(trainer):
    mine = jax.tree.map(jnp.copy, trainer.fresh())
    placed = trainer.runner.put_state(mine)
    values = jax.device_get(mine._replace(key=0))
    trainer.call(placed, next(iter(trainer.feed(0)))[1])
    assert placed.params["out"].is_deleted() and placed.ema["200"]["out"].is_deleted()
    chex.assert_trees_all_equal(jax.device_get(mine._replace(key=0)), values)


def test_evaluation_weighs_batches_by_size_and_repeats_itself(trainer):
    state, runner = trainer.fresh(), trainer.runner
    run = runner.compile_eval(step.make_eval_step(loss_fn))
    parts = [batch(0), {"image": batch(1)["image"][:4]}]
    first, again = (
        loop.evaluate(run, state, parts, jax.random.key(5), put_batch=runner.put_batch)
        for _ in range(2)
    )
    assert first == again
    losses, fold = [], jax.vmap(jax.random.fold_in, (None, 0))
    for i, part in enumerate(parts):
        keys = fold(jax.random.fold_in(jax.random.key(5), i), jnp.arange(len(part["image"])))
        losses.append(jax.jit(loss_fn)(state.params, part, keys, step.Now(0, {}))[0])
    np.testing.assert_allclose(first["loss"], np.concatenate(losses).mean(), rtol=1e-6)
    assert len(first["loss_by_level"]) == 12 == len(first["level_edges"]) - 1
    json.dumps(first, allow_nan=False)


# ---- rows ----
def rows_of(trainer, folder, **arguments):
    writer = metrics.open_writer(folder, tensorboard=False)
    end = loop.fit(
        trainer.fresh(),
        trainer.call,
        trainer.feed,
        total_steps=12,
        batch_size=BATCH,
        steps_per_call=2,
        writer=writer,
        progress=False,
        **{"log_every": 2} | arguments,
    )
    writer.close()
    assert end.step == int(end.state.step) == 12 and end.stopped_by is None
    return metrics.read_rows(folder / "metrics.jsonl")


def test_rows_are_means_over_the_interval(trainer, tmp_path):
    """One trace serves every fit of this module (the fixture's chex.assert_max_traces)."""
    fine, coarse = rows_of(trainer, tmp_path / "a"), rows_of(trainer, tmp_path / "b", log_every=8)
    assert [row["step"] for row in fine] == [2, 4, 6, 8, 10, 12] and [
        row["step"] for row in coarse
    ] == [8, 12]
    assert [row["images"] for row in coarse] == [8 * BATCH, 12 * BATCH]
    timing = fine[-1]["timing"]
    assert timing["seconds_per_step"] == BATCH / timing["images_per_s"]
    np.testing.assert_allclose(
        coarse[0]["loss"], np.mean([row["loss"] for row in fine[:4]]), rtol=1e-12
    )
    assert (
        coarse[0].keys()
        == fine[0].keys()
        >= {"grad_norm", "learning_rate", "loss_by_level", "level_edges", "double", "timing"}
    )


def test_hooks_run_at_their_multiples_and_at_the_end(trainer, tmp_path):
    seen = []

    def hook(current, at):
        seen.append((at, int(current.step)))
        return {"eval_loss": float(at)}

    rows = rows_of(trainer, tmp_path, hooks=[(8, hook), (0, hook)], log_every=4)
    assert seen == [(8, 8), (12, 12)]
    assert [(row["step"], "eval_loss" in row) for row in rows] == [
        (4, False),
        (8, False),
        (8, True),
        (12, False),
        (12, True),
    ]


def test_tally_survives_json_bit_for_bit():
    rng = np.random.default_rng(0)
    calls = [
        {
            "loss": rng.normal(size=3).astype(np.float32),
            "loss_by_level": {
                "edges": np.tile(np.float32([0, 1, 2]), (3, 1)),
                "sum": rng.normal(size=(3, 2)),
                "count": np.float32([[1, 0]] * 3),
            },
        }
        for _ in range(4)
    ]
    straight = broken = metrics.empty_tally()
    for call in calls:
        straight, broken = (
            metrics.add(straight, call),
            metrics.add(json.loads(json.dumps(broken)), call),
        )
    assert metrics.row(straight) == metrics.row(broken)
    np.testing.assert_allclose(
        metrics.row(straight)["loss"], np.mean([call["loss"] for call in calls]), rtol=1e-6
    )
    assert metrics.row(straight)["loss_by_level"][1] is None  # no example there


def events_of(folder):
    """What TensorBoard reads: records of a length (8 bytes, and 4 of a checksum), a message, and a
    checksum (4).
    """

    (file,) = (folder / "tensorboard").iterdir()
    raw, at, found = file.read_bytes(), 0, []
    while at < len(raw):
        length = int.from_bytes(raw[at : at + 8], "little")
        found.append(Event.FromString(raw[at + 12 : at + 12 + length]))
        at += length + 16
    return [(event.step, value) for event in found for value in event.summary.value]


def test_tensorboard_has_the_config_the_loss_by_level_and_the_time_of_a_step(tmp_path):
    writer = metrics.open_writer(tmp_path)
    writer.text(0, "config", "    {'seed': 3}")
    levels = {"loss_by_level": [0.5, None, 0.25], "level_edges": [-4.0, -1.0, 1.0, 4.0]}
    writer.row(10, {"loss": 0.4, **levels}, {"seconds": 2.0, "seconds_per_step": 0.125})
    writer.row(10, {f"eval_{key}": value for key, value in levels.items()})
    writer.close()
    found = {value.tag: (step, value.simple_value) for step, value in events_of(tmp_path)}
    assert found["loss_by_level/00_log-SNR_-4.0_to_-1.0"] == (10, 0.5) and found[
        "eval_loss_by_level/02_log-SNR_1.0_to_4.0"
    ] == (10, 0.25)
    assert found["seconds_per_step"] == (10, 0.125) and not any("01_log" in tag for tag in found)
    (config,) = (value for _, value in events_of(tmp_path) if value.tag.startswith("config"))
    assert (
        config.tensor.string_val[0] == b"    {'seed': 3}"
        and config.metadata.plugin_data.plugin_name == "text"
    )


def test_reopened_rows_are_cut_after_the_restored_step(tmp_path):
    writer = metrics.open_writer(tmp_path)
    for at in (10, 20, 30):
        writer.row(at, {"loss": at / 3, "bad": float("nan")}, {"seconds": 1.0})
    writer.images(30, "samples", np.zeros((2, 4, 4, 1), np.uint8))
    writer.close()
    assert any(p.stat().st_size > 300 for p in (tmp_path / "tensorboard").iterdir())
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 40, "lo')  # killed in the middle of a row
    metrics.open_writer(tmp_path, start_step=20, tensorboard=False).close()
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    assert metrics.read_rows(path)[0] == {
        "step": 10,
        "loss": 10 / 3,
        "bad": None,
        "timing": {"seconds": 1.0},
    }
    metrics.open_writer(tmp_path, tensorboard=False).close()  # a fresh start
    assert path.read_bytes() == b""


def test_progress_is_plain_lines_where_stderr_is_no_terminal():
    stream = io.StringIO()
    bar = metrics.open_progress(100, stream=stream, seconds_between_lines=1e9)
    bar.update(50, 0.5, 1234.4)
    bar.update(100, 0.25, 1234.4)
    bar.close()
    first, last = (
        "step 50/100, loss 0.5000, 1234 images/s\n",
        "step 100/100, loss 0.2500, 1234 images/s, 0:00 left\n",
    )
    assert stream.getvalue() == first + last  # the first step is shown at once: compiling is over


# ---- mistakes ----
@pytest.mark.parametrize(
    "arguments", [{"log_every": 3}, {"checkpoint_every": 5}, {"hooks": [(1, None)]}]
)
def test_cadences_must_fit_the_calls(trainer, arguments):
    with pytest.raises(UserError, match="must be a multiple of steps_per_call=2"):
        loop.fit(
            trainer.fresh(),
            trainer.call,
            trainer.feed,
            total_steps=12,
            batch_size=BATCH,
            steps_per_call=2,
            **{"log_every": 2, "checkpoint_every": 2} | arguments,
        )


def test_data_at_another_position_is_refused(trainer):
    with pytest.raises(RuntimeError, match="the batch of step 2 where that of step 0 is due"):
        loop.fit(
            trainer.fresh(),
            trainer.call,
            lambda start: trainer.feed(2),
            total_steps=12,
            batch_size=BATCH,
            steps_per_call=2,
            progress=False,
        )


@pytest.mark.parametrize(
    "shape, message",
    [({"data": 7, "fsdp": 3}, "does not fit"), ({"fdsp": 2}, "did you mean 'fsdp'")],
)
def test_mesh_mistakes(shape, message):
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(shape)
    with pytest.raises(UserError, match="did you mean 'pmap'"):
        sharding.runner("pmapp")


# ---- before jax starts ----
@pytest.mark.parametrize(
    "version, environ, expected",
    [
        ("0.10.2", {"JAX_PLATFORMS": "cpu"}, runtime.CPU_FLAG + "=-individual_convolution"),
        (
            "0.12.0.1",
            {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--a=1"},
            "--a=1 " + runtime.CPU_FLAG + "=-individual_convolution",
        ),
        (
            "0.10.2",
            {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": runtime.CPU_FLAG + "="},
            runtime.CPU_FLAG + "=",
        ),  # the user's own wins
        ("0.99.0", {"JAX_PLATFORMS": "cpu"}, None),
        ("0.10.2", {"JAX_PLATFORMS": "cuda,cpu"}, None),
    ],
)
def test_cpu_flag_only_on_cpu_and_on_versions_it_was_tried_on(
    monkeypatch, version, environ, expected
):
    monkeypatch.setattr(metadata, "version", lambda name: version)
    added = runtime.set_cpu_flags(environ)
    assert environ.get("XLA_FLAGS") == expected and added == ("individual" in (expected or ""))


def test_an_installed_accelerator_plugin_means_no_cpu_flag(monkeypatch):
    monkeypatch.setattr(
        metadata, "entry_points", lambda group: [SimpleNamespace(name="xla_cuda12")]
    )
    assert not runtime.cpu_only({})


def test_runtime_does_not_import_jax():
    code = "import sys, diffusion_jax.training.runtime as r; r.cpu_only(); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
