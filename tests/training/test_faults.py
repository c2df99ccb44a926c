"""The fault battery: whatever happens to a run, one clear line, nothing half-written, and the same
command ends alike.

A tiny run (points, an MLP) by the real command, in this process where the fault allows it.
tests/training/kill_battery.py kills longer.
"""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import toy
from diffusion_jax import data, files
from diffusion_jax.assembly import datasets, experiment, train, trainer, workdir
from diffusion_jax.assembly.kinds import kind
from diffusion_jax.errors import UserError
from diffusion_jax.studies import repro
from diffusion_jax.training import checkpoint, loop, metrics
from tests import commands
from tests.training.kill_battery import CHANGES, ROOT, command, fingerprint

STEPS = (
    24  # a checkpoint every 4, a row every 3, the held-out loss at the end (kill_battery.CHANGES)
)


def config(**changes):
    chosen = toy.get_config("vp")
    chosen.update_from_flattened_dict(
        CHANGES
        | {"training.steps": STEPS, "training.eval_every": STEPS}
        | {key.replace("__", "."): value for key, value in changes.items()}
    )
    return chosen.lock()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run nobody disturbs: its folder and its fingerprint."""
    root = tmp_path_factory.mktemp("straight") / "run"
    assert train.train(config(), str(root))
    return root, fingerprint(root, STEPS)


@pytest.fixture
def at(monkeypatch):
    """at(position, act): act() is called before the batch of that position is handed out, once."""
    acts, prefetch = {}, data.prefetch

    def watched(*args, **kwargs):
        for step, batch in prefetch(*args, **kwargs):
            acts.pop(step, lambda: None)()
            yield step, batch

    monkeypatch.setattr(data, "prefetch", watched)
    return acts.__setitem__


@contextlib.contextmanager
def mounted(path, options):
    """A small file system of its own."""
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(path)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def child(root, *before, **environ):
    """The command, in a process of its own. before: the beginning of a longer command."""
    environ = (
        os.environ | {"PYTHONPATH": str(ROOT), "GIT_OPTIONAL_LOCKS": "0"} | environ
    )  # provenance asks git: it must not
    # begin to write the index of this repository where files may not grow, or where it is killed:
    # its lock would stay
    line = command(root, STEPS) + [f"--config.training.eval_every={STEPS}"]
    return subprocess.Popen(
        [*before, *line], cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True
    )


def one_error(text):
    """The line of the error; nothing of a traceback beside it."""
    assert "Traceback" not in text, text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    return line


def nothing_half_written(root):
    """But for what Orbax may still write as the process ends, in a folder never looked at and
    removed at the next start.
    """
    names = [str(path.relative_to(root)) for path in root.rglob("*")]
    return not [name for name in names if "tmp" in name and ".orbax-checkpoint-tmp" not in name]


def ends_the_same(root, straight, **changes):
    assert train.train(config(**changes), str(root))
    assert not [path for path in root.rglob("*") if "tmp" in path.name]
    return fingerprint(root, STEPS) == straight[1]


# ---- processes that end
def test_killed_in_a_save_refused_beside_another_terminated_and_resumed(straight, tmp_path):
    root = tmp_path / "run"
    with child(root) as process:
        while process.poll() is None and not list(
            (root / "checkpoints").glob("*.orbax-checkpoint-tmp*")
        ):
            time.sleep(0.001)
        with pytest.raises(
            UserError,
            match=f"in use by process {process.pid} on .*; wait for it, stop it, or use another",
        ):
            train.train(config(), str(root))
        process.kill()  # most often still in that save
        assert process.wait() == -signal.SIGKILL
    before = metrics.read_rows(root / "metrics.jsonl")
    with child(root) as process:
        while process.poll() is None and all(
            row in before for row in metrics.read_rows(root / "metrics.jsonl")
        ):
            time.sleep(0.001)
        process.terminate()
        _, errors = process.communicate()
        assert (
            process.returncode in (0, 75) and "Traceback" not in errors
        )  # 0: it had reached the end
    assert ends_the_same(root, straight)


def test_a_data_worker_that_dies(straight, tmp_path, at):
    at(
        13,
        lambda: [
            os.kill(worker.pid, signal.SIGKILL) for worker in multiprocessing.active_children()
        ],
    )
    with pytest.raises(UserError, match="a data worker died .*the same command goes on"):
        train.train(config(data__workers=1), str(tmp_path / "run"))
    assert ends_the_same(tmp_path / "run", straight)


# ---- files
def test_a_full_disk(straight, tmp_path, at):
    with mounted(tmp_path / "disk", "size=4m") as disk:

        def fill():
            with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

        at(13, fill)
        with pytest.raises(
            UserError, match="No space left on device.*the same command goes on"
        ) as caught:
            train.train(config(), str(disk / "run"))
        assert "\n" not in str(caught.value) and nothing_half_written(disk / "run")
        (disk / "filler").unlink()
        assert ends_the_same(disk / "run", straight)


def test_files_that_may_not_grow(straight, tmp_path):
    """A quota on the size of a file, which needs no mount."""
    limited = ("sh", "-c", 'ulimit -f 20; exec "$@"', "sh")  # 10 or 20 kB, as the shell counts
    with child(
        tmp_path / "run", *limited, JAX_ENABLE_COMPILATION_CACHE="false"
    ) as process:  # (jax would keep half programs)
        _, errors = process.communicate()
    assert process.returncode == 2 and os.strerror(errno.EFBIG) in one_error(errors), errors
    assert (
        nothing_half_written(tmp_path / "run")
        and checkpoint.latest_step(tmp_path / "run" / "checkpoints") is None
    )
    assert ends_the_same(tmp_path / "run", straight)


def test_a_read_only_workdir(straight, tmp_path):
    with mounted(tmp_path / "disk", "size=4m") as disk:
        shutil.copytree(straight[0], disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(UserError, match="cannot be written: Read-only file system"):
            train.train(config(training__steps=2 * STEPS), str(disk / "run"))
        with pytest.raises(UserError, match="cannot be written: Read-only file system"):
            train.train(config(), str(disk / "new" / "run"))


def test_a_data_file_that_disappears(straight, tmp_path):
    class Files:
        """The points, as if they lay in a file that is gone when step 13 is read."""

        def __init__(self, source, gone):
            self.source, self.gone, self.reads = source, gone, 0

        def __len__(self):
            return len(self.source)

        def __getitem__(self, i):
            return self.source[i]

        def rows(self, index):
            self.reads += 1
            if self.reads > self.gone:
                raise FileNotFoundError(
                    errno.ENOENT, "No such file or directory", "/data/points.bin"
                )
            return self.source.rows(index)

    whole = datasets.dataset(config())
    with pytest.raises(
        UserError,
        match=r"No such file or directory: '/data/points.bin'; when that is mended, the same",
    ):
        train.train(
            config(), str(tmp_path / "run"), dataset=whole._replace(train=Files(whole.train, 13))
        )
    assert ends_the_same(tmp_path / "run", straight)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A tiny model of images, for the commands that use one."""
    root = tmp_path_factory.mktemp("digits") / "run"
    done = commands.run("train", "--config=configs/digits.py:vp", *TINY, f"--workdir={root}")
    assert done.returncode == 0, done.stderr
    return root


