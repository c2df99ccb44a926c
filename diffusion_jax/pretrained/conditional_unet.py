"""UNet2DConditionModel of diffusers, the network of Stable Diffusion 1, 2 and XL, as ours and back.

Its config says some things in several ways, and states the sizes of the text encoders, which our
network does not need. `split` separates these before published.read_config translates the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained import diffusers_networks
from diffusion_jax.pretrained.published import Options, Published, Shape

_DEFAULTS = {
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "only_cross_attention": False,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "resnet_time_scale_shift": "default",
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
}
# what else a config may have, and the only values that can be imported
_FIXED = {
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "num_class_embeds": None,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
}
# keys that do not matter: of the softmax, which is float32 here; of an embedding that is not there
_IGNORED = ("upcast_attention", "addition_embed_type_num_heads")
_TEXT = ("cross_attention_dim", "projection_class_embeddings_input_dim")

_COUNT = reading.integer(1, 65_536)
_COUNTS = reading.either(reading.items(_COUNT, 1, 16), _COUNT)
_BLOCKS = reading.integer(1, 256)
_RULE = reading.record(
    {
        "in_channels": _COUNT,
        "out_channels": _COUNT,
        "block_out_channels": reading.items(_COUNT, 1, 16),
        "down_block_types": reading.items(reading.text(), 1, 16),
        "up_block_types": reading.items(reading.text(), 1, 16),
        "layers_per_block": reading.integer(1, 64),
        "norm_num_groups": _COUNT,
        "norm_eps": reading.number(1e-12, 1),
        "dropout": reading.number(0, 1),
        "attention_head_dim": _COUNTS,
        "transformer_layers_per_block": reading.either(reading.items(_BLOCKS, 1, 16), _BLOCKS),
        "use_linear_projection": reading.boolean(),
        "addition_time_embed_dim": reading.optional(_COUNT),
    },
    {
        "sample_size": reading.optional(reading.either(reading.items(_COUNT, 2, 2), _COUNT)),
        "cross_attention_dim": _COUNTS,
        "projection_class_embeddings_input_dim": reading.optional(_COUNT),
    },
)


class TextSizes(NamedTuple):
    """The sizes of what a U-Net receives of a text.

    Attributes:
      states: numbers of a state.
      pooled: numbers of the pooled vector; 0 where the U-Net receives none.
    """

    states: int
    pooled: int


def split(config: Mapping[str, Any]) -> tuple[dict[str, Any], TextSizes]:
    """Separate the sizes of the text from a config, and write what stays in one way.

    Args:
      config: the config.json of a UNet2DConditionModel.

    Returns:
      (the config for published.read_config, the sizes of the text).

    Raises:
      UserError: for a config that is damaged, and for a U-Net that receives a second image.
    """
    full = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in (_DEFAULTS | {"cross_attention_dim": 1280} | dict(config)).items()
    }
    reading.check(full, _RULE, "unet/config.json")
    if full["in_channels"] != full["out_channels"]:
        raise UserError(
            f"unet/config.json has in_channels={full['in_channels']} and out_channels="
            f"{full['out_channels']}; a U-Net that receives a second image, for inpainting or "
            "instructions, cannot be imported"
        )
    levels = len(full["block_out_channels"])
    for key in ("attention_head_dim", "transformer_layers_per_block"):
        full[key] = _each(full[key], levels, key)
    attends = [kind == "CrossAttnDownBlock2D" for kind in full["down_block_types"]]
    layers = full["transformer_layers_per_block"]
    full["transformer_layers_per_block"] = [
        count if there or level == levels - 1 else 1
        for level, (count, there) in enumerate(zip(layers, attends))
    ]
    context = _each(full["cross_attention_dim"], levels, "cross_attention_dim")
    if len(set(context)) > 1:
        raise UserError(f"unet/config.json has cross_attention_dim={context}; one can be imported")
    added = full.get("projection_class_embeddings_input_dim") or 0
    pooled = added - 6 * (full["addition_time_embed_dim"] or 0)
    if full["addition_embed_type"] is None:
        pooled = 0
    elif pooled < 1:
        raise UserError(
            f"unet/config.json has projection_class_embeddings_input_dim={added}, which does not "
            "hold six embedded numbers and a text"
        )
    rest = {key: value for key, value in full.items() if key not in (*_IGNORED, *_TEXT)}
    return rest, TextSizes(context[0], pooled)


def _each(value: Any, levels: int, key: str) -> list[int]:
    """A value for each level."""
    found = value if isinstance(value, list) else [value] * levels
    if len(found) != levels:
        raise UserError(f"unet/config.json has {key}={value} for {levels} levels")
    return found


def _options(config: Mapping[str, Any]) -> tuple[Options, Shape]:
    channels, size = config["block_out_channels"], diffusers_networks.side(config)
    layers = config["transformer_layers_per_block"]
    width = math.gcd(*channels)
    return {
        "width": width,
        "multipliers": tuple(c // width for c in channels),
        "blocks": config["layers_per_block"],
        "depth": tuple(
            count if kind == "CrossAttnDownBlock2D" else 0
            for count, kind in zip(layers, config["down_block_types"])
        ),
        "middle_depth": layers[-1],
        "heads": tuple(config["attention_head_dim"]),
        "linear": config["use_linear_projection"],
        "sizes": config["addition_time_embed_dim"] or 0 if config["addition_embed_type"] else 0,
        "dropout": config["dropout"],
        "norm": (config["norm_num_groups"], config["norm_eps"]),
        "num_classes": 0,
    }, (size, size, config["in_channels"])


def _config(options: Options, shape: Shape) -> dict[str, Any]:
    attends = ["CrossAttn" if depth else "" for depth in options["depth"]]
    groups, epsilon = options["norm"]
    return _FIXED | {
        "_class_name": "UNet2DConditionModel",
        "sample_size": shape[0],
        "in_channels": shape[2],
        "out_channels": shape[2],
        "center_input_sample": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "down_block_types": [f"{kind}DownBlock2D" for kind in attends],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(attends)],
        "only_cross_attention": False,
        "block_out_channels": [options["width"] * m for m in options["multipliers"]],
        "layers_per_block": options["blocks"],
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
        "dropout": options["dropout"],
        "act_fn": "silu",
        "norm_num_groups": groups,
        "norm_eps": epsilon,
        "transformer_layers_per_block": [
            *(depth or 1 for depth in options["depth"][:-1]),
            options["middle_depth"],
        ],
        "attention_head_dim": list(options["heads"]),
        "use_linear_projection": options["linear"],
        "resnet_time_scale_shift": "default",
        "addition_embed_type": "text_time" if options["sizes"] else None,
        "addition_time_embed_dim": options["sizes"] or None,
    }


def _words(options: Options) -> dict[str, str]:
    blocks = {f"block_{i}": f"transformer_blocks.{i}" for i in range(max(_depths(options)))}
    return (
        diffusers_networks.diffusers_words(options)
        | blocks
        | {
            "added": "add_embedding",
            "linear_1": "linear_1",
            "linear_2": "linear_2",
            "norm": "norm",
            "norm_3": "norm3",
            "self": "attn1",
            "cross": "attn2",
            "query": "to_q",
            "key_value": "to_k to_v",
            "project_in": "proj_in",
            "project_out": "proj_out",
            "mlp_in": "ff.net.0.proj",
            "mlp_out": "ff.net.2",
        }
    )


def _depths(options: Options) -> tuple[int, ...]:
    return (*options["depth"], options["middle_depth"])


UNET = Published(
    model="sd_unet.SDUNet",
    options=_options,
    config=_config,
    defaults=_DEFAULTS,
    only={},
    words=_words,
    rule=_RULE,
)
