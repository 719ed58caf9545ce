"""The structure of a kernel: which lines of its texts belong together, its loops and its buffers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from tvm import tirx

from moec.common.kernel_structure import KernelStructure, LineLinks
from moec.targets.tvm.phases.loop_nest import LoopNest
from moec.targets.tvm.text import lines_of, readable
from moec.targets.tvm.text.statement_lines import (
    FUNCTION,
    StatementTable,
    forgotten,
    number_of,
    numbered,
    statements_of,
)

TIR = "tir"
"""The form whose lines are statements, and which the lines of others come from."""


@dataclasses.dataclass(frozen=True)
class TirText:
    """A kernel's text in TIR: ``statements[i]`` is the number of the statement that line i shows.
    ``function``: the function as printed; ``table``: its statements, and those that the text does not show."""

    text: str
    statements: list[int]
    function: tirx.PrimFunc
    table: StatementTable

    def line_of(self, number: int) -> int:
        """The first line, from 0, that shows a statement, or else the innermost one around it that is shown."""
        while number > FUNCTION and number not in self.statements:
            number = self.table.parents[number]
        return self.statements.index(number)


def tir_text(function: tirx.PrimFunc) -> TirText:
    """The text of a function, whose statements are numbered for it."""
    function = numbered(function)
    table = statements_of(function)
    assert table is not None
    function = forgotten(readable(function))
    lines = lines_of(function)
    numbers = [FUNCTION if line.statement is None else number_of(line.statement) for line in lines]
    return TirText("".join(f"{line.text}\n" for line in lines), numbers, function, table)


@dataclasses.dataclass(frozen=True)
class LineOrigins:
    """The origins of a text's lines without its head: of each line the number of a statement, or, for a text that was
    made of the text ``form``, of a line from 1; 0 for an empty line."""

    form: str
    numbers: Sequence[int]


def structure_of(tir: TirText, heads: Mapping[str, int], others: Mapping[str, LineOrigins]) -> KernelStructure:
    """The structure of a kernel. ``heads``: the number of lines in front of each text, all but the last about the whole
    kernel; ``others``: the origins of other texts' lines, by form."""
    lines: dict[int, int] = {}

    def line(number: int) -> int:
        if number not in lines:
            lines[number] = heads[TIR] + 1 + tir.line_of(number)
        return lines[number]

    def headed(form: str, whole: int, numbers: Iterable[int]) -> list[int]:
        return [*[whole] * (heads[form] - 1), 0, *numbers]

    links = {TIR: LineLinks.of(TIR, headed(TIR, line(FUNCTION), map(line, tir.statements)))}
    for form, origins in others.items():
        if origins.form == TIR:
            numbers = headed(form, line(FUNCTION), [number and line(number) for number in origins.numbers])
        else:
            head = heads[origins.form]
            numbers = headed(form, 1, [number and head + number for number in origins.numbers])
        links[form] = LineLinks.of(origins.form, numbers)
    levels = LoopNest(tir.function, line)
    return KernelStructure(links, tuple(levels.loops), tuple(levels.buffers))
