"""Edit held-out images with a trained model, none of it trained for: fill in, colourise, sharpen, mix, repaint, translate.

python -m experiments.edit --workdir=runs/a --task=inpaint --mask=half --method=pigdm
python -m experiments.edit --workdir=runs/a --task='superres(factor=4,std=0.05)' --method=ddnm --labels=own --draws=3
python -m experiments.edit --workdir=runs/a --task=translate --labels=3,7 --config.sampler.nfe=100
python -m experiments.edit --workdir=runs/a --task=sdedit --image=mine.png --labels=7
python -m experiments.edit --workdir=runs/emoji --task=sdedit --prompt="a blue heart" --config.sampler.guidance=4

Tasks with a --method: inpaint (with --mask), colourise, superres, deblur, linear, saturate; without: interpolate, sdedit,
translate. Writes WORKDIR/edits/TASK-METHOD.png, strips measurement | result | truth, and .json with the PSNR of every image.
docs/inverse.md says more.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments import cli

EDITS = ("interpolate", "sdedit", "translate")


class Job(NamedTuple):
    """What is asked for: images (N, H, W, C) float in [-1, 1] and their labels (N,) or None, of a loaded model, by a plan, which
    guides where the model is told something. cond: what it is told.
    """

    trained: Any
    plan: Any
    images: Any
    labels: Any
    cond: Any
    keys: Any


def job_for(trained, dataset, index, labels: str, prompts: list[str], seeds, images=None) -> Job:
    """The Job of these images of the test split. labels, prompts: as the flags; the null condition where both are empty.

    images: uint8 (N, H, W, C) of the user's own instead, whose classes are not known; dataset and index are then not used.
    """
    import jax.numpy as jnp

    from diffusion_jax import data, experiment
    from diffusion_jax.evaluation import generate

    plan, picked = experiment.plan(trained.experiment), {"image": images} if dataset is None else dataset.test.rows(index)
    plan = plan._replace(guided=experiment.is_guided(trained.experiment, plan.guidance, told=bool(labels or prompts)))
    images = jnp.asarray(data.transforms.normalise(picked["image"]))
    own = picked.get("label") if dataset is not None and dataset.num_classes else None
    chosen = labels if labels == "own" else cli.labels("labels", labels, trained.data.get("class_names") or ())
    cond = conditions(trained.experiment, dataset, index, chosen, prompts, own)
    return Job(trained, plan, images, own, cond, generate.seeds_to_keys(seeds))


# ---- what is asked for -----------------------------------------------------------------------------------------------------


def mask_for(spec: str, shape: tuple[int, ...]):
    """The mask (H, W, 1) of a name, half, box(side=0.5), random(keep=0.3), or of a picture: white is kept, black is painted.

    UserError for a picture that is none, of another size, or that leaves nothing to paint or nothing to go by.
    """
    import numpy as np

    from diffusion_jax import experiment
    from diffusion_jax.build import build
    from diffusion_jax.data import transforms
    from diffusion_jax.errors import UserError

    spec = cli.expand("--mask", spec)
    if not re.search(r"[./\\]\w+$", spec.partition("(")[0]) and not Path(spec).is_file():
        return build(experiment.MASKS, spec, shape)
    try:
        with transforms.open_image(spec) as picture:
            mask = (np.asarray(picture.convert("L"), np.float32) > 127.5).astype(np.float32)[..., None]
    except Exception as error:  # a damaged picture can raise nearly anything
        why = _unreadable(error)
        raise UserError(f"--mask={spec} cannot be read as a picture ({why}); or take half, box or random") from None
    if mask.shape[:2] != tuple(shape[:2]):
        sizes = ["x".join(map(str, of[:2])) for of in (mask.shape, shape)]
        raise UserError(f"--mask={spec} is {sizes[0]} (height x width), the images are {sizes[1]}")
    if mask.min() == mask.max():
        what = "white: there is nothing to paint" if mask.max() else "black: nothing is known"
        raise UserError(f"--mask={spec} is all {what}")
    return mask


def measurement_for(task: str, mask: str, shape: tuple[int, ...]):
    """The Measurement that --task and --mask name. UserError for a mask without a use and for what the task does not take."""
    from diffusion_jax import experiment
    from diffusion_jax.build import build, members
    from diffusion_jax.errors import UserError, unknown

    name = task.partition("(")[0].strip()
    if name not in (known := members(experiment.MEASUREMENTS)):
        raise unknown("task", name, (*known, *EDITS))
    if name == "inpaint":
        return build(experiment.MEASUREMENTS, task, shape, mask_for(mask or "half", shape))
    if mask:
        raise UserError(f"--mask={mask} is for --task=inpaint, and --task={task} has no mask")
    return build(experiment.MEASUREMENTS, task, shape)


def method_for(spec: str, measurement, task: str):
    """The Method of a name. UserError for one that needs a linear measurement if this is none."""
    from diffusion_jax import experiment
    from diffusion_jax.build import build
    from diffusion_jax.errors import UserError

    method = build(experiment.METHODS, spec)
    if method.linear and measurement.spectral is None:
        raise UserError(f"--method={spec} needs a linear measurement, and --task={task} is not linear; take --method=dps")
    return method


def conditions(built, dataset, index, labels: str | list[int], prompts: list[str], own):
    """The condition of each image: none; 'own', its true class or caption; classes in turn; or prompts in turn."""
    import numpy as np

    from diffusion_jax import experiment
    from diffusion_jax.errors import UserError

    if labels and prompts:
        raise UserError("--labels and --prompt together: ask for one of them")
    if prompts:
        return experiment.prompt_cond(built, np.resize(prompts, len(index)).tolist())
    if labels == "own" and dataset is None and own is None:
        raise UserError("--labels=own: the class of an --image is not known; name it")
    if labels == "own" and built.encoder:
        return experiment.captions_of_test(built, dataset, index)[1]
    if labels and not built.num_classes or labels == "own" and own is None:
        told = labels if labels == "own" else ",".join(map(str, labels))
        raise UserError(f"--labels={told}: this model or its data set has no classes; leave --labels away")
    null = experiment.null_cond(built, len(index))
    if not labels:
        return null
    wanted = np.asarray(own) if labels == "own" else np.resize(labels, len(index))
    return null | experiment.cond_for(built, wanted)


# ---- inverse problems ------------------------------------------------------------------------------------------------------


def restorer(built, plan, method, measurement):
    """Jitted (params, keys (B,), cond, y, ts, scale) -> images (B, H, W, C): one program for any grid padded to one length."""
    import jax

    from diffusion_jax import experiment, inverse
    from diffusion_jax.samplers import base

    clip, process = None if plan.clip == "none" else (-1.0, 1.0), built.process

    @jax.jit
    def run(params, keys, cond, y, ts, scale):
        denoise = experiment.denoiser(built, params, scale=scale if plan.guided else None, clip="none")
        x = base.start(process, keys, (len(keys), *built.shape))
        problem = method, measurement, y, plan.sampler, denoise, process, keys, x, ts, cond
        return inverse.restore(*problem, clip=clip, padded=True, noise=experiment.NOISES[plan.noise])

    return run


def restored(job: Job, method, measurement, y, keys, *, description: str = "restoring"):
    """The images (N, H, W, C) uint8 that a method makes of y (N, ...), in batches of one compiled size."""
    import numpy as np

    from diffusion_jax import experiment
    from diffusion_jax.evaluation import generate

    built, plan = job.trained.experiment, job.plan
    run, params = restorer(built, plan, method, measurement), experiment.ensemble(built, job.trained.params)

    def draw(keys, given):
        y = given.pop("y")
        return run(params, keys, given or None, y, np.asarray(plan.ts), np.float32(plan.guidance))

    batch_size = min(built.config.sampler.batch_size, len(keys))
    return generate.generate(draw, keys, {"y": y, **(job.cond or {})}, batch_size=batch_size, description=description)


def shown(measurement, y, shape: tuple[int, ...]):
    """y as a picture of the images' shape: itself, or where it has another shape the least image that would be measured so."""
    import numpy as np

    from diffusion_jax import inverse

    return np.asarray(y if y.shape[1:] == tuple(shape) else inverse.pinv(measurement, y))


