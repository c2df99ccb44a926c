"""The mains of editing and of the inverse benchmark, on an untrained tiny network and the digits;
every mistake is one line.
"""

from __future__ import annotations

import json
import os
import struct
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

from configs import digits
from diffusion_jax.assembly import components, datasets, experiment, workdir
from diffusion_jax.assembly.build import build
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import features
from diffusion_jax.inverse import edits, masks, measurements
from diffusion_jax.samplers import few_step
from diffusion_jax.studies import editing, inverse_benchmark
from tests import commands

GREY, COLOUR = (8, 8, 1), (8, 8, 3)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    config = digits.get_config("vp")
    config.data.data_dir = str(tmp_path_factory.mktemp("data"))
    config.model.update(width=8, multipliers=(1,), attention=(), head_width=8)
    config.sampler.nfe = 4
    built = experiment.assemble(config.lock(), GREY, 10)
    params = built.kind.init(built, jax.random.key(0))
    trained = workdir.Trained(built, params, 0, "params", {"class_names": list("0123456789")})
    return editing.job_for(trained, datasets.dataset(config), np.arange(4), "own", [], range(4))


def test_inpainting_keeps_the_known_pixels_and_draws_differ(job):
    (given, one, two, truth), names, told = editing.solve(
        job, "inpaint", "half", "replacement()", 2
    )
    assert names == ["measurement", "result", "result", "truth"]
    np.testing.assert_array_equal(one[:, :4], truth[:, :4])
    np.testing.assert_array_equal(given[:, :4], truth[:, :4])
    assert (one[:, 4:] != two[:, 4:]).any()
    assert (
        told["evaluations"] == 4 and len(told["psnr_per_image"]) == 2 and np.isfinite(told["psnr"])
    )


def test_superresolution_shows_the_small_pictures(job):
    (given, result, truth), _, _ = editing.solve(job, "superres(factor=2)", "", "ddnm", 1)

    def small(images):
        return images.reshape(4, 4, 2, 4, 2).mean((2, 4))

    np.testing.assert_array_equal(given[:, ::2, ::2], given[:, 1::2, 1::2])
    assert np.abs(small(given) - small(truth)).max() <= 0.5 and result.shape == truth.shape


@pytest.mark.parametrize("task, rows", [("interpolate", 11), ("sdedit", 3), ("translate", 4)])
def test_edits_have_their_rows(job, task, rows):
    pictures, names, told = editing.edit(
        job, task, "3,10" if task == "translate" else "", [0.4, 0.8]
    )
    assert len(pictures) == len(names) == rows and {p.shape for p in pictures} == {
        (2 if task == "interpolate" else 4, *GREY)
    }
    assert json.dumps(told)


def test_a_sampler_that_cannot_encode_interpolates_its_own_images(job):
    job = job._replace(plan=job.plan._replace(sampler=few_step.multistep()))
    pictures, names, told = editing.edit(job, "interpolate", "", [])
    assert len(pictures) == len(names) == 9 and told["between"] == "own images"


def test_pictures_of_the_users_own_are_edited(job, tmp_path, monkeypatch):
    """In the model's size and channels; their class is not known, so translation comes from the
    null condition.
    """
    colour = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(colour).save(tmp_path / "small.png")
    Image.fromarray(np.full((40, 30), 77, np.uint8)).save(tmp_path / "large.jpg")
    files = [str(tmp_path / "small.png"), str(tmp_path / "large.jpg")]
    images = editing.pictures_of(files, GREY)
    np.testing.assert_array_equal(
        images[0, ..., 0], np.asarray(Image.fromarray(colour).convert("L"))
    )
    assert images.shape == (2, *GREY) and np.abs(images[1].astype(int) - 77).max() <= 1
    own = editing.job_for(job.trained, None, np.arange(2), "3,any", [], range(2), images)
    np.testing.assert_allclose(own.images, images / 127.5 - 1, atol=1e-6)
    assert own.labels is None and own.cond["label"].tolist() == [3, 10]
    seen = []
    monkeypatch.setattr(
        edits, "translate", lambda sampler, denoise, process, x, ts, a, b: seen.append((a, b)) or x
    )
    monkeypatch.setattr(jax, "jit", lambda function: function)
    rows, names, _ = editing.edit(own, "translate", "7", [])
    assert (
        names == ["image", "there and back", "7"]
        and [row.shape for row in rows] == [(2, *GREY)] * 3
    )
    assert [(a["label"].tolist(), b["label"].tolist()) for a, b in seen] == [
        ([10, 10], [10, 10]),
        ([10, 10], [7, 7]),
    ]


