"""EDM on ImageNet at 64x64 (Karras et al. 2022).

    python -m experiments.train --config=configs/papers/edm_imagenet64.py --workdir=runs/edm64

Data: TFDS's `imagenet_resized/64x64`; the authors' crops differ a little. The paper is "Elucidating
the design space of diffusion-based generative models". Settings: table 7 of the paper, and the
options of the authors' README and train.py. Class-conditional, the network of ADM with 296 million
parameters, 2.5 billion images in batches of 4096, float16 with a loss scale of 100, which their
program does not divide the gradient by. FID 1.36 with 256 stochastic steps (NFE 511). Hardware and
time: 32 A100, about 13 days (the authors' README).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import network
from configs.papers._published import published, run

SCALE = 100  # of the loss
BATCH = 4096


def get_config() -> ConfigDict:
    """Return the config of the paper's model of this data set."""
    config = published("imagenet_resized/64x64", image_size=64, channels=3, num_classes=1000)
    config.process = "schedules.EDM()"
    config.parameterization = "edm(sigma_data=0.5)"
    config.objective = "denoising.edm(p_mean=-1.2, p_std=1.2, sigma_data=0.5)"
    config.model = network(
        "unet.UNet",
        width=192,
        multipliers=(1, 2, 3, 4),
        blocks=3,
        attention=(32, 16, 8),
        head_width=64,
        dropout=0.1,
        updown="resblock",
        norm=(0, 1e-5),
        noise_embedding="adm_plain",
        dtype="float16",
    )
    config.optimizer.update(learning_rate=1e-4, warmup=10_000_000 // BATCH)
    config.optimizer.eps = 1e-8 / SCALE  # of a gradient that is not divided
    config.ema.update(halflives=(50_000_000,), ramp=0.05)
    # numbers of the scaled gradient that are not finite become 0 and +-100,000
    config.training.loss_scale = f"fixed(scale={SCALE:.1f}, replace=True, infinity=100000.0)"
    config.sampler.update(
        name="sde.edm(S_churn=40.0, S_min=0.05, S_max=50.0, S_noise=1.003)",
        grid="karras",
        nfe=511,
        clip="none",
    )
    return run(config, steps=2_500_000_000 // BATCH, batch_size=BATCH)
