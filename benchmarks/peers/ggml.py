"""ggml, the library of llama.cpp, through the package ggml-python: ``mul_mat_id`` as in llama.cpp's MoE block.

Weights are in the buffer type CPU_REPACK, which lays them out for this processor, where ggml has such a layout for the
type ("repacked"), or as they are.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from formats import Format
from layers import Case, Layer, Weights

from peers import AbsentError, Built, require_package

_TYPES = {
    "fp32": {"f32": "F32"},
    "bf16": {"bf16": "BF16"},
    "int8": {"q8_0": "Q8_0", "q8_0 repacked": "Q8_0"},
    "int4-g32": {"q4_0 repacked": "Q4_0", "q4_K": "Q4_K", "q4_K repacked": "Q4_K"},
    "mxfp4": {"mxfp4 repacked": "MXFP4"},
}
_CONTEXT_BYTES = 1 << 21


class Ggml:
    def variants(self, layer: Layer, form: Format) -> list[str]:
        require_package("ggml")
        if form.name not in _TYPES:
            raise AbsentError(f"it has no type like {form.name}")
        if layer.width % 256 or layer.hidden % 256:
            return [name for name in _TYPES[form.name] if "_K" not in name]
        return list(_TYPES[form.name])

    def build(self, variant: str, layer: Layer, form: Format, weights: Weights, threads: int) -> Built:
        import ggml

        backend = ggml.ggml_backend_cpu_init()
        ggml.ggml_backend_cpu_set_n_threads(backend, threads)
        kind = getattr(ggml, f"GGML_TYPE_{_TYPES[form.name][variant]}")
        buffer_type = _repacking_buffers(ggml) if "repacked" in variant else _plain_buffers(ggml)
        tensors = _Tensors(ggml, weights, kind, buffer_type)
        if "repacked" in variant and not all(tensor.contents.extra for tensor in tensors.by_name.values()):
            raise AbsentError("it has no layout of its own for this type on this processor")
        tensors.fill()
        bits = 8 * tensors.bytes / (layer.experts * layer.weights_per_expert)
        return Built(bits, lambda case: _Graph(ggml, backend, layer, tensors.by_name, case).compute, keep=(tensors,))


def _device(ggml: Any) -> Any:
    return ggml.ggml_backend_dev_by_type(ggml.GGML_BACKEND_DEVICE_TYPE_CPU)


def _plain_buffers(ggml: Any) -> Any:
    return ggml.ggml_backend_dev_buffer_type(_device(ggml))


def _repacking_buffers(ggml: Any) -> Any:
    """Find the buffer type CPU_REPACK. Raises AbsentError."""
    device = _device(ggml)
    registry = ggml.ggml_backend_dev_backend_reg(device)
    address = ggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    if not address:
        raise AbsentError("it was built without CPU_REPACK")
    extra = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)(device)
    for index in range(64):
        if not extra[index]:
            break
        if b"REPACK" in ggml.ggml_backend_buft_name(extra[index]):
            return extra[index]
    raise AbsentError("it has no layouts of its own for this processor")


class _Tensors:
    """The weights of all experts in ggml's memory."""

    def __init__(self, ggml: Any, weights: Weights, kind: int, buffer_type: Any) -> None:
        self._ggml, self._weights, self._kind = ggml, weights, kind
        self._context = _context(ggml)
        self.by_name = {}
        for name in weights.projections:
            _, rows, inner = weights.projection(name).shape
            sizes = inner, rows, weights.layer.experts
            self.by_name[name] = ggml.ggml_new_tensor_3d(self._context, kind, *sizes)
        self._buffer = ggml.ggml_backend_alloc_ctx_tensors_from_buft(self._context, buffer_type)

    @property
    def bytes(self) -> int:
        return sum(self._ggml.ggml_nbytes(tensor) for tensor in self.by_name.values())

    def fill(self) -> None:
        """Quantise the weights into the tensors."""
        for name, tensor in self.by_name.items():
            data = self._weights.for_all_experts(self._quantized(self._weights.projection(name)))
            self._ggml.ggml_backend_tensor_set(tensor, data.ctypes.data, 0, data.nbytes)

    def _quantized(self, distinct: np.ndarray) -> np.ndarray:
        """Quantise to bytes [distinct, ...]."""
        count, rows, inner = distinct.shape
        numbers = np.ascontiguousarray(distinct)
        data = np.empty((count, rows * self._ggml.ggml_row_size(self._kind, inner)), np.uint8)
        source = numbers.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        self._ggml.ggml_quantize_chunk(self._kind, source, data.ctypes.data, 0, count * rows, inner, None)
        return data

    def __del__(self) -> None:
        self._ggml.ggml_backend_buffer_free(self._buffer)
        self._ggml.ggml_free(self._context)


