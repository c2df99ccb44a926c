"""Captions: encoders equal another program's, networks see what the mask shows, data keeps picture
and words together.
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from configs.base import base, network
from diffusion_jax import data
from diffusion_jax.assembly import conditions, experiment, sampling
from diffusion_jax.assembly.kinds import few_step
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.data import captions, digits_captions
from diffusion_jax.data.sources import Arrays
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import generate
from diffusion_jax.models import layers, text
from diffusion_jax.models.unet import UNet
from diffusion_jax.pretrained import weights
from diffusion_jax.studies import comparison, generation
from diffusion_jax.training import step

FIXTURE = np.load(Path(__file__).parents[1] / "fixtures" / "text.npz")


# ---- encoders ----
def test_our_bert_is_bert():
    tensors = {
        name.removeprefix("tiny/"): FIXTURE[name]
        for name in FIXTURE.files
        if name.startswith("tiny/")
    }
    bert = text.Bert(vocabulary=30, positions=12, width=16, depth=2, heads=4)
    params = text.convert(tensors, 2)
    states = bert.apply({"params": params}, FIXTURE["ids"], FIXTURE["mask"])
    np.testing.assert_allclose(states * FIXTURE["mask"][..., None], FIXTURE["states"], atol=2e-5)
    fresh = jax.eval_shape(bert.init, jax.random.key(0), FIXTURE["ids"], FIXTURE["mask"])["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, fresh)


def test_minilm_is_minilm():
    """Tokens, states and sentence embeddings, where the weights and the library are here."""
    pytest.importorskip("tokenizers")
    try:
        weights.load("minilm")
    except UserError as error:
        pytest.skip(str(error))
    encoder = text.minilm(20, weights.load)
    asked = FIXTURE["captions"].tolist()
    found = encoder.encode(asked)
    ids = FIXTURE["minilm_ids"]
    assert (
        found["mask"].sum(1).tolist()
        == (ids > 0).sum(1).tolist()
        == [encoder.count(caption) for caption in asked]
    )
    np.testing.assert_allclose(found["pooled"], FIXTURE["minilm_pooled"], atol=1e-3)  # float16
    np.testing.assert_allclose(found["tokens"][:, :3, :64], FIXTURE["minilm_first"], atol=3e-3)
    assert not found["tokens"][~found["mask"]].any()


def test_without_the_library_or_the_weights_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)  # import raises
    with pytest.raises(
        UserError, match=r"needs the library tokenizers: pip install 'diffusion_jax\[text\]'"
    ):
        text.minilm(8, lambda name: {"tokenizer.json": np.zeros(1, np.uint8)}).encode(["x"])
    with pytest.raises(UserError, match="run python -m experiments.get_weights minilm"):
        weights.load("minilm", cache_dir=tmp_path)


def test_bytes_are_utf8_plus_one():
    encoder = text.bytes(6)
    ids = encoder.encode(["ab\x00", "café noir", ""])["bytes"]
    assert ids.tolist() == [[98, 99, 1, 0, 0, 0], [c + 1 for c in "café ".encode()], [0] * 6]
    assert encoder.count("café") == 5


# ---- networks ----
@pytest.mark.parametrize("impl", ["plain", "fused"])
def test_masked_keys_are_not_there(impl):
    q, k, v = (jax.random.normal(jax.random.key(i), (2, n, 2, 4)) for i, n in enumerate((3, 5, 5)))
    mask = jnp.array([[True, True, False, False, False], [False, True, False, True, True]])
    out = layers.attention(q, k, v, impl, mask)
    for b in range(2):
        kept = np.flatnonzero(mask[b])
        alone = layers.attention(q[b : b + 1], k[b : b + 1, kept], v[b : b + 1, kept], "plain")
        np.testing.assert_allclose(out[b], alone[0], atol=1e-6)


TINY = dict(
    width=8, multipliers=(1,), blocks=1, attention=(4,), head_width=None, attention_impl="plain"
)


@pytest.fixture(scope="module")
def frozen():
    """A U-Net of captions by a frozen encoder whose parameters are all random, as a function of
    cond.
    """
    module = UNet(text=text.Text(6), **TINY)
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
    params = jax.eval_shape(module.init, jax.random.key(0), x, jnp.zeros(2), None)["params"]
    leaves, tree = jax.tree.flatten(params)
    random = np.random.default_rng(0)
    params = jax.tree.unflatten(
        tree, [jnp.asarray(0.5 * random.standard_normal(s.shape), jnp.float32) for s in leaves]
    )
    return jax.jit(lambda cond: module.apply({"params": params}, x, jnp.zeros(2), cond)), params


def told(lengths=(3, 1), seed=2) -> dict:
    mask = jnp.arange(4) < jnp.array(lengths)[:, None]
    random = np.random.default_rng(seed)
    arrays = {"tokens": random.standard_normal((2, 4, 6)), "pooled": random.standard_normal((2, 6))}
    return {name: jnp.asarray(a, jnp.float16) for name, a in arrays.items()} | {"mask": mask}


def test_a_network_sees_the_tokens_of_the_mask_and_no_others(frozen):
    run, _ = frozen
    cond = told()
    out = run(cond)
    beyond = cond | {"tokens": cond["tokens"].at[1, 1:].add(9.0)}
    within = cond | {"tokens": cond["tokens"].at[1, 0, :3].add(9.0)}
    pooled = cond | {"pooled": cond["pooled"].at[1, :3].add(9.0)}
    np.testing.assert_array_equal(run(beyond), out)
    for changed in (within, pooled):
        assert np.abs(run(changed) - out)[1].max() > 1e-2
        np.testing.assert_array_equal(run(changed)[0], out[0])


def test_without_tokens_there_is_the_learned_state_of_no_caption(frozen):
    run, params = frozen
    nothing = told(lengths=(0, 0))
    np.testing.assert_allclose(run(nothing), run(jax.tree.map(jnp.zeros_like, nothing)), atol=1e-5)
    mixed = run(told(lengths=(3, 0)))
    np.testing.assert_allclose(mixed[0], run(told(lengths=(3, 3)))[0], atol=1e-5)
    np.testing.assert_allclose(mixed[1], run(nothing)[1], atol=1e-5)
    assert {"null_state", "null_pooled"} <= set(params["text"])


def test_without_an_encoder_the_parameters_are_the_old_ones():
    x, key = jnp.zeros((1, 4, 4, 1)), jax.random.key(0)

    def shapes(**options):
        return jax.eval_shape(UNet(**options, **TINY).init, key, x, jnp.zeros(1))

    plain, told = shapes()["params"], shapes(text=text.Text(6))["params"]
    new = set(told) - set(plain)
    assert (
        new == {"text"} | {f"{k}_text" for k in plain if k.endswith("attention")} and len(new) == 5
    )
    assert {k: told[k] for k in plain if k != "condition"} == {
        k: v for k, v in plain.items() if k != "condition"
    }
    assert set(told["condition"]) - set(plain["condition"]) == {"text"}


# ---- the roof ----
def config_of(name="digits_captions", encoder="bytes(width=8, heads=2, depth=1)", **model):
    config = base()
    config.data.name, config.conditional = name, False
    config.text.update(encoder=encoder, max_length=44)
    config.model = network("unet.UNet", **TINY | {"width": 4, "attention": ()} | model)
    return config


@pytest.fixture(scope="module")
def model():
    return experiment.assemble(config_of(), (8, 8, 1), 10)


def test_a_reader_with_weights_of_numpy_is_traced():
    """As they come out of a checkpoint, and are constants of a program (experiments.edit)."""
    reader, mask = text.Bert(257, 8, width=8, depth=1, heads=2), np.ones((2, 8), bool)
    shapes = jax.eval_shape(reader.init, jax.random.key(0), np.zeros((2, 8), int), mask)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

    def run(ids):
        return reader.apply(params, ids, mask)

    assert jax.eval_shape(run, jax.ShapeDtypeStruct((2, 8), jnp.int32)).shape == (2, 8, 8)


def test_captions_are_dropped_whole_and_the_reader_learns(model):
    """At rate 1 the loss does not depend on the caption; at rate 0 it does, with gradients down to
    the bytes.
    """
    params = model.kind.init(model, jax.random.key(0))
    params = jax.tree.map(
        lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params
    )
    keys = jax.random.split(jax.random.key(3), 2)

    @jax.jit
    def losses_and_gradient(params, ids, rate):
        loss = model.kind.loss(model._replace(label_dropout=rate))
        now = step.Now(jnp.int32(0), {})

        def total(p):
            return loss(p, {"image": jnp.ones((2, 8, 8, 1)) * 0.3, "bytes": ids}, keys, now)[0]

        return total(params), jax.grad(lambda p: total(p).sum())(params)["text"]

    one, two = (
        jnp.asarray(model.encoder.encode(two)["bytes"]) for two in (["a 3", "a 4"], ["a 3", "a 5"])
    )
    (always, _), (never, gradient) = (losses_and_gradient(params, one, rate) for rate in (1.0, 0.0))
    np.testing.assert_array_equal(always, losses_and_gradient(params, two, 1.0)[0])
    other = losses_and_gradient(params, two, 0.0)[0]
    assert other[1] != never[1] and float(other[0]) == pytest.approx(float(never[0]), rel=1e-6)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient["reader"]["layer_0_value"]))
    assert (
        np.abs(gradient["null_state"]).max() == 0
        and np.abs(gradient["reader"]["words"][ord("5") + 1]).max() == 0
    )


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("", "--prompt is empty"),
        (" \n", "--prompt is empty"),
        ("x" * 10_000, "--prompt has 10000 tokens, of which this model reads 44"),
        ("a \udcff", "no text in UTF-8"),
    ],
)
def test_bad_prompts_are_one_line(model, prompt, message):
    with pytest.raises(UserError, match=message) as error:
        conditions.prompt_cond(model, ["a bold seven", prompt])
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


def test_prompts_and_labels_meet_the_right_models(model):

    labelled = experiment.assemble(_labelled(), (8, 8, 1), 10)
    with pytest.raises(UserError, match="knows no captions.* labels, 0 to 9: use --labels"):
        generation.requested_conditions(labelled, "", ["a 3"], 4)
    with pytest.raises(UserError, match="give one, or several, by --prompt"):
        generation.requested_conditions(model, "", [], 4)
    with pytest.raises(UserError, match="takes captions: say what to draw by --prompt"):
        generation.requested_conditions(model, "3", [], 4)
    with pytest.raises(UserError, match="--labels and --prompt together"):
        generation.requested_conditions(model, "3", ["a 3"], 4)
    _, cond = generation.requested_conditions(model, "", ["a 3", "a 4"], 4)  # a row each
    assert [bytes(np.uint8(row[row > 0] - 1)).decode() for row in cond["bytes"]] == [
        "a 3",
        "a 3",
        "a 4",
        "a 4",
    ]


def _labelled():
    config = config_of(encoder="")
    config.conditional = True
    return config


# ---- guidance by captions ----
class ByMean(nn.Module):
    """A network without parameters that knows the mean of a caption's bytes."""

    def __call__(self, x, c_noise, cond=None, train=False):
        return x * (0.3 + jnp.mean(cond["bytes"], axis=1) / 100)[:, None, None, None]


