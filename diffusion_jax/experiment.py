"""The roof: from a ConfigDict to a process, a network, an objective and samplers, all plain functions. The only reader of configs.

Nothing here computes; it puts together. What each config key means is said in configs/base.py.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any, Callable, NamedTuple, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from diffusion_jax import arrays, data, guidance, guides, inverse, latent, parameterization, targets
from diffusion_jax.build import Family, build, members, resolved
from diffusion_jax.errors import UserError, unknown
from diffusion_jax.evaluation import classifier as small
from diffusion_jax.evaluation import generate, lpips, progress, rows
from diffusion_jax.evaluation import weights as published
from diffusion_jax.models import autoencoder, classifier, discriminator, dit, mlp, text, unet
from diffusion_jax.objectives import autoencoding, consistency, denoising, distance, elbo, meanflow, times, weighting
from diffusion_jax.objectives.autoencoding import Autoencoding, Networks
from diffusion_jax.objectives.base import FewStep, Objective, Players
from diffusion_jax.parameterization import Parameterization
from diffusion_jax.processes import discrete, gaussian, schedules
from diffusion_jax.samplers import adaptive, ancestral, base, corrector, few_step, grids, multistep, ode, sde, singlestep, stochastic
from diffusion_jax.training import distributed, ema, optimizer, sharding, state, step
from diffusion_jax.training.state import TrainState
from diffusion_jax.types import Array, Cond, Denoise, Key, Params, Prediction, Process

PROCESSES = Family("process", (schedules, discrete), ("class", "DDPM"))
PARAMETERIZATIONS = Family("parameterization", (parameterization,), ("Parameterization",))
OBJECTIVES = Family("objective", (denoising, elbo, autoencoding, consistency, meanflow, times, weighting, distance,
                                  ancestral, ode, singlestep),
                    ("Objective", "Autoencoding", "FewStep"),
                    ("TimeLaw", "Weighting", "Likelihood", "Distance", "Sampler"))  # fmt: skip
SAMPLERS = Family("sampler", (ancestral, ode, singlestep, multistep, adaptive, sde, stochastic, corrector, few_step), ("Sampler",),
                  ("Corrector",), aliases={  # the names of k-diffusion and diffusers
                      "euler_a": "ancestral.euler_ancestral", "dpm_2": "singlestep.dpm_2s", "dpmpp_sde": "sde.dpmpp_2s",
                      "dpmpp_2m_sde": "sde.dpmpp_2m", "dpmpp_3m_sde": "sde.dpmpp_3m", "dpmpp": "multistep.dpmpp_2m",
                      "plms": "multistep.pndm", "sa_solver": "sde.sa", "rk45": "adaptive.dopri5",
                      "pc": "corrector.predictor_corrector"})  # fmt: skip
GRIDS = Family("grid", (grids,), ("Array",))
TARGETS = Family("target", (targets,), ("Target",))
GUIDES = Family("guidance", (guides,), ("Guide",))
MEASUREMENTS = Family("task", (inverse,), ("Measurement",))
METHODS = Family("method", (inverse,), ("Method",))
MASKS = Family("mask", (inverse,), ("Mask",))
MODELS = Family("model", (unet, mlp, dit, autoencoder, classifier), ("class",))
DISCRIMINATORS = Family("discriminator", (discriminator,), ("class",))
ENCODERS = Family("text encoder", (text,), ("Encoder",))

# the keys of a config that name a component, and the family it is of
NAMED = {"process": PROCESSES, "parameterization": PARAMETERIZATIONS, "objective": OBJECTIVES, "model.name": MODELS,
         "discriminator": DISCRIMINATORS, "sampler.name": SAMPLERS, "sampler.grid": GRIDS, "sampler.guide": GUIDES}  # fmt: skip

CLIPS = ("none", "static", "dynamic")
NOISES = {"independent": base.independent, "brownian": base.brownian}


class Experiment(NamedTuple):
    """One config, put together for data of `shape` (H, W, C) (or (D,)) with `num_classes` labels (0: unconditional)."""

    config: Any
    shape: tuple[int, ...]
    num_classes: int
    process: Process
    parameterization: Parameterization
    objective: Objective | Autoencoding | FewStep
    model: nn.Module
    grids: Path | None = None  # the folder where this model's own grids are (experiments.optimize_grid)
    encoder: text.Encoder | None = None  # of captions
    guide: guides.Guide = guides.cfg()
    others: tuple[tuple[Experiment, Params], ...] = ()  # the other trained networks that the guide needs, in its order
    discriminator: nn.Module | None = None  # of an adversarial autoencoder
    features: Callable | None = None  # of an autoencoder's perceptual distance: see with_features
    latents: latent.Latents | None = None  # how examples become images, if they are latents
    teacher: tuple[Experiment, Params] | None = None  # of a few-step objective: see workdir.taught
    begin: Params | None = None  # what training starts from instead of fresh parameters


def full_name(key: str, spec: str) -> str:
    """The spec of a key of NAMED with full names: 'ddim' -> 'ancestral.ddim'. UserError for one that does not exist or fit.

    A grid may also be one that experiments.optimize_grid kept under a name of its own.
    """
    if not spec:
        return spec
    try:
        full = resolved(NAMED[key], spec)
    except UserError:
        if key != "sampler.grid":
            raise
        return spec
    if key in ("process", "parameterization", "sampler.name", "sampler.guide"):  # the others need more than the spec
        build(NAMED[key], full)  # so that its arguments are checked, too
    return full


def check_components(config) -> None:
    """Build what the config names, but for the network: UserError for a name or an argument that is wrong."""
    process = build(PROCESSES, config.process)
    build(PARAMETERIZATIONS, config.parameterization), build(OBJECTIVES, config.objective, process)
    build(SAMPLERS, config.sampler.name), build(GUIDES, config.sampler.guide)
    resolved(MODELS, config.model.name)


def assemble(config, shape: tuple[int, ...], num_classes: int = 0, load: Callable | None = None) -> Experiment:
    """Build every component that the config names. Raises UserError, with the key, for a name or an argument that does not exist.

    load(other: guides.Other) -> (Experiment, Params): how guidance gets at other trained networks (workdir.load).
    """
    num_classes = num_classes if config.conditional else 0
    process = build(PROCESSES, config.process)
    options = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in config.model.items() if k != "name"}
    encoder = text_encoder(config)
    if encoder:
        options["text"] = encoder.network
    if "shape" in annotations(config.model.name):
        options["shape"] = tuple(shape)
    objective = build(OBJECTIVES, config.objective, process)
    model = build(MODELS, config.model.name, num_classes=num_classes, **options)
    if (type(objective) is Autoencoding) != hasattr(model, "latent_shape"):
        raise UserError(f"config.objective={config.objective} does not go with config.model.name={config.model.name}; the "
                        "objectives of objectives/autoencoding.py are for autoencoders, and these for them")  # fmt: skip
    adversary = None
    if getattr(objective, "adversarial", False):
        if not config.get("discriminator", ""):
            raise UserError(f"config.objective={config.objective} has an adversary, and config.discriminator names none; begin with "
                            "a config that does, such as configs/fashion_autoencoder.py:adversarial")  # fmt: skip
        adversary = build(DISCRIMINATORS, config.discriminator)
    if getattr(objective, "guided", False) and not (num_classes or encoder):
        raise UserError(f"config.objective={config.objective}: this model is unconditional, so there is no condition to guide by; "
                        "leave guidance at 1, or set --config.conditional=True with labeled data")  # fmt: skip
    if getattr(objective, "guided", False) and not _learns_null(config):
        raise UserError(f"config.objective={config.objective} guides by the null condition, which config.label_dropout=0 never trains; "
                        "leave guidance at 1, or set --config.label_dropout=0.1")  # fmt: skip
    return guided_by(config.sampler.get("guide", "cfg()"), Experiment(
        config, tuple(shape), num_classes, process, build(PARAMETERIZATIONS, config.parameterization), objective, model,
        encoder=encoder, discriminator=adversary), load)  # fmt: skip


def annotations(model: str) -> dict[str, Any]:
    """The fields of the network of this name; none of one that does not exist, which `build` complains of."""
    return getattr(members(MODELS).get(model), "__annotations__", {})


def guided_by(spec: str, experiment: Experiment, load: Callable | None = None) -> Experiment:
    """The experiment with the guide of this spec. load: see assemble. UserError for a guide that cannot serve this model."""
    guide = build(GUIDES, spec)
    if guide.needs and load is None:
        raise UserError(f"config.sampler.guide={spec} needs other trained networks; it serves commands on a trained --workdir")
    others = tuple(load(other) for other in guide.needs)
    for other, (found, _) in zip(guide.needs, others):
        if (found.shape, found.config.process) != (experiment.shape, experiment.config.process):
            raise UserError(f"config.sampler.guide={spec}: {other.workdir} is for {found.shape} under {found.config.process}, "
                            f"this model for {experiment.shape} under {experiment.config.process}")  # fmt: skip
    return experiment._replace(guide=guide, others=others)


def text_encoder(config) -> text.Encoder | None:
    """The encoder of config.text, if there is one. UserError for a network that reads no captions."""
    wanted = config.get("text", {"encoder": ""})
    if not wanted["encoder"]:
        return None
    if config.model.name in members(MODELS) and "text" not in annotations(config.model.name):
        raise UserError(f"config.text.encoder={wanted['encoder']}: {config.model.name} reads no captions; use unet.UNet")
    if wanted["max_length"] < 1:
        raise UserError(f"config.text.max_length={wanted['max_length']}: at least one token must be read")
    return build(ENCODERS, wanted["encoder"], wanted["max_length"], published.load)


def dataset(config) -> data.Dataset:
    """The data set of config.data, with what config.text makes of its captions."""
    keys = ("name", "path", "data_dir", "image_size", "channels", "num_classes", "captions", "limit_bad", "layout", "value_range")
    encoder = text_encoder(config)
    with distributed.first_before_others("data"):  # what the first process prepares on a shared disk, the others find
        options = {key: config.data[key] for key in keys if key in config.data}
        loaded = data.load(**options, seed=config.seed, captioned=bool(encoder))
        if config.data.num_classes not in (0, loaded.num_classes):
            found = f"{loaded.num_classes} classes" if loaded.num_classes else "no labels"
            raise UserError(f"config.data.num_classes={config.data.num_classes}: the data set has {found}; set 0 to take what it has")
        data.describe.announce(loaded)
        if encoder is None:
            return loaded
        some = loaded.captions[:10_000]
        if cut := sum(encoder.count(caption) > encoder.max_length for caption in some):
            logging.warning("%d of %d captions are longer than config.text.max_length=%d, and cut", cut, len(some), encoder.max_length)
        tables = data.captions.tables(loaded.captions, encoder.encode, encoder.like, kept=encoder.kept, progress=progress.progress)
        return loaded._replace(train=data.captions.Told(loaded.train, tables), test=data.captions.Told(loaded.test, tables))


def data_shape(config) -> tuple[tuple[int, ...], int]:
    """(shape of an example, classes) of config.data, without the data if the config states all of it or TFDS knows."""
    wanted = config.data
    if wanted.image_size and wanted.channels and wanted.num_classes:
        return (wanted.image_size, wanted.image_size, wanted.channels), wanted.num_classes
    if wanted.name in data.records.POPULAR and not wanted.path:
        return data.records.described(wanted.name, wanted.data_dir, wanted.image_size, wanted.channels)
    loaded = dataset(config)
    return loaded.image_shape, loaded.num_classes


def init_params(experiment: Experiment, key: Key) -> Params:
    """The network's fresh parameters; traceable, for shapes first and shards at once."""
    return KINDS[type(experiment.objective)].init(experiment, key)


