"""Import of PyTorch modules: torch.export, then PyTorch's own ONNX exporter, which returns ONNX IR in memory.

Needs the extra ``torch`` (``pip install "moec[torch]"``). Nothing is written to disk and no weight is copied: the
tensors of the returned model are views of the module's parameters.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from moec.common.errors import MoecError, UnsupportedError
from moec.common.garbage import no_collection
from moec.frontend.onnx.conditions import Conditions
from moec.frontend.onnx.size_names import rename_sizes

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from moec.common.specs import State

_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
"""Escape sequences of terminals, such as those for colours."""


class ModuleWeights(Protocol):
    """Source of a module's weights when its own are placeholders."""

    @property
    def names(self) -> set[str]:
        """Names of the module's parameters and buffers that are placeholders."""
        ...

    def products(self) -> contextlib.AbstractContextManager[Any]:
        """Context in which PyTorch computes with the placeholders in little memory."""
        ...

    def bind(self, graph: ir.Graph, values: Mapping[str, ir.Value]) -> None:
        """Make constants in ``graph`` of ``values``, placeholders by name."""
        ...


@no_collection()
def import_module(
    module: torch.nn.Module,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    weights: ModuleWeights | None = None,
    cache: bool = False,
) -> ir.Model:
    """Export ``module`` and import the result.

    ``example_inputs`` is a tuple of positional or a dict of keyword arguments. ``dynamic_shapes`` is passed to
    ``torch.export.export``; without it every size is fixed to the example's. Without both, a text model of transformers
    gets the inputs of :mod:`moec.frontend.pytorch.text_inputs`, with ``cache`` also those of
    :mod:`moec.frontend.pytorch.text_cache`. Outputs of a module that returns a mapping, as transformers models do, are
    named after its keys. ``weights`` replace the module's own.

    Raises MoecError when torch is not installed, the module is in training mode or inputs are missing, and
    UnsupportedError when PyTorch cannot export the module.
    """
    from moec.ir.states import set_states

    _import_torch()
    module = getattr(module, "_orig_mod", module)  # what torch.compile wraps  # type: ignore[assignment]
    _check_weights(module)
    if module.training:
        raise MoecError(
            f"{type(module).__name__} is in training mode, but only inference is compiled: call module.eval() first"
        )
    is_text = example_inputs is None
    example_inputs, dynamic_shapes, surroundings, states = _inputs(module, example_inputs, dynamic_shapes, cache)
    with surroundings:
        exported, program, conditions = _export(module, _arguments(example_inputs), dynamic_shapes, weights)
    model = exported.model
    _name_outputs(model, program)
    if is_text:
        conditions = _with_names_of_text(module, exported, conditions)
    imported = _imported(model, conditions)
    set_states(imported, states)
    if weights is not None:
        _bind(imported.graph, weights)
    return imported


def _export(
    module: torch.nn.Module, arguments: Any, dynamic_shapes: Any, weights: ModuleWeights | None
) -> tuple[torch.onnx.ONNXProgram, torch.export.ExportedProgram, Conditions]:
    """Export the module to ONNX. Also returns the program of torch.export and the conditions under which it holds.
    Raises UnsupportedError where PyTorch fails."""
    from moec.frontend.pytorch.complex_pairs import complex_as_pairs
    from moec.frontend.pytorch.decompositions import decompose_one_by_one
    from moec.frontend.pytorch.exportable import exportable
    from moec.frontend.pytorch.guards import drop_certain_guards
    from moec.frontend.pytorch.linear_attention import translations

    torch = _import_torch()
    with exportable(module), complex_as_pairs(), quiet(), torch.no_grad():
        try:
            with _sizes_from_zero():
                program = torch.export.export(module, *arguments, dynamic_shapes=dynamic_shapes, strict=False)
            decompose_one_by_one(program)
            drop_certain_guards(program)
            options: dict[str, Any] = {"optimize": weights is None, "custom_translation_table": translations()}
            exported = torch.onnx.export(program, dynamo=True, verbose=False, **options)
            if weights is not None:
                _optimize(exported, weights)
        except Exception as error:  # torch raises many unrelated types here; the user needs its reason
            raise UnsupportedError(_explain(module, error)) from error
        with contextlib.nullcontext() if weights is None else weights.products():
            return exported, program, _conditions(module, arguments, program, exported.exported_program)


