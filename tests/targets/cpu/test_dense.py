"""Whole graphs of dense operators on CPU against the reference interpreter."""

from collections.abc import Callable, Iterable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from moec.common.errors import UnsupportedError
from moec.ir import interpreter

from ...products import thinned

ROWS = [0, 1, 7, 40]


def _model(text: str, weights: dict[str, np.ndarray] | None = None) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 24]>\n{text}')
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))


Arrays = dict[str, np.ndarray]


def _compiled(model: ir.Model, machine_name: str = "native") -> Callable[[Arrays], Arrays]:
    import tvm
    from tvm import relax

    from moec.targets.cpu.dense import converters
    from moec.targets.cpu.hardware.machine import Machine
    from moec.targets.tvm.lowering import lowering
    from moec.targets.tvm.onnx.converters import all_converters
    from moec.targets.tvm.phases import pipeline

    machine = Machine.for_name(machine_name)
    target = tvm.target.Target(machine.llvm)
    lowered = lowering.lower(model, all_converters(converters(machine)))
    for record in lowered.kernels.values():
        assert sum(candidate.chosen for candidate in record.candidates) == 1
    executable = relax.build(
        pipeline.optimize(lowered.module, target, lowered.nodes).module,
        target=target,
        relax_pipeline=tvm.ir.transform.Sequential([*pipeline.memory_phases(), *pipeline.instruction_phases()]),
        tir_pipeline=pipeline.KERNEL_PIPELINE,
    )
    function = relax.VirtualMachine(executable, tvm.cpu())["main"]

    def run(inputs: Arrays) -> Arrays:
        arguments = [inputs[spec.name] for spec in lowered.inputs] + [weight.array() for weight in lowered.weights]
        results = function(*(tvm.runtime.tensor(np.ascontiguousarray(argument)) for argument in arguments))
        return {spec.name: result.numpy() for spec, result in zip(lowered.outputs, results, strict=True)}

    return run


def _check(model: ir.Model, *runs: Arrays, machine_name: str = "native") -> None:
    """Compile a model once, and compare it with the interpreter on the inputs of each run."""
    run = _compiled(model, machine_name)
    for inputs in runs:
        expected = interpreter.run(model, inputs, dtype=np.float64)
        for name, actual in run(inputs).items():
            assert actual.shape == expected[name].shape
            np.testing.assert_allclose(actual, expected[name], rtol=1e-4, atol=1e-4)


@pytest.fixture
def normal():
    generator = np.random.default_rng(0)
    return lambda *shape: generator.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("machine_name", ["native", "avx2"])
def test_matmul_by_a_constant(normal, machine_name):
    model = _model("g (float[B,S,37] x) => (float[B,S,50] y) { y = MatMul (x, w) }", {"w": normal(37, 50)})
    _check(model, *({"x": normal(2, rows, 37)} for rows in ROWS), machine_name=machine_name)


def _check_products(normal: Callable[..., np.ndarray], products: Iterable[tuple[str, str, str, str]]) -> None:
    """Compare products of two operands. Each is its call, with ``{a}`` and ``{b}`` for the operands, and the shapes of
    these and of the result. One graph holds all: compiling is most of the time."""
    sizes, bodies, declared, built, inputs = {"B": 2, "S": 7, "P": 11}, [], [], [], {}
    for at, (call, left, right, result) in enumerate(products):
        bodies.append(f"y{at} = {call.format(a=f'a{at}', b=f'b{at}')}")
        declared += [f"float[{left}] a{at}", f"float[{right}] b{at}"]
        built.append(f"float[{result}] y{at}")
        for name, shape in (("a", left), ("b", right)):
            inputs[f"{name}{at}"] = normal(*(sizes[dim] if dim in sizes else int(dim) for dim in shape.split(",")))
    _check(_model(f"g ({', '.join(declared)}) => ({', '.join(built)}) {{ {' '.join(bodies)} }}"), inputs)


def test_matmul_of_two_activations_broadcasts(normal):
    shapes = [
        ("S,5", "5,9", "S,9"),
        ("B,S,5", "B,5,9", "B,S,9"),
        ("B,3,S,5", "5,9", "B,3,S,9"),
        ("B,3,S,5", "3,5,9", "B,3,S,9"),
        ("S,5", "B,3,5,9", "B,3,S,9"),
        ("5", "B,5,9", "B,9"),
        ("B,S,5", "5", "B,S"),
    ]
    _check_products(normal, [("MatMul ({a}, {b})", *each) for each in shapes])


