"""Files of sensitivities: written, read, and refused when they are edited wrongly."""

from __future__ import annotations

import json

import pytest

from moec.common.errors import MoecError
from moec.passes.weights.sensitivities import read_sensitivities, sensitivities_text

WEIGHTS = {("0123456789abcdef", "first"): 34.5, ("89abcdef01234567", "second"): 0.0}


def test_what_is_written_is_read(tmp_path):
    (tmp_path / "s").write_text(sensitivities_text(WEIGHTS))
    assert read_sensitivities(tmp_path / "s") == {"0123456789abcdef": 34.5, "89abcdef01234567": 0.0}


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), 10**400, "1", True, None])
def test_what_is_no_weight_is_refused(weight, tmp_path):
    data = json.loads(sensitivities_text(WEIGHTS))
    data["layers"][1]["weight"] = weight
    (tmp_path / "s").write_text(json.dumps(data))
    with pytest.raises(MoecError, match=r"s: layers\[1\].weight is .*; expected a finite number from 0 up"):
        read_sensitivities(tmp_path / "s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: "[", "is not JSON: .*; expected a file of sensitivities as moec.tools.sensitivities writes it"),
        (lambda data: {**data, "layers": {}}, "layers is an object; expected a list"),
        (lambda data: {**data, "version": 2}, "version is 2; expected 1, that of this moec; expected a file of"),
        (lambda data: {**data, "layers": data["layers"] * 2}, "names a layer twice"),
        (lambda data: {**data, "layers": [{"layer": "a"}]}, r"layers\[0\].name is missing; expected a text"),
    ],
)
def test_what_is_no_such_file_is_refused(change, message, tmp_path):
    changed = change(json.loads(sensitivities_text(WEIGHTS)))
    (tmp_path / "s").write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(MoecError, match=message):
        read_sensitivities(tmp_path / "s")