def guided_at(scale: float, **changes) -> experiment.Experiment:
    """A model of captions with config.sampler.guidance = scale, drawn without clipping."""
    config = config_of()
    config.update(changes)
    config.sampler.update(guidance=scale, clip="none", nfe=2)
    return experiment.assemble(config, (8, 8, 1), 10)._replace(model=ByMean())


def described(built: experiment.Experiment) -> data.Dataset:
    """Twelve images of noise in two classes, each with its caption."""
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1)).astype(np.uint8)
    every, (numbers,) = captions.numbered([(f"number {i}",) for i in range(12)])
    source = captions.Told(Arrays(images, np.arange(12) % 2, numbers), built.encoder.encode(every))
    return data.Dataset("folder", source, source, (8, 8, 1), 2, ("a", "b"), captions=every)


def test_a_guided_model_of_captions_is_compared_by_the_samples_of_its_captions():
    """What comparison, sweeps and evaluation draw: the captions of the test split in turn, guided
    as sample guides them.
    """
    built, keys = guided_at(3.0), generate.seeds_to_keys(range(3))
    dataset, trained = described(built), Trained(built, {}, 1, "params", {})
    labels, cond = conditions.conditions(built, dataset, 3)
    assert labels.tolist() == [0, 1, 0] and read(cond)[1] == "number 1"
    subject, chosen = (
        comparison.of_model(trained, dataset, range(3), "captions"),
        sampling.plan(built),
    )
    found = comparison.runner(subject, chosen.sampler, len(chosen.ts))(np.asarray(chosen.ts))[0]
    prompts = conditions.prompt_cond(built, ["number 0", "number 1", "number 2"])
    drawn = sampling.sample_with(built, trained.params, chosen)(keys, prompts)
    np.testing.assert_allclose(found, drawn, rtol=1e-4, atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 1e-2
    with pytest.raises(
        UserError, match="this model takes captions, and the data set folder has none"
    ):
        conditions.conditions(built, dataset._replace(captions=()), 3)


def taught_at(scale, student):
    """The student with this config.distill.guidance."""
    return student._replace(sources=student.sources._replace(teacher_guidance=scale))


def test_a_teacher_of_captions_is_guided_at_the_scale_of_the_distillation():
    """Its own scale where config.distill.guidance is None; every other scale is another loss, 0 and
    1 among them.
    """
    teacher = guided_at(3.0)
    keys = jax.random.split(jax.random.key(3), 2)
    batch = {
        "image": jnp.full((2, 8, 8, 1), 0.3),
        "bytes": jnp.asarray(teacher.encoder.encode(["a 3", "a bold 4"])["bytes"]),
    }

    def loss(scale):
        student = guided_at(
            1.0, objective="consistency.distillation(solver=ancestral.ddim())", label_dropout=0.0
        )
        student = taught_at(scale, student)._replace(teacher=(teacher, {}))
        now = step.Now(jnp.int32(0), {"target": {}, "teacher": {}})
        return student.kind.loss(student)({}, batch, keys, now)[0]

    own, *losses = jax.jit(lambda: [loss(scale) for scale in (None, 0.0, 1.0, 3.0, 8.0)])()
    np.testing.assert_allclose(own, losses[2], rtol=1e-6)
    for i, one in enumerate(losses):
        for other in losses[:i]:
            assert np.all(np.abs(one - other) > 1e-4 * np.abs(one))


def test_a_teacher_of_an_unconditional_student_has_no_condition_to_guide_by():
    """Its own guidance then changes nothing; a scale that is set is refused, before training."""
    objective = "consistency.distillation()"
    student = experiment.assemble(_labelled(), (8, 8, 1), 0)._replace(
        teacher=(guided_at(3.0), None)
    )
    assert few_step.teacher_scale(student) is None
    with pytest.raises(UserError, match="config.distill.guidance=3: the student is unconditional"):
        few_step.teacher_scale(taught_at(3.0, student))
    told = guided_at(1.0, objective=objective)._replace(
        teacher=(experiment.assemble(_labelled(), (8, 8, 1), 0), None)
    )
    with pytest.raises(UserError, match="config.distill.guidance=2: this model is unconditional"):
        few_step.teacher_scale(taught_at(2.0, told))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"name": "dit.DiT"}, "dit.DiT reads no captions; use unet.UNet"),
        ({"encoder": "byte"}, "unknown text encoder 'byte'; did you mean 'bytes'"),
        ({"max_length": 0}, "config.text.max_length=0"),
        ({"encoder": "minilm", "max_length": 600}, "minilm reads 3 to 512"),
        ({"encoder": "bytes(width=9)"}, "multiple of heads=4"),
    ],
)
def test_configs_that_do_not_fit(change, message):
    config = config_of()
    if "name" in change:
        config.model = network(change["name"])
    config.text.update({key: value for key, value in change.items() if key != "name"})
    with pytest.raises(UserError, match=message):
        experiment.assemble(config, (8, 8, 1), 10)


