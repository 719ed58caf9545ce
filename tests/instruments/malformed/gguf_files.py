"""GGUF files: their metadata, tables of tensors, tokenizers and bytes."""

from __future__ import annotations

import copy
import pathlib
import random
import struct
from typing import Any

from ...frontend.gguf.gguf_files import Stored, file_bytes
from ...frontend.gguf.tiny_models import MODELS, VOCABULARY, Tiny
from .byte_damage import damage_bytes, damage_file
from .kinds import Commands, InputKind

_FILE = "model.gguf"
_NAMES = ("llama", "mixtral", "qwen3moe", "gpt-oss", "deepseek2", "gemma3", "lfm2moe", "granitemoe")
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_RANGES = {"B": 8, "b": 7, "H": 16, "h": 15, "I": 32, "i": 31, "Q": 64, "q": 63}
_WHOLE = (-(2**63), -1, 0, 1, 2, 3, 7, 64, 1000, 2**16, 2**31 - 1, 2**31, 2**40, 2**63 - 1)
_FLOATS = (float("nan"), float("inf"), float("-inf"), -1.0, 0.0, 1e-30, 1e30, 0.5, 3.0)
_TEXTS = ("", "llama", "none", "yarn", "linear", "default", "\0", "x" * 5000, "ab" * 100_000, "{{ x }}", "é")
_SIZES = (0, 1, 2, 31, 32, 40, 2**16, 2**32, 2**40, 2**62, 2**63, 2**64 - 1)


def _typed(rng: random.Random) -> bytes:
    """A value of any type, as it stands behind its key."""
    kind = rng.choice([*_CODES, 8, 8, 9, 9, 13, 2**31])
    if kind == 8:
        return struct.pack("<I", 8) + _text(rng.choice(_TEXTS).encode())
    if kind == 9:
        return struct.pack("<I", 9) + _array(rng)
    return struct.pack("<I", kind) + (_number(kind, rng) if kind in _CODES else b"")


def _array(rng: random.Random) -> bytes:
    kind, count = rng.choice([*_CODES, 8, 9, 99]), rng.choice([0, 1, 2, 3, 40, 100_000, 2**40, 2**64 - 1])
    head = struct.pack("<IQ", kind, count)
    if kind == 9:  # arrays of arrays of arrays
        return head[:4] + struct.pack("<Q", 1) + struct.pack("<IQ", 9, 1) * rng.choice([1, 5000])
    if count > 100_000:
        return head
    if kind == 8:
        return head + _text(rng.choice(_TEXTS[:6]).encode()) * count
    return head + _number(kind, rng) * count if kind in _CODES else head


def _number(kind: int, rng: random.Random) -> bytes:
    code = _CODES[kind]
    if code in "fd":
        value = rng.choice(_FLOATS)
        return struct.pack(f"<{code}", value if code == "d" or abs(value) < 1e38 or value != value else float("inf"))
    bits, least = _RANGES[code], -(2 ** _RANGES[code]) if code.islower() else 0
    return struct.pack(f"<{code}", min(max(rng.choice(_WHOLE), least), 2**bits - 1))


def _text(data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(data) if length is None else length) + data


def _tokenizer(rng: random.Random) -> dict[str, Any]:
    """One of a few tokenizers that fit the tiny models, some of them slow or odd."""
    if rng.random() < 0.4:
        return {"model": "none"}
    tokens = [f"t{number}" for number in range(VOCABULARY - 6)] + ["<unk>", "<s>", "</s>", "a", "b", "ab"]
    given: dict[str, Any] = {"model": "llama", "scores": [0.5] * VOCABULARY}
    if rng.random() < 0.5:
        given = {"model": "gpt2", "pre": rng.choice(["llama-bpe", "qwen2"]), "merges": ["a b"]}
    if rng.random() < 0.4:
        tokens[0] = rng.choice(["a" * 50_000, "ab" * 200_000, "\0", "", "a", "\U0010ffff", "\ufffd", "<s>"])
    if rng.random() < 0.2:
        tokens[1:30] = ["a" * length for length in range(2, 31)]
        given["merges"] = [" ".join(["a", token[1:]]) for token in tokens[1:30]] if "merges" in given else []
    given |= {"tokens": tokens, "token_type": [1] * VOCABULARY, "bos_token_id": 35, "eos_token_id": 36}
    return {key: value for key, value in given.items() if value != []}


