"""The classes of training batches and of samples: as in the data, or all equally frequent."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_jax.assembly import datasets, sample_conditions
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import Dataset
from diffusion_jax.data.sources import Arrays
from tests.denoisers.mixture_by_class import tiny

LABELS = np.repeat([0, 1, 2], [1, 3, 8])


def dataset(labels=LABELS):
    source = Arrays(np.zeros((12, 2), np.float32), labels)
    return Dataset("two", source, source, (2,), 3, ("a", "b", "c"))


def experiment(law="auto", **settings):
    model = tiny()
    sampling = model.sampling._replace(labels=law)
    return model._replace(sampling=sampling, data=model.data._replace(batch_size=12, **settings))


@pytest.mark.parametrize("balanced, counts", [(False, [1, 3, 8]), (True, [4, 4, 4])])
def test_training_batches_are_as_the_config_says(balanced, counts):
    batch = datasets.training_batches(experiment(class_balanced=balanced), dataset())
    for step in range(3):
        np.testing.assert_array_equal(np.bincount(batch(step)["label"]), counts)
    part = datasets.training_batches(
        experiment(class_balanced=balanced), dataset(), np.arange(3, 5)
    )
    np.testing.assert_array_equal(part(1)["label"], batch(1)["label"][3:5])


@pytest.mark.parametrize("law, counts", [("auto", [4, 4, 4]), ("training", [1, 3, 8])])
def test_samples_have_the_classes_of_sampler_labels(law, counts):
    labels, cond = sample_conditions.for_judging(experiment(law), dataset(), 24)
    np.testing.assert_array_equal(np.bincount(labels), 2 * np.array(counts))
    np.testing.assert_array_equal(cond["label"], labels)


def test_data_without_labels_have_no_frequencies():
    with pytest.raises(UserError, match="config.sampler.labels=training: .* no labels"):
        sample_conditions.for_judging(experiment("training"), dataset(None), 3)
    with pytest.raises(UserError, match="config.data.class_balanced=True: .* no labels"):
        datasets.training_batches(experiment(class_balanced=True), dataset(None))
