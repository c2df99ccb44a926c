"""A trained network in the format of those who publish such networks."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.assembly import denoiser
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.assembly.components import network as default_network
from diffusion_jax.assembly.experiment import Experiment
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import files, parsing, reading
from diffusion_jax.core.errors import UserError, printable
from diffusion_jax.pretrained import (
    chains,
    diffusers_networks,
    equivalent,
    folders,
    layouts,
    networks,
    published,
    safetensors,
    schedulers,
)
from diffusion_jax.studies.weights.import_weights import BOTH_WAYS

ALONE = ", or export the network alone with --network_only"


def export_weights(
    config: ConfigDict,
    *,
    workdir: str,
    to: str,
    path: str,
    label: str = "",
    variance: bool = False,
    network_only: bool = False,
) -> None:
    """Write the network of a workdir in a published format, and print what was written.

    Args:
      config: the config of the run; config.sampler.ema chooses the weights.
      workdir: the folder of the run.
      to: whose format, a key of import_weights.BOTH_WAYS.
      path: the folder to write to.
      label: the class to export of a U-Net of classes; 'any' exports the model without a class.
      variance: keep a learned variance, which DDPMPipeline can use and DDIMPipeline cannot.
      network_only: export a U-Net without pipeline and scheduler; its timestep is 1000 c_noise.

    Raises:
      UserError: for a model that has no counterpart there, with the overrides of one that has.
    """
    file = write_weights(
        config, workdir, to, path, label=label, variance=variance, network_only=network_only
    )
    folder = Path(path)
    found = sorted(printable(str(entry.relative_to(folder))) for entry in folder.rglob("*.*"))
    print(f"{path}: {', '.join(found)}")
    if (folder / "model_index.json").exists():
        print(
            f"diffusers.DDIMPipeline.from_pretrained('{path}') draws from it; "
            f"the file of weights is {file}"
        )


def write_weights(
    config: ConfigDict,
    workdir: str | Path,
    to: str,
    path: str | Path,
    *,
    label: str = "",
    variance: bool = False,
    network_only: bool = False,
) -> Path:
    """Write the network of a workdir to a folder, all files or none.

    Args:
      config: the config of the run; config.sampler.ema chooses the weights.
      workdir: the folder of the run.
      to: whose format, a key of import_weights.BOTH_WAYS.
      path: the folder to write to; other files in it stay.
      label: the class to export of a U-Net of classes; 'any' exports the model without a class.
      variance: whether a learned variance is kept.
      network_only: whether a U-Net is exported without pipeline and scheduler.

    Returns:
      The file of weights.

    Raises:
      UserError: as `export_weights`.
    """
    name = _class_for(to, config.model.name)
    network = networks.network(name)
    trained = workdirs.load(workdir, config)
    model = trained.experiment
    params = trained.params[network.subtree] if network.subtree else trained.params
    need_exportable(model, name)
    options = (
        default_network(model.specs.model).to_dict()
        | model.options
        | {"num_classes": model.num_classes}
    )
    params = layouts.unstacked(
        {path: np.asarray(leaf) for path, leaf in layouts.flat(params).items()}
    )
    if to == "sit":
        _need_linear_flow(model, network)
    latents = _latents(Path(workdir))
    if name != "UNet2DModel" and label:
        raise UserError(f"--label={label} is for a U-Net; a {name} is exported whole")
    if name == "UNet2DModel" and (options["num_classes"] or label):
        params, options = _one_class(trained, params, options, label)
    with _whole(Path(path)) as folder:
        if name != "UNet2DModel":
            own = {"diffusers": to == "diffusers", "more": latents}
            file = _save(network, options, model, params, folder, **own)
        elif network_only:
            file = _save(network, options, model, params, folder)
        else:
            file = _save_pipeline(network, options, model, params, folder, variance)
    return Path(path) / file.relative_to(folder)


@contextlib.contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """Yield a temporary folder, whose files move to `target` when all of them are written."""
    if target.exists() and not target.is_dir():
        raise UserError(f"--path={target} is a file; name a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    # files move within one file system alone, and a folder that is there may be a mounted one
    inside = target if target.exists() else target.parent
    with tempfile.TemporaryDirectory(prefix=".export.", suffix=".tmp", dir=inside) as name:
        temporary = Path(name)
        yield temporary
        for file in sorted(path for path in temporary.rglob("*") if path.is_file()):
            place = target / file.relative_to(temporary)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)


def need_exportable(model: Experiment, name: str) -> None:
    """Check that a published network can take the examples and conditions of a model.

    Args:
      model: the model.
      name: the class of the published network.

    Raises:
      UserError: for captions, arrays or dense conditions, and for examples that are not images, or
        for a DiT not square ones.
    """
    if model.encoder:
        raise UserError(
            f"config.text.encoder={model.specs.encoder}: {name} reads no captions; a model of "
            "captions cannot be exported"
        )
    for key, taken in (("condition", model.units.vector), ("dense", model.dense)):
        if taken:
            raise UserError(
                f"config.data.{key}={model.record['data'][key]}: {name} takes no arrays as its "
                "condition; a model of them cannot be exported"
            )
    square = name in ("DiT", "SiT")
    if len(model.shape) != 3 or (square and model.shape[0] != model.shape[1]):
        images = "square images" if square else "images"
        raise UserError(
            f"{name} is a network of {images}, and this model is for examples "
            f"{tuple(model.shape)}; it cannot be exported"
        )


def _one_class(
    trained: Trained, params: dict[str, Any], options: dict[str, Any], label: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and options of the unconditional network that a model of classes is for one."""
    classes = trained.experiment.num_classes
    if not classes:
        raise UserError(f"--label={label}: this model is unconditional; leave --label out")
    chosen = parsing.labels("label", label, trained.data["class_names"])
    if len(chosen) != 1 or chosen[0] > classes:
        wrong = f"--label={label}: " if label else ""
        raise UserError(
            f"{wrong}the pipelines of diffusers know no classes, and this model has "
            f"{classes}; export one of them with --label=0 to {classes - 1}, or the model without "
            "a class with --label=any"
        )
    return equivalent.of_one_class(params, chosen[0]), options | {"num_classes": 0}


