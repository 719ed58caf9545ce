"""Counts of the instructions that a kernel issues in each step of its main loop, from its machine code.

A loop is the code between a backward branch and its target. The main loop is the one with the multiplications; a loop
that waits for a barrier has none. The compiler may unroll it, so the number of steps per iteration follows from the
number of multiplications. Nothing is counted if there is no such loop, because it was fully unrolled or there is no
machine code.
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
"""Operations of the integer units, and conversions, which are no faster (source C of :mod:`.gpus`)."""
_FLOATS = {"FFMA", "FMUL", "FADD", "IMAD", "HFMA2", "HADD2", "HMUL2"}
"""Operations of the multiply-add units; they include IMAD, a product of integers."""
CountedPlan = TilePlan | WarpPlan | AttentionPlan
_MMA_DEPTH = 16
"""Inputs of a multiplication of 16-bit numbers."""
_COPY_BYTES = 16
"""Bytes of a thread's asynchronous copy, and of its store of decoded numbers."""


@dataclasses.dataclass(frozen=True)
class Issued:
    """Counts of instructions of warps.

    A step is a k-tile or a tile of keys, of all warps of a block; or a step of the lanes of one warp
    (:class:`WarpPlan`). If warps are in groups, each with a tile of its own, one group is counted. ``per_step``: in a
    step of the main loop; ``once``: outside of the loop; ``integers`` and ``floats``: those per step for these units;
    ``copying``: those per step of one warp that only copies.
    """

    per_step: float
    once: float
    integers: float = 0.0
    floats: float = 0.0
    copying: float = 0.0


@dataclasses.dataclass(frozen=True)
class _SassInstruction:
    at: int
    what: str
    conditional: bool


def count(sass: str, function: str, plan: CountedPlan, warps: int) -> Issued | None:
    """The counts of a function whose blocks have ``warps`` warps; None if they cannot be determined."""
    code = _instructions(sass, function)
    if isinstance(plan, WarpPlan):
        loop = _main_loop(code, lambda what: what.startswith("FFMA"))
        # The compiler turns multiply-adds that decode with a factor of 1 into additions.
        done = _count(loop, "FFMA") + (_count(loop, "FADD") if plan.multiply_adds > 1 else 0)
        steps = int(done / (plan.columns * plan.inputs * plan.rows * plan.multiply_adds))
        return Issued(len(loop) / steps, len(code) - len(loop), *_of_units(loop, steps)) if steps else None
    if isinstance(plan, AttentionPlan):
        return _count_attention(code, plan, warps)
    return _count_tile(code, plan, warps)


def _count_attention(code: Sequence[_SassInstruction], plan: AttentionPlan, warps: int) -> Issued | None:
    """The counts of an attention, whose step is a tile of keys. Warps that only copy have a loop with a branch each for
    keys and values, which alternate."""
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
    rest = [instruction for instruction in code if instruction not in loop]
    copying = _main_loop(rest, lambda what: what.startswith("LDGSTS"))
    of_warp = len(copying) if plan.copying_warps else 0
    integers, floats = (count * computing for count in _of_units(loop, tiles))
    issued = len(loop) / tiles * computing + of_warp * plan.copying_warps
    return Issued(issued, (len(code) - len(loop) - of_warp) * computing, integers, floats, of_warp)


def _count_tile(code: Sequence[_SassInstruction], plan: TilePlan, warps: int) -> Issued | None:
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
    rest = [instruction for instruction in code if instruction not in loop]
    copying = _main_loop(rest, lambda what: what.startswith(moving))
    if plan.copying_warps and decodes and not copying:
        return None
    if plan.copying_warps and copying:  # without such a loop TMA copies everything, with hardly any instructions
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


def _of_units(loop: Sequence[_SassInstruction], steps: float) -> tuple[float, float]:
    """A warp's instructions per step for the integer units and conversions, and for the multiply-add units."""
    operations = [instruction.what.partition(" ")[0].partition(".")[0] for instruction in loop]
    integers, floats = (sum(operation in names for operation in operations) for names in (_INTEGERS, _FLOATS))
    return integers / steps, floats / steps


def _multiplications(plan: TilePlan, warps: int) -> tuple[str, float]:
    """The prefix of the instruction that multiplies, and the number of them that a warp issues for a k-tile."""
    depth = 32 // plan.product.row_bytes
    kind = "Q" if plan.product.dtype == FP8 else "H"
    if plan.unit == "wgmma":  # at least 1: warpgroups that share a tile by its columns each issue their own
        return f"{kind}GMMA", max(plan.rows / 64 * 4 / warps, 1) * plan.inputs / depth
    if plan.unit == "mma":
        return f"{kind}MMA", plan.rows / 16 * plan.columns / 8 * plan.inputs / depth / warps
    return "FFMA", plan.rows * plan.columns * plan.inputs / (warps * WARP)


def _instructions(sass: str, function: str) -> list[_SassInstruction]:
    """The instructions of a function, without the NOPs that pad it."""
    begins = {match["name"]: match.end() for match in _FUNCTION.finditer(sass)}
    if function not in begins:
        return []
    ends = [match.start() for match in _FUNCTION.finditer(sass) if match.start() > begins[function]]
    text = sass[begins[function] : min(ends, default=len(sass))]
    code = [
        _SassInstruction(int(match["at"], 16), match["what"].strip(), bool(match["only"]))
        for match in _INSTRUCTION.finditer(text)
    ]
    return [instruction for instruction in code if not instruction.what.startswith("NOP")]


def _main_loop(code: Sequence[_SassInstruction], is_wanted: Callable[[str], bool]) -> list[_SassInstruction]:
    """The body of the innermost loop with the most wanted instructions; empty if there is none.

    Loops by unconditional branches count only if no loop by a conditional branch has a wanted instruction: the code of
    a wait may stand after everything else and branch back unconditionally.
    """
    branches = [(jump, match) for jump in code if (match := _BRANCH.match(jump.what)) is not None]
    for conditional in (True, False):
        places = [(int(match["target"], 16), jump.at) for jump, match in branches if jump.conditional is conditional]
        bodies = [[item for item in code if begin <= item.at <= end] for begin, end in places if begin < end]
        wanted = [body for body in bodies if any(is_wanted(item.what) for item in body)]
        inner = [body for body in wanted if not any(other is not body and _is_within(other, body) for other in wanted)]
        if inner:
            return max(inner, key=lambda body: sum(is_wanted(item.what) for item in body))
    return []


def _is_within(body: Sequence[_SassInstruction], other: Sequence[_SassInstruction]) -> bool:
    return other[0].at <= body[0].at and body[-1].at <= other[-1].at and len(body) < len(other)


def _count(code: Sequence[_SassInstruction], operation: str) -> int:
    return sum(instruction.what.startswith(operation) for instruction in code)
