"""Makes what samplers are compared on: an analytic target or a trained model.

subject = of_target("gmm8", "schedules.VP()", range(2000))
subject = of_model(trained, dataset, range(200), "digits")
outcome = drawing.judged(subject, drawing.runner(subject, sampler, length), ts)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data
from diffusion_jax.assembly import components, denoiser, sample_conditions, sampling
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Cond, Denoise
from diffusion_jax.evaluation import generate, intervals, judge, points
from diffusion_jax.evaluation.estimators import Measurements, Scores
from diffusion_jax.evaluation.intervals import Measured
from diffusion_jax.evaluation.judge import Judge
from diffusion_jax.evaluation.samples import Kept
from diffusion_jax.report import media, pictures
from diffusion_jax.samplers import base, grids
from diffusion_jax.studies import drawing, scoring
from diffusion_jax.studies.subject import Judging, Subject
from diffusion_jax.targets import presets, reference

POINTS = "points"  # the rows of points, which are kept themselves
SHOWN = 10  # images of a cell that are kept for figures
FINE = 401  # network evaluations of the fine solve of a model's own ODE


# ---- analytic targets
def of_target(spec: str, process: str, seeds: Sequence[int]) -> Subject:
    """An analytic target, in float64; samples are judged against four times as many exact draws.

    Call this function and use the subject under `jax.enable_x64(True)`.

    Args:
      spec: a target of diffusion_jax.targets, such as 'gmm8'.
      process: a process, such as 'schedules.EDM()'.
      seeds: one for each sample.
    """
    target, path = build(components.TARGETS, spec), build(components.PROCESSES, process)
    count, keys = len(seeds), generate.seeds_to_keys(seeds)

    def exact() -> tuple[np.ndarray, str]:
        denoise, x = target.denoise(path), base.start(path, keys, (count, *target.shape), "float64")
        x = reference.reference(denoise, path, x, path.t_max, path.t_min)
        x0 = denoise(jnp.asarray(x), jnp.float64(path.t_min)).x0
        return np.asarray(x0), "an adaptive float64 solve to a tolerance of 1e-10"

    return Subject(
        name=f"{spec}, {process}",
        identity={"target": spec, "process": process, "seeds": list(seeds)},
        process=path,
        shape=target.shape,
        dtype="float64",
        denoise=lambda params: target.denoise(path),
        params=(),
        cond=None,
        keys=keys,
        batch_size=count,
        finish=lambda x: x.astype(np.float32),
        judging=_judging_of_target(target, count),
        exact=exact,
    )


def _judging_of_target(target: presets.Target, count: int) -> Judging:
    draws = np.asarray(target.draw(jax.random.key(2**31), 12 * count)).reshape(12, count, -1)
    truth, others = draws[:4].reshape(4 * count, -1), draws[4:]

    def score(x: np.ndarray) -> Scores:
        scores = _scores_of_points(truth, x)
        if target.modes is None:
            return scores
        off = points.mode_weights(x, target.modes.means) - np.asarray(target.modes.weights)
        return scores | {"mode_weights": 0.5 * float(np.abs(off).sum())}

    each, margin = [score(other) for other in others], 0.08 * np.ptp(truth, axis=0)
    box = (truth.min(0) - margin, truth.max(0) + margin)
    return Judging(
        judge=_judge_of_points(score),
        labels=None,
        truth={name: _mean([scores[name] for scores in each]) for name in each[0]},
        real=others[0],
        picture=functools.partial(pictures.density, box=box),
    )


def _judge_of_points(score: Callable[[np.ndarray], Scores]) -> Judge:
    """A judge that keeps the points themselves."""

    def extract(x: np.ndarray, labels: np.ndarray | None = None) -> dict[str, np.ndarray]:
        return {POINTS: x}

    def measure(kept: Kept, *, grouped: bool = True) -> Measurements:
        x = kept.whole(POINTS)
        return intervals.by_groups(lambda stays: score(x[stays]), len(x), grouped=grouped)

    return Judge(extract, measure, {})


def _mean(values: Sequence[float]) -> Measured:
    """The mean of the scores of independent sets, with its interval."""
    half = intervals.NORMAL * np.std(values, ddof=1) / np.sqrt(len(values))
    return Measured(float(np.mean(values)), float(half))


def _scores_of_points(real: np.ndarray, x: np.ndarray) -> Scores:
    return {"sliced_wasserstein": points.sliced_wasserstein(x, real), "mmd": points.mmd(x, real)}


# ---- trained models
def of_model(
    trained: Trained,
    dataset: data.Dataset,
    seeds: Sequence[int],
    name: str,
    *,
    solved: int = 64,
    features: str = "",
    metrics: str = "",
    reference: str = "",
    mesh: jax.sharding.Mesh | None = None,
) -> Subject:
    """A trained model with its config's guidance, clip and weights.

    Images and arrays of files are judged by evaluation.judge, and so are real test samples; points
    in a plane are judged against as many held-out ones.

    Args:
      trained: the model.
      dataset: the images or points that the samples are judged against.
      seeds: one for each sample.
      name: its name in titles.
      solved: how many of the seeds are solved exactly.
      features: of images, with commas, whose first decides; '' for the default ones
        (choice.default_features).
      metrics: with commas; '' for 'accuracy' where there are labels, and 'frechet'.
      reference: a file of experiments.statistics; '' compares with training images.
      mesh: the devices that draw; None for one device.

    Raises:
      UserError: for an autoencoder, for guidance that the model has no condition for, and for a
        data set without the captions that the model needs.
    """
    denoiser.need_denoiser(trained.experiment)
    count = len(seeds)
    labels, cond = sample_conditions.for_judging(trained.experiment, dataset, count)
    chosen = {"features": features, "metrics": metrics, "reference": reference}
    judging = _judging(trained.experiment, dataset, labels, count, chosen)
    about = {"features": judging.features} | {key: value for key, value in chosen.items() if value}
    about |= scoring.reference_record(reference)
    return subject_of(trained, seeds, name, cond, judging, about, solved, mesh)


def subject_of(
    trained: Trained,
    seeds: Sequence[int],
    name: str,
    cond: Cond,
    judging: Judging,
    about: dict[str, Any],
    solved: int,
    mesh: jax.sharding.Mesh | None,
) -> Subject:
    """Put the subject of a model together.

    Args:
      trained: the model.
      seeds: one for each sample.
      name: its name in titles.
      cond: the conditions of the samples.
      judging: how they are judged.
      about: what its numbers depend on besides the model and the seeds.
      solved: how many of the seeds are solved exactly.
      mesh: the devices that draw; None for one device.
    """
    experiment, settings = trained.experiment, trained.experiment.sampling
    count, denoise = len(seeds), _guided_denoiser(experiment)
    subject = Subject(
        name=name,
        identity=_identity(trained, seeds) | about,
        process=experiment.process,
        shape=experiment.shape,
        dtype="float32",
        denoise=denoise,
        params=denoiser.ensemble(experiment, trained.params),
        cond=cond,
        keys=generate.seeds_to_keys(seeds),
        batch_size=min(settings.batch_size, count),
        finish=sampling.to_images(experiment, settings.batch_size),
        judging=judging,
        exact=_no_path,
        mesh=mesh,
    )
    if not experiment.kind.has_flow:
        return subject
    return subject._replace(exact=lambda: _fine_solution(_first(subject, min(solved, count))))


def _identity(trained: Trained, seeds: Sequence[int]) -> dict[str, Any]:
    return {
        "config": trained.experiment.record,
        "step": trained.step,
        "weights": trained.weights,
        **trained.experiment.origins,
        "seeds": list(seeds),
    }


def _judging(
    experiment: Experiment,
    dataset: data.Dataset,
    labels: np.ndarray | None,
    count: int,
    chosen: dict[str, str],
) -> Judging:
    if experiment.is_image or experiment.normalization:
        judged = scoring.judge_of(dataset, labels, count, plain=True, **chosen)
        shown = media.media_of(experiment.shape, experiment.normalization)
        return _judging_of_samples(dataset, labels, count, judged, shown)
    for flag, value in chosen.items():
        if value:
            raise UserError(f"--{flag}={value} is for models of images, and this one draws points")
    return _judging_of_points(dataset, count)


def _guided_denoiser(experiment: Experiment) -> Callable[[denoiser.Ensemble], Denoise]:
    """Parameters -> the denoiser with the guidance and the clipping of the sampling settings."""
    settings = experiment.sampling
    scale = settings.guidance if denoiser.is_guided(experiment, settings.guidance) else None
    return denoiser.of_ensemble(experiment, scale=scale, clip=settings.clip)


def _judging_of_samples(
    dataset: data.Dataset,
    labels: np.ndarray | None,
    count: int,
    judged: Judge,
    shown: media.Media,
) -> Judging:
    test = dataset.test if len(dataset.test) else dataset.train
    real = data.arrays(test, limit=count)["image"]
    return Judging(
        judge=judged,
        labels=labels,
        truth=judge.measured_on_real(dataset.train, dataset.test, judged, count),
        real=real,
        picture=picture_of(shown, real),
        shown=None if shown.of_sets else SHOWN,
        players=shown.players,
    )


def picture_of(shown: media.Media, real: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Make the function from samples to one tile of a strip.

    Args:
      shown: how samples are shown: some of them, or where points of the first columns lie.
      real: real samples, for the limits of the picture.
    """
    if not shown.of_sets:
        return lambda x: pictures.mosaic(shown.tiles(x[:8]))
    if real.shape[1] > 1:
        return functools.partial(pictures.density, box=_box(real))
    box = _box(real.repeat(2, axis=1))  # a single column is the diagonal of a plane
    return lambda x: pictures.density(x.repeat(2, axis=1), box)


