r"""The networks of Stable Diffusion 1, 2 and XL (Rombach et al. 2022; Podell et al. 2023).

    python -m experiments.plan --config=configs/stable_diffusion.py:sdxl --topology=v5e:2x4 \
        --sampling --config.model.dtype=bfloat16

Data: latents of an autoencoder for images of 512, 768 or 1024 pixels. No preset has been trained
here; published weights become a workdir by experiments.import_weights --from=stable_diffusion,
which has its own config. This file is for plans of memory, and for training such a network anew.

Variants: sd1, sd2, sdxl.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs._autoencoders import latents
from configs.base import base, network
from diffusion_jax.core.errors import unknown

# name: (side of the latents, network, prediction, text encoder, guidance)
VARIANTS = {
    "sd1": (64, {}, "eps", "clip(width=768)", 7.5),
    "sd2": (96, {"heads": (5, 10, 20, 20), "linear": True}, "v", "clip(width=1024)", 7.5),
    "sdxl": (
        128,
        {
            "multipliers": (1, 2, 4),
            "depth": (0, 2, 10),
            "middle_depth": 10,
            "heads": (5, 10, 20),
            "linear": True,
            "sizes": 256,
        },
        "eps",
        "clip(width=2048, pooled=1280, sizes=(1024, 1024, 0, 0, 1024, 1024), skip=1, "
        "normalized=False)",
        5.0,
    ),
}


def get_config(name: str = "sd1") -> ConfigDict:
    """Return the config of a version.

    Args:
      name: sd1, sd2 or sdxl.

    Raises:
      UserError: for another name.
    """
    if name not in VARIANTS:
        raise unknown("variant", name, VARIANTS)
    size, options, prediction, encoder, guidance = VARIANTS[name]
    config = latents(base())
    config.process = "discrete.ddpm('scaled_linear', 1000, 0.00085, 0.012)"
    steps = "noise_input='time', input_scale=False, time_shift=-0.001"
    config.parameterization = f"{prediction}({steps})"
    config.objective = "denoising.ddpm(steps=1000)"
    config.model = network("sd_unet.SDUNet", **options)
    config.conditional = False  # of labels; there are captions
    config.text.update(encoder=encoder, max_length=77)
    config.data.update(image_size=size, channels=4, batch_size=2048)
    config.optimizer.update(learning_rate=1e-4, warmup=10_000, schedule="constant", b2=0.999)
    config.ema.halflives = (1_800_000,)
    config.training.update(steps=400_000, steps_per_call=10, log_every=100)
    config.sampler.update(grid="leading(steps=1000, offset=1)", guidance=guidance, batch_size=4)
    return config
