"""The networks of diffusers that are imported and exported: UNet2DModel and AutoencoderKL.

Their options are listed with the defaults of diffusers, the rule that their config.json must meet,
and the translations of a config to our options and back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained.published import SCALE, Options, Published, Shape, attended_channels

# noise_embedding -> (flip_sin_to_cos, freq_shift)
TIME = {"sinusoidal": (False, 1), "adm": (True, 0)}

PADDING = {"conv": 0, "conv_centred": 1}  # updown -> downsample_padding

UNET_DEFAULTS = {
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

KL_DEFAULTS = {
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

_UNET_RULE = reading.record(
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

_LATENTS = {
    "scaling_factor": reading.number(1e-6, 1e6),
    "shift_factor": reading.optional(reading.number()),
    "latents_mean": reading.optional(reading.items(reading.number())),
    "latents_std": reading.optional(reading.items(reading.number(1e-12))),
}

LATENTS = reading.record({}, _LATENTS)  # what a workdir keeps of an imported autoencoder

_KL_RULE = reading.record(
    _LAYERS
    | _LATENTS
    | {
        "latent_channels": _COUNT,
        "use_quant_conv": reading.boolean(),
        "use_post_quant_conv": reading.boolean(),
        "mid_block_add_attention": reading.boolean(),
    },
    {"sample_size": _SAMPLE},
)


def _unet_options(config: Mapping) -> tuple[Options, Shape]:
    channels, size = config["block_out_channels"], side(config)
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
    width, one = options["head_width"], min(attended_channels(options, shape))
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
        # None means a single head there too
        "attention_head_dim": None if width and one < width else width,
        "norm_num_groups": groups,
        "norm_eps": epsilon,
        # None means that the attention in the middle has no norm
        "attn_norm_num_groups": groups if options["scale_shift"] else None,
        "resnet_time_scale_shift": "scale_shift" if options["scale_shift"] else "default",
        "class_embed_type": None,
        "num_class_embeds": None,
        "num_train_timesteps": None,
    }


def _kl_options(config: Mapping) -> tuple[Options, Shape]:
    channels, size = config["block_out_channels"], side(config)
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
            f"config.model.norm={options['norm']} cannot be exported: an AutoencoderKL has epsilon "
            "1e-6"
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


def side(config: Mapping) -> int:
    """Return the side of the images.

    Args:
      config: a config.json, whose sample_size is a number or two equal numbers.

    Raises:
      UserError: where it is not stated, or the images are not square.
    """
    size = config.get("sample_size")
    size = size[0] if isinstance(size, list) and len(set(size)) == 1 else size
    if not isinstance(size, int):
        raise UserError(
            f"config.json has sample_size={size}; set it to the side of the square images"
        )
    return size


def shift_and_scale(config: Mapping, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return what normalizes an autoencoder's latents z: networks see (z - shift) / scale.

    Args:
      config: the config.json of the autoencoder, or what is known of the keys of SCALE.
      channels: the number of channels of z.

    Returns:
      (shift, scale), one number for each channel.

    Raises:
      UserError: for values that are out of range or of another number of channels.
    """
    config = KL_DEFAULTS | config
    reading.check({key: config[key] for key in SCALE}, LATENTS, "the description of the latents")
    if any(
        len(config[key] or [0] * channels) != channels for key in ("latents_mean", "latents_std")
    ):
        raise UserError(
            f"latents_mean and latents_std must have {channels} numbers; import the autoencoder "
            "again"
        )
    shift = config["latents_mean"] or [config["shift_factor"] or 0.0] * channels
    scale = [std / config["scaling_factor"] for std in config["latents_std"] or [1.0] * channels]
    return tuple(shift), tuple(scale)


def diffusers_words(options: Options) -> dict[str, str]:
    """Return {a part of our paths: the same part of the names of diffusers}.

    Args:
      options: the options of a U-Net or an autoencoder.
    """
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
        # theirs are numbered in the order of use
        down, up = f"down_blocks.{level}", f"up_blocks.{levels - 1 - level}"
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
    """Return the present name of a tensor.

    Args:
      name: the name in a file, which may be that of before 2023, such as
        'mid_block.attentions.0.query.weight'; other names are returned unchanged.
    """
    renamed = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return re.sub(
        r"(?<=\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)",
        lambda found: renamed[found[0]],
        name,
    )


UNET = Published(
    model="unet.UNet",
    options=_unet_options,
    config=_unet_config,
    defaults=UNET_DEFAULTS,
    only={
        "updown": tuple(PADDING),
        "noise_embedding": tuple(TIME),
        "num_classes": (0,),
        "stem": (1,),
        "skip_scale": (1,),
        "decoder_attention_once": (False,),
        "extra_channels": (0,),
        "augment": (0,),
        "heads": (0,),
        "noise_features": (0,),
        "second_time": (False,),
    },
    words=diffusers_words,
    rule=_UNET_RULE,
)

AUTOENCODER = Published(
    model="autoencoder.AutoencoderKL",
    options=_kl_options,
    config=_kl_config,
    defaults=KL_DEFAULTS,
    only={"stem": (1,)},
    words=diffusers_words,
    subtree="autoencoder",
    rule=_KL_RULE,
)
