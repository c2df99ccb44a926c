"""Published files of vision transformers, converted to the parameters of vit.py.

A layout is one dictionary, from the names of our parameters to those of the publisher's tensors. A
name that ends in '.' or '_' is that of a module, with a weight and perhaps a bias; several names
with spaces between them are several tensors of theirs that are one of ours; {} is the number of the
block. Every tensor must have its place, its shape and finite values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained.vit import Vit, shapes

Tensors = dict[str, np.ndarray]
SHOWN = 4  # names of each kind in an error


class TensorNames(NamedTuple):
    """The names of a publisher.

    Attributes:
      publisher: who publishes such files.
      names: our names -> theirs; see the module.
      ignored: the beginnings of the names of tensors that no feature needs.
    """

    publisher: str
    names: dict[str, str]
    ignored: tuple[str, ...]


DINOV2 = (
    TensorNames(
        "facebookresearch/dinov2",
        {
            "class": "cls_token",
            "positions": "pos_embed",
            "registers": "register_tokens",
            "patch": "patch_embed.proj.",
            "blocks.norm1": "blocks.{}.norm1.",
            "blocks.qkv": "blocks.{}.attn.qkv.",
            "blocks.out": "blocks.{}.attn.proj.",
            "blocks.scale1": "blocks.{}.ls1.gamma",
            "blocks.norm2": "blocks.{}.norm2.",
            "blocks.fc1": "blocks.{}.mlp.fc1.",
            "blocks.fc2": "blocks.{}.mlp.fc2.",
            "blocks.scale2": "blocks.{}.ls2.gamma",
            "norm": "norm.",
        },
        ("mask_token",),
    ),
    TensorNames(
        "Hugging Face (Dinov2Model, Dinov2WithRegistersModel)",
        {
            "class": "embeddings.cls_token",
            "positions": "embeddings.position_embeddings",
            "registers": "embeddings.register_tokens",
            "patch": "embeddings.patch_embeddings.projection.",
            "blocks.norm1": "encoder.layer.{}.norm1.",
            "blocks.qkv": "encoder.layer.{}.attention.attention.query. "
            "encoder.layer.{}.attention.attention.key. "
            "encoder.layer.{}.attention.attention.value.",
            "blocks.out": "encoder.layer.{}.attention.output.dense.",
            "blocks.scale1": "encoder.layer.{}.layer_scale1.lambda1",
            "blocks.norm2": "encoder.layer.{}.norm2.",
            "blocks.fc1": "encoder.layer.{}.mlp.fc1.",
            "blocks.fc2": "encoder.layer.{}.mlp.fc2.",
            "blocks.scale2": "encoder.layer.{}.layer_scale2.lambda1",
            "norm": "layernorm.",
        },
        ("embeddings.mask_token",),
    ),
)

_BLOCK, _LAYER = "visual.transformer.resblocks.{}.", "vision_model.encoder.layers.{}."

CLIP = (
    TensorNames(
        "openai/CLIP",
        {
            "class": "visual.class_embedding",
            "positions": "visual.positional_embedding",
            "patch": "visual.conv1.",
            "pre_norm": "visual.ln_pre.",
            "blocks.norm1": _BLOCK + "ln_1.",
            "blocks.qkv": _BLOCK + "attn.in_proj_",
            "blocks.out": _BLOCK + "attn.out_proj.",
            "blocks.norm2": _BLOCK + "ln_2.",
            "blocks.fc1": _BLOCK + "mlp.c_fc.",
            "blocks.fc2": _BLOCK + "mlp.c_proj.",
            "norm": "visual.ln_post.",
            "projection": "visual.proj",
        },
        (  # the text encoder, and numbers that describe the network
            "transformer.",
            "token_embedding.",
            "positional_embedding",
            "ln_final.",
            "text_projection",
            "logit_scale",
            "input_resolution",
            "context_length",
            "vocab_size",
        ),
    ),
    TensorNames(
        "Hugging Face (CLIPModel, CLIPVisionModelWithProjection)",
        {
            "class": "vision_model.embeddings.class_embedding",
            "positions": "vision_model.embeddings.position_embedding.weight",
            "patch": "vision_model.embeddings.patch_embedding.",
            "pre_norm": "vision_model.pre_layrnorm.",  # (their spelling)
            "blocks.norm1": _LAYER + "layer_norm1.",
            "blocks.qkv": " ".join(_LAYER + f"self_attn.{part}_proj." for part in "qkv"),
            "blocks.out": _LAYER + "self_attn.out_proj.",
            "blocks.norm2": _LAYER + "layer_norm2.",
            "blocks.fc1": _LAYER + "mlp.fc1.",
            "blocks.fc2": _LAYER + "mlp.fc2.",
            "norm": "vision_model.post_layernorm.",
            "projection": "visual_projection.weight",
        },
        (
            "text_model.",
            "text_projection.",
            "logit_scale",
            "vision_model.embeddings.position_ids",
        ),
    ),
)


def convert(vit: Vit, tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Convert the tensors of a published file.

    Args:
      vit: the network that the file must hold.
      tensors: {name: array} of the file.

    Returns:
      {name: float32 array}, as `vit.shapes` lists them.

    Raises:
      UserError: for tensors that are missing, left over, of another shape or not finite, each by
        its name, and for a file of no known publisher.
    """
    layouts = CLIP if vit.clip else DINOV2
    found = [layout for layout in layouts if layout.names["class"] in tensors]
    if len(found) != 1:
        known = " or ".join(layout.names["class"] for layout in layouts)
        publishers = " or ".join(layout.publisher for layout in layouts)
        raise UserError(
            f"the file must have a tensor {known}, and has {len(found)} of them, so it is not one "
            f"of {publishers}"
        )
    places = _places(vit, found[0])
    _check_names(places, found[0], tensors)
    return {
        ours: np.stack([_ours(parts, shape, tensors) for parts in blocks])
        if ours.startswith("blocks.")
        else _ours(blocks[0], shape, tensors)
        for ours, (blocks, shape) in places.items()
    }


