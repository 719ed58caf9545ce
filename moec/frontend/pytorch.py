"""PyTorch modules: torch.export, then PyTorch's own ONNX exporter, whose in-memory result already is ONNX IR.

Needs the extra ``torch`` (``pip install "moec[torch]"``). Nothing is written to disk and no weight is copied: the
tensors of the returned model are views of the module's parameters.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from moec.errors import MoecError, UnsupportedError

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch


def import_module(module: torch.nn.Module, example_inputs: Any, dynamic_shapes: Any = None) -> ir.Model:
    """Export ``module`` and import the result.

    ``example_inputs`` is a tuple of positional or a dict of keyword arguments; ``dynamic_shapes`` is what
    ``torch.export.export`` takes (without it every size is fixed to the example's). Outputs of a module that returns
    a mapping (as transformers models do) are named after its keys.

    Raises MoecError when torch is not installed or the module is in training mode, and UnsupportedError when PyTorch
    cannot export the module.
    """
    torch = _import_torch()
    if module.training:
        raise MoecError(
            f"{type(module).__name__} is in training mode, but only inference is compiled: call module.eval() first"
        )
    args, kwargs = _arguments(example_inputs)
    with _exportable_experts(module), _quiet(), torch.no_grad():
        try:
            program = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
            exported = torch.onnx.export(program, dynamo=True, verbose=False)
        except Exception as error:  # torch raises many unrelated types here; the user needs its reason, not ours
            raise UnsupportedError(_explain(module, error)) from error
    model = exported.model
    for value, name in zip(model.graph.outputs, _output_names(program), strict=False):
        value.name = name

    from moec.frontend.onnx import import_model

    return import_model(model)


def _import_torch() -> Any:
    try:
        import torch
        import torch.export
        import torch.onnx
    except ImportError as error:
        raise MoecError('compiling a PyTorch module needs PyTorch: pip install "moec[torch]"') from error
    return torch


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise MoecError(
        f"example_inputs is a {type(example_inputs).__name__}; expected a tuple of positional or a dict of keyword "
        "inputs"
    )


@contextlib.contextmanager
def _exportable_experts(module: torch.nn.Module) -> Iterator[None]:
    """transformers runs experts as a data-dependent Python loop by default, which torch.export cannot trace; its
    ``batched_mm`` implementation computes the same and can be. Restored on leaving."""
    config = getattr(module, "config", None)
    current = getattr(config, "_experts_implementation", None)
    select = getattr(module, "set_experts_implementation", None)
    if select is None or current is None or current == "batched_mm":
        yield
        return
    select("batched_mm")
    try:
        yield
    finally:
        select(current)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's notes on optional packages and deprecations are not about the user's model."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _output_names(program: torch.export.ExportedProgram) -> list[str]:
    """Names for the flat outputs: a mapping's keys, ``output`` for a single tensor, else ``output_0``, ``output_1``."""
    from torch.utils._pytree import tree_unflatten

    spec = program.call_spec.out_spec
    count = len(program.graph_signature.user_outputs)
    if spec is None or (count == 1 and not isinstance(tree_unflatten([0], spec), Mapping)):
        return ["output"]
    names = [f"output_{index}" for index in range(count)]
    structure = tree_unflatten(list(range(count)), spec)
    if isinstance(structure, Mapping):
        for key, leaf in structure.items():
            if isinstance(leaf, int):
                names[leaf] = str(key)
    return names


def _explain(module: torch.nn.Module, error: Exception) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return (
        f"{type(module).__name__}: PyTorch could not export it ({type(error).__name__}: {reason[:300]}); "
        "check with torch.export.export(module, args), or export it to ONNX yourself and compile the file"
    )
