"""The conditions of samples that are drawn from a data set: for pictures and for metrics."""

from __future__ import annotations

import numpy as np

from diffusion_jax import data
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Cond
from diffusion_jax.data import Dataset, order, pipeline, table
from diffusion_jax.data.sources import Source
from diffusion_jax.evaluation import generate


def captions_of_test(
    experiment: Experiment, dataset: Dataset, index: Array
) -> tuple[list[str], Cond]:
    """The first captions of these images of the test split, and the condition of them.

    Args:
      experiment: a model of captions.
      dataset: with captions.
      index: the indices of the images, (B,).
    """
    rows = dataset.test.rows(index)
    read = dataset.test.with_captions(rows, np.zeros(len(index), int))
    captions = [dataset.captions[i] for i in rows["caption"][:, 0]]
    entries = {name: read[name] for name in experiment.encoder.entries}
    return captions, experiment.conditions.null(len(index)) | entries


def of_examples(
    experiment: Experiment, source: Source, index: np.ndarray
) -> tuple[dict[str, np.ndarray], Cond]:
    """Examples of a split, and the whole condition of each of them.

    What is drawn of a condition, such as a mask, depends on the index of the example alone.

    Args:
      experiment: the model.
      source: the split, with the arrays that condition the model.
      index: the indices of the examples, (B,).

    Returns:
      (the examples as training sees them, their condition).
    """
    rows = source.rows(index)
    if experiment.encoder:
        rows = source.with_captions(rows, np.zeros(len(index), int))
    batch = pipeline.network_types(rows)
    cond = experiment.conditions.of_batch(batch, generate.seeds_to_keys(index), False)
    return batch, cond


def has_arrays(experiment: Experiment) -> bool:
    """Whether arrays condition the model: vectors or dense arrays, besides labels and captions.

    Args:
      experiment: the model.
    """
    return bool(experiment.units.vector or experiment.dense)


def for_judging(
    experiment: Experiment, dataset: Dataset, count: int
) -> tuple[np.ndarray | None, Cond]:
    """Choose the conditions of the first samples by which a model is judged; see `at`.

    Args:
      experiment: the model.
      dataset: the data set that it is judged against.
      count: number of samples.
    """
    return at(experiment, dataset, np.arange(count))


def labels_as_in(dataset: Dataset, positions: np.ndarray) -> np.ndarray:
    """Choose labels that are as frequent as in the training split, whose rows they are in turn.

    Args:
      dataset: with labels.
      positions: (n,), those of the samples.

    Returns:
      (n,).

    Raises:
      UserError: for data without labels.
    """
    labels = order.known_labels(dataset.train, "sampler.labels=training")
    rows = np.random.default_rng(0).permutation(len(labels))
    return labels[rows[positions % len(labels)]]


def at(
    experiment: Experiment, dataset: Dataset, positions: np.ndarray
) -> tuple[np.ndarray | None, Cond]:
    """Choose the conditions of samples at some positions among those by which a model is judged.

    For a model of classes they are all classes in turn, or `labels_as_in` the training split
    (config.sampler.labels), by default for tables alone. For a model of captions they are prompts
    that are held out of training, where the data set has some, else captions of the test split in
    turn. For a model that arrays condition they are the whole conditions of the test split in turn.

    Args:
      experiment: the model.
      dataset: the data set that it is judged against.
      positions: (n,), ascending.

    Returns:
      (labels (n,), or None where they are not known; condition).

    Raises:
      UserError: for a model of captions and a data set without them, and for labels as in a
        training split that has none.
    """
    classes = experiment.num_classes
    if has_arrays(experiment):
        batch, cond = of_examples(experiment, dataset.test, positions % len(dataset.test))
        return batch.get("label"), cond
    if not experiment.encoder:
        labels = positions % classes if classes else None
        law = experiment.sampling.labels
        if classes and (law == "training" or (law == "auto" and table.columns_of(dataset.train))):
            labels = labels_as_in(dataset, positions)
        return labels, experiment.conditions.of_labels(
            np.zeros(0, int) if labels is None else labels
        )
    if dataset.name == "digits_captions":
        prompts, labels = data.digits_captions.held_out_prompts(int(positions[-1]) + 1)
        chosen = [prompts[i] for i in positions]
        return labels[positions], experiment.conditions.of_prompts(chosen)
    if not dataset.captions:
        raise UserError(
            f"this model takes captions, and the data set {dataset.name} has no "
            "captions to draw samples from"
        )
    index = positions % len(dataset.test)
    return dataset.test.rows(index).get("label"), captions_of_test(experiment, dataset, index)[1]
