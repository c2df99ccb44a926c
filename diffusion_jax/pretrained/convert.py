"""Published networks as ours, and ours as theirs: names and the order of axes, and nothing else.

    UNet2DModel     diffusers, in the layout of DDPM (Ho et al. 2020)       our unet.UNet
    AutoencoderKL   diffusers (Rombach et al. 2022)                         our autoencoder.AutoencoderKL
    DiT             the authors' own program (Peebles & Xie 2023)           our dit.DiT

A `Published` network says how its config becomes our options and back, and has one dictionary, from
the words in the paths of our parameters to the names of their modules. `table` makes of that, for
each of our parameters, the tensors it consists of; `to_ours` and `to_theirs` apply a table and undo
each other bit for bit. Parameters are flat: {'down_0_0/conv_1/kernel': array}.
"""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax import reading
from diffusion_jax.errors import UserError, unknown
from diffusion_jax.models import dit, layers

Options = dict[str, Any]
Shape = tuple[int, ...]
Flat = Mapping[str, np.ndarray]


class Layout(NamedTuple):
    """How one of their tensors lies in ours: two functions, each of which undoes the other."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


class Source(NamedTuple):
    """Their tensors of which one of our parameters consists: each in our layout, side by side along
    the last axis.
    """

    names: tuple[str, ...]
    layout: Layout


class Published(NamedTuple):
    """A network that others publish.

    model: its name here. options: their config -> (our options, shape of an example). config: back.
    defaults: of their config. only: those of our options of which theirs has no choice, or less ->
      what it has.
    words: our options -> {a part of our paths: the same of theirs}; where ours is several of
      theirs, with spaces between.
    layouts: our options -> {the end of our paths: layout}, where that is not the usual one.
    fixed: (our options, shape) -> tensors that are not learned, which their files hold as well.
    described: what the tensors alone tell of their config.
    under: where its parameters are among those of a run; '': they are all.
    rule: what the values of their config may be (`reading`).
    """

    model: str
    options: Callable[[Mapping], tuple[Options, Shape]]
    config: Callable[[Options, Shape], dict[str, Any]]
    defaults: dict[str, Any]
    only: dict[str, tuple]
    words: Callable[[Options], dict[str, str]]
    layouts: Callable[[Options], dict[str, Layout]] = lambda options: {}
    fixed: Callable[[Options, Shape], dict[str, np.ndarray]] = lambda options, shape: {}
    described: Callable[[Flat], dict[str, Any]] = lambda tensors: {}
    under: str = ""
    rule: reading.Rule = reading.table()


# ---- between flat dicts
SAME = Layout(lambda a: a, lambda a: a)
DENSE = Layout(np.transpose, np.transpose)  # (out, in), (in, out)

CONV = Layout(
    lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1)
)  # (out, in, H, W), (H, W, in, out)

LEAVES = {"kernel": "weight", "scale": "weight", "rows": "weight", "bias": "bias"}


def table(network: Published, options: Options, shapes: Mapping[str, Shape]) -> dict[str, Source]:
    """{path of one of our parameters: where it comes from}. shapes: of all of ours."""
    words, layouts = network.words(options), network.layouts(options)

    def source(path: str, shape: Shape) -> Source:
        *parts, leaf = path.split("/")
        theirs = itertools.product(*(words[part].split(" ") for part in parts), [LEAVES[leaf]])
        usual = {1: SAME, 2: DENSE, 4: CONV}[len(shape)] if leaf == "kernel" else SAME
        return Source(
            tuple(".".join(filter(None, name)) for name in theirs),
            layouts.get(f"{parts[-1]}/{leaf}", usual),
        )

    return {path: source(path, shape) for path, shape in shapes.items()}


def flat(params: Any) -> dict[str, Any]:
    """A tree of parameters -> {path: leaf}, in the order of its leaves."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unstacked(params: Flat) -> dict[str, np.ndarray]:
    """Flat parameters with 'blocks/...' of scan_blocks, which have a leading axis, as
    'block_0/...', 'block_1/...', ...
    """
    return {
        re.sub("^blocks/", f"block_{i}/", path): part
        for path, leaf in params.items()
        for i, part in (enumerate(leaf) if path.startswith("blocks/") else [(0, leaf)])
    }


