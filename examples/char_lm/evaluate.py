"""Measure the language model on text it was not trained on, then let it continue a prompt.

    python examples/char_lm/evaluate.py --prompt "The return value is "

Compiles ``model.onnx`` beside this file, or loads the artifact given with ``--artifact``.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np

import moec

FOLDER = pathlib.Path(__file__).resolve().parent
CONTEXT = 96  # characters the model was trained to look back on
NEWLINE, FIRST_PRINTABLE = 0, 31  # id 0 is a newline; id n above 0 is the character of code 31 + n


def encode(text: str) -> np.ndarray:
    """ids[1, length] of a text. Raises ValueError for characters the model has no id for."""
    ids = [NEWLINE if character == "\n" else ord(character) - FIRST_PRINTABLE for character in text]
    if not ids or any(not 0 < id <= 95 for id, character in zip(ids, text, strict=True) if character != "\n"):
        raise ValueError(f"cannot encode {text!r}: expected at least one character, all printable ASCII or newlines")
    return np.array([ids], np.int64)


def decode(ids: np.ndarray) -> str:
    return "".join("\n" if id == NEWLINE else chr(FIRST_PRINTABLE + id) for id in ids)


def loss(model: moec.CompiledModel, ids: np.ndarray) -> float:
    """Mean negative log-likelihood, in nats, of every character of ids[rows, length] after the first of its row."""
    logits = model.run({"ids": ids[:, :-1]})["logits"].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return float(-np.take_along_axis(log_probabilities, ids[:, 1:, None], axis=-1).mean())


def complete(model: moec.CompiledModel, prompt: str, length: int) -> str:
    """The prompt and the ``length`` characters that the model finds likeliest, one after the other."""
    ids = encode(prompt)
    for _ in range(length):
        logits = model.run({"ids": ids[:, -CONTEXT:]})["logits"]
        ids = np.append(ids, logits[:, -1:].argmax(axis=-1), axis=1)
    return decode(ids[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--artifact", type=pathlib.Path, help="default: compile model.onnx")
    parser.add_argument("--prompt", default="The return value is ")
    parser.add_argument("--length", type=int, default=40, help="characters to add")
    arguments = parser.parse_args()
    model = moec.compile(FOLDER / "model.onnx") if arguments.artifact is None else moec.load(arguments.artifact)
    with np.load(FOLDER / "heldout.npz") as heldout:
        print(f"held-out loss: {loss(model, heldout['ids']):.4f} nats per character")
    print(complete(model, arguments.prompt, arguments.length))


if __name__ == "__main__":
    main()