class _Part(NamedTuple):
    """A tensor of theirs: its name, its shape, and whether its axes are reversed."""

    name: str
    shape: tuple[int, ...]
    transposed: bool


class _Place(NamedTuple):
    """The tensors of theirs that are one parameter of ours."""

    blocks: list[list[_Part]]  # of every block, or of one
    shape: tuple[int, ...]  # ours, of one block


def _places(vit: Vit, layout: TensorNames) -> dict[str, _Place]:
    """Return {our name: the tensors of theirs}."""
    found = {}
    for ours, shape in shapes(vit).items():
        module, _, kind = ours.rpartition(".")
        key, suffix = (ours, "") if ours in layout.names else (module, kind)
        names = [name + suffix for name in layout.names[key].split()]
        count, shape = (vit.depth, shape[1:]) if ours.startswith("blocks.") else (1, shape)
        blocks = [
            [_part(vit, ours, name.format(i), shape, len(names)) for name in names]
            for i in range(count)
        ]
        found[ours] = _Place(blocks, shape)
    return found


def _part(vit: Vit, ours: str, name: str, shape: tuple[int, ...], parts: int) -> _Part:
    """Describe one of `parts` tensors of theirs from the shape of ours."""
    if ours == "patch.weight":
        return _Part(name, (shape[1], 3, vit.patch, vit.patch), True)
    # Torch's kernels are (out, in); an embedding and OpenAI's projection are as ours.
    transposed = len(shape) == 2 and name.endswith("weight") and ours != "positions"
    shape = shape[::-1] if transposed else shape
    return _Part(name, (shape[0] // parts, *shape[1:]), transposed)


def _check_names(
    places: Mapping[str, _Place], layout: TensorNames, tensors: Mapping[str, np.ndarray]
) -> None:
    """Raise UserError unless every tensor has its place and its shape."""
    expected = {
        part.name: part.shape
        for place in places.values()
        for parts in place.blocks
        for part in parts
    }
    wrong = {
        "missing": [name for name in expected if name not in tensors],
        "left over": [
            name for name in tensors if name not in expected and not name.startswith(layout.ignored)
        ],
        "of another shape": [
            f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in tensors and _squeezed(tensors[name].shape, len(shape)) != shape
        ],
    }
    if any(wrong.values()):
        said = [
            f"{kind}: {', '.join(repr(name[:100]) for name in names[:SHOWN])}"
            + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
            for kind, names in wrong.items()
            if names
        ]
        remedy = (
            "; for a network with registers name dinov2_vitb14_reg or dinov2_vitl14_reg"
            if layout.names.get("registers") in wrong["left over"]
            else ""
        )
        raise UserError(
            f"the file is another network of {layout.publisher}; {'; '.join(said)}{remedy}"
        )


def _squeezed(shape: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Drop leading axes of length 1, such as that of a batch, down to `ndim` axes."""
    while len(shape) > ndim and shape[0] == 1:
        shape = shape[1:]
    return shape


def _ours(
    parts: list[_Part], shape: tuple[int, ...], tensors: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Join the tensors of one parameter, in our order of axes."""
    arrays = []
    for name, theirs, _ in parts:
        if tensors[name].dtype.kind not in "fV":
            raise UserError(
                f"the tensor {name:.100} is of type {tensors[name].dtype}; weights must be "
                "floating-point numbers"
            )
        with np.errstate(over="ignore"):  # what overflows is refused by the next line
            arrays.append(tensors[name].reshape(theirs).astype(np.float32))
        if not np.isfinite(arrays[-1]).all():
            raise UserError(f"the tensor {name:.100} has values that are not finite")
    joined = np.concatenate(arrays)
    if not parts[0].transposed:
        return joined.reshape(shape)
    return np.ascontiguousarray(
        joined.T if joined.ndim == 2 else joined.transpose(2, 3, 1, 0)
    ).reshape(shape)
