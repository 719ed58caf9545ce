"""Assumptions that an export made about a model's inputs, kept as metadata of the model that no pass touches."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from moec.common.errors import MoecError
from moec.common.guards import bound_names, parse_guard, size_names
from moec.common.records import FieldRule, read_json
from moec.common.specs import tensor_specs
from moec.frontend.onnx.size_names import renamed

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.common.specs import TensorSpec
    from moec.passes.framework.base import Report

KEY = "moec.conditions"
_PASS = "import"
_SHOWN = 4
_Texts = tuple[Annotated[str, FieldRule(str.isprintable, "a printable text")], ...]
_NOT_EMPTY = re.compile(r"1 <= \w+")


@dataclasses.dataclass(frozen=True)
class Conditions:
    """The assumptions, by what becomes of each kind.

    ``guards``: conditions on named sizes (:mod:`moec.common.guards`), which an artifact checks when it is called.
    ``wide``: the guards that exclude no size that the model's configuration is for. ``fixed``: sizes that were to be
    dynamic and became numbers. ``unchecked``: assumptions that nobody checks. ``tried``: sizes that the export was not
    for, but that gave the module's results when they were tried. ``unused``: tensors of the model's files that became
    no part of the model. ``notes``: further remarks.
    """

    guards: _Texts = ()
    fixed: _Texts = ()
    unchecked: _Texts = ()
    tried: _Texts = ()
    unused: _Texts = ()
    notes: _Texts = ()
    wide: _Texts = ()

    @property
    def names(self) -> set[str]:
        """The sizes that guards are about."""
        return {name for guard in self.guards for name in parse_guard(guard).names}

    def renamed(self, names: Mapping[str, str]) -> Conditions:
        """Copy with other names of sizes."""
        fields = dataclasses.asdict(self).items()
        return Conditions(**{kind: tuple(renamed(text, names) for text in texts) for kind, texts in fields})

    def attach(self, model: ir.Model) -> None:
        """Put the conditions into the model's metadata, which ONNX files keep."""
        if self != Conditions():
            model.metadata_props[KEY] = json.dumps(dataclasses.asdict(self))

    def report(self, specs: Sequence[TensorSpec], report: Report) -> None:
        """Report the limits of the artifact as remarks and warnings."""
        for guard in self.wide:
            report.note(_PASS, guard, "other sizes are refused; the model's configuration is for no other either")
        if narrow := [guard for guard in self.guards if guard not in self.wide]:
            shortest = sorted(narrow, key=len)
            more = f" and {len(shortest) - _SHOWN} more" if len(shortest) > _SHOWN else ""
            names = dict.fromkeys(name for guard in shortest[:_SHOWN] for name in parse_guard(guard).names)
            is_narrow = any(_NOT_EMPTY.fullmatch(guard) is None for guard in narrow)
            (report.warn if is_narrow else report.note)(
                _PASS,
                ", ".join(shortest[:_SHOWN]) + more,
                f"only inputs of such sizes run ({_where(list(names), specs)}): the module or its dynamic_shapes "
                "decide by them, and PyTorch exports one way; for others give example inputs of those, or write the "
                "module without the decision",
            )
        for size in self.tried:
            report.note(_PASS, size, "PyTorch exported for other sizes; this one gave the module's results when tried")
        if self.unused:
            more = f" and {len(self.unused) - _SHOWN} more" if len(self.unused) > _SHOWN else ""
            report.warn(
                _PASS,
                ", ".join(self.unused[:_SHOWN]) + more,
                "nothing of the model is made of these tensors of its files: it has no part for them, or its "
                "configuration asks for none",
            )
        for text in self.notes:
            report.note(_PASS, "model", text)
        for size in self.fixed:
            report.warn(
                _PASS,
                size,
                "the module fixes a size that dynamic_shapes leaves open, and inputs of other sizes are refused; "
                "torch.export.Dim.DYNAMIC in the place of Dim.AUTO tells where",
            )
        for text in self.unchecked:
            report.warn(
                _PASS,
                text,
                "PyTorch took this for granted about values, which the artifact does not check: where it is false, the "
                "results mean nothing",
            )


def read(model: ir.Model, where: str) -> Conditions:
    """Read the conditions from a model's metadata. Raises MoecError, naming ``where``, for text that :meth:`attach` did
    not write."""
    if KEY not in model.metadata_props:
        return Conditions()
    where = f"{where}: metadata {KEY!r}"
    conditions = read_json(Conditions, model.metadata_props[KEY], where, "export the model again")
    try:
        _ = conditions.names
    except ValueError as error:
        raise MoecError(f"{where}: cannot be read ({error}); export the model again") from error
    return conditions


def conditions_of(model: ir.Model) -> Conditions:
    """Read the conditions of an imported model. Raises MoecError for a condition on a size that no input has."""
    conditions = read(model, "model")
    unbound = conditions.names - bound_names([spec.shape for spec in tensor_specs(model.graph.inputs)])
    if unbound:
        raise MoecError(f"metadata {KEY!r} is about {sorted(unbound)[0]!r}, no input's size; export the model again")
    return conditions


def settled(guards: Sequence[str], before: Sequence[TensorSpec], after: Sequence[TensorSpec]) -> list[str]:
    """Rewrite the guards of a model with inputs ``before`` for the inputs ``after``, some of whose named sizes may have
    become numbers."""
    numbers: dict[str, int] = {}
    for old, new in zip(before, after, strict=True):
        numbers |= {
            name: size
            for name, size in zip(old.shape, new.shape, strict=True)
            if isinstance(name, str) and isinstance(size, int)
        }
    return [renamed(guard, {name: str(size) for name, size in numbers.items()}) for guard in guards]


def _where(names: Sequence[str], specs: Sequence[TensorSpec]) -> str:
    """Say where each of the names stands, as in ``seq is axis 1 of 'ids'``."""
    axes = {
        name: f"{name} is axis {axis} of {spec.name!r}"
        for spec in reversed(specs)
        for axis, size in enumerate(spec.shape)
        for name in size_names(size)
    }
    return ", ".join(axes[name] for name in names)
