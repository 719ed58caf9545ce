"""Reader of manifests: it checks every field's type, and that the parts fit each other."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

from moec.common.dtypes import dtype_of
from moec.common.errors import ArtifactError
from moec.common.guards import Expression, bound_names, parse_guard, parse_size
from moec.common.specs import HeldState, LastTokens, State, StreamedExpertsSpec, StreamedWeight, TensorSpec
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
from moec.runtime.read_records import (
    checked_block,
    checked_kernel,
    checked_loss,
    checked_remark,
    checked_stage,
    is_size,
    list_of,
    optional,
    typed,
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
    """List the files of a manifest of any format version. Returns None where moec did not write it, or it was
    altered."""
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
        return typed(content, key, kind, where)

    def records(key: str) -> list[dict[str, Any]]:
        return list_of(content, key, dict, where)

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
        input_limits={name: typed(limits, name, int, where) for name in limits},
        input_sizes={name: typed(sizes, name, str, where) for name in sizes},
        counted_inputs=list_of(content, "counted_inputs", str, where),
        guards=list_of(content, "guards", str, where),
        states=[_read_state(entry, f"{where}: states") for entry in records("states")],
        text=None if content.get("text") is None else _read_text(field("text", dict), f"{where}: text"),
        moe_blocks=[checked_block(entry, f"{where}: moe_blocks") for entry in records("moe_blocks")],
        stages=[checked_stage(entry, f"{where}: stages") for entry in records("stages")],
        remarks=[checked_remark(entry, f"{where}: remarks") for entry in records("remarks")],
        losses=[checked_loss(entry, f"{where}: losses") for entry in records("losses")],
        provenance=field("provenance", dict),
    )


def _read_program(record: dict[str, Any], where: str) -> ProgramEntry:
    return ProgramEntry(
        architecture=typed(record, "architecture", str, where),
        objects=list_of(record, "objects", str, where),
        weights=list_of(record, "weights", int, where),
        requirements=list_of(record, "requirements", str, where),
        binary=None if record.get("binary") is None else typed(record, "binary", str, where),
        held=[_read_held(entry, f"{where}: held") for entry in list_of(record, "held", dict, where)],
        streamed=[_read_streamed(entry, f"{where}: streamed") for entry in list_of(record, "streamed", dict, where)],
        last=None if record.get("last") is None else _read_last(typed(record, "last", dict, where), f"{where}: last"),
        kernels=[checked_kernel(entry, f"{where}: kernels") for entry in list_of(record, "kernels", dict, where)],
    )


def _read_last(record: dict[str, Any], where: str) -> LastTokens:
    return LastTokens(typed(record, "output", str, where), typed(record, "input", str, where))


def _read_held(record: dict[str, Any], where: str) -> HeldState:
    kinds = {"input": str, "output": str, "axis": int, "dtype": str, "growth": str, "store": str, "restore": str}
    kinds |= {"at_places": bool}
    fields = {key: typed(record, key, kind, where) for key, kind in kinds.items()}
    dtype_of(fields["dtype"])
    return HeldState(**fields)


def _read_streamed(record: dict[str, Any], where: str) -> StreamedExpertsSpec:
    name, shares = typed(record, "name", str, where), typed(record, "shares", list, where)
    weights = [
        StreamedWeight(typed(one, "weight", int, where), tuple(list_of(one, "starts", int, where)))
        for one in list_of(record, "weights", dict, where)
    ]
    chosen, experts = typed(record, "chosen", int, where), typed(record, "experts", int, where)
    replaceable = typed(record, "replaceable", bool, where)
    spec = StreamedExpertsSpec(name, chosen, experts, tuple(weights), tuple(shares), replaceable)
    lies = [len(one.starts) == experts + 1 and list(one.starts) == sorted(one.starts) >= [0] for one in weights]
    if not all(lies) or experts < 1:
        raise ArtifactError(f"{where}: {name!r} has weights whose experts lie at no increasing places")
    if not 0 <= chosen <= experts:
        raise ArtifactError(f"{where}: {name!r} has {experts} experts, of which {chosen} cannot be chosen")
    if len(shares) not in (0, experts) or not all(isinstance(share, float) for share in shares):
        raise ArtifactError(f"{where}: {name!r} has shares {shares[:5]}; expected one of each of {experts} experts")
    return spec


def _read_project(record: dict[str, Any], where: str) -> ProjectEntry:
    name, folder = typed(record, "name", str, where), typed(record, "folder", str, where)
    if not is_inside_name(folder):
        raise ArtifactError(f"{where}: folder {folder!r} could leave the artifact's folder")
    return ProjectEntry(name, folder, typed(record, "report", dict, where))


def _read_tensor(record: dict[str, Any], where: str) -> TensorSpec:
    name, dtype = typed(record, "name", str, where), typed(record, "dtype", str, where)
    dtype_of(dtype)
    shape = typed(record, "shape", list, where)
    if not all(isinstance(size, str) or is_size(size) for size in shape):
        raise ArtifactError(f"{where}: {name!r} has shape {shape}; expected sizes and names of dynamic sizes")
    return TensorSpec(name, dtype, tuple(shape))


def _read_state(record: dict[str, Any], where: str) -> State:
    axis = None if record.get("axis") is None else typed(record, "axis", int, where)
    return State(typed(record, "input", str, where), typed(record, "output", str, where), axis)


def _read_text(record: dict[str, Any], where: str) -> TextEntry:
    tokens = typed(record, "special_tokens", dict, where)
    return TextEntry(
        tokenizer=typed(record, "tokenizer", str, where),
        chat_template=None if record.get("chat_template") is None else typed(record, "chat_template", str, where),
        end_ids=list_of(record, "end_ids", int, where),
        special_tokens={name: typed(tokens, name, str, where) for name in tokens},
        checked_by=optional(record, "checked_by", str, where),
    )


def _read_weight(record: dict[str, Any], where: str) -> WeightEntry:
    name, dtype = typed(record, "name", str, where), typed(record, "dtype", str, where)
    shape = typed(record, "shape", list, where)
    offset, size = typed(record, "offset", int, where), typed(record, "bytes", int, where)
    if not all(is_size(number) for number in (*shape, offset, size)):
        raise ArtifactError(f"{where}: {name!r} has a negative or non-integer size")
    if math.prod(shape) * dtype_of(dtype).itemsize != size:
        raise ArtifactError(f"{where}: {name!r} is {dtype}{shape}, which is not {size} bytes")
    if offset % WEIGHT_ALIGNMENT:
        raise ArtifactError(f"{where}: {name!r} starts at {offset}, not a multiple of {WEIGHT_ALIGNMENT}")
    return WeightEntry(name, dtype, tuple(shape), offset, size)


def _read_file(record: Any, where: str) -> FileEntry:
    size = typed(record, "bytes", int, where)
    if not is_size(size):
        raise ArtifactError(f"{where}: {size} bytes is not a size")
    return FileEntry(size, typed(record, "sha256", str, where))


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
        taken, kept = inputs.get(state.input), outputs.get(state.output)
        if taken is None or kept is None:
            raise ArtifactError(f"{where}: state {state} names no input and output of the model")
        if taken.dtype != kept.dtype or len(taken.shape) != len(kept.shape):
            raise ArtifactError(f"{where}: state {state} cannot be given back: it is {kept}, and the input {taken}")
        if state.axis is not None and not 0 <= state.axis < len(taken.shape):
            raise ArtifactError(f"{where}: state {state} has no such axis: it is {taken}")
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
            is_listed = 0 <= part.weight < len(program.weights)
            if not is_listed or part.starts[-1] > manifest.weights[program.weights[part.weight]].bytes:
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
