"""The table of types and ranges of config values: it knows every key that there is, and refuses
what cannot work.
"""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest

from configs import base, digits
from diffusion_jax.assembly import components, config_files, config_schema
from diffusion_jax.assembly.build import members
from diffusion_jax.core.errors import UserError

FILES = sorted(
    p.stem for p in (Path(__file__).parents[2] / "configs").glob("[!_]*.py") if p.stem != "base"
)


@pytest.mark.parametrize("file", FILES)
def test_every_config_passes_and_every_key_of_it_has_a_rule(file):
    module = importlib.import_module(f"configs.{file}")
    for variant in getattr(module, "DATA", None) or getattr(module, "VARIANTS", base.VARIANTS):
        config = module.get_config(variant)
        config_schema.check_values(config, complete=file != "families")
        known = {config_schema._NESTED.sub("", key) for key, _ in config_schema.leaves(config)}
        of_families = ("about.", "cost.")  # a text and a number for each family
        known = {key for key in known if not key.startswith(of_families)}
        assert known <= config_schema.KEYS.keys()


@pytest.mark.parametrize("name", members(components.MODELS))
def test_every_option_of_every_network_has_a_rule(name):
    for option, value in base.network(name).items():
        key = f"model.{option}"
        assert key in config_schema.KEYS
        assert config_schema.rule(key, network=name).accepts(value), (name, option, value)


NUMBERS = [
    key
    for key, rule in config_schema.KEYS.items()
    if rule.accepts(1) or rule.accepts(0.5) or rule.accepts((1,))
]


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf", "1e300", "9" * 400, "[]", "{}", "None,None"])
def test_numbers_must_be_finite_and_of_a_size_that_exists(key, bad):
    if bad == "[]" and config_schema.KEYS[key].accepts(()):
        return
    with pytest.raises(UserError, match=rf"config\.{key}=.*must be"):
        config_schema.read(key, bad)


WRONG = {  # key: values in Python or JSON that another program or hand may have written
    "data.batch_size": (0, -4, 2.0, True, "8", None, (), 10**9),
    "label_dropout": (10, -0.1, math.nan, "0.1", True),
    "training.steps": (-5, 1e3, math.inf),
    "training.keep": (0,),
    "training.steps_per_call": (0, 10**6),
    "ema.ramp": (math.nan, -1.0),
    "ema.halflives": ((0,), (math.inf,), (-5.0,), 5000, ("5k",), ((1,),)),
    "optimizer.learning_rate": (0.0, -1e-3, math.nan, math.inf),
    "optimizer.b2": (1.0, -0.1),
    "model.multipliers": ((1.5,), (), (0,), (1,) * 50, "(1,)", 1),
    "model.norm": ((8,), (8, 0.0), (-1, 1e-6), (8, math.nan), 8),
    "model.dropout": (1.5, -0.1),
    "model.width": (0, 10**9),
    "model.attention": (None, True),
    "sampler.nfe": (0, 10**12),
    "sampler.guidance": (-1.0, math.inf),
    "sampler.clip": ("statik", None, 0),
    "seed": (-1, 2**32, 2**63),
    "data.workers": (-1, 10**6),
    "data.num_classes": (10**12,),
    "data.path": (5, "a\0b", None),
    "process": ("", "x" * 10**6, {"name": "VP"}),
}


@pytest.mark.parametrize("key", WRONG)
def test_a_value_out_of_its_range_is_one_line_with_key_value_and_what_is_allowed(key):
    for value in WRONG[key]:
        section, _, name = key.rpartition(".")
        with pytest.raises(UserError) as caught:
            config_schema.check_values({section: {name: value}} if section else {name: value})
        line = str(caught.value)
        assert key in line and "\n" not in line and len(line) < 300, line


READ = {
    ("training.steps", "1e3"): 1000,
    ("training.steps", "250"): 250,
    ("model.multipliers", "(1,2)"): (1, 2),
    ("model.multipliers", "1,2"): (1, 2),
    ("model.multipliers", "[1, 2]"): (1, 2),
    ("model.multipliers", "2"): (2,),
    ("model.attention", "()"): (),
    ("model.norm", "None"): None,
    ("model.norm", "(8, 1e-6)"): (8, 1e-6),
    ("model.head_width", "None"): None,
    ("optimizer.weight_decay", "None"): None,
    ("optimizer.learning_rate", "1e-3"): 1e-3,
    ("data.flip", "true"): True,
    ("families", "vae,ddpm"): ("vae", "ddpm"),
    ("family.ddpm.model.width", "8"): 8,
    ("process", "schedules.VP(beta_max=16.0)"): "schedules.VP(beta_max=16.0)",
}


@pytest.mark.parametrize("key, text", READ)
def test_texts_of_the_command_line_become_values_of_the_key_s_type(key, text):
    assert config_schema.read(key, text) == READ[key, text]


def test_the_limit_that_is_named_is_the_one_that_counts():
    with pytest.raises(UserError, match="b2=1.0: it must be None or a number from 0 to 0.9999999"):
        config_schema.read("optimizer.b2", "1.0")


def test_a_network_without_the_keys_of_the_config_is_refused_by_name():
    config = digits.get_config("vp").lock()
    words = "config.model.name=dit.DiT: the config is of another network, whose keys attention"
    with pytest.raises(UserError, match=words):
        config_files.apply(config, [("model.name", "DiT"), ("model.width", "8")])


def test_the_same_option_may_differ_between_networks():
    assert (
        config_schema.read("model.attention", "true", network="autoencoder.AutoencoderKL") is True
    )
    with pytest.raises(UserError, match="model.attention=True: it must be a tuple"):
        config_schema.check_values({"model": {"name": "unet.UNet", "attention": True}})


def test_keys_that_are_not_listed_must_be_plain_and_finite():
    config_schema.check_values({"model": {"name": "mine.Net", "rank": 4, "rates": (0.1, (1, 2))}})
    for bad in (math.nan, (1.0, math.inf), object(), "a\0b", 10**40):
        with pytest.raises(UserError, match=r"config\.model\.rank="):
            config_schema.check_values({"model": {"name": "mine.Net", "rank": bad}})
    with pytest.raises(UserError, match="model.rank=x: it must be"):
        config_schema.read("model.rank", "x", present=4)


@pytest.mark.parametrize("damage", [{"sampler": []}, {"data": None}, {"training": 5}])
def test_sections_must_be_sections(damage):
    config = digits.get_config("vp").to_dict() | damage
    with pytest.raises(UserError, match=f"config.{next(iter(damage))}=.*must be a section"):
        config_schema.check_values(config)


def test_a_file_that_lacks_what_every_run_has_is_damaged():
    config = digits.get_config("vp").to_dict()
    del config["process"], config["training"]["steps"]
    config_schema.check_values(config)
    with pytest.raises(UserError, match="lacks process, training.steps; it is damaged"):
        config_schema.check_values(config, complete=True)


def test_deep_nesting_is_refused_and_does_not_recurse():
    deep = {}
    for _ in range(5000):
        deep = {"a": deep}
    with pytest.raises(UserError, match="nested more than"):
        config_schema.check_values(deep)
