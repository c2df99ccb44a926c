"""What training, its loop, the data pipeline and the samplers cost on this machine, as a command.

The part 'peers' compares with other programs and has configs of its own (peers.py).

To add a part: a function (subject, settings) -> Part in PARTS, and its name in comparison.PARTS;
its rows have 'config' and 'what', by which they are compared, and 'seconds', all that was measured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion_jax.assembly import config_files, experiment, outputs
from diffusion_jax.core import files, parsing, provenance
from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.report import tables
from diffusion_jax.studies.benchmark import comparison
from diffusion_jax.studies.benchmark import peers as benchmark_peers
from diffusion_jax.studies.benchmark.kernels import kernels
from diffusion_jax.studies.benchmark.loop import loop
from diffusion_jax.studies.benchmark.peers import PeerSettings, parse_peers
from diffusion_jax.studies.benchmark.sampling import SAMPLERS, sampling
from diffusion_jax.studies.benchmark.timing import (
    BenchmarkSettings,
    BenchmarkSubject,
    Part,
    dataset_for,
)
from diffusion_jax.studies.benchmark.training import pipeline, training

# images at once, of samplers
BATCHES = {"tiny": 2, "cpu": 16, "accelerator": 256, "accelerator_quick": 256}
PARTS: dict[str, Callable[[BenchmarkSubject, BenchmarkSettings], Part]] = {
    "training": training,
    "loop": loop,
    "data": pipeline,
    "sampling": sampling,
    "kernels": kernels,
}


def benchmark(
    config: ConfigDict,
    *,
    config_name: str,
    configs: str = "",
    parts: str = "training,data,sampling",
    samplers: str = "",
    nfe: int = 10,
    shape: str = "",
    classes: int = 10,
    batch_size: int = 0,
    repeats: int = 20,
    steps: int = 120,
    peers: str = "diffusers",
    preset: str = "",
    peer_python: str = "",
    peer_batch: int = 0,
    out: str = "runs/benchmark.json",
    against: str = "",
) -> None:
    """Measure parts of configs, print tables and write all numbers to a file.

    Args:
      config: the config that is measured.
      config_name: its name.
      configs: the names of several configs, separated by ';', instead.
      parts: names of PARTS and 'peers', with commas.
      samplers: samplers separated by ';', each with '@grid' if it has its own; '' takes SAMPLERS.
      nfe: network evaluations per image.
      shape: height, width and channels of noise instead of data; '' measures on the data.
      classes: number of classes of that noise.
      batch_size: images at once, of samplers; 0 is the preset's number of BATCHES.
      repeats: how often everything is timed.
      steps: training steps of the loop.
      peers: other programs, as in `parse_peers`.
      preset: one of BATCHES; '' is the one for this platform.
      peer_python: the Python that runs them; '' is this one.
      peer_batch: examples in their steps; 0 is the preset's number.
      out: the JSON file to write.
      against: an earlier file to compare with; '' compares with none.

    Raises:
      UserError: for unknown names, and samplers and budgets that do not fit.
    """
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is measured
    chosen = chosen_parts(parts)
    preset = benchmark_peers.preset_of(preset, share="peers" in chosen)
    batch, noise, entries = batch_size or BATCHES[preset], _shape(shape), parsing.specs(samplers)
    settings = BenchmarkSettings(
        entries or list(SAMPLERS), nfe, noise, classes, batch, repeats, steps
    )
    path = outputs.named("out", out, ".json")[".json"]
    python = peer_python or sys.executable
    compared = PeerSettings(
        parse_peers(peers), preset, python, peer_batch, repeats, nfe, path.parent
    )
    stored = files.load_json(against, comparison.earlier) if against else None
    loaded = {name: config_files.load_config(name) for name in split(configs)}
    loaded = loaded or {config_name: config}
    _run(loaded, chosen, settings, compared, path, config.seed, against, stored)


def split(text: str) -> list[str]:
    """Split the names of configs, which are separated by ';', and drop empty entries.

    Args:
      text: the value of the flag. Commas stay within a name: configs/mnist.py:edm,full.

    Returns:
      The entries without the spaces around them.
    """
    return [part.strip() for part in text.split(";") if part.strip()]


def _shape(text: str) -> list[int]:
    """The value of --shape."""
    found = parsing.integers("shape", text, 1, 4096)
    if len(found) not in (0, 1, 3):
        raise UserError(
            f"--shape={text}: write height, width and channels, such as 32,32,3; one number for "
            "points"
        )
    return found


def _run(
    configs: Mapping[str, ConfigDict],
    parts: Sequence[str],
    settings: BenchmarkSettings,
    compared: PeerSettings,
    path: Path,
    seed: int,
    against: str,
    stored: Mapping[str, Any] | None,
) -> None:
    """Measure, write and print; UserError, at the end, where no peer could be measured."""
    stamp = provenance.provenance({name: one.to_dict() for name, one in configs.items()}, seed)

    def keep(found: Mapping[str, Part], **more: Any) -> dict[str, Any]:
        record = {name: {"rows": part.rows, "facts": part.facts} for name, part in found.items()}
        record |= {
            "settings": settings._asdict(),
            "configs": configs,
            "provenance": stamp,
            **more,
        }
        files.save_json(path, record)
        return record

    found = measure(configs, [name for name in parts if name in PARTS], settings, keep)
    if "peers" in parts:
        found["peers"] = benchmark_peers.peers(compared, lambda part: keep(found | {"peers": part}))
        keep(found)
    for name, part in found.items():
        table = tables.markdown_table(part.rows, part.columns) if part.rows else ""
        print(f"## {name}\n\n{part.facts}\n\n{table}")
    if stored:
        record = keep(found)
        rows = comparison.compare(stored, record)
        lines = comparison.differences(stored, record)
        keep(found, against={"path": against, "rows": rows, "differences": lines})
        table = tables.markdown_table(rows, comparison.COLUMNS)
        print(f"## against {against}\n\n{table if rows else 'the runs have nothing in common'}")
        for line in lines:
            print(f"not the same machine or software: {line}")
    print(path)
    if "peers" in parts and not found["peers"].rows:
        raise UserError(f"no peer was measured; {found['peers'].facts.splitlines()[-1]}")


def measure(
    configs: Mapping[str, ConfigDict],
    parts: Sequence[str],
    settings: BenchmarkSettings,
    keep: Callable[[dict[str, Part]], Any],
) -> dict[str, Part]:
    """Measure parts of several configs.

    Args:
      configs: the configs by their names.
      parts: names of PARTS; none loads no data.
      settings: the settings of all parts.
      keep: is called after each part, so that none is lost.

    Returns:
      The results by the names of the parts, each with the rows of all configs.
    """
    found: dict[str, Part] = {}
    for title, config in configs.items() if parts else ():
        dataset = dataset_for(config, settings.shape, settings.classes)
        model = experiment.assemble(config, dataset.image_shape, dataset.num_classes)
        subject = BenchmarkSubject(title, config, dataset, model)
        for name in parts:
            part = PARTS[name](subject, settings)
            if name == "training":
                subject = subject._replace(consumed=part.rows[0]["images_per_second"])
            if name in found:
                before = found[name]
                facts = f"{before.facts}\n{part.facts}"
                part = part._replace(rows=before.rows + part.rows, facts=facts)
            found[name] = part
            keep(found)
    return found


def chosen_parts(text: str) -> list[str]:
    """Return the parts that are to be measured, in the order of PARTS.

    The data part comes after the training part, whose consumption it needs to know.

    Args:
      text: the value of --parts: names of PARTS with commas, in any order.

    Raises:
      UserError: for an unknown part.
    """
    names, known = parsing.names(text), (*PARTS, "peers")
    for name in names:
        if name not in known:
            raise unknown("--parts", name, known)
    return [name for name in known if name in names]
