"""Pipelines of passes as text, and running them.

A pipeline is passes separated by commas; options stand in braces: ``raise-moe,quantize-experts{format=int4,group=32}``.
A level (``O2``) is a name for such a text and may stand where a pass may.
"""

from __future__ import annotations

import dataclasses
import re
import time
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

import onnx_ir as ir

from moec.common.arguments import suggestion
from moec.common.errors import MoecError, VerificationError, reporting
from moec.common.field_types import field_types
from moec.passes import PASSES
from moec.passes.framework.base import Pass, Report

CLEAN_UP = "fold-constants,fold-shapes,simplify,eliminate-common-subexpressions,remove-dead-nodes,infer-shapes"
_START = (
    "infer-shapes,check-functions,inline-control-flow,decompose-recurrent,decompose-contrib,expand-functions,inline-control-flow,"
    f"prepare-loops,{CLEAN_UP},fuse-stored-weights,check-export,hold-cache"
)
_RAISE = (
    "raise-moe,remove-dead-nodes,canonicalize-router,drop-dead-experts,drop-zero-neurons,fold-trivial-experts,"
    "merge-equal-experts"
)
LEVELS = {
    "O0": _START,
    "O1": f"{_START},raise-moe,{CLEAN_UP}",
    "O2": f"{_START},{_RAISE},fuse-route-dispatch,fuse-normalization,fuse-attention,raise-masks,{CLEAN_UP}",
}
LEVELS["O3"] = f"{LEVELS['O2']},round-activations{{format=int8,optional=true}},cast-states{{dtype=fp16,optional=true}}"
"""The passes of each level.

O0: loops and branches are inlined if they are known beforehand; remaining loops are prepared to run step by step;
onnxruntime's own operators become standard ones, and operators without kernels the functions that define them. Then
come clean-up (constants, shapes, no-ops, repeated and unused nodes), products that read quantised weights as they are
stored, a check for faulty exports, and marks of outputs that are the next run's inputs.

O1: MoE blocks become one operator each, too.

O2: experts that no token needs and hidden units that contribute nothing are dropped, equal experts are stored once,
routing is fused with dispatch, normalisation and attention become one operator each, and masks of attention its causal
order where they say no more.

O3, which is not exact: products round activations to 8 bits if weights have 8 or fewer, which do not change, and caches
hold 16 bits.
"""

_ONNXRUNTIME_KEEPS = (
    "CausalConvWithState+GatherBlockQuantized+GroupQueryAttention+LinearAttention+RotaryEmbedding+"
    "SkipLayerNormalization+SkipSimplifiedLayerNormalization"
)
BEFORE_ONNXRUNTIME = (
    f"infer-shapes,check-functions,inline-control-flow,decompose-contrib{{keep={_ONNXRUNTIME_KEEPS}}},expand-functions,"
    f"inline-control-flow,{CLEAN_UP},fuse-stored-weights,check-export,{_RAISE},{CLEAN_UP}"
)
"""The exact passes for a model that onnxruntime runs: those of O2 that find layers of experts and make them smaller.
Loops, and operators of onnxruntime's that are no part of such layers, stay."""
FOR_ONNXRUNTIME = (
    "infer-shapes,fuse-normalization,fuse-attention,remove-dead-nodes,infer-shapes,fit-attention,"
    "use-qmoe,use-matmul-n-bits,keep-rows,use-moe,loop-experts,expand-route,expand-dispatch,expand-linear,"
    "share-tables,infer-shapes,use-fused-matmul,fold-shapes,eliminate-common-subexpressions,remove-dead-nodes"
)
"""Passes that leave no operator of moec's: onnxruntime's where those pay, ONNX's elsewhere."""

BEFORE_ONNX = (
    "infer-shapes,check-functions,inline-control-flow,decompose-contrib,expand-functions,inline-control-flow,"
    f"{CLEAN_UP},fuse-stored-weights,check-export,{_RAISE},fuse-route-dispatch,{CLEAN_UP}"
)
"""The exact passes for a model that any program runs: those of O2 that find layers of experts and make them smaller.
Loops, and operators of ONNX that are no part of such layers, stay."""
FOR_ONNX = (
    "call-functions,expand-linear,widen-elements,infer-shapes,fit-attention,infer-shapes,fold-shapes,"
    "share-tables,eliminate-common-subexpressions,remove-dead-nodes"
)
"""Passes that leave operators of ONNX, and calls of functions that are made of them."""

AfterPass = Callable[[Pass, float, bool], None]
"""Callback after each pass: the pass, the seconds it took, and whether it changed the model."""

_ITEM = re.compile(r"\s*(?P<name>[A-Za-z][\w-]*)\s*(?:\{(?P<options>[^{}]*)\})?\s*(?P<end>,|$)")
_PROFILE = "profile"
"""The option of all passes that read the measurements of ``moec profile``."""
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


def parse(text: str, profile: str | None = None) -> tuple[Pass, ...]:
    """The passes that a pipeline text names. An empty text is a pipeline of no passes.

    ``profile``: the path of a profile for every pass that takes one and whose text does not say ``profile=``
    (``profile=none`` keeps it away from a pass).
    Raises MoecError for a syntax error, an unknown pass or option, or a value an option cannot take.
    """
    shared = {} if profile is None else {_PROFILE: profile}
    passes: list[Pass] = []
    position = 0
    while position < len(text.rstrip()):
        item = _ITEM.match(text, position)
        if item is None:
            raise MoecError(
                f"pipeline: cannot read {text[position : position + 40]!r} at position {position}; "
                "expected pass or pass{option=value,...}, separated by commas"
            )
        passes.extend(_make(item["name"], item["options"], shared))
        position = item.end()
        if item["end"] == "," and not text[position:].strip():
            raise MoecError(f"pipeline: a pass is expected after the last comma of {text!r}")
    return tuple(passes)


