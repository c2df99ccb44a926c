"""Every config key and what it means; and the six variants that every image config shares.

A data set's config is `base()`, the few lines in which it differs, and `variant(config, name)`. Components are written as specs,
calls in text ('schedules.VP(beta_max=20.0)'; diffusion_jax/build.py), so one override changes a component and its arguments:

    --config.process='schedules.VP(beta_max=16.0)'  --config.objective='denoising.denoising(weight=weighting.min_snr(5.0))'
"""

import dataclasses

from ml_collections import ConfigDict

from diffusion_jax.build import members
from diffusion_jax.errors import unknown
from diffusion_jax.experiment import MODELS


def base() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0

    # What to learn from (diffusion_jax/data). Values 0 and '' keep what the data set has.
    config.data = data = ConfigDict()
    data.name = "digits"  # digits; any TFDS image set; folder, npz, idx (need path); 2-D toys
    data.path = ""  # folder, .npz file, or the folder of the idx files
    data.data_dir = ""  # where TFDS keeps prepared sets; '' is $TFDS_DATA_DIR or ~/tensorflow_datasets
    data.image_size = 0
    data.channels = 0
    data.num_classes = 0  # for npz and idx, where the labels found may not show all classes
    data.captions = ""  # npz with a text encoder: a JSON file of captions; '' is STEM_captions.json beside the .npz
    data.limit_bad = -1  # unreadable files of a folder that are skipped; -1: a tenth, at most 100
    data.flip = False  # random horizontal flips
    data.batch_size = 128  # global, over all devices
    data.workers = 0  # processes that read and decode ahead; 0: a thread, which is enough for sets in memory

    # The mathematics.
    config.process = "schedules.VP()"
    config.parameterization = "eps()"
    config.objective = "denoising.dsm()"

    config.model = network("unet.UNet")
    config.conditional = True  # use the labels, if the data has any
    config.text = text = ConfigDict()
    text.encoder = ""  # use the captions of the data: bytes, trained with the network, or minilm (diffusion_jax/models/text.py)
    text.max_length = 48  # tokens of a caption that are read: bytes, or minilm's word pieces
    config.label_dropout = 0.1  # fraction of examples trained without label and caption, which classifier-free guidance needs

    config.optimizer = optimizer = ConfigDict()  # any optax optimizer by name
    optimizer.name = "adamw"
    optimizer.learning_rate = 1e-3
    optimizer.warmup = 100  # steps
    optimizer.schedule = "cosine"  # constant, cosine, linear or rsqrt
    optimizer.clip = 1.0  # global norm; 0: off
    optimizer.weight_decay = 0.0
    optimizer.b1 = 0.9
    optimizer.b2 = 0.99
    config.ema = averages = ConfigDict({"halflives": (5_000,), "ramp": 0.05})  # in images; see training/ema.py
    averages.powers = ()  # relative lengths of power averages, usually (0.05, 0.1), from which others are made after training
    averages.snapshot_every = 500  # steps; only where there are powers

    config.training = training = ConfigDict()
    training.steps = 1000
    training.steps_per_call = 1  # steps in one dispatch; 10 or more pays on accelerators, on a CPU 1 (training/step.py, scan)
    training.accumulate = 1  # microbatches per step
    training.log_every = 50
    training.eval_every = 500  # held-out loss; 0: never
    training.sample_every = 500  # a grid of samples; 0: never
    training.checkpoint_every = 500
    training.keep = 3  # checkpoints kept: the last so many,
    training.keep_every = 0  # those at multiples of so many steps (0: none),
    training.best = ""  # and the best by a number of the held-out rows, the smallest 'eval_loss'; '': none
    # When a loss or gradient is not finite. The step itself moves nothing, under each of them, and the first leaves a report.
    # stop: the run ends, the last good checkpoint is named. skip: go on with the next batch; the rows count the steps skipped;
    # ten in a row end the run. rollback: go on from the last checkpoint with other noise and with the data after that
    # step; three in a row from one checkpoint end the run. All are exact: a run killed and resumed does the same.
    training.on_nonfinite = "stop"
    config.parallel = "jit"  # jit (a mesh) or pmap
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # -1: fill

    config.sampler = sampler = ConfigDict()
    sampler.name = "ancestral.ddim"
    sampler.grid = "uniform"
    sampler.nfe = 50  # network evaluations per image
    sampler.guidance = 1.0  # scale of the guidance; 1: none, and half the work
    sampler.guide = "cfg()"  # which guidance: cfg, interval, autoguidance, classifier (diffusion_jax/guides.py)
    sampler.noise = "independent"  # brownian: one Brownian path per image, whatever the grid and the NFE
    sampler.clip = "static"  # x0-hat kept in [-1, 1]: static, dynamic (Imagen) or none
    sampler.ema = ""  # which weights: an EMA ('5k', 'power_0.05', 'post_hoc(0.12)'), 'params', or '' for the longest half-life
    sampler.checkpoint = ""  # '': the newest; best: that of training.best
    sampler.batch_size = 256
    return config


def network(name: str, **options) -> ConfigDict:
    """config.model: the name, and every field of that class (diffusion_jax/models) with its default, changed by options."""
    skip = ("parent", "name", "num_classes", "text")  # these come from the data and config.text
    fields = {f.name: f.default for f in dataclasses.fields(members(MODELS)[name]) if f.name not in skip}
    config = ConfigDict({"name": name, **fields})
    config.update(options)
    return config


VARIANTS = {
    # name: (process, parameterization, objective, sampler, grid)
    "ddpm": ("discrete.ddpm()", "eps()", "denoising.ddpm(steps=1000)", "ancestral.ddim", "trailing"),
    "vp": ("schedules.VP()", "eps()", "denoising.dsm()", "ancestral.ddim", "uniform"),
    "subvp": ("schedules.SubVP()", "eps()", "denoising.dsm()", "ancestral.ddim", "uniform"),
    "ve": ("schedules.VE()", "eps()", "denoising.dsm()", "ancestral.ddim", "uniform"),
    "edm": ("schedules.EDM()", "edm()", "denoising.edm()", "ode.edm_heun", "karras"),
    "flow": ("schedules.RectifiedFlow()", "velocity()", "denoising.flow_matching()", "ode.euler", "uniform"),
}


def variant(config: ConfigDict, name: str) -> ConfigDict:
    """Set process, parameterization, objective and sampler to one of VARIANTS. Raises UserError for another name."""
    if name not in VARIANTS:
        raise unknown("variant", name, VARIANTS)
    config.process, config.parameterization, config.objective, config.sampler.name, config.sampler.grid = VARIANTS[name]
    return config


def split_size(name: str) -> tuple[str, str]:
    """'vp,full' -> ('vp', 'full'); 'vp' -> ('vp', 'light'). Raises UserError for another size."""
    name, _, size = name.partition(",")
    if size not in ("", "light", "full"):
        raise unknown("size", size, ("light", "full"))
    return name or "vp", size or "light"
