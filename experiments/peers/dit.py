"""The peer `dit`: a training step of facebookresearch/DiT or fast-DiT (Peebles & Xie 2023).

It is the body of their training loop: the loss of improved DDPM with a learned variance, AdamW and
a moving average, in mixed precision by autocast. The optimizer and the average are fused. fast-DiT
recomputes every block in the backward pass, which saves memory and takes a third more time; for
speed give the checkout of facebookresearch/DiT.
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
from torch import nn


def prepare(settings: Mapping[str, Any]) -> Peer:
    """Make the training step.

    Args:
      settings: 'checkout', the folder of the program; 'network', the arguments of its DiT; 'batch';
        'shape', (height, width, channels); 'variants'.
    """
    found = importlib.util.find_spec("timm") is not None
    if not found:
        _stand_in()
    sys.path.insert(0, settings["checkout"])
    import models  # noqa: PLC0415  an optional dependency: facebookresearch/DiT
    from diffusion import create_diffusion  # noqa: PLC0415  an optional dependency: the same

    options = settings["network"]
    diffusion = create_diffusion(timestep_respacing="")

    def make(variant: torch_variants.Variant) -> torch_variants.Programs:
        network = models.DiT(**options).train().to(torch_variants.device())
        images = variant.images(settings["batch"], settings["shape"])
        return network, {"train": _training(network, images, diffusion, variant)}

    note = "with timm" if found else "without timm, with modules of the same work"
    return torch_variants.fastest(settings, make, {"note": note, "versions": {}})


def _training(
    network: nn.Module, images: torch.Tensor, diffusion: Any, variant: torch_variants.Variant
) -> Callable[[], Any]:
    """A training step on latents with random labels."""
    parameters = [each for each in network.parameters() if each.requires_grad]
    averaged = [copy.deepcopy(each.data) for each in parameters]
    options = {"lr": 1e-4, "weight_decay": 0.0, **torch_variants.fused()}
    optimizer, call = torch.optim.AdamW(parameters, **options), variant.compiled(network)
    classes, device = network.y_embedder.num_classes, images.device
    labels = torch.randint(0, classes, (len(images),), device=device)

    def step() -> None:
        times = torch.randint(0, diffusion.num_timesteps, (len(images),), device=device)
        with variant.autocast():
            losses = diffusion.training_losses(call, images, times, {"y": labels})["loss"]
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch_variants.average(averaged, parameters)

    return step


class _Patches(nn.Module):
    """Images (B, C, H, W) to tokens (B, T, D), as timm's PatchEmbed gives them."""

    def __init__(self, size: int, patch: int, channels: int, width: int, bias: bool) -> None:
        super().__init__()
        self.patch_size, self.num_patches = (patch, patch), (size // patch) ** 2
        self.proj = nn.Conv2d(channels, width, patch, stride=patch, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embed the patches."""
        return self.proj(x).flatten(2).transpose(1, 2)


class _Attention(nn.Module):
    """Self-attention (B, T, D) -> (B, T, D) by PyTorch's fused attention, as timm's Attention."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads, self.proj = num_heads, nn.Linear(dim, dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class _MLP(nn.Sequential):
    """Two layers and what is between them, as timm's Mlp."""

    def __init__(
        self, in_features: int, hidden_features: int, act_layer: Callable, drop: float
    ) -> None:
        layers = nn.Linear(in_features, hidden_features), nn.Linear(hidden_features, in_features)
        super().__init__(layers[0], act_layer(), layers[1])


def _stand_in() -> None:
    """Put modules of the same work where their network imports three modules of timm."""
    for name in ("timm", "timm.models", "timm.models.vision_transformer"):
        sys.modules[name] = types.ModuleType(name)
    parts = {"PatchEmbed": _Patches, "Attention": _Attention, "Mlp": _MLP}
    vars(sys.modules["timm.models.vision_transformer"]).update(parts)


if __name__ == "__main__":
    serve(prepare)
