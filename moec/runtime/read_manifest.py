"""Reading a manifest: every field's type is checked, and that its parts fit each other."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

from moec.common.dtypes import dtype_of
from moec.common.guards import Expression, bound_names, parse_guard, parse_size
from moec.common.specs import HeldState, LastTokens, State, StreamedExpertsSpec, StreamedWeight, TensorSpec
from moec.errors import ArtifactError
from moec.runtime.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    WEIGHT_ALIGNMENT,
    WEIGHTS,
    FileEntry,
    Manifest,
    ProgramEntry,
    ProjectEntry,
    TextEntry,
    WeightEntry,
    digest_of_content,
)

_NAME = re.compile(r"[\w.+-]+(?:/[\w.+-]+)*")


def parse_manifest(text: str | bytes, where: str) -> Manifest:
    """Read and check a manifest; ``where`` names the artifact in messages. Raises ArtifactError."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise ArtifactError(
            f"{where}: {MANIFEST} is not JSON (truncated or altered); compile the model again"
        ) from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{where}: artifact format version is {version!r}, but this moec reads version {FORMAT_VERSION}; "
            "compile the model again with this moec"
        )
    if content.pop("digest", None) != digest_of_content(content):
        raise ArtifactError(f"{where}: {MANIFEST} was altered (its digest differs); compile the model again")
    manifest = _read_fields(content, where)
    _check_guards(manifest, where)
    _check_states(manifest, where)
    _check_programs(manifest, where)
    _check_held(manifest, where)
    _check_last(manifest, where)
    _check_files(manifest, where)
    _check_weights(manifest, where)
    return manifest


def listed_files(text: bytes) -> dict[str, FileEntry] | None:
    """The files that a manifest of any format version lists; None where it is none of moec's, or was altered."""
    try:
        content = json.loads(text)
        digest, files = content.pop("digest"), content["files"]
        if digest != digest_of_content(content):
            return None
        return {name: FileEntry(one["bytes"], one["sha256"]) for name, one in files.items()}
    except (ValueError, RecursionError, AttributeError, TypeError, LookupError):
        return None


def is_inside_name(name: str) -> bool:
    """Whether a file name is relative, plain and cannot leave the folder it is joined to."""
    return _NAME.fullmatch(name) is not None and not {".", ".."} & set(name.split("/"))


def _read_fields(content: dict[str, Any], where: str) -> Manifest:
    def field(key: str, kind: type) -> Any:
        return _typed(content, key, kind, where)

    def records(key: str) -> list[dict[str, Any]]:
        return _list_of(content, key, dict, where)

    limits, sizes = field("input_limits", dict), field("input_sizes", dict)
    return Manifest(
        moec_version=field("moec_version", str),
        target=field("target", str),
        inputs=[_read_tensor(entry, f"{where}: inputs") for entry in records("inputs")],
        outputs=[_read_tensor(entry, f"{where}: outputs") for entry in records("outputs")],
        programs=[_read_program(entry, f"{where}: programs") for entry in records("programs")],
        weights=[_read_weight(entry, f"{where}: weights") for entry in records("weights")],
        files={name: _read_file(one, f"{where}: file {name!r}") for name, one in field("files", dict).items()},
        projects=[_read_project(entry, f"{where}: projects") for entry in records("projects")],
        threads=None if content.get("threads") is None else field("threads", int),
        resident=None if content.get("resident") is None else field("resident", int),
        input_limits={name: _typed(limits, name, int, where) for name in limits},
        input_sizes={name: _typed(sizes, name, str, where) for name in sizes},
        counted_inputs=_list_of(content, "counted_inputs", str, where),
        guards=_list_of(content, "guards", str, where),
        states=[_read_state(entry, f"{where}: states") for entry in records("states")],
        text=None if content.get("text") is None else _read_text(field("text", dict), f"{where}: text"),
        moe_blocks=records("moe_blocks"),
        stages=[_checked_stage(entry, f"{where}: stages") for entry in records("stages")],
        remarks=records("remarks"),
        losses=[_checked_loss(entry, f"{where}: losses") for entry in records("losses")],
        provenance=field("provenance", dict),
    )


def _read_program(record: dict[str, Any], where: str) -> ProgramEntry:
    return ProgramEntry(
        architecture=_typed(record, "architecture", str, where),
        objects=_list_of(record, "objects", str, where),
        weights=_list_of(record, "weights", int, where),
        requirements=_list_of(record, "requirements", str, where),
        binary=None if record.get("binary") is None else _typed(record, "binary", str, where),
        held=[_read_held(entry, f"{where}: held") for entry in _list_of(record, "held", dict, where)],
        streamed=[_read_streamed(entry, f"{where}: streamed") for entry in _list_of(record, "streamed", dict, where)],
        last=None if record.get("last") is None else _read_last(_typed(record, "last", dict, where), f"{where}: last"),
        kernels=[_checked_kernel(entry, f"{where}: kernels") for entry in _list_of(record, "kernels", dict, where)],
    )


