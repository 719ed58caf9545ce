"""Assignment of a checkpoint's tensors to the parameters of a module, and then to the constants of the exported
graph."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError, UnsupportedError, one_line
from moec.frontend.huggingface.checkpoint.safetensors import FileTensor
from moec.frontend.huggingface.checkpoint.sources import parameter_sources
from moec.frontend.huggingface.checkpoint.weights import CheckpointWeight, Conversion
from moec.frontend.huggingface.placeholders import products_without_memory
from moec.ir.graphs import add_constant
from moec.ir.weights.encode import Table
from moec.ir.weights.format import WeightFormat, name_of
from moec.ir.weights.levels import LEVELS, product_of_levels
from moec.ir.weights.stored import decoding_node

if TYPE_CHECKING:
    import torch

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclasses.dataclass(frozen=True)
class Binding:
    """Weights of a module.

    ``weights``: by the names of the module's parameters and buffers; shared parameters are listed under all of their
    names. ``unused``: tensors of the checkpoint that belong to no parameter, and that the module is not known to
    ignore.
    """

    weights: Mapping[str, CheckpointWeight]
    unused: tuple[str, ...] = ()

    @staticmethod
    def of(module: torch.nn.Module, tensors: Mapping[str, FileTensor], config: dict[str, Any], where: str) -> Binding:
        """Assign a checkpoint's tensors to the module's parameters. Raises MoecError for tensors that are missing or do
        not fit the module, UnsupportedError for formats that moec does not read as they are."""
        from moec.frontend.huggingface.quantised import decode_names

        return Binding.of_weights(module, decode_names(tensors, config, where), where)

    @staticmethod
    def of_weights(
        module: torch.nn.Module,
        of_files: Mapping[str, CheckpointWeight],
        where: str,
        in_files: Callable[[str], str] = str,
    ) -> Binding:
        """Assign weights that were read. ``in_files``: function that makes names of files of the module's names. Raises
        as :meth:`of`."""
        weights, unused = _renamed(module, of_files, where)
        state = module.state_dict(keep_vars=True)
        names: dict[int, list[str]] = {}
        for name, tensor in state.items():
            names.setdefault(id(tensor), []).append(name)
            if name in weights and weights[name].data.shape != tuple(tensor.shape):
                raise MoecError(
                    f"{weights[name].where}: is {list(weights[name].data.shape)}, but config.json asks for "
                    f"{list(tensor.shape)} ({in_files(name)}); they do not belong together, download both again"
                )
        every: dict[str, CheckpointWeight] = {}
        optional: Any = getattr(module, "_keys_to_ignore_on_load_missing", None) or ()
        for shared in names.values():
            weight = next((weights[name] for name in shared if name in weights), None)
            if weight is not None:
                every |= dict.fromkeys(shared, weight)
            elif not any(re.search(pattern, shared[0]) for pattern in optional):
                raise MoecError(
                    f"{where}: no tensor of its files is {in_files(shared[0])}, which config.json asks for; download "
                    "the model again, with all of its files"
                )
        ignored: Any = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
        rest = (ascii(name)[1:-1] for name in unused if not any(re.search(pattern, name) for pattern in ignored))
        return Binding(every, tuple(rest))

    @property
    def names(self) -> set[str]:
        """Names of all constants that the graph gets from the checkpoint."""
        return set(self.weights)

    def products(self) -> contextlib.AbstractContextManager[Any]:
        """Context in which PyTorch computes with the module's placeholders in little memory."""
        return products_without_memory()

    def bind(self, graph: ir.Graph, values: Mapping[str, ir.Value]) -> None:
        """Make ``values``, which are placeholders by name, constants of the graph that uses them. Raises
        UnsupportedError for quantised embeddings."""
        for name, value in values.items():
            (_bind_floats if self.weights[name].form is None else _bind_stored)(graph, value, self.weights[name])


def _renamed(
    module: torch.nn.Module, weights: Mapping[str, CheckpointWeight], where: str
) -> tuple[dict[str, CheckpointWeight], list[str]]:
    """Make the module's parameters of a checkpoint's weights. Returns them by name, and the names of the weights that
    belong to no parameter."""
    sources, unused = parameter_sources(module, weights)
    assigned: dict[str, CheckpointWeight] = {}
    for target, source in sources.items():
        taken = {pattern: [weights[name] for name in names] for pattern, names in source.names.items()}
        if source.converter is None:
            assigned[target] = next(iter(taken.values()))[0]
            continue
        try:
            assigned |= Conversion(source.converter, target, taken, module).weights()
        except MoecError:
            raise
        except Exception as error:  # PyTorch's error for tensors whose sizes do not fit together
            raise MoecError(
                f"{where}: {target} cannot be made of the tensors in its files ({type(error).__name__}: "
                f"{one_line(error)}); they do not belong to this config.json"
            ) from error
    return assigned, unused


