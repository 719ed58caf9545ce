"""The table of all kernels in docs/cuda.md."""

from __future__ import annotations

import importlib
import pathlib
import pkgutil
import re

import pytest

import moec.targets.cuda.kernels
import moec.targets.gpu.kernels
from moec.targets.tvm.kernels.kernel import Kernel

PAGE = pathlib.Path(__file__).parents[3] / "docs" / "cuda.md"
HEADING = "| kernels | emulated | machine code is tested for | predicted | measured |"
NAME = re.compile(r"`(\w+)`")


def listed(page: str) -> list[str]:
    """The kernels in the first column of the table. Raises ValueError for a line that leaves a column empty."""
    names = []
    for line in page[page.index(HEADING) :].splitlines()[2:]:
        if not line.startswith("|"):
            break
        kernels, *columns = (cell.strip() for cell in line.strip("|").split("|"))
        if len(columns) != 4 or not all(columns):
            raise ValueError(line)
        names += NAME.findall(kernels)
    return names


def kernels() -> set[str]:
    """The names of all kernels that are made for GPUs."""
    modules = [
        importlib.import_module(f"{package.__name__}.{module.name}")
        for package in (moec.targets.gpu.kernels, moec.targets.cuda.kernels)
        for module in pkgutil.iter_modules(package.__path__)
    ]
    return {value.name for module in modules for value in vars(module).values() if isinstance(value, Kernel)}


def test_the_table_has_each_kernel_once():
    names = listed(PAGE.read_text(encoding="utf-8"))
    assert sorted(names) == sorted(kernels())


def test_a_kernel_that_is_missing_or_has_an_empty_column_is_found():
    page = PAGE.read_text(encoding="utf-8")
    without = re.sub(r"^\| `append` .*\n", "", page, flags=re.MULTILINE)
    assert kernels() - set(listed(without)) == {"append"}
    with pytest.raises(ValueError, match="pad_rows"):
        listed(re.sub(r"(\| `pad_rows` \|) [^|]*\|", r"\1 |", page))
