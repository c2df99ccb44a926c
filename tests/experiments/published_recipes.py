"""What the papers and their authors' programs say about the recipes in configs/papers.

The units are those of the sources: rates of an average per step, warm-up in steps or images. Each
entry names its source. `facts` reads the same quantities out of a config.
"""

from __future__ import annotations

from typing import Any

# those whose programs have no 16 bits, or do not turn them on
FLOAT32 = {"dtype": "float32", "loss_scale": ""}
CIFAR = FLOAT32 | {"shape": (32, 32, 3)}
SCORE_SDE = CIFAR | {
    "batch": 128,
    "rate": 2e-4,
    "warmup": 5000,
    "betas": (0.9, 0.999),
    "dropout": 0.1,
    "flip": True,
    "width": 128,
    "multipliers": (1, 2, 2, 2),
    "attention": (16,),
    "classes": 0,
}
EDM = CIFAR | {
    "batch": 512,
    "images": 200e6,
    "rate": 1e-3,
    "warmup_images": 10e6,
    "betas": (0.9, 0.999),
    "clip": 0.0,
    "halflife": 500_000,
    "ramp": 0.05,
    "dropout": 0.13,
    "augment": 0.12,
    "flip": False,
    "width": 128,
    "multipliers": (2, 2, 2),
    "blocks": 4,
    "attention": (16,),
}
EDM2 = {
    "batch": 2048,
    "warmup_images": 10e6,
    "betas": (0.9, 0.99),
    "schedule": "rsqrt",
    "clip": 0.0,
    "dtype": "float16",
    "loss_scale": "fixed(scale=1.0, replace=True, infinity=0.0)",
    "classes": 1000,
}
LATENTS = FLOAT32 | {
    "shape": (32, 32, 4),
    "batch": 256,
    "rate": 1e-4,
    "warmup": 0,
    "ema_rate": 0.9999,
    "weight_decay": 0.0,
    "label_dropout": 0.1,
    "classes": 1000,
}
DIT_XL = LATENTS | {"steps": 7_000_000, "betas": (0.9, 0.999), "width": 1152, "depth": 28}
DIT_XL |= {"nfe": 250}
JIT = {
    "images": 600 * 1_281_167,
    "batch": 1024,
    "rate": 2e-4,
    "warmup_images": 5 * 1_281_167,
    "betas": (0.9, 0.95),
    "ema_rate": 0.9999,
    "weight_decay": 0.0,
    "clip": 0.0,
    "label_dropout": 0.1,
    "flip": True,
    "dropout": 0.0,
    "dtype": "bfloat16",
    "loss_scale": "",
    "classes": 1000,
}
ECT = CIFAR | {
    "batch": 128,
    "optimizer": "radam",
    "rate": 1e-4,
    "betas": (0.9, 0.999),
    "ema_rate": 0.9999,
    "dropout": 0.2,
    "augment": 0.0,
    "flip": False,
    "classes": 0,
}
ICT = CIFAR | {"batch": 1024, "steps": 400_000, "optimizer": "radam", "rate": 1e-4}
ICT |= {"ema_rate": 0.99993, "dropout": 0.3, "flip": True, "classes": 0}
SCM = CIFAR | {"batch": 512, "steps": 400_000, "schedule": "constant", "halflife": 500_000}
SCM |= {"ramp": 0.05, "width": 128, "multipliers": (2, 2, 2), "double_norm": True, "classes": 0}
SCM_STUDENT = SCM | {"optimizer": "radam", "rate": 1e-4, "betas": (0.9, 0.99)}
VDM = (
    CIFAR
    | {"steps": 10_000_000, "batch": 128, "flip": False, "dropout": 0.1, "ema_rate": 0.9999}
    | {"optimizer": "adamw", "rate": 2e-4, "warmup": 100, "schedule": "constant", "clip": 0.0}
    | {"betas": (0.9, 0.99), "weight_decay": 0.01, "width": 128, "multipliers": (1,), "blocks": 32}
    | {"attention": (), "input_fourier": (7, 8), "classes": 0}
)