# ---- data ----
def captioned(n: int = 12) -> captions.Told:
    """Image i is filled with i; its captions are 'i', 'i again', and of odd ones 'i once more'."""
    image = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 2, 2, 1)).copy()
    own = [(f"{i}", f"{i} again", f"{i} once more")[: 2 + i % 2] for i in range(n)]
    every, (numbers,) = captions.numbered(own)
    return captions.Told(
        Arrays(image, None, numbers), {"bytes": text.bytes(16).encode(every)["bytes"]}
    )


def read(batch) -> list[str]:
    return ["".join(chr(c - 1) for c in row if c) for row in batch["bytes"]]


def test_words_stay_with_their_picture_and_change_with_the_epoch():
    source, size = captioned(), 12
    batch = data.batches(source, batch_size=4, seed=5)
    assert set(batch(0)) == {"image", "bytes"}
    seen = {}
    for number in range(90):  # 30 epochs
        b = batch(number)
        which = np.round((b["image"][:, 0, 0, 0] + 1) * 127.5).astype(int)
        for i, words in zip(which, read(b)):
            assert words.split()[0] == str(i)
            seen.setdefault(i, []).append(words)
    assert all(len(set(words)) == 2 + i % 2 for i, words in seen.items()) and set(
        map(len, seen.values())
    ) == {30}
    again, parts = (
        data.batches(source, batch_size=4, seed=5),
        [
            data.batches(source, batch_size=4, seed=5, process_index=p, process_count=2)
            for p in range(2)
        ],
    )
    assert (
        read(again(77)) == read(batch(77)) == read(parts[0](77)) + read(parts[1](77))
    )  # resumed, and on two processes
    held_out = [words for b in data.sequential(source, 4) for words in read(b)]
    assert held_out == [str(i) for i in range(size)]


