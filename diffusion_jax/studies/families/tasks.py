"""One family and seed of a comparison: trained, and measured at several points of its training.

Everything is in WORKDIR/NAME_SEED. The checkpoints make the training resumable, and each point is
one file of measured/, named by the hash of what it depends on, so a run that is killed at any
moment loses at most a minute of training or one point's measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.assembly import components, datasets, same_run
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.core import npz, parsing, provenance, reading
from diffusion_jax.core.errors import unknown
from diffusion_jax.evaluation.judge import Judge
from diffusion_jax.studies import store
from diffusion_jax.studies.families import measures
from diffusion_jax.studies.families.measures import Pictures, Row
from diffusion_jax.studies.families.training import Point, images_seen, steps_of, train_family
from diffusion_jax.training import restoring

TRAINING = 0.8  # share of a task's time that is training, for the forecast of the time left
DECISIVE = ("process", "parameterization", "objective", "model", "optimizer", "ema")
DRAWING = ("name", "grid", "nfe", "guidance", "clip")  # keys of the sampler
EARLY = 40  # images that are kept of the points before the last

_RULE = reading.record(
    {}, {"intervals": reading.table(reading.number(0))}, others=reading.number(finite=False)
)
_IMAGES = {"images": npz.ArraySpec("u", (None, None, None, None))}
_PROBES = {
    "rates": npz.ArraySpec("f", (None,)),
    "units": npz.ArraySpec("iu", (None,)),
    "traversals": npz.ArraySpec("u", (None, None, None, None, None)),
    "reconstructions": npz.ArraySpec("u", (None, None, None, None)),
}


class FamilyTask(NamedTuple):
    """A family that is trained from a seed."""

    name: str
    seed: int

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"{self.name}_{self.seed}"


class FamilyResult(NamedTuple):
    """What is known of a task.

    Attributes:
      task: the family and the seed.
      curve: the scores at each point of training, the last one at the end.
      row: the scores at the end, with those that are measured there alone.
      pictures: 'images', and the probes of a VAE.
    """

    task: FamilyTask
    curve: list[Row]
    row: Row
    pictures: Pictures


def chosen(config: ConfigDict, families: str, seeds: str) -> tuple[dict[str, ConfigDict], list]:
    """The families and the tasks of a comparison.

    Args:
      config: the config of configs/families.py.
      families: names separated by ';'; '' for all of the config.
      seeds: the seeds of training, separated by commas; '' for those of the config.

    Returns:
      (the config of each family with the data of the comparison, the tasks in order: all families
      with one seed, then the next).

    Raises:
      UserError: for a family, or a component of one, that does not exist.
    """
    names = parsing.specs(families) or list(config.families)
    for name in names:
        if name not in config.family:
            raise unknown("--families", name, list(config.family))
    configs = {name: config.family[name].copy_and_resolve_references().unlock() for name in names}
    for own in configs.values():
        components.check_components(own)
        own.data = config.data
    numbers = parsing.integers("seeds", seeds, 0, 2**32 - 1) if seeds else list(config.seeds)
    numbers = list(dict.fromkeys(numbers))  # a seed that counted twice would narrow the noise
    tasks = [
        FamilyTask(name, seed)
        for seed in numbers
        for name in configs
        if seed == numbers[0] or name in config.repeated
    ]
    return configs, tasks


def check_folder(
    root: Path, configs: dict[str, ConfigDict], settings: ConfigDict, dataset: data.Dataset
) -> None:
    """Refuse a folder whose runs are of other data, or of another autoencoder, than a comparison.

    Results that are found are not trained again, so training does not check them.

    Args:
      root: the folder of the comparison.
      configs: the config of each family, with the data of the comparison.
      settings: the config of the comparison.
      dataset: the images.

    Raises:
      UserError: naming what differs.
    """
    recipe = settings.recipe.copy_and_resolve_references().unlock()
    recipe.data = settings.data
    own = next(iter(configs.values()))
    for pattern, config, keys in (
        ("*", own, ("data.",)),
        ("*/autoencoder", recipe, ("data.", *DECISIVE, *(f"{key}." for key in DECISIVE))),
    ):
        for folder in sorted(root.glob(pattern)):
            if restoring.latest_step(folder / "checkpoints") is not None:
                same_run.check_resumed(folder, same_run.resolved(config), keys)
                about = workdirs.about_data(folder)
                same_run.same_data(folder, about, dataset, sizes=True)


def run(
    root: Path,
    task: FamilyTask,
    config: ConfigDict,
    settings: ConfigDict,
    dataset: data.Dataset,
    judge: Callable[[], Judge],
) -> FamilyResult:
    """Train and measure a task, as far as it is missing.

    Args:
      root: the folder of the comparison.
      task: the family and the seed.
      config: the config of the family.
      settings: the config of the comparison.
      dataset: the images.
      judge: makes the judge, which is called only where something is measured.

    Raises:
      CommandExit: if a signal stopped the training.
    """
    if known := found(root, task, config, settings):
        return known
    trained = train_family(root / task.folder, config, dataset, settings, task.seed)
    for point in trained.points:
        last = point == trained.points[-1]
        path = _cell(root, task, config, settings, _share(point, trained.points))
        if store.load(path, _reader(last)) is None:
            model = workdirs.load(trained.workdir, trained.config, step=point.step)
            name = f"{task.folder} after {point.images:,} images"
            row, pictures = measures.of_images(model, dataset, judge(), settings.num, name)
            if last:
                more, probes = measures.at_the_end(model, dataset, _of_first(settings, task))
                row = _joined(row, more)
            else:
                probes, pictures = {}, {"images": pictures["images"][:EARLY]}
            row |= {"minutes": point.minutes, "images": point.images, "steps": point.step}
            store.save_cell(path, "row", row, {**pictures, **probes})
    return found(root, task, config, settings)


def _of_first(settings: ConfigDict, task: FamilyTask) -> ConfigDict:
    """The settings, without the likelihood for seeds other than the first of the config."""
    return ConfigDict(
        {
            "likelihood": settings.likelihood if task.seed == settings.seeds[0] else 0,
            "end_logsnr": settings.end_logsnr,
        }
    )


def _joined(row: Row, more: Row) -> Row:
    halves = {**row.get("intervals", {}), **more.get("intervals", {})}
    return {**row, **more, "intervals": halves}


def _share(point: Point, points: Sequence[Point]) -> float:
    """The share of its model's training that a point stands for."""
    return round(point.step / points[-1].step, 6)


