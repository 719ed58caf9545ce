"""The tables by which the runtime knows a program: inputs, outputs, named sizes, guards, weights and states."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from moec.artifacts.c_form.expressions import c_string, guard_in_c, size_in_c
from moec.common.errors import InputError
from moec.common.guards import parse_guard, parse_size, size_names
from moec.common.specs import HeldState, LastTokens, TensorSpec
from moec.runtime.interface import Interface
from moec.runtime.machine import linux_feature
from moec.runtime.manifest import WeightEntry
from moec.runtime.roles import Role, Roles, roles_of, room_of

_ROLES: dict[Role, str] = {
    "mask": "MOEC_MASK",
    "positions": "MOEC_POSITIONS",
    "past": "MOEC_PAST",
    "total": "MOEC_TOTAL",
}


@dataclasses.dataclass(frozen=True)
class ProgramFacts:
    """Facts about a program for its tables. ``weight_bytes``, ``weight_stamp``: of ``weights.bin``; ``features``: of
    the processor, in LLVM's names."""

    name: str
    version: str
    interface: Interface
    weights: Sequence[WeightEntry]
    weight_bytes: int
    weight_stamp: int
    threads: int | None
    held: Sequence[HeldState]
    lengths: Sequence[tuple[int, int]]
    last: LastTokens | None
    features: Sequence[str]


def tables(facts: ProgramFacts) -> str:
    """All tables; the last is the program itself, ``<name>_program``."""
    return "\n\n".join(part for part in _Tables(facts).parts() if part)


