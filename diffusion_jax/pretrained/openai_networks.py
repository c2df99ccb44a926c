"""The U-Nets of guided-diffusion, improved-diffusion and consistency_models, as unet.UNet.

Their files are state dicts without a config. The tensors tell the arguments of the network; what
they cannot tell is in `config.json`, by the names of the flags of these programs, whose defaults
hold where a flag is missing. openai_released.py has the flags of the files that they published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained.openai_released import (
    CONSISTENCY_RELEASED,
    GUIDED_RELEASED,
    IMPROVED_RELEASED,
)
from diffusion_jax.pretrained.published import Flat, Layout, Options, Published, Shape, missing

_COUNT = reading.integer(1, 65_536)
# arguments of the network
_SIZE = {"image_size": reading.integer(1, 4096)}
_NETWORK = {
    "in_channels": _COUNT,
    "model_channels": _COUNT,
    "out_channels": _COUNT,
    "num_res_blocks": reading.integer(1, 64),
    "attention_resolutions": reading.items(reading.integer(1, 4096), 0, 16),  # factors of reduction
    "channel_mult": reading.items(reading.number(1e-3, 64), 1, 16),
    "num_classes": reading.integer(0, 10**6),
    "num_heads": reading.integer(1, 256),
    "num_head_channels": reading.either(reading.one_of(-1), _COUNT),
    "num_heads_upsample": reading.one_of(-1),
    "use_scale_shift_norm": reading.boolean(),
    "resblock_updown": reading.boolean(),
    "dropout": reading.number(0, 1),
}
_CHAIN = {  # flags of the training, of the first two programs
    "diffusion_steps": reading.integer(2, 100_000),
    "noise_schedule": reading.one_of("linear", "cosine"),
    "rescale_timesteps": reading.boolean(),
    "predict_xstart": reading.boolean(),
}
_ORDER = {"use_new_attention_order": reading.boolean()}
_SMALL = {"small_size": reading.integer(1, 4096)}  # of images that the network enlarges
MODES = ("edm", "consistency_distillation", "consistency_training")
_KARRAS = {
    "training_mode": reading.one_of(*MODES),
    "sigma_min": reading.number(1e-6, 1e3),
    "sigma_max": reading.number(1e-3, 1e6),
}
_DEFAULTS = {
    "num_heads": 4,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "dropout": 0.0,
}
_CHAIN_DEFAULTS = {
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "rescale_timesteps": False,
    "predict_xstart": False,
    "use_new_attention_order": False,
}


# ---- the network
def _options(config: Mapping) -> tuple[Options, Shape]:
    if "image_size" not in config:
        raise UserError(
            "the tensors do not determine image_size, the heads of the attention and the noise "
            "schedule; write the flags of the training into a config.json next to them, such as "
            '{"image_size": 64, "num_head_channels": 64, "noise_schedule": "cosine"}'
        )
    channels_in, seen = config["in_channels"], 0
    if "small_size" in config:
        channels_in, seen = _enlarges(config)
    elif channels_in == config["out_channels"] == 6:
        raise UserError(
            "these tensors are those of a network that enlarges images; write small_size, the side "
            "of the images that it enlarges, into the config.json next to them"
        )
    size, base = config["image_size"], config["model_channels"]
    channels = [round(base * multiplier) for multiplier in config["channel_mult"]]
    width, fixed = channels[0], config["num_head_channels"] != -1
    if not width or any(one % width for one in channels):
        raise UserError(
            f"channel_mult={config['channel_mult']} cannot be imported: the channels of each level "
            "must be a multiple of those of the first"
        )
    if (least := max(config["attention_resolutions"], default=1)) > size:
        raise UserError(
            f"config.json has image_size={size}; these tensors have attention at 1 / {least} of "
            f"it, so it must be at least {least}"
        )
    return {
        "width": width,
        "noise_features": 0 if width == base else base,
        "multipliers": tuple(one // width for one in channels),
        "blocks": config["num_res_blocks"],
        "attention": tuple(size // factor for factor in config["attention_resolutions"]),
        "head_width": config["num_head_channels"] if fixed else None,
        "heads": 0 if fixed else config["num_heads"],
        "dropout": config["dropout"],
        "scale_shift": config["use_scale_shift_norm"],
        "updown": "resblock" if config["resblock_updown"] else "conv_centred",
        "norm": (32, 1e-5),
        "learn_variance": config["out_channels"] == 2 * channels_in,
        "noise_embedding": "adm",
        "num_classes": config["num_classes"],
        "extra_channels": seen,
    }, (size, size, channels_in)


def _enlarges(config: Mapping) -> tuple[int, int]:
    """The channels of the image and of the enlarged one next to it, of SuperResModel.

    Raises:
      UserError: where the tensors or the sizes are those of no such network.
    """
    size, small, channels = config["image_size"], config["small_size"], config["in_channels"]
    if channels % 2 or config["out_channels"] not in (channels // 2, channels):
        raise UserError(
            f"config.json has small_size={small}, and these tensors take {channels} channels and "
            f"give {config['out_channels']}: they enlarge no images; leave small_size out"
        )
    if size % small or size < 2 * small:
        raise UserError(
            f"config.json has image_size={size} and small_size={small}; the first must be a "
            "multiple of the second"
        )
    return channels // 2, channels // 2


def _config(options: Options, shape: Shape) -> dict[str, Any]:
    base = options["noise_features"] or options["width"]
    return {
        "image_size": shape[0],
        "in_channels": shape[2] + options["extra_channels"],
        "out_channels": shape[2] * (2 if options["learn_variance"] else 1),
        "model_channels": base,
        "channel_mult": [options["width"] * one / base for one in options["multipliers"]],
        "num_res_blocks": options["blocks"],
        "attention_resolutions": [shape[0] // side for side in options["attention"]],
        "num_head_channels": -1 if options["heads"] else options["head_width"],
        "num_heads_upsample": -1,
        "dropout": options["dropout"],
        "use_scale_shift_norm": options["scale_shift"],
        "resblock_updown": options["updown"] == "resblock",
        "num_classes": options["num_classes"],
    }


def _described(tensors: Flat) -> dict[str, Any]:
    """Read the arguments of the network off the names and the shapes of its tensors."""
    try:
        channels_in = tensors["input_blocks.0.0.weight"].shape[1]
        channels_out = tensors["out.2.weight"].shape[0]
        base = tensors["time_embed.0.weight"].shape[1]
        inputs, outputs = (_count(tensors, part) for part in ("input_blocks", "output_blocks"))
        doubled = [name for name in tensors if re.fullmatch(_DOUBLING, name)]
        levels = 1 + len(doubled)
        blocks = outputs // levels - 1
        if blocks < 1 or outputs % levels or inputs != outputs:
            raise UserError(
                "these tensors are not those of a U-Net of OpenAI: they have "
                f"{inputs} input_blocks, {outputs} output_blocks and {levels} resolutions"
            )
        own = [f"input_blocks.{1 + level * (blocks + 1)}" for level in range(levels)]
        channels = [len(tensors[f"{block}.0.out_layers.3.weight"]) for block in own]
        seen = [2**i for i, block in enumerate(own) if f"{block}.1.qkv.weight" in tensors]
        embedding = len(tensors[f"{own[0]}.0.emb_layers.1.weight"])
        classes = len(tensors.get("label_emb.weight", ()))
    except KeyError as error:
        raise missing(error, "a U-Net of OpenAI", tensors) from None
    except (IndexError, TypeError, ZeroDivisionError):
        raise UserError(
            "these tensors are not those of a U-Net of OpenAI: one has another number of dimensions"
        ) from None
    halving = f"input_blocks.{1 + blocks}.0.in_layers.0.weight"
    return {
        "in_channels": channels_in,
        "out_channels": channels_out,
        "model_channels": base,
        "channel_mult": [one / base for one in channels],
        "num_res_blocks": blocks,
        "attention_resolutions": seen,
        "num_classes": classes,
        "use_scale_shift_norm": embedding == 2 * channels[0],
        "resblock_updown": levels > 1 and halving in tensors,
    }


# the second or third module of a block of the decoder that doubles the resolution
_DOUBLING = r"output_blocks\.\d+\.[12]\.(conv\.weight|in_layers\.0\.weight)"


def _count(tensors: Flat, part: str) -> int:
    """The number of blocks under a name."""
    return len({name.split(".")[1] for name in tensors if name.startswith(f"{part}.")})


# ---- names
def _words(options: Options) -> dict[str, str]:
    levels, blocks = len(options["multipliers"]), options["blocks"]
    sides = [options["side"] // 2**level for level in range(levels)]
    convolved = "" if options["updown"] == "resblock" else "."
    words = {
        "condition": "",
        "noise_1": "time_embed.0",
        "noise_2": "time_embed.2",
        "label": "label_emb",
        "first": "input_blocks.0.0",
        "middle_1": "middle_block.0",
        "middle_attention": "middle_block.1",
        "middle_2": "middle_block.2",
        "last_norm": "out.0",
        "last": "out.2",
        "norm_1": "in_layers.0",
        "conv_1": "in_layers.2",
        "embedding": "emb_layers.1",
        "norm_2": "out_layers.0",
        "conv_2": "out_layers.3",
        "shortcut": "skip_connection",
        "norm": "norm",
        "qkv": "qkv",
        "project": "proj_out",
    }
    for level in range(levels):
        down, up = 1 + level * (blocks + 1), (levels - 1 - level) * (blocks + 1)
        place = 2 if sides[level] in options["attention"] else 1  # after the attention
        words |= {
            f"down_{level}_half": f"input_blocks.{down + blocks}.0" + (convolved and ".op"),
            f"up_{level}_double": f"output_blocks.{up + blocks}.{place}" + (convolved and ".conv"),
        }
        for i in range(blocks + 1):
            words |= {
                f"down_{level}_{i}": f"input_blocks.{down + i}.0",
                f"down_{level}_{i}_attention": f"input_blocks.{down + i}.1",
                f"up_{level}_{i}": f"output_blocks.{up + i}.0",
                f"up_{level}_{i}_attention": f"output_blocks.{up + i}.1",
            }
    return words


# (classes, E), (classes + 1, E), whose last row, of the null label, is 0
_ROWS = Layout(lambda a: np.concatenate([a, np.zeros_like(a[:1])]), lambda a: a[:-1])


def _prepared(tensors: Flat, config: Mapping) -> dict[str, np.ndarray]:
    """Write the 1x1 convolutions of attention as matrices, with q, k and v one after the other.

    Without use_new_attention_order their outputs are ordered by head, then q, k and v.
    """
    by_head = not config.get("use_new_attention_order", True)

    def prepare(name: str, tensor: np.ndarray) -> np.ndarray:
        if not re.search(r"\.(qkv|proj_out)\.(weight|bias)$", name):
            return tensor
        if tensor.ndim in (3, 4) and set(tensor.shape[2:]) == {1}:
            tensor = tensor.reshape(tensor.shape[:2])
        width = config["num_head_channels"]
        heads = config["num_heads"] if width == -1 else len(tensor) // (3 * max(width, 1))
        if not by_head or ".qkv." not in name or len(tensor) % (3 * max(heads, 1)) or not heads:
            return tensor
        parts = tensor.reshape(heads, 3, -1, *tensor.shape[1:])
        return np.swapaxes(parts, 0, 1).reshape(tensor.shape)

    return {name: prepare(name, tensor) for name, tensor in tensors.items()}


# ---- what the networks were trained to predict
def _chain_settings(config: Mapping) -> dict[str, Any]:
    """The chain of N steps: step j, which is t = (j + 1) / N, or 1000 j / N, is embedded."""
    enlarges = "small_size" in config
    seen = config["in_channels"] // (2 if enlarges else 1)
    steps, learned = config["diffusion_steps"], config["out_channels"] == 2 * seen
    scale, shift = (1.0, -1 / steps) if config["rescale_timesteps"] else (steps / 1000, -0.001)
    inputs = f"noise_input='time', input_scale=False, time_scale={scale!r}, time_shift={shift!r}"
    objective = "learned_variance.hybrid" if learned else "denoising.ddpm"
    return {
        "process": f"discrete.ddpm({config['noise_schedule']!r}, {steps})",
        "parameterization": f"{'x0' if config['predict_xstart'] else 'eps'}({inputs})",
        "objective": f"{objective}(steps={steps})",
        "sampler.name": f"ancestral.ddpm(variance='{'learned' if learned else 'large'}')",
        "sampler.grid": f"linspace(steps={steps})",
        "sampler.nfe": min(250, steps),
        "sampler.clip": "static",
        "label_dropout": 0.0,
    } | (
        {"data.dense": _LOWRES.format(factor=config["image_size"] // config["small_size"])}
        if enlarges
        else {}
    )


_LOWRES = "lowres(factor={factor}, enlarged='bilinear')"


def _karras_settings(config: Mapping) -> dict[str, Any]:
    """EDM's network, or a consistency function, both of which embed 250 log(sigma)."""
    low, high = float(config["sigma_min"]), float(config["sigma_max"])
    if not low < high:
        raise UserError(f"config.json has sigma_min={low:g} and sigma_max={high:g}; exchange them")
    found = {
        "process": f"schedules.EDM(sigma_min={low!r}, sigma_max={high!r})",
        "sampler.clip": "static",
        "label_dropout": 0.0,
    }
    if config["training_mode"] == "edm":
        return found | {
            "parameterization": "edm(sigma_data=0.5)",
            "objective": "denoising.edm(sigma_data=0.5)",
            "sampler.name": "ode.edm_heun",
            "sampler.grid": "karras",
            "sampler.nfe": 79,  # 40 steps, theirs
        }
    kind = {"consistency_distillation": "distillation", "consistency_training": "training"}
    return found | {
        "parameterization": "consistency(sigma_data=0.5)",
        "objective": f"consistency.{kind[config['training_mode']]}()",
        "sampler.name": "few_step.multistep",
        "sampler.nfe": 1,
    }


def _unet(defaults: Mapping, rules: Mapping, settings: Any, released: Mapping) -> Published:
    return Published(
        model="unet.UNet",
        options=_options,
        config=_config,
        defaults=_DEFAULTS | defaults,
        only={},
        words=_words,
        layouts=lambda options: {"label/rows": _ROWS},
        described=_described,
        rule=reading.record(_NETWORK, _SIZE | rules),
        loose=("num_heads", *rules),
        settings=settings,
        prepared=_prepared,
        released=released,
    )


GUIDED = _unet(_CHAIN_DEFAULTS, _CHAIN | _ORDER | _SMALL, _chain_settings, GUIDED_RELEASED)
IMPROVED = _unet(
    _CHAIN_DEFAULTS | {"rescale_timesteps": True},
    _CHAIN | _ORDER,
    _chain_settings,
    IMPROVED_RELEASED,
)
CONSISTENCY = _unet(
    {"training_mode": "edm", "sigma_min": 0.002, "sigma_max": 80.0},
    _KARRAS,
    _karras_settings,
    CONSISTENCY_RELEASED,
)
