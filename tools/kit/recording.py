"""Recordings of the launches of a model: the device functions that its host code calls, with all their arguments.

A model runs here as on a GPU, with a library in place of its device code that hands each launch to a
:class:`TapeRecorder`. The recorder runs the launch in the emulator, or only notes it, which takes neither time nor
memory at any size. Addresses of the host stand for those of the device; :mod:`kit.tapes` makes offsets of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import pathlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kit.carried.tape import POISON
from moec.common.once import once
from moec.runtime.artifact import Artifact
from moec.runtime.device_module import BEGINS_EARLY_TAG, LAUNCH_FLAGS, DeviceCall, DeviceModule
from moec.runtime.library import load_ffi
from moec.runtime.load_options import LoadOptions
from moec.runtime.model import CompiledModel
from moec.runtime.probe import tensors_of
from moec.runtime.program import BUILTIN, NO_INSTRUMENT_ACTION
from moec.simulators.cuda import library
from moec.simulators.cuda.device import emulated_device
from moec.simulators.cuda.driver import emulated_driver
from moec.simulators.cuda.launch import EmulatedLaunch
from moec.simulators.cuda.tensor_map import encode_tensor_map
from moec.targets.build_cache import cached
from moec.targets.cuda.device.driver import CUDA
from moec.targets.cuda.device.gpu import CudaGpu

_ON_LAUNCH = "moec.kit.on_launch"
_ENCODE, _ATTRIBUTE, _MULTIPROCESSOR_COUNT = "runtime.cuTensorMapEncodeTiled", "runtime.GetDeviceAttr", 7
_HANDLE = 3
"""Code of pointers among the types of a kernel's arguments; the codes below are integers and floats."""
_TYPES = {(0, 32): "int32", (0, 64): "int64", (1, 32): "uint32", (1, 64): "uint64", (2, 32): "float32"}
_STUB = """#include <string.h>
#include <tvm/ffi/c_api.h>
static int forward(const char* name, const TVMFFIAny* values, int32_t count, TVMFFIAny* result) {
  static TVMFFIObjectHandle on_launch;
  TVMFFIByteArray key = {"%s", %d};
  if (!on_launch && TVMFFIFunctionGetGlobal(&key, &on_launch)) return -1;
  TVMFFIAny all[256];
  memset(all, 0, sizeof all);
  all[0].type_index = kTVMFFIRawStr;
  all[0].v_c_str = name;
  memcpy(all + 1, values, count * sizeof(TVMFFIAny));
  return TVMFFIFunctionCall(on_launch, all, count + 1, result);
}
"""
_ENTRY = """extern "C" __attribute__((visibility("default")))
int __tvm_ffi_%s(void*, const TVMFFIAny* values, int32_t count, TVMFFIAny* result) {
  return forward("%s", values, count, result);
}
"""


@dataclasses.dataclass
class KitTensor:
    """A tensor of a kernel's call: its place in the host's memory, and its bytes before and after, where they were
    asked for."""

    name: str
    dtype: str
    shape: list[int]
    address: int
    size: int
    before: bytes | None = None
    after: bytes | None = None

    def read(self) -> bytes:
        return ctypes.string_at(self.address, self.size)


