"""Every config builds, and its network, loss and sampler have shapes; constants of the presets.

test_lowering.py lowers their train steps and samplers.
"""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, digits, families
from diffusion_jax import data
from diffusion_jax.assembly import by_shape, components, sampling
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.core.errors import UserError
from diffusion_jax.processes import schedules
from diffusion_jax.training import step
from tests.experiments.small_runs import ROOT, small

SHAPES = {
    "digits": (8, 8, 1),
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "cifar100": (32, 32, 3),
    "svhn_cropped": (32, 32, 3),
    "celeb_a": (64, 64, 3),
    "toy": (2,),
    "imagenet256_latent": (32, 32, 4),
    "stable_diffusion": (64, 64, 4),
    "digits_captions": (8, 8, 1),
    "digits_jit": (8, 8, 1),
    "emoji": (32, 32, 3),
    "digits_vae": (8, 8, 1),
    "mnist_vae": (28, 28, 1),
    "digits_few_step": (8, 8, 1),
    "mnist_few_step": (28, 28, 1),
    "fashion_autoencoder": (28, 28, 1),
    "cifar10_autoencoder": (32, 32, 3),
    "tiny_imagenet_autoencoder": (64, 64, 3),
    "fashion_latent": (7, 7, 4),
    "tiny_imagenet_latent": (8, 8, 4),
    "folder": (32, 32, 3),
    "arrays": (32, 2),
    "arrays_few_step": (32, 2),
    "tables": (5,),
    "spoken_digits": (64, 64, 1),
}


SIZES = {
    "digits": ("",),
    "folder": ("",),
    "arrays": ("",),
    "arrays_few_step": ("",),
    "tables": ("", ",full"),
    "spoken_digits": ("",),
    "digits_vae": ("",),
    "digits_few_step": ("",),
    "digits_captions": ("",),
    "digits_jit": ("",),
    "toy": ("",),
    "imagenet256_latent": (",S",),
    "stable_diffusion": ("",),
}


FILES = sorted(
    path.stem
    for path in (ROOT / "configs").glob("[!_]*.py")
    if path.stem not in ("base", "families")
)
TRACED = set()  # by an earlier config: many differ in their data alone


def variants_of(file):
    """Of a preset; those of autoencoders and few-step models are their own."""
    module = importlib.import_module(f"configs.{file}")
    return tuple(getattr(module, "VARIANTS", base.VARIANTS))


def config_of(file, name):
    """A variant; a network that is left to the data is chosen by the shape."""
    config = importlib.import_module(f"configs.{file}").get_config(name)
    if config.model.name == by_shape.AUTO:
        by_shape.with_network(config, SHAPES[file])
    return config


@pytest.mark.parametrize("file", FILES)
def test_every_config_builds_and_its_network_and_sampler_have_shapes(file):
    """Every variant with a small network, and once the real network of each size."""
    for size in SIZES.get(file, ("", ",full")):
        for variant in variants_of(file):
            config = config_of(file, variant + size)
            real = variant == variants_of(file)[0]
            experiment = assemble(config if real else small(config), SHAPES[file], 10)
            chosen = sampling.method(experiment)
            assert config.sampler.nfe - 1 <= sampling.evaluations(chosen) <= config.sampler.nfe
            network = f"{experiment.options} {SHAPES[file]} {experiment.num_classes}"
            if real and network not in TRACED:
                params = parameters(experiment)
                assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
                TRACED.add(network)


@pytest.mark.long
@pytest.mark.parametrize("file", FILES)
def test_the_loss_of_every_config_has_shapes(file):
    """With the real networks."""
    for size in SIZES.get(file, ("", ",full")):
        config = config_of(file, variants_of(file)[0] + size)
        losses_have_shapes(assemble(config, SHAPES[file], 10), SHAPES[file])


def test_ve_presets_have_edms_constants_scaled_to_the_data():
    """0.02 to 100 for 32x32 color images in [-1, 1] (Karras et al. 2022, table 1); others near the
    data's largest distance.

    Workdirs whose config says schedules.VE() keep its defaults.
    """
    for file, ends in {
        "cifar10": (0.02, 100),
        "cifar100": (0.02, 100),
        "svhn_cropped": (0.02, 100),
        "emoji": (0.02, 100),
        "celeb_a": (0.02, 180),
        "mnist": (0.02, 45),
        "fashion_mnist": (0.02, 45),
        "digits": (0.02, 10),
        "digits_captions": (0.02, 10),
        "imagenet256_latent": (0.02, 100),
        "fashion_latent": (0.02, 30),
        "toy": (0.01, 10),
    }.items():
        process = build(
            components.PROCESSES,
            importlib.import_module(f"configs.{file}").get_config("ve").process,
        )
        assert (process.sigma_min, process.sigma_max) == ends, file
    for name, end in {"digits": 10, "mnist": 45}.items():
        assert (
            families.get_config(name).family.ve.process
            == f"schedules.VE(sigma_min=0.02, sigma_max={end}.0)"
        )
    images = data.arrays(data.load("digits").train)["image"].reshape(-1, 64) / 127.5 - 1
    square = (images**2).sum(1)
    largest = np.sqrt((square[:, None] + square - 2 * images @ images.T).max())
    assert largest == pytest.approx(
        build(components.PROCESSES, digits.get_config("ve").process).sigma_max, rel=0.1
    )
    assert build(components.PROCESSES, "schedules.VE()") == schedules.VE(0.01, 50.0)


def test_improved_ddpm_is_a_preset_of_images_alone():
    """The cosine chain, learned variance, L_hybrid, respaced ancestral sampling; what is not images
    refuses it by name.
    """
    for file in ("digits", "cifar10", "mnist", "celeb_a"):
        config = importlib.import_module(f"configs.{file}").get_config("iddpm")
        assert (
            config.model.learn_variance
            and "cosine" in config.process
            and config.objective == "learned_variance.hybrid(steps=4000)"
        )
        assert config.sampler.name == "ancestral.ddpm(variance='learned')"
        assert (
            not importlib.import_module(f"configs.{file}").get_config("ddpm").model.learn_variance
        )
    for file in ("toy", "fashion_latent"):
        with pytest.raises(UserError, match="unknown variant 'iddpm'"):
            importlib.import_module(f"configs.{file}").get_config("iddpm")


def parameters(experiment):
    """Their shapes."""
    return jax.eval_shape(lambda key: experiment.kind.init(experiment, key), jax.random.key(0))


def losses_have_shapes(experiment, shape):
    experiment = experiment.kind.prepare(experiment, None)
    experiment = experiment._replace(
        teacher=(experiment, None)
    )  # a few-step model is its own teacher
    params = parameters(experiment)
    batch = (experiment.conditions.null(4) or {}) | {
        "image": jnp.zeros((4, *shape)),
        "label": jnp.zeros(4, jnp.int32),
    }
    keys = jax.random.split(jax.random.key(0), 4)

    def now(p):
        return step.Now(0, {"target": p, "teacher": p})

    losses, extra = jax.eval_shape(
        lambda p: experiment.kind.loss(experiment)(p, batch, keys, now(p)), params
    )
    assert {losses.shape} == {value.shape for value in extra.values()} == {(4,)}