def test_gemm_of_two_activations(normal):
    transposed = "Gemm <transA = 1, alpha = 0.5, beta = 2.0> ({a}, {b})"
    products = [
        ("Gemm ({a}, {b})", "S,6", "6,9", "S,9"),
        ("Gemm <transB = 1> ({a}, {b})", "S,6", "9,6", "S,9"),
        (transposed, "6,S", "6,9", "S,9"),
    ]
    _check_products(normal, products)


@thinned("attributes", ["", "<transB = 1>", "<transA = 1, alpha = 0.5, beta = 2.0>"], 2)
def test_gemm_by_a_constant(normal, attributes):
    weight = normal(6, 9).T.copy() if "transB" in attributes else normal(6, 9)
    rows = "6,T" if "transA" in attributes else "T,6"
    text = f"g (float[{rows}] x, float[9] c) => (float[T,9] y) {{ y = Gemm {attributes} (x, w, c) }}"
    x = normal(5, 6)
    _check(_model(text, {"w": weight}), {"x": x.T.copy() if "transA" in attributes else x, "c": normal(9)})


def test_einsum(normal):
    equations = [
        ("bsd,de->bse", "B,S,8", "8,5", "B,S,5"),
        ("bsd,edf->besf", "B,S,8", "5,8,3", "B,5,S,3"),
        ("bhqd,bhkd->bhqk", "B,2,S,8", "B,2,P,8", "B,2,S,P"),
        ("te,ted->td", "S,5", "S,5,8", "S,8"),
        ("...i,ij->...j", "B,S,8", "8,5", "B,S,5"),
        ("i,j->ij", "8", "5", "8,5"),
        ("ab,cb", "S,8", "5,8", "S,5"),
    ]
    _check_products(normal, [(f'Einsum <equation = "{one}"> ({{a}}, {{b}})', *shapes) for one, *shapes in equations])


def test_einsum_refuses_a_diagonal():
    model = _model('g (float[4,4] a) => (float[4] y) { y = Einsum <equation = "ii->i"> (a) }')
    with pytest.raises(UnsupportedError, match="none repeated"):
        _compiled(model)


@pytest.mark.parametrize("axis", [-1, 1, 0])
def test_softmax(normal, axis):
    model = _model(f"g (float[T,37,3] x) => (float[T,37,3] y) {{ y = Softmax <axis = {axis}> (x) }}")
    _check(model, *({"x": 10 * normal(rows, 37, 3)} for rows in ROWS if rows))
    assert _compiled(model)({"x": normal(0, 37, 3)})["y"].shape == (0, 37, 3)


@pytest.mark.parametrize("operator", ["LayerNormalization", "RMSNormalization"])
@pytest.mark.parametrize("axis, scale", [(-1, (6,)), (1, (5, 6))])
def test_normalization(normal, operator, axis, scale):
    text = f"g (float[T,5,6] x) => (float[T,5,6] y) {{ y = {operator} <axis = {axis}, epsilon = 1e-6> (x, scale) }}"
    model = _model(text, {"scale": normal(*scale)})
    _check(model, {"x": normal(7, 5, 6)})


@pytest.mark.parametrize(
    "shape, weight, attributes",
    [
        ("B,6,S", (6, 1, 4), "group = 6, pads = [3, 0]"),
        ("B,6,S", (4, 3, 3), "group = 2, pads = [1, 1], dilations = [2], strides = [2]"),
        ("B,3,8,8", (5, 3, 4, 4), "strides = [4, 4]"),
    ],
)
def test_convolution(normal, shape, weight, attributes):
    text = f"g (float[{shape}] x) => (float[] y) {{ y = Conv <{attributes}> (x, w, b) }}"
    rank = len(weight)
    text = text.replace("float[] y", f"float[{','.join(['B', str(weight[0]), *'RS'[: rank - 2]])}] y")
    model = _model(text, {"w": normal(*weight), "b": normal(weight[0])})
    sizes = {"B": 2, "S": 9}
    _check(model, {"x": normal(*(sizes[dim] if dim in sizes else int(dim) for dim in shape.split(",")))})


@pytest.mark.parametrize("x, weight", [("B,C,8,8", "5,3,2,2"), ("B,3,8,8", "N,3,2,2"), ("B,3,8,8,8", "5,3,2,2,2")])
def test_a_convolution_of_unknown_channels_or_over_three_axes_is_refused(x, weight):
    model = _model(f"g (float[{x}] x, float[{weight}] w) => (float[] y) {{ y = Conv (x, w) }}")
    with pytest.raises(UnsupportedError, match="expected one or two spatial axes, and static channels and window"):
        _compiled(model)


def test_an_unsupported_element_type_names_every_kernel():
    model = _model("g (double[T,3] a, double[3,4] b) => (double[T,4] y) { y = MatMul (a, b) }")
    with pytest.raises(UnsupportedError, match="batched_matmul: element type float64"):
        _compiled(model)
