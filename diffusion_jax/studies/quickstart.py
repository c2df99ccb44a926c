"""The quickstart: draw from a shipped model, train on the embedded digits, compare samplers."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.assembly import sample_conditions, sampling, train
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.assembly.experiment import Experiment
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import files, provenance
from diffusion_jax.core.types import Array, Cond
from diffusion_jax.data import Dataset
from diffusion_jax.evaluation import generate
from diffusion_jax.pretrained import addresses
from diffusion_jax.report import pictures
from diffusion_jax.studies import evaluation
from diffusion_jax.studies.samplers import comparison
from diffusion_jax.training import distributed

SAMPLERS = ["ancestral.ddpm", "ancestral.ddim", "ode.heun", "multistep.dpmpp_2m"]
BUDGETS = [5, 10, 20, 50]
EVALUATED = 500  # images

SHIPPED, SHIPPED_NFE = "mnist", 20  # a model of pretrained/, and its evaluations
SHIPPED_SAMPLERS = ["ancestral.ddim", "ode.heun", "multistep.dpmpp_2m", "sde.dpmpp_2m"]

NEXT = """
{root}/
    mnist_samples.png              a shipped model, by four samplers
    samples.png                    a grid of samples, one row per class
    denoising.png                  x_t and the model's x0-hat between noise and data
    loss.png                       the loss, and the loss by noise level
    samplers.html                  four samplers at {budgets} evaluations
    samplers.png, samplers_strips.png
    metrics.jsonl, tensorboard/    every number of the run
    config.json, checkpoints/      what experiments.sample and a resumed run need

Try next:
    python -m experiments.sample --workdir={root} --labels=3,7 --num=20 --config.sampler.guidance=2
    python -m experiments.compare_samplers --workdir={root}
    python -m experiments.train --config=configs/digits.py:flow --workdir=runs/flow
"""


def quickstart(config: ConfigDict, *, workdir: str = "runs/quickstart", num: int = 200) -> None:
    """Train, sample, evaluate and compare samplers; print the results and what to try next.

    Args:
      config: the config of the run.
      workdir: the folder of everything; running again resumes.
      num: number of images of each sampler in the comparison.
    """
    began, root = time.monotonic(), Path(workdir)
    if distributed.first():
        shipped(root / "mnist_samples.png")
    if not train.train(config, str(root)):
        return
    print("\nSampling ...", file=sys.stderr)
    trained, dataset = workdirs.load(root, config), workdirs.dataset(config, root)
    samples(trained, dataset, root / "samples.png")
    denoising(trained, dataset, root / "denoising.png")
    result = evaluation.score_samples(trained, dataset, EVALUATED, 1)
    record: dict[str, Any] = {
        "provenance": provenance.provenance(trained.experiment.record, trained.experiment.seed),
        "step": trained.step,
        "weights": trained.weights,
    }
    comparison.compare_model(
        trained,
        dataset,
        trained.experiment.data.name,
        SAMPLERS,
        BUDGETS,
        range(num),
        root / "compare",
        root / "samplers",
        record,
    )
    files.save_json(
        root / "evaluation.json", result | evaluation.about(trained, EVALUATED, repeats=1)
    )
    nfe = sampling.evaluations(sampling.method(trained.experiment))
    print(
        f"\n{evaluation.report(result)}\n"
        f"({nfe} evaluations of {trained.experiment.sampling.name}, {EVALUATED} images; "
        f"{time.monotonic() - began:.0f} s in all on "
        f"{jax.device_count()} {jax.default_backend()} device)"
    )
    print(NEXT.format(root=root, budgets=", ".join(map(str, BUDGETS))))


def shipped(path: Path, columns: int = 10) -> None:
    """Draw from a model of the repository by four samplers, and say how long that took.

    The rows of the picture are samplers, and its columns classes with one seed each. Nothing is
    drawn where the repository does not have the model, as in a copy without its folder pretrained.

    Args:
      path: the picture to write.
      columns: images of each sampler.
    """
    folder, began = addresses.names().get(SHIPPED), time.monotonic()
    if folder is None:
        return
    trained = workdirs.load(folder)
    model = trained.experiment
    cond = _condition(model, None, np.arange(columns) % max(model.num_classes, 1))

    def draw(spec: str) -> np.ndarray:
        settings = sampling.with_sampler(model.sampling, spec)
        settings = settings._replace(nfe=SHIPPED_NFE, grid="auto")
        run = sampling.sample_with(model, trained.params, sampling.method(model, settings))
        return np.asarray(run(generate.seeds_to_keys(range(columns)), cond))

    with ThreadPoolExecutor() as pool:  # programs are compiled side by side
        drawn = list(pool.map(draw, SHIPPED_SAMPLERS))
    x, names = np.concatenate(drawn), SHIPPED_SAMPLERS
    pictures.save(pictures.image_grid(x, columns, row_labels=names), path)
    seconds = time.monotonic() - began
    print(
        f"{path}: {len(names)} samplers at {SHIPPED_NFE} evaluations, from the model that is "
        f"shipped as {SHIPPED}, in {seconds:.0f} s; more: python -m experiments.sample "
        f"--workdir={SHIPPED}",
        flush=True,
    )


def samples(trained: Trained, dataset: Dataset, path: Path, columns: int = 10) -> None:
    """Draw a grid of samples from seeds 0, 1, ..., with a row for each class.

    Args:
      trained: the model; one without classes has eight rows.
      dataset: its data, for the captions of a model of captions.
      path: the picture to write.
      columns: images in each row.
    """
    model = trained.experiment
    rows = trained.data["class_names"] if model.num_classes else []
    count = columns * (len(rows) or 8)
    run = sampling.sample_with(model, trained.params, sampling.method(model))
    cond = _condition(model, dataset, np.arange(count) // columns)
    x = run(generate.seeds_to_keys(range(count)), cond)
    pictures.save(pictures.image_grid(np.asarray(x), columns, row_labels=rows), path)


def _condition(model: Experiment, dataset: Dataset | None, labels: np.ndarray) -> Cond:
    """The condition of these classes; without classes that of as many captions, or None."""
    if model.num_classes:
        return model.conditions.of_labels(labels)
    return sample_conditions.for_judging(model, dataset, len(labels))[1]


def denoising(
    trained: Trained, dataset: Dataset, path: Path, steps: int = 50, shown: int = 10
) -> None:
    """Draw x_t and x0-hat of three images at some of the sampler's times.

    Args:
      trained: the model, which is sampled with the run's own guidance.
      dataset: its data, for the captions of a model of captions.
      path: the picture to write.
      steps: network evaluations of the sampler.
      shown: number of times.
    """
    model = trained.experiment
    resolved = sampling.method(model, model.sampling._replace(nfe=steps))
    labels = np.array([2, 5, 8]) % max(model.num_classes, 1)

    def watch(model: Experiment, x: Array, x0: Array, t: Array) -> tuple[Array, Array]:
        return x, x0

    run = sampling.trajectory_fn(model, trained.params, resolved, watch)
    keys = generate.seeds_to_keys(range(len(labels)))
    states = run(keys, _condition(model, dataset, labels))
    x_t, x0 = (np.moveaxis(np.asarray(each), 1, 0)[1:] for each in states)
    chosen = np.linspace(0, len(x_t) - 1, shown).round().astype(int)
    times = np.asarray(resolved.ts)[1:][chosen]
    strip = pictures.denoising_strip(np.asarray(x_t)[chosen], np.asarray(x0)[chosen], times)
    pictures.save(strip, path)
