"""The claims of the textbook decided by numbers, and families compared end to end, small."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from configs import families
from diffusion_jax.assembly import datasets, workdir
from diffusion_jax.core.errors import UserError
from diffusion_jax.report.families import training_curves
from diffusion_jax.studies import other_models
from diffusion_jax.studies.families import comparison, tasks, training, workers
from diffusion_jax.studies.families import figures as family_figures
from diffusion_jax.studies.families.claims import (
    blurred,
    claims,
    collapsed,
    copied,
    falling,
    less,
    over_seeds,
    sharp,
    steadier,
    verdicts,
)
from tests.markdown import squeezed

ROOT = Path(__file__).parents[2]


def of(**values):
    """A family's scores without a spread, or (mean, std)."""
    return {
        key: value if isinstance(value, tuple) else (value, 0.0) for key, value in values.items()
    }


@pytest.mark.parametrize(
    "decide, rows, holds",
    [
        (
            blurred,
            (of(laplacian=0.4, high_frequency=0.5), of(laplacian=0.97, high_frequency=1.02)),
            True,
        ),
        (
            blurred,
            (of(laplacian=0.4, high_frequency=0.5), of(laplacian=4.0, high_frequency=3.0)),
            False,
        ),  # noise is not sharpness
        (
            blurred,
            (of(laplacian=0.4, high_frequency=1.0), of(laplacian=1.0, high_frequency=1.0)),
            False,
        ),
        (sharp, (of(laplacian=1.05, high_frequency=0.93),), True),
        (sharp, (of(laplacian=1.05, high_frequency=0.5),), False),
        (less("frechet"), (of(frechet=(1.0, 0.1)), of(frechet=(2.0, 0.1))), True),
        (less("frechet"), (of(frechet=(2.0, 0.1)), of(frechet=(1.0, 0.1))), False),
        (
            less("frechet"),
            (of(frechet=(1.0, 0.4)), of(frechet=(2.0, 0.4))),
            None,
        ),  # 2 sqrt(0.32) > 1
        (
            falling,
            [of(rate=r, distortion=d, active_units=8) for r, d in ((30, 10), (20, 15), (5, 40))],
            True,
        ),
        (
            falling,
            [of(rate=r, distortion=d, active_units=8) for r, d in ((30, 10), (20, 9), (5, 40))],
            False,
        ),
        (collapsed, (of(rate=20, active_units=9), of(rate=0.5, active_units=0)), True),
        (collapsed, (of(rate=20, active_units=9), of(rate=15, active_units=8)), False),
        (copied, (of(copies=0.2, nearest_ratio=0.3),), True),
        (copied, (of(copies=0.01, nearest_ratio=1.0),), False),
        (steadier, (of(frechet=(1.0, 0.01)), of(frechet=(5.0, 0.5))), True),
        (
            steadier,
            (of(frechet=(1.0, 0.01)), of(frechet=5.0)),
            None,
        ),  # of one seed there is no spread
    ],
)
def test_claims_are_decided_by_their_numbers(decide, rows, holds):
    decided, measured = decide(*rows)
    assert decided is holds and any(c.isdigit() for c in measured)


def test_only_claims_about_families_that_were_run_are_judged():
    rows = [
        {"family": "vae", "seed": seed, "laplacian": 0.4 + 0.1 * seed, "high_frequency": 0.5}
        for seed in (0, 1)
    ]
    rows += [{"family": "ddpm", "seed": 0, "laplacian": 1.0, "high_frequency": 1.0, "bits": None}]
    scored = over_seeds(rows)
    assert scored["vae"]["laplacian"] == (pytest.approx(0.45), pytest.approx(0.1 / np.sqrt(2)))
    assert "bits" not in scored["ddpm"] and scored["vae"]["seeds"] == (2, 0)
    for name in scored:
        scored[name] |= of(frechet=1.0, recall=0.5, precision=0.5, milliseconds=1.0)
        scored[name] |= of(minutes=2.0, copies=0.01, nearest_ratio=1.0)
    decided = {row["claim"]: row["verdict"] for row in verdicts(scored)}
    assert decided["Samples of a VAE are blurred, more than diffusion's"] == "holds"
    assert set(decided) == {
        claim.text for claim in claims("") if set(claim.about) <= {"vae", "ddpm"}
    }


