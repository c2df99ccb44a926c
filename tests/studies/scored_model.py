"""A tiny model with fresh weights and the judge of its images; as a program, its scores.

`python -m tests.studies.scored_model BATCH_SIZE` prints the number of devices, and the value and
the interval of every score of 20 images on all of them, after the likelihoods of six.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from configs import digits
from diffusion_jax import data
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.evaluation import judge
from diffusion_jax.studies import scoring
from diffusion_jax.studies.likelihood import command as likelihoods
from diffusion_jax.training import sharding

LIKELIHOOD = {
    **{"split": "test", "unconditional": False, "dequantize": ["uniform"], "levels": 256, "iw": 1},
    **{"trace": "rademacher", "probes": 1, "solver": "heun", "rtol": 1e-3, "steps": 2, "seed": 0},
    **{"bounds": False, "moves": 2, "grid": "uniform_logsnr", "draws": 2, "end_logsnr": None},
}
METRICS = ("frechet", "kid", "prdc")


def tiny(classes=2):
    """(trained, dataset, judge) for images of noise in two classes."""
    config = digits.get_config("vp")
    config.model.update(width=8, multipliers=(1,), blocks=0, attention=(), head_width=8)
    config.sampler.update(nfe=2, guidance=1.0)
    model = assemble(config, (8, 8, 1), classes)
    params = jax.jit(lambda key: model.kind.init(model, key))(jax.random.key(0))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 8, 8, 1)).astype(np.uint8)
    source = data.sources.Arrays(images, np.arange(60) % max(classes, 1))
    dataset = data.Dataset("noise", source, source, (8, 8, 1), classes, None)
    judged = judge.against(source, None, features=("pixels",), metrics=METRICS)
    return Trained(model, params, 7, "params", {}), dataset, judged


if __name__ == "__main__":
    trained, dataset, judged = tiny()
    plan = scoring.plan_of(trained, None, dataset, range(20), sharding.make_mesh())
    found = scoring.score(plan._replace(batch_size=int(sys.argv[1])), judged, None, description="")
    with tempfile.TemporaryDirectory() as folder:
        measured = [trained, dataset, LIKELIHOOD, 6, 4, Path(folder) / "a", sharding.make_mesh()]
        bits = likelihoods.run(*measured)["ODE_uniform.total"]
    print(
        jax.device_count(),
        *map(repr, bits.tolist()),
        *(repr(s) for m in found.measured.values() for s in m[:2] if s is not None),
    )
