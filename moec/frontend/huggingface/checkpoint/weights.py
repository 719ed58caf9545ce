"""Weights of a checkpoint in their stored form, and the conversions of transformers applied to them on demand."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.frontend.huggingface.checkpoint.one_thread import one_thread
from moec.frontend.huggingface.checkpoint.safetensors import FileTensor
from moec.ir.weights.encode import Table
from moec.ir.weights.format import WeightFormat
from moec.ir.weights.stacks import ExpertStack

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]
_FLOATS = ("bfloat16", "float16", "float32", "float64")
_MOVING = ("MergeModulelist", "Concatenate", "Chunk", "Transpose", "Interleave")
"""Operations of transformers that only move rows and columns, so that scales can move with them."""


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array that is computed when it is read. ``expert`` computes entry e of the first axis alone, where that is
    cheaper."""

    dtype: ir.DataType
    shape: tuple[int, ...]
    read: Callable[[], Array]
    expert: Callable[[int], Array] | None = None

    @staticmethod
    def of(tensor: FileTensor) -> LazyArray:
        """Wrap a tensor of a file."""
        return LazyArray(tensor.dtype, tensor.shape, tensor.numpy)

    def entry(self, index: int) -> Array:
        """Read one entry of the first axis."""
        return self.expert(index) if self.expert is not None else self.read()[index]

    def mapped(self, change: Callable[[Array], Array], dtype: ir.DataType, shape: Sequence[int]) -> LazyArray:
        """Apply ``change`` on reading; also to single entries, where the array has three axes or more."""
        by_expert = len(self.shape) > 2 and len(shape) > 2
        return LazyArray(
            dtype,
            tuple(shape),
            lambda: change(self.read()),
            (lambda index: change(self.entry(index))) if by_expert else None,
        )

    def tensor(self) -> ir.LazyTensor:
        """Convert to a tensor of the IR."""
        if len(self.shape) == 3:
            return ExpertStack(None, self.dtype, self.shape, lambda index: np.asarray(self.entry(index)))
        return ir.LazyTensor(lambda: ir.Tensor(self.read(), dtype=self.dtype), self.dtype, ir.Shape(self.shape))


