"""Runs end to end and small: train, resume, sample, evaluate, the quickstart."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits, toy
from diffusion_jax.assembly import denoiser, sampling, train, workdir
from diffusion_jax.core.errors import UserError
from diffusion_jax.studies import quickstart
from diffusion_jax.studies.weights import model_card
from diffusion_jax.training import ema, loop, restoring
from tests.experiments.small_runs import ROOT, command, rows, small, width
from tests.markdown import squeezed


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    """A tiny U-Net trained for 8 steps on the digits, by the function behind the command."""
    config = small(digits.get_config("vp"), trackers=("tensorboard", "csv"))
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
    assert [line.split(",")[0] for line in table(folder)] == ["step", "2", "4", "6", "8"]


def table(folder):
    return (folder / "metrics.csv").read_text().splitlines()


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(trained, tmp_path):
    """The process stops at step 4 by losing all that came later, as kill -9 leaves it."""

    folder, config = trained
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    shutil.rmtree(again / "checkpoints" / "8")
    assert train.train(config, str(again))
    for which in (None, *checkpoint_emas(config)):
        a, b = (restoring.restore_params(f / "checkpoints", which).state for f in (folder, again))
        jax.tree.map(np.testing.assert_array_equal, a, b)
    assert rows(again) == rows(folder)
    assert [line.split(",")[:3] for line in table(again)] == [
        line.split(",")[:3] for line in table(folder)
    ]


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
    experiment, keys = loaded.experiment, jax.random.split(jax.random.key(0), 4)
    cond = experiment.conditions.of_labels(np.arange(4))
    settings = sampling.with_sampler(experiment.sampling, "sde.edm")
    plans = [sampling.method(experiment, settings._replace(nfe=nfe)) for nfe in (3, 9)]
    run = sampling.sample_fn(experiment, plans[0].sampler, guided=True, clip="static")
    longest = max(len(plan.ts) for plan in plans)
    for plan in plans:
        params = denoiser.ensemble(experiment, loaded.params)
        padded = run(params, keys, cond, sampling.pad(plan.ts, longest), jnp.float32(1.5))
        plain = sampling.sample_with(experiment, loaded.params, plan)(keys, cond)
        np.testing.assert_allclose(padded, plain, atol=1e-5)
    assert run._cache_size() == 1


def test_one_device_eight_devices_and_pmap_train_and_sample_alike(tmp_path):
    """Three steps of SGD on the toy, and images from the same keys, on 8 forced host devices (SGD:
    Adam would amplify rounding).
    """
    script = """
import jax, numpy as np, sys
sys.path.insert(0, '.')
from tests.experiments.small_runs import small
from configs import toy
from diffusion_jax import data
from diffusion_jax.core import arrays
from diffusion_jax.assembly import datasets, sampling, trainer
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.training import loop, sharding
def train(parallel, devices):
    config = small(toy.get_config('flow'))
    config.parallel = parallel
    config.conditional = True
    config.optimizer.update(name='sgd', learning_rate=0.1, warmup=0)
    for name in ('b1', 'b2', 'weight_decay'):
        config.optimizer[name] = None
    dataset = datasets.dataset(config)
    experiment = assemble(config, dataset.image_shape, dataset.num_classes)
    parts = trainer.training(experiment, jax.devices()[:devices])
    state = parts.runner.init(parts.init, jax.random.key(0))
    calls = loop.stack(data.batches(dataset.train, batch_size=16), 1)
    for i in range(3):
        state, metrics = parts.step(state, parts.runner.put_batch(calls(i), axis=1))
    return experiment, sharding.fetch(state.params), float(np.ravel(metrics['loss'])[0])
experiment, one, loss = train('jit', 1)
for parallel in ('jit', 'pmap'):
    _, params, other = train(parallel, 8)
    assert abs(loss - other) < 1e-6 * abs(loss), (parallel, loss, other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), one, params)
keys, cond = arrays.example_keys(jax.random.key(1), 16), {'label': jax.numpy.arange(16) % 8}
run = sampling.sample_with(experiment, one, sampling.method(experiment))
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
    shown = command(
        "sample",
        f"--workdir={folder}",
        "--seeds=4",
        "--labels=2",
        "--config.sampler.name=ode.heun",
        "--gif",
    ).stdout
    assert "samples.gif" in shown and width(folder / "samples.gif") > 2 * 200
    np.testing.assert_array_equal(
        np.load(folder / "samples.npz")["images"][0], four["images"][1]
    )  # one seed, one image
    shown = command("evaluate", f"--workdir={folder}", "--num=20", "--repeats=2").stdout
    assert "real test images" in shown and "recognized" in shown