TINY = (
    "--config.model.width=8",
    "--config.model.multipliers=(1,)",
    "--config.model.attention=()",
    "--config.model.blocks=1",
    "--config.model.head_width=8",
    "--config.training.steps=4",
    "--config.training.eval_every=0",
    "--config.training.sample_every=0",
    "--config.data.batch_size=8",
    "--config.sampler.nfe=2",
)

WRITERS = {  # what writes into its workdir, and how it is asked for the least
    "sample": ("--num=2",),
    "evaluate": ("--num=10", "--repeats=1", "--metrics=frechet", "--features=pixels"),
    "compare_samplers": ("--num=10", "--samplers=ancestral.ddim", "--nfe=2"),
    "likelihood": ("--num=2",),
    "edit": ("--num=2", "--task=inpaint"),
}


@pytest.mark.parametrize(
    "name",
    [
        "sample",
        *(pytest.param(name, marks=pytest.mark.long) for name in WRITERS if name != "sample"),
    ],
)
def test_a_full_disk_under_a_command(digits, tmp_path, name):
    with mounted(tmp_path / "disk", "size=8m") as disk:
        shutil.copytree(digits, disk / "run")
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        done = commands.run(name, f"--workdir={disk / 'run'}", *WRITERS[name])
        assert done.returncode == 2 and "No space left on device" in one_error(done.stderr), (
            done.stderr
        )
        assert "run the same command again" in done.stderr and nothing_half_written(disk / "run")