def _init_denoiser(experiment: Experiment, key: Key) -> Params:
    x = jnp.zeros((1, *experiment.shape))
    return experiment.model.init(key, x, jnp.zeros(1), null_cond(experiment, 1))["params"]


def _init_autoencoder(experiment: Experiment, key: Key) -> Params:
    """{'autoencoder': ...}, and {'discriminator': ...} if there is one."""
    x = jnp.zeros((1, *experiment.shape))
    players = {"autoencoder": experiment.model.init(key, x, null_cond(experiment, 1))["params"]}
    adversary = experiment.discriminator
    return players | ({"discriminator": adversary.init(arrays.fold_in(key, 1), x)["params"]} if adversary else {})


def apply(experiment: Experiment):
    """The network as a pure function: apply(params, x_in, c_noise, cond, train=False, rngs=None) -> F."""

    def run(params, x_in, c_noise, cond, **kwargs):
        return experiment.model.apply({"params": params}, x_in, c_noise, cond, **kwargs)

    return run


def is_image(experiment: Experiment) -> bool:
    """Whether an example is an image (H, W, C) rather than a point (D,)."""
    return len(experiment.shape) == 3


def follows_a_path(experiment: Experiment) -> bool:
    """Whether the network is a denoiser, whose probability flow can be solved, rather than one that jumps."""
    return type(experiment.objective) is Objective


