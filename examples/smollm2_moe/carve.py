"""Carve the dense feed-forward layers of SmolLM2-135M into experts, without training, and export the model.

``python carve.py MODEL.gguf TEXT OUT [--experts 16 --shared 4 --active 8] [--judge TEXT ...]``: OUT gets
``tokenizer.json``, ``units.npz`` (the hidden units of each expert; used again where it is there) and ``model.onnx``.
Looks at the first tokens of TEXT; prints the perplexity of the dense and of the carved model on the texts to judge by.
Needs moec[torch,text,specialise] and gguf.

Carving is CMoE's (arXiv 2502.04416): hidden units that fire for the most tokens are the shared expert, the others are
clustered by the tokens that they fire for, in equal parts. The router has no weights of its own: the score of an expert
is how strongly its most typical unit fires. Those that are chosen count in full, so all together are the dense layer.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

Array = np.ndarray[Any, Any]

LENGTH, ROWS, CALIBRATED, JUDGED = 128, 8, 64, 16
"""Tokens of a row, rows of a batch, rows that carving looks at, and rows of a text to judge by."""
FIRING = 10  # hidden units that fire for a token: those of the largest magnitudes
ROUNDS = 8  # of clustering, at most
CERTAIN = 20.0
"""Added to scores: the sigmoid is 1 beyond, so all experts that are chosen weigh the same."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--experts", type=int, default=16, help="equal parts of a layer's hidden units")
    parser.add_argument("--shared", type=int, default=4, help="of them, that every token goes to, as one expert")
    parser.add_argument("--active", type=int, default=8, help="of the others, that a token goes to")
    parser.add_argument("--judge", type=pathlib.Path, nargs="*", default=[])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = read_gguf(options.gguf)
    tokenizer.save(str(options.out / "tokenizer.json"))
    judged = {path.stem: rows_of(tokenizer, path, JUDGED) for path in options.judge}
    show_perplexities("dense", model, judged)
    units = units_of(model, rows_of(tokenizer, options.text, CALIBRATED), options)
    for layer, of_layer in zip(model.model.layers, units, strict=True):
        layer.mlp = Carved(layer.mlp, of_layer, options.experts, options.shared, options.active)
    show_perplexities(f"{options.active} of {options.experts - options.shared} experts", model, judged)
    export(model, options.out / "model.onnx")


