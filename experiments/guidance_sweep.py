"""How much guidance, and which? Fidelity against diversity over the scale, for several guidances, from the same seeds.

python -m experiments.guidance_sweep --workdir=runs/a --guides='cfg(); interval(high=2.0); autoguidance(step=300)' --num=1000
python -m experiments.guidance_sweep --mixture --out=docs/images/guidance_mixture.png

Writes guidance_sweep.md, .json, .png and _strips.png into the workdir. Finished cells are kept in guidance_sweep/ there, and
not made again. A guide is compiled once for all scales. --mixture draws the same for a mixture whose denoisers are exact.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from absl import flags

from experiments import cli

SHOWN = 10  # images of a strip
PREFERRED = ("accuracy", "precision", "frechet", "recall", "coverage")  # of the scores, in the table
GUIDES = "cfg(); cfg(rescale=0.7); interval(low=0.2, high=3.0)"


def scales_of(text: str) -> list[float]:
    """'0,1,2' -> [0.0, 1.0, 2.0]. UserError for anything else."""
    return sorted(set(cli.numbers("scales", text, 0, 1000)))


def sweep(trained_by: Mapping[str, object], scales: Sequence[float], judged: Callable, cond, count: int, batch_size: int, mesh,
          folder: Path, told: Mapping) -> list[dict]:  # fmt: skip
    """A row {'guide', 'scale', 'shown' (SHOWN images), score: value} for each cell, which is kept in `folder`.

    trained_by: guide -> workdir.Trained with it. cond: of the `count` images, which like their seeds are those of every cell.
    """
    import json

    from diffusion_jax import provenance, reading
    from diffusion_jax.evaluation import generate
    from diffusion_jax.evaluation.progress import progress

    def place(guide, scale):
        words = provenance.canonical_json({**told, "guide": guide, "scale": scale})
        return folder / f"{hashlib.sha256(words.encode()).hexdigest()[:16]}.npz"

    cells = [(guide, scale, place(guide, scale)) for guide in trained_by for scale in scales]
    missing = [cell for cell in cells if reading.kept(cell[2], _cell) is None]
    with progress(len(missing) * count, "guidance sweep", enabled=bool(missing)) as advance:
        runs = {guide: _sampler(trained, mesh) for guide, trained in trained_by.items()}
        for guide, scale, path in missing:
            images = _draw(runs[guide], scale, cond, count, batch_size, advance)
            generate.save_npz(path, images[:SHOWN], scores=json.dumps(judged(images)))
    return [{"guide": guide, "scale": scale} | _cell(path) for guide, scale, path in cells]


def _cell(path: Path) -> dict:
    """{'shown': images, score: value} of a finished cell. UserError for a file that is damaged."""
    from diffusion_jax import reading

    found = reading.npz_file(path, {"images": reading.Array("u", (None, None, None, None)), "scores": reading.Array("U", ())})
    scores = reading.json_text(str(found["scores"]), f"the scores in '{path}'", reading.table(reading.number(finite=False)))
    return {"shown": found["images"]} | scores


def _sampler(trained, mesh) -> Callable:
    """(keys, cond, scale) -> images, one program for all scales, which at the neutral one gives the model itself."""
    import numpy as np

    from diffusion_jax import experiment
    from diffusion_jax.training import sharding

    built, chosen = trained.experiment, experiment.plan(trained.experiment)
    run = experiment.sample_fn(built, chosen.sampler, guided=True, clip=chosen.clip, noise=chosen.noise)
    everywhere, params = sharding.spread(run, mesh), experiment.ensemble(built, trained.params)
    return lambda keys, cond, scale: everywhere(params, (keys, cond), np.asarray(chosen.ts), np.float32(scale))


def _draw(run: Callable, scale: float, cond, count: int, batch_size: int, advance: Callable):
    """uint8 images of the seeds 0 to count - 1 and their conditions."""
    from diffusion_jax.evaluation import generate

    left = count

    def draw(keys, cond):
        nonlocal left
        images = run(keys, cond, scale)
        advance(min(left, len(keys)))
        left -= len(keys)
        return images

    keys = generate.seeds_to_keys(range(count))
    return generate.generate(draw, keys, cond, batch_size=min(batch_size, count), progress=False)


def report(rows: Sequence[Mapping], real: Mapping) -> str:
    """The table in markdown: every guide at every scale, and real test images as the yardstick."""
    from diffusion_jax.provenance import markdown_table

    from experiments.evaluate import title_of

    metrics = [key for key in PREFERRED if key in rows[0]] + [key for key in rows[0] if key.partition("/")[1]]
    percent = lambda key, value: f"{100 * value:.1f} %" if key.partition("/")[0] == "accuracy" else f"{value:.3f}"  # noqa: E731
    every = [*rows, {"guide": "real test images, as many", "scale": None} | dict(real)]
    shown = [{"guide": row["guide"], "scale": None if row["scale"] is None else f"{row['scale']:g}"}
             | {key: percent(key, row[key]) for key in metrics if key in row} for row in every]  # fmt: skip
    return markdown_table(shown, {"guide": "guide", "scale": "scale"} | {key: title_of(key) for key in metrics})


def on_model(config, workdir: Path, guides: Sequence[str], scales: Sequence[float], count: int, features: str) -> str:
    """Sweep a trained model and write everything. Returns the text of guidance_sweep.md."""
    from diffusion_jax import experiment, plotting, provenance
    from diffusion_jax import workdir as folder
    from diffusion_jax.evaluation import judge

    mesh = experiment.sampling_mesh(config)
    trained = folder.load(workdir, config, mesh)
    experiment.need_images(trained.experiment)
    trained_by = {guide: folder.with_guide(trained, guide, workdir, mesh) for guide in guides}  # mistakes are reported at once
    for guide, one in trained_by.items():
        for scale in scales:
            experiment.is_guided(one.experiment, scale, key=f"--guides='{guide}' at scale")
    dataset = folder.images(config, workdir)
    labels, cond = experiment.conditions(trained.experiment, dataset, count)
    chosen = cli.names(features) or [judge.default_features(dataset.train)]
    judged = judge.against(dataset.train, labels, features=chosen, metrics=("accuracy", "frechet", "prdc"), count=count)
    real = judge.on_real(dataset.train, dataset.test, judged, count)  # as many as in a cell: recall depends on how many there are
    sampler = {key: value for key, value in config.sampler.items() if key not in ("guide", "guidance", "batch_size")}
    told = {"num": count, "features": ",".join(chosen), "step": trained.step, "weights": trained.weights,
            "config": config.to_dict() | {"sampler": sampler}}  # fmt: skip
    rows = sweep(trained_by, scales, judged, cond, count, config.sampler.batch_size, mesh, workdir / "guidance_sweep", told)
    others = {guide: [found.config.to_dict() for found, _ in one.experiment.others] for guide, one in trained_by.items()}
    provenance.save_json(workdir / "guidance_sweep.json", told | {
        "rows": [{key: value for key, value in row.items() if key != "shown"} for row in rows], "real": real, "others": others,
        "provenance": provenance.provenance(config.to_dict(), config.seed)})  # fmt: skip
    title = (f"Guidance on {workdir.name}, step {trained.step}: {count} images a cell, {config.sampler.name}, "
             f"{experiment.evaluations(experiment.plan(trained.experiment))} evaluations")  # fmt: skip
    plain = lambda row: {key.removesuffix(f"/{chosen[0]}"): value for key, value in row.items()}  # noqa: E731
    plotting.guidance_curves([plain(row) for row in rows], workdir / "guidance_sweep.png", floor=plain(real), title=title)
    tiles = {(row["guide"], row["scale"]): plotting.mosaic(row["shown"], 2, scale=max(1, round(28 / row["shown"].shape[1])))
             for row in rows}  # fmt: skip
    plotting.strips(tiles, workdir / "guidance_sweep_strips.png", columns={scale: f"scale {scale:g}" for scale in scales},
                    title=f"The same {SHOWN} seeds at every scale")  # fmt: skip
    text = f"# {title}\n\n{report(rows, real)}"
    provenance.save_text(workdir / "guidance_sweep.md", text)
    return text


def on_mixture(scales: Sequence[float], path: Path, count: int = 10_000) -> None:
    """The picture of what guidance does to a law whose denoisers are exact: one class of three that overlap in the plane."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from diffusion_jax import guidance, plotting, targets
    from diffusion_jax.processes import schedules
    from diffusion_jax.samplers import base, grids, ode

    angle = 2 * np.pi * np.arange(6) / 6
    law = targets.mixture(np.ones(6), np.stack([np.cos(angle), np.sin(angle)], 1), 0.28)
    labels, process, key = np.array([0, 0, 1, 1, 2, 2]), schedules.EDM(sigma_max=20.0), jax.random.key(0)
    denoise = targets.denoise_mixture(law, process, labels)
    worse = targets.denoise_mixture(law._replace(variances=4 * law.variances), process, labels)  # as if less trained
    cfg = lambda scale: guidance.cfg(denoise, scale, lambda cond: {"label": jnp.full_like(cond["label"], -1)})  # noqa: E731
    guided = {
        "cfg": cfg,
        "cfg, σ / α in (0.2, 1]": lambda scale: guidance.interval(cfg(scale), denoise, process, 0.2, 1.0),
        "autoguidance": lambda scale: guidance.autoguidance(denoise, worse, scale),
    }
    ts, cond, t = grids.karras(process, 32), {"label": jnp.zeros(count, jnp.int32)}, jnp.float32(process.t_min)
    own = targets.draw_mixture(targets.Mixture(*(part[:2] for part in law)), key, count)
    tiles, captions, spread = {}, {}, lambda x: np.sqrt(np.var(np.asarray(x), 0).sum())
    for name, make in guided.items():
        @jax.jit
        def draw(scale):
            x = base.sample(ode.edm_heun(), make(scale), process, key, base.start(process, key, (count, 2)), ts, cond)
            joint = targets.log_density_mixture(law, process, x, t, labels, cond)
            return x, jnp.mean(jnp.exp(joint - targets.log_density_mixture(law, process, x, t)))

        for scale in scales:
            x, sure = draw(scale)
            tiles[name, scale] = plotting.density(np.asarray(x), ((-2, -2), (2, 2)), side=170)
            captions[name, scale] = f"p(class | x) {100 * sure:.0f} %\nspread {spread(x) / spread(own):.2f} of the class's"
    plotting.strips(tiles, path, captions=captions, columns={scale: f"scale {scale:g}" for scale in scales},
                    title="One class of three, by exact denoisers")  # fmt: skip