def _with_names_of_text(
    module: torch.nn.Module, exported: torch.onnx.ONNXProgram, conditions: Conditions
) -> Conditions:
    """Rename sizes to those of a text model, in the exported model and in the conditions, which are returned."""
    from moec.frontend.pytorch.text_inputs import wide_guards

    assert exported.exported_program is not None
    names = _names_of_sizes(exported.exported_program)
    rename_sizes(exported.model, names)
    conditions = conditions.renamed(names)
    return dataclasses.replace(conditions, wide=tuple(wide_guards(module, conditions.guards)))


def import_program(program: torch.export.ExportedProgram) -> ir.Model:
    """Import the result of ``torch.export.export``; guards of the export hold for the model, too. Raises
    UnsupportedError where PyTorch has no ONNX operators for it."""
    torch = _import_torch()
    with quiet(), torch.no_grad():
        try:
            exported = torch.onnx.export(program, dynamo=True, verbose=False)
        except Exception as error:  # as above
            raise UnsupportedError(_explain(program, error)) from error
    return import_onnx_program(exported, program)


def import_onnx_program(exported: Any, program: torch.export.ExportedProgram | None = None) -> ir.Model:
    """Import the result of ``torch.onnx.export`` for ``program``."""
    converted, model = exported.exported_program, exported.model.clone()
    if converted is None:
        return _imported(model, Conditions())
    source = converted if program is None else program
    _name_outputs(model, source)
    return _imported(model, _conditions(source.module(), source.example_inputs, source, converted))


def _imported(model: ir.Model, conditions: Conditions) -> ir.Model:
    from moec.frontend.onnx.importer import import_model

    conditions.attach(model)
    return import_model(model)


def _name_outputs(model: ir.Model, program: torch.export.ExportedProgram) -> None:
    for value, name in zip(model.graph.outputs, _output_names(program), strict=False):
        value.name = name


def _inputs(
    module: torch.nn.Module, example_inputs: Any, dynamic_shapes: Any, cache: bool
) -> tuple[Any, Any, contextlib.AbstractContextManager[None], list[State]]:
    """Select the example inputs and dynamic shapes: the caller's, else those of a text model, with a cache where asked
    for.

    Also returns the context to export in, and the states that no pass would find.
    """
    from moec.frontend.pytorch.exportable import exportable
    from moec.frontend.pytorch.text_cache import cache_inputs, with_cache
    from moec.frontend.pytorch.text_inputs import text_inputs, without_cache

    if example_inputs is not None and cache:
        raise MoecError("cache=True makes the inputs of a text model of transformers; leave example_inputs out")
    if example_inputs is not None:
        return example_inputs, dynamic_shapes, contextlib.nullcontext(), []
    text = text_inputs(module)
    if text is None:
        raise MoecError(f"{type(module).__name__}: compiling a PyTorch module needs example_inputs=(...)")
    if not cache:
        return text.example, dynamic_shapes or text.dynamic_shapes, without_cache(module), []
    with exportable(module), quiet():
        cached = cache_inputs(module, text)
    text, surroundings = cached.inputs, with_cache(module, cached.form)
    return text.example, dynamic_shapes or text.dynamic_shapes, surroundings, cached.states


