"""Calls of the driver, against a stand-in for its library in C++."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import pytest

from moec.common.errors import DefectError, MoecError
from moec.targets.cuda.device import driver as driver_module
from moec.targets.cuda.device.driver import Driver, GpuFacts, open_driver

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the library needs g++")

SOURCE = r"""
#include <cstddef>
#include <cstdint>
#include <cstring>
typedef void *Handle;
extern "C" {
static int started = 0, next_result = 0;
static char log[4096];
static int note(const char *text) { strcat(log, text); strcat(log, ";"); return next_result; }
void start_with(int result) { started = result; }
void answer(int result) { next_result = result; }
const char *noted() { return log; }

int cuInit(unsigned flags) { return flags == 0 ? started : 1; }
int cuDriverGetVersion(int *version) { *version = 13020; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
  strncpy(name, device ? "Second" : "First", size);
  return 0;
}
int cuDeviceGetAttribute(int *value, int which, int device) {
  *value = which == 75 ? 8 + device : which == 76 ? 6 * (1 - device) : -1;
  return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)(device + 1) << 36; return 0; }
int cuDevicePrimaryCtxRetain(Handle *context, int) { *context = (Handle)0x1234567890; return 0; }
int cuCtxSetCurrent(Handle context) { return context == (Handle)0x1234567890 ? note("context") : 1; }
int cuStreamCreate(Handle *stream, unsigned flags) { *stream = (Handle)(flags == 1 ? 0x7000000000 : 0); return 0; }
int cuMemcpyHtoDAsync_v2(uint64_t target, const void *source, size_t size, Handle) {
  memcpy((void *)target, source, size);
  return note("from host");
}
int cuMemcpyDtoDAsync_v2(uint64_t target, uint64_t source, size_t size, Handle) {
  memcpy((void *)target, (void *)source, size);
  return note("on device");
}
int cuMemcpyDtoHAsync_v2(void *target, uint64_t source, size_t size, Handle) {
  memcpy(target, (void *)source, size);
  return note("to host");
}
int cuMemHostAlloc(Handle *memory, size_t size, unsigned flags) {
  *memory = (Handle)0x5000000000;
  return size == 64 && flags == 0 ? note("pin") : 1;
}
int cuMemFreeHost(Handle memory) { return memory == (Handle)0x5000000000 ? note("unpin") : 1; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = (size_t)3 << 33; *total = (size_t)1 << 36; return 0; }
int cuEventCreate(Handle *event, unsigned flags) { *event = (Handle)0x6000000000; return flags == 2 ? 0 : 1; }
int cuEventRecord(Handle event, Handle stream) {
  return event == (Handle)0x6000000000 && stream == (Handle)0x7000000000 ? note("record") : 1;
}
int cuEventSynchronize(Handle event) { return event == (Handle)0x6000000000 ? note("wait") : 1; }
int cuEventDestroy_v2(Handle event) { return event == (Handle)0x6000000000 ? note("drop") : 1; }
int cuStreamIsCapturing(Handle stream, int *status) { *status = stream ? 1 : 0; return 0; }
static int mode = 0;
int cuThreadExchangeStreamCaptureMode(int *value) {
  int before = mode;
  mode = *value;
  *value = before;
  return note(mode == 2 ? "relaxed" : "as before");
}
int cuStreamBeginCapture_v2(Handle stream, int mode) {
  return stream == (Handle)0x7000000000 && mode == 2 ? note("capture") : 1;
}
int cuStreamEndCapture(Handle stream, Handle *graph) { *graph = (Handle)0x8000000000; return stream ? 0 : 1; }
int cuGraphInstantiateWithFlags(Handle *executable, Handle graph, unsigned long long flags) {
  *executable = (Handle)0x9000000000;
  return graph == (Handle)0x8000000000 && flags == 0 ? note("instantiate") : 1;
}
int cuGraphDestroy(Handle graph) { return graph == (Handle)0x8000000000 ? note("destroy") : 1; }
int cuGraphLaunch(Handle executable, Handle) { return executable == (Handle)0x9000000000 ? note("launch") : 1; }
int cuGraphExecDestroy(Handle) { return note("forget"); }
int cuGetErrorName(int error, const char **text) {
  *text = error == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : error == 3 ? "CUDA_ERROR_NOT_INITIALIZED" : "CUDA_ERROR_ODD";
  return error == 77;
}
int cuGetErrorString(int error, const char **text) { *text = "it is so"; return error == 77; }
}
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.cpp").write_text(SOURCE)
    subprocess.run(["g++", "-shared", "-fPIC", "-o", folder / "driver.so", folder / "driver.cpp"], check=True)
    return folder / "driver.so"


