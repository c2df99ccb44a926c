"""Configs of published networks and schedulers: what is translated and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import base, stable_diffusion
from diffusion_jax.assembly import datasets
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained import (
    networks,
    published,
    schedulers,
)
from diffusion_jax.studies.weights.import_weights import run_config

FIXTURES = Path(__file__).parents[1] / "fixtures"
SD3 = json.loads(gzip.decompress((FIXTURES / "sd3.json.gz").read_bytes()))["published"]

CIFAR10 = {  # google/ddpm-cifar10-32
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}


@pytest.mark.parametrize("name", SD3)
def test_the_preset_is_the_published_transformer(name):
    preset = stable_diffusion.get_config(name)
    network = networks.network("SD3Transformer2DModel")
    options, shape = published.read_config(network, SD3[name]["config"])
    own = preset.model.to_dict()
    assert own["name"] == network.model and options.pop("num_classes") == 0
    assert {key: own.get(key) for key in options} == options
    assert datasets.data_shape(preset)[0] == shape


def test_the_public_ddpm_is_ours():
    """Its config gives DDPM's CIFAR-10 network, whose number of parameters the paper has as 35.7
    million.
    """
    network = networks.network("UNet2DModel")
    options, shape = published.read_config(network, CIFAR10)
    experiment = assemble(
        run_config(network, options, shape, options.pop("num_classes"), {}, "cifar10"), shape
    )
    params = jax.eval_shape(lambda key: experiment.kind.init(experiment, key), jax.random.key(0))
    assert (
        shape == (32, 32, 3)
        and options["attention"] == (16,)
        and options["multipliers"] == (1, 2, 2, 2)
    )
    assert round(sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params)) / 1e5) == 357


@pytest.mark.parametrize(
    "change, words",
    [
        ({"num_class_embeds": 10}, "num_class_embeds=10; only None"),
        ({"center_input_sample": True}, "center_input_sample=True; only False"),
        (
            {"block_out_channels": [128, 192, 256, 256]},
            r"block_out_channels=\[128, 192, 256, 256\]; only \[128, 128",
        ),
        ({"up_block_types": ["UpBlock2D"] * 4}, "up_block_types=.*; only"),
        ({"out_channels": 4}, "out_channels=4; only 3"),
        ({"freq_shift": 0}, "freq_shift=0; only 1"),
        ({"flip_sin_to_cos": True}, "freq_shift=1; only 0"),
        ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups=None; only 32"),
        ({"sample_size": None}, "sample_size=None; set it to the side"),
        ({"gate": 1}, "gate=1; this key is unknown"),
    ],
)
def test_a_network_that_ours_cannot_be_is_refused(change, words):
    with pytest.raises(UserError, match=words):
        published.read_config(networks.network("UNet2DModel"), CIFAR10 | change)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"stem": 2}, "config.model.stem=2; train one with --config.model.stem=1$"),
        (
            {"updown": "resblock", "skip_scale": 0.7},
            "updown=resblock; config.model.skip_scale=0.7; .*updown=conv --config.model.skip",
        ),
        (
            {"num_classes": 10},
            "config.conditional=True .10 classes.; train one with --config.conditional=False",
        ),
        (
            {"head_width": 48},
            "head_width=48 .there is attention on 32 channels too.; train one with "
            "--config.model.head_width=32",
        ),
        ({"norm": None}, r"norm=None .it means 8 or 16 groups.*model.norm='\(8, 1e-06\)'"),
    ],
)
def test_a_network_that_theirs_cannot_be_is_refused(change, words):
    options = (
        base.network("unet.UNet", norm=(8, 1e-6), width=32, multipliers=(1, 2)).to_dict()
        | {"num_classes": 0}
        | change
    )
    shapes = {"down_0_0/norm_1/scale": (32,), "down_1_0/norm_1/scale": (64,)}
    with pytest.raises(UserError, match=words):
        published.write_config(networks.network("UNet2DModel"), options, (16, 16, 3), shapes)


@pytest.mark.parametrize(
    "scheduler, words",
    [
        ({"beta_schedule": "sqrt"}, "beta_schedule .*'sqrt'"),
        ({"prediction_type": "flow"}, "prediction_type .*'flow'"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
    ],
)
def test_a_scheduler_that_is_not_ours_is_refused(scheduler, words):
    with pytest.raises(UserError, match=words):
        schedulers.read_scheduler(scheduler)
