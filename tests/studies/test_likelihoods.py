"""The likelihood command: what it writes, and how it resumes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from numpy.testing import assert_allclose

from configs import digits
from diffusion_jax.assembly import datasets, train
from diffusion_jax.assembly import workdir as runs
from diffusion_jax.studies.likelihood import command as likelihoods
from diffusion_jax.studies.likelihood import measures
from tests import commands
from tests.experiments.small_runs import small


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):

    folder = tmp_path_factory.mktemp("likelihood")
    config = small(
        digits.get_config("vp"), steps=2, eval_every=2, sample_every=2, checkpoint_every=2
    )
    config.data.data_dir = str(folder)
    assert train.train(config.lock(), str(folder / "run"))
    return folder / "run"


FAST = (
    "--solver=heun",
    "--steps=4",
    "--moves=3",
    "--draws=2",
    "--iw=2",
    "--bounds",
    "--num=10",
    "--batch_size=4",
)


def command(folder, *args, expect=0):
    done = commands.run("likelihood", f"--workdir={folder}", *args)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.mark.long
def test_the_command_resumes_at_the_next_batch_and_writes_what_it_prints(workdir):

    other = (
        workdir / "likelihood.parts" / "other_settings" / "00000000.npz"
    )  # is neither read nor lost
    other.parent.mkdir(parents=True)
    other.write_bytes(b"of a run that is not this one")
    done = command(workdir, *FAST)
    table, _, files = done.stdout.strip().rpartition("\n")
    assert table.strip() in (workdir / "likelihood.md").read_text()
    assert files.startswith(f"{workdir}/likelihood.md")
    assert [p.name for p in (workdir / "likelihood.parts").rglob("*.npz")] == [
        other.name
    ] and "are taken from" not in done.stderr
    kept, file = (
        json.loads((workdir / "likelihood.json").read_text()),
        np.load(workdir / "likelihood.npz"),
    )
    assert kept["count"] == 10 and len(kept["rows"]) == 5 and kept["provenance"]["commit"]
    bits = file["ODE_uniform.total"]
    assert bits.shape == (10,) and abs(kept["rows"][0]["bits"] - bits.mean()) < 1e-9
    assert_allclose(kept["rows"][0]["error"], bits.std(ddof=1) / np.sqrt(10))
    for row in ("discrete", "continuous"):
        assert_allclose(
            file[f"{row}.total"],
            sum(file[f"{row}.{term}"] for term in measures.TERMS[1:]),
            rtol=1e-5,
        )

    trained = runs.load(workdir, runs.saved_config(str(workdir)))
    dataset, parts, chosen = (
        datasets.dataset(ConfigDict(trained.experiment.record)),
        workdir / "interrupted",
        kept["settings"],
    )
    first = likelihoods.run(trained, dataset, chosen, 10, 4, parts)
    stamps = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.npz")}
    middle = "00000004-00000008.npz"
    assert sorted(stamps) == ["00000000-00000004.npz", middle, "00000008-00000010.npz"]
    (parts / middle).unlink()  # what an interrupted run had not done
    again = likelihoods.run(trained, dataset, chosen, 10, 4, parts)
    assert {n for n, stamp in stamps.items() if (parts / n).stat().st_mtime_ns != stamp} == {middle}
    for name in (n for n in first if not n.endswith("seconds")):
        assert_allclose(first[name], file[name], rtol=1e-5, atol=1e-5, err_msg=name)
        assert np.array_equal(first[name], again[name]), name
    assert [row["bits"] for row in measures.table(again, chosen)] == [
        row["bits"] for row in measures.table(first, chosen)
    ]


def test_the_command_names_mistakes(workdir):
    assert "did you mean 'uniform'" in command(workdir, "--dequantize=unifor", expect=2).stderr
    (line,) = command(workdir, "--solver=foo", expect=2).stderr.splitlines()
    assert "--solver .foo." in line.replace("'", ".")