class _Graph:
    """The computation for one case."""

    def __init__(self, ggml: Any, backend: Any, layer: Layer, tensors: dict[str, Any], case: Case) -> None:
        self._ggml, self._backend = ggml, backend
        self._context = _context(ggml)
        tokens = len(case.x)
        x = ggml.ggml_new_tensor_3d(self._context, ggml.GGML_TYPE_F32, layer.width, 1, tokens)
        logits = ggml.ggml_new_tensor_2d(self._context, ggml.GGML_TYPE_F32, layer.experts, tokens)
        for tensor in (x, logits):
            ggml.ggml_set_output(tensor)  # otherwise its memory is reused, and a second run has other inputs
        self._y = _moe_block(ggml, self._context, layer, tensors, x, logits)
        ggml.ggml_set_output(self._y)
        self._graph = ggml.ggml_new_graph(self._context)
        ggml.ggml_build_forward_expand(self._graph, self._y)
        self._allocator = ggml.ggml_gallocr_new(_plain_buffers(ggml))
        ggml.ggml_gallocr_alloc_graph(self._allocator, self._graph)
        for tensor, data in ((x, case.x), (logits, case.logits)):
            ggml.ggml_backend_tensor_set(tensor, data.ctypes.data, 0, data.nbytes)
        self._shape = tokens, layer.width

    def compute(self) -> np.ndarray:
        self._ggml.ggml_backend_graph_compute(self._backend, self._graph)
        pointer = ctypes.cast(self._y.contents.data, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, self._shape)

    def __del__(self) -> None:
        self._ggml.ggml_gallocr_free(self._allocator)
        self._ggml.ggml_free(self._context)


def _moe_block(ggml: Any, context: Any, layer: Layer, tensors: dict[str, Any], x: Any, logits: Any) -> Any:
    """Build the block as llama.cpp does."""
    tokens, chosen = x.contents.ne[2], layer.chosen
    scores = ggml.ggml_soft_max(context, logits)
    ids = ggml.ggml_argsort_top_k(context, scores, chosen)
    weights = ggml.ggml_get_rows(context, ggml.ggml_reshape_3d(context, scores, 1, layer.experts, tokens), ids)
    weights = ggml.ggml_reshape_2d(context, weights, chosen, tokens)
    weights = ggml.ggml_div(context, weights, ggml.ggml_sum_rows(context, weights))
    weights = ggml.ggml_reshape_3d(context, weights, 1, chosen, tokens)
    hidden = ggml.ggml_mul_mat_id(context, tensors["up"], x, ids)
    if layer.gated:
        hidden = ggml.ggml_swiglu_split(context, ggml.ggml_mul_mat_id(context, tensors["gate"], x, ids), hidden)
    else:
        hidden = ggml.ggml_relu(context, hidden)
    out = ggml.ggml_mul(context, ggml.ggml_mul_mat_id(context, tensors["down"], hidden, ids), weights)
    strides = out.contents.nb
    slots = [
        ggml.ggml_view_2d(context, out, layer.width, tokens, strides[2], slot * strides[1]) for slot in range(chosen)
    ]
    y = slots[0]
    for slot in slots[1:]:
        y = ggml.ggml_add(context, y, slot)
    return y if chosen > 1 else ggml.ggml_cont(context, y)


def _context(ggml: Any) -> Any:
    """Make a context for descriptions of tensors and graphs; data is stored elsewhere."""
    return ggml.ggml_init(ggml.ggml_init_params(mem_size=_CONTEXT_BYTES, mem_buffer=None, no_alloc=True))


PEER = Ggml()
