"""Cards: bounds by hand, and real ones for eight CPU devices."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_jax.planning import cards, devices, search
from tests import commands

ROOT = Path(__file__).parents[2]
GIB = 2.0**30


def test_roofline_by_hand():
    chip = devices.Chip("slate", flops=100.0, hbm=1.0, bandwidth=10.0, links=5.0)
    found = {
        "flops": 800.0,
        "model_flops": 600.0,
        "traffic": 30.0,
        "batch_size": 12,
        "collectives": {"all-reduce": {"sent": 4.0}, "all-gather": {"sent": 1.0}},
    }
    bound = cards.roofline(chip, 4, found)
    assert (bound["compute"], bound["memory"], bound["collectives"]) == (2.0, 3.0, 1.0)
    assert (bound["step"], bound["bound_by"], bound["images_per_second"]) == (3.0, "memory", 4.0)
    assert bound["mfu"] == 600 / (4 * 100 * 3)


def test_what_the_compiler_refuses():
    hbm = cards.Refused(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries "
        "(17.91G) exceeds available HBM (15.75G)."
    )
    assert (hbm.needs, hbm.of) == (17.91 * GIB, 15.75 * GIB)
    other = cards.Refused(
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. "
        "Used 512.00M of 0.25G hbm.\nExceeded"
    )
    assert (other.needs, other.of) == (GIB / 2, GIB / 4) and "\n" not in str(other)
    assert cards.Refused("RESOURCE_EXHAUSTED: something else").needs is None


def test_the_cheapest_fits():
    cards = {
        name: {"fits": fits, "flops": 1.0, "roofline": {"step": step}}
        for name, fits, step in (("a", False, 1.0), ("b", True, 3.0), ("c", True, 2.0))
    }
    assert search.cheapest(cards) == "c"
    assert search.cheapest({"a": cards["a"]}) is None


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    environ = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONWARNINGS": "error",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.planning.eight_devices", str(folder)],
        env=environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "answers.json").read_text())


def test_collectives_of_a_real_program(answers):
    found = {one["kind"]: one for one in answers["known"]}
    assert len(answers["known"]) == len(found) == 2
    assert found["all-reduce"] == {
        "kind": "all-reduce",
        "bytes": 16 * 4 * 4,
        "group": 8,
        "times": 5,
    }
    assert found["all-gather"] == {"kind": "all-gather", "bytes": 8 * 4 * 4, "group": 8, "times": 1}


WIDTH = 128

WEIGHTS = (
    6 * WIDTH**2 + 4 * WIDTH
)  # of `points`: two layers for the noise, one to modulate (twice as wide), two, and the ends


def parameters() -> int:
    """Count the parameters of `points`: weights, biases and two norms."""
    return WEIGHTS + (7 * WIDTH + 2) + 4 * WIDTH


def test_the_numbers_of_a_card_fit_together(answers):
    card, count = answers["plain"], parameters()
    assert (
        card["parameters"] == count
        and card["devices"] == 8
        and card["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}
    )
    assert (
        4 * 4 * count < card["state_bytes"] < 4 * 4 * count + 100
    )  # parameters, Adam's two, one EMA; and counters
    assert card["state_bytes"] == card["state_bytes_per_device"]
    batch = 2 * 2 * 4  # two points on each device
    assert abs(card["memory"]["arguments"] - card["state_bytes"] - batch) < 100
    assert card["memory"]["total"] == sum(
        card["memory"][part] for part in ("arguments", "temporaries", "output", "code")
    )
    reduced = card["collectives"]["all-reduce"]["bytes"]
    assert 4 * count <= reduced < 4 * count + 1000  # the gradient, the losses
    assert (
        card["traffic"] > 8 * 4 * count
    )  # parameters, moments and EMA are at least read and written
    assert (
        card["fits"] is None
        and card["roofline"] is None
        and card["refused"] is None
        and card["compile_seconds"] > 0
    )


def test_the_flops_of_a_card_by_hand(answers):
    """Two for each weight and example, thrice; but the first layers of noise and of points need no
    gradient by their input.
    """
    assert answers["plain"]["flops"] == 16 * 2 * (3 * WEIGHTS - WIDTH**2 - 2 * WIDTH)


def test_a_sharded_card(answers):
    """The same work; the three large leaves beyond the noise's own, 4 WIDTH^2 in all, each in eight
    parts.
    """
    plain = answers["plain"]
    card = next(card for card in answers["cards"].values() if card["mesh"]["fsdp"] == 8)
    assert card["flops"] == plain["flops"] and card["state_bytes"] == plain["state_bytes"]
    assert card["state_bytes_per_device"] == card["state_bytes"] - 4 * 4 * 4 * WIDTH**2 * 7 // 8
    batch = [c["memory"]["arguments"] - c["state_bytes_per_device"] for c in (card, plain)]
    assert abs(batch[0] - batch[1]) < 100
    assert (
        card["collectives"]["all-gather"]["bytes"]
        > 4 * 4 * WIDTH**2
        > plain["collectives"]["all-gather"]["bytes"]
    )


def test_no_room_is_an_answer(answers):
    card = answers["too large"]
    assert card["fits"] is False and card["memory"] is None
    assert card["refused"].startswith("the state alone needs 1.53 MiB of 0.00 MiB")
    assert "fits:           NO" in answers["text"] and "the state alone needs" in answers["text"]
    assert (
        f"{parameters():,} parameters" in answers["text"]
        and "HBM per device: arguments" in answers["text"]
    )


def test_search_finds_what_fits(answers):
    """One byte less than the plain step takes: something else must be found, and no card is made
    twice.
    """
    cards = answers["cards"]
    assert answers["reported"] == list(cards) and answers["again"]
    first = cards[answers["reported"][0]]
    assert first["fits"] is False and first["memory"]["total"] == answers["tight"] + 1
    best = cards[answers["cheapest"]]
    assert best["fits"] and best["memory"]["total"] <= answers["tight"]
    assert best["flops"] == min(card["flops"] for card in cards.values() if card["fits"])


def test_what_cannot_be_trained_or_does_not_fit_the_devices_is_refused(answers):
    batch, mesh, message, objective = answers["refused"]
    assert batch.startswith("config.data.batch_size=20 does not divide") and "8 devices" in batch
    assert (
        mesh.startswith("mesh ")
        and "does not fit 8 devices" in mesh
        and message.startswith("config.parallel=pmap")
    )
    assert objective.startswith("config.objective=vdm.vdm() has a probability of gray levels")


def test_the_command(tmp_path):
    line = ["plan", "--config=configs/toy.py:vp", "--config.model.width=8"]
    out = tmp_path / "plan.json"
    done = commands.run(*line, "--topology=cpu:2", "--json", f"--out={out}")
    assert done.returncode == 0, done.stderr
    kept = json.loads(out.read_text())
    assert kept == json.loads(done.stdout)
    assert (
        kept["card"]["devices"] == 2
        and kept["config"]["model"]["width"] == 8
        and "commit" in kept["provenance"]
    )
    done = commands.run(*line, "--topology=cpu:2", "--json", "--nocompiled")
    counted, compiled = json.loads(done.stdout)["card"], kept["card"]
    assert counted["memory"] is None and counted["fits"] is None
    for key in ("parameters", "state_bytes", "flops"):
        assert counted[key] == compiled[key] > 0
    done = commands.run(*line, "--topology=cpu:2", "--nocompiled", "--search")
    assert (done.returncode, "--search compares" in done.stderr) == (2, True)
    done = commands.run(*line, "--topology=v5e")
    assert (
        done.returncode == 2
        and done.stderr.startswith("error: --topology=v5e")
        and len(done.stderr.splitlines()) == 1
    )


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="without libtpu: pip install 'diffusion_jax[tpu]'",
)
def test_a_card_of_a_tpu_slice():
    config = ["--config=configs/imagenet256_latent.py:flow,S", "--config.model.depth=1"]
    line = [sys.executable, "-m", "experiments.plan", *config, "--topology=v5e:2x4", "--json"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    card = json.loads(done.stdout)["card"]
    assert card["chip"] == "TPU v5e" and card["devices"] == 8 and card["fits"] is True
    assert card["memory"]["arguments"] > card["state_bytes_per_device"]
    reduced = card["collectives"]["all-reduce"]["bytes"]  # of ten steps in a loop, one
    assert reduced == pytest.approx(4 * card["parameters"], rel=0.01)
    assert 0 < card["roofline"]["mfu"] < 1
