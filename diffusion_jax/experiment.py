"""The roof: from a ConfigDict to a process, a network, an objective and samplers, all plain functions. The only reader of configs.

Nothing here computes; it puts together. What each config key means is said in configs/base.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, NamedTuple, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from diffusion_jax import arrays, data, guidance, guides, inverse, parameterization, targets
from diffusion_jax.build import Family, build, members
from diffusion_jax.errors import UserError, unknown
from diffusion_jax.evaluation import progress
from diffusion_jax.evaluation import weights as published
from diffusion_jax.models import classifier, dit, mlp, text, unet
from diffusion_jax.objectives import denoising, elbo, times, weighting
from diffusion_jax.objectives.base import Objective
from diffusion_jax.parameterization import Parameterization
from diffusion_jax.processes import discrete, gaussian, schedules
from diffusion_jax.samplers import adaptive, ancestral, base, corrector, grids, multistep, ode, sde, singlestep
from diffusion_jax.training import distributed, ema, optimizer, sharding, state, step
from diffusion_jax.training.state import TrainState
from diffusion_jax.types import Array, Cond, Denoise, Key, Params, Process

PROCESSES = Family("process", (schedules, discrete), ("class", "DDPM"))
PARAMETERIZATIONS = Family("parameterization", (parameterization,), ("Parameterization",))
OBJECTIVES = Family("objective", (denoising, elbo, times, weighting), ("Objective",), ("TimeLaw", "Weighting"))
SAMPLERS = Family("sampler", (ancestral, ode, singlestep, multistep, adaptive, sde, corrector), ("Sampler",), ("Corrector",))
GRIDS = Family("grid", (grids,), ("Array",))
TARGETS = Family("target", (targets,), ("Target",))
GUIDES = Family("guidance", (guides,), ("Guide",))
MEASUREMENTS = Family("task", (inverse,), ("Measurement",))
METHODS = Family("method", (inverse,), ("Method",))
MASKS = Family("mask", (inverse,), ("Mask",))
MODELS = Family("model", (unet, mlp, dit, classifier), ("class",))
ENCODERS = Family("text encoder", (text,), ("Encoder",))

CLIPS = ("none", "static", "dynamic")
NOISES = {"independent": base.independent, "brownian": base.brownian}


class Experiment(NamedTuple):
    """One config, put together for data of `shape` (H, W, C) (or (D,)) with `num_classes` labels (0: unconditional)."""

    config: Any
    shape: tuple[int, ...]
    num_classes: int
    process: Process
    parameterization: Parameterization
    objective: Objective
    model: nn.Module
    grids: Path | None = None  # the folder where this model's own grids are (experiments.optimize_grid)
    encoder: text.Encoder | None = None  # of captions
    guide: guides.Guide = guides.cfg()
    others: tuple[tuple[Experiment, Params], ...] = ()  # the other trained networks that the guide needs, in its order


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
    return guided_by(config.sampler.get("guide", "cfg()"), Experiment(
        config, tuple(shape), num_classes, process,
        build(PARAMETERIZATIONS, config.parameterization),
        build(OBJECTIVES, config.objective, process),
        build(MODELS, config.model.name, num_classes=num_classes, **options), encoder=encoder,
    ), load)  # fmt: skip


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
    if config.model.name in (known := members(MODELS)) and "text" not in known[config.model.name].__annotations__:
        raise UserError(f"config.text.encoder={wanted['encoder']}: {config.model.name} reads no captions; use unet.UNet")
    if wanted["max_length"] < 1:
        raise UserError(f"config.text.max_length={wanted['max_length']}: at least one token must be read")
    return build(ENCODERS, wanted["encoder"], wanted["max_length"], published.load)


def dataset(config) -> data.Dataset:
    """The data set of config.data, with what config.text makes of its captions."""
    keys = ("name", "path", "data_dir", "image_size", "channels", "num_classes", "captions", "limit_bad")
    encoder = text_encoder(config)
    with distributed.first_before_others("data"):  # what the first process prepares on a shared disk, the others find
        options = {key: config.data[key] for key in keys if key in config.data}
        loaded = data.load(**options, seed=config.seed, captioned=bool(encoder))
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
    x = jnp.zeros((1, *experiment.shape))
    return experiment.model.init(key, x, jnp.zeros(1), null_cond(experiment, 1))["params"]


def apply(experiment: Experiment):
    """The network as a pure function: apply(params, x_in, c_noise, cond, train=False, rngs=None) -> F."""

    def run(params, x_in, c_noise, cond, **kwargs):
        return experiment.model.apply({"params": params}, x_in, c_noise, cond, **kwargs)

    return run


def is_image(experiment: Experiment) -> bool:
    """Whether an example is an image (H, W, C) rather than a point (D,)."""
    return len(experiment.shape) == 3


def need_images(experiment: Experiment) -> None:
    """UserError for a model of points, from commands that judge images."""
    if not is_image(experiment):
        raise UserError(f"this command judges images, and the model draws points {experiment.shape}; use experiments.sample")


def null_cond(experiment: Experiment, batch: int) -> Cond:
    """The condition that says nothing, for `batch` examples: label = num_classes, no caption. None of an unconditional one."""
    label = {"label": jnp.full(batch, experiment.num_classes, jnp.int32)} if experiment.num_classes else {}
    return (label | (text.no_caption(experiment.encoder, batch) if experiment.encoder else {})) or None


def loss_fn(experiment: Experiment) -> Callable:
    """(params, batch, keys (B,), now) -> (losses (B,), {'level': log-SNR (B,)}), what the train step moves the state by."""
    network, objective, rate = apply(experiment), experiment.objective, experiment.config.label_dropout

    def loss(params: Params, batch, keys: Key, now: step.Now):
        noised = objective.draw(arrays.fold_in(keys, 0), batch["image"])
        cond = null_cond(experiment, len(keys))
        if cond is not None:
            dropped = arrays.uniform(arrays.fold_in(keys, 1)) < (rate if now.train else 0.0)
            cond = {name: jnp.where(arrays.expand(dropped, null), null, batch[name]) for name, null in cond.items()}
        rngs = {"dropout": jax.random.fold_in(keys[0], 2)} if now.train else None
        denoise = parameterization.denoiser(
            network, params, experiment.parameterization, experiment.process, train=now.train, rngs=rngs)  # fmt: skip
        return objective.loss(denoise, noised, cond), {"level": gaussian.logsnr(experiment.process, noised.t)}

    return loss


def classifier_loss_fn(experiment: Experiment) -> Callable:
    """As loss_fn, for a noise-conditional classifier: -log p(label | x_t), with x_t as the config's objective draws it; 'accuracy'."""

    def loss(params: Params, batch, keys: Key, now: step.Now):
        noised = experiment.objective.draw(arrays.fold_in(keys, 0), batch["image"])
        rngs = {"dropout": jax.random.fold_in(keys[0], 2)} if now.train else None
        log_p = jax.nn.log_softmax(logits(experiment, params)(noised.x_t, noised.t, train=now.train, rngs=rngs))
        own = jnp.take_along_axis(log_p, batch["label"][:, None], 1)[:, 0]
        right = (jnp.argmax(log_p, 1) == batch["label"]).astype(jnp.float32)
        return -own, {"level": gaussian.logsnr(experiment.process, noised.t), "accuracy": right}

    return loss


