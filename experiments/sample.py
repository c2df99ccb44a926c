"""Draw images from a trained model: WORKDIR/samples.npz (uint8) and samples.png. One seed is one
image, always the same.

python -m experiments.sample --workdir=runs/a --num=64 --labels=0,1,2 --config.sampler.name=ode.edm_heun --seeds=0-63
python -m experiments.sample --workdir=runs/folder --labels=cat,dog --num=20
python -m experiments.sample --workdir=runs/b --prompt="a bold seven" --prompt="a thin 3" --guidance=4

The picture has a row for each class, with its name. Of a model of captions every prompt is drawn
from every seed: a row of the picture is a prompt, a column a seed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from absl import flags

from diffusion_jax import data, parsing
from diffusion_jax.assembly import experiment, sampling, workdir
from diffusion_jax.data import transforms
from diffusion_jax.evaluation import generate
from diffusion_jax.report import curves, pictures
from diffusion_jax.studies import generation
from diffusion_jax.training import distributed
from experiments import cli, values


def main(config) -> None:

    FLAGS = flags.FLAGS
    prompts = FLAGS.prompt
    files = parsing.output(
        "out", FLAGS.out, ".npz", ".png", default=Path(FLAGS.workdir) / "samples"
    )
    seeds = (
        parsing.parse_seeds(FLAGS.seeds)
        if FLAGS.seeds
        else list(range(FLAGS.num or (8 if prompts else 64)))
    )
    mesh = sampling.sampling_mesh(config)
    trained = workdir.load(FLAGS.workdir, config, mesh)
    built = trained.experiment
    columns, seeds = len(seeds) if prompts else 10, seeds * max(len(prompts), 1)
    names = [*(trained.data.get("class_names") or ()), "any"]  # as experiment.cond_for counts them
    labels, cond = generation._asked(
        built, parsing.labels("labels", FLAGS.labels, names[:-1]), prompts, len(seeds)
    )
    chosen = sampling.plan(
        built, **({} if FLAGS.guidance is None else {"guidance": FLAGS.guidance})
    )
    print(
        f"{FLAGS.workdir}: step {trained.step}, weights {trained.weights}, {config.sampler.name} on grid {chosen.grid}, "
        f"{sampling.evaluations(chosen) or 'as its tolerance asks:'} evaluations per image",
        file=sys.stderr,
    )

    real = (
        None
        if experiment.is_image(built)
        else data.arrays(workdir.dataset(config, FLAGS.workdir).train, limit=len(seeds))["image"]
    )

    images = generate.generate(
        sampling.sample_with(built, trained.params, chosen, mesh),
        generate.seeds_to_keys(seeds),
        cond,
        batch_size=min(config.sampler.batch_size, len(seeds)),
        finish=transforms.to_uint8 if experiment.is_image(built) else np.asarray,
    )
    if not distributed.first():
        return
    told = {"prompts": np.repeat(prompts, columns)} if prompts else {}
    generate.save_npz(
        files[".npz"], images, labels=labels if len(labels) else None, seeds=seeds, **told
    )
    if real is None:
        by_class = pictures.grid_by_class(images, labels, names) if len(labels) else None
        picture = by_class or pictures.image_grid(
            images, min(columns, len(seeds)), row_labels=prompts
        )
        pictures.save(picture, files[".png"])
    else:
        curves.points(real, {"samples": images}, files[".png"])
    print(f"{len(images)} images: {files['.npz']}, {files['.png']}")


if __name__ == "__main__":
    values.path_flag("workdir", None, "the folder of a trained model", required=True)
    values.integer_flag(
        "num",
        None,
        "how many images, by default 64, or 8 of each prompt; with --seeds, those decide",
        1,
        1_000_000,
    )
    flags.DEFINE_string(
        "seeds", "", "one image per seed, such as 0-63,100; by default 0 to num - 1"
    )
    flags.DEFINE_string(
        "labels",
        "",
        "classes to draw in turn, by number or name, such as 0,1,2 or cat,dog; "
        "'any' draws without a class (default all classes)",
    )
    flags.DEFINE_multi_string(
        "prompt", [], "what to draw, of a model of captions; may be given several times"
    )
    flags.DEFINE_float(
        "guidance",
        None,
        "scale of the guidance; by default config.sampler.guidance",
        lower_bound=0,
        upper_bound=1000,
    )
    values.path_flag("out", "", "where to write, without the ending; by default WORKDIR/samples")
    cli.launch(main, config="workdir")
