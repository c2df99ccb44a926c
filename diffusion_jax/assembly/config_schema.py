"""The type and the range of every config value, in one table that is checked before use.

`check_values(config)` serves the command line and code that reads a config.json from elsewhere;
`read(key, text)` turns the text of --config.KEY=TEXT into a value. The meaning of each key is
documented in configs/base.py. A key that the table does not list, such as an option of a network of
the user's own, must only be finite and plain.

The upper bounds are far above what the literature uses. With them a typo or a config from a
stranger is one error line instead of a command that hangs or exhausts the memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.assembly import defaults
from diffusion_jax.assembly.config_rules import (
    DEPTH,
    Rule,
    choice,
    either,
    flag,
    integer,
    like,
    number,
    optional,
    path,
    sequence,
    text,
    together,
)
from diffusion_jax.core.errors import UserError, unknown

# jax.random.key uses 32 bits of a seed: a larger one would repeat the noise of a smaller one
SEEDS = 2**32

# ---- the table
STEPS = integer(0, 10**9)
SPEC = text(empty=False)
COLUMNS = 10_000  # of a table that are named

KEYS: dict[str, Rule] = {
    "seed": integer(0, SEEDS - 1),
    "data.name": text(empty=False),
    "data.path": path(),
    "data.data_dir": path(),
    "data.image_size": either(integer(0, 4096), together(integer(1, 4096), integer(1, 4096))),
    "data.channels": integer(0, 1024),
    "data.num_classes": integer(0, 100_000),
    "data.captions": path(),
    "data.layout": choice("", "classes", "splits", "flat"),
    "data.value_range": sequence(number(-1e9, 1e9), most=2),
    "data.fit": choice("crop", "letterbox"),
    "data.normalization": choice("standard", "range", "quantile"),
    "data.condition": text(),
    "data.dense": text(),
    "data.channel_axis": choice("", "last", "first", "none"),
    "data.buckets": sequence(together(integer(1, 4096), integer(1, 4096)), most=32),
    "data.rate": integer(0, 384_000),
    "data.length": number(0, 3600),
    "data.sound": SPEC,
    "data.pattern": text(),
    "data.class_fields": sequence(text(), most=8),
    "data.test_where": text(),
    "data.label": text(),
    "data.categories": sequence(text(empty=False), most=COLUMNS),
    "data.exclude": sequence(text(empty=False), most=COLUMNS),
    "data.limit_bad": integer(-1, 10**9),
    "data.flip": flag(),
    "data.augment": number(0, 1),
    "data.class_balanced": flag(),
    "data.batch_size": integer(1, 65_536),
    "data.workers": integer(0, 128),
    "process": SPEC,
    "parameterization": SPEC,
    "objective": SPEC,
    "discriminator": text(),
    "model.name": text(empty=False),
    "conditional": flag(),
    "text.encoder": text(),
    "text.max_length": integer(1, 1024),
    "text.folder": path(),
    "init_from": path(),
    "distill.teacher": path(),
    "distill.guidance": optional(number(0, 1000)),
    "label_dropout": number(0, 1),
    "repa.features": path(),
    "repa.weight": number(0, 1000),
    "latent.autoencoder": path(),
    "latent.recipe": path(),
    "optimizer.name": text(empty=False),
    # smaller ones, and a b2 nearer to 1, vanish in float32
    "optimizer.learning_rate": number(1e-12, 1000),
    "optimizer.warmup": STEPS,
    "optimizer.schedule": choice("constant", "cosine", "linear", "rsqrt"),
    "optimizer.final": number(0, 1),
    "optimizer.decay_from": optional(STEPS),
    "optimizer.clip": number(0, 1e9),
    "optimizer.weight_decay": optional(number(0, 100)),
    "optimizer.b1": optional(number(0, 0.999999)),
    "optimizer.b2": optional(number(0, 0.9999999)),
    "optimizer.eps": optional(number(0, 1)),
    "ema.halflives": sequence(number(0, 1e12, above=True)),
    "ema.ramp": optional(number(0, 1000)),
    "ema.powers": sequence(number(0, 0.28, above=True)),
    "ema.snapshot_every": STEPS,
    "training.steps": STEPS,
    "training.steps_per_call": integer(1, 1000),
    "training.accumulate": integer(1, 65_536),
    "training.log_every": integer(1, 10**9),
    "training.eval_every": STEPS,
    "training.sample_every": STEPS,
    "training.checkpoint_every": STEPS,
    "training.first_shapes": STEPS,
    "training.keep": integer(1, 10**6),
    "training.keep_every": STEPS,
    "training.best": text(),
    "training.on_nonfinite": choice("stop", "skip", "rollback"),
    "training.loss_scale": text(),
    "training.trackers": sequence(choice("tensorboard", "csv", "wandb")),
    "parallel": choice("jit", "pmap"),
    "mesh.data": integer(-1, 2**20),
    "mesh.fsdp": integer(-1, 2**20),
    "mesh.tensor": integer(-1, 2**20),
    "sampler.name": SPEC,
    "sampler.grid": SPEC,
    "sampler.nfe": integer(1, 10_000),
    "sampler.guidance": number(0, 1000),
    "sampler.guide": SPEC,
    "sampler.noise": choice("independent", "brownian"),
    "sampler.labels": choice("auto", "uniform", "training"),
    "sampler.clip": choice("none", "static", "dynamic"),
    "sampler.ema": text(),
    "sampler.checkpoint": choice("", "best"),
    "sampler.batch_size": integer(1, 65_536),
    # options of the networks, which mean the same in all of them but those in NETWORKS
    "model.stem": integer(1, 64),
    "model.width": integer(2, 4096),
    "model.multipliers": sequence(integer(1, 64), least=1, most=8),
    "model.blocks": integer(0, 64),
    "model.attention": sequence(integer(1, 4096)),
    "model.decoder_attention_once": flag(),
    "model.head_width": optional(integer(1, 4096)),
    "model.dropout": number(0, 1),
    "model.dropout_height": integer(0, 4096),
    "model.scale_shift": flag(),
    "model.updown": text(),
    "model.skip_scale": number(0, 10, above=True),
    "model.norm": optional(together(integer(0, 1024), number(0, 1, above=True))),
    "model.double_norm": flag(),
    "model.learn_variance": flag(),
    "model.extra_channels": integer(0, 1024),
    "model.input_fourier": sequence(integer(0, 16)),
    "model.augment": integer(0, 1024),
    "model.noise_features": integer(0, 65_536),
    "model.noise_multiplier": optional(integer(1, 64)),
    "model.embedding_multiplier": optional(integer(1, 64)),
    "model.progressive_input": choice("none", "skip", "residual"),
    "model.progressive_output": choice("none", "skip"),
    "model.resample_filter": sequence(integer(0, 1024), least=2, most=16),
    "model.label_balance": number(0, 1),
    "model.concat_balance": number(0, 1),
    "model.residual_balance": number(0, 1),
    "model.attention_balance": number(0, 1),
    "model.clip": number(0, 1e9),
    "model.uncertainty": integer(0, 65_536),
    "model.noise_embedding": text(),
    "model.fourier_scale": number(0, 1000, above=True),
    "model.second_time": flag(),
    "model.dtype": choice("float32", "bfloat16", "float16"),
    "model.remat": text(),
    "model.attention_impl": text(),
    "model.patch": integer(1, 256),
    "model.depth": integer(1, 128),
    "model.heads": integer(1, 256),
    "model.middle_depth": integer(0, 128),
    "model.linear": flag(),
    "model.sizes": integer(0, 4096),
    "model.mlp_ratio": number(0.25, 64),
    "model.scan_blocks": flag(),
    "model.rms_norm": flag(),
    "model.qk_norm": choice("none", "rms", "layer"),
    "model.swiglu": flag(),
    "model.dual_attention": sequence(integer(0, 127), most=128),
    "model.rope": flag(),
    "model.absolute_positions": flag(),
    "model.in_context": flag(),
    "model.shared_modulation": flag(),
    "model.registers": integer(0, 1024),
    "model.registers_from": integer(0, 127),
    "model.class_registers": flag(),
    "model.bottleneck": integer(0, 65_536),
    "model.aligned": integer(0, 65_536),
    "model.aligned_depth": integer(1, 128),
    "model.aligned_hidden": integer(1, 65_536),
    "model.text_mask": flag(),
    "model.position_grid": optional(together(integer(1, 4096), integer(1, 4096))),
    "model.latent_channels": integer(1, 1024),
    "model.quant": flag(),
    "model.latent": integer(1, 65_536),
    "model.hidden": sequence(integer(1, 65_536)),
    "model.log_scale": choice("shared", "pixel"),
    "model.pixel_layers": integer(0, 64),
    "model.pixel_width": integer(1, 1024),
    "model.pool": choice("attention", "mean"),
}

# of experiments.compare_families, whose configs hold others under family.NAME and recipe
COMPARISON: dict[str, Rule] = {
    "seeds": sequence(integer(0, SEEDS - 1), least=1, most=1000),
    "repeated": sequence(text(), most=1000),
    "images": integer(1, 10**12),
    "points": sequence(number(0, 1, above=True), least=1, most=64),
    "num": integer(10, 10**7),
    "features": text(empty=False),
    "likelihood": integer(0, 10**7),
    "end_logsnr": number(-20, 20),
    "families": sequence(text(), most=1000),
}

KEYS |= COMPARISON

NETWORKS: dict[str, dict[str, Rule]] = {
    "autoencoder.AutoencoderKL": {"model.attention": flag()},
    "unet.UNet": {"model.heads": integer(0, 256)},
    "sd_unet.SDUNet": {
        "model.depth": sequence(integer(0, 128), least=1, most=8),
        "model.heads": sequence(integer(1, 256), least=1, most=8),
    },
}


# configs inside the config of experiments.compare_families
_NESTED = re.compile(r"^(family\.[^.]+|recipe)\.(?=.)")

_SECTIONS = {key.rpartition(".")[0] for key in KEYS if "." in key}


# ---- keys
def own_key(key: str) -> str:
    """Remove the name of an inner config from a key: 'family.ddpm.model.width' -> 'model.width'.

    Args:
      key: a key of the whole config, with dots.
    """
    return _NESTED.sub("", key)


def rule(key: str, value: Any = None, network: str = "") -> Rule:
    """The rule of a key such as 'model.width'.

    Args:
      key: the key.
      value: its present value, which gives the rule of a key that the table does not list.
      network: config.model.name.
    """
    key = own_key(key)
    return NETWORKS.get(network, {}).get(key) or KEYS.get(key) or like(value)


def check_values(config: Any, *, complete: bool = False) -> None:
    """Refuse a config with a value of another type, out of its range or not finite.

    Args:
      config: a ConfigDict, or plain nested dictionaries. Tuples must be tuples (JSON has lists).
      complete: also refuse a config that lacks a key which every run has: for a file that others
        may have written.

    Raises:
      UserError: one line that names the key, the value and what is allowed.
    """
    values = dict(leaves(config))
    for key, value in values.items():
        _check_one(key, value, _network(key, values))
    if complete and (missing := [key for key in NEEDED if key not in values]):
        raise UserError(
            f"the config lacks {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}; "
            "it is damaged, or of another version"
        )


def read(key: str, text: str, present: Any = None, network: str = "") -> Any:
    """The value that --config.KEY=TEXT means.

    Args:
      key: the key.
      text: what is typed.
      present: the present value of the key.
      network: config.model.name.

    Raises:
      UserError: for text of another type than the key's, or a value out of its range.
    """
    wanted = rule(key, present, network)
    try:
        value = wanted.read(text)
    except (ValueError, OverflowError, SyntaxError, MemoryError, RecursionError):
        raise _wrong(key, text, wanted) from None
    if not wanted.accepts(value):
        raise _wrong(key, text, wanted)
    return value


def _check_one(key: str, value: Any, network: str) -> None:
    if own_key(key) in _SECTIONS:
        raise UserError(f"config.{key}={value!r:.60}: it must be a section with keys of its own")
    wanted = rule(key, value, network)
    if not wanted.accepts(value):
        raise _wrong(key, value, wanted)


def _wrong(key: str, value: Any, wanted: Rule) -> UserError:
    shown = value if type(value) is str and value.isprintable() else repr(value)
    if wanted.choices and type(value) is str:
        return unknown(f"value of config.{key}", f"{shown:.60}", wanted.choices)
    return UserError(f"config.{key}={shown:.60}: it must be {wanted.allows}")


def _network(key: str, values: dict[str, Any]) -> str:
    """The model.name of the config, inside another or not, to which the key belongs."""
    nested = _NESTED.match(key)
    name = values.get(f"{nested[0] if nested else ''}model.name", "")
    return name if type(name) is str else ""


def leaves(config: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Iterate over the keys of a config, with dots, and their values.

    Args:
      config: a ConfigDict, or plain nested dictionaries.
      prefix: the section of the config, with a dot after it.
      depth: the number of sections around it.

    Raises:
      UserError: for sections that are nested too deep.
    """
    if depth > DEPTH:
        raise UserError(f"config.{prefix[:60]}: sections are nested more than {DEPTH} deep")
    for key, value in config.items():
        # (where the table has a value, a section is wrong)
        if type(value) in (dict, ConfigDict) and f"{prefix}{key}" not in KEYS:
            yield from leaves(value, f"{prefix}{key}.", depth + 1)
        else:
            yield f"{prefix}{key}", value


# the keys that the config of every run has, whatever its version, network and optimizer
_LATER = dict(leaves(defaults.LATER | defaults.PARTS))
NEEDED = (
    *(
        key
        for key in KEYS
        if key not in _LATER | COMPARISON and not key.startswith(("model.", "optimizer."))
    ),
    "model.name",
    "optimizer.name",
    "optimizer.learning_rate",
)
