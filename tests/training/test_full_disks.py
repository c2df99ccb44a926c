"""Full disks, quotas, read-only folders and files that disappear.

Each is reported in one clear line, and nothing is left half-written.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import shutil
import subprocess
import time
import warnings
from pathlib import Path

import pytest

from diffusion_jax.assembly import datasets, train
from diffusion_jax.core import files
from diffusion_jax.core.errors import UserError
from diffusion_jax.training import restoring
from tests import commands
from tests.training.tiny_run import (
    STEPS,
    child,
    config,
    ends_the_same,
    mounted,
    nothing_half_written,
    one_error,
)


@pytest.fixture(autouse=True)
def files_that_could_not_be_closed():
    """Collects them here: on a full disk their last bytes cannot be written, so they stay open."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_a_full_disk(undisturbed, tmp_path, at):
    with mounted(tmp_path / "disk", "size=4m") as disk:

        def fill():
            with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

        at(13, fill)
        with pytest.raises(UserError, match="No space left on device.*the same command") as caught:
            train.train(config(), str(disk / "run"))
        assert "\n" not in str(caught.value) and nothing_half_written(disk / "run")
        (disk / "filler").unlink()
        assert ends_the_same(disk / "run", undisturbed)


def test_files_that_may_not_grow(undisturbed, tmp_path):
    """A quota on the size of a file, which needs no mount."""
    limited = ("sh", "-c", 'ulimit -f 20; exec "$@"', "sh")  # 10 or 20 kB, as the shell counts
    with child(
        tmp_path / "run", *limited, JAX_ENABLE_COMPILATION_CACHE="false"
    ) as process:  # (jax would keep half programs)
        _, errors = process.communicate()
    assert process.returncode == 2 and os.strerror(errno.EFBIG) in one_error(errors), errors
    assert (
        nothing_half_written(tmp_path / "run")
        and restoring.latest_step(tmp_path / "run" / "checkpoints") is None
    )
    assert ends_the_same(tmp_path / "run", undisturbed)


def test_a_read_only_workdir(undisturbed, tmp_path):
    with mounted(tmp_path / "disk", "size=4m") as disk:
        shutil.copytree(undisturbed[0], disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(UserError, match="cannot be written: Read-only file system"):
            train.train(config(training__steps=2 * STEPS), str(disk / "run"))
        with pytest.raises(UserError, match="cannot be written: Read-only file system"):
            train.train(config(), str(disk / "new" / "run"))


def test_a_data_file_that_disappears(undisturbed, tmp_path):
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
        match=r"No such file or directory: '/data/points.bin'; once that is fixed, run the same",
    ):
        train.train(
            config(), str(tmp_path / "run"), dataset=whole._replace(train=Files(whole.train, 13))
        )
    assert ends_the_same(tmp_path / "run", undisturbed)


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
        assert done.returncode == 2 and "File name too long" in (line := one_error(done.stderr)), (
            done.stderr
        )
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


def test_a_workdir_that_is_moved_or_deleted_under_a_run(undisturbed, tmp_path, at):
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
    assert ends_the_same(tmp_path / "elsewhere", undisturbed)
    gone = tmp_path / "gone"
    at(3, lambda: shutil.rmtree(gone))
    with pytest.raises(UserError, match="gone was moved or deleted"):
        train.train(config(), str(gone))
    assert not gone.exists()
