"""The peer `diffusers`: a training step of UNet2DModel, its forward pass, and its DDIM loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
import torch_variants
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from line_protocol import Peer, serve


def prepare(settings: Mapping[str, Any]) -> Peer:
    """Make the programs.

    Args:
      settings: 'network', the config.json of a UNet2DModel; 'batch'; 'shape', (height, width,
        channels); 'nfe', steps of DDIM; 'variants'.
    """
    known = {key: value for key, value in settings["network"].items() if key[0] != "_"}

    def make(variant: torch_variants.Variant) -> torch_variants.Programs:
        network = variant.network(UNet2DModel(**known).to(torch_variants.device()))
        call = variant.compiled(network)
        images = variant.images(settings["batch"], settings["shape"])
        return network, {
            "train": _training(network, call, images, variant),
            "forward": _forward(network, call, images, variant),
            "ddim": _ddim(network, call, images, settings["nfe"], variant),
        }

    facts = {"versions": {"diffusers": diffusers.__version__}}
    return torch_variants.fastest(settings, make, facts)


def _training(
    network: torch.nn.Module,
    call: Callable,
    images: torch.Tensor,
    variant: torch_variants.Variant,
) -> Callable[[], Any]:
    """A step of denoising with AdamW, clipping by the norm and a moving average."""
    parameters = list(network.parameters())
    averaged = [copy.deepcopy(each.data) for each in parameters]
    options = {"lr": 1e-4, "weight_decay": 0.0, **torch_variants.fused()}
    optimizer, scheduler = torch.optim.AdamW(parameters, **options), DDPMScheduler()

    def step() -> None:
        _switch(network, True)
        noise = torch.randn_like(images)
        last = scheduler.config.num_train_timesteps
        times = torch.randint(0, last, (len(images),), device=images.device)
        noisy = scheduler.add_noise(images, noise, times)
        with variant.autocast():
            predicted = call(noisy, times).sample
        torch.nn.functional.mse_loss(predicted.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch_variants.average(averaged, parameters)

    return step


def _forward(
    network: torch.nn.Module,
    call: Callable,
    images: torch.Tensor,
    variant: torch_variants.Variant,
) -> Callable[[], Any]:
    """One evaluation of the network."""
    times = torch.full((len(images),), 500, device=images.device)

    def step() -> torch.Tensor:
        _switch(network, False)
        with torch.no_grad(), variant.autocast():
            return call(images, times).sample

    return step


def _ddim(
    network: torch.nn.Module,
    call: Callable,
    images: torch.Tensor,
    nfe: int,
    variant: torch_variants.Variant,
) -> Callable[[], Any]:
    """The loop of DDIMPipeline over all steps, without clipping, as our own benchmark has it."""
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(nfe, device=images.device)

    def step() -> torch.Tensor:
        _switch(network, False)
        x = images
        with torch.no_grad():
            for time in scheduler.timesteps:
                with variant.autocast():
                    predicted = call(x, time).sample
                x = scheduler.step(predicted.float(), time, x).prev_sample
        return x

    return step


def _switch(network: torch.nn.Module, training: bool) -> None:
    """Change the mode of all layers, where it is another; this walk must not be part of a step."""
    if network.training != training:
        network.train(training)


if __name__ == "__main__":
    serve(prepare)
