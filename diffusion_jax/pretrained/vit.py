"""Vision transformers (Dosovitskiy et al. 2021) whose class token is a feature: DINOv2 and CLIP.

One forward pass serves both families:

    x = [class; patches] + positions         (CLIP: then a LayerNorm)
    x = x + scale1 * attention(norm1(x))     (DINOv2 scales its branches, CLIP does not)
    x = x + scale2 * mlp(norm2(x))           (DINOv2: GELU, CLIP: x sigmoid(1.702 x))
    features = norm(x[class])                (CLIP: then a projection, and unit length)

DINOv2 with registers (Darcet et al. 2024) has further tokens, [class; registers; patches], which
have no positions and give no features. Positions that were trained on another grid of patches than
that of the images are interpolated as DINOv2's authors do. vit_files.py converts the published
files.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.types import Array
from diffusion_jax.pretrained import resizing

MLP = 4  # the width of the MLP's hidden layer, in widths of the network
HIGHEST = jax.lax.Precision.HIGHEST

# by the names of `shapes`; the tensors 'blocks.*' are those of all blocks, (depth, ...)
Params = dict[str, Array]


class Vit(NamedTuple):
    """A vision transformer, with the preprocessing of its images.

    Attributes:
      width: the width of a token.
      depth: the number of blocks.
      heads: the number of heads of each attention.
      size: height and width of the images that it is given, in pixels.
      trained_size: those of the images that its positions were trained on.
      mean: of the channels, which is subtracted from values in [0, 1].
      std: of the channels, by which they are divided.
      patch: height and width of a patch, in pixels.
      eps: of the LayerNorms.
      clip: whether it is a CLIP, else a DINOv2.
      projection: the width of a CLIP's embedding.
      registers: the number of register tokens of a DINOv2.
    """

    width: int
    depth: int
    heads: int
    size: int
    trained_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch: int = 14
    eps: float = 1e-6
    clip: bool = False
    projection: int = 0
    registers: int = 0


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

DINOV2_B = Vit(768, 12, 12, 224, 518, *_IMAGENET)
DINOV2_L = Vit(1024, 24, 16, 224, 518, *_IMAGENET)
DINOV2_B_REG, DINOV2_L_REG = DINOV2_B._replace(registers=4), DINOV2_L._replace(registers=4)
CLIP_L_336 = Vit(1024, 24, 16, 336, 336, *_CLIP, eps=1e-5, clip=True, projection=768)


def resize(vit: Vit) -> str:
    """Say how images are resized for a network.

    Args:
      vit: the network.
    """
    crop = "the center square, " if vit.clip else ""
    return f"{crop}{vit.size}, bicubic, antialiased, of 8-bit pixels (Pillow)"


def shapes(vit: Vit) -> dict[str, tuple[int, ...]]:
    """List the parameters of a network.

    Args:
      vit: the network.

    Returns:
      {name: shape}. Kernels are (in, out); that of the patches is (patch patch 3, width), with the
      axes of a patch in the order height, width, channel. The shapes of 'blocks.*' begin with the
      depth.
    """
    width, grid = vit.width, vit.trained_size // vit.patch
    kernels = {
        "qkv": (width, 3 * width),
        "out": (width, width),
        "fc1": (width, MLP * width),
        "fc2": (MLP * width, width),
    }
    block = {f"{name}.weight": shape for name, shape in kernels.items()}
    block |= {f"{name}.bias": shape[1:] for name, shape in kernels.items()}
    block |= {f"{n}.{p}": (width,) for n in ("norm1", "norm2") for p in ("weight", "bias")}
    found = {
        "class": (width,),
        "positions": (1 + grid * grid, width),
        "patch.weight": (vit.patch * vit.patch * 3, width),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    if vit.clip:
        found |= {"pre_norm.weight": (width,), "pre_norm.bias": (width,)}
        found["projection"] = (width, vit.projection)
    else:
        found["patch.bias"] = (width,)
        found |= {"registers": (vit.registers, width)} if vit.registers else {}
        block |= {"scale1": (width,), "scale2": (width,)}
    return found | {f"blocks.{name}": (vit.depth, *shape) for name, shape in block.items()}


@functools.partial(jax.jit, static_argnums=0)
def forward(vit: Vit, images: Array, params: Params) -> tuple[Array, None]:
    """Compute the features of images of any size.

    DINOv2 (as Stein et al. 2023 use it) sees the whole image, resized to a square; CLIP (as
    Jayasumana et al. 2024 use it) the center square.

    Args:
      vit: the network.
      images: uint8 (B, H, W, 3).
      params: the parameters, as `shapes` lists them.

    Returns:
      (features (B, D) in float32, None): there are no logits. D is the width of a DINOv2 and the
      projection of a CLIP, whose features have length 1.
    """
    images = resizing.center_square(images) if vit.clip else images
    x = resizing.bicubic(images, vit.size).astype(jnp.float32) / 255
    return network(vit, (x - np.float32(vit.mean)) / np.float32(vit.std), params), None


@functools.partial(jax.jit, static_argnums=0)
def patch_features(vit: Vit, images: Array, params: Params) -> Array:
    """Compute the features of each patch of images of any size, such as for REPA.

    Args:
      vit: a DINOv2. Its size, a multiple of its patch, decides how many patches there are.
      images: uint8 (B, H, W, 3), which are resized to a square.
      params: the parameters, as `shapes` lists them.

    Returns:
      (B, (size / patch)^2, D) float32, normalized, in the order of rows.
    """
    x = resizing.bicubic(images, vit.size).astype(jnp.float32) / 255
    x = _states(vit, (x - np.float32(vit.mean)) / np.float32(vit.std), params)
    return _norm(vit, x[:, 1 + vit.registers :], params, "norm")


def network(vit: Vit, x: Array, params: Params) -> Array:
    """Compute the features of normalized images.

    Args:
      vit: the network.
      x: (B, H, W, 3), whose height and width are multiples of the patch.
      params: the parameters, as `shapes` lists them.

    Returns:
      (B, D).
    """
    x = _norm(vit, _states(vit, x, params)[:, 0], params, "norm")
    if not vit.clip:
        return x
    x = _matmul(x, params["projection"])
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _states(vit: Vit, x: Array, params: Params) -> Array:
    """The tokens after the last block: class, registers and patches, (B, 1 + R + T, D)."""
    count, height, width, channels = x.shape
    grid = (height // vit.patch, width // vit.patch)
    x = x.reshape(count, grid[0], vit.patch, grid[1], vit.patch, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(count, grid[0] * grid[1], -1)
    x = _matmul(x, params["patch.weight"]) + (0 if vit.clip else params["patch.bias"])
    first = jnp.broadcast_to(params["class"], (count, 1, vit.width))
    x = jnp.concatenate([first, x], 1) + _positions(vit, params["positions"], grid)
    if vit.registers:
        registers = jnp.broadcast_to(params["registers"], (count, vit.registers, vit.width))
        x = jnp.concatenate([x[:, :1], registers, x[:, 1:]], 1)
    if vit.clip:
        x = _norm(vit, x, params, "pre_norm")
    prefix = "blocks."
    blocks = {n.removeprefix(prefix): p for n, p in params.items() if n.startswith(prefix)}
    return jax.lax.scan(lambda x, block: (_block(vit, x, block), None), x, blocks)[0]


def _block(vit: Vit, x: Array, params: Params) -> Array:
    y = _dense(_norm(vit, x, params, "norm1"), params, "qkv")
    y = _dense(_attention(y, vit.heads), params, "out")
    x = x + y * params.get("scale1", 1)
    y = _dense(_norm(vit, x, params, "norm2"), params, "fc1")
    y = y * jax.nn.sigmoid(1.702 * y) if vit.clip else jax.nn.gelu(y, approximate=False)
    return x + _dense(y, params, "fc2") * params.get("scale2", 1)


def _attention(qkv: Array, heads: int) -> Array:
    """Attention of (B, T, 3 D): q, k and v side by side, each by head."""
    count, tokens, width = qkv.shape
    split = qkv.reshape(count, tokens, 3, heads, width // 3 // heads)
    q, k, v = split.transpose(2, 0, 3, 1, 4)  # (B, heads, T, D / heads)
    scores = jnp.einsum("bhtd,bhsd->bhts", q * q.shape[-1] ** -0.5, k, precision=HIGHEST)
    scores = jnp.exp(scores - jnp.max(scores, -1, keepdims=True))
    y = jnp.einsum("bhts,bhsd->bhtd", scores, v, precision=HIGHEST)
    y = y / jnp.sum(scores, -1, keepdims=True)
    return y.transpose(0, 2, 1, 3).reshape(count, tokens, width // 3)


def _positions(vit: Vit, positions: Array, grid: tuple[int, int]) -> Array:
    """Return the positions (1 + H W, D) of a grid of patches from those of the trained square.

    With registers, the authors interpolate with antialiasing and to the exact size.
    """
    interpolation = resizing.weights if vit.registers else _torch_bicubic
    side = round((len(positions) - 1) ** 0.5)
    if grid == (side, side):
        return positions
    rows, columns = (np.float32(interpolation(side, size)) for size in grid)
    square = positions[1:].reshape(side, side, -1)
    patches = jnp.einsum("ph,hwc,qw->pqc", rows, square, columns, precision=HIGHEST)
    return jnp.concatenate([positions[:1], patches.reshape(-1, positions.shape[1])])


def _torch_bicubic(size: int, target: int) -> np.ndarray:
    """Return the weights (target, size) of torch's bicubic interpolation, as DINOv2 calls it.

    The kernel is Keys' with a = -3/4 and is not widened where the grid shrinks; the scale is
    size / (target + 0.1), as the authors pass a factor that is a little too large.
    """
    position = (np.arange(target) + 0.5) * (size / (target + 0.1)) - 0.5
    first = np.floor(position).astype(int)
    part, a = position - first, -0.75
    found = np.zeros((target, size), np.float32)
    for tap in range(-1, 3):
        x = np.abs(part - tap)
        near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((x - 5) * x + 8) * a * x - 4 * a
        source = np.clip(first + tap, 0, size - 1)
        np.add.at(found, (np.arange(target), source), np.where(x <= 1, near, far))
    return found


def _norm(vit: Vit, x: Array, params: Params, name: str) -> Array:
    x = x - jnp.mean(x, -1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + vit.eps)
    return x * params[f"{name}.weight"] + params[f"{name}.bias"]


def _dense(x: Array, params: Params, name: str) -> Array:
    return _matmul(x, params[f"{name}.weight"]) + params[f"{name}.bias"]


def _matmul(x: Array, kernel: Array) -> Array:
    return jnp.matmul(x, kernel, precision=HIGHEST)
