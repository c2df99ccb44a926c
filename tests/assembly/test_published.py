"""Published workdirs: what is in them, what they give, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from diffusion_jax.assembly import locking, publication, sampling, stored, train
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.core import files
from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation import generate
from diffusion_jax.pretrained import addresses, folders, safetensors
from diffusion_jax.studies.weights import model_card, publish
from experiments import arguments
from tests.assembly.published import published, unpacked
from tests.assembly.test_captions import config_of
from tests.experiments.small_runs import small

NAMES = {"README.md", "config.json", "data.json", "manifest.json", "samples.png"}
NAMES |= {"weights.safetensors", "grids/mine.json"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = unpacked(tmp_path_factory.mktemp("runs"))
    provenance = folder / "points" / "provenance.json"
    command = f".venv/bin/python -m experiments.train --workdir={folder}/points --seed=1"
    record = json.loads(provenance.read_text()) | {"command": command}
    files.save_json(provenance, record)
    grid = {"logsnr": {"2": [-4.0, 5.0]}, "provenance": {"command": f"{folder}/x"}}
    files.save_json(folder / "points" / "grids" / "mine.json", grid)
    return folder


@pytest.fixture(scope="module")
def model(runs):
    return published(runs / "points", runs / "out" / "points", license="apache-2.0")


@pytest.fixture
def copy(model, tmp_path):
    return Path(shutil.copytree(model, tmp_path / "points"))


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_has_the_files_of_the_format_and_names_no_path(runs, model):
    assert names(model) == NAMES and not [*model.parent.glob(".*")]
    for file in model.glob("**/*.[jm]*[nd]"):
        text = file.read_text()
        assert str(runs) not in text and str(Path.home()) + os.sep not in text, file
    card = (model / "README.md").read_text()
    assert (
        'license: "apache-2.0"' in card
        and "python -m experiments.train --workdir=runs/points" in card
    )
    assert "not stated by the publisher" in card and "at commit" in card


def test_the_weights_are_those_of_the_run_rounded(runs, model):
    run = workdirs.load(runs / "points")
    found = workdirs.load(model)
    assert (found.step, found.weights, found.data) == (run.step, run.weights, run.data)
    for ours, theirs in zip(
        jax.tree.leaves(found.params), jax.tree.leaves(run.params), strict=True
    ):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, np.asarray(theirs).astype(np.float16))
    assert found.experiment.grids[0] == model / "grids"


def dtypes(folder):
    return {str(leaf.dtype) for leaf in safetensors.load_file(folder / folders.WEIGHTS).values()}


def test_classes_keep_their_names_and_bfloat16_is_taken(runs, tmp_path):
    out = published(runs / "vae", tmp_path / "vae", dtype="bfloat16")
    assert workdirs.about_data(out)["class_names"] == list("0123456789")
    assert {str(x.dtype) for x in safetensors.load_file(out / folders.WEIGHTS).values()} == {
        "bfloat16"
    }
    published(runs / "vae", out)  # a published model is replaced
    assert {str(x.dtype) for x in safetensors.load_file(out / folders.WEIGHTS).values()} == {
        "float16"
    }
    assert not [*tmp_path.glob(".*")]


@pytest.mark.long
def test_a_model_of_captions_is_published_with_the_captions_of_its_picture(tmp_path):
    config = small(config_of(), steps=4, eval_every=0, sample_every=0)
    assert train.train(config.lock(), str(tmp_path / "run"))
    out = published(tmp_path / "run", tmp_path / "out")
    assert "text-to-image" in (out / "README.md").read_text()
    found = load(out)
    cond = found.experiment.conditions.of_prompts(["a bold 3"])
    run = sampling.sample_with(found.experiment, found.params, sampling.method(found.experiment))
    assert np.isfinite(run(generate.seeds_to_keys([0]), cond)).all()
    published(tmp_path / "run", out, prompt=["a thin 1", "a bold 2"])


def test_what_is_not_a_finished_model_is_refused(runs, model, tmp_path):
    def refused(run, words, out="new", **changes):
        config = workdirs.saved_config(run)
        with config.unlocked():
            config.sampler.update(changes)
        with pytest.raises(UserError, match=words):
            publish.publish(config, workdir=str(run), out=str(tmp_path / out))
        assert not (tmp_path / "new").exists()

    short = shutil.copytree(runs / "points", tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    config["training"]["steps"] = 100
    files.save_json(short / "config.json", config)
    refused(short, "is at step 8 of 100; resume")
    shutil.rmtree(short / "checkpoints")
    refused(short, "has no checkpoint; train")
    refused(model, "is a published model; copy")
    refused(runs / "points", "exists and is no published model", out="short")
    refused(runs / "digits", "needs another model", guide="autoguidance(ema='params')")
    config = workdirs.saved_config(model)
    with config.unlocked():
        config.sampler.ema = "params"
    with pytest.raises(UserError, match="has the weights '5k' of step 8 alone"):
        workdirs.load(model, config)


def test_files_of_others_in_a_published_model_are_not_removed(runs, copy):
    config = workdirs.saved_config(runs / "points")
    for name in (".git/config", "grids/mine.txt"):
        files.save_text(copy / name, "mine")
        with pytest.raises(UserError, match=f"has '{name}', which is no file of a published"):
            publish.publish(config, workdir=str(runs / "points"), out=str(copy))
        (copy / name).unlink()
    assert not folders.others(copy)


def test_a_folder_stays_where_the_new_one_cannot_be_moved_to_its_place(tmp_path):
    files.save_text(tmp_path / "a" / "x", "old")
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(OSError, match="No such file"), files.atomic_folder(tmp_path / "a") as new:
        new.rmdir()
    assert (tmp_path / "a" / "x").read_text() == "old"
    with files.atomic_folder(tmp_path / "link") as new:
        (new / "x").write_text("new")
    assert (tmp_path / "a" / "x").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "link"]


def test_published_files_can_be_read_by_all_whom_the_umask_allows(model):
    plain = model.parent / "plain"
    plain.touch()
    assert {path.stat().st_mode for path in model.iterdir() if path.is_file()} == {
        plain.stat().st_mode
    }


def test_what_a_killed_process_left_next_to_a_folder_is_removed_after_a_day(tmp_path):
    left, recent, mine = (tmp_path / f".{name}.tmp" for name in ("a.0123456789ab", "ba98" * 3, "a"))
    for folder in (left, recent, mine):
        folder.mkdir()
    for folder in (left, mine):
        os.utime(folder, (0, 0))
    with files.atomic_folder(tmp_path / "a"):
        pass
    assert not left.exists() and recent.exists() and mine.exists()


def test_no_command_writes_into_a_published_model(model, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert folders.outputs(model) == Path("runs/pretrained/points")
    assert folders.outputs(tmp_path) == tmp_path
    with (
        pytest.raises(UserError, match="is a published model, which is never changed"),
        locking.locked(model),
    ):
        pass


def test_bare_names_are_those_of_the_repository_unless_a_folder_has_the_name(
    model, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(addresses, "SHIPPED", model.parent)
    monkeypatch.chdir(tmp_path)
    assert addresses.resolve("points") == str(model) == arguments._path("workdir", "points")
    assert arguments._path("workdir", "points", trains=True) == "points"
    assert addresses.resolve("others") == "others" and addresses.resolve(None) is None
    with pytest.raises(UserError, match="or name one of the shipped models: points"):
        workdirs.saved_config("others")
    with pytest.raises(UserError, match="did you mean --workdir=points"):
        workdirs.saved_config("piont")
    (tmp_path / "points").mkdir()
    addresses._say.cache_clear()
    assert addresses.resolve("points") == "points"
    assert "is the folder points, not the model that is shipped" in capsys.readouterr().err


# ---- what a stranger may have written
def rewritten(folder, name, change):
    """Change a JSON file of a published model, and its entry in the manifest."""
    about = folders.manifest(folder)
    content = json.loads((folder / name).read_text())
    change(content)
    files.save_json(folder / name, content)
    folders.write_manifest(folder, about["step"], about["weights"])


def load(folder):
    return workdirs.load(folder, workdirs.saved_config(folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.path", "/etc"),
        ("data.captions", "x.json"),
        ("init_from", "runs/a"),
        ("distill.teacher", "https://example.org/model"),
    ],
)
def test_a_config_that_names_a_path_is_refused(copy, key, value):
    section, _, name = key.rpartition(".")

    def change(content):
        (content[section] if section else content)[name] = value

    rewritten(copy, "config.json", change)
    with pytest.raises(UserError, match=f"names config.{key}=.*names no path"):
        load(copy)


def test_weights_that_do_not_fit_are_refused(copy):
    file, about = copy / folders.WEIGHTS, folders.manifest(copy)
    good = safetensors.load_file(file)
    first = sorted(good)[0]
    for change, words in (
        ({first: np.full_like(good[first], np.nan)}, f"{first} is not finite"),
        ({first: np.zeros((3, 3, 3), np.float16)}, rf"{first} is \(3, 3, 3\) in the file"),
        ({first: good[first].astype(np.int8)}, f"{first} is int8"),
        ({"../../x": good[first]}, "not a parameter"),
    ):
        safetensors.save(file, good | change)
        folders.write_manifest(copy, about["step"], about["weights"])
        with pytest.raises(UserError, match=words):
            load(copy)
    for content in (b"\x80\x04K\x01.", b"\xff" * 16, b""):
        file.write_bytes(content)
        with pytest.raises(UserError, match="its sha256 is not that of manifest.json"):
            load(copy)
        folders.write_manifest(copy, about["step"], about["weights"])
        with pytest.raises(UserError, match="weights.safetensors': not a safetensors file"):
            load(copy)


def test_manifests_that_lead_elsewhere_are_refused(copy):
    entry = {"bytes": 1, "sha256": "0" * 64}
    good = folders.manifest(copy)
    for name in (
        "../x",
        "/etc/passwd",
        "grids/../x.json",
        "weights.pt",
        "autoencoder/autoencoder/config.json",
    ):
        bad = good | {"files": good["files"] | {name: entry}}
        files.save_json(copy / folders.MANIFEST, bad)
        with pytest.raises(UserError, match="which is no file of a model"):
            load(copy)
    for bad in (good | {"format": 2}, good | {"step": -1}, {}, [], good | {"files": {}}):
        files.save_json(copy / folders.MANIFEST, bad)
        with pytest.raises(UserError, match=r"manifest.json' is damaged"):
            load(copy)
    (copy / folders.MANIFEST).unlink()
    os.mkfifo(copy / folders.MANIFEST)
    with pytest.raises(UserError, match="no checkpoint"):  # it is then no published model
        load(copy)


def test_other_files_of_the_model_are_those_that_were_published(copy):
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    with pytest.raises(UserError, match="config.json' is damaged, or not the file"):
        load(copy)
    with pytest.raises(UserError, match="does not list data.txt"):
        folders.content(copy, "data.txt")


def test_commands_are_shown_without_paths():
    typed = "/a/.venv/bin/python -m experiments.train --config=/a/configs/x.py:vp --workdir=/tmp/q"
    typed += " --config.data.path=/secret/images --config.init_from=hf://a/b --config.seed=1 "
    typed += "--config.sampler.guide=\"classifier(workdir='/home/me/c')\""
    shown = model_card.without_paths(typed, "mine")
    assert shown.startswith("python -m experiments.train --config=x.py:vp --workdir=runs/mine ")
    assert "--config.data.path=DATA --config.init_from=b --config.seed=1" in shown
    assert not [word for word in ("secret", "/home", "/tmp", "/a/") if word in shown]


def test_the_card_of_a_fine_tuned_model_names_what_it_started_from(model):
    trained = workdirs.load(model)
    trained = trained._replace(data=trained.data | {"train_size": 500})
    for start, words in (
        ("", "500 examples alone, and"),
        ("/a/mnist", "and those of `mnist`, with"),
    ):
        lines = model_card._limitations(trained, start, publish.Statements(), "float16")
        assert words in lines and "/a/" not in lines


def test_scores_of_other_weights_are_not_those_of_the_card(tmp_path, capsys):
    sampler = {"name": "ancestral.ddim", "nfe": 5, "guidance": 1.0}
    record = {"mean": {"frechet": 1.0}, "num": 10, "repeats": 1, "sampler": sampler}
    file = tmp_path / "evaluation.json"
    for about, taken in (
        ({}, True),
        ({"step": 8, "weights": "5k"}, True),
        ({"step": 4, "weights": "5k"}, False),
        ({"step": 8, "weights": "params"}, False),
    ):
        file.write_text(json.dumps(record | about))
        assert bool(model_card.evaluations(tmp_path, "", 8, "5k")) == taken
        assert ("note: the card has no scores" in capsys.readouterr().err) != taken
    with pytest.raises(UserError, match="weights 'params' of step 8, and '5k' of step 8 are publ"):
        model_card.evaluations(tmp_path, str(file), 8, "5k")


def test_a_path_in_a_published_value_is_refused():
    for value in ("/data/x", "~/x", "stored('a.json')", 'autoguidance(workdir="/x")', "gs://b/x"):
        with pytest.raises(UserError, match="looks like a path of this machine"):
            publication._refuse_paths({"sampler": {"grid": value}}, "config.json")
    publication._refuse_paths({"a": ["karras", "schedules.EDM()", "and/or"]}, "config.json")


def test_the_identity_of_a_published_model_is_the_hash_of_its_weights(runs, model):
    found = stored.identity(model, "")
    assert found == folders.manifest(model)["files"][folders.WEIGHTS]["sha256"]
    assert stored.identity(runs / "points", "") == 8