def psnr(images, truth):
    """Peak signal-to-noise ratio in dB of each image, uint8 (N, ...) against uint8; 100 where they are equal."""
    import numpy as np

    square = np.square(images.astype(np.float64) - truth.astype(np.float64)).reshape(len(images), -1).mean(1)
    return np.minimum(10 * np.log10(255.0**2 / np.maximum(square, 1e-12)), 100.0)


def solve(job: Job, task: str, mask: str, spec: str, draws: int):
    """(the strip, what the JSON says) of an inverse problem."""
    import jax
    import numpy as np

    from diffusion_jax import arrays, experiment, inverse
    from diffusion_jax.evaluation import generate
    from diffusion_jax.samplers import base

    built = job.trained.experiment
    measurement = measurement_for(task, mask, built.shape)
    method = method_for(spec, measurement, task)
    wrapped = method.wrap(job.plan.sampler, measurement, None)
    ts = experiment.grid(built, job.plan.grid, base.points(wrapped, built.config.sampler.nfe))
    job = job._replace(plan=job.plan._replace(ts=ts))
    y = jax.jit(lambda keys, x: inverse.measure(measurement, keys, x))(job.keys, job.images)
    results = [restored(job, method, measurement, y, arrays.fold_in(job.keys, 2**20 + draw) if draw else job.keys)
               for draw in range(draws)]  # fmt: skip
    truth, given = generate.to_uint8(job.images), generate.to_uint8(shown(measurement, y, built.shape))
    names = ["measurement", *(["result"] * draws), "truth"]
    scores = np.stack([psnr(result, truth) for result in results])
    told = {"method": spec, "psnr": float(scores.mean()), "psnr_of_measurement": float(psnr(given, truth).mean()),
            "psnr_per_image": scores.tolist(),
            "evaluations": experiment.evaluations(job.plan._replace(sampler=wrapped))}  # fmt: skip
    return [given, *results, truth], names, told


