"""A tiny random model of every architecture, as llama.cpp's converter would store it."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from . import tiny_hybrids
from .gguf_files import Stored, stored, write_file

D, LAYERS, HEADS, GROUPS, HEAD, INNER, VOCABULARY = 32, 2, 4, 2, 8, 64, 40
EXPERTS, USED, OWN = 6, 2, 32
IDS = np.array([3, 17, 0, 39, 22, 5, 11, 30, 8, 1, 25, 13])
MOE: dict[str, Any] = {"expert_count": EXPERTS, "expert_used_count": USED}
Extra = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes above, which tests may change, as they are when a model is made."""

    D: int
    LAYERS: int
    HEADS: int
    GROUPS: int
    HEAD: int
    INNER: int
    VOCABULARY: int
    EXPERTS: int
    OWN: int
    MOE: dict[str, Any]


class Tiny:
    """A model under construction. ``kind``: the format of matrices."""

    def __init__(self, architecture: str, kind: str) -> None:
        self.architecture, self.kind, self.groups = architecture, kind, GROUPS
        self.sizes = Sizes(D, LAYERS, HEADS, GROUPS, HEAD, INNER, VOCABULARY, EXPERTS, OWN, MOE)
        self.random = np.random.default_rng(zlib.crc32(architecture.encode()))
        self.given: dict[str, Any] = {
            "context_length": 64,
            "embedding_length": D,
            "block_count": LAYERS,
            "feed_forward_length": INNER,
            "attention.head_count": HEADS,
            "attention.layer_norm_rms_epsilon": 1e-5,
        }
        self.tensors: dict[str, Stored] = {}
        self.tokenizer: dict[str, Any] = {"model": "none"}
        self.matrix("token_embd.weight", VOCABULARY, D)
        self.norm("output_norm.weight", D)
        self.matrix("output.weight", VOCABULARY, D)

    def matrix(self, name: str, *shape: int) -> None:
        self.tensors[name] = stored(self.random.standard_normal(shape) / np.sqrt(shape[-1]), self.kind)

    def vector(self, name: str, *shape: int, middle: float = 0.0) -> None:
        self.tensors[name] = stored(middle + 0.2 * self.random.standard_normal(shape))

    def norm(self, name: str, size: int) -> None:
        self.vector(name, size, middle=1.0)

    def metadata(self) -> dict[str, Any]:
        """Metadata of the file, by key."""
        metadata: dict[str, Any] = {"general.architecture": self.architecture}
        self.given = {"attention.head_count_kv": self.groups} | self.given
        metadata |= {f"{self.architecture}.{key}": value for key, value in self.given.items()}
        metadata |= {f"tokenizer.ggml.{key}": value for key, value in self.tokenizer.items()}
        return metadata | {f"{self.architecture}.vocab_size": VOCABULARY}

    def write(self, path: Path) -> Path:
        return write_file(path, self.metadata(), self.tensors)

    # --- parts of a layer

    def attention(
        self, layer: int, bias: bool = False, norm: str = "", joined: bool = False, out_bias: bool = False
    ) -> None:
        name, sizes = f"blk.{layer}", {"q": HEADS * HEAD, "k": self.groups * HEAD, "v": self.groups * HEAD}
        sizes = {"qkv": sum(sizes.values())} if joined else sizes
        for part, size in sizes.items():
            self.matrix(f"{name}.attn_{part}.weight", size, D)
            if bias:
                self.vector(f"{name}.attn_{part}.bias", size)
        self.matrix(f"{name}.attn_output.weight", D, HEADS * HEAD)
        if out_bias:
            self.vector(f"{name}.attn_output.bias", D)
        if norm:
            self.norm(f"{name}.attn_q_norm.weight", HEAD if norm == "head" else HEADS * HEAD)
            self.norm(f"{name}.attn_k_norm.weight", HEAD if norm == "head" else self.groups * HEAD)

    def norms(self, layer: int, *names: str) -> None:
        for label in names:
            self.norm(f"blk.{layer}.{label}.weight", D)

    def mlp(self, layer: int, inner: int | None = None, end: str = "") -> None:
        inner = INNER if inner is None else inner
        for part, shape in (("gate", (inner, D)), ("up", (inner, D)), ("down", (D, inner))):
            self.matrix(f"blk.{layer}.ffn_{part}{end}.weight", *shape)

    def experts(self, layer: int, inner: int | None = None, correction: bool = False, bias: bool = False) -> None:
        name, inner = f"blk.{layer}", OWN if inner is None else inner
        self.tensors[f"{name}.ffn_gate_inp.weight"] = stored(self.random.standard_normal((EXPERTS, D)))
        for part, shape in (("gate", (inner, D)), ("up", (inner, D)), ("down", (D, inner))):
            self.matrix(f"{name}.ffn_{part}_exps.weight", EXPERTS, *shape)
            if bias:
                self.vector(f"{name}.ffn_{part}_exps.bias", EXPERTS, shape[0])
        if bias:
            self.vector(f"{name}.ffn_gate_inp.bias", EXPERTS)
        if correction:
            self.vector(f"{name}.exp_probs_b.bias", EXPERTS)