def test_a_difference_within_the_intervals_of_single_seeds_is_undecided():
    rows = [
        {"family": name, "seed": 0, "bits": bits, "intervals": {"bits": 0.16}, "frechet": 1.0}
        for name, bits in (("ddpm", 3.34), ("vae_logistic", 3.49), ("vae", 4.0))
    ]
    scored = over_seeds(rows)
    assert less("bits")(scored["ddpm"], scored["vae_logistic"])[0] is None
    assert less("bits")(scored["ddpm"], scored["vae"])[0]
    assert steadier(scored["ddpm"], scored["vae"]) == (None, "trained from 1 seed")


def test_every_family_that_a_claim_is_about_has_a_config_and_a_title():
    config = families.get_config("digits")
    assert (
        {name for claim in claims("") for name in claim.about}
        <= set(config.family)
        == set(config.about)
        == set(config.families)
    )
    with pytest.raises(UserError, match="did you mean 'mnist'"):
        families.get_config("mnis")


def test_each_claim_names_a_figure():
    assert {claim.picture for claim in claims("")} <= set(family_figures.FIGURES)


@pytest.mark.parametrize("images, steps, points", [(614_400, 9600, [1200, 2400, 4800, 9600])])
def test_points_are_whole_steps_whose_checkpoints_are_kept(images, steps, points):
    shares = (0.125, 0.25, 0.5, 1.0)
    assert training.steps_of(images, 64, shares) == (steps, points)
    config = training.with_steps(families.get_config("digits").family.vae, steps, points, 0)
    every = config.training.keep_every
    assert all(point % every == 0 for point in points)
    assert every % config.training.checkpoint_every == 0
    for images in (1, 64, 100, 640, 7777):
        steps, points = training.steps_of(images, 64, shares)
        assert points[-1] == steps >= 1 and points == sorted(set(points))


