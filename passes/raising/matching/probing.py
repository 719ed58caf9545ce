"""The weights of experts, found by probing: which elements are multiplied, by whatever operators and in whatever order.

The router is known, and so are its selections. With labels in the place of weights, a token that is a unit vector
brings the labels of its weights into each hidden unit; a hidden unit that is set brings the labels of its weights into
y. The weight of a unit in y tells the expert that it belongs to.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from moec.ir.dialect import ExpertsSpec, GateLayout
from moec.passes.raising.block import Block
from moec.passes.raising.cut import Cut, find_cut
from moec.passes.raising.dataflow import Array
from moec.passes.raising.failure import NotUnderstoodError
from moec.passes.raising.labels import Labels, whole
from moec.passes.raising.mixing import TOLERANCE, Mixing, explaining_routings
from moec.passes.raising.neurons import Units, find_units
from moec.passes.raising.owners import find_owners
from moec.passes.raising.pieces import sampled
from moec.passes.raising.router import RoutingProposal
from moec.passes.raising.simple_experts import SimpleExperts
from moec.passes.raising.trials import sample_rows
from moec.passes.raising.weights import FUSED_LAYOUTS, Arrangement, Entry, ExpertTensor

Summands = list[dict[ir.Value, Array]]
"""Constants that are added up: see :meth:`Labels.summands`."""


def probe_experts(block: Block, routings: list[RoutingProposal]) -> tuple[Arrangement, str, list[RoutingProposal]]:
    """The weights of a block's experts, the formulation that the block is written in, and the routings, those first of
    whose mixtures y is. Raises NotUnderstoodError with what is not as it is in a mixture of MLPs."""
    explaining = explaining_routings(block, routings)
    likely = explaining or routings
    mixing = Mixing.of(block, likely[0])
    try:
        cut = find_cut(block, sample_rows(len(mixing.logits[0]), block.d), mixing.logits[0])
        arrangement = _arrangement(block, likely[0], mixing, cut, scaled=bool(explaining))
    except NotUnderstoodError as reason:
        raise NotUnderstoodError(str(reason), is_mixture=bool(explaining)) from None
    parts = {part for tensor in arrangement.tensors.values() for part in tensor.parts}
    gathered = any(value in parts for node in block.router_nodes() for value in node.inputs)
    if block.selected.isdisjoint(cut.inner):
        return arrangement, "dense", likely
    return arrangement, "batched" if gathered else "loop", likely


def _arrangement(block: Block, routing: RoutingProposal, mixing: Mixing, cut: Cut, *, scaled: bool) -> Arrangement:
    labels = Labels.of(block)
    try:
        return _BlockProbe(block, mixing, cut, labels, scaled).arrangement()
    except NotUnderstoodError as reason:
        try:
            by_slot = Mixing.of(block, routing, by_slot=True)
            return _BlockProbe(block, by_slot, cut, labels, scaled, merged=True).arrangement()
        except NotUnderstoodError:
            raise reason from None


@dataclasses.dataclass(frozen=True)
class _Projections:
    """Labels of what enters the hidden units: ``weights`` [n,m] of some inputs, ``columns`` [m], and ``biases`` [n], 0
    for none. ``scales`` [n,2] are what both are multiplied by. ``of_element`` tells which of these each element of the
    values before the activation holds, -1 for none."""

    weights: Array
    columns: Array
    biases: Array
    scales: Array
    of_element: Array


@dataclasses.dataclass(frozen=True)
class _BlockProbe:
    """``scaled``: what multiplies weights beside tokens is a constant, not a weight from the router. ``merged``: where
    two projections are always equal, a copy of some weights is stored elsewhere, and they are one; weights of down are
    those of tokens' first choices."""

    block: Block
    mixing: Mixing
    cut: Cut
    labels: Labels
    scaled: bool
    merged: bool = False

    def arrangement(self) -> Arrangement:
        projections = self._projections()
        units = find_units(self._activation, projections.of_element)
        stored = self._stored(units)
        members = self._members(units, stored)
        up = self._entering(projections, members)
        gates = np.zeros(len(projections.biases), np.int64)
        gates[units.up[units.up >= 0]] = units.gate[units.up >= 0]
        gate = self._entering(projections, gates[members]) if (units.gate >= 0).any() else None
        arranged = _arranged(self.labels, up, gate, self._leaving(units, stored, members))
        if len(stored) < self.block.E:
            return self._with_simple(arranged, stored)
        if self.cut.around is not None:
            raise self.cut.why_around()
        return arranged

    def _with_simple(self, arranged: Arrangement, stored: Array) -> Arrangement:
        """The arrangement of the experts ``stored``, where the others return zeros or their token."""
        simple = SimpleExperts.of(self.block, self.mixing, self.cut.outer, tuple(stored.tolist()))
        if simple is None or simple.ids is None:
            missing = np.setdiff1d(np.arange(self.block.E), stored)
            raise NotUnderstoodError(f"expert {missing[0]} is not an MLP, and returns neither zeros nor its token")
        spec = dataclasses.replace(arranged.spec, identity_experts=max(0, max(simple.ids) + 1 - len(stored)))
        return Arrangement(spec, arranged.tensors, () if simple.ids == tuple(range(self.block.E)) else simple.ids)

    def _inner(self, x: Array, summands: Summands) -> Array:
        """All elements before the activation where every token is x [d] and weights are a sum of constants."""
        return sum((_flat(self.mixing.run(x, self.cut.inner, part)) for part in summands), np.zeros(()))

    def _activation(self, inner: Array) -> Array:
        """All elements after the activation for those before it."""
        elements = _given(inner, self.cut.inner, self._inner_shapes)
        return _flat(self.mixing.run(np.zeros(self.block.d), self.cut.outer, elements))

    @functools.cached_property
    def _inner_shapes(self) -> list[list[tuple[int, ...]]]:
        runs = self.mixing.run(np.zeros(self.block.d), self.cut.inner)
        return [[array.shape for array in run] for run in runs]

    @functools.cached_property
    def _outer_shapes(self) -> list[list[tuple[int, ...]]]:
        runs = self.mixing.run(np.zeros(self.block.d), self.cut.outer)
        return [[array.shape for array in run] for run in runs]

    def _projections(self) -> _Projections:
        numbers, ones, d = self.labels.summands(), self.labels.ones(), self.block.d
        unit = np.eye(1, d)[0]
        biased = self._inner(0 * unit, ones)
        scale = self._inner(unit, ones) - biased
        fixed = self._inner(0 * unit, numbers)
        nonzero = np.flatnonzero(scale)

        def read(column: int) -> Array:
            return whole((self._inner(np.roll(unit, column), numbers)[nonzero] - fixed[nonzero]) / scale[nonzero])

        biases = whole(np.divide(fixed, biased, out=np.zeros_like(fixed), where=biased != 0))[nonzero]
        labels = read(0)
        _, first, number = np.unique(labels, return_index=True, return_inverse=True)
        if self.merged:
            tokens = np.random.default_rng(1).normal(size=(2, d))
            values = np.stack([self._inner(token, [{}])[nonzero][first] for token in tokens])
            number = _equal_columns(values)[number]
        columns, weights = sampled(lambda column: (read(column) if column else labels)[first], d)
        of_element = np.full(scale.shape, -1)
        of_element[nonzero] = number
        scales = np.stack([scale, biased], axis=1)[nonzero][first]
        return _Projections(weights, columns, biases[first], scales, of_element)

    def _stored(self, units: Units) -> Array:
        """The ids of experts that have hidden units."""
        sizes = self._sizes(units)
        return np.flatnonzero(np.abs(sizes) > TOLERANCE * np.abs(sizes).max())

    def _sizes(self, units: Units) -> Array:
        """The first element of each expert's result [E] where all hidden units and weights are 1."""
        hidden = np.unique(units.up[units.up >= 0])
        return self._result(units, hidden, np.ones(len(hidden)))[:, 0]

    def _members(self, units: Units, stored: Array) -> Array:
        """The up projections [E,f] of the hidden units of each expert that is stored."""
        E, hidden, sizes = len(stored), np.unique(units.up[units.up >= 0]), self._sizes(units)[stored]
        if E > 1 and self._are_shared(units, hidden, stored, sizes):
            raise NotUnderstoodError(
                "its experts share their hidden units: they differ in what these are multiplied by"
            )
        if not E or len(hidden) % E:
            raise NotUnderstoodError(f"its {len(hidden)} hidden units cannot be divided equally among {E} experts")
        f = len(hidden) // E
        owners = find_owners(lambda values: self._result(units, hidden, values)[stored, 0] * f / sizes, len(hidden), E)
        return hidden[np.argsort(owners, kind="stable").reshape(E, f)]

    def _are_shared(self, units: Units, hidden: Array, stored: Array, sizes: Array) -> bool:
        """Whether every hidden unit adds to what every expert makes, of which ``sizes`` [E] is that of all units."""
        marks = np.random.default_rng(2).normal(size=len(hidden))
        shares = self._result(units, hidden, marks)[stored, 0] / sizes
        return bool(np.abs(shares - marks.mean()).max() <= TOLERANCE)

    def _result(self, units: Units, hidden: Array, values: Array, summands: Summands | None = None) -> Array:
        """Each expert's result [E,d] where its hidden units ``hidden``, named by their up projections, are ``values``;
        less its result where they are 0, without which the labels of biases would be in it."""
        values = np.append(values, 0.0)
        of_unit = np.where(units.up >= 0, np.searchsorted(hidden, units.up), len(hidden))
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
        elements = _given(outer, self.cut.outer, self._outer_shapes)
        constants = self.labels.ones() if summands is None else summands
        y = sum((self.mixing.y([{**run, **part} for run in elements]) for part in constants), np.zeros(()))
        for on_input in (False, True):
            parts = self.mixing.of_experts(y, on_input=on_input)
            if parts is not None:
                return parts
        raise NotUnderstoodError("y is not the sum of its experts' results, weighted by the router")

    def _entering(self, projections: _Projections, members: Array) -> _Matrices:
        """Weights [f,d] and biases [f] of each expert's projections."""
        scales = projections.scales[members]
        if self.scaled and not np.allclose(scales, scales[:, :1], rtol=TOLERANCE):
            raise NotUnderstoodError("the hidden units of an expert are scaled one by one")
        weights, biases = projections.weights[members], projections.biases[members]
        return self._matrices(weights, projections.columns, biases, scales[:, 0])

    def _matrices(self, weights: Array, columns: Array, biases: Array, scales: Array) -> _Matrices:
        return _Matrices(weights, columns, biases, scales if self.scaled else np.ones_like(scales))

    def _leaving(self, units: Units, stored: Array, members: Array) -> _Matrices:
        """Weights [d,f] and biases [d] from the hidden units of each expert that is stored to y."""
        numbers, hidden = self.labels.summands(), np.sort(members, axis=None)

        def unit_of(column: int) -> Array:
            return np.isin(hidden, members[:, column]).astype(float)

        scale = self._result(units, hidden, unit_of(0))[stored]
        columns, weights = sampled(
            lambda column: whole(self._result(units, hidden, unit_of(column), numbers)[stored] / scale),
            members.shape[1],
        )
        biased, fixed = self._at_rest[stored], self._labels_at_rest[stored]
        biases = np.divide(fixed, biased, out=np.zeros_like(fixed), where=np.abs(biased) > TOLERANCE)
        return self._matrices(weights, columns, whole(biases), np.stack([scale, biased], axis=2)[:, 0])