def _read_last(record: dict[str, Any], where: str) -> LastTokens:
    return LastTokens(_typed(record, "output", str, where), _typed(record, "input", str, where))


def _read_held(record: dict[str, Any], where: str) -> HeldState:
    kinds = {"input": str, "output": str, "axis": int, "dtype": str, "growth": str, "store": str, "restore": str}
    kinds |= {"at_places": bool}
    fields = {key: _typed(record, key, kind, where) for key, kind in kinds.items()}
    dtype_of(fields["dtype"])
    return HeldState(**fields)


def _read_streamed(record: dict[str, Any], where: str) -> StreamedExpertsSpec:
    name, shares = _typed(record, "name", str, where), _typed(record, "shares", list, where)
    weights = [
        StreamedWeight(_typed(one, "weight", int, where), tuple(_list_of(one, "starts", int, where)))
        for one in _list_of(record, "weights", dict, where)
    ]
    chosen, experts = _typed(record, "chosen", int, where), _typed(record, "experts", int, where)
    replaceable = _typed(record, "replaceable", bool, where)
    found = StreamedExpertsSpec(name, chosen, experts, tuple(weights), tuple(shares), replaceable)
    lies = [len(one.starts) == experts + 1 and list(one.starts) == sorted(one.starts) >= [0] for one in weights]
    if not all(lies) or experts < 1:
        raise ArtifactError(f"{where}: {name!r} has weights whose experts lie at no increasing places")
    if not 0 <= chosen <= experts:
        raise ArtifactError(f"{where}: {name!r} has {experts} experts, of which {chosen} cannot be chosen")
    if len(shares) not in (0, experts) or not all(isinstance(share, float) for share in shares):
        raise ArtifactError(f"{where}: {name!r} has shares {shares[:5]}; expected one of each of {experts} experts")
    return found


def _read_project(record: dict[str, Any], where: str) -> ProjectEntry:
    name, folder = _typed(record, "name", str, where), _typed(record, "folder", str, where)
    if not is_inside_name(folder):
        raise ArtifactError(f"{where}: folder {folder!r} could leave the artifact's folder")
    return ProjectEntry(name, folder, _typed(record, "report", dict, where))


def _read_tensor(record: dict[str, Any], where: str) -> TensorSpec:
    name, dtype = _typed(record, "name", str, where), _typed(record, "dtype", str, where)
    dtype_of(dtype)
    shape = _typed(record, "shape", list, where)
    if not all(isinstance(size, str) or _is_size(size) for size in shape):
        raise ArtifactError(f"{where}: {name!r} has shape {shape}; expected sizes and names of dynamic sizes")
    return TensorSpec(name, dtype, tuple(shape))


def _read_state(record: dict[str, Any], where: str) -> State:
    axis = None if record.get("axis") is None else _typed(record, "axis", int, where)
    return State(_typed(record, "input", str, where), _typed(record, "output", str, where), axis)


def _read_text(record: dict[str, Any], where: str) -> TextEntry:
    tokens = _typed(record, "special_tokens", dict, where)
    return TextEntry(
        tokenizer=_typed(record, "tokenizer", str, where),
        chat_template=None if record.get("chat_template") is None else _typed(record, "chat_template", str, where),
        end_ids=_list_of(record, "end_ids", int, where),
        special_tokens={name: _typed(tokens, name, str, where) for name in tokens},
        checked_by=_optional(record, "checked_by", str, where),
    )


def _read_weight(record: dict[str, Any], where: str) -> WeightEntry:
    name, dtype = _typed(record, "name", str, where), _typed(record, "dtype", str, where)
    shape = _typed(record, "shape", list, where)
    offset, size = _typed(record, "offset", int, where), _typed(record, "bytes", int, where)
    if not all(_is_size(number) for number in (*shape, offset, size)):
        raise ArtifactError(f"{where}: {name!r} has a negative or non-integer size")
    if math.prod(shape) * dtype_of(dtype).itemsize != size:
        raise ArtifactError(f"{where}: {name!r} is {dtype}{shape}, which is not {size} bytes")
    if offset % WEIGHT_ALIGNMENT:
        raise ArtifactError(f"{where}: {name!r} starts at {offset}, not a multiple of {WEIGHT_ALIGNMENT}")
    return WeightEntry(name, dtype, tuple(shape), offset, size)


