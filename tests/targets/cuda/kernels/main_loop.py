"""The main loop of a kernel in its machine code, as cuobjdump prints it."""

from __future__ import annotations

import re

_INSTRUCTION = re.compile(r"^\s*/\*(?P<at>[0-9a-f]{4,})\*/\s+(?:@!?U?P\d+ )?(?P<what>[A-Z][^;]*);", re.MULTILINE)
_BRANCH = re.compile(r"BRA\S* (?:\S+, )?(?:`\()?0x(?P<target>[0-9a-f]+)")


def main_loop(sass: str, operation: str) -> list[str]:
    """The instructions of the innermost loop with the most ``operation`` s. A loop is the code between a backward
    branch and its target."""
    code = {int(match["at"], 16): match["what"].strip() for match in _INSTRUCTION.finditer(sass)}
    branches = [(int(match["target"], 16), at) for at, what in code.items() if (match := _BRANCH.match(what))]
    loops = [(begin, end) for begin, end in branches if begin < end]
    inner = [loop for loop in loops if not any(_is_within(other, loop) for other in loops)]
    bodies = [[what for at, what in code.items() if begin <= at <= end] for begin, end in inner]
    return max(bodies, key=lambda body: sum(what.startswith(operation) for what in body))


def _is_within(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return inner != outer and outer[0] <= inner[0] and inner[1] <= outer[1]
