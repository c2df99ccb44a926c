"""Objectives that would learn nothing that has a meaning are refused before training."""

from __future__ import annotations

import importlib
import re

import pytest

from configs import base, digits, digits_vae, toy
from diffusion_jax.assembly import compatibility, components, datasets, preparation
from diffusion_jax.assembly.build import members
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.core.errors import UserError
from diffusion_jax.data.normalization import Normalization

IMAGE, POINT = (8, 8, 1), (2,)
FLOATS = Normalization((0.0,), (1.0,), (-3.0,), (3.0,), "float32")


def of(config, shape, **changes):
    for key, value in changes.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    return assemble(config, shape)


def diffusion(objective, shape=IMAGE, **changes):
    config = digits.get_config("iddpm") if shape == IMAGE else toy.get_config("vp")
    return of(config, shape, objective=objective, **changes)


def autoencoder(objective):
    return of(digits_vae.get_config("gaussian"), IMAGE, objective=objective)


def few_step(name, parameterization, **changes):
    config = base.few_step(toy.get_config("edm"), name, "")
    return of(config, POINT, parameterization=parameterization, **changes)


GRAY = {
    "hybrid": (lambda: diffusion("learned_variance.hybrid()"), "set levels=0"),
    "vlb": (lambda: diffusion("learned_variance.vlb()"), "set levels=0"),
    "vdm": (lambda: diffusion("vdm.vdm()"), "denoising.dsm(likelihood=True)"),
    "elbo": (lambda: autoencoder("autoencoding.elbo(likelihood=bernoulli())"), "=gaussian()"),
    "iwae": (lambda: autoencoder("autoencoding.iwae(likelihood=logistic())"), "=gaussian()"),
    "lpips": (lambda: autoencoder("autoencoding.reconstruction(features='lpips')"), "perceptual=0"),
}


@pytest.mark.parametrize("name", GRAY)
def test_gray_levels_are_those_of_images(name):
    """Images of 8 bits pass; latents and arrays of other numbers of the same shape do not."""
    build, remedy = GRAY[name]
    experiment = build()
    compatibility.check(experiment, latents=False)
    with pytest.raises(UserError, match="latents") as refused:
        compatibility.check(experiment, latents=True)
    assert remedy in str(refused.value)
    with pytest.raises(UserError, match="arrays of numbers"):
        compatibility.check(experiment._replace(normalization=FLOATS), latents=False)


@pytest.mark.parametrize(
    "objective",
    ["learned_variance.hybrid(levels=0)", "learned_variance.vlb(levels=0)", "denoising.edm()"],
)
def test_what_has_no_gray_levels_takes_all_data(objective):
    experiment = diffusion(objective)
    for latents, normalization in ((True, None), (False, FLOATS)):
        compatibility.check(experiment._replace(normalization=normalization), latents=latents)


def test_points_are_refused_before_training():
    config = toy.get_config("vp")
    config.objective = "vdm.vdm()"
    with pytest.raises(UserError, match=r"config.objective=vdm.vdm\(\) has .* and points do not"):
        preparation.for_training(config, datasets.dataset(config))


@pytest.mark.parametrize(
    "parameterization, fits",
    [("x0()", False), *((name, True) for name in ("eps()", "v()", "edm()", "consistency()"))],
)
@pytest.mark.parametrize("name", ["ect", "sct"])
def test_a_consistency_function_has_its_boundary_from_the_parameterization(
    name, parameterization, fits
):
    experiment = few_step(name, parameterization)
    if fits:
        compatibility.check(experiment, latents=False)
    else:
        with pytest.raises(UserError, match=r"config.parameterization=x0\(\): .* a constant"):
            compatibility.check(experiment, latents=False)


def test_two_times_are_for_networks_and_objectives_of_two_times():
    compatibility.check(few_step("meanflow", "x0()"), latents=False)
    without = few_step("meanflow", "velocity()", model__second_time=False)
    with pytest.raises(UserError, match="second_time=True, which unet.UNet, .*edm2.EDM2UNet"):
        compatibility.check(without, latents=False)
    with pytest.raises(UserError, match="trains no second time; .*second_time=False"):
        compatibility.check(
            diffusion("denoising.dsm()", POINT, model__second_time=True), latents=False
        )


@pytest.mark.parametrize(
    "file", ["dit_imagenet256", "sit_imagenet256", "meanflow_imagenet256", "ldm"]
)
def test_recipes_of_latents_pass(file):
    config = importlib.import_module(f"configs.papers.{file}").get_config()
    compatibility.check(assemble(config, *datasets.data_shape(config)), latents=True)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model__attention": (5,)}, r"attention=\(5,\): .* height 5 .* have the heights 8, 4$"),
        ({"model__attention": (4, 2)}, r"no feature map of height 2 .* have the heights 8, 4$"),
        ({"model__multipliers": (1,)}, "no feature map of height 4 .* have the heights 8$"),
        ({"model__dropout": 0.1, "model__dropout_height": 3}, "dropout_height=3 leaves no"),
    ],
)
def test_heights_are_those_of_feature_maps(changes, words):
    """Attention at a height that the network never has is none."""
    experiment = of(digits.get_config("edm"), IMAGE, **changes)
    assert re.search(words, compatibility.heights_note(experiment, {8}))
    assert not compatibility.heights_note(of(digits.get_config("edm"), IMAGE), {8})
    some = of(digits.get_config("edm"), IMAGE, model__attention=(5, 4))
    assert not compatibility.heights_note(some, {8, 5})  # images of several shapes


def test_training_says_where_there_is_no_attention(capsys, tmp_path):
    config = digits.get_config("edm")
    config.model.attention = (5,)
    preparation.for_training(config, datasets.dataset(config), tmp_path)
    assert "note: config.model.attention=(5,): unet.UNet has no" in capsys.readouterr().err


LISTS = [
    network
    for name, network in members(components.MODELS).items()
    if components.network_fields(name).get("attention") == "tuple[int, ...]"
]


@pytest.mark.parametrize("network", LISTS, ids=lambda network: network.__name__)
def test_every_network_with_attention_by_height_says_its_heights(network):
    assert network(multipliers=(1, 2, 2)).heights(16) == (16, 8, 4)
    assert len(LISTS) > 3
