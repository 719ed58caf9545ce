"""The plan of a model's experts: for each layer and expert its format, the ranks that hold it, and where it is in
memory. One form serves as JSON file, which people read and edit, and in an artifact.

::

    {"version": 2, "device": "cpu", "ranks": 2, "nodes": 1, "resident": 4096000, "method": "rtn", "layers": [
      {"layer": "d6cc761a263a4c41", "name": "layers.0.experts", "experts": 4,
       "formats": {
        "up": ["int4/32", "int2/32", "int4/32", "int8"],
        "down": ["int4/32", "keep", "int4/32", "int8"]},
       "slots": [
        [0, 3],
        [1, 2, 3]],
       "resident": [
        [3],
        [1, 2]]}]}

``layer`` is the key of the layer in a profile (:mod:`moec.profiles.keys`), by which the plan of another model is
recognised; the second layer with the same weights, in the order of the graph, has ``#2`` after it. ``name`` is for
people. Each tier may be left out:

- ``formats``: one per expert for each weight operand, written as for ``--experts``; ``keep`` leaves a weight as it is.
  ``method`` is how weights are rounded to them. Without formats weights stay as they are. Dense products have formats
  alone, as one expert each.
- ``slots``: the experts of each of ``ranks`` (:mod:`moec.placing.placement`). Without ``ranks`` a process has all.
- ``resident`` of a layer: the experts of each rank, or of the one process, that are in memory when runs begin; those on
  disk are read when they are chosen. ``resident`` of the plan: bytes of memory that weights take in a process. Without
  the latter all weights are in memory; without the former those that are chosen most are, as far as there is room.
- ``device``: that of all experts, since a program runs on one.
- ``notes``: how the plan was made, for people.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from typing import Any, Literal

from moec.common.errors import MoecError
from moec.common.plain_files import parse_json, read_bytes
from moec.common.records import Size, read_record
from moec.placing.placement import ExpertPlacement, LayerPlacement, Transport

VERSION = 2
KEEP = "keep"
Method = Literal["rtn", "gptq", "awq"]
_LARGEST = 16 << 20
_EXPECTED = "expected a plan as moec plan writes it"


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """The part of a plan that is about one layer. Raises MoecError for lists that do not fit its experts."""

    layer: str
    name: str
    experts: Size
    formats: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    slots: tuple[tuple[int, ...], ...] = ()
    resident: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        for operand, formats in self.formats.items():
            if len(formats) != self.experts:
                raise MoecError(
                    f"{self.where}: formats.{operand} has {len(formats)} formats for {self.experts} experts; give one "
                    "for each"
                )
        for rank, experts in enumerate(self.resident):
            where = f"{self.where}: resident[{rank}]"
            if len(set(experts)) < len(experts):
                raise MoecError(f"{where} lists an expert twice; keep it once")
            own = self.held(rank)
            stray = next((expert for expert in experts if expert not in own), None)
            if stray is not None:
                raise MoecError(f"{where} lists expert {stray}; expected experts that this rank holds")

    @property
    def where(self) -> str:
        """The layer in messages."""
        return f"layer {self.layer} ({self.name})"

    def held(self, rank: int) -> Set[int] | range:
        """The experts of a rank; without slots every process holds all."""
        if not self.slots:
            return range(self.experts)
        return frozenset(self.slots[rank]) if rank < len(self.slots) else frozenset()


@dataclasses.dataclass(frozen=True)
class ExpertPlan:
    """Plan of all layers; fields as the module says. Raises MoecError for parts that do not fit together."""

    layers: tuple[LayerPlan, ...]
    version: int = VERSION
    device: str = "cpu"
    ranks: Size | None = None
    nodes: Size = 1
    transport: Transport | None = None
    resident: Size | None = None
    method: Method | None = None
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ranks is None and (self.nodes != 1 or self.transport is not None):
            raise MoecError("ranks is missing, and nodes or transport are about ranks; add it")
        if self.device != "cpu" and self.resident is not None:
            raise MoecError(f"resident is {self.resident}, and device is {self.device!r}; experts stream on cpu alone")
        processes = 1 if self.ranks is None else self.ranks
        for layer in self.layers:
            if layer.slots and self.ranks is None:
                raise MoecError(f"{layer.where}: has slots, and ranks is missing; add it")
            if layer.resident and self.resident is None:
                raise MoecError(f"{layer.where}: has resident experts, and resident of the plan, in bytes, is missing")
            if layer.resident and len(layer.resident) != processes:
                raise MoecError(
                    f"{layer.where}: resident is of {len(layer.resident)} ranks; expected {processes}, a list for each"
                )
        _ = self.placement  # raises where experts are on no rank

    @functools.cached_property
    def placement(self) -> ExpertPlacement | None:
        """The layers with slots, on ranks; None where a process has all experts."""
        if self.ranks is None:
            return None
        placed = tuple(LayerPlacement(layer.name, layer.experts, layer.slots) for layer in self.layers if layer.slots)
        return ExpertPlacement(self.ranks, placed, self.nodes, self.transport)

    @property
    def has_formats(self) -> bool:
        """Whether the plan rounds weights."""
        return any(layer.formats for layer in self.layers)

    def placed(self, placement: ExpertPlacement) -> ExpertPlan:
        """Give the layers, in their order, the slots of a placement. Resident experts, those of other ranks, are left
        out. Raises MoecError for a placement of other layers."""
        expected, actual = ([layer.experts for layer in each.layers] for each in (self, placement))
        if actual != expected:
            raise MoecError(f"expected a placement of layers of {expected} experts; it is of layers of {actual}")
        layers = tuple(
            dataclasses.replace(layer, slots=own.slots, resident=())
            for layer, own in zip(self.layers, placement.layers, strict=True)
        )
        return dataclasses.replace(
            self, layers=layers, ranks=placement.ranks, nodes=placement.nodes, transport=placement.transport
        )

    def matched(
        self, layers: Iterable[LayerPlan], where: str, model: str
    ) -> Iterator[tuple[LayerPlan, LayerPlan | None]]:
        """Iterate over the ``layers`` of what ``model`` names, each with the plan's entry for it, None where there is
        none. ``where``: the plan's file. Raises MoecError for an entry without the slots that ranks need, and at the
        end for one that places experts of another layer."""
        by_key = {layer.layer: layer for layer in self.layers}
        for own in layers:
            layer = by_key.pop(own.layer, None)
            if layer is not None and self.ranks is not None and not layer.slots:
                raise MoecError(f"{where}: {layer.where}: slots is missing; expected the experts of each rank")
            yield own, layer
        stray = next((layer for layer in by_key.values() if layer.slots or layer.resident), None)
        if stray is not None:
            raise MoecError(f"{where}: {stray.where} is not in {model}; remove it")

    def text(self) -> str:
        """Return the JSON file, with one line for each operand of a layer, and for each of its ranks."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        present = {name: value for name, value in fields.items() if value not in (None, {}) and name != "layers"}
        head = "".join(f"{json.dumps(name)}: {json.dumps(value)}, " for name, value in present.items())
        return f"{{{head}{json.dumps('layers')}: [\n" + ",\n".join(map(_layer_text, self.layers)) + "]}\n"


