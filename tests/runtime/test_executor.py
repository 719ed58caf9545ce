"""Running programs: inputs checked and passed without copying, outputs owned by the caller, threads, imports."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from moec.artifacts.loading import load
from moec.common.errors import InputError, MoecError
from moec.runtime.tensors import ALIGNMENT, from_runtime, to_runtime

WEIGHT = np.arange(4, dtype=np.float32)


@pytest.fixture(scope="module")
def model(pristine_artifact):
    return load(pristine_artifact)


def expected_y(inputs):
    return (inputs["x"] + WEIGHT) * inputs["scale"].astype(np.float32)


def test_computes_by_name(model, inputs):
    outputs = model.run(inputs)
    assert list(outputs) == ["y", "ids_out", "w_out"]
    np.testing.assert_array_equal(outputs["y"], expected_y(inputs))
    np.testing.assert_array_equal(outputs["ids_out"], inputs["ids"])
    np.testing.assert_array_equal(outputs["w_out"], WEIGHT)


def test_computes_by_position_and_keyword(model, inputs):
    by_position = model(*inputs.values())
    mixed = model(inputs["x"], scale=inputs["scale"], ids=inputs["ids"])
    np.testing.assert_array_equal(by_position["y"], expected_y(inputs))
    np.testing.assert_array_equal(mixed["y"], expected_y(inputs))


@pytest.mark.parametrize("rows", [0, 1, 5, 64])
def test_takes_every_dynamic_size(model, inputs, rows):
    values = {**inputs, "x": np.ones((rows, 4), np.float32), "ids": np.zeros((rows, 0), np.int64)}
    outputs = model.run(values)
    assert outputs["y"].shape == (rows, 4)
    assert outputs["ids_out"].shape == (rows, 0)
    np.testing.assert_array_equal(outputs["y"], expected_y(values))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: np.asfortranarray(x),
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),
        lambda x: np.concatenate([np.zeros(1, np.float32), x.reshape(-1)])[1:].reshape(x.shape),
    ],
    ids=["fortran order", "strided", "read-only", "misaligned"],
)
def test_takes_every_memory_layout(model, inputs, change):
    x = change(inputs["x"])
    np.testing.assert_array_equal(model.run({**inputs, "x": x})["y"], expected_y(inputs))


def test_aligned_arrays_are_not_copied():
    memory = np.zeros(256 + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    aligned = memory[start : start + 256]
    assert to_runtime(aligned.view(np.float32)).data_ptr() == aligned.ctypes.data
    assert to_runtime(aligned.view(ml_dtypes.bfloat16)).data_ptr() == aligned.ctypes.data
    misaligned = memory[start + 4 : start + 132].view(np.float32)
    assert to_runtime(misaligned).data_ptr() != misaligned.ctypes.data
    assert to_runtime(misaligned).data_ptr() % ALIGNMENT == 0


@pytest.mark.parametrize("dtype", ["bool", "int32", "float16", "bfloat16", "float8_e4m3fn"])
def test_tensors_round_trip(dtype):
    from moec.common.dtypes import dtype_of

    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype_of(dtype))
    back = from_runtime(to_runtime(array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_outputs_never_alias_inputs_or_weights(model, inputs):
    first = model.run(inputs)
    first["w_out"][...] = 99
    first["ids_out"][...] = 99
    np.testing.assert_array_equal(model.run(inputs)["w_out"], WEIGHT)
    np.testing.assert_array_equal(inputs["ids"], np.arange(6).reshape(3, 2))


def test_outputs_outlive_the_model_and_later_runs(pristine_artifact, inputs):
    model = load(pristine_artifact)
    first = model.run(inputs)["y"]
    for _ in range(4):
        model.run({**inputs, "x": inputs["x"] + 1})
    del model
    np.testing.assert_array_equal(first, expected_y(inputs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "input 'x' is missing; expected: x float32\\[rows,4\\], scale"),
        ({"extra": np.zeros(1)}, "unknown input 'extra'; expected: x float32"),
        ({"x": np.zeros((3, 4))}, "input 'x' has dtype float64; expected float32"),
        ({"scale": np.zeros(4, np.float16)}, "input 'scale' has dtype float16; expected bfloat16"),
        ({"x": np.zeros(4, np.float32)}, "input 'x' has rank 1 .*; expected rank 2"),
        ({"x": np.zeros((3, 5), np.float32)}, "input 'x' has size 5 on axis 1; expected 4"),
        ({"ids": np.zeros((2, 2), np.int64)}, "input 'ids' has size 2 on axis 0 \\(rows\\); expected 3, .* input 'x'"),
        ({"x": [[1.0] * 4] * 3}, "input 'x' is a list; expected a numpy array or a torch tensor"),
        ({"x": np.array([["a"] * 4] * 3)}, "input 'x' has dtype <U1; expected float32"),
    ],
)
def test_wrong_inputs_are_named(model, inputs, change, message):
    values = {name: value for name, value in {**inputs, **change}.items() if value is not None}
    with pytest.raises(InputError, match=message):
        model.run(values)


def test_wrong_positional_inputs_are_named(model, inputs):
    with pytest.raises(InputError, match="4 positional inputs given; the model takes 3"):
        model(*inputs.values(), 1)
    with pytest.raises(InputError, match="'x' is given both by position and by name"):
        model(inputs["x"], **inputs)


def test_torch_tensors_are_read_in_place(model, inputs):
    torch = pytest.importorskip("torch")
    values = {
        "x": torch.arange(12, dtype=torch.float32).reshape(3, 4),
        "scale": torch.tensor([1, 2, 0.5, -1], dtype=torch.bfloat16),
        "ids": torch.arange(6).reshape(3, 2),
    }
    np.testing.assert_array_equal(model.run(values)["y"], expected_y(inputs))
    with pytest.raises(InputError, match=r"input 'x' requires gradients.*call \.detach\(\)"):
        model.run({**values, "x": values["x"].requires_grad_()})


def test_thread_count_is_settable_and_changes_nothing(pristine_artifact, inputs):
    results = [load(pristine_artifact, threads=threads).run(inputs)["y"] for threads in (1, 2, None)]
    assert all(np.array_equal(results[0], result) for result in results)
    with pytest.raises(MoecError, match="threads is 0; expected 1 or more"):
        load(pristine_artifact, threads=0)


def test_one_model_serves_several_python_threads(model, inputs, in_python_threads):
    def always_right(offset):
        values = {**inputs, "x": inputs["x"] + offset}
        return all(np.array_equal(model.run(values)["y"], expected_y(values)) for _ in range(50))

    assert in_python_threads(4, always_right) == [True] * 4


def test_kernel_times_name_the_kernels(model, inputs):
    calls = model.probe.time_kernels(inputs)
    assert calls
    assert all(seconds >= 0 and not name.startswith("vm.builtin.") for name, seconds in calls)
    np.testing.assert_array_equal(model.run(inputs)["y"], expected_y(inputs))


def test_kernels_are_watched_with_their_arguments(model, inputs):
    calls = []

    def watch(name, arguments):
        calls.append((name, [argument.constant for argument in arguments], arguments[-1].array.copy()))

    model.probe.watch_kernels(inputs, watch)
    (constants, result) = next((constants, result) for _, constants, result in calls if len(constants) == 4)
    assert constants == [False, True, False, False]
    np.testing.assert_array_equal(result, expected_y(inputs))


def test_loading_imports_nothing_heavy(pristine_artifact):
    program = (
        "import sys, moec; model = moec.load(sys.argv[1]); "
        "print([name for name in ('tvm', 'onnx', 'onnx_ir', 'onnxruntime', 'torch') if sys.modules.get(name)])"
    )
    done = subprocess.run([sys.executable, "-c", program, pristine_artifact], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
