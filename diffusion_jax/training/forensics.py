"""Reports on steps that are not finite, WORKDIR/nonfinite/step_N, to understand and repeat them.

report.json    losses, noise levels and times of the batch, norms of all layers, and where a
               replay begins
report.md      the same for reading
batch.npz      the batch
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.core import npz, reading, staging
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import load_json, save_json, save_text
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.training import nonfinite
from diffusion_jax.training.placement import leaves_by_path

FOLDER = "nonfinite"
MAX_REPORTS = 10  # of a run
SHOWN = 20  # examples in report.md
_NUMBERS = reading.items(reading.number(finite=False))

_REPORT = reading.record(
    {
        "step": reading.integer(),
        "what": reading.one_of("gradient", "update", "loss"),
        "command": reading.text(),
        "losses": _NUMBERS,
        "start": reading.record(
            {
                "checkpoint": reading.optional(reading.integer()),
                "key": reading.items(reading.integer(0, 2**32 - 1), 1, 8),
                "shift": reading.integer(),
            }
        ),
        "examples": reading.items(reading.integer()),
        "log_snr": _NUMBERS,
        "t": _NUMBERS,
        "layers": reading.items(reading.text()),
        "norms": reading.table(_NUMBERS),
    }
)


def rule(value: Any, place: str) -> None:
    """Check that a value is the content of a report.json.

    It has a loss, a level and a time for each example, and a norm of each kind for each layer.

    Args:
      value: the parsed JSON.
      place: the name of the value in the message of an error.

    Raises:
      reading.Mismatch: if the value breaks the rule.
    """
    _REPORT(value, place)
    batch = len(value["losses"])
    if {len(value["log_snr"]), len(value["t"])} != {batch} or max(
        value["examples"], default=-1
    ) >= batch:
        raise reading.Mismatch(
            f"its losses, log_snr, t and examples are not of one batch of {batch}"
        )
    if any(len(norms) != len(value["layers"]) for norms in value["norms"].values()):
        raise reading.Mismatch(f"its norms are not those of {len(value['layers'])} layers")


def names(tree: Any) -> list[str]:
    """Return the path of every leaf, in the order of 'layers' in the metrics of a step.

    Args:
      tree: the parameters.
    """
    return list(leaves_by_path(tree))


def full(workdir: str | os.PathLike) -> bool:
    """Return whether a run has written MAX_REPORTS reports, and writes no more.

    Args:
      workdir: the folder of the run.
    """
    return len(list((Path(workdir) / FOLDER).glob("step_*"))) >= MAX_REPORTS


def write(
    workdir: str | os.PathLike,
    step: int,
    numbers: Mapping[str, Any],
    *,
    times: Sequence[float],
    batch: Mapping[str, np.ndarray],
    layers: Sequence[str],
    key: Sequence[int],
    shift: int,
    checkpoint: int | None,
) -> str:
    """Write the report of a step.

    Args:
      workdir: the workdir of the run.
      step: the step.
      numbers: the metrics of that step (make_train_step with forensics).
      times: t of each example.
      batch: the whole batch, on the host.
      layers: `names` of the parameters.
      key: the words of the key with which a replay begins.
      shift: a replay takes the batch of position k + shift for step k (`nonfinite.roll_back`).
      checkpoint: the step of the checkpoint at which a replay begins; None is the fresh state.

    Returns:
      The command that repeats the step.
    """
    found = numbers["nonfinite"]
    losses = np.asarray(found["losses"])
    bad = np.flatnonzero(~np.isfinite(losses)).tolist()
    named = staging.shown(str(workdir))
    report = {
        "step": step,
        "what": nonfinite.kind(found),
        "command": f"python -m experiments.repro --workdir={named} --step={step}",
        "start": {"checkpoint": checkpoint, "key": list(key), "shift": shift},
        "examples": bad,
        "losses": losses,
        "log_snr": found["levels"],
        "t": times,
        "layers": layers,
        "norms": found["layers"],
    }
    folder = Path(workdir) / FOLDER / f"step_{step}"
    npz.save(folder / "batch.npz", batch)
    save_text(folder / "report.md", _text(report))
    save_json(folder / "report.json", report)
    return report["command"]


def read(workdir: str | os.PathLike, step: int) -> dict[str, Any]:
    """Read the report of a step.

    Args:
      workdir: the folder of the run.
      step: the number of the step that was not finite.

    Raises:
      UserError: if there is none; it names those that exist.
    """
    path = Path(workdir) / FOLDER / f"step_{step}" / "report.json"
    if not path.exists():
        steps = sorted(
            int(p.parent.name.removeprefix("step_"))
            for p in path.parents[1].glob("step_*/report.json")
        )
        have = ", ".join(map(str, steps)) or "none: every step of this run was finite"
        raise UserError(
            f"--step={step}: there is no report of this step in '{path.parents[1]}'; there are: "
            f"{have}"
        )
    return load_json(path, rule)


def same(report: Mapping[str, Any], numbers: Mapping[str, Any]) -> bool:
    """Return whether the metrics of a step equal those of a report, bit for bit.

    Args:
      report: the report of the step, as `read` returns it.
      numbers: the metrics of the step when it is repeated, with the part 'nonfinite'.
    """
    found = numbers["nonfinite"]
    pairs = [
        (report["losses"], found["losses"]),
        *((report["norms"][kind], found["layers"][kind]) for kind in report["norms"]),
    ]
    return all(np.array_equal(np.float32(a), np.float32(b), equal_nan=True) for a, b in pairs)


def layer_table(report: Mapping[str, Any]) -> str:
    """Write a Markdown table of the norms of each layer's parameters, gradient and update.

    Args:
      report: the report, as `read` returns it.
    """
    rows = [
        {"layer": name} | {kind: norms[i] for kind, norms in report["norms"].items()}
        for i, name in enumerate(report["layers"])
    ]
    return markdown_table(
        rows,
        {
            "layer": "leaf",
            "parameter": "|parameter|",
            "gradient": "|gradient|",
            "update": "|update|",
        },
    )


def _text(report: Mapping[str, Any]) -> str:
    start, examples = report["start"], report["examples"]
    begin = (
        "the fresh state" if start["checkpoint"] is None else f"checkpoint {start['checkpoint']}"
    )
    shown = examples[:SHOWN] or range(min(SHOWN, len(report["losses"])))
    rows = [
        {
            "example": i,
            "loss": report["losses"][i],
            "log_snr": report["log_snr"][i],
            "t": report["t"][i],
        }
        for i in shown
    ]
    many = f"{len(examples)} of {len(report['losses'])} examples have a loss that is not finite"
    return "\n".join(
        [
            f"# The {report['what']} is not finite at step {report['step']}",
            "",
            f"{many}{f'; the first {SHOWN} are' if len(examples) > SHOWN else ''}.",
            "",
            f"To repeat it, from {begin}: `{report['command']}`",
            "",
            markdown_table(
                rows, {"example": "example", "log_snr": "log-SNR", "t": "t", "loss": "loss"}
            ),
            layer_table(report),
        ]
    )
