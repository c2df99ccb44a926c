"""A mistake in a command is one line; labels by number and name."""

from __future__ import annotations

import pytest

from diffusion_jax.core import parsing
from diffusion_jax.core.errors import UserError
from tests.experiments.small_runs import ROOT, command

DIGITS = "--config=configs/digits.py:vp"


MISTAKES = {
    "an unknown key": (
        ["train", DIGITS, "--config.optimizer.learning_rat=1"],
        "did you mean 'optimizer.learning_rate'",
    ),
    "a value of another type": (
        ["train", DIGITS, "--config.training.steps=many"],
        "training.steps",
    ),
    "an unknown variant": (
        ["train", "--config=configs/digits.py:vpp"],
        "did you mean 'vp'? There are: ddpm, edm, flow",
    ),
    "a missing config file": (
        ["train", "--config=configs/digit.py"],
        "did you mean 'configs/digits.py'",
    ),
    "no config": (["train"], "--config is missing"),
    "an unknown data set": (["train", DIGITS, "--config.data.name=digit"], "did you mean 'digits'"),
    "a missing folder": (
        ["train", DIGITS, "--config.data.name=folder", "--config.data.path=nowhere"],
        "nowhere",
    ),
    "an unknown process": (
        ["train", DIGITS, "--config.process=schedules.VQ()"],
        "did you mean 'schedules.VP'",
    ),
    "an unknown clip": (["train", DIGITS, "--config.sampler.clip=statik"], "did you mean 'static'"),
    "a missing teacher": (
        ["train", "--config=configs/digits_few_step.py:cd", "--config.distill.teacher=nowhere"],
        "config.distill.teacher=nowhere has no config.json",
    ),
    "an adversary without a network": (
        [
            "train",
            "--config=configs/digits_vae.py:gaussian",
            "--config.objective=autoencoding.reconstruction(adversarial=0.5)",
        ],
        "config.discriminator names none",
    ),
    "an untrained workdir": (
        ["sample", "--workdir=nowhere"],
        "--workdir=nowhere has no config.json",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_clear_line_and_a_non_zero_exit(mistake, tmp_path):
    args, said = MISTAKES[mistake]
    more = [f"--workdir={tmp_path / 'run'}"] if args[0] == "train" else []
    done = command(*args, *more, expect=2)
    lines = [
        line for line in done.stderr.splitlines() if not line.startswith("data: ")
    ]  # what a set that was read holds
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0], done.stderr
    assert not (tmp_path / "run").exists()


NAMED = ("cat", "Dog", "sea, open", "7", "3")


@pytest.mark.parametrize(
    "text, found",
    [
        ("", []),
        ("0,1", [0, 1]),
        ("cat, dog", [0, 1]),
        ("sea, open,cat", [2, 0]),
        ("sea,open", [2]),
        ("any,0", [5, 0]),
        ("7", [3]),
        ("name:3", [4]),
        ("label:3,label:12", [3, 12]),
        ("12", [12]),
    ],
)
def test_labels_are_numbers_or_names(text, found):
    assert parsing.labels("labels", text, NAMED) == found


@pytest.mark.parametrize(
    "text, said",
    [
        ("cta", "unknown --labels 'cta'; did you mean 'cat'"),
        ("-1", "unknown --labels '-1'"),
        ("1.5", "unknown --labels '1.5'"),
        ("0,,1", "unknown --labels ''"),
        ("3", "number of the class '7' and the name of class 4; write label:3 or name:3"),
    ],
)
def test_labels_that_are_none_or_could_be_two_are_refused(text, said):
    with pytest.raises(UserError, match=said):
        parsing.labels("labels", text, NAMED)


SHIPPED = ROOT / "pretrained" / "digits"
NO_MODEL = "belongs to --target, and has no effect on a trained model; set that of the model by"


@pytest.mark.parametrize(
    "args, message",
    [
        (
            ("inverse_benchmark", "--workdir=digits", "--sampler=heun"),
            f"--sampler=heun {NO_MODEL} --config.sampler.name=VALUE",
        ),
        (
            ("compare_samplers", "--workdir=digits", "--process=EDM"),
            f"--process=EDM {NO_MODEL} --config.process=VALUE",
        ),
        (
            ("guidance_sweep", "--workdir=digits", "--out=a"),
            "--out=a belongs to --mixture, and has no effect on a trained model; leave it out",
        ),
        (
            ("optimize_grid", "--target=gmm8", "--features=pixels"),
            "--features=pixels has no effect with --target; leave it out",
        ),
        (
            ("ema_sweep", f"--workdir={SHIPPED}", "--num=10"),
            f"--workdir={SHIPPED} is a published model, which has one set of "
            "weights; name the folder of a run with snapshots (config.ema.powers)",
        ),
        (  # short forms are those of the config
            ("sweep", "--workdir=digits", "--nfe=0", "--over=sampler.guidance=[1, 2]"),
            "config.sampler.nfe=0: it must be a whole number from 1 to 10000",
        ),
        (
            ("guidance_sweep", "--mixture", "--num=20"),
            "--num=20 has no effect with --mixture; leave it out",
        ),
    ],
)
def test_what_has_no_effect_is_refused_and_what_has_is_read(args, message):
    assert command(*args, expect=2).stderr.strip() == f"error: {message}"
