"""Editing by an untrained tiny network on the digits; every mistake is one line."""

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
from diffusion_jax.assembly import components
from diffusion_jax.assembly.build import build
from diffusion_jax.core.errors import UserError
from diffusion_jax.inverse import edits, masks
from diffusion_jax.samplers import few_step
from diffusion_jax.studies.edits import job as edit_job
from diffusion_jax.studies.edits import requests, restoration, tasks
from tests import commands

GRAY, COLOR = (8, 8, 1), (8, 8, 3)


def test_inpainting_keeps_the_known_pixels_and_draws_differ(job):
    (given, one, two, truth), names, facts = restoration.solve(
        job, "inpaint", "half", "replacement()", 2
    )
    assert names == ["measurement", "result", "result", "truth"]
    np.testing.assert_array_equal(one[:, :4], truth[:, :4])
    np.testing.assert_array_equal(given[:, :4], truth[:, :4])
    assert (one[:, 4:] != two[:, 4:]).any()
    assert (
        facts["evaluations"] == 4
        and len(facts["psnr_per_image"]) == 2
        and np.isfinite(facts["psnr"])
    )


def test_superresolution_shows_the_small_pictures(job):
    (given, result, truth), _, _ = restoration.solve(job, "superres(factor=2)", "", "ddnm", 1)

    def small(images):
        return images.reshape(4, 4, 2, 4, 2).mean((2, 4))

    np.testing.assert_array_equal(given[:, ::2, ::2], given[:, 1::2, 1::2])
    assert np.abs(small(given) - small(truth)).max() <= 0.5 and result.shape == truth.shape


@pytest.mark.parametrize("task, rows", [("interpolate", 11), ("sdedit", 3), ("translate", 4)])
def test_edits_have_their_rows(job, task, rows):
    pictures, names, facts = tasks.apply(
        job, task, "3,10" if task == "translate" else "", [0.4, 0.8]
    )
    assert len(pictures) == len(names) == rows and {p.shape for p in pictures} == {
        (2 if task == "interpolate" else 4, *GRAY)
    }
    assert json.dumps(facts)


def test_a_sampler_that_cannot_encode_interpolates_its_own_images(job):
    job = job._replace(sampling=job.sampling._replace(sampler=few_step.multistep()))
    pictures, names, facts = tasks.apply(job, "interpolate", "", [])
    assert len(pictures) == len(names) == 9 and facts["between"] == "own images"


def test_pictures_of_the_users_own_are_edited(job, tmp_path, monkeypatch):
    """In the model's size and channels; their class is not known, so translation comes from the
    null condition.
    """
    color = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(color).save(tmp_path / "small.png")
    Image.fromarray(np.full((40, 30), 77, np.uint8)).save(tmp_path / "large.jpg")
    files = [str(tmp_path / "small.png"), str(tmp_path / "large.jpg")]
    images = requests.read_images(files, GRAY)
    np.testing.assert_array_equal(
        images[0, ..., 0], np.asarray(Image.fromarray(color).convert("L"))
    )
    assert images.shape == (2, *GRAY) and np.abs(images[1].astype(int) - 77).max() <= 1
    own = edit_job.job_for(job.trained, None, np.arange(2), "3,any", [], range(2), images)
    np.testing.assert_allclose(own.images, images / 127.5 - 1, atol=1e-6)
    assert own.labels is None and own.cond["label"].tolist() == [3, 10]
    seen = []
    monkeypatch.setattr(
        edits, "translate", lambda sampler, denoise, process, x, ts, a, b: seen.append((a, b)) or x
    )
    monkeypatch.setattr(jax, "jit", lambda function: function)
    rows, names, _ = tasks.apply(own, "translate", "7", [])
    assert (
        names == ["image", "there and back", "7"]
        and [row.shape for row in rows] == [(2, *GRAY)] * 3
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
        ("text.png", GRAY, "cannot be read as a picture"),
        ("folder.png", GRAY, "cannot be read as a picture"),
        ("absent.png", GRAY, "No such file"),
        ("square.png", (8, 6, 1), "8x8 .* images are 8x6"),
        ("square.png", (8, 8, 5), "have 5 channels, and pictures have 1, 3 or 4"),
    ):
        with pytest.raises(UserError, match=f"^--image=.*{said}") as error:
            requests.read_images([str(tmp_path / name)], shape)
        assert "\n" not in str(error.value)


