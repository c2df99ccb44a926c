"""NCSN++ and DDPM++ of score_sde (Song et al. 2021), of its JAX and its torch program.

A checkpoint is the state of a training: the averaged weights of it are used. It says nothing of its
config; the name of one of the authors' configs (`RELEASED`) or its keys are in a config.json, or
the folder has the name of the config, such as ve/cifar10_ncsnpp_continuous.

The networks of VE are given images in [0, 1] and return the score times sigma, which is -eps. Here
images are in [-1, 1], so that sigma is twice as large, and the last layers change their sign.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained.published import Flat, Options, Published, Shape

_COUNT, _POSITIVE = reading.integer(1, 65_536), reading.number(1e-6, 1e6)
_RULE = reading.record(
    {
        "image_size": reading.integer(1, 4096),
        "num_channels": _COUNT,
        "nf": _COUNT,
        "ch_mult": reading.items(reading.integer(1, 64), 1, 10),
        "num_res_blocks": reading.integer(1, 64),
        "attn_resolutions": reading.items(_COUNT, 0, 16),
        "dropout": reading.number(0, 1),
        "fir": reading.boolean(),
        "skip_rescale": reading.boolean(),
        "progressive": reading.one_of("none", "output_skip"),
        "progressive_input": reading.one_of("none", "input_skip", "residual"),
        "embedding_type": reading.one_of("fourier", "positional"),
        "sde": reading.one_of("vesde", "vpsde", "subvpsde"),
        "continuous": reading.boolean(),
        "sigma_min": _POSITIVE,
        "sigma_max": _POSITIVE,
        "beta_min": _POSITIVE,
        "beta_max": _POSITIVE,
    },
    {"config": reading.text()},
)
_DEFAULTS = {  # those of ve/cifar10_ncsnpp_continuous
    "image_size": 32,
    "num_channels": 3,
    "nf": 128,
    "ch_mult": [1, 2, 2, 2],
    "num_res_blocks": 4,
    "attn_resolutions": [16],
    "dropout": 0.1,
    "fir": True,
    "skip_rescale": True,
    "progressive": "none",
    "progressive_input": "residual",
    "embedding_type": "fourier",
    "sde": "vesde",
    "continuous": True,
    "sigma_min": 0.01,
    "sigma_max": 50.0,
    "beta_min": 0.1,
    "beta_max": 20.0,
}
TRAINING = ("sde", "continuous", "sigma_min", "sigma_max", "beta_min", "beta_max", "config")
_FILTERS = {True: (1, 3, 3, 1), False: (1, 1)}
_INPUTS = {"none": "none", "input_skip": "skip", "residual": "residual"}
_OUTPUTS = {"none": "none", "output_skip": "skip"}


# ---- the network
def _options(config: Mapping) -> tuple[Options, Shape]:
    fourier = config["embedding_type"] == "fourier"
    if config["progressive_input"] == "residual" and not config["fir"]:
        raise UserError(
            "config.json has progressive_input=residual and fir=False; without the filter a "
            "residual input cannot be imported"
        )
    size = config["image_size"]
    return {
        "num_classes": 0,
        "width": config["nf"],
        "multipliers": tuple(config["ch_mult"]),
        "blocks": config["num_res_blocks"],
        "attention": tuple(config["attn_resolutions"]),
        "dropout": config["dropout"],
        "noise_embedding": "fourier" if fourier else "positional",
        "noise_multiplier": 2 if fourier else 1,
        "progressive_input": _INPUTS[config["progressive_input"]],
        "progressive_output": _OUTPUTS[config["progressive"]],
        "resample_filter": _FILTERS[config["fir"]],
        "skip_scale": 0.5**0.5 if config["skip_rescale"] else 1.0,
        "learn_variance": False,
    }, (size, size, config["num_channels"])


def _config(options: Options, shape: Shape) -> dict[str, Any]:
    inputs = {ours: theirs for theirs, ours in _INPUTS.items()}
    outputs = {ours: theirs for theirs, ours in _OUTPUTS.items()}
    return {
        "image_size": shape[0],
        "num_channels": shape[2],
        "nf": options["width"],
        "ch_mult": list(options["multipliers"]),
        "num_res_blocks": options["blocks"],
        "attn_resolutions": list(options["attention"]),
        "dropout": options["dropout"],
        "fir": options["resample_filter"] == (1, 3, 3, 1),
        "skip_rescale": options["skip_scale"] != 1.0,
        "progressive": outputs[options["progressive_output"]],
        "progressive_input": inputs[options["progressive_input"]],
        "embedding_type": options["noise_embedding"],
    }


# ---- names
def _modules(options: Options) -> list[tuple[str, str]]:
    """(the part of our paths, the class of theirs) of every module, in the order of its making."""
    block, attention = "ResnetBlockBigGANpp", "AttnBlockpp"
    levels = range(len(options["multipliers"]))
    seen = [options["side"] // 2**level in options["attention"] for level in levels]
    inputs = {"skip": "Combine", "residual": "Downsample"}.get(options["progressive_input"])
    fourier = options["noise_embedding"] == "fourier"
    found = [("features", "GaussianFourierProjection")] if fourier else []
    found += [("noise_1", "Dense"), ("noise_2", "Dense"), ("first", "Conv")]
    for level in levels:
        if level:
            found.append((f"down_{level}_half", block))
            found += [(f"input_{level}", inputs)] if inputs else []
        for i in range(options["blocks"]):
            found.append((f"down_{level}_{i}", block))
            found += [(f"down_{level}_{i}_attention", attention)] if seen[level] else []
    found += [("middle_1", block), ("middle_attention", attention), ("middle_2", block)]
    for level in reversed(levels):
        found += [(f"up_{level}_{i}", block) for i in range(options["blocks"] + 1)]
        last = options["blocks"]
        found += [(f"up_{level}_{last}_attention", attention)] if seen[level] else []
        if level == 0 or options["progressive_output"] == "skip":
            name = f"output_{level}" if level else "last"
            found += [(f"{name}_norm", "GroupNorm"), (name, "Conv")]
        found += [(f"up_{level - 1}_double", block)] if level else []
    return found


def _words(options: Options) -> dict[str, str]:
    own = {"Combine": ".Conv_0", "Downsample": ".Conv2d_0"}
    return {
        "condition": "",
        "norm_1": "GroupNorm_0",
        "conv_1": "Conv_0",
        "embedding": "Dense_0",
        "norm_2": "GroupNorm_1",
        "conv_2": "Conv_1",
        "shortcut": "Conv_2",
        "norm": "GroupNorm_0",
        "qkv": "NIN_0 NIN_1 NIN_2",
        "project": "NIN_3",
        **{
            part: f"all_modules.{number}{own.get(kind, '')}"
            for number, (part, kind) in enumerate(_modules(options))
        },
    }


# ---- tensors
def _averages(tensors: Flat) -> dict[str, np.ndarray]:
    """The averaged weights of a checkpoint, by the names of its network.

    Raises:
      UserError: for averages that are not those of the network.
    """
    flax = {name: a for name, a in tensors.items() if name.startswith("params_ema.")}
    if flax:
        return {name.removeprefix("params_ema."): tensor for name, tensor in flax.items()}
    own = {name: a for name, a in tensors.items() if name.startswith("model.")} or tensors
    found = reading.once(
        (name.removeprefix("model.").removeprefix("module."), tensor)
        for name, tensor in own.items()
    )
    found.pop("sigmas", None)
    learned = [name for name in found if not re.fullmatch(r"all_modules\.\d+\.W", name)]
    shadows = [name for name in tensors if name.startswith("ema.shadow_params.")]
    if shadows and len(shadows) != len(learned):
        raise UserError(
            f"this checkpoint has {len(shadows)} averages of {len(learned)} weights; download it "
            "again"
        )
    numbered = (tensors.get(f"ema.shadow_params.{i}") for i in range(len(shadows)))
    return found | {name: a for name, a in zip(learned, numbered) if a is not None}


def _by_number(tensors: Flat, options: Options) -> dict[str, np.ndarray]:
    """The arrays of the JAX program by the names, and in the layout, of the torch program."""
    counts: Counter[str] = Counter()
    names = {}
    for number, (_, kind) in enumerate(_modules(options)):
        names[f"{kind}_{counts[kind]}"] = f"all_modules.{number}"
        counts[kind] += 1
    found = {}
    for name, tensor in tensors.items():
        module, _, rest = name.partition(".")
        rest = re.sub(r"(^|\.)(kernel|scale)$", r"\1weight", rest)
        if tensor.ndim == 4 or (tensor.ndim == 2 and name.endswith(".kernel")):
            tensor = np.moveaxis(tensor, (-1, -2), (0, 1))
        found[f"{names.get(module, module)}.{rest}"] = tensor
    return found


def _prepared(tensors: Flat, config: Mapping) -> dict[str, np.ndarray]:
    """The tensors by one set of names, predicting eps."""
    options, shape = _options(config)
    options |= {"side": shape[0]}
    if not any(name.startswith("all_modules.") for name in tensors):
        tensors = _by_number(tensors, options)
    words = _words(options)
    last = {words[part] for part in words if re.fullmatch(r"last|output_\d+", part)}
    sign = -1 if config["sde"] == "vesde" else 1
    found = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if "NIN" in module:  # a matrix (in, out)
            leaf = {"W": "weight", "b": "bias"}.get(leaf, leaf)
            tensor = tensor.T if leaf == "weight" else tensor
        leaf = "freqs" if leaf == "W" else leaf
        found[f"{module}.{leaf}"] = sign * tensor if module in last else tensor
    return found


# ---- what the networks were trained to predict
def _settings(config: Mapping) -> dict[str, Any]:
    low, high = float(config["sigma_min"]), float(config["sigma_max"])
    beta_min, beta_max = float(config["beta_min"]), float(config["beta_max"])
    kind, continuous = config["sde"], config["continuous"]
    if kind == "vesde" and (not continuous or config["embedding_type"] != "fourier"):
        raise UserError(
            "a network of VE that was trained on a table of noise levels (continuous=False) cannot "
            "be imported; those of continuous=True with embedding_type=fourier can"
        )
    if not (low < high and beta_min < beta_max):
        raise UserError("config.json has a sigma_min or a beta_min that is not below its maximum")
    if kind == "vesde":
        process = f"schedules.VE(sigma_min={2 * low!r}, sigma_max={2 * high!r})"
        scale, shift = math.log(high / low), math.log(low)
    elif continuous or kind == "subvpsde":
        name = "VP" if kind == "vpsde" else "SubVP"
        process = f"schedules.{name}(beta_min={beta_min!r}, beta_max={beta_max!r})"
        scale, shift = 999.0, 0.0
    else:
        process = f"discrete.ddpm('linear', 1000, {beta_min / 1000!r}, {beta_max / 1000!r})"
        scale, shift = 1000.0, -1.0
    inputs = f"noise_input='time', input_scale=False, time_scale={scale!r}, time_shift={shift!r}"
    return {
        "process": process,
        "parameterization": f"eps({inputs})",
        "objective": "denoising.dsm()" if continuous else "denoising.ddpm(steps=1000)",
        "sampler.clip": "none",
    }


# ---- the authors' configs
_DEEP = {"num_res_blocks": 8}
_POSITIONAL = {"embedding_type": "positional"}
_DDPMPP = _POSITIONAL | {"fir": False, "progressive_input": "none"}
_LARGE = {
    "image_size": 256,
    "ch_mult": [1, 1, 2, 2, 2, 2, 2],
    "num_res_blocks": 2,
    "dropout": 0.0,
    "progressive": "output_skip",
    "progressive_input": "input_skip",
}
_1024 = _LARGE | {
    "image_size": 1024,
    "nf": 16,
    "ch_mult": [1, 2, 4, 8, 16, 32, 32, 32],
    "num_res_blocks": 1,
    "sigma_max": 1348.0,
}
RELEASED: dict[str, dict[str, Any]] = {
    "ve/cifar10_ncsnpp_continuous": {},
    "ve/cifar10_ncsnpp_deep_continuous": _DEEP,
    "ve/bedroom_ncsnpp_continuous": _LARGE | {"sigma_max": 378.0},
    "ve/church_ncsnpp_continuous": _LARGE | {"sigma_max": 380.0},
    "ve/celebahq_256_ncsnpp_continuous": _LARGE | {"sigma_max": 348.0},
    "ve/ffhq_256_ncsnpp_continuous": _LARGE | {"sigma_max": 348.0},
    "ve/celebahq_ncsnpp_continuous": _1024,
    "ve/ffhq_ncsnpp_continuous": _1024,
    "vp/cifar10_ddpmpp": _DDPMPP | {"sde": "vpsde", "continuous": False},
    "vp/cifar10_ncsnpp": _POSITIONAL | {"sde": "vpsde", "continuous": False},
}
RELEASED |= {
    f"{folder}/cifar10_{network}{depth}_continuous": own | deep | {"sde": f"{folder}sde"}
    for folder in ("vp", "subvp")
    for network, own in (("ddpmpp", _DDPMPP), ("ncsnpp", _POSITIONAL))
    for depth, deep in (("", {}), ("_deep", _DEEP))
}

NCSNPP = Published(
    model="ncsnpp.NCSNpp",
    options=_options,
    config=_config,
    defaults=_DEFAULTS,
    only={},
    words=_words,
    rule=_RULE,
    loose=TRAINING,
    settings=_settings,
    prepared=_prepared,
    released=RELEASED,
    averages=_averages,
)
