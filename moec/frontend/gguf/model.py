"""A GGUF file as a model."""

from __future__ import annotations

import os
from collections.abc import Iterator

import onnx_ir as ir

from moec.common.garbage import no_collection
from moec.frontend.conditions import Conditions
from moec.frontend.gguf import architectures, formats
from moec.frontend.gguf.builder import Builder
from moec.frontend.gguf.reader import GgufFile, read_file


@no_collection()
def import_file(path: str | os.PathLike[str], cache: bool = False) -> ir.Model:
    """The model of a GGUF file, as a text model: ``input_ids`` [batch, length], both dynamic, and ``logits``; with
    ``cache`` also past and present keys and values, as in :mod:`moec.frontend.text_cache`. It computes in float32;
    weights stay in the file until they are read, and keep the format that they have there where moec has it.

    Raises MoecError for a file that is damaged or whose tensors and metadata do not fit together, UnsupportedError for
    architectures, types of tensors, tensors and hyperparameters that moec does not know. Formats that take more bits
    than in the file, and tensors that nothing is made of, become remarks.
    """
    builder = Builder(read_file(path), cache)
    model = builder.finish(architectures.build(builder))
    Conditions(unused=tuple(builder.skipped), wider=tuple(_wider(builder.file, builder.float_tables))).attach(model)
    return model


def _wider(file: GgufFile, float_tables: list[str]) -> Iterator[str]:
    """What takes more bits in an artifact than in the file."""
    kinds = [tensor.kind for name, tensor in file.tensors.items() if name not in float_tables and len(tensor.shape) > 1]
    for kind in sorted(set(kinds)):
        bits, there = formats.stored_bits(kind)
        if bits > there:
            yield f"{kinds.count(kind)} tensors in {kind} take {bits:g} bits a weight, not {there:g}"
    if float_tables:
        yield f"{len(float_tables)} tensors become float32, as which kernels read them: {float_tables[0]}, ..."
