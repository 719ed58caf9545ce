"""Folders of the Hugging Face hub: their configurations, and their safetensors files with an index."""

from __future__ import annotations

import json
import pathlib
import random
import shutil
import struct
from typing import Any

from ..json_damage import damage
from .byte_damage import damage_bytes, damage_file
from .kinds import Commands, InputKind

_FOLDER, _CONFIG, _WEIGHTS, _INDEX = "model", "config.json", "model.safetensors", "model.safetensors.index.json"
_TINY = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "llama": ("Llama", {}),
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    "gpt_oss": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
    "gemma2": ("Gemma2", {"sliding_window": 8}),
}
_WHOLE = (-(2**63), -(2**31), -1, 0, 1, 3, 5, 1000, 10**5, 10**7, 2**31, 2**40, 2**62, 2**64, 10**30)
_METHODS = ("gptq", "awq", "compressed-tensors", "mxfp4", "fp8", "modelopt", "bitsandbytes", None, 7, ["gptq"])
_SETTINGS = {
    "bits": (4, 8, 3, "4", None, 2**40, -1),
    "format": ("pack-quantized", "float-quantized", "int-quantized", "nvfp4-pack-quantized", ["x"], {}, None),
    "checkpoint_format": ("gptq", "gptq_v2", [], {}),
    "weight_block_size": ([128, 128], [0, 0], [-1, 1], [1.5, 2], "x", [1], [[1], [2]], 10**30),
    "version": ("gemm", "gemv", None, 3, []),
    "config_groups": ({}, [], {"g": None}, {"g": {"weights": {"block_structure": [0, "x"]}}}, {"g": []}),
    "quant_algo": ("NVFP4", "FP8", None, []),
}


def _prepare(folder: pathlib.Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    for name, (kind, options) in _MODELS.items():
        config = getattr(transformers, f"{kind}Config")(**{**_TINY, **options})
        getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder / name)


def _choose(folder: pathlib.Path, rng: random.Random) -> pathlib.Path:
    """Keep one of the models alone."""
    name = rng.choice(list(_MODELS))
    (folder / name).rename(folder / _FOLDER)
    for other in _MODELS:
        shutil.rmtree(folder / other, ignore_errors=True)
    return folder / _FOLDER


def _damage_config(folder: pathlib.Path, rng: random.Random) -> str:
    path = _choose(folder, rng) / _CONFIG
    if rng.random() < 0.07:
        return damage_file(path, rng)
    config = json.loads(path.read_text())
    reported = [str(config["model_type"])]
    if rng.random() < 0.4:
        numbers = [key for key, value in config.items() if type(value) in (int, float)]
        for key in rng.sample(numbers, rng.choice([1, 1, 2])):
            config[key] = rng.choice(_WHOLE)
            reported.append(f"{key} is {config[key]}")
    elif rng.random() < 0.3:
        chosen = rng.sample(list(_SETTINGS), 3)
        config["quantization_config"] = {key: rng.choice(_SETTINGS[key]) for key in chosen}
        config["quantization_config"]["quant_method"] = rng.choice(_METHODS)
        reported.append(str(config["quantization_config"]))
    if len(reported) > 1 and rng.random() < 0.8:
        path.write_text(json.dumps(config))
    else:
        data, change = damage(config, rng, lambda where: where != ("transformers_version",))
        path.write_bytes(data)
        reported.append(change)
    return "; ".join(reported)


def _damage_tensors(folder: pathlib.Path, rng: random.Random) -> str:
    model = _choose(folder, rng)
    reported = [str(json.loads((model / _CONFIG).read_text())["model_type"])]
    if rng.random() < 0.3:
        reported.append(_with_index(model, rng))
    path = rng.choice(sorted(model.glob("*.safetensors")))
    kind = rng.choice(["header", "header", "header", "length", "bytes", "file"])
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    if kind == "header":
        text, change = _damage_header(header, rng)
        path.write_bytes(struct.pack("<Q", len(text)) + text + rest)
    elif kind == "length":
        length = rng.choice([0, 1, 2, 7, length - 1, length + 1, len(data), 2**31, 10**8, 2**63, 2**64 - 1])
        path.write_bytes(struct.pack("<Q", length) + data[8:])
        change = f"length is {length}"
    elif kind == "bytes":
        changed, change = damage_bytes(data, rng, 0, rng.choice([8, 8 + length, None]))
        path.write_bytes(changed)
    else:
        change = damage_file(path, rng)
    return "; ".join([*reported, f"{path.name}: {change}"])


def _damage_header(header: dict[str, Any], rng: random.Random) -> tuple[bytes, str]:
    if rng.random() < 0.5:
        name = rng.choice(list(header))
        return damage(header, rng, lambda where: where[0] == name)
    name, other = (rng.choice([one for one in header if one != "__metadata__"]) for _ in range(2))
    entry = header[name]
    kind = rng.choice(["dtype", "shape", "swapped", "name", "overlap", "turned"])
    if kind == "dtype":
        entry["dtype"] = rng.choice(["F16", "BF16", "F64", "I32", "BOOL", "F8_E4M3", "F4", "C64", "I64", None, 7, []])
    elif kind == "shape":
        entry["shape"] = [rng.choice([size, *_WHOLE]) for size in entry["shape"]]
    elif kind == "swapped":
        header[name], header[other] = header[other], header[name]
    elif kind == "name":
        header[rng.choice(["", "x" * 70_000, "\0", name + ".x", "model.layers.99.x", "é", "[1]", "lm_head.bias"])] = (
            header.pop(name)
        )
    elif kind == "overlap":
        entry["data_offsets"] = header[other]["data_offsets"]
    else:
        entry["shape"] = entry["shape"][::-1]
    return json.dumps(header).encode(), f"{kind} of {name[:60]!r}"


def _with_index(model: pathlib.Path, rng: random.Random) -> str:
    """An index beside the file, which is cut in two names or not, and damaged half of the time."""
    data = (model / _WEIGHTS).read_bytes()
    names = [load for load in json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]) if load != "__metadata__"]
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, _WEIGHTS)}
    path = model / _INDEX
    path.write_text(json.dumps(index))
    if rng.random() < 0.3:
        return "an index"
    if rng.random() < 0.3:
        return damage_file(path, rng)
    changed, reported = damage(index, rng)
    path.write_bytes(changed)
    return f"index: {reported}"


def _commands(folder: pathlib.Path, rng: random.Random) -> Commands:
    model = str(folder / _FOLDER)
    return [["compile", model, "-o", str(folder / "new.moec")] if rng.random() < 0.1 else ["import", model]]


KINDS = {
    "config": InputKind(_prepare, _damage_config, _commands),
    "safetensors": InputKind(_prepare, _damage_tensors, _commands),
}
