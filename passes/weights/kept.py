"""Encoded weights that take long to make: made once, on all cores, and kept in a file instead of in memory."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, get_args

import numpy as np

from moec.common.cores import available_cores
from moec.common.errors import MoecError
from moec.common.mapped_files import map_file
from moec.common.scratch import ScratchFolder
from moec.ir.weights.encode import Encoded, Table

Array = np.ndarray[Any, Any]

_MOST_BYTES = 3 << 29
"""Memory for all experts that are made at once."""
_ALIGNMENT = 16


class KeptExperts:
    """Calls ``make(index)`` for each of ``count`` experts, in parallel, and keeps the results.

    Each call takes about ``bytes_each`` of memory, which limits how many run ``at_once``, by default as many as there
    are cores. The results lie in a temporary
    file without a name, which is mapped; elements of less than a byte take a byte there. Raises what ``make`` raises
    (for the first expert that fails), and MoecError when the file cannot be written.
    """

    def __init__(self, count: int, make: Callable[[int], Encoded], bytes_each: int, at_once: int = 0) -> None:
        self._places: dict[tuple[int, Table], tuple[int, tuple[int, ...], np.dtype[Any]]] = {}
        self._lock = threading.Lock()
        workers = max(1, min(at_once or len(available_cores()), _MOST_BYTES // bytes_each))
        with contextlib.ExitStack() as stack:
            with _writing():
                file = stack.enter_context(tempfile.NamedTemporaryFile(dir=stack.enter_context(ScratchFolder())))
            pool = stack.enter_context(ThreadPoolExecutor(workers))
            stack.callback(pool.shutdown, cancel_futures=True)
            futures = [pool.submit(lambda index: self._keep(index, make(index), file), index) for index in range(count)]
            for future in futures:
                future.result()
            with _writing():
                file.flush()
            self._mapped = map_file(file.name)

    def read(self, index: int, table: Table) -> Array:
        """Return one table of one expert, read-only."""
        start, shape, dtype = self._places[index, table]
        size = int(np.prod(shape)) * dtype.itemsize
        return self._mapped[start : start + size].view(dtype).reshape(shape)

    def _keep(self, index: int, encoded: Encoded, file: IO[bytes]) -> None:
        with self._lock, _writing():
            for table in get_args(Table):
                if (array := encoded.read(table)) is not None:
                    file.write(bytes(-file.tell() % _ALIGNMENT))
                    self._places[index, table] = file.tell(), array.shape, array.dtype
                    file.write(array.tobytes())


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"{tempfile.gettempdir()}: weights cannot be kept there ({error.strerror or error})"
        raise MoecError(f"{problem}; set TMPDIR to a folder with space") from error
