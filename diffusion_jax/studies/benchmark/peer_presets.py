"""What is compared with other programs: their scripts, and our configs of the same networks.

To add a program: a script in experiments/peers and an entry in ACCELERATOR and CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from diffusion_jax.assembly import components, config_files
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.pretrained import networks
from diffusion_jax.studies.benchmark.timing import BenchmarkSubject, synthetic

EXAMPLES = 1024  # of noise, for our train step


class PeerPreset(NamedTuple):
    """A program of others, and what of ours is compared with it.

    Attributes:
      title: the name of the program.
      script: the name of its script in experiments/peers.
      config: our config.
      changes: what is changed of our config, as in --config.KEY=VALUE.
      shape: (height, width, channels) of an example.
      classes: number of classes; 0 for none.
      batch: examples in a step.
      variants: the variants of their program that are tried; the fastest counts.
      programs: what is timed: train (a training step), forward (an evaluation), ddim (a sampler).
      network: our experiment -> the arguments of their network.
      differs: what is not the same on both sides.
      url: address of the checkout that is needed; '' for a package.
      file: a file by which a checkout is recognized.
    """

    title: str
    script: str
    config: str
    changes: dict[str, str]
    shape: tuple[int, int, int]
    classes: int
    batch: int
    variants: tuple[str, ...]
    programs: tuple[str, ...]
    network: Callable[[Experiment], dict[str, Any]]
    differs: str
    url: str = ""
    file: str = ""


def options_of(experiment: Experiment) -> dict[str, Any]:
    """All options of our network, with the number of classes.

    Args:
      experiment: our side.
    """
    known = components.network(experiment.specs.model).to_dict()
    return known | experiment.options | {"num_classes": experiment.num_classes}


def published(name: str) -> Callable[[Experiment], dict[str, Any]]:
    """The arguments of a published network that is the same as ours, for any experiment of ours.

    Args:
      name: the class of the network, as in pretrained/networks.py.
    """

    def arguments(experiment: Experiment) -> dict[str, Any]:
        return networks.network(name).config(options_of(experiment), experiment.shape)

    return arguments


def _edm(experiment: Experiment) -> dict[str, Any]:
    """The arguments of EDMPrecond that all of its networks have."""
    options, (size, _, channels) = options_of(experiment), experiment.shape
    return {
        "img_resolution": size,
        "img_channels": channels,
        "label_dim": options["num_classes"],
        "model_channels": options["width"],
        "channel_mult": list(options["multipliers"]),
        "num_blocks": options["blocks"],
        "attn_resolutions": list(options["attention"]),
        "dropout": options["dropout"],
    }


def edm_ddpmpp(experiment: Experiment) -> dict[str, Any]:
    """The arguments of EDMPrecond for DDPM++, as NVlabs/edm's train.py has them.

    Args:
      experiment: our side.
    """
    return _edm(experiment) | {
        "model_type": "SongUNet",
        "embedding_type": "positional",
        "encoder_type": "standard",
        "decoder_type": "standard",
        "channel_mult_noise": 1,
        "resample_filter": [1, 1],
    }


def edm_adm(experiment: Experiment) -> dict[str, Any]:
    """The arguments of EDMPrecond for the network of ADM.

    Args:
      experiment: our side.
    """
    return _edm(experiment) | {"model_type": "DhariwalUNet"}


_ADM = {
    "model.width": "192",
    "model.multipliers": "(1, 2, 3, 4)",
    "model.blocks": "3",
    "model.attention": "(32, 16, 8)",
    "model.dropout": "0.1",
    "label_dropout": "0.0",
    "optimizer.clip": "0.0",
}
_DDPM = {  # of Ho et al. 2020, 35.7 million parameters, as diffusers has it
    "conditional": "False",
    "model.multipliers": "(1, 2, 2, 2)",
    "model.blocks": "2",
    "model.head_width": "None",
    "model.scale_shift": "False",
    "model.updown": "conv",
    "model.norm": "(32, 1e-6)",
    "model.dropout": "0.0",
}
_EDM_URL, _EDM_FILE = "https://github.com/NVlabs/edm", "training/networks.py"
_EDM_DIFFERS = (
    "the labels' embedding; theirs sets gradients that are not finite to numbers, ours skips such "
    "a step and bins the loss by noise level; neither augments"
)

ACCELERATOR = {
    "edm": PeerPreset(
        title="NVlabs/edm",
        script="edm.py",
        config="configs/cifar10.py:edm,ddpmpp",
        changes={},
        shape=(32, 32, 3),
        classes=10,
        batch=128,
        variants=("fp16", "fp16+compile", "fp16+compile+channels_last"),
        programs=("train",),
        network=edm_ddpmpp,
        differs=_EDM_DIFFERS,
        url=_EDM_URL,
        file=_EDM_FILE,
    ),
    "adm": PeerPreset(
        title="NVlabs/edm",
        script="edm.py",
        config="configs/cifar10.py:edm,full",
        changes=_ADM,
        shape=(32, 32, 3),
        classes=10,
        batch=64,
        variants=("fp16", "fp16+compile", "fp16+compile+channels_last"),
        programs=("train",),
        network=edm_adm,
        differs=_EDM_DIFFERS,
        url=_EDM_URL,
        file=_EDM_FILE,
    ),
    "dit": PeerPreset(
        title="DiT",
        script="dit.py",
        config="configs/imagenet256_latent.py:ddpm",
        changes={"model.learn_variance": "True", "optimizer.clip": "0.0"},
        shape=(32, 32, 4),
        classes=1000,
        batch=32,
        variants=("bf16+compile",),
        programs=("train",),
        network=published("DiT"),
        differs="theirs adds the variational bound of the variance to its loss, ours leaves it out",
        url="https://github.com/facebookresearch/DiT",
        file="models.py",
    ),
    "diffusers": PeerPreset(
        title="diffusers",
        script="diffusers_unet.py",
        config="configs/cifar10.py:ddpm,full",
        changes=_DDPM,
        shape=(32, 32, 3),
        classes=0,
        batch=128,
        variants=("bf16+compile", "bf16+compile+channels_last"),
        programs=("train", "forward", "ddim"),
        network=published("UNet2DModel"),
        differs="nothing in the network; ours also bins the loss by noise level",
    ),
}
_SMALL = {"model.dtype": "float32", "training.steps_per_call": "1"}
_TWIN = _SMALL | {"model.width": "32", "model.multipliers": "(1, 2, 2)", "model.blocks": "2"}
_VARIANTS = {"variants": ("float32", "float32+channels_last")}

CPU = {
    "edm": ACCELERATOR["edm"]._replace(changes=_TWIN, batch=64, **_VARIANTS),
    "adm": ACCELERATOR["adm"]._replace(
        changes=_ADM
        | _TWIN
        | {"model.width": "64", "model.multipliers": "(1, 1)", "model.attention": "(16,)"},
        batch=16,
        **_VARIANTS,
    ),
    "dit": ACCELERATOR["dit"]._replace(
        changes=ACCELERATOR["dit"].changes
        | _SMALL
        | {
            "model.width": "128",
            "model.depth": "6",
            "model.heads": "4",
            "model.scan_blocks": "False",
        },
        batch=16,
        variants=("float32",),
    ),
    "diffusers": ACCELERATOR["diffusers"]._replace(
        changes=_DDPM | _TWIN | {"model.head_width": "8", "model.norm": "(8, 1e-5)"},
        shape=(32, 32, 1),
        batch=64,
        **_VARIANTS,
    ),
}
QUICK = {  # one variant, as torch.compile takes minutes for each
    name: preset._replace(variants=preset.variants[-1:]) for name, preset in ACCELERATOR.items()
}
_FEW = {
    "edm": {"model.width": "16", "model.multipliers": "(1,)", "model.blocks": "1"},
    "adm": {"model.multipliers": "(1,)", "model.blocks": "1"},
    "dit": {"model.width": "32", "model.depth": "1", "model.heads": "2"},
    "diffusers": {"model.width": "16", "model.multipliers": "(1, 1)", "model.blocks": "1"},
}
TINY = {  # to see that everything works, in seconds; such networks say nothing about speed
    name: preset._replace(
        changes=preset.changes | _FEW[name], batch=2, variants=preset.variants[:1]
    )
    for name, preset in CPU.items()
}
PRESETS = {"accelerator": ACCELERATOR, "accelerator_quick": QUICK, "cpu": CPU, "tiny": TINY}


def subject_of(name: str, preset: PeerPreset, batch: int = 0) -> BenchmarkSubject:
    """Our side of a comparison, on noise.

    Args:
      name: the name of the peer.
      preset: what is compared.
      batch: examples in a step; 0 is the preset's own number.
    """
    config = config_files.load_config(preset.config)
    config_files.apply(
        config, [*preset.changes.items(), ("data.batch_size", str(batch or preset.batch))]
    )
    dataset = synthetic(preset.shape, preset.classes, EXAMPLES)
    experiment = assemble(config, dataset.image_shape, dataset.num_classes)
    return BenchmarkSubject(name, config, dataset, experiment)
