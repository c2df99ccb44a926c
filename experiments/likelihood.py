"""Bits per dimension of held-out data under a trained model: by the probability flow, and by the variational bounds.

python -m experiments.likelihood --workdir=runs/a --num=200 --bounds

Prints a table and writes likelihood.md, likelihood.json and, image by image, likelihood.npz into the workdir. An interrupted
run goes on at the next batch; one with other settings starts anew. A model of classes is given the label of each image, a model of
captions none of them. Nothing is guided or clipped. The noise of an image depends on --seed and its place in the split alone.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Collection
from pathlib import Path

from absl import flags

from experiments import cli

SETTINGS = ("split", "unconditional", "dequantize", "levels", "iw", "trace", "probes", "solver", "rtol", "steps", "bounds",
            "moves", "grid", "draws", "seed")  # fmt: skip
DEQUANTIZED = {"uniform": "uniform dequantisation", "process": "dequantised by the process", "none": "as continuous data"}
TERMS = ("total", "prior", "diffusion", "reconstruction")


def resolved(chosen: dict, trained) -> dict:
    """SETTINGS, on which every value depends, with the automatic ones resolved. UserError for what does not fit together."""
    from diffusion_jax import experiment, likelihood
    from diffusion_jax.errors import UserError, unknown

    chosen, built = dict(chosen), trained.experiment
    chosen["dequantize"] = (chosen["dequantize"] or ("uniform" if experiment.is_image(built) else "none")).split(",")
    for name in chosen["dequantize"]:
        if name not in DEQUANTIZED:
            raise unknown("--dequantize", name, DEQUANTIZED)
    if not experiment.is_image(built) and (chosen["bounds"] or chosen["dequantize"] != ["none"]):
        raise UserError("--bounds and --dequantize are for images; these data are continuous: leave both out")
    if chosen["trace"] == "auto":
        chosen["trace"] = "exact" if math.prod(built.shape) <= likelihood.EXACT_DIMENSIONS else "rademacher"
    if chosen["trace"] not in (have := ("exact", "rademacher", "gaussian")):
        raise unknown("--trace", chosen["trace"], ("auto", *have))
    return chosen


def measures(trained, chosen: dict) -> dict:
    """{row: measure(params, keys, images (B, ...), cond) -> {name: (B,) or (B, K)}}, the rows of the table."""
    from diffusion_jax import experiment, likelihood
    from diffusion_jax.objectives import elbo

    built = trained.experiment
    process, levels, k = built.process, chosen["levels"], chosen["iw"]
    trace = likelihood.exact() if chosen["trace"] == "exact" else likelihood.hutchinson(chosen["probes"], chosen["trace"])
    solver = likelihood.solver(chosen["solver"], rtol=chosen["rtol"], steps=chosen["steps"])
    ts = experiment.grid(built, chosen["grid"], chosen["moves"] + 1) if chosen["bounds"] else None
    learned = built.config.model.to_dict().get("learn_variance", False)
    chain = {"variance": "learned" if learned else "small", "levels": levels}

    def flow(dequantize):
        def measure(denoise, x, keys, cond):
            found = likelihood.bits_per_dim(process, denoise, x, keys, cond, dequantize=dequantize, levels=levels, draws=k,
                                            trace=trace, solver=solver)  # fmt: skip
            return {"total": found.bits, "importance": found.importance, "log_weights": found.log_weights, "nfe": found.nfe}

        return measure

    found = {f"ODE_{name}": flow(name) for name in chosen["dequantize"]} | {
        "discrete": lambda denoise, x, keys, cond: elbo.vlb(process, denoise, x, keys, ts, cond, **chain) | {"nfe": len(ts)},
        "discrete_iw": lambda denoise, x, keys, cond: elbo.importance_vlb(process, denoise, x, keys, ts, cond, draws=k, **chain)
        | {"nfe": k * len(ts)},
        "continuous": lambda denoise, x, keys, cond: elbo.continuous_vlb(
            process, denoise, x, keys, cond, draws=chosen["draws"], levels=levels) | {"nfe": chosen["draws"] + 1},
    }  # fmt: skip
    if not chosen["bounds"]:
        found = {row: measure for row, measure in found.items() if row.startswith("ODE")}
    if k == 1:
        found.pop("discrete_iw", None)

    def with_params(measure):
        return lambda params, keys, x, cond: measure(experiment.denoiser(built, params, clip="none"), x, keys, cond)

    return {row: with_params(measure) for row, measure in found.items()}


def run(trained, dataset, chosen: dict, count: int, batch_size: int, parts: Path) -> dict:
    """{row.name: (N, ...)} for the split's first `count` images, and {row.seconds: ()}; finished batches stay in `parts`."""
    import jax
    import numpy as np

    from diffusion_jax import arrays, data, experiment, provenance
    from diffusion_jax.evaluation import generate

    built, examples = trained.experiment, data.arrays(getattr(dataset, chosen["split"]), count)
    count = len(examples["image"])
    labels = examples["label"] if built.num_classes and not chosen["unconditional"] else np.full(count, built.num_classes)
    images = examples["image"].astype(np.float32)
    images = images / 127.5 - 1 if experiment.is_image(built) else images
    programs = {row: jax.jit(measure) for row, measure in measures(trained, chosen).items()}

    def measure(keys, batch):
        args = trained.params, keys, batch["image"], {"label": batch["label"]} if built.num_classes else None
        part = {"index": batch["index"]}
        for row, program in programs.items():
            if hasattr(program, "lower"):  # the first batch: compiled before the clock starts
                programs[row] = program = program.lower(*args).compile()
            began = time.monotonic()
            part |= {f"{row}.{name}": np.asarray(value) for name, value in program(*args).items() if name != "terms"}
            part[f"{row}.seconds"] = time.monotonic() - began
        with provenance.atomic_path(parts / f"{batch['index'][0]:08d}.npz") as path, open(path, "wb") as file:
            np.savez(file, **part)
        return part["index"]

    done = {int(i) for part in measured_before(parts, programs) for i in part["index"]}
    left = np.array([i for i in range(count) if i not in done], int)
    if len(left):
        if done:
            print(f"{count - len(left)} images were measured before: going on", file=sys.stderr)
        keys = arrays.example_keys(jax.random.key(chosen["seed"]), count)
        batch = {"image": images[left], "label": labels[left].astype(np.int32), "index": left}
        size = min(batch_size, count)
        generate.generate(measure, keys[left], batch, batch_size=size, finish=np.asarray, description="likelihood")
    return gather(measured_before(parts, programs), count)


