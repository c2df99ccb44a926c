"""The figures of a comparison of families: one for each row of the textbook's table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax import data
from diffusion_jax.evaluation.metrics import find
from diffusion_jax.report import families, pictures, sweeps
from diffusion_jax.studies.families.claims import BETAS, Scored
from diffusion_jax.studies.families.measures import RECONSTRUCTED
from diffusion_jax.studies.families.tasks import FamilyResult
from diffusion_jax.training import metrics

SAMPLES = 20  # images in a strip
FEW = 10  # pairs of a sample and its nearest training image
PROBED = ("vae", "vae_beta_high", "vae_powerful", "vae_collapsed")  # their units are traversed
SHOWN = ("vae", "vae_powerful", "ddpm", "edm", "flow", "latent")  # in the figure of blur
NEAREST = ("vae", "ddpm", "flow", "edm", "latent")
COMPARED = ("vae", "vae_logistic", "vae_powerful", "ddpm", "flow", "edm", "latent")
# variants, and processes that are close to others: left out where names would overlap
VARIED = (*(set(BETAS) - {"vae"}), "vae_free_bits", "vae_collapsed", "ve", "sub-vp")
CURVES = ("frechet", "accuracy", "laplacian")


class Material(NamedTuple):
    """What the figures are drawn from.

    Attributes:
      results: the finished runs.
      scored: the scores of each family over its seeds.
      dataset: the images.
      real: the scores of real test images.
      features: what the scores depend on.
      root: the folder of the runs.
    """

    results: Sequence[FamilyResult]
    scored: Mapping[str, Scored]
    dataset: data.Dataset
    real: Mapping[str, Any]
    features: str
    root: Path

    def first(self, name: str) -> FamilyResult | None:
        """The result of the first seed of a family; None where there is none.

        Args:
          name: the family.
        """
        return next((result for result in self.results if result.task.name == name), None)

    def some(self, names: Sequence[str]) -> list[FamilyResult]:
        """The results of the first seed of those families that there are.

        Args:
          names: the families.
        """
        return [found for name in names if (found := self.first(name)) is not None]

    @property
    def names(self) -> list[str]:
        """All families that have a result, in order."""
        return list(dict.fromkeys(result.task.name for result in self.results))


Draw = Callable[[Material, Path], bool]  # writes the file, or returns False where it has no data


def _samples(material: Material, path: Path) -> bool:
    test = data.arrays(material.dataset.test, SAMPLES)["image"]
    shown = {"real test images": test} | {
        result.task.name: result.pictures["images"][:SAMPLES]
        for result in material.some(material.names)
    }
    _strips(shown, path, "The first samples of every family")
    return True


def _blur(material: Material, path: Path) -> bool:
    """A few families, large."""
    test = data.arrays(material.dataset.test, FEW)["image"]
    found = material.some(SHOWN)
    shown = {"real test images": test} | {
        result.task.name: result.pictures["images"][:FEW] for result in found
    }
    captions = {
        result.task.name: f"{find('laplacian').title}: {result.row['laplacian']:.2f}"
        for result in found
    }
    _strips(shown, path, "Blur: samples as they are drawn", captions)
    return bool(found)


def _strips(
    shown: Mapping[str, np.ndarray],
    path: Path,
    title: str,
    captions: Mapping[str, str] | None = None,
) -> None:
    scale = max(1, round(56 / next(iter(shown.values())).shape[1]))
    tiles = {(name, 0): pictures.mosaic(images, 1, scale=scale) for name, images in shown.items()}
    texts = {(name, 0): text for name, text in (captions or {}).items()}
    pictures.strips(tiles, path, captions=texts, columns={0: ""}, title=title)


def _quality(material: Material, path: Path) -> bool:
    names = [name for name in COMPARED if material.first(name)]
    names = names or material.names
    curves = {result.task.name: result.curve for result in material.some(names)}
    families.training_curves(
        curves,
        CURVES,
        path,
        features=material.features,
        reference=material.real,
        title="Quality against training time, the same images seen",
    )
    return True


def _decoders(material: Material, path: Path) -> bool:
    names = ("vae", "vae_logistic", "vae_powerful", "vae_free_bits", "vae_collapsed")
    found = [result for result in material.some(names) if "reconstructions" in result.pictures]
    if not found:
        return False
    test = data.arrays(material.dataset.test, RECONSTRUCTED)["image"]
    shown = {"test images": test}
    for result in found:
        shown[f"{result.task.name}: decoded again"] = result.pictures["reconstructions"]
        shown[f"{result.task.name}: samples"] = result.pictures["images"][:RECONSTRUCTED]
    _strips(shown, path, "The decoder decides: reconstructions from the code, and samples")
    return True


def _collapse(material: Material, path: Path) -> bool:
    found = {
        result.task.name: result.pictures
        for result in material.some(PROBED)
        if "rates" in result.pictures
    }
    if found:
        title = "Posterior collapse: the rate of each unit, and what a unit changes"
        families.collapse(found, path, title=title)
    return bool(found)


def _tradeoff(material: Material, path: Path) -> bool:
    keys = ("rate", "distortion", "active_units", "frechet")

    def row(name: str) -> dict[str, Any]:
        shown = f"β = {BETAS[name]:g}" if name in BETAS else name
        return {"name": shown} | {key: material.scored[name][key][0] for key in keys}

    betas = [name for name in BETAS if name in material.scored]
    others = ("vae_logistic", "vae_powerful", "vae_free_bits", "vae_collapsed")
    if len(betas) > 1:
        marked = [row(name) for name in others if name in material.scored]
        title = "What beta trades: the rate-distortion curve on test images"
        families.rate_distortion([row(name) for name in betas], marked, path, title=title)
    return len(betas) > 1


def _diversity(material: Material, path: Path) -> bool:
    """Images of one class: a model that covers little draws the same one again and again."""
    classes = material.dataset.num_classes
    if not classes:
        return False
    label = classes // 2
    test = data.arrays(material.dataset.test)
    shown = {"real test images": test["image"][test["label"] == label][:SAMPLES]}
    captions = {"real test images": _said(material.real, material)}
    for result in material.some(material.names):
        images = result.pictures["images"]
        shown[result.task.name] = images[label::classes][:SAMPLES]
        captions[result.task.name] = _said(result.row, material)
    _strips(shown, path, "Diversity: one class", captions)
    return True


def _said(row: Mapping[str, Any], material: Material) -> str:
    return ", ".join(
        f"{key} {find(key, material.features).text(row[key])}"
        for key in ("precision", "recall")
        if key in row
    )


def _nearest(material: Material, path: Path) -> bool:
    train = data.arrays(material.dataset.train)["image"]
    shown: dict[str, np.ndarray] = {}
    for result in material.some(NEAREST):
        images = result.pictures["images"][:FEW]
        shown[f"{result.task.name}: samples"] = images
        shown[f"{result.task.name}: nearest in training"] = train[nearest(images, train)]
    if shown:
        _strips(shown, path, "Memorization: samples above their nearest training images (pixels)")
    return bool(shown)


def nearest(images: np.ndarray, train: np.ndarray, block: int = 4096) -> np.ndarray:
    """The training image at the smallest squared distance in pixels.

    Args:
      images: uint8 (N, H, W, C).
      train: uint8 (M, H, W, C).
      block: training images that are compared at a time.

    Returns:
      The indices, (N,).
    """
    a = images.reshape(len(images), -1).astype(np.float32)
    parts = []
    for start in range(0, len(train), block):
        b = train[start : start + block].reshape(-1, a.shape[1]).astype(np.float32)
        parts.append((b * b).sum(1) - 2 * a @ b.T)
    return np.concatenate(parts, axis=1).argmin(1)


def _stability(material: Material, path: Path) -> bool:
    runs = {name: [r for r in material.results if r.task.name == name] for name in material.names}
    runs = {name: found for name, found in runs.items() if len(found) > 1}
    if not runs:
        return False

    def losses(result: FamilyResult) -> list[dict[str, Any]]:
        return metrics.read_rows(material.root / result.task.folder / "metrics.jsonl")

    families.stability(
        {name: [losses(result) for result in found] for name, found in runs.items()},
        {name: [result.row["frechet"] for result in found] for name, found in runs.items()},
        path,
        features=material.features,
        title="Stability: the same family from several seeds",
    )
    return True


def _speed(material: Material, path: Path) -> bool:
    keys = ("milliseconds", "evaluations", "frechet")
    rows = [
        {"name": name} | {key: scores[key][0] for key in keys}
        for name, scores in material.scored.items()
        if name not in VARIED
    ]
    families.cost_of_quality(
        rows,
        path,
        features=material.features,
        reference=material.real.get("frechet"),
        title="What an image costs, and how good it is",
    )
    return True


def _likelihood(material: Material, path: Path) -> bool:
    scored = {name: own for name, own in material.scored.items() if "bits" in own}
    if scored:
        sweeps.bars(
            scored,
            ("bits",),
            path,
            features=material.features,
            title="Likelihood of test images (bound)",
        )
    return bool(scored)


FIGURES: dict[str, tuple[str, Draw]] = {
    # name: (what it shows, what draws it)
    "blur": ("Blur", _blur),
    "samples": ("The first samples of every family", _samples),
    "quality": ("Quality against training time", _quality),
    "decoders": ("A weak and a powerful decoder", _decoders),
    "collapse": ("Posterior collapse", _collapse),
    "tradeoff": ("Rate and distortion over beta", _tradeoff),
    "diversity": ("Diversity: samples of one class", _diversity),
    "nearest": ("Memorization: the nearest training images", _nearest),
    "stability": ("Stability over seeds", _stability),
    "speed": ("Sampling speed and quality", _speed),
    "likelihood": ("Likelihood", _likelihood),
}


def draw(material: Material, stem: Path) -> dict[str, Path]:
    """Write the figures that the results allow, as STEM_NAME.png.

    Args:
      material: the results.
      stem: the beginning of the paths.

    Returns:
      The files by the names of FIGURES, in order.
    """
    files = {}
    for name, (_, write) in FIGURES.items():
        path = stem.with_name(f"{stem.name}_{name}.png")
        if write(material, path):
            files[name] = path
    return files
