"""Published weights with edited configs, other shapes or values that are not finite."""

from __future__ import annotations

import contextlib
import errno
import os

import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained import (
    diffusers_networks,
    layouts,
    networks,
    published,
    safetensors,
    schedulers,
)
from tests.pretrained.conversions import fixture
from tests.spoiled import variations


@pytest.mark.parametrize("name", ["unet", "autoencoder_kl"])
def test_an_edited_config_beside_imported_weights_is_refused_in_one_line_or_serves(name):

    config = fixture(name)[0]
    network, refused = networks.network(config["_class_name"]), 0
    published.read_config(network, config)
    for other in variations(config):
        if isinstance(other, dict):
            try:
                published.read_config(network, other)
            except UserError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > 100


def test_an_edited_scheduler_or_record_of_latents_is_refused_in_one_line_or_serves():
    scheduler = schedulers.DDPM | {"trained_betas": [0.1, 0.2], "clip_sample": True}
    latents = {
        "scaling_factor": 0.2,
        "shift_factor": 0.1,
        "latents_mean": [0.0, 1.0],
        "latents_std": [1.0, 2.0],
    }
    for value, read in (
        (scheduler, schedulers.read_scheduler),
        (latents, lambda known: diffusers_networks.shift_and_scale(known, 2)),
    ):
        read(value)
        for other in variations(value):
            if isinstance(other, dict):
                with contextlib.suppress(UserError):
                    read(other)


def test_a_dit_is_described_by_tensors_of_the_right_number_of_dimensions():
    network, ones = networks.network("DiT"), np.ones
    tensors = {
        "x_embedder.proj.weight": ones((8, 4, 2, 2)),
        "blocks.0.mlp.fc1.weight": ones((32, 8)),
        "final_layer.linear.weight": ones((32, 8)),
        "y_embedder.embedding_table.weight": ones((4, 8)),
        "pos_embed": ones((1, 16, 8)),
    }
    assert network.described(tensors)["num_classes"] == 3
    for name in tensors:
        for shape in ((), (0,), (3,), (0, 4, 2, 2)):
            with contextlib.suppress(UserError):
                network.described(tensors | {name: ones(shape)})
    for change in ({"input_size": 65_536}, {"input_size": 7}):
        options, shape = published.read_config(
            network, network.described(tensors) | {"num_heads": 2} | change
        )
        with pytest.raises(UserError, match="are not those of a DiT of width 8"):
            published.without_fixed(network, tensors, options, shape)


@pytest.mark.parametrize(
    "value, words",
    [(np.nan, "1 of 4 values that are not finite"), (1e300, "not finite"), (-np.inf, "not finite")],
)
def test_weights_that_are_not_finite_are_refused_by_name(value, words):
    table = {"a/kernel": layouts.TensorSource(("a.weight",), layouts.KERNEL)}
    weights = np.array([[1.0, 2.0], [3.0, value]])
    with pytest.raises(
        UserError, match=f"the tensor a.weight has {words}" if "of 4" in words else words
    ):
        layouts.to_ours(table, {"a.weight": weights}, {"a/kernel": (2, 2)})
    with pytest.raises(
        UserError, match="a.weight is of type int64; weights must be floating-point numbers"
    ):
        layouts.to_ours(table, {"a.weight": np.ones((2, 2), int)}, {"a/kernel": (2, 2)})


def test_a_full_disk_is_a_refusal_of_the_system(tmp_path, monkeypatch):
    """The library's own error knows the number of the system's only in its text."""

    def full(*args, **kwargs):
        raise safetensors.safetensors.SafetensorError(
            "I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr(safetensors.safetensors.numpy, "save_file", full)
    with pytest.raises(OSError, match="No space left on device") as refused:
        safetensors.save(tmp_path / "a.safetensors", {"a": np.zeros(2)})
    assert refused.value.errno == errno.ENOSPC
    assert refused.value.filename == str(tmp_path / "a.safetensors")
    assert not os.listdir(tmp_path)