def _layer_text(layer: LayerPlan) -> str:
    head = f'  {{"layer": {json.dumps(layer.layer)}, "name": {json.dumps(layer.name)}, "experts": {layer.experts}'
    return ",\n".join([head, *_tiers(layer)]) + "}"


def _tiers(layer: LayerPlan) -> Iterator[str]:
    if layer.formats:
        rows = [f"    {json.dumps(name)}: {json.dumps(own)}" for name, own in layer.formats.items()]
        yield '   "formats": {\n' + ",\n".join(rows) + "}"
    for name, ranks in (("slots", layer.slots), ("resident", layer.resident)):
        if ranks:
            yield f'   "{name}": [\n' + ",\n".join(f"    {json.dumps(list(own))}" for own in ranks) + "]"


def parse_plan(text: str | bytes, where: str) -> ExpertPlan:
    """Read a plan from JSON. ``where``: the file, for messages. Raises MoecError for another form or version."""
    try:
        content = parse_json(text)
    except ValueError as reason:
        raise MoecError(f"{where}: is not JSON: {reason}; {_EXPECTED}") from None
    version = content.get("version") if isinstance(content, dict) else VERSION
    if version != VERSION:
        raise MoecError(
            f"{where}: version is {str(version)[:20]}; expected {VERSION}, that of this moec; make the plan anew with "
            "moec plan"
        )
    try:
        return read_record(ExpertPlan, content, where, _EXPECTED)
    except MoecError as error:
        raise error if str(error).startswith(f"{where}: ") else MoecError(f"{where}: {error}") from None


def read_plan(path: str | os.PathLike[str]) -> ExpertPlan:
    """Read a plan from a file. Raises MoecError as :func:`parse_plan`, for a file that cannot be read, and for one that
    names a layer twice."""
    plan = parse_plan(read_bytes(path, _LARGEST), os.fspath(path))
    key, count = next(iter(Counter(layer.layer for layer in plan.layers).most_common(1)), ("", 0))
    if count > 1:
        raise MoecError(f"{path}: names layer {key} {count} times; give each layer once")
    return plan