def _save(
    network: published.Published,
    options: dict[str, Any],
    model: Experiment,
    params: dict[str, Any],
    folder: Path,
    *,
    diffusers: bool = True,
    more: dict[str, Any] | None = None,
) -> Path:
    """Write config.json and the file of weights; returns the file."""
    shapes = {path: leaf.shape for path, leaf in params.items()}
    described = published.write_config(network, options, model.shape, shapes) | (more or {})
    tensors = network.restored(layouts.to_theirs(layouts.table(network, options, shapes), params))
    tensors = tensors | network.fixed(options, model.shape)
    file = folder / ("diffusion_pytorch_model.safetensors" if diffusers else "model.safetensors")
    safetensors.save(file, tensors)
    files.save_json(file.with_name("config.json"), described)
    return file


def _save_pipeline(
    network: published.Published,
    options: dict[str, Any],
    model: Experiment,
    params: dict[str, Any],
    folder: Path,
    variance: bool,
) -> Path:
    """Write unet/, scheduler/ and, for a model of images, model_index.json; returns the weights."""
    if not model.kind.has_flow:
        raise UserError(
            f"config.objective={model.specs.objective} trains a few-step model, which no DDIM "
            f"scheduler samples{ALONE}"
        )
    shapes = {path: leaf.shape for path, leaf in params.items()}
    wrong, found = published.misfits(network, options, model.shape, shapes), None
    try:
        found = _scheduling(model)
    except UserError as error:
        value = f"{model.specs.parameterization} under {model.specs.process}"
        wrong["parameterization"] = published.Misfit(value, "eps()", str(error))
    if wrong:
        published.refuse(wrong, ALONE if wrong.keys() == {"parameterization"} else "")
    learned = options["learn_variance"]
    options = options | {"learn_variance": learned and variance}
    params = equivalent.with_last(params, model.shape[-1], found.factor, variance)
    if found.shift:
        params = equivalent.with_steps(params, options["noise_embedding"], found.shift)
    file = _save(network, options, model, params, folder / "unet")
    scheduler = schedulers.write_scheduler(
        found.betas, found.prediction, clip=model.sampling.clip, learned=learned and variance
    )
    files.save_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    _say(model, len(found.betas), learned and not variance)
    if model.latents is None:
        pipeline = "DDPMPipeline" if learned and variance else "DDIMPipeline"
        files.save_json(folder / "model_index.json", schedulers.write_index(pipeline))
    return file


