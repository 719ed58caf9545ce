"""Placement of weights: mapped, or copied into huge pages, and the rules for it."""

from __future__ import annotations

import mmap
import os
import pathlib

import numpy as np
import pytest

import moec
from moec.artifacts.loading import load
from moec.common.errors import ArtifactError, MoecError
from moec.runtime import pages
from moec.runtime.pages import HUGE_PAGE, bytes_in_huge_pages, new_memory, place_file

SIZE = 5 * HUGE_PAGE + 4097
needs_huge_pages = pytest.mark.skipif(
    not hasattr(mmap, "MADV_HUGEPAGE") or pages._obstacle(SIZE, 1 << 40) is not None,
    reason="this system has no huge pages to ask for",
)


@pytest.fixture
def file(tmp_path) -> pathlib.Path:
    path = tmp_path / "weights.bin"
    np.random.default_rng(0).integers(0, 256, SIZE, np.uint8).tofile(path)
    return path


@pytest.fixture
def offered(monkeypatch, tmp_path) -> pathlib.Path:
    """Offer huge pages for files of any size. Returns the file with the system's setting."""
    setting = tmp_path / "enabled"
    setting.write_text("always [madvise] never\n")
    monkeypatch.setattr(pages, "_SETTING", setting)
    monkeypatch.setattr(pages, "WORTH_COPYING", 1)
    monkeypatch.setattr(pages, "available_memory", lambda: 1 << 40)
    monkeypatch.setattr(pages, "_is_in_huge_pages", lambda mapped: False)
    return setting


@pytest.mark.parametrize("kind", ["mapped", pytest.param("huge", marks=needs_huge_pages), "auto"])
def test_the_bytes_are_those_of_the_file_and_private(kind, file):
    data, placement = place_file(file, kind)
    np.testing.assert_array_equal(data, np.fromfile(file, np.uint8))
    assert placement.pages == ("mapped" if kind == "auto" else kind)
    before = data[7]
    data[7] ^= 255
    assert np.fromfile(file, np.uint8)[7] == before


@needs_huge_pages
def test_a_copy_has_the_needed_ranges_alone(file):
    data, _ = place_file(file, "huge", [(4096, 5000), (SIZE - 7, SIZE)])
    whole = np.fromfile(file, np.uint8)
    np.testing.assert_array_equal(data[4096:5000], whole[4096:5000])
    np.testing.assert_array_equal(data[-7:], whole[-7:])
    assert not data[:4096].any() and not data[5000:-7].any()


@pytest.mark.parametrize("kind", ["mapped", "auto"])
def test_a_file_without_weights(kind, tmp_path):
    (tmp_path / "none").touch()
    assert place_file(tmp_path / "none", kind)[0].size == 0


@needs_huge_pages
def test_auto_copies_what_the_system_maps_in_small_pages(offered, file, monkeypatch):
    data, placement = place_file(file)
    assert placement.pages == "huge"
    assert data.ctypes.data % HUGE_PAGE == 0
    monkeypatch.setattr(pages, "_is_in_huge_pages", lambda mapped: True)
    _, placement = place_file(file)
    assert placement == pages.Placement("mapped", "the system maps the file in huge pages")


def test_auto_maps_small_files(file):
    assert place_file(file)[1] == pages.Placement("mapped", "less than 16 MiB of weights")


def test_auto_never_takes_more_than_half_of_the_free_memory(offered, file, monkeypatch):
    monkeypatch.setattr(pages, "available_memory", lambda: 2 * SIZE - 2)
    _, placement = place_file(file)
    assert placement == pages.Placement("mapped", "a copy takes 10 MiB and 10 MiB may be used")


def test_huge_pages_that_cannot_be_had_are_refused(offered, file, monkeypatch):
    monkeypatch.setattr(pages, "available_memory", lambda: SIZE - 1)
    with pytest.raises(MoecError, match=r"cannot be held in huge pages: a copy takes .*; use pages=auto"):
        place_file(file, "huge")
    offered.write_text("always madvise [never]\n")
    with pytest.raises(MoecError, match="has switched huge pages off"):
        place_file(file, "huge")
    offered.unlink()
    with pytest.raises(MoecError, match="has no huge pages to ask for"):
        place_file(file, "huge")


def test_a_file_that_shrinks_while_it_is_copied(file):
    with pytest.raises(ArtifactError, match=f"ends at byte {SIZE}; it was truncated"):
        pages._copy(file, SIZE + 1, [(0, SIZE + 1)])


@needs_huge_pages
def test_memory_is_in_the_pages_asked_for():
    memory = new_memory(16 * HUGE_PAGE, huge=False)
    memory[:] = 1
    assert bytes_in_huge_pages(memory) == 0
    memory = new_memory(16 * HUGE_PAGE, huge=True)
    assert bytes_in_huge_pages(memory) == 0
    memory[:] = 1
    if bytes_in_huge_pages(memory) == 0:
        pytest.skip("the system has no huge page free")
    assert bytes_in_huge_pages(memory) <= 17 * HUGE_PAGE


@pytest.mark.parametrize("kind", ["mapped", pytest.param("huge", marks=needs_huge_pages)])
def test_models_run_from_either(kind, artifact_path, inputs):
    model = load(artifact_path, pages=kind)
    assert model.placement.pages == kind
    expected = (inputs["x"] + np.arange(4)) * inputs["scale"].astype(np.float32)
    np.testing.assert_array_equal(model.run(inputs)["y"], expected)


def test_a_file_that_is_cut_between_runs_is_an_error(tmp_path):
    """The process would end (SIGBUS) when it reads the missing part."""
    from .test_first_calls import products

    moec.compile(products(0), output=tmp_path / "a.moec", passes="O1")
    model, x = load(tmp_path / "a.moec", threads=1, pages="mapped"), np.ones((2, 8), np.float32)
    model.run({"x": x})
    weights = tmp_path / "a.moec" / "weights.bin"
    size = weights.stat().st_size
    os.truncate(weights, size + 4096)
    model.run({"x": x})
    os.truncate(weights, 0)
    with pytest.raises(ArtifactError, match=f"was cut to 0 bytes while it was in use; expected {size}"):
        model.run({"x": x})
    with pytest.raises(ArtifactError, match="was cut to 0 bytes"):
        model.probe.time_run({"x": x})
