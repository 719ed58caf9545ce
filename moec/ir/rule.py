"""One rule of the moec dialect (:mod:`moec.ir.rules`), and helpers to write rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import onnx_ir as ir

Check = Callable[[ir.Node], "str | None"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A check that returns a message or None. ``operators`` lists the operators that the rule applies to; empty means
    every node of domain ``moec``."""

    name: str
    operators: tuple[str, ...]
    check: Check


class Rules(list[Rule]):
    """A table of rules, in the order in which they apply."""

    def add(self, name: str, *operators: str) -> Callable[[Check], Check]:
        """Append the decorated check to the table."""

        def add(check: Check) -> Check:
            self.append(Rule(name, operators, check))
            return check

        return add


def known_size(value: ir.Value | None, axis: int) -> int | None:
    """The size along an axis if it is a number, else None."""
    if value is None or value.shape is None:
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def weight_axes(transposed: bool) -> tuple[int, int]:
    """The axes of out and in of a weight [E, out, in], or [E, in, out] if ``transposed``."""
    return (2, 1) if transposed else (1, 2)


def disagreement(what: str, sizes: Mapping[str, int | None]) -> str | None:
    """A message when the known sizes are not all equal."""
    declared = {name: size for name, size in sizes.items() if size is not None}
    if len(set(declared.values())) <= 1:
        return None
    return f"{what} differs: " + ", ".join(f"{size} in {name}" for name, size in declared.items())


def first_of(*messages: str | None) -> str | None:
    """The first message that is not None or empty."""
    return next((message for message in messages if message), None)
