"""Reading SASS, and execution counts that agree with what was counted."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from pft_bench.insight.counters import instructions
from pft_bench.insight.counters.compiled import COMPILED, compiled
from pft_bench.insight.counters.executions import executions
from pft_bench.insight.counters.listing import SassBlock, access_of, read_listing, unit_of

KERNEL = "_ZN3pft4cuda12_GLOBAL__N_114sddmm_residentIffEEvv"
# A loop unrolled twice, the turn that is left over, and a slow path that never runs.
LISTING = f"""
	.section	.text.{KERNEL},"ax",@progbits
.text.{KERNEL}:
	//## File "/x/sddmm.cu", line 10
        /*0000*/                   S2R R1, SR_TID.X ;
        /*0010*/              @P0  BRA `(.L_x_2) ;
.L_x_1:
	//## File "/x/device.cuh", line 5 inlined at "/x/sddmm.cu", line 12
	//## File "/x/sddmm.cu", line 12
        /*0020*/                   LDS.128 R4, [R2] ;
        /*0030*/                   LDS.128 R8, [R2+0x10] ;
	//## File "/x/sddmm.cu", line 13
        /*0040*/                   FFMA R1, R4, R8, R1 ;
        /*0050*/                   IMAD R3, R3, R3, RZ ;
        /*0060*/                   IADD3 R2, R2, 0x20, RZ ;
        /*0070*/                   ISETP.NE.AND P1, PT, R2, R5, PT ;
        /*0080*/              @P1  BRA `(.L_x_1) ;
.L_x_2:
	//## File "/x/sddmm.cu", line 14
        /*0090*/             @!P2  BRA `(.L_x_3) ;
	//## File "/x/device.cuh", line 5 inlined at "/x/sddmm.cu", line 12
	//## File "/x/sddmm.cu", line 12
        /*00a0*/                   LDS.128 R4, [R2] ;
.L_x_3:
	//## File "/x/sddmm.cu", line 20
        /*00b0*/                   SHFL.BFLY PT, R1, R1, 0x1, 0x1f ;
        /*00c0*/               @P3 STG.E R1, [R6] ;
        /*00d0*/                   EXIT ;
.L_x_4:
        /*00e0*/                   BRA `(.L_x_4) ;
	.section	.text.other,"ax",@progbits