def test_the_commands_take_one_evaluation(trained):
    """With two, a sampler whose steps take two evaluations uses one: x0-hat of the noise."""
    folder, _ = trained
    done = command(
        "sample",
        f"--workdir={folder}",
        "--seeds=4",
        "--labels=2",
        "--config.sampler.name=ode.edm_heun",
        "--config.sampler.nfe=2",
    )
    assert ", 1 evaluation per image" in done.stdout + done.stderr and np.load(
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
    assert "Fréchet distance of pixels" in done.stdout


def quickstart_leaves(root, text, budgets, shipped=False):
    for name in ("samples.png", "denoising.png", "loss.png", "samplers.png", "samplers_strips.png"):
        assert name in text and width(root / name) > 150
    table = squeezed((root / "samplers.md").read_text())
    assert table.count("| ancestral.ddim |") == budgets
    assert "samplers.html" in text and (root / "samplers.html").stat().st_size > 10_000
    assert text.count("python -m experiments.") == 3 + shipped
    assert (root / "mnist_samples.png").is_file() == shipped


@pytest.mark.long
def test_quickstart_makes_every_picture_it_names_and_suggests_what_next(
    data_dir, tmp_path, monkeypatch, capsys
):
    config = small(digits.get_config("vp"), steps=4)
    config.data.data_dir = data_dir
    monkeypatch.setattr(quickstart, "SAMPLERS", ["ancestral.ddim", "ode.heun"])
    monkeypatch.setattr(quickstart, "BUDGETS", [3, 5])
    monkeypatch.setattr(quickstart, "EVALUATED", 20)
    monkeypatch.setattr(quickstart, "SHIPPED", "none")  # tests/test_pretrained.py draws from them
    quickstart.quickstart(config.lock(), workdir=str(tmp_path / "run"), num=20)
    quickstart_leaves(tmp_path / "run", capsys.readouterr().out, 2)
    trained = workdir.load(tmp_path / "run")
    (kept,) = model_card.evaluations(tmp_path / "run", "", trained.step, trained.weights)
    assert kept["num"] == 20  # it can be published


@pytest.mark.long
def test_the_command_quickstart_leaves_what_it_names(data_dir, tmp_path):
    tiny = ["width=8", "multipliers=(1,)", "attention=()", "head_width=8"]
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
    quickstart_leaves(tmp_path / "run", done.stdout, 4, shipped=True)


def test_labels_and_samplers_that_do_not_exist_are_named(trained):
    folder, _ = trained
    done = command("sample", f"--workdir={folder}", "--labels=12", expect=2)
    assert "label 12 does not exist" in done.stderr
    done = command("sample", f"--workdir={folder}", "--config.sampler.name=ode.hun", expect=2)
    assert "did you mean 'ode.heun'" in done.stderr


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


def cache_events(function):
    """(programs found in the compilation cache, programs that are not there) of a call."""
    events = []

    def note(event, **details):
        events.append(event)

    jax.clear_caches()
    jax.monitoring.register_event_listener(note)
    try:
        function()
    finally:
        jax.monitoring.unregister_event_listener(note)
    return tuple(
        events.count(f"/jax/compilation_cache/cache_{kind}") for kind in ("hits", "misses")
    )


def test_until_the_first_step_the_network_is_traced_twice(tmp_path):
    """Once for the parameters, whose shapes and program share it, and once for the step, in the
    thread that compiles it (test_compiled_ahead.py), which is not watched here. The programs of the
    held-out loss and of the pictures are made when they are first needed.
    """
    traced, programs = [], []

    def watch(method, args, kwargs, context):
        if context.method_name == "__call__" and not context.module.path:
            traced.append(type(args[0]))
        return method(*args, **kwargs)

    def note(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            programs.append(details["fun_name"])

    def first_step(state, step, batches, **rest):
        state, _ = step(state, next(iter(batches(0)))[1])
        return loop.Fitted(state, 1, None)

    config = small(toy.get_config("vp"), steps=2, eval_every=2, sample_every=2).lock()
    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        with nn.intercept_methods(watch):
            train.train(config, str(tmp_path), fit=first_step)
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert len(traced) == 1
    assert len(programs) < 70 and programs.count("jit(steps)") == programs.count("jit(init)") == 1


def test_a_second_run_compiles_nothing(tmp_path):
    """All of its programs are in the cache: none depends on the workdir or on chance."""
    config = small(toy.get_config("vp"), steps=2, eval_every=2, sample_every=2).lock()
    cache_events(lambda: train.train(config, str(tmp_path / "first")))
    hits, misses = cache_events(lambda: train.train(config, str(tmp_path / "second")))
    assert hits > 10 and misses == 0
    number = secrets.randbits(30)  # the control: a new program
    assert cache_events(lambda: jax.jit(lambda x: x + number)(np.arange(3))) == (0, 1)


def test_a_command_keeps_the_smallest_programs(tmp_path):
    """A run makes dozens of programs of one operation before its first step."""
    code = f"from experiments import session; session.enable_compilation_cache('{tmp_path}'); "
    code += "import jax; jax.jit(lambda x: x + 1)(1.0)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("jit__lambda")]
