"""Instructions of main loops, counted in machine code."""

from __future__ import annotations

import dataclasses

import pytest

from moec.targets.cuda.launch_model.loops import Issued, count
from moec.targets.cuda.launch_model.plans import AttentionPlan, ProductPlan, TilePlan, WarpPlan

PRODUCT = ProductPlan(4, 256, 64, 64, "bfloat16", 16.0, 2, 2, gathered=True)
WARPS = WarpPlan(PRODUCT, warps=4, columns=4, inputs=8)
MMA = TilePlan(PRODUCT, rows=16, columns=32, inputs=64, stages=3, unit="mma")
WGMMA = TilePlan(PRODUCT, rows=64, columns=64, inputs=64, stages=4, unit="wgmma", copying_warps=4)


def sass(*instructions: str, function: str = "f") -> str:
    """Machine code as cuobjdump prints it: 16 bytes per instruction, with the encoding after it and on the next
    line."""
    lines = [f"\t\tFunction : {function}", '\t.headerflags\t@"EF_CUDA_SM90"']
    for at, text in enumerate(instructions):
        lines.append(f"        /*{16 * at:04x}*/                   {text} ;        /* 0x000078ff05057b82 */")
        lines.append("                                                           /* 0x000fe20000000800 */")
    return "\n".join(lines) + "\n"


def loop(start: int, *body: str) -> list[str]:
    """A loop that begins at the ``start``-th instruction."""
    return [*body, f"@P0 BRA 0x{16 * start:x}"]


FMA = ["FFMA R1, R2, R3, R1"] * 32


def test_multiply_adds_that_decode_are_no_steps():
    text = sass(*loop(0, *FMA, *FMA[4:], *["FADD R1, R1, -8"] * 4))
    decoding = dataclasses.replace(WARPS, multiply_adds=2)
    assert count(text, "f", decoding, 4) == Issued(65, 0, floats=64)


def test_steps_of_a_lane():
    """A loop that was unrolled twice has 64 multiply-adds, 6 other instructions and the branch per iteration."""
    text = sass("MOV R1, c[0x0][0x28]", *loop(1, *["LDG.E R4, [R2]"] * 6, *FMA, *FMA), "EXIT", "BRA 0x480")
    assert count(text, "f", WARPS, 4) == Issued(71 / 2, 3, floats=32)


def test_a_wait_for_a_barrier_is_not_the_main_loop():
    spin = loop(1, "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R3], R6", "NANOSLEEP 0x100")
    main = loop(4, *["HMMA.16816.F32.BF16 R4, R8, R2, R4"] * 4, "BAR.SYNC 0x0")
    # Each of four warps has 1 * 4 * 4 / 4 products per k-tile.
    assert count(sass("NOP", *spin, *main, "EXIT"), "f", MMA, 4) == Issued(6 * 4, 4 * 4)


@pytest.mark.parametrize(
    ("unit", "rows", "columns", "warps", "instruction", "per_k_tile"),
    [
        ("mma", 16, 32, 4, "QMMA.16832.F32.E4M3.E4M3 R4, R8, R2, RZ", 4),
        ("wgmma", 128, 144, 12, "QGMMA.64x144x32.F32.E4M3.E4M3 R24, gdesc[UR8], R24", 4),
        ("wgmma", 64, 256, 12, "QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR8], R24", 4),
    ],
)
def test_instructions_of_8_bits(unit, rows, columns, warps, instruction, per_k_tile):
    """A k-tile has 128 inputs. Warpgroups share a tile by rows, or by columns if it has 64 rows."""
    product = dataclasses.replace(PRODUCT, dtype="float8_e4m3fn", weight_bits=8.25, row_bytes=1)
    copying = warps - 8 if unit == "wgmma" else 0
    plan = TilePlan(product, rows, columns, inputs=128, stages=3, unit=unit, copying_warps=copying)
    text = sass("S2R R0, SR_TID.X", *loop(1, *[instruction] * per_k_tile * 2, *["FFMA R1, R2, R3, R1"] * 6), "EXIT")
    computing = warps - copying
    assert count(text, "f", plan, warps) == Issued(
        (per_k_tile * 2 + 7) / 2 * computing, 2 * computing, 0, 3 * computing
    )


def test_warps_that_copy_have_a_loop_of_their_own():
    computing = loop(1, *["HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24"] * 8, "WARPGROUP.DEPBAR.LE gsb0, 0x1")
    # 128 threads copy 64 rows of 8 chunks: four copies per thread and k-tile.
    copying = loop(11, *["LDGSTS.E.BYPASS.128 [R37], [R8.64]"] * 4, "UTMALDG.2D [UR8], [UR18]", "LOP3.LUT R1, R2, R3")
    found = count(sass("S2R R0, SR_TID.X", *computing, *copying, "EXIT"), "f", WGMMA, 8)
    assert found == Issued(10 / 2 * 4 + 7 * 4, 2 * 4, integers=4, copying=7)