def test_encoded_once_and_kept(tmp_path):
    calls = []

    def encode(some):
        calls.append(len(some))
        return {"tokens": np.array([[len(c)] * 3 for c in some], np.float16)}

    asked = dict(
        like={"tokens": np.zeros(3, np.float16)}, kept="an encoder", cache_dir=str(tmp_path)
    )
    every = ["x" * i for i in range(600)]
    first = captions.tables(every, encode, **asked)
    assert sum(calls) == 600 and max(calls) <= 256
    second = captions.tables(every, encode, **asked)
    assert sum(calls) == 600
    third = captions.tables(every[:-1], encode, **asked)
    rows = np.array([5, 599, 5])
    np.testing.assert_array_equal(first["tokens"][rows], second["tokens"][rows])
    assert first["tokens"][rows][:, 0].tolist() == rows.tolist() and len(third["tokens"][:]) == 599
    sent = pickle.dumps(second["tokens"])  # to a data worker: the path, not the array
    assert len(sent) < 500 and pickle.loads(sent)[rows].tolist() == second["tokens"][rows].tolist()


def folder_of(root: Path, count: int = 12) -> None:
    """Image i is filled with 20 i."""
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(np.full((4, 4, 3), 20 * i, np.uint8)).save(root / f"{i}.png")


