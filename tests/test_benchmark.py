"""experiments.benchmark on tiny networks: what is timed is what it says, in turns; the arithmetic by hand; the command."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from diffusion_jax import experiment
from diffusion_jax.errors import UserError
from experiments import benchmark

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def config():
    config = digits.get_config("vp")
    config.model.update(width=8, multipliers=(1,), blocks=1, attention=(), head_width=8)
    return config


@pytest.fixture(scope="module")
def built(config):
    return experiment.assemble(config, (8, 8, 1), 10)


def test_the_bare_evaluations_pass_through_the_network_and_give_x_back(built):
    """A network of NaN shows in the result: so no evaluation can be dropped; and x comes back, so none can blow up."""
    x, ts = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), experiment.grid(built, "uniform", 4)
    params = experiment.init_params(built, jax.random.key(1))
    params = jax.tree.map(lambda p: p + 0.1, params)  # the last layer begins at 0
    run = jax.jit(lambda params, x: benchmark.bare(built, params, x, experiment.null_cond(built, 2), ts))
    assert not np.array_equal(run(params, x), x)  # rounding, which tells that eps went through
    np.testing.assert_allclose(run(params, x), x, atol=1e-3)
    assert np.isnan(run(jax.tree.map(lambda p: p * jnp.nan, params), x)).all()


def test_programs_take_turns():
    called = []
    seconds = benchmark.take_turns({name: lambda name=name: called.append(name) for name in "abc"}, 3)
    assert "".join(called) == "abc" + "abc" + "bca" + "cab"  # the first calls do not count
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_row_by_hand():
    row = benchmark._row("a", 10, 4, 1.26, [3.0, 2.2, 2.6], [2.5, 2.0, 2.0], [0.2, 0.1])
    assert (row["overhead_percent"], row["overhead_median_percent"], row["own_percent"]) == (10.0, 30.0, 5.0)
    assert row["images_per_second"] == pytest.approx(4 / 2.2) and row["compile_seconds"] == 1.3


def test_budgets_and_samplers_that_do_not_fit_are_refused(built):
    assert len(benchmark.plans(built, ["ode.edm_heun@karras", "ancestral.ddim"], 9)["ode.edm_heun@karras"].ts) == 5
    for entries, said in ((["adaptive.tsit5"], "needed are fixed steps"), (["ode.rk4"], "a budget that buys one"),
                          ([], "names none"), (["ode.hun"], "did you mean 'ode.heun'")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            benchmark.plans(built, entries, 4)


def test_the_command(tmp_path):
    args = ["--config=configs/toy.py:vp", "--config.model.width=8", "--shape=2", "--nfe=3", "--repeats=2", "--batch_size=2",
            "--samplers=ancestral.ddim;ode.edm_heun@karras", f"--out={tmp_path / 'b.json'}"]  # fmt: skip
    line = [sys.executable, "-m", "experiments.benchmark"]
    done = subprocess.run(line + args, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "b.json").read_text())
    assert [row["evaluations"] for row in kept["sampling"]["rows"]] == [3, 3] and kept["settings"]["nfe"] == 3
    assert kept["config"]["model"]["width"] == 8 and "commit" in kept["provenance"]
    assert all(len(row["seconds"]) == 2 and row["compile_seconds"] > 0 for row in kept["sampling"]["rows"])
    assert "| ode.edm_heun@karras | 3 |" in done.stdout and "parameters on 2, batch 2" in done.stdout
    done = subprocess.run(line + ["--shape=8,8"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: --shape=8,8: write height, width and channels")
