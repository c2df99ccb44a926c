"""Errors of restored arrays."""

from __future__ import annotations

import numpy as np

from diffusion_jax.evaluation.psnr import psnr
from diffusion_jax.evaluation.restored import crps, rmse


def test_rmse_counts_chosen_values_for_each_channel():
    truth, where = np.zeros((2, 4, 2)), np.zeros((4, 2), bool)
    values = truth + np.arange(4)[:, None] * [1, 10]
    where[2:, 0] = True
    found = rmse(values, truth, where)
    np.testing.assert_allclose(found[:, 0], np.sqrt((4 + 9) / 2))
    assert np.isnan(found[:, 1]).all()


def test_crps_of_normal_draws_is_its_closed_form():
    """(sqrt 2 - 1) / sqrt pi for N(0, 1) and y = 0 (Gneiting & Raftery 2007), for any number."""
    rng = np.random.default_rng(0)
    everywhere, truth = np.ones((200, 1), bool), np.zeros((1000, 200, 1))
    for count in (2, 5):
        found = crps(rng.standard_normal((count, 1000, 200, 1)), truth, everywhere)
        error = found.std() / np.sqrt(1000)
        assert abs(found.mean() - (np.sqrt(2) - 1) / np.sqrt(np.pi)) < 4 * error < 0.006
    one = rng.standard_normal((1, 2, 5, 3))
    np.testing.assert_allclose(crps(one, 0 * one[0], np.ones((5, 3))), np.abs(one[0]).mean(1))


def test_psnr_of_other_numbers_has_the_range_of_each_channel():
    truth = np.zeros((1, 4, 2))
    found = psnr(truth + [2.0, 30.0], truth, span=np.array([4.0, 60.0]))
    np.testing.assert_allclose(found, 20 * np.log10(2))
