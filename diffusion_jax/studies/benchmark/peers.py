"""The benchmark against other programs, each in a process of its own that takes turns with ours.

Both sides have the same network, batch and precision (peer_presets.py says what differs), on one
device. A peer that cannot run is one line, and the others are still measured.
"""

from __future__ import annotations

import datetime
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.assembly.config_files import ROOT
from diffusion_jax.core import provenance
from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.parsing import expand_home
from diffusion_jax.studies.benchmark import peer_presets
from diffusion_jax.studies.benchmark.peer_presets import PeerPreset
from diffusion_jax.studies.benchmark.peer_process import (
    PATIENCE,
    PeerFailed,
    RunningPeer,
    running_peer,
)
from diffusion_jax.studies.benchmark.peer_programs import OwnProgram, own_programs
from diffusion_jax.studies.benchmark.timing import (
    BenchmarkSubject,
    Part,
    spread,
    take_turns,
    timed,
)
from diffusion_jax.studies.benchmark.training import peak_flops

SCRIPTS = ROOT / "experiments" / "peers"
TURN = 0.5  # seconds of a turn, at least
OURS = "diffusion_jax"
COLUMNS = {
    "config": "peer",
    "program": "what",
    "side": "by",
    "parameters": "parameters",
    "batch": "batch",
    "variant": "precision and variant",
    "images_per_second": "images/s",
    "milliseconds": "a step, ms",
    "spread_percent": "spread, %",
    "mfu_percent": "MFU, %",
    "memory_gib": "memory, GiB",
    "compile_seconds": "compile, s",
    "ratio": "ours / theirs",
    "ratio_low": "quartiles, from",
    "ratio_high": "to",
}


class PeerSettings(NamedTuple):
    """The settings of the part.

    Attributes:
      peers: name -> the folder of its checkout, or '' for a package.
      preset: one of peer_presets.PRESETS.
      python: the Python that runs the peers.
      batch: examples in a step; 0 is each preset's own number.
      repeats: rounds in which both sides take a turn.
      nfe: network evaluations of the sampler.
      logs: the folder for the messages of the peers.
      scripts: the folder of the peers' scripts.
      patience: seconds until a silent peer is given up.
    """

    peers: Mapping[str, str]
    preset: str
    python: str = sys.executable
    batch: int = 0
    repeats: int = 20
    nfe: int = 10
    logs: Path = Path()
    scripts: Path = SCRIPTS
    patience: float = PATIENCE


def parse_peers(text: str) -> dict[str, str]:
    """Parse 'edm=FOLDER;diffusers' -> {'edm': 'FOLDER', 'diffusers': ''}.

    Args:
      text: the value of --peers: names, with the folders of their checkouts.

    Raises:
      UserError: for an unknown name.
    """
    found = {}
    for entry in (part.strip() for part in text.split(";") if part.strip()):
        name, _, folder = entry.partition("=")
        if name not in peer_presets.ACCELERATOR:
            raise unknown("peer", name, peer_presets.ACCELERATOR)
        found[name] = expand_home("peers", folder) if folder else ""
    if not found:
        raise UserError(
            f"--peers is empty; name some of {', '.join(peer_presets.ACCELERATOR)}, separated by ;"
        )
    return found


def preset_of(name: str, share: bool) -> str:
    """The preset of --preset, where '' is the one for this platform. It starts JAX.

    Args:
      name: one of peer_presets.PRESETS, or ''.
      share: let JAX take the memory of a GPU as it needs it, so that a peer has some, unless the
        user has set that variable.

    Raises:
      UserError: for an unknown name.
    """
    if share:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if name and name not in peer_presets.PRESETS:
        raise unknown("--preset", name, peer_presets.PRESETS)
    return name or ("cpu" if jax.default_backend() == "cpu" else "accelerator")


def peers(settings: PeerSettings, keep: Callable[[Part], Any]) -> Part:
    """Compare with every peer.

    Args:
      settings: what is compared.
      keep: is called with what is there after each peer, so that nothing is lost.

    Returns:
      Two rows for each program, theirs and ours with the ratio.

    Raises:
      UserError: on more than one device, or on a TPU.
    """
    if jax.device_count() > 1 or jax.default_backend() == "tpu":
        raise UserError(
            f"--parts=peers compares on one CPU or one GPU, and here are {jax.device_count()} "
            f"devices ({jax.default_backend()}); on several GPUs set CUDA_VISIBLE_DEVICES=0"
        )
    found = Part([], COLUMNS, _machine(settings))
    for name in settings.peers:
        try:
            part = _compare_with(name, settings)
            found = found._replace(rows=found.rows + part.rows)
            line = part.facts
        except PeerFailed as failure:
            line = f"{name} was not measured: {failure}"
            print(line, file=sys.stderr, flush=True)
        found = found._replace(facts=f"{found.facts}\n{line}")
        keep(found)
    return found


