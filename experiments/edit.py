"""Edit held-out images with a trained model, none of it trained for: fill in, colorize, sharpen,
mix, repaint, translate.

python -m experiments.edit --workdir=runs/a --task=inpaint --mask=half --method=pigdm
python -m experiments.edit --workdir=runs/a --task='superres(factor=4,std=0.05)' --method=ddnm --labels=own --draws=3
python -m experiments.edit --workdir=runs/a --task=translate --labels=3,7 --config.sampler.nfe=100
python -m experiments.edit --workdir=runs/a --task=sdedit --image=mine.png --labels=7
python -m experiments.edit --workdir=runs/emoji --task=sdedit --prompt="a blue heart" --config.sampler.guidance=4

Tasks with a --method: inpaint (with --mask), colorize, superres, deblur, linear, saturate;
without: interpolate, sdedit, translate. Writes WORKDIR/edits/TASK-METHOD.png, strips measurement |
result | truth, and .json with the PSNR of every image. docs/inverse.md says more.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from absl import flags

from diffusion_jax import parsing, provenance
from diffusion_jax.assembly import experiment, workdir
from diffusion_jax.errors import UserError
from diffusion_jax.files import save_json
from diffusion_jax.report.pictures import image_grid, save
from diffusion_jax.studies import editing
from experiments import cli, values


def main(config) -> None:

    FLAGS = flags.FLAGS
    shape = tuple(workdir.about_data(FLAGS.workdir)["image_shape"])
    is_edit, strengths = FLAGS.task in editing.EDITS, editing.strengths_of(FLAGS.strength)
    parts = (
        [FLAGS.task, FLAGS.mask]
        + ([] if is_edit else [FLAGS.method])
        + [Path(FLAGS.image[0]).stem if FLAGS.image else ""]
    )
    name = "-".join(re.sub(r"[^\w.]+", "_", Path(part).name).strip("_") for part in parts if part)
    files = parsing.output(
        "out", FLAGS.out, ".png", ".json", default=Path(FLAGS.workdir) / "edits" / name
    )
    if not is_edit:  # mistakes are reported before anything takes long
        editing.method_for(
            FLAGS.method, editing.measurement_for(FLAGS.task, FLAGS.mask, shape), FLAGS.task
        )
    if FLAGS.image and (FLAGS["first"].present or FLAGS["num"].present):
        raise UserError(
            "--first and --num choose held-out images, and --image names its own; leave them away"
        )
    pictures = editing.pictures_of(FLAGS.image, shape) if FLAGS.image else None
    trained = workdir.load(FLAGS.workdir, config)
    experiment.need_images(trained.experiment)
    experiment.need_pixels(trained.experiment)
    dataset = None if FLAGS.image else workdir.dataset(config, FLAGS.workdir)
    last = len(FLAGS.image) if FLAGS.image else min(FLAGS.first + FLAGS.num, len(dataset.test))
    index = np.arange(FLAGS.first, last)
    if not len(index):
        raise UserError(f"--first={FLAGS.first}: there are {len(dataset.test)} held-out images")
    translates = FLAGS.task == "translate"  # whose --labels are where it goes
    job = editing.job_for(
        trained,
        dataset,
        index,
        "" if translates else FLAGS.labels,
        FLAGS.prompt,
        range(FLAGS.seed, FLAGS.seed + len(index)),
        pictures,
    )
    if is_edit:
        rows, names, told = editing.edit(job, FLAGS.task, FLAGS.labels, strengths)
    else:
        rows, names, told = editing.solve(job, FLAGS.task, FLAGS.mask, FLAGS.method, FLAGS.draws)
    picture = image_grid(
        np.concatenate(rows), len(rows[0]), row_labels=names, scale=FLAGS.scale or None
    )
    save(picture, files[".png"])
    save_json(
        files[".json"],
        told
        | {
            "task": FLAGS.task,
            "mask": FLAGS.mask,
            "labels": FLAGS.labels,
            "prompts": FLAGS.prompt,
            "images": FLAGS.image,
            "num": len(index),
            "first": FLAGS.first,
            "seed": FLAGS.seed,
            "sampler": config.sampler.to_dict(),
            "step": trained.step,
            "weights": trained.weights,
            "provenance": provenance.provenance(config.to_dict(), FLAGS.seed),
        },
    )
    scores = {
        name: value
        for name, value in told.items()
        if name.startswith("psnr") and isinstance(value, float)
    }
    numbers = ", ".join(f"{name} {value:.2f} dB" for name, value in scores.items())
    print(f"{numbers or 'done'}: {files['.png']}, {files['.json']}")


if __name__ == "__main__":
    values.path_flag("workdir", None, "the folder of a trained model", required=True)
    flags.DEFINE_string(
        "task",
        "inpaint",
        "inpaint, colorize, superres, deblur, saturate; interpolate, sdedit, translate",
    )
    flags.DEFINE_string(
        "mask",
        "",
        "for inpaint: half, 'box(side=0.5)', 'random(keep=0.3)', or a picture, white: known",
    )
    flags.DEFINE_string(
        "method",
        "ddnm",
        "replacement, repaint, dps, pigdm, ddnm or unguided, with arguments as in a call",
    )
    flags.DEFINE_string(
        "labels",
        "",
        "the condition: '' none, own (the true class or caption), or classes in turn, "
        "by number or name, such as 3,7 or cat,dog; of translate: the classes to go to (default all)",
    )
    flags.DEFINE_multi_string(
        "prompt", [], "of a model of captions, in turn: what the model is told"
    )
    flags.DEFINE_multi_string(
        "image", [], "a picture file to edit instead of held-out images; may be given several times"
    )
    values.integer_flag("num", 8, "how many held-out images", 1, 1_000_000)
    values.integer_flag("first", 0, "the first of them", 0, 10**9)
    values.integer_flag("draws", 1, "results for each image", 1, 100_000)
    values.integer_flag("seed", 0, "of the first image; the others follow", 0, 2**32 - 1)
    flags.DEFINE_string(
        "strength", "0.3,0.5,0.7", "of sdedit: shares of the sampler's moves that are made"
    )
    values.integer_flag(
        "scale",
        0,
        "how many times pixels are enlarged; by default to about 48 pixels a side",
        0,
        64,
    )
    values.path_flag(
        "out", "", "where to write, without the ending; by default WORKDIR/edits/TASK-METHOD"
    )
    cli.launch(main, config="workdir")
