"""Which sampler is best for this model at this budget? Solvers x grids x NFE from the same seeds, judged by truth and pictures.

python -m experiments.compare_samplers --workdir=runs/a --samplers='ancestral.ddim;multistep.dpmpp_2m@karras' --nfe=5,10,20,50
python -m experiments.compare_samplers --target=gmm8 --process='schedules.EDM()'       (an exact law: no training needed)
python -m experiments.compare_samplers --workdir=runs/a --nfe=1,2,4,50 --others=runs/cd,runs/meanflow    (other models beside)
python -m experiments.compare_samplers --list                                          (every sampler, grid, target, process)

Writes compare.html, which holds everything, and compare.png, compare_strips.png, compare.md and compare.json. A sampler is a
spec, with @grid where it wants another than the config's. Every finished cell is kept in compare/, where the same command finds
it again. All NFE of a sampler run in one compiled program.

Trajectory error, of deterministic samplers: RMS per dimension between their x0 and the exact solution's from the same noise.
For a target that is a float64 adaptive solve, and samplers run in float64 too; for a model, a fine solve of the network's own
ODE, whose own error the page states.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from absl import flags

from experiments import cli

SAMPLERS = ("ancestral.ddim", "ancestral.ddim@auto", "ode.heun@auto", "ode.edm_heun@auto", "singlestep.dpmpp_2s@auto",
            "multistep.dpmpp_2m@auto", "multistep.dpmpp_2m@karras", "multistep.dpmpp_3m@auto", "multistep.deis@auto",
            "multistep.unipc@auto", "adaptive.tsit5", "ancestral.ddpm@auto", "sde.euler_maruyama@auto", "sde.dpmpp_2m@auto")  # fmt: skip
BUDGETS = "5,10,20,50"
KINDS = {True: "stochastic", False: "deterministic", None: ""}
MEANINGS = {
    "accuracy": "recognized: read as the class asked for",
    "frechet": "Fréchet: distance to the training images",
    "sliced_wasserstein": "Wasserstein: sliced distance to exact draws",
    "error": "RMS error: to the exact solution, per dimension",
}
MARKED = ("accuracy", "frechet", "sliced_wasserstein", "error")  # the columns in which the best are marked


def listing() -> str:
    """Every sampler, grid, target and process by the name that a spec calls it."""
    from diffusion_jax import experiment
    from diffusion_jax.build import build, members
    from diffusion_jax.samplers import base

    vp = build(experiment.PROCESSES, "schedules.VP()")

    def sampler(name: str, make: Callable) -> str:
        needs = [p.name for p in inspect.signature(make).parameters.values() if p.default is p.empty]
        if needs:
            return f"  {name:32} {'takes ' + ', '.join(needs):34} {_what(make)}"
        made = make()
        more = f" + {sum(made.warmup)}" if made.warmup else ""
        nfe = "its own steps" if base.adaptive(made) else f"{made.nfe} a step{more}"
        return f"  {name:32} {nfe:15} {KINDS[base.draws_noise(made, vp)]:18} {made.grid:34} {_what(make)}"

    lines = ["samplers: name, network evaluations (+ at the start), kind, own grid (@auto)"]
    lines += [sampler(*pair) for pair in members(experiment.SAMPLERS).items()]
    families = {"grids": experiment.GRIDS, "targets": experiment.TARGETS, "processes": experiment.PROCESSES}
    for plural, family in families.items():
        lines += ["", plural] + [f"  {name:32} {_what(make)}" for name, make in members(family).items()]
    return "\n".join(lines)


def _what(make: Callable) -> str:
    return (inspect.getdoc(make) or "").partition("\n")[0]


def default_samplers() -> list[str]:
    """A representative dozen, as far as they exist."""
    from diffusion_jax import experiment
    from diffusion_jax.build import members

    there = members(experiment.SAMPLERS)
    return [entry for entry in SAMPLERS if entry.partition("@")[0] in there]


# ---- what is written ---------------------------------------------------------------------------------------------------------


def write(subject, compared, stem: Path, record: Mapping) -> str:
    """stem.json, .md, .png, _strips.png and .html. Returns the text of stem.md."""
    from diffusion_jax import comparison, plotting, provenance, report

    rows, title = [result.row for result in compared.results], f"Samplers on {subject.name}"
    lines = comparison.sentences(compared) + comparison.failures(compared)
    facts = (f"{len(subject.keys)} samples in every cell, from seeds {rows[0]['seeds']}, the same for every sampler. "
             f"The exact solution is {compared.exact.row['what']}.")  # fmt: skip
    if subject.features:
        facts += f" The {compared.names['frechet']} is to the training images, by the features {subject.features}."
    columns = {"sampler": "sampler", "grid": "grid", "nfe": "budget", "evaluations": "NFE", **compared.names,
               "seconds_per_image": "time each", "note": "note"}  # fmt: skip
    columns = {key: heading for key, heading in columns.items() if any(row.get(key) is not None for row in rows)}
    told = [row | {key: comparison.number(key, row[key]) for key in ("accuracy", "order", "seconds_per_image") if key in row}
            for row in [*rows, {"sampler": "truth itself"} | subject.floor]]  # fmt: skip
    listed = "".join(f"- {line}\n" for line in lines)
    text = f"# {title}\n\n{facts}\n\n{listed}\n{provenance.markdown_table(told, columns)}"
    provenance.save_text(stem.with_suffix(".md"), text)
    provenance.save_json(stem.with_suffix(".json"), {
        "rows": rows, "verdict": lines, "floor": subject.floor, "exact": compared.exact.row, "subject": subject.identity,
        **record})  # fmt: skip
    tiles, captions, headings, truth = _strips(subject, compared)
    beneath = "; ".join(meaning for key, meaning in MEANINGS.items() if key in columns)
    if any(key in columns for key in compared.names):
        labels = {"frechet": f"{compared.names['frechet']} ({subject.features})"} if subject.features else {}
        plotting.quality_curves(rows, stem.with_suffix(".png"), floor=subject.floor, title=title, labels=labels)
        path = stem.with_name(f"{stem.name}_strips.png")
        plotting.strips(tiles, path, captions=captions, columns=headings, title=title, note=beneath, above=truth)
    else:
        stem.with_suffix(".png").unlink(missing_ok=True)  # of an earlier call, which this one no longer shows
    gallery = report.beside({name: report.picture(tile) for name, tile in truth.items()})
    gallery += report.gallery({key: (report.picture(tile), captions.get(key, "")) for key, tile in tiles.items()},
                             {row: row for row in dict.fromkeys(row for row, _ in tiles)}, headings)  # fmt: skip
    report.save(stem.with_suffix(".html"), report.page(title, [
        ("Verdict", report.items(lines) + report.paragraph(
            "Noise is two standard errors of the difference, which is paired: all share their seeds.", faint=True)),
        ("Against the number of network evaluations", report.picture(stem.with_suffix(".png"), "curves against NFE")
         if stem.with_suffix(".png").exists() else report.paragraph("No sampler has a result.")),
        ("The same seeds by every sampler", report.paragraph(beneath, faint=True) + gallery),
        ("All numbers", _numbers(subject, compared, rows, columns)),
        ("The samplers", report.facts(_described(rows))),
        ("Where the numbers come from", report.facts(_origin(subject, rows, record)) + report.folded(
            "everything on record", report.code(provenance.canonical_json({"subject": subject.identity, **record})))),
    ], lead=facts))  # fmt: skip
    return text


def _strips(subject, compared) -> tuple[dict, dict, dict, dict]:
    """(tiles, captions, headings of the columns) of what was drawn, and the tiles of real data and of the exact solution."""
    from diffusion_jax import plotting

    budgets = dict.fromkeys(result.row["nfe"] for result in compared.results)
    headings = {nfe: f"{nfe} NFE" for nfe in sorted(filter(None, budgets))} | ({None: "adaptive"} if None in budgets else {})
    tiles, captions, truth = {}, {}, {"real data": subject.picture(subject.real)}
    if compared.exact.samples is not None:
        truth["exact solution"] = subject.picture(subject.finish(compared.exact.samples))
    for row, samples in ((result.row, result.samples) for result in compared.results):
        key = row["sampler"], row["nfe"]
        if samples is not None:
            made = f"{row['evaluations']:.0f} NFE\n" if row["nfe"] is None else ""
            tiles[key], captions[key] = subject.picture(samples), made + plotting.verdict(row)
    return tiles, captions, headings, truth


def _numbers(subject, compared, rows: list[dict], columns: Mapping[str, str]) -> str:
    """The table, with the best of every budget marked, and what truth itself scores."""
    from diffusion_jax import comparison, report

    best = set()
    for nfe in {row["nfe"] for row in rows} - {None}:
        for metric in MARKED:
            there, tied, *_ = comparison.ranking(compared, nfe, metric)
            best |= {(result.row["sampler"], nfe, metric) for result in there[:tied]}
    shown = [row | {"sampler": row["sampler"].partition("@")[0], "kind": KINDS[row.get("stochastic")],
                    "entry": row["sampler"]} for row in rows]  # fmt: skip
    columns = {"sampler": "sampler", "grid": "grid", "kind": "kind"} | columns
    formats = {key: functools.partial(comparison.number, key) for key in (*comparison.NAMES, "seconds_per_image")}
    scores = [f"{compared.names.get(key, key)} {comparison.number(key, value)}" for key, value in subject.floor.items()]
    marked = ("Marked: the best at each budget and all that cannot be told from it; the order of samplers that score no worse "
              "than the truth itself is noise. A click on a heading sorts.")  # fmt: skip
    return (report.paragraph(marked, faint=True)
            + report.table(shown, columns, formats=formats, best=lambda row, key: (row["entry"], row["nfe"], key) in best)
            + (report.paragraph(f"The truth itself scores: {', '.join(scores)}.") if scores else ""))  # fmt: skip


def _described(rows: list[dict]) -> dict[str, str]:
    """What each sampler is, in the first line of its docstring."""
    from diffusion_jax import experiment
    from diffusion_jax.build import members

    known = members(experiment.SAMPLERS)
    specs = dict.fromkeys(row["sampler"].rpartition(": ")[2].partition("@")[0] for row in rows)
    return {spec: _what(known[spec.partition("(")[0].strip()]) for spec in specs}


def _origin(subject, rows: list[dict], record: Mapping) -> dict[str, str]:
    stamp = record["provenance"]
    model = {"step": record["step"], "weights": record["weights"]} if "step" in record else {}
    commits = ", ".join(sorted({str(row["commit"]) for row in rows}))
    cpu, devices = stamp["cpu"]["model"], stamp["devices"] or {}
    return model | {"commit": commits, "command": stamp["command"], "date": stamp["date"], "precision": subject.dtype,
                    "machine": f"{devices.get('count')} {devices.get('kind')} ({cpu}, {stamp['cpu']['cores']} cores)",
                    "jax": stamp["versions"]["jax"]}  # fmt: skip


# ---- the command -------------------------------------------------------------------------------------------------------------


def compare_model(trained, dataset, name: str, entries: list[str], budgets: list[int], seeds, kept: Path, stem: Path,
                  record: Mapping, others: Sequence[str] = (), features: str = "", **options) -> str:  # fmt: skip
    """Compare on a trained model: cells kept in the folder `kept`, results written to `stem`. Returns the text of stem.md.

    others: workdirs of other models of the same data, each of which is compared by its own config's sampler. features: as in
    comparison.of_model.

    Raises:
      UserError: for what cannot be compared, before anything is drawn; if every cell has failed, after everything is written.
    """
    from diffusion_jax import comparison, experiment
    from diffusion_jax import workdir as folder

    models = {Path(root): folder.beside(root, "--others", dataset.image_shape) for root in others}
    own = {root: cells_of(model, None, budgets) for root, model in models.items()}  # before anything is drawn: they may be refused
    for model in models.values():
        experiment.is_guided(model.experiment, model.experiment.config.sampler.guidance)
        experiment.conditions(model.experiment, dataset, len(seeds))
    subject = comparison.of_model(trained, dataset, seeds, name, features=features)
    compared = comparison.compare(subject, cells_of(trained, entries, budgets), kept, **options)
    more = [result for root, model in models.items() for result in beside(root, model, own[root], dataset, seeds, features, **options)]
    text = write(subject, compared := compared._replace(results=[*compared.results, *more]), stem, record)
    comparison.need_results([result.row for result in compared.results])
    return text


def cells_of(trained, entries: list[str] | None, budgets: list[int]) -> list:
    """The cells of these samplers for a trained model; None: of its own sampler and grid."""
    from diffusion_jax import comparison, experiment

    built, sampler = trained.experiment, trained.experiment.config.sampler
    place = functools.partial(experiment.grid, built)
    return comparison.cells(entries or [f"{sampler.name}@{sampler.grid}"], budgets, built.process, sampler.grid, place=place)


def beside(root: Path, trained, cells: list, dataset, seeds, features: str = "", **options) -> list:
    """The Results of another trained model, named after its folder, where they are kept."""
    from diffusion_jax import comparison

    subject = comparison.of_model(trained, dataset, seeds, root.name, features=features)
    compared = comparison.compare(subject, cells, root / "compare", **options)
    return [result._replace(row=result.row | {"sampler": f"{root.name}: {result.row['sampler']}"}) for result in compared.results]


def main(config) -> None:
    import jax

    from diffusion_jax import comparison, experiment, provenance
    from diffusion_jax import workdir as folder
    from diffusion_jax.errors import UserError
    from diffusion_jax.evaluation import generate

    FLAGS = flags.FLAGS
    if FLAGS.list:
        print(listing())
        return
    entries = [part.strip() for part in FLAGS.samplers.split(";") if part.strip()] or default_samplers()
    budgets = sorted(set(cli.integers("nfe", FLAGS.nfe, 1, 10_000)))
    seeds = generate.parse_seeds(FLAGS.seeds) if FLAGS.seeds else list(range(FLAGS.num or (2000 if FLAGS.target else 200)))
    noise = FLAGS.noise or (config.sampler.get("noise") if "sampler" in config else None) or "independent"
    options = {"noise": noise, "fresh": FLAGS.fresh}
    if FLAGS.target is not None and FLAGS.features:
        raise UserError(f"--features={FLAGS.features} is for models of images, and --target={FLAGS.target} draws points")
    if FLAGS.target is not None:
        root = cli.folder("out", FLAGS.out or f"runs/compare_{re.sub('[^A-Za-z0-9]+', '_', FLAGS.target).strip('_')}")
        with jax.enable_x64(True):
            chosen = comparison.cells(entries, budgets, comparison.build(experiment.PROCESSES, FLAGS.process), "auto")
            subject = comparison.of_target(FLAGS.target, FLAGS.process, seeds)
            compared = comparison.compare(subject, chosen, root / "compare", **options)
            text = write(subject, compared, root / "compare", {"provenance": provenance.provenance(subject.identity, seeds[0])})
            comparison.need_results([result.row for result in compared.results])
    else:
        trained, root = folder.load(FLAGS.workdir, config), cli.folder("out", FLAGS.out or FLAGS.workdir)
        record = {"provenance": provenance.provenance(config.to_dict(), config.seed)}
        record |= {"step": trained.step, "weights": trained.weights}
        name = f"{config.data.name} ({Path(FLAGS.workdir).name})"
        text = compare_model(trained, folder.images(config, FLAGS.workdir), name, entries, budgets, seeds, root / "compare",
                             root / "compare", record, cli.paths("others", FLAGS.others), FLAGS.features, **options)  # fmt: skip
    print(f"{text}\n{root / 'compare.html'} holds all of this, with pictures")


if __name__ == "__main__":
    cli.path_flag("workdir", None, "the folder of a trained model")
    flags.DEFINE_string("target", None, "instead of a model, an exact law: gmm8, 'gmm(modes=20, dim=16)', checkerboard, ...")
    flags.DEFINE_string("process", "schedules.VP()", "the process of --target (a model has its own)")
    flags.DEFINE_string("samplers", "", "specs separated by ';', each with @grid if it wants its own; '': a dozen")
    flags.DEFINE_string("others", "", "workdirs of other models of the same data, with commas, each by its own sampler")
    flags.DEFINE_string("features", "", "features of the images' Fréchet distance, as in experiments.evaluate (default pixels up to "
                        "1,000 numbers an image, else classifier)")  # fmt: skip
    flags.DEFINE_string("nfe", BUDGETS, "network evaluations per sample, one column each")
    cli.integer_flag("num", None, "samples in a cell; by default 200 images, 2000 points of a target", 2, 1_000_000)
    flags.DEFINE_string("seeds", "", "instead of --num, the seeds themselves, such as 1000-1199")
    flags.DEFINE_enum("noise", None, ["independent", "brownian"], "instead of the config's; brownian: one path for all budgets")
    cli.path_flag("out", "", "where to write; by default the workdir, or runs/compare_TARGET")
    flags.DEFINE_bool("fresh", False, "make every cell anew")
    flags.DEFINE_bool("list", False, "print every sampler, grid, target and process, and stop")
    cli.launch(main, config="workdir", without=("list", "target"), short=("guidance",))
