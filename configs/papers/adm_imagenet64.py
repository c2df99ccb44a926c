"""ADM on ImageNet at 64x64 (Dhariwal & Nichol 2021).

    python -m experiments.train --config=configs/papers/adm_imagenet64.py --workdir=runs/adm

Data: TFDS's `imagenet_resized/64x64`; the paper's own crops differ a little. The paper is
"Diffusion models beat GANs on image synthesis". Settings: its table 11 (ImageNet 64), and the flags
in the README of the authors' repository. Class-conditional, 296 million parameters, 540,000 steps
of 2048 images, float16 with the dynamic loss scale of the authors' fp16_util.py. FID 2.07 without
guidance, with 250 ancestral steps (that README, and table 5, ADM with dropout). Hardware and time:
V100; the paper's compute (table 10) is of larger images. Not verified: the steps, batch and
learning rate of table 11.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import network
from configs.papers._published import average, published, run


def get_config() -> ConfigDict:
    """Return the config of the paper's model of this data set."""
    config = published(
        "imagenet_resized/64x64", image_size=64, channels=3, num_classes=1000, flip=True
    )
    config.process = "discrete.ddpm(betas='cosine', steps=1000)"
    # their steps count from 0, and their network receives the image as it is
    config.parameterization = "eps(noise_input='time', input_scale=False, time_shift=-0.001)"
    config.objective = "learned_variance.hybrid(steps=1000)"
    config.model = network(
        "unet.UNet",
        width=192,
        multipliers=(1, 2, 3, 4),
        blocks=3,
        attention=(32, 16, 8),
        head_width=64,
        dropout=0.1,
        updown="resblock",
        norm=(32, 1e-5),
        noise_embedding="adm",
        learn_variance=True,
        dtype="float16",
    )
    config.training.loss_scale = "dynamic(start=20.0, growth=0.001)"
    config.optimizer.learning_rate = 3e-4
    config.sampler.update(
        name="ancestral.ddpm(variance='learned')", grid="linspace(steps=1000)", nfe=250
    )
    return average(run(config, steps=540_000, batch_size=2048), 0.9999)