def read_gguf(path: pathlib.Path) -> tuple[transformers.LlamaForCausalLM, Tokenizer]:
    """The model in float32, and its byte-level BPE."""
    import gguf

    reader = gguf.GGUFReader(path)
    field = {name: entry.contents() for name, entry in reader.fields.items()}
    heads, groups = field["llama.attention.head_count"], field["llama.attention.head_count_kv"]
    config = transformers.LlamaConfig(
        vocab_size=len(field["tokenizer.ggml.tokens"]),
        hidden_size=field["llama.embedding_length"],
        intermediate_size=field["llama.feed_forward_length"],
        num_hidden_layers=field["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=field["llama.context_length"],
        rms_norm_eps=field["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": field["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        use_cache=False,
    )
    state = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32))
        part = tensor.name.removesuffix(".weight").rpartition(".")[2]
        if part in ("attn_q", "attn_k"):
            weight = halves_of_heads(weight, heads if part == "attn_q" else groups)
        state[torch_name(tensor.name)] = weight
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.eval(), tokenizer_of(field)


def torch_name(name: str) -> str:
    """The parameter that llama.cpp calls so."""
    names = {
        "token_embd": "embed_tokens", "output_norm": "norm", "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    *block, part, _ = name.split(".")
    return ".".join(["model", *(["layers", block[1]] if block else []), names[part], "weight"])


def halves_of_heads(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """[heads x size, in]: rotary pairs, neighbours in llama.cpp, are size / 2 apart in transformers."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def tokenizer_of(field: dict[str, Any]) -> Tokenizer:
    tokens, kinds = field["tokenizer.ggml.tokens"], field["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in field["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, merges))
    by_digit = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([by_digit, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in control])
    return tokenizer


def rows_of(tokenizer: Tokenizer, path: pathlib.Path, most: int) -> torch.Tensor:
    """The first rows of a text, [rows, LENGTH]."""
    text = path.read_text(encoding="utf-8")[: most * LENGTH * 8]
    ids = torch.tensor(tokenizer.encode(text).ids)[: most * LENGTH]
    return ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)


def units_of(model: torch.nn.Module, rows: torch.Tensor, options: argparse.Namespace) -> Array:
    """[layers, hidden]: the units of every layer as :func:`carve` orders them."""
    path, asked = options.out / "units.npz", np.array([options.experts, options.shared])
    if path.exists() and (np.load(path)["asked"] == asked).all():
        return np.load(path)["units"]
    units = np.stack([carve(fires, options.experts, options.shared) for fires in firing(model, rows)])
    np.savez(path, units=units, asked=asked)
    return units


@torch.no_grad()
def firing(model: torch.nn.Module, rows: torch.Tensor) -> Iterator[Array]:
    """Layer by layer, whether a hidden unit is among those of the largest magnitudes: [tokens, hidden]."""
    fires: list[list[torch.Tensor]] = [[] for _ in model.model.layers]

    def watch(of_layer: list[torch.Tensor]) -> Any:
        def hook(_module: torch.nn.Module, hidden: tuple[torch.Tensor, ...]) -> None:
            magnitudes = hidden[0].flatten(0, -2).abs()
            largest = magnitudes.topk(FIRING, dim=-1).indices
            of_layer.append(torch.zeros_like(magnitudes, dtype=torch.bool).scatter(1, largest, True))

        return hook

    downs = [layer.mlp.down_proj for layer in model.model.layers]
    hooks = [down.register_forward_pre_hook(watch(of_layer)) for down, of_layer in zip(downs, fires, strict=True)]
    for batch in rows.split(ROWS):
        model(input_ids=batch)
    for hook in hooks:
        hook.remove()
    yield from (torch.cat(of_layer).numpy().astype(np.float32) for of_layer in fires)


def carve(fires: Array, parts: int, shared: int) -> Array:
    """The order of the hidden units in which experts are slices, ``shared`` of ``parts`` first. All others begin with
    their most typical unit. ``fires`` [tokens, hidden]."""
    import scipy.optimize

    size = fires.shape[1] // parts
    by_rate = np.argsort(-fires.sum(axis=0), kind="stable")
    routed = by_rate[shared * size :]
    features = fires[:, routed].T
    centers, owners = features[: parts - shared], np.full(len(routed), -1)
    for _ in range(ROUNDS):
        distances = np.square(centers).sum(axis=1) - 2 * features @ centers.T
        # As many places in each expert as it has units: an assignment is balanced.
        chosen = scipy.optimize.linear_sum_assignment(np.repeat(distances, size, axis=1))[1] // size
        if (chosen == owners).all():
            break
        owners = chosen
        centers = np.stack([features[owners == owner].mean(axis=0) for owner in range(len(centers))])
    distances = np.square(centers).sum(axis=1) - 2 * features @ centers.T + np.square(features).sum(axis=1)[:, None]
    order = np.lexsort((distances[np.arange(len(owners)), owners], owners))
    return np.concatenate([by_rate[: shared * size], routed[order]])


class Carved(torch.nn.Module):
    """A feed-forward layer in experts: one that sees every token, the first ``shared`` of ``parts`` equal slices of
    ``units``, and the other slices, of which a token has the ``active`` whose first units fire most strongly."""

    def __init__(self, dense: torch.nn.Module, units: Array, parts: int, shared: int, active: int) -> None:
        super().__init__()
        up = torch.stack([dense.gate_proj.weight.data, dense.up_proj.weight.data])[:, units]
        down = dense.down_proj.weight.data[:, units].T
        first = shared * (len(units) // parts)
        routed = [2, parts - shared, len(units) // parts, -1]
        self.active = active
        self.shared_up, self.shared_down = torch.nn.Parameter(up[:, :first]), torch.nn.Parameter(down[:first])
        self.up = torch.nn.Parameter(up[:, first:].reshape(routed))
        self.down = torch.nn.Parameter(down[first:].reshape(routed[1:]))
        self.router = torch.nn.Parameter(self.up[:, :, 0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        logits = CERTAIN + swiglu(rows @ self.router[0].T, rows @ self.router[1].T).abs()
        chosen, experts = torch.topk(logits, self.active, dim=-1)
        weights = torch.zeros_like(logits).scatter(1, experts, torch.sigmoid(chosen))
        hidden = swiglu(torch.matmul(rows, self.up[0].transpose(1, 2)), torch.matmul(rows, self.up[1].transpose(1, 2)))
        routed = (torch.matmul(hidden, self.down) * weights.T[:, :, None]).sum(dim=0)
        shared = swiglu(rows @ self.shared_up[0].T, rows @ self.shared_up[1].T) @ self.shared_down
        return (routed + shared).reshape(x.shape)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(gate) * up


def show_perplexities(name: str, model: torch.nn.Module, judged: dict[str, torch.Tensor]) -> None:
    for text, rows in judged.items():
        print(f"{name}: perplexity {perplexity(model, rows):.2f} on {text}", flush=True)


@torch.no_grad()
def perplexity(model: torch.nn.Module, rows: torch.Tensor) -> float:
    losses = []
    for batch in rows.split(ROWS):
        logits = model(input_ids=batch).logits[:, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none"))
    return torch.cat(losses).double().mean().exp().item()


class TokensToLogits(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids).logits


def export(model: torch.nn.Module, path: pathlib.Path) -> None:
    torch.onnx.export(
        TokensToLogits(model).eval(),
        (torch.zeros((2, 16), dtype=torch.int64),),
        path,
        dynamo=True,
        dynamic_shapes={"ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}},
        input_names=["ids"],
        output_names=["logits"],
        external_data=False,
    )


if __name__ == "__main__":
    main()
