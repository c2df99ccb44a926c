"""A table through the commands: from a CSV file to rows in its own columns, scores and bits."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from tests.experiments.small_runs import command, width

TINY = ["--config.training.steps=2", "--config.training.sample_every=2", "--nfe=2"]
TINY += ["--config.data.batch_size=4", "--config.training.eval_every=2"]
TINY += [
    "--config.training.checkpoint_every=2",
    "--config.model.width=8",
    "--config.model.blocks=1",
]
TEACHER = "--teacher_nfe=3"
COLORS = ("red", "blue")


def saved(file, count=60):
    """A column of whole numbers, one of decimals, one of categories, and the label."""
    rng = np.random.default_rng(0)
    rows = [
        (rng.integers(18, 80), f"{rng.normal(170, 10):.1f}", COLORS[i % 2], "abb"[i % 3])
        for i in range(count)
    ]
    with open(file, "w", newline="") as text:
        csv.writer(text).writerows([("age", "height", "color", "kind"), *rows])
    return file


def table(file):
    with open(file, newline="") as text:
        return [*csv.DictReader(text)]


@pytest.mark.long
def test_every_command_takes_a_table(tmp_path):
    """Samples have its headings, names, decimals and frequencies of classes."""
    path, run = saved(tmp_path / "people.csv", 240), tmp_path / "run"  # C2ST needs 20 test rows
    to = f"--workdir={run}"
    of = ["--config=configs/tables.py", f"--config.data.path={path}", "--config.data.label=kind"]
    done = command("train", *of, to, *TINY)
    assert (
        "columns: age (whole number 18 to " in done.stderr and "kind (label: a, b)" in done.stderr
    )
    about = json.loads((run / "data.json").read_text())
    known = {column["name"]: column for column in about["normalization"]["columns"]}
    assert known["color"]["categories"] == ["blue", "red"] and known["height"]["decimals"] == 1
    assert width(run / "samples" / "step_0000002.png") > 400
    command("sample", to, "--num=30")
    drawn = table(run / "samples.csv")
    assert [*drawn[0]] == ["age", "height", "color", "kind"] and len(drawn) == 30
    assert {row["color"] for row in drawn} <= {*COLORS}
    assert all(str(int(row["age"])) == row["age"] for row in drawn)
    assert all(len(row["height"].partition(".")[2]) == 1 for row in drawn)
    assert 5 <= sum(row["kind"] == "a" for row in drawn) <= 15  # a third of the training rows
    command("sample", to, "--num=4", "--labels=b", f"--out={tmp_path}/b")
    assert {row["kind"] for row in table(tmp_path / "b.csv")} == {"b"}
    done = command("evaluate", to, "--num=24", "--repeats=1")
    assert "real test rows" in done.stdout and "1 x 24 rows" in done.stderr
    scores = json.loads((run / "evaluation.json").read_text())
    wanted = {"accuracy", "c2st", "ks", "total_variation", "correlation", "frechet"}
    assert wanted <= set(scores["mean"]) and {"ks", "correlation"} <= set(scores["real"])
    command("compare_samplers", to, "--samplers=ddim", "--nfe=2", "--num=12")
    assert "KS of marginals" in (run / "compare.md").read_text()
    edit = ["--num=2", "--config.sampler.nfe=2", f"--out={tmp_path}/e", "--labels=own"]
    done = command("edit", to, "--mask=age", "--draws=2", *edit)
    assert "RMSE, height" in done.stdout and "RMSE, age" not in done.stdout
    restored = table(tmp_path / "e.csv")
    assert [row["part"] for row in restored] == ["restored 1"] * 2 + ["restored 2"] * 2 + [
        "truth"
    ] * 2
    assert restored[0]["age"] == restored[4]["age"] and restored[0]["kind"] == restored[4]["kind"]
    done = command("edit", to, "--task=superres(factor=2)", expect=2)
    assert "superres needs samples with an axis" in done.stderr
    some = ["--tasks=inpaint@age", "--methods=ddnm", "--config.sampler.nfe=2", "--num=2"]
    done = command("inverse_benchmark", to, *some, f"--out={tmp_path}/i")
    assert "2 held-out rows" in done.stdout and "root mean squared error" in done.stdout
    over = ["--over=sampler.nfe=[2, 3]", "--search=grid()", "--num=12", "--metrics=frechet"]
    command("sweep", to, *over, f"--out={tmp_path}/s")
    assert "Fréchet distance of values" in (tmp_path / "s" / "sweep.md").read_text()
    few = ["--recipe=configs/arrays_few_step.py", "--methods=cd", "--steps=2", "--nfe=1"]
    few += ["--override=model.width=8", "--override=model.blocks=1", "--metrics=frechet"]
    command("few_step", *few, f"--teacher={run}", f"--workdir={tmp_path}/f", *over[2:3], TEACHER)
    found = json.loads((tmp_path / "f" / "cd" / "config.json").read_text())["data"]
    assert found["name"] == "table" and found["label"] == "kind"
    done = command("likelihood", to, "--num=2", expect=2)
    assert (
        "columns of categories have no density: color" in done.stderr
        and "exclude=color" in done.stderr
    )


@pytest.mark.long
def test_a_table_of_numbers_has_a_likelihood(tmp_path):
    path, run = saved(tmp_path / "people.csv"), tmp_path / "run"
    of = ["--config=configs/tables.py", f"--config.data.path={path}", "--config.data.label=kind"]
    command("train", *of, f"--workdir={run}", "--config.data.exclude=color", *TINY)
    command("likelihood", f"--workdir={run}", "--num=2", "--solver=rk4", "--steps=2")
    rows = json.loads((run / "likelihood.json").read_text())["rows"]
    assert np.isfinite(rows[0]["bits"])
    # another table is named by what differs
    saved(tmp_path / "people.csv").write_text("age,weight,kind\n1,2,a\n3,4,b\n5,6,b\n")
    done = command("evaluate", f"--workdir={run}", "--config.data.exclude=()", expect=2)
    assert "column height is new or gone" in done.stderr


def test_mistakes_with_tables_are_one_line(tmp_path):
    path = saved(tmp_path / "people.csv")
    for options, words in (
        ([], "data.name=table needs data.path"),
        ([f"--config.data.path={path}", "--config.data.label=sort"], "config.data.label 'sort'"),
        ([f"--config.data.path={path}.gz"], "must be a .csv, .tsv or .parquet file"),
    ):
        to = f"--workdir={tmp_path}/r"
        done = command("train", "--config=configs/tables.py", to, *options, expect=2)
        assert words in done.stderr and "Traceback" not in done.stderr
