"""Ranges of sizes in a file from PyTorch become guards; other conditions do not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import moec
from moec.common.errors import InputError
from moec.compiling.compiler import import_model
from moec.frontend.onnx.conditions import KEY, Conditions, conditions_of
from moec.frontend.onnx.exported_ranges import RANGES
from moec.tools.verify import verify


def exported(ranges: str, shape: str = "s10, s21") -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20]> agraph (float[{shape}] x) => (float[a, b] y) {{ y = Neg (x) }}'
    )
    model.graph.metadata_props.add(key=RANGES, value=ranges)
    return model


def conditions(ranges: str, shape: str = "s10, s21") -> Conditions:
    return conditions_of(import_model(exported(ranges, shape)))


@pytest.mark.parametrize(
    ("ranges", "guards"),
    [
        ("{s10: VR[0, int_oo], s21: VR[0, 16]}", ["s21 <= 16"]),
        ("{s10: VR[2, int_oo], s21: VR[2, 16]}", ["s21 <= 16"]),
        ("{s10: VR[0, 9223372036854775806], s21: VR[5, oo]}", ["5 <= s21"]),
        ("{s10: VR[0, int_oo], s21: VR[8, 8]}", ["s21 == 8"]),
        ("{u0: VR[0, 8], s10: VR[3, 12], s21: VR[2, int_oo]}", ["3 <= s10 <= 12"]),
        ("{s10: VR[0, int_oo], s21: VR[2, int_oo]}", []),
        ("nonsense", []),
    ],
)
def test_what_a_range_says(ranges: str, guards: list[str]) -> None:
    assert conditions(ranges) == Conditions(guards=tuple(guards))


def test_symbols_of_renamed_sizes_are_in_the_order_of_inputs() -> None:
    ranges = "{u0: VR[0, 8], s10: VR[0, 4], s21: VR[0, 16]}"
    assert conditions(ranges, "batch, seq").guards == ("batch <= 4", "seq <= 16")
    assert conditions(ranges, "s10, seq").guards == ("s10 <= 4", "seq <= 16")


def test_what_has_no_place_is_said() -> None:
    assert conditions("{s10: VR[0, 4]}", "batch, seq") == Conditions(unchecked=("s10 <= 4",))
    assert conditions("{s10: VR[0, 4], s21: VR[0, int_oo]}", "for, seq") == Conditions(unchecked=("for <= 4",))


def test_conditions_of_the_module_say_more() -> None:
    model = exported("{s10: VR[0, 4], s21: VR[0, 16]}")
    model.metadata_props.add(
        key=KEY, value='{"guards": ["s21 != 3"], "fixed": [], "unchecked": [], "tried": ["s21 = 1"]}'
    )
    assert conditions_of(import_model(model)) == Conditions(("s21 != 3",), tried=("s21 = 1",))


def test_sizes_outside_are_refused_and_verified_to_be(tmp_path) -> None:
    onnx.save(exported("{s10: VR[0, int_oo], s21: VR[0, 16]}"), tmp_path / "model.onnx")
    model = moec.compile(tmp_path / "model.onnx")
    for length in (0, 1, 16):
        assert model(np.ones((2, length), np.float32))["y"].shape == (2, length)
    with pytest.raises(InputError, match=r"for sizes with s21 <= 16 only.*s21 = 17 \(axis 1 of input 'x'\)"):
        model(np.ones((2, 17), np.float32))
    assert verify(tmp_path / "model.onnx", model).refused == ["s21 <= 16"]
    without = moec.compile(exported(""))
    assert not verify(tmp_path / "model.onnx", without).matches
