"""The limits of a GPU, measured with PyTorch, or an error that says why they cannot be."""

from __future__ import annotations

import importlib.util
import sys
import types

import pytest

from moec import targets
from moec.common.errors import MoecError
from moec.targets.cuda import roofline
from moec.targets.cuda.device.driver import GpuFacts


class StandInDriver:
    def __init__(self, *gpus: GpuFacts) -> None:
        self._gpus = list(gpus)

    def gpus(self):
        return self._gpus


GPU = StandInDriver(GpuFacts("a GPU", "9.0", 1 << 36))


class Matrix:
    def copy_(self, _source):
        return self

    def __matmul__(self, _right):
        return self


class Event:
    """An event of a stand-in for a GPU on which everything takes two milliseconds."""

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self):
        pass

    def synchronize(self):
        pass

    def elapsed_time(self, _end) -> float:
        return 2.0


def stand_in_torch(available: bool) -> types.ModuleType:
    torch = types.ModuleType("torch")
    torch.__version__ = "2.0"
    torch.uint8 = torch.float32 = torch.float16 = torch.bfloat16 = object()
    torch.zeros = torch.empty_like = torch.randn = torch.randn_like = lambda *_, **__: Matrix()
    torch.cuda = types.SimpleNamespace(is_available=lambda: available, Event=Event)
    return torch


def test_limits_are_of_what_was_timed(monkeypatch):
    monkeypatch.setattr(roofline, "open_driver", lambda: GPU)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: object())
    monkeypatch.setitem(sys.modules, "torch", stand_in_torch(True))
    limits = targets.program_kind_of("cuda").measure_roofline(3)
    assert limits.threads == 3
    assert limits.bandwidth == pytest.approx(2**31 / 2e-3)
    assert limits.peak("bfloat16") == pytest.approx(2 * 8192**3 / 2e-3)


@pytest.mark.parametrize(
    ("driver", "torch", "message"),
    [
        (StandInDriver(), None, "the driver finds none"),
        (GPU, None, "needs PyTorch; install it with: pip install torch"),
        (GPU, stand_in_torch(False), r"PyTorch 2\.0 cannot use the GPU"),
    ],
    ids=["no GPU", "no PyTorch", "PyTorch for the processor"],
)
def test_what_is_missing_is_named(monkeypatch, driver, torch, message):
    monkeypatch.setattr(roofline, "open_driver", lambda: driver)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: torch)
    monkeypatch.setitem(sys.modules, "torch", torch)
    with pytest.raises(MoecError, match=message):
        targets.program_kind_of("cuda").measure_roofline(1)
