"""Files beside a file of moec's, which come and go with it."""

from __future__ import annotations

import pytest

from moec.common.companions import companion_name, replacing_companions
from moec.common.errors import MoecError
from moec.common.replacing import replacing


def write(path, *contents: str, fail: bool = False) -> None:
    """Write a file that lists its companions, of these contents."""
    with (
        replacing_companions(path, lambda old: set(old.read_text().split("\n"))) as place,
        replacing(path, lambda old: None) as aside,
    ):
        names = []
        for content in contents:
            new = aside.with_name("new")
            new.write_text(content)
            names.append(companion_name(path.name, new))
            new.rename(aside.with_name(names[-1]))
        aside.write_text("\n".join(names))
        place(aside.parent)
        if fail:
            raise MoecError("failed")


def contents(folder) -> list[str]:
    assert not list(folder.glob(".moec*"))
    return sorted(path.read_text() for path in folder.glob("*.data"))


def test_companions_come_stay_and_go_with_the_file(tmp_path):
    path = tmp_path / "a"
    for case in (["1", "2"], ["2", "3"], ["2", "3"], []):
        write(path, *case)
        assert contents(tmp_path) == case
        assert len(path.read_text().split()) == len(case)


def test_an_error_leaves_the_old_ones_alone(tmp_path):
    path = tmp_path / "a"
    write(path, "1", "2")
    before = path.read_text()
    with pytest.raises(MoecError, match="failed"):
        write(path, "2", "3", fail=True)
    assert contents(tmp_path) == ["1", "2"] and path.read_text() == before


def test_a_companion_that_was_changed_is_neither_removed_nor_used(tmp_path):
    path = tmp_path / "a"
    write(path, "1")
    (companion,) = tmp_path.glob("*.data")
    companion.write_text("mine")
    with pytest.raises(MoecError, match=f"{companion.name}: was changed since moec wrote it; remove it"):
        write(path, "1")
    write(path, "2")
    assert contents(tmp_path) == ["2", "mine"]


@pytest.mark.parametrize("name", ["../kept.data", "kept.data", "a.0123456789abcdef.data", ".", ""])
def test_names_in_a_file_remove_no_other_files(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    kept = [tmp_path / "kept.data", folder / "kept.data", folder / "a.0123456789abcdef.data"]
    for path in kept:
        path.write_text("kept")
    (folder / "a").write_text(name)
    write(folder / "a", "1")
    assert all(path.exists() for path in kept)
