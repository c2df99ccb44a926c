"""The roof and the mains, end to end and small: every config builds; train, resume, sample,
evaluate, compare; one line per mistake.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import base, digits, families, toy
from diffusion_jax import data, parsing
from diffusion_jax.assembly import (
    components,
    denoiser,
    experiment,
    sampling,
    train,
    workdir,
)
from diffusion_jax.assembly.build import Family, build, members
from diffusion_jax.errors import UserError
from diffusion_jax.processes import schedules
from diffusion_jax.training import ema, metrics, restoring, step
from tests import commands
from tests.markdown import squeezed

ROOT = Path(__file__).parents[2]

SHAPES = {
    "digits": (8, 8, 1),
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "cifar100": (32, 32, 3),
    "svhn_cropped": (32, 32, 3),
    "celeb_a": (64, 64, 3),
    "toy": (2,),
    "imagenet256_latent": (32, 32, 4),
    "digits_captions": (8, 8, 1),
    "emoji": (32, 32, 3),
    "digits_vae": (8, 8, 1),
    "mnist_vae": (28, 28, 1),
    "digits_few_step": (8, 8, 1),
    "mnist_few_step": (28, 28, 1),
    "fashion_autoencoder": (28, 28, 1),
    "cifar10_autoencoder": (32, 32, 3),
    "tiny_imagenet_autoencoder": (64, 64, 3),
    "fashion_latent": (7, 7, 4),
    "tiny_imagenet_latent": (8, 8, 4),
    "folder": (32, 32, 3),
}

SIZES = {
    "digits": ("",),
    "folder": ("",),
    "digits_vae": ("",),
    "digits_few_step": ("",),
    "digits_captions": ("",),
    "toy": ("",),
    "imagenet256_latent": (",S",),
}

SMALL = {
    "unet.UNet": dict(width=8, multipliers=(1,), blocks=1, attention=(), head_width=8),
    "mlp.MLP": dict(width=8, blocks=1),
    "dit.DiT": dict(width=8, depth=1, heads=1),
    "autoencoder.VAE": dict(hidden=(8,), latent=2, pixel_width=4),
    "autoencoder.AutoencoderKL": dict(width=8, multipliers=(1,), blocks=1, norm=None),
}

TRACED = set()  # by an earlier config: many differ in their data alone


@pytest.mark.parametrize(
    "file",
    sorted(
        p.stem for p in (ROOT / "configs").glob("[!_]*.py") if p.stem not in ("base", "families")
    ),
)
def test_every_config_builds_and_its_loss_and_sampler_have_shapes(file):
    """The real network of each size once (tracing a large one takes seconds), a small one under
    every variant.
    """
    module = importlib.import_module(f"configs.{file}")
    variants = list(
        getattr(module, "VARIANTS", base.VARIANTS)
    )  # of autoencoders, which have their own
    for size in SIZES.get(file, ("", ",full")):
        for variant in variants:
            config = module.get_config(variant + size)
            built = experiment.assemble(
                config if variant == variants[0] else small(config), SHAPES[file], 10
            )
            chosen = sampling.method(built)
            assert config.sampler.nfe - 1 <= sampling.evaluations(chosen) <= config.sampler.nfe
            network = f"{config.model} {config.process} {config.parameterization} {config.objective} {config.conditional} {SHAPES[file]}"
            if network not in TRACED:
                losses_have_shapes(built, SHAPES[file])
                TRACED.add(network)


def test_ve_presets_have_edms_constants_scaled_to_the_data():
    """0.02 to 100 for 32x32 color images in [-1, 1] (Karras et al. 2022, table 1); others near the
    data's largest distance.

    Workdirs whose config says schedules.VE() keep its defaults.
    """
    for file, ends in {
        "cifar10": (0.02, 100),
        "cifar100": (0.02, 100),
        "svhn_cropped": (0.02, 100),
        "emoji": (0.02, 100),
        "celeb_a": (0.02, 180),
        "mnist": (0.02, 45),
        "fashion_mnist": (0.02, 45),
        "digits": (0.02, 10),
        "digits_captions": (0.02, 10),
        "imagenet256_latent": (0.02, 100),
        "fashion_latent": (0.02, 30),
        "toy": (0.01, 10),
    }.items():
        process = build(
            components.PROCESSES,
            importlib.import_module(f"configs.{file}").get_config("ve").process,
        )
        assert (process.sigma_min, process.sigma_max) == ends, file
    for name, end in {"digits": 10, "mnist": 45}.items():
        assert (
            families.get_config(name).family.ve.process
            == f"schedules.VE(sigma_min=0.02, sigma_max={end}.0)"
        )
    images = data.arrays(data.load("digits").train)["image"].reshape(-1, 64) / 127.5 - 1
    square = (images**2).sum(1)
    largest = np.sqrt((square[:, None] + square - 2 * images @ images.T).max())
    assert largest == pytest.approx(
        build(components.PROCESSES, digits.get_config("ve").process).sigma_max, rel=0.1
    )
    assert build(components.PROCESSES, "schedules.VE()") == schedules.VE(0.01, 50.0)


def test_improved_ddpm_is_a_preset_of_images_alone():
    """The cosine chain, learned variance, L_hybrid, respaced ancestral sampling; what is not images
    refuses it by name.
    """
    for file in ("digits", "cifar10", "mnist", "celeb_a"):
        config = importlib.import_module(f"configs.{file}").get_config("iddpm")
        assert (
            config.model.learn_variance
            and "cosine" in config.process
            and config.objective == "elbo.hybrid(steps=4000)"
        )
        assert config.sampler.name == "ancestral.ddpm(variance='learned')"
        assert (
            not importlib.import_module(f"configs.{file}").get_config("ddpm").model.learn_variance
        )
    for file in ("toy", "fashion_latent"):
        with pytest.raises(UserError, match="unknown variant 'iddpm'"):
            importlib.import_module(f"configs.{file}").get_config("iddpm")


def losses_have_shapes(built, shape):
    built = built.kind.prepare(built, None)
    built = built._replace(teacher=(built, None))  # who jumps is taught by itself
    params = jax.eval_shape(lambda key: built.kind.init(built, key), jax.random.key(0))
    batch = (built.conditions.null(4) or {}) | {
        "image": jnp.zeros((4, *shape)),
        "label": jnp.zeros(4, jnp.int32),
    }
    keys = jax.random.split(jax.random.key(0), 4)

    def now(p):
        return step.Now(0, {"target": p, "teacher": p})

    losses, extra = jax.eval_shape(lambda p: built.kind.loss(built)(p, batch, keys, now(p)), params)
    assert {losses.shape} == {value.shape for value in extra.values()} == {(4,)}


def small(config, **training):
    """A config cut down to seconds; one step is one batch of 16."""
    config.data.batch_size = 16
    config.training.update(
        {"steps": 8, "log_every": 2, "eval_every": 4, "sample_every": 8, "checkpoint_every": 4}
        | training
    )
    config.optimizer.warmup = 2
    config.sampler.nfe = 3
    config.model.update(SMALL[config.model.name])
    return config


def width(path):
    """Of a picture, in pixels."""
    with Image.open(path) as picture:
        return picture.size[0]


def rows(folder):
    return [
        {k: v for k, v in row.items() if k != "timing"}
        for row in metrics.read_rows(folder / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    """A tiny U-Net trained for 8 steps on the digits, by the function behind the command."""
    config = small(digits.get_config("vp"))
    config.data.data_dir = data_dir
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert train.train(config.lock(), str(folder))
    return folder, config


def test_a_run_leaves_config_metrics_pictures_and_a_checkpoint(trained):
    folder, config = trained
    assert json.loads((folder / "config.json").read_text())["process"] == config.process
    assert {"commit", "versions", "date"} <= json.loads(
        (folder / "provenance.json").read_text()
    ).keys()
    assert [row["step"] for row in rows(folder) if "loss" in row] == [2, 4, 6, 8]
    assert [row["step"] for row in rows(folder) if "eval_loss" in row] == [4, 8]
    assert width(folder / "samples" / "step_0000008.png") > 80
    assert width(folder / "loss.png") > 300
    assert restoring.latest_step(folder / "checkpoints") == 8
    assert list((folder / "tensorboard").iterdir())


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(trained, tmp_path):
    """The process is stopped at step 4 by losing all that came later: what kill -9 leaves behind."""

    folder, config = trained
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    shutil.rmtree(again / "checkpoints" / "8")
    assert train.train(config, str(again))
    for which in (None, *checkpoint_emas(config)):
        a, b = (restoring.restore_params(f / "checkpoints", which).state for f in (folder, again))
        jax.tree.map(np.testing.assert_array_equal, a, b)
    assert rows(again) == rows(folder)


def checkpoint_emas(config):

    return [ema.name(h) for h in config.ema.halflives]


def test_another_config_in_the_same_workdir_is_refused_with_its_keys(trained):
    folder, config = trained
    other = config.copy_and_resolve_references()
    other.optimizer.learning_rate = 0.5
    with pytest.raises(UserError, match=r"optimizer.learning_rate \(0.002 there, 0.5 here\)"):
        train.train(other, str(folder))


def test_a_workdir_gives_its_model_back_and_says_which_weights_there_are(trained):
    folder, config = trained
    loaded = workdir.load(folder, workdir.saved_config(str(folder)))
    assert (loaded.step, loaded.weights) == (8, "5k")
    config = workdir.saved_config(str(folder)).unlock()
    config.sampler.ema = "7k"
    with pytest.raises(UserError, match="unknown config.sampler.ema '7k'.*5k"):
        workdir.load(folder, config)


def test_one_compiled_sampler_serves_every_nfe_and_equals_the_plain_loop(trained):
    folder, _ = trained
    loaded = workdir.load(folder, workdir.saved_config(str(folder)))
    built, keys = loaded.experiment, jax.random.split(jax.random.key(0), 4)
    cond = built.conditions.of_labels(np.arange(4))
    settings = sampling.with_sampler(built.sampling, "sde.edm")
    plans = [sampling.method(built, settings._replace(nfe=nfe)) for nfe in (3, 9)]
    run = sampling.sample_fn(built, plans[0].sampler, guided=True, clip="static")
    longest = max(len(plan.ts) for plan in plans)
    for plan in plans:
        params = denoiser.ensemble(built, loaded.params)
        padded = run(params, keys, cond, sampling.pad(plan.ts, longest), jnp.float32(1.5))
        plain = sampling.sample_with(built, loaded.params, plan)(keys, cond)
        np.testing.assert_allclose(padded, plain, atol=1e-5)
    assert run._cache_size() == 1


def test_one_device_eight_devices_and_pmap_train_and_sample_alike(tmp_path):
    """Three steps of SGD on the toy, and images from the same keys, on 8 forced host devices (SGD:
    Adam would amplify rounding).
    """
    script = """