@dataclasses.dataclass(frozen=True)
class CheckpointWeight:
    """A weight: floats (``form`` is None, ``data`` the only table), or the tables of a quantised format.

    Quantised data is [...,out,in] where ``axis``, that of the inputs, is -1, and [...,in,out] where it is -2. Scales
    and zero points have groups in the place of inputs. ``order``: permutation of the product's inputs to the order of
    the matrix, None where both are the same. ``where``: name for messages.
    """

    where: str
    tables: Mapping[Table, LazyArray]
    form: WeightFormat | None = None
    axis: int = -1
    order: Array | None = None

    @staticmethod
    def of(tensor: FileTensor) -> CheckpointWeight:
        """Wrap a tensor of a file."""
        return CheckpointWeight(tensor.where, {"data": LazyArray.of(tensor)})

    @property
    def data(self) -> LazyArray:
        return self.tables["data"]

    @property
    def kind(self) -> tuple[Any, ...]:
        """Key that weights have to share to be joined."""
        return self.form, self.axis, {table: array.dtype for table, array in self.tables.items()}

    def transposed(self) -> CheckpointWeight:
        """Exchange inputs and outputs."""
        tables = {
            name: array.mapped(_turned, array.dtype, (*array.shape[:-2], array.shape[-1], array.shape[-2]))
            for name, array in self.tables.items()
        }
        return dataclasses.replace(self, tables=tables, axis=-3 - self.axis)


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A conversion of tensors of a checkpoint to parameters: a ``WeightConverter`` of
    ``transformers.core_model_loading``, for the parameter ``target``. ``sources``: weights by pattern."""

    converter: Any
    target: str
    sources: dict[str, list[CheckpointWeight]]
    module: torch.nn.Module

    def weights(self) -> dict[str, CheckpointWeight]:
        """Make the parameters, by name. Raises UnsupportedError for quantised weights that are not alike, or that an
        operation changes in another way than by moving."""
        every = [weight for weights in self.sources.values() for weight in weights]
        first = every[0]
        self._check(every)
        parameters: dict[str, dict[Table, LazyArray]] = {}
        for table, like in first.tables.items():
            for name, shape in self._shapes(table).items():
                read = functools.partial(self._read, table, name)
                expert = functools.partial(self._read_expert, table, name) if self._is_by_expert() else None
                parameters.setdefault(name, {})[table] = LazyArray(like.dtype, shape, read, expert)
        flips = sum(type(operation).__name__ == "Transpose" for operation in self.converter.operations) % 2
        axis = -3 - first.axis if flips else first.axis
        return {name: CheckpointWeight(first.where, tables, first.form, axis) for name, tables in parameters.items()}

    def _check(self, weights: list[CheckpointWeight]) -> None:
        first = weights[0]
        odd = next((weight for weight in weights if weight.kind != first.kind), None)
        if odd is not None:
            raise UnsupportedError(
                f"{odd.where}: is stored in another way than {first.where}, but both are part of {self.target}; "
                "quantise them alike"
            )
        ordered = next((weight for weight in weights if weight.order is not None), None)
        if ordered is not None:
            raise UnsupportedError(
                f"{ordered.where}: its inputs are in an order of their own (act-order), and {self.target} is made of "
                "several such matrices, for which moec has one order of inputs; quantise without act-order"
            )
        names = [type(operation).__name__ for operation in self.converter.operations]
        if first.form is not None and not set(names) <= set(_MOVING):
            raise UnsupportedError(
                f"{first.where}: is {first.form}, and transformers computes {self.target} of it by {', '.join(names)}, "
                "which scales cannot follow; use a checkpoint that is not quantised"
            )

    def _is_by_expert(self) -> bool:
        first = self.converter.operations[0]
        return type(first).__name__ == "MergeModulelist" and first.dim == 0

    def _shapes(self, table: Table) -> dict[str, tuple[int, ...]]:
        import torch

        inputs = {
            pattern: [torch.empty(weight.tables[table].shape, dtype=torch.uint8, device="meta") for weight in weights]
            for pattern, weights in self.sources.items()
        }
        return {name: tuple(tensor.shape) for name, tensor in self._converted(inputs).items()}

    def _read(self, table: Table, name: str) -> Array:
        return self._computed(table, name, self.sources)

    def _read_expert(self, table: Table, name: str, expert: int) -> Array:
        slices = {pattern: weights[expert : expert + 1] for pattern, weights in self.sources.items()}
        return self._computed(table, name, slices)[0]

    def _computed(self, table: Table, name: str, sources: dict[str, list[CheckpointWeight]]) -> Array:
        inputs = {
            pattern: [_elements(weight.tables[table].read()) for weight in weights]
            for pattern, weights in sources.items()
        }
        element_type = next(iter(inputs.values()))[0].dtype
        converted = self._converted(inputs)[name].to(element_type).contiguous()  # operations may modify their inputs
        stored = next(iter(sources.values()))[0].tables[table].dtype.numpy()
        return converted.view(_integers(stored)).numpy().view(stored)

    def _converted(self, tensors: dict[str, list[torch.Tensor]]) -> dict[str, torch.Tensor]:
        for operation in self.converter.operations:
            with one_thread():
                tensors = operation.convert(
                    tensors,
                    source_patterns=self.converter.source_patterns,
                    target_patterns=self.converter.target_patterns,
                    full_layer_name=self.target,
                    model=self.module,
                    config=self.module.config,
                    missing_keys=None,
                )
        full = self.target.replace("*.", "0.")
        converted = {name: result[0] if isinstance(result, list) else result for name, result in tensors.items()}
        key = next((name for name in converted if name in full), None)
        if key is None:
            return converted
        before, _, behind = full.partition(key)
        return {before + name + behind: result for name, result in converted.items()}


def _turned(array: Array) -> Array:
    return np.swapaxes(array, -1, -2)


def _elements(array: Array) -> torch.Tensor:
    """Convert floats to PyTorch's types, and other elements, which are only moved, to integers of the same size."""
    import torch

    array = np.ascontiguousarray(array)
    if not array.flags.writeable:  # PyTorch warns of read-only arrays
        array = array.copy()
    integers = torch.from_numpy(array.view(f"i{array.itemsize}"))
    return integers.view(getattr(torch, array.dtype.name)) if array.dtype.name in _FLOATS else integers


def _integers(dtype: np.dtype[Any]) -> torch.dtype:
    """Select PyTorch's integer type of the same size."""
    import torch

    return {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
