"""The keys that a config may lack, with the values that mean what their absence means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

# Keys that workdirs of earlier versions lack.
LATER: Mapping[str, Any] = {
    "init_from": "",
    "text": {"encoder": "", "max_length": 48, "folder": ""},
    "distill": {"teacher": "", "guidance": None},
    "data": {
        "data_dir": "",
        "captions": "",
        "layout": "",
        "value_range": (),
        "normalization": "standard",
        "label": "",
        "categories": (),
        "exclude": (),
        "fit": "crop",
        "rate": 0,
        "length": 0.0,
        "sound": "waveform",
        "pattern": "",
        "class_fields": (),
        "test_where": "",
        "condition": "",
        "dense": "",
        "buckets": (),
        "channel_axis": "last",
        "limit_bad": -1,
        "augment": 0.0,
        "class_balanced": False,
    },
    "repa": {"features": "", "weight": 0.5},
    "ema": {"powers": (), "snapshot_every": 500},
    "training": {
        "first_shapes": 0,
        "keep_every": 0,
        "best": "",
        "on_nonfinite": "stop",
        "loss_scale": "",
        "trackers": ("tensorboard",),
    },
    "sampler": {"noise": "independent", "guide": "cfg()", "checkpoint": "", "labels": "auto"},
}

ALWAYS = ("noise", "guide")  # of config.sampler

# Keys that only some kinds of model have.
PARTS: Mapping[str, Any] = {"discriminator": "", "latent": {"autoencoder": "", "recipe": ""}}


def filled(given: Mapping[str, Any], defaults: Mapping[str, Any] = LATER) -> dict[str, Any]:
    """The config as nested dictionaries, with `defaults` where it lacks a key.

    Args:
      given: nested dictionaries.
      defaults: nested dictionaries.

    Returns:
      A new dictionary. Sections stay in the order of `given`; new keys follow.
    """
    result = dict(given)
    for key, value in defaults.items():
        if key not in result:
            result[key] = value
        elif type(value) is dict:
            result[key] = filled(result[key], value)
    return result


def recorded(
    config: Mapping[str, Any], stored: Mapping[str, Any], defaults: Mapping[str, Any] = LATER
) -> dict[str, Any]:
    """The config by which results are kept: without new keys that a workdir of old does not store.

    So the results of earlier versions are found again, whose hashes do not know these keys.

    Args:
      config: nested dictionaries.
      stored: the content of the workdir's config.json.
      defaults: the keys that workdirs of earlier versions lack; `ALWAYS` were recorded even there.

    Returns:
      A new dictionary without those of `defaults` that are not stored and have their default value.
    """
    result = dict(config)
    for key in defaults.keys() & result.keys():
        if isinstance(defaults[key], Mapping) and key in stored:
            result[key] = recorded(result[key], stored[key], defaults[key])
        elif key not in stored and key not in ALWAYS and result[key] == defaults[key]:
            del result[key]
    return result


def with_defaults(config: ConfigDict) -> ConfigDict:
    """Copy a config and give every key of `LATER` and `PARTS` a value.

    Args:
      config: a config of this or of an earlier version; values that it has stay.
    """
    return ConfigDict(filled(filled(config.to_dict(), LATER), PARTS))