ATTENTION = AttentionPlan("bfloat16", 2, 2, 64, 64, 1, 4, "last", 64, 64, "mma", "B * G", "S", "P")


def test_tiles_of_keys():
    """A warp has 4 * 8 products for a tile's scores and 4 * 8 for its values. The loop's test is at its beginning."""
    body = ["@P0 BRA 0x1000", *["HMMA.16816.F32.BF16 R4, R8, R2, R4"] * 64, "MUFU.EX2 R3, R3", "BRA 0x10"]
    assert count(sass("S2R R0, SR_TID.X", *body, "EXIT"), "f", ATTENTION, 4) == Issued(67 * 4, 2 * 4)
    assert count(sass(*body[:-2], "BRA 0x0"), "f", dataclasses.replace(ATTENTION, keys=80), 4) is None
    plain = dataclasses.replace(ATTENTION, unit="fma")
    assert count(sass(*loop(0, *FMA), "EXIT"), "f", plain, 8) is None


def test_tiles_of_keys_that_a_warpgroup_of_its_own_brings():
    """A consumer has four products along a head and four along the keys. The code of its waits, after everything else,
    branches back unconditionally and is not counted as a loop."""
    products = ["HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24"] * 8
    copies = loop(10, "LDGSTS.E.BYPASS.128 [R37], [R8.64]", "IADD3 R1, R2, R3, RZ")
    text = sass("S2R R0, SR_TID.X", *loop(1, *products), *copies, *products, "BRA 0x20", "EXIT")
    plan = dataclasses.replace(ATTENTION, rows=128, unit="wgmma", copying_warps=4)
    assert count(text, "f", plan, 12) == Issued(9 * 8 + 3 * 4, 11 * 8, copying=3)


def test_a_loop_over_tiles_is_not_the_main_loop():
    """The outer loop over tiles has one product more than the inner loop, because the compiler peeled the first one."""
    product = "HMMA.16816.F32.BF16 R4, R8, R2, R4"
    code = ["S2R R0, SR_TID.X", product, *loop(2, *[product] * 4), "STG.E [R2], R3", "@P1 BRA 0x10", "EXIT"]
    assert count(sass(*code), "f", MMA, 4) == Issued(5 * 4, 5 * 4)


def test_warps_in_groups_have_a_tile_each():
    """A group has two products along 128 rows and four along the inputs: 8 per k-tile."""
    in_turns = dataclasses.replace(WGMMA, rows=128, groups=2, persistent=True)
    computing = loop(0, *["HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24"] * 16)
    copying = loop(17, *["LDGSTS.E.BYPASS.128 [R37], [R8.64]"] * 8)
    found = count(sass(*computing, *copying, "EXIT"), "f", in_turns, 12)
    assert found == Issued(17 / 2 * 4 + 9 * 4, 4, copying=9)


@pytest.mark.parametrize(
    "text",
    [
        "",
        sass(*FMA, "EXIT"),  # fully unrolled
        sass(*loop(0, *FMA), "EXIT", function="other"),
        sass(*loop(0, *FMA[:31]), "EXIT"),  # less than a step
    ],
)
def test_what_cannot_be_counted_is_not(text):
    assert count(text, "f", WARPS, 4) is None


def test_a_fraction_of_a_k_tile_is_not_counted():
    products = ["HMMA.16816.F32.BF16 R4, R8, R2, R4"] * 6
    assert count(sass(*loop(0, *products), "EXIT"), "f", MMA, 4) is None


def test_warps_that_decode_store_lines_of_the_matrix():
    """128 threads store 64 columns of 8 chunks: four stores per thread and k-tile."""
    packed = dataclasses.replace(WGMMA, product=dataclasses.replace(PRODUCT, weight_bits=4.5))
    computing = loop(0, *["HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24"] * 4)
    decoding = loop(5, "LOP3.LUT R1, R2, R3", *["STS.128 [R4], R8"] * 4)
    found = count(sass(*computing, *decoding, "EXIT"), "f", packed, 8)
    assert found == Issued(5 * 4 + 6 * 4, 4, integers=4, copying=6)
    assert count(sass(*computing, *loop(5, *["STS.64 [R4], R8"] * 5), "EXIT"), "f", packed, 8) is None


def test_copies_by_the_accelerator_take_no_instructions():
    text = sass(*loop(0, *["HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24"] * 4), "EXIT")
    assert count(text, "f", WGMMA, 8) == Issued(5 * 4, 4)
    packed = dataclasses.replace(WGMMA, product=dataclasses.replace(PRODUCT, weight_bits=4.5))
    assert count(text, "f", packed, 8) is None  # there has to be a loop that decodes, but none is found