def to_theirs(table: Mapping[str, Source], params: Flat) -> dict[str, np.ndarray]:
    """Our parameters -> their tensors, as views where that is possible."""
    return {
        name: source.layout.to_theirs(part)
        for path, source in table.items()
        for name, part in zip(source.names, np.split(params[path], len(source.names), axis=-1))
    }


def to_ours(
    table: Mapping[str, Source], tensors: Flat, shapes: Mapping[str, Shape]
) -> dict[str, np.ndarray]:
    """Their tensors -> our parameters, float32, of these shapes.

    Raises:
      UserError: with the names of all tensors that do not fit, and of the first that is not of
        finite floating-point numbers.
    """
    blank = {
        path: np.broadcast_to(np.int8(0), shape) for path, shape in shapes.items()
    }  # no memory, but a shape
    _fit(
        {name: a.shape for name, a in to_theirs(table, blank).items()},
        {name: a.shape for name, a in tensors.items()},
    )

    def param(source: Source) -> np.ndarray:
        parts = [source.layout.to_ours(_numbers(name, tensors[name])) for name in source.names]
        return np.concatenate(parts, axis=-1)

    return {path: param(source) for path, source in table.items()}


def _numbers(name: str, tensor: np.ndarray) -> np.ndarray:
    """A tensor of weights as float32. UserError for integers, and for values that are not finite."""
    if tensor.dtype.kind not in "fV":  # (bfloat16 is of kind V)
        raise UserError(
            f"the tensor {name} is of {tensor.dtype}, and weights are floating-point numbers"
        )
    with np.errstate(over="ignore"):  # of float64
        found = np.asarray(tensor, np.float32)
    bad = int(found.size - np.isfinite(found).sum())
    if bad:
        many = f"{bad} of {found.size} values"
        raise UserError(
            f"the tensor {name} has {many} that are not finite; the file is damaged, fetch it again"
        )
    return found


def _fit(wanted: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    problems = {
        "missing": [name for name in wanted if name not in found],
        "left over": [name for name in found if name not in wanted],
        "of another shape": [
            f"{name} {list(found[name])} for {list(shape)}"
            for name, shape in wanted.items()
            if found.get(name, shape) != shape
        ],
    }
    told = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
    if told:
        raise UserError(
            f"the tensors are not those of the network that their config describes; {told}"
        )


# ---- between configs
SCALE = (
    "scaling_factor",
    "shift_factor",
    "latents_mean",
    "latents_std",
)  # of an autoencoder's latents, for who uses them

LOOSE = (*SCALE, "force_upcast")  # no part of a network


def read_config(network: Published, config: Mapping) -> tuple[Options, Shape]:
    """(our options, shape of an example) of their config. UserError for a network that ours cannot
    be:

    one whose config is not that of ours, written as theirs.
    """
    config = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in (network.defaults | config).items()
    }
    reading.check(config, network.rule, "config.json")
    options, shape = network.options(config)
    ours = network.config(options, shape)
    for key, value in config.items():
        value = list(value) if isinstance(value, tuple) else value
        if not key.startswith("_") and key not in LOOSE and value != ours.get(key):
            why = (
                f"only {ours[key]} can be imported"
                if key in ours
                else "this is not known, and cannot be imported"
            )
            raise UserError(f"config.json has {key}={value}; {why}")
    return options, shape


def write_config(
    network: Published, options: Options, shape: Shape, shapes: Mapping[str, Shape]
) -> dict[str, Any]:
    """Their config of our network, whose parameters have these shapes.

    Raises:
      UserError: with every option that theirs does not have, and the overrides of a run that would
        have it.
    """
    if wrong := misfits(network, options, shape, shapes):
        refuse(wrong)
    if "norm" in options and options["norm"] is None:
        options = options | {"norm": (_common_groups(shapes), 1e-6)}
    return network.config(options, shape)


class Misfit(NamedTuple):
    """A config key whose value theirs does not have: the value, and one that it has."""

    value: Any
    instead: Any
    why: str = ""


