"""Linear attention, a recurrence over tokens, as one operator of PyTorch that ``torch.export`` keeps.

A loop over tokens would fix the length. The operator is exported as onnxruntime's LinearAttention, because PyTorch's
exporter knows no opset that has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import onnx

from moec.common.once import once

if TYPE_CHECKING:
    import torch

_DOMAIN, _NAME = "com.microsoft", "LinearAttention"
Rule = Literal["gated", "gated_delta"]


def linear_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor | None,
    scale: float,
    initial: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute linear attention in float32.

    ``query`` and ``key`` [B,T,H,K], ``value`` [B,T,H,V]; ``decay`` [B,T,H], or [B,T,H,K] with one for each channel, is
    a logarithm; ``beta`` [B,T,H] selects the delta rule; ``initial`` [B,H,K,V] is the state before, zeros by default.
    Returns the results [B,T,H,V] and the state after the last token. Each step computes

    - with the delta rule ``S = exp(decay) S``, then ``S = S + k (beta (v - S^T k))^T``;
    - otherwise ``S = exp(decay) S + k v^T``;
    - the result ``scale S^T q``.
    """
    batch, _, heads, size = key.shape
    if initial is None:
        initial = value.new_zeros((batch, heads, size, value.shape[-1]))
    rows = [tensor.float().flatten(2) for tensor in (query, key, value)]
    gates = [decay.float().flatten(2), decay.new_zeros(1) if beta is None else beta.float()]
    rule: Rule = "gated" if beta is None else "gated_delta"
    result, after = _operator()(*rows, initial.float(), *gates, heads, rule, scale)
    return result.unflatten(2, (heads, value.shape[-1])), after


@once
def _operator() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    import torch

    def compute(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        state: torch.Tensor,
        decay: torch.Tensor,
        beta: torch.Tensor,
        heads: int,
        rule: str,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        query, key, value, decay = (tensor.unflatten(2, (heads, -1)) for tensor in (query, key, value, decay))
        result, state = torch.empty_like(value), state.clone()
        for token in range(key.shape[1]):
            state *= decay[:, token, ..., None].exp()
            new, of_key = value[:, token], key[:, token, ..., None]
            if rule == "gated_delta":
                new = (new - (state * of_key).sum(-2)) * beta[:, token, :, None]
            state += of_key * new[..., None, :]
            result[:, token] = (state * query[:, token, ..., None]).sum(-2) * scale
        return result.flatten(2), state

    tensors = ", ".join(f"Tensor {name}" for name in ("query", "key", "value", "state", "decay", "beta"))
    schema = f"({tensors}, int heads, str rule, float scale) -> (Tensor, Tensor)"
    operator = torch.library.custom_op("moec::linear_attention", compute, mutates_args=(), schema=schema)
    operator.register_fake(lambda query, key, value, state, *_: (torch.empty_like(value), torch.empty_like(state)))
    return operator


def translations() -> dict[Any, Callable[..., Any]]:
    """Translation of the operator for ``torch.onnx.export``, in the form of its ``custom_translation_table``."""
    import torch
    from onnxscript import values

    _operator()
    standard = onnx.defs.get_schema(_NAME, 27)
    constraints = [
        (constraint.type_param_str, constraint.allowed_type_strs, "") for constraint in standard.type_constraints
    ]
    schema = onnx.defs.OpSchema(
        _NAME,
        _DOMAIN,
        1,
        inputs=standard.inputs,
        outputs=standard.outputs,
        type_constraints=constraints,
        attributes=list(standard.attributes.values()),
    )
    operator = values.Op(values.Opset(_DOMAIN, 1), _NAME, schema)

    def translate(*operands: Any) -> Any:
        *tensors, beta, heads, rule, scale = operands
        operands_in_order = tensors if rule == "gated" else [*tensors, beta]
        return operator(*operands_in_order, kv_num_heads=heads, q_num_heads=heads, update_rule=rule, scale=scale)

    return {torch.ops.moec.linear_attention.default: translate}
