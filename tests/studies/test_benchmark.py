"""experiments.benchmark on tiny networks: what is timed is what it says; the arithmetic by hand;
the command.
"""

from __future__ import annotations

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import celeb_a, cifar10, digits, toy
from diffusion_jax.assembly import sampling
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.core.errors import UserError
from diffusion_jax.data.sources import Arrays
from diffusion_jax.studies.benchmark import command as benchmark
from diffusion_jax.studies.benchmark import comparison, kernels, loop, timing, training
from diffusion_jax.studies.benchmark import sampling as benchmark_sampling
from diffusion_jax.studies.benchmark.timing import BenchmarkSettings, BenchmarkSubject
from tests import commands
from tests.markdown import squeezed


@pytest.fixture(scope="module")
def config():
    config = digits.get_config("vp")
    config.model.update(width=8, multipliers=(1,), blocks=1, attention=(), head_width=8)
    return config


@pytest.fixture(scope="module")
def experiment(config):
    return assemble(config, (8, 8, 1), 10)


def test_the_bare_evaluations_pass_through_the_network_and_give_x_back(experiment):
    """A network of NaN shows in the result: so no evaluation can be dropped; and x comes back, so
    none can blow up.
    """
    x, ts = (
        jax.random.normal(jax.random.key(0), (2, 8, 8, 1)),
        sampling.grid(experiment, "uniform", 4),
    )
    params = experiment.kind.init(experiment, jax.random.key(1))
    params = jax.tree.map(lambda p: p + 0.1, params)  # the last layer begins at 0
    run = jax.jit(
        lambda params, x: benchmark_sampling.bare(
            experiment, params, x, experiment.conditions.null(2), ts
        )
    )
    assert not np.array_equal(run(params, x), x)  # rounding, which tells that eps went through
    np.testing.assert_allclose(run(params, x), x, atol=1e-3)
    assert np.isnan(run(jax.tree.map(lambda p: p * jnp.nan, params), x)).all()


def test_programs_take_turns():
    called = []
    seconds = timing.take_turns({name: lambda name=name: called.append(name) for name in "abc"}, 3)
    assert "".join(called) == "abc" + "abc" + "bca" + "cab"  # the first calls do not count
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_row_by_hand():
    row = benchmark_sampling.row("a", 10, 4, 1.26, [3.0, 2.2, 2.6], [2.5, 2.0, 2.0], [0.2, 0.1])
    assert (row["overhead_percent"], row["overhead_median_percent"], row["own_percent"]) == (
        10.0,
        30.0,
        5.0,
    )
    assert row["images_per_second"] == pytest.approx(4 / 2.2) and row["compile_seconds"] == 1.3


def test_budgets_and_samplers_that_do_not_fit_are_refused(experiment):
    assert (
        len(
            benchmark_sampling.methods_of(experiment, ["ode.edm_heun@karras", "ancestral.ddim"], 9)[
                "ode.edm_heun@karras"
            ].ts
        )
        == 5
    )
    for entries, said in (
        (["adaptive.tsit5"], "needed are fixed steps"),
        (["ode.rk4"], "a budget that buys one"),
        ([], "--samplers is empty"),
        (["ode.hun"], "did you mean 'ode.heun'"),
    ):
        with pytest.raises(UserError, match=said):
            benchmark_sampling.methods_of(experiment, entries, 4)


# ---- training, loop, data
@pytest.fixture(scope="module")
def points():
    config = toy.get_config("vp")
    config.model.update(width=8, blocks=1)
    config.data.batch_size = 32
    config.training.update(log_every=5, checkpoint_every=100)
    return config


SETTINGS = timing.BenchmarkSettings(
    samplers=[], nfe=3, shape=[], classes=10, batch_size=2, repeats=5, steps=12
)


def subject(config, dataset=None):
    dataset = dataset or timing.dataset_for(config)
    model = assemble(config, dataset.image_shape, dataset.num_classes)
    return timing.BenchmarkSubject("toy", config, dataset, model)


def test_a_data_set_that_is_not_here_is_noise_of_its_shape(points):
    there = timing.dataset_for(points)
    assert there.name == points.data.name and len(there.train) == 50_000
    for shape, config in (
        ((32, 32, 3), cifar10.get_config("vp")),
        ((64, 64, 3), celeb_a.get_config("vp")),
    ):
        noise = timing.dataset_for(config)
        assert (
            noise.image_shape == shape
            and noise.train[0]["image"].shape == shape
            and noise.name == "noise"
        )
        assert noise.train.columns["image"].nbytes < 2.1e8 and len(noise.train) > 10_000
    assert timing.dataset_for(points, (2,), 0).train[0]["image"].dtype == np.float32


