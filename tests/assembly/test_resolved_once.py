"""A config is resolved once: what stands behind `assemble` reads the Experiment alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from diffusion_jax.assembly import config_schema, experiment
from diffusion_jax.assembly.settings import Experiment

PACKAGE = Path(experiment.__file__).parents[1]
SECTIONS = {key.partition(".")[0] for key in config_schema.KEYS} | {"family", "recipe", "about"}

# What resolves a config, or prepares one before it is resolved: files, or functions of a file.
RESOLVES = {
    "assembly/experiment.py": (),
    "assembly/by_shape.py": (),
    "assembly/components.py": (),
    "assembly/config_files.py": ("apply", "_check_network"),
    "assembly/datasets.py": (),
    "assembly/kinds/autoencoder.py": ("complete",),
    "assembly/kinds/few_step.py": ("complete",),
    "assembly/denoiser.py": ("learns_null", "usable_guidance"),
    # a result that is kept is looked up before its model is assembled
    "assembly/origins.py": ("of_weights",),
    "assembly/same_run.py": ("names_the_same_data",),
    "assembly/sampling.py": ("sampling_mesh",),
    "assembly/train_classifier.py": ("classifier_config",),
    "assembly/train_latent.py": ("train_latent",),
    "assembly/workdir.py": ("prepare", "_auxiliary", "images"),
    # the data of a benchmark are there before its model
    "studies/benchmark/command.py": ("benchmark",),
    "studies/benchmark/loop.py": ("shortened", "loop"),
    "studies/benchmark/timing.py": ("dataset_for",),
    # the FLOPs are those of the same model without fused kernels
    "studies/benchmark/training.py": ("plainly",),
    "studies/weights/export_weights.py": ("write_weights",),
    "studies/families/comparison.py": ("compare", "_judge"),
    "studies/families/tasks.py": ("chosen", "check_folder"),
    "studies/families/training.py": (
        "train_family",
        "_trained",
        "with_steps",
        "seconds_per_image",
    ),
    "studies/few_step/methods.py": ("check_names", "train_variant"),
    "studies/grids/search.py": ("optimize_grid",),
    "studies/weights/import_weights.py": ("run_config",),
    "studies/inverse/on_images.py": ("compare_on_images",),
    "studies/own_network.py": ("to_workdir",),
    "studies/plans.py": ("plan",),
    "studies/reference_statistics.py": ("statistics",),
    # the message names what the config says
    "studies/weights/publish.py": ("sources",),
    "studies/sweep/command.py": ("sweep",),
    "studies/sweep/cells.py": ("make",),
    # the runs of a sweep are planned before they are trained
    "studies/sweep/runs.py": ("steps_of",),
    "studies/training.py": ("encode",),
}
FILES = sorted(
    path
    for chapter in ("assembly", "training", "evaluation", "studies", "report", "data")
    for path in (PACKAGE / chapter).rglob("*.py")
)


def reads(tree: ast.AST) -> set[str]:
    """The keys of a config that the code reads, such as 'config.sampler'."""
    return {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("config", "short", "recipe")
        and node.attr in SECTIONS
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nothing_reads_a_config_after_it_is_resolved(file):
    name, text = str(file.relative_to(PACKAGE)), file.read_text()
    assert "experiment.config" not in text and ".experiment.config" not in text
    if name in RESOLVES and not RESOLVES[name]:
        return
    for function in (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)):
        if function.name not in RESOLVES.get(name, ()):
            found = reads(function)
            assert not found, f"{name}, {function.name} reads {found}: take it from the Experiment"


def test_the_experiment_has_no_config():
    assert "config" not in Experiment._fields


def test_the_checker_sees():
    assert reads(ast.parse("def f(config):\n    return config.sampler.nfe")) == {"config.sampler"}
