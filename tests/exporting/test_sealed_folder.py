"""Folders that moec recognises as its own, and folders that it does not."""

from __future__ import annotations

import pytest

from moec.exporting.sealed_folder import LIST, foreign_folder, seal_folder


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.bin").write_bytes(bytes(5))
    (folder / "inner/b.txt").write_text("b")
    seal_folder(folder)
    return folder


def test_a_sealed_folder_is_recognised(folder):
    assert foreign_folder(folder) is None


@pytest.mark.parametrize("change", ["add", "edit", "remove", "link"])
def test_a_changed_folder_is_not(folder, change):
    if change == "add":
        (folder / "inner/c.txt").write_text("")
    elif change == "edit":
        (folder / "a.bin").write_bytes(bytes(6))
    elif change == "remove":
        (folder / "inner/b.txt").unlink()
    else:
        (folder / "c.txt").symlink_to("a.bin")
    assert foreign_folder(folder) == "is a folder that was changed since moec wrote it"


def test_other_folders_and_files_are_foreign(folder, tmp_path):
    assert foreign_folder(folder / "inner") == "is a folder that moec did not write"
    assert foreign_folder(folder / "a.bin") == "is a file, not a folder"
    (folder / LIST).write_text("a list of another program\n")
    assert foreign_folder(folder) == "is a folder that moec did not write"
