"""The order of streams when one that a caller made is gone."""

from __future__ import annotations

import shutil

import pytest

from moec.runtime.library import load_ffi
from moec.runtime.streams import DEFAULT, Streams
from moec.targets.cuda.device.driver import CUDA

from .emulated_gpu import Calls, emulated_driver

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="emulation needs g++")


@pytest.fixture
def streams() -> Streams:
    emulated_driver()
    return Streams(CUDA)


def used_by_a_caller(streams: Streams) -> int:
    device = load_ffi().device(CUDA, 0)
    stream = load_ffi().get_global_func("runtime.Device_StreamCreate")(device)
    with streams.working_on(stream):
        assert streams.current() == stream
    return stream


def destroy(stream: int) -> None:
    load_ffi().get_global_func("runtime.Device_StreamFree")(load_ffi().device(CUDA, 0), stream)


def test_a_destroyed_stream_is_forgotten(streams):
    kept, gone = used_by_a_caller(streams), used_by_a_caller(streams)
    destroy(gone)
    with Calls() as calls, streams.working_on(DEFAULT):
        assert streams.current() == DEFAULT
    assert calls["cudaStreamSynchronize"] == 1, "in place of waiting for the stream"
    with Calls() as calls, streams.working_on(DEFAULT):
        pass
    assert (calls["cudaStreamWaitEvent"], calls["cudaStreamSynchronize"]) == (1, 0)
    assert streams._used == {DEFAULT, kept}


def test_streams_that_are_there_are_waited_for(streams):
    used_by_a_caller(streams)
    for _ in range(2):
        with Calls() as calls, streams.working_on(DEFAULT):
            pass
        assert (calls["cudaStreamWaitEvent"], calls["cudaStreamSynchronize"]) == (1, 0)


def test_a_gpu_that_failed_is_reported(streams, monkeypatch):
    """An error that is not the stream's own also fails to wait for the default stream."""
    destroy(used_by_a_caller(streams))

    def fail(_stream: int) -> None:
        raise RuntimeError("CUDA: an illegal memory access was encountered")

    monkeypatch.setattr(streams, "finish", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"), streams.working_on(DEFAULT):
        pass