def main(config) -> None:
    from diffusion_jax.errors import UserError

    FLAGS = flags.FLAGS
    scales = scales_of(FLAGS.scales)
    if FLAGS.mixture:
        path = cli.output("out", FLAGS.out, ".png")[".png"]
        on_mixture(scales, path)
        print(path)
        return
    guides = [part.strip() for part in FLAGS.guides.split(";") if part.strip()]
    if not guides:
        raise UserError(f"--guides is empty; name some, separated by ';', such as '{GUIDES}'")
    text = on_model(config, Path(FLAGS.workdir), guides, scales, FLAGS.num, FLAGS.features)
    print(f"{text}\n{Path(FLAGS.workdir) / 'guidance_sweep.png'} and guidance_sweep_strips.png show it", file=sys.stdout)


if __name__ == "__main__":
    cli.path_flag("workdir", None, "the folder of a trained model")
    flags.DEFINE_string("scales", "0,0.5,1,1.5,2,3,4,6", "of guidance, with commas; 1: none")
    flags.DEFINE_string("guides", GUIDES, "separated by ';'; see diffusion_jax/guides.py")
    cli.integer_flag("num", 1000, "images in each cell", 10, 1_000_000)
    flags.DEFINE_string("features", "", "features of the images, with commas, as in experiments.evaluate; the figure shows the first")
    flags.DEFINE_bool("mixture", False, "instead of a model, the picture of a mixture with exact denoisers")
    cli.path_flag("out", "guidance_mixture.png", "where --mixture writes")
    cli.launch(main, config="workdir", without=("mixture",), short=("sampler", "nfe"))
