"""The program of a MoE block in C, with its weights apart."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping

import onnx_ir as ir

from moec.artifacts.c_form import interface_text
from moec.artifacts.c_form.form import kernel_objects, source_text
from moec.artifacts.writer import placed_weights
from moec.common.version import VERSION
from moec.runtime.interface import Interface
from moec.targets.base import Program, Target
from moec.targets.host_program import HostProgram

_DIGITS = 12


@dataclasses.dataclass(frozen=True)
class BlockProgram:
    """A program. ``name`` follows from its code, so that programs of one name differ only in their weights. ``text``:
    its source in C; ``objects``: its kernels. ``program`` has the weights."""

    name: str
    text: str
    objects: Mapping[str, bytes]
    program: Program


def block_program(model: ir.Model, target: Target) -> BlockProgram:
    """Compile a block. ``target``: the same for all blocks of a model, so that equal ones share their code. Raises
    UnsupportedError for one that C cannot say."""
    program = target.compile(model)
    assert isinstance(program, Program), "the target has a processor"
    assert program.host is not None, "the target has a processor"
    host, objects = program.host(), kernel_objects(program)
    code = hashlib.sha256(_text(program, host, "moe").encode())
    for name, data in sorted(objects.items()):
        code.update(name.encode() + hashlib.sha256(data).digest())
    name = f"MoE_{code.hexdigest()[:_DIGITS]}"
    return BlockProgram(name, _text(program, host, name), objects, program)


def _text(program: Program, host: HostProgram, name: str) -> str:
    weights, end = placed_weights(program)
    facts = interface_text.ProgramFacts(
        name=name,
        version=VERSION,
        interface=Interface(program.inputs, program.outputs),
        weights=weights,
        weight_bytes=end,
        weight_stamp=0,  # every node says that of its own weights
        threads=None,
        held=(),
        lengths=(),
        last=None,
        features=program.requirements,
    )
    return source_text(program, host, facts)
