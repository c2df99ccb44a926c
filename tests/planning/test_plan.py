"""experiments.plan: the program's text read, FLOPs counted, bounds by hand, and a real card for
eight CPU devices.

The cards need eight devices, so they are made in a process of their own: `python tests/planning/test_plan.py
FOLDER`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from configs import cifar10, digits, imagenet256_latent, toy
from diffusion_jax import arrays
from diffusion_jax.assembly import datasets
from diffusion_jax.errors import UserError
from diffusion_jax.models import dit
from diffusion_jax.planning import compile, flops, hlo
from diffusion_jax.training import step
from tests import commands

ROOT = Path(__file__).parents[2]
GIB = 2.0**30


# ---- reading a program
TEXT = """HloModule made_by_hand, entry_computation_layout={(f32[8,16]{1,0})->f32[8,16]{1,0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inside (p: f32[8,16]) -> bf16[4,16] {
  %p = f32[8,16]{1,0} parameter(0)
  ROOT %rs = bf16[4,16]{1,0} reduce-scatter(%p), replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}, to_apply=%add
}

%body (state: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %state = (s32[], /*index=1*/f32[8,16]{1,0:T(8,128)S(1)}) parameter(0)
  %x = f32[8,16]{1,0:T(8,128)S(1)} get-tuple-element(%state), index=1
  %ar = f32[8,16]{1,0} all-reduce(%x), replica_groups=mesh['a'=4,'b'=2] {'a'}, to_apply=%add
  ROOT %out = (s32[], f32[8,16]{1,0}) tuple(%x, %ar)
}

%condition (state: (s32[], f32[8,16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  ROOT %less = pred[] compare(%state, %limit), direction=LT
}

ENTRY %main (x: f32[8,16]) -> f32[8,16] {
  %x = f32[8,16]{1,0} parameter(0)
  %ags = (f32[8,16]{1,0}, f32[64,16]{1,0}) all-gather-start(%x), replica_groups=[1,8]<=[8], dimensions={0}
  %agd = f32[64,16]{1,0} all-gather-done(%ags)
  %rows = f32[2,16]{1,0} dynamic-slice(%agd, %x), dynamic_slice_sizes={2,16}
  %small = bf16[4,16]{1,0} fusion(%x), kind=kLoop, calls=%inside
  %first = (s32[], f32[8,16]) while(%x), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %second = (s32[], f32[8,16]) while(%first), condition=%condition, body=%body
  ROOT %shift = f32[8,16]{1,0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
}
"""


def test_collectives_of_a_program_made_by_hand():
    found = sorted(hlo.collectives(hlo.parse(TEXT), 8))
    assert found == sorted(
        [
            hlo.Collective("all-gather", 64 * 16 * 4, 8, 1),
            hlo.Collective("reduce-scatter", 4 * 16 * 2, 2, 1),
            hlo.Collective("all-reduce", 8 * 16 * 4, 4, 3),
            hlo.Collective("all-reduce", 8 * 16 * 4, 4, 7),
            hlo.Collective("collective-permute", 8 * 16 * 4, 8, 1),
        ]
    )


def test_traffic_of_a_program_made_by_hand():
    """x (512 bytes) into the gather; 2 x 128 for the slice; x and 128 for the fusion; 2 x 512 to
    shift; ten all-reduces, each of which writes 512 bytes and reads what lies in faster memory.
    """
    assert hlo.traffic(hlo.parse(TEXT)) == 512 + 256 + (512 + 128) + 1024 + 10 * 512


SLICING = """
%inner (p: f32[28,64], i: s32[]) -> f32[1,64] {
  %p = f32[28,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %row = f32[1,64]{1,0} dynamic-slice(%p, %i), dynamic_slice_sizes={1,64}
}

%outer (all: f32[28,64], i: s32[], into: f32[28,64]) -> f32[28,64] {
  %all = f32[28,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %into = f32[28,64]{1,0} parameter(2)
  %row = f32[1,64]{1,0} fusion(%all, %i), kind=kLoop, calls=%inner
  ROOT %put = f32[28,64]{1,0} dynamic-update-slice(%into, %row, %i)
}

ENTRY %main (all: f32[28,64], i: s32[], into: f32[28,64]) -> f32[28,64] {
  %all = f32[28,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %into = f32[28,64]{1,0} parameter(2)
  ROOT %f = f32[28,64]{1,0} fusion(%all, %i, %into), kind=kLoop, calls=%outer
}
"""


def test_a_fusion_that_moves_one_row_moves_one_row():
    """Of 28 rows one is read, in a fusion within, and one written, in place; and the index, which
    both look at.
    """
    assert hlo.traffic(hlo.parse(SLICING)) == 2 * 64 * 4 + 4


FUSED = """
%start (p: f32[1,8]) -> f32[4,8] {
  %p = f32[1,8]{1,0} parameter(0)
  ROOT %g = f32[4,8]{1,0} all-gather(%p), channel_id=5, replica_groups=[1,4]<=[4], dimensions={0}
}

%done (p: f32[1,8]) -> f32[4,8] {
  %p = f32[1,8]{1,0} parameter(0)
  ROOT %g = f32[4,8]{1,0} all-gather(%p), channel_id=5, replica_groups=[1,4]<=[4], dimensions={0}
}

%all-reduce-scatter.1.clone (p: f32[4,8]) -> f32[1,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %r = f32[4,8]{1,0} all-reduce(%p), channel_id=6, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %row = f32[1,8]{1,0} dynamic-slice(%r, %p), dynamic_slice_sizes={1,8}
}

ENTRY %main (x: f32[1,8]) -> f32[1,8] {
  %x = f32[1,8]{1,0} parameter(0)
  %a = f32[4,8]{1,0} fusion(%x), kind=kCustom, calls=%start
  %b = f32[4,8]{1,0} fusion(%x), kind=kCustom, calls=%done
  %c = f32[1,8]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1.clone
  ROOT %d = f32[1,8]{1,0} all-reduce(%c), channel_id=7, replica_groups={{0,1},{2,3}}, to_apply=%add
}
"""


def test_copies_of_a_collective_are_one_and_a_fused_scatter_is_one():
    """As TPUs write them: start and end of one all-gather, and a reduce-scatter."""
    found = sorted(hlo.collectives(hlo.parse(FUSED), 4))
    assert [tuple(one) for one in found] == [
        ("all-gather", 128, 4, 1),
        ("all-reduce", 32, 2, 1),
        ("reduce-scatter", 32, 4, 1),
    ]


@pytest.mark.parametrize(
    "kind, sent",
    [
        ("all-reduce", 2 * 3 / 4),
        ("all-gather", 3 / 4),
        ("reduce-scatter", 3),
        ("all-to-all", 3 / 4),
        ("collective-permute", 1),
    ],
)
def test_what_a_device_sends(kind, sent):
    """Of an array of n parts, in a ring of n: all but its own part once (gather), or twice
    (reduce); a result that is one part stands for n of them (scatter).
    """
    assert hlo.Collective(kind, 100.0, 4, 1).sent() == 100 * sent
    assert hlo.Collective(kind, 100.0, 1, 1).sent() == (100 if kind == "collective-permute" else 0)


@pytest.mark.parametrize(
    "shape, size",
    [
        ("f32[]", 4),
        ("(bf16[3,5]{1,0}, u8[7])", 37),
        ("s4[6]", 3),
        ("pred[2,2]", 4),
        ("f8e4m3fn[3]", 3),
        ("token[]", 0),
        ("c64[2]", 16),
        ("f32[0]", 0),
    ],
)
def test_bytes_of_types(shape, size):
    assert hlo.array_bytes(shape) == size


# ---- counting work
def counted(function, *shapes):
    return flops.count(
        jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    )


def test_flops_of_known_programs():
    matmul = 2 * 3 * 5 * 7
    assert counted(lambda a, b: a @ b, (3, 5), (5, 7)) == matmul
    assert (
        counted(lambda a, b: jnp.einsum("hij,hjk->hik", a, b), (4, 3, 5), (4, 5, 7)) == 4 * matmul
    )

    def loss(a, b):
        return jnp.sum(jnp.tanh(a @ b))

    assert counted(jax.grad(loss, (0, 1)), (3, 5), (5, 7)) == 3 * matmul

    def twice(a, b):
        return jnp.sum(jnp.tanh(a @ b) ** 2)

    assert (
        counted(jax.grad(jax.checkpoint(twice), (0, 1)), (3, 5), (5, 7)) == 4 * matmul
    )  # the product is computed again

    def loop(a, b):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ b), None), a, None, length=6)[0]

    assert counted(loop, (3, 7), (7, 7)) == 6 * 2 * 3 * 7 * 7

    def either(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((3, 7)))

    assert counted(jax.jit(either), (3, 5), (5, 7)) == matmul


@pytest.mark.parametrize("stride", [1, 2])
def test_flops_of_convolutions(stride):
    """Forwards 2 B H' W' k k C C'; the gradients by input and by kernel take as much each, at any
    stride, but for edges.
    """

    def conv(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    shapes = (2, 32, 32, 6), (3, 3, 6, 8)
    once = 2 * 2 * (32 // stride) ** 2 * 3 * 3 * 6 * 8
    assert counted(conv, *shapes) == once
    both = counted(jax.grad(lambda x, w: jnp.sum(conv(x, w) ** 2), (0, 1)), *shapes)
    assert both == pytest.approx(3 * once, rel=0.1)


# ---- bounds
def test_roofline_by_hand():
    chip = compile.Chip("slate", flops=100.0, hbm=1.0, bandwidth=10.0, links=5.0)
    found = {
        "flops": 800.0,
        "model_flops": 600.0,
        "traffic": 30.0,
        "batch_size": 12,
        "collectives": {"all-reduce": {"sent": 4.0}, "all-gather": {"sent": 1.0}},
    }
    bound = compile.roofline(chip, 4, found)
    assert (bound["compute"], bound["memory"], bound["collectives"]) == (2.0, 3.0, 1.0)
    assert (bound["step"], bound["bound_by"], bound["images_per_second"]) == (3.0, "memory", 4.0)
    assert bound["mfu"] == 600 / (4 * 100 * 3)


def test_what_the_compiler_refuses():
    hbm = compile.Refused(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
        "(17.91G) exceeds available HBM (15.75G)."
    )
    assert (hbm.needs, hbm.of) == (17.91 * GIB, 15.75 * GIB)
    other = compile.Refused(
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.00M of 0.25G hbm.\nExceeded"
    )
    assert (other.needs, other.of) == (GIB / 2, GIB / 4) and "\n" not in str(other)
    assert compile.Refused("RESOURCE_EXHAUSTED: something else").needs is None


def test_the_cheapest_fits():
    cards = {
        name: {"fits": fits, "flops": 1.0, "roofline": {"step": step}}
        for name, fits, step in (("a", False, 1.0), ("b", True, 3.0), ("c", True, 2.0))
    }
    assert compile.cheapest(cards) == "c"
    assert compile.cheapest({"a": cards["a"]}) is None


@pytest.mark.parametrize(
    "topology, said",
    [
        ("v5e", "v5e, v5p or v6e such as v5e:16x16"),
        ("h100:8", "write a slice of TPUs"),
        ("v4:2x2x2", "write a slice of TPUs"),
        ("v5e:2x4; rm", "write a slice of TPUs"),
        ("cpu:many", "write how many, from 1 to 1024, such as cpu:8"),
        ("cpu:0", "write how many"),
        ("cpu:1000", "jax has started with 1 CPU"),
    ],
)
def test_nonsense_topologies_are_refused_in_one_line(topology, said):
    jax.devices()
    with pytest.raises(UserError, match=said) as error:
        compile.target(topology)
    assert "\n" not in str(error.value) and topology in str(error.value)


def test_without_libtpu_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"--topology=v5e:16x16 needs .* pip install 'diffusion_jax\[tpu\]'"
    ):
        compile.target("v5e:16x16")


def test_gpu_without_a_gpu():
    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="jax sees no GPU here"):
        compile.target("gpu")


@pytest.mark.parametrize(
    "file, told",
    [
        (cifar10, ((32, 32, 3), 10)),
        (imagenet256_latent, ((32, 32, 4), 1000)),
        (digits, ((8, 8, 1), 10)),
    ],
)
def test_shapes_are_known_without_data(file, told, tmp_path):
    config = file.get_config("vp")
    config.data.data_dir = str(tmp_path)
    assert datasets.data_shape(config) == told


def test_programs_for_other_platforms_are_traced_as_such():
    """On an accelerator several steps are a loop, on a CPU they are written out."""

    def traced():  # a new function each time: jax does not trace the same one twice
        return str(
            jax.make_jaxpr(lambda c, xs: step.scan(lambda c, x: (c + x, x), c, xs))(
                0.0, jnp.ones(3)
            )
        )

    with arrays.compiling_for("tpu"):
        assert arrays.platform() == "tpu"
        assert "scan" in traced()
    with arrays.compiling_for("cpu"):
        assert "scan" not in traced()
    assert arrays.platform() == jax.default_backend()


# ---- cards
def small(**changes):
    """A small DiT on the digits: one block, 16 tokens, 32 wide. To be traced; its compilation takes
    a while.
    """
    config = imagenet256_latent.get_config("flow,S")
    config.data.update(name="digits", image_size=8, channels=1, num_classes=10, batch_size=32)
    config.model.update(width=32, depth=1, heads=2, dtype="float32")
    config.training.steps_per_call = 1
    config.update_from_flattened_dict(changes)
    return config


def points(**changes):
    """A network for points, 128 wide, that compiles in a second or two."""
    config = toy.get_config("vp")
    config.model.update(width=128, blocks=1)
    config.data.batch_size = 16
    config.training.steps_per_call = 1
    config.update_from_flattened_dict(changes)
    return config


def main(folder: Path) -> None:
    """Two cards, a search, what is refused, and a program whose collectives are known."""
    where, answers = compile.target("cpu:8"), {}
    answers["plain"] = compile.card(points(), where)
    answers["no room"] = compile.card(points(), where, hbm=1000.0)
    answers["tight"], answers["told"] = answers["plain"]["memory"]["total"] - 1, []

    def tell(name, card):
        return answers["told"].append(name)

    answers["cards"] = compile.search(points(), where, hbm=answers["tight"], tell=tell)
    answers["cheapest"] = compile.cheapest(answers["cards"])
    answers["again"] = (
        compile.search(points(), where, hbm=answers["tight"], known=answers["cards"])
        == answers["cards"]
    )
    answers["refused"] = []
    for change in ({"data.batch_size": 20}, {"mesh.fsdp": 3}, {"parallel": "pmap"}):
        try:
            compile.card(points(**change), where)
        except UserError as error:
            answers["refused"].append(str(error))
    answers["known"] = known(where.devices)
    answers["text"] = compile.text(answers["plain"]) + "\n\n" + compile.text(answers["no room"])
    (folder / "answers.json").write_text(json.dumps(answers))


def known(devices):
    """The collectives of five turns, each of which adds (16, 4) float32 up over eight devices and
    gathers (8, 4) once after.
    """
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
    P = jax.sharding.PartitionSpec

    def run(a):
        a = jax.lax.fori_loop(0, 5, lambda i, a: jnp.tanh(jax.lax.psum(a, "x")), a)
        return jax.lax.all_gather(a[:1], "x", tiled=True)

    mapped = jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=P("x"), out_specs=P(None), check_vma=False)
    )
    text = mapped.lower(jax.ShapeDtypeStruct((128, 4), jnp.float32)).compile().as_text()
    return [one._asdict() for one in hlo.collectives(hlo.parse(text), 8)]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    environ = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONWARNINGS": "error",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, __file__, str(folder)], env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "answers.json").read_text())


def test_collectives_of_a_real_program(answers):
    found = {one["kind"]: one for one in answers["known"]}
    assert len(answers["known"]) == len(found) == 2
    assert found["all-reduce"] == {
        "kind": "all-reduce",
        "bytes": 16 * 4 * 4,
        "group": 8,
        "times": 5,
    }
    assert found["all-gather"] == {"kind": "all-gather", "bytes": 8 * 4 * 4, "group": 8, "times": 1}


WIDTH = 128

WEIGHTS = (
    6 * WIDTH**2 + 4 * WIDTH
)  # of `points`: two layers for the noise, one to modulate (twice as wide), two, and the ends


def parameters() -> int:
    """Of `points`: weights, biases, two norms."""
    return WEIGHTS + (7 * WIDTH + 2) + 4 * WIDTH


def test_the_numbers_of_a_card_fit_together(answers):
    card, count = answers["plain"], parameters()
    assert (
        card["parameters"] == count
        and card["devices"] == 8
        and card["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}
    )
    assert (
        4 * 4 * count < card["state_bytes"] < 4 * 4 * count + 100
    )  # parameters, Adam's two, one EMA; and counters
    assert card["state_bytes"] == card["state_bytes_per_device"]
    batch = 2 * 2 * 4  # two points on each device
    assert abs(card["memory"]["arguments"] - card["state_bytes"] - batch) < 100
    assert card["memory"]["total"] == sum(
        card["memory"][part] for part in ("arguments", "temporaries", "output", "code")
    )
    reduced = card["collectives"]["all-reduce"]["bytes"]
    assert 4 * count <= reduced < 4 * count + 1000  # the gradient, the losses
    assert (
        card["traffic"] > 8 * 4 * count
    )  # parameters, moments and EMA are at least read and written
    assert (
        card["fits"] is None
        and card["roofline"] is None
        and card["refused"] is None
        and card["compile_seconds"] > 0
    )


def test_the_flops_of_a_card_by_hand(answers):
    """Two for each weight and example, thrice; but the first layers of noise and of points need no
    gradient by their input.
    """
    assert answers["plain"]["flops"] == 16 * 2 * (3 * WEIGHTS - WIDTH**2 - 2 * WIDTH)


def test_the_flops_of_a_transformer():
    """Forwards 2 for each weight and token, 4 T D a token for attention, the condition once an
    image; thrice that.
    """
    tokens, width, batch = 16, 32, 32
    per_token = 2 * 12 * width**2 + 4 * tokens * width + 2 * 2 * 4 * width
    condition = 2 * (256 * width + width**2 + 6 * width**2 + 2 * width**2)
    traced = compile._trace(small(), compile.Target("here", "cpu", jax.devices()[:1], None))[1]
    assert flops.count(traced.jaxpr) == pytest.approx(
        3 * batch * (tokens * per_token + condition), rel=0.05
    )


def test_the_flops_of_dit_xl_2_are_those_of_the_paper():
    """118.64 Gflops for an image of 32 x 32 latents (Peebles & Xie 2023, table 1), which counts a
    multiply-add as one.
    """
    network = dit.DiT(num_classes=1000, learn_variance=True, scan_blocks=True, **dit.SIZES["XL"])
    x, c, key = (
        jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.float32),
        jax.random.key(0),
    )
    jaxpr = jax.make_jaxpr(network.apply)(jax.eval_shape(network.init, key, x, c), x, c)
    assert flops.count(jaxpr) == pytest.approx(2 * 118.64e9, rel=1e-3)


def test_other_settings_do_the_same_work():
    """Without compiling: by accumulation and steps per call the work does not change, by
    rematerialisation it does.
    """
    where = compile.Target("here", "tpu", jax.devices()[:1], None)
    plain = flops.count(compile._trace(small(), where)[1].jaxpr)

    def of(**changes):
        return flops.count(compile._trace(small(**changes), where)[1].jaxpr)

    assert of(**{"training.accumulate": 2}) == pytest.approx(plain)
    assert of(**{"training.steps_per_call": 3}) == pytest.approx(3 * plain)
    assert 1.15 < of(**{"model.remat": "block"}) / plain < 4 / 3
    assert compile._model_flops(small(**{"model.remat": "block"}), where) == plain


def test_a_sharded_card(answers):
    """The same work; the three large leaves beyond the noise's own, 4 WIDTH^2 in all, each in eight
    parts.
    """
    plain = answers["plain"]
    card = next(card for card in answers["cards"].values() if card["mesh"]["fsdp"] == 8)
    assert card["flops"] == plain["flops"] and card["state_bytes"] == plain["state_bytes"]
    assert card["state_bytes_per_device"] == card["state_bytes"] - 4 * 4 * 4 * WIDTH**2 * 7 // 8
    batch = [c["memory"]["arguments"] - c["state_bytes_per_device"] for c in (card, plain)]
    assert abs(batch[0] - batch[1]) < 100
    assert (
        card["collectives"]["all-gather"]["bytes"]
        > 4 * 4 * WIDTH**2
        > plain["collectives"]["all-gather"]["bytes"]
    )


def test_no_room_is_an_answer(answers):
    card = answers["no room"]
    assert card["fits"] is False and card["memory"] is None
    assert card["refused"].startswith("the state alone needs 1.53 MiB of 0.00 MiB")
    assert "fits:           NO" in answers["text"] and "the state alone needs" in answers["text"]
    assert (
        f"{parameters():,} parameters" in answers["text"]
        and "HBM per device: arguments" in answers["text"]
    )


def test_search_finds_what_fits(answers):
    """One byte less than the plain step takes: something else must be found, and no card is made
    twice.
    """
    cards = answers["cards"]
    assert answers["told"] == list(cards) and answers["again"]
    first = cards[answers["told"][0]]
    assert first["fits"] is False and first["memory"]["total"] == answers["tight"] + 1
    best = cards[answers["cheapest"]]
    assert best["fits"] and best["memory"]["total"] <= answers["tight"]
    assert best["flops"] == min(card["flops"] for card in cards.values() if card["fits"])


def test_what_does_not_fit_the_devices_is_refused(answers):
    batch, mesh, door = answers["refused"]
    assert batch.startswith("config.data.batch_size=20 does not divide") and "8 devices" in batch
    assert (
        mesh.startswith("mesh ")
        and "does not fit 8 devices" in mesh
        and door.startswith("config.parallel=pmap")
    )


def test_the_command(tmp_path):
    line = ["plan", "--config=configs/toy.py:vp", "--config.model.width=8"]
    out = tmp_path / "plan.json"
    done = commands.run(*line, "--topology=cpu:2", "--json", f"--out={out}")
    assert done.returncode == 0, done.stderr
    kept = json.loads(out.read_text())
    assert kept == json.loads(done.stdout)
    assert (
        kept["card"]["devices"] == 2
        and kept["config"]["model"]["width"] == 8
        and "commit" in kept["provenance"]
    )
    done = commands.run(*line, "--topology=v5e")
    assert (
        done.returncode == 2
        and done.stderr.startswith("error: --topology=v5e")
        and len(done.stderr.splitlines()) == 1
    )


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="without libtpu: pip install 'diffusion_jax[tpu]'",
)
def test_a_card_of_a_tpu_slice():
    config = ["--config=configs/imagenet256_latent.py:flow,S", "--config.model.depth=1"]
    line = [sys.executable, "-m", "experiments.plan", *config, "--topology=v5e:2x4", "--json"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    card = json.loads(done.stdout)["card"]
    assert card["chip"] == "TPU v5e" and card["devices"] == 8 and card["fits"] is True
    assert card["memory"]["arguments"] > card["state_bytes_per_device"]
    reduced = card["collectives"]["all-reduce"]["bytes"]  # of ten steps in a loop, one
    assert reduced == pytest.approx(4 * card["parameters"], rel=0.01)
    assert 0 < card["roofline"]["mfu"] < 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))


@pytest.mark.parametrize("size", ["", "0", "-1", "99999999", "9" * 5000])
def test_a_topology_of_absurdly_many_devices_is_refused(size):
    with pytest.raises(UserError, match="write how many, from 1 to 1024"):
        compile.target(f"cpu:{size}")
