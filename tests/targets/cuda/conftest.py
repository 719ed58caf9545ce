"""Fixtures for the CUDA target. ``emulated``: compile a model for a GPU, to run in the emulator."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import pytest

from moec import targets
from moec.runtime.executor import Executor
from moec.runtime.interface import Interface
from moec.simulators.cuda import device
from moec.targets.base import Program
from moec.targets.cuda import nvcc

from ...simulators.cuda.conftest import skip_without_compiler

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_without_compiler(items, pathlib.Path(__file__).parent)


@pytest.fixture
def without_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide nvcc. Compiling code for a GPU would take most of the time, and the emulator does not run that code."""
    monkeypatch.setattr(nvcc, "find_tool", lambda _name: None)


@pytest.fixture
def program_of(without_nvcc: None) -> Callable[[ir.Model], Program]:
    return lambda model: targets.get("cuda").compile(model)


@pytest.fixture
def emulated(tmp_path: pathlib.Path, program_of: Callable[[ir.Model], Program]) -> Callable[[ir.Model | Program], Run]:
    def load(model: ir.Model | Program) -> Run:
        program = model if isinstance(model, Program) else program_of(model)
        for name, data in program.objects.items():
            (tmp_path / name).write_bytes(data)
        paths = [tmp_path / name for name in program.objects]
        weights = [weight.array() for weight in program.weights]
        return Executor(
            paths,
            Interface(program.inputs, program.outputs),
            weights,
            device=device.emulated_device(),
            held_states=program.held,
            lengths_in_memory=program.lengths_in_memory,
            last=program.last,
        ).run

    return load
