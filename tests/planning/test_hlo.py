"""The text of compiled programs, read: collectives, traffic, bytes."""

from __future__ import annotations

import pytest

from diffusion_jax.planning import hlo

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
"""  # noqa: E501 (lines of a program)


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
    """One of 28 rows is read by an inner fusion, and one is written in place.

    The index that both use counts as well.
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
    """TPUs write the start and the end of one all-gather, and a fused reduce-scatter."""
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
    """In a ring of n a device sends n - 1 of n parts of an array, once (gather) or twice (reduce).

    A result that is one part stands for n of them (scatter).
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