@dataclasses.dataclass(frozen=True)
class _Matrices:
    """Labels of the weights [E,rows,m] of each expert at some columns [m], and of its biases [E,rows]: 0 for none.
    ``scales`` [E,2] are what both are multiplied by."""

    weights: Array
    columns: Array
    biases: Array
    scales: Array

    def __post_init__(self) -> None:
        if (self.biases == 0).any() and self.biases.any():
            raise NotUnderstoodError("only some of its experts have biases")

    def with_rows_of(self, other: _Matrices, layout: GateLayout) -> _Matrices:
        """The rows of both, these first unless they are interleaved."""

        def joined(first: Array, two: Array) -> Array:
            if layout != "interleaved":
                return np.concatenate([first, two], axis=1)
            return np.stack([first, two], axis=2).reshape(len(first), -1, *first.shape[2:])

        weights, biases = joined(self.weights, other.weights), joined(self.biases, other.biases)
        return _Matrices(weights, self.columns, biases, self.scales)


@dataclasses.dataclass(frozen=True)
class _WeightEntries:
    """Places of each expert's weights [rows,columns], and of its biases if it has any."""

    weights: tuple[Entry, ...]
    biases: tuple[Entry, ...] | None

    @staticmethod
    def of(labels: Labels, matrices: _Matrices) -> _WeightEntries:
        scales = [[float(f"{scale:.9g}") for scale in own] for own in matrices.scales]  # what is beyond is noise
        weights = tuple(
            labels.entry(own, matrices.columns, scale) for own, (scale, _) in zip(matrices.weights, scales, strict=True)
        )
        if not matrices.biases.any():
            return _WeightEntries(weights, None)
        return _WeightEntries(weights, tuple(map(labels.vector, matrices.biases, (scale for _, scale in scales))))

    @property
    def are_whole(self) -> bool:
        """Whether none of them is in pieces."""
        return all(len(entry) == 1 for entry in (*self.weights, *(self.biases or ())))

    @property
    def rows_are_closer(self) -> bool:
        """Whether elements of one column lie side by side, not those of one row."""
        by_row, by_column = self.weights[0][0].strides
        return abs(by_row) < abs(by_column)