# (recipe, variant): (source, parameters in millions as it states them, values)
RECIPES: dict[tuple[str, str], tuple[str, float, dict[str, Any]]] = {
    ("ddpm_cifar10", ""): (
        "Ho et al. 2020, appendix B; hojonathanho/diffusion, scripts/run_cifar.py",
        35.7,
        SCORE_SDE | {"steps": 800_000, "blocks": 2, "clip": 1.0, "ema_rate": 0.9999},
    ),
    ("iddpm_cifar10", "hybrid"): (
        "Nichol & Dhariwal 2021, appendix A; openai/improved-diffusion, README, image_datasets.py",
        52.5,  # "50M"
        CIFAR
        | {
            "steps": 500_000,
            "batch": 128,
            "rate": 1e-4,
            "warmup": 0,
            "clip": 0.0,
            "ema_rate": 0.9999,
            "dropout": 0.3,
            "flip": False,
            "width": 128,
            "multipliers": (1, 2, 2, 2),
            "blocks": 3,
            "attention": (16, 8),
            "classes": 0,
        },
    ),
    ("ncsnpp_ve", ""): (
        "yang-song/score_sde, configs/ve/cifar10_ncsnpp_continuous.py; 0.5 sum_i loss_i is clipped",
        62.8,
        SCORE_SDE
        | {
            "steps": 1_300_000,
            "blocks": 4,
            "ema_rate": 0.999,
            "clip": 1 / 1536,
            "eps": 1e-8 / 1536,
        },
    ),
    ("ncsnpp_ve", "deep"): (
        "yang-song/score_sde, configs/ve/cifar10_ncsnpp_deep_continuous.py",
        107.6,
        SCORE_SDE | {"steps": 950_000, "blocks": 8, "ema_rate": 0.999, "clip": 1 / 1536},
    ),
    ("ddpmpp_vp", ""): (
        "yang-song/score_sde, configs/vp/cifar10_ddpmpp_continuous.py",
        61.8,
        SCORE_SDE | {"steps": 1_300_000, "blocks": 4, "ema_rate": 0.9999, "clip": 1.0, "eps": 1e-8},
    ),
    ("ddpmpp_vp", "deep"): (
        "yang-song/score_sde, configs/vp/cifar10_ddpmpp_deep_continuous.py",
        106.6,
        SCORE_SDE | {"steps": 950_000, "blocks": 8, "ema_rate": 0.9999, "clip": 1.0},
    ),
    ("ddpmpp_subvp", ""): (
        "yang-song/score_sde, configs/subvp/cifar10_ddpmpp_continuous.py",
        61.8,
        SCORE_SDE | {"steps": 1_300_000, "blocks": 4, "ema_rate": 0.9999, "clip": 1.0},
    ),
    ("ddpmpp_subvp", "deep"): (
        "yang-song/score_sde, configs/subvp/cifar10_ddpmpp_deep_continuous.py",
        106.6,
        SCORE_SDE | {"steps": 950_000, "blocks": 8, "ema_rate": 0.9999, "clip": 1.0},
    ),
    ("edm_cifar10", "vp"): ("Karras et al. 2022, table 7; NVlabs/edm, train.py", 55.7, EDM),
    ("edm_cifar10", "ve"): ("the same; the count is that of its SongUNet", 56.4, EDM),
    ("edm_cifar10", "vp,cond"): ("the same", 55.7, EDM | {"classes": 10}),
    ("edm_cifar10", "ve,cond"): ("the same", 56.4, EDM | {"classes": 10}),
    ("edm2_img64", "S"): (
        "Karras et al. 2024, tables 3 and 6; NVlabs/edm2, train_edm2.py",
        280.2,
        EDM2
        | {"shape": (64, 64, 3), "images": 1024 << 20, "rate": 0.01, "decay_from": 35_000}
        | {"width": 192, "dropout": 0.0},
    ),
    ("edm2_img64", "M"): (
        "the same",
        497.8,
        EDM2 | {"images": 2048 << 20, "rate": 0.009, "width": 256, "dropout": 0.1},
    ),
    ("edm2_img64", "L"): (
        "the same",
        777.5,
        EDM2 | {"images": 1024 << 20, "rate": 0.008, "width": 320, "dropout": 0.1},
    ),
    ("edm2_img64", "XL"): (
        "the same",
        1119.3,
        EDM2 | {"images": 640 << 20, "rate": 0.007, "width": 384, "dropout": 0.1},
    ),
    ("edm2_img512", "XS"): (
        "Karras et al. 2024, tables 2 and 6; NVlabs/edm2, train_edm2.py",
        124.7,
        EDM2
        | {"shape": (64, 64, 4), "images": 2048 << 20, "rate": 0.012, "decay_from": 70_000}
        | {"width": 128, "dropout": 0.0},
    ),
    ("edm2_img512", "S"): (
        "the same",
        280.2,
        EDM2 | {"images": 2048 << 20, "rate": 0.01, "width": 192, "dropout": 0.0},
    ),
    ("edm2_img512", "M"): (
        "the same",
        497.8,
        EDM2 | {"images": 2048 << 20, "rate": 0.009, "width": 256, "dropout": 0.1},
    ),
    ("edm2_img512", "L"): (
        "the same",
        777.5,
        EDM2 | {"images": 1792 << 20, "rate": 0.008, "width": 320, "dropout": 0.1},
    ),
    ("edm2_img512", "XL"): (
        "the same",
        1119.3,
        EDM2 | {"images": 1280 << 20, "rate": 0.007, "width": 384, "dropout": 0.1},
    ),
    ("edm2_img512", "XXL"): (
        "the same",
        1523.2,
        EDM2 | {"images": 896 << 20, "rate": 0.0065, "width": 448, "dropout": 0.1},
    ),
    ("adm_imagenet64", ""): (
        "Dhariwal & Nichol 2021, table 11; openai/guided-diffusion, README, image_datasets.py",
        296.0,
        {
            "shape": (64, 64, 3),
            "steps": 540_000,
            "batch": 2048,
            "rate": 3e-4,
            "betas": (0.9, 0.999),
            "ema_rate": 0.9999,
            "dropout": 0.1,
            "flip": True,
            "width": 192,
            "multipliers": (1, 2, 3, 4),
            "blocks": 3,
            "attention": (32, 16, 8),
            "dtype": "float16",
            "loss_scale": "dynamic(start=20.0, growth=0.001)",
            "classes": 1000,
        },
    ),
    ("edm_imagenet64", ""): (
        "Karras et al. 2022, table 7; NVlabs/edm, README, train.py and training_loop.py",
        295.9,
        EDM
        | {
            "shape": (64, 64, 3),
            "batch": 4096,
            "images": 2500e6,
            "rate": 1e-4,
            "eps": 1e-10,
            "halflife": 50_000_000,
            "dropout": 0.1,
            "augment": 0.0,
            "width": 192,
            "multipliers": (1, 2, 3, 4),
            "blocks": 3,
            "attention": (32, 16, 8),
            "dtype": "float16",
            "loss_scale": "fixed(scale=100.0, replace=True, infinity=100000.0)",
            "classes": 1000,
        },
    ),
    ("dit_imagenet256", "XL"): (
        "Peebles & Xie 2023, section 4, table 4 and appendix A; facebookresearch/DiT, train.py",
        675.0,
        DIT_XL | {"guidance": 1.375},
    ),
    ("dit_imagenet256", "L"): ("the same", 458.0, LATENTS | {"steps": 400_000, "depth": 24}),
    ("dit_imagenet256", "B"): ("the same", 130.0, LATENTS | {"steps": 400_000, "depth": 12}),
    ("dit_imagenet256", "S"): ("the same", 33.0, LATENTS | {"steps": 400_000, "depth": 12}),
    ("sit_imagenet256", ""): (
        "Ma et al. 2024; willisma/SiT, README, train.py",
        675.0,
        DIT_XL | {"guidance": 1.5},
    ),
    ("meanflow_imagenet256", ""): (
        "Geng et al. 2025, tables 2 and 4, column XL/2; Gsunshine/meanflow, configs/default.py",
        676.0,
        LATENTS | {"images": 240 * 1_281_167, "betas": (0.9, 0.95), "width": 1152, "depth": 28},
    ),
    ("jit_imagenet", "B/16"): (
        "Li & He 2025, tables 7 to 9; LTH14/JiT, README and main_jit.py",
        131.0,
        JIT | {"shape": (256, 256, 3), "width": 768, "depth": 12},
    ),
    ("jit_imagenet", "L/16"): ("the same", 459.0, JIT | {"width": 1024, "depth": 24}),
    ("jit_imagenet", "B/32"): ("the same", 133.0, JIT | {"shape": (512, 512, 3), "depth": 12}),
    ("jit_imagenet", "L/32"): ("the same", 462.0, JIT | {"width": 1024, "depth": 24}),
    ("ect_cifar10", "100k"): ("locuslab/ect, run_ecm.sh, README", 55.7, ECT | {"steps": 100_000}),
    ("ect_cifar10", "200k"): ("the same", 55.7, ECT | {"images": 25.6e6}),
    ("ect_cifar10", "400k"): ("the same", 55.7, ECT | {"steps": 400_000}),
    ("ict_cifar10", ""): (
        "Song & Dhariwal 2024, table 1 and appendix A; openai/consistency_models_cifar10, "
        "configs/cifar10_ve_ct_adaptive.py, for the network",
        56.4,
        ICT | {"width": 128, "multipliers": (2, 2, 2), "blocks": 4},
    ),
    ("ict_cifar10", "deep"): (
        "the same; the count is that of EDM's SongUNet",
        97.6,
        ICT | {"multipliers": (2, 2, 2), "blocks": 8},
    ),
    ("scm_cifar10", "sct"): (
        "Lu & Song 2025, appendix G; the count is that of EDM's network, 55.7, and of "
        "the second half of 33 linear maps of 512 features to 2 x 256",
        60.07,
        SCM_STUDENT | {"dropout": 0.2},
    ),
    ("scm_cifar10", "scd"): ("the same", 60.07, SCM_STUDENT | {"dropout": 0.0}),
    ("scm_cifar10", "teacher"): (
        "the same; the other values are EDM's",
        60.07,
        SCM | {"rate": 1e-3, "warmup_images": 10e6, "dropout": 0.13, "augment": 0.12},
    ),
    ("vdm_cifar10", "ends"): (
        "Kingma et al. 2021; google-research/vdm, configs/cifar10.py; the count is that of its "
        "model_vdm.py",
        30.58,
        VDM,
    ),
    ("vdm_cifar10", "shape"): ("the same; the schedule is the paper's, appendix H", 30.58, VDM),
    ("ldm", "ffhq"): (
        "Rombach et al. 2022, table 12; CompVis/latent-diffusion, "
        "configs/latent-diffusion/ffhq-ldm-vq-4.yaml",
        274.0,
        FLOAT32
        | {
            "shape": (64, 64, 3),
            "steps": 635_000,
            "batch": 42,
            "rate": 8.4e-5,
            "weight_decay": 0.01,
            "ema_rate": 0.9999,
            "width": 224,
            "multipliers": (1, 2, 3, 4),
            "blocks": 2,
            "attention": (32, 16, 8),
            "classes": 0,
        },
    ),
    ("ldm", "celeba_hq"): (
        "Rombach et al. 2022, table 12",
        274.0,
        FLOAT32 | {"shape": (64, 64, 3), "steps": 410_000, "batch": 48, "rate": 9.6e-5},
    ),
}


