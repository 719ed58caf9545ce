"""Replacements for parts of transformers' models that torch.export cannot trace, or that forget the cache."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from moec.frontend.pytorch import batched_experts, block_attention, dynamic_sizes, positions, recurrences

if TYPE_CHECKING:
    import torch

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": recurrences.causal_convolution,
    "torch_chunk_gated_delta_rule": recurrences.gated_delta_rule,
    "chunk_kimi_delta_attention": recurrences.gated_delta_rule,
    "mamba_selective_scan": recurrences.selective_scan,
    "mamba2_chunk_scan": recurrences.chunk_scan,
}
"""Functions by their names in the file that defines a model."""
_METHODS: dict[tuple[str, str], Callable[..., Any]] = {
    ("BambaModel", "forward"): positions.behind_the_cache,
    ("DbrxExperts", "forward"): batched_experts.dbrx,
    ("LongcatFlashExperts", "forward"): batched_experts.longcat,
    ("Step3p7Experts", "forward"): batched_experts.step,
    ("JetMoeMoE", "forward"): batched_experts.jetmoe,
    ("JetMoeMoA", "map"): batched_experts.jetmoe_queries,
    ("JetMoeMoA", "reduce"): batched_experts.jetmoe_outputs,
    ("MiniMaxLightningAttention", "forward"): recurrences.lightning_attention,
    ("JambaMambaMixer", "forward"): recurrences.mixer_with_state,
    ("MambaMixer", "forward"): recurrences.mixer_with_state,
    ("FalconMambaMixer", "forward"): recurrences.mixer_with_state,
    ("MiniMaxM3VLIndexer", "forward"): block_attention.minimax_indexer,
    ("MiniMaxM3VLIndexer", "build_block_mask"): block_attention.minimax_mask,
    ("Qwen4ExpTextNGramEmbedding", "_shift_right_ignore_eos"): recurrences.tokens_before,
    ("Qwen4ExpTextQSAIndexer", "forward"): block_attention.qwen_indexer,
    ("DeepseekV4HCACompressor", "forward"): block_attention.deepseek_heavy,
    ("DeepseekV4CSACompressor", "forward"): block_attention.deepseek_sparse,
    ("DeepseekV4Indexer", "forward"): block_attention.deepseek_indexer,
}
"""Methods by class and name."""
_BUILTINS: dict[str, Callable[..., Any]] = {"max": dynamic_sizes.largest, "min": dynamic_sizes.smallest}
"""Builtins by name; they are replaced in every file that defines a model."""
_MODELS = "transformers.models."


@contextlib.contextmanager
def exportable(module: torch.nn.Module) -> Iterator[None]:
    """Context in which torch.export can trace the models of transformers in ``module``.

    They compute the same by other operations: experts by ``batched_mm``, recurrences and loops over selected experts
    without loops, and the smaller of two sizes without a branch.
    """
    parts = [part for part in module.modules() if type(part).__module__.startswith(_MODELS)]
    with contextlib.ExitStack() as stack:
        for part in parts:
            stack.enter_context(_batched_experts(part))
            for (kind, name), method in _METHODS.items():
                if type(part).__name__ == kind:
                    stack.enter_context(_replaced(part, name, types.MethodType(method, part)))
        for file in {type(part).__module__ for part in parts}:
            functions = {name: function for name, function in _FUNCTIONS.items() if hasattr(sys.modules[file], name)}
            for name, function in {**functions, **_BUILTINS}.items():
                stack.enter_context(_replaced(sys.modules[file], name, function))
        yield


@contextlib.contextmanager
def _batched_experts(part: torch.nn.Module) -> Iterator[None]:
    """Select ``batched_mm`` for the experts: by default transformers runs them as a data-dependent Python loop."""
    current = getattr(getattr(part, "config", None), "_experts_implementation", None)
    select: Any = getattr(part, "set_experts_implementation", None)
    if select is None or current is None or current == "batched_mm":
        yield
        return
    select("batched_mm")
    try:
        yield
    finally:
        select(current)


@contextlib.contextmanager
def _replaced(holder: Any, name: str, new: Any) -> Iterator[None]:
    before = vars(holder).get(name)
    setattr(holder, name, new)
    try:
        yield
    finally:
        delattr(holder, name)  # afterwards a module finds the method of its class again
        if before is not None:
            setattr(holder, name, before)
