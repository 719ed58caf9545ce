"""The machine code of a kernel, as cuobjdump prints it: its instructions, and which of them are repeated."""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

_INSTRUCTION = re.compile(
    r"^\s*/\*(?P<at>[0-9a-f]{4,})\*/\s+(?P<predicate>@!?U?P\d+ )?(?P<what>[A-Z][^;]*);", re.MULTILINE
)
_BRANCH = re.compile(r"BRA\S* (?P<condition>\S+, )?(?:`\()?0x(?P<target>[0-9a-f]+)")


class Instruction(NamedTuple):
    """``what``: the instruction without its predicate. ``target``: where it may branch to, or None. ``continues``:
    whether the next instruction may follow it."""

    what: str
    target: int | None
    continues: bool


def instructions_of(sass: str) -> dict[int, Instruction]:
    """The instructions by address, in the order of addresses."""
    found = _INSTRUCTION.finditer(sass)
    return {int(match["at"], 16): _instruction(match["predicate"], match["what"]) for match in found}


def _instruction(predicate: str | None, what: str) -> Instruction:
    branch = _BRANCH.match(what)
    always = predicate is None and (what.startswith("EXIT") or (branch is not None and branch["condition"] is None))
    return Instruction(what.strip(), int(branch["target"], 16) if branch else None, not always)


def main_loop(sass: str, operation: str) -> list[str]:
    """The instructions of the innermost loop with the most ``operation`` s."""
    return max(inner_loops(sass), key=lambda body: sum(what.startswith(operation) for what in body))


def inner_loops(sass: str) -> list[list[str]]:
    """The instructions of all innermost loops. A loop is the code between a backward branch and its target."""
    code = instructions_of(sass)
    loops = _loops(code)
    return _bodies(code, [loop for loop in loops if not any(_is_within(other, loop) for other in loops)])


def loops_with(sass: str, operation: str) -> list[list[str]]:
    """The instructions of all loops that have ``operation`` once, in the order of their branches. Code with an EXIT is
    no loop, but what lies between a part behind the end of the kernel and the place to which it returns."""
    code = instructions_of(sass)
    return [body for body in _bodies(code, _loops(code)) if body.count(operation) == 1 and "EXIT" not in body]


def _loops(code: dict[int, Instruction]) -> list[tuple[int, int]]:
    return [(each.target, at) for at, each in code.items() if each.target is not None and each.target < at]


def _bodies(code: dict[int, Instruction], loops: list[tuple[int, int]]) -> list[list[str]]:
    return [[each.what for at, each in code.items() if begin <= at <= end] for begin, end in loops]


def _is_within(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return inner != outer and outer[0] <= inner[0] and inner[1] <= outer[1]


def repeated(sass: str, operation: str) -> list[int]:
    """The addresses of instructions that match ``operation``, a regular expression, and can be reached from themselves:
    those in a loop, also where a part of the loop stands behind the end of the kernel."""
    code = instructions_of(sass)
    following = dict(itertools.pairwise(code))

    def after(at: int) -> list[int]:
        each = code[at]
        steps = [following.get(at)] if each.continues else []
        return [place for place in (*steps, each.target) if place is not None]

    def reaches_itself(at: int) -> bool:
        reached, ahead = set[int](), after(at)
        while ahead:
            place = ahead.pop()
            if place not in reached:
                reached.add(place)
                ahead += after(place)
        return at in reached

    return [at for at, each in code.items() if re.match(operation, each.what) and reaches_itself(at)]


def until_used(loop: list[str], load: str, operation: str) -> list[int]:
    """The number of ``operation`` s between each ``load`` of 16 bytes in a loop and the first instruction that uses its
    numbers, also in the next turn of the loop."""
    loads = [at for at, what in enumerate(loop) if what.startswith(load)]
    return [_until_used([*loop[at:], *loop[:at]], operation) for at in loads]


def _until_used(code: list[str], operation: str) -> int:
    load, *others = code
    first = int(re.search(r" R(\d+),", load)[1])
    uses = re.compile(rf",.*\bR({'|'.join(str(first + i) for i in range(4))})\b")
    return sum(what.startswith(operation) for what in itertools.takewhile(lambda what: not uses.search(what), others))