def test_pictures_that_cannot_be_edited(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "square.png")
    for name, shape, said in (
        ("text.png", GREY, "cannot be read as a picture"),
        ("folder.png", GREY, "cannot be read as a picture"),
        ("absent.png", GREY, "No such file"),
        ("square.png", (8, 6, 1), "8x8 .* images are 8x6"),
    ):
        with pytest.raises(UserError, match=f"^--image=.*{said}") as error:
            editing.pictures_of([str(tmp_path / name)], shape)
        assert "\n" not in str(error.value)


def test_a_mask_from_a_picture(tmp_path):
    known = np.zeros((8, 8), np.uint8)
    known[:, :3] = 255
    Image.fromarray(known).save(tmp_path / "left.png")
    mask = editing.mask_for(str(tmp_path / "left.png"), GREY)
    assert mask.shape == (8, 8, 1) and mask[:, :3].all() and not mask[:, 3:].any()
    np.testing.assert_array_equal(editing.mask_for("box(side=0.25)", GREY), masks.box(GREY, 0.25))
    for name, value, words in (
        ("white", 255, "nothing to paint"),
        ("black", 0, "nothing is known"),
    ):
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(tmp_path / f"{name}.png")
        with pytest.raises(UserError, match=words):
            editing.mask_for(str(tmp_path / f"{name}.png"), GREY)
    with pytest.raises(UserError, match="is 8x8 .* the images are 28x28"):
        editing.mask_for(str(tmp_path / "left.png"), (28, 28, 1))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match="cannot be read as a picture"):
        editing.mask_for(str(tmp_path / "text.png"), GREY)


def test_a_picture_that_is_a_pipe_or_a_bomb_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # nobody writes to it
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", b""), (b"IEND", b"")]
    chunks = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    for name, words in (("pipe", "it is not a regular file"), ("bomb", "exceeds limit")):
        with pytest.raises(
            UserError, match=f"--mask=.*{name}.png cannot be read as a picture .*{words}"
        ):
            editing.mask_for(str(tmp_path / f"{name}.png"), GREY)
        with pytest.raises(
            UserError, match=f"--image=.*{name}.png cannot be read as a picture .*{words}"
        ):
            editing.pictures_of([str(tmp_path / f"{name}.png")], GREY)


@pytest.mark.parametrize(
    "task, mask, shape, words",
    [
        ("inpiant", "", GREY, "unknown task 'inpiant'; did you mean 'inpaint'"),
        ("inpaint", "halves", GREY, "unknown mask 'halves'; did you mean 'half'"),
        ("inpaint", "nowhere.png", GREY, "cannot be read as a picture"),
        ("inpaint", "random(keep=2.0)", GREY, "between 0 and 1"),
        ("colorize", "", GREY, "needs color images"),
        ("colourise", "", GREY, "needs color images"),  # an alias
        ("colorize", "half", COLOUR, "has no mask"),
        ("superres(factor=3)", "", GREY, "does not divide"),
        ("superres(times=2)", "", GREY, "superres takes factor, std"),
        ("deblur(std=-1.0)", "", GREY, "must be at least 0"),
        ("linear", "", GREY, "missing a required argument"),
    ],
)
def test_tasks_that_cannot_be(task, mask, shape, words):
    with pytest.raises(UserError, match=words) as error:
        editing.measurement_for(task, mask, shape)
    assert "\n" not in str(error.value)


