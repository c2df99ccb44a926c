"""Why diffusion rather than a VAE? Every family on one data set, with as many parameters and as many seconds to train.

python -m experiments.compare_families --config=configs/families.py:digits --workdir=runs/families
python -m experiments.compare_families --config=configs/families.py:mnist --config.data.path=FOLDER --workdir=runs/f_mnist
python -m experiments.compare_families --config=configs/families.py:digits --workdir=runs/a --families='vae;ddpm' --seeds=0
python -m experiments.compare_families --config=configs/families.py:digits --workdir=runs/families --others=runs/few_step/ect

Every family is trained in WORKDIR/NAME_SEED, an ordinary workdir which every other command takes, from the first seed, and
those of config.repeated from every seed. How many steps its seconds buy is measured first, and kept, so that the same command
goes on where it was stopped. --others: workdirs that are there, as those of experiments.few_step, measured beside them; their
seconds are their own, not a teacher's. Writes families.html, which holds everything: the claims of the textbook with what was
measured of each, pictures, all numbers; and families.md, .json, .png.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments import cli, train

SHOWN = 20  # images of a strip
TRIED = 12  # steps by which the speed of training is measured
METRICS = {  # key -> (heading, factor, digits)
    "accuracy": ("recognized (%)", 100, 1),
    "frechet": ("Fréchet distance", 1, 3),
    "precision": ("precision", 1, 3),
    "recall": ("recall", 1, 3),
    "laplacian": ("Laplacian variance / real", 1, 2),
    "high_frequency": ("high-frequency energy / real", 1, 2),
    "active_units": ("active units", 1, 1),
    "rate": ("rate, KL (nats)", 1, 2),
    "distortion": ("distortion (nats)", 1, 1),
    "bits": ("likelihood or bound (bits/dim)", 1, 3),
    "milliseconds": ("milliseconds per image", 1, 2),
    "train_seconds": ("training, with compilation (s)", 1, 0),
    "steps": ("steps", 1, 0),
    "parameters": ("parameters", 1, 0),
}
SHARPNESS = ("laplacian", "high_frequency")
DRAWN = ("laplacian", "high_frequency", "frechet", "precision", "recall", "accuracy", "milliseconds")


# ---- one family ------------------------------------------------------------------------------------------------------------


def steps_for(config, dataset, seconds: float, root: Path) -> int:
    """How many training steps of this config so many seconds buy on this machine, compilation aside."""
    import jax

    from diffusion_jax import data, experiment
    from diffusion_jax import workdir as folder
    from diffusion_jax.training import loop

    built = folder.for_training(config, dataset, root)
    parts, k = experiment.training(built), config.training.steps_per_call
    state = parts.runner.init(parts.init, jax.random.key(config.seed))
    batch = data.batches(dataset.train, batch_size=config.data.batch_size, seed=config.seed, flip=config.data.flip)
    put, took = parts.runner.put_batch(loop.stack(batch, k)(0), axis=1), []
    for _ in range(2 + math.ceil(TRIED / k)):  # the first two compile, or warm up
        began = time.monotonic()
        state, numbers = parts.step(state, put)
        jax.block_until_ready(numbers)
        took.append(time.monotonic() - began)
    return max(k, round(seconds / sorted(took[2:])[len(took[2:]) // 2]) * k)


def with_budget(config, dataset, seconds: float, seed: int, steps: int, root: Path):
    """The config for this seed and so many steps (0: as many as the seconds buy), with a loss curve and one checkpoint."""
    config = config.copy_and_resolve_references().unlock()
    config.seed = seed
    config.training.steps = steps or steps_for(config, dataset, seconds, root)
    config.training.update(eval_every=0, sample_every=0, checkpoint_every=config.training.steps, keep=1,
                           log_every=max(1, config.training.steps // 20))  # fmt: skip
    return config.lock()


def measured(trained, dataset, judged: Callable, count: int, images_of_likelihood: int, name: str) -> tuple[dict, Any]:
    """(what a trained model scores, its first images)."""
    import jax

    from diffusion_jax import autoencoders, data, experiment
    from diffusion_jax.evaluation import generate, sharpness

    built = trained.experiment
    run = experiment.sample_with(built, trained.params, experiment.plan(built))
    batch = min(built.config.sampler.batch_size, count)
    keys, (labels, cond) = generate.seeds_to_keys(range(count)), experiment.conditions(built, dataset, count)
    run(keys[:batch], jax.tree.map(lambda c: c[:batch], cond))  # compiled before the clock starts
    began = time.monotonic()
    images = generate.generate(run, keys, cond, batch_size=batch, description=name)
    scores = {"milliseconds": 1000 * (time.monotonic() - began) / count}
    scores |= judged(images) if labels is None else judged(images, labels)
    scores |= sharpness.relative(images, data.arrays(dataset.test)["image"])
    scores["parameters"] = sum(x.size for x in jax.tree.leaves(experiment.ensemble(built, trained.params)))
    if experiment.is_autoencoder(built):
        found = autoencoders.held_out(built, trained.params, dataset.test)
        scores |= {key: found[key] for key in ("active_units", "units", "rate", "distortion", "iw_bound")}
        if built.objective.likelihood.of_greys:
            scores["bits"] = -found["iw_bound"] / math.log(2) / math.prod(built.shape)
    elif images_of_likelihood and not built.latents:
        scores["bits"] = _bits(trained, dataset, images_of_likelihood)
    return scores, images[:SHOWN]


def _bits(trained, dataset, count: int) -> float:
    """Bits per dimension of the first test images by the probability flow, dequantised by the process."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from diffusion_jax import arrays, data, experiment, likelihood

    built, examples = trained.experiment, data.arrays(dataset.test, count)
    images = jnp.asarray(examples["image"], jnp.float32) / 127.5 - 1
    cond = experiment.cond_for(built, examples["label"] if built.num_classes else np.zeros(0, int))
    keys = arrays.example_keys(jax.random.key(0), len(images))

    @jax.jit
    def run(params, x, keys, cond):
        denoise = experiment.denoiser(built, params, clip="none")
        return likelihood.bits_per_dim(built.process, denoise, x, keys, cond, dequantize="process").bits

    return float(run(trained.params, images, keys, cond).mean())


