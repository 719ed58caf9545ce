"""Rewrites of the graph. ``PASSES`` knows every pass by its pipeline name; a pass's module is imported on first use.

A new pass is one file here with a frozen dataclass (see :mod:`moec.passes.framework.base`) and one line in
``_CLASSES``; :mod:`moec.passes.pipeline` runs passes in order. Folders hold what passes share: ``framework`` (what a
pass is), ``graph`` (edits), ``shapes``, ``weights``, and the parts of single passes (``raising``, ``contrib``,
``control_flow``, ``recurrent``). ``export`` holds the passes for files that other programs run.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

from moec.passes.framework.base import Pass

_CLASSES = {
    "accumulate-experts": "moec.passes.export.accumulate_experts:AccumulateExperts",
    "assign-bits": "moec.passes.assign_bits:AssignBits",
    "call-functions": "moec.passes.export.call_functions:CallFunctions",
    "canonicalize-router": "moec.passes.canonicalize_router:CanonicalizeRouter",
    "cast-states": "moec.passes.cast_states:CastStates",
    "cast-weights": "moec.passes.cast_weights:CastWeights",
    "check-export": "moec.passes.check_export:CheckExport",
    "check-functions": "moec.passes.export.check_functions:CheckFunctions",
    "decompose-contrib": "moec.passes.decompose_contrib:DecomposeContrib",
    "decompose-recurrent": "moec.passes.decompose_recurrent:DecomposeRecurrent",
    "drop-dead-experts": "moec.passes.drop_dead_experts:DropDeadExperts",
    "drop-zero-neurons": "moec.passes.drop_zero_neurons:DropZeroNeurons",
    "eliminate-common-subexpressions": ("moec.passes.eliminate_common_subexpressions:EliminateCommonSubexpressions"),
    "expand-dispatch": "moec.passes.export.expand_dispatch:ExpandDispatch",
    "expand-functions": "moec.passes.expand_functions:ExpandFunctions",
    "expand-linear": "moec.passes.export.expand_linear:ExpandLinear",
    "expand-rounding": "moec.passes.export.expand_rounding:ExpandRounding",
    "expand-route": "moec.passes.export.expand_route:ExpandRoute",
    "fit-attention": "moec.passes.export.fit_attention:FitAttention",
    "fold-constants": "moec.passes.fold_constants:FoldConstants",
    "fold-shapes": "moec.passes.fold_shapes:FoldShapes",
    "fold-trivial-experts": "moec.passes.fold_trivial_experts:FoldTrivialExperts",
    "follow-plan": "moec.passes.follow_plan:FollowPlan",
    "fuse-attention": "moec.passes.fuse_attention:FuseAttention",
    "fuse-normalization": "moec.passes.fuse_normalization:FuseNormalization",
    "fuse-route-dispatch": "moec.passes.fuse_route_dispatch:FuseRouteDispatch",
    "fuse-stored-weights": "moec.passes.fuse_stored_weights:FuseStoredWeights",
    "hold-cache": "moec.passes.hold_cache:HoldCache",
    "infer-shapes": "moec.passes.infer_shapes:InferShapes",
    "inline-control-flow": "moec.passes.inline_control_flow:InlineControlFlow",
    "join-products": "moec.passes.join_products:JoinProducts",
    "keep-rows": "moec.passes.export.keep_rows:KeepRows",
    "last-logits": "moec.passes.last_logits:LastLogits",
    "loop-experts": "moec.passes.export.loop_experts:LoopExperts",
    "low-rank-experts": "moec.passes.low_rank_experts:LowRankExperts",
    "merge-equal-experts": "moec.passes.merge_equal_experts:MergeEqualExperts",
    "merge-experts": "moec.passes.merge_experts:MergeExperts",
    "place-experts": "moec.passes.place_experts:PlaceExperts",
    "prepare-loops": "moec.passes.prepare_loops:PrepareLoops",
    "prune-experts": "moec.passes.prune_experts:PruneExperts",
    "prune-hidden-units": "moec.passes.prune_hidden_units:PruneHiddenUnits",
    "quantize-experts": "moec.passes.quantize_experts:QuantizeExperts",
    "quantize-linears": "moec.passes.quantize_linears:QuantizeLinears",
    "raise-masks": "moec.passes.raise_masks:RaiseMasks",
    "raise-moe": "moec.passes.raise_moe:RaiseMoE",
    "remove-dead-nodes": "moec.passes.remove_dead_nodes:RemoveDeadNodes",
    "rescale-experts": "moec.passes.rescale_experts:RescaleExperts",
    "round-activations": "moec.passes.round_activations:RoundActivations",
    "round-to-tf32": "moec.passes.round_to_tf32:RoundToTf32",
    "share-tables": "moec.passes.export.share_tables:ShareTables",
    "simplify": "moec.passes.simplify:Simplify",
    "skip-experts": "moec.passes.skip_experts:SkipExperts",
    "stream-experts": "moec.passes.stream_experts:StreamExperts",
    "tune-router": "moec.passes.tune_router:TuneRouter",
    "use-fused-matmul": "moec.passes.export.use_fused_matmul:UseFusedMatmul",
    "use-matmul-n-bits": "moec.passes.export.use_matmul_n_bits:UseMatMulNBits",
    "use-moe": "moec.passes.export.use_moe:UseMoE",
    "use-qmoe": "moec.passes.export.use_qmoe:UseQMoE",
    "widen-elements": "moec.passes.export.widen_elements:WidenElements",
}


def _load(location: str) -> type[Pass]:
    module, _, name = location.partition(":")
    return getattr(importlib.import_module(module), name)


PASSES: dict[str, Callable[[], type[Pass]]] = {
    name: functools.partial(_load, location) for name, location in _CLASSES.items()
}
