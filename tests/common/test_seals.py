"""Files that moec recognises as its own, and files that it does not."""

from __future__ import annotations

import numpy as np
import pytest

from moec.common.array_files import read_arrays, write_arrays
from moec.common.errors import MoecError
from moec.common.seals import foreign_file, sealed, write_sealed


@pytest.mark.parametrize("content", [b"", b"text", b"text\n", bytes(range(256)) * 5000])
def test_a_sealed_file_is_recognised_until_it_changes(tmp_path, content):
    path = tmp_path / "file"
    write_sealed(path, content, "# ")
    assert path.read_bytes().startswith(content)
    assert foreign_file(path) is None
    path.write_bytes(b"x" + path.read_bytes())
    assert foreign_file(path) == "is a file that was changed since moec wrote it"
    path.write_bytes(sealed(content, "# ") + b"more")
    assert foreign_file(path) == "is a file that moec did not write"


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 1000])
def test_other_files_and_folders_are_foreign(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert foreign_file(tmp_path / "file") == "is a file that moec did not write"
    assert foreign_file(tmp_path) == "is a folder, not a file"


def test_arrays_replace_arrays_that_moec_wrote_and_no_others(tmp_path):
    path, other = tmp_path / "a.npz", tmp_path / "b.npz"
    for value in (1, 2):
        write_arrays(path, {"x": np.full(3, value), "file": np.zeros(0)})
    np.testing.assert_array_equal(read_arrays(path)["x"], np.full(3, 2))
    np.savez(other, x=np.ones(3))
    before = other.read_bytes()
    with pytest.raises(MoecError, match=r"b\.npz: is a file that moec did not write; remove it or choose another path"):
        write_arrays(other, {"x": np.zeros(3)})
    assert other.read_bytes() == before
