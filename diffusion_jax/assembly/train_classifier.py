"""Training of noise-conditional classifiers for classifier guidance."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import arrays, data, files, provenance, streams
from diffusion_jax.assembly import denoiser
from diffusion_jax.assembly import workdir as folder
from diffusion_jax.assembly.components import network
from diffusion_jax.assembly.train import train
from diffusion_jax.errors import UserError
from diffusion_jax.processes import gaussian
from diffusion_jax.report import tables

LEVELS = range(-12, 13, 3)  # log-SNR


def classifier_config(config, pool: str):
    """The config with config.model a HalfUNet with the options of its U-Net. UserError where there
    is nothing to classify.
    """
    if not config.conditional:
        raise UserError("config.conditional=False leaves nothing to classify; set it to True")
    known = network("classifier.HalfUNet")
    shared = {key: value for key, value in config.model.items() if key in known and key != "name"}
    config.unlock()
    config.model = network("classifier.HalfUNet", **shared | {"pool": pool})
    config.sampler.guide = "cfg()"
    return config.lock()


def accuracy_by_level(trained, test, batch_size: int, repeats: int = 3) -> list[dict]:
    """Rows {'logsnr', 'sigma / alpha', 'accuracy', 'nats'} on the split `test`; an image has the
    same noise at all levels.
    """
    process = trained.experiment.process
    low, high = (
        float(gaussian.logsnr(process, jnp.float32(t))) for t in (process.t_max, process.t_min)
    )

    @jax.jit
    def score(params, images, labels, keys, t):
        noised = gaussian.corrupt(
            process, images, arrays.noise(keys, images), jnp.broadcast_to(t, labels.shape)
        )
        log_p = jax.nn.log_softmax(
            denoiser.logits(trained.experiment, params)(noised.x_t, noised.t)
        )
        return jnp.argmax(log_p, 1) == labels, -jnp.take_along_axis(log_p, labels[:, None], 1)[:, 0]

    everything, rows = data.arrays(test), []
    images, labels = (
        data.transforms.to_float(everything["image"]),
        everything["label"].astype(np.int32),
    )
    index = np.arange(-(-len(labels) * repeats // batch_size) * batch_size) % len(
        labels
    )  # whole batches: one program
    for level in [level for level in LEVELS if low <= level <= high]:
        t, parts = gaussian.time_of_logsnr(process, jnp.float32(level)), []
        for batch in index.reshape(-1, batch_size):
            keys = arrays.example_keys(jax.random.key(0), batch_size, len(parts) * batch_size)
            keys = arrays.fold_in(keys, streams.EXAMPLE_OBJECTIVE)
            parts.append(score(trained.params, images[batch], labels[batch], keys, t))
        right, nats = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        rows.append(
            {
                "logsnr": level,
                "sigma / alpha": float(np.exp(-level / 2)),
                "accuracy": float(right.mean()),
                "nats": float(nats.mean()),
            }
        )
    return rows


def train_classifier(config, workdir: str, pool: str = "attention") -> str | None:
    """Train, measure and write everything. Returns the text of classifier.md; None if a signal
    stopped the training.
    """
    config, dataset = classifier_config(config, pool), folder.dataset(config, workdir, resumes=True)
    if not dataset.num_classes:
        raise UserError(f"data.name={config.data.name} has no labels: there is nothing to classify")
    if not train(config, workdir, dataset=dataset):
        return None
    trained = folder.load(workdir, config)
    rows = accuracy_by_level(trained, dataset.test, min(256, len(dataset.test)))
    columns = {
        "logsnr": "log-SNR",
        "sigma / alpha": "σ / α",
        "accuracy": "accuracy",
        "nats": "-log p(label) (nats)",
    }
    title = f"Held-out accuracy of {Path(workdir).name} at step {trained.step}, by noise level"
    text = f"# {title}\n\n{tables.markdown_table(rows, columns)}"
    files.save_text(Path(workdir) / "classifier.md", text)
    files.save_json(
        Path(workdir) / "classifier.json",
        {
            "rows": rows,
            "step": trained.step,
            "weights": trained.weights,
            "provenance": provenance.provenance(config.to_dict(), config.seed),
        },
    )
    return text
