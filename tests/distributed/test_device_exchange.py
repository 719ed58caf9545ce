"""The exchange in a device's memory: rows, results and bytes of the one on the host, which learns numbers alone."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import moec
from moec.common.errors import MoecError
from moec.compiling.compile_options import CompileOptions
from moec.distributed.device_exchange import DeviceExchange
from moec.distributed.exchange import RowExchange
from moec.distributed.start import loaded
from moec.placing.placement import ExpertPlacement, LayerPlacement
from moec.placing.volume import TRANSPORTS
from moec.targets.cuda import nvcc
from tests.distributed.gloo import group_of, start_ranks
from tests.pipelined_model import pipelined_model

SLOTS = {2: [[0, 3, 4], [1, 2, 3]], 4: [[0, 1], [], [4, 2, 3, 0], [1, 3]]}
TOKENS = [(5, 0, 7, 3), (0, 0, 0, 0), (40, 1, 2, 30)]
LEFT = ("numpy", "cpu", "item", "tolist", "__array__", "__bool__", "__int__", "__index__", "__float__")
"""Ways of data from a tensor to the host."""
WAITING = ("aten.nonzero", "aten.masked_select", "aten._local_scalar_dense", "aten.unique")
"""Operators whose results have sizes that the host reads."""


@contextlib.contextmanager
def watched(reads: list[int], operators: set[str]) -> Iterator[None]:
    """Context that notes the numbers of elements which the host reads of tensors, and the operators that are called."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, _types: Any, arguments: Any = (), named: Any = None) -> Any:
            operators.add(str(function))
            return function(*arguments, **(named or {}))

    def noting(read: Any) -> Any:
        def note(tensor: Any, *arguments: Any) -> Any:
            reads.append(tensor.numel())
            return read(tensor, *arguments)

        return note

    with pytest.MonkeyPatch.context() as patch, Watch():
        for name in LEFT:
            patch.setattr(torch.Tensor, name, noting(getattr(torch.Tensor, name)))
        yield


def exchanged(exchange: RowExchange, arrays: list[Any], idle: bool) -> list[Any]:
    """One layer's exchange, whose results are rows, ids and weights."""
    with exchange.idle() if idle else contextlib.nullcontext():
        exchange.begin_run()
        exchange.send(0, *arrays)
        received = exchange.receive(0)
        results = received.rows * 2 if received.weights is None else received.rows * received.weights[:, None]
        parts = [received.rows, received.experts, received.weights, exchange.give_back(0, results)]
    return [part for part in parts if part is not None]


def both(rank: int, size: int) -> tuple[list[int], set[str], int]:
    """Exchange the same arrays on the host and as tensors. What the host read of these, and the number of rows."""
    import torch

    placement = ExpertPlacement(size, (LayerPlacement("a", 5, tuple(map(tuple, SLOTS[size]))),))
    reads: list[int] = []
    operators: set[str] = set()
    count = 0
    with group_of(size) as group:
        for transport in TRANSPORTS:
            host, device = (kind(group, placement, transport) for kind in (RowExchange, DeviceExchange))
            for number, tokens in enumerate(TOKENS):
                generator = np.random.default_rng(100 * rank + number)
                rows = generator.standard_normal((tokens[rank], 3)).astype(np.float32)
                experts = generator.integers(-1, 6, (tokens[rank], 2)).astype(np.int32)  # 5 has no slot
                weights = generator.random((tokens[rank], 2)).astype(np.float32) if number else None
                arrays, idle = [rows, experts, weights], number == 2 and rank == 1
                expected = exchanged(host, arrays, idle)
                tensors = [None if array is None else torch.from_numpy(array) for array in arrays]
                with watched(reads, operators):
                    actual = exchanged(device, tensors, idle)
                for own, other in zip(actual, expected, strict=True):
                    assert own.numpy().tobytes() == np.ascontiguousarray(other).tobytes()
                count += len(expected[0])
            assert device.traffic == host.traffic
    return reads, operators, count


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_tensors_travel_without_the_host(size: int) -> None:
    results = start_ranks(size, both, size).results()
    for reads, operators, _ in results:
        assert operators and not any(operator.startswith(WAITING) for operator in operators)
        assert reads == [3 * size, size] * len(TOKENS) * len(TRANSPORTS)
    assert sum(count for *_, count in results) > 100


def test_reads_of_the_host_are_noted() -> None:
    import torch

    reads: list[int] = []
    operators: set[str] = set()
    with watched(reads, operators):
        torch.ones(3).nonzero()
        torch.ones(5).tolist()
        torch.ones(7).cpu()
    assert reads == [5, 7] and any(operator.startswith("aten.nonzero") for operator in operators)


IDS = np.random.default_rng(0).integers(0, 9, (3, 6))


def outputs_of(rank: int, path: pathlib.Path) -> list[dict[str, np.ndarray]]:
    with loaded(path, emulate=True) as model:
        return [model.run({"ids": IDS[:count]}) for count in (3, 1)]


@pytest.mark.nightly
def test_two_emulated_gpus_give_the_bits_of_one(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvcc, "find_tool", lambda _name: None)  # the emulator runs CUDA C
    model = ir.to_proto(pipelined_model(1))
    for path, ranks in ((tmp_path / "one", None), (tmp_path / "two", 2)):
        moec.compile(model, target="cuda", ranks=ranks, output=path, emulate=True)
    expected = outputs_of(0, tmp_path / "one")
    for actual in [outputs_of(0, tmp_path / "two"), *start_ranks(2, outputs_of, tmp_path / "two").results()]:
        for own, other in zip(actual, expected, strict=True):
            assert {name: array.tobytes() for name, array in own.items()} == {
                name: array.tobytes() for name, array in other.items()
            }


def test_each_rank_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from moec.distributed.start import see_own_gpu

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen = {}
    for listed in (None, "4,6"):
        if listed is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
        seen[listed] = see_own_gpu()
    assert seen == {None: "1", "4,6": "6"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    with pytest.raises(MoecError, match="rank 1 of this machine has no GPU: CUDA_VISIBLE_DEVICES lists 1"):
        see_own_gpu()


def test_targets_without_processes_are_refused() -> None:
    with pytest.raises(MoecError, match="holds all experts in one process; compile without ranks"):
        CompileOptions(target="hls:zcu102", ranks=2).pipeline("model.onnx")
    assert CompileOptions(target="cuda", ranks=2).pipeline("model.onnx")[-1].name == "place-experts"
