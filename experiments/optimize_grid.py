"""Place a sampler's times for a model: gradient descent through the sampler on a few reference trajectories.

python -m experiments.optimize_grid --workdir=runs/a --sampler=multistep.dpmpp_2m --nfe=5,6,8,10
python -m experiments.optimize_grid --target=gmm8 --process='schedules.EDM()' --sampler=multistep.dpmpp_2m --nfe=5,8,10,20

For each budget the hand-made grids are tried, and the best two moved by Levenberg-Marquardt (samplers/grids.py, optimize) until the
sampler comes as close as it can to the exact solutions from --starts seeds. Everything told is measured on other seeds.
Writes WORKDIR/grids/NAME.json, .md and .png; every command on that workdir then takes --config.sampler.grid=NAME, or sampler@NAME, and any
command 'stored("PATH/NAME.json")'. An interrupted run goes on with the next budget.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from absl import flags

from experiments import cli

HAND_MADE = ("karras", "uniform_logsnr", "uniform", "quadratic", "cosine", "flow_shift", "align_your_steps")
PLACED = "placed"
FIRST_SEED = 1_000_000  # of the starts that times are placed by; far from those that they are judged by


def place(sampler, starts, held_out, nfe: int, *, iterations: int, tries: int) -> tuple[dict[str, dict], dict]:
    """(a row for every grid, {'ts', 'history'} of the placed one) at one budget. starts, held_out: (Subject, its exact x0)."""
    import jax.numpy as jnp

    from diffusion_jax import comparison, experiment
    from diffusion_jax.build import build
    from diffusion_jax.samplers import base, grids

    n, (subject, truth), (judging, solved) = base.points(sampler, nfe), starts, held_out
    run, judge = comparison.runner(subject, sampler, n), comparison.runner(judging, sampler, n)
    hand = {name: build(experiment.GRIDS, name, subject.process, n) for name in HAND_MADE}
    order = sorted(hand, key=lambda name: _rms(run(hand[name])[0], truth))
    x = base.start(subject.process, subject.keys, truth.shape, subject.dtype)
    found = [grids.optimize(sampler, subject.denoise(subject.params), subject.process, subject.keys, x, jnp.asarray(truth), hand[name],
                            subject.cond, iterations=iterations, tell=_tell(nfe, name)) for name in order[:tries]]  # fmt: skip
    best = min(found, key=lambda placement: placement.error)

    def row(name, ts) -> dict:
        out = judge(ts)[0]
        return {"sampler": name, "nfe": nfe, "error": _rms(out, solved)} | judging.judge(judging.finish(out), None)

    return {name: row(name, ts) for name, ts in {**hand, PLACED: best.ts}.items()}, {"ts": best.ts, "history": best.history}


def _rms(x, truth) -> float:
    import numpy as np

    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64) - truth)))) if np.isfinite(x).all() else float("inf")


def _tell(nfe: int, name: str):
    return lambda i, error: print(f"{nfe} NFE from {name}: iteration {i}, error on the starts {error:.4g}", file=sys.stderr, flush=True)


def report(rows: list[dict], quality: list[str]) -> str:
    """A line for each budget: the best hand-made grid beside the placed one, by every measure."""
    from diffusion_jax.comparison import NAMES
    from diffusion_jax.provenance import markdown_table

    table = []
    for nfe in sorted({row["nfe"] for row in rows}):
        line = {"nfe": nfe}
        for metric in ("error", *quality):
            hand = min((row for row in rows if row["nfe"] == nfe and row["sampler"] != PLACED), key=lambda row: row[metric])
            placed = next(row for row in rows if row["nfe"] == nfe and row["sampler"] == PLACED)
            line |= {f"{metric}.hand": f"{hand[metric]:.3g} ({hand['sampler']})", f"{metric}.placed": f"{placed[metric]:.3g}",
                     f"{metric}.ratio": f"{hand[metric] / placed[metric]:.2f}"}  # fmt: skip
        table.append(line)
    columns = {"nfe": "NFE"}
    for metric in ("error", *quality):
        columns |= {f"{metric}.hand": f"{NAMES[metric]}, best hand-made grid", f"{metric}.placed": PLACED, f"{metric}.ratio": "times smaller"}
    return markdown_table(table, columns)


def subjects(config, starts: int, num: int):
    """(starts, held_out), each a comparison.Subject with its exact x0, and what those are."""
    from diffusion_jax import comparison, experiment
    from diffusion_jax import workdir as folder

    FLAGS = flags.FLAGS
    seeds = range(FIRST_SEED, FIRST_SEED + starts), range(num)
    if FLAGS.target is not None:
        made = [comparison.of_target(FLAGS.target, FLAGS.process, list(part)) for part in seeds]
    else:
        trained, dataset = folder.load(FLAGS.workdir, config), experiment.dataset(config)
        made = [comparison.of_model(trained, dataset, list(part), Path(FLAGS.workdir).name, solved=len(part)) for part in seeds]
    print("solving for the exact trajectories ...", file=sys.stderr)
    exact = [subject.exact() for subject in made]
    return *((subject, x0) for subject, (x0, _) in zip(made, exact)), exact[0][1]


def run(config, root: Path, name: str) -> str:
    """Place the times for every budget and write what is found. Returns the text of NAME.md."""
    import jax.numpy as jnp
    import numpy as np

    from diffusion_jax import comparison, experiment, plotting, provenance
    from diffusion_jax.build import build
    from diffusion_jax.errors import UserError
    from diffusion_jax.processes import gaussian
    from diffusion_jax.samplers import base

    FLAGS = flags.FLAGS
    budgets, sampler = sorted(set(cli.integers("nfe", FLAGS.nfe))), build(experiment.SAMPLERS, FLAGS.sampler)
    if not budgets or base.adaptive(sampler) or any(base.points(sampler, nfe) < 2 for nfe in budgets):
        raise UserError(f"--sampler={FLAGS.sampler} --nfe={FLAGS.nfe}: a fixed-step sampler, and budgets that buy at least one step, are needed")
    starts, held_out, what = subjects(config, FLAGS.starts, FLAGS.num)
    stem, process = root / name, starts[0].process
    about = {"sampler": FLAGS.sampler, "starts": FLAGS.starts, "num": FLAGS.num, "iterations": FLAGS.iterations, "tries": FLAGS.tries,
             "subject": provenance.config_hash(held_out[0].identity)}  # fmt: skip
    kept = provenance.load_json(stem.with_suffix(".json")) if stem.with_suffix(".json").exists() else {}
    kept = kept if {key: kept.get(key) for key in about} == about else {"logsnr": {}, "rows": [], **about}
    for nfe in budgets:
        if any(row["nfe"] == nfe for row in kept["rows"]):
            continue
        rows, placed = place(sampler, starts, held_out, nfe, iterations=FLAGS.iterations, tries=FLAGS.tries)
        ts = placed["ts"]
        kept["logsnr"][str(len(ts))] = np.asarray(gaussian.logsnr(process, jnp.asarray(ts)), float).tolist()
        kept["rows"] += rows.values()
        kept["provenance"] = provenance.provenance(held_out[0].identity)
        provenance.save_json(stem.with_suffix(".json"), kept)
    quality = [metric for metric in comparison.QUALITY if metric in kept["rows"][0]]
    scores = held_out[0].judge(held_out[0].finish(held_out[1]), None)
    title = f"Times placed for {FLAGS.sampler} on {held_out[0].name}"
    text = (f"# {title}\n\nPlaced by {FLAGS.starts} trajectories; measured on {FLAGS.num} other seeds. The exact solution is {what}.\n\n"
            f"{report(kept['rows'], quality)}\n\nThe exact solution itself scores: "
            f"{', '.join(f'{comparison.NAMES[metric]} {scores[metric]:.3g}' for metric in quality)}.\n")  # fmt: skip
    with provenance.atomic_path(stem.with_suffix(".md")) as path:
        path.write_text(text, encoding="utf-8")
    plotting.placed_times(kept["rows"], {int(n): lam for n, lam in kept["logsnr"].items()}, ("error", *quality), stem.with_suffix(".png"), title=title)
    return text


def main(config) -> None:
    import jax

    FLAGS = flags.FLAGS
    name = FLAGS.name or re.sub("[^A-Za-z0-9]+", "_", FLAGS.sampler.rpartition(".")[2] if "(" not in FLAGS.sampler else FLAGS.sampler).strip("_")
    if FLAGS.target is not None:
        root = Path(FLAGS.out or f"runs/grids_{re.sub('[^A-Za-z0-9]+', '_', FLAGS.target).strip('_')}")
        with jax.enable_x64(True):
            text = run(config, root, name)
        use = f"""--samplers='{FLAGS.sampler}@stored("{root / name}.json")'"""
    else:
        root = Path(FLAGS.out or Path(FLAGS.workdir) / "grids")
        text, use = run(config, root, name), f"--config.sampler.name='{FLAGS.sampler}' --config.sampler.grid={name}"
    print(f"{text}\n{root / name}.json, .md, .png; to use it: {use}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "the folder of a trained model")
    flags.DEFINE_string("target", None, "instead of a model, an exact law: gmm8, 'gmm(modes=20, dim=16)', checkerboard, ...")
    flags.DEFINE_string("process", "schedules.EDM()", "the process of --target (a model has its own)")
    flags.DEFINE_string("sampler", "multistep.dpmpp_2m", "a deterministic sampler")
    flags.DEFINE_string("nfe", "5,6,8,10", "budgets, a grid for each")
    flags.DEFINE_integer("starts", 32, "trajectories that the times are placed by", lower_bound=1)
    flags.DEFINE_integer("num", 500, "other seeds, by which every grid is measured", lower_bound=10)
    flags.DEFINE_integer("iterations", 30, "of Levenberg-Marquardt, at most", lower_bound=1)
    flags.DEFINE_integer("tries", 2, "how many of the best hand-made grids to start from", lower_bound=1)
    flags.DEFINE_string("name", "", "of the grid; by default the sampler's")
    flags.DEFINE_string("out", "", "the folder; by default WORKDIR/grids, or runs/grids_TARGET")
    alone = any(arg.lstrip("-").partition("=")[0] == "target" for arg in sys.argv[1:])
    cli.launch(main, config="none" if alone else "workdir")
