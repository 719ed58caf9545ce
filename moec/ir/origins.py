"""The origins of a layer's experts: the first ids that each present expert was made of, and why others are gone.

Passes that remove or join experts write the origins into the metadata of ``moec.Experts`` and ``moec.MoE`` nodes, under
``ORIGIN_KEY``, as JSON: ``{"experts": [[0], [1, 5], [2]], "removed": {"7": "drop-dead-experts: its logit is -inf"}}``.
A pass that knows why an expert became part of another adds ``"joined": {"5": "merge-experts: ..."}``. A node without
such metadata still has all its first experts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeGuard

import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.names import node_name
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


def origins_of(node: ir.Node, count: int) -> Origins:
    """Read the origins of ``count`` experts, identity experts included, from a node's metadata.

    Raises MoecError for metadata of another form or of another number of experts.
    """
    text = node.metadata_props.get(ORIGIN_KEY)
    if text is None:
        return Origins(tuple((expert,) for expert in range(count)))
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not _is_well_formed(content) or len(content["experts"]) != count:
        raise MoecError(
            f"node {node_name(node)}: metadata {ORIGIN_KEY} is {text[:80]!r}; expected the origins of {count} experts "
            'as {"experts": [[0], ...], "removed": {"7": "why", ...}}; remove it from the model'
        )
    removed, joined = (
        {int(first): reason for first, reason in content.get(name, {}).items()} for name in ("removed", "joined")
    )
    return Origins(tuple(map(tuple, content["experts"])), removed, joined)


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


def _is_well_formed(content: Any) -> TypeGuard[dict[str, Any]]:
    if not isinstance(content, dict) or set(content) - {"joined"} != {"experts", "removed"}:
        return False
    experts = content["experts"]
    return (
        isinstance(experts, list)
        and all(isinstance(group, list) and all(map(_is_id, group)) for group in experts)
        and _are_reasons(content["removed"])
        and _are_reasons(content.get("joined", {}))
    )


_MOST_DIGITS = 10
"""Digits of an expert's id, at most one less."""


def _are_reasons(reasons: Any) -> bool:
    return isinstance(reasons, dict) and all(
        first.isdecimal() and first.isascii() and len(first) < _MOST_DIGITS and isinstance(why, str)
        for first, why in reasons.items()
    )


def _is_id(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0