def take_profile(passes: Sequence[Pass], profile: str) -> bool:
    """Whether any of the passes reads the profile at this path."""
    return any(getattr(step, _PROFILE, None) == profile for step in passes)


def print_pipeline(passes: Sequence[Pass]) -> str:
    """The text that :func:`parse` reads back as the same passes; options at their default are left out."""
    return ",".join(_print_pass(step) for step in passes)


def run(
    model: ir.Model,
    passes: Sequence[Pass],
    report: Report | None = None,
    *,
    verify_each: bool = False,
    print_after: Collection[str] = (),
    on_pass: AfterPass | None = None,
) -> bool:
    """Apply the passes in order, in place; return whether any changed the model.

    ``print_after`` holds names of passes (or ``all``) after which the model's text goes to standard output;
    ``on_pass`` is called after each pass. With ``verify_each`` the IR's rules are checked first and after every pass;
    :class:`moec.checking.pass_check.PassCheck` checks what the model computes, as an ``on_pass``.

    Raises VerificationError, naming the pass, when a pass leaves a model that breaks the IR's rules; DefectError when a
    pass fails.
    """
    report = Report() if report is None else report
    if verify_each:
        _verify(model, "before the first pass")
    any_changed = False
    for step in passes:
        start = time.perf_counter()
        with reporting(step.name):
            changed = step.apply(model, report)
        seconds = time.perf_counter() - start
        any_changed |= changed
        if verify_each:
            _verify(model, f"after {step.name}")
        if step.name in print_after or "all" in print_after:
            _print_model(model, step.name)
        if on_pass is not None:
            on_pass(step, seconds, changed)
    return any_changed


def _verify(model: ir.Model, when: str) -> None:
    from moec.ir.verifier import verify

    try:
        verify(model)
    except VerificationError as error:
        raise VerificationError(f"{when}: {error}") from error


def _print_model(model: ir.Model, pass_name: str) -> None:
    from moec.ir.text import print_model

    print(f"# after {pass_name}\n{print_model(model)}")


def _make(name: str, options: str | None, shared: Mapping[str, str]) -> tuple[Pass, ...]:
    """The passes of one item of a text. ``shared``: values of options that its own text may overrule."""
    if name in LEVELS:
        if options:
            raise MoecError(f"pipeline: {name} is a level and takes no options; leave {{{options}}} out")
        return parse(LEVELS[name], shared.get(_PROFILE))
    if name not in PASSES:
        raise MoecError(f"pipeline: unknown pass {name!r}{_nearest(name, [*PASSES, *LEVELS])}")
    kind = PASSES[name]()
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    values = {field.name: shared[field.name] for field in fields if field.name in shared}
    values |= _parse_options(name, kind, options or "")
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in values:
            hint = " or give --profile FILE" if field.name == _PROFILE else ""
            raise MoecError(f"pipeline: {name} needs the option {field.name}; write {name}{{{field.name}=VALUE}}{hint}")
    return (kind(**values),)


def _parse_options(pass_name: str, kind: type[Pass], text: str) -> dict[str, Any]:
    hints = field_types(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    options: dict[str, Any] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in entry.partition("="))
        if not equals:
            raise MoecError(f"pipeline: {pass_name}: option {entry!r} has no value; write {entry}=VALUE")
        field = name.replace("-", "_")
        if field not in names:
            listed = ", ".join(names) or "none"
            raise MoecError(f"pipeline: {pass_name} has no option {name!r}{_nearest(name, names)} (options: {listed})")
        if field in options:
            raise MoecError(f"pipeline: {pass_name}: option {name!r} is given twice; give it once")
        options[field] = _parse_value(f"{pass_name}{{{name}}}", value, hints[field])
    return options


def _parse_value(where: str, text: str, kind: Any) -> Any:
    """``text`` as a value of the annotated type: int, float, str, bool, a Literal of these, or one of them or None."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if text == "none":
            return None
        (kind,) = (argument for argument in get_args(kind) if argument is not type(None))
        return _parse_value(where, text, kind)
    if origin is Literal:
        choices = {str(choice): choice for choice in get_args(kind)}
        if text not in choices:
            raise MoecError(f"pipeline: {where} is {text!r}; expected one of {', '.join(choices)}")
        return choices[text]
    if kind is bool:
        if text.lower() not in _TRUE + _FALSE:
            raise MoecError(f"pipeline: {where} is {text!r}; expected true or false")
        return text.lower() in _TRUE
    try:
        return kind(text)
    except ValueError:
        raise MoecError(f"pipeline: {where} is {text!r}; expected a value of type {kind.__name__}") from None


def _print_pass(applied: Pass) -> str:
    options = []
    for field in dataclasses.fields(applied):  # type: ignore[arg-type]
        value = getattr(applied, field.name)
        if value != field.default:
            options.append(f"{field.name}={_print_value(value)}")
    return f"{applied.name}{{{','.join(options)}}}" if options else applied.name


def _print_value(value: Any) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _nearest(name: str, names: Sequence[str]) -> str:
    return suggestion(name, names) or f"; known: {', '.join(names)}"
