"""The input and the output of the linter's rules: the sources of a design, and findings."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator

from moec.simulators.hls.cpp import Function, Pragma, Source, Statement

from .text import code

_WORD = re.compile(r"[A-Za-z_]\w*")


@dataclasses.dataclass(frozen=True)
class Finding:
    file: str
    line: int
    rule: str
    message: str
    """The problem, and how to fix it."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.rule}: {self.message}"


@dataclasses.dataclass(frozen=True)
class FunctionPlace:
    """A function and its file."""

    source: Source
    function: Function

    def finding(self, position: int, rule: str, message: str) -> Finding:
        return Finding(self.source.name, self.source.line(position), rule, message)

    @property
    def text(self) -> str:
        """The function's body, without comments and pragmas."""
        return self.code[self.function.body.start : self.function.body.end]

    @property
    def code(self) -> str:
        """The file with comments, preprocessor lines and the contents of strings blanked."""
        return code(self.source.text)

    def pragmas(self) -> Iterator[tuple[Pragma, Statement]]:
        """Each pragma of the function with the block that contains it."""
        for statement in self.function.body.walk():
            for pragma in statement.pragmas:
                yield pragma, statement

    def loops(self) -> Iterator[tuple[Statement, tuple[Statement, ...]]]:
        return self.function.body.loops()


@dataclasses.dataclass(frozen=True)
class Linted:
    """The sources of a design that become hardware."""

    sources: tuple[Source, ...]

    @functools.cached_property
    def places(self) -> tuple[FunctionPlace, ...]:
        return tuple(FunctionPlace(source, function) for source in self.sources for function in source.functions)

    @functools.cached_property
    def by_name(self) -> dict[str, FunctionPlace]:
        return {place.function.name: place for place in self.places}

    @property
    def regions(self) -> list[FunctionPlace]:
        return [place for place in self.places if place.function.body.pragmas_named("DATAFLOW")]

    @functools.cached_property
    def tops(self) -> tuple[FunctionPlace, ...]:
        """Functions with ports: those that call regions one after the other, and regions that no such function
        calls."""
        names = {place.function.name for place in self.regions}
        around = [
            place for place in self.places if place not in self.regions and names & set(_WORD.findall(place.text))
        ]
        called = {word for place in around for word in _WORD.findall(place.text)}
        return (*around, *(place for place in self.regions if place.function.name not in called))

    @functools.cached_property
    def used(self) -> tuple[FunctionPlace, ...]:
        """All functions reachable from regions and tops; every function if there are none. The library holds more than
        a design uses, and constants in the unused rest have no values."""
        reached = {place.function.name for place in (*self.regions, *self.tops) or self.places}
        new = reached
        while new:
            texts = [self.by_name[name].text for name in new]
            new = {word for text in texts for word in _WORD.findall(text) if word in self.by_name} - reached
            reached |= new
        return tuple(place for place in self.places if place.function.name in reached)