def need_images(experiment: Experiment) -> None:
    """UserError for a model of points, from commands that judge images."""
    if not is_image(experiment):
        raise UserError(f"this command judges images, and the model draws points {experiment.shape}; use experiments.sample")


def need_denoiser(experiment: Experiment) -> None:
    """UserError for an autoencoder, from what samplers and their kin need."""
    if is_autoencoder(experiment):
        raise UserError(f"{experiment.config.model.name} is an autoencoder, which denoises nothing; take a diffusion model")


def need_pixels(experiment: Experiment) -> None:
    """UserError for a model of latents, from commands that look at the pixels inside the model."""
    if experiment.latents is not None:
        raise UserError("this command works on the pixels that a model sees, and this one sees latents; take a model of images")


def null_cond(experiment: Experiment, batch: int) -> Cond:
    """The condition that says nothing, for `batch` examples: label = num_classes, no caption. None of an unconditional one."""
    label = {"label": jnp.full(batch, experiment.num_classes, jnp.int32)} if experiment.num_classes else {}
    return (label | (text.no_caption(experiment.encoder, batch) if experiment.encoder else {})) or None


def example(batch, keys: Key) -> Array:
    """The clean example x0 to learn from: the image; of latents a fresh draw of the posterior, by each example's key."""
    return latent.draw(batch, arrays.fold_in(keys, 3)) if "std" in batch else batch["image"]


def told(experiment: Experiment, batch, keys: Key, train: bool) -> Cond:
    """What the network is told of a batch: labels and captions, in training dropped at the rate config.label_dropout."""
    cond = null_cond(experiment, len(keys))
    if cond is None:
        return None
    dropped = arrays.uniform(arrays.fold_in(keys, 1)) < (experiment.config.label_dropout if train else 0.0)
    return {name: jnp.where(arrays.expand(dropped, null), null, batch[name]) for name, null in cond.items()}


def loss_fn(experiment: Experiment) -> Callable:
    """(params, batch, keys (B,), now) -> (losses (B,), {name: (B,)}), what the train step descends: see step.LossFn."""
    return KINDS[type(experiment.objective)].loss(experiment)


def _denoising_loss(experiment: Experiment) -> Callable:
    """The loss of a denoiser, with the level of its noise, {'level': log-SNR (B,)}."""
    network, objective = apply(experiment), experiment.objective

    def loss(params: Params, batch, keys: Key, now: step.Now):
        noised = objective.draw(arrays.fold_in(keys, 0), example(batch, keys))
        rngs = {"dropout": jax.random.fold_in(keys[0], 2)} if now.train else None
        denoise = parameterization.denoiser(
            network, params, experiment.parameterization, experiment.process, train=now.train, rngs=rngs)  # fmt: skip
        losses = objective.loss(denoise, noised, told(experiment, batch, keys, now.train))
        return losses, {"level": gaussian.logsnr(experiment.process, noised.t)}

    return loss