class _Tables:
    def __init__(self, facts: ProgramFacts) -> None:
        self._facts, interface = facts, facts.interface
        self._inputs = [spec.name for spec in interface.inputs]
        self._outputs = [spec.name for spec in interface.outputs]
        texts = dict.fromkeys(size for spec in interface.inputs for size in spec.shape if isinstance(size, str))
        computed = [text for text in texts if size_names(text) not in ((), (text,))]
        plain = [text for text in texts if text not in computed]
        operands = [name for text in computed for name in size_names(text)]
        self._names = {text: at for at, text in enumerate(dict.fromkeys([*plain, *operands, *computed]))}
        self._computed = computed

    def parts(self) -> Iterable[str]:
        facts = self._facts
        yield self._specs("input", facts.interface.inputs)
        yield self._specs("output", facts.interface.outputs)
        yield self._sizes()
        yield self._guards()
        yield self._weights()
        yield self._held()
        yield self._session()
        yield self._program()

    def _specs(self, kind: str, specs: Sequence[TensorSpec]) -> str:
        lines, rows = [], []
        for at, spec in enumerate(specs):
            numbers = [size if isinstance(size, int) else -1 for size in spec.shape]
            names = ["NULL" if isinstance(size, int) else c_string(size) for size in spec.shape]
            lines.append(f"static const int64_t {kind}_{at}_sizes[] = {{{_list(numbers)}}};")
            lines.append(f"static const char *const {kind}_{at}_size_names[] = {{{_list(names, 'NULL')}}};")
            if kind == "input":
                places = [-1 if isinstance(size, int) else self._names[size] for size in spec.shape]
                lines.append(f"static const int32_t input_{at}_named[] = {{{_list(places)}}};")
            rows.append(
                f"    {{{c_string(spec.name)}, MOEC_{spec.dtype.upper()}, {len(spec.shape)}, {kind}_{at}_sizes, "
                f"{kind}_{at}_size_names}},"
            )
        named = (
            f"static const int32_t *const input_named[] = {{{_list(f'input_{at}_named' for at in range(len(specs)))}}};"
        )
        lines += [f"static const moec_spec {kind}s[] = {{", *(rows or ["    {0},"]), "};"]
        return "\n".join([*lines, *([named] if kind == "input" else [])])

    def _sizes(self) -> str:
        lines, rows = [], []
        for text, at in self._names.items():
            if text not in self._computed:
                rows.append(f"    {{{c_string(text)}, NULL, 0, NULL}},")
                continue
            operands = [self._names[name] for name in size_names(text)]
            lines.append(self._size_function(f"size_{at}", text))
            lines.append(f"static const int32_t size_{at}_operands[] = {{{_list(operands)}}};")
            rows.append(f"    {{{c_string(text)}, size_{at}, {len(operands)}, size_{at}_operands}},")
        return "\n".join([*lines, "static const moec_size sizes[] = {", *(rows or ["    {0},"]), "};"])

    def _size_function(self, name: str, text: str) -> str:
        body = size_in_c(text, self._names)
        return f"static int64_t {name}(const int64_t *s, bool *by_zero) {{ (void)s, (void)by_zero; return {body}; }}"

    def _guards(self) -> str:
        functions, rows = [], []
        for at, text in enumerate(self._facts.interface.guards):
            parse_guard(text)
            body = guard_in_c(text, self._names)
            functions.append(
                f"static bool guard_{at}(const int64_t *s, bool *by_zero) {{ (void)by_zero; return {body}; }}"
            )
            rows.append(f"    {{{c_string(text)}, guard_{at}}},")
        return "\n".join([*functions, "static const moec_guard guards[] = {", *(rows or ["    {0},"]), "};"])

    def _weights(self) -> str:
        lines, rows = [], []
        for at, weight in enumerate(self._facts.weights):
            sizes = "NULL"
            if weight.shape:
                sizes = f"weight_{at}_sizes"
                lines.append(f"static const int64_t {sizes}[] = {{{_list(weight.shape)}}};")
            view = f"MOEC_VIEW_OF({weight.dtype}, NULL, {len(weight.shape)}, {sizes})"
            rows.append(f"    {{{c_string(weight.name)}, {view}, {weight.offset}, {weight.bytes}}},")
        return "\n".join([*lines, "static const moec_weight weights[] = {", *(rows or ["    {0},"]), "};"])

    def _held(self) -> str:
        lines, rows = [], []
        for at, state in enumerate(self._facts.held):
            parse_size(state.growth)
            lines.append(self._size_function(f"growth_{at}", state.growth))
            kernels = [f"__tvm_ffi_{name}" if name else "NULL" for name in (state.store, state.restore)]
            fields = [
                *(self._inputs.index(state.input), self._outputs.index(state.output), state.axis),
                *(f"MOEC_{state.dtype.upper()}", f"growth_{at}", *kernels),
                *(_flag(state.at_places), _flag(state.has_room)),
            ]
            rows.append(f"    {{{_list(fields)}}},")
        lengths = [f"{{{at}, {axis}}}" for at, axis in self._facts.lengths]
        return "\n".join(
            [
                *lines,
                *("static const moec_held held[] = {", *(rows or ["    {0},"]), "};"),
                f"static const int32_t lengths[][2] = {{{_list(lengths, '{0}')}}};",
            ]
        )

    def _session(self) -> str:
        try:
            roles = roles_of(self._facts.interface)
            states, batch_sizes = self._states(roles), self._batch_sizes(roles)
            if roles.asked:
                listed = ", ".join(map(str, roles.asked))
                raise InputError(f"nothing tells what these inputs are: {listed}; use moec_run instead")
        except InputError as error:
            return f"static const moec_session_spec session = {{.obstacle = {c_string(str(error))}}};"
        filled = [f"{{{self._inputs.index(name)}, {_ROLES[role]}}}" for name, (role, _) in roles.filled.items()]
        ids, logits = self._inputs.index(roles.ids.name), self._outputs.index(roles.logits.name)
        counts = _flag(roles.mask in self._facts.interface.counted)
        return "\n".join(
            [
                f"static const moec_filled filled[] = {{{_list(filled, '{0}')}}};",
                f"static const moec_state states[] = {{{_list(states, '{0}')}}};",
                f"static const int32_t batch_sizes[] = {{{_list(batch_sizes)}}};",
                "static const moec_session_spec session = {",
                f"    .ids = {ids}, .logits = {logits}, .limit = {roles.limit or 0}, .counts_mask = {counts},",
                f"    .filled_count = {len(filled)}, .filled = filled, .state_count = {len(states)}, .states = states,",
                f"    .batch_size_count = {len(batch_sizes)}, .batch_sizes = batch_sizes,",
                "};",
            ]
        )

    def _states(self, roles: Roles) -> list[str]:
        interface = self._facts.interface
        inputs, outputs = ({spec.name: spec for spec in specs} for specs in (interface.inputs, interface.outputs))
        places = {state.input: at for at, state in enumerate(self._facts.held)}
        if not places.keys() <= {state.input for state in interface.states}:
            places = {}  # the program holds some that each run is given
        batch_names = {text for text, at in self._names.items() if at in self._batch_sizes(roles)}
        rows = []
        for state in interface.states:
            spec, axis = inputs[state.input], state.axis
            free = [size for place, size in enumerate(spec.shape) if place != axis and isinstance(size, str)]
            own = {spec.shape[0]} if axis != 0 and isinstance(spec.shape[0], str) else set()
            unknown = [size for size in free if not set(size_names(size)) <= batch_names | own]
            if unknown:
                raise InputError(f"state {spec}: nothing tells how large its size {unknown[0]!r} is")
            has_room = room_of(axis, spec, outputs[state.output]) is not None
            fields = [self._inputs.index(state.input), self._outputs.index(state.output), -1 if axis is None else axis]
            rows.append(f"{{{_list([*fields, places.get(state.input, -1), _flag(has_room)])}}}")
        return rows

    def _batch_sizes(self, roles: Roles) -> list[int]:
        batch = roles.ids.shape[0]
        if isinstance(batch, int):
            return []
        sums = self._facts.interface.sizes
        same = [batch, *(name for name, total in sums.items() if total == batch)]
        return [self._names[name] for name in same if name in self._names]

    def _program(self) -> str:
        facts = self._facts
        last = -1 if facts.last is None else self._inputs.index(facts.last.input)
        features = [c_string(linux_feature(feature)) for feature in facts.features]
        counts = {
            "input": len(self._inputs),
            "output": len(self._outputs),
            "size": len(self._names),
            "guard": len(facts.interface.guards),
            "weight": len(facts.weights),
            "held": len(facts.held),
            "length": len(facts.lengths),
            "feature": len(features),
        }
        lines = [
            f"static const char *const features[] = {{{_list(features, 'NULL')}}};\n",
            f'__attribute__((visibility("default"))) const moec_program {facts.name}_program = {{',
            f"    .abi = MOEC_ABI, .threads = {facts.threads or 0},",
            f"    .name = {c_string(facts.name)}, .version = {c_string(facts.version)},",
            *(f"    .{name}_count = {count}," for name, count in counts.items()),
            "    .inputs = inputs, .outputs = outputs, .input_sizes = input_named, .sizes = sizes, .guards = guards,",
            "    .weights = weights, .held = held, .lengths = lengths,",
            f"    .last_input = {last}, .weight_bytes = {facts.weight_bytes}, .features = features,",
            f"    .weight_stamp = UINT64_C({facts.weight_stamp}),",
            "    .session = &session, .run = run,",
            "};",
        ]
        return "\n".join(lines)


def _list(items: Iterable[object], nothing: str = "0") -> str:
    return ", ".join(map(str, items)) or nothing


def _flag(value: bool) -> str:
    return "true" if value else "false"
