"""Keys that configs of earlier versions lack."""

from __future__ import annotations

from ml_collections import ConfigDict

from diffusion_jax.assembly import defaults

OLD = {
    "data": {"name": "digits"},
    "ema": {},
    "training": {"steps": 3, "keep_every": 0},
    "sampler": {"nfe": 5},
}


def test_results_are_recorded_by_the_keys_that_the_workdir_stores():
    """Noise and guide are recorded as well, also of workdirs that lack them."""
    kept = defaults.recorded(ConfigDict(defaults.filled(OLD)).to_dict(), OLD)
    always = {"noise": "independent", "guide": "cfg()"}
    assert kept == OLD | {"sampler": {"nfe": 5} | always}


def test_a_new_key_that_was_changed_is_recorded():
    changed = defaults.filled(OLD)
    changed["data"]["layout"], changed["init_from"] = "flat", "runs/a"
    kept = defaults.recorded(changed, OLD)
    assert kept["data"] == {"name": "digits", "layout": "flat"} and kept["init_from"] == "runs/a"