# ---- the claims of the textbook --------------------------------------------------------------------------------------------


class Claim(NamedTuple):
    """A sentence of the textbook; the families that it is about; decide(their rows, each metric -> (mean, std over seeds)) ->
    (holds: yes, no or None where seeds cannot tell, what was measured).
    """

    text: str
    about: tuple[str, ...]
    decide: Callable[..., tuple[bool | None, str]]


Scored = Mapping[str, tuple[float, float]]


def less(metric: str, digits: int = 3, factor: float = 1.0) -> Callable:
    """decide: the metric is less for the first family than for the second, by more than two standard errors of their seeds."""

    def decide(a: Scored, b: Scored) -> tuple[bool | None, str]:
        (x, dx), (y, dy) = a[metric], b[metric]
        noise = 2 * math.hypot(dx, dy)
        show = lambda v, d: f"{factor * v:.{digits}f}" + (f" ± {factor * d:.{digits}f}" if d else "")  # noqa: E731
        name = METRICS[metric][0]
        return None if abs(x - y) <= noise else x < y, f"{name}: {show(x, dx)} against {show(y, dy)}"

    return decide


def blurred(a: Scored, b: Scored) -> tuple[bool | None, str]:
    """decide: by both measures the first is less sharp than real images, and the second nearer to them."""
    values = [(a[m][0], b[m][0]) for m in SHARPNESS]
    told = ", ".join(f"{METRICS[m][0]}: {x:.2f} against {y:.2f}" for m, (x, y) in zip(SHARPNESS, values))
    return all(x < 0.9 and abs(y - 1) < 1 - x for x, y in values), told


def sharp(a: Scored) -> tuple[bool | None, str]:
    """decide: both measures of sharpness are within a tenth of those of real images."""
    values = [a[m][0] for m in SHARPNESS]
    told = ", ".join(f"{METRICS[m][0]}: {x:.2f}" for m, x in zip(SHARPNESS, values))
    return all(abs(x - 1) < 0.1 for x in values), told


def falling(*rows: Scored) -> tuple[bool | None, str]:
    """decide: from family to family the rate falls and the distortion rises."""
    rates, distortions = ([row[m][0] for row in rows] for m in ("rate", "distortion"))
    chain = lambda values, digits: " → ".join(f"{v:.{digits}f}" for v in values)  # noqa: E731
    told = f"rate {chain(rates, 2)} nats, distortion {chain(distortions, 1)} nats, active units " + chain(
        [row["active_units"][0] for row in rows], 1)  # fmt: skip
    return sorted(rates, reverse=True) == rates and sorted(distortions) == distortions, told


