"""The contract between the lowering to Relax and a target's own kernels.

Operators with real arithmetic in them (matrix products, attention, normalisations, everything in the moec dialect)
have no generic converter: the target provides one per operator. A converter reads its node through the
:class:`LoweringContext`, picks a kernel, and returns one Relax expression per output of the node::

    def lower_matmul(lowering: LoweringContext, node: ir.Node) -> relax.Expr:
        rows, inner = lowering.shape(node.inputs[0])
        weight = lowering.constant(node.inputs[1])
        ...
        packed = lowering.add_weight(f"{node.name}.packed", shape, "float32", lambda: pack(weight, machine))
        (product,) = lowering.call_kernel(
            gemm(inner, columns, machine), [lowering.tensor(node.inputs[0]), packed],
            [relax.TensorType((rows, columns), "float32")], record,
        )
        return product
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx_ir as ir

from moec.ir.masks.elements import TensorElements
from moec.targets.base import KernelRecord, Loader

if TYPE_CHECKING:
    from tvm import relax, tirx

    from moec.targets.tvm.lowering.paged_tensors import BatchTensors, PagedTensor, Places
    from moec.targets.tvm.sizes.symbolic import Sizes, StaticValue


class LoweringContext(Protocol):
    """The function being built, as converters see it: queries about values, and emission of weights and kernels."""

    @property
    def sizes(self) -> Sizes:
        """Arithmetic on the function's sizes; comparisons use the facts known about them."""
        ...

    batch: BatchTensors | None
    """What the program is told of the sequences of a batch; None where it runs no batches (:mod:`moec.ir.batches`)."""

    elements: TensorElements
    """Elements of the graph's tensors as expressions of their indices."""

    def tensor(self, value: ir.Value) -> relax.Expr:
        """The value as a Relax tensor; its dims are in ``.ty.shape``. Constants become inline or weight parameters."""
        ...

    def tensor_of_shape(self, value: ir.Value, sizes: Sequence[Any]) -> relax.Expr:
        """The value as a tensor of these sizes, checked at run time where they may differ.

        Raises UnsupportedError where they are known to differ."""
        ...

    def is_constant(self, value: ir.Value | None) -> bool:
        """Whether the value is known at compile time; cheap, loads nothing."""
        ...

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        """The value's data if it is known at compile time, else None. Loads the data: inside a weight's ``load``, call
        this again instead of keeping the array alive."""
        ...

    def static(self, value: ir.Value) -> StaticValue | None:
        """The value at compile time, possibly symbolic, if it is a small integer or bool tensor."""
        ...

    def shape(self, value: ir.Value) -> list[tirx.Expr]:
        """The dims, each an int64 IntImm or an expression over the graph's symbolic sizes (which may be 0)."""
        ...

    def dtype(self, value: ir.Value) -> str:
        """The element type as Relax spells it, e.g. ``float32``, ``bfloat16``, ``bool``."""
        ...

    def add_weight(self, name: str, shape: Sequence[int], dtype: str, load: Loader) -> relax.Var:
        """Add a constant of the program in the layout the kernel wants; it becomes a parameter of ``main``.

        A second weight of the same name is the same weight (shape and dtype must agree), so that nodes sharing a
        constant share its packed form: name it after the ONNX value plus the layout.
        """
        ...

    def add_number(self, name: str, load: Callable[[], np.ndarray]) -> relax.Var:
        """Add an int32 of rank 0 whose value may change from run to run; it becomes a parameter of ``main``.

        The host's part of kernels takes it by value, as int64. A second number of the same name is the same."""
        ...

    @property
    def streams(self) -> bool:
        """Whether the program asks for the weights of experts, which need not be in memory before."""
        ...

    def streamed_layer(self, name: str) -> int:
        """The number by which the program asks for the experts of a layer. ``name``: the layer's last weights."""
        ...

    def replace_experts(self, name: str) -> int:
        """Declare that the router of a layer may replace experts by others, and return the layer's number."""
        ...

    def stream_experts(
        self,
        name: str,
        chosen: int,
        starts: Mapping[relax.Var, Sequence[int]],
        shares: Sequence[float] = (),
        planned: int | None = None,
    ) -> int:
        """Declare that weights of this layer are read expert by expert, and return the layer's number.

        ``chosen``: the most experts of a token; ``starts``: for each weight, the byte offsets at which its experts
        start, and at last its size; ``shares``: measured share of the tokens of each expert, if there is one;
        ``planned``: the number of the layer in the plan of experts, if it has one."""
        ...

    def size_from(self, tensor: relax.Expr, name: str) -> tirx.Var:
        """A new symbolic size that the program reads from an int64 tensor of shape [1]."""
        ...

    def call_runtime(self, function: str, arguments: Sequence[Any], output: relax.TensorType, name: str) -> relax.Var:
        """Emit a call of a function of the runtime, ``function(*arguments, result)``; ints are passed by value."""
        ...

    def call_kernel(
        self,
        kernel: tirx.PrimFunc,
        arguments: Sequence[relax.Expr],
        output_types: Sequence[relax.TensorType],
        record: KernelRecord,
    ) -> list[relax.Var]:
        """Emit a destination-passing call: ``kernel(*arguments, *outputs)``. Kernels equal in structure are generated
        once, and their records merged (``nodes`` joined). ``record.name`` is the preferred name of the symbol."""
        ...

    def call_kernel_on(
        self,
        kernel: tirx.PrimFunc,
        arguments: Sequence[relax.Expr],
        outputs: Sequence[relax.Var],
        record: KernelRecord,
        numbers: Sequence[Any] = (),
        new: Sequence[relax.TensorType] = (),
    ) -> list[relax.Var]:
        """Like :meth:`call_kernel`, for a kernel that updates ``outputs``, results of other kernels, in place.

        The results are in the same memory; ``outputs`` must not be used any more. ``numbers``: sizes that the kernel
        takes before all tensors; ``new``: types of further results, in memory of their own."""
        ...

    def export_kernel(self, kernel: tirx.PrimFunc, record: KernelRecord) -> str:
        """Add a kernel that ``main`` does not call, once, and return the symbol by which the runtime finds it."""
        ...

    def compute(self, function: Callable[..., Any], arguments: Sequence[relax.Expr], name: str) -> list[relax.Var]:
        """Emit a generic kernel, to which the target's schedule gives threads. ``function`` takes one TE tensor per
        argument and returns one or several."""
        ...

    def emit(self, expression: relax.Expr) -> relax.Var:
        """Bind an intermediate expression (a reshape, a transpose before the kernel) to a variable."""
        ...

    def leave_out(self, node: ir.Node, source: ir.Value) -> bool:
        """Skip a later node, whose result is ``source``, a result of the present one. Returns whether that is possible:
        both have to compute the same tokens."""
        ...

    def bound_to(self, tensor: relax.Expr) -> relax.Expr | None:
        """The expression that was bound to a variable; None for a parameter."""
        ...

    def broadcast_shape(self, shapes: Sequence[Sequence[Any]]) -> list[Any]:
        """The shape that all ``shapes`` broadcast to, as in numpy."""
        ...

    def broadcast_to(self, tensor: relax.Expr, shape: Sequence[Any]) -> relax.Expr:
        """The tensor broadcast to ``shape``. A run-time check requires each of its sizes to be that one or 1."""
        ...

    def assume_shape(self, tensor: relax.Expr, shape: Sequence[Any]) -> relax.Var:
        """A copy of the tensor with another expression for its shape, checked at run time; the tensor itself where it
        is known to have that shape."""
        ...

    def paged(self, value: ir.Value | None) -> PagedTensor | None:
        """The value in pages; None where it is an ordinary tensor."""
        ...

    def appended(self, node: ir.Node, past: PagedTensor, new: relax.Expr, places: Places | None = None) -> PagedTensor:
        """The state after ``new`` was written after the part in use, which stays as it is, or at ``places``."""
        ...

    def ignoring_padding(self, tensor: relax.Expr) -> relax.Var:
        """The same tensor, for kernels that know from elsewhere which of its elements there are."""
        ...

    def last_entries(self, tensor: relax.Expr, count: Any) -> relax.Expr:
        """The last ``count`` entries of a tensor along its last axis."""
        ...

    def in_memory(self, size: Any) -> relax.Var:
        """The value of a size as a tensor int64[1]: the parameter of ``main`` for the length of a state in use, if
        kernels read lengths in memory."""
        ...

    def filled(self, cached: PagedTensor, used: ir.Value | None = None) -> relax.Var:
        """Number of a state's entries that lie in pages, at most ``used``: int64, one number for each entry of the
        state's first axis."""
        ...

    def value_of(self, tensor: relax.Expr) -> ir.Value:
        """An ONNX value for a tensor made by a converter, to pass as an input to :meth:`convert_as`."""
        ...

    def convert_as(self, operator: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any]) -> list[relax.Expr]:
        """Convert another operator, heavy or not, on these inputs, and return its outputs."""
        ...


HeavyConverter = Callable[[LoweringContext, ir.Node], Any]
"""``(lowering, node) -> relax.Expr`` or a sequence of them, one per output of the node. Targets give them by the names
of heavy operators, with ``domain.`` in front outside the default domain."""
