"""SD3Transformer2DModel of diffusers, the network of Stable Diffusion 3 and 3.5, as mmdit.MMDiT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.models import positions
from diffusion_jax.pretrained.dit_network import DIT
from diffusion_jax.pretrained.published import Flat, Layout, Options, Published, Shape, missing

DEPTH = 128  # blocks, at most
PLACES = "pos_embed.pos_embed"  # the embedding of positions, which is not learned
TEXT = ("joint_attention_dim", "pooled_projection_dim")  # sizes of a state and the pooled vector

_COUNT = reading.integer(1, 65_536)
_RULE = reading.record(
    {
        "sample_size": _COUNT,
        "patch_size": _COUNT,
        "in_channels": _COUNT,
        "out_channels": _COUNT,
        "num_layers": reading.integer(1, DEPTH),
        "attention_head_dim": _COUNT,
        "num_attention_heads": _COUNT,
        "joint_attention_dim": _COUNT,
        "caption_projection_dim": _COUNT,
        "pooled_projection_dim": _COUNT,
        "pos_embed_max_size": reading.integer(1, 4096),
        "dual_attention_layers": reading.items(reading.integer(0, DEPTH - 1), 0, DEPTH),
        "qk_norm": reading.optional(reading.one_of("rms_norm")),
    }
)
_DEFAULTS = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 18,
    "attention_head_dim": 64,
    "num_attention_heads": 18,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1152,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 96,
    "dual_attention_layers": (),
    "qk_norm": None,
}


def _options(config: Mapping) -> tuple[Options, Shape]:
    size, patch = config["sample_size"], config["patch_size"]
    return {
        "width": config["num_attention_heads"] * config["attention_head_dim"],
        "heads": config["num_attention_heads"],
        "depth": config["num_layers"],
        "patch": patch,
        "qk_norm": "rms" if config["qk_norm"] else "none",
        "dual_attention": tuple(config["dual_attention_layers"]),
        "position_grid": (config["pos_embed_max_size"], size // patch),
        "text_mask": False,
        "num_classes": 0,
    }, (size, size, config["in_channels"])


def _config(options: Options, shape: Shape) -> dict[str, Any]:
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": shape[0],
        "patch_size": options["patch"],
        "in_channels": shape[2],
        "out_channels": shape[2],
        "num_layers": options["depth"],
        "attention_head_dim": options["width"] // options["heads"],
        "num_attention_heads": options["heads"],
        "caption_projection_dim": options["width"],
        "pos_embed_max_size": options["position_grid"][0],
        "dual_attention_layers": list(options["dual_attention"]),
        "qk_norm": "rms_norm" if options["qk_norm"] == "rms" else None,
    }


_STREAMS = {
    # ours: (their attention, of the stream's queries, keys and values, their norms, perceptron)
    "image": ("attn", "to_qkv", "to_out.0", "norm_", "ff"),
    "text": ("attn", "add_qkv_proj", "to_add_out", "norm_added_", "ff_context"),
    "image_2": ("attn2", "to_qkv", "to_out.0", "norm_", "ff"),
}


def _words(options: Options) -> dict[str, str]:
    words = {
        "first": "pos_embed.proj",
        "condition": "time_text_embed.timestep_embedder",
        "noise_1": "linear_1",
        "noise_2": "linear_2",
        "pooled_1": "time_text_embed.text_embedder.linear_1",
        "pooled_2": "time_text_embed.text_embedder.linear_2",
        "context": "context_embedder",
        "image_modulation": "norm1.linear",
        "text_modulation": "norm1_context.linear",
        "last_modulation": "norm_out.linear",
        "last": "proj_out",
        **{f"block_{i}": f"transformer_blocks.{i}" for i in range(options["depth"])},
    }
    for own, (attention, qkv, project, norm, mlp) in _STREAMS.items():
        words |= {
            f"{own}_qkv": f"{attention}.{qkv}",
            f"{own}_project": f"{attention}.{project}",
            f"{own}_query_norm": f"{attention}.{norm}q",
            f"{own}_key_norm": f"{attention}.{norm}k",
            f"{own}_mlp_in": f"{mlp}.net.0.proj",
            f"{own}_mlp_out": f"{mlp}.net.2",
        }
    return words


def _layouts(options: Options) -> dict[str, Layout]:
    own = DIT.layouts(options)
    return {"first/kernel": own["first/kernel"]} | {
        f"{stream}_qkv/{leaf}": own["qkv/kernel"]
        for stream in _STREAMS
        for leaf in ("kernel", "bias")
    }


def _prepared(tensors: Flat, config: Mapping) -> dict[str, np.ndarray]:
    """Queries, keys and values together, and shift before scale in every modulation.

    Their AdaLayerNormContinuous, of the last layer and of the text in the last block, has the scale
    first.

    Raises:
      UserError: for other embeddings of positions than sines and cosines.
    """
    found = dict(tensors)
    _check_places(found.pop(PLACES, None), config)
    for name in [name for name in found if re.search(r"\.(to_q|add_q_proj)\.\w+$", name)]:
        parts = [re.sub(r"(to_|add_)q", rf"\g<1>{part}", name) for part in "qkv"]
        if all(part in found for part in parts):
            whole = np.concatenate([found.pop(part) for part in parts])
            found[re.sub(r"(to_|add_)q", r"\g<1>qkv", name)] = whole
    last = f"transformer_blocks.{config['num_layers'] - 1}.norm1_context.linear"
    for leaf in ("weight", "bias"):
        for name in (f"{last}.{leaf}", f"norm_out.linear.{leaf}"):
            if name not in found:
                raise missing(KeyError(name), "SD3's transformer", tensors)
            found[name] = np.roll(found[name], len(found[name]) // 2, axis=0)
    return found


def _check_places(stored: np.ndarray | None, config: Mapping) -> None:
    """UserError unless these are the fixed embeddings of positions, of which some are compared."""
    if stored is None:
        return
    (options, _), side = _options(config), config["pos_embed_max_size"]
    width, base = options["width"], options["position_grid"][1]
    if stored.shape != (1, side**2, width) or width % 4:
        raise UserError(f"{PLACES} has the shape {stored.shape}; it must be {(1, side**2, width)}")
    rows = np.linspace(0, side**2 - 1, min(side**2, 256)).astype(int)
    places = np.stack([rows // side, rows % side], axis=1) * (base / side)
    wanted = np.asarray(positions.embed_places(places, width))
    if not np.allclose(np.float32(stored[0, rows]), wanted, atol=1e-2):  # of 16 bits, at worst
        raise UserError(
            f"{PLACES} is not the fixed embedding of positions of this network; a network with a "
            "learned one cannot be imported"
        )


SD3 = Published(
    model="mmdit.MMDiT",
    options=_options,
    config=_config,
    defaults=_DEFAULTS,
    only={},
    words=_words,
    layouts=_layouts,
    rule=_RULE,
    loose=TEXT,
    prepared=_prepared,
)