def _arranged(labels: Labels, up: _Matrices, gate: _Matrices | None, down: _Matrices) -> Arrangement:
    """The arrangement that says where these lie with as few tensors as they allow."""
    tensors: dict[str, ExpertTensor] = {}

    def add(name: str, entries: _WeightEntries, turned: bool) -> None:
        weights = tuple(tuple(p.turned for p in entry) if turned else entry for entry in entries.weights)
        for key, own in ((name, weights), (f"{name}_bias", entries.biases)):
            if own is not None:
                sizes = (max(place.box[axis].stop for place in own[0]) for axis in range(len(own[0][0].at)))
                tensors[key] = ExpertTensor(labels.block.dataflow, (len(own), *sizes), own)

    layout: GateLayout = "none" if gate is None else "separate"
    first = _WeightEntries.of(labels, up)
    if gate is not None:
        fused = next(_fused(labels, gate, up), None)
        if fused is None:
            add("gate", _WeightEntries.of(labels, gate), first.rows_are_closer)
        else:
            layout, first = fused
    last = _WeightEntries.of(labels, down)
    add("up", first, first.rows_are_closer)
    add("down", last, last.rows_are_closer)
    spec = ExpertsSpec(gate_layout=layout, up_transposed=first.rows_are_closer, down_transposed=last.rows_are_closer)
    return Arrangement(spec, tensors)


