"""Every config key and what it means; and the variants that configs share: seven of diffusion,
those of few-step models and of autoencoders.

A data set's config is `base()`, the few lines in which it differs, and `variant(config, name)`.
Components are written as specs, calls in text ('schedules.VP(beta_max=20.0)';
diffusion_jax/assembly/build.py), so one override changes a component and its arguments:

    --config.process='schedules.VP(beta_max=16.0)'  --config.objective='denoising.denoising(weight=weighting.min_snr(5.0))'
"""

from __future__ import annotations

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from diffusion_jax.assembly.components import network
from diffusion_jax.errors import unknown


def base() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0

    # What to learn from (diffusion_jax/data). Values 0 and '' keep what the data set has.
    config.data = data = ConfigDict()
    data.name = (
        "digits"  # digits; any TFDS image set; folder, npz, idx, latents (need path); 2-D toys
    )
    # folder, .npz file (of latents: what experiments.encode made), or the folder of the idx files
    data.path = ""
    data.data_dir = (
        ""  # where TFDS keeps prepared sets; '' is $TFDS_DATA_DIR or ~/tensorflow_datasets
    )
    data.image_size = 0
    data.channels = 0
    data.num_classes = 0  # for npz and idx, where the labels found may not show all classes
    # npz with a text encoder: a JSON file of captions; '' is STEM_captions.json beside the .npz
    data.captions = ""
    # what a folder means: classes, splits or flat; '': the only way to read it, or an error that
    # names the ways
    data.layout = ""
    # folder, npz: (black, white), where values are not 0..255 or, of 16 bits, 0..65535
    data.value_range = ()
    data.limit_bad = -1  # unreadable files of a folder that are skipped; -1: a tenth, at most 100
    data.flip = False  # random horizontal flips
    data.batch_size = 128  # global, over all devices
    data.workers = (
        0  # processes that read and decode ahead; 0: a thread, which is enough for sets in memory
    )

    # The mathematics.
    config.process = "schedules.VP()"
    config.parameterization = "eps()"
    config.objective = "denoising.dsm()"

    config.model = network("unet.UNet")
    config.conditional = True  # use the labels, if the data has any
    config.text = text = ConfigDict()
    # use the captions of the data: bytes, trained with the network, or minilm
    # (diffusion_jax/models/text.py)
    text.encoder = ""
    text.max_length = 48  # tokens of a caption that are read: bytes, or minilm's word pieces
    # the workdir whose weights training starts from; '': the teacher, if it has the same network,
    # or none
    config.init_from = ""
    config.distill = distill = ConfigDict()  # who teaches a network that jumps (docs/few_step.md)
    distill.teacher = ""  # a workdir of a diffusion model
    distill.guidance = placeholder(
        float
    )  # scale of the teacher's guidance; None: what its own config says
    # fraction of examples trained without label and caption, which classifier-free guidance needs
    config.label_dropout = 0.1

    config.optimizer = optimizer = ConfigDict()  # any optax optimizer by name
    optimizer.name = "adamw"
    optimizer.learning_rate = 1e-3
    optimizer.warmup = 100  # steps
    optimizer.schedule = "cosine"  # constant, cosine, linear or rsqrt
    optimizer.clip = 1.0  # global norm; 0: off
    optimizer.weight_decay = 0.0
    optimizer.b1 = 0.9
    optimizer.b2 = 0.99
    config.ema = averages = ConfigDict(
        {"halflives": (5_000,), "ramp": 0.05}
    )  # in images; see training/ema.py
    # relative lengths of power averages, usually (0.05, 0.1), from which others are made after
    # training
    averages.powers = ()
    averages.snapshot_every = 500  # steps; only where there are powers

    config.training = training = ConfigDict()
    training.steps = 1000
    # steps in one dispatch; 10 or more pays on accelerators, on a CPU 1 (training/step.py, scan)
    training.steps_per_call = 1
    training.accumulate = 1  # microbatches per step
    training.log_every = 50
    training.eval_every = 500  # held-out loss; 0: never
    training.sample_every = 500  # a grid of samples; 0: never
    training.first_shapes = (
        0  # steps after which samples begin to show shapes, if that is known: train then says when
    )
    training.checkpoint_every = 500
    training.keep = 3  # checkpoints kept: the last so many,
    training.keep_every = 0  # those at multiples of so many steps (0: none),
    training.best = (
        ""  # and the best by a number of the held-out rows, the smallest 'eval_loss'; '': none
    )
    # When a loss or gradient is not finite. The step itself moves nothing, under each of them, and
    # the first leaves a report. stop: the run ends, the last good checkpoint is named. skip: go on
    # with the next batch; the rows count the steps skipped; ten in a row end the run. rollback: go
    # on from the last checkpoint with other noise and with the data after that step; three in a row
    # from one checkpoint end the run. All are exact: a run killed and resumed does the same.
    training.on_nonfinite = "stop"
    config.parallel = "jit"  # jit (a mesh) or pmap
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # -1: fill

    config.sampler = sampler = ConfigDict()
    sampler.name = "ancestral.ddim"
    sampler.grid = (
        "auto"  # where it stops; auto: the grid that suits the sampler, which every command names
    )
    sampler.nfe = 50  # network evaluations per image
    sampler.guidance = 1.0  # scale of the guidance; 1: none, and half the work
    sampler.guide = "cfg()"  # which guidance: cfg, interval, autoguidance, classifier (diffusion_jax/denoisers/guides.py)
    sampler.noise = (
        "independent"  # brownian: one Brownian path per image, whatever the grid and the NFE
    )
    # x0-hat kept in [-1, 1]: static, dynamic (Imagen) or none; MeanFlow: only at the end
    sampler.clip = "static"
    # which weights: an EMA ('5k', 'power_0.05', 'post_hoc(0.12)'), 'params', or '' for the longest
    # half-life
    sampler.ema = ""
    sampler.checkpoint = ""  # '': the newest; best: that of training.best
    sampler.batch_size = 256
    return config