def test_the_nearest_training_image_is_found():
    train = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 1)).astype(np.uint8)
    assert list(family_figures.nearest(train[[7, 29]] // 2 * 2, train, block=8)) == [7, 29]


def tiny(**changes):
    config = families.get_config("digits")
    config.data.batch_size = 32
    config.update(images=128, points=(0.5, 1.0), num=20, likelihood=0, features="pixels", **changes)
    for own in config.family.values():
        own.sampler.nfe = 2
    return config


def test_other_models_have_names_that_tell_them_apart(tmp_path, monkeypatch):
    """Rows of one name would count as the seeds of one family."""
    monkeypatch.chdir(tmp_path)
    others = ["a/run", "b/run", "c/ddpm", "d/own", "./d/own/", "digits"]
    found = other_models.named(others, {"ddpm": 0, "vae": 0})
    assert list(found) == ["a/run", "b/run", "c/ddpm", "own", "digits"]
    assert found["digits"] == ROOT / "pretrained" / "digits"
    assert not list(tmp_path.iterdir())


def test_a_seed_that_is_named_twice_counts_once():
    _, found = tasks.chosen(families.get_config("digits"), "ddpm", "1,1,0")
    assert [task.folder for task in found][:1] == ["ddpm_1"]
    assert len(set(found)) == len(found)


def test_a_model_of_unknown_training_time_has_no_point_in_the_figure(tmp_path):
    curves = {"known": [{"minutes": 3.0, "frechet": 1.0}], "published": [{"frechet": 0.5}]}
    training_curves(curves, ["frechet"], tmp_path / "a.png", features="pixels")
    assert (tmp_path / "a.png").is_file()


def test_results_of_other_data_or_another_autoencoder_are_not_taken(tmp_path):
    """What is found is not trained again, which would refuse it."""
    with tarfile.open(ROOT / "tests" / "fixtures" / "workdirs.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    kept, saved = tmp_path / "runs", workdir.saved_config(tmp_path / "digits")
    shutil.copytree(tmp_path / "digits", kept / "ddpm_0")
    settings = families.get_config("digits").unlock()
    settings.recipe, settings.data = saved, saved.data.copy_and_resolve_references()
    dataset = datasets.dataset(saved)

    def check():
        own = saved.copy_and_resolve_references().unlock()
        own.data = settings.data
        tasks.check_folder(kept, {"vae": own}, settings, dataset)

    check()
    settings.data.flip = not saved.data.flip
    with pytest.raises(UserError, match="ddpm_0 holds another run: data.flip"):
        check()
    settings.data.flip = saved.data.flip
    shutil.move(kept / "ddpm_0", kept / "latent_0" / "autoencoder")
    check()
    settings.recipe = saved.copy_and_resolve_references().unlock()
    settings.recipe.model.width = 2 * saved.model.width
    with pytest.raises(UserError, match="autoencoder holds another run: model.width"):
        check()


@pytest.mark.long
def test_families_end_to_end(tmp_path):
    config = tiny(families=("vae", "vae_beta_low"), seeds=(0, 1), repeated=("vae",))
    args = {"workdir": str(tmp_path)}
    text = comparison.compare(config, **args)
    assert "| vae |" in (table := squeezed(text)) and "| real test images |" in table
    kept = json.loads((tmp_path / "families.json").read_text())
    assert [(row["family"], row["seed"]) for row in kept["rows"]] == [
        ("vae", 0),
        ("vae_beta_low", 0),
        ("vae", 1),
    ]
    assert all(row["images"] == 128 and row["minutes"] > 0 for row in kept["rows"])
    assert all(row["intervals"]["frechet"] > 0 for row in [*kept["rows"], kept["real"]])
    assert [row["images"] for row in kept["curves"]["vae_1"]] == [64, 128]
    assert kept["titles"]["frechet"] == "Fréchet distance of pixels" and "± " in table
    drawn = ("quality", "samples", "tradeoff", "collapse", "stability", "nearest", "diversity")
    made = {f"families_{name}.png" for name in drawn} | {"families.html", "families.md"}
    assert made <= {file.name for file in tmp_path.iterdir()}
    cell, *_ = (tmp_path / "vae_beta_low_0" / "measured").glob("*.npz")
    before = cell.stat().st_mtime_ns
    copies = str(tmp_path / "images" / "why")
    again = comparison.compare(config, **args, figures=copies)
    assert again.splitlines()[4:] == text.splitlines()[4:]  # found, not made again
    assert cell.stat().st_mtime_ns == before
    assert (tmp_path / "images" / "why_quality.png").is_file()
    comparison.compare(config, str(tmp_path), "vae_beta_low", "0", others=[str(tmp_path / "vae_0")])
    rows = json.loads((tmp_path / "families.json").read_text())["rows"]
    assert rows[1]["family"] == "vae_0" and rows[1]["frechet"] == kept["rows"][0]["frechet"]
    (tmp_path / "toy").mkdir()
    with pytest.raises(UserError, match="--others=.*toy has no config.json"):
        # before the hours of training, not after
        comparison.compare(config, str(tmp_path / "fresh"), others=[str(tmp_path / "toy")])
    assert not (tmp_path / "fresh").exists()
    with pytest.raises(
        UserError, match="unknown --families 'vae_betahigh'; did you mean 'vae_beta_high'"
    ):
        comparison.compare(config, str(tmp_path), "vae_betahigh")
    with pytest.raises(UserError, match="--jobs=999: each has a core of its own"):
        comparison.compare(config, str(tmp_path), jobs=999)


@pytest.mark.long
def test_processes_resume_after_their_parent_is_killed(tmp_path):
    """kill -9 of the command ends its processes, and the same command finishes the work."""
    cores = len(workers.cores())
    command = [sys.executable, "-m", "experiments.compare_families"]
    command += ["--config=configs/families.py:digits", f"--workdir={tmp_path}", "--seeds=0"]
    command += [f"--jobs={min(2, cores)}", "--families=vae;ddpm", "--config.images=12800"]
    command += ["--config.num=20", "--config.likelihood=0", "--config.features=pixels"]
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    rows = tmp_path / "ddpm_0" / "metrics.jsonl"
    while not rows.is_file() or not rows.read_text():
        assert first.poll() is None
        time.sleep(0.1)
    first.kill()
    first.wait()
    subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    kept = json.loads((tmp_path / "families.json").read_text())
    assert [row["family"] for row in kept["rows"]] == ["vae", "ddpm"]