def spoken(d: data.Dataset) -> dict[int, list[str]]:
    """The captions by the number of the image."""
    rows = [row for source in (d.train, d.test) for row in (source[i] for i in range(len(source)))]
    return {
        int(row["image"][0, 0, 0]) // 20: [d.captions[i] for i in row["caption"] if i >= 0]
        for row in rows
    }


@pytest.mark.parametrize("lazy", [False, True])
def test_a_folder_with_captions(tmp_path, monkeypatch, caplog, lazy):
    folder_of(tmp_path)
    monkeypatch.setattr("diffusion_jax.data.folder.held_in_memory", lambda *args: not lazy)
    lines = [{"file_name": f"{i}.png", "text": f"picture {i}"} for i in range(6)]
    lines[2]["text"] = ["two", "a couple"]
    lines.append({"file_name": "gone.png", "text": "nothing"})
    (tmp_path / "metadata.jsonl").write_text(
        "\n".join(map(json.dumps, lines)), encoding="utf-8-sig"
    )  # as some editors save
    for i in range(6, 12):
        (tmp_path / f"{i}.txt").write_text(f"picture {i}\n\n its double \n")
    found = spoken(data.load("folder", path=str(tmp_path), captioned=True))
    assert found == {i: [f"picture {i}"] for i in range(6)} | {2: ["two", "a couple"]} | {
        i: [f"picture {i}", "its double"] for i in range(6, 12)
    }
    assert "1 lines name no image of the set" in caplog.text and "gone.png" in caplog.text
    assert "caption" not in data.load("folder", path=str(tmp_path)).train[0]


