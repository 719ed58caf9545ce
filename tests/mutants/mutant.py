"""One mutant, made again from its seed alone."""

from __future__ import annotations

import dataclasses
import random

from onnx import ModelProto

from . import model_mutations  # noqa: F401  (they enter MUTATIONS)
from .bombs import BOMBS
from .mutations import MUTATIONS
from .seeds import MODEL, Files, node_tests, own_seeds


@dataclasses.dataclass(frozen=True)
class Mutant:
    """Files, and in words where they came from."""

    files: Files
    history: str


def make(seed: int, index: int, with_node_tests: bool = True) -> Mutant:
    """The mutant number ``index`` of a sweep: a bomb, a seed model with damaged bytes, or one with a few mutations."""
    rng = random.Random(f"{seed}/{index}")
    if rng.random() < 0.05:
        bomb = rng.choice(BOMBS)
        return Mutant({MODEL: bomb(rng).SerializeToString()}, f"bomb {bomb.__name__}")
    files, origin = _some_seed(rng, with_node_tests)
    if rng.random() < 0.1:
        return _damaged(files, origin, rng)
    model = ModelProto.FromString(files[MODEL])
    names = [rng.choice(list(MUTATIONS)) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    for name in names:
        MUTATIONS[name](model, rng)
    return Mutant({**files, MODEL: model.SerializeToString()}, f"{origin}: {', '.join(names)}")


def _some_seed(rng: random.Random, with_node_tests: bool) -> tuple[Files, str]:
    seeds = node_tests() if with_node_tests and rng.random() < 0.5 else own_seeds()
    name = rng.choice(list(seeds))
    return seeds[name], name


def _damaged(files: Files, origin: str, rng: random.Random) -> Mutant:
    name = rng.choice(list(files))
    data = bytearray(files[name])
    kind = rng.choice(["flipped", "truncated", "spliced", "foreign"])
    if kind == "flipped":
        for _ in range(rng.choice([1, 2, 8])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "truncated":
        del data[rng.randrange(len(data)) :]
    elif kind == "spliced":
        start, length = rng.randrange(len(data)), rng.randrange(1, 64)
        data[start:start] = data[start : start + length]
    else:
        data[:] = rng.choice([b"PK\3\4" + bytes(60), b"text\n" * 20, bytes(64), b"\x80\x04pickle", b"{}" + bytes(8)])
    return Mutant({**files, name: bytes(data)}, f"{origin}: {name} {kind}")
