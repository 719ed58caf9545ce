"""Import of a GGUF file as a model."""

from __future__ import annotations

import os
from collections.abc import Iterator

import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.garbage import no_collection
from moec.common.tokenizers import TextFiles
from moec.frontend.gguf import architectures
from moec.frontend.gguf.file import formats, tokenizer
from moec.frontend.gguf.file.reader import GgufFile, read_file
from moec.frontend.gguf.graph.builder import Builder, FilePart
from moec.frontend.gguf.parts.mtp import check_mtp
from moec.frontend.onnx.conditions import Conditions


@no_collection()
def import_file(path: str | os.PathLike[str], cache: bool = False) -> ir.Model:
    """Import a GGUF file as a text model: ``input_ids`` [batch, length], both dynamic, and ``logits``; with ``cache``
    also past and present keys and values, as in :mod:`moec.frontend.pytorch.text_cache`. It computes in float32.
    Weights stay in the file until they are read, and keep their format where moec has it.

    Raises MoecError for a file that is damaged or whose tensors and metadata do not fit together, UnsupportedError for
    architectures, types of tensors, tensors and hyperparameters that moec does not know. Formats that take more bits
    than in the file, and tensors that no part of the model uses, become remarks.
    """
    model, builder = build_model(read_file(path), cache)
    _attach_conditions(model, builder, builder.skipped)
    return model


@no_collection()
def import_with_mtp(path: str | os.PathLike[str]) -> tuple[ir.Model, ir.Model]:
    """Import a GGUF file as :func:`import_file` does, with a cache, and its first MTP layer as a second model.

    The first model also has the output ``hidden`` [batch, length, width]. The second one takes ``input_ids``, the
    tokens after those, ``previous_hidden`` and past keys and values of its own; its outputs are ``logits`` and
    ``hidden`` (:mod:`moec.frontend.gguf.parts.mtp`). Raises as :func:`import_file`; MoecError for a file without MTP
    layers.
    """
    file = read_file(path)
    check_mtp(file)
    (model, builder), (mtp, of_mtp) = (build_model(file, True, part) for part in (FilePart.MAIN, FilePart.MTP))
    _attach_conditions(model, builder, sorted(set(builder.skipped) & set(of_mtp.skipped)))
    return model, mtp


def _attach_conditions(model: ir.Model, builder: Builder, unused: list[str]) -> None:
    notes = (*_wider(builder.file, builder.float_tables), *_without_text(builder.file))
    Conditions(unused=tuple(unused), notes=notes).attach(model)


def build_model(file: GgufFile, with_cache: bool, part: FilePart = FilePart.WHOLE) -> tuple[ir.Model, Builder]:
    """Build the graph of a part of a file that was read. Returns it with its builder, which knows the tensors of its
    parts. Raises as :func:`import_file`."""
    builder = Builder(file, with_cache, part)
    return builder.finish(architectures.build(builder)), builder


def text_files_of(path: str | os.PathLike[str]) -> TextFiles | None:
    """Read the tokenizer and chat template of a GGUF file. Returns None where it has none, or one that moec does not
    know, which :func:`import_file` notes. Raises MoecError for a file that is damaged."""
    try:
        return tokenizer.text_files(read_file(path))
    except UnsupportedError:
        return None


def _without_text(file: GgufFile) -> Iterator[str]:
    try:
        tokenizer.check(file)
    except UnsupportedError as error:
        yield f"{error}; the artifact gets no tokenizer unless one is given"


def _wider(file: GgufFile, float_tables: list[str]) -> Iterator[str]:
    """Remarks on tensors that take more bits in an artifact than in the file."""
    kinds = [tensor.kind for name, tensor in file.tensors.items() if name not in float_tables and len(tensor.shape) > 1]
    for kind in sorted(set(kinds)):
        bits, there = formats.stored_bits(kind)
        if bits > there:
            yield f"{kinds.count(kind)} tensors in {kind} take {bits:g} bits a weight, not {there:g}; no number changes"
    if float_tables:
        yield f"{len(float_tables)} tensors become float32, as which kernels read them: {float_tables[0]}, ..."
