"""What the builders of all architectures share: the file's tensors as values of the graph, and the frame of a decoder.

Sizes: B batch, S new tokens (``length``), P past tokens, D the width of the residual stream, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.errors import MoecError, UnsupportedError
from moec.frontend.gguf import formats
from moec.frontend.gguf.hyperparameters import Hyperparameters
from moec.frontend.gguf.reader import GgufFile, GgufTensor
from moec.frontend.gguf.writer import GraphWriter
from moec.frontend.text_cache import PAST
from moec.frontend.text_cache import SIZES as CACHE_SIZES
from moec.frontend.text_inputs import SIZES
from moec.ir.dialect import LinearSpec
from moec.ir.weights.format import WeightFormat, name_of
from moec.ir.weights.levels import LEVELS, product_of_levels
from moec.ir.weights.minima import less_minima
from moec.ir.weights.stored import decoding_node

Array = np.ndarray[Any, Any]
FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
BATCH, PAST_LENGTH = CACHE_SIZES[0], CACHE_SIZES[2]


class Builder:
    """A file and the graph that is made of it. ``with_cache``: past keys and values come in, present ones go out.

    Every tensor and every hyperparameter of the file has to be asked for: :meth:`finish` refuses what is left.
    """

    def __init__(self, file: GgufFile, with_cache: bool) -> None:
        self.file, self.with_cache = file, with_cache
        self.given = Hyperparameters(file)
        self.write = GraphWriter(self.given.architecture)
        self.layers = self.given.layers()
        self.width = self.given.whole("embedding_length")
        self.given.refuse("attention.causal", True)
        self.ids = self.write.input("input_ids", INT64, SIZES)
        self._past_keys: ir.Value | None = None
        self.states: list[tuple[str, ir.Value]] = []
        self.windows: dict[int, ir.Value] = {}
        self.float_tables: list[str] = []
        """Tensors that are stored in more bits than they have, for no kernel multiplies by them as they are."""
        self._unused = set(file.tensors)
        self._stored: dict[str, ir.Value] = {}

    # --- tensors

    def has(self, name: str) -> bool:
        return name in self.file.tensors

    def tensor(self, name: str, *shape: int) -> GgufTensor:
        """A tensor of that shape. Raises MoecError where the file has none."""
        found = self.file.tensors.get(name)
        if found is None:
            raise MoecError(
                f"{self.file.path}: has no tensor {name!r}, which a model of {self.given.architecture} needs; "
                "convert or download it again"
            )
        if found.shape != shape:
            raise MoecError(
                f"{found.where}: is {list(found.shape)}, but the metadata asks for {list(shape)}; they do not belong "
                "together, convert the model again"
            )
        self._unused.discard(name)
        return found

    def numbers(self, name: str, *shape: int) -> Array:
        """The numbers of a small tensor in float32."""
        return formats.decoded(self.tensor(name, *shape))

    def vector(self, name: str, *shape: int) -> ir.Value:
        """A small tensor as a constant in float32."""
        if name not in self._stored:
            self._stored[name] = self.write.constant(self.numbers(name, *shape), name)
        return self._stored[name]

    def optional_vector(self, name: str, *shape: int) -> ir.Value | None:
        return self.vector(name, *shape) if self.has(name) else None

    def matrix(self, name: str, *shape: int) -> ir.Value:
        """A weight of a product as it is stored, [out,in] or [experts,out,in]."""
        if name not in self._stored:
            self._stored[name] = self._store(name, self.tensor(name, *shape))
        return self._stored[name]

    def float_table(self, name: str, *shape: int, order: tuple[int, ...] | None = None) -> ir.Value:
        """A constant in float32, whatever it is stored in, with its axes in another ``order``; for what takes no stored
        weights."""
        tensor = self.tensor(name, *shape)
        if tensor.kind != "F32":
            self.float_tables.append(name)
        axes = tuple(range(len(shape))) if order is None else order

        def load() -> ir.TensorProtocol:
            return ir.tensor(np.ascontiguousarray(formats.decoded(tensor).transpose(axes)))

        return self.write.weight(ir.LazyTensor(load, FLOAT, ir.Shape([shape[axis] for axis in axes])), name)

    def _store(self, name: str, tensor: GgufTensor) -> ir.Value:
        weight, write = formats.weight_of(tensor), self.write
        values: dict[str, ir.Value] = {
            table: write.weight(array.tensor(), name if table == "data" else f"{name}.{table}")
            for table, array in weight.tables.items()
        }
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
                span = form.super_group // form.group
                values[table] = product_of_levels(write.graph, None, codes, factors, weight.axis, span)
        node = decoding_node(form, data, values.get("scale"), None, weight.axis, FLOAT)
        (decoded,) = write.add(node, f"{name}.decoded")
        if not form.minima:
            return decoded
        return less_minima(write.graph, None, decoded, values["minimum"], weight.axis, form.group)

    # --- what layers are made of

    def linear(self, x: ir.Value, name: str, inputs: int, outputs: int, bias: ir.Value | None = None) -> ir.Value:
        """``x @ name.weight.T``, plus ``bias``, or ``name.bias`` where the file has one."""
        weight = self.matrix(f"{name}.weight", outputs, inputs)
        bias = self.optional_vector(f"{name}.bias", outputs) if bias is None else bias
        return self.write.moec("Linear", name, LinearSpec(), x=x, weight=weight, bias=bias)[0]

    def rms_norm(self, x: ir.Value, name: str, width: int | None = None) -> ir.Value:
        """RMS normalisation along the last axis; ``name.bias`` is added where the file has one (Phi)."""
        width = self.width if width is None else width
        epsilon = self.given.number("attention.layer_norm_rms_epsilon")
        scale = self.vector(f"{name}.weight", width)
        y = self.write.op("RMSNormalization", x, scale, axis=-1, epsilon=epsilon, label=name)
        bias = self.optional_vector(f"{name}.bias", width)
        return y if bias is None else self.write.op("Add", y, bias, label=f"{name}.biased")

    def layer_norm(self, x: ir.Value, name: str) -> ir.Value:
        epsilon = self.given.number("attention.layer_norm_epsilon")
        operands = [x, self.vector(f"{name}.weight", self.width), self.optional_vector(f"{name}.bias", self.width)]
        operands = operands[: 3 if operands[2] is not None else 2]
        return self.write.op("LayerNormalization", *operands, axis=-1, epsilon=epsilon, label=name)

    # --- the frame

    @property
    def vocabulary(self) -> int:
        """The rows of the embedding table."""
        found = self.file.tensors.get("token_embd.weight")
        return 0 if found is None else found.shape[0]

    def head(self, x: ir.Value, softcap: float = 0.0, scale: float = 1.0, norm: str = "output_norm") -> ir.Value:
        """Logits [B,S,V] of the last layer's result; the matrix is that of the embedding where the file has no own."""
        is_layer_norm = "attention.layer_norm_epsilon" in self.given
        normal = self.layer_norm(x, norm) if is_layer_norm else self.rms_norm(x, norm)
        name = "output" if self.has("output.weight") else "token_embd"
        bias = self.optional_vector("output.bias", self.vocabulary)
        logits = self.linear(normal, name, self.width, self.vocabulary, bias)
        logits = self.write.scaled(logits, scale, "logits.scaled")
        if softcap:
            bounded = self.write.op("Tanh", self.write.op("Div", logits, self.write.scalar(softcap)))
            logits = self.write.op("Mul", bounded, self.write.scalar(softcap), label="logits.bounded")
        return logits

    @functools.cached_property
    def batch(self) -> ir.Value:
        """How many sequences there are, [1]."""
        return self.write.op("Shape", self.ids, start=0, end=1, label="batch_size")

    @functools.cached_property
    def before(self) -> ir.Value:
        """How many tokens are past, [1]: so many as the first of the past keys."""
        if self._past_keys is None:
            return self.write.numbers(0)
        return self.write.op("Shape", self._past_keys, start=2, end=3, label="past_length")

    @functools.cached_property
    def total(self) -> ir.Value:
        """How many tokens there are, past and new, [1]."""
        length = self.write.op("Shape", self.ids, start=1, end=2, label="new_length")
        return self.write.op("Add", self.before, length, label="total_length")

    @functools.cached_property
    def positions(self) -> ir.Value:
        """The position [S] of each new token."""
        first, last = (self.write.op("Squeeze", value, self.write.numbers(0)) for value in (self.before, self.total))
        return self.write.op("Range", first, last, self.write.whole(1), label="positions")

    def past(self, kind: str, layer: int, shape: tuple[int | str, ...]) -> ir.Value:
        """The input that brings a layer's state of the tokens before; :meth:`keep` gives the next one out."""
        made = self.write.input(f"{PAST}_{kind}_{layer}", FLOAT, shape)
        if kind == "key" and self._past_keys is None:
            self._past_keys = made
        return made

    def keep(self, kind: str, layer: int, value: ir.Value) -> None:
        """Let a layer's state be an output."""
        self.states.append((f"present_{kind}_{layer}", value))

    def finish(self, logits: ir.Value) -> ir.Model:
        """The model. Raises UnsupportedError for tensors and hyperparameters that nobody asked for."""
        self.write.output(logits, "logits")
        for name, value in self.states:
            self.write.output(value, name)
        self.given.check_all_asked()
        further = tuple(f"blk.{layer}." for layer in range(self.layers, self.given.whole("block_count")))
        self.skipped = sorted(name for name in self._unused if further and name.startswith(further))
        left = sorted(self._unused - set(self.skipped))
        if left:
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            raise UnsupportedError(
                f"{self.file.tensors[left[0]].where}: moec does not know what this tensor does in a model of "
                f"{self.given.architecture}{more}"
            )
        return ir.Model(self.write.graph, ir_version=_IR_VERSION, producer_name="moec")


_IR_VERSION = 10
