"""MTP layers (multi-token prediction) of folders: layers behind the others that predict the token after next.

For each token, such a layer takes the model's hidden state, normalised as for the logits, and the embedding of the next
token (DeepSeek-V3, arXiv 2412.19437, section 2.2; order of the operands as in vLLM's ``deepseek_mtp.py``,
``glm4_moe_mtp.py``, ``qwen3_next_mtp.py`` and ``ernie_mtp.py``)::

    x = eh_proj(concat(enorm(embedding), hnorm(previous_hidden)))
    hidden = norm(layer(x))
    logits = lm_head(hidden)

Its own hidden state takes the place of the model's to predict one token more. So it is a model of transformers with one
layer, whose embedding is replaced by ``x``; tables of embedding and vocabulary are those of the model unless the layer
has its own. ERNIE 4.5 shares the last norm, too, as in Baidu's FastDeploy (``ernie4_5_mtp.py``); vLLM has none there.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moec.common.errors import MoecError, UnsupportedError
from moec.common.garbage import no_collection
from moec.frontend.huggingface.folder import build_text_model, read_config, read_tensors
from moec.frontend.onnx import conditions

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from moec.frontend.huggingface.binding import Binding
    from moec.frontend.huggingface.checkpoint.weights import CheckpointWeight

EMBEDDING, HEAD, NORM = "model.embed_tokens.", "lm_head.", "model.norm."
_TABLES = EMBEDDING, HEAD
_BLOCK = "model.layers.0."
_ONE_LAYER = {
    "num_hidden_layers": 1,
    "layer_types": ["full_attention"],
    "first_k_dense_replace": 0,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
    "moe_layer_start_index": 1,
}
"""Settings of a model of one layer, as far as its configuration has them. Only ERNIE's MTP layers have no experts."""


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Names of an MTP layer's tensors. ``starts``: how they start in the files, and for each the start in a model of
    one layer; the first that fits counts. ``shared``: starts of names of the model's tensors that stand in for those
    that are missing in the files."""

    starts: Mapping[str, str]
    shared: tuple[str, ...] = _TABLES

    def in_module(self, name: str) -> str | None:
        """Name in the model of one layer; None for a tensor that is not of the MTP layer."""
        return next((new + name.removeprefix(old) for old, new in self.starts.items() if name.startswith(old)), None)

    def in_files(self, name: str) -> str:
        """Name in the files of a tensor of the model of one layer."""
        return next((old + name.removeprefix(new) for old, new in self.starts.items() if name.startswith(new)), name)


def _behind(layers: int) -> _Layout:
    start = f"model.layers.{layers}."
    return _Layout(
        {
            f"{start}embed_tokens.": EMBEDDING,
            f"{start}shared_head.head.": HEAD,
            f"{start}shared_head.norm.": NORM,
            **{f"{start}{part}.": f"{part}." for part in ("enorm", "hnorm", "eh_proj")},
            start: _BLOCK,
        }
    )


def _apart(_: int) -> _Layout:
    return _Layout(
        {
            "mtp.embed_tokens.": EMBEDDING,
            "mtp.norm.": NORM,
            "mtp.pre_fc_norm_embedding.": "enorm.",
            "mtp.pre_fc_norm_hidden.": "hnorm.",
            "mtp.fc.": "eh_proj.",
            "mtp.layers.0.": _BLOCK,
        }
    )


def _in_lists(_: int) -> _Layout:
    starts = {
        "model.mtp_emb_norm.0.": "enorm.",
        "model.mtp_hidden_norm.0.": "hnorm.",
        "model.mtp_linear_proj.0.": "eh_proj.",
        "model.mtp_block.0.": _BLOCK,
    }
    return _Layout(starts, (*_TABLES, NORM))


_LAYOUTS = {
    "deepseek_v3": _behind,
    "ernie4_5_moe": _in_lists,
    "glm4_moe": _behind,
    "qwen3_5_moe_text": _apart,
    "qwen3_5_text": _apart,
    "qwen3_next": _apart,
}
"""Layouts by type of model, for a number of layers before the MTP layer."""


@no_collection()
def import_with_mtp(path: str | os.PathLike[str]) -> tuple[ir.Model, ir.Model]:
    """Import a folder as :func:`moec.frontend.huggingface.folder.import_folder` does, with a cache, and its first MTP
    layer as a second model.

    The first model also has the output ``hidden`` [batch, length, width]. The second one takes ``input_ids``, the
    tokens after those, ``previous_hidden`` and past keys and values of its own; its outputs are ``logits`` and
    ``hidden``. Raises as :func:`import_folder`; MoecError for a folder without MTP layers, UnsupportedError for a type
    of model whose layers moec does not know.
    """
    folder = Path(path)
    config, tensors = read_config(folder), read_tensors(folder)
    from moec.frontend.huggingface.binding import Binding
    from moec.frontend.huggingface.quantised import decode_names
    from moec.frontend.pytorch.hidden_states import return_hidden, take_previous_hidden
    from moec.frontend.pytorch.importer import import_module

    module, where = build_text_model(config, tensors, str(folder)), str(folder)
    layout = _layout_of(module.config, tensors, where)
    weights = decode_names(tensors, config, where)
    of_model = Binding.of_weights(module, weights, where)
    layer = _with_parts_of_mtp(build_text_model(config, tensors, where, _ONE_LAYER))
    of_layer = Binding.of_weights(layer, _weights_of_layer(weights, of_model, layout), where, layout.in_files)
    return_hidden(module)
    model = import_module(module, weights=of_model, cache=True)
    take_previous_hidden(layer)
    mtp = import_module(layer, weights=of_layer, cache=True)
    left = [name for name in of_model.unused if layout.in_module(name) is None]
    unused = (*left, *map(layout.in_files, of_layer.unused))
    dataclasses.replace(conditions.read(model, where), unused=unused).attach(model)
    return model, mtp


def _layout_of(config: Any, names: Iterable[str], where: str) -> _Layout:
    kind = config.model_type
    if kind not in _LAYOUTS:
        raise UnsupportedError(
            f"{where}: moec does not know the MTP layers of {kind}; it knows those of {', '.join(_LAYOUTS)}: compile "
            "without drafts"
        )
    layout = _LAYOUTS[kind](config.num_hidden_layers)
    if not any(layout.in_module(name) for name in names):
        raise MoecError(
            f"{where}: has no MTP layers to draft with: no tensor of its files starts with {list(layout.starts)[-1]}; "
            "compile without drafts, or get a folder that has these layers"
        )
    return layout


def _with_parts_of_mtp(layer: torch.nn.Module) -> torch.nn.Module:
    """Give a model of one layer, which is returned, the parts of an MTP layer that are before it."""
    import torch

    from moec.frontend.huggingface.skeleton import give_placeholders

    config: Any = layer.config
    width = config.hidden_size
    layer.enorm, layer.hnorm = (copy.deepcopy(layer.get_submodule(NORM.removesuffix("."))) for _ in range(2))
    layer.eh_proj = torch.nn.Linear(2 * width, width, bias=False, device="meta")
    give_placeholders(layer)
    return layer


def _weights_of_layer(
    weights: Mapping[str, CheckpointWeight], of_model: Binding, layout: _Layout
) -> dict[str, CheckpointWeight]:
    shared = {name: weight for name, weight in of_model.weights.items() if name.startswith(layout.shared)}
    own = {layout.in_module(name): weight for name, weight in weights.items()}
    return shared | {name: weight for name, weight in own.items() if name is not None}
