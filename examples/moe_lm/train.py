"""Train a small MoE language model and export it: 4 layers, 16 experts of which 2 compute, 2,048 subwords.

``python train.py TEXTS OUT [--steps N]``: TEXTS is what ``texts.py`` wrote, of which ``brown.txt`` and ``python.txt``
are trained on. OUT gets ``tokenizer.json``, ``model.onnx`` and ``checkpoint.pt``; where that is there already, training
goes on from it. The seed is fixed. Needs moec[torch] and moec[text]; the 4,000 steps take half an hour on two cores.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import time

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY, LENGTH, ROWS, STEPS = 2048, 128, 16, 4000
RATE, WARMUP = 2e-3, 200
SAVED_EVERY = 250


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("texts", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokenizer = tokenizer_of(options.texts, options.out / "tokenizer.json")
    tokens = np.concatenate([encoded(tokenizer, options.texts / f"{name}.txt") for name in ("brown", "python")])
    model = transformers.Qwen3MoeForCausalLM(configuration())
    print(f"{len(tokens)} tokens, {sum(weight.numel() for weight in model.parameters())} parameters")
    train(model, torch.from_numpy(tokens), options.out / "checkpoint.pt", options.steps)
    for name in ("brown", "python", "bible"):
        held_out = torch.from_numpy(encoded(tokenizer, options.texts / f"{name}.heldout.txt"))
        print(f"{name}: {loss_on(model, held_out):.4f} nats per token on held-out text")
    export(model, options.out / "model.onnx")


def configuration() -> transformers.Qwen3MoeConfig:
    return transformers.Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        moe_intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=16,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        router_aux_loss_coef=0.01,
        output_router_logits=True,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        use_cache=False,
    )


def tokenizer_of(texts: pathlib.Path, path: pathlib.Path) -> Tokenizer:
    """Byte-level BPE, trained where it is not there."""
    if not path.exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train([str(texts / f"{name}.txt") for name in ("brown", "python")], trainer)
        tokenizer.save(str(path))
    return Tokenizer.from_file(str(path))


def encoded(tokenizer: Tokenizer, path: pathlib.Path) -> np.ndarray:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return np.array([id for encoding in tokenizer.encode_batch(lines) for id in encoding.ids])


def train(model: torch.nn.Module, tokens: torch.Tensor, path: pathlib.Path, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    first = 0
    if path.exists():
        kept = torch.load(path, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        first = kept["step"]
    start, total = time.perf_counter(), 0.0
    for step in range(first, steps):
        generator = torch.Generator().manual_seed(step)  # the same rows whether training was interrupted or not
        starts = torch.randint(len(tokens) - LENGTH, (ROWS,), generator=generator)
        rows = torch.stack([tokens[at : at + LENGTH] for at in starts])
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.02)
        loss = model(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
        if (step + 1) % SAVED_EVERY == 0 or step + 1 == steps:
            seconds = time.perf_counter() - start
            print(f"step {step + 1}: loss {total / (step % SAVED_EVERY + 1):.3f}, {seconds:.0f} s", flush=True)
            total = 0.0
            kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(kept, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)


@torch.no_grad()
def loss_on(model: torch.nn.Module, tokens: torch.Tensor) -> float:
    model.eval()
    rows = tokens[: len(tokens) // LENGTH * LENGTH].reshape(-1, LENGTH)
    total, count = 0.0, 0
    for batch in rows.split(ROWS):
        logits = model(input_ids=batch, output_router_logits=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
        total, count = total + loss.item(), count + batch[:, 1:].numel()
    return total / count


class TokensToLogits(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, output_router_logits=False).logits


def export(model: torch.nn.Module, path: pathlib.Path) -> None:
    model.set_experts_implementation("batched_mm")
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    torch.onnx.export(
        TokensToLogits(model).eval(),
        (torch.zeros((2, 16), dtype=torch.int64),),
        path,
        dynamo=True,
        dynamic_shapes={"ids": {0: batch, 1: length}},
        input_names=["ids"],
        output_names=["logits"],
        external_data=False,
    )


if __name__ == "__main__":
    main()
