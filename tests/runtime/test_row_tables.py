"""Tables of which a program reads rows alone stay on disk, and results are those of the model in memory."""

from __future__ import annotations

import dataclasses
import os
import pathlib

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import moec
from moec.common.errors import ArtifactError, InputError, MoecError
from moec.exploring.streaming import streaming
from moec.ir.streaming import LEAST_TABLE
from moec.runtime.artifact import open_artifact
from moec.runtime.manifest import WEIGHTS
from moec.runtime.model import CompiledModel
from moec.runtime.streaming import StreamPlan
from tests.language_model import language_model

from .forged_manifests import manifest_of, rewrite_program

WIDTH = 64
ROWS = LEAST_TABLE // (4 * WIDTH)
FAR = np.iinfo(np.int64)
LOOK_UPS = {
    "nothing": np.zeros((1, 0), np.int64),
    "one": np.array([[7]]),
    "ends": np.array([[0, ROWS - 1]]),
    "repeated": np.array([[5, 9, 5], [5, 5, 9]]),
    "from the end": np.array([[-1, -ROWS]]),
    "out of range": np.array([[ROWS, -ROWS - 1, FAR.min, FAR.max]]),
    "many": np.random.default_rng(1).integers(0, ROWS, (3, 67)),
}


def save(path: pathlib.Path, steps: str, **weights: np.ndarray) -> pathlib.Path:
    """Write a model of ids [batch, seq]; ``steps`` compute y [batch, seq, WIDTH]."""
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    model (int64[batch,seq] ids) => (float[batch,seq,{WIDTH}] y) {{ {steps} }}"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.save(proto, path)
    return path


