"""Methods for inverse problems on a mixture, whose posterior is known exactly."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.assembly import components, outputs, sampling
from diffusion_jax.assembly.build import build
from diffusion_jax.core import files, parsing
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Denoise, Key, Process
from diffusion_jax.evaluation import metrics
from diffusion_jax.inverse import measurements
from diffusion_jax.inverse.measurements import Measurement
from diffusion_jax.inverse.methods import Method, restore
from diffusion_jax.processes import schedules
from diffusion_jax.report import pictures, quality
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.samplers import base
from diffusion_jax.studies import store
from diffusion_jax.studies.inverse.table import open_rows, timed_row
from diffusion_jax.targets import laws, posterior

METHODS = "unguided;replacement;repaint(resample=5);dps(scale=0.1);dps(scale=0.3);ddnm;pigdm"
METRICS = ("bias", "variance_ratio", "interval_coverage")  # of evaluation/metrics.py
BUDGETS = "20,50,100"
LEVEL = 0.9  # of the credible intervals
EXACT = "exact posterior"
TRUTH = "exact denoiser given y"


class MixtureSettings(NamedTuple):
    """The inverse problem and how it is solved (the command's flags).

    Attributes:
      target: the mixture.
      process: the process of the denoiser.
      sampler: the sampler.
      grid: its grid.
      std: standard deviation of the measurement's noise.
      num: number of measurements.
      draws: number of draws for each.
    """

    target: str
    process: str
    sampler: str
    grid: str
    std: float
    num: int
    draws: int


class MixtureProblem(NamedTuple):
    """Measurements of a mixture, with their exact posterior.

    Attributes:
      law: the mixture.
      measurement: y = A x0 + noise.
      matrix: A (M, D).
      truth: (N, D) what was measured.
      y: (N, M) the measurements.
      exact: the posterior of x0 given each y.
    """

    law: laws.Mixture
    measurement: Measurement
    matrix: np.ndarray
    truth: Array
    y: Array
    exact: posterior.Posterior


def compare_with_posterior(
    *,
    target: str,
    process: str = "schedules.VP()",
    sampler: str = "ancestral.ddim(eta=1.0)",
    grid: str = "uniform_logsnr",
    std: float = 0.1,
    methods: str = "",
    nfe: str = "",
    num: int = 64,
    draws: int = 256,
    out: str = "",
) -> None:
    """Compare methods with the exact posterior of a mixture; write a table, rows and figures.

    Args:
      target: the mixture, such as 'gmm8'.
      process: the process of its denoiser.
      sampler: the sampler.
      grid: its grid.
      std: standard deviation of the measurement's noise.
      methods: methods separated by ';'; '' takes METHODS.
      nfe: budgets, with commas; '' takes BUDGETS.
      num: number of measurements.
      draws: number of draws for each.
      out: the folder to write to; '' takes runs/inverse_TARGET.

    Raises:
      UserError: for a target without an exact posterior, and for unknown names.
    """
    budgets = sorted(set(parsing.integers("nfe", nfe or BUDGETS, 2, 10_000)))
    if not budgets:
        raise UserError(f"--nfe={nfe}: write budgets of 2 or more, such as {BUDGETS}")
    chosen = parsing.specs(methods or METHODS)
    for method in chosen:  # mistakes are reported before anything takes long
        if method != TRUTH:
            build(components.METHODS, method)
    settings = MixtureSettings(target, process, sampler, grid, std, num, draws)
    folder = out or "runs/inverse_" + re.sub(r"\W+", "_", target).strip("_")
    stem = outputs.folder("out", folder, "inverse_benchmark.json") / "inverse_benchmark"
    with jax.enable_x64(True):
        table = open_rows(stem.with_suffix(".json"), settings._asdict())
        rows = make_rows(settings, chosen, budgets, table)
    title = f"{target}, {process}, noise {std:g}: {num} y, {draws} draws each, {sampler}"
    draw_figures(rows, stem, title)
    text = f"# {title}\n\n{report(rows)}"
    files.save_text(stem.with_suffix(".md"), text)
    print(f"{text}\n{stem}.json, .md, .png")


def _matrix_for(dim: int) -> np.ndarray:
    """Choose the directions that are measured.

    Args:
      dim: the dimension D of the target.

    Returns:
      (M, D): the first coordinate on a line, (1, 1/2) in the plane, otherwise D / 2 random
      orthonormal directions.
    """
    if dim <= 2:
        return np.array([[1.0, 0.5]])[:, :dim]
    return np.linalg.qr(np.random.default_rng(0).standard_normal((dim, dim)))[0][: dim // 2]


def mixture_of(target: str) -> laws.Mixture:
    """Return the mixture of Gaussians that a target is.

    Args:
      target: the spec of a target, such as 'gmm8'.

    Raises:
      UserError: for a target whose posterior is not known here.
    """
    found, process = build(components.TARGETS, target), schedules.EDM()
    if found.modes is not None:
        x = found.draw(jax.random.key(0), 5)
        own = found.log_density(process, x, process.t_min)
        modes = laws.log_density_mixture(found.modes, process, x, process.t_min)
        if np.allclose(own, modes, rtol=1e-4):
            return found.modes
    raise UserError(
        f"--target={target} is not a mixture with a known posterior; use gmm8 or "
        "'gmm(modes=20,dim=8)'"
    )


def _problem_of(settings: MixtureSettings) -> MixtureProblem:
    """Draw points of a target and measure them, and compute their exact posterior.

    Args:
      settings: the target, the number of measurements and the noise; all random numbers have fixed
        keys.
    """
    law = jax.tree.map(jnp.asarray, mixture_of(settings.target))
    dim = law.means.shape[1]
    matrix = _matrix_for(dim)
    measurement = measurements.linear((dim,), matrix, settings.std)
    truth = laws.draw_mixture(law, jax.random.key(1), settings.num)
    y = measurements.measure(measurement, jax.random.key(2), truth)
    exact = posterior.posterior(law, jnp.asarray(matrix), settings.std**2, y)
    return MixtureProblem(law, measurement, matrix, truth, y, exact)


def judged(
    draws: np.ndarray, truth: np.ndarray, mean: np.ndarray, variance: np.ndarray
) -> dict[str, float]:
    """Compare draws of a method with the exact posterior.

    Args:
      draws: (N, S, D) S draws for each of N measurements.
      truth: (N, D) what was measured.
      mean: (N, D) the posterior's mean.
      variance: (N, D) the posterior's variance.

    Returns:
      bias: RMS distance of the draws' mean from the posterior's, in RMS posterior standard
        deviations, at least about 1 / sqrt(S). variance_ratio: the draws' total variance over the
        posterior's. interval_coverage: how often a coordinate of the truth lies in the central
        90 % of the draws.
    """
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    return {
        "bias": float(np.sqrt(np.mean((draws.mean(1) - mean) ** 2) / variance.mean())),
        "variance_ratio": float(draws.var(1, ddof=1).mean() / variance.mean()),
        "interval_coverage": float(np.mean((low <= truth) & (truth <= high))),
    }


def make_rows(
    settings: MixtureSettings, methods: Sequence[str], budgets: Sequence[int], table: store.Table
) -> list[dict[str, Any]]:
    """Make rows for the exact posterior, for the exact denoiser given y, and for every method.

    Args:
      settings: the inverse problem.
      methods: the methods.
      budgets: network evaluations, for each method.
      table: keeps the rows.

    Returns:
      Rows {'method', 'nfe', 'evaluations', the METRICS, 'draws' of the first measurement}.
    """
    problem = _problem_of(settings)
    mean, variance = map(np.asarray, posterior.posterior_moments(problem.exact))
    num, draws, dim = settings.num, settings.draws, problem.law.means.shape[1]
    keys = jax.random.split(jax.random.key(3), num * draws)

    def row(points: Array) -> dict[str, Any]:
        points = np.asarray(points, np.float64).reshape(num, draws, dim)
        scores = judged(points, np.asarray(problem.truth), mean, variance)
        return scores | {"draws": points[0].round(3).tolist()}

    many = problem.exact._replace(
        weights=jnp.repeat(problem.exact.weights, draws, 0),
        means=jnp.repeat(problem.exact.means, draws, 0),
    )
    rows = [
        timed_row(
            table, {"method": EXACT}, lambda: row(posterior.draw_posterior(many, keys)), "the"
        )
    ]
    names = [TRUTH, *methods]
    for name in names:
        solve, evaluations = _solver_of(settings, problem, _method(name, problem), budgets)
        for nfe in budgets:
            place = names.index(name) * len(budgets) + budgets.index(nfe) + 1
            key = {"method": name, "nfe": nfe, "evaluations": evaluations[nfe]}

            def make(nfe: int = nfe, solve: Callable[[Key, int], Array] = solve) -> dict[str, Any]:
                return row(solve(keys, nfe))

            rows.append(timed_row(table, key, make, f"{place} of {len(names) * len(budgets)}:"))
    return rows


def _method(name: str, problem: MixtureProblem) -> Method:
    """A method by its name; that of TRUTH replaces the denoiser by the exact one given y."""
    if name != TRUTH:
        return build(components.METHODS, name)
    matrix, std = jnp.asarray(problem.matrix), problem.measurement.std

    def exact(denoise: Denoise, process: Process, _: Measurement, y: Array) -> Denoise:
        return posterior.conditional(problem.law, process, matrix, std, y)

    return Method(exact)


def _solver_of(
    settings: MixtureSettings, problem: MixtureProblem, method: Method, budgets: Sequence[int]
) -> tuple[Callable[[Key, int], Array], dict[int, int]]:
    """Compile a method for all budgets.

    Args:
      settings: the process, the sampler and its grid.
      problem: the measurements.
      method: the method.
      budgets: network evaluations.

    Returns:
      ((keys (N draws,), budget) -> points (N draws, D), {budget: evaluations that are made}).
    """
    process = build(components.PROCESSES, settings.process)
    sampler = build(components.SAMPLERS, settings.sampler)
    repeated = jnp.repeat(problem.y, settings.draws, 0)
    wrapped = method.wrap(sampler, problem.measurement, repeated)
    lengths = {nfe: base.points(wrapped, nfe) for nfe in budgets}
    spec = base.grid_spec(settings.grid, sampler)

    @jax.jit
    def run(keys: Key, y: Array, ts: Array) -> Array:
        x = base.start(process, keys, (len(keys), problem.law.means.shape[1]), y.dtype)
        denoise = laws.denoise_mixture(problem.law, process)
        return restore(
            method, problem.measurement, y, sampler, denoise, process, keys, x, ts, padded=True
        ).x0

    def solve(keys: Key, nfe: int) -> Array:
        ts = jnp.asarray(build(components.GRIDS, spec, process, lengths[nfe]), repeated.dtype)
        return run(keys, repeated, sampling.pad(ts, max(lengths.values())))

    evaluations = {nfe: base.evaluations(wrapped, np.zeros(n)) for nfe, n in lengths.items()}
    return solve, evaluations


def report(rows: list[dict[str, Any]]) -> str:
    """Write the results as a Markdown table.

    Args:
      rows: a row for each method: 'method', 'evaluations' (of the network), and the mean of each
        metric.
    """
    shown = {name: metrics.find(name) for name in METRICS}
    headings = {name: metric.label for name, metric in shown.items()}
    rows = [  # a label names the unit, which the values are not in
        row | {name: metric.format.factor * row[name] for name, metric in shown.items()}
        for row in rows
    ]
    return markdown_table(rows, {"method": "method", "evaluations": "NFE"} | headings)


def draw_figures(rows: list[dict[str, Any]], stem: Path, title: str) -> None:
    """Draw curves over NFE, and in the plane the draws of the first measurement.

    Args:
      rows: the rows, the exact posterior's first.
      stem: the figures are stem.png and stem_draws.png.
      title: the title of the curves.
    """
    exact, made = rows[0], [row | {"sampler": row["method"]} for row in rows[1:]]
    truth = {metric: exact[metric] for metric in METRICS}
    how = {"features": "", "metrics": METRICS, "reference": truth, "title": title}
    quality.quality_curves(made, stem.with_suffix(".png"), **how)
    if np.shape(exact["draws"])[1] < 2:  # a density is drawn in the plane alone
        return

    def tile(row: dict[str, Any]) -> Any:
        return pictures.density(np.asarray(row["draws"]), ((-1.6, -1.6), (1.6, 1.6)))

    budgets = sorted({row["nfe"] for row in made})
    tiles = {(row["method"], row["nfe"]): tile(row) for row in made}
    pictures.strips(
        tiles,
        stem.with_name(stem.name + "_draws.png"),
        columns={nfe: f"{nfe} NFE" for nfe in budgets},
        title="Draws of x0 given one y",
        above={EXACT: tile(exact)},
    )
