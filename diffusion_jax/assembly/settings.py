"""What a config says once it is resolved: plain values for training and sampling.

`experiment.assemble` makes these settings once and the Experiment holds them, so that no later
function reads a ConfigDict. Each class has the keys of one section of configs/base.py, where their
meaning is documented; a command varies them with `_replace`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import optax

from diffusion_jax.assembly.conditions import Conditions
from diffusion_jax.assembly.latent import LatentDecoder
from diffusion_jax.core.types import Array, Key, Params, Process
from diffusion_jax.data.normalization import ConditionUnits, Normalization
from diffusion_jax.denoisers.guides import Guide
from diffusion_jax.denoisers.parameterization import Parameterization
from diffusion_jax.inverse.dense import DenseCondition
from diffusion_jax.models.text import Encoder
from diffusion_jax.objectives.autoencoding import Autoencoding
from diffusion_jax.objectives.base import FewStep, Objective
from diffusion_jax.samplers.base import Sampler
from diffusion_jax.training.ema import Ema
from diffusion_jax.training.loss_scale import LossScale
from diffusion_jax.training.optimizer import Schedule
from diffusion_jax.training.step import LossFn, Remember


class Specs(NamedTuple):
    """The text by which the config names each component, for titles and messages."""

    process: str
    parameterization: str
    objective: str
    model: str
    encoder: str = ""


class SamplingSettings(NamedTuple):
    """The sampling settings: the section config.sampler.

    Attributes:
      sampler: the sampling method.
      name: the spec of `sampler`, for titles; sampling.with_sampler changes both.
      grid: the spec of the grid of times, the name of one placed for this model, or 'auto' for the
        sampler's own; sampling.grid_spec resolves it.
      nfe: budget of network evaluations per image.
      guidance: scale of the guidance; denoiser.is_guided decides whether it has an effect.
      clip: thresholding of x0-hat: 'none', 'static' or 'dynamic'.
      noise: 'independent', or 'brownian' for one Brownian path per image.
      weights: which weights of a checkpoint: the name of an EMA, 'params', 'post_hoc(LENGTH)', or
        '' for the longest half-life.
      checkpoint: '' for the newest, 'best' for that of the smallest config.training.best.
      batch_size: images that are drawn at a time.
    """

    sampler: Sampler
    name: str
    grid: str
    nfe: int
    guidance: float
    clip: str
    noise: str
    weights: str
    checkpoint: str
    batch_size: int
    labels: str = "auto"


class TrainingSettings(NamedTuple):
    """Length, cadences and safeguards of a training run: the section config.training.

    `loss_scale` is None where the loss is not scaled.
    """

    steps: int
    steps_per_call: int
    accumulate: int
    log_every: int
    eval_every: int
    sample_every: int
    first_shapes: int
    checkpoint_every: int
    keep: int
    keep_every: int
    best: str
    on_nonfinite: str
    trackers: tuple[str, ...]
    loss_scale: LossScale | None


class DataSettings(NamedTuple):
    """The part of config.data that training and the titles of figures need."""

    name: str
    path: str
    batch_size: int
    flip: bool
    augment: float
    workers: int
    class_balanced: bool


class Optimizer(NamedTuple):
    """The optimizer of training.

    Attributes:
      transformation: the optax transformation.
      schedule: step -> learning rate.
    """

    transformation: optax.GradientTransformation
    schedule: Schedule


class Averages(NamedTuple):
    """The moving averages of the parameters that training keeps: the section config.ema.

    Attributes:
      ema: all of them.
      names: what they are called in a checkpoint.
      default: the weights that config.sampler.ema='' means: the longest half-life, or 'params'.
      powers: relative lengths of the power averages.
      snapshot_every: steps between snapshots of the power averages.
    """

    ema: Ema
    names: tuple[str, ...]
    default: str
    powers: tuple[float, ...]
    snapshot_every: int


class MeshSettings(NamedTuple):
    """The distribution of training over devices: config.parallel and the section config.mesh.

    Attributes:
      parallel: 'jit' or 'pmap'.
      sizes: devices along each axis, {'data', 'fsdp', 'tensor'}; -1 takes those that are left.
    """

    parallel: str
    sizes: Mapping[str, int]


class Sources(NamedTuple):
    """The workdirs of other trained models that this one needs; '' where there is none.

    Attributes:
      autoencoder: decodes latents (config.latent.autoencoder).
      teacher: the diffusion model that is distilled (config.distill.teacher).
      teacher_guidance: scale of the teacher's guidance; None for the teacher's own.
      start: its weights are where training starts (config.init_from).
    """

    autoencoder: str
    teacher: str
    teacher_guidance: float | None
    start: str


class Kind(NamedTuple):
    """The functions that differ between kinds of models, such as few-step models and autoencoders.

    Each of the modules in assembly/kinds defines one. The functions take the Experiment first.

    Attributes:
      name: for messages, with its article: 'a diffusion model'.
      complete: (experiment, config) -> the Experiment with the parts that only this kind has.
        Raises UserError for a config that contradicts itself.
      prepare: (experiment, train) -> the Experiment with what it learns from the training split
        before training; train is None where only shapes matter.
      init: (experiment, key) -> fresh parameters. Traceable.
      loss: experiment -> the loss of the train step (training.step.LossFn).
      draw: (experiment, params, keys, cond, ts, scale, settings) -> (x (B, ...), NFE (B,)); scale
        is None without guidance.
      companions: experiment -> further averages in the training state that are never sampled from.
      remember: experiment -> what a step keeps of its losses there (step.Remember), or None.
      learned_by: (experiment, params) -> the Experiment with what its parameters have learned
        besides the network: the ends of a noise schedule.
      denoises: whether the network is a denoiser, which samplers and guidance need.
      has_flow: whether that denoiser defines a probability flow, which likelihoods need.
      samples: whether training draws grids of samples.
      reconstructs: whether training draws reconstructions.
      classifies: whether the network is a classifier, which guidance may need.
    """

    name: str
    complete: Callable[..., Experiment]
    prepare: Callable[..., Experiment]
    init: Callable[[Experiment, Key], Params]
    loss: Callable[[Experiment], LossFn]
    draw: Callable[..., tuple[Array, Array]]
    companions: Callable[[Experiment], tuple[Ema, ...]] = lambda experiment: ()
    remember: Callable[[Experiment], Remember | None] = lambda experiment: None
    learned_by: Callable[[Experiment, Params], Experiment] = lambda experiment, params: experiment
    denoises: bool = True
    has_flow: bool = False
    samples: bool = True
    reconstructs: bool = False
    classifies: bool = False


class Experiment(NamedTuple):
    """A config put together for its data: every component and every setting of one model.

    Attributes:
      shape: the shape of an example, (N_1, ..., N_d, C), such as (H, W, C) or (D,).
      num_classes: labels of the condition; 0 where there are none.
      process: the Gaussian path.
      parameterization: what the network predicts.
      objective: what training minimizes.
      model: the network.
      kind: diffusion, few-step, autoencoder or classifier.
      specs: the text that names each component.
      options: the options of the network, config.model without its name.
      sampling: how samples are drawn.
      training: length and cadences of training.
      data: what training reads from.
      optimizer: the optimizer of training.
      averages: the moving averages of the parameters.
      mesh: how training is spread over devices.
      sources: workdirs of other models that this one needs.
      seed: the seed of training.
      conditions: builds the conditions of this model.
      learns_null: whether the model knows the null condition.
      record: the config as nested dictionaries, for the records of results alone.
      two_times: whether the network also takes the end of a move as its input (MeanFlow).
      encoder: the encoder of captions.
      guide: the guidance strategy.
      others: the other trained networks that the guide needs, in its order.
      grids: the folders of the grids that experiments.optimize_grid placed for this model.
      origins: what tells its weights from others of their names (assembly.origins), plain data.
      discriminator: the discriminator of an adversarial autoencoder.
      features: the features of an autoencoder's perceptual distance.
      latents: how latents become images, where examples are latents.
      teacher: the teacher of a few-step objective.
      begin: parameters that training starts from, instead of fresh ones.
      alignment: weight of the loss of representation alignment (config.repa); 0 without it.
      normalization: of arrays that are neither images of 8 bits nor latents.
      units: of the arrays that condition the model.
      dense: the dense condition.
    """

    shape: tuple[int, ...]
    num_classes: int
    process: Process
    parameterization: Parameterization
    objective: Objective | Autoencoding | FewStep
    model: nn.Module
    kind: Kind
    specs: Specs
    options: Mapping[str, Any]
    sampling: SamplingSettings
    training: TrainingSettings
    data: DataSettings
    optimizer: Optimizer
    averages: Averages
    mesh: MeshSettings
    sources: Sources
    seed: int
    conditions: Conditions
    learns_null: bool
    record: Mapping[str, Any]
    two_times: bool
    guide: Guide
    encoder: Encoder | None = None
    others: tuple[tuple[Experiment, Params], ...] = ()
    grids: tuple[Path, ...] = ()
    origins: Mapping[str, Any] = MappingProxyType({})
    discriminator: nn.Module | None = None
    features: Callable[[Array], tuple[Array, ...]] | None = None
    latents: LatentDecoder | None = None
    teacher: tuple[Experiment, Params] | None = None
    begin: Params | None = None
    normalization: Normalization | None = None
    alignment: float = 0.0
    units: ConditionUnits = ConditionUnits()
    dense: DenseCondition | None = None

    @property
    def is_image(self) -> bool:
        """Whether samples are images of 8 bits, rather than points or arrays of other numbers."""
        return len(self.shape) == 3 and self.normalization is None
