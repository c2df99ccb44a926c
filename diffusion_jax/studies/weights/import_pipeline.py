"""A folder of Stable Diffusion, in the layout of diffusers, as a workdir.

WORKDIR               the U-Net
WORKDIR/autoencoder   its autoencoder, a workdir of its own (config.latent.autoencoder)
WORKDIR/text          its text encoders and tokenizers (config.text.folder)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.assembly import components, locking
from diffusion_jax.assembly.build import build
from diffusion_jax.core import files, npz, reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained import (
    clip_encoder,
    conditional_unet,
    networks,
    published,
    safetensors,
    schedulers,
    weight_files,
    weights,
)
from diffusion_jax.studies.weights import import_weights as single
from diffusion_jax.training import restoring

SOURCE = "stable_diffusion"
WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
)
TEXT, AUTOENCODER = "text", "autoencoder"  # folders of the workdir


class PipelineKind(NamedTuple):
    """What the class of a pipeline determines.

    Attributes:
      skip: layers of the text encoders that are left out.
      normalized: whether the states of texts are normalized.
      guidance: the scale of the guidance, by default.
    """

    skip: int
    normalized: bool
    guidance: float


KINDS = {
    "StableDiffusionPipeline": PipelineKind(0, True, 7.5),
    "StableDiffusionXLPipeline": PipelineKind(1, False, 5.0),
}
_INDEX = reading.record(
    {"_class_name": reading.text(1)}, {"force_zeros_for_empty_prompt": reading.boolean()}
)
_SPACING = reading.record(
    {},
    {
        "timestep_spacing": reading.one_of("leading", "linspace", "trailing"),
        "steps_offset": reading.integer(0, 1000),
    },
)


def import_weights(
    *, from_: str, path: str, out: str, data: str = "folder", autoencoder: str = ""
) -> None:
    """Make a workdir of published weights, of one network or of a whole pipeline.

    Args:
      from_: who published them: SOURCE, or one that `import_weights.import_weights` takes.
      path: the file of weights, its folder, or the folder of a pipeline.
      out: the workdir to make.
      data: config.data.name of the data set that the network was trained on.
      autoencoder: for a single network of latents, the workdir of its imported autoencoder.

    Raises:
      UserError: for weights that do not fit, or a workdir that holds a model.
    """
    if from_ != SOURCE:
        single.import_weights(from_=from_, path=path, out=out, data=data, autoencoder=autoencoder)
        return
    if autoencoder:
        raise UserError(
            f"--autoencoder={autoencoder}: --from={SOURCE} takes the vae/ of its folder; leave it "
            "out"
        )
    root = stable_diffusion(Path(path).expanduser(), out, data)
    print(f"{root}: ready for experiments.sample --prompt='...', edit and compare_samplers")


def stable_diffusion(path: Path, out: str | Path, dataset: str = "folder") -> Path:
    """Make a workdir of a folder of Stable Diffusion.

    Args:
      path: a folder with model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/, and
        for XL text_encoder_2/ and tokenizer_2/.
      out: the workdir to make.
      dataset: config.data.name of images to compare samples with.

    Returns:
      The workdir.

    Raises:
      UserError: for an incomplete or damaged folder, and if `out` holds a model already.
    """
    if restoring.latest_step(Path(out) / "checkpoints") is not None:
        raise UserError(f"--out={out} holds a model already; give another folder")
    kind, zeros = _kind(path)
    scheduler = _json(path, "scheduler/scheduler_config.json", _SPACING)
    unet, sizes = _unet(path)
    codec, file = _autoencoder(path, unet.shape)
    parts = clip_encoder.read(path, kind.skip, kind.normalized)
    _check_text(path, parts, sizes)
    settings = _settings(unet, codec, kind, parts, scheduler)
    # before anything is written
    params = single.fit(unet._replace(settings=settings), scheduler)
    decoding = single.fit(codec, {}, dataset)
    root, text = Path(out), Path(out) / TEXT
    with locking.locked(out), locking.one_line(out):
        print(f"{text}: writing the text encoders", file=sys.stderr)
        _write_text(path, text, parts, settings, zeros)
        print(f"{root / AUTOENCODER}: writing the autoencoder", file=sys.stderr)
        inner = single.write_workdir(codec, file, root / AUTOENCODER, {}, dataset, params=decoding)
    print(f"{root}: writing the U-Net", file=sys.stderr)
    found = unet._replace(settings=settings | {"text.folder": str(text)})
    unet_file = _weights(path / "unet")
    return single.write_workdir(
        found, unet_file, out, scheduler, dataset, str(inner), params=params
    )


def _kind(path: Path) -> tuple[PipelineKind, bool]:
    """The kind of pipeline, and whether "no caption" is zeros."""
    index = _json(path, "model_index.json", _INDEX)
    name = index["_class_name"]
    if name not in KINDS:
        raise UserError(
            f"'{path / 'model_index.json'}' has _class_name={name}; --from={SOURCE} takes "
            f"{' or '.join(KINDS)}"
        )
    xl = name == "StableDiffusionXLPipeline"
    return KINDS[name], xl and index.get("force_zeros_for_empty_prompt", True)


def _json(path: Path, name: str, rule: reading.Rule) -> dict[str, Any]:
    if not (path / name).is_file():
        raise UserError(
            f"--path={path} has no {name}; --from={SOURCE} takes a folder of diffusers with "
            "model_index.json, unet/, vae/, text_encoder/, tokenizer/ and scheduler/"
        )
    return reading.json_file(path / name, rule)


def _weights(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"'{folder}' has no weights: none of {', '.join(WEIGHTS)}")


def _unet(path: Path) -> tuple[single.Found, conditional_unet.TextSizes]:
    config = _json(path, "unet/config.json", reading.table())
    if config.get("_class_name") != "UNet2DConditionModel":
        raise UserError(
            f"'{path / 'unet/config.json'}' has _class_name={config.get('_class_name')}; it must "
            "be UNet2DConditionModel"
        )
    config, sizes = conditional_unet.split(config)
    name = "UNet2DConditionModel"
    with published.fitting(f"'{path / 'unet/config.json'}'"):
        options, shape = published.read_config(networks.network(name), config, "unet/config.json")
    tensors = weight_files.read(_weights(path / "unet"))
    return single.Found(name, options, shape, tensors, {}), sizes


def _autoencoder(path: Path, latent: tuple[int, ...]) -> tuple[single.Found, Path]:
    """The autoencoder, for images whose latents have the U-Net's shape."""
    _json(path, "vae/config.json", reading.table())
    file = _weights(path / "vae")
    found = single.described("diffusers", file)
    if found.name != "AutoencoderKL" or found.options["latent_channels"] != latent[-1]:
        raise UserError(
            f"'{path / 'vae/config.json'}' is of a {found.name} with latent_channels="
            f"{found.options.get('latent_channels')}; it must be an AutoencoderKL with {latent[-1]}"
        )
    factor = 2 ** (len(found.options["multipliers"]) - 1)
    side = factor * latent[0]
    return found._replace(shape=(side, side, found.shape[-1])), file