def _llama(tiny: Tiny, moe: bool = False, **options: Any) -> None:
    own = options.pop("own", INNER)
    for layer in range(LAYERS):
        tiny.norms(layer, "attn_norm", "ffn_norm")
        tiny.attention(layer, **options)
        tiny.experts(layer, own) if moe else tiny.mlp(layer)
    tiny.given |= MOE if moe else {}


def _scaled_llama(tiny: Tiny) -> None:
    """Build Llama 3 with its table of factors, and an embedding that is also the output matrix."""
    _llama(tiny)
    del tiny.tensors["output.weight"]
    tiny.vector("rope_freqs.weight", HEAD // 2, middle=3.0)
    tiny.given |= {"rope.dimension_count": HEAD, "rope.freq_base": 500_000.0}


def _yarn(tiny: Tiny) -> None:
    _llama(tiny)
    tiny.given |= {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 16,
    }


def _qwen2moe(tiny: Tiny) -> None:
    _llama(tiny, moe=True, bias=True, own=OWN)
    tiny.given |= {"expert_feed_forward_length": OWN, "expert_shared_feed_forward_length": 64}
    for layer in range(LAYERS):
        tiny.mlp(layer, 64, "_shexp")
        tiny.vector(f"blk.{layer}.ffn_gate_inp_shexp.weight", D)


def _qwen3moe(tiny: Tiny) -> None:
    _llama(tiny, moe=True, norm="head", own=OWN)
    tiny.given |= {"expert_feed_forward_length": OWN}


def _olmoe(tiny: Tiny) -> None:
    tiny.groups = HEADS
    _llama(tiny, moe=True, norm="all")


def _olmo2(tiny: Tiny) -> None:
    for layer in range(LAYERS):
        tiny.attention(layer, norm="all")
        tiny.norms(layer, "post_attention_norm", "post_ffw_norm")
        tiny.mlp(layer)


def _olmo3(tiny: Tiny) -> None:
    _olmo2(tiny)
    tiny.given |= {"attention.sliding_window": 5, "attention.sliding_window_pattern": 2}
    tiny.given |= {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}


def _granite(tiny: Tiny, moe: bool = False) -> None:
    _llama(tiny, moe)
    tiny.given |= {"embedding_scale": 3.0, "residual_scale": 0.4, "attention.scale": 0.2, "logit_scale": 2.0}
    if moe:
        tiny.given |= {"expert_shared_feed_forward_length": 32}
        for layer in range(LAYERS):
            tiny.mlp(layer, 32, "_shexp")


def _gemma(tiny: Tiny, after: bool = False, norm: str = "") -> None:
    _llama(tiny, norm=norm)
    del tiny.tensors["output.weight"]
    for layer in range(LAYERS) if after else ():
        tiny.norms(layer, "post_attention_norm", "post_ffw_norm")


def _gemma2(tiny: Tiny) -> None:
    _gemma(tiny, after=True)
    tiny.given |= {"attention.sliding_window": 5, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}


def _gemma3(tiny: Tiny) -> None:
    _gemma(tiny, after=True, norm="head")
    tiny.given |= {"attention.sliding_window": 5, "attention.sliding_window_pattern": [True, False]}
    tiny.given |= {"rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}


def _gpt_oss(tiny: Tiny) -> None:
    for layer in range(LAYERS):
        tiny.norms(layer, "attn_norm", "post_attention_norm")
        tiny.attention(layer, bias=True, out_bias=True)
        tiny.vector(f"blk.{layer}.attn_sinks.weight", HEADS)
        tiny.experts(layer, bias=True)
    tiny.given |= MOE | {"expert_feed_forward_length": OWN, "attention.sliding_window": 5}
    tiny.given |= {"attention.key_length": HEAD, "attention.value_length": HEAD, "rope.dimension_count": HEAD}
    tiny.given |= {"rope.scaling.type": "yarn", "rope.scaling.factor": 32.0, "rope.scaling.original_context_length": 16}


def _phi3(tiny: Tiny) -> None:
    _llama(tiny, joined=True)
    for layer in range(LAYERS):
        del tiny.tensors[f"blk.{layer}.ffn_gate.weight"]
        tiny.matrix(f"blk.{layer}.ffn_up.weight", 2 * INNER, D)
    tiny.given |= {"attention.sliding_window": 5, "rope.dimension_count": HEAD}


def _phimoe(tiny: Tiny, original: int = 1024) -> None:
    _llama(tiny, moe=True, bias=True, out_bias=True)
    names = [f"blk.{layer}.{norm}" for layer in range(LAYERS) for norm in ("attn_norm", "ffn_norm")]
    for name in (*names, "output_norm"):
        tiny.vector(f"{name}.bias", D)
    tiny.vector("output.bias", VOCABULARY)
    for which, middle in (("long", 4.0), ("short", 1.5)):
        tiny.vector(f"rope_factors_{which}.weight", HEAD // 2, middle=middle)
    tiny.given |= {"rope.scaling.type": "longrope", "rope.scaling.attn_factor": 1.2, "rope.dimension_count": HEAD}
    tiny.given |= {"rope.scaling.original_context_length": original}


def _beside_shared(tiny: Tiny, norm: str = "head", bias: bool = False, second: str = "ffn_norm") -> None:
    for layer in range(LAYERS):
        tiny.norms(layer, "attn_norm", second)
        tiny.attention(layer, bias=bias, norm=norm)
        if layer == 0:
            tiny.mlp(layer)
        else:
            tiny.experts(layer, correction=True)
            tiny.mlp(layer, OWN, "_shexp")
    tiny.given |= MOE | {"expert_feed_forward_length": OWN, "leading_dense_block_count": 1, "expert_shared_count": 1}
    tiny.given |= {"expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": 1.5}


def _glm4moe(tiny: Tiny) -> None:
    """Build GLM-4.5: half of a head rotates; a layer that predicts further tokens is left out."""
    _beside_shared(tiny, bias=True, second="post_attention_norm")
    tiny.given |= {"rope.dimension_count": HEAD // 2}


def _dots1(tiny: Tiny) -> None:
    tiny.groups = HEADS
    _beside_shared(tiny)


def _ernie(tiny: Tiny) -> None:
    _beside_shared(tiny, norm="")
    for key in ("expert_gating_func", "expert_weights_norm", "expert_weights_scale"):
        del tiny.given[key]
    tiny.given |= {"expert_shared_feed_forward_length": OWN, "interleave_moe_layer_step": 1}


def _dbrx(tiny: Tiny) -> None:
    for layer in range(LAYERS):
        tiny.norms(layer, "attn_norm", "attn_output_norm")
        tiny.attention(layer, joined=True)
        tiny.experts(layer, INNER)
    del tiny.given["attention.layer_norm_rms_epsilon"]
    tiny.given |= MOE | {"attention.layer_norm_epsilon": 1e-5, "attention.clamp_kqv": 0.5}


def _lfm2(tiny: Tiny, moe: bool = False) -> None:
    for layer in range(LAYERS):
        tiny.norms(layer, "attn_norm", "ffn_norm")
        if layer:
            tiny.attention(layer, norm="head")
        else:
            tiny.matrix("blk.0.shortconv.in_proj.weight", 3 * D, D)
            tiny.matrix("blk.0.shortconv.out_proj.weight", D, D)
            tiny.vector("blk.0.shortconv.conv.weight", D, 3)
        tiny.experts(layer, correction=True) if moe and layer else tiny.mlp(layer)
    tiny.tensors["token_embd_norm.weight"] = tiny.tensors.pop("output_norm.weight")
    tiny.given |= {"attention.head_count_kv": [0, GROUPS], "shortconv.l_cache": 3}
    if moe:
        tiny.given |= MOE | {"expert_feed_forward_length": OWN, "leading_dense_block_count": 1, "expert_gating_func": 2}


def _deepseek2(tiny: Tiny, absorbed: bool = True) -> None:
    """Build DeepSeek-V2: latent attention, groups of experts, YaRN with DeepSeek's factor."""
    rank, query_rank, plain, turned, value = 32, 32, 8, 4, 8
    _beside_shared(tiny, norm="")
    for layer in range(LAYERS):
        name = f"blk.{layer}"
        for part in "qkv":
            del tiny.tensors[f"{name}.attn_{part}.weight"]
        tiny.matrix(f"{name}.attn_q_a.weight", query_rank, D)
        tiny.norm(f"{name}.attn_q_a_norm.weight", query_rank)
        tiny.matrix(f"{name}.attn_q_b.weight", HEADS * (plain + turned), query_rank)
        tiny.matrix(f"{name}.attn_kv_a_mqa.weight", rank + turned, D)
        tiny.norm(f"{name}.attn_kv_a_norm.weight", rank)
        if absorbed:
            kind, tiny.kind = tiny.kind, "F32"
            tiny.matrix(f"{name}.attn_k_b.weight", HEADS, rank, plain)
            tiny.matrix(f"{name}.attn_v_b.weight", HEADS, value, rank)
            tiny.kind = kind
        else:
            tiny.matrix(f"{name}.attn_kv_b.weight", HEADS * (plain + value), rank)
    lengths = {"key_length": plain + turned, "value_length": value}
    if absorbed:
        lengths = {f"{key}_mla": size for key, size in lengths.items()}
        lengths |= {"key_length": rank + turned, "value_length": rank}
    tiny.given |= {f"attention.{key}": size for key, size in lengths.items()}
    tiny.given |= {"attention.head_count_kv": 1 if absorbed else HEADS, "rope.dimension_count": turned}
    tiny.given |= {"attention.q_lora_rank": query_rank, "attention.kv_lora_rank": rank}
    tiny.given |= {"expert_group_count": 3, "expert_group_used_count": 2}
    tiny.given |= {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}
    tiny.given |= {"rope.scaling.yarn_log_multiplier": 0.07}


def _minimax(tiny: Tiny) -> None:
    for layer in range(LAYERS):
        tiny.norms(layer, "attn_norm", "ffn_norm")
        tiny.attention(layer, norm="all")
        tiny.experts(layer, correction=True)
    tiny.given |= MOE | {"expert_feed_forward_length": OWN, "feed_forward_length": OWN, "expert_gating_func": 2}
    tiny.given |= {"rope.dimension_count": HEAD // 2, "attention.key_length": HEAD, "attention.value_length": HEAD}


def _hunyuan(tiny: Tiny) -> None:
    _llama(tiny, moe=True, norm="head", own=OWN)
    for layer in range(LAYERS):
        tiny.mlp(layer, INNER, "_shexp")
    tiny.given |= {"expert_feed_forward_length": OWN, "feed_forward_length": OWN}
    tiny.given |= {"expert_shared_feed_forward_length": INNER, "expert_shared_count": 1}


MODELS: dict[str, tuple[str, Any, Extra]] = {
    "llama": ("llama", _llama, {}),
    "llama 3": ("llama", _scaled_llama, {}),
    "llama with yarn": ("llama", _yarn, {}),
    "mixtral": ("llama", _llama, {"moe": True}),
    "qwen2": ("qwen2", _llama, {"bias": True}),
    "qwen3": ("qwen3", _llama, {"norm": "head"}),
    "qwen2moe": ("qwen2moe", _qwen2moe, {}),
    "qwen3moe": ("qwen3moe", _qwen3moe, {}),
    "olmoe": ("olmoe", _olmoe, {}),
    "olmo2": ("olmo2", _olmo2, {}),
    "olmo3": ("olmo2", _olmo3, {}),
    "granite": ("granite", _granite, {}),
    "granitemoe": ("granitemoe", _granite, {"moe": True}),
    "gemma": ("gemma", _gemma, {}),
    "gemma2": ("gemma2", _gemma2, {}),
    "gemma3": ("gemma3", _gemma3, {}),
    "gpt-oss": ("gpt-oss", _gpt_oss, {}),
    "phi3": ("phi3", _phi3, {}),
    "phimoe": ("phimoe", _phimoe, {}),
    "phimoe, long": ("phimoe", _phimoe, {"original": 8}),
    "glm4moe": ("glm4moe", _glm4moe, {}),
    "dots1": ("dots1", _dots1, {}),
    "ernie4_5": ("ernie4_5", _llama, {}),
    "ernie4_5-moe": ("ernie4_5-moe", _ernie, {}),
    "dbrx": ("dbrx", _dbrx, {}),
    "lfm2": ("lfm2", _lfm2, {}),
    "lfm2moe": ("lfm2moe", _lfm2, {"moe": True}),
    "deepseek2": ("deepseek2", _deepseek2, {}),
    "deepseek2 of keys and values": ("deepseek2", _deepseek2, {"absorbed": False}),
    "glm-dsa": ("glm-dsa", tiny_hybrids.glm_dsa, {"base": _deepseek2, "top_k": 5}),
    "glm-dsa, short": ("glm-dsa", tiny_hybrids.glm_dsa, {"base": _deepseek2, "top_k": 64}),
    "qwen3next": ("qwen3next", tiny_hybrids.qwen3next, {}),
    "qwen3next with one input matrix": ("qwen3next", tiny_hybrids.qwen3next, {"older": True}),
    "qwen35moe": ("qwen35moe", tiny_hybrids.qwen3next, {}),
    "qwen35": ("qwen35", tiny_hybrids.qwen3next, {"moe": False}),
    "minimax-m2": ("minimax-m2", _minimax, {}),
    "hunyuan-moe": ("hunyuan-moe", _hunyuan, {}),
    "llama4": ("llama4", tiny_hybrids.llama4, {}),
    "nemotron_h_moe": ("nemotron_h_moe", tiny_hybrids.nemotron_h, {}),
    "nemotron_h_moe with a latent": ("nemotron_h_moe", tiny_hybrids.nemotron_h, {"latent": 16}),
    "nemotron_h": ("nemotron_h", tiny_hybrids.nemotron_h, {"moe": False}),
    "gemma4": ("gemma4", tiny_hybrids.gemma4, {}),
    "gemma4 with experts": ("gemma4", tiny_hybrids.gemma4, {"moe": True}),
}
"""Architecture and builder of each model, by name."""


def write_model(name: str, path: Path, kind: str = "F32") -> Path:
    """Write the tiny model of that name, with matrices in the format ``kind``."""
    architecture, make, options = MODELS[name]
    tiny = Tiny(architecture, kind)
    make(tiny, **options)
    return tiny.write(path)


WIDE = {"D": 256, "HEADS": 4, "GROUPS": 2, "HEAD": 64, "INNER": 256}
"""Sizes for formats whose blocks hold 256 weights."""
