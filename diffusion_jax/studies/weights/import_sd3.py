"""A folder of Stable Diffusion 3 or 3.5, in the layout of diffusers, as a workdir."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained import (
    clip_encoder,
    mmdit_network,
    networks,
    published,
    sd3_encoder,
    weight_files,
)
from diffusion_jax.studies.weights import import_weights as single
from diffusion_jax.studies.weights import pipeline_folder

SOURCE = "sd3"
PIPELINE, NETWORK = "StableDiffusion3Pipeline", "SD3Transformer2DModel"
STEPS, GUIDANCE = 28, 7.0  # of the pipeline, by default
FIRST = 1 - 2.0**-23  # the first time, which is 1 there: the last but one number of float32

_INDEX = reading.record({"_class_name": reading.text(1)})
_SCHEDULER = reading.record(
    {"_class_name": reading.one_of("FlowMatchEulerDiscreteScheduler")},
    {
        "num_train_timesteps": reading.one_of(1000),
        "shift": reading.number(1e-3, 1000),
        "shift_terminal": reading.one_of(None),
    }
    | dict.fromkeys(
        (
            "use_dynamic_shifting",
            "invert_sigmas",
            "use_karras_sigmas",
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "stochastic_sampling",
        ),
        reading.one_of(False, None),
    ),
)


def stable_diffusion_3(path: Path, out: str | Path, dataset: str = "folder") -> Path:
    """Make a workdir of a folder of Stable Diffusion 3.

    Args:
      path: a folder with model_index.json, transformer/, vae/, scheduler/, text_encoder/,
        tokenizer/, text_encoder_2/, tokenizer_2/ and, unless the model is to run without T5,
        text_encoder_3/ and tokenizer_3/.
      out: the workdir to make.
      dataset: config.data.name of images to compare samples with.

    Returns:
      The workdir.

    Raises:
      UserError: for an incomplete or damaged folder, and if `out` holds a model already.
    """
    pipeline_folder.need_new(out)
    name = _json(path, "model_index.json", _INDEX)["_class_name"]
    if name != PIPELINE:
        raise UserError(
            f"'{path / 'model_index.json'}' has _class_name={name}; --from={SOURCE} takes "
            f"{PIPELINE}"
        )
    scheduler = _json(path, "scheduler/scheduler_config.json", _SCHEDULER)
    network, sizes = _transformer(path)
    codec = pipeline_folder.autoencoder(path, network.shape, SOURCE)
    parts = sd3_encoder.read(path)
    sd3_encoder.check_sizes(f"--path={path}", parts, sizes)
    settings = _settings(parts, sizes, scheduler.get("shift", 1.0))
    found = [
        pipeline_folder.TextPart(*names, clip_encoder.TOKENIZER, part.config, part.tensors)
        for names, part in zip(clip_encoder.PARTS, parts.clip)
    ]
    if last := parts.t5:
        tokenizer = (sd3_encoder.TOKENIZER,)
        found.append(
            pipeline_folder.TextPart(*sd3_encoder.T5_PART, tokenizer, last.config, last.tensors)
        )

    def write_text(text: Path) -> None:
        pipeline_folder.write_text(path, text, found, settings)

    file = weight_files.whole(path / "transformer", pipeline_folder.WEIGHTS)
    network = network._replace(settings=settings)
    return pipeline_folder.write(network, file, codec, out, {}, write_text, dataset)


def _json(path: Path, name: str, rule: reading.Rule) -> dict[str, Any]:
    return pipeline_folder.config_of(path, name, rule, SOURCE)


def _transformer(path: Path) -> tuple[single.Found, tuple[int, int]]:
    """The network, and the sizes of the states and of the pooled vector that it receives."""
    file = "transformer/config.json"
    config = _json(path, file, reading.table())
    if config.get("_class_name") != NETWORK:
        raise UserError(
            f"'{path / file}' has _class_name={config.get('_class_name')}; it must be {NETWORK}"
        )
    network = networks.network(NETWORK)
    with published.fitting(f"'{path / file}'"):
        options, shape = published.read_config(network, config, file)
        full = network.defaults | config
        tensors = weight_files.read_whole(path / "transformer", pipeline_folder.WEIGHTS)
        tensors = network.prepared(tensors, full)
    sizes = tuple(full[key] for key in mmdit_network.TEXT)
    return single.Found(NETWORK, options, shape, tensors, {}), sizes


def _settings(parts: sd3_encoder.Parts, sizes: tuple[int, int], shift: float) -> Mapping[str, Any]:
    """The config keys that the folder determines.

    The times of the authors' scheduler are shifted twice at the data end, whose last one is the
    shifted time of the first of 1000 steps, shifted again.
    """
    first = shift * 0.001 / (1 + (shift - 1) * 0.001)
    last = shift * first / (1 + (shift - 1) * first)
    return {
        "process": f"schedules.RectifiedFlow(t_min={last!r}, t_max={FIRST!r})",
        "parameterization": "velocity(noise_input='time', input_scale=False)",
        "objective": "denoising.flow_matching(time=times.logit_normal())",
        "text.encoder": f"sd3(width={sizes[0]}, pooled={sizes[1]})",
        "text.max_length": min(part.network.positions for part in parts.clip),
        "sampler.name": "ode.euler",
        "sampler.grid": f"flow_shift(shift={shift!r})",
        "sampler.nfe": STEPS,
        "sampler.guidance": GUIDANCE,
        "sampler.clip": "none",  # latents have no bounds
        "sampler.batch_size": 4,
    }
