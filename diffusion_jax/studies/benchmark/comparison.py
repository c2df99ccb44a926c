"""Two runs of the benchmark compared: what became slower, by more than the spread of the times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from diffusion_jax.core import reading
from diffusion_jax.studies.benchmark.timing import spread

PARTS = ("training", "loop", "data", "sampling", "kernels", "peers")
LEAST_NOISE = 0.02  # a difference of times below this share is none
MACHINE = ("cpu", "devices", "versions")  # entries of the provenance
COLUMNS = {
    "part": "part",
    "config": "config",
    "what": "what",
    "before": "before, ms",
    "now": "now, ms",
    "change_percent": "change, %",
    "noise_percent": "noise, %",
    "verdict": "verdict",
}


def compare(stored: Mapping[str, Any], found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Make a row for each quantity that both runs timed.

    Args:
      stored: the record of an earlier run, {part: {'rows': ...}}.
      found: the record of this run.

    Returns:
      Rows with milliseconds before and now, and whether they differ by more than both spreads.
    """
    rows = []
    for part in PARTS:
        before = {_key(row): row["seconds"] for row in _timed_rows(stored, part)}
        for row in _timed_rows(found, part):
            old = before.get(_key(row))
            if not old:
                continue
            change = median(row["seconds"]) / median(old) - 1
            noise = max(LEAST_NOISE, spread(old) + spread(row["seconds"]))
            verdict = "the same" if abs(change) <= noise else "slower" if change > 0 else "faster"
            rows.append(
                {
                    "part": part,
                    "config": row["config"],
                    "what": row["what"],
                    "verdict": verdict,
                    "before": 1e3 * median(old),
                    "now": 1e3 * median(row["seconds"]),
                    "change_percent": 100 * change,
                    "noise_percent": 100 * noise,
                }
            )
    return rows


def _timed_rows(record: Mapping[str, Any], part: str) -> Iterable[Mapping[str, Any]]:
    rows = record.get(part, {}).get("rows", ())
    return [row for row in rows if "seconds" in row]


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["config"], row["what"], row.get("batch"), row.get("evaluations")


def earlier(value: Any, place: str) -> None:
    """The rule of a record that this command wrote: what `compare` and `differences` read of it.

    Args:
      value: the content of the file.
      place: where it stands, for errors.
    """
    row = reading.record(
        {},
        {
            "seconds": reading.items(reading.number(1e-12), least=1),
            "batch": reading.scalar,
            "evaluations": reading.scalar,
            "config": reading.text(),
            "what": reading.text(),
        },
    )
    timed = reading.record(
        {"seconds": reading.anything, "config": reading.anything, "what": reading.anything}
    )
    machine = reading.record({}, dict.fromkeys(MACHINE, reading.optional(reading.table())))
    parts = dict.fromkeys(PARTS, reading.record({"rows": reading.items(row)}))
    reading.record({"provenance": machine}, parts)(value, place)
    for part in PARTS:
        for i, each in enumerate(value.get(part, {}).get("rows", ())):
            if "seconds" in each:
                timed(each, f"{part}.rows[{i}]")


def differences(stored: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """List the other differences between two runs, which also affect their times.

    Args:
      stored: the record of an earlier run.
      found: the record of this run.

    Returns:
      A line for each entry of the provenance that differs.
    """
    lines = []
    for name in MACHINE:
        old, new = (run["provenance"].get(name) or {} for run in (stored, found))
        lines += [
            f"{name}.{key}: {old.get(key)} then, {new.get(key)} now"
            for key in sorted(old | new)
            if old.get(key) != new.get(key)
        ]
    return lines
