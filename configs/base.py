"""Every config key and what it means, and the variants that configs share.

The config of a data set is `base()`, the lines in which it differs, and `variant(config, name)`.
Components are written as specs, calls in text (diffusion_jax/assembly/build.py), so one override
changes a component and its arguments:

    --config.process='schedules.VP(beta_max=16.0)'
    --config.objective='denoising.denoising(weight=weighting.min_snr(5.0))'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from diffusion_jax.assembly.components import network
from diffusion_jax.core.errors import unknown


def base() -> ConfigDict:
    """The config that all others start from, with the default of every key."""
    config = ConfigDict()
    config.seed = 0
    config.data = _data()

    config.process = "schedules.VP()"
    config.parameterization = "eps()"
    config.objective = "denoising.dsm()"

    config.model = network("unet.UNet")
    config.conditional = True  # whether the network takes the labels, if the data have any
    config.text = ConfigDict()
    # encoder of the captions: bytes, trained with the network, or a frozen one, minilm
    # (models/text.py) or clip (pretrained/clip_encoder.py); '': none
    config.text.encoder = ""
    config.text.max_length = 48  # tokens of a caption that are read: bytes, or word pieces
    config.text.folder = ""  # of the files of clip, which importing Stable Diffusion writes
    # the workdir whose weights training starts from; '': those of the teacher, if it has the same
    # network, or fresh ones
    config.init_from = ""
    config.distill = ConfigDict()  # the teacher of a few-step model (docs/few_step.md)
    config.distill.teacher = ""  # the workdir of a diffusion model
    # scale of the teacher's guidance; None: that of its own config
    config.distill.guidance = placeholder(float)
    # fraction of examples trained without their condition, which classifier-free guidance needs
    config.label_dropout = 0.1

    # representation alignment (docs/transformers.md): an .npy file of features of each training
    # image, to which the tokens of a block are drawn; '': none. It needs model.aligned
    config.repa = ConfigDict({"features": "", "weight": 0.5})

    config.optimizer = _optimizer()
    config.ema = _averages()
    config.training = _training()
    config.parallel = "jit"  # jit (a mesh of devices) or pmap
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # -1: all devices that are left
    config.sampler = _sampler()
    return config


def _data() -> ConfigDict:
    """What to learn from (diffusion_jax/data). 0 and '' keep what the data set has."""
    data = ConfigDict()
    # digits; any image set of TFDS; 2-D toys; and with a path: folder, npz, idx, arrays, sound,
    # table, latents
    data.name = "digits"
    # the folder of images or of idx files, the .npz or .npy file, the .csv, .tsv or .parquet file,
    # or the latents of experiments.encode
    data.path = ""
    # where TFDS keeps prepared sets; '': $TFDS_DATA_DIR or ~/tensorflow_datasets
    data.data_dir = ""
    data.image_size = 0  # pixels: the side of a square, or (height, width)
    data.fit = "crop"  # another aspect ratio is cropped to it, or gets black bars: letterbox
    data.channels = 0  # 1 gray, 3 color, 4 color and opacity
    data.num_classes = 0  # for npz and idx, where the labels found may not show all classes
    # npz with a text encoder: a JSON file of captions; '': STEM_captions.json next to the .npz
    data.captions = ""
    # what a folder means: classes, splits or flat; '': the only way to read it, or an error that
    # names the ways
    data.layout = ""
    # folder, npz: (black, white), where values are not 0..255 or, of 16 bits, 0..65535
    data.value_range = ()
    # arrays, sets of tensors: the axis of (N, ...) that is the channels: last, first or none; '':
    # the last, or an error that names the ways to read an array that has more than 16 there
    data.channel_axis = ""
    # arrays, table: each channel to mean 0 and variance 1 (standard) or to [-1, 1] (range), as
    # measured on the training split; table: numbers to their normal scores (quantile)
    data.normalization = "standard"
    # sound: samples in a second, to which all are resampled (0: as they are)
    data.rate = 0
    data.length = (
        0.0  # seconds, to which sounds are cropped or padded with silence (0: as they are)
    )
    data.sound = "waveform"  # or logmel(mels=64, window=256, hop=96), in samples (data/sound.py)
    # file names with fields, such as {digit}_{speaker}_{index}.wav; '': sub-folders are classes
    data.pattern = ""
    data.class_fields = ()  # the fields that make the classes, such as ('digit', 'speaker')
    data.test_where = ""  # the sounds that are held out by a field: index=0-4; '': a tenth
    data.label = ""  # table: the column that is the condition; '': none
    data.categories = ()  # table: columns of numbers that are codes of categories
    data.exclude = ()  # table: columns that are not read
    # arrays: the array (N, K) of the file whose numbers condition the model, such as condition
    data.condition = ""
    # what conditions the model in every position (inverse/dense.py): lowres(4), inpaint, gray; of
    # arrays also array and classes(9), the array 'dense' of the file; '': nothing
    data.dense = ""
    # folder: heights and widths of training batches, such as ((64, 96), (96, 64)), to which images
    # go by their aspect ratio; samples and metrics have data.image_size; (): that alone
    data.buckets = ()
    data.limit_bad = -1  # unreadable files of a folder that are skipped; -1: a tenth, at most 100
    data.flip = False  # random horizontal flips
    # probability of each distortion of non-leaky augmentation (data/augmentation.py), which needs
    # model.augment=9 and includes flips; 0: none
    data.augment = 0.0
    # whether all classes are equally frequent in training, instead of all examples (data/order.py)
    data.class_balanced = False
    data.batch_size = 128  # global, over all devices
    # processes that read and decode ahead; 0: a thread, which is enough for sets in memory
    data.workers = 0
    return data


def _optimizer() -> ConfigDict:
    """Any optimizer of optax by name, with a schedule and clipping (training/optimizer.py)."""
    optimizer = ConfigDict()
    optimizer.name = "adamw"
    optimizer.learning_rate = 1e-3
    optimizer.warmup = 100  # steps
    optimizer.schedule = "cosine"  # constant, cosine, linear or rsqrt
    optimizer.clip = 1.0  # of the gradient's global norm; 0: none
    optimizer.weight_decay = 0.0
    optimizer.b1 = 0.9
    optimizer.b2 = 0.99
    return optimizer


def _averages() -> ConfigDict:
    """Moving averages of the parameters (training/ema.py)."""
    averages = ConfigDict()
    averages.halflives = (5_000,)  # in images
    averages.ramp = 0.05  # half-lives are at most this share of the images seen
    # relative lengths of power averages, usually (0.05, 0.1), from which others are made after
    # training
    averages.powers = ()
    averages.snapshot_every = 500  # steps; only where there are powers
    return averages


def _training() -> ConfigDict:
    """Length, cadences and safeguards of training, in steps."""
    training = ConfigDict()
    training.steps = 1000
    # steps in one dispatch; 10 or more pays on accelerators, on a CPU 1 (training/step.py)
    training.steps_per_call = 1
    training.accumulate = 1  # microbatches per step
    training.log_every = 50
    training.eval_every = 500  # held-out loss; 0: never
    training.sample_every = 500  # a grid of samples; 0: never
    # steps after which samples begin to show shapes; 0: unknown. `train` forecasts when that is
    training.first_shapes = 0
    training.checkpoint_every = 500
    training.keep = 3  # the last checkpoints, so many, are kept,
    training.keep_every = 0  # those at multiples of so many steps (0: none),
    # and the best by a number of the held-out rows, the smallest 'eval_loss'; '': none
    training.best = ""
    # What to do when a loss or gradient is not finite. Such a step never changes the state, and the
    # first one leaves a report. stop: end the run and name the last good checkpoint. skip: continue
    # with the next batch; the log counts the skipped steps; ten in a row end the run. rollback:
    # continue from the last checkpoint with other noise and the data after that step; three in a
    # row from one checkpoint end the run. All are exact: a run that is killed and resumed does the
    # same.
    training.on_nonfinite = "stop"
    # scaling of the loss for model.dtype=float16 (training/loss_scale.py): dynamic(), which a step
    # with an overflow lowers, or fixed(100.0); '': none
    training.loss_scale = ""
    # where the numbers and pictures of metrics.jsonl are shown as well: tensorboard, csv
    # (metrics.csv), wandb; (): nowhere (docs/train.md)
    training.trackers = ("tensorboard",)
    return training


def _sampler() -> ConfigDict:
    """How samples are drawn: the default of every command."""
    sampler = ConfigDict()
    sampler.name = "ancestral.ddim"
    # times at which the network is evaluated; auto: the grid that suits the sampler
    sampler.grid = "auto"
    sampler.nfe = 50  # network evaluations per image
    sampler.guidance = 1.0  # scale of the guidance; 1: none, and half the work
    # strategy of guidance: cfg, interval, autoguidance, ... (denoisers/guides.py)
    sampler.guide = "cfg()"
    # independent, or brownian: one Brownian path per image, whatever the grid and the NFE
    sampler.noise = "independent"
    # classes of samples, where no --labels are given: all in turn (uniform), or as frequent as in
    # the training split (training); auto: uniform, and training for tables
    sampler.labels = "auto"
    # thresholding of x0-hat to [-1, 1]: static, dynamic (Imagen) or none; MeanFlow only at the end
    sampler.clip = "static"
    # which weights: an EMA ('5k', 'power_0.05', 'post_hoc(0.12)'), 'params', or '' for the longest
    # half-life
    sampler.ema = ""
    sampler.checkpoint = ""  # '': the newest; best: that of training.best
    sampler.batch_size = 256  # images drawn at a time
    return sampler


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


# The variational bound in the objective of improved DDPM is for images with 256 gray levels, not
# for latents or points.
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
    """Set process, parameterization, objective and sampler to one of VARIANTS.

    Args:
      config: the config, which is changed in place and returned.
      name: a key of VARIANTS.

    Raises:
      UserError: for another name.
    """
    return _set_variant(config, name, VARIANTS)


def image_variant(
    config: ConfigDict, name: str, variants: Mapping[str, tuple[str, ...]] = IMAGE_VARIANTS
) -> ConfigDict:
    """Set process, parameterization, objective and sampler to a variant for images.

    Args:
      config: the config, which is changed in place and returned; its network must be set already.
      name: a key of variants. 'iddpm' (Nichol & Dhariwal 2021) also learns the variance.
      variants: the variants that the config has.

    Raises:
      UserError: for another name.
    """
    config = _set_variant(config, name, variants)
    config.model.learn_variance = name == "iddpm"
    return config


def _set_variant(
    config: ConfigDict, name: str, variants: Mapping[str, tuple[str, ...]]
) -> ConfigDict:
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


def jit(config: ConfigDict, prediction: str = "x0", noise_scale: float = 1.0) -> ConfigDict:
    """Set process, parameterization, objective and sampler to those of JiT (Li & He 2025).

    The network predicts the data, and the loss is the error of the velocity. Its inputs are the
    image as it is and a time that is 0 at the noise and 1 at the data.

    Args:
      config: the config, which is changed in place and returned.
      prediction: x0, eps or velocity.
      noise_scale: standard deviation of the noise; 2 for images of 512 pixels.

    Raises:
      UserError: for another prediction.
    """
    if prediction not in (known := ("x0", "eps", "velocity")):
        raise unknown("variant", prediction, known)
    config.process = f"schedules.RectifiedFlow(noise_scale={noise_scale})"
    config.parameterization = (
        f"{prediction}(noise_input='time', input_scale=False, time_scale=-1.0, time_shift=1.0)"
    )
    config.objective = (
        "denoising.denoising(time=times.logit_normal(mean=0.8, std=0.8), "
        "weight=weighting.velocity(floor=0.05))"
    )
    config.sampler.update(name="ode.heun", grid="uniform", nfe=99)  # 50 steps, the last of Euler
    return config


SIZES = ("light", "full")


def split_size(name: str, sizes: Sequence[str] = SIZES) -> tuple[str, str]:
    """Split the size from a variant: 'vp,full' -> ('vp', 'full'); 'vp' -> ('vp', 'light').

    Args:
      name: a variant, and optionally a comma and a size.
      sizes: the sizes that the config has.

    Returns:
      (variant, size); 'vp' and 'light' where they are missing.

    Raises:
      UserError: for an unknown size.
    """
    name, _, size = name.partition(",")
    if size not in ("", *sizes):
        raise unknown("size", size, sizes)
    return name or "vp", size or "light"


# ---- few-step models
EDM_LIKE = ("schedules.EDM()", "edm()")
FLOW = ("schedules.RectifiedFlow()", "velocity(noise_input='time')")

FEW_STEP = {
    # name: (process and parameterization, objective, sampler, what the diffusion model gives it: a
    # 'teacher', 'weights' to start from, or '' for nothing)
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
    """Make the config one of FEW_STEP, or 'teacher', the diffusion model that they learn from.

    Args:
      config: the config, which is changed in place and returned; its network and data must be set
        already.
      name: 'teacher' or a key of FEW_STEP.
      teacher: the workdir of the diffusion model, which is used by the methods that need it.

    Raises:
      UserError: for another name.
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
    return config
