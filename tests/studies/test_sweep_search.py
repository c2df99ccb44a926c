"""The searches of a sweep: rungs and their cost, resumption, and the optimum of a grid of 60."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation import frechet, intervals, points
from diffusion_jax.studies import drawing, subjects
from diffusion_jax.studies.samplers import cells as comparison
from diffusion_jax.studies.sweep import search
from diffusion_jax.studies.sweep.search import Rung

SCALES, BUDGETS, IMAGES = np.linspace(0.7, 1.4, 15), (5, 10, 20, 50), 1000


def run(plan, loss):
    """The losses of a search, and the images that it drew."""
    losses, drawn = {}, {}
    while todo := search.wanted(plan, losses):
        for cell, images in todo:
            losses[cell, images] = loss(cell, images)
            drawn[cell] = max(images, drawn.get(cell, 0))
    return losses, sum(drawn.values())


def gaussian_cells(seed):
    """(number, images) -> the Fréchet distance of that many samples of a cell to N(0, I), in 16
    dimensions; all cells use the same noise.

    The samples of a scale s and a budget n are N(mean 1/n, (s + 1/n)^2 I).
    """
    noise = np.random.default_rng(seed).normal(size=(IMAGES, 16))
    real = frechet.Root(10**6, np.zeros(16), np.eye(16))

    def moments(cell):
        budget, scale = divmod(cell, len(SCALES))
        return 1 / BUDGETS[budget], SCALES[scale] + 1 / BUDGETS[budget]

    def loss(cell, images):
        mean, std = moments(cell)
        return frechet.distance_to(mean + std * noise[:images], real)

    return functools.cache(loss)


@pytest.mark.parametrize("grouped", [False, True])
def test_the_optimum_of_60_cells_is_found_with_a_fifth_of_the_images(grouped):
    """The cell that the whole grid finds, on three sets of seeds. With a group for each budget,
    the best or the second of each: scales 0.05 apart differ by less than chance.
    """
    size = len(SCALES)
    groups = {n: range(n * size, (n + 1) * size) for n in range(4)} if grouped else {(): range(60)}
    plan = search.plan(groups, IMAGES, search.halving())
    assert plan.images <= 0.2 * 60 * IMAGES
    for seed in range(3):
        loss = gaussian_cells(seed)
        losses, drawn = run(plan, loss)
        assert drawn == plan.images
        measured = {cell for cell, images in losses if images == IMAGES}
        for members in groups.values():
            order = sorted(members, key=lambda cell: loss(cell, IMAGES))
            best = min((cell for cell in measured if cell in members), key=order.index)
            assert order.index(best) <= grouped, (seed, best, order[:3])


def test_the_rungs_of_halving():
    rungs = search.halving_rungs(60, 1000, 0.2)
    assert rungs == [Rung(60, 62), Rung(30, 125), Rung(15, 250), Rung(8, 500), Rung(4, 1000)]
    assert search.cost(rungs) == 60 * 62 + 30 * 63 + 15 * 125 + 8 * 250 + 4 * 500 == 11485
    assert search.halving_rungs(60, 1000, 1.0) == [Rung(60, 1000)]
    # fewer images than LEAST say nothing, and one cell need not be halved
    assert search.halving_rungs(60, 200, 0.01)[0] == Rung(60, search.LEAST)
    assert search.halving_rungs(3, 1000, 0.01)[-1] == Rung(1, 1000)
    assert search.halving_rungs(1, 1000, 0.01) == [Rung(1, 1000)]


def test_a_search_resumes_and_a_failed_cell_is_the_worst():
    plan = search.plan({(): range(4)}, 200, search.halving(share=0.5))
    assert plan.rungs[()] == [Rung(4, 50), Rung(2, 100), Rung(1, 200)]
    losses = {(0, 50): math.inf, (1, 50): 2.0}
    assert search.wanted(plan, losses) == [(2, 50), (3, 50)]
    assert search.entrants(plan, (), 1, losses) is None
    losses |= {(2, 50): math.nan, (3, 50): 1.0}
    assert search.wanted(plan, losses) == [(3, 100), (1, 100)]
    losses |= {(3, 100): 5.0, (1, 100): 4.0}
    assert search.wanted(plan, losses) == [(1, 200)]
    assert search.wanted(plan, losses | {(1, 200): 3.0}) == []


def test_cells_are_all_or_random():
    assert search.grid().choose(3) == [0, 1, 2]
    assert search.grid().rungs(3, 50) == [Rung(3, 50)]
    chosen = search.random(cells=5, seed=1).choose(10**12)
    assert len(set(chosen)) == 5 and max(chosen) < 10**12
    assert chosen == search.halving(cells=5, seed=1).choose(10**12)
    assert chosen != search.random(cells=5, seed=2).choose(10**12)
    assert search.random(cells=5).choose(3) == [0, 1, 2]
    with pytest.raises(UserError, match=r"has 20,000 cells, and at most 10,000 .*random\(cells"):
        search.grid().choose(20_000)
    with pytest.raises(UserError, match="halving: share=0: it must be above 0"):
        search.halving(share=0)


@pytest.mark.long
def test_the_best_of_60_samplers_and_grids_on_a_mixture_is_found_with_a_fifth_of_the_points():
    """Five samplers, three grids and four budgets on eight Gaussians, by the sliced Wasserstein
    distance to exact draws: what halving finds at each budget is the best of the whole grid, or
    no paired difference distinguishes the two.
    """
    names = ("ancestral.ddim", "ode.heun", "multistep.dpmpp_2m", "multistep.unipc", "sde.dpmpp_2m")
    entries = [f"{name}@{grid}" for name in names for grid in ("uniform", "karras", "quadratic")]
    with jax.enable_x64(True):
        subject = subjects.of_target("gmm8", "schedules.VP()", range(IMAGES))
        cells = comparison.cells(entries, BUDGETS, subject.process, "uniform")
        samples = {}
        for name in names:
            own = [i for i, cell in enumerate(cells) if cell.entry.startswith(f"{name}@")]
            length = max(len(cells[i].ts) for i in own)
            draw = drawing.runner(subject, cells[own[0]].sampler, length)
            samples |= {i: draw(cells[i].ts)[0] for i in own}
        truth = np.asarray(subject.judging.real)

    def distance(cell, stays):
        return points.sliced_wasserstein(samples[cell][: len(stays)][stays], truth)

    groups = {nfe: [i for i, cell in enumerate(cells) if cell.nfe == nfe] for nfe in BUDGETS}
    plan = search.plan(groups, IMAGES, search.halving())
    assert len(cells) == 60 and plan.images <= 0.2 * 60 * IMAGES
    losses, _ = run(plan, lambda cell, images: distance(cell, np.ones(images, bool)))
    for members in groups.values():
        best = min(members, key=lambda cell: distance(cell, np.ones(IMAGES, bool)))
        (found,) = (cell for cell, images in losses if images == IMAGES and cell in members)
        parts = [intervals.without(IMAGES, group) for group in intervals.groups(IMAGES)]
        gaps = [distance(found, stays) - distance(best, stays) for stays in parts]
        worse = losses[found, IMAGES] - distance(best, np.ones(IMAGES, bool))
        print(cells[found].entry, cells[best].entry, losses[found, IMAGES], worse)
        assert worse <= intervals.STUDENT * intervals.standard_error(gaps)