def _need_linear_flow(model: Experiment, network: published.Published) -> None:
    """Check that a network predicts eps - x0 of x_t = (1 - t) x0 + t eps, and receives 1 - t.

    Raises:
      UserError: with the overrides of a run that does.
    """
    t, wrong = np.float32([0.1, 0.35, 0.6, 0.9]), {}
    process, target, wanted = model.process, model.parameterization, network.settings({})
    if not _alike((process.alpha(t), process.sigma(t)), (1 - t, t)):
        wrong["process"] = published.Misfit(model.specs.process, wanted["process"])
    found = target.coefficients(process, t), target.encode(process, t, t)
    ones = np.ones_like(t)
    if not all(map(_alike, found, ((-ones, ones), (t, 1 - t)))):
        wrong["parameterization"] = published.Misfit(
            model.specs.parameterization, wanted["parameterization"]
        )
    if wrong:
        published.refuse(wrong)


def _alike(found: tuple, expected: tuple) -> bool:
    return all(np.allclose(a, b, atol=1e-5) for a, b in zip(found, expected))


def _latents(workdir: Path) -> dict[str, Any]:
    """What the config.json of an imported autoencoder said of the scale of its latents."""
    rule = reading.record({}, {"imported": reading.record({"latents": diffusers_networks.LATENTS})})
    if folders.is_published(workdir):
        return {}
    record = files.load_json(workdir / "provenance.json", rule)
    return record.get("imported", {}).get("latents", {})


def _scheduling(model: Experiment) -> chains.Chain:
    """Return the chain under which the network means the same in diffusers as here.

    Args:
      model: the experiment, whose process and parameterization decide.

    Raises:
      UserError: with the reason, where there is no such chain.
    """
    return chains.chain(model.process, model.parameterization)


def _class_for(to: str, model: str) -> str:
    """Name the class that a network of ours has in a published format.

    Args:
      to: whose format, a key of import_weights.BOTH_WAYS.
      model: config.model.name, such as 'unet.UNet'.

    Returns:
      The name of the class, such as 'UNet2DModel'.

    Raises:
      UserError: where the format has none.
    """
    names = {networks.network(name).model: name for name in BOTH_WAYS[to]}
    if model not in names:
        raise UserError(
            f"config.model.name={model} has no counterpart in --to={to}, "
            f"which has {' and '.join(names)}"
        )
    return names[model]


def _say(model: Experiment, steps: int, dropped: bool) -> None:
    """Print the budgets of a pipeline, and what of the run it does not hold."""
    guidance = model.sampling.guidance
    fitting = [str(n) for n in chains.BUDGETS if steps % n == 0] or [str(steps)]
    print(
        f"the chain has {steps} steps: num_inference_steps that divide them are "
        f"{', '.join(fitting)}, ...",
        file=sys.stderr,
    )
    if model.num_classes and denoiser.is_guided(model, guidance):
        print(
            f"config.sampler.guidance={guidance:g} is not exported: these pipelines draw without "
            "guidance",
            file=sys.stderr,
        )
    if dropped:
        print(
            "the learned variance is left out; --variance keeps it, for DDPMPipeline alone",
            file=sys.stderr,
        )
    if model.latents is not None:
        print(
            "the network is of latents: it has no model_index.json, and needs a program that "
            "decodes them",
            file=sys.stderr,
        )