@dataclasses.dataclass(frozen=True)
class KitLaunch:
    """A launch of ``function`` in the device code whose SHA-256 is ``module``. ``arguments``: pairs of a type and a
    value: a number, an address (``pointer``), or the numbers of a tensor map (``map``). ``launch``: TVM's tags in
    their order, and their values."""

    module: str
    function: str
    arguments: list[list[Any]]
    launch: dict[str, int]
    begins_early: bool

    def as_data(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass
class KitCall:
    """A call of a kernel by the host program, and the launches that it made."""

    kernel: str
    tensors: list[KitTensor]
    launches: list[KitLaunch]


_active: list[TapeRecorder] = []
"""The recorder of the model that was loaded last."""


class TapeRecorder:
    """Calls of the kernels of one model at a time. ``execute``: whether launches also run, emulated."""

    def __init__(self, multiprocessors: int, *, execute: bool) -> None:
        self.multiprocessors, self.executes = multiprocessors, execute
        self.libraries: dict[str, pathlib.Path] = {}
        """The emulated libraries of device code, by its SHA-256."""
        self.modules: dict[str, DeviceModule] = {}
        """The device code that was loaded, likewise."""
        self._kernels: dict[str, tuple[str, DeviceCall, Any]] = {}
        self._maps: dict[int, dict[str, Any]] = {}
        self._call: KitCall | None = None
        self._run: list[tuple[Any, list[Any], list[Any]]] = []
        """The emulated launches of the call: function, values, and the tensor maps among these, which are kept."""
        self._poisoned: set[str] = set()

    def load(self, artifact: Artifact) -> CompiledModel:
        """Load a model on the recorder. No model on another recorder may run until this one is done."""
        architecture = artifact.program().architecture
        emulated_device(architecture)
        ffi = load_ffi()
        _active[:] = [self]
        # Host code keeps the functions that it found first, so these find the recorder that is active.
        ffi.register_global_func(_ENCODE, lambda *values: _active[0].encode(*values), override=True)
        ffi.register_global_func(_ON_LAUNCH, lambda *values: _active[0].on_launch(*values), override=True)
        _count_multiprocessors()
        loader = functools.partial(self._load_module, architecture)
        return CompiledModel(
            artifact, LoadOptions(), CudaGpu(loader, emulated_driver(), architecture, is_emulated=True)
        )

    @contextlib.contextmanager
    def recording(self, model: CompiledModel, *, largest: int | None) -> Iterator[list[KitCall]]:
        """Context that collects the calls of kernels. ``largest``: of which size, in bytes, a tensor's
        contents are kept, too; None for any."""
        names = {
            record["name"]: [parameter["name"] for parameter in record["parameters"]]
            for record in model.artifact.program().kernels
        }
        calls: list[KitCall] = []

        def instrument(_function: Any, symbol: str, before: bool, _result: Any, *arguments: Any) -> int:
            if symbol.startswith(BUILTIN):
                return NO_INSTRUMENT_ACTION
            if before:
                tensors = [_tensor_of(tensor) for tensor in tensors_of(arguments)]
                for tensor, name in zip(tensors, names.get(symbol, ()), strict=False):
                    tensor.name = name
                self._call, self._run = KitCall(symbol, tensors, []), []
            assert self._call is not None, "an instrument is called before and after"
            for tensor in self._call.tensors:
                if largest is None or tensor.size <= largest:
                    setattr(tensor, "before" if before else "after", tensor.read())
            if not before:
                if largest is None and symbol not in self._poisoned and self._run and changed(self._call):
                    self._poisoned.add(symbol)
                    self._forget_unread(self._call)
                calls.append(self._call)
                self._call = None
            return NO_INSTRUMENT_ACTION

        with model.probe.instrumented(instrument):
            yield calls

    def _load_module(self, architecture: str, module: DeviceModule) -> Any:
        code = module.code.decode()
        digest, emulated = hashlib.sha256(module.code).hexdigest(), None
        self.modules[digest] = module
        if self.executes:
            launches = [EmulatedLaunch(kernel.name, kernel.launch) for kernel in module.kernels]
            path = library.emulated_library(code, launches, architecture=architecture, portable=True)
            self.libraries[digest] = path
            emulated = load_ffi().load_module(str(path))
        for kernel in module.kernels:
            self._kernels[kernel.name] = (digest, kernel, emulated)
        return load_ffi().load_module(str(_forwarding_library([kernel.name for kernel in module.kernels])))

    def encode(self, target: Any, dtype: str, rank: int, address: Any, *numbers: int) -> None:
        encode_tensor_map(target, dtype, rank, address, *numbers)
        self._maps[_number(target)] = {
            "dtype": str(dtype),
            "rank": int(rank),
            "address": _number(address),
            "numbers": [int(number) for number in numbers],
        }

    def on_launch(self, name: str, *values: Any) -> None:
        digest, kernel, emulated = self._kernels[name]
        count, tags = len(kernel.types), [tag for tag in kernel.launch if tag not in LAUNCH_FLAGS]
        arguments = [
            self._argument(*kernel.types[place], place in kernel.tensor_maps, values[place]) for place in range(count)
        ]
        launch = dict(zip(tags, map(int, values[count:]), strict=True))
        record = KitLaunch(digest, name, arguments, launch, BEGINS_EARLY_TAG in kernel.launch)
        if self._call is not None:
            self._call.launches.append(record)
        if emulated is not None:
            emulated[name](*values)
            self._run.append((emulated[name], *self._kept(kernel, values)))

    def _kept(self, kernel: DeviceCall, values: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The values of a launch with tensor maps in memory of their own, and that memory."""
        kept, rooms = list(values), []
        for place in kernel.tensor_maps:
            data, room = self._maps[_number(values[place])], np.zeros(256, np.uint8)
            address = room.ctypes.data + -room.ctypes.data % 64
            encode_tensor_map(address, data["dtype"], data["rank"], data["address"], *data["numbers"])
            kept[place] = ctypes.c_void_p(address)
            rooms.append(room)
        return kept, rooms

    def _forget_unread(self, call: KitCall) -> None:
        """Repeat a call with poison in what it changes. Where that changes no result, the old content is never read:
        the call is noted with poison, which takes no room in a kit, unlike what earlier kernels left there."""
        tensors = list(changed(call).values())
        for tensor in tensors:
            ctypes.memset(tensor.address, POISON, tensor.size)
        for function, values, _ in self._run:
            function(*values)
        repeated = [tensor.read() for tensor in tensors]
        agrees = all(map(is_repeated, tensors, repeated))
        for tensor, again in zip(tensors, repeated, strict=True):
            assert tensor.after is not None, "a changed tensor was read"
            ctypes.memmove(tensor.address, tensor.after, tensor.size)
            if agrees:
                tensor.before, tensor.after = bytes([POISON]) * tensor.size, again

    def _argument(self, code: int, bits: int, is_map: bool, value: Any) -> list[Any]:
        if is_map:
            return ["map", self._maps[_number(value)]]
        if code == _HANDLE:
            return ["pointer", _number(value)]
        return [_TYPES[code, bits], value]


@once
def _count_multiprocessors() -> None:
    """Let the emulated GPU have as many multiprocessors as the active recorder says."""
    ffi = load_ffi()
    attribute_of = ffi.get_global_func(_ATTRIBUTE)

    def attribute(kind: int, device: int, which: int) -> Any:
        own = (kind, which) == (CUDA, _MULTIPROCESSOR_COUNT)
        return _active[0].multiprocessors if own else attribute_of(kind, device, which)

    ffi.register_global_func(_ATTRIBUTE, attribute, override=True)


def _tensor_of(tensor: Any) -> KitTensor:
    dtype, shape = str(tensor.dtype), list(map(int, tensor.shape))
    return KitTensor("", dtype, shape, tensor.data_ptr(), int(np.prod(shape, dtype=np.int64)) * tensor.dtype.itemsize)


def _number(pointer: Any) -> int:
    return int(getattr(pointer, "value", pointer) or 0)


def _forwarding_library(names: list[str]) -> pathlib.Path:
    """Build the library whose functions hand their arguments to the recorder."""
    text = _STUB % (_ON_LAUNCH, len(_ON_LAUNCH)) + "".join(_ENTRY % (name, name) for name in names)
    key = hashlib.sha256(text.encode()).hexdigest()[:24]

    def build(path: pathlib.Path) -> None:
        from tvm_ffi import libinfo

        command = [library.find_compiler(), "-shared", "-fPIC", "-x", "c++", "-", "-o", str(path)]
        command += [*library.includes(), "-x", "none", str(libinfo.find_libtvm_ffi())]
        subprocess.run(command, input=text, text=True, check=True)

    return cached("emulator", f"{key}.so", build)


def is_repeated(tensor: KitTensor, repeated: bytes) -> bool:
    """Whether a call that began with poison changed a tensor to the same, and left poison where it changes nothing."""
    before, after, again = (np.frombuffer(data or b"", np.uint8) for data in (tensor.before, tensor.after, repeated))
    return bool(np.all((again == after) | ((before == after) & (again == POISON))))


def changed(call: KitCall) -> Mapping[str, KitTensor]:
    """Select the tensors that a call changed, by name."""
    return {tensor.name: tensor for tensor in call.tensors if tensor.before != tensor.after}
