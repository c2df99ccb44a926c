r"""The networks of Stable Diffusion 1, 2, XL, 3 and 3.5.

    python -m experiments.plan --config=configs/stable_diffusion.py:sdxl --topology=v5e:2x4 \
        --sampling --config.model.dtype=bfloat16

Papers: Rombach et al. 2022, Podell et al. 2023, Esser et al. 2024. Data: latents of an autoencoder
for images of 512, 768 or 1024 pixels. No preset has been trained here; published weights become a
workdir by experiments.import_weights --from=stable_diffusion or --from=sd3, which has its own
config. This file is for plans of memory, and for training such a network anew.

Variants, with the parameters of the network: sd1, 860 million; sd2, 866 million; sdxl, 2.57
billion; sd3_medium, 2.03 billion; sd35_medium, 2.24 billion; sd35_large, 8.06 billion.
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
# name: (blocks, further options of the transformer); 64 channels per head, and a head per block
TRANSFORMERS = {
    "sd3_medium": (24, {}),
    "sd35_medium": (24, {"qk_norm": "rms", "dual_attention": tuple(range(13))}),
    "sd35_large": (38, {"qk_norm": "rms"}),
}
PLACES = {"sd35_medium": 384}  # tokens along a side of the grid of positions
SHIFT = 3.0  # of the times, at 1024 pixels


def get_config(name: str = "sd1") -> ConfigDict:
    """Return the config of a version.

    Args:
      name: a key of VARIANTS or of TRANSFORMERS.

    Raises:
      UserError: for another name.
    """
    if name not in VARIANTS and name not in TRANSFORMERS:
        raise unknown("variant", name, [*VARIANTS, *TRANSFORMERS])
    config = _transformer(name) if name in TRANSFORMERS else _unet(name)
    config.conditional = False  # of labels; there are captions
    config.text.max_length = 77
    config.data.batch_size = 2048
    config.optimizer.update(learning_rate=1e-4, warmup=10_000, schedule="constant", b2=0.999)
    config.ema.halflives = (1_800_000,)
    config.training.update(steps=400_000, steps_per_call=10, log_every=100)
    config.sampler.batch_size = 4
    return config


def _unet(name: str) -> ConfigDict:
    size, options, prediction, encoder, guidance = VARIANTS[name]
    config = latents(base())
    config.process = "discrete.ddpm('scaled_linear', 1000, 0.00085, 0.012)"
    steps = "noise_input='time', input_scale=False, time_shift=-0.001"
    config.parameterization = f"{prediction}({steps})"
    config.objective = "denoising.ddpm(steps=1000)"
    config.model = network("sd_unet.SDUNet", **options)
    config.text.encoder = encoder
    config.data.update(image_size=size, channels=4)
    config.sampler.update(grid="leading(steps=1000, offset=1)", guidance=guidance)
    return config


def _transformer(name: str) -> ConfigDict:
    depth, options = TRANSFORMERS[name]
    config = latents(base())
    config.process = "schedules.RectifiedFlow()"
    config.parameterization = "velocity(noise_input='time', input_scale=False)"
    config.objective = "denoising.flow_matching(time=times.logit_normal())"
    config.model = network(
        "mmdit.MMDiT",
        width=64 * depth,
        depth=depth,
        heads=depth,
        position_grid=(PLACES.get(name, 192), 64),
        text_mask=False,
        **options,
    )
    config.text.encoder = "sd3(width=4096, pooled=2048)"
    config.data.update(image_size=128, channels=16)
    config.sampler.update(name="ode.euler", grid=f"flow_shift(shift={SHIFT})", nfe=28, guidance=7.0)
    return config
