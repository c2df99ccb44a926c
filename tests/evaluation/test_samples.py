"""What is kept of a set of images: sums of groups are those of the features themselves."""

from __future__ import annotations

import numpy as np

from diffusion_jax.evaluation import frechet, intervals, samples, scores


def test_the_distance_of_summed_groups_is_that_of_all_features_and_so_are_those_without_a_group():
    rng = np.random.default_rng(0)
    x, root = (
        rng.normal(size=(1100, 6)).astype(np.float32),
        frechet.root_of(rng.normal(size=(50, 6))),
    )
    kept = samples.in_memory({"features/a": x})
    found = samples.summarize(kept, "a", first=7, moments=True)
    assert found.features.shape == (7, 6) and len(found.moments) == intervals.GROUPS
    got = samples.jackknife(
        found.moments, frechet.merge, lambda moments: frechet.distance_of_moments(moments, root)
    )
    assert np.isclose(got.value, frechet.distance_to(x, root), rtol=1e-9)
    stays = intervals.without(1100, intervals.groups(1100)[3])
    assert np.isclose(got.left_out[3], frechet.distance_to(x[stays], root), rtol=1e-9)


def test_sums_do_not_depend_on_the_blocks_that_they_are_read_from():
    """The same chunks in the same order: not a bit differs."""
    x = np.random.default_rng(1).normal(size=(1100, 3)).astype(np.float32)
    reads = []

    def read(name, at):
        reads.append(at)
        return np.concatenate([x[i : i + 1] for i in at])

    kept = samples.Kept(1100, frozenset(["features/a"]), read)
    one = samples.summarize(kept, "a", first=0, moments=True)
    assert max(len(at) for at in reads) <= samples.CHUNK  # constant memory
    two = samples.summarize(samples.in_memory({"features/a": x}), "a", first=0, moments=True)
    for a, b in zip(one.moments, two.moments):
        assert a.count == b.count and (a.mean == b.mean).all() and (a.cov == b.cov).all()


def test_fewer_images_than_features_keep_their_features_and_logits_are_summed_by_group():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(20, 3)).astype(np.float32)
    rows = {"features/a": rng.normal(size=(20, 30)).astype(np.float32), "logits/a": logits}
    found = samples.summarize(samples.in_memory(rows), "a", first=0, moments=True)
    assert found.moments == () and len(found.features) == 20
    got = samples.jackknife(found.logits, scores.merge, scores.inception_score)
    whole = scores.inception_score(scores.logit_sums(logits))
    assert np.isclose(got.value, whole, rtol=1e-12) and got.interval > 0
    alone = samples.summarize(samples.in_memory(rows), "a", first=0, moments=True, grouped=False)
    assert len(alone.logits) == 1 and not alone.grouped
