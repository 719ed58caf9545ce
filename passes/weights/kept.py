"""Encoded weights that take long to make: made once, on all cores, and kept in a file instead of in memory."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, get_args

import numpy as np

from moec.common.cores import available_cores
from moec.errors import MoecError
from moec.ir.mapped_files import map_file
from moec.ir.weights.encode import Encoded, Table

Array = np.ndarray[Any, Any]

_MOST_BYTES = 4 << 30


class KeptExperts:
    """The tables of ``count`` experts, each made by ``make(index)``, for which ``bytes_each`` of memory are taken.

    They lie in a temporary file that is deleted already, and are mapped from there. Raises what ``make`` raises, of
    several the first expert's, and MoecError where the file cannot be written.
    """

    def __init__(self, count: int, make: Callable[[int], Encoded], bytes_each: int) -> None:
        self._places: dict[tuple[int, Table], tuple[int, tuple[int, ...], np.dtype[Any]]] = {}
        self._writing = threading.Lock()
        workers = max(1, min(len(available_cores()), _MOST_BYTES // bytes_each))
        with tempfile.NamedTemporaryFile(prefix="moec-weights-") as file, ThreadPoolExecutor(workers) as pool:
            made = [pool.submit(lambda index: self._keep(index, make(index), file), index) for index in range(count)]
            try:
                for one in made:
                    one.result()
                file.flush()
                self._mapped = map_file(file.name)
            except OSError as error:
                problem = f"{tempfile.gettempdir()}: weights cannot be kept there ({error.strerror or error})"
                raise MoecError(f"{problem}; set TMPDIR to a folder with space") from error
            finally:
                pool.shutdown(cancel_futures=True)

    def read(self, index: int, table: Table) -> Array:
        """One table of one expert, read-only."""
        start, shape, dtype = self._places[index, table]
        size = int(np.prod(shape)) * dtype.itemsize
        return self._mapped[start : start + size].view(dtype).reshape(shape)

    def _keep(self, index: int, encoded: Encoded, file: IO[bytes]) -> None:
        with self._writing:
            for table, array in zip(get_args(Table), encoded, strict=True):
                if array is not None:
                    self._places[index, table] = file.tell(), array.shape, array.dtype
                    file.write(array.tobytes())
