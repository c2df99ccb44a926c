"""Likelihoods of a data set under a trained model."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Collection
from pathlib import Path

import jax
import numpy as np

from diffusion_jax import arrays, data, files, npz, reading
from diffusion_jax.assembly import denoiser, experiment, sampling
from diffusion_jax.errors import UserError, unknown
from diffusion_jax.evaluation import generate
from diffusion_jax.likelihood import bounds, flow
from diffusion_jax.likelihood.flow import mean_with_error
from diffusion_jax.report.tables import markdown_table

SETTINGS = (
    "split",
    "unconditional",
    "dequantize",
    "levels",
    "iw",
    "trace",
    "probes",
    "solver",
    "rtol",
    "steps",
    "bounds",
    "moves",
    "grid",
    "draws",
    "seed",
)

DEQUANTIZED = {
    "uniform": "uniform dequantisation",
    "process": "dequantised by the process",
    "none": "as continuous data",
}

TERMS = ("total", "prior", "diffusion", "reconstruction")


def resolved(chosen: dict, trained) -> dict:
    """SETTINGS, on which every value depends, with the automatic ones resolved. UserError for what
    does not fit together.
    """
    chosen, built = dict(chosen), trained.experiment
    chosen["dequantize"] = (
        chosen["dequantize"] or ("uniform" if experiment.is_image(built) else "none")
    ).split(",")
    for name in chosen["dequantize"]:
        if name not in DEQUANTIZED:
            raise unknown("--dequantize", name, DEQUANTIZED)
    if not experiment.is_image(built) and (chosen["bounds"] or chosen["dequantize"] != ["none"]):
        raise UserError(
            "--bounds and --dequantize are for images; these data are continuous: leave both out"
        )
    if chosen["trace"] == "auto":
        chosen["trace"] = (
            "exact" if math.prod(built.shape) <= flow.EXACT_DIMENSIONS else "rademacher"
        )
    if chosen["trace"] not in (have := ("exact", "rademacher", "gaussian")):
        raise unknown("--trace", chosen["trace"], ("auto", *have))
    return chosen


def measures(trained, chosen: dict) -> dict:
    """{row: measure(params, keys, images (B, ...), cond) -> {name: (B,) or (B, K)}}, the rows of
    the table.
    """
    built = trained.experiment
    process, levels, k = built.process, chosen["levels"], chosen["iw"]
    trace = (
        flow.exact()
        if chosen["trace"] == "exact"
        else flow.hutchinson(chosen["probes"], chosen["trace"])
    )
    solver = flow.solver(chosen["solver"], rtol=chosen["rtol"], steps=chosen["steps"])
    ts = sampling.grid(built, chosen["grid"], chosen["moves"] + 1) if chosen["bounds"] else None
    learned = built.config.model.to_dict().get("learn_variance", False)
    chain = {"variance": "learned" if learned else "small", "levels": levels}

    def measure_flow(dequantize):
        def measure(denoise, x, keys, cond):
            found = flow.bits_per_dim(
                process,
                denoise,
                x,
                keys,
                cond,
                dequantize=dequantize,
                levels=levels,
                draws=k,
                trace=trace,
                solver=solver,
            )
            return {
                "total": found.bits,
                "importance": found.importance,
                "log_weights": found.log_weights,
                "nfe": found.nfe,
            }

        return measure

    found = {f"ODE_{name}": measure_flow(name) for name in chosen["dequantize"]} | {
        "discrete": lambda denoise, x, keys, cond: (
            bounds.vlb(process, denoise, x, keys, ts, cond, **chain) | {"nfe": len(ts)}
        ),
        "discrete_iw": lambda denoise, x, keys, cond: (
            bounds.importance_vlb(process, denoise, x, keys, ts, cond, draws=k, **chain)
            | {"nfe": k * len(ts)}
        ),
        "continuous": lambda denoise, x, keys, cond: (
            bounds.continuous_vlb(
                process, denoise, x, keys, cond, draws=chosen["draws"], levels=levels
            )
            | {"nfe": chosen["draws"] + 1}
        ),
    }
    if not chosen["bounds"]:
        found = {row: measure for row, measure in found.items() if row.startswith("ODE")}
    if k == 1:
        found.pop("discrete_iw", None)

    def with_params(measure):
        return lambda params, keys, x, cond: measure(
            denoiser.denoiser(built, params, clip="none"), x, keys, cond
        )

    return {row: with_params(measure) for row, measure in found.items()}


def run(trained, dataset, chosen: dict, count: int, batch_size: int, parts: Path) -> dict:
    """{row.name: (N, ...)} for the split's first `count` images, and {row.seconds: ()}; finished
    batches stay in `parts`.
    """
    built, examples = trained.experiment, data.arrays(getattr(dataset, chosen["split"]), count)
    count = len(examples["image"])
    labels = (
        examples["label"]
        if built.num_classes and not chosen["unconditional"]
        else np.full(count, built.num_classes)
    )
    images = data.transforms.to_float(examples["image"])
    programs = {row: jax.jit(measure) for row, measure in measures(trained, chosen).items()}

    def measure(keys, batch):
        args = (
            trained.params,
            keys,
            batch["image"],
            {"label": batch["label"]} if built.num_classes else None,
        )
        part = {"index": batch["index"]}
        for row, program in programs.items():
            if hasattr(program, "lower"):  # the first batch: compiled before the clock starts
                programs[row] = program = program.lower(*args).compile()
            began = time.monotonic()
            part |= {
                f"{row}.{name}": np.asarray(value)
                for name, value in program(*args).items()
                if name != "terms"
            }
            part[f"{row}.seconds"] = time.monotonic() - began
        with (
            files.atomic_path(parts / f"{batch['index'][0]:08d}.npz") as path,
            open(path, "wb") as file,
        ):
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
        generate.generate(
            measure, keys[left], batch, batch_size=size, finish=np.asarray, description="likelihood"
        )
    return gather(measured_before(parts, programs), count)


def measured_before(parts: Path, rows: Collection[str]) -> list[dict]:
    """The finished batches in a folder, {'index': (n,), 'row.name': (n, ...) or (1, ...),
    'row.seconds': ()} of these rows.

    One that is damaged is removed after a warning, so that its images are measured again.
    """
    found = []
    for file in sorted(parts.glob("[0-9]*.npz")):
        part = reading.kept(file, lambda file: _part(file, rows))
        if part is None:
            file.unlink()
        else:
            found.append(part)
    return found


def _part(file: Path, rows: Collection[str]) -> dict:
    """A finished batch. UserError for a file that is damaged, or whose arrays do not fit its images
    and these rows.
    """
    needed = {
        f"{row}.{name}": npz.ArraySpec("fiu", finite=False)
        for row in rows
        for name in ("total", "nfe")
    }
    needed |= {f"{row}.seconds": npz.ArraySpec("f", ()) for row in rows}
    index, other = {"index": npz.ArraySpec("iu", (None,))}, npz.ArraySpec("fiu", finite=False)
    part = npz.load(file, index | needed, lambda name: other)
    count = len(part["index"])
    sizes = {name: value.shape[:1] for name, value in part.items() if not name.endswith(".seconds")}
    if part["index"].min(initial=0) < 0 or not set(sizes.values()) <= {(), (1,), (count,)}:
        raise UserError(f"'{file}' is damaged: its arrays do not fit each other")
    return part


def gather(parts: list, count: int) -> dict:
    """The batches put together by their images' indices; seconds and other scalars are summed."""
    found = {}
    for part in parts:
        keep = part["index"] < count
        for name in (name for name in part if name != "index"):
            values = part[name]
            if name.endswith(".seconds"):
                found[name] = found.get(name, 0.0) + values
            else:
                values = np.broadcast_to(values, (len(keep), *values.shape[1:]))
                found.setdefault(name, np.zeros((count, *values.shape[1:])))[
                    part["index"][keep]
                ] = values[keep]
    return found


