"""Sizes that only the compiled program can relate, and what is not the caller's fault."""

from __future__ import annotations

import subprocess
import sys
import tempfile

import numpy as np
import onnx
import pytest

import moec
from moec.common.errors import DefectError, InputError, MoecError, UnsupportedError


def compiled(text: str) -> moec.CompiledModel:
    return moec.compile(onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 23]>' + text), passes="O1")


def test_sizes_that_do_not_fit_each_other() -> None:
    model = compiled(
        "g (float[A,4] a, float[B,4] b, float[D,4] d) => (float[D,4] y) { c = Concat<axis = 0>(a, b) y = Add(c, d) }"
    )
    rows = [np.ones((size, 4), np.float32) for size in (2, 3, 5, 6)]
    np.testing.assert_array_equal(model(rows[0], rows[1], rows[2])["y"], 2 * rows[2])
    with pytest.raises(InputError, match=r"a\[2, 4\], b\[3, 4\], d\[6, 4\]: node 'y' \(Add\): sizes A \+ B and D on"):
        model(rows[0], rows[1], rows[3])


def test_a_slope_is_broadcast_to_what_it_multiplies_and_not_the_other_way() -> None:
    model = compiled("g (float[N] x, float[M] s) => (float[N] y) { y = PRelu(x, s) }")
    x, slope = np.array([-1, 2, -3], np.float32), np.array([2], np.float32)
    np.testing.assert_array_equal(model(x, slope)["y"], [-2, 2, -6])
    with pytest.raises(InputError, match="sizes N and M on axis 0 do not broadcast"):
        model(x[:1], x)
    with pytest.raises(UnsupportedError, match="the slope has 2 axes and x has 1"):
        compiled("g (float[N] x, float[1,N] s) => (float[N] y) { y = PRelu(x, s) }")


def test_a_matrix_product_of_sizes_that_differ() -> None:
    model = compiled("g (float[A,K] a, float[L,4] b) => (float[A,4] y) { y = MatMul(a, b) }")
    with pytest.raises(InputError, match="which do not fit each other: Mismatched"):
        model(np.ones((2, 5), np.float32), np.ones((3, 4), np.float32))


def test_a_reshape_to_more_elements_than_there_are() -> None:
    model = compiled("g (float[A,4] a, int64[2] s) => (float[B,C] y) { y = Reshape(a, s) }")
    a = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(model(a, np.array([4, 2]))["y"], a.reshape(4, 2))
    with pytest.raises(InputError, match="cannot become those in 's'; expected as many elements"):
        model(a, np.array([3, 3]))


def test_angles_of_other_sizes_than_what_turns() -> None:
    model = compiled(
        "g (float[B,2,S,8] x, float[P,4] c, float[Q,4] s, int64[B,T] i) => (float[B,2,S,8] y) "
        "{ y = RotaryEmbedding(x, c, s, i) }"
    )
    x, angles = np.ones((1, 2, 3, 8), np.float32), np.ones((5, 4), np.float32)
    places = np.zeros((1, 3), np.int64)
    np.testing.assert_array_equal(model(x, angles, angles, places)["y"][..., 4:], 2 * x[..., 4:])
    with pytest.raises(InputError, match=r"node 'y' .RotaryEmbedding.: input 's' has sizes"):
        model(x, angles, angles[:4], places)
    with pytest.raises(InputError, match=r"node 'y' .RotaryEmbedding.: input 'i' has sizes"):
        model(x, angles, angles, places[:, :2])


@pytest.mark.parametrize("sizes", ["5,3", "5,4,1", "5"])
def test_angles_of_a_wrong_rank_or_too_narrow(sizes: str) -> None:
    text = f"(float[B,2,S,8] x, float[5,4] c, float[{sizes}] s, int64[B,S] i) => (float[B,2,S,8] y)"
    with pytest.raises(
        UnsupportedError, match=r"node 'y' .RotaryEmbedding.: input 's' has sizes .*expected .5, 4., or"
    ):
        compiled(f"g {text} {{ y = RotaryEmbedding(x, c, s, i) }}")


def test_a_wider_table_than_the_part_that_turns() -> None:
    model = compiled(
        "g (float[1,1,1,8] x, float[2,4] c, float[2,4] s, int64[1,1] i) => (float[1,1,1,8] y) "
        "{ y = RotaryEmbedding<rotary_embedding_dim = 4>(x, c, s, i) }"
    )
    x, table = np.arange(8, dtype=np.float32).reshape(1, 1, 1, 8), np.float32([[0, 0, 9, 9], [1, 2, 9, 9]])
    y = model(x, table, 0 * table, np.ones((1, 1), np.int64))["y"]
    np.testing.assert_array_equal(y.ravel(), [0, 2, 2, 6, 4, 5, 6, 7])


