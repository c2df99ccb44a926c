r"""Latent diffusion of faces, LDM-4 (Rombach et al. 2022).

    python -m experiments.train --config=configs/papers/ldm.py:ffhq \
        --config.data.path=ffhq.npz --config.latent.autoencoder=runs/kl_f4 --workdir=runs/ldm

Data: 64x64x3 latents of 256x256 images, which experiments.encode writes; the paper's autoencoder
for them is vector-quantized, ours is a variational one of the same shape. The paper is
"High-resolution image synthesis with latent diffusion models". Settings: its table 12, and the
authors' configs/latent-diffusion/ffhq-ldm-vq-4.yaml. Unconditional, 274 million parameters.
Hardware: a single A100; the time follows from the steps.

Variants, with FID of 200 DDIM steps (the authors' README):

    ffhq         635,000 steps of 42 latents, rate 8.4e-5; FID 4.98 (eta = 1)
    celeba_hq    410,000 steps of 48 latents, rate 9.6e-5; FID 5.11 (eta = 0)
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import network
from configs.papers._published import average, published, run
from diffusion_jax.core.errors import unknown

VARIANTS = {
    # name: (steps, batch, eta)
    "ffhq": (635_000, 42, 1.0),
    "celeba_hq": (410_000, 48, 0.0),
}
BASE_RATE = 2e-6  # of one example


def get_config(name: str = "ffhq") -> ConfigDict:
    """Return the config of a data set.

    Args:
      name: a key of VARIANTS.

    Raises:
      UserError: for another name.
    """
    if name not in VARIANTS:
        raise unknown("variant", name, VARIANTS)
    steps, batch, eta = VARIANTS[name]
    config = published("latents", image_size=64, channels=3)
    config.conditional = False
    # the betas are linear in their roots; 1.5e-3 to 1.95e-2
    chain = "betas='scaled_linear', steps=1000, beta_min=0.0015, beta_max=0.0195"
    config.process = f"discrete.ddpm({chain})"
    config.parameterization = "eps(noise_input='time', input_scale=False, time_shift=-0.001)"
    config.objective = "denoising.ddpm(steps=1000)"
    config.model = network(
        "unet.UNet",
        width=224,
        multipliers=(1, 2, 3, 4),
        blocks=2,
        attention=(32, 16, 8),
        head_width=32,
        scale_shift=False,
        updown="conv_centred",
        norm=(32, 1e-5),
        noise_embedding="adm",
    )
    # AdamW with the weight decay that torch has by default
    config.optimizer.update(learning_rate=BASE_RATE * batch, weight_decay=0.01)
    config.sampler.update(name=f"ancestral.ddim(eta={eta})", grid="leading(offset=1)", nfe=200)
    return average(run(config, steps=steps, batch_size=batch), 0.9999)
