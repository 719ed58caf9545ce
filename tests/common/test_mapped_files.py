"""Mapped files: their pages can be let go of and come back."""

import pathlib

import numpy as np
import pytest

from moec.common.mapped_files import map_file, release_pages

SIZE = 64 << 20


def resident_file_bytes() -> int:
    """Resident bytes of files that this process has mapped, as Linux counts them."""
    try:
        text = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        pytest.skip("only Linux says how much of the mapped files is resident")
    (line,) = (line for line in text.splitlines() if line.startswith("RssFile:"))
    return int(line.split()[1]) << 10


def test_pages_that_were_let_go_of_are_not_resident_and_come_back(tmp_path):
    path = tmp_path / "data"
    np.arange(SIZE // 8).tofile(path)
    before = resident_file_bytes()
    data = map_file(path).view(np.int64)
    assert data.sum() == (SIZE // 8) * (SIZE // 8 - 1) // 2
    assert resident_file_bytes() > before + SIZE // 2
    release_pages()
    assert resident_file_bytes() < before + SIZE // 2
    assert data[12345] == 12345