def misfits(
    network: Published, options: Options, shape: Shape, shapes: Mapping[str, Shape]
) -> dict[str, Misfit]:
    """{config key: Misfit} of our network, whose parameters have these shapes."""
    found = {
        f"model.{key}": Misfit(options[key], values[0])
        for key, values in network.only.items()
        if options[key] not in values
    }
    if classes := found.pop("model.num_classes", None):
        found["conditional"] = Misfit(True, False, f"{classes.value} classes")
    own = sorted(
        {layers.groups(size[0]) for path, size in shapes.items() if path.endswith("/scale")}
    )
    if options.get("norm", ()) is None and len(own) > 1:
        why = f"it means {', '.join(map(str, own[:-1]))} or {own[-1]} groups by the channels, and theirs has one number"
        found["model.norm"] = Misfit(None, (_common_groups(shapes), 1e-6), why)
    if width := options.get("head_width"):
        seen = _attended(options, shape)
        if min(seen) < width < max(seen):
            found["model.head_width"] = Misfit(
                width, math.gcd(*seen), f"attention sees {min(seen)} channels too"
            )
    return found


def refuse(wrong: Mapping[str, Misfit], rest: str = "") -> None:
    """UserError with all that cannot be exported and the overrides of a run that can be. rest: what
    else could be done.
    """
    what = "; ".join(
        f"config.{key}={one.value}" + (f" ({one.why})" if one.why else "")
        for key, one in wrong.items()
    )
    train = " ".join(
        f"--config.{key}={shlex.quote(str(one.instead))}" for key, one in wrong.items()
    )
    raise UserError(f"this run cannot be exported: {what}; train one with {train}{rest}")


def _common_groups(shapes: Mapping[str, Shape]) -> int:
    """The number of groups that serves all norms: what the default means where all agree, else the
    largest that divides all.
    """
    channels = {size[0] for path, size in shapes.items() if path.endswith("/scale")}
    return (
        layers.groups(math.gcd(*channels))
        if len({*map(layers.groups, channels)}) > 1
        else layers.groups(max(channels))
    )


def _attended(options: Options, shape: Shape) -> list[int]:
    """The channels of the feature maps with attention: those of these heights, and the middle."""
    channels = [options["width"] * multiplier for multiplier in options["multipliers"]]
    return [
        c for level, c in enumerate(channels) if shape[0] // 2**level in options["attention"]
    ] + channels[-1:]


# ---- parameters that mean the same
def of_one_class(params: Flat, label: int) -> dict[str, np.ndarray]:
    """Those of an unconditional network that is the conditional one at this label: the label's row
    becomes part of a bias.
    """
    params = dict(params)
    rows = params.pop("condition/label/rows")
    return params | {"condition/noise_2/bias": params["condition/noise_2/bias"] + rows[label]}


def with_steps(params: Flat, noise_embedding: str, shift: float) -> dict[str, np.ndarray]:
    """Those of a network that is given j = 1000 c_noise + shift instead of 1000 c_noise.

    Its features of j are sines and cosines, and those of j - shift are the same, each pair rotated:
    a change of the first kernel.
    """
    kernel = np.asarray(params["condition/noise_1/kernel"], np.float64)
    half = len(kernel) // 2
    last = half - 1 if noise_embedding == "sinusoidal" else half  # as in models/embeddings.py
    angle = shift * (10_000.0 ** (-np.arange(half) / max(last, 1))).astype(np.float32).astype(
        np.float64
    )
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    sines, cosines = (
        (kernel[:half], kernel[half:])
        if noise_embedding == "sinusoidal"
        else (kernel[half:], kernel[:half])
    )
    turned = [cos * sines + sin * cosines, cos * cosines - sin * sines]
    turned = turned if noise_embedding == "sinusoidal" else turned[::-1]
    return dict(params) | {"condition/noise_1/kernel": np.concatenate(turned).astype(np.float32)}


