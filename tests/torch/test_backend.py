"""``torch.compile(model, backend="moec")``: the parts that moec computes, with the results of eager PyTorch."""

from __future__ import annotations

import importlib.metadata
import logging
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import onnx
import onnx_ir
import pytest

from moec.common.errors import MoecError

torch = pytest.importorskip("torch", reason='needs the extra "torch": pip install "moec[torch]"')

TOLERANCE = 1e-5
"""Tolerance as a share of the largest number."""


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


class Loop(torch.nn.Module):
    """Top-2 of 4 experts, each run on all rows, under masks, in a loop."""

    def __init__(self, d: int = 16, f: int = 24, experts: int = 4) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(d)
        self.gate = torch.nn.Linear(d, experts, bias=False)
        self.up = torch.nn.ModuleList(torch.nn.Linear(d, f) for _ in range(experts))
        self.down = torch.nn.ModuleList(torch.nn.Linear(f, d) for _ in range(experts))

    def forward(self, x: Any) -> Any:
        rows = self.norm(x)
        weights, ids = torch.softmax(self.gate(rows), -1).topk(2, -1)
        y = torch.zeros_like(rows)
        for expert, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            share = (weights * (ids == expert)).sum(-1, keepdim=True)
            y += share * down(torch.nn.functional.gelu(up(rows)))
        return x + y


def compiled(module: Any, **options: Any) -> Any:
    from moec.torch.backend import backend

    return torch.compile(module, backend=backend, options={"rest": "eager", **options})


def check(actual: Any, expected: Any, share: float = TOLERANCE) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= share * expected.abs().max()


def said(caplog: Any) -> list[tuple[str, str]]:
    """List level and text of moec's log records."""
    return [(record.levelname, record.message) for record in caplog.records if record.name == "moec.torch"]


@pytest.mark.slow
@pytest.mark.nightly
def test_a_loop_over_experts_with_changing_lengths_and_weights(caplog: Any) -> None:
    caplog.set_level(logging.INFO, "moec.torch")
    module = Loop().eval()
    fast = compiled(module)
    with torch.no_grad():
        for T in (5, 9, 30):
            x = torch.randn(T, 16)
            check(fast(x), module(x))
        for up in module.up:
            up.weight.mul_(3)
        check(fast(x), module(x))
    with torch.inference_mode():
        check(fast(x), module(x))
    assert {level for level, _ in said(caplog)} == {"INFO"}, said(caplog)
    assert all(text.startswith("1 MoE blocks of a graph are computed by moec: ") for _, text in said(caplog))


class Broken(torch.nn.Module):
    """Two blocks, of which dynamo sees one at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Loop(), Loop()])

    def forward(self, x: Any) -> Any:
        x = self.layers[0](x)
        torch._dynamo.graph_break()
        return self.layers[1](x)


@pytest.mark.nightly  # a graph with one of the two blocks runs always, above
def test_graph_breaks(caplog: Any) -> None:
    caplog.set_level(logging.INFO, "moec.torch")
    module, x = Broken().eval(), torch.randn(5, 16)
    with torch.no_grad():
        check(compiled(module)(x), module(x))
    assert [level for level, _ in said(caplog)] == ["INFO", "INFO"], said(caplog)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("experts", "dtype", "rest"),
    [
        ("grouped_mm", torch.float32, "eager"),
        ("grouped_mm", torch.bfloat16, "eager"),
        ("batched_mm", torch.float32, "eager"),
        ("grouped_mm", torch.float32, "inductor"),
    ],
)
def test_a_model_of_transformers(caplog: Any, experts: str, dtype: Any, rest: str) -> None:
    caplog.set_level(logging.INFO, "moec.torch")
    transformers = pytest.importorskip("transformers", minversion="5.0")
    config = transformers.MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    module = transformers.AutoModelForCausalLM.from_config(config).eval().to(dtype)
    module.set_experts_implementation(experts)
    fast = compiled(module, rest=rest)
    with torch.no_grad():
        for shape in ((2, 7), (3, 11), (1, 30)):
            ids = torch.randint(0, 64, shape)
            check(fast(ids).logits, module(ids).logits, TOLERANCE if dtype == torch.float32 else 0.05)
    assert {level for level, _ in said(caplog)} == {"INFO"}, said(caplog)
    assert all(text.startswith("2 MoE blocks ") for _, text in said(caplog)), said(caplog)


def test_gradients_are_left_to_the_rest(caplog: Any) -> None:
    module, x = Loop(), torch.randn(5, 16)
    check(compiled(module)(x), module(x))
    assert said(caplog) == [
        (
            "WARNING",
            "a graph is left to eager: its results need gradients, and moec computes inference only: call it under "
            "torch.no_grad()",
        )
    ]


def test_a_graph_without_a_block_is_left_to_the_rest(caplog: Any) -> None:
    module, x = torch.nn.Linear(4, 4), torch.randn(5, 4)
    with torch.no_grad():
        assert torch.equal(compiled(module)(x), module(x))
    assert said(caplog) == [("WARNING", "a graph is left to eager: no MoE block was found in it")]


def test_a_graph_that_changes_its_inputs_is_left_to_the_rest(caplog: Any) -> None:
    x = torch.zeros(3)
    with torch.no_grad():
        compiled(lambda x: x.add_(1))(x)
    assert x.tolist() == [1, 1, 1]
    assert said(caplog) == [("WARNING", "a graph is left to eager: the graph changes its inputs in place")]


def region(eager: Any, text: str) -> Any:
    """Make a region of the operators in ``text``, from x [N,2] and w [2] to y."""
    from moec.torch.region import Region

    head = '<ir_version: 10, opset_import: ["" : 24]> g (float[N,2] x) => (float[N,2] y)'
    proto = onnx.parser.parse_model(f"{head} {{ {text} }}")
    return Region("it", eager, lambda weights: onnx_ir.from_proto(proto), None)


def test_a_block_that_is_something_else_is_left_to_pytorch(caplog: Any) -> None:
    part, x, w = region(lambda x, w: x * w, "y = Add (x, x)"), torch.randn(3, 2), torch.tensor([2.0, 2.0])
    assert torch.equal(part([x], [], [w]), 2 * x)
    assert said(caplog) == []
    w[1] = 3
    assert torch.equal(part([x], [], [w]), x * w)
    ((level, text),) = said(caplog)
    assert level == "WARNING"
    assert re.fullmatch(r"it is left to PyTorch: its results differ from eager PyTorch's by [\d.]+", text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expert": "int8"}, "backend moec has no option 'expert'; expected rest or experts"),
        ({"experts": "int7"}, "int7"),
    ],
)
def test_options_that_do_not_exist_are_refused(options: Any, message: str) -> None:
    from moec.torch.backend import backend

    with pytest.raises(MoecError, match=message):
        backend(torch.fx.symbolic_trace(torch.nn.Identity()), [], options=options)


def test_pytorch_finds_the_backend_by_name() -> None:
    from moec.torch.backend import backend

    text = (pathlib.Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    (place,) = re.findall(r'^\[project.entry-points.torch_dynamo_backends\]\nmoec = "([\w.:]+)"$', text, re.MULTILINE)
    actual = importlib.metadata.EntryPoint("moec", place, "torch_dynamo_backends").load()
    assert actual is backend
