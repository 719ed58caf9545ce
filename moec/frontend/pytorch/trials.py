"""Trials of sizes 0 and 1, which modules distinguish without meaning to, on the module itself.

``is_causal = length > 1`` gives the same result either way for one token, yet PyTorch's guards say that the export is
for more. Where guards exclude only 0 or 1, module and exported program run on inputs of that size. Where they agree,
the size is allowed. Larger sizes are never tried, because there would be no end to it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moec.common.guards import Expression, holds, parse_guard

if TYPE_CHECKING:
    import torch

_SMALL = re.compile(r"(?:[12] <= (?P<range>\w+)(?P<most> <= \d+)?|(?P<name>\w+) (?:!= [01]|> [01]))")
"""Guards that exclude 0 or 1, some with an upper bound, which stays."""
_NOT_ALL_ONES = re.compile(r"[A-Za-z_]\w*(?: \* [A-Za-z_]\w*)+ != 1")
_NO_SUM_OF_ONE = re.compile(r"[A-Za-z_]\w*(?: \+ [A-Za-z_]\w*)+ != 1")
_WEIGHTED_SUM = r"(?:\d+ \* )?[A-Za-z_]\w*(?: \+ (?:\d+ \* )?[A-Za-z_]\w*)+"
_LEAST_SUM = re.compile(rf"{_WEIGHTED_SUM} >=? \d+|\d+ <=? {_WEIGHTED_SUM}")
"""Lower bounds of a sum: ``past + seq >= 2``, ``16 < 16 * past + 16 * seq``."""
_MOST_TERMS = 4
"""Most terms of a sum whose small sizes are tried: four terms have 16 combinations."""
_TOLERANCE = 1e-3

Agrees = Callable[[Mapping[str, int]], bool | None]
"""Whether module and program compute the same for these sizes; None where the module itself cannot run."""


def let_in(guards: Sequence[str], agrees: Agrees) -> tuple[list[str], list[str]]:
    """Try the small sizes that guards exclude. Returns the remaining guards and the allowed sizes (``seq = 1``)."""
    excluded: dict[str, set[int]] = {}
    kept: list[str] = []
    more: list[str] = []
    for guard in guards:
        small = _SMALL.fullmatch(guard)
        if small is None:
            wider, ones = _widened(guard, agrees)
            kept += wider
            more += ones
            continue
        name, test = small["range"] or small["name"], parse_guard(guard)
        excluded.setdefault(name, set()).update(value for value in (0, 1) if not holds(test, {name: value}))
        if small["most"]:
            kept.append(name + small["most"])
    accepted = {(name, value) for name, values in excluded.items() for value in values if agrees({name: value})}
    for value in (0, 1):
        together = {name: size for name, size in accepted if size == value}
        if len(together) > 1 and not agrees(together):
            accepted -= set(together.items())
    for name, values in excluded.items():
        rejected = {value for value in values if (name, value) not in accepted}
        if rejected:
            kept.append({0: f"1 <= {name}", 1: f"{name} != 1", 2: f"2 <= {name}"}[sum(rejected) + (len(rejected) > 1)])
    return kept, [*(f"{name} = {value}" for name, value in sorted(accepted)), *dict.fromkeys(more)]


def _widened(guard: str, agrees: Agrees) -> tuple[list[str], list[str]]:
    """Widen a guard that may be about several sizes.

    It is tried at the sizes of :func:`_excluded`. Those at which module and program agree are added as alternatives.
    Returns the remaining guards, none where no excluded size is one that the module can run, and the allowed sizes.
    """
    test = parse_guard(guard)
    small, is_all = _excluded(guard, test)
    outcomes = [agrees(sizes) for sizes in small]
    if True not in outcomes:
        return [guard], []
    accepted = [sizes for sizes, outcome in zip(small, outcomes, strict=True) if outcome]
    equal = [" and ".join(f"{name} == {size}" for name, size in sizes.items()) for sizes in accepted]
    left = [] if is_all and False not in outcomes else [" or ".join(f"({part})" for part in (guard, *equal))]
    return left, [part.replace("==", "=") for part in equal]


def _excluded(guard: str, test: Expression[bool]) -> tuple[list[dict[str, int]], bool]:
    """List the sizes of 0 and 1 that the guard excludes and that are tried, and say whether it excludes no others."""
    ones = dict.fromkeys(test.names, 1)
    if _NO_SUM_OF_ONE.fullmatch(guard):
        return [{name: int(name == single) for name in test.names} for single in test.names], True
    if _LEAST_SUM.fullmatch(guard) and len(ones) <= _MOST_TERMS:
        points = [dict(zip(test.names, sizes, strict=True)) for sizes in itertools.product(range(3), repeat=len(ones))]
        outside = [sizes for sizes in points if not holds(test, sizes)]
        # The sum only grows: if it is large enough with each single 2, it is so for all larger sizes.
        return [sizes for sizes in outside if max(sizes.values()) < 2], all(
            max(excluded.values()) < 2 for excluded in outside
        )
    return ([] if holds(test, ones) else [ones]), _NOT_ALL_ONES.fullmatch(guard) is not None


@dataclasses.dataclass(frozen=True)
class ExportTrial:
    """Comparison of ``module`` with the program that was exported from it, on parts of the example inputs.

    ``values``: the exporter's symbolic value of each flat input, in the order of ``arguments``.
    """

    module: Callable[..., Any]
    exported: torch.export.ExportedProgram
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    values: Sequence[Any]

    def __call__(self, sizes: Mapping[str, int]) -> bool | None:
        """Whether they compute the same on every trial that the module can run; False where no trial can be made, None
        where the module runs none."""
        trials = [self._inputs(sizes, seed) for seed in (0, 1)]
        outcomes = [self._agree(*trial) for trial in trials if trial is not None]
        if outcomes and set(outcomes) == {None}:
            return None
        return False not in outcomes and True in outcomes

    @functools.cached_property
    def _program(self) -> Callable[..., Any]:
        return self.exported.module(check_guards=False)

    def _agree(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool | None:
        """Whether module and program agree on the inputs; None where the module cannot run."""
        from torch.utils._pytree import tree_leaves

        try:
            expected = tree_leaves(self.module(*args, **kwargs))
        except Exception:  # a module may raise anything for inputs that are not for it
            return None
        try:
            actual = tree_leaves(self._program(*args, **kwargs))
        except Exception:
            return False
        return len(actual) == len(expected) and all(map(_close, actual, expected))

    def _inputs(self, sizes: Mapping[str, int], seed: int) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Cut the example inputs to ``sizes`` and change their numbers. Returns None where one would have to be
        larger."""
        import torch
        from torch.utils._pytree import tree_flatten, tree_unflatten

        leaves, structure = tree_flatten(self.arguments)
        if len(leaves) != len(self.values):
            return None
        generator = torch.Generator().manual_seed(seed)
        example = _example_sizes(leaves, self.values)
        changed = []
        for leaf, value in zip(leaves, self.values, strict=True):
            if isinstance(leaf, torch.Tensor):
                shape = [_size(dim, {**example, **sizes}) for dim in value.shape]
                if any(size is None or size > most for size, most in zip(shape, leaf.shape, strict=True)):
                    return None
                leaf = _renewed(leaf[tuple(slice(size) for size in shape)], seed, generator)
            changed.append(leaf)
        return tree_unflatten(changed, structure)


