"""Programs on a GPU: correct results, the same bit for bit in every way to run them, and tensors that stay on the
GPU."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

import moec
from moec.tools.verify import verify

from .conftest import DTYPES, EXPERTS, WIDTH

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "char_lm"
TOKENS = (0, 1, 7, 64, 300)
FORMATS = {
    "float32": ("float32", "O2"),
    "float16": ("float16", "O2"),
    "bfloat16": ("bfloat16", "O2"),
    "int8": ("bfloat16", "O2,quantize-experts{format=int8}"),
    "int4": ("bfloat16", "O2,quantize-experts{format=int4,group=32}"),
    "mxfp4": ("bfloat16", "O2,quantize-experts{format=mxfp4}"),
}


def inputs(dtype: str, tokens: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(tokens)
    shapes = {"x": (tokens, WIDTH), "logits": (tokens, EXPERTS)}
    return {name: random.standard_normal(shape).astype(DTYPES[dtype]) for name, shape in shapes.items()}


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint8)


@pytest.fixture
def compiled(layer, target):
    """The artifact of a layer in bfloat16."""
    path = layer("bfloat16")
    moec.compile(path, target=target, output=path.with_suffix(".moec"))
    return path.with_suffix(".moec")


@pytest.mark.parametrize("name", FORMATS)
def test_a_layer_computes_what_the_reference_does(layer, target, name):
    dtype, passes = FORMATS[name]
    path = layer(dtype)
    model = moec.compile(path, target=target, passes=passes)
    for tokens in TOKENS:
        values = inputs(dtype, tokens)
        assert verify(path, model, values).matches, f"{tokens} tokens"
        first, second = model.run(values)["y"], model.run(values)["y"]
        np.testing.assert_array_equal(bits(first), bits(second))


def test_a_whole_model_computes_what_onnxruntime_does(target):
    model = moec.compile(EXAMPLE / "model.onnx", target=target)
    assert verify(EXAMPLE / "model.onnx", model).matches


def test_a_tuned_layer_computes_what_the_reference_does(compiled, layer, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = moec.tune(moec.load(compiled))
    assert model.probe.crossovers and moec.load(compiled).probe.crossovers == model.probe.crossovers
    assert all(verify(layer("bfloat16"), model, inputs("bfloat16", tokens)).matches for tokens in TOKENS)


def test_all_tokens_to_one_expert(compiled, layer):
    values = inputs("bfloat16", 300)
    values["logits"][:] = 0
    values["logits"][:, 5] = 9
    assert verify(layer("bfloat16"), moec.load(compiled), values).matches


def test_hopper_gets_its_own_code(compiled, target):
    if target != "cuda:sm_90a":
        pytest.skip(f"the code for this GPU is {target}")
    assert "moe_grouped_gemm_wgmma" in moec.load(compiled).kernels


def on_gpu(torch, values):
    """The arrays, all in bfloat16, as tensors of PyTorch on the GPU."""
    return {name: torch.from_numpy(array.view(np.int16)).cuda().view(torch.bfloat16) for name, array in values.items()}


def from_gpu(torch, tensor):
    return tensor.view(torch.int16).cpu().numpy()


def test_tensors_of_pytorch_stay_on_the_gpu(compiled, torch):
    model = moec.load(compiled)
    for tokens in TOKENS:
        values = inputs("bfloat16", tokens)
        y = model.run(on_gpu(torch, values))["y"]
        assert (y.device.type, y.dtype, tuple(y.shape)) == ("cuda", torch.bfloat16, (tokens, WIDTH))
        np.testing.assert_array_equal(bits(from_gpu(torch, y)), bits(model.run(values)["y"]))


def test_work_is_in_the_order_of_pytorchs_stream(compiled, torch):
    """Inputs are computed on another stream, after a long product, and results are read on that stream."""
    model, values = moec.load(compiled), inputs("bfloat16", 64)
    expected = model.run(values)["y"]
    stream, busy = torch.cuda.Stream(), torch.randn(4096, 4096, device="cuda")
    tensors = on_gpu(torch, values)
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(5):
        with torch.cuda.stream(stream):
            for _ in range(10):
                busy = busy @ busy / 64
            built = {name: tensor.clone() for name, tensor in tensors.items()}
            y = model.run(built)["y"].clone()
            del built
        other = model.run(inputs("bfloat16", 7))  # on the default stream, from the same pool of memory
        assert other["y"].shape == (7, WIDTH)
        stream.synchronize()
        np.testing.assert_array_equal(bits(from_gpu(torch, y)), bits(expected))


def test_captured_runs_compute_the_same(compiled):
    plain, captured = moec.load(compiled), moec.load(compiled, cuda_graphs=True)
    kept = []
    for turn in range(4):
        for tokens in TOKENS:
            values = inputs("bfloat16", tokens)
            values["x"] = (values["x"] * (turn + 1)).astype(values["x"].dtype)
            kept.append((captured.run(values)["y"], plain.run(values)["y"]))
    for actual, expected in kept:
        np.testing.assert_array_equal(bits(actual), bits(expected))


def test_captured_runs_take_tensors_of_pytorch(compiled, torch):
    plain, captured = moec.load(compiled), moec.load(compiled, cuda_graphs=True)
    for turn in range(4):
        values = on_gpu(torch, inputs("bfloat16", 4))
        values["x"] = values["x"] * (turn + 1)
        actual, expected = captured.run(values)["y"], plain.run(values)["y"]
        np.testing.assert_array_equal(from_gpu(torch, actual), from_gpu(torch, expected))


def test_several_models_share_the_gpu(compiled, layer, target, in_python_threads):
    first, second = moec.load(compiled), moec.compile(layer("float32"), target=target)
    values = [inputs("bfloat16", 64), inputs("float32", 64)]
    expected = [first.run(values[0])["y"], second.run(values[1])["y"]]

    def always_the_same(index: int) -> bool:
        model, which = ((first, 0), (second, 1))[index % 2]
        return all(np.array_equal(bits(model.run(values[which])["y"]), bits(expected[which])) for _ in range(20))

    assert in_python_threads(4, always_the_same) == [True] * 4