def _damage(folder: pathlib.Path, rng: random.Random) -> str:
    name = rng.choice(_NAMES)
    architecture, make, options = MODELS[name]
    tiny = Tiny(architecture, rng.choice(["F32", "F16", "Q8_0", "Q4_0"]))
    make(tiny, **options)
    tiny.tokenizer = _tokenizer(rng)
    metadata, tensors = list(tiny.metadata().items()), copy.deepcopy(list(tiny.tensors.items()))
    reported = [name, str(tiny.tokenizer["model"])]
    for _ in range(rng.choice([1, 1, 2, 3])):
        reported.append(rng.choice([_change_metadata, _change_metadata, _change_tensor])(metadata, tensors, rng))
    path = folder / _FILE
    path.write_bytes(file_bytes(metadata, tensors, rng.choice([3] * 12 + [0, 1, 2, 4, 2**24 * 3])))
    if rng.random() < 0.15:
        head = path.read_bytes()
        data, change = damage_bytes(head, rng, 0, rng.choice([32, 3000, None]))
        path.write_bytes(data)
        reported.append(change)
    elif rng.random() < 0.03:
        reported.append(damage_file(path, rng))
    return "; ".join(reported)


def _change_metadata(metadata: list[tuple[str, Any]], _tensors: Any, rng: random.Random) -> str:
    place = rng.randrange(len(metadata))
    key, value = metadata[place]
    kind = rng.choice(["other type", "other type", "number", "remove", "twice", "rename", "further"])
    if kind == "other type":
        metadata[place] = key, _typed(rng)
    elif kind == "number":
        metadata[place] = key, struct.pack("<I", 10) + _number(10, rng)
    elif kind == "remove" and len(metadata) > 1:
        del metadata[place]
    elif kind == "twice":
        metadata.append((key, value))
    elif kind == "rename":
        metadata[place] = key + rng.choice(["x", "\0", "." * 70_000]), value
    else:
        more = ("general.alignment", "split.count", "split.no", "tokenizer.chat_template", "tokenizer.ggml.pre", "x")
        metadata.append((rng.choice(more), _typed(rng)))
    return f"{kind} {key}"


def _change_tensor(_metadata: Any, tensors: list[tuple[str, Stored]], rng: random.Random) -> str:
    place = rng.randrange(len(tensors))
    name, tensor = tensors[place]
    kind = rng.choice(["type", "shape", "axes", "data", "offset", "remove", "twice", "rename"])
    if kind == "type":
        tensor.kind = rng.choice([*range(42), 99, 2**31])
    elif kind == "shape":
        tensor.shape = tuple(rng.choice([size, rng.choice(_SIZES)]) for size in tensor.shape)
    elif kind == "axes":
        tensor.shape = tuple(rng.choice(_SIZES[1:6]) for _ in range(rng.choice([0, 1, 3, 4, 5])))
    elif kind == "data":
        tensor.data, _ = damage_bytes(tensor.data, rng)
    elif kind == "offset":
        tensor.offset = rng.choice(_SIZES)
    elif kind == "remove" and len(tensors) > 1:
        del tensors[place]
    elif kind == "twice":
        tensors.append((name, tensor))
    else:
        tensors[place] = name + rng.choice(["x", "\0", ".weight"]), tensor
    return f"{kind} {name}"


def _commands(folder: pathlib.Path, rng: random.Random) -> Commands:
    model, artifact = str(folder / _FILE), str(folder / "new.moec")
    if rng.random() < 0.75:
        return [["import", model]]
    return [["compile", model, "-o", artifact], ["generate", artifact, "--prompt", "ab", "--max-new-tokens", "2"]]


KINDS = {"gguf": InputKind(lambda folder: None, _damage, _commands)}