@pytest.mark.parametrize("error", [RuntimeError("no such function"), ValueError("a kernel's own"), TypeError("handle")])
def test_other_failures_are_defects(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    model = compiled("g (float[A,4] a) => (float[A,4] y) { y = Neg(a) }")

    def fail(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(model._executor._program, "_main", fail)
    with pytest.raises(DefectError, match=f"failed on inputs of sizes a.3, 4.: {type(error).__name__}: {error}"):
        model(np.ones((3, 4), np.float32))


def test_memory_that_cannot_be_had_is_no_defect() -> None:
    """A matrix of 2**36 bytes and more from two vectors."""
    model = compiled("g (float[A,1] a, float[1,B] b) => (float[A,B] y) { y = Add(a, b) }")
    code = (
        "import resource, numpy as np; resource.setrlimit(resource.RLIMIT_DATA, (1 << 32,) * 2)\n"
        "import moec\n"
        "model = moec.load(%r)\n"
        "try: model(np.ones((1 << 18, 1), np.float32), np.ones((1, 1 << 18), np.float32))\n"
        "except moec.MoecError as error: print(type(error).__name__, error)"
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/m.moec")
        command = [sys.executable, "-c", code % f"{folder}/m.moec"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(
        "MoecError there is not enough memory to run the model on inputs of sizes a[262144, 1]"
    )


def test_scales_that_make_no_size() -> None:
    model = compiled("g (float[1,1,2,2] x, float[4] s) => (float[A,B,C,D] y) { y = Resize (x, , s) }")
    x = np.ones((1, 1, 2, 2), np.float32)
    assert model(x, np.array([1, 1, 2, 0.4], np.float32))["y"].shape == (1, 1, 4, 0)
    for scale in (-1.0, -np.inf, np.nan, np.inf, 1e30):
        with pytest.raises(MoecError, match=r"negative|not enough memory"):
            model(x, np.array([1, 1, scale, 1], np.float32))


@pytest.mark.parametrize("keepdims", [0, 1])
def test_axes_that_are_no_axes_or_one_axis_twice(keepdims: int) -> None:
    rank = 3 if keepdims else 1
    model = compiled(
        f"g (float[A,2,3] x, int64[2] a) => (float[{','.join('PQR'[:rank])}] y) "
        f"{{ y = ReduceSum<keepdims = {keepdims}>(x, a) }}"
    )
    x = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    np.testing.assert_array_equal(model(x, np.array([2, -3]))["y"].ravel(), x.sum(axis=(0, 2)))
    for axes in ((0, 0), (2, -1), (3, 0), (0, -4)):
        with pytest.raises(InputError, match=r"node 'y' .ReduceSum.: ax.*expected different ones from -3 to 2"):
            model(x, np.array(axes))


@pytest.mark.parametrize(("kind", "operator"), [("float", "Conv"), ("uint8", "ConvInteger")])
@pytest.mark.parametrize("groups", [0, 3])
def test_groups_that_do_not_divide_the_channels(kind: str, operator: str, groups: int) -> None:
    with pytest.raises(UnsupportedError, match=f"node 'y' .{operator}.: 4 channels in {groups} groups"):
        compiled(
            f"g ({kind}[N,2,5] x, {kind}[4,2,3] w) => ({'float' if kind == 'float' else 'int32'}[A,B,C] y) "
            f"{{ y = {operator}<group = {groups}>(x, w) }}"
        )


def test_groups_of_more_channels_than_there_are() -> None:
    with pytest.raises(UnsupportedError, match="2 channels, a window for 2 in 2 groups"):
        compiled("g (float[N,2,5] x, float[4,2,3] w) => (float[A,B,C] y) { y = Conv<group = 2>(x, w) }")


def test_an_element_of_a_shape_that_it_does_not_have() -> None:
    """The index is the width of x, which moec alone knows."""
    with pytest.raises(UnsupportedError, match=r"node 'n' .Gather.: indices from 2 to 2 into an axis of size 2"):
        compiled(
            "g (float[N,2] x) => (int64[1] n) <int64[1] one = {1}> "
            "{ s = Shape(x) i = Gather(s, one) j = Max(i, one) n = Gather(s, j) }"
        )
