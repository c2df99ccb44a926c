"""A workdir trained before the package was rearranged samples the same values, and its training
resumes with the same losses.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures import make_workdir_fixtures as old

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def expected():
    with np.load(FIXTURES / "workdirs.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("workdirs")
    with tarfile.open(FIXTURES / "workdirs.tar.gz") as archive:
        archive.extractall(root, filter="data")
    return root


def check(found, expected, environment):
    """The same bits where JAX and the processor are those of the fixture; elsewhere within the
    rounding of float32, or one gray level.
    """
    assert found.shape == expected.shape and found.dtype == expected.dtype
    if str(environment) == old.environment():
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(
            found.astype(float),
            expected.astype(float),
            rtol=1e-4,
            atol=1.0 if found.dtype == np.uint8 else 1e-4,
        )


@pytest.mark.parametrize("name", old.SAMPLED)
def test_samples_are_those_of_then(name, folder, expected):
    check(old.sampled(name, folder), expected[name], expected["environment"])


def test_training_resumes_as_it_did_then(folder, expected):
    """To the rounding of float32: the sums of group norms have another order since then."""
    np.testing.assert_allclose(old.resumed(folder), expected["losses"], rtol=1e-5)