def _compare_with(name: str, settings: PeerSettings) -> Part:
    """Compare with one peer.

    Args:
      name: the name of the peer.
      settings: what is compared.

    Returns:
      Its rows, and a sentence about both sides.

    Raises:
      PeerFailed: if the peer cannot run; the text names the remedy.
    """
    preset = peer_presets.PRESETS[settings.preset][name]
    folder = _checkout(name, preset, settings.peers[name])
    subject = peer_presets.subject_of(name, preset, settings.batch)
    on_cpu = jax.default_backend() == "cpu"
    arguments = {
        "checkout": folder,
        "network": preset.network(subject.experiment),
        "batch": subject.experiment.data.batch_size,
        "shape": preset.shape,
        "nfe": settings.nfe,
        "variants": list(preset.variants),
    }
    with running_peer(
        settings.python,
        settings.scripts / preset.script,
        arguments,
        settings.logs / f"peer_{name}.log",
        environment={"CUDA_VISIBLE_DEVICES": ""} if on_cpu else None,
        patience=settings.patience,
    ) as peer:
        if not on_cpu and peer.facts["device"] == "CPU":
            raise PeerFailed(
                f"the PyTorch of {settings.python} sees no GPU; install one that does, or name "
                "another Python with --peer_python=PATH"
            )
        ours = own_programs(subject, preset.programs, settings.nfe)
        rows = []
        for program, own in ours.items():
            rows += _turns(subject, preset, program, own, peer, settings.repeats)
    said = [f"{key} {value}" for key, value in peer.facts["versions"].items()]
    said += [peer.facts["note"]] if "note" in peer.facts else []
    changes = ", ".join(f"{key}={value}" for key, value in preset.changes.items())
    facts = (
        f"{name}: {preset.title} ({', '.join(said)}) on {peer.facts['device']}, against "
        f"{preset.config} ({changes or 'as it is'}). Different: {preset.differs}."
    )
    return Part(rows, COLUMNS, facts)


def _checkout(name: str, preset: PeerPreset, folder: str) -> str:
    """The folder of a checkout, or '' for a package; PeerFailed where it is not there."""
    if not preset.url:
        return ""
    if not (Path(folder) / preset.file).is_file() or not folder:
        where = f"--peers={name}={folder} has no {preset.file}" if folder else "it needs a checkout"
        raise PeerFailed(
            f"{where}; git clone {preset.url} FOLDER, and write --peers='{name}=FOLDER'"
        )
    return str(Path(folder).resolve())


def _machine(settings: PeerSettings) -> str:
    """The hardware, the versions and the date, in words."""
    stamp, (peak, source) = provenance.provenance(), peak_flops()
    device = stamp["devices"]["kind"] if jax.default_backend() != "cpu" else stamp["cpu"]["model"]
    return (
        f"{device}, {stamp['cpu']['cores']} cores, jax {stamp['versions']['jax']}, "
        f"{datetime.date.today()}, preset {settings.preset}. Both sides take turns, "
        f"{settings.repeats} of each; medians, and of theirs the fastest variant. MFU: the "
        "products and convolutions of our network as written, against "
        f"{peak / 1e12:.3g} TFLOP/s, {source}. Memory: what a program holds on the device; on a "
        "CPU the peak of the process."
    )


def repeated(call: Callable[[], Any], calls: int) -> Any:
    """Call a function several times; the last result, as a train step donates those before it.

    Args:
      call: the function.
      calls: how often, at least once.
    """
    for _ in range(calls - 1):
        call()
    return call()


def _turns(
    subject: BenchmarkSubject,
    preset: PeerPreset,
    program: str,
    own: OwnProgram,
    peer: RunningPeer,
    repeats: int,
) -> list[dict[str, Any]]:
    """Let both sides take turns at a program: a row for theirs, and one for ours."""
    about, used = peer.facts["programs"][program], []
    calls = max(1, math.ceil(TURN / timed(own.call)))
    steps = max(1, math.ceil(TURN / about["steady"]))

    def ours() -> float:
        return timed(lambda: repeated(own.call, calls)) / (calls * own.steps)

    def theirs() -> float:
        seconds, gib = peer.run(program, steps)
        used.append(gib)
        return seconds / steps

    found = take_turns({preset.title: theirs, OURS: ours}, repeats, lambda turn: turn())
    ratios = np.divide(found[preset.title], found[OURS])
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
    sides = {
        preset.title: {
            "variant": about["variant"],
            "parameters": peer.facts["parameters"],
            "memory_gib": max(used),
            "compile_seconds": about["compile_seconds"],
            "tried": about["tried"],
            "versions": peer.facts["versions"],
        },
        OURS: {
            "variant": subject.experiment.options.get("dtype", "float32"),
            "parameters": own.parameters,
            "memory_gib": own.memory_gib,
            "compile_seconds": own.compile_seconds,
            "ratio": middle,
            "ratio_low": low,
            "ratio_high": high,
        },
    }
    batch, peak = subject.experiment.data.batch_size, peak_flops()[0]
    return [
        {
            "config": subject.title,
            "what": f"{program}, {side}",
            "program": program,
            "side": side,
            "batch": batch,
            "seconds": found[side],
            "images_per_second": batch / median(found[side]),
            "milliseconds": 1e3 * median(found[side]),
            "spread_percent": 100 * spread(found[side]),
            "mfu_percent": 100 * own.work / (median(found[side]) * peak),
            **more,
        }
        for side, more in sides.items()
    ]