def test_a_mask_from_a_picture(tmp_path):
    known = np.zeros((8, 8), np.uint8)
    known[:, :3] = 255
    Image.fromarray(known).save(tmp_path / "left.png")
    mask = requests.mask_for(str(tmp_path / "left.png"), GRAY)
    assert mask.shape == (8, 8, 1) and mask[:, :3].all() and not mask[:, 3:].any()
    np.testing.assert_array_equal(requests.mask_for("box(side=0.25)", GRAY), masks.box(GRAY, 0.25))
    for name, value, words in (
        ("white", 255, "nothing to paint"),
        ("black", 0, "nothing is known"),
    ):
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(tmp_path / f"{name}.png")
        with pytest.raises(UserError, match=words):
            requests.mask_for(str(tmp_path / f"{name}.png"), GRAY)
    with pytest.raises(UserError, match="is 8x8 .* the images are 28x28"):
        requests.mask_for(str(tmp_path / "left.png"), (28, 28, 1))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match="cannot be read as a picture"):
        requests.mask_for(str(tmp_path / "text.png"), GRAY)


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
            requests.mask_for(str(tmp_path / f"{name}.png"), GRAY)
        with pytest.raises(
            UserError, match=f"--image=.*{name}.png cannot be read as a picture .*{words}"
        ):
            requests.read_images([str(tmp_path / f"{name}.png")], GRAY)


@pytest.mark.parametrize(
    "task, mask, shape, words",
    [
        ("inpiant", "", GRAY, "unknown task 'inpiant'; did you mean 'inpaint'"),
        ("inpaint", "halves", GRAY, "unknown mask 'halves'; did you mean 'half'"),
        ("inpaint", "nowhere.png", GRAY, "cannot be read as a picture"),
        ("inpaint", "random(keep=2.0)", GRAY, "between 0 and 1"),
        ("colorize", "", GRAY, "needs color images"),
        ("colourise", "", GRAY, "needs color images"),  # an alias
        ("colorize", "", (5,), "take inpaint or linear"),
        ("colorize", "half", COLOR, "has no mask"),
        ("superres(factor=3)", "", GRAY, "does not divide"),
        ("superres(times=2)", "", GRAY, "superres takes factor, std"),
        ("deblur(std=-1.0)", "", GRAY, "must be at least 0"),
        ("linear", "", GRAY, "missing a required argument"),
    ],
)
def test_tasks_that_cannot_be(task, mask, shape, words):
    with pytest.raises(UserError, match=words) as error:
        requests.measurement_for(task, mask, shape)
    assert "\n" not in str(error.value)


def test_methods_and_labels_that_cannot_be(job):
    overexposed = requests.measurement_for("saturate(gain=3.0)", "", GRAY)
    for method in ("ddnm", "pigdm", "replacement", "repaint(resample=2)"):
        with pytest.raises(
            UserError, match="needs a linear measurement, and --task=saturate is not"
        ):
            requests.method_for(method, overexposed, "saturate")
    assert not requests.method_for("dps(scale=0.3)", overexposed, "saturate").linear
    with pytest.raises(UserError, match="unknown method 'dpss'; did you mean 'dps'"):
        requests.method_for("dpss", overexposed, "saturate")
    for labels, prompts, own, words in (
        ([11], [], job.labels, "label 11 does not exist"),
        ("own", [], None, "the class of an --image is not known"),
        ("", ["a 3"], None, "has no captions as its condition"),
        ([3], ["a 3"], None, "give one of them"),
    ):
        with pytest.raises(UserError, match=words):
            edit_job.conditions(job.trained.experiment, None, np.arange(4), labels, prompts, own)
    for text in ("", "0.5,1.5", "half"):
        with pytest.raises(UserError, match="write shares"):
            requests.strengths_of(text)
    stochastic = job._replace(
        sampling=job.sampling._replace(sampler=build(components.SAMPLERS, "ancestral.ddpm"))
    )
    with pytest.raises(UserError, match="only a deterministic sampler can encode"):
        tasks.apply(stochastic, "translate", "3", [0.5])


def test_the_command_prints_one_line_and_ends_with_2(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(digits.get_config("vp").to_dict()))
    (tmp_path / "data.json").write_text(
        json.dumps(
            {
                "name": "digits",
                "image_shape": GRAY,
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
