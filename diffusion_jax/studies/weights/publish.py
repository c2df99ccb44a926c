"""A trained model as a published workdir: a folder to use, to share and to upload to a hub."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.assembly import (
    autoencoders,
    defaults,
    publication,
    sample_conditions,
    sampling,
    stored,
)
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.assembly.publication import PublishedModel
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import files, reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Cond
from diffusion_jax.data import Dataset, transforms
from diffusion_jax.evaluation import generate
from diffusion_jax.pretrained import addresses, folders
from diffusion_jax.report import media, pictures
from diffusion_jax.studies import given_arrays
from diffusion_jax.studies.weights import model_card
from diffusion_jax.training import restoring

COLUMNS, ROWS = 10, 8  # images of the picture


class Statements(NamedTuple):
    """What the model card says that no file of the run knows; '' says that it is not stated.

    Attributes:
      license: the license of the weights, as an SPDX name such as 'apache-2.0'.
      data_license: the license of the data.
      data_source: where the data came from.
      limitations: what the publisher knows of the limits of the model.
    """

    license: str = ""
    data_license: str = ""
    data_source: str = ""
    limitations: str = ""


def publish(
    config: ConfigDict,
    *,
    workdir: str,
    out: str,
    dtype: str = "float16",
    evaluations: str = "",
    prompt: Sequence[str] = (),
    unfinished: bool = False,
    license: str = "",
    data_license: str = "",
    data_source: str = "",
    limitations: str = "",
) -> None:
    """Write a published workdir, and print what it holds and how it is used.

    Args:
      config: the config of the run; its sampling settings choose the weights, and are published.
      workdir: the folder of the run.
      out: the folder to write; a published workdir that is there is replaced.
      dtype: 'float16' or 'bfloat16', to which the weights are rounded.
      evaluations: files of experiments.evaluate, with commas; '' takes WORKDIR/evaluation.json.
      prompt: captions of the picture, for a model of captions; () takes held-out ones of its data.
      unfinished: whether a run that has not reached its last step may be published.
      license: see `Statements`.
      data_license: likewise.
      data_source: likewise.
      limitations: likewise.

    Raises:
      UserError: for a model that cannot be published as it is, and an --out that holds other files.
    """
    root, target = Path(workdir), Path(out)
    _check_target(root, target)
    source, inner = sources(root, config, unfinished)
    said = Statements(license, data_license, data_source, limitations)
    trained = source.trained
    found = model_card.evaluations(root, evaluations, trained.step, trained.weights)
    with files.atomic_folder(target) as temporary:
        publication.write(temporary, source, dtype, inner)
        folders.check(temporary)
        drawn = workdirs.load(temporary, workdirs.saved_config(temporary))
        shown = _picture(drawn, source.config, root, prompt, temporary / folders.PICTURE)
        start = source.trained.experiment.sources.start
        card = model_card.card(target.name, drawn, root, start, inner, said, found, dtype, shown)
        files.save_text(temporary / folders.CARD, card)
    names = sorted(path for path in target.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in names)
    print(f"{out}: {size / 1e6:.2f} MB: {', '.join(str(p.relative_to(target)) for p in names)}")
    print(f"read {target / folders.CARD} and look at {target / folders.PICTURE}; then:")
    print(f"python -m experiments.sample --workdir={shlex.quote(str(out))}")


def _check_target(root: Path, target: Path) -> None:
    """Refuse to publish a published model, and to write over what is none."""
    if folders.is_published(root):
        raise UserError(f"--workdir={root} is a published model; copy the folder to publish it")
    free = folders.is_published(target) or not target.exists()
    if not free and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"--out={target} exists and is no published model; name another folder")
    if folders.is_published(target) and (kept := folders.others(target)):
        raise UserError(
            f"--out={target} has '{kept[0]}', which is no file of a published model and would be "
            "removed; move it, or name another folder and copy the files"
        )
    if root.resolve().is_relative_to(target.resolve()):
        raise UserError(f"--out={target} holds --workdir={root}; name another folder")


def sources(
    root: Path, config: ConfigDict, unfinished: bool
) -> tuple[PublishedModel, PublishedModel | None]:
    """The model of a run and, for a model of latents, its autoencoder.

    Args:
      root: the workdir.
      config: its config, with the sampling settings to publish.
      unfinished: whether the run may have stopped before its last step.

    Raises:
      UserError: for a run without a model, an unfinished one, and a guide that needs another model.
    """
    if not stored.has_model(root):
        raise UserError(f"--workdir={root} has no checkpoint; train the model first")
    trained = workdirs.load(root, config)
    model = trained.experiment
    if not model.kind.samples and not model.kind.reconstructs:
        raise UserError(
            f"config.objective={model.specs.objective}: a classifier draws no images, so it is not "
            "published"
        )
    if model.guide.needs:
        raise UserError(
            f"config.sampler.guide={config.sampler.guide} needs another model, which is not "
            "published with this one; choose --config.sampler.guide='cfg()'"
        )
    _check_finished(root, model.training.steps, unfinished)
    grids = tuple(sorted((root / "grids").glob("*.json")))
    grids = tuple(file for file in grids if _is_grid(file))
    source = PublishedModel(trained, config, grids)
    if model.latents is None:
        return source, None
    place = defaults.with_defaults(config).latent.autoencoder
    inner_root = Path(addresses.resolve(place, "config.latent.autoencoder"))
    own = workdirs.saved_config(inner_root, "config.latent.autoencoder")
    return source, PublishedModel(workdirs.load(inner_root, own), own)


def _check_finished(root: Path, steps: int, unfinished: bool) -> None:
    """Refuse a run that has not reached its last step; imported weights have none."""
    file = root / "provenance.json"
    if file.is_file() and "imported" in files.load_json(file, reading.table()):
        return
    step = restoring.latest_step(root / "checkpoints") or 0
    if step < steps and not (unfinished and step):
        raise UserError(
            f"--workdir={root} is at step {step} of {steps}; resume its training, or publish it as "
            "it is with --unfinished"
        )


def _is_grid(file: Path) -> bool:
    """Whether a file of grids/ holds grids, by its content: reports lie there too."""
    return "logsnr" in files.load_json(file, reading.table())


def _picture(
    trained: Trained, config: ConfigDict, root: Path, prompts: Sequence[str], path: Path
) -> str:
    """Draw the picture of a model from its published weights, and describe it in a sentence."""
    model = trained.experiment
    if model.kind.reconstructs:
        return _reconstructions(trained, workdirs.images(config, root), path)
    has_arrays = sample_conditions.has_arrays(model)
    needs_data = has_arrays or (model.encoder and not prompts)
    shown = media.media_of(model.shape, model.normalization)
    dataset = workdirs.images(config, root) if needs_data or shown.of_sets else None
    given = _given(model, dataset, prompts, shown) if has_arrays else None
    names, cond, count = given[:3] if given else _conditions(trained, dataset, prompts)
    method = sampling.method(model)
    print(f"drawing {count} {shown.plural} into {path.name} ...", file=sys.stderr)
    x = generate.generate(
        sampling.sample_with(model, trained.params, method),
        generate.seeds_to_keys(range(count)),
        cond,
        batch_size=min(model.sampling.batch_size, count),
        finish=sampling.to_output(model),
    )
    real = data.arrays(dataset.train, limit=count)["image"] if shown.of_sets else None
    if given and given[3].seen is not None:
        media.conditioned_grid(shown, given[3].seen, x, given[3].truth, path)
    else:
        media.grid(shown, x, path, columns=COLUMNS, row_labels=names, real=real)
    spent = sampling.evaluations(method)
    guided = f", guidance {method.guidance:g}" if method.guided else ""
    return (
        f"Samples of seeds 0 to {count - 1}, not selected, by `{model.sampling.name}` on the grid "
        f"`{method.grid}`{f' at {spent} evaluations' if spent else ''}{guided}."
    )


def _given(
    model: Experiment, dataset: Dataset, prompts: Sequence[str], shown: media.Media
) -> tuple[Sequence[str], Cond, int, given_arrays.Conditioned]:
    """As `_conditions`, of a model that arrays condition: the conditions of test examples."""
    count = 1000 if shown.of_sets else COLUMNS * ROWS // 2
    count -= count % max(len(prompts), 1)
    found = given_arrays.requested(model, lambda: dataset, (), prompts, "", "", count)
    return [], found.cond, count, found


def _conditions(
    trained: Trained, dataset: Dataset | None, prompts: Sequence[str]
) -> tuple[Sequence[str], Cond, int]:
    """The names of the rows of the picture, the condition of its images, and their number."""
    model = trained.experiment
    if model.encoder:
        captions = list(prompts)[:ROWS]
        if not captions and dataset.captions:
            captions = sample_conditions.captions_of_test(model, dataset, np.arange(ROWS))[0]
        elif not captions:
            captions = data.digits_captions.held_out_prompts(ROWS)[0]
        repeated = np.repeat(captions, COLUMNS).tolist()
        return captions, model.conditions.of_prompts(repeated), len(repeated)
    names = trained.data["class_names"][:ROWS] if model.num_classes else []
    if 0 < model.num_classes <= COLUMNS:
        names = trained.data["class_names"]
    of_sets = media.media_of(model.shape, model.normalization).of_sets
    count = 1000 if of_sets else COLUMNS * (len(names) or ROWS)
    labels = np.arange(count) // COLUMNS % max(model.num_classes, 1)
    if model.num_classes and model.normalization and model.normalization.columns:
        labels = sample_conditions.labels_as_in(dataset, np.arange(count))
    return names, model.conditions.of_labels(labels if model.num_classes else labels[:0]), count


def _reconstructions(trained: Trained, dataset: Dataset, path: Path) -> str:
    """Draw test images above their reconstructions, and what an autoencoder with a bound draws."""
    model, count = trained.experiment, COLUMNS * 2
    rows = dataset.test.rows(np.arange(count) % len(dataset.test))
    x = transforms.to_float(rows["image"])
    cond = model.conditions.of_labels(rows["label"] if model.num_classes else np.zeros(0, int))
    keys = generate.seeds_to_keys(range(count))
    made = np.asarray(autoencoders.reconstruct_fn(model)(trained.params, x, cond, keys))
    parts = [x[:COLUMNS], made[:COLUMNS], x[COLUMNS:], made[COLUMNS:]]
    names = ["test", "made"] * 2
    text = "Test images (rows `test`) and their reconstructions (rows `made`)"
    if model.specs.objective.startswith(("autoencoding.elbo", "autoencoding.iwae")):
        run = sampling.sample_with(model, trained.params, sampling.method(model))
        parts.append(np.asarray(run(keys, cond)))
        names += ["drawn"] * 2
        text += "; rows `drawn`: images of seeds 0 to 19, from the prior"
    x = np.concatenate([np.asarray(part) for part in parts])
    pictures.save(pictures.image_grid(x, COLUMNS, row_labels=names), path)
    return f"{text}."