def test_the_training_step_is_measured_on_its_own(points):
    row = training.training(subject(points), SETTINGS).rows[0]
    assert len(row["seconds"]) == 5 and row["batch"] == 32 and row["compile_seconds"] > 0
    assert row["images_per_second"] == pytest.approx(32 / np.median(row["seconds"]))
    products = (
        2 * 32 * sum(leaf.size for leaf in jax.tree.leaves(weights_of(points)) if leaf.ndim == 2)
    )
    # forwards, and backwards once for the weights and once for the inputs, of which the first
    # layers have no need
    assert 2 * products < 1e9 * row["gflop"] <= 3 * products
    speed = 1e9 * row["gflop"] / np.median(row["seconds"])
    assert row["mfu_percent"] == pytest.approx(100 * speed / training.peak_flops()[0])
    assert (
        row["process_gib"] > 0.1
        and row["program_gib"] * 2**30 > 4 * 3 * 8 * 8
        and row["device_gib"] is None
    )


def weights_of(config):
    experiment = assemble(config, (2,), timing.dataset_for(config).num_classes)
    return jax.eval_shape(lambda: experiment.kind.init(experiment, jax.random.key(0)))


def test_every_moment_of_the_loop_is_accounted_for_by_hand():
    """Two calls of two steps count, after two that do not; each has a row and a checkpoint."""
    events = {
        "step": [(0, 5), (5, 6), (7, 10), (16, 20)],
        "data": [(4, 5), (6, 6.5), (15, 16)],
        "logging": [(10, 11), (20, 21)],
        "sync": [(11, 12), (21, 22)],
        "checkpointing": [(12, 15), (22, 23)],
    }
    seconds, shares = loop.account(events, 2, {"logging": 10, "checkpointing": 100})
    assert seconds == [3, 4]
    assert shares == {
        "step": 7 / 4,
        "data": 1.5 / 4,
        "rest": 0.5 / 4,
        "logging": 1 / 10,
        "checkpointing": (2 + 4) / 2 / 100,
    }
    assert loop.account(events, 2, {"checkpointing": 0})[1]["checkpointing"] == 0


class Slow(Arrays):
    """A batch takes 0.2 s."""

    def rows(self, index):
        time.sleep(0.2)
        return super().rows(index)


def test_a_loop_that_waits_for_its_data_says_so(points):
    dataset = timing.dataset_for(points)
    slow = dataset._replace(train=Slow(**dataset.train.columns))
    part = loop.loop(subject(points, slow), SETTINGS)
    row = part.rows[0]
    named = [
        row[f"{name}_percent"] for name in ("step", "data", "logging", "checkpointing", "rest")
    ]
    assert sum(named) == pytest.approx(100) and row["outside_percent"] == pytest.approx(
        100 - row["step_percent"]
    )
    assert row["data_percent"] > 40 and row["milliseconds"] > 100 and len(row["seconds"]) == 10
    assert (
        0 < row["checkpointing_percent"] < 40
        and row["logging_percent"] > 0
        and row["rest_percent"] > 0
    )
    assert (
        "12 steps, a row every 4 and a checkpoint every 4; their costs are spread over 5 and 100 "
        "steps" in part.facts
    )


def test_the_pipeline_is_measured_made_and_delivered(points):
    config = digits.get_config("vp")
    config.data.update(flip=True, batch_size=8)
    noise = timing.synthetic((4, 4, 3), 3)
    measured = subject(config, noise)._replace(consumed=1e-3)
    rows = training.pipeline(measured, SETTINGS).rows
    assert [row["what"] for row in rows] == ["made", "delivered"]
    for row in rows:
        assert (
            row["images_per_second"]
            == pytest.approx(8 / np.median(row["seconds"]))
            == row["multiple"] * 1e-3
        )


def test_several_configs_share_tables_and_nothing_is_lost(points, monkeypatch):
    """Each part is kept as soon as it is there. The data part is compared with what training
    consumed, of the same batch."""
    kept, seen = [], []

    def fake(name):
        def part(subject, settings):
            seen.append((name, subject.title, subject.consumed, subject.dataset.name))
            size = subject.experiment.data.batch_size
            row = {"config": subject.title, "what": name, "images_per_second": size}
            return timing.Part([row], {}, subject.title)

        return part

    monkeypatch.setattr(benchmark, "PARTS", {"training": fake("training"), "data": fake("data")})
    other = points.copy_and_resolve_references()
    other.data.batch_size = 7
    found = benchmark.measure(
        {"a": points, "b": other},
        ["training", "data"],
        SETTINGS._replace(shape=[2], classes=0),
        lambda found: kept.append(sum(len(part.rows) for part in found.values())),
    )
    assert seen == [
        ("training", "a", None, "noise"),
        ("data", "a", 32, "noise"),
        ("training", "b", None, "noise"),
        ("data", "b", 7, "noise"),
    ]
    assert [row["config"] for row in found["data"].rows] == ["a", "b"]
    assert found["data"].facts == "a\nb"
    assert kept == [1, 2, 3, 4]