def test_a_folder_whose_captions_are_broken(tmp_path):
    for split in ("train", "test"):
        folder_of(tmp_path / split, 3)
        (tmp_path / split / "0.txt").write_text("nought")
    with pytest.raises(
        UserError, match="2 of 3 images have no caption, 1.png for one; write it to 1.txt, or"
    ):
        data.load("folder", path=str(tmp_path), captioned=True)
    (tmp_path / "train" / "metadata.jsonl").write_text(
        '{"file_name": "0.png", "text": "x"}\n{"file_name": 3'
    )
    with pytest.raises(UserError, match="metadata.jsonl, line 2: a JSON object"):
        data.load("folder", path=str(tmp_path), captioned=True)
    (tmp_path / "train" / "metadata.jsonl").write_text(
        '{"file_name": "0.png", "text": "x"}\n{"file_name": "0.png", "text": "y"}'
    )
    with pytest.raises(
        UserError, match="line 2.*0.png has a line already; of several captions text is a list"
    ):
        data.load("folder", path=str(tmp_path), captioned=True)
    (tmp_path / "train" / "metadata.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read as UTF-8"):
        data.load("folder", path=str(tmp_path), captioned=True)


def test_an_npz_with_captions(tmp_path):
    images = np.broadcast_to(20 * np.arange(12, dtype=np.uint8)[:, None, None, None], (12, 4, 4, 1))
    np.savez(tmp_path / "set.npz", images=images)
    file = tmp_path / "set_captions.json"
    file.write_text(
        json.dumps(
            [{"caption": f"picture {i}", "style": "plain"} for i in range(11)] + [["eleven", "XI"]]
        )
    )

    def load(**how):
        return data.load("npz", path=str(tmp_path / "set.npz"), captioned=True, **how)

    expected = {i: [f"picture {i}"] for i in range(11)} | {11: ["eleven", "XI"]}
    assert spoken(load()) == expected == spoken(load(image_size=2, channels=3))
    other = tmp_path / "other.json"
    broken = [
        (["x"], "1 captions for 12 images"),
        ([3] * 12, "a JSON list of captions"),
        ([{"text": "x"}] * 12, "'caption'"),
    ]
    for bad, message in broken:
        other.write_text(json.dumps(bad))
        with pytest.raises(UserError, match=message):
            load(captions=str(other))
    with pytest.raises(UserError, match="data.captions=nowhere.json is not a file"):
        load(captions="nowhere.json")


def test_sets_without_captions_say_so():
    with pytest.raises(UserError, match="data.name=digits has no captions; use digits_captions"):
        data.load("digits", captioned=True)


