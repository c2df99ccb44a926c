"""The score of one setting of a model: its images are drawn, judged and forgotten, block by block.

    plan = plan_of(trained, settings, dataset, seeds=range(1000), mesh=mesh)
    folder = folder_of(root, plan, judged)
    scored = score(plan, judged, folder)      # Scored, with an interval for every score
    blocks.discard(folder)                    # once the result is kept elsewhere

An image depends on its seed and its position alone. Running `score` again with more seeds in the
same folder draws those that are missing; the numbers are those of one run with all of them. What is
kept of an image are its rows (evaluation/samples.py), not the image: 4 bytes for each feature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
from jax.sharding import Mesh

from diffusion_jax.assembly import origins, sample_conditions, sampling
from diffusion_jax.assembly.settings import Experiment, SamplingSettings
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import files, parsing
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Cond, Key
from diffusion_jax.data import Dataset
from diffusion_jax.evaluation import choice, generate, intervals, judge, samples, statistics
from diffusion_jax.evaluation.estimators import Measurements, Scores
from diffusion_jax.evaluation.features import Extractor
from diffusion_jax.evaluation.intervals import Measured
from diffusion_jax.evaluation.judge import Judge
from diffusion_jax.report import media
from diffusion_jax.studies import blocks
from diffusion_jax.training import distributed

VERSION = 1  # of how images are drawn and judged: blocks of another version are not used
SHOWN = "images"  # of the first images, which figures show
PICTURES = blocks.FIRST + SHOWN
NO_IMAGES = np.zeros((0, 0, 0, 0), np.uint8)


class JudgeFlags(TypedDict, total=False):
    """The flags that say by what images are judged; those that are missing are ''.

    Attributes:
      features: feature extractors, with commas; '' for the default ones.
      metrics: separated by commas; '' for those of the command.
      reference: a file of experiments.statistics; '' compares with training images.
    """

    features: str
    metrics: str
    reference: str


class Plan(NamedTuple):
    """How the images of one setting are drawn.

    Attributes:
      draw: (keys (B,), cond) -> images (B, ...) in [-1, 1], on every process.
      seeds: one for each image.
      conditions: positions (n,) -> (labels (n,) or None, condition of those images).
      batch_size: images that are drawn at once; changes no image.
      identity: everything that the images depend on besides their seeds, as plain data.
      finish: what makes samples as they are judged of a batch; None is `transforms.to_uint8`.
      tiles: samples -> the images that figures show of them (report.media).
    """

    draw: Callable[[Key, Cond], Array]
    seeds: Sequence[int]
    conditions: Callable[[np.ndarray], tuple[np.ndarray | None, Cond]]
    batch_size: int
    identity: dict[str, Any]
    finish: Callable[[np.ndarray], np.ndarray] | None = None
    tiles: Callable[[np.ndarray], np.ndarray] = np.asarray


class Scored(NamedTuple):
    """The scores of a setting.

    Attributes:
      measured: the scores with their intervals.
      shown: the first images, uint8 (n, H, W, C).
      count: the number of images.
    """

    measured: Measurements
    shown: np.ndarray
    count: int

    @property
    def scores(self) -> Scores:
        """The scores alone."""
        return intervals.values(self.measured)

    @property
    def intervals(self) -> Scores:
        """Half the width of the 95 % interval of every score that has one."""
        return intervals.halves(self.measured)


def plan_of(
    trained: Trained,
    settings: SamplingSettings | None,
    dataset: Dataset,
    seeds: Sequence[int],
    mesh: Mesh | None = None,
) -> Plan:
    """The plan of a model's own way of drawing, with some sampling settings.

    Args:
      trained: the model.
      settings: the settings of sampling; None for those of the model.
      dataset: gives the labels or captions of the images.
      seeds: one for each image.
      mesh: the devices that draw; None for one device.
    """
    experiment = trained.experiment
    settings = settings or experiment.sampling
    experiment = experiment._replace(sampling=settings)
    chosen = sampling.method(experiment)
    return Plan(
        sampling.sample_with(experiment, trained.params, chosen, mesh),
        seeds,
        lambda positions: sample_conditions.at(experiment, dataset, positions),
        min(settings.batch_size, len(seeds)),
        _identity_of(trained, settings),
        *kept_of(experiment),
    )


def kept_of(experiment: Experiment) -> tuple[Callable[[np.ndarray], np.ndarray], ...]:
    """What becomes of drawn samples: the last two attributes of a plan, `finish` and `tiles`.

    Args:
      experiment: the model that draws them.
    """
    shown = media.media_of(experiment.shape, experiment.normalization)
    return sampling.to_output(experiment), shown.tiles


def _identity_of(trained: Trained, settings: SamplingSettings) -> dict[str, Any]:
    """Everything that the images of a model depend on besides seeds: run, weights and settings.

    Args:
      trained: the model.
      settings: the settings of sampling.
    """
    record = {**trained.experiment.record}
    record.pop("sampler", None)
    chosen = settings._replace(sampler=settings.name, batch_size=0)._asdict()
    if chosen["labels"] == "auto":
        del chosen["labels"]  # which results of earlier versions do not state
    return {
        "config": record,
        "step": trained.step,
        "weights": trained.weights,
        "sampling": chosen,
        **origins.of_samples(trained.experiment, settings),
    }


def score(
    plan: Plan,
    judged: Judge,
    folder: Path | None,
    *,
    shown: int = 0,
    description: str = "sampling",
    grouped: bool = True,
    advance: Callable[[int], None] | None = None,
) -> Scored:
    """Draw and judge the images of a plan that are not kept in the folder.

    Args:
      plan: how they are drawn.
      judged: what scores them.
      folder: the folder of the blocks of this plan, such as `folder_of(root, plan, judged)`; None
        keeps the rows in memory.
      shown: how many of the first images to return, which are kept as they are.
      description: names the progress; '' shows none.
      grouped: whether the scores need intervals.
      advance: is called with the numbers of images that are there, instead of a progress bar.

    Returns:
      The scores, the same on every process.
    """
    count = len(plan.seeds)

    def make(positions: np.ndarray, done: Callable[[int], None]) -> samples.Rows:
        labels, cond = plan.conditions(positions)
        keys = generate.seeds_to_keys([plan.seeds[i] for i in positions])
        size = min(plan.batch_size, count)
        images = generate.generate(
            plan.draw,
            keys,
            cond,
            batch_size=size,
            progress=advance or done,
            finish=plan.finish,
        )
        if not distributed.first():
            return {}
        first = {PICTURES: plan.tiles(images[: max(shown - positions[0], 0)])} if shown else {}
        return judged.extract(images, () if labels is None else labels) | first

    size, needed = plan.batch_size, [PICTURES] * bool(shown)
    kept = blocks.run(folder, count, make, needed, at_once=size, description=description)
    if not distributed.first():
        return Scored(_agreed({}), NO_IMAGES, count)
    pictures = kept.first(SHOWN)[:shown] if shown else NO_IMAGES
    return Scored(_agreed(judged.measure(kept, grouped=grouped)), pictures, count)


def requested(features: str, metrics: str) -> tuple[list[str], list[str]]:
    """The names in the flags --features and --metrics.

    Args:
      features: names with commas; '' for none.
      metrics: names with commas, fid among them; '' for none.

    Returns:
      (features, metrics).

    Raises:
      UserError: for features and metrics that do not exist.
    """
    names, scores = choice.resolve_names(parsing.names(features), parsing.metrics(metrics))
    choice.check_features(names)
    choice.check_metrics(scores)
    return names, scores


def judge_of(
    dataset: Dataset,
    labels: np.ndarray | None,
    count: int,
    *,
    features: str = "",
    metrics: str = "",
    reference: str = "",
    standard: Sequence[str] = (),
    plain: bool = False,
) -> Judge:
    """The judge that the flags --features, --metrics and --reference describe.

    Args:
      dataset: what samples are compared with.
      labels: the labels of the samples, or None.
      count: number of samples in every set.
      features: names with commas; '' for the default ones.
      metrics: names with commas; '' for `standard`.
      reference: a file of experiments.statistics; '' compares with training images.
      standard: the metrics that are measured where none are named, 'accuracy' where there are
        labels; () for those of `judge.against`.
      plain: whether the scores of the first features are named without them.

    Raises:
      UserError: for names that do not exist or do not fit the data.
    """
    names, scores = requested(features, metrics)
    scores = scores or [name for name in standard if name != "accuracy" or labels is not None]
    names = names or [choice.default_features(dataset.train)]
    return judge_named(dataset, labels, count, names, scores, reference, plain=plain)


def judge_named(
    dataset: Dataset,
    labels: np.ndarray | None,
    count: int,
    features: Sequence[str],
    metrics: Sequence[str],
    reference: str = "",
    *,
    plain: bool = False,
) -> Judge:
    """The judge with these features and metrics.

    Args:
      dataset: what samples are compared with.
      labels: the labels of the samples, or None.
      count: number of samples in every set.
      features: names; () for the default ones, whose scores are named without them.
      metrics: names.
      reference: a file of experiments.statistics; '' compares with training images.
      plain: whether the scores of the first features are named without them.

    Raises:
      UserError: for names that do not exist or do not fit the data.
    """
    made, statistics = features, None
    if reference:
        names = features or [choice.default_features(dataset.train)]
        made = [choice.extractor_for(name, dataset.train) for name in names]
        statistics = read_reference(reference, dataset, made)
    return judge.against(
        dataset.train,
        labels,
        features=made,
        metrics=metrics,
        held_out=dataset.test,
        statistics=statistics,
        count=count,
        plain=plain,
    )


def read_reference(
    path: str, dataset: Dataset, features: Sequence[Extractor]
) -> statistics.Statistics | None:
    """The reference statistics in a file; None for ''.

    Args:
      path: a file of experiments.statistics.
      dataset: the data set that they must describe.
      features: the extractors, of which one must have made them.

    Raises:
      UserError: for statistics of another data set or another extractor.
    """
    if not path:
        return None
    found = statistics.load(path)
    extractor = next((e for e in features if e.name == found.of["extractor"]), None)
    if extractor is None:
        names = ",".join(e.name for e in features)
        raise UserError(
            f"--reference={path} is of the features {found.of['extractor']}; add them to "
            f"--features={names}"
        )
    split, count = found.of["split"], found.of["count"]
    statistics.need(
        found,
        path,
        **statistics.describe(extractor, getattr(dataset, split), dataset.name, split, count),
    )
    return found


def reference_record(path: str) -> dict[str, Any]:
    """What the reference statistics in a file are of, for the identity of results; {} for ''.

    Args:
      path: a file of experiments.statistics, which may be written anew.
    """
    return {"reference_of": statistics.load(path).of} if path else {}


def folder_of(root: Path, plan: Plan, judged: Judge) -> Path:
    """The folder of a plan's blocks in a folder of blocks, named by all that the rows depend on.

    Plans whose seeds begin alike have the same one, so that the longer extends the shorter.

    Args:
      root: the folder of blocks, such as that of a command in a workdir.
      plan: how images are drawn.
      judged: what rows are made of them.
    """
    seeds = list(plan.seeds)
    whole = seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    identity = {
        "version": VERSION,
        "images": plan.identity,
        "judge": judged.identity,
        "seeds": seeds[0] if whole else seeds,
    }
    return root / hashlib.sha256(files.canonical_json(identity).encode()).hexdigest()[:20]


def _agreed(measured: Measurements) -> Measurements:
    """The scores of the first process, on all of them."""
    plain = {name: (s.value, s.interval, [*map(float, s.left_out)]) for name, s in measured.items()}
    found = distributed.from_first(plain)
    return {name: Measured(v, half, np.asarray(left)) for name, (v, half, left) in found.items()}