# ---- edits -----------------------------------------------------------------------------------------------------------------


def edit(job: Job, task: str, labels: str, strengths: list[float]):
    """(rows of images uint8, their names, what the JSON says) of interpolate, sdedit or translate."""
    import jax.numpy as jnp

    from diffusion_jax import experiment

    built, plan = job.trained.experiment, job.plan
    clip = "none" if task != "sdedit" else plan.clip  # a clipped denoiser has no way back
    guided = plan.guided and task == "sdedit"
    if not guided and experiment.is_guided(built, plan.guidance):
        why = "without a condition there is nothing to guide by" if task == "sdedit" else f"{task} follows the model's own flow"
        print(f"config.sampler.guidance={plan.guidance:g} is not used: {why}", file=sys.stderr)
    denoise = experiment.denoiser(built, job.trained.params, scale=jnp.float32(plan.guidance) if guided else None, clip=clip)
    do = {"interpolate": _interpolate, "sdedit": _sdedit, "translate": _translate}[task]
    rows, names, told = do(job, denoise, labels, strengths)
    return rows, names, told | {"evaluations": experiment.evaluations(plan), "guidance": plan.guidance if guided else None}


def _interpolate(job: Job, denoise, labels: str, strengths, steps: int = 9):
    """A column for each pair, from the one above to the one below: of images, or of the model's own if its sampler cannot encode."""
    import jax
    import numpy as np

    from diffusion_jax import inverse
    from diffusion_jax.errors import UserError
    from diffusion_jax.evaluation import generate
    from diffusion_jax.samplers import base

    sampler, process, ts, half = job.plan.sampler, job.trained.experiment.process, job.plan.ts, len(job.images) // 2
    if not half:
        raise UserError("--task=interpolate goes between two images; ask for --num=2 or more")
    weights = np.linspace(0, 1, steps).astype(np.float32)
    names = [f"{100 * w:.3g} %" for w in weights]
    pairs = lambda tree: [jax.tree.map(lambda v: v[i : 2 * half : 2], tree) for i in (0, 1)]  # noqa: E731
    conds = tuple(pairs(job.cond))
    if base.draws_noise(sampler, process):
        run = jax.jit(lambda *args: inverse.blend(sampler, denoise, process, *args))
        starts = pairs(base.start(process, job.keys, job.images.shape))
        frames = np.asarray(run(pairs(job.keys)[0], *starts, weights, ts, conds))
        return list(map(generate.to_uint8, frames)), names, {"between": "own images"}
    run = jax.jit(lambda *args: inverse.interpolate(sampler, denoise, process, *args))
    one, other = pairs(job.images)
    frames = np.asarray(run(one, other, weights, ts, conds))
    ends = [psnr(generate.to_uint8(frame), generate.to_uint8(end)).mean() for frame, end in ((frames[0], one), (frames[-1], other))]
    rows = [one, *frames, other]
    return list(map(generate.to_uint8, rows)), ["one", *names, "other"], {"psnr_of_ends": [float(end) for end in ends]}