def _read_file(record: Any, where: str) -> FileEntry:
    size = _typed(record, "bytes", int, where)
    if not _is_size(size):
        raise ArtifactError(f"{where}: {size} bytes is not a size")
    return FileEntry(size, _typed(record, "sha256", str, where))


def _checked_kernel(record: dict[str, Any], where: str) -> dict[str, Any]:
    for key in ("name", "op", "computes"):
        _typed(record, key, str, where)
    for key, kind in {"nodes": list, "attributes": dict, "sources": dict, "sizes": dict}.items():
        _typed(record, key, kind, where)
    if not _is_size(_typed(record, "calls", int, where)):
        raise ArtifactError(f"{where}: {record['calls']} calls are no number of them")
    for name in record["sources"]:
        _typed(record["sources"], name, str, where)
    _list_of(record, "nodes", str, where)
    _list_of(record, "candidates", dict, where)
    for parameter in _list_of(record, "parameters", dict, where):
        for key, kind in {"name": str, "dtype": str, "shape": list}.items():
            _typed(parameter, key, kind, where)
    for launch in _list_of(record, "launches", dict, where):
        _check_launch(launch, where)
    for key in ("work", "plan"):
        _optional(record, key, dict, where)
    return record


def _check_launch(record: dict[str, Any], where: str) -> None:
    kinds = {"function": str, "shared_bytes": str, "static_shared_bytes": int, "cluster": int, "begins_early": bool}
    for key, kind in kinds.items():
        _typed(record, key, kind, where)
    for key in ("arguments", "grid", "block"):
        _list_of(record, key, str, where)
    for tensor_map in _list_of(record, "tensor_maps", dict, where):
        for key, kind in {"name": str, "tensor": str, "dtype": str, "rank": int}.items():
            _typed(tensor_map, key, kind, where)
        _list_of(tensor_map, "numbers", str, where)
    condition = _optional(record, "only_if", dict, where)
    if condition is not None:
        _typed(condition, "size", str, where)
        sizes = _typed(condition, "sizes", dict, where)
        _typed(sizes, "least", int, where)
        _optional(sizes, "most", int, where)
    _optional(record, "registers", int, where)


def _checked_stage(record: dict[str, Any], where: str) -> dict[str, Any]:
    for key, kind in {"name": str, "changed": bool, "file": str}.items():
        _typed(record, key, kind, where)
    return record


def _checked_loss(record: dict[str, Any], where: str) -> dict[str, Any]:
    for key in ("pass_name", "layer", "arithmetic"):
        _typed(record, key, str, where)
    for name in _typed(record, "formats", dict, where):
        _list_of(record["formats"], name, str, where)
    for key in ("weight_error", "output_error"):
        _typed(record, key, float, where)
    return record


def _check_guards(manifest: Manifest, where: str) -> None:
    bound = bound_names([spec.shape for spec in manifest.inputs])
    for text in manifest.guards:
        try:
            unbound = set(parse_guard(text).names) - bound
        except ValueError as error:
            raise ArtifactError(f"{where}: guard {text[:80]!r} cannot be read: {error}") from error
        if unbound:
            raise ArtifactError(
                f"{where}: guard {text[:80]!r} is about {sorted(unbound)[0]!r}, which is no input's size"
            )


def _check_states(manifest: Manifest, where: str) -> None:
    inputs, outputs = ({spec.name: spec for spec in specs} for specs in (manifest.inputs, manifest.outputs))
    for state in manifest.states:
        given, kept = inputs.get(state.input), outputs.get(state.output)
        if given is None or kept is None:
            raise ArtifactError(f"{where}: state {state} names no input and output of the model")
        if given.dtype != kept.dtype or len(given.shape) != len(kept.shape):
            raise ArtifactError(f"{where}: state {state} cannot be given back: it is {kept}, and the input {given}")
        if state.axis is not None and not 0 <= state.axis < len(given.shape):
            raise ArtifactError(f"{where}: state {state} has no such axis: it is {given}")
    for names in ([state.input for state in manifest.states], [state.output for state in manifest.states]):
        if len(set(names)) != len(names):
            raise ArtifactError(f"{where}: two states have one input or output: {', '.join(names)}")


def _check_programs(manifest: Manifest, where: str) -> None:
    architectures = [program.architecture for program in manifest.programs]
    if not (architectures or manifest.projects) or len(set(architectures)) != len(architectures):
        raise ArtifactError(f"{where}: its programs are for {architectures}; expected at least one, all different")
    for program in manifest.programs:
        strays = [index for index in program.weights if not 0 <= index < len(manifest.weights)]
        if strays:
            raise ArtifactError(f"{where}: a program takes weight {strays[0]} of {len(manifest.weights)}")
        _check_streamed(manifest, program, where)


