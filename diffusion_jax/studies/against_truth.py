"""Samples of a dense condition against the truth: super-resolution, inpainting and the like."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.sharding import Mesh

from diffusion_jax.assembly import sample_conditions, sampling
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.data import Dataset
from diffusion_jax.evaluation import generate, intervals
from diffusion_jax.evaluation import metrics as metric_table
from diffusion_jax.evaluation.psnr import psnr
from diffusion_jax.report.tables import markdown_table


def restored(
    trained: Trained, dataset: Dataset, count: int, mesh: Mesh | None = None
) -> tuple[dict[str, Any], str]:
    """Judge samples of the first test examples' dense conditions by their PSNR to the truth.

    Arrays that are not images are compared in the range of the training split, which is [0, 1].

    Args:
      trained: the model.
      dataset: its data set.
      count: number of test examples, at most.
      mesh: the devices that draw; None for one device.

    Returns:
      ({'restoration': numbers}, a table); ({}, '') for a model without a dense condition.
    """
    model = trained.experiment
    if model.dense is None:
        return {}, ""
    index = np.arange(min(count, len(dataset.test)))
    batch, cond = sample_conditions.of_examples(model, dataset.test, index)
    draw = sampling.sample_with(model, trained.params, sampling.method(model), mesh)
    finish, size = sampling.to_output(model), min(model.sampling.batch_size, len(index))
    keys = generate.seeds_to_keys(index)
    samples = generate.generate(draw, keys, cond, batch_size=size, finish=finish)
    truth = finish(batch["image"])
    found = {"psnr": intervals.mean(_psnr(model, samples, truth))}
    if not model.dense.stored:
        shown = finish(np.asarray(model.dense.shown(cond["concat"])))
        found["psnr_of_condition"] = intervals.mean(_psnr(model, shown, truth))
    about = {"images": len(index), "intervals": intervals.halves(found)}
    return {"restoration": intervals.values(found) | about}, _table(found, len(index))


def _psnr(model: Experiment, x: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The PSNR of each sample, in dB."""
    if model.normalization:
        x, truth = (2 * model.normalization.unit(part) - 1 for part in (x, truth))
    return psnr(x, truth)


def _table(found: dict[str, intervals.Measured], count: int) -> str:
    titles = {"psnr": "PSNR to the truth", "psnr_of_condition": "PSNR of the condition itself"}
    metric = metric_table.find("psnr")
    rows = [
        {"": titles[name], "value": metric.text(score.value, score.interval)}
        for name, score in found.items()
    ]
    return "\n" + markdown_table(rows, {"": "", "value": f"{count} test examples"})
