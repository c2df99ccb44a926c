"""What training draws as it runs: grids of samples and reconstructions."""

from __future__ import annotations

import numpy as np

from diffusion_jax import data
from diffusion_jax.assembly import autoencoders, conditions, denoiser, sampling, trainer
from diffusion_jax.data import transforms
from diffusion_jax.evaluation import generate
from diffusion_jax.report import curves, pictures
from diffusion_jax.training import distributed, sharding


def _grid(built, parts, dataset, root, writer):
    """The hook that draws a grid of samples, one row per class or caption of the test split (or a
    scatter plot of points).
    """
    classes = built.num_classes
    rows, columns = (min(classes, 10), 10) if classes else (8, 8)
    images = built.is_image
    count = rows * columns if images else 2000
    real = None if images else data.arrays(dataset.train, limit=count)["image"]
    chosen = sampling.plan(built)
    run = sampling.sample_fn(
        built, chosen.sampler, guided=chosen.guided, clip=chosen.clip, noise=chosen.noise
    )
    everywhere = sharding.spread(run, parts.runner.mesh)
    keys = generate.seeds_to_keys(range(count))
    cond, told = (
        conditions.cond_for(built, np.arange(count) // columns % classes) if classes else None,
        [],
    )
    if built.encoder:
        told, cond = conditions.captions_of_test(
            built, dataset, np.arange(count) // columns * len(dataset.test) // rows
        )

    def draw(state, step):
        params = denoiser.ensemble(built, trainer.weights(built, state))
        x = everywhere(params, (keys, cond), np.asarray(chosen.ts), np.float32(chosen.guidance))
        x = transforms.to_uint8(x) if images else transforms.finite(np.asarray(x))
        if not distributed.first():
            return
        path = root / "samples" / f"step_{step:07d}.png"
        if images:
            pictures.save(
                pictures.image_grid(
                    x,
                    columns,
                    row_labels=told[::columns] or (dataset.class_names[:rows] if classes else None),
                ),
                path,
            )
            writer.images(step, "samples", x)
        else:
            curves.points(real, {"samples": x}, path)

    return draw


def _reconstructions(built, parts, dataset, root, writer):
    """The hook that draws what an autoencoder makes of images of the test split, and images between
    pairs of them.
    """
    rows, columns = 8, 8
    if not built.is_image:
        return lambda state, step: None
    some = data.arrays(dataset.test, limit=rows * columns)
    real = np.resize(some["image"], (rows * columns, *built.shape))
    x, keys = data.transforms.to_float(real), generate.seeds_to_keys(range(rows * columns))
    cond = (
        conditions.cond_for(built, np.resize(some["label"], len(real)))
        if built.num_classes
        else None
    )
    between = conditions.null_cond(built, rows)
    rebuild = sharding.spread(autoencoders.reconstruct_fn(built), parts.runner.mesh)
    blend = sharding.spread(autoencoders.interpolate_fn(built, columns), parts.runner.mesh)

    def draw(state, step):
        params = trainer.weights(built, state)
        made = transforms.to_uint8(rebuild(params, (x, cond, keys)))
        ways = transforms.to_uint8(
            blend(params, (x[:rows], x[rows : 2 * rows], between, keys[:rows])).reshape(
                -1, *built.shape
            )
        )
        if not distributed.first():
            return
        pairs = np.stack(
            [real.reshape(rows, columns, *built.shape), made.reshape(rows, columns, *built.shape)],
            1,
        )
        pairs = pairs.reshape(-1, *built.shape)[: 2 * len(real)]
        labels = ["test", "made"] * rows
        pictures.save(
            pictures.image_grid(pairs, columns, row_labels=labels),
            root / "reconstructions" / f"step_{step:07d}.png",
        )
        pictures.save(
            pictures.image_grid(ways, columns), root / "interpolations" / f"step_{step:07d}.png"
        )
        writer.images(step, "reconstructions", made)

    return draw