def measured_before(parts: Path, rows: Collection[str]) -> list[dict]:
    """The finished batches in a folder, {'index': (n,), 'row.name': (n, ...) or (1, ...), 'row.seconds': ()} of these rows.

    One that is damaged is removed after a warning, so that its images are measured again.
    """
    from diffusion_jax import reading

    found = []
    for file in sorted(parts.glob("[0-9]*.npz")):
        part = reading.kept(file, lambda file: _part(file, rows))
        if part is None:
            file.unlink()
        else:
            found.append(part)
    return found


def _part(file: Path, rows: Collection[str]) -> dict:
    """A finished batch. UserError for a file that is damaged, or whose arrays do not fit its images and these rows."""
    from diffusion_jax import reading
    from diffusion_jax.errors import UserError

    needed = {f"{row}.{name}": reading.Array("fiu", finite=False) for row in rows for name in ("total", "nfe")}
    needed |= {f"{row}.seconds": reading.Array("f", ()) for row in rows}
    index, other = {"index": reading.Array("iu", (None,))}, reading.Array("fiu", finite=False)
    part = reading.npz_file(file, index | needed, lambda name: other)
    count = len(part["index"])
    sizes = {name: value.shape[:1] for name, value in part.items() if not name.endswith(".seconds")}
    if part["index"].min(initial=0) < 0 or not set(sizes.values()) <= {(), (1,), (count,)}:
        raise UserError(f"'{file}' is damaged: its arrays do not fit each other")
    return part


def gather(parts: list, count: int) -> dict:
    """The batches put together by their images' indices; seconds and other scalars are summed."""
    import numpy as np

    found = {}
    for part in parts:
        keep = part["index"] < count
        for name in (name for name in part if name != "index"):
            values = part[name]
            if name.endswith(".seconds"):
                found[name] = found.get(name, 0.0) + values
            else:
                values = np.broadcast_to(values, (len(keep), *values.shape[1:]))
                found.setdefault(name, np.zeros((count, *values.shape[1:])))[part["index"][keep]] = values[keep]
    return found


def table(values: dict, chosen: dict) -> list[dict]:
    """One row per measure: {'measure', 'bits', 'error', the three terms, 'nfe', 'seconds'}, means over images."""
    from diffusion_jax.errors import UserError
    from diffusion_jax.likelihood import mean_with_error

    k, names = chosen["iw"], []
    for kind in chosen["dequantize"]:
        names += [(f"ODE_{kind}", "total", f"ODE, {DEQUANTIZED[kind]}")]
        names += [(f"ODE_{kind}", "importance", f"ODE, {DEQUANTIZED[kind]}, importance-weighted over {k}")] * (k > 1)
    names += [("discrete", "total", f"discrete bound, {chosen['moves']} moves"),
              ("discrete_iw", "total", f"discrete bound, importance-weighted over {k} chains"),
              ("continuous", "total", f"continuous bound, {chosen['draws']} times an image")]  # fmt: skip
    rows = []
    for row, name, title in names:
        if f"{row}.{name}" not in values:
            continue
        mean, error = mean_with_error(values[f"{row}.{name}"])
        if not math.isfinite(mean):
            raise UserError(f"{title} is not finite: the solve ran out of steps; raise --rtol or take --solver=rk4")
        terms = {term: mean_with_error(values[f"{row}.{term}"]) for term in TERMS[1:] if f"{row}.{term}" in values}
        rows.append({"measure": title, "bits": mean, "error": error, "nfe": float(values[f"{row}.nfe"].mean()),
                     "seconds": float(values[f"{row}.seconds"]), **terms})  # fmt: skip
    return rows