"""
LOOP = ("device.cuh:5", "sddmm.cu:12")
END = ("sddmm.cu:20",)


def test_a_listing_becomes_blocks() -> None:
    found = read_listing(LISTING)
    assert list(found) == ["sddmm_resident<float32, float32>"]
    blocks = found["sddmm_resident<float32, float32>"]
    entry, loop, test, rest, end = blocks[:5]
    assert entry.after == [1, 2]
    assert sorted(loop.after) == [1, 2]
    assert (sorted(test.after), rest.after, end.after) == ([3, 4], [4], [])
    assert loop.units == {"issue": 7, "fma": 1, "imad": 1, "alu": 2}
    assert loop.accesses == {("load shared", 16, LOOP): 2}
    assert rest.accesses == {("load shared", 16, LOOP): 1}
    assert end.steps == {"shuffle": 1}
    assert end.optional == {("store global", 4, END)}


def test_execution_counts_follow_from_the_counts() -> None:
    """Eight warps with seven reads each: three double turns and the one that is left over."""
    blocks = read_listing(LISTING)["sddmm_resident<float32, float32>"]
    counted = Counter({("load shared", 16, LOOP): 8 * 7, ("store global", 4, END): 8})
    ran, explained = executions(blocks, counted, {"shuffle": 8}, 8)
    assert explained == pytest.approx(1.0)
    assert ran[0] == pytest.approx(8)
    assert 2 * ran[1] + ran[3] == pytest.approx(8 * 7)
    assert ran[4] == pytest.approx(8)


def test_what_cannot_be_is_not_explained() -> None:
    """A kernel without the accesses that were counted: the share says how little is known."""
    blocks = [SassBlock(Counter(issue=1), Counter({("load shared", 4, END): 1}))]
    _, explained = executions(blocks, Counter({("load shared", 4, END): 80}), {}, 8)
    assert explained == pytest.approx(0.1)


def test_lines_that_the_compiler_confused_are_taken_together() -> None:
    """Of 16 reads at each of two lines the SASS names one for all."""
    a, b = ("device.cuh:5", "sddmm.cu:12"), ("device.cuh:6", "sddmm.cu:12")
    blocks = [
        SassBlock(Counter(issue=1), after=[1]),
        SassBlock(
            Counter(issue=9), Counter({("load shared", 16, a): 3, ("load shared", 16, b): 1}), after=[1, 2]
        ),
        SassBlock(Counter(issue=1)),
    ]
    counted = Counter({("load shared", 16, a): 16, ("load shared", 16, b): 16})
    ran, explained = executions(blocks, counted, {}, 1)
    assert ran[1] == pytest.approx(8)
    assert explained == pytest.approx(1.0)


def test_no_more_lines_are_taken_together_than_disagree() -> None:
    """Those of one function: what another one reads has an equation of its own, however much it costs."""
    a, b = ("tile.cuh:5", "tile.cuh:20", "sddmm.cu:12"), ("tile.cuh:6", "tile.cuh:20", "sddmm.cu:12")
    row = ("row.cuh:3", "sddmm.cu:12")
    blocks = [
        SassBlock(Counter(issue=1), after=[1]),
        SassBlock(
            Counter(issue=9), Counter({("load shared", 16, a): 3, ("load shared", 16, b): 1}), after=[1, 2]
        ),
        SassBlock(Counter(issue=50), Counter({("load shared", 16, row): 1}), after=[2, 3]),
        SassBlock(Counter(issue=1)),
    ]
    counted = Counter({("load shared", 16, a): 16, ("load shared", 16, b): 16, ("load shared", 16, row): 8})
    ran, explained = executions(blocks, counted, {}, 1)
    assert ran[1:3] == pytest.approx([8, 8])
    assert explained == pytest.approx(1.0)


def test_a_line_that_nothing_was_counted_at_did_not_run() -> None:
    """Not a cheaper way to what was counted elsewhere in the kernel."""
    counted = Counter({("store shared", 4, ("row.cuh:3", "sddmm.cu:12", "sddmm.cu:40")): 40})
    region = ("store shared", 4, ("terms.cuh:57", "sddmm.cu:9", "sddmm.cu:40"))
    blocks = [
        SassBlock(Counter(issue=1), after=[1, 2]),
        SassBlock(Counter(issue=6), Counter({region: 4}), after=[1, 2]),
        SassBlock(Counter(issue=9), Counter(dict.fromkeys(counted, 1)), after=[2]),
    ]
    ran, explained = executions(blocks, counted, {}, 1)
    assert ran[1:] == pytest.approx([0, 40])
    assert explained == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("opcode", "unit", "access"),
    [
        ("FFMA", "fma", None), ("IMAD.WIDE", "imad", None), ("LOP3.LUT", "alu", None), ("MUFU.EX2", "mufu", None),
        ("UIADD3", None, None), ("BRA", None, None), ("HMMA.16816.F32", None, None),
        ("LDS.U.128", None, ("load shared", 16)),
        ("STS.64", None, ("store shared", 8)), ("LDG.E.U16.CONSTANT", None, ("load global", 2)),
        ("LDGSTS.E.BYPASS.128", None, ("async shared", 16)), ("LDSM.16.M88.4", None, ("ldmatrix shared", 16)),
    ],
)  # fmt: skip
def test_opcodes(opcode: str, unit: str | None, access: tuple[str, int] | None) -> None:
    assert unit_of(opcode) == unit
    assert access_of(opcode) == access


def test_the_committed_listing_is_whole() -> None:
    kernels = compiled()["kernels"]
    assert {"sddmm_resident<float16, float16>", "attention_forward_tiled<float16>"} <= set(kernels)
    packed, lines = kernels["sddmm_resident<float32, float32>"], compiled()["lines"]
    assert json.loads(json.dumps(instructions.pack(instructions.unpack(packed, lines), lines))) == packed
    assert COMPILED.stat().st_size < 1 << 20


def test_instructions_of_another_source_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Lines of the committed SASS mean nothing in changed code: no figure rather than a wrong one."""
    (tmp_path / "a.cu").write_text("changed")
    changed = instructions.sources_digest(tmp_path)
    monkeypatch.setattr(instructions, "sources_digest", lambda: changed)
    assert instructions.is_stale()
    monkeypatch.setattr(instructions, "sources_digest", lambda: None)  # an installed package has no sources
    assert not instructions.is_stale()
