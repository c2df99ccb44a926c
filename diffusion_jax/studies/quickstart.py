"""The quickstart: pictures of a model trained on the embedded digits."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.assembly import conditions, denoiser, sampling
from diffusion_jax.evaluation import generate
from diffusion_jax.report import pictures
from diffusion_jax.samplers import base

SAMPLERS = [
    "ancestral.ddpm",
    "ancestral.ddim",
    "ode.heun@quadratic",
    "multistep.dpmpp_2m@uniform_logsnr",
]

BUDGETS = [5, 10, 20, 50]


def samples(trained, dataset, path: Path, columns: int = 10) -> None:
    """A grid, one row per class, from seeds 0, 1, ...; of a model without classes eight rows."""
    built = trained.experiment
    rows = trained.data["class_names"] if built.num_classes else []
    count = columns * (len(rows) or 8)
    run = sampling.sample_with(built, trained.params, sampling.plan(built))
    x = run(
        generate.seeds_to_keys(range(count)),
        _condition(built, dataset, np.arange(count) // columns),
    )
    pictures.save(pictures.image_grid(np.asarray(x), columns, row_labels=rows), path)


def _condition(built, dataset, labels):
    """The condition of these classes; of a model without classes that of as many captions, or None."""
    return (
        conditions.cond_for(built, labels)
        if built.num_classes
        else conditions.conditions(built, dataset, len(labels))[1]
    )


def denoising(trained, dataset, path: Path, steps: int = 50, shown: int = 10) -> None:
    """x_t and x0-hat at `shown` of the sampler's times, for three images, with the run's own
    guidance.
    """
    built = trained.experiment
    plan = sampling.plan(built, nfe=steps)
    labels = np.array([2, 5, 8]) % max(built.num_classes, 1)

    @jax.jit
    def run(params, keys, cond):
        denoise = denoiser.denoiser(
            built, params, scale=jnp.float32(plan.guidance) if plan.guided else None, clip=plan.clip
        )
        x = base.start(built.process, keys, (len(labels), *built.shape))

        def watch(x, t):
            return (x, denoise(x, t, cond).x0)

        return base.sample(
            plan.sampler, denoise, built.process, keys, x, plan.ts, cond, observe=watch
        )[1]

    x_t, x0 = run(
        trained.params,
        generate.seeds_to_keys(range(len(labels))),
        _condition(built, dataset, labels),
    )
    chosen = np.linspace(0, len(x_t) - 1, shown).round().astype(int)
    pictures.save(
        pictures.denoising_strip(
            np.asarray(x_t)[chosen], np.asarray(x0)[chosen], np.asarray(plan.ts)[1:][chosen]
        ),
        path,
    )
