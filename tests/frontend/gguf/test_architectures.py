"""Logits of a tiny model of every architecture are llama.cpp's (tools/gguf_models.py wrote them), with a cache, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import moec
from moec.common.errors import MoecError, UnsupportedError
from moec.compiling.compile_options import default_passes
from moec.frontend.gguf import import_file
from moec.frontend.gguf.architectures import ARCHITECTURES, llama4
from moec.frontend.gguf.file.reader import read_file
from moec.frontend.gguf.graph.builder import Builder
from moec.frontend.gguf.parts.indexer import Indexer
from moec.ir import semantics
from moec.ir.interpreter import run
from moec.ir.rounding import arithmetics_of
from moec.ir.verifier import verify
from moec.ir.weight_operands import stored_weights
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.tools.verify import verify as verify_artifact

from .gguf_files import stored
from .tiny_models import IDS, MODELS, Tiny, write_model

GOLDEN = Path(__file__).parents[2] / "golden" / "gguf_logits.npz"
LOOSE = [name for name in MODELS if name.startswith("gemma")]
"""Models with GELU, which llama.cpp reads from a table in float16: a number next to the edge of two entries may get the
other one."""
SPLIT = 7
"""Tokens of the first call with a cache; in some architectures the second call then leaves the window."""


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return dict(np.load(GOLDEN))


@pytest.fixture
def gelu_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the reference interpreter compute GELU in float16, as llama.cpp does between -10 and 10."""
    exact = semantics.gelu_tanh

    def rounded(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        inside = exact(x.astype(np.float16).astype(np.float32)).astype(np.float16)
        return np.where(np.abs(x) < 10, inside, np.maximum(x, 0)).astype(x.dtype)

    monkeypatch.setattr(semantics, "gelu_tanh", rounded)
    monkeypatch.setitem(semantics.ACTIVATIONS, "gelu_tanh", rounded)


def test_every_architecture_has_a_model() -> None:
    assert {architecture for architecture, _, _ in MODELS.values()} == set(ARCHITECTURES)


def agree(actual: np.ndarray, expected: np.ndarray, name: str) -> None:
    limit = (1e-4 if name in LOOSE else 1e-5) * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)


@pytest.mark.usefixtures("gelu_of_a_table")
@pytest.mark.parametrize("name", MODELS)
def test_logits(name: str, tmp_path: Path, expected: dict[str, Any]) -> None:
    model = import_file(write_model(name, tmp_path / "model.gguf"))
    verify(model)
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT
    agree(run(model, {"input_ids": np.stack([IDS, IDS])})["logits"][1], expected[name], name)


@pytest.mark.usefixtures("gelu_of_a_table")
@pytest.mark.parametrize("name", [name for name in MODELS if "long" not in name])
def test_logits_with_a_cache(name: str, tmp_path: Path, expected: dict[str, Any]) -> None:
    model = import_file(write_model(name, tmp_path / "model.gguf"), cache=True)
    past = {
        value.name: np.zeros([_first(size) for size in value.shape], np.float32) for value in model.graph.inputs[1:]
    }
    actual = []
    for ids in (IDS[:SPLIT], IDS[SPLIT:]):
        results = run(model, {"input_ids": ids[None], **past})
        actual.append(results.pop("logits")[0])
        past = {name.replace("present", "past"): value for name, value in results.items()}
    agree(np.concatenate(actual), expected[name], name)


def _first(size: Any) -> int:
    return size if isinstance(size, int) else {"batch": 1, "past": 0}[str(size)]


