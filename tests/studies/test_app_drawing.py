"""The local page without a browser: settings become images, and mistakes one line."""

from __future__ import annotations

import shlex
import socket
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import digits
from diffusion_jax.assembly import sampling, train, workdir
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import transforms
from diffusion_jax.evaluation import generate
from diffusion_jax.studies.app import inpainting, parts, requests, server
from diffusion_jax.studies.app.drawing import InteractiveModel
from diffusion_jax.studies.edits import restoration
from tests import commands
from tests.experiments.small_runs import small

HALF = np.repeat(np.arange(8) >= 4, 8).reshape(8, 8)  # the lower half is unknown


@pytest.fixture(scope="module")
def model(job):
    config = ConfigDict(job.trained.experiment.record)
    return InteractiveModel(job.trained, config, "runs/a b", {"sampler.clip", "sampler.nfe"})


def test_images_have_the_bits_of_the_sampler_and_one_program_serves_all_budgets(model):
    request, experiment = model.request()._replace(num=3, labels="7,any"), model.experiment
    seen = []
    for changes in ({}, {"nfe": 7, "grid": "karras", "guidance": 3.0, "seed": 2}, {"nfe": 1}):
        asked = request._replace(**changes)
        drawn = model.draw(asked)
        seen.append(drawn)
        assert drawn.evaluations == asked.nfe and drawn.seconds > 0
        if asked.nfe != 7:
            continue
        settings = experiment.sampling._replace(
            grid=asked.grid, nfe=asked.nfe, guidance=asked.guidance
        )
        run = sampling.sample_with(
            experiment, model.trained.params, sampling.method(experiment, settings)
        )
        keys = generate.seeds_to_keys(range(asked.seed, asked.seed + 3))
        expected = run(keys, experiment.conditions.of_labels(np.array([7, 10, 7])))
        np.testing.assert_array_equal(drawn.images, transforms.to_uint8(np.asarray(expected)))
    assert [drawn.compilation > 0 for drawn in seen] == [True, False, False]
    assert (seen[0].images != seen[1].images).any() and seen[0].picture.size[0] > 3 * 8


def test_the_trajectory_ends_at_the_image(model):
    request = model.request()._replace(num=3, labels="7", nfe=4)
    strip = np.asarray(model.trajectory(request).convert("L")).astype(int)
    image = model.draw(request).images[0, ..., 0].repeat(12, 0).repeat(12, 1)
    height, width = strip.shape
    ends = [
        strip[height - y - 96 : height - y, width - x - 96 : width - x]
        for y in range(20)
        for x in range(20)  # the margin of the picture
    ]
    assert width >= 4 * 96 and min(np.abs(end - image).max() for end in ends) <= 1


def test_the_command_line_names_every_setting(model):
    request = model.request()._replace(sampler="ddim(eta=0.5)", seed=5, num=3, labels="3,7")
    request = request._replace(nfe=2)
    command = requests.sample_command(model.experiment, model.workdir, request, model.overrides)
    assert shlex.split(command) == [
        *("python", "-m", "experiments.sample", "--workdir=runs/a b", "--seeds=5-7"),
        *("--labels=3,7", "--sampler=ddim(eta=0.5)", "--config.sampler.grid=auto", "--nfe=2"),
        *("--guidance=1.5", "--config.sampler.clip=static"),
    ]
    assert "--sampler='ddim(eta=0.5)'" in command


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"nfe": 0}, "network evaluations=0: it must be at least 1"),
        ({"nfe": 100_000}, "at most 250"),
        ({"nfe": None}, "enter a number from 1 to 250"),
        ({"nfe": 2.5}, "enter a whole number"),
        ({"num": 0}, "number of images=0"),
        ({"seed": 2**32}, "seed=4294967296"),
        ({"guidance": float("nan")}, "guidance=nan"),
        ({"labels": "12"}, "label 12 does not exist"),
        ({"labels": "cat"}, "unknown --labels 'cat'"),
        ({"sampler": "ode.huen"}, "did you mean 'ode.heun'"),
        ({"sampler": ""}, "sampler"),
        ({"grid": "karas"}, "did you mean 'karras'"),
        ({"prompts": ("a cat",)}, "takes no --prompt"),
        ({"prompts": ("a", "b"), "num": 51}, "at most 100 in all"),
    ],
)
def test_a_mistake_is_one_line(model, changes, said):
    with pytest.raises(UserError) as error:
        model.draw(model.request()._replace(**{"num": 3} | changes))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_inpainting_is_that_of_the_command_for_every_mask(model, job, tmp_path):
    image = transforms.to_uint8(job.images)[0]
    request = model.request()._replace(method="ddnm", num=2, labels="3", nfe=3)
    drawn = model.inpaint(request, image, HALF)
    again = model.inpaint(request, image, ~HALF)
    assert drawn.compilation > 0 and again.compilation == 0 and drawn.evaluations == 3
    np.testing.assert_array_equal(drawn.images[:, :4], np.stack([image, image])[:, :4])
    np.testing.assert_array_equal(again.images[:, 4:], np.stack([image, image])[:, 4:])
    assert (drawn.images[0] != drawn.images[1]).any()
    rows, _, _ = restoration.solve(model._job(request, image), "inpaint", "half", "ddnm", 2)
    np.testing.assert_array_equal(drawn.images, np.concatenate(rows[1:3]))
    assert "--mask=mask.png --draws=2 --seed=0 --labels=3" in drawn.command


@pytest.mark.parametrize(
    "mask, said", [("", "does not fit"), ("2" * 64, "does not fit"), (None, "does not fit")]
)
def test_a_mask_that_is_none(mask, said):
    with pytest.raises(UserError, match=said):
        inpainting.unknown_pixels(mask, (8, 8))


