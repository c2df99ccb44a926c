r"""MeanFlow on latents of ImageNet at 256x256 (Geng et al. 2025).

    python -m experiments.train --config=configs/papers/meanflow_imagenet256.py \
        --config.data.path=imagenet256.npz --config.latent.autoencoder=runs/sd_vae \
        --workdir=runs/meanflow

Data: 32x32x4 latents of Stable Diffusion's autoencoder, which experiments.encode writes. The paper
is "Mean flows for one-step generative modeling". Settings: its table 4, column XL/2, and the
configs of the authors' program Gsunshine/meanflow, which has B/4 alone. The network of SiT-XL/2
with a second time, 676 million parameters there; class-conditional, 240 epochs in batches of 256.
FID 3.43 with one evaluation and 2.93 with two (table 2). Hardware and time: TPUs; the program
states no time. Not verified: the guidance of XL/2 (0.2, 0.92 and times below 0.75).

Their second input is the length of the move, t - s, and has an MLP of its own; ours is its end s,
added to the features of t, so it has 1.3 million parameters less.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import network
from configs.papers._published import average, published, run
from diffusion_jax.models.dit import SIZES


def get_config() -> ConfigDict:
    """Return the config of MeanFlow-XL/2."""
    config = published("latents", image_size=32, channels=4, num_classes=1000)
    config.process, config.label_dropout = "schedules.RectifiedFlow()", 0.1
    config.parameterization = "velocity(noise_input='time', input_scale=False)"
    config.objective = (
        "meanflow.meanflow(time=times.logit_normal(-0.4, 1.0), ratio=0.25, p=1.0, guidance=0.2, "
        "kappa=0.92, interval=(0.0, 0.75))"
    )
    config.model = network(
        "dit.DiT",
        patch=2,
        noise_embedding="adm_plain",
        second_time=True,
        scan_blocks=True,
        **SIZES["XL"],
    )
    config.optimizer.update(learning_rate=1e-4, b2=0.95)
    config.sampler.update(name="few_step.jump", grid="few_step", nfe=1)
    return average(run(config, steps=1_200_000, batch_size=256, every=50_000), 0.9999)