def facts(config: Any, shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    """The quantities of RECIPES, of a config.

    Args:
      config: a ConfigDict.
      shape: the shape of an example of its data.
      classes: the number of classes of its data.
    """
    model, optimizer, batch = config.model, config.optimizer, config.data.batch_size
    found = {
        "shape": shape,
        "classes": classes if config.conditional else 0,
        "steps": config.training.steps,
        "batch": batch,
        "images": config.training.steps * batch,
        "optimizer": optimizer.name,
        "rate": optimizer.learning_rate,
        "schedule": optimizer.schedule,
        "warmup": optimizer.warmup,
        "warmup_images": optimizer.warmup * batch,
        "betas": (optimizer.b1, optimizer.b2),
        "clip": optimizer.clip,
        "weight_decay": optimizer.weight_decay,
        "flip": config.data.flip,
        "augment": config.data.augment,
        "label_dropout": config.label_dropout,
        "ramp": config.ema.ramp,
        "guidance": config.sampler.guidance,
        "nfe": config.sampler.nfe,
        "loss_scale": config.training.loss_scale,
    }
    if config.ema.halflives:
        (halflife,) = config.ema.halflives
        found |= {"halflife": halflife, "ema_rate": 0.5 ** (batch / halflife)}
    found |= {key: optimizer[key] for key in ("decay_from", "eps") if key in optimizer}
    names = ("width", "multipliers", "blocks", "attention", "depth", "dropout", "dtype")
    names = (*names, "input_fourier", "double_norm")
    return found | {key: model[key] for key in names if key in model}