def with_last(params: Flat, channels: int, factor: float, variance: bool) -> dict[str, np.ndarray]:
    """Those of a network whose output is divided by `factor`. variance: whether its channels beyond
    these are kept.
    """

    def change(leaf: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [
                leaf[..., :channels] / np.float32(factor),
                leaf[..., channels:] if variance else leaf[..., :0],
            ],
            -1,
        )

    return dict(params) | {name: change(params[name]) for name in ("last/kernel", "last/bias")}


# ---- their process
VERSION = "0.42.1"  # of diffusers, with which the files were tried

BETAS = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}

DDPM = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}

_SCHEDULER = reading.record(
    {
        "num_train_timesteps": reading.integer(1, 100_000),
        "beta_start": reading.number(0, 1),
        "beta_end": reading.number(0, 1),
        "beta_schedule": reading.text(),
        "trained_betas": reading.optional(reading.items(reading.number(0, 1), 1, 100_000)),
        "prediction_type": reading.text(),
        "rescale_betas_zero_snr": reading.boolean(),
    },
    {"clip_sample": reading.boolean(), "thresholding": reading.boolean()},
)


class Convention(NamedTuple):
    """The specs of config.process, config.parameterization and config.objective, and how many steps
    the chain has.
    """

    process: str
    parameterization: str
    objective: str
    steps: int


def read_scheduler(scheduler: Mapping) -> Convention:
    """The convention of a network that was trained under this scheduler_config.json of diffusers;
    {} is DDPM's own.

    Their integer j of N is our t = (j + 1) / N, and the network is given j itself, 1000 c_noise.
    UserError for a table of betas or a prediction that we do not have.
    """
    scheduler = DDPM | scheduler
    reading.check(scheduler, _SCHEDULER, "scheduler_config.json")
    steps, schedule, prediction = (
        scheduler[key] for key in ("num_train_timesteps", "beta_schedule", "prediction_type")
    )
    if scheduler["rescale_betas_zero_snr"]:
        raise UserError(
            "scheduler_config.json has rescale_betas_zero_snr=True; a last step without signal cannot be imported"
        )
    if scheduler["trained_betas"]:  # a table
        process = f"discrete.DDPM({tuple(scheduler['trained_betas'])})"
    elif schedule in BETAS:
        low, high = (
            scheduler[key] * steps / 1000 for key in ("beta_start", "beta_end")
        )  # ours are for 1000 steps
        process = f"discrete.ddpm('{BETAS[schedule]}', {steps}, {low!r}, {high!r})"
    else:
        raise unknown("beta_schedule of scheduler_config.json", schedule, BETAS)
    if prediction not in PREDICTIONS:
        raise unknown("prediction_type of scheduler_config.json", prediction, PREDICTIONS)
    told = f"noise_input='time', input_scale=False, time_scale={steps / 1000!r}, time_shift=-0.001"
    return Convention(
        process, f"{PREDICTIONS[prediction]}({told})", f"denoising.ddpm(steps={steps})", steps
    )


def write_scheduler(
    betas: Sequence[float], prediction: str, *, clip: str, learned: bool = False
) -> dict[str, Any]:
    """The scheduler_config.json of a chain, which DDPMPipeline and DDIMPipeline take.

    Args:
      betas: (N,).
      prediction: 'eps', 'v' or 'x0'.
      clip: config.sampler.clip: 'static' keeps x0-hat in [-1, 1], 'dynamic' is Imagen's
        thresholding, 'none' leaves it.
      learned: whether the network's output has the variance besides, as in improved DDPM.
    """
    first, last = float(betas[0]), float(betas[-1])
    straight = np.allclose(betas, np.linspace(first, last, len(betas)), rtol=1e-9, atol=0)
    told = {"beta_schedule": "linear", "beta_start": first, "beta_end": last}
    told = told if straight else {"trained_betas": [float(beta) for beta in betas]}
    theirs = {ours: name for name, ours in PREDICTIONS.items()}
    return told | {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": len(betas),
        "prediction_type": theirs[prediction],
        "timestep_spacing": "trailing",
        "clip_sample": clip == "static",
        "thresholding": clip == "dynamic",
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 1e6,
        "variance_type": "learned_range" if learned else "fixed_small",
    }