def test_methods_and_labels_that_cannot_be(job):
    overexposed = editing.measurement_for("saturate(gain=3.0)", "", GREY)
    for method in ("ddnm", "pigdm", "replacement", "repaint(resample=2)"):
        with pytest.raises(
            UserError, match="needs a linear measurement, and --task=saturate is not"
        ):
            editing.method_for(method, overexposed, "saturate")
    assert not editing.method_for("dps(scale=0.3)", overexposed, "saturate").linear
    with pytest.raises(UserError, match="unknown method 'dpss'; did you mean 'dps'"):
        editing.method_for("dpss", overexposed, "saturate")
    for labels, prompts, own, words in (
        ([11], [], job.labels, "label 11 does not exist"),
        ("own", [], None, "the class of an --image is not known"),
        ("", ["a 3"], None, "knows no captions"),
        ([3], ["a 3"], None, "ask for one of them"),
    ):
        with pytest.raises(UserError, match=words):
            editing.conditions(job.trained.experiment, None, np.arange(4), labels, prompts, own)
    for text in ("", "0.5,1.5", "half"):
        with pytest.raises(UserError, match="write shares"):
            editing.strengths_of(text)
    stochastic = job._replace(
        plan=job.plan._replace(sampler=build(components.SAMPLERS, "ancestral.ddpm"))
    )
    with pytest.raises(UserError, match="only a deterministic sampler can encode"):
        editing.edit(stochastic, "translate", "3", [0.5])


def test_the_command_prints_one_line_and_ends_with_2(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(digits.get_config("vp").to_dict()))
    (tmp_path / "data.json").write_text(
        json.dumps(
            {
                "name": "digits",
                "image_shape": GREY,
                "num_classes": 10,
                "class_names": list("0123456789"),
            }
        )
    )
    done = commands.run("edit", f"--workdir={tmp_path}", "--task=colorize")
    assert (
        done.returncode == 2
        and done.stderr.startswith("error: colorize needs color")
        and done.stderr.count("\n") == 1
    )
    assert not (tmp_path / "edits").exists()


# ---- the benchmark
def test_benchmark_on_a_mixture_tells_exact_from_wrong_and_resumes(tmp_path):
    file, about = tmp_path / "inverse_benchmark.json", {"target": "gmm8"}
    args = (
        "gmm8",
        "schedules.VP()",
        "ancestral.ddim(eta=1.0)",
        "uniform_logsnr",
        ["unguided"],
        [12],
    )
    with jax.enable_x64(True):

        def run():
            return inverse_benchmark.on_target(
                *args, num=40, draws=60, std=0.1, kept=inverse_benchmark.kept_in(file, about)
            )

        rows = run()
        exact, told, blind = rows
        assert (
            exact["bias"] < 0.25
            and abs(exact["variance_ratio"] - 1) < 0.1
            and 0.8 < exact["interval_coverage"] < 0.97
        )
        assert told["bias"] < 0.4 and 0.6 < told["variance_ratio"] < 1.2
        assert blind["bias"] > 2 * told["bias"]
        kept = json.loads(file.read_text())
        kept["rows"][1]["bias"] = -1.0  # a row that is there is not made again
        file.write_text(json.dumps(kept))
        assert run()[1]["bias"] == -1.0
    text = inverse_benchmark.target_report(rows)
    assert text.count("\n") == 5 and "exact posterior" in text
    inverse_benchmark.target_pictures(rows, tmp_path / "inverse_benchmark", "title")
    assert (tmp_path / "inverse_benchmark.png").exists() and (
        tmp_path / "inverse_benchmark_draws.png"
    ).exists()
    with pytest.raises(UserError, match="no mixture whose posterior is known"):
        inverse_benchmark.law_of("checkerboard")