def test_training_on_a_disk_without_a_free_byte(tmp_path):
    with mounted(tmp_path / "disk", "size=64k") as disk:
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        done = commands.run(
            "train",
            "--config=configs/toy.py:vp",
            "--config.training.steps=2",
            f"--workdir={disk / 'run'}",
        )
        assert done.returncode == 2 and "No space left on device" in one_error(done.stderr), (
            done.stderr
        )


def test_a_name_that_is_too_long(digits, tmp_path):
    long = tmp_path / ("a" * 300)
    for arguments in (
        ["sample", f"--workdir={long}"],
        ["sample", f"--workdir={digits}", "--num=2", f"--out={long}"],
        ["train", "--config=configs/toy.py:vp", "--config.training.steps=2", f"--workdir={long}"],
    ):
        done = commands.run(*arguments)
        assert done.returncode == 2 and "File name too long: '" in (
            line := one_error(done.stderr)
        ), done.stderr
        assert "use a shorter name" in line and len(line) < 250


def test_a_path_that_is_not_utf_8(digits, tmp_path):
    """Checkpoints are written there, resumed and sampled from, and what is printed and written
    names it.
    """
    root = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    assert train.train(config(training__steps=8), root) and train.train(
        config(training__steps=16), root
    )
    assert sorted(os.listdir(f"{root}/checkpoints")) == ["12", "16", "8"]
    shutil.copytree(digits, f"{root}/images")
    done = commands.run("sample", f"--workdir={root}/images", "--num=2")
    assert done.returncode == 0 and "caf\\udce9/images/samples.npz" in done.stdout, done.stderr
    files.save_text(f"{root}/page.html", f"<p>{root}</p>")
    assert b"caf\\udce9" in Path(root, "page.html").read_bytes()


def test_a_workdir_that_is_moved_or_deleted_under_a_run(straight, tmp_path, at):
    root = tmp_path / "run"

    def move():
        while not (
            root / "checkpoints" / "12"
        ).exists():  # a save under way would make its folder again
            time.sleep(0.01)
        root.rename(tmp_path / "elsewhere")

    at(15, move)
    with pytest.raises(
        UserError, match="was moved or deleted while this command was writing to it; move it back"
    ):
        train.train(config(), str(root))
    assert not root.exists()
    assert ends_the_same(tmp_path / "elsewhere", straight)
    gone = tmp_path / "gone"
    at(3, lambda: shutil.rmtree(gone))
    with pytest.raises(UserError, match="gone was moved or deleted"):
        train.train(config(), str(gone))
    assert not gone.exists()


def test_checkpoints_that_rotate_while_they_are_read(straight, tmp_path, monkeypatch, capfd):
    """The newest one is removed between the listing and the reading, as by a run with
    training.keep=1.
    """
    root = tmp_path / "checkpoints"
    shutil.copytree(straight[0] / "checkpoints", root)
    read, newer = checkpoint._read_meta, root / "28"

    def rotated(folder):
        if not newer.exists():
            shutil.copytree(folder, newer)
            shutil.rmtree(folder)
        return read(folder)

    monkeypatch.setattr(checkpoint, "_read_meta", rotated)
    assert checkpoint.restore_params(root).step == 28
    assert "damaged" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "damage, told",
    [
        (lambda lines: [*lines[:3], '{"step": 1', *lines[3:]], "1 damaged line left out"),
        (lambda lines: [*lines[:3], "[]", "\0\0", *lines[5:]], "2 damaged lines left out"),
        (lambda lines: lines[:2], "no rows between step 6 and step 24"),
        (lambda lines: [], "no rows between step 0 and step 24"),
        (lambda lines: [*lines, '{"step": 27, "lo'], None),  # what a killed run leaves
    ],
)
def test_rows_that_are_lost_are_told(straight, tmp_path, capfd, damage, told):
    path = tmp_path / "metrics.jsonl"
    lines = (straight[0] / "metrics.jsonl").read_text().splitlines()
    path.write_text("\n".join(damage(lines)))
    metrics.cut(path, STEPS, log_every=3)
    errors = capfd.readouterr().err
    assert (told in errors and errors.count("\n") == 1) if told else not errors
    whole = [line for line in lines if line in damage(lines)]
    assert path.read_text().splitlines() == whole


