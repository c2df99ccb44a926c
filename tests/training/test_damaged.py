"""Files edited or damaged by hand: each is read by one schema, one line says what is wrong, and a
kept part is made again.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import os
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import digits
from diffusion_jax import files, provenance, reading
from diffusion_jax.assembly import train_latent, workdir
from diffusion_jax.data.sources import Arrays
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import frechet, statistics
from diffusion_jax.evaluation.features import extractor
from diffusion_jax.planning import compile
from diffusion_jax.pretrained import convert
from diffusion_jax.samplers import grids
from diffusion_jax.studies import (
    comparison,
    ema_sweep,
    family_comparison,
    few_step_methods,
    grid_search,
    guidance_sweep,
    inverse_benchmark,
    likelihoods,
    plans,
)
from diffusion_jax.training import checkpoint, forensics, metrics
from tests.pretrained.test_convert import fixture

# ---- JSON
GRID = {"logsnr": {"3": [-9.0, 0.0, 5.0]}}

PLACED = {
    "logsnr": {"3": [-9.0, 0.0, 5.0]},
    "exact": {"what": "a fine solve", "solved": 2, "frechet": 1.0},
    "sampler": "x",
    "starts": 2,
    "num": 3,
    "rows": [
        {"sampler": name, "nfe": 3, "error": 0.1, "shift": 0.2, "frechet": 0.5}
        for name in ("karras", "placed")
    ],
}

DATA = {
    "name": "digits",
    "image_shape": [8, 8, 1],
    "num_classes": 2,
    "class_names": ["a", "b"],
    "encoded": {
        "autoencoder": "ab",
        "image_shape": [8, 8, 1],
        "data": "digits",
        "num_classes": 2,
        "class_names": ["a", "b"],
        "shift": [0.0],
        "scale": [1.0],
    },
}

REPORT = {
    "step": 3,
    "what": "loss",
    "command": "c",
    "losses": [1.0, float("nan")],
    "examples": [1],
    "log_snr": [0.0, 1.0],
    "t": [0.1, 0.2],
    "layers": ["a"],
    "norms": {"gradient": [1.0]},
    "start": {"checkpoint": None, "key": [0, 1], "shift": 0},
}

CARD = {
    "topology": "cpu:1",
    "chip": "cpu",
    "model": "mlp.MLP",
    "remat": "none",
    "devices": 1,
    "mesh": {"data": 1},
    "shape": [2],
    "batch_size": 8,
    "parameters": 100,
    "state_bytes": 800,
    "state_bytes_per_device": 800,
    "accumulate": 1,
    "steps_per_call": 1,
    "flops": 1e6,
    "model_flops": 1e6,
    "trace_seconds": 0.1,
    "fits": None,
    "hbm": None,
    "refused": None,
    "compile_seconds": 1.0,
    "memory": {"arguments": 1.0, "temporaries": 1.0, "output": 1.0, "code": 1.0, "total": 4.0},
    "traffic": 1e3,
    "collectives": {"all-reduce": {"count": 1.0, "bytes": 1e3}},
    "roofline": None,
}

SETTINGS = {"sampler": "x"}


def placed(path: Path) -> None:
    kept = grid_search._recall(path, {key: PLACED[key] for key in ("sampler", "starts", "num")})
    if not kept["rows"]:
        raise UserError("all is made again")
    with (
        mock.patch("diffusion_jax.provenance.save_text"),
        mock.patch("diffusion_jax.report.curves.placed_times"),
    ):
        grid_search.write(kept, "times", path)


READERS = {  # what is on disk, and what is done with what is read
    "grid": (
        GRID,
        lambda path: (
            reading.json_file(path, grids.FILE)["logsnr"]["3"][0] + 1.0
            if "3" in reading.json_file(path, grids.FILE)["logsnr"]
            else None
        ),
    ),
    "placed grids": (PLACED, placed),
    "data.json": (DATA, lambda path: workdir.about_data(path.parent)),
    "report of a step": (
        REPORT,
        lambda path: forensics._text(reading.json_file(path, forensics.rule)),
    ),
    "card": (CARD, lambda path: compile.text(reading.json_file(path, compile.rule))),
}

WRONG = (None, [], {}, "\x1b[2J", -1, 10**400, float("nan"), True, [None], {"x": 1})


def variations(value: Any) -> Iterator[Any]:
    """The value with one of its parts, at any depth, missing or replaced by something else."""
    yield from WRONG
    keys = (
        list(value)
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else []
    )
    for key in keys:
        less = copy.deepcopy(value)
        del less[key]
        yield less
        for part in variations(value[key]):
            other = copy.copy(value)
            other[key] = part
            yield other


@pytest.mark.parametrize("name", READERS)
def test_an_edited_json_file_is_refused_in_one_line_or_serves(name, tmp_path):
    value, use = READERS[name]
    path, refused = tmp_path / "data.json", 0
    path.write_text(json.dumps(value))
    use(path)  # the control
    for other in itertools.islice(variations(value), 0, None, 2):
        path.write_text(json.dumps(other))
        try:
            use(path)
        except UserError as error:
            assert "\n" not in str(error) and "\x1b" not in str(error)
            refused += 1
    assert refused > 25


def spoiled(path: Path) -> Iterator[None]:
    """The file at `path`, spoiled in one way after the other."""
    whole = path.read_bytes()
    for content in (
        b"",
        whole[: len(whole) // 2],
        b"\x00" * 100,
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"rows": 3}',
        "ü".encode("utf-16"),
    ):
        path.write_bytes(content)
        yield
    path.unlink()
    os.mkfifo(path)
    yield
    path.unlink()
    path.write_bytes(whole)


def test_any_file_in_the_place_of_json_is_refused_at_once(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(DATA))
    for _ in spoiled(path):
        with pytest.raises(UserError) as refused:
            workdir.about_data(tmp_path)
        assert "\n" not in str(refused.value) and "data.json" in str(refused.value)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cannot read .*directory"):
        workdir.about_data(tmp_path)


def test_rules_name_the_place_the_value_and_what_is_allowed(tmp_path):
    path = tmp_path / "data.json"
    for change, words in (
        ({"image_shape": [8, "x", 1]}, r'image_shape\[1\] is "x", and must be a whole number'),
        ({"class_names": ["a"]}, "has 1 class_names for num_classes=2"),
        ({"encoded": {"shift": []}}, "encoded lacks autoencoder, image_shape"),
    ):
        path.write_text(json.dumps(DATA | change))
        with pytest.raises(UserError, match=words):
            workdir.about_data(tmp_path)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"b": [{"a": {}, "a": {}}]}'])
def test_a_key_that_is_given_twice_is_refused(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match="x.json' is not valid JSON .the key 'a' is given twice"):
        reading.json_file(tmp_path / "x.json")


def test_an_archive_with_two_arrays_of_one_name_is_refused(tmp_path):
    content = io.BytesIO()
    np.save(content, np.zeros(3))
    with (
        warnings.catch_warnings(action="ignore"),
        zipfile.ZipFile(tmp_path / "x.npz", "w") as archive,
    ):
        for _ in range(2):
            archive.writestr("x.npy", content.getvalue())
    with pytest.raises(UserError, match="two arrays of one name"):
        reading.npz_file(tmp_path / "x.npz", {"x": reading.Array("f")})


def test_a_note_tells_of_a_config_that_was_edited(tmp_path, capsys):

    value = json.loads(files.canonical_json(digits.get_config().to_dict()))
    files.save_json(tmp_path / "config.json", value)
    files.save_json(tmp_path / "provenance.json", provenance.provenance(value))
    workdir.saved_config(tmp_path)
    assert not capsys.readouterr().err
    files.save_json(tmp_path / "config.json", value | {"parameterization": "v()"})
    workdir.saved_config(tmp_path)
    assert "config.json' was edited after the run wrote it" in capsys.readouterr().err


# ---- configs
def test_an_edited_config_is_refused_in_one_line(tmp_path, monkeypatch, capsys):

    monkeypatch.setenv("HOME", str(tmp_path))
    value = digits.get_config().to_dict()
    path, refused = tmp_path / "config.json", 0
    value = json.loads(files.canonical_json(value))
    for other in itertools.islice(variations(value), 0, None, 3):  # (about 900 in all)
        path.write_text(json.dumps(other))
        try:
            workdir.saved_config(tmp_path)
        except UserError as error:
            assert "\n" not in str(error) and "\x1b" not in str(error)
            refused += 1
        assert "\x1b" not in capsys.readouterr().err
    assert refused > 150
    path.write_text(json.dumps(value))
    for _ in spoiled(path):
        with pytest.raises(UserError) as error:
            workdir.saved_config(tmp_path)
        assert "\n" not in str(error.value)


# ---- statistics
@pytest.mark.parametrize(
    "change",
    [
        {"cov": np.diag([1.0, -1.0])},
        {"cov": np.array([[1.0, 2.0], [2.0, 1.0]])},
        {"cov": np.array([[1.0, 0.5], [0.0, 1.0]])},
        {"cov": np.eye(3)},
        {"cov": np.full((2, 2), np.nan)},
        {"mean": np.array([np.inf, 0.0])},
        {"count": np.array(-4)},
        {"count": np.array(2.5)},
        {"of": np.array("[]")},
        {"of": np.array('{"extractor": "pixels"}')},
        {"of": np.array({}, object)},
    ],
    ids=str,
)
def test_statistics_that_are_none_are_refused_though_their_hash_is_right(change, tmp_path):
    of = {
        "extractor": "pixels",
        "digest": "",
        "resize": None,
        "data": "digits",
        "split": "train",
        "image_shape": [1, 2, 1],
        "count": 9,
        "data_digest": "ab",
    }
    made = statistics.Statistics(frechet.Moments(9, np.zeros(2), np.eye(2)), of)
    statistics.save(tmp_path / "a.npz", made)
    assert statistics.load(tmp_path / "a.npz").of == of
    with np.load(tmp_path / "a.npz") as file:
        arrays = {name: file[name] for name in file.files if name != "hash"} | change
    np.savez(tmp_path / "a.npz", **arrays, hash=statistics._hash(arrays))
    with pytest.raises(UserError, match="make it anew with experiments.statistics"):
        statistics.load(tmp_path / "a.npz")


# ---- kept parts: every resumable command makes a damaged one again, and says so
def whole_and_spoiled(path: Path, run, made: list, capsys) -> None:
    """run() is not to make anything where the part at `path` is whole, and to make it, with a
    warning, where it is spoiled.
    """
    run()
    assert made
    made.clear()
    capsys.readouterr()
    run()
    assert not made and "warning" not in capsys.readouterr().err
    for _ in spoiled(path):
        run()
        told = capsys.readouterr().err
        assert made and "warning: " in told and "made again" in told and path.name in told
        made.clear()
        if not path.is_file():
            path.unlink(missing_ok=True)


def test_the_sweep_of_ema_lengths(tmp_path, capsys):
    made = []

    def make(length):
        made.append(length)
        return type("Made", (), {"misfit": 0.0, "params": length})

    told = {"config": {"a": 1}}
    whole_and_spoiled(
        tmp_path / "a.json",
        lambda: ema_sweep.sweep([0.1], make, lambda p: [{"frechet": p}], tmp_path / "a.json", told),
        made,
        capsys,
    )


def test_the_sweep_of_guidance(tmp_path, capsys, monkeypatch):
    made = []

    def draw(*args):
        made.append(args)
        return np.zeros((4, 2, 2, 1), np.uint8)

    monkeypatch.setattr(guidance_sweep, "_sampler", lambda *args: None)
    monkeypatch.setattr(guidance_sweep, "_draw", draw)

    def run():
        return guidance_sweep.sweep(
            {"cfg()": None}, [1.0], lambda images: {"frechet": 1.0}, None, 4, 4, None, tmp_path, {}
        )

    run()
    (path,) = tmp_path.iterdir()
    made.clear()
    assert run() and not made
    for _ in spoiled(path):
        assert run()[0]["frechet"] == 1.0 and made.pop() and "made again" in capsys.readouterr().err


def test_the_rows_of_the_inverse_benchmark(tmp_path, capsys):
    made = []

    def run():
        kept = inverse_benchmark.kept_in(tmp_path / "a.json", {"target": "gmm8"})
        inverse_benchmark.row_of(
            kept,
            {"method": "dps()"},
            lambda: (
                made.append(1)
                or {
                    "psnr": [1.0],
                    "bias": 0.5,
                    "evaluations": None,
                    "draws": [[0.1, 0.2]],
                    "shown": np.zeros((1, 2, 2, 1), int),
                }
            ),
            "",
        )

    whole_and_spoiled(tmp_path / "a.json", run, made, capsys)


def test_placed_times(tmp_path, capsys):
    path, about = tmp_path / "a.json", {"sampler": "x"}
    path.write_text(json.dumps(PLACED))
    assert grid_search._recall(path, about)["rows"] == PLACED["rows"]
    for _ in spoiled(path):
        assert (
            grid_search._recall(path, about) == {"logsnr": {}, "rows": []} | about
            and "made again" in capsys.readouterr().err
        )


def test_searched_times(tmp_path, capsys, monkeypatch):
    class Searches(Exception):
        """It has begun."""

    def begin(*args):
        raise Searches

    path = tmp_path / "a.json"
    path.write_text(json.dumps(GRID))
    monkeypatch.setattr("diffusion_jax.assembly.sampling.plan", begin)
    trained = workdir.Trained(None, None, 0, "params", {})
    few_step_methods.search(trained, None, [2], 10, path)
    for _ in spoiled(path):
        with pytest.raises(Searches):
            few_step_methods.search(trained, None, [2], 10, path)
        assert "made again" in capsys.readouterr().err


def test_the_families(tmp_path, capsys, monkeypatch):

    made, config = [], ConfigDict({"training": {"steps": 3}})
    scores = {"milliseconds": 1.0, "parameters": 5, "frechet": 2.0}
    monkeypatch.setattr(
        family_comparison, "_plain", lambda *args: made.append(1) or (tmp_path, config)
    )
    monkeypatch.setattr(
        family_comparison,
        "measured",
        lambda *args: (dict(scores), np.zeros((2, 2, 2, 1), np.uint8)),
    )
    monkeypatch.setattr("diffusion_jax.assembly.workdir.load", lambda *args: None)
    settings = ConfigDict({"likelihood": 0, "seeds": (0,), "num": 10})

    def run():
        return family_comparison._kept(tmp_path, config, None, None, settings, 0)

    for name in ("family.npz", "family.json"):
        run()
        made.clear()
        whole = [file.read_bytes() for file in sorted(tmp_path.iterdir())]
        for _ in spoiled(tmp_path / name):
            assert run()[0]["frechet"] == 2.0 and made and "made again" in capsys.readouterr().err
            made.clear()
        assert len(whole) == 2


def test_the_latents(tmp_path, capsys, monkeypatch):
    made = []
    monkeypatch.setattr("diffusion_jax.assembly.workdir.saved_config", lambda *args: None)
    monkeypatch.setattr(
        "diffusion_jax.assembly.workdir.load",
        lambda *args: workdir.Trained(None, None, 0, "params", {}),
    )
    monkeypatch.setattr("diffusion_jax.assembly.autoencoders.codec", lambda *args: None)
    monkeypatch.setattr(
        "experiments.encode.encode", lambda *args: made.append(1) or tmp_path / "latents.npz"
    )
    (tmp_path / "latents.npz").write_bytes(b"PK\x03\x04 and no more")
    assert (
        train_latent.encoded(tmp_path) == tmp_path / "latents.npz"
        and made
        and "made again" in capsys.readouterr().err
    )


def test_the_cards_of_a_plan(tmp_path, capsys):
    record = {
        "topology": "cpu:1",
        "hbm": None,
        "config": {},
        "provenance": {"commit": "a", "versions": {}},
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(record | {"cards": {"none": CARD}}))
    assert plans._known(path, record) == {"none": CARD}
    for _ in spoiled(path):
        assert plans._known(path, record) == {} and "made again" in capsys.readouterr().err
    path.write_text(json.dumps(record | {"cards": {"none": CARD | {"fits": "yes"}}}))
    assert (
        plans._known(path, record) == {} and 'cards.none.fits is "yes"' in capsys.readouterr().err
    )


def test_the_moments_of_interrupted_statistics(tmp_path, capsys):

    source, partial = (
        Arrays(np.arange(24, dtype=np.uint8).reshape(6, 2, 2, 1)),
        tmp_path / "partial.npz",
    )
    whole = statistics.compute(extractor("pixels"), source, "a", "train")
    statistics.save(
        partial, statistics.Statistics(frechet.Moments(3, np.zeros(4), np.eye(4)), whole.of)
    )
    for _ in spoiled(partial):
        assert (
            statistics._so_far(partial, whole.of) is None
            and "made again" in capsys.readouterr().err
        )
    assert statistics._so_far(partial, whole.of).count == 3


def test_the_batches_of_a_likelihood(tmp_path, capsys):
    def write(first, **change):
        part = {
            "index": np.arange(first, first + 2),
            "ODE.total": np.ones(2),
            "ODE.nfe": np.array(5),
            "ODE.seconds": 1.0,
        } | change
        np.savez(tmp_path / f"{first:08d}.npz", **part)

    write(0)
    write(2, index=np.array([2, 2]))  # the last batch is filled up by its last image
    assert [part["index"].tolist() for part in likelihoods.measured_before(tmp_path, ["ODE"])] == [
        [0, 1],
        [2, 2],
    ]
    for change in (
        {"index": np.array([-1, 2])},
        {"ODE.total": np.ones(3)},
        {"ODE.nfe": np.array(["x"])},
        {"index": np.array([{}, {}])},
    ):
        write(2, **change)
        assert (
            len(likelihoods.measured_before(tmp_path, ["ODE"])) == 1
            and "made again" in capsys.readouterr().err
        )
        assert not (tmp_path / "00000002.npz").exists()
    write(2)
    assert (
        likelihoods.measured_before(tmp_path, ["other"]) == []
        and "lacks other.total" in capsys.readouterr().err
    )


def test_the_cells_of_a_comparison(tmp_path, capsys):
    path = tmp_path / "a.npz"
    row = {
        "sampler": "ancestral.ddim",
        "grid": "uniform",
        "nfe": 5,
        "evaluations": 5,
        "frechet": 1.0,
        "stochastic": False,
    }
    kept = comparison.Result(
        row, np.zeros((3, 2)), np.ones(3), {"frechet": np.ones(comparison.GROUPS)}
    )

    def read():
        return reading.kept(path, lambda path: comparison._recall(path, 3))

    comparison._keep(path, kept)
    assert read().row == row and set(read().left_out) == {"frechet"}
    for _ in spoiled(path):
        assert read() is None and "made again" in capsys.readouterr().err
    for other in (
        kept._replace(row={}),
        kept._replace(row=row | {"nfe": "x"}),
        kept._replace(row=row | {"frechet": [1]}),
        kept._replace(row=row | {"frechet": "1"}),
        kept._replace(samples=np.zeros((4, 2))),
        kept._replace(samples=np.full((3, 2), np.nan)),
        kept._replace(left_out={"frechet": np.ones(2)}),
    ):
        comparison._keep(path, other)
        assert read() is None and "made again" in capsys.readouterr().err


# ---- published weights
@pytest.mark.parametrize("name", ["unet", "autoencoder_kl"])
def test_an_edited_config_beside_imported_weights_is_refused_in_one_line_or_serves(name):

    config = fixture(name)[0]
    network, refused = convert.published(config["_class_name"]), 0
    convert.read_config(network, config)
    for other in variations(config):
        if isinstance(other, dict):
            try:
                convert.read_config(network, other)
            except UserError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > 100


def test_an_edited_scheduler_or_record_of_latents_is_refused_in_one_line_or_serves():
    scheduler = convert.DDPM | {"trained_betas": [0.1, 0.2], "clip_sample": True}
    latents = {
        "scaling_factor": 0.2,
        "shift_factor": 0.1,
        "latents_mean": [0.0, 1.0],
        "latents_std": [1.0, 2.0],
    }
    for value, read in (
        (scheduler, convert.read_scheduler),
        (latents, lambda told: convert.shift_and_scale(told, 2)),
    ):
        read(value)
        for other in variations(value):
            if isinstance(other, dict):
                with contextlib.suppress(UserError):
                    read(other)


def test_a_dit_is_described_by_tensors_of_the_right_number_of_dimensions():
    network, ones = convert.published("DiT"), np.ones
    tensors = {
        "x_embedder.proj.weight": ones((8, 4, 2, 2)),
        "blocks.0.mlp.fc1.weight": ones((32, 8)),
        "final_layer.linear.weight": ones((32, 8)),
        "y_embedder.embedding_table.weight": ones((4, 8)),
        "pos_embed": ones((1, 16, 8)),
    }
    assert network.described(tensors)["num_classes"] == 3
    for name in tensors:
        for shape in ((), (0,), (3,), (0, 4, 2, 2)):
            with contextlib.suppress(UserError):
                network.described(tensors | {name: ones(shape)})
    for change in ({"input_size": 65_536}, {"input_size": 7}):
        options, shape = convert.read_config(
            network, network.described(tensors) | {"num_heads": 2} | change
        )
        with pytest.raises(UserError, match="are not those of a DiT of width 8"):
            convert.without_fixed(network, tensors, options, shape)


@pytest.mark.parametrize(
    "value, words",
    [(np.nan, "1 of 4 values that are not finite"), (1e300, "not finite"), (-np.inf, "not finite")],
)
def test_weights_that_are_not_finite_are_refused_by_name(value, words):
    table = {"a/kernel": convert.Source(("a.weight",), convert.DENSE)}
    weights = np.array([[1.0, 2.0], [3.0, value]])
    with pytest.raises(
        UserError, match=f"the tensor a.weight has {words}" if "of 4" in words else words
    ):
        convert.to_ours(table, {"a.weight": weights}, {"a/kernel": (2, 2)})
    with pytest.raises(
        UserError, match="a.weight is of int64, and weights are floating-point numbers"
    ):
        convert.to_ours(table, {"a.weight": np.ones((2, 2), int)}, {"a/kernel": (2, 2)})


def test_rows_of_other_types_are_no_rows_and_a_pipe_is_no_file_of_rows(tmp_path):

    whole = {
        "step": 3,
        "images": 12,
        "loss": 0.5,
        "eval_loss": None,
        "timing": {"images_per_s": 5.0},
        "loss_by_level": [0.1, None],
        "level_edges": [0.0, 1.0, 2.0],
        "anything": {"else": []},
    }
    spoilt = [
        whole | change
        for change in (
            {"step": "3"},
            {"images": None},
            {"loss": "x"},
            {"timing": []},
            {"timing": {"images_per_s": 0}},
            {"loss_by_level": {}},
            {"level_edges": [None]},
        )
    ]
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        "\n".join(map(json.dumps, [whole, *spoilt, [], 3, whole])) + "\n" + "[" * 100_000 + "\n"
    )
    assert metrics.read_rows(file) == [whole, whole]
    assert few_step_methods.seconds(tmp_path) == 12 / 5
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match="no regular file"):
        metrics.read_rows(file)


def test_a_checkpoint_with_a_pipe_is_damaged_and_so_is_one_that_describes_other_things(
    tmp_path, capsys
):

    state = {"params": {"a": np.ones(3, np.float32)}}
    with contextlib.closing(checkpoint.open_checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.save(2, state, {"in_a_row": "x"})  # a digest alone does not make it right
    restored = checkpoint.restore_params(tmp_path)
    assert restored.step == 1 and 'in_a_row is "x", and must be' in capsys.readouterr().err
    file = next(
        path
        for path in (tmp_path / "1").rglob("*")
        if path.is_file() and path.name != "_CHECKPOINT_METADATA"
    )
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match="no regular file"):
        checkpoint.restore_params(tmp_path)
