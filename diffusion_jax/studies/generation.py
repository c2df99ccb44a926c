"""Samples of a trained model, written to files."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.assembly import denoiser, outputs, sample_conditions, sampling
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.assembly.experiment import Experiment
from diffusion_jax.core import parsing
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Cond, Key
from diffusion_jax.data import loading, table
from diffusion_jax.evaluation import generate
from diffusion_jax.pretrained import folders
from diffusion_jax.report import media
from diffusion_jax.studies import animation, given_arrays
from diffusion_jax.studies.given_arrays import Conditioned
from diffusion_jax.training import distributed

REAL = 500  # points of the data in a plot of sets, at least


class GeneratedImages(NamedTuple):
    """Images and what they were drawn from.

    images: (N, H, W, C) uint8, or points and normalized arrays (N, ...) float.
    labels: (N,) class of each image; (0,) where there are none.
    seeds: N seeds, one for each image.
    prompts: the captions, each of which has N / len(prompts) images in a row.
    given: the arrays that conditioned them, or None.
    """

    images: np.ndarray
    labels: np.ndarray
    seeds: list[int]
    prompts: Sequence[str]
    given: Conditioned | None = None


def sample(
    config: ConfigDict,
    *,
    workdir: str,
    num: int | None = None,
    size: str = "",
    seeds: str = "",
    labels: str = "",
    prompt: Sequence[str] = (),
    negative_prompt: str = "",
    condition: str = "",
    dense: str = "",
    guidance: float | None = None,
    out: str = "",
    gif: bool = False,
    gif_frames: int = 40,
    gif_fps: float = 12.0,
) -> None:
    """Draw samples of a trained model and write them to an .npz file, a picture and an animation.

    Args:
      config: the config of the run, with the sampling settings.
      workdir: the folder of the run.
      num: number of images (default 64), or of each prompt (default 8).
      size: height and width of images, such as '64x96'; '' takes those of training.
      seeds: the seeds, such as '0-63,100', one for each image; '' takes 0 to num - 1.
      labels: classes in turn, such as '0,cat,any'; '' takes those of config.sampler.labels.
      prompt: captions, each of which is drawn from every seed.
      negative_prompt: a caption that guidance leads away from; '' for that of no caption.
      condition: numbers that condition the model, or a file, or '' and 'none' as for dense.
      dense: a file of the dense condition; '' takes those of test examples, 'none' draws without.
      guidance: scale of the guidance; None takes config.sampler.guidance.
      out: the files to write, without the ending; '' takes samples in the folder of the model.
      gif: whether to write an animation too, for which all is sampled again.
      gif_frames: number of its frames, at most.
      gif_fps: frames in a second.

    Raises:
      UserError: for what the model cannot use.
    """
    files, wanted = _files(out, workdir, gif), _seeds(seeds, num, prompt)
    trained = _sized(workdirs.load(workdir, config, mesh := sampling.sampling_mesh(config)), size)
    model, classes = trained.experiment, trained.data.get("class_names") or ()
    shown, keys = media.media_of(model.shape, model.normalization), generate.seeds_to_keys(wanted)
    load = functools.cache(functools.partial(workdirs.dataset, config, workdir))
    dataset = _shown_data(model, load) if shown.of_sets else None
    numbers = parsing.labels("labels", labels, classes) or _usual(model, dataset, load, len(wanted))
    given = _conditions(model, load, (numbers, prompt, condition, dense), wanted)
    model, resolved = _resolved(workdir, trained, guidance, negative_prompt)
    real = dataset and data.arrays(dataset.train, limit=max(len(wanted), REAL))["image"]
    own = model, trained.params, resolved
    if gif:
        columns = animation.columns_for(len(wanted), len({*given.labels.tolist()}), len(prompt))
        look = animation.Look(gif_frames, gif_fps, columns, real, shown.tiles)
        animation.animate(*own, keys, given.cond, files[".gif"], look, mesh)
    images = _drawn(sampling.sample_with(*own, mesh), model, keys, given.cond)
    drawn = GeneratedImages(images, given.labels, wanted, prompt, given)
    if distributed.first():
        table = save(drawn, files, [*classes, "any"], shown, real)
        print(f"{len(images)} {shown.plural}: {', '.join(map(str, [*files.values(), *table]))}")


def _shown_data(model: Experiment, load: Callable[[], data.Dataset]) -> data.Dataset | None:
    """The data next to which samples are shown; None, with a note, where their file is not here."""
    name, path = model.data.name, model.data.path
    if loading.is_here(name, path):
        return load()
    print(
        f"note: data.path={path} is no file here, so the picture shows the samples "
        "without the data; name the file by --config.data.path=FILE",
        file=sys.stderr,
    )
    return None


def _drawn(
    draw: Callable[[Key, Cond], Array], model: Experiment, keys: Key, cond: Cond
) -> np.ndarray:
    """The samples of some keys as they are judged and shown."""
    size, finish = min(model.sampling.batch_size, len(keys)), sampling.to_output(model)
    return generate.generate(draw, keys, cond, batch_size=size, finish=finish)


def _files(out: str, workdir: str, gif: bool) -> dict[str, Path]:
    """The files to write, by their endings."""
    endings = (".npz", ".png", ".gif")[: 3 if gif else 2]
    return outputs.named("out", out, *endings, default=folders.outputs(workdir) / "samples")


def _seeds(seeds: str, num: int | None, prompts: Sequence[str]) -> list[int]:
    """The seed of each sample."""
    each = parsing.parse_seeds(seeds) if seeds else list(range(num or (8 if prompts else 64)))
    return each * max(len(prompts), 1)


def _sized(trained: workdirs.Trained, size: str) -> workdirs.Trained:
    """The model with another size of its images, HEIGHTxWIDTH."""
    if not size:
        return trained
    model, match = trained.experiment, re.fullmatch(r"(\d{1,4})x(\d{1,4})", size)
    sides = [int(side) for side in match.groups()] if match else [0]
    if 0 in sides or len(model.shape) != 3 or model.latents or model.dense:
        raise UserError(
            f"--size={size:.20}: write height and width of images, such as 64x96, for a model of "
            "images without a dense condition"
        )
    shape = (*sides, model.shape[2])
    return trained._replace(experiment=model._replace(shape=shape))


def _conditions(
    model: Experiment,
    load: Callable[[], data.Dataset],
    asked: tuple[Sequence[int], Sequence[str], str, str],
    wanted: Sequence[int],
) -> Conditioned:
    """The conditions of the samples of these seeds: (labels, prompts, --condition, --dense)."""
    labels, prompts, *arrays = asked
    given_arrays.check(model, *arrays)
    if sample_conditions.has_arrays(model):
        return given_arrays.requested(model, load, *asked, len(wanted))
    chosen, cond = requested_conditions(model, labels, prompts, len(wanted))
    return Conditioned(cond, chosen)


def _resolved(
    workdir: str, trained: workdirs.Trained, guidance: float | None, negative_prompt: str
) -> tuple[Experiment, sampling.SamplingMethod]:
    """The model and its sampling settings with this guidance; one line on stderr about them."""
    settings = trained.experiment.sampling
    if guidance is not None:
        settings = settings._replace(guidance=guidance)
    resolved = sampling.method(trained.experiment, settings)
    count = sampling.evaluations(resolved)
    model = trained.experiment
    name = media.media_of(model.shape, model.normalization).name
    # an adaptive solver makes as many as its tolerance needs
    evaluations = f"{count} evaluation{'s' * (count != 1)}" if count else "adaptive evaluations"
    print(
        f"{workdir}: step {trained.step}, weights {trained.weights}, {settings.name} "
        f"on grid {resolved.grid}, {evaluations} per {name}",
        file=sys.stderr,
    )
    return denoiser.led_away(model, negative_prompt, guided=resolved.guided), resolved


def _usual(
    model: Experiment,
    dataset: data.Dataset | None,
    load: Callable[[], data.Dataset],
    count: int,
) -> Sequence[int]:
    """The labels of samples where none are requested; () for all in turn.

    Rows of a table have the labels of training rows, if these are here, to be as frequent.
    """
    law = model.sampling.labels
    if model.num_classes and law == "training":
        return sample_conditions.labels_as_in(load(), np.arange(count)).tolist()
    of_table = law == "auto" and dataset and table.columns_of(dataset.train)
    if not (model.num_classes and of_table):
        return ()
    return sample_conditions.labels_as_in(dataset, np.arange(count)).tolist()


def save(
    samples: GeneratedImages,
    files: dict[str, Path],
    names: list[str],
    shown: media.Media,
    real: np.ndarray | None = None,
) -> list[Path]:
    """Write samples.

    Args:
      samples: the samples.
      files: the file of each ending, '.npz' and '.png'.
      names: the names of the classes by number, then that of the null label.
      shown: how samples are shown and written.
      real: samples of the data, where shown.of_sets and where they are known.

    Returns:
      What was written as well: a table, or sounds and a page of them.
    """
    images, labels, seeds, prompts, given = samples
    columns = len(seeds) // len(prompts) if prompts else 10
    more = {"prompts": np.repeat(prompts, columns)} if prompts else {}
    arrays = shown.arrays(images)
    seen = given is not None and given.seen is not None and not shown.of_sets
    if given is not None:
        parts = {"seen": given.seen, "truth": given.truth}
        units = {n: next(iter(shown.arrays(x).values())) for n, x in parts.items() if x is not None}
        more |= units | ({} if given.vector is None else {"condition": given.vector})
    generate.save_npz(
        files[".npz"],
        labels=labels if len(labels) else None,
        seeds=seeds,
        **arrays,
        **more,
    )
    table = media.save_table(shown, images, files[".npz"], labels if len(labels) else None)
    about = {"seeds": seeds, "labels": labels, "names": names}
    heard = media.save_sounds(shown, images, arrays, files[".npz"], **about)
    if seen:
        media.conditioned_grid(shown, given.seen, images, given.truth, files[".png"])
        return [*([table] if table else []), *heard]
    media.grid(
        shown,
        images,
        files[".png"],
        columns=min(columns, len(seeds)),
        row_labels=prompts,
        labels=labels,
        names=names,
        real=real,
    )
    return [*([table] if table else []), *heard]


def requested_conditions(
    experiment: Experiment, labels: Sequence[int], prompts: Sequence[str], count: int
) -> tuple[np.ndarray, Cond]:
    """The condition of each image.

    Args:
      experiment: the model.
      labels: classes, which are taken in turn; () takes all.
      prompts: captions, each for an equal share of the images.
      count: number of images.

    Returns:
      (labels (count,), or (0,) without classes; condition).

    Raises:
      UserError: where the model cannot be conditioned in this way.
    """
    if prompts and labels:
        raise UserError("--labels and --prompt together: give one of them")
    if prompts:
        repeated = np.repeat(prompts, count // len(prompts)).tolist()
        return np.zeros(0, int), experiment.conditions.of_prompts(repeated)
    if experiment.encoder and not labels:
        raise UserError("this model takes captions: give one or more by --prompt='...'")
    chosen = labels or list(range(experiment.num_classes))
    chosen = np.resize(chosen, count) if chosen else np.zeros(0, int)
    return chosen, experiment.conditions.of_labels(chosen)
