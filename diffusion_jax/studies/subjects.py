"""What samplers are compared on: an analytic target or a trained model, and how samples are judged.

subject = of_target("gmm8", "schedules.VP()", range(2000))
subject = of_model(trained, dataset, range(200), "digits")
samples, evaluations, seconds = runner(subject, sampler, length)(ts)
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data
from diffusion_jax.assembly import components, denoiser, sample_conditions, sampling
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Cond, Denoise, Key, Params, Process
from diffusion_jax.data.padding import PaddedBatch, padded_batches
from diffusion_jax.evaluation import choice, generate, judge, points
from diffusion_jax.report import pictures
from diffusion_jax.samplers import base, grids, step_noise
from diffusion_jax.targets import presets, reference

GROUPS = 5  # groups of samples; each is left out once to estimate the noise of a score
SHOWN = 8  # images in a strip
FINE = 401  # network evaluations of the fine solve of a model's own ODE

Scores = dict[str, float]


class Judging(NamedTuple):
    """The metrics and the figures for the samples of a subject.

    Attributes:
      scores: (samples, group) -> scores of the samples without those of a group; None: of all.
      truth_scores: what as much real data scores.
      real: samples of the truth.
      picture: samples -> one tile of a strip.
      features: what the Fréchet distance of images compares, a name of evaluation.features; '' for
        points.
    """

    scores: Callable[[np.ndarray, int | None], Scores]
    truth_scores: Scores
    real: np.ndarray
    picture: Callable[[np.ndarray], np.ndarray]
    features: str = ""


class Subject(NamedTuple):
    """A trained model or an analytic target, and how its samples are judged.

    Attributes:
      name: its name in titles.
      identity: everything that its numbers depend on besides sampler, grid and budget; 'seeds' is
        one of the keys.
      process: the diffusion process.
      shape: the shape of one example.
      dtype: the precision of the samplers.
      denoise: params -> Denoise.
      params: the parameters.
      cond: the conditions of the samples, or None.
      keys: (N,), one for each sample and the same for every sampler.
      batch_size: samples that are drawn at once.
      finish: x0 (N, ...) -> samples as they are judged and kept.
      judging: how the samples are scored and shown.
      exact: () -> (exact solutions x0 from the first seeds or from all of them, how they were
        found). It raises UserError where there is no path to solve for.
    """

    name: str
    identity: dict[str, Any]
    process: Process
    shape: tuple[int, ...]
    dtype: str
    denoise: Callable[[Params], Denoise]
    params: Params
    cond: Cond
    keys: Key
    batch_size: int
    finish: Callable[[np.ndarray], np.ndarray]
    judging: Judging
    exact: Callable[[], tuple[np.ndarray, str]]

    def scores(self, samples: np.ndarray, group: int | None = None) -> Scores:
        """Return the scores of samples.

        Args:
          samples: the samples as `finish` returns them.
          group: number of the group of samples that is left out, below GROUPS; None for no group.
        """
        return self.judging.scores(samples, group)


def without_group(count: int, group: int | None) -> np.ndarray:
    """Mark the samples that stay when one of GROUPS groups is left out.

    Args:
      count: number of samples; sample i belongs to group i modulo GROUPS.
      group: number of the group that is left out; None keeps all samples.

    Returns:
      (count,) of bool.
    """
    return np.arange(count) % GROUPS != (-1 if group is None else group)


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

    def score(x: np.ndarray, group: int | None = None) -> Scores:
        if group is not None:  # only the score that decides needs a margin
            own = x[without_group(count, group)]
            return {"sliced_wasserstein": points.sliced_wasserstein(own, truth)}
        scores = _scores_of_points(truth, x)
        if target.modes is None:
            return scores
        off = points.mode_weights(x, target.modes.means) - np.asarray(target.modes.weights)
        return scores | {"mode_weights": 0.5 * float(np.abs(off).sum())}

    each, margin = [score(other) for other in others], 0.08 * np.ptp(truth, axis=0)
    box = (truth.min(0) - margin, truth.max(0) + margin)
    return Judging(
        scores=score,
        truth_scores={name: float(np.mean([scores[name] for scores in each])) for name in each[0]},
        real=others[0],
        picture=functools.partial(pictures.density, box=box),
    )


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
) -> Subject:
    """A trained model with its config's guidance, clip and weights.

    Images are judged by evaluation.judge, and so are real test images; points are judged against
    as many held-out ones.

    Args:
      trained: the model.
      dataset: the images or points that the samples are judged against.
      seeds: one for each sample.
      name: its name in titles.
      solved: how many of the seeds are solved exactly.
      features: the features of the Fréchet distance; '' for those of choice.default_features.

    Raises:
      UserError: for an autoencoder, for guidance that the model has no condition for, and for a
        data set without the captions that the model needs.
    """
    experiment, settings = trained.experiment, trained.experiment.sampling
    denoiser.need_denoiser(experiment)
    count, denoise = len(seeds), _guided_denoiser(experiment)
    labels, cond = sample_conditions.for_judging(experiment, dataset, count)
    if experiment.is_image:
        judging = _judging_of_images(dataset, labels, count, features)
    else:
        judging = _judging_of_points(dataset, count)
    subject = Subject(
        name=name,
        identity={
            "config": experiment.record,
            "step": trained.step,
            "weights": trained.weights,
            "seeds": list(seeds),
            "features": judging.features,
        },
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
    )
    if not experiment.kind.has_flow:
        return subject
    return subject._replace(exact=lambda: _fine_solution(_first(subject, min(solved, count))))


def _guided_denoiser(experiment: Experiment) -> Callable[[denoiser.Ensemble], Denoise]:
    """Parameters -> the denoiser with the guidance and the clipping of the sampling settings."""
    settings = experiment.sampling
    guided = denoiser.is_guided(experiment, settings.guidance)

    def denoise(params: denoiser.Ensemble) -> Denoise:
        return denoiser.denoiser(
            *denoiser.unpack(experiment, params),
            scale=jnp.float32(settings.guidance) if guided else None,
            clip=settings.clip,
        )

    return denoise


def _judging_of_images(
    dataset: data.Dataset, labels: np.ndarray | None, count: int, features: str
) -> Judging:
    features = features or choice.default_features(dataset.train)
    metrics = ("frechet",) if labels is None else ("accuracy", "frechet")
    against = judge.against(
        dataset.train, labels, features=(features,), count=count, metrics=metrics
    )

    def judged(*args: np.ndarray) -> Scores:
        """The scores, with the Fréchet distance named 'frechet' whatever features it compares."""
        return {name.removesuffix(f"/{features}"): value for name, value in against(*args).items()}

    def score(x: np.ndarray, group: int | None = None) -> Scores:
        own = without_group(count, group)
        return judged(x[own]) if labels is None else judged(x[own], labels[own])

    test = dataset.test if len(dataset.test) else dataset.train
    return Judging(
        scores=score,
        truth_scores=judge.on_real(dataset.train, dataset.test, judged, count),
        real=data.arrays(test, limit=count)["image"],
        picture=lambda x: pictures.mosaic(x[:SHOWN]),
        features=features,
    )


def _judging_of_points(dataset: data.Dataset, count: int) -> Judging:
    test = dataset.test if len(dataset.test) else dataset.train
    real = data.arrays(test, limit=count)["image"]

    def score(x: np.ndarray, group: int | None = None) -> Scores:
        return _scores_of_points(real, x[without_group(count, group)])

    box = (np.quantile(real, 0.001, axis=0) - 0.2, np.quantile(real, 0.999, axis=0) + 0.2)
    return Judging(
        scores=score,
        truth_scores=_scores_of_points(real, data.arrays(dataset.train, limit=count)["image"]),
        real=real,
        picture=functools.partial(pictures.density, box=box),
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
    solve = runner(subject, sampler, FINE // 2 + 1)
    lengths = (base.points(sampler, nfe) for nfe in (FINE, FINE // 2 + 1))
    best, half = (solve(np.asarray(grids.uniform_logsnr(subject.process, n)))[0] for n in lengths)
    moved = float(np.sqrt(np.mean(np.square(best - half, dtype=np.float64))))
    return (
        best,
        f"ode.edm_heun@uniform_logsnr at {FINE} NFE, which halving its steps moves by {moved:.1e}",
    )


# ---- sampling
Runner = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, float]]


def runner(
    subject: Subject,
    sampler: base.Sampler,
    length: int,
    noise: Callable[..., Any] = step_noise.independent,
) -> Runner:
    """A function that draws all samples of a subject on any grid, by one compiled program.

    Args:
      subject: what is sampled.
      sampler: the sampler.
      length: the number of times of the longest grid.
      noise: where the sampler's noise comes from, as in `base.sample`.

    Returns:
      ts (n,) with n <= length -> (x0 (N, ...), network evaluations (N,), seconds). The program is
      compiled before the clock starts.
    """
    count, batch = len(subject.keys), subject.batch_size

    @jax.jit
    def run(params: Params, keys: Key, cond: Cond, ts: Array) -> tuple[Array, Array]:
        x = base.start(subject.process, keys, (batch, *subject.shape), subject.dtype)
        denoise = subject.denoise(params)
        samples = base.sample(
            sampler, denoise, subject.process, keys, x, ts, cond, padded=True, noise=noise
        )
        return samples.x0, samples.nfe

    def part(rows: PaddedBatch, ts: Array) -> tuple[np.ndarray, ...]:
        cond = jax.tree.map(lambda c: c[rows.index], subject.cond)
        out = run(subject.params, subject.keys[rows.index], cond, ts)
        return tuple(np.asarray(value)[: rows.real] for value in out)

    @functools.cache
    def compile_once() -> None:
        # a grid of one time has no step
        start = sampling.pad(jnp.full(1, subject.process.t_min, subject.dtype), length)
        part(next(padded_batches(count, batch)), start)

    def sample_all(ts: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        compile_once()
        ts, began = sampling.pad(jnp.asarray(ts, subject.dtype), length), time.monotonic()
        parts = [part(rows, ts) for rows in padded_batches(count, batch)]
        x, spent = (np.concatenate(each) for each in zip(*parts))
        return x, spent, time.monotonic() - began

    return sample_all
