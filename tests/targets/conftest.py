"""Fixtures for targets: ``program_of`` compiles a model text for this computer; ``runner_of`` makes the program
callable in this process."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from moec import targets
from moec.runtime.executor import Executor
from moec.runtime.interface import Interface
from moec.targets.base import Program

HEADER = '<ir_version: 10, opset_import: ["" : 24, "com.microsoft" : 1, "moec" : 1]>\n'
Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def parse(text: str) -> onnx.ModelProto:
    """A model from ONNX text without the header."""
    return onnx.parser.parse_model(HEADER + text)


@pytest.fixture
def program_of() -> Callable[[str], Program]:
    return lambda text: targets.get("cpu").compile(ir.from_proto(parse(text)))


@pytest.fixture
def runner_of(tmp_path: pathlib.Path) -> Callable[[Program], Run]:
    def load(program: Program) -> Run:
        for name, data in program.objects.items():
            (tmp_path / name).write_bytes(data)
        paths = [tmp_path / name for name in program.objects]
        weights = [weight.array() for weight in program.weights]
        interface = Interface(program.inputs, program.outputs)
        return Executor(paths, interface, weights, held_states=program.held, last=program.last).run

    return load