import jax, numpy as np, sys
sys.path.insert(0, '.')
from tests.experiments.test_experiments import small
from configs import toy
from diffusion_jax import arrays, data
from diffusion_jax.assembly import datasets, experiment, sampling, trainer
from diffusion_jax.training import loop, sharding
def train(parallel, devices):
    config = small(toy.get_config('flow'))
    config.parallel = parallel
    config.conditional, config.optimizer.name, config.optimizer.b1, config.optimizer.b2 = True, 'sgd', None, None
    config.optimizer.weight_decay, config.optimizer.learning_rate, config.optimizer.warmup = None, 0.1, 0
    dataset = datasets.dataset(config)
    built = experiment.assemble(config, dataset.image_shape, dataset.num_classes)
    parts = trainer.training(built, jax.devices()[:devices])
    state = parts.runner.init(parts.init, jax.random.key(0))
    calls = loop.stack(data.batches(dataset.train, batch_size=16), 1)
    for i in range(3):
        state, metrics = parts.step(state, parts.runner.put_batch(calls(i), axis=1))
    return built, sharding.fetch(state.params), float(np.ravel(metrics['loss'])[0])
built, one, loss = train('jit', 1)
for parallel in ('jit', 'pmap'):
    _, params, other = train(parallel, 8)
    assert abs(loss - other) < 1e-6 * abs(loss), (parallel, loss, other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), one, params)