# ---- comparing
def test_what_got_slower_by_more_than_the_noise():
    def row(what, *seconds, **more):
        return {"config": "a", "what": what, "batch": 4, "seconds": seconds} | more

    before = [row("x", 1.0, 1.1, 1.2), row("y", 2.0, 2.0, 2.0), row("z", 1.0, evaluations=5)]
    now = [row("x", 1.1, 1.15, 1.2), row("y", 1.0, 1.0, 1.0), row("z", 9.0, evaluations=6)]
    stored = {"training": {"rows": [row("step", 1.0, 1.0, 1.0)]}, "sampling": {"rows": before}}
    found = {"training": {"rows": [row("step", 1.03, 1.03, 1.03)]}, "sampling": {"rows": now}}
    compared = comparison.compare(stored, found)
    rows = {row["what"]: row for row in compared}
    assert {what: row["verdict"] for what, row in rows.items()} == {
        "step": "slower",
        "x": "the same",
        "y": "faster",
    }
    assert rows["step"]["change_percent"] == pytest.approx(3) and rows["step"][
        "noise_percent"
    ] == pytest.approx(2)
    assert (
        rows["x"]["noise_percent"] == pytest.approx(100 * (0.1 / 1.1 + 0.05 / 1.15))
        and rows["y"]["now"] == 1000
    )
    machine = {"cpu": {"model": "m"}, "devices": None, "versions": {"jax": "1"}}
    other = {"cpu": {"model": "m"}, "devices": None, "versions": {"jax": "2"}}
    assert comparison.differences({"provenance": machine}, {"provenance": other}) == [
        "versions.jax: 1 then, 2 now"
    ]


def test_parts_by_name():
    assert benchmark.chosen_parts("sampling, data,training") == ["training", "data", "sampling"]
    with pytest.raises(UserError, match="unknown --parts 'train'.*did you mean 'training'"):
        benchmark.chosen_parts("train")


def test_the_command(tmp_path):
    spec, old = "configs/toy.py:vp", tmp_path / "old.json"
    rows = [
        {"config": spec, "what": "ancestral.ddim", "batch": 2, "evaluations": 3, "seconds": [1e-9]}
    ]
    old.write_text(
        json.dumps({"sampling": {"rows": rows}, "provenance": {"versions": {"jax": "0.1"}}})
    )
    args = [
        f"--config={spec}",
        "--config.model.width=8",
        "--shape=2",
        "--nfe=3",
        "--repeats=2",
        "--batch_size=2",
        "--samplers=ancestral.ddim;ode.edm_heun@karras",
        f"--out={tmp_path / 'b.json'}",
        f"--against={old}",
    ]
    done = commands.run("benchmark", *args)
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "b.json").read_text())
    assert [row["evaluations"] for row in kept["sampling"]["rows"]] == [3, 3] and kept["settings"][
        "nfe"
    ] == 3
    assert kept["configs"][spec]["model"]["width"] == 8 and "commit" in kept["provenance"]
    assert all(
        len(row["seconds"]) == 2 and row["compile_seconds"] > 0 for row in kept["sampling"]["rows"]
    )
    assert (
        f"| {spec} | ode.edm_heun@karras | 2 | 3 |" in squeezed(done.stdout)
        and "parameters on 2, batch 2" in done.stdout
    )
    consumed = kept["training"]["rows"][0]["images_per_second"]
    delivered = kept["data"]["rows"][1]
    assert delivered["multiple"] == pytest.approx(delivered["images_per_second"] / consumed)
    assert [row["verdict"] for row in kept["against"]["rows"]] == ["slower"]
    assert "not the same machine or software: versions.jax: 0.1 then" in done.stdout
    done = commands.run("benchmark", "--shape=8,8")
    assert done.returncode == 2 and done.stderr.startswith(
        "error: --shape=8,8: write height, width and channels"
    )


def test_kernels_are_timed(monkeypatch):
    monkeypatch.setattr(kernels, "TOKENS", ((1, 4, 1, 4), (2, 4, 1, 4)))
    monkeypatch.setattr(kernels, "IMAGES", (1, 4, 4, 2))
    settings = BenchmarkSettings([], 10, [], 10, 1, 2, 12)
    rows = kernels.kernels(BenchmarkSubject("c", None, None, None), settings).rows
    assert len(rows) == 8 and len({row["what"] for row in rows}) == 8
    assert all(len(row["seconds"]) == 2 and row["temporary_mib"] >= 0 for row in rows)