def _example_sizes(leaves: Sequence[Any], values: Sequence[Any]) -> dict[str, int]:
    return {
        str(dim.node.expr): size
        for leaf, value in zip(leaves, values, strict=True)
        for dim, size in zip(getattr(value, "shape", ()), getattr(leaf, "shape", ()), strict=True)
        if not isinstance(dim, int) and dim.node.expr.is_Symbol
    }


def _size(dim: Any, sizes: Mapping[str, int]) -> int | None:
    if isinstance(dim, int):
        return dim
    size = dim.node.expr
    substituted = size.subs({symbol: sizes[str(symbol)] for symbol in size.free_symbols if str(symbol) in sizes})
    return int(substituted) if substituted.is_Integer and substituted >= 0 else None


def _renewed(tensor: torch.Tensor, seed: int, generator: torch.Generator) -> torch.Tensor:
    """Draw random floats; add ``seed`` to integers, because zeros hide whatever they are multiplied with."""
    import torch

    if tensor.is_floating_point():
        return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
    return tensor + seed if tensor.dtype != torch.bool else tensor.clone()


def _close(actual: Any, expected: Any) -> bool:
    import torch

    if not isinstance(expected, torch.Tensor) or not isinstance(actual, torch.Tensor):
        return actual is expected or actual == expected
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False
    largest = expected.abs().max().item() if expected.numel() else 0.0
    return torch.allclose(actual, expected, rtol=0.0, atol=_TOLERANCE * max(1.0, largest), equal_nan=True)
