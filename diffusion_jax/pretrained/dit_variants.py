"""Published transformers that are DiT by other names, or trained otherwise, as dit.DiT.

    SiT                     flow matching with the network of DiT (Ma et al. 2024)
    LightningDiT            RMSNorm, RoPE, SwiGLU, qk-norm (Yao et al. 2025)
    DiTTransformer2DModel   the DiT of diffusers

The first two predict the velocity from noise to data at a time that is 1 at the data; here time is
1 at the noise, and the velocity goes the other way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.models import positions
from diffusion_jax.pretrained.dit_network import DEPTH, DIT, ratio_of
from diffusion_jax.pretrained.published import (
    Flat,
    Layout,
    Options,
    Published,
    Shape,
    below_ema,
)

LAST = ("final_layer.linear.weight", "final_layer.linear.bias")


# ---- flow matching
def _flow_rule(value: Any, place: str) -> None:
    DIT.rule(value, place)
    _PATH(value, place)


_PATH = reading.record(
    {},
    {"path_type": reading.one_of("Linear"), "prediction": reading.one_of("velocity")}
    | dict.fromkeys(
        ("use_rmsnorm", "use_rope", "use_qknorm", "use_swiglu", "wo_shift"), reading.boolean()
    ),
)


def _flow_options(config: Mapping) -> tuple[Options, Shape]:
    options, shape = DIT.options(config)
    return options | {"noise_embedding": "adm_plain", "learn_variance": False}, shape


def _flow_settings(config: Mapping) -> dict[str, Any]:
    return {
        "process": "schedules.RectifiedFlow()",
        "parameterization": "velocity(noise_input='time', input_scale=False, time_scale=-1.0, "
        "time_shift=1.0)",
        "objective": "denoising.flow_matching()",
        "sampler.name": "ode.euler",
        "sampler.grid": "uniform",
        "sampler.nfe": 250,
        "sampler.clip": "none",
        "label_dropout": 0.1,
    }


def _towards_noise(tensors: Flat, config: Mapping) -> dict[str, np.ndarray]:
    """Turn the velocity of the last layer, and drop the second half of its outputs.

    These are what is left of DiT's variance; the program drops them as well.
    """
    channels, both = config["in_channels"], config["learn_sigma"]

    def turned(tensor: np.ndarray) -> np.ndarray:
        if both and len(tensor) % (2 * channels) == 0:  # (p p, 2 C) outputs
            parts = tensor.reshape(-1, 2, channels, *tensor.shape[1:])
            tensor = parts[:, 0].reshape(-1, *tensor.shape[1:])
        return -tensor

    return {name: turned(tensor) if name in LAST else tensor for name, tensor in tensors.items()}


def _towards_data(tensors: Flat) -> dict[str, np.ndarray]:
    """Turn the velocity of the last layer, the inverse of `_towards_noise` without a variance."""
    return {name: -tensor if name in LAST else tensor for name, tensor in tensors.items()}


SIT = DIT._replace(
    options=_flow_options,
    only=DIT.only | {"noise_embedding": ("adm_plain",), "learn_variance": (False,)},
    rule=_flow_rule,
    loose=("learn_sigma", "path_type", "prediction"),
    settings=_flow_settings,
    prepared=_towards_noise,
    restored=_towards_data,
    averages=below_ema,
)


# ---- LightningDiT
def _lightning_described(tensors: Flat) -> dict[str, Any]:
    """Read the options off the tensors, which have those of DiT and more."""
    swiglu = "blocks.0.mlp.w12.weight" in tensors
    alike = {name.replace(".mlp.w12.", ".mlp.fc1."): a for name, a in tensors.items()}
    found = DIT.described(alike)
    if swiglu:  # two matrices of int(2 hidden / 3) units
        units = len(tensors["blocks.0.mlp.w12.weight"]) // 2
        found["mlp_ratio"] = ratio_of((3 * units + 1) // 2, found["hidden_size"])
    return found | {
        "use_swiglu": swiglu,
        "use_rmsnorm": "final_layer.norm_final.weight" in tensors,
        "use_rope": "feat_rope.freqs_cos" in tensors,
        "use_qknorm": "blocks.0.attn.q_norm.weight" in tensors,
    }


def _lightning_options(config: Mapping) -> tuple[Options, Shape]:
    options, shape = _flow_options(config)
    norm = "rms" if config["use_rmsnorm"] else "layer"
    return options | {
        "swiglu": config["use_swiglu"],
        "rms_norm": config["use_rmsnorm"],
        "rope": config["use_rope"],
        "qk_norm": norm if config["use_qknorm"] else "none",
    }, shape


def _lightning_config(options: Options, shape: Shape) -> dict[str, Any]:
    return DIT.config(options, shape) | {
        "use_swiglu": options["swiglu"],
        "use_rmsnorm": options["rms_norm"],
        "use_rope": options["rope"],
        "use_qknorm": options["qk_norm"] != "none",
        "wo_shift": False,
    }


def _lightning_words(options: Options) -> dict[str, str]:
    units = {"mlp_gate": "mlp.w1", "mlp_in": "mlp.w2", "mlp_out": "mlp.w3"}
    return DIT.words(options) | {
        "norm_1": "norm1",
        "norm_2": "norm2",
        "last_norm": "final_layer.norm_final",
        "query_norm": "attn.q_norm",
        "key_norm": "attn.k_norm",
        **(units if options["swiglu"] else {}),
    }


def _lightning_prepared(tensors: Flat, config: Mapping) -> dict[str, np.ndarray]:
    """As `_towards_noise`, with the two matrices of SwiGLU apart."""
    found = {}
    for name, tensor in _towards_noise(tensors, config).items():
        whole = re.fullmatch(r"(blocks\.\d+\.mlp)\.w12\.(weight|bias)", name)
        if whole and len(tensor) % 2 == 0:
            halves = np.split(tensor, 2)
            found |= {f"{whole[1]}.w{i + 1}.{whole[2]}": half for i, half in enumerate(halves)}
        else:
            found[name] = tensor
    return found


def _lightning_fixed(options: Options, shape: Shape) -> dict[str, np.ndarray]:
    found = DIT.fixed(options, shape)  # also checks the sizes
    if not options["rope"]:
        return found
    side = shape[0] // options["patch"]
    places = positions.grid_places((side, side))
    angles = positions.rotary_angles(places, options["width"] // options["heads"])
    angles = np.repeat(angles, 2, axis=1)
    return found | {"feat_rope.freqs_cos": np.cos(angles), "feat_rope.freqs_sin": np.sin(angles)}


LIGHTNING = SIT._replace(
    options=_lightning_options,
    only={},
    config=_lightning_config,
    words=_lightning_words,
    fixed=_lightning_fixed,
    described=_lightning_described,
    settings=lambda config: (
        _flow_settings(config) | {"sampler.grid": f"flow_shift(shift={1 / 0.3!r})"}
    ),
    prepared=_lightning_prepared,
)


# ---- diffusers
_COUNT = reading.integer(1, 65_536)
_THEIRS = {
    "in_channels": _COUNT,
    "out_channels": reading.optional(_COUNT),
    "num_attention_heads": _COUNT,
    "attention_head_dim": _COUNT,
    "num_layers": reading.integer(1, DEPTH),
    "sample_size": _COUNT,
    "patch_size": _COUNT,
    "num_embeds_ada_norm": reading.integer(1, 10**6),
    "dropout": reading.number(0, 1),
}
_DEFAULTS = {
    "in_channels": 4,
    "out_channels": None,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "num_layers": 28,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
    "dropout": 0.0,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
}


def _diffusers_options(config: Mapping) -> tuple[Options, Shape]:
    size, channels = config["sample_size"], config["in_channels"]
    return {
        "width": config["num_attention_heads"] * config["attention_head_dim"],
        "heads": config["num_attention_heads"],
        "depth": config["num_layers"],
        "patch": config["patch_size"],
        "num_classes": config["num_embeds_ada_norm"],
        "learn_variance": config["out_channels"] == 2 * channels,
        "noise_embedding": "sinusoidal",  # whose frequencies are not those of the authors' DiT
    }, (size, size, channels)


def _diffusers_config(options: Options, shape: Shape) -> dict[str, Any]:
    channels = shape[2]
    return {key: _DEFAULTS[key] for key in _DEFAULTS if key not in _THEIRS} | {
        "_class_name": "DiTTransformer2DModel",
        "sample_size": shape[0],
        "patch_size": options["patch"],
        "in_channels": channels,
        "out_channels": 2 * channels if options["learn_variance"] else channels,
        "num_attention_heads": options["heads"],
        "attention_head_dim": options["width"] // options["heads"],
        "num_layers": options["depth"],
        "num_embeds_ada_norm": options["num_classes"],
    }


def _diffusers_words(options: Options) -> dict[str, str]:
    return {
        "first": "pos_embed.proj",
        "condition": "emb",
        "noise_1": "timestep_embedder.linear_1",
        "noise_2": "timestep_embedder.linear_2",
        "label": "class_embedder.embedding_table",
        "modulation": "norm1.linear",
        "qkv": "attn1.qkv",
        "project": "attn1.to_out.0",
        "mlp_in": "ff.net.0.proj",
        "mlp_out": "ff.net.2",
        "last_modulation": "proj_out_1",
        "last": "proj_out_2",
        **{f"block_{i}": f"transformer_blocks.{i}" for i in range(options["depth"])},
    }


def _exchanged(a: np.ndarray) -> np.ndarray:
    """The halves of the last axis in the other order: cosines first, or sines."""
    return np.roll(a, a.shape[-1] // 2, axis=-1)


_SINES = Layout(lambda a: _exchanged(a).T, lambda a: _exchanged(a.T))


def _diffusers_prepared(tensors: Flat, config: Mapping) -> dict[str, np.ndarray]:
    """One embedding of step and class, which every block has there, and q, k and v together.

    Raises:
      UserError: if the embeddings of two blocks differ.
    """
    found: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        block, embedding, rest = name.partition(".norm1.emb.")
        own = f"emb.{rest}" if embedding else name
        if own in found and not np.array_equal(found[own], tensor):
            raise UserError(
                f"{name} is not that of the first block; a DiT with several embeddings of step and "
                "class cannot be imported"
            )
        found[own] = tensor
    for name in [name for name in found if name.endswith((".attn1.to_q.weight", ".to_q.bias"))]:
        parts = [name.replace(".to_q.", f".to_{part}.") for part in "qkv"]
        if len({found[part].shape if part in found else part for part in parts}) == 1:
            whole = np.concatenate([found.pop(part) for part in parts])
            found[name.replace(".to_q.", ".qkv.")] = whole
    return found


DIFFUSERS = Published(
    model="dit.DiT",
    options=_diffusers_options,
    config=_diffusers_config,
    defaults=_DEFAULTS,
    only={},
    words=_diffusers_words,
    layouts=lambda options: DIT.layouts(options) | {"noise_1/kernel": _SINES},
    rule=reading.record(_THEIRS),
    loose=("out_channels", "dropout", "norm_num_groups", "norm_eps", "upcast_attention"),
    prepared=_diffusers_prepared,
)
