"""experiments.benchmark --parts=peers with peers of a few lines: turns, the table, failures."""

from __future__ import annotations

import json
import sys

import jax
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.studies.benchmark import command as benchmark
from diffusion_jax.studies.benchmark import comparison, peer_presets, peers
from diffusion_jax.studies.benchmark.peer_presets import PeerPreset
from diffusion_jax.studies.benchmark.peer_process import PeerFailed, running_peer
from tests import commands
from tests.experiments.small_runs import ROOT
from tests.markdown import squeezed
from tests.test_layering import imports

PEERS = ROOT / "experiments" / "peers"

HEAD = f"""import os, sys, time
sys.path.insert(0, {str(PEERS)!r})
from line_protocol import Peer, serve
def prepare(settings):
    print("talk of the program")
    facts = {{"parameters": 7, "device": "CPU", "versions": {{"torch": "0.1"}}, "programs": {{
        name: {{"variant": settings["variants"][-1], "steady": 1.0, "compile_seconds": 2.5,
               "tried": {{"float32": 1.0}}}} for name in ("train", "forward", "ddim")}}}}
    return Peer(facts, dict.fromkeys(("train", "forward", "ddim"), step), lambda: None, lambda: 0.5)
"""
SCRIPTS = {
    "good.py": "def step(): time.sleep(0.002)\n",
    "dies.py": "def step():\n    sys.stderr.write('RuntimeError: no luck'); os._exit(3)\n",
    "full.py": "def step(): raise RuntimeError('CUDA out of memory. Tried to allocate')\n",
    "silent.py": "def step(): time.sleep(600)\n",
    "lacks.py": "import no_such_package\n",
    "other.py": """def step(): pass
plain = prepare
def prepare(settings): return plain(settings)._replace(memory=lambda: "much")
""",
}


def preset(script: str, **changes) -> PeerPreset:
    return PeerPreset(
        title="Theirs",
        script=script,
        config="configs/toy.py:vp",
        changes={"model.width": "8", "model.blocks": "1"},
        shape=(2,),
        classes=0,
        batch=4,
        variants=("float32", "float32+compile"),
        programs=("train",),
        network=lambda experiment: {"width": experiment.options["width"]},
        differs="nothing",
    )._replace(**changes)


PRESETS = {
    "missing": preset("good.py", url="https://example.org/theirs", file="models.py"),
    "good": preset("good.py", programs=("train", "forward", "ddim")),
    "dies": preset("dies.py"),
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scripts")
    for name, body in SCRIPTS.items():
        (folder / name).write_text(HEAD + body + "serve(prepare)\n")
    return folder


@pytest.fixture(scope="module")
def compared(scripts):
    """(the part, the numbers of rows that were kept) of three peers, one of which can run."""
    settings = peers.PeerSettings(
        dict.fromkeys(PRESETS, ""), "cpu", repeats=3, nfe=2, logs=scripts, scripts=scripts
    )
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer_presets, "PRESETS", {"cpu": PRESETS})
        patch.setattr(peers, "TURN", 0.02)  # several steps of ours, which donate
        part = peers.peers(settings, lambda part: kept.append(len(part.rows)))
    return part, kept


def test_both_sides_have_a_row_and_ours_the_ratio(compared):
    part, kept = compared
    assert kept == [0, 6, 6]  # nothing that was measured is lost with a peer that dies
    assert [row["what"] for row in part.rows] == [
        "train, Theirs",
        "train, diffusion_jax",
        "forward, Theirs",
        "forward, diffusion_jax",
        "ddim, Theirs",
        "ddim, diffusion_jax",
    ]
    for theirs, ours in (part.rows[:2], part.rows[2:4], part.rows[4:]):
        assert len(theirs["seconds"]) == len(ours["seconds"]) == 3
        quotients = [a / b for a, b in zip(theirs["seconds"], ours["seconds"], strict=True)]
        assert ours["ratio"] == pytest.approx(sorted(quotients)[1]) and "ratio" not in theirs
        assert ours["ratio_low"] <= ours["ratio"] <= ours["ratio_high"]
        same = theirs["mfu_percent"] / ours["mfu_percent"]  # the FLOPs of one network
        assert same == pytest.approx(theirs["images_per_second"] / ours["images_per_second"])
        assert theirs["images_per_second"] == pytest.approx(4 / sorted(theirs["seconds"])[1])
        assert min(theirs["seconds"]) >= 0.002
    theirs, ours = part.rows[:2]
    assert (theirs["parameters"], theirs["memory_gib"], theirs["compile_seconds"]) == (7, 0.5, 2.5)
    assert theirs["variant"] == "float32+compile" and theirs["versions"] == {"torch": "0.1"}
    assert ours["parameters"] > 50 and ours["memory_gib"] > 0.05 and ours["compile_seconds"] > 0