def normal(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def tables_of(model: CompiledModel) -> dict[str, str]:
    """Element types of the tables that are read by rows, by name."""
    program = model.artifact.program()
    entries = model.artifact.weight_entries(program)
    return {entries[at].name: entries[at].dtype for at in program.tables}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Artifacts of a language model with experts and a table, in memory and not."""
    path = tmp_path_factory.mktemp("tables")
    file = language_model(path / "model.onnx", rows=ROWS)
    moec.compile(file, output=path / "whole.moec")
    moec.compile(file, output=path / "rows.moec", resident="600kB")
    return path


@pytest.fixture(scope="module")
def models(folder) -> list[CompiledModel]:
    """The model in memory, with rows on disk, and compiled for that but with memory for all."""
    paths = {"whole.moec": None, "rows.moec": None}
    whole, rows = (moec.load(folder / path, resident=resident) for path, resident in paths.items())
    return [whole, rows, moec.load(folder / "rows.moec", resident="1GiB")]


@pytest.mark.parametrize("ids", LOOK_UPS.values(), ids=LOOK_UPS.keys())
def test_rows_are_those_of_a_table_in_memory(ids, models):
    whole, rows, fitting = models
    expected = whole.run({"ids": ids})["y"]
    np.testing.assert_array_equal(rows.run({"ids": ids})["y"], expected)
    np.testing.assert_array_equal(fitting.run({"ids": ids})["y"], expected)
    assert rows.looked_up is not None and fitting.looked_up is None and fitting.placement.pages != "streamed"


def test_each_distinct_row_is_read_once(folder):
    model = moec.load(folder / "rows.moec")
    model.run({"ids": LOOK_UPS["repeated"]})
    assert dataclasses.astuple(model.looked_up) == (6, 2, 2 * 4 * WIDTH)
    assert f"tables of {LEAST_TABLE / 2**20:.1f} MiB" in model.placement.reason


def test_memory_for_weights_counts_no_table(folder):
    artifact = open_artifact(folder / "rows.moec")
    program = artifact.program()
    plan = StreamPlan.of(program.streamed, artifact.weight_entries(program), tables=program.tables)
    assert plan.pinned + plan.table_bytes < plan.size == plan.pinned + plan.table_bytes + plan.experts
    moec.load(folder / "rows.moec", resident=plan.least)
    with pytest.raises(MoecError, match=rf"give it at least {plan.least} bytes"):
        moec.load(folder / "rows.moec", resident=plan.least - 1)


def test_sessions_look_up_the_same_rows(models):
    ids = [3, ROWS - 1, 3, 90, 4096]
    texts = []
    for model in models[:2]:
        session = model.session()
        texts.append([session.run(np.array([[token]])) for token in ids])
    np.testing.assert_array_equal(*texts)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_tables_of_floats(dtype, tmp_path):
    rows = 2 * ROWS
    look_up = "rows = Gather (table, ids) y = Cast <to = 1> (rows)"
    if dtype == np.float32:
        look_up = "y = Gather (table, ids)"
    path = save(tmp_path / "model.onnx", look_up, table=normal(rows, WIDTH, dtype=dtype))
    check_without_experts(path, tmp_path, {"table": np.dtype(dtype).name})


def test_a_table_of_numbers_and_one_of_scales(tmp_path):
    steps = """numbers = Gather (table, ids) wide = Cast <to = 1> (numbers) blocks = Reshape (wide, shape)
    factors = Gather (scale, ids) values = Mul (blocks, factors) y = Reshape (values, whole)"""
    rows, groups = 8 * ROWS, 2
    weights = {
        "table": np.random.default_rng(0).integers(-128, 128, (rows, WIDTH)).astype(np.int8),
        "scale": normal(rows, groups, 1),
        "shape": np.array([0, 0, groups, -1]),
        "whole": np.array([0, 0, WIDTH]),
    }
    path = save(tmp_path / "model.onnx", steps, **weights)
    check_without_experts(path, tmp_path, {"table": "int8"})  # scales are few bytes, which stay


def check_without_experts(path: pathlib.Path, folder: pathlib.Path, tables: dict[str, str]) -> None:
    whole = moec.compile(path)
    rows = moec.compile(path, resident="2MiB", output=folder / "rows.moec")
    assert tables_of(rows) == tables and not tables_of(whole)
    for ids in LOOK_UPS.values():
        np.testing.assert_array_equal(rows.run({"ids": ids})["y"], whole.run({"ids": ids})["y"])
    shown = streaming(rows.artifact)
    assert shown is not None and shown["speed"] is None and [table["name"] for table in shown["tables"]] == list(tables)


def test_a_table_with_another_reader_stays_in_memory(tmp_path):
    steps = "rows = Gather (table, ids) mean = ReduceMean <keepdims = 0> (table, axes) y = Add (rows, mean)"
    weights = {"table": normal(ROWS, WIDTH), "axes": np.array([0])}
    with pytest.raises(MoecError, match="no experts or tables that could be streamed"):
        moec.compile(save(tmp_path / "shared.onnx", steps, **weights), resident="2MiB")
    steps = f"{steps.replace('y =', 'sum =')} others = Gather (other, ids) y = Add (sum, others)"
    path = save(tmp_path / "both.onnx", steps, other=normal(2 * ROWS, WIDTH), **weights)
    model = moec.compile(path, resident="5MiB")
    assert tables_of(model) == {"other": "float32"}
    assert [remark["subject"] for remark in model.remarks if "stay in memory" in remark["message"]] == ["table"]
    ids = LOOK_UPS["many"]
    np.testing.assert_array_equal(model.run({"ids": ids})["y"], moec.compile(path).run({"ids": ids})["y"])


def test_a_tied_head_keeps_a_copy_of_its_own_in_memory(tmp_path):
    steps = "rows = Gather (table, ids) w = Transpose (table) logits = MatMul (rows, w) y = MatMul (logits, back)"
    path = save(tmp_path / "tied.onnx", steps, table=normal(ROWS, WIDTH), back=normal(ROWS, WIDTH))
    model = moec.compile(path, resident="9MiB")
    assert model.looked_up is not None and tables_of(model) == {"table": "float32"}
    ids = LOOK_UPS["ends"]
    np.testing.assert_array_equal(model.run({"ids": ids})["y"], moec.compile(path).run({"ids": ids})["y"])


def test_small_tables_and_fixed_look_ups_stay_in_memory(tmp_path):
    small = save(tmp_path / "small.onnx", "y = Gather (table, ids)", table=normal(ROWS - 1, WIDTH))
    fixed = "row = Gather (table, place) r = Cast <to = 1> (ids) e = Unsqueeze (r, axes) y = Mul (e, row)"
    columns = "rows = Gather <axis = 1> (table, ids) y = Transpose <perm = [1, 2, 0]> (rows)"
    others = [
        save(tmp_path / "fixed.onnx", fixed, table=normal(ROWS, WIDTH), place=np.array(3), axes=np.array([2])),
        save(tmp_path / "columns.onnx", columns, table=normal(WIDTH, ROWS)),
    ]
    for path in (small, *others):
        with pytest.raises(MoecError, match="no experts or tables that could be streamed"):
            moec.compile(path, resident="1MiB")


def test_a_file_that_is_truncated_meanwhile(folder, models, tmp_path):
    copy, ids = tmp_path / "copy.moec", np.array([[3, ROWS - 1]])
    moec.load(folder / "rows.moec").save(copy)
    model, weights = moec.load(copy), copy / WEIGHTS
    whole, program = weights.read_bytes(), model.artifact.program()
    entry = model.artifact.weight_entries(program)[program.tables[0]]
    os.truncate(weights, entry.offset + entry.bytes - 1)
    with pytest.raises(ArtifactError, match=rf"row {ROWS - 1} of 'table' cannot be read: the file ends before byte"):
        model.run({"ids": ids})
    weights.write_bytes(whole)
    np.testing.assert_array_equal(model.run({"ids": ids})["y"], models[0].run({"ids": ids})["y"])


def test_a_disk_that_fails(folder, monkeypatch):
    model, read = moec.load(folder / "rows.moec"), os.preadv

    def fail(*_arguments: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(ArtifactError, match=r"row 7 of 'table' cannot be read: byte \d+: Input/output error"):
        model.run({"ids": LOOK_UPS["one"]})
    monkeypatch.setattr(os, "preadv", read)
    model.run({"ids": LOOK_UPS["one"]})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_looks_up_at_the_same_time(folder, models):
    model, ids = moec.load(folder / "rows.moec", threads=1), LOOK_UPS["many"]
    expected = models[0].run({"ids": ids})["y"]
    child = os.fork()
    for _ in range(20):
        same = np.array_equal(model.run({"ids": ids})["y"], expected)
        if child == 0 and not same:
            os._exit(1)
        assert same
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_wrong_inputs_are_refused_as_in_memory(models):
    for ids in (np.zeros((1, 2), np.float32), np.zeros(3, np.int64)):
        reasons = []
        for model in models:
            with pytest.raises(InputError) as info:
                model.run({"ids": ids})
            reasons.append(str(info.value))
        assert len(set(reasons)) == 1


def test_ranks_with_memory_for_all_hold_the_table(folder, models, tmp_path):
    moec.compile(folder / "model.onnx", ranks=2, output=tmp_path / "ranks.moec")
    artifact = open_artifact(tmp_path / "ranks.moec")
    (program,) = artifact.manifest.programs
    weights, _, streamed = artifact.weights(program, rank=1)
    assert streamed is not None and streamed.tables is None
    (at,) = program.tables
    whole, _, _ = artifact.weights(program)
    np.testing.assert_array_equal(weights[at], whole[at])


@pytest.mark.parametrize("tables", [[99], [0, 0], [-1], "an expert's weight"])
def test_forged_tables_are_refused(tables, folder, tmp_path):
    copy = tmp_path / "copy.moec"
    moec.load(folder / "rows.moec").save(copy)
    (program,) = manifest_of(copy).programs
    streamed = program.streamed[0].weights[0].weight
    rewrite_program(copy, tables=[streamed] if isinstance(tables, str) else tables)
    with pytest.raises(ArtifactError, match="no table that is read by rows alone"):
        open_artifact(copy)
