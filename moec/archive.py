"""Named arrays in ``.npz`` files: the inputs and outputs of the command line."""

from __future__ import annotations

import os
import pathlib
import secrets
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

from moec.errors import InputError, MoecError
from moec.runtime.dtypes import dtype_of
from moec.runtime.manifest import TensorSpec


def read_arrays(path: str | os.PathLike[str], specs: Sequence[TensorSpec] = ()) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file by name. Types that numpy does not know (bfloat16) come out of a file as raw
    bytes; ``specs`` says what they are. Raises InputError for a file that cannot be read; nothing is unpickled."""
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(f"{path}: holds one array without a name; expected an .npz file of named arrays")
        with archive:
            arrays = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: is not an intact .npz file of arrays; write it with numpy.savez") from error
    expected = {spec.name: dtype_of(spec.dtype) for spec in specs}
    return {name: _with_type(array, expected.get(name)) for name, array in arrays.items()}


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write an ``.npz`` file, aside first and then renamed. Raises MoecError when it cannot be written."""
    path = pathlib.Path(path)
    aside = path.parent / f".{path.name}.{secrets.token_hex(6)}"
    try:
        with zipfile.ZipFile(aside, "x") as archive:  # numpy.savez refuses some names, "file" for one
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)
        aside.replace(path)
    except OSError as error:
        raise MoecError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)


def _with_type(array: np.ndarray, dtype: np.dtype | None) -> np.ndarray:
    if dtype is None or array.dtype.kind != "V" or array.dtype.itemsize != dtype.itemsize:
        return array
    return array.view(dtype)