@pytest.mark.parametrize("kind", ["text", "list", "dicts"])
def test_captions_of_a_prepared_tfds_set(tmp_path, kind):

    words = tfds.features.Text()
    several = tfds.features.Sequence
    feature = {
        "text": words,
        "list": several(words),
        "dicts": several({"id": np.int64, "text": words}),
    }[kind]
    key = "caption" if kind == "text" else "captions"

    def said(i):
        return [f"{i}"] if kind == "text" else [f"{i}", f"{i} too"][: 1 + i % 2]

    class Writer(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Tensor(shape=(2, 2, 1), dtype=np.uint8)
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict({"image": image, key: feature})
            )

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(range(6)),
                "test": self._generate_examples(range(6, 8)),
            }

        def _generate_examples(self, numbers):
            for i in numbers:
                texts = {
                    "text": said(i)[0],
                    "list": said(i),
                    "dicts": [{"id": 0, "text": t} for t in said(i)],
                }[kind]
                yield i, {"image": np.full((2, 2, 1), 20 * i, np.uint8), key: texts}

    Writer.name = "spoken"
    Writer(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    assert spoken(data.load("spoken", data_dir=str(tmp_path), captioned=True)) == {
        i: said(i) for i in range(8)
    }


# ---- digits that describe themselves ----
def test_lean_is_the_shear_and_ink_the_mass():
    y, x = np.indices((41, 41)) - 20
    bars = [
        (np.abs(x + shear * y) <= width) & (np.abs(y) <= 15)
        for shear, width in ((0.5, 1.5), (-0.25, 1.5), (0.0, 4.5))
    ]
    images = 255 * np.stack(bars).astype(np.uint8)[..., None]
    np.testing.assert_allclose(
        digits_captions.lean(images), [0.5, -0.25, 0.0], atol=0.02
    )  # to the right at the top: positive
    np.testing.assert_allclose(digits_captions.ink(images)[2], 9 * 31 / 41**2)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> data.Dataset:
    return data.load(
        "digits_captions", data_dir=str(tmp_path_factory.mktemp("tfds")), captioned=True
    )


def attributes(caption: str) -> tuple[str | None, str | None]:
    """(weight, slant) that a caption speaks of."""
    words = set(re.findall(r"[a-z-]+", caption))

    def found(names):
        return next((n for n in names if words & set(digits_captions.WORDS[n])), None)

    return found(digits_captions.WEIGHTS), found(digits_captions.SLANTS)


def test_captions_say_what_is_in_the_image(digits):
    """The digit is right, the bold ones of a digit have more ink than the thin ones, and leaning is
    ordered too.
    """
    columns = digits.train.columns
    first = [digits.captions[i] for i in columns["caption"][:, 0]]
    said = np.array([attributes(caption) for caption in first])
    for row, label in zip(columns["caption"], columns["label"]):
        for caption in (digits.captions[i] for i in row if i >= 0):
            assert {str(label), digits_captions.NAMES[label]} & set(re.findall(r"\w+", caption))
    for column, (name, order) in enumerate(
        [("ink", digits_captions.WEIGHTS), ("lean", digits_captions.SLANTS)]
    ):
        values = getattr(digits_captions, name)(columns["image"])
        for digit in range(10):
            of = [values[(columns["label"] == digit) & (said[:, column] == name)] for name in order]
            assert (
                of[0].max() <= of[1].min()
                and of[1].max() <= of[2].min()
                and min(map(len, of)) >= 25
            )


def test_what_is_held_out_is_never_trained_on(digits):
    prompts, labels = digits_captions.held_out_prompts(200)
    trained = {digits.captions[i] for row in digits.train.columns["caption"] for i in row if i >= 0}
    assert not trained & set(prompts) and set(prompts) <= set(
        digits.captions
    )  # the test split has them
    assert labels.tolist() == [*range(10)] * 20
    for prompt, label in zip(prompts, labels):
        assert attributes(prompt) == digits_captions.HELD_OUT[label]
        assert {str(label), digits_captions.NAMES[label]} & set(re.findall(r"\w+", prompt))
    assert len(digits.test) == 297 and 1250 < len(digits.train) < 1450
    columns = digits.train.columns
    every = {
        (int(label), *attributes(digits.captions[i]))
        for label, row in zip(columns["label"], columns["caption"])
        for i in row
        if i >= 0
    }
    for label in range(
        10
    ):  # each half of what is held out is seen, and so are "a thin 3" and "a bold seven"
        weight, slant = digits_captions.HELD_OUT[label]
        assert {
            (label, weight, None),
            (label, None, slant),
            (label, "bold", None),
            (label, "thin", None),
        } <= every