def write_index(pipeline: str = "DDIMPipeline") -> dict[str, Any]:
    """The model_index.json of a folder with unet/ and scheduler/."""
    return {
        "_class_name": pipeline,
        "_diffusers_version": VERSION,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }


def shift_and_scale(config: Mapping, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(shift, scale) of an autoencoder's latents z, of each channel: networks of them are trained
    on (z - shift) / scale.
    """
    config = KL | config
    reading.check({key: config[key] for key in SCALE}, LATENTS, "what is known of the latents")
    if any(
        len(config[key] or [0] * channels) != channels for key in ("latents_mean", "latents_std")
    ):
        raise UserError(
            f"latents_mean and latents_std are not of {channels} channels; import the autoencoder again"
        )
    shift = config["latents_mean"] or [config["shift_factor"] or 0.0] * channels
    scale = [std / config["scaling_factor"] for std in config["latents_std"] or [1.0] * channels]
    return tuple(shift), tuple(scale)


# ---- diffusers
LARGEST = (
    2**28
)  # numbers that are not learned: those of a DiT of 1,152 channels for images of 482 x 482 patches

TIME = {"sinusoidal": (False, 1), "adm": (True, 0)}  # flip_sin_to_cos, freq_shift
PADDING = {"conv": 0, "conv_centred": 1}

UNET2D = {
    "in_channels": 3,
    "out_channels": 3,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "block_out_channels": (224, 448, 672, 896),
    "down_block_types": ("DownBlock2D", *["AttnDownBlock2D"] * 3),
    "up_block_types": (*["AttnUpBlock2D"] * 3, "UpBlock2D"),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "dropout": 0.0,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "attn_norm_num_groups": None,
}

KL = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "norm_num_groups": 32,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
}

_COUNT, _EPSILON = reading.integer(1, 65_536), reading.number(1e-12, 1)
_SAMPLE = reading.either(reading.items(_COUNT, 2, 2), reading.optional(_COUNT))

_LAYERS = {
    "in_channels": _COUNT,
    "out_channels": _COUNT,
    "block_out_channels": reading.items(_COUNT, 1, 16),
    "down_block_types": reading.items(reading.text(), 1, 16),
    "up_block_types": reading.items(reading.text(), 1, 16),
    "layers_per_block": reading.integer(0, 64),
    "norm_num_groups": _COUNT,
}

_UNET2D = reading.record(
    _LAYERS
    | {
        "flip_sin_to_cos": reading.boolean(),
        "freq_shift": reading.number(),
        "downsample_padding": reading.integer(0, 16),
        "dropout": reading.number(0, 1),
        "attention_head_dim": reading.optional(_COUNT),
        "norm_eps": _EPSILON,
    },
    {"sample_size": _SAMPLE},
)

_SCALES = {
    "scaling_factor": reading.number(1e-6, 1e6),
    "shift_factor": reading.optional(reading.number()),
    "latents_mean": reading.optional(reading.items(reading.number())),
    "latents_std": reading.optional(reading.items(reading.number(1e-12))),
}

LATENTS = reading.record({}, _SCALES)  # of what a workdir of an imported autoencoder keeps

_KL = reading.record(
    _LAYERS
    | _SCALES
    | {
        "latent_channels": _COUNT,
        "use_quant_conv": reading.boolean(),
        "use_post_quant_conv": reading.boolean(),
        "mid_block_add_attention": reading.boolean(),
    },
    {"sample_size": _SAMPLE},
)

_SIZES = "patch_size", "hidden_size", "depth", "num_heads", "input_size", "in_channels"

_DIT = reading.record(
    {},
    dict.fromkeys(_SIZES, _COUNT)
    | {
        "mlp_ratio": reading.number(1e-3, 1e3),
        "num_classes": reading.integer(0, 10**6),
        "learn_sigma": reading.boolean(),
    },
)


def _unet_options(config: Mapping) -> tuple[Options, Shape]:
    channels, size = config["block_out_channels"], _side(config)
    seen = [
        size // 2**level
        for level, kind in enumerate(config["down_block_types"])
        if kind == "AttnDownBlock2D"
    ]
    return {
        "width": channels[0],
        "multipliers": tuple(c // channels[0] for c in channels),
        "blocks": config["layers_per_block"],
        "attention": tuple(seen),
        "head_width": config["attention_head_dim"],
        "dropout": config["dropout"],
        "scale_shift": config["resnet_time_scale_shift"] == "scale_shift",
        "updown": "conv_centred" if config["downsample_padding"] else "conv",
        "norm": (config["norm_num_groups"], config["norm_eps"]),
        "learn_variance": config["out_channels"] == 2 * config["in_channels"],
        "noise_embedding": "adm" if config["flip_sin_to_cos"] else "sinusoidal",
        "num_classes": 0,
    }, (size, size, config["in_channels"])


def _unet_config(options: Options, shape: Shape) -> dict[str, Any]:
    channels = [options["width"] * multiplier for multiplier in options["multipliers"]]
    seen = [
        "Attn" if shape[0] // 2**level in options["attention"] else ""
        for level in range(len(channels))
    ]
    (flip, shift), (groups, epsilon) = TIME[options["noise_embedding"]], options["norm"]
    width, one = options["head_width"], min(_attended(options, shape))
    return {
        "_class_name": "UNet2DModel",
        "sample_size": shape[0] if shape[0] == shape[1] else list(shape[:2]),
        "in_channels": shape[2],
        "out_channels": shape[2] * (2 if options["learn_variance"] else 1),
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "time_embedding_dim": None,
        "flip_sin_to_cos": flip,
        "freq_shift": shift,
        "down_block_types": [f"{attention}DownBlock2D" for attention in seen],
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": [f"{attention}UpBlock2D" for attention in reversed(seen)],
        "add_attention": True,
        "block_out_channels": channels,
        "layers_per_block": options["blocks"],
        "mid_block_scale_factor": 1,
        "downsample_padding": PADDING[options["updown"]],
        "downsample_type": "conv",
        "upsample_type": "conv",
        "dropout": options["dropout"],
        "act_fn": "silu",
        "attention_head_dim": None
        if width and one < width
        else width,  # None there too: a single head
        "norm_num_groups": groups,
        "norm_eps": epsilon,
        "attn_norm_num_groups": groups
        if options["scale_shift"]
        else None,  # None there: no norm in the middle's attention
        "resnet_time_scale_shift": "scale_shift" if options["scale_shift"] else "default",
        "class_embed_type": None,
        "num_class_embeds": None,
        "num_train_timesteps": None,
    }


def _kl_options(config: Mapping) -> tuple[Options, Shape]:
    channels, size = config["block_out_channels"], _side(config)
    width = math.gcd(*channels)
    return {
        "latent_channels": config["latent_channels"],
        "width": width,
        "multipliers": tuple(c // width for c in channels),
        "blocks": config["layers_per_block"],
        "norm": (config["norm_num_groups"], 1e-6),
        "quant": config["use_quant_conv"],
        "attention": config["mid_block_add_attention"],
        "num_classes": 0,
    }, (size, size, config["in_channels"])


def _kl_config(options: Options, shape: Shape) -> dict[str, Any]:
    channels = [options["width"] * multiplier for multiplier in options["multipliers"]]
    groups, epsilon = options["norm"]
    if epsilon != 1e-6:
        raise UserError(
            f"config.model.norm={options['norm']} cannot be exported: an AutoencoderKL has epsilon 1e-6"
        )
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": shape[0],
        "in_channels": shape[2],
        "out_channels": shape[2],
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "block_out_channels": channels,
        "layers_per_block": options["blocks"],
        "act_fn": "silu",
        "latent_channels": options["latent_channels"],
        "norm_num_groups": groups,
        "use_quant_conv": options["quant"],
        "use_post_quant_conv": options["quant"],
        "mid_block_add_attention": options["attention"],
    }


def _side(config: Mapping) -> int:
    """The side of the images; UserError where the config does not state it, or they are not square."""
    size = config.get("sample_size")
    size = size[0] if isinstance(size, list) and len(set(size)) == 1 else size
    if not isinstance(size, int):
        raise UserError(
            f"config.json has sample_size={size}; write the side of the square images there"
        )
    return size


def _diffusers_words(options: Options) -> dict[str, str]:
    levels = len(options["multipliers"])
    words = {
        "encoder": "encoder",
        "decoder": "decoder",
        "quant_conv": "quant_conv",
        "post_quant_conv": "post_quant_conv",
        "first": "conv_in",
        "condition": "time_embedding",
        "noise_1": "linear_1",
        "noise_2": "linear_2",
        "middle_1": "mid_block.resnets.0",
        "middle_attention": "mid_block.attentions.0",
        "middle_2": "mid_block.resnets.1",
        "last_norm": "conv_norm_out",
        "last": "conv_out",
        "norm_1": "norm1",
        "conv_1": "conv1",
        "embedding": "time_emb_proj",
        "norm_2": "norm2",
        "conv_2": "conv2",
        "shortcut": "conv_shortcut",
        "norm": "group_norm",
        "qkv": "to_q to_k to_v",
        "project": "to_out.0",
    }
    for level in range(levels):
        down, up = (
            f"down_blocks.{level}",
            f"up_blocks.{levels - 1 - level}",
        )  # theirs are in the order of use
        words |= {
            f"down_{level}_half": f"{down}.downsamplers.0.conv",
            f"up_{level}_double": f"{up}.upsamplers.0.conv",
        }
        for i in range(options["blocks"] + 1):
            words |= {
                f"down_{level}_{i}": f"{down}.resnets.{i}",
                f"down_{level}_{i}_attention": f"{down}.attentions.{i}",
                f"up_{level}_{i}": f"{up}.resnets.{i}",
                f"up_{level}_{i}_attention": f"{up}.attentions.{i}",
            }
    return words


def modern(name: str) -> str:
    """A tensor's name as diffusers has it since 2023, of that or the older one of an attention."""
    today = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return re.sub(
        r"(?<=\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)",
        lambda found: today[found[0]],
        name,
    )


# ---- DiT
def _dit_options(config: Mapping) -> tuple[Options, Shape]:
    names = {
        "patch": "patch_size",
        "width": "hidden_size",
        "depth": "depth",
        "heads": "num_heads",
        "mlp_ratio": "mlp_ratio",
        "num_classes": "num_classes",
        "learn_variance": "learn_sigma",
    }
    try:
        size = config["input_size"]
        return {ours: config[theirs] for ours, theirs in names.items()}, (
            size,
            size,
            config["in_channels"],
        )
    except KeyError as error:
        raise UserError(
            f"the tensors do not tell {error}; write it into a config.json beside them"
        ) from None


def _dit_config(options: Options, shape: Shape) -> dict[str, Any]:
    if not options["num_classes"]:
        raise UserError("an unconditional DiT has no counterpart there: theirs is given a class")
    return {
        "input_size": shape[0],
        "in_channels": shape[2],
        "patch_size": options["patch"],
        "hidden_size": options["width"],
        "depth": options["depth"],
        "num_heads": options["heads"],
        "mlp_ratio": options["mlp_ratio"],
        "num_classes": options["num_classes"],
        "learn_sigma": options["learn_variance"],
    }


def _dit_described(tensors: Flat) -> dict[str, Any]:
    """All but heads and image size; these too where width and depth are of the paper and the
    patches' places are there.
    """
    try:
        width, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
        hidden, outputs = (
            len(tensors[name]) for name in ("blocks.0.mlp.fc1.weight", "final_layer.linear.weight")
        )
        classes = len(tensors["y_embedder.embedding_table.weight"]) - 1
        ratio = hidden / width
    except KeyError as error:
        raise UserError(f"these tensors are no DiT: {error} is missing") from None
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"these tensors are no DiT: one has another number of dimensions ({error})"
        ) from None
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    heads = {
        size["heads"]
        for size in dit.SIZES.values()
        if (size["width"], size["depth"]) == (width, depth)
    }
    places = tensors.get("pos_embed")
    return {
        "in_channels": channels,
        "patch_size": patch,
        "hidden_size": width,
        "depth": depth,
        "mlp_ratio": ratio,
        "num_classes": classes,
        "learn_sigma": outputs == 2 * channels * patch**2,
        **({"num_heads": heads.pop()} if heads else {}),
        **(
            {"input_size": math.isqrt(places.shape[1]) * patch}
            if places is not None and places.ndim == 3
            else {}
        ),
    }


