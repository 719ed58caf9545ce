"""The origins of a layer's experts: the first ids that each present expert was made of, and why others are gone.

Passes that remove or join experts write the origins into the metadata of ``moec.Experts`` and ``moec.MoE`` nodes, under
``ORIGIN_KEY``, as JSON: ``{"experts": [[0], [1, 5], [2]], "removed": {"7": "drop-dead-experts: its logit is -inf"}}``.
A pass that knows why an expert became part of another adds ``"joined": {"5": "merge-experts: ..."}``. A node without
such metadata still has all its first experts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any

import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.names import node_name
from moec.common.records import FieldRule, Size, read_json
from moec.ir.dialect import ORIGIN_KEY


@dataclasses.dataclass(frozen=True)
class Origins:
    """``experts[e]``: the first ids of the experts that expert e is made of, identity experts after the others.
    ``removed``: the reason why an expert is gone, by its first id: the name of the pass, a colon, the reason.
    ``joined``: likewise for experts that became part of another."""

    experts: tuple[tuple[int, ...], ...]
    removed: Mapping[int, str] = dataclasses.field(default_factory=dict)
    joined: Mapping[int, str] = dataclasses.field(default_factory=dict)

    def regrouped(self, groups: Sequence[Collection[int]], why: Mapping[int, str]) -> Origins:
        """Origins after the present experts of ``groups[i]`` became expert i. ``why`` gives a reason for each present
        expert that is in no group; it may give one for others, too: the reason why they were joined."""
        made_of = (sorted(first for expert in group for first in self.experts[expert]) for group in groups)
        left = {expert for group in groups for expert in group}
        reasons = [(expert, first) for expert in sorted(why) for first in self.experts[expert]]
        gone = {first: why[expert] for expert, first in reasons if expert not in left}
        joined = {first: why[expert] for expert, first in reasons if expert in left}
        return Origins(tuple(map(tuple, made_of)), {**self.removed, **gone}, {**self.joined, **joined})


_MOST_DIGITS = 10
"""Digits of an expert's id, at most one less."""


def _are_ids(texts: Iterable[str]) -> bool:
    return all(text.isdecimal() and text.isascii() and len(text) < _MOST_DIGITS for text in texts)


_Reasons = Annotated[dict[str, str], FieldRule(_are_ids, "reasons by experts' ids")]


@dataclasses.dataclass(frozen=True)
class _OriginsText:
    """Origins as JSON has them."""

    experts: tuple[tuple[Size, ...], ...]
    removed: _Reasons
    joined: _Reasons = dataclasses.field(default_factory=dict)


def origins_of(node: ir.Node, count: int) -> Origins:
    """Read the origins of ``count`` experts, identity experts included, from a node's metadata.

    Raises MoecError for metadata of another form or of another number of experts.
    """
    text = node.metadata_props.get(ORIGIN_KEY)
    if text is None:
        return Origins(tuple((expert,) for expert in range(count)))
    where = f"node {node_name(node)}: metadata {ORIGIN_KEY}"
    content = read_json(_OriginsText, text, where, "remove it from the model")
    if len(content.experts) != count:
        raise MoecError(f"{where}: is of {len(content.experts)} experts; expected {count}; remove it from the model")
    removed, joined = (
        {int(first): reason for first, reason in reasons.items()} for reasons in (content.removed, content.joined)
    )
    return Origins(content.experts, removed, joined)


def set_origins(node: ir.Node, origins: Origins) -> None:
    """Write the metadata of a node."""
    node.metadata_props[ORIGIN_KEY] = json.dumps(origins_data(origins))


def origins_data(origins: Origins) -> dict[str, Any]:
    """Origins as JSON has them."""
    removed, joined = (
        {str(first): reasons[first] for first in sorted(reasons)} for reasons in (origins.removed, origins.joined)
    )
    experts = [list(group) for group in origins.experts]
    return {"experts": experts, "removed": removed, **({"joined": joined} if joined else {})}
