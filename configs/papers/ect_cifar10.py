r"""Easy consistency tuning of EDM on CIFAR-10 (Geng et al. 2024).

    python -m experiments.train --config=configs/papers/edm_cifar10.py:vp --workdir=runs/edm_cifar10
    python -m experiments.train --config=configs/papers/ect_cifar10.py:200k \
        --config.init_from=runs/edm_cifar10 --workdir=runs/ect

Data: TFDS's `cifar10`; runs/edm_cifar10 may also be the authors' checkpoint of EDM, by
experiments.import_weights. The paper is "Consistency models made easy". Settings: the authors'
run_ecm.sh and ct_train.py. The DDPM++ of EDM, unconditional, 55.7 million parameters, batches of
128. FID with one evaluation and with two (the authors' README). Hardware: 2 or 4 GPUs; the README
states no time for these (one A100 hour for a shorter run).

Variants: 100k, FID 4.54 and 2.20; 200k, 3.86 and 2.15; 400k, 3.60 and 2.11, by number of steps.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import network
from configs.papers._published import average, published, radam, run
from diffusion_jax.core.errors import unknown

VARIANTS = {"100k": 100_000, "200k": 200_000, "400k": 400_000}  # steps


def get_config(name: str = "200k") -> ConfigDict:
    """Return the config of a length.

    Args:
      name: a key of VARIANTS.

    Raises:
      UserError: for another name.
    """
    if name not in VARIANTS:
        raise unknown("variant", name, VARIANTS)
    config = published()
    config.conditional, config.init_from = False, "runs/edm_cifar10"
    config.process, config.parameterization = "schedules.EDM()", "edm(sigma_data=0.5)"
    config.objective = (
        "consistency.easy(q=2.0, stages=8, k=8.0, b=1.0, mean=-1.1, std=2.0, "
        "weight=weighting.edm(0.5), distance=distance.pseudo_huber(c=1e-08))"
    )
    # the labels of EDM's augmentation stay zero
    config.model = network("ncsnpp.NCSNpp", dropout=0.2, augment=9)
    config.sampler.update(
        name="few_step.multistep", grid="levels(levels=(0.821,))", nfe=2, clip="none"
    )
    config = run(radam(config, 1e-4), steps=VARIANTS[name], batch_size=128)
    return average(config, 0.9999)
