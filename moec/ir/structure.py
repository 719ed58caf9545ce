"""The parts of a model and its layers, found by how nodes depend on each other and never by their names.

Attention, recurrences and MoE blocks are operators of their own. Around each of them, nodes that lead to it alone or
stem from it alone belong to it (:mod:`moec.ir.wiring`): projections, a router, a norm. Remaining products by
weights form dense parts: products belong together where a node stems from them alone. A new layer begins where a part
depends on a part of its kind, and where a part that mixes tokens depends on any part of the present layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import onnx_ir as ir

from moec.ir.dialect import RanksSpec, has_experts, inputs_of, is_moec, spec_of
from moec.ir.graphs import carried_inputs, is_op, nested_graphs
from moec.ir.wiring import MIXERS, STREAM, Wiring, bits_of, single, union

INPUT, OUTPUT = "input", "output"
_AHEAD = ("Expect", "Absent")
"""Operators of the dialect that only name the weights of another node."""


@dataclasses.dataclass
class Part:
    """Nodes that do one thing. ``kind``: embedding, attention, recurrent, moe, shared (dense, beside a MoE block),
    dense, head or rest. ``layer``: its number, :data:`INPUT` or :data:`OUTPUT`. ``core``: the operators that the part
    was found by. ``weights``: weights that the part reads and no part before; ``shared``: those that one did."""

    kind: str
    layer: int | str
    nodes: list[ir.Node]
    core: list[ir.Node]
    weights: list[ir.Value] = dataclasses.field(default_factory=list)
    shared: list[ir.Value] = dataclasses.field(default_factory=list)


def parts_of(graph: ir.Graph, states: Collection[str]) -> list[Part]:
    """Divide a graph into parts, in the order of its layers. ``states``: names of inputs that are outputs of the run
    before. Each node is in one part, and so is each weight that is read."""
    return _Division(Wiring(graph, states), graph).parts()


class _Division:
    def __init__(self, wiring: Wiring, graph: ir.Graph) -> None:
        self._wiring, self._graph = wiring, graph
        self._kinds: list[str] = []
        self._cores: list[list[int]] = []
        for kind, core in sorted(_operators(wiring), key=lambda each: min(each[1])):
            self._add(kind, core)
        self._claim()
        self._add_gates()
        self._claim()
        self._add_dense()
        self._claim()
        self._ancestors = self._all_before()
        self._embedded = self._after_tables()
        self._name_dense()

    def parts(self) -> list[Part]:
        layers = self._layers()
        places = self._places(layers)
        parts: dict[tuple[int | str, str, int], Part] = {}
        for place, key in enumerate(places):
            part = parts.setdefault(key, Part(key[1], key[0], [], self._core(key[2])))
            part.nodes.append(self._wiring.nodes[place])
        self._share_weights([parts[key] for key in places])
        rank = ("embedding", "attention", "recurrent", "dense", "moe", "shared", "head", "rest").index
        ends = {INPUT: -1, OUTPUT: len(self._kinds)}

        def order(key: tuple[int | str, str, int]) -> tuple[int, int, int]:
            layer, kind, group = key
            return ends[layer] if isinstance(layer, str) else layer, rank(kind), group

        return [parts[key] for key in sorted(parts, key=order)]

    def _core(self, group: int) -> list[ir.Node]:
        return [self._wiring.nodes[place] for place in self._cores[group]] if group >= 0 else []

    def _add(self, kind: str, core: Sequence[int]) -> None:
        for place in core:
            self._wiring.group[place] = len(self._kinds)
        self._kinds.append(kind)
        self._cores.append(list(core))

    def _claim(self) -> None:
        """Give nodes to the group that they alone stem from, or else alone lead to."""
        to, from_ = self._wiring.leads_to(), self._wiring.stems_from()
        for place, group in enumerate(self._wiring.group):
            if group is None and not self._wiring.embeds(place):
                own = single(from_[place])
                self._wiring.group[place] = single(to[place]) if own is None else own

    def _seeds(self) -> list[int]:
        return [place for place in sorted(self._wiring.products) if self._wiring.group[place] is None]

    def _stems_with(self, seeds: Sequence[int]) -> tuple[list[int], int]:
        """Compute the sets that nodes stem from where each seed is a group of its own, and the first seed's number."""
        first = len(self._kinds)
        for number, place in enumerate(seeds):
            self._wiring.group[place] = first + number
        stems = self._wiring.stems_from()
        for place in seeds:
            self._wiring.group[place] = None
        return stems, first

    def _add_gates(self) -> None:
        """Give products whose results multiply what stems from one group to that group: gates of attention."""
        seeds = self._seeds()
        stems, first = self._stems_with(seeds)
        for place, node in enumerate(self._wiring.nodes):
            groups = list(bits_of(stems[place]))
            anchors = [group for group in groups if group < first]
            if is_op(node, "Mul") and len(anchors) == 1 and len(groups) > 1 and not stems[place] & STREAM:
                for group in groups:
                    if group >= first:
                        self._wiring.group[seeds[group - first]] = anchors[0]

    def _add_dense(self) -> None:
        seeds = self._seeds()
        stems, first = self._stems_with(seeds)
        of_seeds = ((1 << (len(seeds) + first + 1)) - 1) ^ ((1 << (first + 1)) - 1)
        pairs, numbers = [], {place: number for number, place in enumerate(seeds)}
        for place, groups in enumerate(stems):
            if groups and not groups & ~of_seeds:
                joined = [group - first for group in bits_of(groups)]
                joined += [numbers[place]] if place in numbers else []
                pairs += [(joined[0], other) for other in joined[1:]]
        for members in union(pairs, range(len(seeds))):
            self._add("dense", [seeds[member] for member in members])

    def _all_before(self) -> list[int]:
        """Compute the set of groups, as bits, on which each node depends."""
        sets = [0] * len(self._wiring.nodes)
        for place in range(len(sets)):
            for before in self._wiring.before(place):
                group = self._wiring.group[before]
                sets[place] |= sets[before] | (0 if group is None else 1 << (group + 1))
        return sets

    def _after_tables(self) -> list[bool]:
        """Whether each node depends on a table that the model looks its data up in."""
        after = [False] * len(self._wiring.nodes)
        for place in range(len(after)):
            after[place] = any(after[each] or self._wiring.embeds(each) for each in self._wiring.before(place))
        return after

    def _before_group(self, group: int) -> int:
        """The set of other groups on which the operators of a group depend."""
        own = 0
        for place in self._cores[group]:
            own |= self._ancestors[place]
        return own & ~(1 << (group + 1))

    def _name_dense(self) -> None:
        before = [self._before_group(group) for group in range(len(self._kinds))]
        needed = 0
        for groups in before:
            needed |= groups
        makers = {value.producer() for value in self._graph.outputs}
        stems = self._wiring.stems_from()
        ends = {
            own if own is not None else single(stems[place])
            for place, own in enumerate(self._wiring.group)
            if self._wiring.nodes[place] in makers
        }
        for group, kind in enumerate(self._kinds):
            is_needed = needed >> (group + 1) & 1
            if kind != "dense":
                continue
            if self._mixes(group):
                self._kinds[group] = "attention"
            elif any(self._wiring.convolves_tokens(place) for place in self._cores[group]):
                self._kinds[group] = "recurrent"
            elif not before[group] and is_needed and not any(self._embedded[place] for place in self._cores[group]):
                self._kinds[group] = "embedding"
            elif before[group] and not is_needed and group in ends:
                self._kinds[group] = "head"

    def _mixes(self, group: int) -> bool:
        """Whether a dense group multiplies computed values by each other around a softmax: attention in steps."""
        own = [place for place, other in enumerate(self._wiring.group) if other == group]
        nodes = [self._wiring.nodes[place] for place in own if place not in self._wiring.products]
        products = [node for node in nodes if is_op(node, "MatMul", "Einsum")]
        return len(products) > 1 and any(is_op(node, "Softmax") for node in nodes)

    def _layers(self) -> list[int | str]:
        """Number the layer of each group."""
        before = [self._before_group(group) for group in range(len(self._kinds))]
        layers: list[int | str] = [INPUT if kind == "embedding" else OUTPUT for kind in self._kinds]
        inner = [group for group, kind in enumerate(self._kinds) if kind not in ("embedding", "head")]
        current: list[int] = []
        number = 0
        for group in sorted(inner, key=lambda group: (before[group].bit_count(), min(self._cores[group]))):
            mixes = self._kinds[group] in MIXERS.values()
            alike = current if mixes else [other for other in current if self._kinds[other] not in MIXERS.values()]
            if any(before[group] >> (other + 1) & 1 for other in alike):
                current, number = [], number + 1
            current.append(group)
            layers[group] = number
        for group in inner:
            blocks = [other for other in inner if layers[other] == layers[group] and self._kinds[other] == "moe"]
            if self._kinds[group] == "dense" and blocks:
                self._kinds[group] = "shared"
        return layers

    def _places(self, layers: Sequence[int | str]) -> list[tuple[int | str, str, int]]:
        """Find the layer, kind and group of each node."""
        to = self._wiring.leads_to()
        inner = sum(1 << (group + 1) for group, layer in enumerate(layers) if isinstance(layer, int))
        places: list[tuple[int | str, str, int] | None] = []
        for place, group in enumerate(self._wiring.group):
            if group is not None:
                places.append((layers[group], self._kinds[group], group))
            elif self._wiring.is_constant(place):
                places.append(None)
            else:
                before = self._ancestors[place] & inner
                numbers = [layers[each] for each in bits_of(before)]
                latest = max((number for number in numbers if isinstance(number, int)), default=INPUT)
                layer = OUTPUT if before and to[place] and not to[place] & inner else latest
                kind = "embedding" if self._wiring.embeds(place) and layer == INPUT else "rest"
                places.append((layer, kind, -1))
        return self._with_constants(places)

    def _with_constants(self, places: list[tuple[int | str, str, int] | None]) -> list[tuple[int | str, str, int]]:
        """Put nodes that compute from weights alone beside the first node that reads them."""
        for place in reversed(range(len(places))):
            if places[place] is None:
                readers = [
                    each for each in self._wiring.after(place) if not _only_names_weights(self._wiring.nodes[each])
                ]
                places[place] = next((own for each in readers if (own := places[each])), (OUTPUT, "rest", -1))
        return [own or (OUTPUT, "rest", -1) for own in places]

    def _share_weights(self, parts: Sequence[Part]) -> None:
        for weight in self._graph.initializers.values():
            readers = self._wiring.readers(weight)
            owners = [parts[place] for place in readers if not _only_names_weights(self._wiring.nodes[place])]
            owners = list({id(part): part for part in owners}.values())
            for part in owners[:1]:
                part.weights.append(weight)
            for part in owners[1:]:
                part.shared.append(weight)