def _few_step_loss(experiment: Experiment) -> Callable:
    """The loss of a network that jumps, with the level of its noise: the students, and the teacher out of the state's averages."""
    network, objective, steps = apply(experiment), experiment.objective, experiment.config.training.steps

    def loss(params: Params, batch, keys: Key, now: step.Now):
        rngs = {"dropout": jax.random.fold_in(keys[0], 2)} if now.train else None  # the same masks for all
        student = lambda params: parameterization.denoiser(  # noqa: E731
            network, params, experiment.parameterization, experiment.process, train=now.train, rngs=rngs)
        frozen = student(jax.lax.stop_gradient(params))
        players = Players(
            student(params), frozen, student(now.ema["target"]) if objective.rate else frozen,
            _teacher(experiment, now.ema["teacher"]) if objective.taught else None,
            lambda cond: cond and cond | null_cond(experiment, len(keys)))  # fmt: skip
        progress = now.step / steps
        drawn = objective.draw(arrays.fold_in(keys, 0), example(batch, keys), progress)
        losses = objective.loss(players, drawn, told(experiment, batch, keys, now.train), progress)
        return losses, {"level": gaussian.logsnr(experiment.process, drawn.t)}

    return loss


def teacher_scale(experiment: Experiment) -> float | None:
    """The guidance scale of the teacher: config.distill.guidance, or where that is None its own; None: it is not guided.

    Raises:
      UserError: for a teacher that has nothing to guide by, or where a scale is set and the student is unconditional.
    """
    (teacher, _), asked = experiment.teacher, experiment.config.distill.guidance
    scale = teacher.config.sampler.guidance if asked is None else asked
    told = null_cond(experiment, 1) is not None
    if not is_guided(teacher, scale, key="config.distill.guidance", told=told):
        if asked is not None and asked != teacher.guide.neutral:
            raise UserError(f"config.distill.guidance={asked:g}: the student is unconditional, so its teacher has no condition "
                            "to guide by; leave it at None, or set --config.conditional=True")  # fmt: skip
        return None
    return scale


def _teacher(experiment: Experiment, params: Params) -> Denoise:
    """The teacher with its guidance, as a denoiser under the student's process."""
    teacher, _ = experiment.teacher
    denoise = denoiser(teacher, params, scale=teacher_scale(experiment), clip=teacher.config.sampler.clip)
    return parameterization.under(denoise, teacher.process, experiment.process)


def _autoencoding_loss(experiment: Experiment) -> Callable:
    """The loss of an autoencoder, with the metrics of its objective; evaluated as at the end of all its schedules."""
    objective, like = experiment.objective, experiment.model.latent_shape

    def loss(params: Params, batch, keys: Key, now: step.Now):
        x, last = example(batch, keys), jnp.iinfo(jnp.int32).max
        eps = objective.draw(arrays.fold_in(keys, 0), jnp.zeros((len(x), *like)))
        cond = told(experiment, batch, keys, now.train)
        return objective.loss(networks(experiment, params), x, eps, cond, now.step if now.train else jnp.int32(last))

    return loss


def classifier_loss_fn(experiment: Experiment) -> Callable:
    """As loss_fn, for a noise-conditional classifier: -log p(label | x_t), with x_t as the config's objective draws it; 'accuracy'."""

    def loss(params: Params, batch, keys: Key, now: step.Now):
        noised = experiment.objective.draw(arrays.fold_in(keys, 0), example(batch, keys))
        rngs = {"dropout": jax.random.fold_in(keys[0], 2)} if now.train else None
        log_p = jax.nn.log_softmax(logits(experiment, params)(noised.x_t, noised.t, train=now.train, rngs=rngs))
        own = jnp.take_along_axis(log_p, batch["label"][:, None], 1)[:, 0]
        right = (jnp.argmax(log_p, 1) == batch["label"]).astype(jnp.float32)
        return -own, {"level": gaussian.logsnr(experiment.process, noised.t), "accuracy": right}

    return loss


# ---- sampling -------------------------------------------------------------------------------------------------------------


class Ensemble(NamedTuple):
    """The parameters of a model and of the networks beside it, to be traced together. Without it, the others' are constants."""

    own: Params
    others: tuple[Params, ...] = ()
    autoencoder: Params = None  # which makes images of latents


def ensemble(experiment: Experiment, params: Params) -> Params:
    """params, with those of the networks that guide the model or decode its latents, if there are any."""
    others, latents = tuple(other for _, other in experiment.others), experiment.latents
    return Ensemble(params, others, latents and latents.params) if others or latents else params


