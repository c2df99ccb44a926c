"""A recipe of each family trains 50 steps on the digits, with a narrow network."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from diffusion_jax.assembly import train, workdir
from tests.experiments.small_runs import rows

pytestmark = pytest.mark.long

STEPS = 50
NARROW = {
    "unet.UNet": dict(width=16, multipliers=(1, 2), blocks=1, attention=(4,), head_width=16),
    "ncsnpp.NCSNpp": dict(width=8, multipliers=(1, 2), blocks=1, attention=(4,)),
    "edm2.EDM2UNet": dict(
        width=16, multipliers=(1, 2), blocks=1, attention=(4,), head_width=16, uncertainty=16
    ),
    "dit.DiT": dict(width=16, depth=2, heads=2),
}
# (recipe, variant): the run that it starts from or learns from
RUNS = {
    ("ddpm_cifar10", ""): "",
    ("iddpm_cifar10", "hybrid"): "",
    ("iddpm_cifar10", "vlb"): "",
    ("vdm_cifar10", "shape"): "",
    ("ncsnpp_ve", ""): "",
    ("ddpmpp_vp", ""): "",
    ("ddpmpp_subvp", ""): "",
    ("edm_cifar10", "vp"): "",
    ("edm_cifar10", "ve,cond"): "",
    ("edm2_img64", "S"): "",
    ("adm_imagenet64", ""): "",
    ("edm_imagenet64", ""): "",
    ("dit_imagenet256", "XL"): "",
    ("sit_imagenet256", ""): "",
    ("ldm", "ffhq"): "",
    ("meanflow_imagenet256", ""): "",
    ("ict_cifar10", ""): "",
    ("scm_cifar10", "teacher"): "",
    ("ect_cifar10", "200k"): "edm_cifar10,vp",
    ("scm_cifar10", "sct"): "scm_cifar10,teacher",
    ("scm_cifar10", "scd"): "scm_cifar10,teacher",
}
CURRICULA = ("ect_cifar10", "ict_cifar10", "scm_cifar10")  # whose losses are not comparable in time


def name(case):
    return ",".join(part for part in case if part)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes")


def narrow(case, folder):
    """The recipe for the digits: its network narrow, its run of 50 steps, its batches of 64."""
    file, variant = case
    module = importlib.import_module(f"configs.papers.{file}")
    config = module.get_config(variant) if variant else module.get_config()
    config.data.update(name="digits", image_size=0, channels=0, num_classes=0, batch_size=64)
    config.data.data_dir = str(folder / "data")
    config.model.update(NARROW[config.model.name])
    if config.model.dtype == "bfloat16":
        config.model.dtype = "float32"  # float16 stays, with its scaling of the loss
    if config.model.name == "unet.UNet":
        config.model.norm = None
    config.training.update(steps=STEPS, steps_per_call=1, log_every=5)
    config.training.update(checkpoint_every=STEPS, sample_every=STEPS, eval_every=0)
    config.optimizer.update(learning_rate=2e-3, warmup=5)
    config.sampler.update(nfe=min(config.sampler.nfe, 4))
    for section, key in ((config, "init_from"), (config.distill, "teacher")):
        if section[key]:
            section[key] = str(folder / RUNS[case])
    return config.lock()


@pytest.mark.parametrize("case", RUNS, ids=name)
def test_a_recipe_trains(case, folder):
    """The loss falls, the gradient is finite, samples are drawn, and the model is loaded again."""
    if RUNS[case] and not (folder / RUNS[case]).exists():
        file, _, variant = RUNS[case].partition(",")
        earlier = file, variant
        assert train.train(narrow(earlier, folder), str(folder / RUNS[case]))
    path = folder / name(case)
    if not path.exists():
        assert train.train(narrow(case, folder), str(path))
    logged = [row for row in rows(path) if "loss" in row]
    losses = np.array([row["loss"] for row in logged])
    assert len(losses) == STEPS // 5 and np.isfinite(losses).all()
    assert all(np.isfinite(row["grad_norm"]) for row in logged)
    if case[0] not in CURRICULA:
        assert losses[-3:].mean() < losses[:2].mean()
    assert (path / "samples" / f"step_{STEPS:07d}.png").exists()
    assert workdir.load(path, workdir.saved_config(str(path))).step == STEPS