def table(values: dict, chosen: dict) -> list[dict]:
    """One row per measure: {'measure', 'bits', 'error', the three terms, 'nfe', 'seconds'}, means
    over images.
    """
    k, names = chosen["iw"], []
    for kind in chosen["dequantize"]:
        names += [(f"ODE_{kind}", "total", f"ODE, {DEQUANTIZED[kind]}")]
        names += [
            (f"ODE_{kind}", "importance", f"ODE, {DEQUANTIZED[kind]}, importance-weighted over {k}")
        ] * (k > 1)
    names += [
        ("discrete", "total", f"discrete bound, {chosen['moves']} moves"),
        ("discrete_iw", "total", f"discrete bound, importance-weighted over {k} chains"),
        ("continuous", "total", f"continuous bound, {chosen['draws']} times an image"),
    ]
    rows = []
    for row, name, title in names:
        if f"{row}.{name}" not in values:
            continue
        mean, error = mean_with_error(values[f"{row}.{name}"])
        if not math.isfinite(mean):
            raise UserError(
                f"{title} is not finite: the solve ran out of steps; raise --rtol or take --solver=rk4"
            )
        terms = {
            term: mean_with_error(values[f"{row}.{term}"])
            for term in TERMS[1:]
            if f"{row}.{term}" in values
        }
        rows.append(
            {
                "measure": title,
                "bits": mean,
                "error": error,
                "nfe": float(values[f"{row}.nfe"].mean()),
                "seconds": float(values[f"{row}.seconds"]),
                **terms,
            }
        )
    return rows


def report(rows: list[dict]) -> str:
    """The rows as a table in markdown."""

    def show(mean, error):
        return f"{mean:.4f} ± {error:.4f}"

    shown = [
        {key: show(*value) if isinstance(value, tuple) else value for key, value in row.items()}
        | {"bits": show(row["bits"], row["error"]), "nfe": round(row["nfe"], 1)}
        for row in rows
    ]
    columns = {"measure": "measure", "bits": "bits/dim"} | {
        t: t for t in TERMS[1:] if any(t in row for row in rows)
    }
    return markdown_table(shown, columns | {"nfe": "NFE", "seconds": "seconds"})
