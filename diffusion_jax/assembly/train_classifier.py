"""Training of noise-conditional classifiers for classifier guidance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.assembly import denoiser, workdir
from diffusion_jax.assembly.components import network
from diffusion_jax.assembly.train import train
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import arrays, files, provenance, streams
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Key, Params
from diffusion_jax.data.sources import Source
from diffusion_jax.processes import gaussian
from diffusion_jax.report import tables

LEVELS = range(-12, 13, 3)  # log-SNR

COLUMNS = {
    "logsnr": "log-SNR",
    "sigma / alpha": "σ / α",
    "accuracy": "accuracy",
    "nats": "-log p(label) (nats)",
}


def classifier_config(config: ConfigDict, pool: str) -> ConfigDict:
    """The config of a classifier of noised images: a HalfUNet with the options of the U-Net.

    Args:
      config: the config of diffusion with a U-Net.
      pool: how the HalfUNet pools, 'attention' or 'mean'.

    Raises:
      UserError: for an unconditional config.
    """
    if not config.conditional:
        raise UserError("config.conditional=False leaves nothing to classify; set it to True")
    known = network("classifier.HalfUNet")
    shared = {key: value for key, value in config.model.items() if key in known and key != "name"}
    config.unlock()
    config.model = network("classifier.HalfUNet", **shared | {"pool": pool})
    config.sampler.guide = "cfg()"
    return config.lock()


def _accuracy_by_level(
    trained: Trained, test: Source, batch_size: int, repeats: int = 3
) -> list[dict[str, float]]:
    """The accuracy of a classifier at several noise levels.

    Args:
      trained: the classifier.
      test: the held-out split.
      batch_size: images that are classified at a time.
      repeats: times that the split is noised. An image has the same noise at all levels.

    Returns:
      Rows {'logsnr', 'sigma / alpha', 'accuracy', 'nats'}.
    """
    process = trained.experiment.process
    ends = (process.t_max, process.t_min)
    low, high = (float(gaussian.logsnr(process, jnp.float32(t))) for t in ends)

    @jax.jit
    def score(
        params: Params, images: Array, labels: Array, keys: Key, t: Array
    ) -> tuple[Array, Array]:
        times = jnp.broadcast_to(t, labels.shape)
        noised = gaussian.corrupt(process, images, arrays.noise(keys, images), times)
        logits = denoiser.logits(trained.experiment, params)(noised.x_t, noised.t)
        log_p = jax.nn.log_softmax(logits)
        nats = -jnp.take_along_axis(log_p, labels[:, None], 1)[:, 0]
        return jnp.argmax(log_p, 1) == labels, nats

    found, rows = data.arrays(test), []
    images, labels = data.transforms.to_float(found["image"]), found["label"].astype(np.int32)
    # whole batches: one program
    count = -(-len(labels) * repeats // batch_size) * batch_size
    index = (np.arange(count) % len(labels)).reshape(-1, batch_size)
    for level in [level for level in LEVELS if low <= level <= high]:
        t, parts = gaussian.time_of_logsnr(process, jnp.float32(level)), []
        for number, batch in enumerate(index):
            keys = arrays.example_keys(jax.random.key(0), batch_size, number * batch_size)
            keys = arrays.fold_in(keys, streams.EXAMPLE_OBJECTIVE)
            parts.append(score(trained.params, images[batch], labels[batch], keys, t))
        right, nats = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        row = {"logsnr": level, "sigma / alpha": float(np.exp(-level / 2))}
        rows.append(row | {"accuracy": float(right.mean()), "nats": float(nats.mean())})
    return rows


def train_classifier(config: ConfigDict, path: str, pool: str = "attention") -> str | None:
    """Train a classifier, measure it and write classifier.md and classifier.json.

    Args:
      config: the config of diffusion with a U-Net.
      path: the workdir.
      pool: see `classifier_config`.

    Returns:
      The text of classifier.md; None if a signal stopped the training.

    Raises:
      UserError: for data without labels.
    """
    config = classifier_config(config, pool)
    dataset = workdir.dataset(config, path, resumes=True)
    if not dataset.num_classes:
        raise UserError(f"data.name={dataset.name} has no labels: there is nothing to classify")
    if not train(config, path, dataset=dataset):
        return None
    trained, root = workdir.load(path, config), Path(path)
    rows = _accuracy_by_level(trained, dataset.test, min(256, len(dataset.test)))
    title = f"Held-out accuracy of {root.name} at step {trained.step}, by noise level"
    text = f"# {title}\n\n{tables.markdown_table(rows, COLUMNS)}"
    files.save_text(root / "classifier.md", text)
    experiment = trained.experiment
    about: dict[str, Any] = {
        "rows": rows,
        "step": trained.step,
        "weights": trained.weights,
        "provenance": provenance.provenance(experiment.record, experiment.seed),
    }
    files.save_json(root / "classifier.json", about)
    return text
