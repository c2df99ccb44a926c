"""Images and other arrays restored and edited by a trained model, as a command."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.assembly import data_record, experiment, outputs
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.core import files, provenance
from diffusion_jax.core.errors import UserError
from diffusion_jax.data.normalization import Normalization
from diffusion_jax.pretrained import folders
from diffusion_jax.report import media, pictures, restored, row_figure
from diffusion_jax.studies.edits import arrays as edit_arrays
from diffusion_jax.studies.edits import restoration, tasks
from diffusion_jax.studies.edits.job import Job, job_for, led_away
from diffusion_jax.studies.edits.requests import (
    EDITS,
    measurement_for,
    method_for,
    of_table,
    read_images,
    strengths_of,
)

LONGEST = 100  # bytes of the name of the files
MEAN_OF = 10_000  # training samples of whose mean the trivial baselines are made, at most
SCORES = {
    "psnr": "PSNR",
    "psnr_of_measurement": "PSNR of the measurement itself",
    "psnr_there_and_back": "PSNR after translation there and back",
}


def edit(
    config: ConfigDict,
    *,
    workdir: str,
    task: str = "inpaint",
    mask: str = "",
    method: str = "ddnm",
    labels: str = "",
    prompt: Sequence[str] = (),
    negative_prompt: str = "",
    image: Sequence[str] = (),
    num: int | None = None,
    first: int | None = None,
    draws: int = 1,
    seed: int = 0,
    strength: str = "0.3,0.5,0.7",
    scale: int = 0,
    out: str = "",
) -> None:
    """Edit samples with a trained model; write a picture and a JSON file, and arrays as an .npz.

    Args:
      config: the config of the run, with the sampling settings.
      workdir: the folder of the run.
      task: a measurement (inpaint, superres, ...), or one of EDITS.
      mask: the mask of inpaint.
      method: the method of an inverse problem.
      labels: classes in turn, 'own', or '' for no condition; of translate the target classes.
      prompt: captions in turn.
      negative_prompt: a caption that guidance leads away from; '' for that of no caption.
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
    shape, normalization = _shape_and_normalization(workdir)
    shown = media.media_of(shape, normalization)
    strengths, is_edit = strengths_of(strength), task in EDITS
    if not is_edit:  # mistakes are reported before anything takes long
        method_for(method, measurement_for(task, mask, shape, of_table(normalization)), task)
    _check_images(image, shown if normalization else None, first, num)
    parts = [task, mask, "" if is_edit else method, Path(image[0]).stem if image else ""]
    written = _files(out, workdir, parts, arrays=bool(normalization and not is_edit))
    wanted = "" if task == "translate" else labels  # whose labels are its targets
    job, dataset = _job(config, workdir, shape, wanted, prompt, image, first or 0, num or 8, seed)
    asked = {"task": task, "mask": mask, "labels": labels, "prompts": list(prompt)}
    asked |= {"images": list(image), "num": len(job.images), "first": first or 0, "seed": seed}
    job, asked = led_away(job, negative_prompt), asked | {"negative_prompt": negative_prompt}
    if normalization and not is_edit:
        _restore_arrays(job, dataset, asked, method, draws, written)
    else:
        strip = _strip(job, asked, method, draws, strengths)
        _save(job, strip, asked, written, shown, scale)


def _strip(
    job: Job, asked: dict[str, Any], method: str, draws: int, strengths: list[float]
) -> restoration.Strip:
    """The rows of the picture of an edit, or of images that are restored."""
    task = asked["task"]
    if task in EDITS:
        return tasks.apply(job, task, asked["labels"], strengths)
    return restoration.solve(job, task, asked["mask"], method, draws)


def _restore_arrays(
    job: Job,
    dataset: data.Dataset,
    asked: dict[str, Any],
    method: str,
    draws: int,
    written: dict[str, Path],
) -> None:
    """Restore arrays, write the files and print the scores."""
    model = job.trained.experiment
    mean = data.arrays(dataset.train, MEAN_OF)["image"].mean(0)
    scored = edit_arrays.restore(job, asked["task"], asked["mask"], method, draws, mean)
    shown = media.media_of(model.shape, model.normalization)
    more = edit_arrays.save(scored, shown, model.normalization, written, job.labels)
    _save_json(job, edit_arrays.facts(scored, method), asked, written[".json"])
    print(edit_arrays.table(scored, model.normalization))
    print(edit_arrays.summary(scored, [*written.values(), *more]))


