from __future__ import annotations

import errno
import tempfile

import numpy as np
import pytest

from moec.common.errors import MoecError
from moec.ir.weights.encode import Encoded, encode
from moec.ir.weights.format import WeightFormat
from moec.passes.weights.kept import KeptExperts

from .measured import weight_of


@pytest.mark.parametrize(
    "form", [WeightFormat("int4", 32, True), WeightFormat("mxfp4", 32), WeightFormat("int8")], ids=str
)
def test_what_was_made_is_read(form: WeightFormat) -> None:
    built = [encode(index + weight_of(64, 5), form, 0) for index in range(9)]
    kept = KeptExperts(len(built), built.__getitem__, 1)
    for index, encoded in enumerate(built):
        for table, array in encoded._asdict().items():
            if array is not None:
                actual = kept.read(index, table)
                assert actual.dtype == array.dtype
                np.testing.assert_array_equal(actual, array)


def test_the_first_expert_that_fails_is_named() -> None:
    built = []

    def make(index: int) -> Encoded:
        built.append(index)
        if index >= 3:
            raise ValueError(f"expert {index}")
        return Encoded(np.zeros(4))

    with pytest.raises(ValueError, match="expert 3"):
        KeptExperts(4000, make, 1 << 40)
    assert len(built) < 4000, "what has not begun is not made"


def test_a_folder_that_is_not_there_is_an_error(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(
        MoecError, match=r"missing: weights cannot be kept there \(No such file or directory\); set TMPDIR"
    ):
        KeptExperts(1, lambda _index: Encoded(np.zeros(4)), 1)


def test_a_full_disk_is_an_error(monkeypatch) -> None:
    def write(_bytes: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    make_file = tempfile.NamedTemporaryFile

    def full(**options):
        file = make_file(**options)
        file.write = write
        return file

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    with pytest.raises(MoecError, match=r"weights cannot be kept there \(No space left on device\); set TMPDIR"):
        KeptExperts(3, lambda _index: Encoded(np.zeros(4)), 1)
