"""The weights of experts, found by probing: what multiplies what, whatever operators say it and in whichever order.

The router is known, so its choices can be had. With labels for weights, a token that is a unit vector brings the labels
of what multiplies it into each hidden unit; a hidden unit set by hand brings the labels of what multiplies it into y.
Which unit belongs to which expert is told by the weights that y gives it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from moec.ir.dialect import ExpertsSpec, GateLayout
from moec.passes.raising.block import Block
from moec.passes.raising.cut import Cut, find_cut
from moec.passes.raising.dataflow import Array
from moec.passes.raising.failure import NotUnderstoodError
from moec.passes.raising.labels import Labels, whole
from moec.passes.raising.mixing import TOLERANCE, Mixing
from moec.passes.raising.neurons import Units, find_units
from moec.passes.raising.router import Routing
from moec.passes.raising.trials import sample_rows
from moec.passes.raising.weights import FUSED_LAYOUTS, Arrangement, ExpertTensor, Place

MOST_ROUTINGS = 8
Summands = list[dict[ir.Value, Array]]
"""Constants that are added up: see :meth:`Labels.summands`."""


def probe_experts(block: Block, routings: list[Routing]) -> tuple[Arrangement, str]:
    """The weights of a block's experts, and the formulation that the block is written in. Of several routings that one
    is taken of whose mixtures y is. Raises NotUnderstoodError with what is not as it is in a mixture of MLPs."""
    mixings = [Mixing.of(block, routing) for routing in routings[:MOST_ROUTINGS]]
    mixing = next((mixing for mixing in mixings if mixing.explains_y()), mixings[0])
    cut = find_cut(block, sample_rows(len(mixing.logits[0]), block.d), mixing.logits[0])
    arrangement = _Probe(block, mixing, cut, Labels.of(block)).arrangement()
    parts = {part for tensor in arrangement.tensors.values() for part in tensor.parts}
    gathered = any(value in parts for node in block.router_nodes() for value in node.inputs)
    if block.selected.isdisjoint(cut.inner):
        return arrangement, "dense"
    return arrangement, "batched" if gathered else "loop"


@dataclasses.dataclass(frozen=True)
class _Projections:
    """Labels of what enters the hidden units: ``weights`` [n,inputs] of some inputs, and ``biases`` [n], 0 for none.
    ``of_element`` tells which of these each element of the values before the activation holds, -1 for none."""

    weights: Array
    biases: Array
    of_element: Array


@dataclasses.dataclass(frozen=True)
class _Probe:
    block: Block
    mixing: Mixing
    cut: Cut
    labels: Labels

    def arrangement(self) -> Arrangement:
        projections = self._projections()
        units = find_units(self._activation, projections.of_element)
        members = self._members(units)
        up = self._entering(projections, members)
        gates = np.zeros(len(projections.biases), np.int64)
        gates[units.up[units.up >= 0]] = units.gate[units.up >= 0]
        gate = self._entering(projections, gates[members]) if (units.gate >= 0).any() else None
        return _arranged(self.block, members.shape[1], up, gate, self._leaving(units, members))

    def _inner(self, x: Array, summands: Summands) -> Array:
        """All elements before the activation where every token is x [d] and weights are a sum of constants."""
        return sum((_flat(self.mixing.run(x, self.cut.inner, part)) for part in summands), np.zeros(()))

    def _activation(self, inner: Array) -> Array:
        """All elements behind the activation for those before it."""
        given = _given(inner, self.cut.inner, self._inner_shapes)
        return _flat(self.mixing.run(np.zeros(self.block.d), self.cut.outer, given))

    @functools.cached_property
    def _inner_shapes(self) -> list[list[tuple[int, ...]]]:
        found = self.mixing.run(np.zeros(self.block.d), self.cut.inner)
        return [[array.shape for array in run] for run in found]

    @functools.cached_property
    def _outer_shapes(self) -> list[list[tuple[int, ...]]]:
        found = self.mixing.run(np.zeros(self.block.d), self.cut.outer)
        return [[array.shape for array in run] for run in found]

    @functools.cached_property
    def _inputs(self) -> Array:
        return _some(self.block.d)

    def _projections(self) -> _Projections:
        numbers, ones, d = self.labels.summands(), self.labels.ones(), self.block.d
        unit = np.eye(1, d)[0]
        biased = self._inner(0 * unit, ones)
        scale = self._inner(unit, ones) - biased
        fixed = self._inner(0 * unit, numbers)
        held = np.flatnonzero(scale)
        labels = [self._inner(np.roll(unit, place), numbers)[held] - fixed[held] for place in self._inputs]
        weights = whole(np.stack(labels, axis=1) / scale[held, None])
        biases = whole(np.divide(fixed, biased, out=np.zeros_like(fixed), where=biased != 0))[held]
        _, first, number = np.unique(weights[:, 0], return_index=True, return_inverse=True)
        of_element = np.full(scale.shape, -1)
        of_element[held] = number
        return _Projections(weights[first], biases[first], of_element)

    def _members(self, units: Units) -> Array:
        """The up projections [E,f] of each expert's hidden units."""
        E, known = self.block.E, np.unique(units.up[units.up >= 0])
        marks = np.random.default_rng(0).normal(size=len(known))
        sizes, sums = (self._result(units, known, values)[:, 0] for values in (np.ones(len(known)), marks))
        missing = np.flatnonzero(np.abs(sizes) <= TOLERANCE * np.abs(sizes).max())
        if missing.size:
            raise NotUnderstoodError(
                f"of {E} experts {_listed(missing)}; an export by tracing leaves out experts that no token of the "
                "trace reached: export again with an input that reaches every expert"
            )
        if len(known) % E:
            raise NotUnderstoodError(f"its {len(known)} hidden units are no equal number for each of {E} experts")
        f = len(known) // E
        sums = sums * f / sizes
        for inner in (size for size in range(f, 0, -1) if f % size == 0):
            blocks = marks.reshape(f // inner, E, inner).sum(axis=(0, 2))
            same = np.abs(sums[:, None] - blocks) <= TOLERANCE * f
            if (same.sum(axis=1) == 1).all() and (same.sum(axis=0) == 1).all():
                grouped = known.reshape(f // inner, E, inner).transpose(1, 0, 2).reshape(E, f)
                return grouped[same.argmax(axis=1)]
        raise NotUnderstoodError("which hidden unit belongs to which expert is not to be seen")

    def _result(self, units: Units, known: Array, values: Array, summands: Summands | None = None) -> Array:
        """Each expert's result [E,d] where its hidden units ``known``, named by their up projections, are ``values``;
        less its result where they are 0, without which the labels of biases would be in it."""
        values = np.append(values, 0.0)
        of_unit = np.where(units.up >= 0, np.searchsorted(known, units.up), len(known))
        at_rest = self._at_rest if summands is None else self._labels_at_rest
        return self._parts(values[of_unit], summands) - at_rest

    @functools.cached_property
    def _at_rest(self) -> Array:
        """Each expert's part [E,d] in y where all hidden units are 0 and all weights 1."""
        return self._parts(np.zeros(()))

    @functools.cached_property
    def _labels_at_rest(self) -> Array:
        """The same where weights and biases are labels: those of biases."""
        return self._parts(np.zeros(()), self.labels.summands())

    def _parts(self, outer: Array, summands: Summands | None = None) -> Array:
        """Each expert's part [E,d] in y for elements behind the activation, and weights that are ones where they are no
        sum of other constants."""
        given = _given(outer, self.cut.outer, self._outer_shapes)
        constants = self.labels.ones() if summands is None else summands
        y = sum((self.mixing.y([{**run, **part} for run in given]) for part in constants), np.zeros(()))
        for on_input in (False, True):
            parts = self.mixing.of_experts(y, on_input=on_input)
            if parts is not None:
                return parts
        raise NotUnderstoodError("y is no sum of its experts' results, weighted by the router")

    def _entering(self, projections: _Projections, members: Array) -> _Entries:
        """Places of the weights [f,d] and biases [f] of each expert's projections."""
        f = members.shape[1]
        indices = [np.arange(f), self._inputs]
        return self._entries(projections.weights[members], projections.biases[members], indices, indices[:1])

    def _leaving(self, units: Units, members: Array) -> _Entries:
        """Places of the weights [f,d] and biases [d] from the hidden units to y."""
        f = members.shape[1]
        numbers, known = self.labels.summands(), np.sort(members, axis=None)
        scale = self._result(units, known, np.isin(known, members[:, 0]).astype(float))
        found = []
        for place in _some(f):
            one = np.isin(known, members[:, place]).astype(float)
            found.append(self._result(units, known, one, numbers) / scale)
        biased, fixed = self._at_rest, self._labels_at_rest
        biases = np.divide(fixed, biased, out=np.zeros_like(fixed), where=np.abs(biased) > TOLERANCE)
        indices = [_some(f), np.arange(self.block.d)]
        return self._entries(whole(np.stack(found, axis=1)), whole(biases), indices, indices[1:])

    def _entries(self, weights: Array, biases: Array, indices: list[Array], bias_indices: list[Array]) -> _Entries:
        if (biases == 0).any() and biases.any():
            raise NotUnderstoodError("some of its experts have biases, and others none")
        return _Entries(
            tuple(self.labels.place(labels, indices) for labels in weights),
            tuple(self.labels.place(labels, bias_indices) for labels in biases) if biases.any() else None,
        )


@dataclasses.dataclass(frozen=True)
class _Entries:
    """Places of each expert's weights [f,d], and of its biases if it has any."""

    weights: tuple[Place, ...]
    biases: tuple[Place, ...] | None


def _arranged(block: Block, f: int, up: _Entries, gate: _Entries | None, down: _Entries) -> Arrangement:
    """The arrangement that says these places with as few tensors as they allow."""
    E, d, dataflow = block.E, block.d, block.dataflow
    layout: GateLayout = "none" if gate is None else "separate"
    rows = f
    if gate is not None:
        fused = next(iter(_fused(gate, up, f)), None)
        if fused is not None:
            (layout, up), gate, rows = fused, None, 2 * f
    up_transposed, down_transposed = _rows_are_closer(up), not _rows_are_closer(down)
    tensors: dict[str, ExpertTensor] = {}

    def add(name: str, entries: _Entries, rows: int, turned: bool, bias: int) -> None:
        shape = (E, d, rows) if turned else (E, rows, d)
        places = [dataclasses.replace(p, strides=p.strides[::-1]) if turned else p for p in entries.weights]
        tensors[name] = ExpertTensor(dataflow, shape, tuple(places))
        if entries.biases is not None:
            tensors[f"{name}_bias"] = ExpertTensor(dataflow, (E, bias), entries.biases)

    add("up", up, rows, up_transposed, rows)
    add("down", down, f, not down_transposed, d)
    if gate is not None:
        add("gate", gate, f, up_transposed, f)
    spec = ExpertsSpec(gate_layout=layout, up_transposed=up_transposed, down_transposed=down_transposed)
    return Arrangement(spec, tensors)


def _rows_are_closer(entries: _Entries) -> bool:
    """Whether the hidden units of one input lie side by side, not the inputs of one hidden unit."""
    by_row, by_column = entries.weights[0].strides
    return abs(by_row) < abs(by_column)


def _fused(gate: _Entries, up: _Entries, f: int) -> Iterator[tuple[GateLayout, _Entries]]:
    """Layouts in which the rows of gate and up are those of one tensor, and that tensor."""
    for layout in FUSED_LAYOUTS:
        first, second = (up, gate) if layout == "up_gate" else (gate, up)
        weights = _joined(first.weights, second.weights, f, layout == "interleaved")
        if weights is None or (first.biases is None) != (second.biases is None):
            continue
        biases = None
        if first.biases is not None and second.biases is not None:
            biases = _joined(first.biases, second.biases, f, layout == "interleaved")
            if biases is None:
                continue
        yield layout, _Entries(weights, biases)


def _joined(first: Sequence[Place], second: Sequence[Place], f: int, interleaved: bool) -> tuple[Place, ...] | None:
    """For each expert the place of 2f rows: those of the first and then of the second, or in turns."""
    found = []
    for one, other in zip(first, second, strict=True):
        step = one.strides[0] // 2 if interleaved else one.strides[0]
        away = step if interleaved else f * step
        place = Place(one.part, one.start, (step, *one.strides[1:]))
        if other != Place(one.part, one.start + away, one.strides) or (interleaved and one.strides[0] % 2):
            return None
        found.append(place)
    return tuple(found)


def _listed(experts: Array) -> str:
    more = f" (nor do {len(experts) - 1} others)" if len(experts) > 1 else ""
    return f"expert {experts[0]} adds nothing to y{more}"


def _some(count: int) -> Array:
    """A few of so many indices: the first two, one in the middle and the last."""
    return np.unique([0, min(1, count - 1), count // 2, count - 1])


def _flat(runs: list[list[Array]]) -> Array:
    return np.concatenate([array.reshape(-1) for run in runs for array in run])


def _given(flat: Array, values: list[ir.Value], shapes: list[list[tuple[int, ...]]]) -> list[dict[ir.Value, Array]]:
    """The elements that :func:`_flat` put in a row as the values they were in, for each run."""
    sizes = [math.prod(shape) for run in shapes for shape in run]
    flat = np.broadcast_to(flat, (sum(sizes),))
    pieces = iter(np.split(flat, np.cumsum(sizes)[:-1]))
    return [{value: next(pieces).reshape(shape) for value, shape in zip(values, run, strict=True)} for run in shapes]
