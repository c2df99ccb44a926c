"""The tables, figures and page of a comparison of samplers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from diffusion_jax.assembly import components
from diffusion_jax.assembly.build import members
from diffusion_jax.core import files
from diffusion_jax.evaluation import intervals
from diffusion_jax.evaluation.metrics import INTERVALS, METRICS, find
from diffusion_jax.report import html, pictures, quality, tables
from diffusion_jax.studies.samplers import ranking
from diffusion_jax.studies.samplers.cells import Comparison
from diffusion_jax.studies.samplers.listing import KINDS, summary
from diffusion_jax.studies.subject import Subject

MARKED = ("accuracy", "frechet", "sliced_wasserstein", "error")  # columns whose best are marked
WITH_UNIT = ("accuracy", "order", "seconds_per_image")  # in Markdown; other scores are numbers
WRITTEN = (*ranking.SCORES, "seconds_per_image")  # columns of the page, as their metrics say
PLAYED = 3  # sounds of a cell that can be heard, of sounds

Rows = Sequence[Mapping[str, Any]]


def write(subject: Subject, compared: Comparison, stem: Path, record: Mapping[str, Any]) -> str:
    """Write stem.json, .md, .png, _strips.png and .html.

    Args:
      subject: what the samplers were compared on.
      compared: the results.
      stem: the path of the files without their endings.
      record: what else the JSON file and the page record: 'provenance', and 'step' and 'weights' of
        a model.

    Returns:
      The text of stem.md.
    """
    features = subject.judging.features
    rows, title = [result.row for result in compared.results], f"Samplers on {subject.name}"
    verdict = ranking.sentences(compared) + ranking.failures(compared)
    facts, columns = _facts(subject, compared), _columns(subject, rows)
    text = _markdown(title, facts, verdict, _with_truth(subject, rows), columns)
    files.save_text(stem.with_suffix(".md"), text)
    files.save_json(
        stem.with_suffix(".json"),
        {
            "rows": rows,
            "verdict": verdict,
            "floor": subject.judging.truth_scores,
            "floor_intervals": intervals.halves(subject.judging.truth),
            "titles": {key: find(key, features).title for key in _scores(rows)},
            "exact": compared.exact.row,
            "subject": subject.identity,
            **record,
        },
    )
    strips = _strips(subject, compared)
    legend = "; ".join(
        find(key, features).description for key in pictures.VERDICT if key in columns
    )
    _figures(subject, rows, stem, title, strips, legend)
    page = [
        ("Verdict", _verdict(verdict)),
        ("Against the number of network evaluations", _curves(stem.with_suffix(".png"))),
        (
            "The same seeds by every sampler",
            html.paragraph(legend, faint=True) + _gallery(strips),
        ),
        ("All numbers", _numbers(subject, compared, columns)),
        ("The samplers", html.facts(_described(rows))),
        ("Where the numbers come from", _origin(subject, rows, record)),
    ]
    html.save(stem.with_suffix(".html"), html.page(title, page, lead=facts))
    return text


# ---- text and tables
def _facts(subject: Subject, compared: Comparison) -> str:
    seeds, features = compared.results[0].row["seeds"], subject.judging.features
    facts = (
        f"{len(subject.keys)} samples in every cell, from seeds {seeds}, the same for every "
        f"sampler. The exact solution is {compared.exact.row['what']}."
    )
    if features:
        facts += f" The {find('frechet', features).title} is to the training data."
    return f"{facts} {INTERVALS}"


def _scores(rows: Rows) -> list[str]:
    """The scores that rows have: those of the ranking in their order, and others with intervals."""
    there = dict.fromkeys(key for row in rows for key in (*row, *row.get("intervals", {})))
    more = [key for key in there if find(key).name in there and key.partition("/")[0] in METRICS]
    own = (*ranking.SCORES, "evaluations", "seconds_per_image", "nfe")
    return [key for key in ranking.SCORES if key in there] + [k for k in more if k not in own]


def _columns(subject: Subject, rows: Rows) -> dict[str, str]:
    """The headings of the columns in which a row has a value."""
    scores = {key: find(key, subject.judging.features).title for key in _scores(rows)}
    columns = {
        "sampler": "sampler",
        "grid": "grid",
        "nfe": "budget",
        "evaluations": "NFE",
        **scores,
        "seconds_per_image": find("seconds_per_image").title,
        "note": "note",
    }
    there = {key for row in rows for key, value in row.items() if value is not None}
    return {key: heading for key, heading in columns.items() if key in there}


def _with_truth(subject: Subject, rows: Rows) -> list[dict[str, Any]]:
    """The rows for Markdown, and a row with the scores of real data."""
    truth = [{"sampler": "real data"} | intervals.record(subject.judging.truth)]
    truth = truth if subject.judging.truth else []

    def shown(row: Mapping[str, Any]) -> dict[str, str]:
        known = [key for key in row if key in WITH_UNIT or ranking.interval(row, key)]
        return {key: find(key).text(row[key], ranking.interval(row, key)) for key in known}

    return [{**row, **shown(row)} for row in [*rows, *truth]]


def _markdown(
    title: str, facts: str, verdict: Sequence[str], rows: Rows, columns: Mapping[str, str]
) -> str:
    listed = "".join(f"- {line}\n" for line in verdict)
    return f"# {title}\n\n{facts}\n\n{listed}\n{tables.markdown_table(rows, columns)}"


# ---- figures
class Strips(NamedTuple):
    """Pictures of the samples of every cell.

    Attributes:
      tiles: (sampler, budget) -> picture.
      captions: (sampler, budget) -> its scores.
      headings: budget -> heading of its column.
      truth: caption -> picture, of real data and of the exact solution.
      players: (sampler, budget), or the caption of the truth -> players of the first samples.
    """

    tiles: dict[tuple[str, int | None], np.ndarray]
    captions: dict[tuple[str, int | None], str]
    headings: dict[int | None, str]
    truth: dict[str, np.ndarray]
    players: dict[Hashable, Markup]


def _strips(subject: Subject, compared: Comparison) -> Strips:
    picture = subject.judging.picture
    budgets = {result.row["nfe"] for result in compared.results}
    headings = {nfe: f"{nfe} NFE" for nfe in sorted(budgets - {None})}
    headings |= {None: "adaptive"} if None in budgets else {}
    known = {"real data": subject.judging.real} if len(subject.judging.real) else {}
    if compared.exact.samples is not None:
        known["exact solution"] = subject.finish(compared.exact.samples)
    truth = {name: picture(samples) for name, samples in known.items()}
    tiles, captions = {}, {}
    for result in compared.results:
        row, key = result.row, (result.row["sampler"], result.row["nfe"])
        if result.samples is not None:
            made = f"{row['evaluations']:.0f} NFE\n" if row["nfe"] is None else ""
            tiles[key], known[key] = picture(result.samples), result.samples
            captions[key] = made + pictures.verdict(row, subject.judging.features)
    play = subject.judging.players
    players = {key: Markup("").join(play(x[:PLAYED])) for key, x in known.items()} if play else {}
    return Strips(tiles, captions, headings, truth, players)


def _figures(
    subject: Subject, rows: Rows, stem: Path, title: str, strips: Strips, legend: str
) -> None:
    """Write the curves and the strips; without scores, remove the curves of an earlier run."""
    file, features = stem.with_suffix(".png"), subject.judging.features
    if not any(key in row for row in rows for key in ranking.SCORES):
        file.unlink(missing_ok=True)
        return
    truth = subject.judging.truth_scores
    quality.quality_curves(rows, file, features=features, reference=truth, title=title)
    pictures.strips(
        strips.tiles,
        stem.with_name(f"{stem.name}_strips.png"),
        captions=strips.captions,
        columns=strips.headings,
        title=title,
        note=legend,
        above=strips.truth,
    )


# ---- the sections of the page
def _verdict(lines: Sequence[str]) -> str:
    noise = (
        "Noise is two standard errors of the difference, which is paired: all cells share their "
        "seeds."
    )
    return html.items(lines) + html.paragraph(noise, faint=True)


def _curves(file: Path) -> str:
    if not file.exists():
        return html.paragraph("No sampler has a result.")
    return html.picture(file, "curves against NFE")


def _gallery(strips: Strips) -> str:
    def shown(key: Hashable, tile: np.ndarray) -> Markup:
        return html.picture(tile) + strips.players.get(key, "")

    truth = html.side_by_side({name: shown(name, tile) for name, tile in strips.truth.items()})
    cells = {
        key: (shown(key, tile), strips.captions.get(key, "")) for key, tile in strips.tiles.items()
    }
    names = {name: name for name, _ in strips.tiles}
    return truth + html.gallery(cells, names, strips.headings)


def _numbers(subject: Subject, compared: Comparison, columns: Mapping[str, str]) -> str:
    """The table with the best of every budget marked, and the scores of real data."""
    rows = [result.row for result in compared.results]
    best = set()
    for nfe in {row["nfe"] for row in rows} - {None}:
        for metric in MARKED:
            found = ranking.ranking(compared, nfe, metric)
            first = found.results[: found.tied]
            best |= {(result.row["sampler"], nfe, metric) for result in first}
    shown = [
        row
        | {
            "sampler": row["sampler"].partition("@")[0],
            "kind": KINDS[row.get("stochastic")],
            "entry": row["sampler"],
        }
        for row in rows
    ]
    table = html.table(
        shown,
        {"sampler": "sampler", "grid": "grid", "kind": "kind"} | dict(columns),
        formats={key: find(key).text for key in (*WRITTEN, *_scores(rows))},
        spread=ranking.interval,
        best=lambda row, key: (row["entry"], row["nfe"], key) in best,
    )
    features = subject.judging.features
    truth = ", ".join(
        f"{find(key, features).title} {find(key).text(score.value, score.interval)}"
        for key, score in subject.judging.truth.items()
    )
    marked = (
        "Marked: the best at each budget and all that cannot be distinguished from it; the order "
        "of samplers that score no worse than real data is noise. Click a heading to sort."
    )
    said = html.paragraph(f"Real data scores: {truth}.") if truth else ""
    return html.paragraph(marked, faint=True) + table + said


def _described(rows: Rows) -> dict[str, str]:
    """Each sampler with the first line of its docstring."""
    known = members(components.SAMPLERS)
    specs = dict.fromkeys(row["sampler"].rpartition(": ")[2].partition("@")[0] for row in rows)
    return {spec: summary(known[spec.partition("(")[0].strip()]) for spec in specs}


def _origin(subject: Subject, rows: Rows, record: Mapping[str, Any]) -> str:
    stamp = record["provenance"]
    model = {"step": record["step"], "weights": record["weights"]} if "step" in record else {}
    cpu, devices = stamp["cpu"]["model"], stamp["devices"] or {}
    cores = stamp["cpu"]["cores"]
    facts = model | {
        "commit": ", ".join(sorted({str(row["commit"]) for row in rows})),
        "command": stamp["command"],
        "date": stamp["date"],
        "precision": subject.dtype,
        "machine": f"{devices.get('count')} {devices.get('kind')} ({cpu}, {cores} cores)",
        "jax": stamp["versions"]["jax"],
    }
    everything = files.canonical_json({"subject": subject.identity, **record})
    return html.facts(facts) + html.folded("everything on record", html.code(everything))
