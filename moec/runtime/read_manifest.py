"""Reader of manifests: fields have their types, by :mod:`moec.common.records`, and the parts fit each other."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from moec.common.dtypes import dtype_of
from moec.common.errors import ArtifactError
from moec.common.guards import Expression, bound_names, parse_guard, parse_size
from moec.common.plain_files import parse_json
from moec.common.records import read_record
from moec.common.specs import HIDDEN, PREVIOUS_HIDDEN, HeldState, StreamedExpertsSpec, TensorSpec
from moec.runtime.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    WEIGHT_ALIGNMENT,
    WEIGHTS,
    FileEntry,
    Manifest,
    MtpEntry,
    ProgramEntry,
    all_programs,
    digest_of_content,
)

_NAME = re.compile(r"[\w.+-]+(?:/[\w.+-]+)*")


def parse_manifest(text: str | bytes, where: str) -> Manifest:
    """Read and check a manifest; ``where`` names the artifact in messages. Raises ArtifactError."""
    try:
        content = parse_json(text)
    except ValueError as reason:
        raise ArtifactError(
            f"{where}: {MANIFEST} was truncated or altered, because it is not JSON: {reason}; compile the model again"
        ) from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{where}: artifact format version is {version!r}, but this moec reads version {FORMAT_VERSION}; "
            "compile the model again with this moec"
        )
    if content.pop("digest", None) != digest_of_content(content):
        raise ArtifactError(f"{where}: {MANIFEST} was altered (its digest differs); compile the model again")
    del content["format_version"]
    manifest = read_record(Manifest, content, f"{where}: {MANIFEST}", "compile the model again", ArtifactError)
    for part in (manifest, manifest.mtp):
        if part is not None:
            _check_guards(part, where)
            _check_states(part, where)
    _check_mtp(manifest, where)
    _check_programs(manifest, where)
    _check_held(manifest, where)
    _check_last(manifest, where)
    _check_files(manifest, where)
    _check_pipeline(manifest, where)
    _check_weights(manifest, where)
    return manifest


def listed_files(text: bytes) -> dict[str, FileEntry] | None:
    """List the files of a manifest of any format version. Returns None where moec did not write it, or it was
    altered."""
    try:
        content = parse_json(text)
        digest, files = content.pop("digest"), content["files"]
        if digest != digest_of_content(content):
            return None
        return {name: FileEntry(entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (ValueError, AttributeError, TypeError, LookupError):
        return None


def is_inside_name(name: str) -> bool:
    """Whether a file name is relative, plain and cannot leave the folder it is joined to."""
    return _NAME.fullmatch(name) is not None and not {".", ".."} & set(name.split("/"))


def _check_guards(manifest: Manifest | MtpEntry, where: str) -> None:
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


def _check_states(manifest: Manifest | MtpEntry, where: str) -> None:
    inputs, outputs = ({spec.name: spec for spec in specs} for specs in (manifest.inputs, manifest.outputs))
    for state in manifest.states:
        taken, kept = inputs.get(state.input), outputs.get(state.output)
        if taken is None or kept is None:
            raise ArtifactError(f"{where}: state {state} names no input and output of the model")
        if taken.dtype != kept.dtype or len(taken.shape) != len(kept.shape):
            raise ArtifactError(f"{where}: state {state} cannot be given back: it is {kept}, and the input {taken}")
        if state.axis is not None and not 0 <= state.axis < len(taken.shape):
            raise ArtifactError(f"{where}: state {state} has no such axis: it is {taken}")
    replaced = {state.input for state in manifest.states if state.axis is None}
    if isinstance(manifest, Manifest) and not set(manifest.stepwise_states) <= replaced:
        raise ArtifactError(f"{where}: stepwise states are {manifest.stepwise_states}; each run replaces {replaced}")
    for names in ([state.input for state in manifest.states], [state.output for state in manifest.states]):
        if len(set(names)) != len(names):
            raise ArtifactError(f"{where}: two states have one input or output: {', '.join(names)}")


def _check_mtp(manifest: Manifest, where: str) -> None:
    """Check that the MTP layer takes hidden states as the model and the layer itself return them."""
    if manifest.mtp is None:
        return
    taken = [spec for spec in manifest.mtp.inputs if spec.name == PREVIOUS_HIDDEN]
    for outputs in (manifest.outputs, manifest.mtp.outputs):
        returned = [spec for spec in outputs if spec.name == HIDDEN]
        kinds = [[(spec.dtype, len(spec.shape), spec.shape[-1:]) for spec in specs] for specs in (taken, returned)]
        if len(taken) != 1 or kinds[0] != kinds[1]:
            names = [", ".join(map(str, specs)) or "nothing" for specs in (taken, returned)]
            raise ArtifactError(f"{where}: the MTP layer takes {names[0]} and gets {names[1]}; compile the model again")


def _check_programs(manifest: Manifest, where: str) -> None:
    architectures = [program.architecture for program in manifest.programs]
    if not (architectures or manifest.projects) or len(set(architectures)) != len(architectures):
        raise ArtifactError(f"{where}: its programs are for {architectures}; expected at least one, all different")
    for program, _, _ in all_programs(manifest):
        strays = [index for index in program.weights if not 0 <= index < len(manifest.weights)]
        if strays:
            raise ArtifactError(f"{where}: a program takes weight {strays[0]} of {len(manifest.weights)}")
        _check_streamed(manifest, program, where)


def _check_streamed(manifest: Manifest, program: ProgramEntry, where: str) -> None:
    by_expert = {part.weight for layer in program.streamed for part in layer.weights}
    for at in program.tables:
        shape = manifest.weights[program.weights[at]].shape if 0 <= at < len(program.weights) else ()
        if not math.prod(shape[:1]) or not shape or at in by_expert or program.tables.count(at) > 1:
            raise ArtifactError(f"{where}: weight {at} of a program is no table that is read by rows alone")
    for layer in program.streamed:
        _check_experts(layer, where)
        for part in layer.weights:
            is_listed = 0 <= part.weight < len(program.weights)
            if not is_listed or part.starts[-1] > manifest.weights[program.weights[part.weight]].bytes:
                raise ArtifactError(f"{where}: {layer.name!r} streams more than weight {part.weight} has")


def _check_experts(layer: StreamedExpertsSpec, where: str) -> None:
    experts, shares = layer.experts, layer.shares
    lies = [len(part.starts) == experts + 1 and list(part.starts) == sorted(part.starts) for part in layer.weights]
    if not all(lies) or experts < 1:
        raise ArtifactError(f"{where}: {layer.name!r} has weights whose experts lie at no increasing places")
    if layer.chosen > experts:
        raise ArtifactError(f"{where}: {layer.name!r} has {experts} experts, of which {layer.chosen} cannot be chosen")
    if len(shares) not in (0, experts):
        raise ArtifactError(f"{where}: {layer.name!r} has {len(shares)} shares; expected {experts}")


def _check_held(manifest: Manifest, where: str) -> None:
    for program, inputs, outputs in all_programs(manifest):
        twice = [name for name, count in Counter(state.input for state in program.held).items() if count > 1]
        if twice:
            raise ArtifactError(f"{where}: it holds the state {twice[0]!r} twice")
        _check_held_states(program, inputs, outputs, where)


def _check_held_states(
    program: ProgramEntry, taken: Sequence[TensorSpec], returned: Sequence[TensorSpec], where: str
) -> None:
    inputs, outputs = {spec.name: spec for spec in taken}, {spec.name for spec in returned}
    bound = bound_names([spec.shape for spec in taken])
    for state in program.held:
        spec = inputs.get(state.input)
        if spec is None or state.output not in outputs or not 0 <= state.axis < len(spec.shape):
            raise ArtifactError(f"{where}: it holds a state from {state.input!r} to {state.output!r}, which it has not")
        is_matrix = state.axis == len(spec.shape) - 2 and isinstance(spec.shape[-1], int)
        if (state.dtype == "int8" and not is_matrix) or bool(state.store) != bool(state.restore):
            raise ArtifactError(f"{where}: the state {state.input!r} cannot be stored as it says")
        growth, size = _growth(state, where), spec.shape[state.axis]
        if not set(growth.names) <= bound or not (isinstance(size, str) or state.has_room):
            raise ArtifactError(f"{where}: the state {state.input!r} grows by {state.growth!r}, which no input says")
        if state.window and state.at_places:
            raise ArtifactError(f"{where}: the state {state.input!r} is written at places and read in a window")


def _check_last(manifest: Manifest, where: str) -> None:
    for program, inputs, outputs in all_programs(manifest):
        last = program.last
        if last is None:
            continue
        tokens = next((spec for spec in inputs if spec.name == last.input), None)
        logits = next((spec for spec in outputs if spec.name == last.output), None)
        if tokens is None or logits is None or len(tokens.shape) < 2 or tokens.shape[1:2] != logits.shape[1:2]:
            raise ArtifactError(f"{where}: {last.output!r} is said to have a position for each token of {last.input!r}")
        if last.sample and (len(logits.shape) != 3 or not isinstance(logits.shape[2], int)):
            raise ArtifactError(f"{where}: tokens are said to be selected by {last.output!r}, which is {logits}")


def _check_pipeline(manifest: Manifest, where: str) -> None:
    """Check that layers follow one another, that each stage takes inputs of the model and outputs of earlier stages,
    and that all outputs of the model are there."""
    of_model, computed = {_form(spec) for spec in manifest.inputs}, set[tuple[str, str, int]]()
    first = 0
    for number, stage in enumerate(manifest.pipeline):
        strays = [spec for spec in stage.inputs if _form(spec) not in of_model | computed]
        if strays:
            raise ArtifactError(f"{where}: stage {number} takes {strays[0]}, which no earlier stage computes")
        if stage.first != first or stage.last < first:
            raise ArtifactError(f"{where}: stage {number} has layers {stage.first} to {stage.last} after {first - 1}")
        first = stage.last + 1
        computed |= {_form(spec) for spec in stage.outputs}
    missing = [spec for spec in manifest.outputs if manifest.pipeline and _form(spec) not in computed]
    if missing:
        raise ArtifactError(f"{where}: no stage computes the output {missing[0]}")


def _form(spec: TensorSpec) -> tuple[str, str, int]:
    return spec.name, spec.dtype, len(spec.shape)


def _growth(state: HeldState, where: str) -> Expression[int]:
    try:
        return parse_size(state.growth)
    except ValueError as error:
        raise ArtifactError(f"{where}: growth {state.growth[:80]!r} cannot be read: {error}") from error


def _check_files(manifest: Manifest, where: str) -> None:
    for name in (*manifest.files, *(project.folder for project in manifest.projects)):
        if not is_inside_name(name):
            raise ArtifactError(f"{where}: file name {name!r} could leave the artifact's folder")
    programs = [program for program, _, _ in all_programs(manifest)]
    kernels = [kernel for program in programs for kernel in program.kernels]
    sources = [path for kernel in kernels for path in (*kernel["sources"].values(), kernel["structure"])]
    code = [name for program in programs for name in (*program.objects, program.binary) if name is not None]
    stages = [stage["file"] for stage in manifest.stages]
    text = manifest.text
    texts = [name for name in (text.tokenizer, text.chat_template) if name is not None] if text is not None else []
    for name in (*code, *sources, *stages, *texts, WEIGHTS):
        if name is not None and name not in manifest.files:
            raise ArtifactError(f"{where}: {name!r} is used but not listed among the files")


def _check_weights(manifest: Manifest, where: str) -> None:
    available = manifest.files[WEIGHTS].bytes
    for weight in manifest.weights:
        if math.prod(weight.shape) * dtype_of(weight.dtype).itemsize != weight.bytes:
            actual = f"{weight.dtype}{list(weight.shape)}"
            raise ArtifactError(f"{where}: {weight.name!r} is {actual}, which is not {weight.bytes} bytes")
        if weight.offset % WEIGHT_ALIGNMENT:
            raise ArtifactError(
                f"{where}: {weight.name!r} starts at {weight.offset}, not a multiple of {WEIGHT_ALIGNMENT}"
            )
        if weight.offset + weight.bytes > available:
            raise ArtifactError(
                f"{where}: weight {weight.name!r} ends at byte {weight.offset + weight.bytes} of {WEIGHTS}, which has "
                f"{available}"
            )