VARIANTS = {
    # name: (process, parameterization, objective, sampler, grid)
    "ddpm": (
        "discrete.ddpm()",
        "eps()",
        "denoising.ddpm(steps=1000)",
        "ancestral.ddim",
        "trailing",
    ),
    "vp": ("schedules.VP()", "eps()", "denoising.dsm()", "ancestral.ddim", "auto"),
    "subvp": ("schedules.SubVP()", "eps()", "denoising.dsm()", "ancestral.ddim", "auto"),
    "ve": (
        "schedules.VE(sigma_min=0.02, sigma_max=100.0)",
        "eps()",
        "denoising.dsm()",
        "ancestral.ddim",
        "auto",
    ),
    "edm": ("schedules.EDM()", "edm()", "denoising.edm()", "ode.edm_heun", "karras"),
    "flow": (
        "schedules.RectifiedFlow()",
        "velocity()",
        "denoising.flow_matching()",
        "ode.euler",
        "uniform",
    ),
}


# The variational bound in improved DDPM's objective is that of images with 256 gray levels, so it
# is not for latents or points.
IMAGE_VARIANTS = VARIANTS | {
    "iddpm": (
        "discrete.ddpm(betas='cosine', steps=4000)",
        "eps()",
        "learned_variance.hybrid(steps=4000)",
        "ancestral.ddpm(variance='learned')",
        "linspace(steps=4000)",
    ),
}


def variant(config: ConfigDict, name: str) -> ConfigDict:
    """Set process, parameterization, objective and sampler to one of VARIANTS. Raises UserError for
    another name.
    """
    return _set_variant(config, name, VARIANTS)


def image_variant(config: ConfigDict, name: str) -> ConfigDict:
    """The same for IMAGE_VARIANTS, whose 'iddpm' (Nichol & Dhariwal 2021) also learns the variance:
    call it after the network is set.
    """
    config = _set_variant(config, name, IMAGE_VARIANTS)
    config.model.learn_variance = name == "iddpm"
    return config


def _set_variant(config: ConfigDict, name: str, variants: dict[str, tuple[str, ...]]) -> ConfigDict:
    if name not in variants:
        raise unknown("variant", name, variants)
    (
        config.process,
        config.parameterization,
        config.objective,
        config.sampler.name,
        config.sampler.grid,
    ) = variants[name]
    return config


def split_size(name: str) -> tuple[str, str]:
    """'vp,full' -> ('vp', 'full'); 'vp' -> ('vp', 'light'). Raises UserError for another size."""
    name, _, size = name.partition(",")
    if size not in ("", "light", "full"):
        raise unknown("size", size, ("light", "full"))
    return name or "vp", size or "light"


# ---- networks that jump
EDM_LIKE = ("schedules.EDM()", "edm()")
FLOW = ("schedules.RectifiedFlow()", "velocity(noise_input='time')")

