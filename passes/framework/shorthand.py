"""``--experts int4 --linears int8``: formats of weights in a few letters, as passes at the end of a pipeline."""

from __future__ import annotations

import re
from typing import get_args

from moec.common.errors import MoecError
from moec.ir.weights.format import ELEMENTS, QuantizedName, WeightFormat

_NAMES = get_args(QuantizedName)
_FORMAT = re.compile(rf"(?P<name>{'|'.join(_NAMES)})(?:/(?P<group>\d+)(?:/(?P<super_group>\d+))?)?(?P<offset>[zm])?")
_OFFSETS = {"z": "zero_points", "m": "minima"}
_CASTS = ("bf16", "fp16")
_TF32 = "tf32"
ARITHMETICS = ("fp8", "mxfp8", "mxfp4", "nvfp4")
"""Arithmetics that activations can be rounded to on request, besides formats of weights."""
_QUANTIZED = f"{', '.join(_NAMES[:-1])} or {_NAMES[-1]}"
FORMATS = f"tf32, bf16, fp16, {_QUANTIZED}"
_FOLLOWING = "groups, groups of scales, and zero points or minima may follow: int8/64, int4/32z, int4/32/256m"
EXPECTED = f"{FORMATS}; {_FOLLOWING}"


def with_formats(passes: str, experts: str | None = None, linears: str | None = None) -> str:
    """The pipeline text ``passes``, followed by passes that store weights of experts and of dense products in formats.

    Formats are written as in reports: ``int4/32z`` has groups of 32 and zero points, ``int4/32/256m`` minima, and
    scales of two levels for 256 inputs. These passes come last, because
    all others see weights as floats. Raises MoecError for a format that does not exist.
    """
    texts = (passes, _experts_pass(experts), _linears_pass(linears))
    return ",".join(text for text in texts if text)


def with_arithmetic(passes: str, arithmetic: str | None) -> str:
    """The pipeline text ``passes``, followed by the pass that lets products with suitable weights round activations to
    ``arithmetic``. Raises MoecError for an arithmetic that cannot be requested in this way."""
    if arithmetic is None:
        return passes
    if arithmetic not in ARITHMETICS:
        names = f"{', '.join(ARITHMETICS[:-1])} or {ARITHMETICS[-1]}"
        raise MoecError(f"arithmetic: {arithmetic!r}; expected {names}; int8 and tf32 follow from formats of weights")
    return ",".join(filter(None, [passes, f"round-activations{{format={arithmetic}}}"]))


def _experts_pass(text: str | None) -> str | None:
    if text == _TF32:
        return "round-to-tf32{weights=experts}"
    if text in _CASTS:
        return f"cast-weights{{dtype={text}}}"
    return None if text is None else f"quantize-experts{{{_options('experts', text)}}}"


def _linears_pass(text: str | None) -> str | None:
    if text == _TF32:
        return "round-to-tf32{weights=linears}"
    if text in _CASTS:
        return f"cast-weights{{dtype={text},weights=linears}}"
    return None if text is None else f"quantize-linears{{{_options('linears', text)}}}"


def parse_format(what: str, text: str) -> WeightFormat:
    """Parse a quantised format; without a group, those of fewer than 8 bits, or with given groups, have groups of 32,
    or of the only size that they have.
    Raises MoecError, which names ``what``, for one that does not exist."""
    match = _match(what, text, f"{_QUANTIZED}; {_FOLLOWING}")
    (name,) = (name for name in _NAMES if name == match["name"])
    digits = match["group"]
    try:
        groups = ELEMENTS[name].groups
        usual = groups[0] if len(groups) == 1 else 32 if ELEMENTS[name].usually_grouped else 0
        group = usual if digits is None else int(digits)
        return WeightFormat(name, group, match["offset"] == "z", match["offset"] == "m", int(match["super_group"] or 0))
    except ValueError as error:
        raise MoecError(f"{what}: no format {text!r}: {error}") from error


def _match(what: str, text: str, expected: str = EXPECTED) -> re.Match[str]:
    match = _FORMAT.fullmatch(text)
    if match is None:
        raise MoecError(f"{what}: no format {text!r}; expected {expected}")
    return match


def _options(what: str, text: str) -> str:
    match = _match(what, text)
    options = [f"format={match['name']}"]
    options += [f"{name}={match[name]}" for name in ("group", "super_group") if match[name] is not None]
    options += [f"{name}=true" for letter, name in _OFFSETS.items() if match["offset"] == letter]
    return ",".join(options)