def _names_of_sizes(program: torch.export.ExportedProgram) -> dict[str, str]:
    """Map PyTorch's invented names for the sizes of a text model's inputs to its own names."""
    from moec.frontend.pytorch import text_cache, text_inputs
    from moec.frontend.pytorch.guards import known_inputs

    names: dict[str, str] = {}
    for label, value in known_inputs(program).items():
        axes = text_cache.sizes_of(label) if label.startswith(text_cache.PAST) else text_inputs.SIZES
        for dim, name in zip(value.shape, axes, strict=False):
            if not isinstance(dim, int) and dim.node.expr.is_Symbol:
                names.setdefault(str(dim.node.expr), f"{label}_{name}" if name in names.values() else name)
    return names


def _optimize(exported: Any, weights: ModuleWeights) -> None:
    """Run the optimizer of PyTorch's exporter with placeholders out of its sight, because it would fold them into
    constants that mean nothing. They are inputs of the graph until :func:`_bind`."""
    graph = exported.model.graph
    values = {name: graph.initializers.pop(name) for name in list(graph.initializers) if name in weights.names}
    for value in values.values():
        value.const_value = None
    graph.inputs.extend(values.values())
    exported.optimize()


def _bind(graph: ir.Graph, weights: ModuleWeights) -> None:
    """Replace the inputs that stand for weights by constants. The graph has to be at the working opset, in which
    weights can be stored in any format."""
    values = {str(value.name): value for value in graph.inputs if value.name in weights.names}
    graph.inputs[:] = [value for value in graph.inputs if value.name not in values]
    weights.bind(graph, values)


def _conditions(module: torch.nn.Module, arguments: Any, program: Any, converted: Any) -> Conditions:
    """Collect the conditions of the export. Sizes of 0 and 1 are excluded only where the module itself distinguishes
    them."""
    from moec.frontend.pytorch.guards import conditions_of, known_inputs
    from moec.frontend.pytorch.trials import ExportTrial, let_in

    conditions = conditions_of(program, converted, type(module).__name__)
    if arguments is None:
        return conditions
    trial = ExportTrial(module, converted, arguments, list(known_inputs(converted).values()))
    guards, tried = let_in(conditions.guards, trial)
    return dataclasses.replace(conditions, guards=tuple(guards), tried=tuple(tried))


def _check_weights(module: torch.nn.Module) -> None:
    empty = next(
        (name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta), None
    )
    if empty is not None:
        raise MoecError(
            f"{type(module).__name__}: {empty} is on the meta device, which holds no numbers; give the module its "
            'weights first, by module.to_empty(device="cpu") and load_state_dict, or from_pretrained'
        )


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


def _sizes_from_zero() -> contextlib.AbstractContextManager[Any]:
    """Context in which torch.export keeps guards against sizes of 0 and 1 where the module decides by them.

    By default it assumes that dynamic sizes are at least 2 and keeps no such guards. PyTorch's ONNX exporter uses this
    setting for its own traces.
    """
    import torch.fx.experimental._config as config

    return config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context that silences the exporter's notes on optional packages and deprecations, which are not about the
    model, and the tracebacks that PyTorch logs of errors which it raises as well."""
    silent = {"torch.onnx": logging.ERROR, "onnx_ir": logging.ERROR, "torch._subclasses": logging.CRITICAL}
    levels = {name: logging.getLogger(name).level for name in silent}
    for name, level in silent.items():
        logging.getLogger(name).setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _output_names(program: torch.export.ExportedProgram) -> list[str]:
    """Name the flat outputs: a mapping's keys, ``output`` for a single tensor, else ``output_0``, ``output_1``."""
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


def _explain(module: Any, error: BaseException) -> str:
    """Explain a failed export in one line. The reason is the innermost cause: PyTorch wraps it in advice, in
    colours."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = (line.strip() for line in _ESCAPE.sub("", str(cause)).splitlines())
    reason = next(filter(None, lines), "no reason given")
    return (
        f"{type(module).__name__}: PyTorch could not export it ({type(cause).__name__}: {reason[:300]}); "
        "check with torch.export.export(module, args), or export it to ONNX yourself and compile the file"
    )