def _dit_words(options: Options) -> dict[str, str]:
    return {
        "first": "x_embedder.proj",
        "condition": "",
        "noise_1": "t_embedder.mlp.0",
        "noise_2": "t_embedder.mlp.2",
        "label": "y_embedder.embedding_table",
        "modulation": "adaLN_modulation.1",
        "qkv": "attn.qkv",
        "project": "attn.proj",
        "mlp_in": "mlp.fc1",
        "mlp_out": "mlp.fc2",
        "last_modulation": "final_layer.adaLN_modulation.1",
        "last": "final_layer.linear",
        **{f"block_{i}": f"blocks.{i}" for i in range(options["depth"])},
    }


def _dit_layouts(options: Options) -> dict[str, Layout]:
    patch, heads = options["patch"], options["heads"]

    def swap(a: np.ndarray, m: int, n: int) -> np.ndarray:  # (..., m n d) -> (..., n m d)
        return np.swapaxes(a.reshape(*a.shape[:-1], m, n, -1), -3, -2).reshape(a.shape)

    by_head = Layout(
        lambda a: swap(a.T, 3, heads), lambda a: swap(a, heads, 3).T
    )  # ours is by head, then q, k, v
    patches = Layout(
        lambda a: a.transpose(2, 3, 1, 0).reshape(-1, len(a)),  # (width, C, p, p), (p p C, width)
        lambda a: a.reshape(patch, patch, -1, a.shape[-1]).transpose(3, 2, 0, 1),
    )
    return {"first/kernel": patches, "qkv/kernel": by_head, "qkv/bias": by_head}


