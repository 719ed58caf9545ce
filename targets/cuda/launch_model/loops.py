"""How many instructions a kernel issues in each step of its main loop, counted in its machine code.

A loop is what lies between a branch backwards and its target. The main loop is the one with the multiplications; one
that waits for a barrier has none. How many steps an iteration makes follows from how many multiplications it has,
since the compiler unrolls. Where there is no such loop, for it was unrolled away or there is no machine code, nothing
is counted.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

from moec.targets.cuda.architectures import FP8, WARP
from moec.targets.cuda.launch_model.plans import AttentionPlan, TilePlan, WarpPlan

_FUNCTION = re.compile(r"^\s*Function : (?P<name>\w+)$", re.MULTILINE)
_INSTRUCTION = re.compile(r"^\s*/\*(?P<at>[0-9a-f]{4,})\*/\s+(?P<only>@!?U?P\d+ )?(?P<what>[A-Z][^;]*);", re.MULTILINE)
_BRANCH = re.compile(r"BRA\S* (?:\S+, )?(?:`\()?0x(?P<target>[0-9a-f]+)")
_INTEGERS = frozenset(
    [
        "LOP3",
        "SHF",
        "PRMT",
        "IADD3",
        "IADD",
        "VIADD",
        "ISETP",
        "SEL",
        "LEA",
        "IMNMX",
        "VIMNMX",
        "I2F",
        "I2FP",
        "I2I",
        "F2F",
        "F2FP",
        "F2I",
    ]
)
"""Operations of the units for integers, and conversions, which are no faster (C, of :mod:`.gpus`)."""
_FLOATS = {"FFMA", "FMUL", "FADD", "IMAD", "HFMA2", "HADD2", "HMUL2"}
"""Those that the units for multiply-adds do; IMAD, a product of integers, is one."""
CountedPlan = TilePlan | WarpPlan | AttentionPlan
_MMA_DEPTH = 16
"""Inputs of a multiplication of 16-bit numbers."""
_COPY_BYTES = 16
"""Of an asynchronous copy of a thread, and of its store of what it has decoded."""


@dataclasses.dataclass(frozen=True)
class Issued:
    """Instructions of warps. ``per_step``: of all warps of a block for a k-tile, or of a warp for a step of its lanes;
    ``once``: those before and behind the loop, likewise; of warps in groups, those that have one tile. ``integers`` and
    ``floats``: of those per step, the ones for these units; ``copying``: those per step of a warp that only copies."""

    per_step: float
    once: float
    integers: float = 0.0
    floats: float = 0.0
    copying: float = 0.0


@dataclasses.dataclass(frozen=True)
class _Instruction:
    at: int
    what: str
    conditional: bool


def count(sass: str, function: str, plan: CountedPlan, warps: int) -> Issued | None:
    """Of a function that blocks of so many warps run; None where it cannot be counted."""
    code = _instructions(sass, function)
    if isinstance(plan, WarpPlan):
        loop = _main_loop(code, lambda what: what.startswith("FFMA"))
        # Of those that decode, the compiler makes additions where the factor is 1.
        done = _count(loop, "FFMA") + (_count(loop, "FADD") if plan.multiply_adds > 1 else 0)
        steps = int(done / (plan.columns * plan.inputs * plan.rows * plan.multiply_adds))
        return Issued(len(loop) / steps, len(code) - len(loop), *_of_units(loop, steps)) if steps else None
    if isinstance(plan, AttentionPlan):
        return _count_attention(code, plan, warps)
    return _count_tile(code, plan, warps)


def _count_attention(code: Sequence[_Instruction], plan: AttentionPlan, warps: int) -> Issued | None:
    """A step is a tile of keys. Keys and values are copied in turn, by a loop with a branch for each."""
    computing = warps - plan.copying_warps
    along_head, along_keys = -(-plan.head_size // _MMA_DEPTH), plan.keys // _MMA_DEPTH
    if plan.unit == "mma":
        operation, of_tile = "HMMA", along_head * plan.keys // 8 + along_keys * -(-plan.columns // 16) * 2
    else:
        operation, of_tile = "HGMMA", along_head + along_keys
    loop = _main_loop(code, lambda what: what.startswith(operation))
    tiles = _count(loop, operation) / of_tile
    if plan.unit == "fma" or tiles < 1 or tiles != int(tiles):
        return None
    copying = _main_loop([one for one in code if one not in loop], lambda what: what.startswith("LDGSTS"))
    of_warp = len(copying) if plan.copying_warps else 0
    integers, floats = (count * computing for count in _of_units(loop, tiles))
    issued = len(loop) / tiles * computing + of_warp * plan.copying_warps
    return Issued(issued, (len(code) - len(loop) - of_warp) * computing, integers, floats, of_warp)


def _count_tile(code: Sequence[_Instruction], plan: TilePlan, warps: int) -> Issued | None:
    computing = (warps - plan.copying_warps) // plan.groups
    if computing < 1:
        return None
    operation, per_k_tile = _multiplications(plan, computing)
    loop = _main_loop(code, lambda what: what.startswith(operation))
    k_tiles = _count(loop, operation) / per_k_tile
    if k_tiles < 1 or k_tiles != int(k_tiles):
        return None
    per_step, outside, of_warp = len(loop) / k_tiles * computing, len(code) - len(loop), 0.0
    integers, floats = (count * computing for count in _of_units(loop, k_tiles))
    decodes = plan.product.weight_bits < 8 * plan.product.row_bytes
    moving, lines = ("STS", plan.columns) if decodes else ("LDGSTS", plan.rows)
    copying = _main_loop([one for one in code if one not in loop], lambda what: what.startswith(moving))
    if plan.copying_warps and decodes and not copying:
        return None
    if plan.copying_warps and copying:  # where they have the accelerator copy all, they issue next to nothing
        k_tiles = _count(copying, moving) / (
            lines * plan.inputs * plan.product.row_bytes / _COPY_BYTES / (plan.copying_warps * WARP)
        )
        if k_tiles < 1 or k_tiles != int(k_tiles):
            return None
        of_warp = len(copying) / k_tiles
        per_step += of_warp * plan.copying_warps
        outside -= len(copying)
        own = [count * plan.copying_warps for count in _of_units(copying, k_tiles)]
        integers, floats = integers + own[0], floats + own[1]
    return Issued(per_step, outside * computing, integers, floats, of_warp)


def _of_units(loop: Sequence[_Instruction], steps: float) -> tuple[float, float]:
    """Instructions for integers and conversions in a step, and those for floats; both of a warp."""
    operations = [one.what.partition(" ")[0].partition(".")[0] for one in loop]
    integers, floats = (sum(one in names for one in operations) for names in (_INTEGERS, _FLOATS))
    return integers / steps, floats / steps


def _multiplications(plan: TilePlan, warps: int) -> tuple[str, float]:
    """How the instruction begins, and how many a warp has for a k-tile."""
    depth = 32 // plan.product.row_bytes
    kind = "Q" if plan.product.dtype == FP8 else "H"
    if plan.unit == "wgmma":  # where warpgroups share a tile by its columns, each has instructions of its own
        return f"{kind}GMMA", max(plan.rows / 64 * 4 / warps, 1) * plan.inputs / depth
    if plan.unit == "mma":
        return f"{kind}MMA", plan.rows / 16 * plan.columns / 8 * plan.inputs / depth / warps
    return "FFMA", plan.rows * plan.columns * plan.inputs / (warps * WARP)


def _instructions(sass: str, function: str) -> list[_Instruction]:
    """Those of a function; nothing behind its last end, where the code is padded."""
    begins = {match["name"]: match.end() for match in _FUNCTION.finditer(sass)}
    if function not in begins:
        return []
    ends = [match.start() for match in _FUNCTION.finditer(sass) if match.start() > begins[function]]
    text = sass[begins[function] : min(ends, default=len(sass))]
    code = [
        _Instruction(int(match["at"], 16), match["what"].strip(), bool(match["only"]))
        for match in _INSTRUCTION.finditer(text)
    ]
    return [one for one in code if not one.what.startswith("NOP")]


def _main_loop(code: Sequence[_Instruction], is_wanted: Callable[[str], bool]) -> list[_Instruction]:
    """The body of the loop with most of the wanted instructions, of those with no such loop within; nothing where there
    is none. A branch without condition may lead back from where a wait stands, behind all else: it makes a loop only
    where no other one has what is wanted."""
    branches = [(one, branch) for one in code if (branch := _BRANCH.match(one.what)) is not None]
    for conditional in (True, False):
        places = [(int(branch["target"], 16), one.at) for one, branch in branches if one.conditional is conditional]
        bodies = [[one for one in code if begin <= one.at <= end] for begin, end in places if begin < end]
        wanted = [body for body in bodies if any(is_wanted(one.what) for one in body)]
        inner = [body for body in wanted if not any(other is not body and _is_within(other, body) for other in wanted)]
        if inner:
            return max(inner, key=lambda body: sum(is_wanted(one.what) for one in body))
    return []


def _is_within(body: Sequence[_Instruction], other: Sequence[_Instruction]) -> bool:
    return other[0].at <= body[0].at and body[-1].at <= other[-1].at and len(body) < len(other)


def _count(code: Sequence[_Instruction], operation: str) -> int:
    return sum(one.what.startswith(operation) for one in code)
