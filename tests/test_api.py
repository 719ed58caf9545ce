"""The public API: moec.compile, moec.load, moec.import_model, and what they return."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import json
import pathlib
import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

import moec
from moec.checking.sampling import random_inputs, size_cases
from moec.common.specs import tensor_specs
from moec.compiling.compile_options import CompileOptions
from moec.passes.shapes.input_limits import input_limits
from moec.runtime.load_options import LoadOptions


@pytest.fixture
def proto() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Unsqueeze", ["ids", "axes"], ["lifted"]),
        helper.make_node("Gather", ["table", "lifted"], ["rows"]),
        helper.make_node("Squeeze", ["rows", "axes"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [
            onnx.numpy_helper.from_array(np.arange(10, dtype=np.float32).reshape(5, 2), "table"),
            onnx.numpy_helper.from_array(np.array([0]), "axes"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_import_is_light():
    program = "import sys, moec; print([n for n in ('numpy', 'onnx', 'onnx_ir', 'tvm', 'typer') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in moec.__all__:
        assert getattr(moec, name).__name__ == name
    assert set(moec.__all__) <= set(dir(moec))
    with pytest.raises(AttributeError, match="no attribute 'compiel'"):
        _ = moec.compiel


@pytest.mark.parametrize(
    ("function", "options", "others", "of_ranks"),
    [
        (moec.compile, CompileOptions, {"model", "output", "emulate"}, set()),
        (moec.load, LoadOptions, {"path"}, {"rank", "stage"}),
    ],
)
def test_a_function_has_its_options_as_parameters_and_explains_each(function, options, others, of_ranks):
    parameters = inspect.signature(function).parameters
    fields = {field.name: field.default for field in dataclasses.fields(options) if field.name not in of_ranks}
    assert fields == {name: parameter.default for name, parameter in parameters.items() if name not in others}
    lines = {line.strip() for line in inspect.getdoc(function).splitlines()}
    explained = {name for line in lines if set(line.split(", ")) <= parameters.keys() for name in line.split(", ")}
    assert explained == parameters.keys()


def test_compiles_every_kind_of_source(proto, tmp_path):
    onnx.save(proto, tmp_path / "model.onnx")
    ids = np.array([4, 0, 4])
    for source in (tmp_path / "model.onnx", str(tmp_path / "model.onnx"), proto, ir.from_proto(proto)):
        model = moec.compile(source, passes="O0", threads=1)
        for actual in (model(ids), model(ids=ids), model({"ids": ids}), model.run({"ids": ids})):
            np.testing.assert_array_equal(actual["y"], [[8, 9], [0, 1], [8, 9]])
        assert (model.threads, model.gpu) == (1, None)


def test_describes_itself_in_plain_data(proto):
    model = moec.compile(proto, passes="O0")
    description = model.describe()
    assert json.loads(json.dumps(description)) == description
    assert description["inputs"] == [{"name": "ids", "dtype": "int64", "shape": ["n"]}]
    assert description["moe_blocks"] == []
    assert model.remarks == description["remarks"]


def test_objects_say_what_they_are_in_one_line(proto):
    model = moec.compile(proto, passes="O0", threads=1)
    built = f"0 MoE blocks, {len(model.kernels)} kernels, 1 threads"
    assert repr(model) == f"<CompiledModel for cpu: ids int64[n] -> y float32[n,2]; {built}>"
    assert repr(model.artifact).startswith("<Artifact '") and repr(model.artifact).endswith(" for cpu, by moec 0.1.0>")
    kernel = next(iter(model.kernels.values()))
    assert repr(kernel).startswith(f"<CompiledKernel {kernel.name!r} of {kernel.op} (") and "tir" in repr(kernel)
    assert "\n" not in repr(model) + repr(kernel)


def test_temporary_artifact_goes_with_the_model(proto):
    model = moec.compile(proto, passes="O0")
    folder = pathlib.Path(model.artifact.folder)
    assert folder.is_dir()
    kernels = model.kernels
    del model
    gc.collect()
    assert all(kernel.source(kernel.forms[0]) for kernel in kernels.values() if kernel.forms)
    del kernels
    gc.collect()
    assert not folder.exists()


def test_saves_and_loads(proto, tmp_path):
    model = moec.compile(proto, passes="O0", threads=1)
    model.save(tmp_path / "model.moec")
    loaded = moec.load(tmp_path / "model.moec")
    ids = np.array([1])
    np.testing.assert_array_equal(loaded(ids)["y"], model(ids)["y"])
    assert loaded.threads == 1
    direct = moec.compile(proto, passes="O0", output=tmp_path / "direct.zip")
    assert (tmp_path / "direct.zip").is_file()
    np.testing.assert_array_equal(direct(ids)["y"], model(ids)["y"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 3}, "cannot import a int"),
        ({"passes": "nonsense"}, "unknown pass 'nonsense'"),
        ({"target": "abacus"}, "abacus"),
        ({"example_inputs": ()}, "are for PyTorch modules"),
        ({"threads": 0}, "threads is 0"),
        ({"target_options": 3}, "the options of target 'cpu' are 3 of type int; expected options of a kind of target"),
    ],
)
def test_wrong_arguments(proto, arguments, message):
    with pytest.raises(moec.MoecError, match=message):
        moec.compile(**{"model": proto, "passes": "O0", **arguments})


def test_random_inputs_stay_in_range(proto):
    model = moec.import_model(proto)
    specs = tensor_specs(model.graph.inputs)
    limits = input_limits(model)
    assert limits == {"ids": 5}
    assert size_cases(specs) == [{"n": 1}, {"n": 3}, {"n": 16}]
    ids = random_inputs(specs, {"n": 1000}, limits)["ids"]
    assert set(ids) == set(range(5))


def test_random_inputs_of_masks_and_sums_of_sizes():
    from moec.common.specs import TensorSpec

    specs = [TensorSpec("x", "float16", ("batch", 4)), TensorSpec("mask", "bool", ("batch", "past + n"))]
    cases = size_cases(specs, (1, 3), (1, 3))
    assert cases == [{"batch": 1, "past": 1, "n": 1}, {"batch": 3, "past": 3, "n": 3}]
    inputs = random_inputs(specs, cases[1], {})
    assert inputs["x"].dtype == np.float16
    assert inputs["mask"].shape == (3, 6)
    assert inputs["mask"].all()


def test_formats_that_find_no_weights_say_so(proto):
    remarks = moec.compile(proto, experts="int4", linears="bf16").remarks
    assert [remark["pass_name"] for remark in remarks if remark["severity"] == "warning"] == [
        "quantize-experts",
        "cast-weights",
    ]


def test_progress_tells_how_far_a_step_through_many_weights_is(monkeypatch):
    monkeypatch.setattr("moec.common.progress._SECONDS", 0)
    monkeypatch.setattr("moec.ir.weight_hashes._LARGE", 0)
    weights = [onnx.numpy_helper.from_array(np.full((16, 16), i, np.float32), f"w{i}") for i in range(2)]
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["h"]), helper.make_node("MatMul", ["h", "w1"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["T", 16]) for name in "xy")
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights))
    model.opset_import[0].version = 21
    steps = []
    moec.compile(model, passes="infer-shapes,quantize-linears{format=int8,minimum=16}", progress=steps.append)
    reported = {step.partition(":")[0]: step for step in steps if " left" in step}
    assert list(reported) == ["quantize-linears", "quantize-linears, hashing", "writing the artifact"]
    assert reported["quantize-linears"] == "quantize-linears: layer 2 of 2, 0 of 0 MB, 0 s left"
