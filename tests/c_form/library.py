"""Libraries of the form C, called through ctypes as C would call them."""

from __future__ import annotations

import contextlib
import ctypes
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from moec.common.dtypes import DTYPES, dtype_of

TYPES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"),
]
"""Element types in the order of ``moec_type``, which begins at 1."""
ARGUMENT, INPUT, FILE, MEMORY, MACHINE, BUSY, UNSUPPORTED, DEFECT = range(1, 9)
MAX_RANK = 12


class Spec(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("rank", ctypes.c_int32),
        ("sizes", ctypes.POINTER(ctypes.c_int64)),
        ("size_names", ctypes.POINTER(ctypes.c_char_p)),
    )


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * MAX_RANK),
    )

    @staticmethod
    def of(array: np.ndarray) -> Tensor:
        """A tensor over the memory of an array, which must outlive it."""
        number = TYPES.index(array.dtype.name) + 1
        return Tensor(array.ctypes.data, array.nbytes, number, array.ndim, (ctypes.c_int64 * MAX_RANK)(*array.shape))

    def array(self) -> np.ndarray:
        """A copy of the elements."""
        shape, dtype = tuple(self.shape[: self.rank]), DTYPES[TYPES[self.type - 1]]
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer(ctypes.string_at(self.data, size), dtype).reshape(shape)


class Options(ctypes.Structure):
    _fields_ = (("threads", ctypes.c_int32), ("reserved", ctypes.c_int32))


class CError(Exception):
    """An error of the library: its number and its text."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(f"{number}: {text}")
        self.number, self.text = number, text


class CLibrary:
    """The shared library of an artifact."""

    def __init__(self, artifact: pathlib.Path) -> None:
        self.name = artifact.stem
        self.weights = artifact / "weights.bin"
        self.calls = ctypes.CDLL(str(artifact / f"lib{self.name}.so"))
        self.program = ctypes.byref(ctypes.c_char.in_dll(self.calls, f"{self.name}_program"))
        for name in ("moec_last_error", "moec_name", "moec_error_name", "moec_type_name"):
            getattr(self.calls, name).restype = ctypes.c_char_p
        self.calls.moec_type_size.restype = ctypes.c_size_t
        self.calls.moec_session_length.restype = ctypes.c_int64
        for name in ("moec_inputs", "moec_outputs"):
            getattr(self.calls, name).restype = ctypes.POINTER(Spec)
        self.inputs, self.outputs = self._specs("moec_inputs"), self._specs("moec_outputs")

    def _specs(self, name: str) -> list[str]:
        count = ctypes.c_size_t()
        specs = getattr(self.calls, name)(self.program, ctypes.byref(count))
        return [specs[at].name.decode() for at in range(count.value)]

    def check(self, number: int) -> None:
        """Raise a :class:`CError` for any result other than MOEC_OK."""
        if number:
            raise CError(number, self.calls.moec_last_error().decode())

    @contextlib.contextmanager
    def loaded(self, threads: int = 0, weights: pathlib.Path | None = None) -> Iterator[CModel]:
        model, options = ctypes.c_void_p(), Options(threads)
        path = str(weights or self.weights).encode()
        self.check(self.calls.moec_load(self.program, path, ctypes.byref(options), ctypes.byref(model)))
        try:
            yield CModel(self, model)
        finally:
            self.calls.moec_free(model)


class CModel:
    def __init__(self, library: CLibrary, model: ctypes.c_void_p) -> None:
        self.library, self.model = library, model

    def run(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        library = self.library
        arrays = [np.asarray(values[name], order="C") for name in library.inputs]
        inputs = (Tensor * max(len(arrays), 1))(*map(Tensor.of, arrays))
        outputs = (Tensor * max(len(library.outputs), 1))()
        library.check(library.calls.moec_run(self.model, inputs, len(arrays), outputs, len(library.outputs)))
        results = {name: tensor.array() for name, tensor in zip(library.outputs, outputs, strict=True)}
        for tensor in outputs:
            library.calls.moec_release(ctypes.byref(tensor))
        return results

    @contextlib.contextmanager
    def session(self, max_tokens: int = 0, batch: int = 1) -> Iterator[CSession]:
        session, calls = ctypes.c_void_p(), self.library.calls
        limits = ctypes.c_int64(max_tokens), ctypes.c_int64(batch)
        self.library.check(calls.moec_session_begin(self.model, *limits, ctypes.byref(session)))
        try:
            yield CSession(self.library, session, batch)
        finally:
            calls.moec_session_end(session)


class CSession:
    def __init__(self, library: CLibrary, session: ctypes.c_void_p, batch: int) -> None:
        self.library, self.session, self.batch = library, session, batch

    def run(
        self, ids: Sequence[int] | np.ndarray, last: int = 1, mask: Sequence[Sequence[int]] | None = None
    ) -> np.ndarray:
        array = np.ascontiguousarray(ids, np.int64).reshape(self.batch, -1)
        padding = None if mask is None else np.ascontiguousarray(mask, np.uint8)
        logits, calls = Tensor(), self.library.calls
        counts = ctypes.c_int64(array.shape[1]), ctypes.c_int64(last)
        pointers = [ctypes.c_void_p(None if each is None else each.ctypes.data) for each in (array, padding)]
        if mask is None:
            error = calls.moec_session_run(self.session, pointers[0], *counts, ctypes.byref(logits))
        else:
            error = calls.moec_session_run_padded(self.session, *pointers, *counts, ctypes.byref(logits))
        self.library.check(error)
        result = logits.array()
        calls.moec_release(ctypes.byref(logits))
        return result

    @property
    def length(self) -> int:
        return self.library.calls.moec_session_length(self.session)

    def truncate(self, length: int) -> None:
        self.library.check(self.library.calls.moec_session_truncate(self.session, ctypes.c_int64(length)))

    @contextlib.contextmanager
    def fork(self) -> Iterator[CSession]:
        copy = ctypes.c_void_p()
        self.library.check(self.library.calls.moec_session_fork(self.session, ctypes.byref(copy)))
        try:
            yield CSession(self.library, copy, self.batch)
        finally:
            self.library.calls.moec_session_end(copy)


def same_bits(actual: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two arrays have the same type, shape and bits."""
    expected = np.asarray(expected)
    same = (actual.dtype, actual.shape) == (dtype_of(expected.dtype.name), expected.shape)
    return same and actual.tobytes() == np.ascontiguousarray(expected).tobytes()