keys, cond = arrays.example_keys(jax.random.key(1), 16), {'label': jax.numpy.arange(16) % 8}
run = sampling.sample_with(built, one, sampling.method(built))
alone = np.asarray(run(keys, cond))
spread = np.asarray(run(*jax.device_put((keys, cond), sharding.examples(sharding.make_mesh()))))
np.testing.assert_allclose(alone, spread, atol=1e-5)
print('alike on', jax.device_count())
"""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "alike on 8", done.stdout + done.stderr


# ---- the commands, as typed ----
def command(*args, expect=0):
    done = commands.run(*args)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def test_the_commands_sample_and_evaluate(trained):
    folder, _ = trained
    command(
        "sample",
        f"--workdir={folder}",
        "--seeds=3-6",
        "--labels=1,2",
        "--config.sampler.name=ode.heun",
    )
    four = np.load(folder / "samples.npz")
    assert four["images"].shape == (4, 8, 8, 1) and four["images"].dtype == np.uint8
    assert four["labels"].tolist() == [1, 2, 1, 2] and four["seeds"].tolist() == [3, 4, 5, 6]
    command(
        "sample", f"--workdir={folder}", "--seeds=4", "--labels=2", "--config.sampler.name=ode.heun"
    )
    np.testing.assert_array_equal(
        np.load(folder / "samples.npz")["images"][0], four["images"][1]
    )  # one seed, one image
    shown = command("evaluate", f"--workdir={folder}", "--num=20", "--repeats=2").stdout
    assert "real test images" in shown and "recognized" in shown


def test_the_commands_take_one_evaluation(trained):
    """And two of a sampler whose steps take two: x0-hat from noise, on a grid of one time."""
    folder, _ = trained
    done = command(
        "sample",
        f"--workdir={folder}",
        "--seeds=4",
        "--labels=2",
        "--config.sampler.name=ode.edm_heun",
        "--config.sampler.nfe=2",
    )
    assert ", 1 evaluations per image" in done.stdout + done.stderr and np.load(
        folder / "samples.npz"
    )["images"].shape == (1, 8, 8, 1)
    done = command(
        "evaluate",
        f"--workdir={folder}",
        "--num=10",
        "--repeats=1",
        "--metrics=frechet",
        "--config.sampler.nfe=1",
    )
    assert "(pixels)" in done.stdout


def test_quickstart_makes_every_picture_it_names_and_suggests_what_next(data_dir, tmp_path):
    tiny = ["width=8", "multipliers=(1,)", "head_width=8"]
    done = command(
        "quickstart",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.data_dir={data_dir}",
        "--config.training.steps=4",
        "--config.training.log_every=2",
        "--config.sampler.nfe=3",
        "--num=20",
        *[f"--config.model.{option}" for option in tiny],
    )
    for name in ("samples.png", "denoising.png", "loss.png", "samplers.png", "samplers_strips.png"):
        assert name in done.stdout and width(tmp_path / "run" / name) > 150
    table = squeezed((tmp_path / "run" / "samplers.md").read_text())
    assert table.count("| ancestral.ddim |") == 4
    assert (
        "samplers.html" in done.stdout
        and (tmp_path / "run" / "samplers.html").stat().st_size > 10_000
    )
    assert done.stdout.count("python -m experiments.") == 3


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


def test_labels_and_samplers_that_do_not_exist_are_named(trained):
    folder, _ = trained
    done = command("sample", f"--workdir={folder}", "--labels=12", expect=2)
    assert "label 12 does not exist" in done.stderr
    done = command("sample", f"--workdir={folder}", "--config.sampler.name=ode.hun", expect=2)
    assert "did you mean 'ode.heun'" in done.stderr


def test_a_member_is_found_or_refused_by_name_never_ignored(tmp_path, monkeypatch):
    """What is not in the tuple of members of its module, or in a module that the family does not
    name, is refused with what to do.
    """
    (tmp_path / "mine.py").write_text(
        "def plain(): return 'plain'\ndef bare(): return 'bare'\nTHINGS = (plain,)\n"
    )
    (tmp_path / "postponed.py").write_text(
        "from __future__ import annotations\ndef later(n: int = 1): return f'later {n}'\n"
        "THINGS = (later,)\n"
    )
    (tmp_path / "new.py").write_text("def added(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    mine, postponed = map(importlib.import_module, ("mine", "postponed"))
    family = Family("thing", mine.THINGS + postponed.THINGS, "THINGS")
    assert {*members(family)} == {"mine.plain", "postponed.later"}
    assert [build(family, name) for name in ("mine.plain", "later", "postponed.later(n=2)")] == [
        "plain",
        "later 1",
        "later 2",
    ]
    for name, said in {
        "mine.bare": "is in .*/mine.py, but not in the tuple THINGS at the end of that file",
        "bare": "mine.py",
        "mine.bare(1)": "add it there",
        "later(n=1.5)": "n=1.5: it must be a whole number",
        "new.added": "/new.py, which is no module of this family; give it a tuple THINGS",
        "added": "/new.py",
        "new.absent": "unknown thing 'new.absent'",
        "absent": "unknown thing",
    }.items():
        with pytest.raises(UserError, match=said):
            build(family, name)


# functions that return a family's type and are not members, for they need arrays or functions
PARTS = {"memoryless", "empirical"}


@pytest.mark.parametrize(
    "family",
    [f for f in vars(components).values() if type(f) is Family],
    ids=lambda family: family.kind,
)
def test_no_function_that_returns_a_family_s_type_is_missing_from_it(family):
    """Every public function in or beside the family's modules whose return annotation is that of the
    members is in a tuple of members.
    """

    def returns(function):
        return getattr(function, "__annotations__", {}).get("return")

    kinds = {returns(function) for function in family.own} - {None, "Array"}
    folders = {Path(sys.modules[function.__module__].__file__).parent for function in family.own}
    listed = {(f.__module__, f.__name__) for f in family.own}
    for path in (path for folder in folders for path in folder.glob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for function in vars(importlib.import_module(name)).values():
            if inspect.isfunction(function) and function.__module__ == name:
                member = returns(function) in kinds and function.__name__[0] != "_"
                known = (name, function.__name__) in listed or function.__name__ in PARTS
                assert known or not member, f"{name}.{function.__name__} is in no {family.listed}"


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


def test_an_image_size_the_network_cannot_take_is_named(data_dir, tmp_path):
    config = digits.get_config("vp")
    config.data.data_dir, config.data.image_size = data_dir, 9
    with pytest.raises(UserError, match="9.*multiple"):
        train.train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_toys_train_and_draw_points(tmp_path):
    config = small(toy.get_config("flow"))
    config.sampler.nfe = 1  # the pictures during training, from x0-hat alone
    assert train.train(config, str(tmp_path))
    assert width(tmp_path / "samples" / "step_0000008.png") > 200


def test_specs_are_calls_in_text_and_nothing_is_evaluated():
    sampler = build(components.SAMPLERS, "ancestral.ddim(eta=0.5)")
    assert sampler.nfe == 1
    process = build(
        components.PROCESSES, "schedules.Shifted(base=schedules.VP(beta_max=10.0), shift=4.0)"
    )
    assert process.base.beta_max == 10.0
    for spec, said in {
        "ancestral.ddim(eta=": "cannot read sampler",
        "ancestral.ddim(temperature=1)": "unexpected keyword argument 'temperature'; ancestral.ddim takes eta",
        "ancestral.ddim(eta=__import__('os'))": "ancestral.ddim: eta: it must be a number",
        "__import__('os')": "unknown sampler '__import__'",
        "ancestral.ddimm": "did you mean 'ancestral.ddim'",
    }.items():
        with pytest.raises(UserError, match=said.replace("(", r"\(")):
            build(components.SAMPLERS, spec)
