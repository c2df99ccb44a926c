"""What is checked of a sweep before anything runs: its model, data and settings."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_jax.assembly import components, denoiser, experiment, sampling, stored
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.assembly.build import build
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import Dataset
from diffusion_jax.studies.sweep import cells, space
from diffusion_jax.studies.sweep.cells import SweepCell
from diffusion_jax.studies.sweep.task import Task


def data_of(config: ConfigDict, workdir: str | Path | None, trains: bool) -> Dataset:
    """The data set that the images of a sweep are judged against.

    Args:
      config: the config of the model.
      workdir: folder of the trained model; None where there is none.
      trains: whether every cell is trained.

    Raises:
      UserError: for sampling keys without a trained model.
    """
    if trains:
        return workdirs.images(config)
    if workdir is None:
        raise UserError(
            "--workdir is missing: --over names only keys of config.sampler, which vary on a "
            "trained model; a key such as optimizer.learning_rate trains one for each value"
        )
    if not stored.has_model(workdir):
        raise UserError(
            f"--workdir={workdir} has no checkpoint; train the model first (experiments.train)"
        )
    return workdirs.images(config, workdir)


def check(task: Task, dataset: Dataset) -> None:
    """Check every cell as far as that takes neither training nor weights.

    Args:
      task: the sweep.
      dataset: the data that its images are judged against.

    Raises:
      UserError: for settings that a model cannot use.
    """
    checked = set()
    for cell in task.cells.values():
        chosen = cell.sampling
        key = (*cells.order(cell), chosen.grid, chosen.nfe, chosen.guidance)
        if key not in checked:
            checked.add(key)
            _check_cell(cell, task, dataset)


def _check_cell(cell: SweepCell, task: Task, dataset: Dataset) -> None:
    """Refuse a cell whose settings its model cannot use; no weights are loaded for it."""
    shape, classes = dataset.image_shape, dataset.num_classes
    if not task.runs:
        about = workdirs.about_data(cell.workdir)
        shape, classes = about["image_shape"], about["num_classes"]
    config = space.with_settings(cell.config, {"sampler.guide": "cfg()"})
    model = experiment.assemble(config, shape, classes)
    experiment.need_judged(model._replace(normalization=dataset.normalization))
    model = model._replace(grids=workdirs.grid_folders(cell.workdir))
    guide = build(components.GUIDES, cell.guide)
    denoiser.is_guided(model._replace(guide=guide), cell.sampling.guidance)
    sampling.method(model, cell.sampling._replace(guidance=1.0))
    stored.check(None if task.runs else cell.workdir, model)
