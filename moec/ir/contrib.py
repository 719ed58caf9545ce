"""onnxruntime's own operators as plain numpy functions, with the results of its CPU kernels.

Most are of domain ``com.microsoft``; ``SimplifiedLayerNormalization`` lives in the default domain although ONNX does
not define it. Positional parameters are the inputs (None where left out), keyword parameters the attributes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moec.ir import semantics
from moec.ir.dialect import Activation, ExpertsSpec, GateLayout, RouteSpec

Array = np.ndarray[Any, Any]
OPERATOR_NAMES = frozenset(
    {
        *("BiasGelu", "CausalConvWithState", "FastGelu", "FusedGemm", "FusedMatMul", "GatherBlockQuantized", "Gelu"),
        *("GroupQueryAttention", "LinearAttention", "MatMulNBits", "MoE", "QMoE", "QuickGelu", "RotaryEmbedding"),
        *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
    }
)
"""The operators of domain ``com.microsoft`` that the pass decompose-contrib spells in ONNX and moec."""


def fused_matmul(
    a: Array,
    b: Array,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Array:
    """``alpha * A @ B``; transBatch moves the first axis next to last before the plain transposition is applied."""

    def arrange(x: Array, transposed: int, batch_transposed: int) -> Array:
        if batch_transposed:
            x = np.moveaxis(x, 0, -2)
        return np.swapaxes(x, -1, -2) if transposed and x.ndim > 1 else x

    product = np.matmul(arrange(a, transA, transBatchA), arrange(b, transB, transBatchB))
    return (product * alpha).astype(a.dtype)


def quick_gelu(x: Array, *, alpha: float = 1.702) -> Array:
    return x * semantics.sigmoid(alpha * x)


def bias_gelu(x: Array, bias: Array) -> Array:
    return semantics.gelu(x + bias)


def fast_gelu(x: Array, bias: Array | None = None) -> Array:
    return semantics.gelu_tanh(x if bias is None else x + bias)


def normalize(x: Array, scale: Array, bias: Array | None, epsilon: float, axis: int, centred: bool) -> tuple:
    """Output, mean and reciprocal deviation of layer normalisation, or of RMS normalisation when not centred.

    Statistics are taken in float32 at least, as ONNX's ``stash_type`` says and onnxruntime does.
    """
    wide = x.astype(np.promote_types(np.float32, x.dtype) if x.dtype.itemsize > 2 else np.float32)
    axes = tuple(range(axis % x.ndim, x.ndim))
    mean = wide.mean(axis=axes, keepdims=True) if centred else np.zeros_like(wide[..., :1])
    wide = wide - mean
    reciprocal = 1 / np.sqrt(np.square(wide).mean(axis=axes, keepdims=True) + epsilon)
    y = (wide * reciprocal).astype(x.dtype) * scale
    return (y if bias is None else y + bias), mean, reciprocal


def simplified_layer_normalization(
    x: Array, scale: Array, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> tuple:
    """RMS normalisation; outputs y and the reciprocal root mean square."""
    y, _, reciprocal = normalize(x, scale, None, epsilon, axis, centred=False)
    return y, reciprocal


def skip_simplified_layer_normalization(
    x: Array, skip: Array, gamma: Array, bias: Array | None = None, *, epsilon: float = 1e-12
) -> tuple:
    """RMS normalisation of a residual sum; the fourth output is that sum."""
    total = x + skip if bias is None else x + skip + bias
    return (*normalize(total, gamma, None, epsilon, -1, centred=False), total)


def skip_layer_normalization(
    x: Array,
    skip: Array,
    gamma: Array,
    beta: Array | None = None,
    bias: Array | None = None,
    *,
    epsilon: float = 1e-12,
) -> tuple:
    """Layer normalisation of a residual sum; the fourth output is that sum."""
    total = x + skip if bias is None else x + skip + bias
    return (*normalize(total, gamma, beta, epsilon, -1, centred=True), total)


def causal_conv_with_state(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    state: Array | None = None,
    *,
    ndim: int = 1,
    activation: str = "none",
    dilation: int = 1,
    **layouts: Any,
) -> tuple[Array, Array]:
    """A convolution per channel of x [B,C,L] after ``state`` [B,C,K-1], and the new state: the end of both."""
    if ndim != 1 or any(layouts.values()):
        raise NotImplementedError("com.microsoft.CausalConvWithState: expected one axis, channels first, no window")
    length = (weight.shape[2] - 1) * dilation
    past = np.zeros((*x.shape[:2], length), x.dtype) if state is None else state
    padded = np.concatenate([past, x], axis=2)
    taps = (padded[..., tap * dilation :][..., : x.shape[2]] * weight[:, :, tap] for tap in range(weight.shape[2]))
    y = sum(taps, np.zeros_like(x) if bias is None else bias[:, None])
    return (y * semantics.sigmoid(y) if activation in ("silu", "swish") else y), padded[..., x.shape[2] :]


_MOE_ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu_tanh",
    "silu": "silu",
    "identity": "identity",
    "swiglu": "silu",
}
_SWIGLU_LAYOUTS: dict[int, GateLayout] = {0: "separate", 1: "interleaved", 2: "gate_up"}


def experts_spec(
    has_fc3: bool,
    *,
    activation_type: str = "relu",
    swiglu_fusion: int = 0,
    activation_alpha: float = 1.0,
    activation_beta: float = 0.0,
    swiglu_limit: float | None = None,
) -> ExpertsSpec:
    """The experts of ``com.microsoft.MoE``, from its attributes.

    A swiglu has the gate in fc1 and the up projection in fc3, or both in fc1; other activations gate with fc3. Raises
    ValueError for attributes that mean nothing.
    """
    if activation_type not in _MOE_ACTIVATIONS:
        raise ValueError(
            f"com.microsoft.MoE: activation {activation_type!r} is not supported; expected one of "
            f"{sorted(_MOE_ACTIVATIONS)}"
        )
    if activation_type != "swiglu":
        return ExpertsSpec(_MOE_ACTIVATIONS[activation_type], "separate" if has_fc3 else "none")
    layout = _SWIGLU_LAYOUTS.get(swiglu_fusion)
    if layout is None or (layout == "separate") != has_fc3:
        fc3 = "there" if has_fc3 else "absent"
        raise ValueError(f"com.microsoft.MoE: swiglu_fusion={swiglu_fusion} does not fit fc3 being {fc3}")
    if swiglu_limit is not None and swiglu_limit <= 0:
        raise ValueError(f"com.microsoft.MoE: swiglu_limit is {swiglu_limit:g}; expected it to be positive, or absent")
    return ExpertsSpec("silu", layout, alpha=activation_alpha, up_offset=activation_beta, limit=swiglu_limit or 0.0)


def moe_attributes(spec: ExpertsSpec) -> dict[str, Any]:
    """The attributes by which onnxruntime's kernels for CPUs compute such experts: the opposite of
    :func:`experts_spec`. A gate and its up projection stand in turns in fc1.

    Raises ValueError, which says why, for experts that these kernels do not compute.
    """
    if spec.gated:
        if spec.activation != "silu":
            raise ValueError(f"experts with a gate have the activation {spec.activation!r}, not silu")
        limit = {"swiglu_limit": spec.limit} if spec.limit > 0 else {}
        ends = {"activation_alpha": spec.alpha, "activation_beta": spec.up_offset}
        return {"activation_type": "swiglu", "swiglu_fusion": 1, **ends, **limit}
    names = [name for name, activation in _MOE_ACTIVATIONS.items() if activation == spec.activation]
    if not names:
        raise ValueError(f"experts without a gate have the activation {spec.activation!r}")
    if spec.activation == "silu" and spec.alpha != 1:
        raise ValueError(f"experts without a gate have silu with alpha {spec.alpha:g}, not 1")
    return {"activation_type": names[0]}


def moe(
    x: Array,
    logits: Array,
    *weights: Any,
    k: int = 1,
    normalize_routing_weights: int = 0,
    use_sparse_mixer: int = 0,
    **experts: Any,
) -> Array:
    """``com.microsoft.MoE``: softmax over all experts, top-k, then experts with weights [E, out, in].

    ``weights`` are fc1, fc1_bias, fc2, fc2_bias, fc3, fc3_bias, the last ones optional; ``experts`` are the attributes
    of :func:`experts_spec`. On equal scores onnxruntime takes the higher id, this reference the lower one like all of
    moec.
    """
    if use_sparse_mixer:
        raise NotImplementedError(
            "com.microsoft.MoE: use_sparse_mixer=1 is not implemented by onnxruntime's CPU kernel"
        )
    spec = experts_spec(len(weights) > 4 and weights[4] is not None, **experts)
    return routed_experts(RouteSpec(k=k, normalize=bool(normalize_routing_weights)), spec, x, logits, *weights)


def routed_experts(
    route_spec: RouteSpec,
    spec: ExpertsSpec,
    x: Array,
    logits: Array,
    fc1: Array,
    fc1_bias: Array | None,
    fc2: Array,
    fc2_bias: Array | None = None,
    fc3: Array | None = None,
    fc3_bias: Array | None = None,
) -> Array:
    """A block with the inputs of ``com.microsoft.MoE``, for x [..., d]."""
    rows = x.reshape(-1, x.shape[-1])
    inputs: dict[str, Any] = {"up": fc1, "up_bias": fc1_bias, "down": fc2, "down_bias": fc2_bias}
    if spec.gate_layout == "separate":
        inputs |= {"gate": fc1, "gate_bias": fc1_bias, "up": fc3, "up_bias": fc3_bias}
    return semantics.moe(route_spec, spec, rows, logits, None, **inputs).reshape(x.shape)
