"""The peers `edm` and `adm`: a training step of NVlabs/edm, with DDPM++ or with the network of ADM.

It is the body of their training loop: EDM's loss, gradients that are not finite set to numbers,
Adam and a moving average, for labels of classes and without augmentation. The optimizer and the
average are fused, which theirs are not. Their fp16 needs a GPU.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch_variants
from line_protocol import Peer, serve


def prepare(settings: Mapping[str, Any]) -> Peer:
    """Make the training step.

    Args:
      settings: 'checkout', the folder of NVlabs/edm; 'network', the arguments of its EDMPrecond;
        'batch'; 'shape', (height, width, channels); 'variants'.
    """
    _stand_in()
    sys.path.insert(0, settings["checkout"])
    from training import loss, networks  # noqa: PLC0415  an optional dependency: NVlabs/edm

    options = settings["network"]

    def make(variant: torch_variants.Variant) -> torch_variants.Programs:
        if variant.precision == "bf16" or (variant.precision, torch_variants.device()) == (
            "fp16",
            "cpu",
        ):
            raise ValueError("this program has float32, and fp16 on a GPU")
        network = networks.EDMPrecond(**options, use_fp16=variant.precision == "fp16")
        network = variant.network(network.train().to(torch_variants.device()))
        network.model = variant.compiled(network.model)
        images = variant.images(settings["batch"], settings["shape"])
        return network, {"train": _training(network, images, loss.EDMLoss())}

    return torch_variants.fastest(settings, make, {"versions": {}})


def _training(network: torch.nn.Module, images: torch.Tensor, loss: Callable) -> Callable[[], Any]:
    """A training step on images with random labels."""
    parameters = list(network.parameters())
    averaged = [copy.deepcopy(each.data) for each in parameters]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, **torch_variants.fused())
    classes = torch.randint(0, network.label_dim, (len(images),), device=images.device)
    labels = torch.nn.functional.one_hot(classes, network.label_dim).float()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(network, images, labels).sum().mul(1 / len(images)).backward()
        for each in parameters:
            torch.nan_to_num(each.grad, nan=0, posinf=1e5, neginf=-1e5, out=each.grad)
        optimizer.step()
        torch_variants.average(averaged, parameters)

    return step


def _stand_in() -> None:
    """Put modules where their utilities import what newer Pythons lack and a step never uses."""
    for name, content in {"distutils.util": {"strtobool": bool}, "requests": {}}.items():
        top = name.partition(".")[0]
        if importlib.util.find_spec(top) is None:
            sys.modules[top] = types.ModuleType(top)
            sys.modules[name] = types.ModuleType(name)
            vars(sys.modules[name]).update(content)


if __name__ == "__main__":
    serve(prepare)
