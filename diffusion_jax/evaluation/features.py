"""Feature extractors: images uint8 (N, H, W, C) -> features (N, D), and logits where there are any.

`extractor(name)` makes one: values (of arrays that are not images of 8 bits); pixels; thumbnails
(pixels of a reduced image); classifier (trained
here on the labels of the data set); inception, with which the Fréchet distance is FID;
inception_spatial (sFID); efficientnet_lite0; dinov2_vitb14 and dinov2_vitl14 (FD-DINOv2), also with
registers (dinov2_vitl14_reg); clip_vitl14_336 (CMMD). `default` names the features of a command
whose user did not choose: never more than WIDEST numbers an image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.data import transforms
from diffusion_jax.evaluation import classifier, rows
from diffusion_jax.pretrained import efficientnet, inception, vit, weights

Features = Callable[[np.ndarray], np.ndarray]
# numbers an image, by default: the root of a wider covariance is slow and needs many images
WIDEST = 1000


class Outputs(NamedTuple):
    """The outputs of an extractor for images.

    Attributes:
      features: (N, D), float32.
      logits: (N, K), float32; None where the extractor is not a classifier.
    """

    features: np.ndarray
    logits: np.ndarray | None = None


class Extractor(NamedTuple):
    """A feature extractor.

    Attributes:
      name: the name on the command line.
      digest: changes with the weights and the preprocessing; features of different digests are
        never compared.
      resize: how images are resized for the network, in words.
      outputs: (images, describe='') -> Outputs; `describe` names the progress that is shown.
      classes: the width of the logits where they are the classes of the data set at hand; else 0.
      logits: whether the outputs have logits.
    """

    name: str
    digest: str
    resize: str
    outputs: Callable[..., Outputs]
    classes: int = 0
    logits: bool = False

    def features(self, images: np.ndarray) -> np.ndarray:
        """Return the features of images without their logits.

        Args:
          images: uint8 (N, H, W, C).

        Returns:
          (N, D), float32.
        """
        return self.outputs(images).features


def values(samples: np.ndarray) -> np.ndarray:
    """Return the normalized numbers of samples, averaged over boxes if there are too many.

    Args:
      samples: float32 (N, N_1, ..., N_d, C).

    Returns:
      (N, D), float32, with at most WIDEST numbers for each sample (of vectors all).
    """
    x, k = np.asarray(samples, np.float32), 1
    sizes = x.shape[1:-1]
    while np.prod([-(-size // k) for size in sizes], dtype=int) * x.shape[-1] > WIDEST and sizes:
        if k >= max(sizes):
            break
        k += 1
    for axis, size in enumerate(sizes, 1):
        edges = np.arange(0, size, k)
        counts = np.diff(np.append(edges, size)).astype(np.float32)
        means = np.add.reduceat(x, edges, axis=axis) if k > 1 else x
        x = means / counts.reshape(-1, *(1,) * (x.ndim - axis - 1))
    return x.reshape(len(x), -1)


def pixels(images: np.ndarray) -> np.ndarray:
    """Return the values of the images in [0, 1], for small, aligned images.

    Args:
      images: uint8 (N, H, W, C).

    Returns:
      (N, H W C), float32.
    """
    return transforms.to_unit(images.reshape(len(images), -1))


def default(
    shape: tuple[int, ...], labeled: bool, *, installed: bool = False, images: bool = True
) -> str:
    """Choose the features of samples where the user does not.

    Args:
      shape: (H, W, C) of the images, or (N_1, ..., N_d, C).
      labeled: whether there are labels of two classes or more, from which a classifier can learn.
      installed: whether the weights of Inception are on this machine.
      images: whether the samples are images of 8 bits.

    Returns:
      'values' for what is not images; 'pixels' where they are at most WIDEST numbers; else
      'inception' above 32x32 if its weights are installed; else 'classifier', or 'thumbnails'
      without labels.
    """
    if not images:
        return "values"
    if np.prod(shape) <= WIDEST:
        return "pixels"
    if installed and is_large(shape) and shape[-1] in (1, 3):
        return "inception"
    return "classifier" if labeled else "thumbnails"


def is_large(shape: tuple[int, ...]) -> bool:
    """Return whether images (H, W, C) are above 32x32, where the field compares them by FID.

    Args:
      shape: (H, W, C) of the images.
    """
    return max(shape[:2]) > 32 and np.prod(shape) > WIDEST


def reduced(images: np.ndarray) -> np.ndarray:
    """Average images over the smallest k x k boxes that leave at most WIDEST numbers.

    Args:
      images: uint8 (N, H, W, C).

    Returns:
      float32 in [0, 1].
    """
    height, width, channels = images.shape[1:]
    k = 1
    while -(-height // k) * -(-width // k) * channels > WIDEST:
        k += 1
    edges = [np.arange(0, size, k) for size in (height, width)]
    sums = np.add.reduceat(
        np.add.reduceat(images, edges[0], axis=1, dtype=np.float32), edges[1], axis=2
    )
    counts = [np.diff(np.append(edge, size)) for edge, size in zip(edges, (height, width))]
    return sums / np.float32(255) / (counts[0][:, None] * counts[1])[..., None].astype(np.float32)


def extractor(
    name: str, images: np.ndarray | None = None, labels: np.ndarray | None = None
) -> Extractor:
    """Make the extractor of a name.

    Args:
      name: one of EXTRACTORS.
      images: the training images, to which the classifier is fitted.
      labels: their labels.

    Raises:
      UserError: for an unknown name, for weights that are not there (it names the command that
        downloads them), and for a classifier of images without labels.
    """
    if name not in EXTRACTORS:
        raise unknown("features", name, EXTRACTORS)
    return EXTRACTORS[name](images, labels)


def _values(images: np.ndarray | None, labels: np.ndarray | None) -> Extractor:
    resize = f"means over boxes, to at most {WIDEST} numbers"
    return Extractor("values", "values-1", resize, lambda x, describe="": Outputs(values(x)))


def _pixels(images: np.ndarray | None, labels: np.ndarray | None) -> Extractor:
    return Extractor(
        "pixels", "pixels-1", "none", lambda images, describe="": Outputs(pixels(images))
    )


def _thumbnails(images: np.ndarray | None, labels: np.ndarray | None) -> Extractor:
    def outputs(images: np.ndarray, describe: str = "") -> Outputs:
        return Outputs(reduced(images).reshape(len(images), -1))

    return Extractor(
        "thumbnails", "thumbnails-1", f"means over boxes, to at most {WIDEST} numbers", outputs
    )


def _classifier(images: np.ndarray | None, labels: np.ndarray | None) -> Extractor:
    if images is None or labels is None:
        raise UserError(
            "features=classifier needs a data set with labels; use pixels, inception or "
            "efficientnet_lite0"
        )
    trained = classifier.fit(images, labels)
    outputs = functools.partial(_network, classifier.forward, trained.params, 512, images.shape[-1])
    return Extractor(
        "classifier",
        f"classifier-{trained.digest}",
        classifier.RESIZE,
        outputs,
        trained.classes,
        logits=True,
    )


class _Published(NamedTuple):
    """A network with published weights: how it runs, and `batch` images at a time."""

    weights: str  # their name
    forward: Callable[..., Any]
    resize: str
    batch: int
    logits: bool = False


def _published(
    name: str, network: _Published, images: np.ndarray | None, labels: np.ndarray | None
) -> Extractor:
    params = weights.load(network.weights)
    digest = f"{name}-{weights.digest(network.weights, params)}"
    outputs = functools.partial(_network, network.forward, params, network.batch, 3)
    return Extractor(name, digest, network.resize, outputs, logits=network.logits)


def _transformer(name: str, images: np.ndarray | None, labels: np.ndarray | None) -> Extractor:
    network = weights.FILES[name].vit
    forward = functools.partial(vit.forward, network)
    return _published(name, _Published(name, forward, vit.resize(network), 16), images, labels)


PUBLISHED = {
    "inception": _Published("inception", inception.forward, inception.RESIZE, 32),
    "inception_spatial": _Published("inception", inception.spatial, inception.RESIZE, 32),
    "efficientnet_lite0": _Published(
        "efficientnet_lite0", efficientnet.forward, efficientnet.RESIZE, 64, logits=True
    ),
}

EXTRACTORS = {
    "values": _values,
    "pixels": _pixels,
    "thumbnails": _thumbnails,
    "classifier": _classifier,
    **{name: functools.partial(_published, name, network) for name, network in PUBLISHED.items()},
    **{name: functools.partial(_transformer, name) for name in weights.FILES},
}


def _network(
    forward: Callable[..., Any],
    params: Any,
    batch: int,
    channels: int,
    images: np.ndarray,
    describe: str = "",
) -> Outputs:
    """Run a network in batches spread over the devices; gray images are repeated to RGB."""
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, channels):
        raise UserError(
            f"features need uint8 images (N, H, W, {channels}); got {images.dtype} {images.shape}"
        )
    images = np.broadcast_to(images, (*images.shape[:-1], channels))
    return Outputs(
        *rows.over_rows(forward, images, params, block=batch * rows.devices(), describe=describe)
    )
