"""Samplers compared on a trained model or on an analytic target: the command compare_samplers."""

from __future__ import annotations

import functools
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.assembly import components, denoiser, outputs, sample_conditions, sampling
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.assembly.build import build, members
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import parsing, provenance
from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained import folders
from diffusion_jax.studies import other_models, prompted_subjects, scoring, subjects
from diffusion_jax.studies.samplers import cells as comparison
from diffusion_jax.studies.samplers import ranking, report
from diffusion_jax.studies.samplers.cells import Cell, Comparison, Result
from diffusion_jax.studies.samplers.listing import listing
from diffusion_jax.studies.subject import Subject
from diffusion_jax.training import distributed

SAMPLERS = (
    "ancestral.ddim",
    "ancestral.ddim@auto",
    "ode.heun@auto",
    "ode.edm_heun@auto",
    "singlestep.dpmpp_2s@auto",
    "multistep.dpmpp_2m@auto",
    "multistep.dpmpp_2m@karras",
    "multistep.dpmpp_3m@auto",
    "multistep.deis@auto",
    "multistep.unipc@auto",
    "adaptive.tsit5",
    "ancestral.ddpm@auto",
    "sde.euler_maruyama@auto",
    "sde.dpmpp_2m@auto",
)


# ---- the command
def compare_samplers(
    config: ConfigDict,
    *,
    workdir: str,
    samplers: str,
    others: str,
    nfe: str,
    num: int | None,
    seeds: str,
    noise: str | None,
    out: str,
    fresh: bool,
    prompt: Sequence[str] = (),
    features: str = "",
    metrics: str = "",
    reference: str = "",
) -> None:
    """Compare samplers on the model of a workdir, and print the report.

    Args:
      config: the config of the workdir, with what the command line changes.
      workdir: the folder of the model.
      samplers: specs separated by ';', each with @grid where it needs one; '' for a dozen.
      others: workdirs of other models of the same data, separated by commas.
      nfe: budgets of network evaluations, separated by commas.
      num: samples in each cell; None for 200, or 8 with prompts.
      seeds: the seeds themselves, such as '1000-1199'; '' for 0 to num - 1.
      noise: 'independent' or 'brownian'; None for the config's.
      out: the folder to write to; '' for the workdir.
      fresh: whether to run finished cells again.
      prompt: captions in turn, of samples that are not judged against data.
      features: as of `subjects.of_model`.
      metrics: likewise.
      reference: likewise.

    Raises:
      UserError: for what cannot be compared, before anything is sampled; if every cell has failed,
        after everything is written.
    """
    entries, budgets = _entries(samplers), _budgets(nfe)
    chosen = _seeds(seeds, num or (8 if prompt else 200))
    root = outputs.folder("out", out or folders.outputs(workdir), "compare.html")
    scoring.requested(features, metrics)
    mesh = sampling.sampling_mesh(config)
    trained = workdirs.load(workdir, config, mesh)
    model = trained.experiment
    title = f"{model.data.name} ({Path(workdir).name})"
    how: dict[str, Any] = {"noise": noise or model.sampling.noise, "fresh": fresh, "mesh": mesh}
    judging = {"features": features, "metrics": metrics, "reference": reference}
    given = trained, title, entries, budgets, chosen, root / "compare"
    if prompt:
        _refuse({"others": others} | judging)
        text = _on_prompts(prompt, *given, **how)
    else:
        images = workdirs.images(config, workdir)
        text = _on_data(images, parsing.paths("others", others), judging, *given, **how)
    _print(text, root)
    use = f"--workdir={shlex.quote(str(workdir))} --sampler=NAME --nfe=NFE"
    print(f"to use one: python -m experiments.sample {use}")


def _on_data(
    images: data.Dataset,
    others: Sequence[str],
    judging: Mapping[str, str],
    trained: Trained,
    title: str,
    entries: Sequence[str],
    budgets: Sequence[int],
    seeds: Sequence[int],
    stem: Path,
    **how: Any,
) -> str:
    """Compare samplers by images; the text of stem.md."""
    record, how = _record(trained), {"others": others, "judging": judging} | how
    return compare_model(trained, images, title, entries, budgets, seeds, stem, stem, record, **how)


