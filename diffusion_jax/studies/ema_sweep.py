"""Evaluation at several lengths of the weights' moving average."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from diffusion_jax import files, provenance, reading
from diffusion_jax.assembly import conditions, denoiser, sampling
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import generate, judge
from diffusion_jax.evaluation import metrics as metric_table
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.training import ema

DOUBTFUL = 0.1  # a misfit above this makes another average than the one asked for


def scorer(built, dataset, count: int, repeats: int, batch_size: int, **how) -> Callable:
    """params -> the scores of `repeats` sets of `count` images, from the same disjoint seeds every
    time; compiled once.

    how: features, metrics of judge.against.
    """
    chosen, (labels, cond) = sampling.plan(built), conditions.conditions(built, dataset, count)
    judged = judge.against(dataset.train, labels, held_out=dataset.test, count=count, **how)
    run = sampling.sample_fn(
        built, chosen.sampler, guided=chosen.guided, clip=chosen.clip, noise=chosen.noise
    )

    def score(params) -> list[dict[str, float]]:
        sets = []
        for first in range(0, repeats * count, count):

            def draw(keys, cond):
                own = denoiser.ensemble(built, params)
                return run(own, keys, cond, chosen.ts, jnp.float32(chosen.guidance))

            keys = generate.seeds_to_keys(range(first, first + count))
            sets.append(
                judged(generate.generate(draw, keys, cond, batch_size=min(batch_size, count)))
            )
        return sets

    return score


def sweep(
    lengths: Sequence[float], make: Callable, score: Callable, path: Path, told: Mapping
) -> list[dict]:
    """A row {'length', 'misfit', 'sets'} for each length; written to `path` after each, and taken
    from there if told agrees.
    """
    set_of = reading.table(reading.number(finite=False))
    row = reading.record(
        {
            "length": reading.number(0),
            "misfit": reading.number(),
            "sets": reading.items(set_of, least=1),
        }
    )
    rule = reading.record({"rows": reading.items(row)})
    told, kept = (
        files.plain(told),
        reading.kept(path, lambda path: reading.json_file(path, rule)) or {},
    )
    same = {key: kept.get(key) for key in told} == told
    rows = {row["length"]: row for row in kept["rows"]} if same else {}
    for i, length in enumerate(lengths):
        if length in rows:
            continue
        print(f"length {length:g} ({i + 1} of {len(lengths)})", file=sys.stderr, flush=True)
        made = make(length)
        rows[length] = {"length": length, "misfit": made.misfit, "sets": score(made.params)}
        record = {
            "rows": [rows[key] for key in sorted(rows)],
            "provenance": provenance.provenance(told["config"]),
        }
        files.save_json(path, {**told, **record})
    return [rows[length] for length in sorted(lengths)]


def means(rows: Sequence[Mapping]) -> list[dict]:
    """Rows {'length', 'misfit', metric: (mean, std over sets)}."""

    def over(values):
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    return [
        {"length": row["length"], "misfit": row["misfit"]}
        | {metric: over([scores[metric] for scores in row["sets"]]) for metric in row["sets"][0]}
        for row in rows
    ]


def report(rows: Sequence[Mapping]) -> str:
    """The table in markdown; a length that the snapshots do not really give is marked."""
    metrics = [key for key in rows[0] if key not in ("length", "misfit")]

    def show(mean, std):
        return f"{mean:.4g}" + (f" ± {std:.2g}" if std else "")

    shown = [
        {
            "length": f"{row['length']:g}" + "*" * (row["misfit"] > DOUBTFUL),
            "misfit": f"{100 * row['misfit']:.2g} %",
        }
        | {metric: show(*row[metric]) for metric in metrics}
        for row in rows
    ]
    table = markdown_table(
        shown,
        {"length": "length", "misfit": "misfit"}
        | {m: metric_table.find(m, "pixels").title for m in metrics},
    )
    return table + (
        "\n*: too few snapshots for this length\n"
        if any(row["misfit"] > DOUBTFUL for row in rows)
        else ""
    )


def lengths_of(text: str) -> list[float]:
    """'0.05,0.1' -> [0.05, 0.1]. UserError for anything else, and for lengths that no power EMA
    has.
    """
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise UserError(
            f"--lengths={text}: write relative lengths with commas, such as 0.05,0.1,0.15"
        ) from None
    for length in found:
        ema.gamma(length)
    return found