def _fused(labels: Labels, gate: _Matrices, up: _Matrices) -> Iterator[tuple[GateLayout, _WeightEntries]]:
    """Layouts in which the rows of gate and up are those of one tensor, and that tensor."""
    if gate.biases.any() != up.biases.any() or not np.allclose(gate.scales, up.scales, rtol=TOLERANCE):
        return
    for layout in FUSED_LAYOUTS:
        leading, two = (up, gate) if layout == "up_gate" else (gate, up)
        try:
            entries = _WeightEntries.of(labels, leading.with_rows_of(two, layout))
        except NotUnderstoodError:
            continue
        if entries.are_whole:
            yield layout, entries


def _equal_columns(values: Array) -> Array:
    """The number of the first equal column, except for rounding, of each column of [m,n]."""
    order = np.lexsort(values)
    step = np.abs(np.diff(values[:, order], axis=1)).max(axis=0, initial=0)
    group = np.cumsum([0, *(step > TOLERANCE * np.abs(values).max())])
    first = np.full(group[-1] + 1, len(order))
    np.minimum.at(first, group, order)
    equal = np.empty(len(order), np.int64)
    equal[order] = first[group]
    return equal


def _flat(runs: list[list[Array]]) -> Array:
    return np.concatenate([array.reshape(-1) for run in runs for array in run])


def _given(flat: Array, values: list[ir.Value], shapes: list[list[tuple[int, ...]]]) -> list[dict[ir.Value, Array]]:
    """The elements that :func:`_flat` put in a row as the values they were in, for each run."""
    sizes = [math.prod(shape) for run in shapes for shape in run]
    flat = np.broadcast_to(flat, (sum(sizes),))
    pieces = iter(np.split(flat, np.cumsum(sizes)[:-1]))
    return [{value: next(pieces).reshape(shape) for value, shape in zip(values, run, strict=True)} for run in shapes]
