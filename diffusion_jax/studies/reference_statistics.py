"""Reference statistics of a data set, which experiments.evaluate compares samples with."""

from __future__ import annotations

from ml_collections import ConfigDict

from diffusion_jax.assembly import outputs
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.core.errors import UserError, printable, unknown
from diffusion_jax.evaluation import choice, hearing
from diffusion_jax.evaluation import statistics as reference


def statistics(
    config: ConfigDict,
    *,
    out: str,
    workdir: str | None = None,
    features: str = "",
    split: str = "train",
    num: int = 0,
) -> None:
    """Compute the mean and the covariance of the features of a data set, and write them to a file.

    Args:
      config: the config whose data are described.
      out: the .npz file to write.
      workdir: the folder of the run with this config, if there is one.
      features: the feature extractor; '' takes pixels or the classifier.
      split: 'train' or 'test'.
      num: how many images, from the first; 0 takes all.

    Raises:
      UserError: for points, and for an unknown split or extractor.
    """
    if split not in ("train", "test"):
        raise unknown("split", split, ("train", "test"))
    path = outputs.named("out", out, ".npz")[".npz"]
    dataset = workdirs.images(config, workdir)
    if len(dataset.image_shape) != 3:
        raise UserError(
            f"data.name={config.data.name} has samples {tuple(dataset.image_shape)}; statistics "
            "are of images, (H, W, C)"
        )
    extractor = choice.extractor_for(
        features or choice.default_features(dataset.train), dataset.train
    )
    found = reference.compute(
        extractor,
        hearing.as_judged(getattr(dataset, split)),
        dataset.name,
        split,
        num or None,
        partial=f"{path}.partial.npz",
    )
    reference.save(path, found)
    print(f"{path}: " + printable(", ".join(f"{key} {value}" for key, value in found.of.items())))
    print(f"to compare with it: python -m experiments.evaluate --workdir=MODEL --reference={path}")
