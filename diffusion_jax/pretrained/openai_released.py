"""The flags of the files that guided-diffusion, improved-diffusion and consistency_models publish.

The keys are the names of the files.
"""

from __future__ import annotations

_CIFAR = {"image_size": 32, "diffusion_steps": 4000, "noise_schedule": "cosine", "dropout": 0.3}
_IMAGENET = {"image_size": 64, "diffusion_steps": 4000, "noise_schedule": "cosine"}
_LSUN = {"image_size": 256, "num_heads": 1, "rescale_timesteps": False}
IMPROVED_RELEASED = {
    "cifar10_uncond_50M_500K.pt": _CIFAR,
    "cifar10_uncond_vlb_50M_500K.pt": _CIFAR,
    "imagenet64_uncond_100M_1500K.pt": _IMAGENET,
    "imagenet64_uncond_vlb_100M_1500K.pt": _IMAGENET,
    "imagenet64_cond_270M_250K.pt": _IMAGENET | {"rescale_timesteps": False},
    "lsun_uncond_100M_1200K_bs128.pt": _LSUN,
    "lsun_uncond_100M_2400K_bs64.pt": _LSUN,
}
_WIDTH = {"num_head_channels": 64}
_LSUN_ADM = _WIDTH | {"image_size": 256, "dropout": 0.1}
GUIDED_RELEASED = {
    "64x64_diffusion.pt": _WIDTH
    | {
        "image_size": 64,
        "dropout": 0.1,
        "noise_schedule": "cosine",
        "use_new_attention_order": True,
    },
    "128x128_diffusion.pt": {"image_size": 128, "num_heads": 4},
    "256x256_diffusion.pt": _WIDTH | {"image_size": 256},
    "256x256_diffusion_uncond.pt": _WIDTH | {"image_size": 256},
    "512x512_diffusion.pt": _WIDTH | {"image_size": 512},
    "64_256_upsampler.pt": {"image_size": 256, "small_size": 64, "num_heads": 4},
    "128_512_upsampler.pt": _WIDTH | {"image_size": 512, "small_size": 128},
    "lsun_bedroom.pt": _LSUN_ADM,
    "lsun_cat.pt": _LSUN_ADM,
    "lsun_horse.pt": _LSUN_ADM,
    "lsun_horse_nodropout.pt": _LSUN_ADM | {"dropout": 0.0},
}
CONSISTENCY_RELEASED = {
    f"{method}_{data}{end}.pt": _WIDTH | {"image_size": size, "training_mode": mode}
    for data, size in (("imagenet64", 64), ("bedroom256", 256), ("cat256", 256))
    for method, mode, ends in (
        ("edm", "edm", ("_ema",)),
        ("cd", "consistency_distillation", ("_l2", "_lpips")),
        ("ct", "consistency_training", ("",)),
    )
    for end in ends
}
