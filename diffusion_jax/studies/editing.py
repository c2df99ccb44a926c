"""Images restored and edited by a trained model, as a command."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.assembly import experiment
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.core import files, parsing, provenance
from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained import folders
from diffusion_jax.report import pictures
from diffusion_jax.studies import edit_tasks, restoration
from diffusion_jax.studies.edit_job import Job, job_for
from diffusion_jax.studies.edit_requests import (
    EDITS,
    measurement_for,
    method_for,
    read_images,
    strengths_of,
)


def edit(
    config: ConfigDict,
    *,
    workdir: str,
    task: str = "inpaint",
    mask: str = "",
    method: str = "ddnm",
    labels: str = "",
    prompt: Sequence[str] = (),
    image: Sequence[str] = (),
    num: int | None = None,
    first: int | None = None,
    draws: int = 1,
    seed: int = 0,
    strength: str = "0.3,0.5,0.7",
    scale: int = 0,
    out: str = "",
) -> None:
    """Edit images with a trained model; write a picture of strips and a JSON file.

    Args:
      config: the config of the run, with the sampling settings.
      workdir: the folder of the run.
      task: a measurement (inpaint, superres, ...), or one of EDITS.
      mask: the mask of inpaint.
      method: the method of an inverse problem.
      labels: classes in turn, 'own', or '' for no condition; of translate the target classes.
      prompt: captions in turn.
      image: picture files to edit, instead of held-out images.
      num: number of held-out images; None is 8.
      first: the first of them; None is 0.
      draws: results of each image.
      seed: the seed of the first image; the others follow.
      strength: the strengths of sdedit.
      scale: how many times pixels are enlarged; 0 chooses.
      out: the files to write, without the ending; '' takes WORKDIR/edits/TASK-METHOD.

    Raises:
      UserError: for tasks, masks, methods, conditions and images that do not exist or fit.
    """
    shape = tuple(workdirs.about_data(workdir)["image_shape"])
    strengths, is_edit = strengths_of(strength), task in EDITS
    if not is_edit:  # mistakes are reported before anything takes long
        method_for(method, measurement_for(task, mask, shape), task)
    if image and (first is not None or num is not None):
        raise UserError(
            "--first and --num choose held-out images, and --image names its own; leave them out"
        )
    parts = [task, mask, "" if is_edit else method, Path(image[0]).stem if image else ""]
    stem = folders.outputs(workdir) / "edits" / _file_name(parts)
    written = parsing.output("out", out, ".png", ".json", default=stem)
    wanted = "" if task == "translate" else labels  # whose labels are its targets
    job = _job(config, workdir, shape, wanted, prompt, image, first or 0, num or 8, seed)
    if is_edit:
        strip = edit_tasks.apply(job, task, labels, strengths)
    else:
        strip = restoration.solve(job, task, mask, method, draws)
    asked = {"task": task, "mask": mask, "labels": labels, "prompts": list(prompt)}
    asked |= {"images": list(image), "num": len(job.images), "first": first or 0, "seed": seed}
    _save(job, strip, asked, written, scale)


def _save(
    job: Job,
    strip: restoration.Strip,
    asked: dict[str, Any],
    written: dict[str, Path],
    scale: int,
) -> None:
    """Write the picture and the JSON file, and print the scores."""
    rows, names, facts = strip
    model = job.trained.experiment
    picture = pictures.image_grid(
        np.concatenate(rows), len(rows[0]), row_labels=names, scale=scale or None
    )
    pictures.save(picture, written[".png"])
    about = {
        **asked,
        "sampler": model.record["sampler"],
        "step": job.trained.step,
        "weights": job.trained.weights,
        "provenance": provenance.provenance(model.record, asked["seed"]),
    }
    files.save_json(written[".json"], facts | about)
    print(f"{_scores(facts)}: {written['.png']}, {written['.json']}")


def _file_name(parts: Sequence[str]) -> str:
    """The name of the files: what is not empty, in characters that suit files."""
    plain = [re.sub(r"[^\w.]+", "_", Path(part).name).strip("_") for part in parts if part]
    return "-".join(plain)


def _job(
    config: ConfigDict,
    workdir: str,
    shape: tuple[int, ...],
    labels: str,
    prompt: Sequence[str],
    image: Sequence[str],
    first: int,
    num: int,
    seed: int,
) -> Job:
    """The images to edit, and the model."""
    images = read_images(image, shape) if image else None
    trained = workdirs.load(workdir, config)
    experiment.need_images(trained.experiment)
    experiment.need_pixels(trained.experiment)
    dataset = None if image else workdirs.dataset(config, workdir)
    last = len(image) if dataset is None else min(first + num, len(dataset.test))
    index = np.arange(first, last)
    if not len(index):
        raise UserError(f"--first={first}: there are {len(dataset.test)} held-out images")
    seeds = range(seed, seed + len(index))
    return job_for(trained, dataset, index, labels, prompt, seeds, images)


def _scores(facts: dict[str, Any]) -> str:
    """The PSNRs among the facts, in words."""
    found = [
        f"{name} {value:.2f} dB"
        for name, value in facts.items()
        if name.startswith("psnr") and isinstance(value, float)
    ]
    return ", ".join(found) or "done"