def collapsed(weak: Scored, powerful: Scored) -> tuple[bool | None, str]:
    """decide: the powerful decoder's latent holds less than a tenth of the weak one's nats."""
    told = "; ".join(f"{name}: rate {row['rate'][0]:.2f} nats, {row['active_units'][0]:.1f} active units"
                     for name, row in (("weak", weak), ("powerful", powerful)))  # fmt: skip
    return powerful["rate"][0] < 0.1 * weak["rate"][0], told


def steadier(a: Scored, b: Scored) -> tuple[bool | None, str]:
    """decide: over seeds the first's Fréchet distance varies by a smaller share than the second's (a hint, of few)."""
    shares = [row["frechet"][1] / row["frechet"][0] for row in (a, b)]
    told = f"std / mean of the Fréchet distance over seeds: {shares[0]:.1%} against {shares[1]:.1%}"
    return shares[0] < shares[1] if all(shares) else None, told


CLAIMS = (
    Claim("Samples of a VAE are blurred, and more so than those of diffusion", ("vae", "ddpm"), blurred),
    Claim("Diffusion's samples are as sharp as real images", ("ddpm",), sharp),
    Claim("Diffusion's samples are better (Fréchet distance)", ("ddpm", "vae"), less("frechet")),
    Claim("Flow matching's samples are better than a VAE's (Fréchet distance)", ("flow", "vae"), less("frechet")),
    Claim("Diffusion covers more of the data (recall)", ("vae", "ddpm"), less("recall")),
    Claim("Diffusion's images are more like real ones (precision)", ("vae", "ddpm"), less("precision")),
    Claim("A larger beta buys a lower rate with a larger distortion", ("vae_beta_low", "vae", "vae_beta_high"), falling),
    Claim("A powerful decoder ignores its latent: posterior collapse", ("vae", "vae_powerful"), collapsed),
    Claim("Free bits keep the latent of a powerful decoder in use", ("vae_powerful", "vae_free_bits"), less("active_units", 1)),
    Claim("A powerful decoder is not blurred", ("vae", "vae_powerful"), blurred),
    Claim("Diffusion has the better likelihood", ("ddpm", "vae_logistic"), less("bits")),
    Claim("A VAE draws faster", ("vae", "ddpm"), less("milliseconds")),
    Claim("Latent diffusion draws faster than diffusion of pixels", ("latent", "ddpm"), less("milliseconds")),
    Claim("Training diffusion depends less on the seed", ("ddpm", "vae"), steadier),
)
VERDICTS = {True: "holds", False: "refuted", None: "cannot be told"}


def verdicts(scored: Mapping[str, Scored]) -> list[dict]:
    """A row {'claim', 'verdict', 'measured'} for every claim whose families were run."""
    rows = []
    for claim in CLAIMS:
        if all(name in scored for name in claim.about):
            holds, told = claim.decide(*(scored[name] for name in claim.about))
            rows.append({"claim": claim.text, "verdict": VERDICTS[holds], "measured": told, "families": ", ".join(claim.about)})
    return rows


def over_seeds(rows: Sequence[Mapping]) -> dict[str, Scored]:
    """family -> metric -> (mean, standard deviation over seeds; 0 of one)."""
    import numpy as np

    scored = {}
    for name in dict.fromkeys(row["family"] for row in rows):
        own = [row for row in rows if row["family"] == name]
        values = {key: [row[key] for row in own if row.get(key) is not None] for key in METRICS}
        scored[name] = {key: (float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else 0.0)
                        for key, v in values.items() if v}  # fmt: skip
    return scored


# ---- what is written -------------------------------------------------------------------------------------------------------


