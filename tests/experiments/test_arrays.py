"""Vectors, series, images of other numbers and volumes through the commands, by the same keys."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.experiments.small_runs import command, width

TINY = ["--config.training.steps=2", "--config.training.sample_every=2", "--nfe=2"]
TINY += ["--config.data.batch_size=4", "--config.training.eval_every=2"]
UNET = ["--config.model.width=8", "--config.model.multipliers=(1,)", "--config.model.blocks=1"]
UNET += ["--config.model.attention=()"]
OPTIONS = {0: ["--config.model.width=8", "--config.model.blocks=1"], 1: UNET, 2: UNET, 3: UNET}
# arrays that condition the model: vectors (d = 0), and the arrays of the file (d = 1)
CONDITIONS = {0: ["--config.data.condition=condition"], 1: ["--config.data.dense=array"]}
CASES = [(0, (3,), "float32"), (1, (8, 2), "int16"), (2, (4, 8, 2), "float32")]
CASES = [
    CASES[0],
    *(
        pytest.param(*case, marks=pytest.mark.long)
        for case in (*CASES[1:], (3, (4,) * 3 + (1,), "uint8"))
    ),
]


@pytest.mark.parametrize("axes, shape, dtype", CASES)
def test_every_command_takes_arrays_of_any_number_of_axes(axes, shape, dtype, tmp_path):
    """From a file to samples in its own units, scores, a comparison and a likelihood."""
    values = np.random.default_rng(0).normal(100, 20, (40, *shape)).astype(dtype)
    more = {"condition": np.arange(80).reshape(40, 2), "dense": 2 * values[..., :1] + 1}
    np.savez(tmp_path / "a.npz", data=values, labels=np.arange(40) % 2, **more)
    run = tmp_path / "run"
    to, of = (
        f"--workdir={run}",
        ["--config=configs/arrays.py", f"--config.data.path={tmp_path}/a.npz"],
    )
    command("train", *of, to, *TINY, *OPTIONS[axes], *CONDITIONS.get(axes, ()))
    about = json.loads((run / "data.json").read_text())
    assert about["image_shape"] == list(shape) and about["normalization"]["dtype"] == dtype
    assert json.loads((run / "config.json").read_text())["model"]["name"] != "auto"
    assert width(run / "samples" / "step_0000002.png") > 60
    command("sample", to, "--num=4")
    with np.load(run / "samples.npz") as drawn:
        assert drawn["data"].shape == (4, *shape) and drawn["data"].dtype == dtype
        assert 20 < drawn["data"].mean() < 180  # the units of the data
        if axes == 0:  # those of test examples, in their units
            np.testing.assert_allclose(np.diff(drawn["condition"]), 1, atol=1e-4)
        if axes == 1:
            assert drawn["seen"].shape == drawn["truth"].shape == (4, *shape)
    assert (run / "samples.csv").exists() == (axes == 0)
    command("evaluate", to, "--num=12", "--repeats=1")
    scores = json.loads((run / "evaluation.json").read_text())
    wanted = {"accuracy", "frechet", "mmd_median", "sliced_wasserstein"}
    assert set(scores["mean"]) == wanted == set(scores["real"])
    assert ("restoration" in scores) == (axes == 1)
    command("compare_samplers", to, "--samplers=ddim", "--nfe=2", "--num=4")
    assert "Fréchet distance of values" in (run / "compare.md").read_text()
    command("likelihood", to, "--num=2", "--solver=rk4", "--steps=2")
    bits = json.loads((run / "likelihood.json").read_text())["rows"][0]["bits"]
    assert np.isfinite(bits)
    if axes:
        edit = ["--num=2", "--method=replacement", f"--out={tmp_path}/e", "--config.sampler.nfe=2"]
        done = command("edit", to, "--mask=box", *edit)
        assert "linear interpolation" in done.stdout and width(tmp_path / "e.png") > 60
        with np.load(tmp_path / "e.npz") as restored:
            assert restored["restored"].shape == (1, 2, *shape)
    if axes == 1:  # with conditions of test examples
        command("edit", to, "--mask=half", "--labels=own", *edit)
        command("publish", to, f"--out={tmp_path}/p", "--config.sampler.nfe=2")
        assert width(tmp_path / "p" / "samples.png") > 60
    done = command("edit", to, "--image=a.png", expect=2)
    assert "--image=a.png: this model draws" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.long
def test_few_step_methods_and_sweeps_take_arrays(tmp_path):
    """A table of a teacher and two methods; searches over a sampling and a training key."""
    values = np.random.default_rng(0).normal(5, 2, (40, 3)).astype("float32")
    np.savez(tmp_path / "a.npz", data=values)
    images, small = f"--images={tmp_path}/a.npz", ["--steps=2", "--num=12", "--nfe=1"]
    command(
        "few_step",
        "--recipe=configs/arrays_few_step.py",
        f"--workdir={tmp_path}/f",
        images,
        "--methods=cd,meanflow",
        "--teacher_nfe=3",
        "--metrics=frechet",
        *small,
    )
    table = json.loads((tmp_path / "f" / "few_step.json").read_text())["rows"]
    assert {row["sampler"] for row in table} >= {"cd", "meanflow"}
    assert all(np.isfinite(row["frechet"]) for row in table)
    assert width(tmp_path / "f" / "few_step_grid.png") > 60
    run, over = f"--workdir={tmp_path}/f/teacher", "--over=sampler.nfe=[2, 3]"
    judged = ["--num=12", "--metrics=frechet", "--search=grid()"]
    command("sweep", run, over, f"--out={tmp_path}/s", *judged)
    assert "Fréchet distance of values" in (tmp_path / "s" / "sweep.md").read_text()
    of = ["--config=configs/arrays.py", f"--config.data.path={tmp_path}/a.npz", *TINY[:2]]
    trained = ["--over=model.width=[8, 16]", "--config.sampler.nfe=2", "--config.data.batch_size=4"]
    command("sweep", *of, *trained, f"--out={tmp_path}/t", *judged)
    assert len(list((tmp_path / "t" / "runs").iterdir())) == 2


def test_mistakes_with_arrays_are_one_line(tmp_path):
    np.savez(tmp_path / "a.npz", data=np.zeros((4, 8, 2)))
    for options, words in (
        ([], "config.data.path is missing"),
        ([f"--config.data.path={tmp_path}/a.npz"], "is float64; uint8, int16, float16, float32"),
    ):
        done = command(
            "train", "--config=configs/arrays.py", f"--workdir={tmp_path}/r", *options, expect=2
        )
        assert words in done.stderr and "Traceback" not in done.stderr
    recipe = "--recipe=configs/arrays_few_step.py"
    done = command("few_step", recipe, f"--workdir={tmp_path}/f", expect=2)
    assert "--images is missing" in done.stderr and "Traceback" not in done.stderr
