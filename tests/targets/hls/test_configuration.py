"""Reading a project's hls_config.cfg, and the entries that it must have."""

from __future__ import annotations

import pytest

from moec.common.errors import MoecError
from moec.targets.hls.hardware.configuration import CONFIGURATION, read_configuration

LINES = ["[hls]", "syn.top=top", "syn.file=top.cpp  # the design", "tb.file=testbench.cpp", "tb.file=data.bin"]


def project(lines: list[str]) -> dict[str, bytes]:
    return {CONFIGURATION: "\n".join(lines).encode(), "top.cpp": b"", "testbench.cpp": b"", "data.bin": b""}


def test_sources_and_testbench_of_a_project():
    configuration = read_configuration(project(LINES))
    assert (configuration.top, configuration.sources) == ("top", ("top.cpp",))
    assert configuration.testbench == ("testbench.cpp",)


@pytest.mark.parametrize("key", ["syn.top", "syn.file", "tb.file"])
def test_top_sources_and_testbench_are_all_needed(key):
    with pytest.raises(
        MoecError, match=r"expected syn\.top, syn\.file and a tb\.file of C\+\+; one of them is missing"
    ):
        read_configuration(project([line for line in LINES if not line.startswith(key)]))