def _only_names_weights(node: ir.Node) -> bool:
    """Whether a node only names weights that another node multiplies by."""
    return is_moec(node) and node.op_type in _AHEAD


def _operators(wiring: Wiring) -> Iterator[tuple[str, list[int]]]:
    """Go through the operators that are parts by themselves: kinds, and numbers of nodes."""
    inside: set[int] = set()
    for place, node in enumerate(wiring.nodes):
        if is_moec(node, "Dispatch") or is_moec(node, "SendRows"):
            block = _around_rows(wiring, place)
            inside.update(block)
            yield "moe", block
        elif place not in inside and (kind := _kind(node)):
            yield kind, [place]


def _kind(node: ir.Node) -> str | None:
    if has_experts(node) or is_moec(node, "Dispatch"):
        return "moe"
    if node.op_type in MIXERS:
        return MIXERS[node.op_type]
    inside = [
        _kind(each) or ("moe" if is_moec(each, "Dispatch") else None) for body in nested_graphs(node) for each in body
    ]
    if inside_kinds := [kind for kind in inside if kind]:
        return "moe" if "moe" in inside_kinds else inside_kinds[0]
    if is_op(node, "Loop", "Scan") and any(
        value is not None and value.dtype is not None and value.dtype.is_floating_point()
        for value in carried_inputs(node)
    ):
        return "recurrent"
    return None


