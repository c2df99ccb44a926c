r"""SiT on latents of ImageNet at 256x256 (Ma et al. 2024).

    python -m experiments.train --config=configs/papers/sit_imagenet256.py \
        --config.data.path=imagenet256.npz --config.latent.autoencoder=runs/sd_vae \
        --workdir=runs/sit

Data: 32x32x4 latents of Stable Diffusion's autoencoder, which experiments.encode writes (the paper
also mirrors images at random, which a file of latents cannot). The paper is "SiT: exploring flow
and diffusion-based generative models with scalable interpolant transformers". Settings: the
authors' train.py with its defaults, the linear path and the velocity. SiT-XL/2, class-conditional,
675 million parameters, 7 million steps of 256 images. FID 2.06 with guidance 1.5 and 250
Euler-Maruyama steps (the authors' README), 8.3 without guidance (not verified; others state 8.6).
Hardware and time: TPUs; the authors' repository states no time.

Their network also has the outputs of a variance, which it does not use; ours has none.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import network
from configs.papers._published import average, published, run
from diffusion_jax.models.dit import SIZES


def get_config() -> ConfigDict:
    """Return the config of SiT-XL/2."""
    config = published("latents", image_size=32, channels=4, num_classes=1000)
    config.process, config.label_dropout = "schedules.RectifiedFlow()", 0.1
    # their time is 0 at the noise and 1 at the data, and the network receives the latent as it is
    inputs = "noise_input='time', input_scale=False, time_scale=-1.0, time_shift=1.0"
    config.parameterization = f"velocity({inputs})"
    config.objective = "denoising.flow_matching()"
    config.model = network(
        "dit.DiT", patch=2, noise_embedding="adm_plain", scan_blocks=True, **SIZES["XL"]
    )
    config.optimizer.learning_rate = 1e-4
    config.sampler.update(
        name="sde.interpolant(diffusion='sigma')", grid="uniform", nfe=250, guidance=1.5
    )
    return average(run(config, steps=7_000_000, batch_size=256, every=50_000), 0.9999)