def _check_streamed(manifest: Manifest, program: ProgramEntry, where: str) -> None:
    for layer in program.streamed:
        for part in layer.weights:
            known = 0 <= part.weight < len(program.weights)
            if not known or part.starts[-1] > manifest.weights[program.weights[part.weight]].bytes:
                raise ArtifactError(f"{where}: {layer.name!r} streams more than weight {part.weight} has")


def _check_held(manifest: Manifest, where: str) -> None:
    inputs, outputs = {spec.name: spec for spec in manifest.inputs}, {spec.name for spec in manifest.outputs}
    bound = bound_names([spec.shape for spec in manifest.inputs])
    for program in manifest.programs:
        twice = [name for name, count in Counter(state.input for state in program.held).items() if count > 1]
        if twice:
            raise ArtifactError(f"{where}: it holds the state {twice[0]!r} twice")
    for state in (state for program in manifest.programs for state in program.held):
        spec = inputs.get(state.input)
        if spec is None or state.output not in outputs or not 0 <= state.axis < len(spec.shape):
            raise ArtifactError(f"{where}: it holds a state from {state.input!r} to {state.output!r}, which it has not")
        is_matrix = state.axis == len(spec.shape) - 2 and isinstance(spec.shape[-1], int)
        if (state.dtype == "int8" and not is_matrix) or bool(state.store) != bool(state.restore):
            raise ArtifactError(f"{where}: the state {state.input!r} cannot be stored as it says")
        growth, size = _growth(state, where), spec.shape[state.axis]
        if not set(growth.names) <= bound or not (isinstance(size, str) or state.has_room):
            raise ArtifactError(f"{where}: the state {state.input!r} grows by {state.growth!r}, which no input says")


def _check_last(manifest: Manifest, where: str) -> None:
    inputs, outputs = ({spec.name: spec for spec in specs} for specs in (manifest.inputs, manifest.outputs))
    for last in (program.last for program in manifest.programs if program.last is not None):
        tokens, logits = inputs.get(last.input), outputs.get(last.output)
        if tokens is None or logits is None or len(tokens.shape) < 2 or tokens.shape[1:2] != logits.shape[1:2]:
            raise ArtifactError(f"{where}: {last.output!r} is said to have a position for each token of {last.input!r}")


def _growth(state: HeldState, where: str) -> Expression[int]:
    try:
        return parse_size(state.growth)
    except ValueError as error:
        raise ArtifactError(f"{where}: growth {state.growth[:80]!r} cannot be read: {error}") from error


def _check_files(manifest: Manifest, where: str) -> None:
    for name in manifest.files:
        if not is_inside_name(name):
            raise ArtifactError(f"{where}: file name {name!r} could leave the artifact's folder")
    programs = manifest.programs
    sources = [path for program in programs for kernel in program.kernels for path in kernel["sources"].values()]
    code = [name for program in programs for name in (*program.objects, program.binary) if name is not None]
    stages = [stage["file"] for stage in manifest.stages]
    text = manifest.text
    texts = [name for name in (text.tokenizer, text.chat_template) if name is not None] if text is not None else []
    for name in (*code, *sources, *stages, *texts, WEIGHTS):
        if name not in manifest.files:
            raise ArtifactError(f"{where}: {name!r} is used but not listed among the files")


def _check_weights(manifest: Manifest, where: str) -> None:
    available = manifest.files[WEIGHTS].bytes
    for weight in manifest.weights:
        if weight.offset + weight.bytes > available:
            raise ArtifactError(
                f"{where}: weight {weight.name!r} ends at byte {weight.offset + weight.bytes} of {WEIGHTS}, which has "
                f"{available}"
            )


def _typed(record: Any, key: str, kind: type, where: str) -> Any:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind):
        raise ArtifactError(f"{where}: {MANIFEST} field {key!r} is missing or not of type {kind.__name__}")
    return value


def _optional(record: dict[str, Any], key: str, kind: type, where: str) -> Any:
    """The same, or None, which the record says."""
    return None if key in record and record[key] is None else _typed(record, key, kind, where)


def _list_of(record: dict[str, Any], key: str, kind: type, where: str) -> list[Any]:
    values = _typed(record, key, list, where)
    if not all(isinstance(value, kind) for value in values):
        raise ArtifactError(f"{where}: {MANIFEST} field {key!r} holds something that is not a {kind.__name__}")
    return values


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