# ---- sampling -------------------------------------------------------------------------------------------------------------


class Ensemble(NamedTuple):
    """The parameters of a model and of the networks that guide it, to be traced together. Without it, others are constants."""

    own: Params
    others: tuple[Params, ...]


def ensemble(experiment: Experiment, params: Params) -> Params:
    """params, with those of the networks that guide the model, if there are any."""
    return Ensemble(params, tuple(other for _, other in experiment.others)) if experiment.others else params


def denoiser(experiment: Experiment, params: Params, *, scale: Array | None = None, clip: str = "static") -> Denoise:
    """The trained network as a Denoise, with guidance (scale; None: none) by the experiment's guide, and thresholding (clip).

    params: of the network, or an `ensemble`. clip: 'static' keeps x0-hat in [-1, 1], 'dynamic' is Imagen's, 'none' leaves it.
    """
    process, own = experiment.process, params.own if isinstance(params, Ensemble) else params
    denoise = parameterization.denoiser(apply(experiment), own, experiment.parameterization, process)
    if scale is not None:
        denoise = experiment.guide.steer(denoise, scale, _site(experiment, params))
    match clip:
        case "none":
            return denoise
        case "static":
            return guidance.clip_x0(denoise, process)
        case "dynamic":
            return guidance.dynamic_threshold(denoise, process)
    raise unknown("config.sampler.clip", clip, CLIPS)


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