def _dit_fixed(options: Options, shape: Shape) -> dict[str, np.ndarray]:
    side = shape[0] // options["patch"]
    if (
        side**2 * options["width"] > LARGEST
        or side * options["patch"] != shape[0]
        or options["width"] % 4
    ):
        sizes = f"input_size={shape[0]} and patch_size={options['patch']}"
        raise UserError(f"{sizes} are not those of a DiT of width {options['width']}")
    return {"pos_embed": np.asarray(dit.position_embedding(side, side, options["width"]))[None]}


# ---- all
NETWORKS = {
    "UNet2DModel": Published(
        "unet.UNet",
        _unet_options,
        _unet_config,
        UNET2D,
        {
            "updown": tuple(PADDING),
            "noise_embedding": tuple(TIME),
            "num_classes": (0,),
            "stem": (1,),
            "skip_scale": (1,),
            "extra_channels": (0,),
            "second_time": (False,),
        },
        _diffusers_words,
        rule=_UNET2D,
    ),
    "AutoencoderKL": Published(
        "autoencoder.AutoencoderKL",
        _kl_options,
        _kl_config,
        KL,
        {"stem": (1,)},
        _diffusers_words,
        under="autoencoder",
        rule=_KL,
    ),
    "DiT": Published(
        "dit.DiT",
        _dit_options,
        _dit_config,
        {},
        {"noise_embedding": ("adm",), "second_time": (False,)},
        _dit_words,
        _dit_layouts,
        _dit_fixed,
        _dit_described,
        rule=_DIT,
    ),
}


def published(name: str) -> Published:
    """The network of this class; UserError names the nearest."""
    if name not in NETWORKS:
        raise unknown("class of network", name, NETWORKS)
    return NETWORKS[name]


def without_fixed(
    network: Published, tensors: Flat, options: Options, shape: Shape
) -> dict[str, np.ndarray]:
    """The tensors that are learned. UserError if one of the others is not what our network takes
    for it.
    """
    fixed = network.fixed(options, shape)
    for name, value in fixed.items():
        found = tensors.get(name, value)
        if found.shape != value.shape or not np.allclose(found, value, atol=1e-3):
            raise UserError(
                f"{name} {list(found.shape)} is not the fixed {list(value.shape)} of this network"
            )
    return {name: tensor for name, tensor in tensors.items() if name not in fixed}
