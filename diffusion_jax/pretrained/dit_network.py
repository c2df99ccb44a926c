"""The DiT of its authors' own program (Peebles & Xie 2023), which has no config.json.

Most of its options are read off the shapes of its tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.models import dit
from diffusion_jax.pretrained.published import (
    Flat,
    Layout,
    Options,
    Published,
    Shape,
    below_ema,
    missing,
)

# numbers in the fixed position embedding: those of 1,152 channels and 482 x 482 patches
LARGEST = 2**28
DEPTH = 256  # blocks; a network of many more takes hours to be traced

_SIZES = "patch_size", "hidden_size", "depth", "num_heads", "input_size", "in_channels"

_DIT_RULE = reading.record(
    {},
    dict.fromkeys(_SIZES, reading.integer(1, 65_536))
    | {
        "depth": reading.integer(1, DEPTH),
        "mlp_ratio": reading.number(1e-3, 1e3),
        "num_classes": reading.integer(0, 10**6),
        "learn_sigma": reading.boolean(),
    },
)


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
            f"the tensors do not determine {error}; write it into a config.json next to them"
        ) from None


def _dit_config(options: Options, shape: Shape) -> dict[str, Any]:
    if not options["num_classes"]:
        raise UserError(
            "an unconditional DiT cannot be exported: the published DiT is class-conditional"
        )
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
    """Read the options off the shapes of the tensors.

    The number of heads is known only where width and depth are those of the paper, and the size of
    the images only where the position embedding is there.
    """
    try:
        width, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
        hidden, outputs = (
            len(tensors[name]) for name in ("blocks.0.mlp.fc1.weight", "final_layer.linear.weight")
        )
        classes = len(tensors["y_embedder.embedding_table.weight"]) - 1
        ratio = ratio_of(hidden, width)
    except KeyError as error:
        raise missing(error, "a DiT", tensors) from None
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"these tensors are not those of a DiT: one has another number of dimensions ({error})"
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


def ratio_of(hidden: int, width: int) -> float:
    """Return the mlp_ratio of a network: int(width * mlp_ratio) is the number of hidden units.

    Args:
      hidden: number of hidden units.
      width: size of a token.
    """
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


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

    # ours is ordered by head, then q, k, v
    by_head = Layout(lambda a: swap(a.T, 3, heads), lambda a: swap(a, heads, 3).T)
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
    return {"pos_embed": np.asarray(dit.position_embedding((side, side), options["width"]))[None]}


DIT = Published(
    model="dit.DiT",
    options=_dit_options,
    config=_dit_config,
    defaults={},
    only={
        "noise_embedding": ("adm",),
        "second_time": (False,),
        "rms_norm": (False,),
        "qk_norm": ("none",),
        "swiglu": (False,),
        "rope": (False,),
        "absolute_positions": (True,),
        "in_context": (False,),
        "shared_modulation": (False,),
        "registers": (0,),
        "bottleneck": (0,),
        "aligned": (0,),
    },
    words=_dit_words,
    layouts=_dit_layouts,
    fixed=_dit_fixed,
    described=_dit_described,
    rule=_DIT_RULE,
    averages=below_ema,
)
