"""The recipes of configs/papers: the published values, and as many parameters as the papers say."""

from __future__ import annotations

import importlib

import jax
import pytest

from diffusion_jax.assembly import config_schema, datasets, preflight, sampling
from diffusion_jax.assembly.components import check_components
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.core.errors import UserError
from diffusion_jax.training import loop
from tests.experiments.published_recipes import RECIPES, facts
from tests.experiments.small_runs import ROOT

FILES = sorted(path.stem for path in (ROOT / "configs" / "papers").glob("[!_]*.py"))
ids = {"ids": lambda case: ",".join(part for part in case if part)}


def recipe(file, variant):
    module = importlib.import_module(f"configs.papers.{file}")
    return module.get_config(variant) if variant else module.get_config()


def assembled(config):
    return assemble(config, *datasets.data_shape(config))


@pytest.fixture(scope="module")
def parameters():
    """Parameters in millions of a config; equal networks are traced once."""
    known = {}

    def count(config):
        experiment = assembled(config)
        key = f"{experiment.specs.model} {experiment.options} {experiment.shape}"
        key = f"{key} {experiment.num_classes}"
        if key not in known:
            shapes = jax.eval_shape(
                lambda seed: experiment.kind.init(experiment, seed), jax.random.key(0)
            )
            known[key] = sum(x.size for x in jax.tree.leaves(shapes)) / 1e6
        return known[key]

    return count


@pytest.mark.parametrize("case", RECIPES, **ids)
def test_a_recipe_has_the_published_values(case):
    _, _, published = RECIPES[case]
    config = recipe(*case)
    config_schema.check_values(config)
    check_components(config)
    found = facts(config, *datasets.data_shape(config))
    for name, value in published.items():
        # numbers of images are rounded to whole steps, and averages to whole images
        rough = {"images": 1e-2, "warmup_images": 1e-3, "ema_rate": 1e-7}.get(name, 1e-9)
        wanted = pytest.approx(value, rel=rough) if isinstance(value, float) else value
        wanted = pytest.approx(value, rel=rough) if "images" in name else wanted
        assert found[name] == wanted, name


@pytest.mark.parametrize("file", FILES)
def test_every_variant_is_in_the_table(file):
    module = importlib.import_module(f"configs.papers.{file}")
    known = {variant for name, variant in RECIPES if name == file}
    # these share their network and most values with a variant that is there
    missing = {*variants_of(module)} - known
    assert missing <= {"simple", "linear", "vlb"}
    for variant in missing:
        check_components(recipe(file, variant))
    with pytest.raises((UserError, TypeError)):
        module.get_config("no such variant")
    assert all(word in module.__doc__ for word in ("Settings:", "FID", "Hardware"))


def variants_of(module):
    return tuple(getattr(module, "VARIANTS", getattr(module, "DEPTHS", ("",))))


@pytest.mark.long
@pytest.mark.parametrize("file", FILES)
def test_every_variant_has_a_sampler_and_cadences_that_fit(file):
    for variant in variants_of(importlib.import_module(f"configs.papers.{file}")):
        config = recipe(file, variant)
        chosen = sampling.method(assembled(config))
        assert config.sampler.nfe - 1 <= sampling.evaluations(chosen) <= config.sampler.nfe
        every = {key: config.training[key] for key in preflight.CADENCES}
        loop.check_cadences(config.training.steps_per_call, every)


QUICK = ("sit_imagenet256", "meanflow_imagenet256")  # whose blocks are one loop


@pytest.mark.parametrize(
    "case",
    [case if case[0] in QUICK else pytest.param(case, marks=pytest.mark.long) for case in RECIPES],
    **ids,
)
def test_a_network_has_as_many_parameters_as_published(case, parameters):
    _, published, _ = RECIPES[case]
    assert parameters(recipe(*case)) == pytest.approx(published, rel=5e-3)
