"""Workdirs and data in an object store (tests/buckets): the same bits, whatever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest

from configs import folder as folder_config
from diffusion_jax.assembly import datasets, leases, train, workdir
from diffusion_jax.core import buckets, files, mirrors, staging
from diffusion_jax.core.errors import UserError
from diffusion_jax.training import metrics, restoring, verification
from tests.training.kill_battery import ROOT, STORES, fingerprint, half_saved
from tests.training.test_distributed import ended, free_port, until
from tests.training.tiny_run import STEPS, child, config

RUN = "fakebucket://b/run"


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The folder of a bucket; every test is a host of its own."""
    monkeypatch.syspath_prepend(str(STORES))
    fsspec.process_entries()
    monkeypatch.setenv("FAKEBUCKET_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("DIFFUSION_JAX_BUCKETS", str(tmp_path / "host"))
    monkeypatch.setenv("PYTHONPATH", f"{STORES}{os.pathsep}{ROOT}")
    monkeypatch.setattr(buckets, "FIRST", 0.1)
    monkeypatch.setattr(buckets, "PATIENCE", 0.1)
    (tmp_path / "store" / "b").mkdir(parents=True)
    yield tmp_path / "store" / "b"
    staging.close()


def elsewhere(monkeypatch, tmp_path, name):
    """From now on this process is on another host."""
    staging.close()
    monkeypatch.setenv("DIFFUSION_JAX_BUCKETS", str(tmp_path / name))


def put(folder, **contents):
    for name, text in contents.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def checkpoint(folder, step, text="x"):
    put(folder / "checkpoints" / str(step), state=text, _COMMITTED=json.dumps({"state": len(text)}))


# ---- the folder and the bucket
def test_the_folder_is_made_equal_and_what_changes_is_sent(store, tmp_path, monkeypatch):
    put(store / "run", a="1", sub__b="2")
    folder = Path(staging.local(RUN))
    assert folder.name == "run" and (folder / "sub/b").read_text() == "2"
    assert (
        staging.local(f"{RUN}/sub") == str(folder / "sub") and staging.local("runs/a") == "runs/a"
    )
    assert staging.shown(f"{folder}/x") == f"{RUN}/x"
    files.save_text(folder / "new/c", "3")
    assert (store / "run/new/c").read_text() == "3"  # without a push
    put(folder, a="changed", log="4", **{".hidden": "5"})
    (folder / "sub/b").unlink()
    staging.push(folder)
    there = {p.relative_to(store).as_posix() for p in store.rglob("*") if p.is_file()}
    assert there == {"run/a", "run/log", "run/new/c"} and (store / "run/a").read_text() == "changed"
    put(folder, a="never sent", unsent="6")
    put(store / "run", log="of another host")
    staging.close()  # as when a process is killed: the bucket is the truth
    assert Path(staging.local(RUN)) == folder
    assert (folder / "a").read_text() == "changed" and not (folder / "unsent").exists()
    assert (folder / "log").read_text() == "of another host"


def test_processes_of_one_machine_have_folders_of_their_own(store):
    one = staging.local(RUN)
    first = list(staging._OPEN)
    staging._OPEN.clear()
    assert staging.local(RUN) != one
    staging._OPEN.extend(first)


def test_what_is_the_same_is_not_fetched_again(store, monkeypatch):
    put(store / "run", a="1", b="2")
    staging.local(RUN)
    staging.close()
    put(store / "run", b="3")
    fetched, download = [], buckets.download
    monkeypatch.setattr(
        buckets, "download", lambda *args: fetched.append(args[1]) or download(*args)
    )
    assert (Path(staging.local(RUN)) / "b").read_text() == "3" and fetched == ["b"]


def test_a_checkpoint_counts_by_its_last_object_and_is_fetched_when_it_is_read(store):
    checkpoint(store / "run", 4)
    put(store / "run", checkpoints__8__state="half of it")
    folder = Path(staging.local(RUN)) / "checkpoints"
    assert restoring.steps(folder) == [4] and not list((folder / "4").iterdir())
    staging.fetch(folder / "4")
    assert (folder / "4/state").read_text() == "x"
    staging.tidy(folder)
    assert not (store / "run/checkpoints/8/state").exists()
    put(folder, **{"12__state": "y", "16.orbax-checkpoint-tmp-1__state": "z"})
    (folder / "4/state").unlink(), (folder / "4").rmdir()
    staging.push()
    assert json.loads((store / "run/checkpoints/12/_COMMITTED").read_text()) == {"state": 1}
    left = {p.name for p in (store / "run/checkpoints").iterdir() if any(p.iterdir())}
    assert left == {"12"}


def test_a_checkpoint_that_is_removed_while_it_is_read_gives_way_to_the_newer(store):
    checkpoint(store / "run", 4)
    folder = Path(staging.local(RUN)) / "checkpoints"
    (store / "run/checkpoints/4/_COMMITTED").unlink()
    checkpoint(store / "run", 8)
    staging.fetch(folder / "4")
    assert restoring.steps(folder) == [8]


@pytest.mark.parametrize("name", ["../../out", "a/../../out", "/out", "a//b", "a\\b"])
def test_names_that_leave_the_folder_are_refused(store, monkeypatch, name):
    checkpoint(store / "run", 4)
    (store / "run/checkpoints/4/_COMMITTED").write_text(json.dumps({name: 1}))
    folder = Path(staging.local(RUN)) / "checkpoints"
    with pytest.raises(UserError, match="an object that is no file"):
        staging.fetch(folder / "4")
    staging.close()
    listed = {f"b/run/{name}": {"size": 1}}
    monkeypatch.setattr(
        fsspec.get_filesystem_class("fakebucket"), "find", lambda *args, **kwargs: listed
    )
    with pytest.raises(UserError, match="an object that is no file"):
        staging.local(RUN)


# ---- one line for what is wrong
@pytest.mark.parametrize(
    "url, message",
    [
        ("http://b/run", "--workdir=http://b/run: write gs://BUCKET/..., s3://BUCKET/... or a"),
        ("memory://b/run", "write gs://BUCKET"),
        ("fakebucket://", "write fakebucket://BUCKET/NAME"),
        ("fakebucket://b/../x", "plain names"),
        ("fakebucket://b::file:///etc", "plain names"),
    ],
)
def test_urls_that_name_no_bucket(store, url, message):
    with pytest.raises(UserError, match=message):
        staging.local(url)


def test_a_package_that_is_missing_is_named(monkeypatch):
    def missing(*args, **kwargs):
        raise ImportError("gcsfs")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(UserError, match=r"--workdir=gs://b/a needs .*; pip install .*\[gcs\]"):
        staging.local("gs://b/a")


def test_a_store_that_is_gone_or_refuses_is_one_line_and_the_results_stay(store):
    folder = Path(staging.local(RUN))
    (store.parent / "forbidden").touch()
    with pytest.raises(UserError, match=f"{RUN} cannot be written: PermissionError: access denied"):
        files.save_text(folder / "a", "1")
    (store.parent / "forbidden").rename(store.parent / "down")
    with pytest.raises(UserError, match="the network is gone; .*; the rest stays in .* until you"):
        staging.push()
    staging.close()
    with pytest.raises(UserError, match=f"--workdir={RUN} cannot be listed: ConnectionError"):
        staging.local(RUN)
    (store.parent / "down").unlink()
    assert Path(staging.local(RUN)) != folder and (folder / "a").read_text() == "1"
    with pytest.raises(UserError, match="b2/run: there is no such bucket"):
        files.save_text(Path(staging.local("fakebucket://b2/run")) / "a", "1")


def test_a_short_outage_is_waited_for(store, monkeypatch):
    monkeypatch.setattr(buckets, "PATIENCE", 60)
    folder = Path(staging.local(RUN))
    down = store.parent / "down"
    down.touch()
    monkeypatch.setattr(buckets.time, "sleep", lambda seconds: down.unlink(missing_ok=True))
    buckets.upload(staging.of(folder).bucket, "a", Path(__file__))
    assert (store / "run/a").exists()


def test_data_are_fetched_by_their_url(store):
    images = np.arange(12 * 16, dtype=np.uint8).reshape(12, 4, 4, 1)
    np.savez(store / "set.npz", image=images, label=np.arange(12) % 2)
    chosen = folder_config.get_config().unlock()
    chosen.data.name, chosen.data.path = "npz", "fakebucket://b/set.npz"
    assert datasets.dataset(chosen).image_shape == (32, 32, 1)
    chosen.data.path = "fakebucket://b/none"
    with pytest.raises(UserError, match="config.data.path=fakebucket://b/none: the bucket has not"):
        datasets.dataset(chosen)


# ---- leases
@pytest.fixture
def bucket(store):
    return buckets.open_bucket(RUN, "--workdir")


@pytest.fixture
def hurried(monkeypatch):
    """Leases by the tenth of a second, and other machines."""
    for name, seconds in (("RENEWAL", 0.05), ("EXPIRY", 0.4), ("LOOK", 0.02)):
        monkeypatch.setattr(leases, name, seconds)
    monkeypatch.setattr(leases, "_machine", lambda: "")


def test_a_second_run_is_refused_until_the_first_has_ended(bucket, hurried, capfd):
    with leases.leased(bucket) as ours:
        with pytest.raises(UserError, match=f"{RUN} is in use by process {os.getpid()} on "):
            leases._Lease(bucket).acquire()
        ours()
    assert "waiting up to" in capfd.readouterr().err
    with leases.leased(bucket):
        assert list(buckets.names(bucket, leases.LEASES)) == [".leases/2"]
    assert not capfd.readouterr().err


def test_a_lease_that_is_left_behind_is_taken_over_and_its_owner_notices(bucket, hurried):
    left, now = leases._Lease(bucket), leases._Lease(bucket)
    left.acquire()
    now.acquire()
    left._renewed -= 1
    with pytest.raises(UserError, match="was taken over by process"):
        left.check()
    left.release()  # changes nothing
    assert not now._read(2)["released"] and now.check() is None


def test_a_process_of_this_machine_that_was_killed_is_not_waited_for(bucket, monkeypatch, capfd):
    left = leases._Lease(bucket)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        left._about["process"] = leases._process(process.pid)
    left.acquire()
    leases._Lease(bucket).acquire()
    assert not capfd.readouterr().err


def test_of_many_that_want_a_lease_one_gets_it(bucket, hurried, monkeypatch):
    monkeypatch.setattr(leases, "EXPIRY", 60.0)
    got, refused = [], threading.Semaphore(0)

    def want():
        try:
            with leases.leased(bucket):
                got.append(True)
                for _ in range(7):
                    assert refused.acquire(timeout=60)
        except UserError as error:
            assert "is in use by" in str(error)
            refused.release()

    threads = [threading.Thread(target=want) for _ in range(8)]
    [each.start() for each in threads]
    [each.join() for each in threads]
    assert got == [True]


# ---- training
def test_stopped_in_a_bucket_and_resumed_on_another_host_it_gives_the_same_bits(
    undisturbed, store, tmp_path, monkeypatch, at
):
    at(13, lambda: signal.raise_signal(signal.SIGTERM))
    assert not train.train(config(), RUN)
    elsewhere(monkeypatch, tmp_path, "other host")
    assert train.train(config(), RUN)
    assert fingerprint(store / "run", STEPS) == undisturbed[1]
    kept = {p.parent.name for p in (store / "run/checkpoints").glob(f"*/{mirrors.COMMITTED}")}
    assert kept == {p.name for p in (undisturbed[0] / "checkpoints").iterdir()}
    elsewhere(monkeypatch, tmp_path, "third host")
    assert workdir.load(RUN).step == STEPS


@pytest.mark.long
def test_a_run_whose_network_goes_ends_in_one_line_and_resumes(undisturbed, store, at, hurried):
    at(13, (store.parent / "down").touch)
    with pytest.raises(UserError, match="the network is gone.* running the same command again"):
        train.train(config(), RUN)
    (store.parent / "down").unlink()
    staging.close()
    assert train.train(config(), RUN)
    assert fingerprint(store / "run", STEPS) == undisturbed[1]


def test_a_run_whose_lease_is_taken_writes_no_more(store, at, monkeypatch):
    monkeypatch.setattr(leases, "RENEWAL", 0.0)
    at(13, lambda: put(store / "run", **{".leases__7": "{}"}))
    with pytest.raises(UserError, match="was taken over by another process"):
        train.train(config(), RUN)
    assert restoring.latest_step(store / "run/checkpoints") <= 13


@pytest.mark.long
def test_killed_in_the_middle_of_an_upload_and_resumed_on_another_host(
    undisturbed, store, tmp_path, monkeypatch
):
    with child(
        store / "run", FAKEBUCKET_DELAY="0.01", PYTHONPATH=os.environ["PYTHONPATH"]
    ) as process:
        until(lambda: half_saved(store / "run/checkpoints"), [process])
        process.kill()
        process.wait()
    assert half_saved(store / "run/checkpoints")
    elsewhere(monkeypatch, tmp_path, "other host")
    assert train.train(config(), RUN)
    assert fingerprint(store / "run", STEPS) == undisturbed[1]
    assert not half_saved(store / "run/checkpoints")


@pytest.mark.long
def test_two_processes_without_a_common_disk(store, tmp_path):
    """Two processes of four devices, each with a local folder of its own.

    One is killed; both are started again, in each other's place; one process samples.
    """

    def pair(name, swap=False):
        flags = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
        started = []
        for index in range(2):
            host = {"DIFFUSION_JAX_BUCKETS": str(tmp_path / f"{name}.{index ^ swap}")}
            devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
            more = [*flags, f"--process_id={index}", "--heartbeat_timeout=20"]
            line = [sys.executable, "-m", "experiments.train", "--config=configs/toy.py:vp"]
            line += [f"--workdir=fakebucket://b/{name}", "--config.training.best=eval_loss"]
            line += [f"--config.{key}={value}" for key, value in PAIR.items()] + more
            started.append(
                subprocess.Popen(
                    line,
                    cwd=ROOT,
                    env=os.environ | host | devices | {"JAX_PLATFORMS": "cpu"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return started

    assert [status for status, _ in ended(pair("straight"))] == [0, 0]
    killed = pair("run")
    until(lambda: len(metrics.read_rows(store / "run/metrics.jsonl")) >= 3, killed)
    killed[0].kill()
    ended(killed)
    again = ended(pair("run", swap=True))
    assert [status for status, _ in again] == [0, 0], again
    assert "resuming at step" in again[0][1] and again[1][1] == ""
    straight, run = (ended_with(store / name) for name in ("straight", "run"))
    assert straight == run


PAIR = {
    "data.batch_size": 64,
    "model.width": 32,
    "model.blocks": 1,
    "mesh.fsdp": 2,
    "optimizer.warmup": 5,
    "training.steps": STEPS,
    "training.log_every": 3,
    "training.checkpoint_every": 4,
    "training.eval_every": 6,
    "training.sample_every": STEPS,
}


def ended_with(run):
    """The sha256 of every leaf of the last checkpoint, and all rows but their timing."""
    folder = run / "checkpoints" / str(STEPS)
    leaves = verification.read_body(folder)["leaves"]
    rows = metrics.read_rows(run / "metrics.jsonl")
    return leaves, [{k: v for k, v in row.items() if k != "timing"} for row in rows]
