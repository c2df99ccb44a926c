"""A folder of Stable Diffusion 1, 2 or XL, in the layout of diffusers, as a workdir."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained import (
    clip_encoder,
    conditional_unet,
    networks,
    published,
    schedulers,
    weight_files,
)
from diffusion_jax.studies.weights import import_sd3, pipeline_folder
from diffusion_jax.studies.weights import import_weights as single

SOURCE = "stable_diffusion"


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
      from_: who published them: SOURCE, import_sd3.SOURCE, or one that
        `import_weights.import_weights` takes.
      path: the file of weights, its folder, or the folder of a pipeline.
      out: the workdir to make.
      data: config.data.name of the data set that the network was trained on.
      autoencoder: for a single network of latents, the workdir of its imported autoencoder.

    Raises:
      UserError: for weights that do not fit, or a workdir that holds a model.
    """
    pipelines = {SOURCE: stable_diffusion, import_sd3.SOURCE: import_sd3.stable_diffusion_3}
    if from_ not in pipelines:
        single.import_weights(from_=from_, path=path, out=out, data=data, autoencoder=autoencoder)
        return
    if autoencoder:
        raise UserError(
            f"--autoencoder={autoencoder}: --from={from_} takes the vae/ of its folder; leave it "
            "out"
        )
    root = pipelines[from_](Path(path).expanduser(), out, data)
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
    pipeline_folder.need_new(out)
    kind, zeros = _kind(path)
    scheduler = _json(path, "scheduler/scheduler_config.json", _SPACING)
    unet, sizes = _unet(path)
    codec = pipeline_folder.autoencoder(path, unet.shape, SOURCE)
    parts = clip_encoder.read(path, kind.skip, kind.normalized)
    _check_text(path, parts, sizes)
    settings = _settings(unet, codec[0], kind, parts, scheduler)
    found = [
        pipeline_folder.TextPart(*names, clip_encoder.TOKENIZER, part.config, part.tensors)
        for names, part in zip(clip_encoder.PARTS, parts)
    ]

    def write_text(text: Path) -> None:
        empty = ("tokens", "pooled") if zeros else ()  # the sizes stay
        pipeline_folder.write_text(path, text, found, settings, empty)

    file = weight_files.whole(path / "unet", pipeline_folder.WEIGHTS)
    unet = unet._replace(settings=settings)
    return pipeline_folder.write(unet, file, codec, out, scheduler, write_text, dataset)


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
    return pipeline_folder.config_of(path, name, rule, SOURCE)


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
    tensors = weight_files.read_whole(path / "unet", pipeline_folder.WEIGHTS)
    return single.Found(name, options, shape, tensors, {}), sizes


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
