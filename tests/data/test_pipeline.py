"""Batches are a pure function of (seed, step): order, sharding, prefetching, workers."""

from __future__ import annotations

import multiprocessing
import os
import threading

import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import aspect, sources
from diffusion_jax.data.sources import Arrays
from tests.data.sets import write_image


def numbered(n: int, channels: int = 1) -> Arrays:
    """n images 2 x 3 in which image i is recognizable: its label is i, its left column i, the rest
    0.
    """
    image = np.zeros((n, 2, 3, channels), np.uint8)
    image[:, :, 0] = np.arange(n)[:, None, None]
    return Arrays(image, np.arange(n))


@pytest.mark.parametrize("size, batch_size", [(10, 4), (10, 10), (3, 8), (1, 4)])
def test_every_epoch_holds_each_example_once(size, batch_size):
    batch = data.batches(numbered(size), batch_size=batch_size, seed=3)
    steps = 5 * size // np.gcd(size, batch_size)
    order = np.concatenate([batch(s)["label"] for s in range(steps)])
    epochs = order[: len(order) // size * size].reshape(-1, size)
    assert (np.sort(epochs, axis=1) == np.arange(size)).all()
    assert (
        size == 1 or len({tuple(e) for e in epochs}) >= 4
    )  # reshuffled (of three examples there are six orders)


def test_order_depends_on_seed_and_epoch():
    first = [
        data.batches(numbered(50), batch_size=50, seed=s)(e)["label"].tolist()
        for s in range(3)
        for e in range(3)
    ]
    assert len(set(map(tuple, first))) == 9


def test_batch_is_a_pure_function_of_the_step():
    options = dict(batch_size=8, seed=5, flip=True)
    straight = [data.batches(numbered(20), **options)(s) for s in range(12)]
    once = data.batches(numbered(20), **options)
    for s in (11, 3, 7, 3, 0):  # any order, again and again, and from a fresh start
        for key in ("image", "label"):
            np.testing.assert_array_equal(once(s)[key], straight[s][key])


def test_a_batch_may_be_changed_without_changing_the_data():
    source = numbered(4)
    batch = data.batches(source, batch_size=4, flip=True)
    batch(0)["image"][:] = 7
    np.testing.assert_array_equal(source.columns["image"], numbered(4).columns["image"])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batch_of_one(processes):
    whole = data.batches(numbered(10), batch_size=8, seed=1, flip=True)
    parts = [
        data.batches(
            numbered(10), batch_size=8, seed=1, flip=True, process_index=p, process_count=processes
        )
        for p in range(processes)
    ]
    for step in (0, 1, 6):
        for key, value in whole(step).items():
            np.testing.assert_array_equal(
                np.concatenate([part(step)[key] for part in parts]), value
            )


def test_flip_mirrors_half_of_the_examples_anew_each_epoch():
    size = 200
    batch = data.batches(numbered(size, channels=3), batch_size=size, flip=True)
    mirrored = []
    for epoch in (0, 1):
        b = batch(epoch)
        value = b["label"] / 127.5 - 1
        right = np.isclose(b["image"][:, :, 2], value[:, None, None], atol=1e-6).all((1, 2))
        left = np.isclose(b["image"][:, :, 0], value[:, None, None], atol=1e-6).all((1, 2))
        assert (left ^ right)[b["label"] > 0].all()
        mirrored.append(right[np.argsort(b["label"])][1:])
    assert 70 < mirrored[0].sum() < 130  # 100 expected, standard deviation 7
    assert 70 < (mirrored[0] != mirrored[1]).sum() < 130


def test_values_and_types():
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    b = data.batches(Arrays(image, np.array([3])), batch_size=2)(0)
    assert (
        b["image"].dtype == np.float32
        and b["label"].dtype == np.int32
        and b["image"].shape == (2, 16, 16, 1)
    )
    np.testing.assert_allclose(b["image"][0].ravel(), np.linspace(-1, 1, 256), atol=1e-6)
    assert np.abs(b["image"]).max() <= 1
    assert "label" not in data.batches(Arrays(image), batch_size=1)(0)


@pytest.mark.parametrize("batch_size", [0, -4, 6])
def test_batch_size_must_divide(batch_size):
    with pytest.raises(
        UserError, match=f"batch_size={batch_size} must be a positive multiple .* 4"
    ):
        data.batches(numbered(4), batch_size=batch_size, process_count=4)


def test_refuses_a_negative_seed_and_mirrored_points():
    with pytest.raises(UserError, match="seed=-1"):
        data.batches(numbered(4), batch_size=2, seed=-1)
    with pytest.raises(UserError, match="flip"):
        data.batches(data.load("rings").train, batch_size=2, flip=True)


def test_lazy_and_cached_sources_agree_with_arrays():
    plain, reads = numbered(40), []

    def example(i: int) -> dict:
        reads.append(i)
        return plain[i]

    lazy, cached = sources.Lazy(40, example), sources.Cached(sources.Lazy(40, example))
    assert not reads  # nothing is read before it is needed
    index = np.array([7, 0, 39, 7])
    for source in (lazy, cached, cached):
        assert len(source) == 40 and source[5]["label"] == 5
        for key, value in source.rows(index).items():
            np.testing.assert_array_equal(value, plain.rows(index)[key])
    assert len(reads) == 5 + 40  # once each by the cache, five by the lazy source


def test_arrays_are_the_split_in_order():
    a = data.arrays(numbered(7))
    assert a["image"].dtype == np.uint8 and a["label"].tolist() == list(range(7))
    assert data.arrays(numbered(7), limit=3)["label"].tolist() == [0, 1, 2]
    assert data.arrays(numbered(7), limit=99)["image"].shape == (7, 2, 3, 1)


@pytest.mark.parametrize(
    "size, expected", [(7, [[0, 1, 2], [3, 4, 5]]), (6, [[0, 1, 2], [3, 4, 5]]), (2, [[0, 1, 0]])]
)
def test_sequential_gives_full_batches_in_order(size, expected):
    assert [b["label"].tolist() for b in data.sequential(numbered(size), 3)] == expected


def test_sequential_is_sharded_like_batches():
    parts = [
        list(data.sequential(numbered(9), 4, process_index=p, process_count=2)) for p in (0, 1)
    ]
    assert [b["label"].tolist() for b in parts[0]] == [[0, 1], [4, 5]]
    assert [b["label"].tolist() for b in parts[1]] == [[2, 3], [6, 7]]


def test_prefetch_runs_ahead_in_order_and_stops():
    assert list(data.prefetch(lambda s: s * s, 3, 7, put=str)) == [
        (3, "9"),
        (4, "16"),
        (5, "25"),
        (6, "36"),
    ]
    assert list(data.prefetch(lambda s: None, 3, 5)) == [(3, None), (4, None)]
    computed = []
    ahead = data.prefetch(
        lambda s: s, 0, depth=2, put=computed.append
    )  # put, too, while the consumer is busy with another
    next(ahead)
    deadline = threading.Event()
    while len(computed) < 4 and not deadline.wait(
        0.01
    ):  # one taken, two ready, one waiting for room
        pass
    deadline.wait(0.1)
    assert computed == [0, 1, 2, 3]
    ahead.close()


def test_prefetch_passes_the_error_on_at_its_step():
    def batch(step: int) -> int:
        if step == 2:
            raise FileNotFoundError("gone.png")
        return step

    seen = []
    with pytest.raises(FileNotFoundError, match="gone.png"):
        for step, _ in data.prefetch(batch, 0, 9, depth=4):
            seen.append(step)
    assert seen == [0, 1]


def test_closing_prefetch_ends_its_thread():
    before = set(threading.enumerate())
    iterator = data.prefetch(lambda s: s, 0)
    next(iterator)
    (thread,) = set(threading.enumerate()) - before
    assert thread.daemon
    iterator.close()
    assert not thread.is_alive()


def test_workers_give_the_same_batches_in_the_same_order(tmp_path):
    """The set is read lazily from files, with labels and flips; afterwards no worker is left."""
    for k in range(12):
        write_image(tmp_path / "ab"[k % 2] / f"{k}.png", (k, 2 * k, 0))
    d = data.load("folder", path=str(tmp_path))
    batch = data.batches(
        sources.Cached(sources.Lazy(len(d.train), d.train.__getitem__)),
        batch_size=4,
        seed=2,
        flip=True,
    )
    before = set(multiprocessing.active_children())
    ahead = list(data.prefetch(batch, 3, 8, workers=2, put=lambda b: b | {"placed": True}))
    assert [step for step, _ in ahead] == [3, 4, 5, 6, 7] and set(
        multiprocessing.active_children()
    ) <= before
    for step, found in ahead:
        assert found.pop("placed")
        for key, value in batch(step).items():
            np.testing.assert_array_equal(found[key], value)


def test_errors_of_workers_come_here_and_a_dead_worker_is_said():
    """One worker raises at step 4; another kills itself, as the kernel would."""

    def batch(step: int) -> dict:
        if step == 4:
            raise UserError("data.path=x: no more")
        return {"step": np.full(3, step)}

    def dying(step: int) -> dict:
        if step == 1:
            os.kill(os.getpid(), 9)
        return {"step": np.full(3, step)}

    seen = []
    with pytest.raises(UserError, match="data.path=x: no more"):
        for step, found in data.prefetch(batch, 2, 9, workers=1):
            seen.append((step, found["step"].tolist()))
    assert seen == [(2, [2] * 3), (3, [3] * 3)]
    with pytest.raises(
        UserError,
        match=r"worker died before step \d \(.*exit code -9\); if memory is short, use fewer",
    ):
        list(data.prefetch(dying, 0, 9, workers=1))


LABELS = np.repeat([0, 2, 5], [1, 4, 10])  # the classes 1, 3 and 4 have no example


def of_classes() -> Arrays:
    """Images of three classes, of 1, 4 and 10 examples; image i has the values i."""
    image = np.broadcast_to(np.arange(15, dtype=np.uint8)[:, None, None, None], (15, 2, 3, 1))
    return Arrays(image, LABELS)


def seen(batch: dict) -> np.ndarray:
    return np.round((batch["image"][:, 0, 0, 0] + 1) * 127.5).astype(int)


def test_balanced_classes_are_equally_frequent_and_their_examples_too():
    batch = data.batches(of_classes(), batch_size=7, seed=3, balanced=True)
    found = [batch(step) for step in range(60)]  # 140 rounds of three classes
    index = np.concatenate([seen(b) for b in found])
    labels = np.concatenate([b["label"] for b in found])
    np.testing.assert_array_equal(labels, LABELS[index])
    assert (np.sort(labels.reshape(-1, 3), axis=1) == [0, 2, 5]).all()
    assert len({tuple(row) for row in labels.reshape(-1, 3)}) == 6  # all orders of the classes
    for label, size in ((0, 1), (2, 4), (5, 10)):
        own = index[labels == label]
        epochs = own[: len(own) // size * size].reshape(-1, size)
        assert (np.sort(epochs, axis=1) == np.flatnonzero(label == LABELS)).all()
        assert size == 1 or len({tuple(e) for e in epochs}) > 5
    for step in (41, 3):  # from a fresh start, in any order
        np.testing.assert_array_equal(
            seen(data.batches(of_classes(), batch_size=7, seed=3, balanced=True)(step)),
            seen(found[step]),
        )
    other = data.batches(of_classes(), batch_size=7, seed=4, balanced=True)
    assert any((seen(other(step)) != seen(found[step])).any() for step in range(3))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_a_balanced_batch(processes):
    options = dict(batch_size=8, seed=1, balanced=True, flip=True)
    source = numbered(12, channels=3)
    source.columns["label"] = np.arange(12, dtype=np.int32) % 5
    whole = data.batches(source, **options)
    parts = [
        data.batches(source, **options, process_index=p, process_count=processes)
        for p in range(processes)
    ]
    for step in (0, 5):
        for key, value in whole(step).items():
            found = np.concatenate([part(step)[key] for part in parts])
            np.testing.assert_array_equal(found, value)


def test_labels_that_are_not_known_are_read_and_data_without_them_are_refused():
    plain = of_classes()
    lazy = sources.Lazy(15, lambda i: plain[i])
    expected = data.batches(plain, batch_size=6, balanced=True)(2)
    found = data.batches(lazy, batch_size=6, balanced=True)(2)
    np.testing.assert_array_equal(found["image"], expected["image"])
    without = Arrays(plain.columns["image"])
    with pytest.raises(UserError, match="class_balanced=True: the data set has no labels"):
        data.batches(without, batch_size=6, balanced=True)
    with pytest.raises(UserError, match="class_balanced=True: the images of a bucket"):
        data.batches(aspect.Bucketed(plain, [plain]), batch_size=6, balanced=True)