def test_benchmark_of_a_noisy_measurement_on_a_line(tmp_path):
    """N(0, 1) with noise of 0.5: repaint is near the posterior, not the prior, whose variance is
    five times as large.
    """
    args = (
        "standard_normal(dim=1)",
        "schedules.VP()",
        "ancestral.ddim(eta=1.0)",
        "uniform_logsnr",
        ["repaint"],
        [401],
    )
    with jax.enable_x64(True):
        kept = inverse_benchmark.kept_in(tmp_path / "inverse_benchmark.json", {"target": args[0]})
        rows = inverse_benchmark.on_target(*args, num=20, draws=100, std=0.5, kept=kept)
    found = rows[-1]
    assert found["method"] == "repaint" and found["evaluations"] == 401
    assert (
        found["bias"] < 0.35
        and 0.7 < found["variance_ratio"] < 1.3
        and found["interval_coverage"] > 0.75
    )
    inverse_benchmark.target_pictures(
        rows, tmp_path / "inverse_benchmark", "title"
    )  # no plane to draw densities in
    assert (tmp_path / "inverse_benchmark.png").exists() and not (
        tmp_path / "inverse_benchmark_draws.png"
    ).exists()


def test_benchmark_on_images(job, tmp_path, monkeypatch):
    pixels = features.extractor("pixels")
    monkeypatch.setattr(
        features, "extractor", lambda *args: pixels
    )  # the classifier takes a minute to train
    dataset = datasets.dataset(job.trained.experiment.config)
    tasks = inverse_benchmark.parse_tasks("inpaint@half;superres(factor=2)", GREY)
    kept = inverse_benchmark.kept_in(tmp_path / "b.json", {})
    rows, shown = inverse_benchmark.on_images(job, dataset, tasks, ["ddnm"], "", kept)
    names = [(row["task"], row["method"]) for row in rows]
    assert names == [
        ("inpaint@half", m) for m in ("y", "mean of known pixels", "mean image", "ddnm")
    ] + [("superres(factor=2)", m) for m in ("y", "nearest", "bicubic", "ddnm")]
    for key in ("psnr", "perceptual"):
        assert all(
            len(row[key]) == len(job.images) and np.isfinite(row[key]).all()
            for row in rows
            if row["method"] != "y"
        )
    scored = [row | {"psnr": [20.0, 22.0], "perceptual": [0.25, 0.25]} for row in rows[1:3]]
    scored[1]["psnr"] = [19.0, 21.0]
    table = inverse_benchmark.image_report(scored)
    assert (
        "| **21.00** ± 1.00 | **0.2500** ± 0.0000 |" in table
        and "| 20.00 ± 1.00 |" in table
        and table.count("\n") == 2 + 2
    )
    inverse_benchmark.image_picture(rows, shown, tmp_path / "b.png")
    assert "colorize" not in inverse_benchmark.parse_tasks(inverse_benchmark.IMAGE_TASKS, GREY)
    assert "colorize" in inverse_benchmark.parse_tasks(inverse_benchmark.IMAGE_TASKS, (32, 32, 3))


def test_baselines_against_plain_numbers():
    x = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 1)).astype("float32")
    mask = masks.half((4, 4, 1))
    measurement = measurements.inpaint((4, 4, 1), mask)
    filled = inverse_benchmark.baselines(
        "inpaint", measurement, measurement.forward(x), (4, 4, 1), np.full((4, 4, 1), 0.3)
    )
    np.testing.assert_allclose(
        filled["mean of known pixels"][:, 2:, :, 0],
        np.repeat(x[:, :2].mean((1, 2)), 8).reshape(2, 2, 4),
        rtol=1e-5,
    )
    np.testing.assert_allclose(filled["mean image"][:, 2:], 0.3)
    np.testing.assert_array_equal(filled["mean image"][:, :2], x[:, :2])