def report(rows: list[dict]) -> str:
    """The rows as a table in markdown."""
    from diffusion_jax.provenance import markdown_table

    show = lambda mean, error: f"{mean:.4f} ± {error:.4f}"  # noqa: E731
    shown = [{key: show(*value) if isinstance(value, tuple) else value for key, value in row.items()}
             | {"bits": show(row["bits"], row["error"]), "nfe": round(row["nfe"], 1)} for row in rows]  # fmt: skip
    columns = {"measure": "measure", "bits": "bits/dim"} | {t: t for t in TERMS[1:] if any(t in row for row in rows)}
    return markdown_table(shown, columns | {"nfe": "NFE", "seconds": "seconds"})


def main(config) -> None:
    import shutil

    from diffusion_jax import experiment, provenance
    from diffusion_jax import workdir as folder
    from diffusion_jax.evaluation import generate

    FLAGS = flags.FLAGS
    trained, stem = folder.load(FLAGS.workdir, config), Path(FLAGS.workdir) / "likelihood"
    experiment.need_pixels(trained.experiment)
    chosen = resolved({name: FLAGS[name].value for name in SETTINGS}, trained)
    told = {"settings": chosen, "step": trained.step, "weights": trained.weights, "config": config.to_dict()}
    parts = stem.with_suffix(".parts") / provenance.config_hash(told)[:16]
    print(f"{FLAGS.workdir}: step {trained.step}, weights {trained.weights}, solver {chosen['solver']}, "
          f"trace {chosen['trace']}; without guidance{', clipping and captions' if trained.experiment.encoder else ' and clipping'}",
          file=sys.stderr)  # fmt: skip
    values = run(trained, folder.dataset(config, FLAGS.workdir), chosen, FLAGS.num or sys.maxsize, FLAGS.batch_size, parts)
    rows = table(values, chosen)
    count = len(next(v for name, v in values.items() if name.endswith(".total")))
    title = (f"Bits per dimension of {count} {FLAGS.split} images of {config.data.name} under {Path(FLAGS.workdir).name}, "
             "mean ± standard error over images")  # fmt: skip
    provenance.save_text(stem.with_suffix(".md"), f"# {title}\n\n{report(rows)}")
    generate.save_npz(stem.with_suffix(".npz"), None, **values)
    provenance.save_json(stem.with_suffix(".json"), {
        "rows": rows, "count": count, **told, "provenance": provenance.provenance(config.to_dict(), FLAGS.seed)})  # fmt: skip
    shutil.rmtree(parts)  # what runs with other settings have begun stays
    if not any(parts.parent.iterdir()):
        parts.parent.rmdir()
    print(report(rows))


if __name__ == "__main__":
    cli.path_flag("workdir", None, "the folder of a trained model", required=True)
    cli.integer_flag("num", 0, "how many images, from the first of the split; 0: all", 0, 1_000_000)
    flags.DEFINE_enum("split", "test", ("test", "train"), "which images")
    flags.DEFINE_bool("unconditional", False, "tell a conditional model no label")
    flags.DEFINE_string("dequantize", "", "uniform, process or none, or several with commas; by default uniform for images")
    cli.integer_flag("levels", 256, "values that a pixel takes", 2, 65_536)
    cli.integer_flag("iw", 1, "importance-weighted over this many dequantisations (and chains)", 1, 10_000)
    flags.DEFINE_string("trace", "auto", "exact, rademacher or gaussian; auto: exact up to 32 dimensions, else rademacher")
    cli.integer_flag("probes", 1, "random directions of an inexact trace", 1, 10_000)
    flags.DEFINE_string("solver", "tsit5", "adaptive: tsit5, dopri5, dopri8; on a fixed grid of log-SNRs: euler, heun, rk4")
    flags.DEFINE_float("rtol", 1e-3, "tolerance of an adaptive solver, also in nats per dimension", lower_bound=1e-7, upper_bound=1)
    cli.integer_flag("steps", 64, "steps of a solver on a fixed grid", 1, 100_000)
    flags.DEFINE_bool("bounds", False, "the variational bounds too")
    cli.integer_flag("moves", 256, "moves of the discrete bound", 1, 100_000)
    flags.DEFINE_string("grid", "uniform_logsnr", "where they stop: a grid of samplers/grids.py")
    cli.integer_flag("draws", 64, "times an image of the continuous bound", 2, 100_000)
    cli.integer_flag("seed", 0, "of all noise", 0, 2**32 - 1)
    cli.integer_flag("batch_size", 100, "images at once; changes no value", 1, 65_536)
    cli.launch(main, config="workdir", short=())