def _save(
    job: Job,
    strip: restoration.Strip,
    asked: dict[str, Any],
    written: dict[str, Path],
    shown: media.Media,
    scale: int,
) -> None:
    """Write the picture of strips and the JSON file, and print the scores."""
    rows, names, facts = strip
    # tiles of arrays have their size already
    scale = scale or (1 if job.trained.experiment.normalization else None)
    parts = dict(zip(names, rows))
    if shown.table:
        row_figure.figure(job.trained.experiment.normalization, parts, written[".png"])
    else:
        tiles, columns = np.concatenate(list(map(shown.tiles, rows))), len(rows[0])
        note = {"row_labels": names, "note": shown.note}
        pictures.save(pictures.image_grid(tiles, columns, scale=scale, **note), written[".png"])
    _save_json(job, facts, asked, written[".json"])
    more = restored.save_parts(shown, parts, written[".png"])
    print(f"{_scores(facts)}: {', '.join(map(str, [*written.values(), *more]))}")


def _shape_and_normalization(workdir: str) -> tuple[tuple[int, ...], Normalization | None]:
    about = workdirs.about_data(workdir)
    return tuple(about.get("encoded", about)["image_shape"]), data_record.normalization(about)


def _check_images(
    image: Sequence[str], arrays: media.Media | None, first: int | None, num: int | None
) -> None:
    """Refuse --image together with held-out samples, and for a model of arrays."""
    if image and arrays:
        raise UserError(
            f"--image={image[0]}: this model draws {arrays.plural} of numbers, not pictures; name "
            "a file of such by --config.data.path, whose held-out samples are then edited"
        )
    if image and (first is not None or num is not None):
        raise UserError(
            "--first and --num choose held-out images, and --image names its own; leave them out"
        )


def _save_json(job: Job, facts: dict[str, Any], asked: dict[str, Any], path: Path) -> None:
    """Write the JSON file."""
    model = job.trained.experiment
    about = {
        **asked,
        "sampler": model.record["sampler"],
        "step": job.trained.step,
        "weights": job.trained.weights,
        "provenance": provenance.provenance(model.record, asked["seed"]),
    }
    files.save_json(path, facts | about)


def _files(out: str, workdir: str, parts: Sequence[str], *, arrays: bool) -> dict[str, Path]:
    """The files to write, by their endings."""
    stem = folders.outputs(workdir) / "edits" / _file_name(parts)
    endings = [".png", ".json", *([".npz"] if arrays else [])]
    return outputs.named("out", out, *endings, default=stem)


def _file_name(parts: Sequence[str]) -> str:
    """The name of the files: what is not empty, in characters that suit files."""
    plain = [re.sub(r"[^\w.]+", "_", Path(part).name).strip("_") for part in parts if part]
    name = "-".join(plain)
    if len(os.fsencode(name)) <= LONGEST:
        return name
    # such as the names of many columns of a table
    short = os.fsencode(name)[:LONGEST].decode(errors="ignore")
    return f"{short}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


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
) -> tuple[Job, data.Dataset | None]:
    """What to edit with the model, and the data set, which the user's own images have not."""
    images = read_images(image, shape) if image else None
    trained = workdirs.load(workdir, config)
    experiment.need_judged(trained.experiment)
    dataset = None if image else workdirs.images(config, workdir)
    last = len(image) if dataset is None else min(first + num, len(dataset.test))
    index = np.arange(first, last)
    if not len(index):
        raise UserError(f"--first={first}: there are {len(dataset.test)} held-out images")
    seeds = range(seed, seed + len(index))
    return job_for(trained, dataset, index, labels, prompt, seeds, images), dataset


def _scores(facts: dict[str, Any]) -> str:
    """The PSNRs among the facts, in words."""
    found = [f"{SCORES[name]} {facts[name]:.2f} dB" for name in SCORES if name in facts]
    return ", ".join(found) or "done"