def _sdedit(job: Job, denoise, labels: str, strengths):
    """A row for each strength: the more noise, the less is left of the guide."""
    import jax

    from diffusion_jax import inverse
    from diffusion_jax.evaluation import generate

    built, guide = job.trained.experiment, generate.to_uint8(job.images)
    run = jax.jit(lambda keys, x, ts, cond: inverse.sdedit(job.plan.sampler, denoise, built.process, keys, x, ts, cond))
    results = [generate.to_uint8(run(job.keys, job.images, inverse.part_of(job.plan.ts, s), job.cond)) for s in strengths]
    told = {"psnr_to_guide": {f"{s:g}": float(psnr(r, guide).mean()) for s, r in zip(strengths, results)}}
    return [guide, *results], ["guide", *(f"strength {s:g}" for s in strengths)], told


def _translate(job: Job, denoise, labels: str, strengths):
    """A row for each class: every image under it, the first row under its own, which gives the image back."""
    import jax
    import numpy as np

    from diffusion_jax import experiment, inverse
    from diffusion_jax.errors import UserError
    from diffusion_jax.evaluation import generate

    built = job.trained.experiment
    if not built.num_classes:
        raise UserError("--task=translate goes from class to class, and this model has none")
    classes = [*(job.trained.data.get("class_names") or ()), "any"]  # as cond_for counts them
    targets = cli.labels("labels", labels, classes[:-1]) if labels not in ("", "own") else list(range(built.num_classes))
    truth = generate.to_uint8(job.images)  # where its class is not known, the way back to noise has no condition
    own = experiment.null_cond(built, len(truth)) if job.labels is None else experiment.cond_for(built, job.labels)
    run = jax.jit(lambda x, ts, a, b: inverse.translate(job.plan.sampler, denoise, built.process, x, ts, a, b))
    conds = [own, *(experiment.cond_for(built, np.full(len(truth), label)) for label in targets)]
    results = [generate.to_uint8(run(job.images, job.plan.ts, own, cond)) for cond in conds]
    names = ["image", "there and back", *(classes[label] for label in targets)]
    return [truth, *results], names, {"psnr_there_and_back": float(psnr(results[0], truth).mean())}


# ---- the command -----------------------------------------------------------------------------------------------------------


def pictures_of(files: Sequence[str], shape: tuple[int, ...]):
    """Picture files as images (N, H, W, C) uint8 of a model's shape: centered square crop, resized, grey or color as it wants.

    Raises:
      UserError: for a file that is no picture, and for another size than the model's if that is no square.
    """
    import numpy as np

    from diffusion_jax.data import folder, transforms
    from diffusion_jax.errors import UserError

    height, width, channels = shape
    found = []
    for name in files:
        path = Path(cli.expand("--image", name))
        try:
            with transforms.open_image(path) as picture:
                size = picture.size
            if size != (width, height) and height != width:
                raise UserError(f"--image={name} is {size[1]}x{size[0]} (height x width), and the model's images are {height}x{width}")
            found.append(folder.decode(path, 0 if size == (width, height) else height, channels))
        except UserError:
            raise
        except Exception as error:  # a damaged picture can raise nearly anything
            raise UserError(f"--image={name} cannot be read as a picture ({_unreadable(error)})") from error
    return np.stack(found)


def _unreadable(error: Exception) -> str:
    """Why a picture cannot be read, in a few words."""
    return getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]


def strengths_of(text: str) -> list[float]:
    """'0.3,0.6' -> [0.3, 0.6]. UserError for anything but shares above 0 and at most 1."""
    from diffusion_jax.errors import UserError

    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < strength <= 1 for strength in found):
        raise UserError(f"--strength={text}: write shares of the way to noise, above 0 and at most 1, such as 0.3,0.5,0.7")
    return found