def _around_rows(wiring: Wiring, place: int) -> list[int]:
    """Find the nodes between a ``Dispatch`` or ``SendRows`` and the ``Combine`` nodes of its rows, both included."""
    node = wiring.nodes[place]
    makers = [node] if is_moec(node, "Dispatch") else [other for other in wiring.nodes if _returns(other, node)]
    positions = [value for maker in makers for value in maker.outputs]
    ends = [
        other
        for value in positions
        for other in wiring.readers(value)
        if is_moec(wiring.nodes[other], "Combine") and inputs_of(wiring.nodes[other])["positions"] in positions
    ]
    after = _closure([place], lambda at: () if at in ends else wiring.after(at))
    before = _closure(ends, lambda at: () if at == place else wiring.before(at))
    return sorted({place, *ends} | (after & before))


def _returns(node: ir.Node, sent: ir.Node) -> bool:
    """Whether a node returns the results of rows that another one sent to their experts."""
    return is_moec(node, "ReturnRows") and spec_of(node, RanksSpec) == spec_of(sent, RanksSpec)


def _closure(starts: Sequence[int], following: Callable[[int], Iterable[int]]) -> set[int]:
    reached, pending = set(starts), list(starts)
    while pending:
        for other in following(pending.pop()):
            if other not in reached:
                reached.add(other)
                pending.append(other)
    return reached
