"""Topologies by their names, and what is traced for other platforms."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import pytest

from configs import cifar10, digits, imagenet256_latent
from diffusion_jax.assembly import datasets
from diffusion_jax.core import arrays
from diffusion_jax.core.errors import UserError
from diffusion_jax.models import convolution
from diffusion_jax.planning import devices


@pytest.mark.parametrize(
    "topology, said",
    [
        ("v5e", "v5e, v5p or v6e such as v5e:16x16"),
        ("h100:8", "write a slice of TPUs"),
        ("v4:2x2x2", "write a slice of TPUs"),
        ("v5e:2x4; rm", "write a slice of TPUs"),
        ("cpu:many", "write how many, from 1 to 1024, such as cpu:8"),
        ("cpu:0", "write how many"),
        ("cpu:1000", "jax has started with 1 CPU"),
    ],
)
def test_nonsense_topologies_are_refused_in_one_line(topology, said):
    jax.devices()
    with pytest.raises(UserError, match=said) as error:
        devices.find_topology(topology)
    assert "\n" not in str(error.value) and topology in str(error.value)


def test_without_libtpu_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"--topology=v5e:16x16 needs .* pip install 'diffusion_jax\[tpu\]'"
    ):
        devices.find_topology("v5e:16x16")


def test_gpu_without_a_gpu():
    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="jax sees no GPU here"):
        devices.find_topology("gpu")


@pytest.mark.parametrize("size", ["", "0", "-1", "99999999", "9" * 5000])
def test_a_topology_of_absurdly_many_devices_is_refused(size):
    with pytest.raises(UserError, match="write how many, from 1 to 1024"):
        devices.find_topology(f"cpu:{size}")


@pytest.mark.parametrize(
    "file, expected",
    [
        (cifar10, ((32, 32, 3), 10)),
        (imagenet256_latent, ((32, 32, 4), 1000)),
        (digits, ((8, 8, 1), 10)),
    ],
)
def test_shapes_are_known_without_data(file, expected, tmp_path):
    config = file.get_config("vp")
    config.data.data_dir = str(tmp_path)
    assert datasets.data_shape(config) == expected


def test_programs_for_other_platforms_are_traced_as_such():
    """On a CPU convolutions have a rule for their gradients, on an accelerator they are plain."""
    x, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))

    def traced():  # a new function each time: jax does not trace the same one twice
        return str(jax.make_jaxpr(lambda x: convolution.convolve(x, kernel, (1, 1), "SAME"))(x))

    with arrays.compiling_for("tpu"):
        assert arrays.platform() == "tpu"
        assert "custom_jvp" not in traced()
    with arrays.compiling_for("cpu"):
        assert "custom_jvp" in traced()
    assert arrays.platform() == jax.default_backend()
