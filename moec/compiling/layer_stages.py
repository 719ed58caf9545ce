"""Division of a model into stages by layers, for a pipeline of processes that hold some layers each.

Layers are those of :mod:`moec.ir.structure`, which counts them by dependence. A node that depends on weights alone, or
precedes all layers, such as a mask or a rotation of positions, is computed by each stage that reads it; every other
node by one stage alone. Every stage takes all inputs of the model except the states of others, and values of earlier
stages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from moec.artifacts.writer import StageProgram
from moec.common.errors import UnsupportedError
from moec.common.names import node_name
from moec.common.specs import State
from moec.compiling.layer_ranges import LayerRanges
from moec.ir.dialect import inputs_of, is_moec
from moec.ir.graphs import is_op, read_values
from moec.ir.states import set_states, states_of
from moec.ir.structure import INPUT, OUTPUT, parts_of
from moec.passes.framework.base import Report
from moec.passes.graph.edits import replace_node
from moec.passes.remove_dead_nodes import RemoveDeadNodes
from moec.targets.base import Program, Target


@dataclasses.dataclass(frozen=True)
class StageModel:
    """Model of one stage: its ``layers``, and the model, whose outputs are the model's own and those that later stages
    read."""

    layers: range
    model: ir.Model


def stage_models(model: ir.Model, ranges: LayerRanges) -> list[StageModel]:
    """Cut a model after all passes into one model for each stage. The model itself stays as it is.

    Raises MoecError for ranges that are not its layers; UnsupportedError where a value that crosses a cut has no known
    type and shape, and where a stage reads a state of another one.
    """
    states = states_of(model)
    layer_of = {
        node: part.layer for part in parts_of(model.graph, {state.input for state in states}) for node in part.nodes
    }
    count = 1 + max((layer for layer in layer_of.values() if isinstance(layer, int)), default=-1)
    stages = ranges.of(count)
    cut = _StageCut.of(model.graph, layer_of, stages)
    return [StageModel(layers, cut.stage(model, number, states)) for number, layers in enumerate(stages)]


def stage_programs(model: ir.Model, ranges: LayerRanges, target: Target) -> list[StageProgram]:
    """Compile a program for each stage. Raises what :func:`stage_models` and the target raise."""
    programs = []
    for stage in stage_models(model, ranges):
        program = target.compile(stage.model)
        assert isinstance(program, Program), "options refuse targets that make projects"
        programs.append(StageProgram(stage.layers, program))
    return programs


@dataclasses.dataclass(frozen=True)
class _StageCut:
    """Stage of each value that one stage computes, by name, and the number of the last stage. ``outputs``: values that
    each stage hands on or returns. ``received``: values of earlier stages that each stage reads."""

    made_by: Mapping[str, int]
    outputs: Sequence[Sequence[str]]
    received: Sequence[Sequence[str]]

    @staticmethod
    def of(graph: ir.Graph, layer_of: Mapping[ir.Node, int | str], stages: Sequence[range]) -> _StageCut:
        stage_of_layer: dict[int | str, int] = {layer: place for place, own in enumerate(stages) for layer in own}
        stage_of_layer |= {INPUT: -1, OUTPUT: len(stages) - 1}
        made_by: dict[str, int] = {}
        constants = {str(name) for name in graph.initializers}
        outputs: list[dict[str, None]] = [{} for _ in stages]
        received: list[dict[str, None]] = [{} for _ in stages]
        for node in graph:
            read = {str(value.name): value for value in read_values(node)}
            before = [made_by[name] for name in read if name in made_by]
            own = max([stage_of_layer[layer_of[node]], *before])
            if constants.issuperset(read):
                constants |= {str(value.name) for value in node.outputs}
                continue
            if own < 0:
                continue
            made_by |= {str(value.name): own for value in node.outputs}
            for name in (name for name in read if made_by.get(name, own) != own):
                _check_sent(read[name], node)
                outputs[made_by[name]][name] = received[own][name] = None
        for value in graph.outputs:
            outputs[made_by.get(str(value.name), len(stages) - 1)][str(value.name)] = None
        return _StageCut(made_by, [list(names) for names in outputs], [list(names) for names in received])

    def stage(self, model: ir.Model, number: int, states: Sequence[State]) -> ir.Model:
        """Make the model of a stage."""
        copy = model.clone()
        graph = copy.graph
        values = {str(value.name): value for value in (*graph.inputs, *graph.initializers.values())}
        values |= {str(value.name): value for node in graph for value in node.outputs}
        graph.outputs[:] = [values[name] for name in self.outputs[number]]
        for name in self.received[number]:
            computed = values[name]
            received = ir.Value(name=name, type=computed.type, shape=computed.shape)
            computed.replace_all_uses_with(received)
            computed.name = f"{name}.elsewhere"
            graph.inputs.append(received)
        RemoveDeadNodes().apply(copy, Report())
        _leave_expected(graph)
        RemoveDeadNodes().apply(copy, Report())
        own = [state for state in states if state.output in self.outputs[number] and self._is_made(state, number)]
        self._leave_states(graph, number, states, own)
        set_states(copy, own)
        return copy

    def _is_made(self, state: State, number: int) -> bool:
        return self.made_by.get(state.output, len(self.outputs) - 1) == number

    def _leave_states(self, graph: ir.Graph, number: int, states: Sequence[State], own: Sequence[State]) -> None:
        """Remove the inputs of other stages' states. A node that reads only the shape of one reads that of an own state
        of this shape instead."""
        kept = {state.input for state in own}
        others = {state.input for state in states} - kept
        alike = [value for value in graph.inputs if value.name in kept]
        for value in [value for value in graph.inputs if value.name in others]:
            for node, place in list(value.uses()):
                instead = next((own for own in alike if own.shape == value.shape), None)
                if not is_op(node, "Shape") or instead is None:
                    raise UnsupportedError(
                        f"stage {number} needs the state {value.name!r} of another stage, which {node_name(node)} "
                        "reads; divide the layers elsewhere (stages)"
                    )
                node.replace_input_with(place, instead)
            graph.inputs.remove(value)


def _leave_expected(graph: ir.Graph) -> None:
    """Remove the announcements of experts whose layer is in another stage: this one holds no weights of theirs."""
    for node in [node for node in graph if is_moec(node, "Expect")]:
        x, weights = (inputs_of(node)[name] for name in ("x", "weights"))
        assert x is not None and weights is not None
        if all(is_moec(user, "Expect") for user, _ in weights.uses()):
            replace_node(node, [x])


def _check_sent(value: ir.Value, reader: ir.Node) -> None:
    """Raise UnsupportedError for a value that cannot be sent from stage to stage."""
    is_known = value.dtype is not None and value.shape is not None
    if not is_known or any(not isinstance(size, int) and size.value is None for size in value.shape or ()):
        raise UnsupportedError(
            f"{value.name!r}, which {node_name(reader)} reads from an earlier stage, has no type and shape that is "
            "known before a run; divide the layers elsewhere (stages)"
        )