def write(rows: Sequence[Mapping], shown: Mapping[str, Any], floor: Mapping, titles: Mapping[str, str], stem: Path,
          record: Mapping) -> str:  # fmt: skip
    """stem.json, .md, .png and .html. Returns the text of stem.md.

    shown: name -> images, 'real' among them; titles: family -> what it is.
    """
    from diffusion_jax import plotting, provenance, report

    scored = over_seeds(rows)
    columns = {"family": "family"} | {key: METRICS[key][0] for key in METRICS if any(key in one for one in scored.values())}
    table = [{"family": name} | {key: _shown(key, *one[key]) for key in columns if key in one} for name, one in scored.items()]
    table.append({"family": "real test images"} | {key: _shown(key, floor[key]) for key in columns if key in floor})
    told, seeds = verdicts(scored), len({row["seed"] for row in rows})
    title = f"Families of generative models on {record['data']}"
    stamp = record["provenance"]
    facts = (f"{record['seconds']:g} s of training each, {record['num']} images a model, compared with training images by "
             f"{record['features']}; ± is the standard deviation over "
             f"{seeds} seeds, where a family has more than one. {stamp['date'][:10]}, {stamp['cpu']['model']}.")  # fmt: skip
    claims = {"claim": "the textbook says", "verdict": "here", "measured": "measured"}
    text = f"# {title}\n\n{facts}\n\n{provenance.markdown_table(told, claims)}\n{provenance.markdown_table(table, columns)}"
    provenance.save_text(stem.with_suffix(".md"), text)
    provenance.save_json(stem.with_suffix(".json"), {"rows": list(rows), "verdicts": told, "real": dict(floor), **record})
    plotting.bars(scored, {key: METRICS[key][:2] for key in DRAWN}, stem.with_suffix(".png"), floor=floor, title=title)
    scale = max(1, round(56 / shown["real"].shape[1]))
    strips = {(name, 0): plotting.mosaic(images, 1, scale=scale) for name, images in shown.items()}
    path = stem.with_name(f"{stem.name}_strips.png")
    plotting.strips(strips, path, columns={0: ""}, title="The first samples of every family")
    gallery = report.gallery({key: (report.picture(tile), titles.get(key[0], "")) for key, tile in strips.items()},
                             {name: name for name in shown}, {0: ""})  # fmt: skip
    report.save(stem.with_suffix(".html"), report.page(title, [
        ("What the textbook says, and what was measured", report.table(told, claims, wrong="measured")),
        ("Samples", gallery),
        ("In numbers", report.picture(stem.with_suffix(".png"), "bars")),
        ("All of them", report.table(table, columns)),
        ("The families", report.facts(titles)),
        ("Where the numbers come from", report.folded(
            "everything on record", report.code(provenance.canonical_json(record)))),
    ], lead=facts))  # fmt: skip
    return text


def _shown(key: str, mean: float, std: float = 0.0) -> str:
    _, factor, digits = METRICS[key]
    return f"{factor * mean:,.{digits}f}" + (f" ± {factor * std:.{digits}f}" if std else "")


# ---- the command -----------------------------------------------------------------------------------------------------------


def compare(config, workdir: str, families: str = "", seeds: str = "", others: Sequence[str] = ()) -> str:
    """Train, measure and write all that is missing. others: trained workdirs. Returns the text of families.md."""
    import numpy as np

    from diffusion_jax import data, experiment, provenance
    from diffusion_jax import workdir as folder
    from diffusion_jax.errors import unknown
    from diffusion_jax.evaluation import judge, sharpness

    root, known = Path(workdir).absolute(), list(config.family)
    names = [part.strip() for part in families.split(";") if part.strip()] or list(config.families)
    for name in names:
        if name not in known:
            raise unknown("--families", name, known)
    seeds = cli.integers("seeds", seeds, 0, 2**32 - 1) if seeds else list(config.seeds)
    configs = {name: config.family[name].copy_and_resolve_references().unlock() for name in names}
    for one in configs.values():
        experiment.check_components(one)
        one.data = config.data  # one data set for all, which --config.data.* changes
    dataset = experiment.dataset(configs[names[0]])
    models = {Path(root): folder.beside(root, "--others", dataset.image_shape) for root in others}  # or hours later it is refused
    labels = np.arange(config.num) % dataset.num_classes if dataset.num_classes else None
    judged = judge.against(dataset.train, labels, metrics=("accuracy", "frechet", "prdc"), count=config.num)
    held_out = data.arrays(dataset.test)["image"]
    floor = judge.on_real(dataset.train, dataset.test, judged, config.num) | sharpness.relative(held_out, held_out)
    rows, shown = [], {"real": held_out[:SHOWN]}
    for seed in seeds:  # all families from one seed, then the next: what is there when it is stopped can be compared
        for name in names if seed == seeds[0] else [name for name in names if name in config.repeated]:
            row, images = _kept(root / f"{name}_{seed}", configs[name], dataset, judged, config, seed)
            rows.append({"family": name, "seed": seed} | row)
            shown.setdefault(name, images)
            _tell(f"{name}, seed {seed}", row)
    titles = {name: config.about[name] for name in names}
    for other, trained in models.items():
        titles[other.name], row, shown[other.name] = _beside(other, trained, dataset, judged, config.num)
        rows.append({"family": other.name, "seed": seeds[0]} | row)
        _tell(str(other), row)
    record = {"data": config.data.name, "num": config.num, "seconds": config.seconds,
              "features": judge.default_features(dataset.train),
              "provenance": provenance.provenance(config.to_dict(), seeds[0])}  # fmt: skip
    return write(rows, shown, floor, titles, root / "families", record)


