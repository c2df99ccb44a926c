"""Vectors, series and volumes restored by an untrained tiny network."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest

from configs import arrays
from diffusion_jax import data
from diffusion_jax.assembly import config_files, datasets, experiment, workdir
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import normalization
from diffusion_jax.data.columns import Column
from diffusion_jax.report import media
from diffusion_jax.studies.edits import arrays as edit_arrays
from diffusion_jax.studies.edits import command, requests
from diffusion_jax.studies.edits import tasks as edit_tasks
from diffusion_jax.studies.edits.job import conditions, job_for
from diffusion_jax.studies.inverse import on_arrays, on_images
from diffusion_jax.studies.inverse import table as inverse_table
from diffusion_jax.studies.weights import publish
from tests.experiments.small_runs import SMALL


def job_of(shape, folder, *changes):
    """Three held-out samples and their data set; channels have scales of their own."""
    values = np.random.default_rng(0).standard_normal((30, *shape)) * np.arange(1, shape[-1] + 1)
    values = {"data": (100 * values).astype(np.int16), "condition": np.arange(30)}
    np.savez(folder / "a.npz", labels=np.arange(30) % 2, **values)
    config = arrays.get_config().lock()
    own = [("data.path", str(folder / "a.npz")), ("sampler.nfe", "3")]
    config_files.apply(config, [*own, *changes])
    config.unlock().model.update(SMALL[config.model.name])
    dataset = datasets.dataset(config)
    model = experiment.assemble(config.lock(), shape, 2, units=dataset.units)
    model = model._replace(normalization=dataset.normalization)
    params = jax.jit(lambda key: model.kind.init(model, key))(jax.random.key(0))
    trained = workdir.Trained(model, params, 0, "params", {"class_names": ["0", "1"]})
    return job_for(trained, dataset, np.arange(3), "", [], range(3)), dataset


@pytest.fixture(scope="module")
def of_series(tmp_path_factory):
    return job_of((8, 2), tmp_path_factory.mktemp("series"))


@pytest.fixture(scope="module")
def of_vectors(tmp_path_factory):
    return job_of((3,), tmp_path_factory.mktemp("vectors"))


def scored(job, dataset, task, mask="", draws=1, method="ddnm"):
    mean = data.arrays(dataset.train)["image"].mean(0)
    return edit_arrays.restore(job, task, mask, method, draws, mean)


def saved(found, job, folder):
    model = job.trained.experiment
    files = {ending: folder / f"x{ending}" for ending in (".png", ".npz")}
    shown = media.media_of(model.shape, model.normalization)
    edit_arrays.save(found, shown, model.normalization, files)
    assert files[".png"].stat().st_size > 1000
    with np.load(files[".npz"]) as stored:
        return {**stored}


def test_a_missing_half_of_a_series_is_imputed_and_scored(of_series, tmp_path):
    job, dataset = of_series
    found = scored(job, dataset, "inpaint", "half", draws=3)
    stored = saved(found, job, tmp_path)
    held_out = dataset.test.values[dataset.test.index[:3]]
    np.testing.assert_array_equal(stored["truth"], held_out)
    assert stored["restored"].shape == (3, 3, 8, 2) and stored["restored"].dtype == np.int16
    assert (stored["restored"][:, :, :4] == held_out[:, :4]).all()
    assert (stored["restored"][0] != stored["restored"][1]).any() and stored["known"][:4].all()
    rows = {row["method"]: row for row in found.rows}
    names = ["mean of the training set", "linear interpolation", "ddnm", "mean of 3 draws"]
    assert list(rows) == names
    last = held_out[:, 3:4].astype(float).repeat(4, 1)  # which goes on
    wanted = np.sqrt(np.square(last - held_out[:, 4:]).mean(1))
    np.testing.assert_allclose(rows["linear interpolation"]["rmse"], wanted, rtol=0.01)
    span = np.subtract(dataset.normalization.high, dataset.normalization.low)
    error = np.square((held_out[:, 4:] - last) / span).mean((1, 2)) / 2
    np.testing.assert_allclose(
        rows["linear interpolation"]["psnr"], -10 * np.log10(error), rtol=0.01
    )
    text = edit_arrays.table(found, dataset.normalization)
    assert "RMSE, channel 1" in text and "CRPS, channel 0" in text and text.count("±") == 4 * 5
    assert rows["ddnm"]["evaluations"] == 3 and rows["mean of 3 draws"]["evaluations"] == 9


def test_columns_of_vectors_are_imputed(of_vectors, tmp_path):
    """A known column is returned, and has no errors; columns have no order to interpolate in."""
    job, dataset = of_vectors
    found = scored(job, dataset, "inpaint", "channels(known=(1,))")
    stored = saved(found, job, tmp_path)
    np.testing.assert_array_equal(stored["restored"][0][:, 1], stored["truth"][:, 1])
    assert [row["method"] for row in found.rows] == ["mean of the training set", "ddnm"]
    text = edit_arrays.table(found, dataset.normalization)
    assert "channel 0" in text and "channel 2" in text and "channel 1" not in text


def test_errors_are_shown_of_what_was_missing_wherever_its_column_is():
    """Here the last two of seven columns."""
    errors = np.where(np.arange(7) < 5, np.nan, np.ones((3, 7)))
    rows = [{"method": "ddnm", "rmse": errors, "crps": errors, "psnr": np.ones(3)}]
    own = normalization.measure([np.eye(7)], "standard", "float32", "")
    text = edit_arrays.table(edit_arrays.ScoredArrays(None, None, None, rows), own)
    assert "channel 5" in text and "channel 6" in text and "channel 0" not in text


def test_super_resolution_of_a_series_keeps_the_means(of_series, tmp_path):
    job, dataset = of_series
    found = scored(job, dataset, "superres(factor=2)", method="replacement")
    assert [row["method"] for row in found.rows] == [
        "nearest",
        "linear interpolation",
        "replacement",
    ]
    stored = saved(found, job, tmp_path)
    coarse = [
        stored[key].astype(float).reshape(-1, 4, 2, 2).mean(2) for key in ("restored", "truth")
    ]
    np.testing.assert_allclose(*coarse, atol=1)  # rounded


@pytest.mark.long
def test_a_box_in_volumes_is_imputed(tmp_path):
    job, dataset = job_of((4, 4, 4, 1), tmp_path)
    found = scored(job, dataset, "inpaint", "box(side=0.5)")
    stored = saved(found, job, tmp_path)
    known = stored["known"]
    assert (stored["restored"][0][:, known] == stored["truth"][:, known]).all()
    assert known.sum() == 64 - 8 and "linear interpolation" in {r["method"] for r in found.rows}


def test_arrays_are_redrawn_by_sdedit(of_vectors):
    job, _ = of_vectors
    rows, names, facts = edit_tasks.apply(job, "sdedit", "", [0.5])
    assert names == ["guide", "strength 0.5"] and rows[0].dtype == np.float32
    assert np.isfinite(facts["psnr_to_guide"]["0.5"])
    np.testing.assert_array_equal(rows[0], job.images)


def test_own_conditions_of_held_out_rows_are_whole(tmp_path):
    """Class and numbers by --labels=own, none without it; and those of test examples to publish."""
    job, dataset = job_of((3,), tmp_path, ("data.condition", "condition"))
    index, model = np.arange(3), job.trained.experiment
    assert not np.asarray(job.cond["vector"]).any()  # no condition
    rows = dataset.test.rows(index)
    own = conditions(model, dataset, index, "own", [], rows["label"])
    np.testing.assert_array_equal(own["label"], rows["label"])
    np.testing.assert_allclose(own["vector"][:, 0], rows["condition"][:, 0], rtol=1e-6)
    assert (np.asarray(own["vector"])[:, 1] == 1).all()  # they are known
    guided = job_for(job.trained, dataset, index, "own", [], range(3))
    np.testing.assert_array_equal(guided.cond["vector"], own["vector"])
    shown = media.media_of((3,), dataset.normalization)
    names, cond, count, given = publish._given(model, dataset, (), shown)
    assert names == [] and count == 1000 and given.seen is None
    np.testing.assert_allclose(cond["vector"][:3], own["vector"], rtol=1e-6)


def test_methods_are_compared_on_arrays(of_vectors, tmp_path):
    """The rows of the baseline are plain numbers; a picture has strips of tiles; no task fails."""
    job, dataset = of_vectors
    tasks = on_images.parse_tasks("inpaint@channels(known=(1,))", (3,), arrays=True)
    table = inverse_table.open_rows(tmp_path / "b.json", {})
    rows, shown = on_arrays.make_rows(job, dataset, tasks, ["ddnm"], table)
    assert [row["method"] for row in rows] == ["y", "mean of the training set", "ddnm"]
    mean = data.arrays(dataset.train)["image"].mean(0)
    error = np.abs(np.asarray(job.images) - mean)[:, [0, 2]].mean(1)  # one value of each column
    np.testing.assert_allclose(rows[1]["rmse"], error, atol=1e-4)
    text = on_images.report(rows, on_images.OF_ARRAYS)
    assert "root mean squared error" in text and "perceptual" not in text
    on_images.draw_strips(rows, shown, tmp_path / "b.png")
    tasks = [
        [*on_images.parse_tasks(on_images.TASKS, shape, arrays=True)]
        for shape in ((3,), (8, 2), (9, 1), (16, 8, 8, 3))
    ]
    assert tasks[0] == ["inpaint@half", "inpaint@random"]
    assert tasks[1][3:] == ["superres(factor=2)", "deblur(std=0.05)"]
    assert tasks[2][3:] == ["deblur(std=0.05)"]
    assert tasks[3][3:] == ["superres(factor=4)", "deblur(std=0.05)"]


def test_masks_from_files_fit_or_are_refused_in_one_line(tmp_path):
    known = np.zeros((8, 2), bool)
    known[::2] = True
    np.save(tmp_path / "a.npy", known), np.save(tmp_path / "b.npy", known[:4])
    np.save(tmp_path / "c.npy", 2 * known), np.save(tmp_path / "d.npy", np.ones(8))
    (tmp_path / "e.png").write_bytes(b"")
    np.testing.assert_array_equal(requests.mask_for(str(tmp_path / "a.npy"), (8, 2)), known)
    for name, words in (
        ("b.npy", r"is bool \(4, 2\); samples \(8, 2\) need ones"),
        ("c.npy", "need ones, where values are known, and zeros"),
        ("d.npy", "is all 1: there is nothing to paint"),
        ("e.png", r"a picture masks images, and these samples are \(8, 2\); take half, box"),
        ("f.npy", "f.npy"),
    ):
        with pytest.raises(UserError, match=words) as error:
            requests.mask_for(str(tmp_path / name), (8, 2))
        assert "\n" not in str(error.value)


def test_files_of_a_mask_of_many_columns_have_a_short_name():
    names = [command._file_name(["inpaint", f"{k}," + "column," * 60, "ddnm"]) for k in (0, 1)]
    assert len({*names}) == 2 and max(map(len, names)) < 120


def test_masks_of_a_table_are_of_whole_columns(tmp_path):
    """A column of categories is known with all of its channels, or not at all."""
    number, color = Column("age", "number"), Column("color", "category", ("a", "b", "c"))
    table = [number, color, Column("kind", "label", ("x", "y")), Column("half", "number")]
    np.save(tmp_path / "m.npy", [True, False, True])
    for spec, wanted in {
        "age": [1, 0, 0, 0, 0],
        "half, color": [0, 1, 1, 1, 1],
        "channels(known=(1,))": [0, 1, 1, 1, 0],
        "box(side=0.3)": [1, 0, 0, 0, 1],
        str(tmp_path / "m.npy"): [1, 0, 0, 0, 1],
    }.items():
        np.testing.assert_array_equal(requests.mask_for(spec, (5,), table), wanted)
    comma = [Column("b, c", "number"), number]
    np.testing.assert_array_equal(requests.mask_for("b, c", (2,), comma), [1, 0])
    for spec, words in {
        "agee": "unknown column or mask of --mask 'agee'; did you mean 'age'",
        "kind": "unknown column or mask of --mask 'kind'",
        "age,color,half": "names all columns: there is nothing to fill",
        "channels(known=(3,))": "samples have 3 channels",
    }.items():
        with pytest.raises(UserError, match=re.escape(words)) as error:
            requests.mask_for(spec, (5,), table)
        assert "\n" not in str(error.value)