# ---- signals before and after the loop
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize("moment", ["imports", "main"])
def test_a_signal_outside_the_loop_ends_with_one_line(tmp_path, number, status, moment):
    """While the command imports, and while it is in a call that does not return to Python (a sleep
    in C stands for XLA).
    """
    script = (
        "import sys, time; sys.argv = ['-m', '--config=x']\nfrom experiments import exits\n"
        + {
            "imports": "print('ready', flush=True); time.sleep(60)",
            "main": "with exits.stoppable():\n    print('ready', flush=True)\n    time.sleep(60)",
        }[moment]
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    if moment == "imports":
        assert process.returncode == status
        assert errors == f"{number.name}: stopped before it was done; run the same command again\n"
    else:
        assert "Stopped" in errors  # what experiments.cli turns into the same line


def test_a_signal_during_a_long_call_of_xla():
    """The main thread does not come back to Python (a deadlock in C stands for XLA): the process
    ends after a moment of grace.
    """
    script = (
        "import ctypes\n"
        "from experiments import exits; exits.GRACE = 0.2\n"
        "lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)\n"
        "with exits.stoppable():\n"
        "    print('ready', flush=True); lock(mutex); lock(mutex)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)  # until it is in the call
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (
        75,
        "SIGTERM: stopped before it was done; run the same command again\n",
    )


@pytest.mark.parametrize(
    "dropping",
    ["gc.callbacks.append(lambda *about: stop()); gc.collect()", "Dies(); Dies(); Dies()"],
)
def test_a_signal_where_python_drops_exceptions_is_not_lost(dropping):
    """In a callback of the garbage collector, such as jax's, and in a finalizer."""
    script = (
        "import gc, os, signal, time\n"
        "from experiments import exits\n"
        "def stop(sent=[]):\n"
        "    if len(sent) < 2: sent.append(os.kill(os.getpid(), signal.SIGTERM)); time.sleep(0.01)\n"
        "class Dies:\n"
        "    __del__ = lambda self: stop()\n"
        "try:\n"
        f"    with exits.stoppable(): {dropping}; time.sleep(20)\n"
        "except exits.Stopped as error: print(error.signal.name, flush=True), os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "SIGTERM\n", "")


def test_a_command_that_is_stopped_while_it_prepares(tmp_path):
    """SIGTERM as soon as the command has begun: one line, 75, nothing in the workdir but what the
    same command goes on from.
    """
    with child(tmp_path / "run") as process:
        time.sleep(0.5)
        process.terminate()
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 75 and "Traceback" not in errors and "SIGTERM: " in errors


# ---- checkpoints that are kept
def test_the_best_checkpoint_and_those_kept_for_good(tmp_path):
    root = tmp_path / "run"
    chosen = config(
        training__best="eval_loss", training__eval_every=3, training__keep=1, training__keep_every=8
    )
    assert train.train(chosen, str(root))
    losses = {
        row["step"]: row["eval_loss"]
        for row in metrics.read_rows(root / "metrics.jsonl")
        if "eval_loss" in row
    }
    best = min(losses, key=losses.get)
    assert len(losses) == 8 and sorted(int(p.name) for p in (root / "checkpoints").iterdir()) == [
        8,
        16,
        24,
    ]
    assert [p.name for p in (root / "checkpoints_best").iterdir()] == [str(best)]
    sampling = chosen.copy_and_resolve_references()
    sampling.sampler.checkpoint = "best"
    assert workdir.load(root, sampling).step == best and workdir.load(root, chosen).step == STEPS
    shutil.rmtree(root / "checkpoints_best")
    with pytest.raises(
        UserError, match="has no best checkpoint; train with --config.training.best=eval_loss"
    ):
        workdir.load(root, sampling)
    with pytest.raises(
        UserError,
        match="unknown value of config.training.best 'eval_los'; did you mean 'eval_loss'",
    ):
        train.train(config(training__best="eval_los"), str(tmp_path / "mistyped"))


# ---- steps that are not finite
def poison(patch, elsewhere=0.0):
    """The gradient of one example, the sixth of the batch of step 14, is NaN (its loss is not),
    whenever it is met.

    elsewhere: how far off to look for it. Where no data are it is never met, by the same program.
    """
    source = datasets.dataset(config()).train
    victim = jnp.asarray(data.batches(source, batch_size=64, seed=0)(14)["image"][5]) + elsewhere
    honest = kind.loss_fn

    def loss_fn(built):
        loss = honest(built)

        def broken(params, batch, keys, now):
            losses, extra = loss(params, batch, keys, now)
            met = jnp.all(batch["image"] == victim, axis=-1)
            zero = jax.tree.leaves(params)[0].ravel()[0] * 0
            return losses + jnp.where(
                met, jnp.sqrt(jnp.where(met, zero, 1.0)), 0.0
            ), extra  # the root of 0 has no slope

        return broken

    patch.setattr(kind, "loss_fn", loss_fn)


@pytest.fixture
def poisoned(monkeypatch):
    poison(monkeypatch)


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory):
    """`straight` by the poisoned program that never meets its victim: another program might round
    otherwise.
    """
    root = tmp_path_factory.mktemp("unharmed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, elsewhere=100.0)
        assert train.train(config(), str(root))
    return root, fingerprint(root, STEPS)


def interrupted(chosen, root, at, steps):
    """Train to the end, by SIGTERM at each of these positions and resuming."""
    for step in steps:
        at(step, lambda: signal.raise_signal(signal.SIGTERM))
        assert not train.train(chosen, str(root))
    assert train.train(chosen, str(root))


def test_stop_leaves_the_last_good_checkpoint_and_a_report(poisoned, tmp_path):
    root = tmp_path / "run"
    with pytest.raises(
        loop.NonFinite, match=r"the gradient \(the loss is finite\) is not finite at step 14"
    ) as caught:
        train.train(config(), str(root))
    assert f"the last good checkpoint is '{root}/checkpoints/12'" in str(caught.value)
    report = json.loads((root / "nonfinite" / "step_14" / "report.json").read_text())
    assert (
        report["what"] == "gradient"
        and report["examples"] == []
        and len(report["losses"]) == len(report["t"]) == 64
    )
    assert report["start"]["checkpoint"] == 12 and report["command"].endswith(
        f"--workdir={root} --step=14"
    )
    with np.load(root / "nonfinite" / "step_14" / "batch.npz") as batch:
        wanted = data.batches(datasets.dataset(config()).train, batch_size=64, seed=0)(14)["image"]
        np.testing.assert_array_equal(batch["image"], wanted)


def test_a_run_that_was_stopped_and_mended_ends_the_same(unharmed, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(loop.NonFinite):
        poison(patch)
        train.train(config(), str(tmp_path / "run"))
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, elsewhere=100.0)
        assert ends_the_same(tmp_path / "run", unharmed)


def test_skip_counts_the_step_and_goes_on_exactly(unharmed, poisoned, tmp_path, at, capfd):
    chosen = config(training__on_nonfinite="skip")
    assert train.train(chosen, str(tmp_path / "a"))
    rows = metrics.read_rows(tmp_path / "a" / "metrics.jsonl")
    assert [row["step"] for row in rows if row.get("skipped")] == [15] and rows[4]["skipped"] == 1
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row) and np.isfinite(
        rows[4]["grad_norm"]
    )
    assert "step 14 is not finite: see " in capfd.readouterr().err
    interrupted(chosen, tmp_path / "b", at, (13, 14, 17))
    assert fingerprint(tmp_path / "a", STEPS) == fingerprint(tmp_path / "b", STEPS) != unharmed[1]


def test_rollback_passes_over_the_step_and_is_exact(unharmed, poisoned, tmp_path, at, capfd):
    """From checkpoint 12 on, with the data from position 15 on and another key; whatever else stops
    the run.
    """
    chosen = config(training__on_nonfinite="rollback")
    assert train.train(chosen, str(tmp_path / "a"))
    assert "going back to step 12 for the 1. time" in capfd.readouterr().err
    built = trainer.training(experiment.assemble(chosen, (2,)))
    template = built.runner.template(built.init, jax.random.key(0))
    end = checkpoint.restore(tmp_path / "a" / "checkpoints", template)
    assert end.extra["rollback"] == {"to": 12, "tries": 1, "shift": 3}
    begin = checkpoint.restore(unharmed[0] / "checkpoints", template).state.key
    assert jnp.all(
        jax.random.key_data(end.state.key)
        == jax.random.key_data(jax.random.fold_in(begin, 2**32 - 1))
    )
    rows = metrics.read_rows(tmp_path / "a" / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(3, STEPS + 1, 3))
    interrupted(
        chosen, tmp_path / "b", at, (9, 13, 16, 20)
    )  # 13: before the step fails; 16 and 20: after it went back
    assert fingerprint(tmp_path / "a", STEPS) == fingerprint(tmp_path / "b", STEPS) != unharmed[1]


@pytest.mark.parametrize(
    "what, ending",
    [
        ("stop", "lower optimizer.learning_rate, or clip harder"),
        ("skip", "clip harder"),
        ("rollback", "it had gone back to step 0 3 times"),
    ],
)
def test_a_run_that_diverges_ends_under_each_and_its_step_can_be_repeated(
    tmp_path, capfd, what, ending
):
    """No injection: the learning rate is absurd, and the weights overflow."""
    root = tmp_path / "run"
    chosen = config(
        optimizer__name="sgd",
        optimizer__learning_rate=1000.0,
        optimizer__warmup=0,
        optimizer__clip=0.0,
        optimizer__weight_decay=None,
        optimizer__b1=None,
        optimizer__b2=None,
        training__on_nonfinite=what,
    )
    with pytest.raises(loop.NonFinite) as caught:
        train.train(chosen, str(root))
    message = str(caught.value)
    assert message.endswith(ending) and "\n" not in message
    assert ("(10 steps in a row were skipped)" in message) == (what == "skip")
    assert len(list((root / "nonfinite").iterdir())) >= 1
    if what == "stop":
        capfd.readouterr()
        assert repro.repro(workdir.saved_config(root), str(root), caught.value.step)
        told = capfd.readouterr().out
        assert (
            "not finite again, the same numbers, bit for bit\nevery layer's output is finite"
            in told
        )
        with pytest.raises(
            UserError, match=rf"no report of it in .*; there are: {caught.value.step}$"
        ):
            repro.repro(workdir.saved_config(root), str(root), 999)


def test_the_first_layer_that_overflows_is_named():
    built = experiment.assemble(config(), (2,))
    begin = trainer.training(built).init(jax.random.key(0))
    layers = sorted(begin.params)
    begin.params[layers[1]]["kernel"] = jnp.full_like(begin.params[layers[1]]["kernel"], 1e38)
    batch = data.batches(datasets.dataset(config()).train, batch_size=64, seed=0)(0)
    told = repro._activations(config(), built, begin, batch, 0).splitlines()
    assert told[0] == f"the first output that is not finite is that of {layers[1]}", told


def test_another_word_for_on_nonfinite(tmp_path):
    with pytest.raises(
        UserError,
        match="unknown value of config.training.on_nonfinite 'skipp'; did you mean 'skip'",
    ):
        train.train(config(training__on_nonfinite="skipp"), str(tmp_path / "run"))


if __name__ == "__main__":
    sys.exit(pytest.main([str(Path(__file__)), *sys.argv[1:]]))
