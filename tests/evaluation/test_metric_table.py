"""The table of metrics: titles, directions and formats."""

from __future__ import annotations

import pytest

from diffusion_jax.evaluation import choice, metrics


def test_the_names_and_titles_of_the_table_are_distinct():
    assert len(metrics.METRICS) == len(metrics._TABLE)
    titles = [metric.title for metric in metrics._TABLE]
    assert len(set(titles)) == len(titles)
    assert {metric.direction for metric in metrics._TABLE} == {-1, 0, 1}


def test_values_are_written_with_factor_unit_and_spread():
    accuracy = metrics.find("accuracy")
    assert accuracy.text(0.9731) == "97.3 %"
    assert accuracy.text(0.9731, 0.004) == "97.3 ± 0.4 %"
    assert accuracy.number(0.9731) == "97.3" and accuracy.label == "recognized as their class (%)"
    assert metrics.find("frechet").text(12.345) == "12.3"
    assert metrics.find("frechet").text(12.345, 0.034) == "12.345 ± 0.034"
    assert metrics.find("psnr").text(20.0) == "20.00 dB"


def test_less_loss_is_better():
    assert metrics.find("accuracy").loss(0.9) < metrics.find("accuracy").loss(0.8)
    assert metrics.find("frechet").loss(1.0) < metrics.find("frechet").loss(2.0)
    with pytest.raises(ValueError, match="neither direction"):
        metrics.find("variance_ratio").loss(1.0)


def test_a_score_of_features_names_them_in_its_title():
    assert metrics.find("frechet/inception").title == "FID (inception)"
    assert metrics.find("frechet/inception_spatial").title == "sFID (inception_spatial)"
    assert metrics.find("frechet/dinov2_vitl14").title == "FD-DINOv2 (dinov2_vitl14)"
    assert metrics.find("cmmd/clip_vitl14_336").title == "CMMD (clip_vitl14_336)"
    assert metrics.find("cmmd/pixels").title == "MMD x 1000, sigma 10 (pixels)"
    assert metrics.find("frechet/classifier").title == "Fréchet distance (classifier)"
    assert metrics.find("frechet", "pixels").title == "Fréchet distance of pixels"
    assert metrics.find("frechet").title == "Fréchet distance"
    assert metrics.find("accuracy", "pixels").title == "recognized"
    assert metrics.find("kid/inception").name == "kid/inception"
    assert metrics.find("new").title == "new" and metrics.find("new").direction == metrics.NEITHER


def test_every_estimator_of_the_judge_gives_metrics_of_the_table():
    given = {
        "frechet": ["frechet"],
        "kid": ["kid", "kid_se"],
        "prdc": ["precision", "recall", "density", "coverage"],
        "class_accuracy": ["class_accuracy"],
        "inception_score": ["inception_score"],
        "memorization": ["nearest_ratio", "copies"],
        "cmmd": ["cmmd"],
        "frechet_infinity": ["frechet_infinity"],
        "frechet_interval": ["frechet_low", "frechet_high"],
        "mmd_median": ["mmd_median"],
        "c2st": ["c2st"],
        "marginals": ["ks", "total_variation"],
        "correlation": ["correlation"],
        "sliced_wasserstein": ["sliced_wasserstein"],
    }
    assert set(given) == set(choice.ESTIMATORS)
    assert all(name in metrics.METRICS for names in given.values() for name in names)
