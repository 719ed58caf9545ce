"""Element types by name. The list is closed: a name from a file never reaches numpy's far more liberal parser."""

from __future__ import annotations

from typing import Annotated

import ml_dtypes
import numpy as np

from moec.common.errors import ArtifactError
from moec.common.records import FieldRule

_NUMPY = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_NUMPY_FLOATS = ("float16", "float32", "float64")
_EXTENSIONS = ("bfloat16", "float8_e4m3fn", "float8_e5m2")

DTYPES: dict[str, np.dtype] = {
    **{name: np.dtype(name) for name in (*_NUMPY, *_NUMPY_FLOATS)},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in _EXTENSIONS},
}

ElementType = Annotated[str, FieldRule(lambda name: name in DTYPES, f"an element type: one of {', '.join(DTYPES)}")]
"""Name of an element type in a record."""
_EXTENSION_DTYPES = frozenset(DTYPES[name] for name in _EXTENSIONS)


def dtype_of(name: str) -> np.dtype:
    """Look up the numpy type of an element type. Raises ArtifactError for a name that is not in :data:`DTYPES`."""
    if name not in DTYPES:
        raise ArtifactError(f"unknown element type {name!r}; expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def is_extension(dtype: np.dtype) -> bool:
    """Whether numpy has the type only through ml_dtypes, and so cannot pass it on by DLPack."""
    return dtype in _EXTENSION_DTYPES
