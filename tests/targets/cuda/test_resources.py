"""Resources of a kernel's functions: what is not known is None."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from moec.targets.cuda.resources import resources_of

REPORT = "Used 40 registers\n8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads\n"
LAUNCH = {"function": "f", "block": ["256"], "shared_bytes": "0", "static_shared_bytes": 8576, "registers": 40}


def resources(
    *changes: dict[str, Any], report: str | None = REPORT, architecture: str = "sm_90a"
) -> list[dict[str, Any]]:
    launches = [LAUNCH | change for change in changes or ({},)]
    kernel = {"launches": launches, "sources": {} if report is None else {"resources": "file"}}
    return resources_of(SimpleNamespace(text=lambda _file: report), kernel, architecture)


def test_occupancy_follows_from_registers_and_shared_memory():
    (known,) = resources()
    assert (known["registers"], known["threads"], known["shared_bytes"], known["spill_bytes"]) == (40, 256, 8576, 28)
    assert known["occupancy"] == {"gpu": "H100 SXM", "blocks": 6, "warps": 48, "limit": "registers", "most_warps": 64}


@pytest.mark.parametrize("change", [{"block": ["n"]}, {"shared_bytes": "4 * n"}, {"registers": None}])
def test_without_a_number_there_is_no_occupancy(change):
    assert resources(change)[0]["occupancy"] is None


def test_an_architecture_without_a_known_gpu_has_no_occupancy():
    assert resources(architecture="sm_86")[0]["occupancy"] is None


def test_spills_of_several_functions_or_without_a_report_are_not_known():
    assert [known["spill_bytes"] for known in resources({}, {"function": "g"})] == [None, None]
    assert resources(report=None)[0]["spill_bytes"] is None
    assert [known["function"] for known in resources({}, {})] == ["f"], "it is launched twice"
