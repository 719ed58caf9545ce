"""Named arrays in ``.npz`` files: the inputs and outputs of the command line."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

from moec.common.array_zips import DamagedError, open_zip, read_array
from moec.common.dtypes import dtype_of
from moec.common.errors import InputError
from moec.common.replacing import check_replaceable, replacing
from moec.common.seals import foreign_file, seal_zip
from moec.common.specs import TensorSpec


def read_arrays(path: str | os.PathLike[str], specs: Sequence[TensorSpec] = ()) -> dict[str, np.ndarray]:
    """Read the arrays of an ``.npz`` file by name. Types that numpy does not have (bfloat16) are raw bytes in the file;
    ``specs`` gives their types. Raises InputError for a file that cannot be read; nothing is unpickled."""
    try:
        with open_zip(path) as archive:
            arrays = {name.removesuffix(".npy"): _array(archive, name, path) for name in archive.namelist()}
    except DamagedError as error:
        raise InputError(
            f"{path}: is not an intact .npz file of arrays ({error}); write it with numpy.savez"
        ) from error
    expected = {spec.name: dtype_of(spec.dtype) for spec in specs}
    return {name: _with_type(array, expected.get(name)) for name, array in arrays.items()}


def _array(archive: zipfile.ZipFile, name: str, path: str | os.PathLike[str]) -> np.ndarray:
    try:
        return read_array(archive, name)
    except DamagedError as error:
        shown = name.removesuffix(".npy")
        raise InputError(f"{path}: the array {shown!r} {error}; write the file with numpy.savez") from error


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write an ``.npz`` file where nothing, or one that this function has written, is. Raises MoecError where another
    file exists or it cannot be written."""
    with replacing(path, foreign_file) as aside:
        with zipfile.ZipFile(aside, "x") as archive:  # numpy.savez refuses some names, for example "file"
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)
        seal_zip(aside)


def check_arrays_destination(path: str | os.PathLike[str]) -> None:
    """Raise MoecError where :func:`write_arrays` would not write."""
    check_replaceable(path, foreign_file)


def _with_type(array: np.ndarray, dtype: np.dtype | None) -> np.ndarray:
    if dtype is None or array.dtype.kind != "V" or array.dtype.itemsize != dtype.itemsize:
        return array
    return array.view(dtype)