def found(
    root: Path, task: FamilyTask, config: ConfigDict, settings: ConfigDict
) -> FamilyResult | None:
    """What an earlier run stored of a task; None where something is missing or damaged.

    Args:
      root: the folder of the comparison.
      task: the family and the seed.
      config: the config of the family.
      settings: the config of the comparison.
    """
    parts = []
    for share in measured_at(config, settings):
        path = _cell(root, task, config, settings, share)
        parts.append(store.load(path, _reader(share == 1)))
    if None in parts:
        return None
    curve, (row, pictures) = [part[0] for part in parts], parts[-1]
    return FamilyResult(task, curve, row, pictures)


def measured_at(config: ConfigDict, settings: ConfigDict) -> list[float]:
    """The shares of its model's training after which a family is measured, in order.

    Args:
      config: the config of the family.
      settings: the config of the comparison.
    """
    images = settings.images // (2 if "latent" in config else 1)
    steps, points = steps_of(images, settings.data.batch_size, settings.points)
    return [round(point / steps, 6) for point in points]


def fraction(root: Path, task: FamilyTask, config: ConfigDict, settings: ConfigDict) -> float:
    """How much of a task is done, from 0 to 1, for the forecast of the time left.

    Args:
      root: the folder of the comparison.
      task: the family and the seed.
      config: the config of the family.
      settings: the config of the comparison.
    """
    shares = measured_at(config, settings)
    done = sum(_cell(root, task, config, settings, share).is_file() for share in shares)
    if done == len(shares):
        return 1.0
    trained = min(1.0, images_seen(root / task.folder) / settings.images)
    return TRAINING * trained + (1 - TRAINING) * done / len(shares)


def _cell(
    root: Path, task: FamilyTask, config: ConfigDict, settings: ConfigDict, share: float
) -> Path:
    """The file of the measurements of a task after a share of its training."""
    whole = config.to_dict()
    # not everything: the data may move, and a later version may add keys
    own = {key: whole[key] for key in DECISIVE}
    own["sampler"] = {key: whole["sampler"][key] for key in DRAWING}
    identity = {
        "config": provenance.config_hash(own),
        "data": [settings.data.name, settings.data.batch_size],
        "images": settings.images,
        "num": settings.num,
        "features": settings.features,
        "share": share,
        "end": _of_first(settings, task).to_dict() if share == 1 else {},
    }
    return store.cell_path(root / task.folder / "measured", identity)


def _reader(last: bool) -> Callable[[Path], tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Read a cell; UserError where it is damaged."""
    also = _PROBES.get if last else None
    return lambda path: store.read_cell(path, "row", _RULE, _IMAGES, also)


def dataset_of(configs: dict[str, ConfigDict]) -> data.Dataset:
    """The images of a comparison.

    Args:
      configs: the config of each family.
    """
    return datasets.dataset(next(iter(configs.values())))
