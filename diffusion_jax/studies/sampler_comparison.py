"""Samplers compared on one trained model or on an analytic target."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from diffusion_jax import files
from diffusion_jax.assembly import components, conditions, denoiser, sampling, workdir
from diffusion_jax.assembly.build import build, members
from diffusion_jax.report import curves, html, pictures, tables
from diffusion_jax.samplers import base
from diffusion_jax.studies import comparison

SAMPLERS = (
    "ancestral.ddim",
    "ancestral.ddim@auto",
    "ode.heun@auto",
    "ode.edm_heun@auto",
    "singlestep.dpmpp_2s@auto",
    "multistep.dpmpp_2m@auto",
    "multistep.dpmpp_2m@karras",
    "multistep.dpmpp_3m@auto",
    "multistep.deis@auto",
    "multistep.unipc@auto",
    "adaptive.tsit5",
    "ancestral.ddpm@auto",
    "sde.euler_maruyama@auto",
    "sde.dpmpp_2m@auto",
)

BUDGETS = "5,10,20,50"
KINDS = {True: "stochastic", False: "deterministic", None: ""}

MEANINGS = {
    "accuracy": "recognized: read as the class asked for",
    "frechet": "Fréchet: distance to the training images",
    "sliced_wasserstein": "Wasserstein: sliced distance to exact draws",
    "error": "RMS error: to the exact solution, per dimension",
}

MARKED = (
    "accuracy",
    "frechet",
    "sliced_wasserstein",
    "error",
)  # the columns in which the best are marked


def listing() -> str:
    """Every sampler, grid, target and process by the name that a spec calls it."""
    vp = build(components.PROCESSES, "schedules.VP()")

    def sampler(name: str, make: Callable) -> str:
        needs = [
            p.name for p in inspect.signature(make).parameters.values() if p.default is p.empty
        ]
        if needs:
            return f"  {name:32} {'takes ' + ', '.join(needs):34} {_what(make)}"
        made = make()
        more = f" + {sum(made.warmup)}" if made.warmup else ""
        nfe = "its own steps" if base.adaptive(made) else f"{made.nfe} a step{more}"
        return f"  {name:32} {nfe:15} {KINDS[base.draws_noise(made, vp)]:18} {made.grid:34} {_what(make)}"

    lines = ["samplers: name, network evaluations (+ at the start), kind, own grid (@auto)"]
    lines += [sampler(*pair) for pair in members(components.SAMPLERS).items()]
    families = {
        "grids": components.GRIDS,
        "targets": components.TARGETS,
        "processes": components.PROCESSES,
    }
    for plural, family in families.items():
        lines += ["", plural] + [
            f"  {name:32} {_what(make)}" for name, make in members(family).items()
        ]
    return "\n".join(lines)


def _what(make: Callable) -> str:
    return (inspect.getdoc(make) or "").partition("\n")[0]


def default_samplers() -> list[str]:
    """A representative dozen, as far as they exist."""
    there = members(components.SAMPLERS)
    return [entry for entry in SAMPLERS if entry.partition("@")[0] in there]


# ---- what is written
def write(subject, compared, stem: Path, record: Mapping) -> str:
    """stem.json, .md, .png, _strips.png and .html. Returns the text of stem.md."""
    rows, title = [result.row for result in compared.results], f"Samplers on {subject.name}"
    lines = comparison.sentences(compared) + comparison.failures(compared)
    facts = (
        f"{len(subject.keys)} samples in every cell, from seeds {rows[0]['seeds']}, the same for every sampler. "
        f"The exact solution is {compared.exact.row['what']}."
    )
    if subject.features:
        facts += f" The {compared.names['frechet']} is to the training images, by the features {subject.features}."
    columns = {
        "sampler": "sampler",
        "grid": "grid",
        "nfe": "budget",
        "evaluations": "NFE",
        **compared.names,
        "seconds_per_image": "time each",
        "note": "note",
    }
    columns = {
        key: heading
        for key, heading in columns.items()
        if any(row.get(key) is not None for row in rows)
    }
    told = [
        row
        | {
            key: comparison.number(key, row[key])
            for key in ("accuracy", "order", "seconds_per_image")
            if key in row
        }
        for row in [*rows, {"sampler": "truth itself"} | subject.floor]
    ]
    listed = "".join(f"- {line}\n" for line in lines)
    text = f"# {title}\n\n{facts}\n\n{listed}\n{tables.markdown_table(told, columns)}"
    files.save_text(stem.with_suffix(".md"), text)
    files.save_json(
        stem.with_suffix(".json"),
        {
            "rows": rows,
            "verdict": lines,
            "floor": subject.floor,
            "exact": compared.exact.row,
            "subject": subject.identity,
            **record,
        },
    )
    tiles, captions, headings, truth = _strips(subject, compared)
    beneath = "; ".join(meaning for key, meaning in MEANINGS.items() if key in columns)
    if any(key in columns for key in compared.names):
        labels = (
            {"frechet": f"{compared.names['frechet']} ({subject.features})"}
            if subject.features
            else {}
        )
        curves.quality_curves(
            rows, stem.with_suffix(".png"), floor=subject.floor, title=title, labels=labels
        )
        path = stem.with_name(f"{stem.name}_strips.png")
        pictures.strips(
            tiles, path, captions=captions, columns=headings, title=title, note=beneath, above=truth
        )
    else:
        stem.with_suffix(".png").unlink(
            missing_ok=True
        )  # of an earlier call, which this one no longer shows
    gallery = html.beside({name: html.picture(tile) for name, tile in truth.items()})
    gallery += html.gallery(
        {key: (html.picture(tile), captions.get(key, "")) for key, tile in tiles.items()},
        {row: row for row in dict.fromkeys(row for row, _ in tiles)},
        headings,
    )
    html.save(
        stem.with_suffix(".html"),
        html.page(
            title,
            [
                (
                    "Verdict",
                    html.items(lines)
                    + html.paragraph(
                        "Noise is two standard errors of the difference, which is paired: all share their seeds.",
                        faint=True,
                    ),
                ),
                (
                    "Against the number of network evaluations",
                    html.picture(stem.with_suffix(".png"), "curves against NFE")
                    if stem.with_suffix(".png").exists()
                    else html.paragraph("No sampler has a result."),
                ),
                ("The same seeds by every sampler", html.paragraph(beneath, faint=True) + gallery),
                ("All numbers", _numbers(subject, compared, rows, columns)),
                ("The samplers", html.facts(_described(rows))),
                (
                    "Where the numbers come from",
                    html.facts(_origin(subject, rows, record))
                    + html.folded(
                        "everything on record",
                        html.code(files.canonical_json({"subject": subject.identity, **record})),
                    ),
                ),
            ],
            lead=facts,
        ),
    )
    return text


def _strips(subject, compared) -> tuple[dict, dict, dict, dict]:
    """(tiles, captions, headings of the columns) of what was drawn, and the tiles of real data and
    of the exact solution.
    """
    budgets = dict.fromkeys(result.row["nfe"] for result in compared.results)
    headings = {nfe: f"{nfe} NFE" for nfe in sorted(filter(None, budgets))} | (
        {None: "adaptive"} if None in budgets else {}
    )
    tiles, captions, truth = {}, {}, {"real data": subject.picture(subject.real)}
    if compared.exact.samples is not None:
        truth["exact solution"] = subject.picture(subject.finish(compared.exact.samples))
    for row, samples in ((result.row, result.samples) for result in compared.results):
        key = row["sampler"], row["nfe"]
        if samples is not None:
            made = f"{row['evaluations']:.0f} NFE\n" if row["nfe"] is None else ""
            tiles[key], captions[key] = subject.picture(samples), made + pictures.verdict(row)
    return tiles, captions, headings, truth


def _numbers(subject, compared, rows: list[dict], columns: Mapping[str, str]) -> str:
    """The table, with the best of every budget marked, and what truth itself scores."""
    best = set()
    for nfe in {row["nfe"] for row in rows} - {None}:
        for metric in MARKED:
            there, tied, *_ = comparison.ranking(compared, nfe, metric)
            best |= {(result.row["sampler"], nfe, metric) for result in there[:tied]}
    shown = [
        row
        | {
            "sampler": row["sampler"].partition("@")[0],
            "kind": KINDS[row.get("stochastic")],
            "entry": row["sampler"],
        }
        for row in rows
    ]
    columns = {"sampler": "sampler", "grid": "grid", "kind": "kind"} | columns
    formats = {
        key: functools.partial(comparison.number, key)
        for key in (*comparison.NAMES, "seconds_per_image")
    }
    scores = [
        f"{compared.names.get(key, key)} {comparison.number(key, value)}"
        for key, value in subject.floor.items()
    ]
    marked = (
        "Marked: the best at each budget and all that cannot be told from it; the order of samplers that score no worse "
        "than the truth itself is noise. A click on a heading sorts."
    )
    return (
        html.paragraph(marked, faint=True)
        + html.table(
            shown,
            columns,
            formats=formats,
            best=lambda row, key: (row["entry"], row["nfe"], key) in best,
        )
        + (html.paragraph(f"The truth itself scores: {', '.join(scores)}.") if scores else "")
    )


def _described(rows: list[dict]) -> dict[str, str]:
    """What each sampler is, in the first line of its docstring."""
    known = members(components.SAMPLERS)
    specs = dict.fromkeys(row["sampler"].rpartition(": ")[2].partition("@")[0] for row in rows)
    return {spec: _what(known[spec.partition("(")[0].strip()]) for spec in specs}


def _origin(subject, rows: list[dict], record: Mapping) -> dict[str, str]:
    stamp = record["provenance"]
    model = {"step": record["step"], "weights": record["weights"]} if "step" in record else {}
    commits = ", ".join(sorted({str(row["commit"]) for row in rows}))
    cpu, devices = stamp["cpu"]["model"], stamp["devices"] or {}
    return model | {
        "commit": commits,
        "command": stamp["command"],
        "date": stamp["date"],
        "precision": subject.dtype,
        "machine": f"{devices.get('count')} {devices.get('kind')} ({cpu}, {stamp['cpu']['cores']} cores)",
        "jax": stamp["versions"]["jax"],
    }


# ---- the command
def compare_model(
    trained,
    dataset,
    name: str,
    entries: list[str],
    budgets: list[int],
    seeds,
    kept: Path,
    stem: Path,
    record: Mapping,
    others: Sequence[str] = (),
    features: str = "",
    **options,
) -> str:
    """Compare on a trained model: cells kept in the folder `kept`, results written to `stem`.
    Returns the text of stem.md.

    others: workdirs of other models of the same data, each of which is compared by its own config's
    sampler. features: as in comparison.of_model.

    Raises:
      UserError: for what cannot be compared, before anything is drawn; if every cell has failed,
        after everything is written.
    """
    models = {Path(root): workdir.beside(root, "--others", dataset.image_shape) for root in others}
    own = {
        root: cells_of(model, None, budgets) for root, model in models.items()
    }  # before anything is drawn: they may be refused
    for model in models.values():
        denoiser.is_guided(model.experiment, model.experiment.config.sampler.guidance)
        conditions.conditions(model.experiment, dataset, len(seeds))
    subject = comparison.of_model(trained, dataset, seeds, name, features=features)
    compared = comparison.compare(subject, cells_of(trained, entries, budgets), kept, **options)
    more = [
        result
        for root, model in models.items()
        for result in beside(root, model, own[root], dataset, seeds, features, **options)
    ]
    text = write(
        subject, compared := compared._replace(results=[*compared.results, *more]), stem, record
    )
    comparison.need_results([result.row for result in compared.results])
    return text


def cells_of(trained, entries: list[str] | None, budgets: list[int]) -> list:
    """The cells of these samplers for a trained model; None: of its own sampler and grid."""
    built, sampler = trained.experiment, trained.experiment.config.sampler
    place = functools.partial(sampling.grid, built)
    return comparison.cells(
        entries or [f"{sampler.name}@{sampler.grid}"],
        budgets,
        built.process,
        sampler.grid,
        place=place,
    )


def beside(root: Path, trained, cells: list, dataset, seeds, features: str = "", **options) -> list:
    """The Results of another trained model, named after its folder, where they are kept."""
    subject = comparison.of_model(trained, dataset, seeds, root.name, features=features)
    compared = comparison.compare(subject, cells, root / "compare", **options)
    return [
        result._replace(row=result.row | {"sampler": f"{root.name}: {result.row['sampler']}"})
        for result in compared.results
    ]