@pytest.fixture
def library(path, tmp_path):
    """A separate copy of the stand-in for each test, with its own state."""
    loaded = ctypes.CDLL(str(shutil.copy(path, tmp_path / "driver.so")))
    loaded.noted.restype = ctypes.c_char_p
    return loaded


def test_says_what_gpus_there_are(library):
    driver = Driver(library)
    assert driver.version == (13, 2)
    assert driver.gpus() == [GpuFacts("First", "8.6", 1 << 36), GpuFacts("Second", "9.0", 2 << 36)]


def test_finds_none(library):
    library.start_with(100)
    assert Driver(library).gpus() == []


def test_captures_and_launches(library):
    driver = Driver(library)
    driver.use_first_gpu()
    stream = driver.new_stream()
    driver.begin_capture(stream)
    graph = driver.end_capture(stream)
    driver.launch(graph, 0)
    driver.forget(graph)
    assert library.noted() == b"context;capture;instantiate;destroy;launch;forget;"


def test_copies_between_addresses(library):
    driver = Driver(library)
    host, near, far = (ctypes.create_string_buffer(text, 8) for text in (b"numbers", b"", b""))
    driver.copy_from_host(ctypes.addressof(near), ctypes.addressof(host), 8, 0)
    driver.copy_on_device(ctypes.addressof(far), ctypes.addressof(near), 8, 5)
    assert far.value == b"numbers"


def test_pinned_memory_and_events(library):
    driver = Driver(library)
    stream, event, memory = driver.new_stream(), driver.new_event(), driver.new_pinned(64)
    driver.record_event(event, stream)
    driver.finish_event(event)
    driver.free_event(event)
    driver.free_pinned(memory)
    assert library.noted() == b"pin;record;wait;drop;unpin;"
    assert driver.free_memory() == 3 << 33


def test_tells_captures_and_allows_what_they_forbid(library):
    driver = Driver(library)
    assert driver.is_capturing(driver.new_stream()) and not driver.is_capturing(0)
    with pytest.raises(KeyError), driver.relaxed():
        raise KeyError
    assert library.noted() == b"relaxed;as before;"


@pytest.mark.parametrize(
    ("result", "kind", "message"),
    [
        (2, MoecError, "the GPU is out of memory; .*cuGraphLaunch: CUDA_ERROR_OUT_OF_MEMORY: it is so"),
        (5, DefectError, "cuGraphLaunch: CUDA_ERROR_ODD: it is so"),
        (77, DefectError, "cuGraphLaunch: CUDA error 77"),
    ],
)
def test_what_it_refuses_is_an_error(library, result, kind, message):
    driver = Driver(library)
    library.answer(result)
    with pytest.raises(kind, match=message):
        driver.launch(0x9000000000, 0)


def test_one_that_does_not_start_or_lacks_a_function(library, monkeypatch):
    library.start_with(3)
    with pytest.raises(MoecError, match="cuInit: CUDA_ERROR_NOT_INITIALIZED"):
        Driver(library)
    monkeypatch.setattr(driver_module, "_LIBRARY", "libm.so.6")
    with pytest.raises(MoecError, match=r"driver is too old .*cuInit.*; install a newer one"):
        open_driver.__wrapped__()