def test_compiled(tmp_path: Path) -> None:
    path = write_model("mixtral", tmp_path / "model.gguf", "Q4_1")
    model = import_file(path)
    nodes = [node for node in model.graph if node.op_type == "Experts"]
    actual = {str(stored_weight.formats[0]) for node in nodes for stored_weight in stored_weights(node).values()}
    assert actual == {"int4/32m"}
    expected = run(model, {"input_ids": IDS[None]})["logits"]
    compiled = moec.compile(path, passes="O2")
    assert [block["formulation"] for block in compiled.describe()["moe_blocks"]] == ["gguf", "gguf"]
    results = compiled.run({"input_ids": IDS[None]})
    np.testing.assert_allclose(results["logits"], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert results["present_key_1"].shape == (1, 2, len(IDS), 8)


@pytest.mark.nightly
def test_compiled_as_llama_cpp_computes(tmp_path: Path) -> None:
    path = write_model("mixtral", tmp_path / "model.gguf", "Q4_1")
    compiled = moec.compile(path)
    described = compiled.describe()
    assert described["provenance"]["arithmetic"]["activations"] == ["int8"]
    assert {state.dtype for state in compiled._executor.held} == {"float16"}
    assert [loss["weight_error"] for loss in described["losses"]] == [0.0] * len(described["losses"]) != []
    exact = run(import_file(path), {"input_ids": IDS[None]})["logits"]
    result = compiled.run({"input_ids": IDS[None]})["logits"]
    error = np.linalg.norm(result - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 5e-2
    assert verify_artifact(path, compiled).matches


def test_a_file_of_floats_is_computed_as_it_is(tmp_path: Path) -> None:
    path = write_model("mixtral", tmp_path / "model.gguf")
    model, report = import_file(path), Report()
    pipeline.run(model, pipeline.parse(default_passes(path, "cpu")), report)
    assert not arithmetics_of(model)
    assert not [remark for remark in report.remarks if remark.severity == "warning"]


def changed(tmp_path: Path, name: str = "llama", **changes: Any) -> Path:
    """Write a model with other hyperparameters, or tensors where a name begins with ``blk``; None removes one."""
    architecture, make, options = MODELS[name]
    tiny = Tiny(architecture, "F32")
    make(tiny, **options)
    for key, value in changes.items():
        table: dict[str, Any] = tiny.tensors if isinstance(value, np.ndarray) or key.startswith("blk") else tiny.given
        if value is None:
            del table[key]
        else:
            table[key] = stored(value) if isinstance(value, np.ndarray) else value
    return tiny.write(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope.scaling.alpha": 1.5},
            "llama.rope.scaling.alpha = 1.5: moec does not know what this hyperparameter does",
        ),
        ({"rope.scaling.type": "dynamic"}, "rope.scaling.type is 'dynamic'; expected none, linear, yarn, longrope"),
        ({"attention.causal": False}, "llama.attention.causal = False is not supported"),
        ({"attention.causal": [True, True]}, "llama.attention.causal = .* is not supported"),
        ({"rope.dimension_count": 7}, "rope.dimension_count is 7; expected an even number"),
        ({"attention.head_count": 3}, "3 query heads cannot share 2 heads of keys"),
        (
            {"blk.0.attn_q_norm.weight": np.ones(8)},
            "'blk.0.attn_q_norm.weight': moec does not know what this tensor does",
        ),
    ],
)
def test_what_is_not_known_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        import_file(changed(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_length": 0}, "llama.embedding_length is 0; expected a whole number from 1 on"),
        ({"block_count": 1 << 30}, "llama.block_count is 1073741824; expected 1 to 1024"),
        ({"block_count": 3}, "has no tensor 'blk.2.attn_norm.weight', which a model of llama needs"),
        ({"feed_forward_length": 63}, r"'blk.0.ffn_gate.weight': is \[64, 32\], but the metadata asks for \[63, 32\]"),
        ({"blk.1.ffn_up.weight": None}, "has no tensor 'blk.1.ffn_up.weight'"),
        (
            {"attention.layer_norm_rms_epsilon": None},
            "llama.attention.layer_norm_rms_epsilon is missing; expected a number",
        ),
        ({"attention.head_count": "4"}, "llama.attention.head_count is 4; expected a whole number"),
        ({"attention.head_count_kv": [2]}, r"llama.attention.head_count_kv is \[2\]; expected 2 whole numbers"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(MoecError, match=message) as caught:
        import_file(changed(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    path = Tiny("rwkv6", "F32").write(tmp_path / "model.gguf")
    with pytest.raises(UnsupportedError, match="is a model of the architecture 'rwkv6'; expected llama, qwen2"):
        import_file(path)


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    feeds = {"block_count": 3, "nextn_predict_layers": 1, "blk.2.nextn.eh_proj.weight": np.ones((4, 4))}
    model = import_file(changed(tmp_path, **feeds))
    assert "blk.2.nextn.eh_proj.weight" in model.metadata_props["moec.conditions"]
    assert not any("blk.2" in str(value.name) for node in model.graph for value in node.outputs)


def test_groups_of_experts_have_to_fit(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="2 of 4 groups are kept, of 6 experts"):
        import_file(changed(tmp_path, "deepseek2", expert_group_count=4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ssm.group_count": 3}, "ssm.time_step_rank is 4; expected a multiple of ssm.group_count"),
        ({"ssm.inner_size": 30}, r"expected a multiple of ssm.group_count \(2\) that divides ssm.inner_size \(30\)"),
        ({"ssm.state_size": 16}, r"'blk.0.attn_qkv.weight': is \[64, 32\], but the metadata asks for \[96, 32\]"),
        ({"ssm.conv_kernel": 1}, "ssm.conv_kernel is 1; expected a whole number from 2 on"),
        ({"rope.dimension_sections": [2, 0, 0, 0]}, r"dimension_sections is \[2, 0, 0, 0\]; expected three numbers"),
        ({"rope.dimension_sections": [0, 0, 0, 0]}, "expected three numbers that deal out all 2 pairs"),
        ({"attention.recurrent_layers": [True]}, "recurrent_layers has 1 entries; expected a flag for each layer"),
        ({"attention.recurrent_layers": [True, True]}, "has no tensor 'blk.1.attn_qkv.weight'"),
        ({"expert_shared_feed_forward_length": None}, "feed_forward_length|metadata asks for"),
    ],
)
def test_gated_delta_nets_have_to_fit(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(MoecError, match=message) as caught:
        import_file(changed(tmp_path, "qwen35moe", **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ssm.group_count": 3}, "ssm.time_step_rank is 4; expected a multiple of ssm.group_count"),
        ({"ssm.inner_size": 66}, r"a multiple of ssm.group_count \(2\) that divides ssm.inner_size \(66\)"),
        ({"ssm.state_size": 8}, r"'blk.0.ssm_in.weight': is \[196, 32\], but the metadata asks for \[164, 32\]"),
        ({"feed_forward_length": [0, 32, 32, 0]}, "has no tensor 'blk.2.ffn_latent_down.weight'"),
        ({"feed_forward_length": [0, 32]}, "feed_forward_length is .0, 32.; expected 4 whole numbers from 0 on"),
        (
            {"moe_latent_size": None},
            "'blk.1.ffn_up_exps.weight': is .6, 32, 16., but the metadata asks for .6, 32, 32.",
        ),
        ({"blk.0.ssm_d": None}, "has no tensor 'blk.0.ssm_d'"),
    ],
)
def test_mamba_has_to_fit(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(MoecError, match=message) as caught:
        import_file(changed(tmp_path, "nemotron_h_moe with a latent", **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention.shared_kv_layers": 3}, "shared_kv_layers leaves 1 of 4 layers with keys and values of their own"),
        ({"attention.key_length_swa": 6}, "'blk.0.attn_k.weight': is .8, 32., but the metadata asks for .12, 32."),
        ({"rope.dimension_count_swa": 3}, "rope.dimension_count_swa is 3; expected an even number"),
        ({"attention.sliding_window_pattern": [True]}, "sliding_window_pattern has 1 entries for 4 layers"),
        ({"blk.1.attn_k.weight": None}, "has no tensor 'blk.1.attn_k.weight'"),
        ({"embedding_length_per_layer_input": 0}, "'blk.0.inp_gate.weight': moec does not know what this tensor does"),
    ],
)
def test_gemma4_has_to_fit(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(MoecError, match=message) as caught:
        import_file(changed(tmp_path, "gemma4", **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"types": [False, True]}, "types has no indexer in the first layer, which has no layer before it to share"),
        ({"types": [True, True]}, "has no tensor 'blk.1.indexer.attn_q_b.weight'"),
        ({"types": None}, "has no tensor 'blk.1.indexer.attn_q_b.weight'"),
        ({"key_length": 2}, "indexer.key_length is 2; expected at least the 4 elements that rotate"),
        ({"top_k": 0}, "indexer.top_k is 0; expected a whole number from 1 on"),
        ({"block_size": 4}, "indexer.block_size = 4: moec does not know what this hyperparameter does"),
    ],
)
def test_indexers_have_to_fit(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    keys = {f"attention.indexer.{key}": value for key, value in changes.items()}
    with pytest.raises(MoecError, match=message):
        import_file(changed(tmp_path, "glm-dsa", **keys))


@pytest.mark.parametrize(("context", "without"), [(1 << 20, [3, 4, 5, 7]), ((1 << 20) - 1, [])])
def test_layers_with_indexers_where_none_are_listed(context: int, without: list[int], tmp_path: Path) -> None:
    keys = {"attention.indexer.types": None, "context_length": context, "block_count": 8}
    indexer = Indexer.of(Builder(read_file(changed(tmp_path, "glm-dsa", **keys)), with_cache=False), rotated=4)
    assert [layer for layer, is_full in enumerate(indexer.full) if not is_full] == without


@pytest.mark.parametrize(("name", "differs"), [("glm-dsa", True), ("glm-dsa, short", False)])
def test_queries_see_the_keys_of_the_largest_scores(name: str, differs: bool, tmp_path: Path) -> None:
    """Weights of the indexer do not matter where the selection has room for all tokens."""
    weights = {"blk.0.indexer.proj.weight": np.random.default_rng(5).standard_normal((16, 32))}
    plain, other = (
        run(import_file(changed(tmp_path, name, **changes)), {"input_ids": IDS[None]})["logits"][0]
        for changes in ({}, weights)
    )
    agree(plain[:5], other[:5], name)
    assert bool((np.abs(plain - other)[5:] > 1e-2).any()) is differs


def test_tokens_that_gemma4_must_not_write(tmp_path: Path) -> None:
    architecture, make, _ = MODELS["gemma4"]
    tiny = Tiny(architecture, "F32")
    make(tiny)
    tiny.tokenizer["suppress_tokens"] = [3, 5]
    logits = run(import_file(tiny.write(tmp_path / "model.gguf")), {"input_ids": IDS[None]})["logits"]
    assert np.flatnonzero(np.isneginf(logits).all(axis=(0, 1))).tolist() == [3, 5]


def test_recurrent_layers_may_be_listed(tmp_path: Path, expected: dict[str, Any]) -> None:
    path = changed(tmp_path, "qwen35moe", full_attention_interval=None, **{"attention.recurrent_layers": [True, False]})
    agree(run(import_file(path), {"input_ids": IDS[None]})["logits"][0], expected["qwen35moe"], "qwen35moe")


@pytest.mark.parametrize(("layers", "is_reached"), [(3, False), (4, True)])
def test_llama4_sees_its_own_part_of_the_text(
    layers: int, is_reached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama4, "CHUNK", 4)
    architecture, make, _ = MODELS["llama4"]
    tiny = Tiny(architecture, "F32")
    make(tiny, layers=layers)
    model = import_file(tiny.write(tmp_path / "model.gguf"))
    other = np.where(np.arange(len(IDS)) == 1, 7, IDS)
    first, second = run(model, {"input_ids": np.stack([IDS, other])})["logits"]
    differs = (first != second).any(axis=-1)
    assert differs.tolist() == [False, True, True, True, *[is_reached] * 8]


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["qwen3next", "qwen35moe", "lfm2moe", "nemotron_h_moe", "glm-dsa"])
def test_states_of_a_session(name: str, tmp_path: Path, expected: dict[str, Any]) -> None:
    session = moec.compile(write_model(name, tmp_path / "model.gguf"), passes="O2").session()
    parts = [IDS[:SPLIT], *IDS[SPLIT:, None]]
    agree(np.concatenate([session.run(ids, last=None)[0] for ids in parts]), expected[name], name)


def test_the_graph_is_made_of_what_it_says(tmp_path: Path) -> None:
    model = import_file(write_model("qwen3moe", tmp_path / "model.gguf"), cache=True)
    assert [value.name for value in model.graph.inputs] == ["input_ids"] + [
        f"past_{kind}_{layer}" for layer in range(2) for kind in ("key", "value")
    ]
    assert model.graph.outputs[0].name == "logits" and model.graph.outputs[1].name == "present_key_0"
    assert {node.op_type for node in model.graph if node.domain == "moec"} == {"Linear", "Route", "Experts"}
    assert model.graph.inputs[1].dtype == ir.DataType.FLOAT