def test_what_did_not_run_is_one_line_with_the_remedy(compared):
    lines = compared[0].facts.splitlines()
    assert lines[1] == (
        "missing was not measured: it needs a checkout; git clone https://example.org/theirs "
        "FOLDER, and write --peers='missing=FOLDER'"
    )
    assert lines[2].startswith("good: Theirs (torch 0.1) on CPU, against configs/toy.py:vp")
    assert "Different: nothing." in lines[2]
    assert lines[3].startswith("dies was not measured: ended with status 3: RuntimeError: no luck")


def test_the_rows_can_be_compared_with_those_of_another_run(compared):
    record = {"peers": {"rows": compared[0].rows}, "provenance": {}}
    comparison.earlier(json.loads(json.dumps(record)), "file")
    rows = comparison.compare(record, record)
    assert [row["verdict"] for row in rows] == ["the same"] * 6


@pytest.mark.parametrize(
    "python, script, patience, said",
    [
        ("no_such_python", "good.py", 600, "--peer_python=no_such_python does not start"),
        (sys.executable, "lacks.py", 600, "has no package no_such_package; install it there, or"),
        (sys.executable, "full.py", 600, "out of memory.*use a smaller --peer_batch"),
        (sys.executable, "silent.py", 0.2, "gave no answer in 0 s; .*log has its messages"),
        (sys.executable, "other.py", 600, "an answer of other.py is damaged: .*memory_gib"),
    ],
)
def test_a_peer_that_fails(scripts, python, script, patience, said):
    settings, log = {"variants": ["float32"]}, scripts / f"{script}.log"
    with (
        pytest.raises(PeerFailed, match=said),
        running_peer(python, scripts / script, settings, log, patience=patience) as peer,
    ):
        peer.run("train", 1)


def test_a_slow_peer_is_waited_for_and_ends_with_the_block(scripts):
    log = scripts / "slow.log"
    with running_peer(
        sys.executable, scripts / "good.py", {"variants": ["a"]}, log, patience=600
    ) as peer:
        seconds, gib = peer.run("train", 20)
    assert seconds >= 20 * 0.002 and gib == 0.5
    assert log.read_text() == "talk of the program\n"  # which is not among the answers


def test_names_of_peers_and_presets():
    assert peers.parse_peers("edm=/a b; diffusers") == {"edm": "/a b", "diffusers": ""}
    with pytest.raises(UserError, match="unknown peer 'edn'.*did you mean 'edm'"):
        peers.parse_peers("edn=/a")
    with pytest.raises(UserError, match="--peers is empty; name some of edm, adm, dit, diffusers"):
        peers.parse_peers(" ; ")
    assert peers.preset_of("", share=False) == "cpu"
    with pytest.raises(UserError, match="unknown --preset 'gpu'"):
        peers.preset_of("gpu", share=False)


@pytest.mark.parametrize(
    "kind, name, parameters",
    [
        # of the programs themselves: NVlabs/edm 55,734,147 and 279,631,875, whose embeddings of the
        # labels have 4,224 and 768 numbers less; DiT-XL/2 and google/ddpm-cifar10-32 have the same
        ("accelerator", "edm", 55_734_147 + 4_224),
        ("accelerator", "adm", 279_631_875 + 768),
        ("accelerator", "dit", 674_834_720),
        ("accelerator", "diffusers", 35_746_307),
        ("cpu", "diffusers", 1_623_169),
    ],
)
def test_presets_have_the_size_of_the_other_program(kind, name, parameters):
    preset = peer_presets.PRESETS[kind][name]
    experiment = peer_presets.subject_of(name, preset, 2).experiment
    shapes = jax.eval_shape(lambda: experiment.kind.init(experiment, jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
    assert experiment.data.batch_size == 2 and json.dumps(preset.network(experiment))


def test_every_preset_has_every_peer_and_a_batch_for_samplers():
    assert {tuple(presets) for presets in peer_presets.PRESETS.values()} == {
        ("edm", "adm", "dit", "diffusers")
    }
    assert benchmark.BATCHES.keys() == peer_presets.PRESETS.keys()
    assert all(len(preset.variants) == 1 for preset in peer_presets.QUICK.values())


def test_the_scripts_of_peers_stand_alone():
    files = sorted(PEERS.glob("*.py"))
    own = {file.stem for file in files}
    assert {preset.script for preset in peer_presets.CPU.values()} < {file.name for file in files}
    for file in files:
        assert not {name.partition(".")[0] for name in imports(file)} & {
            "diffusion_jax",
            "configs",
            "experiments",
            "jax",
        }
        assert not own & sys.stdlib_module_names and file.stem != "diffusers"


def test_the_command_says_what_is_missing(tmp_path):
    out = tmp_path / "peers.json"
    done = commands.run(
        "benchmark", "--parts=peers", f"--peers=edm={tmp_path}", f"--out={out}", "--repeats=1"
    )
    assert done.returncode == 2 and f"--peers=edm={tmp_path} has no training" in done.stderr
    assert "error: no peer was measured; edm was not measured" in done.stderr
    assert json.loads(out.read_text())["peers"]["rows"] == []
    assert "## peers" in squeezed(done.stdout)
