"""moec doctor: the tools and GPUs it finds, or why there are none."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from moec.common.errors import MoecError
from moec.inspect import tables
from moec.targets.cuda import nvcc
from moec.targets.cuda.device.driver import GpuFacts
from moec.tools import doctor


class StandInDriver:
    version = (13, 1)

    def __init__(self, *gpus: GpuFacts) -> None:
        self._gpus = list(gpus)

    def gpus(self):
        return self._gpus


def no_driver():
    raise MoecError("NVIDIA's driver is not installed (no such file)")


def shown(findings) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    for doctor_table in tables.doctor_tables(findings):
        console.print(doctor_table)
    return console.export_text()


@pytest.mark.parametrize(
    ("open_driver", "lines"),
    [
        (
            lambda: StandInDriver(GpuFacts("NVIDIA H100", "9.0", 80 * 10**9)),
            ["GPUs (driver for CUDA 13.1)", "NVIDIA H100", "9.0", "80.0"],
        ),
        (StandInDriver, ["no GPU: the driver finds no GPU"]),
        (no_driver, ["no GPU: NVIDIA's driver is not installed"]),
    ],
    ids=["GPU", "no GPU", "no driver"],
)
def test_gpus_are_listed_or_it_says_why_there_are_none(monkeypatch, open_driver, lines):
    monkeypatch.setattr("moec.targets.cuda.doctor.open_driver", open_driver)
    findings = doctor.examine()
    text = shown(findings)
    assert all(line in text for line in lines)
    assert findings["problems"] == [], "the CPU target needs no GPU"


def test_nvcc_is_found_where_the_compiler_finds_it(monkeypatch, tmp_path):
    tool = tmp_path / "bin" / "nvcc"
    tool.parent.mkdir()
    tool.touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(nvcc.shutil, "which", lambda _name: None)
    assert doctor.examine()["compilers"]["nvcc"] == str(tool)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(nvcc, "_PACKAGED", ())
    assert doctor.examine()["compilers"]["nvcc"] is None
