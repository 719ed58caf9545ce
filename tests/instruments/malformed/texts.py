"""Malformed texts of language models: tokenizers with the files next to them, chat templates, and text itself."""

from __future__ import annotations

import json
import pathlib
import random
import shutil
from typing import Any

from ...runtime.bigrams import tokenizer_json
from ..json_damage import damage
from .byte_damage import damage_bytes, damage_file
from .judge import run
from .kinds import Commands, InputKind
from .parts_of_tokenizers import PARTS, TEMPLATES

_MODEL, _TOKENIZER, _TEMPLATE, _TEXT, _ARTIFACT = (
    *("model.onnx", "tokenizer.json", "chat_template.jinja", "text.txt", "model.moec"),
)
_BESIDE: dict[str, Any] = {
    "tokenizer_config.json": {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "{{ messages }}"},
    "generation_config.json": {"eos_token_id": [257, 256]},
    "config.json": {"eos_token_id": 257, "text_config": {"eos_token_id": 3}},
}
_IR_TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (int64[n,2] ids, float[n,2,8] x) => (float[n,2,8] y) <float[8] w = {1, 2, 3, 4, 5, 6, 7, 8}> {
  rows = Mul (w, x)
  z = Cast <to = 1> (ids)
  y = Softmax <axis = -1> (rows)
}"""


def _prepare(folder: pathlib.Path) -> None:
    import onnx

    _save_model(folder / _MODEL)
    tokenizer_json(folder / _TOKENIZER)
    for name, content in _BESIDE.items():
        (folder / name).write_text(json.dumps(content))
    (folder / _TEXT).write_text("abcd " * 80)
    (folder / "model.onnxtxt").write_text(_IR_TEXT)
    onnx.parser.parse_model(_IR_TEXT)


def _save_model(path: pathlib.Path) -> None:
    """A model of 258 tokens that goes on with whatever is likely."""
    import numpy as np
    import onnx

    text = '<ir_version: 10, opset_import: ["" : 21]> g (int64[batch,length] ids) => (float[batch,length,258] logits) '
    proto = onnx.parser.parse_model(text + "{ logits = Gather (table, ids) }")
    table = np.random.default_rng(0).standard_normal((258, 258)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    onnx.save(proto, path)


def _prepare_text(folder: pathlib.Path) -> None:
    _prepare(folder)
    command = ["compile", str(folder / _MODEL), "-o", str(folder / _ARTIFACT), "--tokenizer", str(folder / _TOKENIZER)]
    status, message = run(command)
    assert status == "pass", message


def _damage_tokenizer(folder: pathlib.Path, rng: random.Random) -> str:
    if rng.random() < 0.2:
        path = folder / rng.choice(list(_BESIDE))
        data, reported = damage(json.loads(path.read_text()), rng)
        path.write_bytes(data)
        return f"{path.name}: {reported}"
    path = folder / _TOKENIZER
    if rng.random() < 0.1:
        return damage_file(path, rng)
    content, reported = json.loads(path.read_text()), []
    for part in rng.sample(list(PARTS), rng.choice([0, 1, 1, 2])):
        content[part] = rng.choice(PARTS[part])
        reported.append(f"{part} {json.dumps(content[part])[:60]}")
    data, change = damage(content, rng, lambda where: where[:2] != ("model", "vocab") or rng.random() < 0.02)
    path.write_bytes(data if not reported or rng.random() < 0.7 else json.dumps(content).encode())
    return "; ".join([*reported, change])


def _damage_template(folder: pathlib.Path, rng: random.Random) -> str:
    text = rng.choice(TEMPLATES)
    if rng.random() < 0.5:
        text += rng.choice(TEMPLATES)
    path = folder / _TEMPLATE
    if rng.random() < 0.2:
        path.unlink(missing_ok=True)
        content = {**_BESIDE["tokenizer_config.json"], "chat_template": [{"name": "default", "template": text}]}
        data, reported = damage(content, rng)
        (folder / "tokenizer_config.json").write_bytes(data)
        return f"tokenizer_config.json: {reported}"
    data, reported = text.encode(), "as it is"
    if rng.random() < 0.5:
        data, reported = damage_bytes(data, rng)
    path.write_bytes(data)
    return f"{text[:80]!r} {reported}"


def _damage_text(folder: pathlib.Path, rng: random.Random) -> str:
    path = folder / rng.choice([_TEXT, "model.onnxtxt", "model.onnxtxt"])
    reported = []
    for _ in range(rng.choice([1, 2, 4])):
        if path.is_file() and not path.is_symlink():
            reported.append(damage_file(path, rng))
    if rng.random() < 0.05:
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
        path.write_bytes(rng.choice([b"a" * 300_000, b" " * 300_000, "\U0010ffff".encode() * 100_000, b"\0" * 10**6]))
        reported = [f"{path.name}: one long word"]
    return "; ".join(reported)


def _tokenizer_commands(folder: pathlib.Path, rng: random.Random) -> Commands:
    model, artifact, tokenizer = (str(folder / name) for name in (_MODEL, "new.moec", _TOKENIZER))
    chat = ["--chat", "--system", "be brief"] if rng.random() < 0.3 else []
    data = ["--data", str(folder / _TEXT), "--tokenizer", tokenizer, "--length", "8", "--rows", "2"]
    return [
        ["compile", model, "-o", artifact, "--tokenizer", tokenizer],
        rng.choice(
            [["generate", artifact, "--prompt", "abé", "--max-new-tokens", "3", *chat], ["evaluate", artifact, *data]]
        ),
    ]


def _template_commands(folder: pathlib.Path, rng: random.Random) -> Commands:
    model, artifact, tokenizer = (str(folder / name) for name in (_MODEL, "new.moec", _TOKENIZER))
    return [
        ["compile", model, "-o", artifact, "--tokenizer", tokenizer],
        [
            "generate",
            artifact,
            "--prompt",
            "ab",
            "--max-new-tokens",
            "2",
            "--chat",
            *rng.choice([[], ["--system", "x"]]),
        ],
    ]


def _text_commands(folder: pathlib.Path, rng: random.Random) -> Commands:
    artifact, tokenizer, text = (str(folder / name) for name in (_ARTIFACT, _TOKENIZER, _TEXT))
    return [
        rng.choice(
            [
                ["evaluate", artifact, "--data", text, "--tokenizer", tokenizer, "--length", "8", "--rows", "2"],
                ["generate", artifact, "--prompt-file", text, "--max-new-tokens", "2"],
            ]
        ),
        ["opt", str(folder / "model.onnxtxt"), "-O2"],
    ]


KINDS = {
    "tokenizer": InputKind(_prepare, _damage_tokenizer, _tokenizer_commands),
    "template": InputKind(_prepare, _damage_template, _template_commands),
    "text": InputKind(_prepare_text, _damage_text, _text_commands),
}
