"""EDM on CIFAR-10 (Karras et al. 2022).

    python -m experiments.train --config=configs/papers/edm_cifar10.py:vp,cond --workdir=runs/edm

Data: TFDS's `cifar10`. The paper is "Elucidating the design space of diffusion-based generative
models". Settings: config F, tables 1 and 7, and the authors' train.py. 200 million images in
batches of 512. FID is that of table 2, with 18 deterministic steps (NFE 35). Hardware and time: 8
V100, about 2 days (the authors' README).

Variants: vp, DDPM++ of 55.7 million parameters; ve, NCSN++ of 56.4 million; each also with ',cond'
for class labels. FID: vp 1.97 and 1.79 with labels, ve 1.98 and 1.79. Not verified: those of ve.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import network
from configs.papers._published import published, run
from diffusion_jax.core.errors import unknown
from diffusion_jax.models.ncsnpp import PRESETS

NETWORKS = {"vp": "ddpmpp", "ve": "ncsnpp"}
VARIANTS = ("vp", "ve", "vp,cond", "ve,cond")
WARMUP = 10_000_000  # images in which the learning rate rises


def get_config(name: str = "vp") -> ConfigDict:
    """Return the config of a network, with labels or without.

    Args:
      name: a member of VARIANTS.

    Raises:
      UserError: for another name.
    """
    if name not in VARIANTS:
        raise unknown("variant", name, VARIANTS)
    name, _, labels = name.partition(",")
    config = published(augment=0.12)
    config.conditional = labels == "cond"
    config.process = "schedules.EDM()"
    config.parameterization = "edm(sigma_data=0.5)"
    config.objective = "denoising.edm(p_mean=-1.2, p_std=1.2, sigma_data=0.5)"
    options = {"dropout": 0.13, "augment": 9} | PRESETS[NETWORKS[name]]
    config.model = network("ncsnpp.NCSNpp", **options)
    config.optimizer.update(learning_rate=1e-3, warmup=WARMUP // 512)
    config.ema.update(halflives=(500_000,), ramp=0.05)
    config.sampler.update(name="ode.edm_heun", grid="karras", nfe=35, clip="none")
    return run(config, steps=200_000_000 // 512, batch_size=512)