def test_a_mask_of_one_color():
    for digit, said in (("0", "is empty"), ("1", "covers the whole image")):
        with pytest.raises(UserError, match=said):
            inpainting.unknown_pixels(digit * 64, (8, 8))
    mask = inpainting.unknown_pixels("0" * 32 + "1" * 32, (8, 8))
    np.testing.assert_array_equal(mask, HALF)


def test_uploads_are_read_in_the_size_of_the_model_or_refused(model, tmp_path, monkeypatch):
    Image.fromarray(np.full((40, 30, 3), 200, np.uint8)).save(tmp_path / "large.png")
    assert model.read_image(tmp_path / "large.png").shape == (8, 8, 1)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 20)
    # Pillow would start Ghostscript for this one
    (tmp_path / "program.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name in ("broken.png", "program.png", "absent.png"):
        with pytest.raises(UserError, match="cannot be read as a picture"):
            model.read_image(tmp_path / name)
    monkeypatch.setattr("diffusion_jax.studies.app.drawing.LARGEST", 1000)
    with pytest.raises(UserError, match="30x40 pixels"):
        model.read_image(tmp_path / "large.png")


def test_models_have_what_makes_sense_for_them(model):
    diffusion = model.experiment
    assert {"ancestral.ddim", "ode.heun", "few_step.jump"} < set(requests.samplers(diffusion))
    assert "karras" in requests.grids(diffusion) and model.can_inpaint
    assert "learned" not in requests.grids(diffusion)
    kind = diffusion.kind._replace(has_flow=False)
    own = diffusion.sampling._replace(name="few_step.multistep")
    few = diffusion._replace(kind=kind, sampling=own)
    assert requests.samplers(few) == ["few_step.multistep", "few_step.jump"]
    none = diffusion._replace(kind=kind._replace(denoises=False))
    assert requests.samplers(none) == [] and not requests.guidable(none)


def test_images_need_a_prompt_and_an_inpainting_does_not(model):
    asked = SimpleNamespace(experiment=SimpleNamespace(encoder=True), request=model.request)
    settings = parts.Settings(condition="prompts")
    with pytest.raises(UserError, match="type a prompt first"):
        parts.requested(asked, settings, [" \n "])
    found = parts.requested(asked, settings, [" a cat \n\n3"])
    assert found.prompts == ("a cat", "3")
    of_part = settings._replace(method="method")
    assert parts.requested(asked, of_part, ["", "repaint"]).prompts == ()


class Skipping:
    """What `guarded` needs of gradio."""

    def skip(self):
        return "unchanged"


def test_a_mistake_is_a_message_in_the_page(capsys):
    def mistaken():
        raise UserError("<b>wrong</b>")

    def faulty():
        raise RuntimeError("secret")

    guard = parts.guarded(Skipping(), 3, 1)
    first, message, last = guard(mistaken)()
    assert first == last == "unchanged" and "&lt;b&gt;wrong" in message
    assert "secret" not in guard(faulty)()[1] and "RuntimeError: secret" in capsys.readouterr().err


def test_without_gradio_the_command_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install 'diffusion_jax\[app\]'"):
        server.gradio(str(tmp_path))


def test_a_port_that_is_in_use_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="cannot be used .Address already in use.; take"):
            server.check_address("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="--host=192.0.2.1"):
        server.check_address("192.0.2.1", 7860)


@pytest.mark.long
def test_the_command_line_draws_the_same_bits(tmp_path):
    """As typed, for samplers of every family, and for an inpainting with its two files."""
    folder = tmp_path / "a run"
    assert train.train(small(digits.get_config("vp")).lock(), str(folder))
    config = workdir.saved_config(folder)
    model = InteractiveModel(workdir.load(folder, config), config, str(folder))
    request = model.request()._replace(num=5, labels="3,9")
    samplers = ("multistep.unipc", "ode.edm_heun", "sde.dpmpp_2m", "adaptive.tsit5")
    for sampler in (*samplers, "ddim(eta=1.0)", "corrector.predictor_corrector"):
        drawn = model.draw(request._replace(sampler=sampler, nfe=9, grid="auto", seed=4))
        words = shlex.split(drawn.command)[2:]
        done = commands.run("sample", *words[1:], f"--out={tmp_path / 'again'}")
        assert done.returncode == 0, done.stderr
        again = np.load(tmp_path / "again.npz")["images"]
        np.testing.assert_array_equal(again, drawn.images, err_msg=sampler)
    image = drawn.images[0]
    for method in ("repaint(resample=2)", "pigdm(symmetric=True)"):
        drawn = model.inpaint(request._replace(method=method, num=2, nfe=6), image, HALF)
        transforms.from_array(image).save(tmp_path / "image.png")
        Image.fromarray(np.where(HALF, 0, 255).astype(np.uint8)).save(tmp_path / "mask.png")
        words = shlex.split(drawn.command.replace("=image.png", f"={tmp_path}/image.png"))[3:]
        words = [word.replace("=mask.png", f"={tmp_path}/mask.png") for word in words]
        done = commands.run("edit", *words, "--scale=1", f"--out={tmp_path / 'edited'}")
        assert done.returncode == 0, done.stderr
        rows = np.asarray(Image.open(tmp_path / "edited.png").convert("L"))
        # rows of one image: the measurement, two results, the truth
        for number, result in enumerate(drawn.images):
            assert any(
                (rows[y : y + 8, x : x + 8] == result[..., 0]).all()
                for y in range(rows.shape[0] - 7)
                for x in range(rows.shape[1] - 7)
            ), (method, number)