def _box(real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The corners within which points are shown."""
    return np.quantile(real, 0.001, axis=0) - 0.2, np.quantile(real, 0.999, axis=0) + 0.2


def _judging_of_points(dataset: data.Dataset, count: int) -> Judging:
    test = dataset.test if len(dataset.test) else dataset.train
    real = data.arrays(test, limit=count)["image"]
    judged = _judge_of_points(functools.partial(_scores_of_points, real))
    return Judging(
        judge=judged,
        labels=None,
        truth=judged.measured(data.arrays(dataset.train, limit=count)["image"]),
        real=real,
        picture=functools.partial(pictures.density, box=_box(real)),
    )


def _no_path() -> tuple[np.ndarray, str]:
    raise UserError("a few-step model follows no path that could be solved for")


def _first(subject: Subject, count: int) -> Subject:
    """The subject with the first `count` seeds alone."""
    cond = jax.tree.map(lambda c: c[:count], subject.cond)
    return subject._replace(keys=subject.keys[:count], batch_size=count, cond=cond)


def _fine_solution(subject: Subject) -> tuple[np.ndarray, str]:
    """x0 of the subject's probability-flow ODE by EDM's Heun sampler in many steps.

    The text says how far a solve with half as many steps is from it.
    """
    sampler = build(components.SAMPLERS, "ode.edm_heun")
    solve = drawing.runner(subject, sampler, FINE // 2 + 1)
    lengths = (base.points(sampler, nfe) for nfe in (FINE, FINE // 2 + 1))
    best, half = (solve(np.asarray(grids.uniform_logsnr(subject.process, n)))[0] for n in lengths)
    moved = float(np.sqrt(np.mean(np.square(best - half, dtype=np.float64))))
    return (
        best,
        f"ode.edm_heun@uniform_logsnr at {FINE} NFE, which halving its steps moves by {moved:.1e}",
    )
