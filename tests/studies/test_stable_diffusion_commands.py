"""The commands of models of captions on a tiny Stable Diffusion."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.assembly import denoiser, sampling, workdir
from diffusion_jax.core.errors import UserError
from diffusion_jax.studies import generation
from diffusion_jax.studies.edits import command as editing
from diffusion_jax.studies.edits import job as edit_job
from diffusion_jax.studies.edits import restoration
from diffusion_jax.studies.samplers import comparison
from tests.pretrained.stable_diffusion import loaded, workdir_of

pytest.importorskip("tokenizers")


def config(**sampler):
    found = workdir.saved_config(workdir_of("sd1")).unlock()
    found.sampler.update({"nfe": 2, "batch_size": 2} | sampler)
    return found.lock()


def test_a_negative_prompt_needs_guidance_that_uses_it():
    model = loaded("sd1").experiment
    plain = sampling.method(model, model.sampling._replace(guidance=1.0))
    with pytest.raises(UserError, match="--negative_prompt is what guidance leads away from"):
        denoiser.led_away(model, "blurry", guided=plain.guided)
    null = denoiser.led_away(model, "blurry", guided=True).conditions.null(2)["tokens"]
    np.testing.assert_allclose(null, model.conditions.of_prompts(["blurry"] * 2)["tokens"])
    with pytest.raises(UserError, match="reads 16"):
        denoiser.led_away(model, "a " * 30, guided=True)


def test_linear_methods_restore_latents_by_inpainting_alone(tmp_path):
    trained = loaded("sd1")
    images = np.zeros((1, 16, 16, 3), np.uint8)
    job = edit_job.job_for(trained, None, np.arange(1), "", [], range(1), images)
    with pytest.raises(UserError, match="is not linear for a model of latents.*--method=dps"):
        restoration.solve(job, "superres(factor=2)", "", "ddnm", 1)


@pytest.mark.long
def test_samples_of_prompts(tmp_path, capsys):
    """Perturbed-attention guidance too; the same seed and prompt give the same image."""
    shared = {"workdir": str(workdir_of("sd1")), "prompt": ["a cat", "two dogs"], "num": 1}
    generation.sample(config(), out=str(tmp_path / "a"), **shared, negative_prompt="blurry")
    generation.sample(config(), out=str(tmp_path / "b"), **shared)
    pag = config(guide="pag(blocks=('middle_attention',))", guidance=2.0)
    generation.sample(pag, out=str(tmp_path / "c"), **shared)
    drawn = [np.load(tmp_path / f"{name}.npz")["images"] for name in "abc"]
    assert all(x.shape == (2, 16, 16, 3) and x.dtype == np.uint8 for x in drawn)
    assert all((drawn[1] != other).any() for other in (drawn[0], drawn[2]))
    assert "2 images" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize(
    "task, options",
    [
        ("sdedit", {"strength": "0.5,1", "negative_prompt": "blurry"}),
        ("inpaint", {"mask": "half", "method": "ddnm"}),
        ("inpaint", {"mask": "half", "method": "dps"}),
        ("interpolate", {}),
    ],
)
def test_edits_of_pictures(task, options, tmp_path):
    random = np.random.default_rng(0)
    for name in ("one", "two"):
        pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    files = [str(tmp_path / f"{name}.png") for name in ("one", "two")]
    editing.edit(
        config(nfe=4),
        workdir=str(workdir_of("sd1")),
        task=task,
        image=files,
        prompt=["a cat"],
        out=str(tmp_path / "out"),
        **options,
    )
    about = json.loads((tmp_path / "out.json").read_text())
    assert (tmp_path / "out.png").is_file() and about["prompts"] == ["a cat"]
    if task == "inpaint" and options["method"] == "ddnm":
        assert about["psnr"] > about["psnr_of_measurement"] - 10


@pytest.mark.long
def test_samplers_are_compared_on_prompts(tmp_path, capsys):
    options = {"samplers": "ancestral.ddim;ancestral.ddpm", "nfe": "2,4", "num": 2, "seeds": ""}
    options |= {"others": "", "noise": None, "out": str(tmp_path), "fresh": False}
    given = {"workdir": str(workdir_of("sd1")), "prompt": ["a cat", "two dogs"]}
    comparison.compare_samplers(config(), **given, **options)
    said = capsys.readouterr()
    assert "there is no Fréchet distance" in said.err
    assert "nearest to the exact solution is ancestral.ddim" in said.out
    assert "no result" not in said.out and "real data" not in said.out
    assert (tmp_path / "compare.html").is_file()
    with pytest.raises(UserError, match="--metrics=frechet compares with data"):
        comparison.compare_samplers(config(), **given, **options, metrics="frechet")