def denoiser(experiment: Experiment, params: Params, *, scale: Array | None = None, clip: str = "static") -> Denoise:
    """The trained network as a Denoise, guided by the experiment's guide and thresholded.

    Args:
      params: of the network, or an `ensemble`.
      scale: of the guidance; None for none. `is_guided` decides which of the two a scale in a config means.
      clip: 'static' keeps x0-hat in [-1, 1], 'dynamic' is Imagen's thresholding, 'none' leaves x0-hat as it is. The
        average velocities of a network with a second time (MeanFlow) are not clipped, only the x0-hat of the last move.

    Raises:
      UserError: for an autoencoder, which is no denoiser, and for guidance that this model has no condition for.
    """
    need_denoiser(experiment)
    process, own = experiment.process, params.own if isinstance(params, Ensemble) else params
    denoise = parameterization.denoiser(apply(experiment), own, experiment.parameterization, process)
    if scale is not None:
        need_guidable(experiment, "scale")
        guided = experiment.guide.steer(denoise, scale, _site(experiment, params))

        def denoise(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
            return guided(x_t, t, ((null_cond(experiment, len(x_t)) or {}) | (cond or {})) or None)

    match clip:
        case "none":
            pass
        case "static":
            denoise = guidance.clip_x0(denoise, process)
        case "dynamic":
            denoise = guidance.dynamic_threshold(denoise, process)
        case _:
            raise unknown("config.sampler.clip", clip, CLIPS)
    return denoise if getattr(experiment.model, "second_time", False) else guidance.of_one_time(denoise)


def _site(experiment: Experiment, params: Params) -> guides.Site:
    """What the experiment's guide works with."""
    others = params.others if isinstance(params, Ensemble) else tuple(other for _, other in experiment.others)
    found = {need: (built, other) for need, (built, _), other in zip(experiment.guide.needs, experiment.others, others)}

    def null(cond: Cond) -> Cond:
        return cond | null_cond(experiment, len(jax.tree.leaves(cond)[0]))

    return guides.Site(experiment.process, null if null_cond(experiment, 1) else None,
                       lambda other: denoiser(*found[other], clip="none"), lambda other: logits(*found[other]))  # fmt: skip


def logits(experiment: Experiment, params: Params) -> Callable[[Array, Array], Array]:
    """A noise-conditional classifier as a function (x_t, t) -> logits (B, classes). UserError if the model is none."""
    if not isinstance(experiment.model, classifier.HalfUNet):
        raise UserError(f"{experiment.config.model.name} is no classifier; make one by experiments.train_classifier")

    def run(x_t: Array, t: Array, **kwargs) -> Array:
        t = jnp.broadcast_to(t, x_t.shape[:1])
        return apply(experiment)(params, *experiment.parameterization.encode(experiment.process, x_t, t), None, **kwargs)

    return run


def is_guided(experiment: Experiment, scale: float, *, key: str = "config.sampler.guidance", told: bool = True) -> bool:
    """Whether guidance at this scale is more than the model itself. Every command decides it here, by the guide's neutral scale.

    Args:
      key: what the scale is called in an error.
      told: whether the model is given a condition. By the null condition, classifier-free guidance at any scale is the model.

    Raises:
      UserError: for a model that has nothing to guide by, at another scale than the neutral one.
    """
    if scale == experiment.guide.neutral:
        return False
    need_guidable(experiment, f"{key}={scale:g}")
    return told or not experiment.guide.condition


def _learns_null(config) -> bool:
    """Whether a conditional model of this config knows the null condition: by label dropout, or from the weights it starts from."""
    return config.label_dropout > 0 or bool(config.get("init_from", ""))


def usable_guidance(config, num_classes: int):
    """The config, with its guide's neutral scale where the model has no condition to guide by; then a note on stderr says so.

    For scales that nobody has asked for: a preset's, on data without labels, and a stored one. `is_guided` refuses the others.

    Args:
      config: a locked ConfigDict.
      num_classes: of the data.
    """
    guide, scale = build(GUIDES, config.sampler.get("guide", "cfg()")), config.sampler.guidance
    labels = num_classes and config.conditional
    told = labels if guide.condition == "label" else labels or config.get("text", {"encoder": ""})["encoder"]
    learned = _learns_null(config) or not guide.null
    if not guide.condition or guide.neutral is None or scale == guide.neutral or (told and learned):
        return config
    why = "without label_dropout the model learns no null condition" if told else "the model is unconditional"
    print(f"note: config.sampler.guidance={scale:g} is not used, since {why}; it becomes {guide.neutral:g}", file=sys.stderr)
    config = config.copy_and_resolve_references().unlock()
    config.sampler.guidance = guide.neutral
    return config.lock()


def need_guidable(experiment: Experiment, asked: str) -> None:
    """UserError for an autoencoder, and for a model without the condition that its guide goes by. asked: what named the scale."""
    guide = experiment.guide
    remedy = "use --config.sampler.guide='cfg()' with" if guide.neutral is None else "set"
    remedy = f"{remedy} --config.sampler.guidance={1.0 if guide.neutral is None else guide.neutral:g}"
    if is_autoencoder(experiment):
        raise UserError(f"{asked}: {experiment.config.model.name} is an autoencoder, which has nothing to guide; {remedy}")
    if guide.condition and null_cond(experiment, 1) is None:
        raise UserError(f"{asked}: this model is unconditional, so there is no condition to guide by; {remedy}")
    if guide.null and not _learns_null(experiment.config):
        raise UserError(f"{asked}: this model is trained with config.label_dropout=0, so it does not know the null condition that "
                        f"guidance leads away from; {remedy}, or train one with --config.label_dropout=0.1")  # fmt: skip
    if guide.condition == "label" and not experiment.num_classes:
        raise UserError(f"{asked}: guidance by a classifier goes by labels, and this model takes captions; {remedy}")


class Plan(NamedTuple):
    """How to sample: the method, the decreasing times, the guidance scale, the thresholding, where the noise comes from."""

    sampler: base.Sampler
    ts: Array
    guidance: float
    clip: str
    noise: str = "independent"
    guided: bool = True  # see is_guided
    grid: str = ""  # the spec of the grid that ts is; never 'auto'


def plan(experiment: Experiment, **changes) -> Plan:
    """The Plan of config.sampler, with changes of its keys.

    Raises:
      UserError: for unknown names, a budget below one evaluation, and guidance that the model has no condition for.
    """
    config = experiment.config.sampler.to_dict() | changes
    sampler = build(SAMPLERS, config["name"])
    if config["clip"] not in CLIPS:
        raise unknown("config.sampler.clip", config["clip"], CLIPS)
    if config["nfe"] < 1:
        raise UserError(f"config.sampler.nfe={config['nfe']}: at least one network evaluation is needed")
    if config["noise"] not in NOISES:
        raise unknown("config.sampler.noise", config["noise"], NOISES)
    guided = is_guided(experiment, config["guidance"])
    spec = grids.spec(config["grid"], sampler)
    ts = grid(experiment, spec, base.points(sampler, config["nfe"]))
    return Plan(sampler, ts, config["guidance"], config["clip"], config["noise"], guided, spec)


def grid(experiment: Experiment, spec: str, n: int) -> Array:
    """The grid of n times that a spec names: one of samplers/grids.py, or one that experiments.optimize_grid kept for this model."""
    own = experiment.grids and experiment.grids / f"{spec}.json"
    if own and own.is_file():
        return grids.stored(experiment.process, n, str(own))
    return build(GRIDS, spec, experiment.process, n)


def evaluations(chosen: Plan) -> int | None:
    """NFE: network evaluations per image (guidance doubles the cost of each, not their number); None where the tolerance decides."""
    return None if base.adaptive(chosen.sampler) else base.evaluations(chosen.sampler, chosen.ts)


def pad(ts: Array, length: int) -> Array:
    """ts with its last time repeated up to `length`: grids of several lengths for one compiled sampler."""
    return jnp.concatenate([ts, jnp.broadcast_to(ts[-1:], (length - len(ts),))])


def sample_fn(experiment: Experiment, sampler: base.Sampler, *, guided: bool, clip: str, noise: str = "independent", count: bool = False) -> Callable:
    """Jitted (params, keys (B,), cond, ts, scale) -> images (B, ...): one program for every grid padded to one length and every scale.

    params may be an `ensemble`. count: also the NFE of each image, (B,). An autoencoder decodes z ~ N(0, I) and looks at
    nothing else.
    """
    draw = KINDS[type(experiment.objective)].draw

    @jax.jit
    def run(params: Params, keys: Key, cond: Cond, ts: Array, scale: Array) -> Array:
        cond = null_cond(experiment, len(keys)) if cond is None else cond
        x, spent = draw(experiment, params, keys, cond, ts, scale if guided else None, sampler, clip, NOISES[noise])
        x = decoded(experiment, params, x)
        return (x, spent) if count else x

    return run


def _draw_diffusion(experiment, params, keys, cond, ts, scale, sampler, clip, noise) -> tuple[Array, Array]:
    """(x0, NFE of each) by a denoiser and a sampler."""
    denoise = denoiser(experiment, params, scale=scale, clip=clip)
    x = base.start(experiment.process, keys, (len(keys), *experiment.shape))
    return base.sample(sampler, denoise, experiment.process, keys, x, ts, cond, padded=True, noise=noise, count=True)


def _draw_decoded(experiment, params, keys, cond, ts, scale, sampler, clip, noise) -> tuple[Array, Array]:
    """(images, 1): z ~ N(0, I), in the stream of base.start, decoded."""
    own = params.own if isinstance(params, Ensemble) else params
    z = arrays.noise(arrays.fold_in(keys, 0x7FFFFFFF), jnp.zeros((len(keys), *experiment.model.latent_shape)))
    return pictures(experiment, own, z, keys, cond), jnp.ones(len(keys), jnp.int32)


def decoded(experiment: Experiment, params: Params, x: Array) -> Array:
    """The images of samples: they themselves, or what the autoencoder makes of latents. params: those of sample_fn."""
    if experiment.latents is None:
        return x
    own = params.autoencoder if isinstance(params, Ensemble) else experiment.latents.params
    return experiment.latents.decode(own, x)


def finished(experiment: Experiment, batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
    """x0 (N, ...) -> uint8 images, decoded if they are latents; points stay as they are. For samples made without sample_fn."""
    if not is_image(experiment):
        return generate.finite
    if experiment.latents is None:
        return generate.to_uint8
    decode = jax.jit(lambda x, params: decoded(experiment, params, x))
    params = Ensemble(None, (), experiment.latents.params)
    return lambda x: generate.to_uint8(rows.over_rows(decode, x, params, block=batch_size))


def sample_with(experiment: Experiment, params: Params, chosen: Plan, mesh=None) -> Callable[[Key, Cond], Array]:
    """(keys, cond) -> images, by this plan: what evaluation.generate takes.

    mesh: the images are made on all of its devices, whatever their number, and are numpy on every process (sharding.spread).
    """
    run = sample_fn(experiment, chosen.sampler, guided=chosen.guided, clip=chosen.clip, noise=chosen.noise)
    params = ensemble(experiment, params)
    rest = np.asarray(chosen.ts), np.float32(chosen.guidance)  # of the host: the same on every process
    if mesh is None:
        return lambda keys, cond: run(params, keys, cond, *rest)
    everywhere = sharding.spread(run, mesh)
    return lambda keys, cond: everywhere(params, (keys, cond), *rest)


def sampling_mesh(config):
    """config.mesh where it fits the devices that are here; else all of them side by side: a model goes where it is wanted."""
    try:
        return sharding.make_mesh(config.mesh.to_dict())
    except UserError:
        return sharding.make_mesh()


def cond_for(experiment: Experiment, labels: Array) -> Cond:
    """The condition for these labels; None for an unconditional experiment. UserError for a label that does not exist."""
    if not experiment.num_classes:
        if len(labels):
            raise UserError("this model takes captions: say what to draw by --prompt" if experiment.encoder else
                            "this model is unconditional: it takes no labels")  # fmt: skip
        return None
    bad = [int(label) for label in labels if not 0 <= label <= experiment.num_classes]
    if bad:
        raise UserError(f"label {bad[0]} does not exist: this model knows 0 to {experiment.num_classes - 1}, "
                        f"and {experiment.num_classes} for 'any'")  # fmt: skip
    return null_cond(experiment, len(labels)) | {"label": jnp.asarray(labels, jnp.int32)}


def prompt_cond(experiment: Experiment, prompts: Sequence[str]) -> Cond:
    """The condition for these captions, of any class. UserError for a model without captions, and for what it cannot read."""
    encoder = experiment.encoder
    if encoder is None:
        takes = f"labels, 0 to {experiment.num_classes - 1}: use --labels" if experiment.num_classes else "no condition"
        raise UserError(f"this model knows no captions, so it takes no --prompt; it takes {takes}")
    for prompt in dict.fromkeys(prompts):
        if not prompt.strip():
            raise UserError("--prompt is empty; say what to draw")
        if prompt != prompt.encode(errors="replace").decode():
            raise UserError(f"--prompt is no text in UTF-8: {prompt!r:.60}")
        if (length := encoder.count(prompt)) > encoder.max_length:
            raise UserError(f"--prompt has {length} tokens, of which this model reads {encoder.max_length}: '{prompt:.40}...'")
    return null_cond(experiment, len(prompts)) | encoder.encode(prompts)


def captions_of_test(experiment: Experiment, dataset: data.Dataset, index: Array) -> tuple[list[str], Cond]:
    """The first captions of these images of the test split, and the condition for them, of any class."""
    rows = dataset.test.rows(index)
    told = dataset.test.told(rows, np.zeros(len(index), int))
    captions = [dataset.captions[i] for i in rows["caption"][:, 0]]
    return captions, null_cond(experiment, len(index)) | {name: told[name] for name in experiment.encoder.like}


def conditions(experiment: Experiment, dataset: data.Dataset, count: int) -> tuple[np.ndarray | None, Cond]:
    """What `count` samples are drawn of when they are judged: (labels (count,), or None where they are not known; condition).

    Of a model of classes every class in turn. Of a model of captions the prompts of combinations that training never saw, where
    the data set has kept some from it, else captions of the test split in turn.

    Raises:
      UserError: for a model of captions and a data set without them.
    """
    if not experiment.encoder:
        labels = np.arange(count) % experiment.num_classes if experiment.num_classes else None
        return labels, cond_for(experiment, np.zeros(0, int) if labels is None else labels)
    if dataset.name == "digits_captions":
        prompts, labels = data.digits_captions.held_out_prompts(count)
        return labels, prompt_cond(experiment, prompts)
    if not dataset.captions:
        raise UserError(f"this model takes captions, and the data set {dataset.name} has none to draw samples of")
    index = np.arange(count) % len(dataset.test)
    return dataset.test.rows(index).get("label"), captions_of_test(experiment, dataset, index)[1]


# ---- autoencoders ---------------------------------------------------------------------------------------------------------


def is_autoencoder(experiment: Experiment) -> bool:
    """Whether the model is an autoencoder, not a denoiser."""
    return type(experiment.objective) is Autoencoding


def networks(experiment: Experiment, params: Params) -> Networks:
    """An autoencoder as its objective sees it."""
    model, adversary, own = experiment.model, experiment.discriminator, params["autoencoder"]
    if adversary and "last" not in own["decoder"]:
        raise UserError(f"config.objective has an adversary, which {experiment.config.model.name} of dense layers cannot have: its "
                        "weight is measured at a last convolution; use hidden=(), or adversarial=0")  # fmt: skip

    def decode(own, z, cond=None, x=None):
        return model.apply({"params": own}, z, cond, x, method="decode")

    def discriminate(x, frozen):
        judge = params["discriminator"]
        return adversary.apply({"params": jax.lax.stop_gradient(judge) if frozen else judge}, x)

    def with_last(kernel, z):
        last = own["decoder"]["last"] | {"kernel": kernel}
        return decode(own | {"decoder": own["decoder"] | {"last": last}}, z)[0]

    return Networks(
        lambda x, cond=None: model.apply({"params": own}, x, cond, method="encode"),
        lambda z, cond=None, x=None: decode(own, z, cond, x), discriminate, experiment.features,
        adversary and (own["decoder"]["last"]["kernel"], with_last))  # fmt: skip


def with_features(experiment: Experiment, train: data.Source | None) -> Experiment:
    """The experiment with the features that its objective compares images by, if any: of a classifier of `train`, or LPIPS.

    train: None for an untrained classifier of the right shape, where nothing is computed.
    """
    wanted = getattr(experiment.objective, "features", "")
    if not wanted:
        return experiment
    if wanted == "lpips":
        return experiment._replace(features=functools.partial(lpips.features, params=published.load("lpips")))
    if wanted != "classifier":
        raise unknown("features", wanted, ("classifier", "lpips"))
    if train is None:
        params = small.init(experiment.shape, 2)
    elif "label" not in (everything := data.arrays(train)):
        raise UserError("features='classifier' of the objective needs data with labels; use features='lpips', or perceptual=0")
    else:
        params = small.fit(everything["image"], everything["label"]).params
    return experiment._replace(features=functools.partial(small.maps, params=params))


def pictures(experiment: Experiment, params: Params, z: Array, keys: Key, cond: Cond = None) -> Array:
    """The images of latents, in [-1, 1]: the mean of p(x | z), or, of an autoregressive decoder, a draw by each image's key."""
    players, likelihood = networks(experiment, params), experiment.objective.likelihood
    if not experiment.model.autoregressive:
        x = autoencoding.show(players, likelihood, z, cond)
        return jnp.clip(x, -1.0, 1.0) if is_image(experiment) else x
    return autoencoding.unroll(players, likelihood, z, arrays.fold_in(keys, 0), experiment.shape, cond)


# ---- what differs between a denoiser and an autoencoder ----------------------------------------------------------------------


class Kind(NamedTuple):
    """init(experiment, key) -> params; loss(experiment) -> LossFn; draw(experiment, params, ...) -> (x, NFE) in sample_fn."""

    init: Callable
    loss: Callable
    draw: Callable


KINDS = {  # by the type of the objective
    Objective: Kind(_init_denoiser, _denoising_loss, _draw_diffusion),
    FewStep: Kind(_init_denoiser, _few_step_loss, _draw_diffusion),
    Autoencoding: Kind(_init_autoencoder, _autoencoding_loss, _draw_decoded),
}


# ---- training -------------------------------------------------------------------------------------------------------------


def moving_averages(config) -> ema.Ema:
    """The EMAs of config.ema."""
    halflives, powers = ema.halflives(config.ema.halflives, ramp=config.ema.ramp), config.ema.get("powers", ())
    return ema.together(halflives, ema.powers(powers)) if powers else halflives


def companions(experiment: Experiment) -> tuple[ema.Ema, ...]:
    """What a few-step objective has in the state besides: its slow copy 'target', and the frozen 'teacher'. Never sampled from."""
    objective, steps = experiment.objective, experiment.config.training.steps
    if type(objective) is not FewStep:
        return ()
    if objective.taught and experiment.teacher is None:
        raise UserError(f"config.objective={experiment.config.objective} learns from a teacher: set config.distill.teacher "
                        "to the workdir of a trained diffusion model")  # fmt: skip
    target = (ema.target(lambda step: objective.rate(step / steps)),) if objective.rate else ()
    return target + ((ema.frozen("teacher", experiment.teacher[1]),) if objective.taught else ())


def grafted(fresh: Params, given: Params) -> Params:
    """`given` in place of `fresh`, but for what only the fresh network has (the second time's weights). UserError if they differ."""
    flat = lambda tree: {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}  # noqa: E731
    new, old = flat(fresh), flat(given)
    wrong = [path for path, leaf in old.items() if path not in new or new[path].shape != leaf.shape]
    if wrong:
        raise UserError(f"config.init_from: its network is another, in {wrong[0]} for one; use the same config.model as there")
    return jax.tree_util.tree_map_with_path(lambda path, leaf: old.get(jax.tree_util.keystr(path), leaf), fresh)


def weights_name(config) -> str:
    """Which weights of a state config.sampler.ema means: '' is the longest half-life, or the parameters if there is none.

    UserError for those it does not have, 'post_hoc(0.12)' among them: workdir.load makes these, after training.
    """
    halflives, powers = config.ema.halflives, config.ema.get("powers", ())
    which = config.sampler.ema or (ema.name(max(halflives)) if halflives else "params")
    if which not in (have := ["params", *map(ema.name, halflives), *map(ema.power_name, powers)]):
        raise unknown("config.sampler.ema", which, have)
    return which


def weights(config, current: TrainState) -> Params:
    """Those weights, of a state."""
    return {"params": current.params, **current.ema}[weights_name(config)]


class Training(NamedTuple):
    """What the loop needs, compiled for the devices by `runner`: see training/."""

    runner: sharding.Runner
    init: Callable[[Key], TrainState]  # a fresh state, to be placed by runner.init
    step: Callable  # (state, batches) -> (state, metrics), steps_per_call steps
    evaluate: Callable  # (params, batch, key) -> metrics


def training(experiment: Experiment, devices=None, loss: Callable = loss_fn) -> Training:
    """The compiled train and evaluation steps of a config, on these devices (None: all). loss: loss_fn, or classifier_loss_fn."""
    config = experiment.config
    runner = sharding.runner(config.parallel, mesh=config.mesh.to_dict(), devices=devices)
    averages = ema.together(moving_averages(config), *companions(experiment))
    options = config.optimizer.to_dict()
    tx, schedule = optimizer.make_optimizer(options.pop("name"), total_steps=config.training.steps, **options)
    one = step.make_train_step(loss(experiment), tx, averages, schedule=schedule, axis_name=runner.axis_name,
                               accumulate=config.training.accumulate)  # fmt: skip

    def init(key: Key) -> TrainState:
        params_key, noise_key = jax.random.split(key)
        params = init_params(experiment, params_key)
        params = params if experiment.begin is None else grafted(params, experiment.begin)
        return state.init_state(params, tx, averages, noise_key)

    return Training(
        runner, init,
        runner.compile(step.multi_step(one, config.training.steps_per_call)),
        runner.compile_eval(step.make_eval_step(loss(experiment), axis_name=runner.axis_name)),
    )  # fmt: skip
