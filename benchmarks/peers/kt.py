"""KTransformers' kt-kernel: its experts for AMX and AVX-512, driven as its own wrapper does.

int8 rounds each row of the weights, int4 and MXFP4 have bfloat16 scales. Tokens are bfloat16. Its dispatcher is one
more thread that never sleeps, in addition to the workers.
"""

from __future__ import annotations

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

_CLASSES = {
    "bf16": "AMXBF16_MOE",
    "int8": "AMXInt8_MOE",
    "int4-g32": "AMXInt4_KGroup_MOE",
    "mxfp4": "AMXFP4_KGroup_MOE",
}
_MOST_TOKENS = 1024


class Kt:
    def variants(self, layer: Layer, form: Format) -> list[str]:
        require_package("kt_kernel")
        if form.name not in _CLASSES:
            raise AbsentError(f"it has no experts in {form.name}")
        if not layer.gated:
            raise AbsentError("it has no experts without a gate")
        if form.group and (layer.width % form.group or layer.hidden % form.group):
            raise AbsentError("the layer's widths are no multiple of the group")
        return [""]

    def build(self, variant: str, layer: Layer, form: Format, weights: Weights, threads: int) -> Built:
        import torch
        from kt_kernel import kt_kernel_ext

        kind = getattr(kt_kernel_ext.moe, _CLASSES[form.name], None)
        if kind is None:
            raise AbsentError(f"this processor lacks what its {form.name} needs")
        torch.set_num_threads(1)
        pool = _pool(kt_kernel_ext, threads)
        unused = torch.zeros(layer.experts, dtype=torch.bool)
        config = kt_kernel_ext.moe.MOEConfig(layer.experts, layer.chosen, layer.width, layer.hidden, unused.data_ptr())
        config.pool, config.max_len = pool.backend_, _MOST_TOKENS
        weights_in_use = _set_weights(config, weights, form)
        experts = kind(config)
        order = torch.arange(layer.experts, dtype=torch.int64)
        pool.submit(experts.load_weights_task(order.data_ptr()))
        pool.sync()
        weights_in_use.clear()
        bits = form.bits + 16 / form.group if form.group else form.bits
        return Built(
            bits, lambda case: _call(pool, experts, layer, case), lambda y: y.float().numpy(), keep=(unused, order)
        )


def _pool(kt_kernel_ext: Any, threads: int) -> Any:
    config = kt_kernel_ext.WorkerPoolConfig()
    config.subpool_count = 1
    config.subpool_numa_map = [0]
    config.subpool_thread_count = [threads]
    return kt_kernel_ext.CPUInfer(config)


def _call(pool: Any, experts: Any, layer: Layer, case: Case) -> Callable[[], torch.Tensor]:
    import torch

    x, logits = torch.from_numpy(case.x).to(torch.bfloat16), torch.from_numpy(case.logits)
    y, count = torch.empty_like(x), torch.tensor([len(x)], dtype=torch.int32)

    def call() -> torch.Tensor:
        scores, ids = route(logits, layer.chosen)
        pointers = (tensor.data_ptr() for tensor in (ids, scores, x, y))
        pool.submit(experts.forward_task(count.data_ptr(), layer.chosen, *pointers, False))
        pool.sync()
        return y

    return call


def _set_weights(config: Any, weights: Weights, form: Format) -> list[Any]:
    """Point the configuration to the weights. Returns the objects that have to live until they are loaded."""
    import torch

    if form.name == "int8":
        stacks = {name: stack(weights, name, torch.bfloat16) for name in weights.projections}
        for name, numbers in stacks.items():
            setattr(config, f"{name}_proj", numbers.data_ptr())
        return list(stacks.values())
    if form.group:
        config.quant_config.bits, config.quant_config.group_size = 4, form.group
        config.quant_config.zero_point = False
    keep: list[Any] = []
    for name in weights.projections:
        numbers, scales = _rounded(weights.projection(name), form)
        keep += [numbers, scales]
        setattr(config, f"{name}_projs", [_pointers(weights, numbers)])
        setattr(config, f"{name}_scales", [_pointers(weights, scales)])
    return keep


def _rounded(distinct: np.ndarray, form: Format) -> tuple[np.ndarray, np.ndarray | None]:
    """Round the distinct experts. Returns their numbers and scales, if there are any."""
    if form.name == "bf16":
        return distinct.astype(ml_dtypes.bfloat16), None
    if form.name == "mxfp4":
        elements, exponents = round_mxfp4(distinct)
        scales = np.ldexp(np.float32(1), exponents.astype(np.int32) - 127)
        return pack_pairs(elements.view(np.uint8)), scales.astype(ml_dtypes.bfloat16)
    numbers, scales = round_integers(distinct, 4, form.group, ml_dtypes.bfloat16)
    return pack_pairs((numbers + 8).astype(np.uint8)), scales


def _pointers(weights: Weights, distinct: np.ndarray | None) -> list[int]:
    """List one address per expert; 0 stands for nothing."""
    if distinct is None:
        return [0] * weights.layer.experts
    addresses = np.array([weight.ctypes.data for weight in distinct])
    return [int(address) for address in weights.for_all_experts(addresses)]


PEER = Kt()
