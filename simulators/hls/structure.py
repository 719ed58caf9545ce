"""Functions, loops and blocks of C++ in the style of HLS code, with the pragmas and labels that belong to them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from moec.simulators.hls.source import Pragma, Source, closing, split_list

_LABEL = re.compile(r"(?!default\b|public\b|private\b|protected\b)([A-Za-z_]\w*)\s*:(?!:)")
_CASE = re.compile(r"(?:case\b[^:]*(?:::[^:]*)*|default\s*):(?!:)")
_KEYWORD = re.compile(r"(for|while|do|if|else|switch)\b(?:\s*constexpr\b)?")
_SCOPE = re.compile(r"(?:inline\s+)?namespace\b[^()]*|extern\s*\"\s*\"|(?:typedef\s+)?(?:struct|class|union)\b[^()=]*")
_BRACKET = re.compile(r"[<>]|(?:(\w+)\s*)?\(")
_PARAMETER = re.compile(r"(?P<type>.*?)(?P<name>\w+)\s*(?P<array>(?:\[[^\]]*\]\s*)*)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Statement:
    """A statement from its label to its end. The only child of a loop is its body, which holds its pragmas; the
    children of a block are its statements."""

    kind: str
    """``block``, a keyword (``for``, ``while``, ``do``, ``if``, ``switch``), or ``plain``."""
    start: int
    end: int
    label: str = ""
    header: str = ""
    """The text in the parentheses after the keyword."""
    children: tuple[Statement, ...] = ()
    pragmas: tuple[Pragma, ...] = ()
    """The pragmas directly in a block, not in blocks inside."""

    @property
    def is_loop(self) -> bool:
        return self.kind in ("for", "while", "do")

    @property
    def body(self) -> Statement:
        return self.children[0]

    def walk(self) -> Iterator[Statement]:
        yield self
        for child in self.children:
            yield from child.walk()

    def loops(self) -> Iterator[tuple[Statement, tuple[Statement, ...]]]:
        """All loops in the statement, each with the loops around it from the outside in."""
        yield from _loops(self, ())

    def has(self, *directives: str) -> bool:
        """Whether a loop has one of these pragmas without the option ``off``."""
        return any(pragma.directive in directives and "off" not in pragma.options for pragma in self.body.pragmas)

    def pragmas_named(self, directive: str) -> list[Pragma]:
        return [pragma for pragma in self.pragmas if pragma.directive == directive]


@dataclasses.dataclass(frozen=True)
class CppParameter:
    type: str
    name: str
    is_array: bool

    @property
    def is_pointer(self) -> bool:
        outside, depth = "", 0
        for character in self.type:
            depth += {"<": 1, ">": -1}.get(character, 0)
            outside += character if depth == 0 else ""
        return "*" in outside


@dataclasses.dataclass(frozen=True)
class Function:
    """A function with a body. ``start``: the position of its name."""

    name: str
    parameters: tuple[CppParameter, ...]
    start: int
    body: Statement


def functions(source: Source) -> list[Function]:
    """All functions of a file, including those in namespaces and classes. Raises MoecError where brackets do not
    match."""
    return list(_Parser(source).functions())


def _loops(statement: Statement, around: tuple[Statement, ...]) -> Iterator[tuple[Statement, tuple[Statement, ...]]]:
    if statement.is_loop:
        yield statement, around
        around = (*around, statement)
    for child in statement.children:
        yield from _loops(child, around)


class _Parser:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.code = source.code
        self.pragmas = sorted(source.pragmas, key=lambda pragma: pragma.start)

    def functions(self) -> Iterator[Function]:
        position, start = 0, 0
        while position < len(self.code):
            character = self.code[position]
            if character in ";}":
                start = position + 1
            elif character in "([":
                position = self.close(position)
            elif character == "{":
                header = _without_template(self.code[start:position])
                if function := self.function(header, start, position):
                    yield function
                    position = function.body.end - 1
                    start = position + 1
                elif _SCOPE.fullmatch(header):
                    start = position + 1
                else:
                    position = self.close(position)  # an initialiser or an enumeration
            position += 1

    def function(self, header: str, start: int, brace: int) -> Function | None:
        signature = _name_and_parameters(header)
        if signature is None:
            return None
        name, parameters = signature
        named = re.compile(rf"\b{name}\s*\(").search(self.code, start, brace)
        return Function(name, parameters, named.start() if named else start, self.block(brace))

    def close(self, opening: int) -> int:
        end = closing(self.code, opening)
        if end < 0:
            raise self.source.error(
                opening, f"'{self.code[opening]}' is never closed; expected C++ with matching brackets"
            )
        return end

    def skip_space(self, position: int) -> int:
        while position < len(self.code) and self.code[position].isspace():
            position += 1
        return position

    def block(self, brace: int) -> Statement:
        end = self.close(brace)
        statements = []
        position = self.skip_space(brace + 1)
        while position < end:
            statement = self.statement(position)
            statements.append(statement)
            position = self.skip_space(statement.end)
        inside = [block for statement in statements for block in statement.walk() if block.kind == "block"]
        own = tuple(
            pragma
            for pragma in self.pragmas
            if brace < pragma.start < end and not any(block.start < pragma.start < block.end for block in inside)
        )
        return Statement("block", brace, end + 1, children=tuple(statements), pragmas=own)

    def statement(self, start: int) -> Statement:
        label, position = "", start
        while match := _LABEL.match(self.code, position) or _CASE.match(self.code, position):
            label = match[1] if match.re is _LABEL else ""
            position = self.skip_space(match.end())
        if self.code[position] == "{":
            block = self.block(position)
            return dataclasses.replace(block, start=start, label=label) if label else block
        keyword = _KEYWORD.match(self.code, position)
        if keyword is None:
            return Statement("plain", start, self.end_of_plain(position), label)
        if keyword[1] == "do":
            return self.do(start, keyword.end(), label)
        if keyword[1] == "else":
            raise self.source.error(position, "'else' without 'if'")
        return self.controlled(keyword[1], start, keyword.end(), label)

    def controlled(self, keyword: str, start: int, position: int, label: str) -> Statement:
        opening = self.skip_space(position)
        if self.code[opening] != "(":
            raise self.source.error(opening, f"expected '(' behind '{keyword}'")
        closed = self.close(opening)
        children = [self.statement(self.skip_space(closed + 1))]
        following = self.skip_space(children[0].end)
        if keyword == "if" and re.match(r"else\b", self.code[following:]):
            children.append(self.statement(self.skip_space(following + len("else"))))
        return Statement(keyword, start, children[-1].end, label, self.code[opening + 1 : closed], tuple(children))

    def do(self, start: int, position: int, label: str) -> Statement:
        body = self.statement(self.skip_space(position))
        opening = self.code.find("(", body.end)
        closed = self.close(opening)
        return Statement("do", start, self.code.find(";", closed) + 1, label, self.code[opening + 1 : closed], (body,))

    def end_of_plain(self, position: int) -> int:
        while position < len(self.code):
            character = self.code[position]
            if character in "([{":
                position = self.close(position)
            elif character == ";":
                return position + 1
            elif character == "}":
                break
            position += 1
        raise self.source.error(position - 1, "a statement that does not end with ';'")


def _without_template(header: str) -> str:
    header = header.strip()
    while match := re.match(r"template\s*<", header):
        depth, position = 1, match.end()
        while depth and position < len(header):
            if header[position] == "(":
                position = closing(header, position)  # comparison operators may be inside
            depth += {"<": 1, ">": -1}.get(header[position], 0)
            position += 1
        header = header[position:].strip()
    return header


def _name_and_parameters(header: str) -> tuple[str, tuple[CppParameter, ...]] | None:
    """The name and the parameters in the header of a function, without template parameters; None for other headers."""
    if not re.search(r"\)\s*(?:const|noexcept|override|final|\s)*$", header) or "=" in header.split("(")[0]:
        return None
    depth, position = 0, 0
    while match := _BRACKET.search(header, position):
        position = match.end()
        if match[0] in "<>":
            depth += 1 if match[0] == "<" else -1
            continue
        end = closing(header, position - 1)
        if depth == 0 and match[1]:
            return match[1], tuple(_parameter(text) for text in split_list(header[position:end]) if text != "void")
        position = end
    return None


def _parameter(text: str) -> CppParameter:
    match = _PARAMETER.fullmatch(text.split("=")[0].strip())
    if match is None:
        return CppParameter(text, "", False)
    return CppParameter(match["type"].strip(), match["name"], bool(match["array"]))