class Plan(NamedTuple):
    """How to sample: the method, the decreasing times, the guidance scale, the thresholding, where the noise comes from."""

    sampler: base.Sampler
    ts: Array
    guidance: float
    clip: str
    noise: str = "independent"
    guided: bool = True  # whether guidance at this scale is more than the model itself


def plan(experiment: Experiment, **changes) -> Plan:
    """The Plan of config.sampler, with changes of its keys. UserError for unknown names or a budget below one evaluation."""
    config = experiment.config.sampler.to_dict() | changes
    sampler = build(SAMPLERS, config["name"])
    if config["clip"] not in CLIPS:
        raise unknown("config.sampler.clip", config["clip"], CLIPS)
    if config["nfe"] < 1:
        raise UserError(f"config.sampler.nfe={config['nfe']}: at least one network evaluation is needed")
    if config["noise"] not in NOISES:
        raise unknown("config.sampler.noise", config["noise"], NOISES)
    ts = grid(experiment, config["grid"], base.points(sampler, config["nfe"]))
    guided = config["guidance"] != experiment.guide.neutral
    return Plan(sampler, ts, config["guidance"], config["clip"], config["noise"], guided)


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

    count: also the NFE of each image, (B,).
    """

    @jax.jit
    def run(params: Params, keys: Key, cond: Cond, ts: Array, scale: Array) -> Array:
        denoise = denoiser(experiment, params, scale=scale if guided else None, clip=clip)
        cond = null_cond(experiment, len(keys)) if cond is None else cond
        x = base.start(experiment.process, keys, (len(keys), *experiment.shape))
        return base.sample(sampler, denoise, experiment.process, keys, x, ts, cond, padded=True, noise=NOISES[noise], count=count)

    return run


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


# ---- training -------------------------------------------------------------------------------------------------------------


def moving_averages(config) -> ema.Ema:
    """The EMAs of config.ema."""
    halflives, powers = ema.halflives(config.ema.halflives, ramp=config.ema.ramp), config.ema.get("powers", ())
    return ema.together(halflives, ema.powers(powers)) if powers else halflives


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
    averages = moving_averages(config)
    options = config.optimizer.to_dict()
    tx, schedule = optimizer.make_optimizer(options.pop("name"), total_steps=config.training.steps, **options)
    one = step.make_train_step(loss(experiment), tx, averages, schedule=schedule, axis_name=runner.axis_name,
                               accumulate=config.training.accumulate)  # fmt: skip

    def init(key: Key) -> TrainState:
        params_key, noise_key = jax.random.split(key)
        return state.init_state(init_params(experiment, params_key), tx, averages, noise_key)

    return Training(
        runner, init,
        runner.compile(step.multi_step(one, config.training.steps_per_call)),
        runner.compile_eval(step.make_eval_step(loss(experiment), axis_name=runner.axis_name)),
    )  # fmt: skip
