"""State that the builders of all architectures share: the file's tensors as values of the graph, and common parts.

Sizes: B batch, S new tokens (``length``), P past tokens, D the width of the residual stream, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError, UnsupportedError
from moec.common.specs import HIDDEN, State
from moec.frontend.gguf.file import formats
from moec.frontend.gguf.file.hyperparameters import Hyperparameters
from moec.frontend.gguf.file.reader import GgufFile, GgufTensor
from moec.frontend.gguf.graph.writer import GraphWriter
from moec.frontend.pytorch.text_cache import PAST
from moec.frontend.pytorch.text_cache import SIZES as CACHE_SIZES
from moec.frontend.pytorch.text_inputs import SIZES
from moec.ir.dialect import LinearSpec
from moec.ir.minima import less_minima
from moec.ir.states import set_states
from moec.ir.weights.format import WeightFormat, name_of
from moec.ir.weights.levels import LEVELS, product_of_levels
from moec.ir.weights.stored import decoding_node

Array = np.ndarray[Any, Any]
FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
BATCH, PAST_LENGTH = CACHE_SIZES[0], CACHE_SIZES[2]


class FilePart(enum.Enum):
    """Part of a file that is built: the model without MTP layers; the same with the hidden states that they take as a
    further output; the first MTP layer."""

    WHOLE = enum.auto()
    MAIN = enum.auto()
    MTP = enum.auto()


@dataclasses.dataclass(frozen=True)
class LayerTensors:
    """The tensors of a layer's ``moec.Experts`` node that have an entry for each expert along their first axis.

    ``names``: names in the file, by the operand of the node that they are (``up``, ``down_bias``, ...), and by
    ``router``, ``router_bias`` and ``correction_bias``.
    """

    node: ir.Node
    names: Mapping[str, str]


class Builder:
    """A file and the graph that is made of ``part`` of it. ``with_cache``: past keys and values are inputs, present
    ones outputs.

    Builders have to ask for every tensor and every hyperparameter of the file: :meth:`finish` refuses those that are
    left.
    """

    def __init__(self, file: GgufFile, with_cache: bool, part: FilePart = FilePart.WHOLE) -> None:
        self.file, self.with_cache, self.part = file, with_cache, part
        self.metadata = Hyperparameters(file)
        self.write = GraphWriter(self.metadata.architecture)
        self.layers = self.metadata.layers()
        self.blocks = self.layers + (part is FilePart.MTP)
        """Number of layers of which some part may be built: the MTP layer follows the others."""
        self.width = self.metadata.whole("embedding_length")
        self.metadata.refuse("attention.causal", True)
        self.ids = self.write.input("input_ids", INT64, SIZES)
        self._past_keys: ir.Value | None = None
        self._states: list[State] = []
        self._kept: dict[str, ir.Value] = {}
        self._hidden: ir.Value | None = None
        self.windows: dict[int, ir.Value] = {}
        self.float_tables: list[str] = []
        """Tensors that are stored with more bits than in the file, because no kernel multiplies by their format."""
        self.expert_layers: list[LayerTensors] = []
        self.matrices: dict[ir.Value, str] = {}
        """Tensors of the file that are weights of products, by their values in the graph."""
        self._unused = set(file.tensors)
        self._stored: dict[str, ir.Value] = {}
        self._tables: dict[str, ir.Value] = {}

    # --- tensors

    def has(self, name: str) -> bool:
        return name in self.file.tensors

    def tensor(self, name: str, *shape: int) -> GgufTensor:
        """Look up a tensor. Raises MoecError where the file has none of that name, or one of another shape."""
        tensor = self.file.tensors.get(name)
        if tensor is None:
            raise MoecError(
                f"{self.file.path}: has no tensor {name!r}, which a model of {self.metadata.architecture} needs; "
                "convert or download it again"
            )
        if tensor.shape != shape:
            raise MoecError(
                f"{tensor.where}: is {list(tensor.shape)}, but the metadata asks for {list(shape)}; they do not belong "
                "together, convert the model again"
            )
        self._unused.discard(name)
        return self._with_factors(name, tensor) if tensor.kind == "NVFP4" else tensor

    def _with_factors(self, name: str, tensor: GgufTensor) -> GgufTensor:
        """Add the floats that an NVFP4 tensor is multiplied by, where the file has them. The scale of its inputs, by
        which llama.cpp rounds them, is not used."""
        self._unused.discard(f"{name.removesuffix('weight')}input_scale")
        factors = f"{name.removesuffix('weight')}scale"
        if not self.has(factors):
            return tensor
        count = tensor.shape[0] if len(tensor.shape) == 3 else 1
        return dataclasses.replace(tensor, factors=self.numbers(factors, count))

    def numbers(self, name: str, *shape: int) -> Array:
        """Decode a small tensor to float32."""
        return formats.decoded(self.tensor(name, *shape))

    def vector(self, name: str, *shape: int) -> ir.Value:
        """Store a small tensor as a float32 constant."""
        if name not in self._stored:
            self._stored[name] = self.write.constant(self.numbers(name, *shape), name)
        return self._stored[name]

    def optional_vector(self, name: str, *shape: int) -> ir.Value | None:
        return self.vector(name, *shape) if self.has(name) else None

    def matrix(self, name: str, *shape: int) -> ir.Value:
        """Store a weight of a product in its own format, [out,in] or [experts,out,in]."""
        if name not in self._stored:
            self._stored[name] = self._store(name, self.tensor(name, *shape))
            self.matrices[self._stored[name]] = name
        return self._stored[name]

    def float_table(self, name: str, *shape: int, order: tuple[int, ...] | None = None) -> ir.Value:
        """Store a tensor of any format as a float32 constant with its axes in another ``order``, for operators that
        take no stored weights."""
        tensor = self.tensor(name, *shape)
        if tensor.kind != "F32":
            self.float_tables.append(name)
        axes = tuple(range(len(shape))) if order is None else order

        def load() -> ir.TensorProtocol:
            return ir.tensor(np.ascontiguousarray(formats.decoded(tensor).transpose(axes)))

        return self.write.weight(ir.LazyTensor(load, FLOAT, ir.Shape([shape[axis] for axis in axes])), name)

    def table(self, name: str, tensor: GgufTensor, table: formats.Table) -> ir.Value:
        """Store a table of a tensor as it is in the file. Products and look-ups share it."""
        label = name if table == "data" else f"{name}.{table}"
        if label not in self._tables:
            array = formats.weight_of(tensor).tables[table]
            self._tables[label] = self.write.weight(array.tensor(), label)
        return self._tables[label]

    def _store(self, name: str, tensor: GgufTensor) -> ir.Value:
        weight, write = formats.weight_of(tensor), self.write
        values: dict[str, ir.Value] = {table: self.table(name, tensor, table) for table in weight.tables}
        data = values["data"]
        if data.dtype == FLOAT:
            return data
        assert data.dtype is not None
        form = weight.form
        if form is None:
            kind = name_of(data.dtype)
            assert kind is not None
            form = WeightFormat(kind)
        for table, levels in LEVELS.items():
            if levels[0] in values:
                codes, factors = (values[level] for level in levels)
                span = form.span(tensor.shape[-1])
                values[table] = product_of_levels(write.graph, None, codes, factors, weight.axis, span)
        node = decoding_node(form, data, values.get("scale"), None, weight.axis, FLOAT)
        (decoded,) = write.add(node, f"{name}.decoded")
        if not form.minima:
            return decoded
        return less_minima(write.graph, None, decoded, values["minimum"], weight.axis, form.group)

    # --- operators of layers

    def linear(self, x: ir.Value, name: str, inputs: int, outputs: int, bias: ir.Value | None = None) -> ir.Value:
        """``x @ name.weight.T``, plus ``bias``, or ``name.bias`` where the file has one."""
        weight = self.matrix(f"{name}.weight", outputs, inputs)
        bias = self.optional_vector(f"{name}.bias", outputs) if bias is None else bias
        return self.write.moec("Linear", name, LinearSpec(), x=x, weight=weight, bias=bias)[0]

    def rms_norm(self, x: ir.Value, name: str, width: int | None = None) -> ir.Value:
        """RMS normalisation along the last axis; ``name.bias`` is added where the file has one (Phi)."""
        width = self.width if width is None else width
        epsilon = self.metadata.number("attention.layer_norm_rms_epsilon")
        scale = self.vector(f"{name}.weight", width)
        y = self.write.op("RMSNormalization", x, scale, axis=-1, epsilon=epsilon, label=name)
        bias = self.optional_vector(f"{name}.bias", width)
        return y if bias is None else self.write.op("Add", y, bias, label=f"{name}.biased")

    def unit_norm(self, x: ir.Value, width: int) -> ir.Value:
        """RMS normalisation along the last axis without weights."""
        epsilon, label = self.metadata.number("attention.layer_norm_rms_epsilon"), f"ones.{width}"
        if label not in self._stored:
            self._stored[label] = self.write.constant(np.ones(width, np.float32), label)
        return self.write.op("RMSNormalization", x, self._stored[label], axis=-1, epsilon=epsilon)

    def layer_norm(self, x: ir.Value, name: str) -> ir.Value:
        epsilon = self.metadata.number("attention.layer_norm_epsilon")
        operands = [x, self.vector(f"{name}.weight", self.width), self.optional_vector(f"{name}.bias", self.width)]
        operands = operands[: 3 if operands[2] is not None else 2]
        return self.write.op("LayerNormalization", *operands, axis=-1, epsilon=epsilon, label=name)

    # --- inputs, states and outputs of the graph

    @property
    def vocabulary(self) -> int:
        """The rows of the embedding table."""
        table = self.file.tensors.get("token_embd.weight")
        return 0 if table is None else table.shape[0]

    def head(
        self, x: ir.Value, softcap: float = 0.0, scale: float = 1.0, norm: str = "output_norm", matrix: str = ""
    ) -> ir.Value:
        """Compute logits [B,S,V] of the last layer's result, by the output matrix or another one. A file without an
        output matrix shares that of the embedding. MTP layers take the normalised result (vLLM, llama.cpp)."""
        keys = "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"
        is_layer_norm = [key in self.metadata for key in keys] == [True, False]
        normal = self.layer_norm(x, norm) if is_layer_norm else self.rms_norm(x, norm)
        self._hidden = None if self.part is FilePart.WHOLE else normal
        name = matrix or ("output" if self.has("output.weight") else "token_embd")
        bias = self.optional_vector("output.bias", self.vocabulary)
        logits = self.linear(normal, name, self.width, self.vocabulary, bias)
        logits = self.write.scaled(logits, scale, "logits.scaled")
        if softcap:
            bounded = self.write.op("Tanh", self.write.op("Div", logits, self.write.scalar(softcap)))
            logits = self.write.op("Mul", bounded, self.write.scalar(softcap), label="logits.bounded")
        return logits

    @functools.cached_property
    def batch(self) -> ir.Value:
        """Number of sequences, [1]."""
        return self.write.op("Shape", self.ids, start=0, end=1, label="batch_size")

    @functools.cached_property
    def before(self) -> ir.Value:
        """Number of past tokens, [1], read from the shape of the first past keys; 0 without them."""
        if self._past_keys is None:
            return self.write.numbers(0)
        return self.write.op("Shape", self._past_keys, start=2, end=3, label="past_length")

    @functools.cached_property
    def total(self) -> ir.Value:
        """Number of past and new tokens together, [1]."""
        length = self.write.op("Shape", self.ids, start=1, end=2, label="new_length")
        return self.write.op("Add", self.before, length, label="total_length")

    @functools.cached_property
    def positions(self) -> ir.Value:
        """Position of each new token, [S]."""
        first, last = (self.write.op("Squeeze", value, self.write.numbers(0)) for value in (self.before, self.total))
        return self.write.op("Range", first, last, self.write.whole(1), label="positions")

    @functools.cached_property
    def columns(self) -> ir.Value:
        """Position of each key, past or new, [P+S]."""
        last = self.write.op("Squeeze", self.total, self.write.numbers(0))
        return self.write.op("Range", self.write.whole(0), last, self.write.whole(1), label="keys")

    def past(self, kind: str, layer: int, shape: tuple[int | str, ...]) -> ir.Value:
        """Add an input for a layer's state of the past tokens; :meth:`keep` returns the next state, which has more
        elements along an axis of the size ``PAST_LENGTH``, and replaces a state that has none."""
        name, axis = f"{PAST}_{kind}_{layer}", shape.index(PAST_LENGTH) if PAST_LENGTH in shape else None
        state = self.write.input(name, FLOAT, shape)
        self._states.append(State(name, f"present_{kind}_{layer}", axis))
        if kind == "key" and self._past_keys is None:
            self._past_keys = state
        return state

    def keep(self, kind: str, layer: int, value: ir.Value) -> None:
        """Make a layer's state an output of the graph."""
        self._kept[f"present_{kind}_{layer}"] = value

    def finish(self, logits: ir.Value) -> ir.Model:
        """Add the outputs and return the model. Raises UnsupportedError for tensors and hyperparameters that nobody
        asked for."""
        self.write.output(logits, "logits")
        if self._hidden is not None:
            self.write.output(self._hidden, HIDDEN)
        for name, value in self._kept.items():
            self.write.output(value, name)
        self.metadata.check_all_asked()
        self.skipped = sorted(name for name in self._unused if self._is_elsewhere(name))
        left = sorted(self._unused - set(self.skipped))
        if left:
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            raise UnsupportedError(
                f"{self.file.tensors[left[0]].where}: moec does not know what this tensor does in a model of "
                f"{self.metadata.architecture}{more}"
            )
        model = ir.Model(self.write.graph, ir_version=_IR_VERSION, producer_name="moec")
        set_states(model, self._states)
        return model

    def _is_elsewhere(self, name: str) -> bool:
        """Whether a tensor is of a layer that is not part of this graph, or of all layers in the graph of one."""
        if self.part is FilePart.MTP:
            return not name.startswith(f"blk.{self.layers}.")
        further = range(self.layers, self.metadata.whole("block_count"))
        return any(name.startswith(f"blk.{layer}.") for layer in further)


_IR_VERSION = 10