def _on_prompts(
    prompts: Sequence[str],
    trained: Trained,
    title: str,
    entries: Sequence[str],
    budgets: Sequence[int],
    seeds: Sequence[int],
    stem: Path,
    *,
    mesh: jax.sharding.Mesh | None,
    **options: Any,
) -> str:
    """Compare samplers on captions of no data; the text of stem.md."""
    subject = prompted_subjects.of_prompts(trained, prompts, seeds, title, mesh=mesh)
    cells = cells_of(trained, entries, budgets)
    compared = comparison.compare(subject, cells, stem, **options)
    return _written(subject, compared, stem, _record(trained))


def _refuse(given: Mapping[str, str]) -> None:
    """Refuse flags that judge samples, and say what is measured without data."""
    for flag, value in given.items():
        if value:
            raise UserError(
                f"--{flag}={value} compares with data, and --prompt draws captions of no data; "
                "give one of them"
            )
    print(
        "note: samples of --prompt are not compared with real images, so there is no Fréchet "
        "distance and no accuracy; the error is the distance to a fine solve of the model's flow",
        file=sys.stderr,
    )


def _record(trained: Trained) -> dict[str, Any]:
    model = trained.experiment
    stamp = provenance.provenance(model.record, model.seed)
    return {"provenance": stamp, "step": trained.step, "weights": trained.weights}


def compare_on_target(
    *,
    target: str,
    process: str,
    samplers: str,
    nfe: str,
    num: int | None,
    seeds: str,
    noise: str | None,
    out: str,
    fresh: bool,
    features: str = "",
    metrics: str = "",
    reference: str = "",
) -> None:
    """Compare samplers on an analytic target, in float64, and print the report.

    Args:
      target: the spec of a target, such as 'gmm8'.
      process: the spec of a process, such as 'schedules.EDM()'.
      samplers: specs separated by ';', each with @grid where it needs one; '' for a dozen.
      nfe: budgets of network evaluations, separated by commas.
      num: number of samples in each cell; None for 2000.
      seeds: the seeds themselves, such as '1000-1199'; '' for 0 to num - 1.
      noise: 'independent' or 'brownian'; None for 'independent'.
      out: the folder to write to; '' for runs/compare_TARGET.
      fresh: whether to run finished cells again.
      features: must be '', because features are for images.
      metrics: must be '', likewise.
      reference: must be '', likewise.

    Raises:
      UserError: for what does not exist, before anything is sampled; if every cell has failed,
        after everything is written.
    """
    judging = {"features": features, "metrics": metrics, "reference": reference}
    if any(judging.values()):
        flag, value = next((flag, value) for flag, value in judging.items() if value)
        raise UserError(
            f"--{flag}={value} is for models of images, and --target={target} draws points"
        )
    entries, budgets = _entries(samplers), _budgets(nfe)
    chosen_seeds = _seeds(seeds, num or 2000)
    root = outputs.folder("out", out or f"runs/compare_{file_name(target)}", "compare.html")
    options = {"noise": noise or "independent", "fresh": fresh}
    with jax.enable_x64(True):
        path = build(components.PROCESSES, process)
        chosen = comparison.cells(entries, budgets, path, "auto")
        subject = subjects.of_target(target, process, chosen_seeds)
        compared = comparison.compare(subject, chosen, root / "compare", **options)
        record = {"provenance": provenance.provenance(subject.identity, chosen_seeds[0])}
        text = report.write(subject, compared, root / "compare", record)
    ranking.need_results([result.row for result in compared.results])
    _print(text, root)


def print_listing() -> None:
    """Print every sampler, grid, target and process."""
    print(listing())


def _entries(samplers: str) -> list[str]:
    return parsing.specs(samplers) or _default_samplers()


def _budgets(nfe: str) -> list[int]:
    return sorted(set(parsing.integers("nfe", nfe, 1, 10_000)))


def _seeds(seeds: str, count: int) -> list[int]:
    return parsing.parse_seeds(seeds) if seeds else list(range(count))