def main(config) -> None:
    FLAGS = flags.FLAGS
    print(compare(config, FLAGS.workdir, FLAGS.families, FLAGS.seeds, cli.paths("others", FLAGS.others)))
    print(f"{FLAGS.workdir}/families.html holds all of this, with pictures")


def _kept(root: Path, config, dataset, judged, settings, seed: int) -> tuple[dict, Any]:
    """The row and the first images of one run, made now or found in its folder."""
    from diffusion_jax import provenance, reading
    from diffusion_jax import workdir as folder
    from diffusion_jax.evaluation import generate

    file = root / "family.npz"
    if found := reading.kept(file, _recall):
        return found
    began = time.monotonic()
    path, config = (_latent if "latent" in config else _plain)(root, config, dataset, settings, seed)
    took = time.monotonic() - began
    likelihood = settings.likelihood if seed == settings.seeds[0] else 0
    row, images = measured(folder.load(path, config), dataset, judged, settings.num, likelihood, root.name)
    row |= {"train_seconds": took, "steps": config.training.steps}
    provenance.save_json(root / "family.json", row)
    generate.save_npz(file, images)
    return row, images


def _recall(file: Path) -> tuple[dict, Any]:
    """The row and the images that `_kept` wrote, in family.json and family.npz. UserError for files that are damaged."""
    from diffusion_jax import reading

    numbers = {key: reading.number(0) for key in ("train_seconds", "steps", "milliseconds", "parameters")}
    row = reading.json_file(file.with_suffix(".json"), reading.record(numbers, others=reading.number(finite=False)))
    return row, reading.npz_file(file, {"images": reading.Array("u", (None, None, None, None))})["images"]


def _tell(name: str, row: Mapping) -> None:
    print(f"{name}: " + ", ".join(f"{METRICS[key][0]} {_shown(key, row[key])}" for key in DRAWN if key in row), file=sys.stderr)


def _beside(root: Path, trained, dataset, judged, count: int) -> tuple[str, dict, Any]:
    """(what it is, its row, its first images) of a model that is there, by its own sampler."""
    from experiments import few_step

    row, images = measured(trained, dataset, judged, count, 0, root.name)
    config = trained.experiment.config
    title = f"{config.objective}, {config.sampler.name} in {config.sampler.nfe} evaluations"
    return title, row | {"train_seconds": few_step.seconds(root), "steps": config.training.steps}, images


def _plain(root: Path, config, dataset, settings, seed: int, share: float = 1.0) -> tuple[Path, Any]:
    """Train a config in the workdir `root` for its share of the seconds. Returns both, with the steps that it took."""
    from diffusion_jax import provenance, reading

    budget = root / "budget.json"
    rule = reading.record({"steps": reading.integer(1, 10**9)})
    steps = (reading.kept(budget, lambda path: reading.json_file(path, rule)) or {"steps": 0})["steps"]
    config = with_budget(config, dataset, share * settings.seconds, seed, steps, root)
    root.mkdir(parents=True, exist_ok=True)
    provenance.save_json(budget, {"steps": config.training.steps, "seconds": share * settings.seconds})
    if not train.train(config, str(root), dataset=dataset):
        sys.exit(cli.UNFINISHED)
    return root, config


def _latent(root: Path, config, dataset, settings, seed: int) -> tuple[Path, Any]:
    """Half of the seconds for the autoencoder of settings.recipe, then as _plain on what it makes of the data."""
    from diffusion_jax import experiment

    from experiments.train_latent import encoded

    recipe = settings.recipe.copy_and_resolve_references().unlock()
    recipe.data = settings.data
    _plain(root / "autoencoder", recipe, dataset, settings, seed, 0.5)
    config.data = config.data.copy_and_resolve_references()
    config.data.update(name="latents", path=str(encoded(root)))
    config.latent.autoencoder = str(root / "autoencoder")
    return _plain(root / "model", config, experiment.dataset(config), settings, seed, 0.5)


if __name__ == "__main__":
    cli.path_flag("workdir", None, "where everything goes; the same command goes on", required=True)
    flags.DEFINE_string("families", "", "with semicolons; by default all of the config")
    flags.DEFINE_string("seeds", "", "with commas; by default those of the config")
    flags.DEFINE_string("others", "", "trained workdirs that are measured beside them, with commas")
    cli.launch(main, config="file", short=())
