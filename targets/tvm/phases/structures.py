"""The structure of a kernel: which lines of its texts belong together, its loops and its buffers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence

import tvm
from tvm import tirx

from moec.common.kernel_structure import KernelBuffer, KernelStructure, LineLinks, LoopLevel
from moec.targets.kernel_cache import through_cache
from moec.targets.tvm.phases.loop_nest import LoopNest
from moec.targets.tvm.text import lines_of, readable
from moec.targets.tvm.text.statement_lines import (
    FUNCTION,
    forgotten,
    number_of,
    numbered,
    statements_of,
)

TIR = "tir"
"""The form whose lines are statements, and which the lines of others come from."""


@dataclasses.dataclass(frozen=True)
class TirText:
    """A kernel's text in TIR: ``statements[i]`` is the number of the statement that line i shows. ``parents``: the
    number around that of each statement, also of those that the text does not show. ``loops`` have the number of their
    statement as ``line``."""

    text: str
    statements: list[int]
    parents: list[int]
    loops: list[LoopLevel]
    buffers: list[KernelBuffer]

    def line_of(self, number: int) -> int:
        """The first line, from 0, that shows a statement, or else the innermost one around it that is shown."""
        while number > FUNCTION and number not in self.statements:
            number = self.parents[number]
        return self.statements.index(number)


def tir_texts(functions: Mapping[str, tirx.PrimFunc]) -> dict[str, TirText]:
    """The texts of functions by name, from the cache of generated code where it has them: to print a kernel and to
    count what its loops do takes 20 ms, a sixth of what LLVM needs for it."""
    made_of = {name: f"{TIR}\0{tvm.ir.save_json(function)}" for name, function in functions.items()}
    files = through_cache(made_of, lambda name: {TIR: _as_json(_tir_text(functions[name]))})
    return {name: _from_json(files[name][TIR]) for name in functions}


def _tir_text(function: tirx.PrimFunc) -> TirText:
    """The text of a function, whose statements are numbered for it."""
    function = numbered(function)
    table = statements_of(function)
    assert table is not None
    function = forgotten(readable(function))
    lines = lines_of(function)
    numbers = [FUNCTION if line.statement is None else number_of(line.statement) for line in lines]
    nest = LoopNest(function)
    return TirText("".join(f"{line.text}\n" for line in lines), numbers, table.parents, nest.loops, nest.buffers)


def _as_json(tir: TirText) -> bytes:
    return json.dumps(dataclasses.asdict(tir)).encode()


def _from_json(content: bytes) -> TirText:
    fields = json.loads(content)
    loops = [LoopLevel(**loop) for loop in fields.pop("loops")]
    buffers = [KernelBuffer(shape=tuple(buffer.pop("shape")), **buffer) for buffer in fields.pop("buffers")]
    return TirText(**fields, loops=loops, buffers=buffers)


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
    loops = tuple(dataclasses.replace(loop, line=line(loop.line)) for loop in tir.loops)
    return KernelStructure(links, loops, tuple(tir.buffers))