def _check_text(
    path: Path, parts: tuple[clip_encoder.ClipPart, ...], sizes: conditional_unet.TextSizes
) -> None:
    """Check that the text encoders make what the U-Net receives."""
    width = sum(part.network.width for part in parts)
    pooled = parts[-1].network.projection if sizes.pooled else 0
    if (width, pooled) != sizes:
        raise UserError(
            f"the text encoders of '{path}' make states of {width} numbers and a pooled vector of "
            f"{pooled}, and its U-Net receives {sizes.states} and {sizes.pooled}; the folder is of "
            "several models, or incomplete"
        )


def _settings(
    unet: single.Found,
    codec: single.Found,
    kind: PipelineKind,
    parts: tuple[clip_encoder.ClipPart, ...],
    scheduler: Mapping[str, Any],
) -> dict[str, Any]:
    """The config keys that the folder determines."""
    steps = schedulers.read_scheduler(scheduler).steps
    spacing = scheduler.get("timestep_spacing", "leading")
    offset = f", offset={scheduler.get('steps_offset', 0)}" if spacing == "leading" else ""
    spec = {"width": sum(part.network.width for part in parts)}
    if unet.options["sizes"]:
        height, width = codec.shape[:2]
        spec |= {"pooled": parts[-1].network.projection}
        spec |= {"sizes": (height, width, 0, 0, height, width)}
    spec |= {"skip": kind.skip, "normalized": kind.normalized}
    return {
        "text.encoder": f"clip({', '.join(f'{key}={value}' for key, value in spec.items())})",
        "text.max_length": min(part.network.positions for part in parts),
        "sampler.grid": f"{spacing}(steps={steps}{offset})",
        "sampler.guidance": kind.guidance,
        "sampler.clip": "none",  # latents have no bounds
        "sampler.batch_size": 4,
    }


def _write_text(
    path: Path,
    text: Path,
    parts: tuple[clip_encoder.ClipPart, ...],
    settings: Mapping[str, Any],
    zeros: bool,
) -> None:
    """Write the text encoders, their tokenizers, and the entries that mean "no caption"."""
    for (folder, tokens), part in zip(clip_encoder.PARTS, parts):
        files.save_json(text / folder / "config.json", part.config)
        safetensors.save(text / folder / clip_encoder.WEIGHTS[0], _storable(part.tensors))
        for name in clip_encoder.TOKENIZER:
            if (path / tokens / name).is_file():
                with files.atomic_path(text / tokens / name) as temporary:
                    temporary.write_bytes(reading.content(path / tokens / name))
    spec, length = settings["text.encoder"], settings["text.max_length"]
    encoder = build(components.ENCODERS, spec, length, weights.load, folder=str(text))
    entries = {name: value[0] for name, value in encoder.encode([""]).items()}
    if zeros:  # the sizes stay
        entries |= {name: np.zeros_like(entries[name]) for name in ("tokens", "pooled")}
    npz.save(text / clip_encoder.EMPTY, entries)


def _storable(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors in types that numpy has."""
    return {
        name: np.float32(value) if value.dtype.kind == "V" else value
        for name, value in tensors.items()
    }
