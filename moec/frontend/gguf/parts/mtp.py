"""MTP layers (multi-token prediction, ``nextn`` in files): layers behind the others that predict the token after next.

For each token it takes the model's hidden state, normalised as for the logits, and the embedding of the next token
(DeepSeek-V3, arXiv 2412.19437, section 2.2; order of the operands as in llama.cpp and vLLM)::

    x = eh_proj(concat(enorm(embedding), hnorm(previous_hidden)))
    hidden = shared_head_norm(layer(x))
    logits = output(hidden)

Its own hidden state takes the place of the model's to predict one token more. Files may repeat the tables of the
embedding and of the vocabulary for it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError, UnsupportedError
from moec.common.specs import PREVIOUS_HIDDEN
from moec.frontend.gguf.file.hyperparameters import Hyperparameters
from moec.frontend.gguf.file.reader import GgufFile
from moec.frontend.gguf.graph.builder import FLOAT, Builder, FilePart
from moec.frontend.gguf.parts.decoder import Norms, decoder, decoder_layer
from moec.frontend.gguf.parts.embedding import embed
from moec.frontend.gguf.parts.feed_forward import Step
from moec.frontend.pytorch.text_inputs import SIZES

ARCHITECTURES = "deepseek2", "glm4moe", "qwen35", "qwen35moe", "qwen3next"
"""Architectures whose MTP layers can be built."""
_PRE_NORMS = Norms()


def check_mtp(file: GgufFile) -> None:
    """Raise MoecError for a file without MTP layers, UnsupportedError for an architecture whose layers moec does not
    know."""
    metadata = Hyperparameters(file)
    key = f"{metadata.architecture}.nextn_predict_layers"
    if not metadata.whole("nextn_predict_layers", 0, least=0):
        reason = f"{key} is 0" if "nextn_predict_layers" in metadata else f"its metadata has no {key}"
        raise MoecError(
            f"{file.path}: has no MTP layers to draft with: {reason}; compile without drafts, or get a file that was "
            "converted with these layers"
        )
    if metadata.architecture not in ARCHITECTURES:
        raise UnsupportedError(
            f"{file.path}: moec does not know the MTP layers of {metadata.architecture}; it knows those of "
            f"{', '.join(ARCHITECTURES)}: compile without drafts"
        )


def text_or_mtp(build: Builder, attend: Step, feed_forward: Step, norms: Norms = _PRE_NORMS) -> ir.Value:
    """Compute the logits [B,S,V] of the model, or of its MTP layer where that is built."""
    if build.part is not FilePart.MTP:
        return build.head(decoder(build, embed(build), attend, feed_forward, norms))
    name = f"blk.{build.layers}.nextn"
    hidden = build.write.input(PREVIOUS_HIDDEN, FLOAT, (*SIZES, build.width))
    embedded = embed(build, name=f"{_table(build, f'{name}.embed_tokens', 'token_embd')}.weight")
    both = [build.rms_norm(embedded, f"{name}.enorm"), build.rms_norm(hidden, f"{name}.hnorm")]
    x = build.linear(build.write.op("Concat", *both, axis=-1), f"{name}.eh_proj", 2 * build.width, build.width)
    x = decoder_layer(build, x, build.layers, attend, feed_forward, norms)
    norm = f"{name}.shared_head_norm" if build.has(f"{name}.shared_head_norm.weight") else "output_norm"
    shared = "output" if build.has("output.weight") else "token_embd"
    return build.head(x, norm=norm, matrix=_table(build, f"{name}.shared_head_head", shared))


def _table(build: Builder, own: str, shared: str) -> str:
    """The name of the layer's own table, or of the model's, with which it shares the memory, where the file has none of
    its own or the same numbers."""
    if not build.has(f"{own}.weight"):
        return shared
    tensors = build.file.tensors
    mine, other = tensors[f"{own}.weight"], tensors[f"{shared}.weight"]
    build.tensor(f"{own}.weight", *other.shape)
    is_same = mine.kind == other.kind and mine.factors is other.factors and np.array_equal(mine.blocks, other.blocks)
    return shared if is_same else own
