"""Classifier two-sample test (C2ST, Lopez-Paz & Oquab 2017): can samples be told from real data?

A classifier is trained to tell two sets of equal size apart. Its accuracy on examples that it was
not trained on is 1/2 where both have one law, and tends to 1/2 + TV / 2 for a classifier that
learns the likelihood ratio, with their total variation distance TV. A smaller value can also mean
that the classifier has too few examples; real data of the same size say what to compare it with.
"""

from __future__ import annotations

import warnings

import numpy as np

from diffusion_jax.core.deferred import deferred

exceptions = deferred("sklearn.exceptions")
neural_network = deferred("sklearn.neural_network")

FOLDS = 5
HIDDEN = 64  # units of the classifier
SETS = 16  # of samples that are compared with the same real examples, at most
ITERATIONS = 200  # of L-BFGS, at most
WEIGHT_DECAY = 1.0  # in units of one example


def c2st(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Classify every example of two sets by a network that was trained on the others.

    The network has one hidden layer of HIDDEN units; its inputs are the features, scaled to unit
    variance over both sets. The sets are divided into FOLDS folds of whole pairs, and each fold is
    classified by a network that was trained on the others.

    Args:
      a: (N, D), features of one set.
      b: (N, D), features of as many of the other.

    Returns:
      (2 N,) of bool, whether a_1, b_1, a_2, b_2, ... are recognized as of their set.
    """
    x = np.stack([a, b], 1).astype(np.float64)  # pairs
    spread = x.std((0, 1))
    x = (x - x.mean((0, 1))) / np.where(spread > 0, spread, 1.0)
    of = np.tile([0, 1], (len(x), 1))
    fold = np.random.default_rng(0).permutation(len(x)) % FOLDS
    hits = np.zeros(of.shape, bool)
    for held in range(FOLDS):
        train, test = fold != held, fold == held
        network = neural_network.MLPClassifier(
            (HIDDEN,), solver="lbfgs", alpha=WEIGHT_DECAY, max_iter=ITERATIONS, random_state=held
        )
        with warnings.catch_warnings():  # the number of iterations is part of the definition
            warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
            network.fit(x[train].reshape(-1, x.shape[-1]), of[train].ravel())
        found = network.predict(x[test].reshape(-1, x.shape[-1]))
        hits[test] = found.reshape(-1, 2) == of[test]
    return hits.ravel()


def in_sets(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compare several sets of samples with the same real examples by `c2st`.

    A classifier sees as many samples as real examples. Where there are more samples, they make
    further sets, so that chance in the samples moves the mean less. Chance in the real examples
    moves it as before.

    Args:
      a: (M, D), features of samples.
      b: (N, D), features of real examples.

    Returns:
      (K, n, 2) of bool, as `c2st` returns them for each of the K sets: n = min(M, N) pairs of a
      sample and a real example.
    """
    count = min(len(a), len(b))
    sets = min(len(a) // count, SETS)
    hits = [c2st(a[k * count : (k + 1) * count], b[:count]) for k in range(sets)]
    return np.stack(hits).reshape(sets, count, 2)