def main(config) -> None:
    import numpy as np

    from diffusion_jax import experiment, plotting, provenance
    from diffusion_jax import workdir as folder
    from diffusion_jax.errors import UserError

    FLAGS = flags.FLAGS
    shape = tuple(folder.about_data(FLAGS.workdir)["image_shape"])
    is_edit, strengths = FLAGS.task in EDITS, strengths_of(FLAGS.strength)
    parts = [FLAGS.task, FLAGS.mask] + ([] if is_edit else [FLAGS.method]) + [Path(FLAGS.image[0]).stem if FLAGS.image else ""]
    name = "-".join(re.sub(r"[^\w.]+", "_", Path(part).name).strip("_") for part in parts if part)
    files = cli.output("out", FLAGS.out, ".png", ".json", default=Path(FLAGS.workdir) / "edits" / name)
    if not is_edit:  # mistakes are reported before anything takes long
        method_for(FLAGS.method, measurement_for(FLAGS.task, FLAGS.mask, shape), FLAGS.task)
    if FLAGS.image and (FLAGS["first"].present or FLAGS["num"].present):
        raise UserError("--first and --num choose held-out images, and --image names its own; leave them away")
    pictures = pictures_of(FLAGS.image, shape) if FLAGS.image else None
    trained = folder.load(FLAGS.workdir, config)
    experiment.need_images(trained.experiment)
    experiment.need_pixels(trained.experiment)
    dataset = None if FLAGS.image else folder.dataset(config, FLAGS.workdir)
    last = len(FLAGS.image) if FLAGS.image else min(FLAGS.first + FLAGS.num, len(dataset.test))
    index = np.arange(FLAGS.first, last)
    if not len(index):
        raise UserError(f"--first={FLAGS.first}: there are {len(dataset.test)} held-out images")
    translates = FLAGS.task == "translate"  # whose --labels are where it goes
    job = job_for(trained, dataset, index, "" if translates else FLAGS.labels, FLAGS.prompt, range(FLAGS.seed, FLAGS.seed + len(index)),
                  pictures)
    if is_edit:
        rows, names, told = edit(job, FLAGS.task, FLAGS.labels, strengths)
    else:
        rows, names, told = solve(job, FLAGS.task, FLAGS.mask, FLAGS.method, FLAGS.draws)
    picture = plotting.image_grid(np.concatenate(rows), len(rows[0]), row_labels=names, scale=FLAGS.scale or None)
    plotting.save(picture, files[".png"])
    provenance.save_json(files[".json"], told | {
        "task": FLAGS.task, "mask": FLAGS.mask, "labels": FLAGS.labels, "prompts": FLAGS.prompt, "images": FLAGS.image,
        "num": len(index), "first": FLAGS.first,
        "seed": FLAGS.seed, "sampler": config.sampler.to_dict(), "step": trained.step, "weights": trained.weights,
        "provenance": provenance.provenance(config.to_dict(), FLAGS.seed)})  # fmt: skip
    scores = {name: value for name, value in told.items() if name.startswith("psnr") and isinstance(value, float)}
    numbers = ", ".join(f"{name} {value:.2f} dB" for name, value in scores.items())
    print(f"{numbers or 'done'}: {files['.png']}, {files['.json']}")


if __name__ == "__main__":
    cli.path_flag("workdir", None, "the folder of a trained model", required=True)
    flags.DEFINE_string("task", "inpaint", "inpaint, colourise, superres, deblur, saturate; interpolate, sdedit, translate")
    flags.DEFINE_string("mask", "", "for inpaint: half, 'box(side=0.5)', 'random(keep=0.3)', or a picture, white: known")
    flags.DEFINE_string("method", "ddnm", "replacement, repaint, dps, pigdm, ddnm or unguided, with arguments as in a call")
    flags.DEFINE_string("labels", "", "the condition: '' none, own (the true class or caption), or classes in turn, "
                        "by number or name, such as 3,7 or cat,dog; of translate: the classes to go to (default all)")  # fmt: skip
    flags.DEFINE_multi_string("prompt", [], "of a model of captions, in turn: what the model is told")
    flags.DEFINE_multi_string("image", [], "a picture file to edit instead of held-out images; may be given several times")
    cli.integer_flag("num", 8, "how many held-out images", 1, 1_000_000)
    cli.integer_flag("first", 0, "the first of them", 0, 10**9)
    cli.integer_flag("draws", 1, "results for each image", 1, 100_000)
    cli.integer_flag("seed", 0, "of the first image; the others follow", 0, 2**32 - 1)
    flags.DEFINE_string("strength", "0.3,0.5,0.7", "of sdedit: shares of the sampler's moves that are made")
    cli.integer_flag("scale", 0, "how many times pixels are enlarged; by default to about 48 pixels a side", 0, 64)
    cli.path_flag("out", "", "where to write, without the ending; by default WORKDIR/edits/TASK-METHOD")
    cli.launch(main, config="workdir")