def _print(text: str, root: Path) -> None:
    print(f"{text}\n{root / 'compare.html'} holds all of this, with pictures")


def _default_samplers() -> list[str]:
    """A representative dozen of samplers and grids."""
    known = members(components.SAMPLERS)
    return [entry for entry in SAMPLERS if entry.partition("@")[0] in known]


def file_name(spec: str) -> str:
    """Turn a spec into a part of a file's name: 'gmm(modes=20)' -> 'gmm_modes_20'.

    Args:
      spec: any text; every run of characters but letters and digits becomes one underscore.
    """
    return re.sub("[^A-Za-z0-9]+", "_", spec).strip("_")


# ---- models
def compare_model(
    trained: Trained,
    dataset: data.Dataset,
    name: str,
    entries: Sequence[str],
    budgets: Sequence[int],
    seeds: Sequence[int],
    folder: Path,
    stem: Path,
    record: Mapping[str, Any],
    *,
    others: Sequence[str] = (),
    judging: Mapping[str, str] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    **options: Any,
) -> str:
    """Compare samplers on a trained model.

    Args:
      trained: the model.
      dataset: what its samples are judged against.
      name: its name in titles.
      entries: samplers, each with @grid where it does not use the config's.
      budgets: numbers of network evaluations.
      seeds: one for each sample.
      folder: where finished cells are kept.
      stem: the path of the report, without its endings.
      record: what the report records, see `report.write`.
      others: workdirs of other models of the same data, each compared by its own config's sampler.
      judging: features, metrics and reference of `subjects.of_model`.
      mesh: the devices that draw; None for one device.
      **options: further arguments of `comparison.compare`.

    Returns:
      The text of stem.md.

    Raises:
      UserError: for what cannot be compared, before anything is sampled; if every cell has failed,
        after everything is written.
    """
    roots = other_models.named(others)
    models = {
        other: workdirs.load_for_comparison(root, "--others", dataset.image_shape)
        for other, root in roots.items()
    }
    own = {other: cells_of(model, (), budgets) for other, model in models.items()}
    for model in models.values():  # refuse what cannot be sampled before anything is
        denoiser.is_guided(model.experiment, model.experiment.sampling.guidance)
        sample_conditions.for_judging(model.experiment, dataset, len(seeds))
    how: dict[str, Any] = {"mesh": mesh, **(judging or {})}
    subject = subjects.of_model(trained, dataset, seeds, name, **how)
    chosen = cells_of(trained, entries, budgets)
    compared = comparison.compare(subject, chosen, folder, **options)
    results = [*compared.results]
    for other, model in models.items():
        subject_of_other = subjects.of_model(model, dataset, seeds, other, **how)
        kept = folders.outputs(roots[other]) / "compare"
        found = comparison.compare(subject_of_other, own[other], kept, **options)
        results += [_named(result, other) for result in found.results]
    return _written(subject, compared._replace(results=results), stem, record)


def _written(subject: Subject, compared: Comparison, stem: Path, record: Mapping[str, Any]) -> str:
    """Write the report, in the first process alone; UserError if every cell has failed."""
    if not distributed.first():
        return ""
    text = report.write(subject, compared, stem, record)
    ranking.need_results([result.row for result in compared.results])
    return text


def cells_of(trained: Trained, entries: Sequence[str], budgets: Sequence[int]) -> list[Cell]:
    """Make the cells of samplers for a trained model.

    Args:
      trained: the model, whose process and parameterization the grids are placed for.
      entries: specs of samplers, each with @grid where it names one; empty for the model's own
        sampler and grid.
      budgets: numbers of network evaluations.

    Returns:
      A cell for each sampler and budget, and one for an adaptive sampler.
    """
    experiment, settings = trained.experiment, trained.experiment.sampling
    entries = entries or [f"{settings.name}@{settings.grid}"]
    place = functools.partial(sampling.grid, experiment)
    return comparison.cells(entries, budgets, experiment.process, settings.grid, place=place)


def _named(result: Result, name: str) -> Result:
    """The result of another model, whose name stands before that of the sampler."""
    return result._replace(row=result.row | {"sampler": f"{name}: {result.row['sampler']}"})
