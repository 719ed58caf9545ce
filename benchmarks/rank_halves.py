"""Prompts that run in two halves in turn, beside whole ones, on two ranks with a shaped link.

    sudo python benchmarks/rank_halves.py [--link 1Gbit/s,100us] [--slower 5,10,20] [--tokens 128,512,1024]

A language model of two layers with attention and 8 experts (2 of them for a token, 512 columns, 1,536 hidden units)
runs a prompt on each rank with one thread, in parts of 512 tokens. Whole parts and halves are measured in turn; their
logits must be equal, bit for bit. ``--slower``: see ``rank_links.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time
from typing import Any
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import onnx
from results import print_rows
from shaped_network import address, enter, name_of, namespaces, problem

import moec
import moec.distributed.session
from moec.common.errors import MoecError
from moec.distributed.model import RankedModel
from moec.distributed.pair import ProgramPair
from moec.distributed.start import loaded
from moec.predicting.links import Link, parse_link

RANKS, REPETITIONS, PART = 2, 7, 512
WIDTH, UNITS, EXPERTS, LAYERS, VOCABULARY, HEADS = 512, 1536, 8, 2, 64, 8
_LAYER = f"""
    n{{i}} = RMSNormalization <axis = -1> (x{{i}}, scale) k{{i}} = MatMul (n{{i}}, wide{{i}})
    a{{i}}, keys{{i}}, values{{i}} = Attention <is_causal = 1, q_num_heads = {HEADS}, kv_num_heads = {HEADS}>
        (n{{i}}, k{{i}}, n{{i}}, "", past_keys{{i}}, past_values{{i}})
    h{{i}} = Add (x{{i}}, a{{i}}) rows{{i}} = Reshape (h{{i}}, flat) scores{{i}} = MatMul (rows{{i}}, router{{i}})
    y{{i}} = moec.MoE <k = 2> (rows{{i}}, scores{{i}}, "", up{{i}}, down{{i}})
    size{{i}} = Shape (h{{i}}) tokens{{i}} = Reshape (y{{i}}, size{{i}}) x{{after}} = Add (h{{i}}, tokens{{i}})
"""


def write_model(path: pathlib.Path) -> None:
    """Write the model with random weights."""
    names = [f"{kind}{i}" for i in range(LAYERS) for kind in ("keys", "values")]
    head = WIDTH // HEADS
    inputs = ", ".join(f"float[B,{HEADS},P,{head}] past_{name}" for name in names)
    outputs = ", ".join(f"float[B,{HEADS},R,{head}] {name}" for name in names)
    steps = "".join(_LAYER.format(i=i, after=i + 1) for i in range(LAYERS))
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 23, "moec" : 1]>
        model (int64[B,S] ids, {inputs}) => (float[B,S,{VOCABULARY}] logits, {outputs})
        <int64[2] flat = {{-1, {WIDTH}}}> {{
        x0 = Gather (words, ids) {steps} logits = MatMul (x{LAYERS}, table) }}"""
    )
    shapes = {"words": (VOCABULARY, WIDTH), "scale": (WIDTH,), "table": (WIDTH, VOCABULARY)}
    for i in range(LAYERS):
        shapes |= {f"wide{i}": (WIDTH, WIDTH), f"router{i}": (WIDTH, EXPERTS)}
        shapes |= {f"up{i}": (EXPERTS, 2 * UNITS, WIDTH), f"down{i}": (EXPERTS, WIDTH, UNITS)}
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        array = random.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-1]))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, path)


def run_prompt(model: RankedModel, tokens: int) -> np.ndarray:
    """Run a prompt of this rank, and return the logits of its last token."""
    ids = np.random.default_rng(model.group.rank).integers(0, VOCABULARY, tokens)
    session = model.session()
    *parts, last = (ids[start : start + PART] for start in range(0, tokens, PART))
    for part in parts:
        session.feed(part)
    return session.run(last)


def run_rank(artifact: pathlib.Path, sizes: list[int]) -> list[list[float]]:
    """Measure all sizes. Returns the seconds of whole runs and of halves."""
    rows = []
    with loaded(artifact, threads=1) as model, mock.patch.object(ProgramPair, "pays", True):
        assert isinstance(model, RankedModel)
        for tokens in sizes:
            with model.apart():
                rows.append(_times(model, tokens))
    return rows


def _times(model: RankedModel, tokens: int) -> list[float]:
    seconds: dict[int, list[float]] = {1 << 60: [], 0: []}
    results: list[Any] = []
    for _ in range(1 + REPETITIONS):
        for least, own in seconds.items():
            moec.distributed.session.LEAST_OF_HALF = least
            model.group.gathered(None, "begin")
            start = time.perf_counter()
            results.append(run_prompt(model, tokens))
            model.group.gathered(None, "end")
            own.append(time.perf_counter() - start)
    if any(not np.array_equal(result, results[0]) for result in results):
        raise MoecError("halves have other results than whole runs")
    return [min(own[1:]) for own in seconds.values()]


def measured(artifact: pathlib.Path, link: Link, sizes: list[int]) -> list[list[float]]:
    """Run the ranks in namespaces and return rank 0's seconds."""
    with namespaces(RANKS, link) as entries:
        reading, writing = os.pipe()
        children = []
        for rank, entry in enumerate(entries):
            child = os.fork()
            if child == 0:
                enter(entry)
                os.environ["GLOO_SOCKET_IFNAME"] = name_of(rank, os.getppid())
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS)}
                os.environ |= {"MASTER_ADDR": address(0), "MASTER_PORT": "29500"}
                rows = run_rank(artifact, sizes)
                if rank == 0:
                    os.write(writing, json.dumps(rows).encode())
                os._exit(0)
            children.append(child)
        os.close(writing)
        for child in children:
            os.waitpid(child, 0)
        with os.fdopen(reading, "rb") as pipe:
            return json.loads(pipe.read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--link", default="1Gbit/s,100us")
    parser.add_argument("--slower", default="5,10,20")
    parser.add_argument("--tokens", default="128,512,1024")
    arguments = parser.parse_args()
    if (reason := problem()) is not None:
        sys.exit(f"skipped: {reason}")
    nominal, sizes = parse_link("--link", arguments.link), [int(text) for text in arguments.tokens.split(",")]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        write_model(path / "model.onnx")
        moec.compile(path / "model.onnx", ranks=RANKS).save(path / "placed")
        for slower in map(float, arguments.slower.split(",")):
            link = Link(nominal.bandwidth / slower, nominal.latency * slower)
            for tokens, (whole, halves) in zip(sizes, measured(path / "placed", link, sizes), strict=True):
                times = {"whole ms": round(whole * 1e3), "halves ms": round(halves * 1e3)}
                ratio = f"{whole / halves:.2f}"
                rows.append({"slower": f"{slower:g}", "tokens": tokens, **times, "ratio": ratio})
    print_rows(rows)


if __name__ == "__main__":
    main()