def _bind_floats(graph: ir.Graph, value: ir.Value, weight: CheckpointWeight) -> None:
    """Make a constant of the value's type. Matrices and tables in 16 bits stay so: selected rows of a table are
    converted, and a matrix is handled as in :func:`_bind_stored`."""
    array = weight.data
    if array.dtype in _HALVES and len(array.shape) > 1:
        _bind_halves(graph, value, weight)
        return
    assert value.dtype is not None
    if array.dtype != value.dtype:
        array = array.mapped(functools.partial(_converted, dtype=value.dtype), value.dtype, array.shape)
    tensor = array.tensor()
    tensor.name = value.name
    value.const_value = tensor
    graph.register_initializer(value)


def _converted(array: np.ndarray, dtype: ir.DataType) -> np.ndarray:
    return array.astype(dtype.numpy())


def _bind_halves(graph: ir.Graph, value: ir.Value, weight: CheckpointWeight) -> None:
    lookups = [user for user, index in value.uses() if user.op_type == "Gather" and not user.domain and index == 0]
    if lookups:
        table = add_constant(graph, weight.data.tensor(), f"{value.name}.table")
        turned = [user for user, _ in value.uses() if _turns(user)]  # of the output matrix: no constant of its own
        for node in [*lookups, *turned]:
            _cast_behind(graph, node, table, value.dtype)
    name = name_of(weight.data.dtype)
    assert name is not None
    if value.uses():
        _bind_stored(graph, value, dataclasses.replace(weight, form=WeightFormat(name)))


def _cast_behind(graph: ir.Graph, lookup: ir.Node, table: ir.Value, dtype: ir.DataType | None) -> None:
    old = lookup.outputs[0]
    lookup.replace_input_with(0, table)
    cast = ir.node("Cast", [old], {"to": int(dtype or ir.DataType.FLOAT)})
    new = cast.outputs[0]
    new.name, new.type, new.shape = f"{old.name}_as_float", old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    cast.replace_input_with(0, old)
    old.type = ir.TensorType(table.dtype) if table.dtype is not None else None
    graph.insert_after(lookup, cast)


def _bind_stored(graph: ir.Graph, value: ir.Value, weight: CheckpointWeight) -> None:
    """Add the stored constants and the nodes that decode them. The decoded matrix is transposed where the graph
    transposes."""
    assert weight.form is not None and value.dtype is not None
    turned = [user for user, _ in value.uses() if _turns(user)]
    if len(turned) < len(value.uses()):
        _check_own_order(weight)
        if any(user.op_type == "Gather" and len(weight.data.shape) == 2 for user, _ in value.uses()):
            raise UnsupportedError(
                f"{weight.where}: is an embedding in {weight.form}; expected floats: only weights of products can be "
                "quantised"
            )
        decoded = _decoded(graph, str(value.name), weight, value.dtype)
        for user, index in tuple(value.uses()):
            if user not in turned:
                user.replace_input_with(index, decoded)
    if turned:
        decoded = _decoded(graph, f"{value.name}.T", weight.transposed(), value.dtype)
        for node in turned:
            if weight.order is not None:
                _put_inputs_in_order(graph, node.outputs[0], weight)
            node.outputs[0].replace_all_uses_with(decoded)
            graph.remove(node, safe=True)


def _check_own_order(weight: CheckpointWeight, fits: bool = False) -> None:
    if weight.order is not None and not fits:
        raise UnsupportedError(
            f"{weight.where}: its inputs are in an order of their own (act-order), and moec has that of dense products "
            "alone; quantise without act-order"
        )


def _put_inputs_in_order(graph: ir.Graph, matrix: ir.Value, weight: CheckpointWeight) -> None:
    """Reorder the inputs of all products with the matrix [in,out] into the matrix's order."""
    assert weight.order is not None
    for product, index in matrix.uses():
        _check_own_order(weight, fits=product.op_type == "MatMul" and not product.domain and index == 1)
        order = add_constant(graph, ir.Tensor(weight.order.astype(np.int64)), f"{product.outputs[0].name}.order")
        pick = ir.node("Gather", [product.inputs[0], order], {"axis": -1})
        pick.outputs[0].name = f"{product.outputs[0].name}.in_order"
        graph.insert_before(product, pick)
        product.replace_input_with(0, pick.outputs[0])


def _turns(node: ir.Node) -> bool:
    """Whether the node exchanges the two axes of a matrix."""
    if node.op_type != "Transpose" or node.domain or node.outputs[0].is_graph_output():
        return False
    order = node.attributes.get("perm")
    return order is not None and list(order.as_ints()) == [1, 0]


def _decoded(graph: ir.Graph, name: str, weight: CheckpointWeight, dtype: ir.DataType) -> ir.Value:
    tables: dict[Table, ir.Value] = {
        table: add_constant(graph, array.tensor(), f"{name}.{table}") for table, array in weight.tables.items()
    }
    assert weight.form is not None
    first = graph[0]
    if "scale_code" in tables:
        codes, factors = (tables[table] for table in LEVELS["scale"])
        span = weight.form.span(weight.data.shape[weight.axis])
        tables["scale"] = product_of_levels(graph, first, codes, factors, weight.axis, span)
    node = decoding_node(weight.form, tables["data"], tables.get("scale"), tables.get("zero_point"), weight.axis, dtype)
    node.outputs[0].name = f"{name}.decoded"
    graph.insert_before(first, node)
    return node.outputs[0]
