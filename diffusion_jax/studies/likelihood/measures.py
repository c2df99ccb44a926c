"""What is measured of an image's likelihood: the probability flow, and the variational bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypedDict

import numpy as np

from diffusion_jax.assembly import denoiser, sampling
from diffusion_jax.assembly.experiment import Experiment
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core.errors import UserError, printable, unknown
from diffusion_jax.core.types import Array, Cond, Denoise, Key, Params
from diffusion_jax.data import table_files
from diffusion_jax.data.columns import CATEGORY
from diffusion_jax.likelihood import bounds, flow
from diffusion_jax.processes import gaussian
from diffusion_jax.report.tables import markdown_table

DEQUANTIZED = {
    "uniform": "uniform dequantization",
    "process": "dequantized by the process",
    "none": "as continuous data",
}
TRACES = ("exact", "rademacher", "gaussian")
TERMS = ("total", "prior", "diffusion", "reconstruction")

Values = dict[str, Array]
Measure = Callable[[Params, Key, Array, Cond], Values]  # of images (B, ...); values (B,) or (B, K)


class LikelihoodSettings(TypedDict):
    """The settings of a likelihood, besides the model and the images (the command's flags).

    Attributes:
      split: 'test' or 'train'.
      unconditional: whether a conditional model is given no label.
      dequantize: names of DEQUANTIZED; before `resolved` the text of the flag, '' for the default.
      levels: values that a pixel takes.
      iw: dequantizations, and chains, that an importance-weighted value averages over.
      trace: one of TRACES; before `resolved` also 'auto'.
      probes: random directions of an inexact trace.
      solver: the solver of the probability-flow ODE.
      rtol: tolerance of an adaptive solver.
      steps: steps of a solver on a fixed grid.
      bounds: whether the variational bounds are measured, too.
      moves: transitions of the discrete bound.
      grid: the grid of their times.
      draws: times at which the continuous bound is measured for each image.
      seed: the seed of all noise.
      end_logsnr: the log-SNR at which the process ends; None: its own, at t_min.
    """

    split: str
    unconditional: bool
    dequantize: Any
    levels: int
    iw: int
    trace: str
    probes: int
    solver: str
    rtol: float
    steps: int
    bounds: bool
    moves: int
    grid: str
    draws: int
    seed: int
    end_logsnr: float | None


def decided(settings: LikelihoodSettings, model: Experiment) -> LikelihoodSettings:
    """The settings with the automatic ones decided.

    Args:
      settings: as the flags give them.
      model: the model that is measured.

    Raises:
      UserError: for unknown names, and for settings that do not fit the data.
    """
    default = "uniform" if model.is_image or _stores_integers(model) else "none"
    dequantize = (settings["dequantize"] or default).split(",")
    for name in dequantize:
        if name not in DEQUANTIZED:
            raise unknown("--dequantize", name, DEQUANTIZED)
    _check_kind(model, dequantize, bounds=settings["bounds"])
    _check_columns(model)
    if settings["solver"] not in (solvers := (*flow.ADAPTIVE, *flow.FIXED)):
        raise unknown("--solver", settings["solver"], solvers)
    trace = settings["trace"]
    if trace == "auto":
        trace = "exact" if math.prod(model.shape) <= flow.EXACT_DIMENSIONS else "rademacher"
    if trace not in TRACES:
        raise unknown("--trace", trace, ("auto", *TRACES))
    return {**settings, "dequantize": dequantize, "trace": trace}


def _stores_integers(model: Experiment) -> bool:
    """Whether data.json records that the values of arrays are stored as integers."""
    known = model.normalization
    return bool(known and not known.columns and known.bins)


def _check_kind(model: Experiment, dequantize: list[str], *, bounds: bool) -> None:
    """Refuse what the values of the data do not have: UserError."""
    if model.is_image:
        return
    if bounds or "process" in dequantize:
        raise UserError(
            "--bounds and --dequantize=process are for images of 8 bits; leave both out"
        )
    if "uniform" in dequantize and not (model.normalization and model.normalization.bins):
        raise UserError(
            "--dequantize=uniform is for whole or rounded numbers, and these data are continuous; "
            "take --dequantize=none"
        )


def _check_columns(model: Experiment) -> None:
    """Refuse tables whose rows have no density: UserError."""
    known = model.normalization.columns if model.normalization else ()
    if names := [column.name for column in known if column.kind == CATEGORY]:
        shown, without = printable(", ".join(names)), table_files.option("exclude", *names)
        raise UserError(
            f"columns of categories have no density: {shown}; train without them ({without}, "
            "besides what is left out already), or make one the label (--config.data.label)"
        )
    for column in known:
        if column.knots:
            raise UserError(
                "config.data.normalization=quantile: rows have no density in the units of the "
                "table; train with standard"
            )


def measures(trained: Trained, settings: LikelihoodSettings) -> dict[str, Measure]:
    """The measures of a model by the names of their rows in the table.

    Args:
      trained: the model.
      settings: resolved settings.

    Raises:
      UserError: for an end that the process does not reach.
    """
    model = trained.experiment
    if settings["end_logsnr"] is not None:
        model = model._replace(process=gaussian.ending_at(model.process, settings["end_logsnr"]))
    found = {f"ODE_{name}": _flow(model, settings, name) for name in settings["dequantize"]}
    if settings["bounds"]:
        found |= _bounds(model, settings)

    def with_params(measure: Callable[..., Values]) -> Measure:
        return lambda params, keys, x, cond: measure(
            denoiser.denoiser(trained.experiment, params, clip="none"), x, keys, cond
        )

    return {row: with_params(measure) for row, measure in found.items()}


def _flow(
    model: Experiment, settings: LikelihoodSettings, dequantize: str
) -> Callable[..., Values]:
    """The likelihood by the probability-flow ODE."""
    trace = (
        flow.exact()
        if settings["trace"] == "exact"
        else flow.hutchinson(settings["probes"], settings["trace"])
    )
    solver = flow.solver(settings["solver"], rtol=settings["rtol"], steps=settings["steps"])
    known = model.normalization

    def measure(denoise: Denoise, x: Array, keys: Key, cond: Cond) -> Values:
        found = flow.bits_per_dim(
            model.process,
            denoise,
            x,
            keys,
            cond,
            dequantize=dequantize,
            levels=settings["levels"],
            bins=known.bins if known else None,
            draws=settings["iw"],
            trace=trace,
            solver=solver,
        )
        # of densities in the units of the data, which normalization has rescaled
        offset = known.bits if known and dequantize == "none" else 0.0
        return {
            "total": found.bits + offset,
            "importance": found.importance + offset,
            "log_weights": found.log_weights,
            "nfe": found.nfe,
        }

    return measure


def _bounds(model: Experiment, settings: LikelihoodSettings) -> dict[str, Callable[..., Values]]:
    """The discrete bound, also importance-weighted, and the continuous bound."""
    process, k = model.process, settings["iw"]
    ts = sampling.grid(model, settings["grid"], settings["moves"] + 1)
    learned = model.options.get("learn_variance", False)
    chain = {"variance": "learned" if learned else "small", "levels": settings["levels"]}

    def discrete(denoise: Denoise, x: Array, keys: Key, cond: Cond) -> Values:
        return bounds.vlb(process, denoise, x, keys, ts, cond, **chain) | {"nfe": len(ts)}

    def discrete_iw(denoise: Denoise, x: Array, keys: Key, cond: Cond) -> Values:
        found = bounds.importance_vlb(process, denoise, x, keys, ts, cond, draws=k, **chain)
        return found | {"nfe": k * len(ts)}

    def continuous(denoise: Denoise, x: Array, keys: Key, cond: Cond) -> Values:
        draws = settings["draws"]
        found = bounds.continuous_vlb(
            process, denoise, x, keys, cond, draws=draws, levels=settings["levels"]
        )
        return found | {"nfe": draws + 1}

    found = {"discrete": discrete, "discrete_iw": discrete_iw, "continuous": continuous}
    if k == 1:
        del found["discrete_iw"]
    return found


def table(values: dict[str, np.ndarray], settings: LikelihoodSettings) -> list[dict[str, Any]]:
    """A row for each measure, with means over images.

    Args:
      values: {row.name: (N, ...)}, as likelihoods.run returns them.
      settings: resolved settings.

    Returns:
      Rows {'measure', 'bits', 'error', the three terms, 'nfe', 'seconds'}.

    Raises:
      UserError: where a measure is not finite.
    """
    rows = []
    for row, name, title in _titles(settings):
        if f"{row}.{name}" not in values:
            continue
        mean, error = flow.mean_with_error(values[f"{row}.{name}"])
        if not math.isfinite(mean):
            raise UserError(
                f"{title} is not finite: the solve ran out of steps; raise --rtol or take "
                "--solver=rk4"
            )
        terms = {
            term: flow.mean_with_error(values[f"{row}.{term}"])
            for term in TERMS[1:]
            if f"{row}.{term}" in values
        }
        rows.append(
            {
                "measure": title,
                "bits": mean,
                "error": error,
                "nfe": float(values[f"{row}.nfe"].mean()),
                "seconds": float(values[f"{row}.seconds"]),
                **terms,
            }
        )
    return rows


def _titles(settings: LikelihoodSettings) -> list[tuple[str, str, str]]:
    """List (row, name of its value, title) of every possible measure, in the table's order."""
    k, titles = settings["iw"], []
    for kind in settings["dequantize"]:
        title = f"ODE, {DEQUANTIZED[kind]}"
        titles.append((f"ODE_{kind}", "total", title))
        if k > 1:
            titles.append((f"ODE_{kind}", "importance", f"{title}, importance-weighted over {k}"))
    return [
        *titles,
        ("discrete", "total", f"discrete bound, {settings['moves']} transitions"),
        ("discrete_iw", "total", f"discrete bound, importance-weighted over {k} chains"),
        ("continuous", "total", f"continuous bound, {settings['draws']} times an image"),
    ]


def report(rows: list[dict[str, Any]]) -> str:
    """Write the rows of `table` in Markdown.

    Args:
      rows: a row for each measure, in bits per dimension: 'bits' and its standard 'error', (mean,
        standard error) of the terms of a bound, 'nfe' and 'seconds'.
    """

    def show(mean: float, error: float) -> str:
        return f"{mean:.4f} ± {error:.4f}"

    shown = [
        {key: show(*value) if isinstance(value, tuple) else value for key, value in row.items()}
        | {"bits": show(row["bits"], row["error"]), "nfe": round(row["nfe"], 1)}
        for row in rows
    ]
    terms = {term: term for term in TERMS[1:] if any(term in row for row in rows)}
    columns = {"measure": "measure", "bits": "bits/dim"} | terms
    return markdown_table(shown, columns | {"nfe": "NFE", "seconds": "seconds"})
