"""Compile a model of one moec node through the lowering, to run its kernels on numpy arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import tvm

from moec.runtime.workers import run_with
from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.target import converters
from moec.targets.tvm.lowering.lowered import Lowered
from moec.targets.tvm.lowering.lowering import lower
from moec.targets.tvm.onnx.converters import all_converters
from moec.targets.tvm.phases import pipeline

from ..node_models import node_model
from .step_by_step import StepByStep

Array = np.ndarray[Any, Any]


def lower_node(
    operator: str,
    inputs: Mapping[str, Array],
    constants: Mapping[str, Array],
    *specs: Any,
    machine: Machine | None = None,
) -> Lowered:
    """The lowered model of :func:`node_model`."""
    return lower(node_model(operator, inputs, constants, *specs), all_converters(converters(machine or Machine.host())))


def compile_node(
    operator: str,
    inputs: Mapping[str, Array],
    constants: Mapping[str, Array],
    *specs: Any,
    machine: Machine | None = None,
) -> Callable[..., list[Array]]:
    """A function from arrays, by input name, to the node's outputs; ``threads`` sets how many threads run it."""
    return compile_model(node_model(operator, inputs, constants, *specs), machine or Machine.host())


def compile_model(model: ir.Model, machine: Machine) -> Callable[..., list[Array]]:
    """A function from arrays, by input name, to the outputs of a model of moec nodes; ``threads`` as above."""
    lowered = lower(model, all_converters(converters(machine)))
    module = pipeline.optimize(lowered.module, tvm.target.Target(machine.llvm), lowered.nodes).module
    steps = StepByStep(module, machine)
    weights = [weight.array() for weight in lowered.weights]

    def run(*, threads: int = 2, **arrays: Array) -> list[Array]:
        inputs = [arrays[spec.name] for spec in lowered.inputs]
        return run_with(threads, lambda: steps.run(*inputs, *weights))

    return run
