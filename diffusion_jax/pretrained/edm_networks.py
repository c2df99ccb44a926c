"""The networks of EDM and EDM2 (Karras et al. 2022 and 2024), by the arguments of their classes.

    SongUNet       DDPM++ and NCSN++       ncsnpp.NCSNpp
    DhariwalUNet   ADM                     unet.UNet
    UNet           EDM2                    edm2.EDM2UNet

Their modules are named by the height of the feature maps: 'enc.32x32_block0'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained.layouts import POINT
from diffusion_jax.pretrained.published import Layout, Options, Published, Shape

_COUNT, _NUMBER = reading.integer(1, 65_536), reading.number(-1e6, 1e6)
_SIDES = reading.items(_COUNT, 0, 16)
_LAYERS = {
    "img_resolution": reading.integer(1, 4096),
    "label_dim": reading.integer(0, 10**6),
    "model_channels": _COUNT,
    "channel_mult": reading.items(reading.integer(1, 64), 1, 8),
    "num_blocks": reading.integer(1, 64),
    "attn_resolutions": _SIDES,
    "dropout": reading.number(0, 1),
}
_SONG_RULE = reading.record(
    _LAYERS
    | {
        "in_channels": _COUNT,
        "out_channels": _COUNT,
        "augment_dim": reading.integer(0, 1024),
        "channel_mult_emb": _COUNT,
        "channel_mult_noise": reading.integer(1, 64),
        "embedding_type": reading.one_of("positional", "fourier"),
        "encoder_type": reading.one_of("standard", "skip", "residual"),
        "decoder_type": reading.one_of("standard", "skip"),
        "resample_filter": reading.items(reading.integer(0, 1024), 2, 16),
    }
)
_ADM_RULE = reading.record(
    _LAYERS
    | {
        "in_channels": _COUNT,
        "out_channels": _COUNT,
        "augment_dim": reading.integer(0, 1024),
        "channel_mult_emb": _COUNT,
    }
)
_EDM2_RULE = reading.record(
    _LAYERS
    | {
        "img_channels": _COUNT,
        "channel_mult_noise": reading.optional(reading.integer(1, 64)),
        "channel_mult_emb": reading.optional(reading.integer(1, 64)),
        "label_balance": reading.number(0, 1),
        "concat_balance": reading.number(0, 1),
        "res_balance": reading.number(0, 1),
        "attn_balance": reading.number(0, 1),
        "clip_act": reading.optional(reading.number(1e-6, 1e9)),
        "channels_per_head": _COUNT,
        "resample_filter": reading.items(reading.integer(0, 1024), 2, 16),
        "logvar_channels": _COUNT,
    }
)
_SONG_DEFAULTS = {
    "label_dim": 0,
    "augment_dim": 0,
    "model_channels": 128,
    "channel_mult": [1, 2, 2, 2],
    "channel_mult_emb": 4,
    "num_blocks": 4,
    "attn_resolutions": [16],
    "dropout": 0.1,
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": [1, 1],
}
_ADM_DEFAULTS = {
    "label_dim": 0,
    "augment_dim": 0,
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 4],
    "channel_mult_emb": 4,
    "num_blocks": 3,
    "attn_resolutions": [32, 16, 8],
    "dropout": 0.1,
}
_EDM2_DEFAULTS = {
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 4],
    "channel_mult_noise": None,
    "channel_mult_emb": None,
    "num_blocks": 3,
    "attn_resolutions": [16, 8],
    "label_balance": 0.5,
    "concat_balance": 0.5,
    "res_balance": 0.3,
    "attn_balance": 0.3,
    "clip_act": 256,
    "channels_per_head": 64,
    "dropout": 0,
    "resample_filter": [1, 1],
    "logvar_channels": 128,
}
# ours -> theirs, where the values are the same
_SHARED = {
    "num_classes": "label_dim",
    "width": "model_channels",
    "multipliers": "channel_mult",
    "blocks": "num_blocks",
    "attention": "attn_resolutions",
    "dropout": "dropout",
}
_SONG = _SHARED | {
    "augment": "augment_dim",
    "noise_embedding": "embedding_type",
    "noise_multiplier": "channel_mult_noise",
    "resample_filter": "resample_filter",
}
_ADM = _SHARED | {"augment": "augment_dim"}
_EDM2 = _SHARED | {
    "noise_multiplier": "channel_mult_noise",
    "embedding_multiplier": "channel_mult_emb",
    "label_balance": "label_balance",
    "concat_balance": "concat_balance",
    "residual_balance": "res_balance",
    "attention_balance": "attn_balance",
    "head_width": "channels_per_head",
    "resample_filter": "resample_filter",
    "uncertainty": "logvar_channels",
}


def _ours(config: Mapping, names: Mapping[str, str]) -> Options:
    found = {ours: config[theirs] for ours, theirs in names.items()}
    return {key: tuple(v) if isinstance(v, list) else v for key, v in found.items()}


def _theirs(options: Options, names: Mapping[str, str]) -> dict[str, Any]:
    found = {theirs: options[ours] for ours, theirs in names.items()}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in found.items()}


def _images(config: Mapping) -> tuple[Options, Shape]:
    """The option of a learned variance, and the shape of an example."""
    size, channels = config["img_resolution"], config["in_channels"]
    return {"learn_variance": config["out_channels"] == 2 * channels}, (size, size, channels)


def _images_config(options: Options, shape: Shape) -> dict[str, Any]:
    return {
        "img_resolution": shape[0],
        "in_channels": shape[2],
        "out_channels": shape[2] * (2 if options["learn_variance"] else 1),
        "channel_mult_emb": 4,
    }


def _song_options(config: Mapping) -> tuple[Options, Shape]:
    own, shape = _images(config)
    encoder, decoder = config["encoder_type"], config["decoder_type"]
    return _ours(config, _SONG) | own | {
        "progressive_input": "none" if encoder == "standard" else encoder,
        "progressive_output": "none" if decoder == "standard" else decoder,
    }, shape


def _song_config(options: Options, shape: Shape) -> dict[str, Any]:
    inputs, outputs = options["progressive_input"], options["progressive_output"]
    return (
        _theirs(options, _SONG)
        | _images_config(options, shape)
        | {
            "encoder_type": "standard" if inputs == "none" else inputs,
            "decoder_type": "standard" if outputs == "none" else outputs,
        }
    )


def _adm_options(config: Mapping) -> tuple[Options, Shape]:
    own, shape = _images(config)
    if config["channel_mult"][0] != 1:
        raise UserError(
            f"channel_mult={config['channel_mult']}: a DhariwalUNet can be imported if the first "
            "multiplier is 1"
        )
    fixed = {
        "head_width": 64,
        "updown": "resblock",
        "norm": (0, 1e-5),
        "noise_embedding": "adm_plain",
    }
    return _ours(config, _ADM) | own | fixed, shape


def _adm_config(options: Options, shape: Shape) -> dict[str, Any]:
    return _theirs(options, _ADM) | _images_config(options, shape)


def _edm2_options(config: Mapping) -> tuple[Options, Shape]:
    size = config["img_resolution"]
    options = _ours(config, _EDM2) | {"clip": float(config["clip_act"] or 0)}
    return options, (size, size, config["img_channels"])


def _edm2_config(options: Options, shape: Shape) -> dict[str, Any]:
    return _theirs(options, _EDM2) | {
        "clip_act": options["clip"] or None,
        "img_resolution": shape[0],
        "img_channels": shape[2],
    }


# ---- names
def _levels(options: Options, sides: list[int]) -> dict[str, str]:
    """The words of the encoder and the decoder, whose feature maps have these heights."""
    words = {
        "first": f"enc.{sides[0]}x{sides[0]}_conv",
        "middle_1": f"dec.{sides[-1]}x{sides[-1]}_in0",
        "middle_attention": f"dec.{sides[-1]}x{sides[-1]}_in0",
        "middle_2": f"dec.{sides[-1]}x{sides[-1]}_in1",
    }
    for level, side in enumerate(sides):
        for i in range(options["blocks"] + 1):
            for ours, theirs in (("down", "enc"), ("up", "dec")):
                block = f"{theirs}.{side}x{side}_block{i}"
                words |= {
                    f"{ours}_{level}_{i}": block,
                    f"{ours}_{level}_{i}_attention": block,
                }
    return words


def _sides(options: Options) -> list[int]:
    return [options["side"] // 2**level for level in range(len(options["multipliers"]))]


def _song_words(options: Options) -> dict[str, str]:
    sides = _sides(options)
    words = _levels(options, sides) | _BLOCK | {"features": "map_noise", "label": "map_label"}
    kind = {"skip": "aux_skip", "residual": "aux_residual"}.get(options["progressive_input"], "")
    for level, side in enumerate(sides):
        last = "last" if level == 0 else f"output_{level}"
        words |= {
            f"down_{level}_half": f"enc.{side}x{side}_down",
            f"input_{level}": f"enc.{side}x{side}_{kind}",
            f"up_{level}_double": f"dec.{side}x{side}_up",
            last: f"dec.{side}x{side}_aux_conv",
            f"{last}_norm": f"dec.{side}x{side}_aux_norm",
        }
    return words


def _adm_words(options: Options) -> dict[str, str]:
    sides = _sides(options)
    words = _levels(options, sides) | _BLOCK
    for level in range(len(sides) - 1):  # ours are named by the level that they come from
        below, above = sides[level + 1], sides[level]
        words |= {
            f"down_{level}_half": f"enc.{below}x{below}_down",
            f"up_{level + 1}_double": f"dec.{above}x{above}_up",
        }
    return words | {"label": "map_label", "last_norm": "out_norm", "last": "out_conv"}


_BLOCK = {
    "condition": "",
    "noise_1": "map_layer0",
    "noise_2": "map_layer1",
    "augment": "map_augment",
    "norm_1": "norm0",
    "conv_1": "conv0",
    "embedding": "affine",
    "norm_2": "norm1",
    "conv_2": "conv1",
    "shortcut": "skip",
    "norm": "norm2",
    "qkv": "qkv",
    "project": "proj",
}


def _edm2_words(options: Options) -> dict[str, str]:
    sides = _sides(options)
    words = _levels(options, sides)
    for level, side in enumerate(sides):
        words |= {
            f"down_{level}_half": f"enc.{side}x{side}_down",
            f"up_{level}_double": f"dec.{side}x{side}_up",
        }
    return words | {
        "condition": "",
        "noise_features": "emb_fourier",
        "noise": "emb_noise",
        "label": "emb_label",
        "conv_1": "conv_res0",
        "embedding": "emb_linear",
        "conv_2": "conv_res1",
        "shortcut": "conv_skip",
        "qkv": "attn_qkv",
        "project": "attn_proj",
        "last": "out_conv",
        "uncertainty_noise": "logvar_fourier",
        "uncertainty_last": "logvar_linear",
    }


# ---- layouts
def _parts_first(a: np.ndarray) -> np.ndarray:
    """(C, 3) outputs, by channel, as (3, C), by q, k, v; the other axes stay."""
    return a.reshape(-1, 3, *a.shape[1:]).swapaxes(0, 1).reshape(a.shape)


def _parts_last(a: np.ndarray) -> np.ndarray:
    return a.reshape(3, -1, *a.shape[1:]).swapaxes(0, 1).reshape(a.shape)


_ATTENTION = {
    "qkv/kernel": Layout(
        lambda a: _parts_first(a)[:, :, 0, 0].T, lambda a: _parts_last(a.T)[:, :, None, None]
    ),
    "qkv/bias": Layout(_parts_first, _parts_last),
    "project/kernel": POINT,
}
# (E, classes), (classes + 1, E), whose last row, of the null label, is 0
_ROWS = Layout(
    lambda a: np.concatenate([a.T, np.zeros_like(a.T[:1])]),
    lambda a: a[:-1].T,
)

SONG = Published(
    model="ncsnpp.NCSNpp",
    options=_song_options,
    config=_song_config,
    defaults=_SONG_DEFAULTS,
    only={},
    words=_song_words,
    layouts=lambda options: _ATTENTION,
    rule=_SONG_RULE,
)
ADM = Published(
    model="unet.UNet",
    options=_adm_options,
    config=_adm_config,
    defaults=_ADM_DEFAULTS,
    only={},
    words=_adm_words,
    layouts=lambda options: _ATTENTION | {"label/rows": _ROWS},
    rule=_ADM_RULE,
)
EDM2 = Published(
    model="edm2.EDM2UNet",
    options=_edm2_options,
    config=_edm2_config,
    defaults=_EDM2_DEFAULTS,
    only={},
    words=_edm2_words,
    layouts=lambda options: _ATTENTION | {"shortcut/kernel": POINT},
    rule=_EDM2_RULE,
)