FEW_STEP = {
    # name: (process and parameterization, objective, sampler, what it is given: a teacher, weights
    # to start from, or nothing)
    "cd": (EDM_LIKE, "consistency.distillation()", "few_step.multistep", "teacher"),
    "ct": (
        ("schedules.EDM()", "consistency()"),
        "consistency.training(s1=40)",
        "few_step.multistep",
        "",
    ),
    "ict": (
        ("schedules.EDM()", "consistency()"),
        "consistency.improved(s1=160)",
        "few_step.multistep",
        "",
    ),
    "ect": (EDM_LIKE, "consistency.easy()", "few_step.multistep", "weights"),
    "sct": (EDM_LIKE, "consistency.continuous()", "few_step.multistep", "weights"),
    "scd": (EDM_LIKE, "consistency.continuous_distillation()", "few_step.multistep", "teacher"),
    "meanflow": (FLOW, "meanflow.meanflow()", "few_step.jump", ""),
    "imf": (FLOW, "meanflow.improved()", "few_step.jump", ""),
}


def few_step(config: ConfigDict, name: str, teacher: str) -> ConfigDict:
    """Make it one of FEW_STEP, or 'teacher', the EDM that they learn from. teacher: its workdir.
    UserError for another name.
    """
    if name == "teacher":
        variant(config, "edm")
    elif name not in FEW_STEP:
        raise unknown("variant", name, ("teacher", *FEW_STEP))
    else:
        (config.process, config.parameterization), config.objective, config.sampler.name, given = (
            FEW_STEP[name]
        )
        config.distill.teacher = teacher if given == "teacher" else ""
        config.init_from = teacher if given == "weights" else ""
        config.model.second_time = name in ("meanflow", "imf")
        config.sampler.update(grid="few_step", nfe=2, guidance=1.0)
    config.model.noise_embedding = "smooth"
    if (
        name in ("sct", "scd", "meanflow", "imf") and "attention_impl" in config.model
    ):  # for forward mode
        config.model.attention_impl = "plain"
    return config


# ---- autoencoders and latents
VAES = {
    # name: (p(x | z), what the network has for it)
    "gaussian": ("gaussian()", {}),
    "bernoulli": ("bernoulli()", {}),
    "logistic": ("logistic()", {"log_scale": "pixel"}),
    "powerful": ("logistic()", {"log_scale": "pixel", "pixel_layers": 4, "pixel_width": 16}),
}


def vae(config: ConfigDict, name: str, **options) -> ConfigDict:
    """Make it one of VAES, its network with these options besides. Raises UserError for another
    name.
    """
    if name not in VAES:
        raise unknown("variant", name, VAES)
    likelihood, own = VAES[name]
    config.objective = f"autoencoding.elbo(likelihood=autoencoding.{likelihood})"
    config.model = network("autoencoder.VAE", **options | own)
    if config.model.pixel_layers:  # a picture takes a call of the decoder for each of its pixels
        config.training.sample_every = config.training.steps
    return _autoencoder(config)


KL = ("plain", "adversarial")


def autoencoder(config: ConfigDict, name: str, **options) -> ConfigDict:
    """Make it an autoencoder of latent diffusion, one of KL, its network with these options. Raises
    UserError for another name.

    config.discriminator: the network of the adversary, as a spec, if the objective has one.
    """
    if name not in KL:
        raise unknown("variant", name, KL)
    adversary = {
        "plain": "",
        "adversarial": f", adversarial=0.5, start={config.training.steps // 2}",
    }[name]
    config.objective = (
        f"autoencoding.reconstruction(features='classifier', kl_weight=1e-3{adversary})"
    )
    config.discriminator = "PatchGAN(width=32, layers=2)"
    config.model = network("autoencoder.AutoencoderKL", **options)
    config.conditional = False
    return _autoencoder(config)


def _autoencoder(config: ConfigDict) -> ConfigDict:
    """Images are made in one evaluation of the decoder."""
    config.sampler.update(nfe=1, guidance=1.0, clip="none")
    return config


def latents(config: ConfigDict, recipe: str = "") -> ConfigDict:
    """Learn from latents (data.path: what experiments.encode made).

    latent.autoencoder: the workdir of what made them. latent.recipe: the config by which
    experiments.train_latent trains that.
    """
    config.data.name = "latents"
    config.latent = ConfigDict({"autoencoder": "", "recipe": recipe})
    config.sampler.clip = "none"  # latents have no bounds
    unit = {
        "edm()": "edm(sigma_data=1.0)",
        "denoising.edm()": "denoising.edm(sigma_data=1.0)",
    }  # and the variance 1
    config.parameterization = unit.get(config.parameterization, config.parameterization)
    config.objective = unit.get(config.objective, config.objective)
    return config
