"""Graphs of MoE language models that the package mobius-onnx builds offline, small and with random weights.

Each has two layers (three where types of layers alternate), sizes of a few dozen, and a cache.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
FORMS = ("dense", "int4", "int4_zeros", "int8")
"""Every expert for every token in float32; weights of 4 bits, symmetric and with zero points, and of 8 bits."""

_PACKED = ("GatherBlockQuantized", "MatMulNBits", "QMoE")


@dataclasses.dataclass(frozen=True)
class Model:
    """``blocks`` MoE layers; settings of mobius' ``config`` class that differ from ``_COMMON``. ``takes_one``: a run
    takes a single token."""

    blocks: int = 2
    config: str = "ArchitectureConfig"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    takes_one: bool = False


_COMMON: dict[str, Any] = {
    "vocab_size": 99,
    "max_position_embeddings": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "head_dim": 16,
    "pad_token_id": 0,
    "rope_type": "default",
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
}
_SHARED = {"shared_expert_intermediate_size": 32}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
_GROUPS = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "n_group": 2, "topk_group": 1}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "partial_rotary_factor": 0.5,
}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 2}
_V4 = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "o_groups": 2,
    "o_lora_rank": 8,
    "n_shared_experts": 1,
    "scoring_func": "sqrtsoftplus",
    "num_hash_layers": 1,
    "hc_mult": 2,
    "hc_sinkhorn_iters": 2,
    "swiglu_limit": 10.0,
    "rope_interleave": True,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 4,
}

MODELS: dict[str, Model] = {
    "arctic": Model(),
    "dbrx": Model(),
    "deepseek_v2": Model(1, settings=_LATENT),
    "deepseek_v2_moe": Model(1, settings=_LATENT),
    "deepseek_v3": Model(1, settings={**_LATENT, **_GROUPS, "routed_scaling_factor": 2.5}),
    "deepseek_v4": Model(2, settings=_V4),
    "dots1": Model(1, settings={**_LATENT, **_GROUPS, "n_group": 1}),
    "ernie4_5_moe": Model(settings=_SHARED),
    "flex_olmo": Model(settings={"post_feedforward_norm": True, "attn_qk_norm": True, "attn_qk_norm_full": True}),
    "glm4_moe": Model(settings={**_SHARED, "partial_rotary_factor": 0.5}),
    "glm4v_moe_text": Model(settings=_SHARED),
    "gpt_oss": Model(settings={"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "granitemoe": Model(settings={"residual_multiplier": 0.5}),
    "granitemoehybrid": Model(
        config="GraniteMoeHybridConfig",
        settings={"layer_types": ["mamba2", "full_attention"], "shared_intermediate_size": 32, **_MAMBA2},
    ),
    "granitemoeshared": Model(settings=_SHARED),
    "hunyuan_v1_moe": Model(settings=_SHARED),
    "jamba": Model(
        1,
        "JambaConfig",
        {
            "layer_types": ["mamba", "full_attention"],
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_dt_rank": 8,
        },
        takes_one=True,
    ),
    "jetmoe": Model(2, "JetMoeConfig"),
    "longcat_flash": Model(1, "LongcatFlashConfig", {**_LATENT, "zero_expert_num": 2}),
    "minimax": Model(settings={"layer_types": ["full_attention", "full_attention"]}),
    "mixtral": Model(),
    "nemotron_h": Model(
        1,
        "NemotronHConfig",
        {"num_hidden_layers": 3, "layer_types": ["mamba2", "full_attention", "moe"], "hidden_act": "relu2", **_MAMBA2},
    ),
    "olmoe": Model(settings={"attn_qk_norm": True, "attn_qk_norm_full": True, "norm_topk_prob": False}),
    "phimoe": Model(settings={"attn_qkv_bias": True}),
    "qwen2_moe": Model(settings={**_SHARED, "attn_qkv_bias": True}),
    "qwen3_5_moe": Model(settings={**_SHARED, **_LINEAR}),
    "qwen3_moe": Model(settings={"attn_qk_norm": True}),
    "qwen3_next": Model(settings={**_SHARED, **_LINEAR}),
    "qwen3_omni_moe": Model(settings={"attn_qk_norm": True}),
    "qwen3_vl_moe": Model(settings={"attn_qk_norm": True}),
}


def build(name: str, form: str, seed: int = 0) -> bytes:
    """The serialised model. ``form``: one of FORMS. Raises ValueError for a form that mobius builds as another one, and
    whatever it raises itself."""
    import mobius
    import onnx_ir as ir
    from mobius import _configs

    row = MODELS[name]
    settings: dict[str, Any] = {**_COMMON, **row.settings, "model_type": name}
    if form != "dense":
        bits = 8 if form == "int8" else 4
        settings["quantization"] = _configs.QuantizationConfig(bits, 16, "gptq", sym=form != "int4_zeros")
    config = getattr(_configs, row.config)(**settings)
    task = mobius.registry.get_task(name) or getattr(mobius.registry.get(name), "default_task", "text-generation")
    model = mobius.build_from_module(mobius.registry.get(name)(config), config, task)["model"]
    if form != "dense" and not any(node.op_type in _PACKED for node in model.graph):
        raise ValueError(f"{name} has no form {form}: it is built without quantised weights")
    _fill(model.graph, np.random.default_rng(seed))
    return ir.to_proto(model).SerializeToString()


def _fill(graph: Any, generator: np.random.Generator) -> None:
    """Random numbers for the parameters, which mobius leaves open.

    The matrices of routers in front of QMoE are not registered by version 0.1.0, all under one name: so they are here.
    """
    import onnx_ir as ir

    for node in list(graph):
        for value in node.inputs:
            known = value is None or value.producer() is not None or value.is_graph_input() or value.is_initializer()
            if value is not None and not known:
                value.name = f"{node.name}.{value.name}"
                value.const_value = ir.tensor(_numbers(generator, value.shape.numpy(), value.dtype.numpy(), False))
                value.const_value.name = value.name
                graph.register_initializer(value)
    for value in graph.initializers.values():
        if value.const_value is None:
            kind, shape = value.dtype.numpy(), value.shape.numpy()
            packed = any(user.node.op_type in _PACKED for user in value.uses())
            value.const_value = ir.tensor(_numbers(generator, shape, kind, packed), name=value.name)


def _numbers(generator: np.random.Generator, shape: tuple[int, ...], kind: np.dtype[Any], are_scales: bool) -> Array:
    if kind.kind in "iu":
        return generator.integers(0, 6 if kind.itemsize > 1 else 256, shape).astype(kind)
    if are_scales and len(shape) > 1:
        return generator.uniform(0.01, 0.04, shape).astype(kind)
    numbers = generator.standard_normal(shape)
    return (1 + 0.1 * numbers if len(shape) < 2 else numbers / np.sqrt(shape[-1])).astype(kind)


def feeds(inputs: Any, batch: int, length: int, past: int, seed: int = 0) -> dict[str, Array]:
    """Values for the inputs of a model (``onnx.ValueInfoProto``): ``length`` tokens behind ``past`` others."""
    generator = np.random.default_rng(seed)
    results: dict[str, Array] = {}
    for value in inputs:
        kind, shape = value.type.tensor_type, []
        for dim in kind.shape.dim:
            name = dim.dim_param
            sizes = (past if "past" in name else 0, length if "seq" in name.replace("past_seq", "") else 0)
            shape.append(dim.dim_value or (batch if name == "batch" else sum(sizes)))
        if value.name == "position_ids":
            place = np.arange(past, past + length)
            results[value.name] = np.broadcast_to(place, shape).astype(np.int64)
        elif kind.elem_type == 7:
            most = 99 if value.name == "input_ids" else 2
            results[value.name] = generator.integers(0, most, shape) if most > 2 else np.ones(shape, np.int64)
        else:
            results[value.name] = generator.standard_normal(shape).astype(np.float32)
    return results


def as_onnxruntime_takes(model: Any) -> Any:
    """A model that computes the same as ``model`` (``onnx.ModelProto``) by what onnxruntime's CPU kernel of QMoE has:
    gate and up rows in turns (``swiglu_fusion`` 1), where mobius has all gates first (2), and logits of rank 2."""
    import onnx

    result = onnx.ModelProto.FromString(model.SerializeToString())
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    for node in [node for node in result.graph.node if node.op_type == "QMoE"]:
        for attribute in node.attribute:
            if attribute.name == "swiglu_fusion" and attribute.i == 2:
                attribute.i = 1
                for name in filter(None, (node.input[at] for at in (2, 3, 4, 11) if at < len(node.input))):
                    rows = onnx.numpy_helper.to_array(tensors[name])
                    halves = np.stack(np.split(rows, 2, axis=1), axis=2).reshape(rows.shape)
                    tensors[name].CopyFrom(onnx.numpy_helper.from_array(halves, name))
        experts = tensors[node.input[2]].dims[0]
        for at in (at for at in (1, 14) if at < len(node.input) and node.input[at]):
            shape, flat = f"{node.name}.{at}.shape", f"{node.name}.{at}.rows"
            result.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, experts]), shape))
            place = list(result.graph.node).index(node)
            result.graph.node.insert(place, onnx.helper.make_node("Reshape", [node.input[at], shape], [flat]))
            result.graph.node[place + 1].input[at] = flat
    return result
