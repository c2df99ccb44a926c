"""What the tests of the studies share."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from configs import digits
from diffusion_jax.assembly import datasets, experiment, workdir
from diffusion_jax.studies.edits.job import job_for


@pytest.fixture(scope="session")
def job(tmp_path_factory):
    """Four held-out digits under their own labels, and an untrained tiny network."""
    config = digits.get_config("vp")
    config.data.data_dir = str(tmp_path_factory.mktemp("data"))
    config.model.update(width=8, multipliers=(1,), attention=(), head_width=8)
    config.sampler.nfe = 4
    model = experiment.assemble(config.lock(), (8, 8, 1), 10)
    params = model.kind.init(model, jax.random.key(0))
    trained = workdir.Trained(model, params, 0, "params", {"class_names": list("0123456789")})
    return job_for(trained, datasets.dataset(config), np.arange(4), "own", [], range(4))
