"""Folders after passes: transformers reads them and computes what moec does; everything else is as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import MoecError, UnsupportedError
from moec.exporting.driver import Export, export
from moec.frontend import huggingface
from moec.frontend.huggingface.checkpoint.safetensors import NewTensor, write_file
from moec.frontend.huggingface.folder import import_folder, read_tensors
from moec.ir.interpreter import run

from ..command import moec
from ..frontend.huggingface.models import mixtral, rounded, saved, torch, transformers

IDS = np.random.default_rng(0).integers(0, 64, (2, 9))
PRUNE = "prune-experts{keep=0.75,method=random}"
LINEARS = "quantize-linears{format=int8,minimum=0}"
TEXTS = {"tokenizer.json": "{}", "README.md": "of the source", "templates/chat.jinja": "hello", ".cache/lock": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer of four experts in bfloat16, in several files, with a tokenizer and other files."""
    module = rounded(mixtral(num_hidden_layers=1), torch.bfloat16).to(torch.bfloat16)
    path = saved(module, tmp_path_factory.mktemp("exporting") / "model", max_shard_size="20KB")
    for name, text in TEXTS.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text)
    return path


def written(source: Path, folder: Path, **options: Any) -> Export:
    return export(source, folder / "out", **options)


def logits_of_transformers(source: Path) -> np.ndarray:
    module, info = transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    with torch.no_grad():
        return module(input_ids=torch.from_numpy(IDS), use_cache=False).logits.numpy()


def exported(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[ir.Model, Export]:
    """Export; also returns the graph that the passes left behind."""
    graphs: list[ir.Model] = []

    def importing(*arguments: Any, **settings: Any) -> ir.Model:
        graphs.append(import_folder(*arguments, **settings))
        return graphs[0]

    monkeypatch.setattr(huggingface, "import_folder", importing)
    result = written(source, folder, **options)
    return graphs[0], result


def check_agreement(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, passes: str) -> Export:
    """Export, and compare what transformers computes with the graph that the passes left behind."""
    graph, result = exported(source, folder, monkeypatch, passes=passes)
    expected = run(graph, {"input_ids": IDS})["logits"]
    np.testing.assert_allclose(
        logits_of_transformers(result.path), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )
    return result


def test_pruned(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = check_agreement(folder, tmp_path, monkeypatch, f"O2,{PRUNE}")
    assert [part.written_as for part in result.parts] == ["layers of 3 experts"]
    before, after = read_tensors(folder), read_tensors(result.path)
    experts = {name for name in before if ".experts." in name}
    assert before.keys() - after.keys() == {name for name in experts if ".experts.3." in name} != set()
    for name, tensor in after.items():
        assert tensor.dtype == before[name].dtype
        if name not in experts and ".gate." not in name:
            assert tensor.stored.tobytes() == before[name].stored.tobytes(), name
    configs = [json.loads((path / "config.json").read_text()) for path in (folder, result.path)]
    assert configs[1] == configs[0] | {"num_local_experts": 3} != configs[0]
    index = json.loads((result.path / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == after.keys()
    assert index["metadata"]["total_size"] == sum(tensor.stored.nbytes for tensor in after.values())
    for name in TEXTS:
        assert (result.path / name).is_file() == (not name.startswith("."))


@pytest.mark.nightly
@pytest.mark.parametrize(
    "passes", ["O2,cast-weights{dtype=fp16,minimum=0}", f"O2,{PRUNE},cast-weights{{dtype=fp16,minimum=0}}"]
)
def test_other_floats(passes: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = check_agreement(folder, tmp_path, monkeypatch, passes)
    types = {str(tensor.dtype) for name, tensor in read_tensors(result.path).items() if ".experts." in name}
    assert types == {"FLOAT16"}


@pytest.mark.nightly
def test_experts_of_four_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(mixtral(num_hidden_layers=1, hidden_size=64), tmp_path / "model")
    graph, result = exported(source, tmp_path, monkeypatch, passes=f"O2,{PRUNE}", experts="int4/32")
    for node in graph.graph:
        node.attributes.pop("arithmetic", None)
    expected = run(graph, {"input_ids": IDS})["logits"]
    actual = run(import_folder(result.path), {"input_ids": IDS})["logits"]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    config = json.loads((result.path / "config.json").read_text())
    assert config["quantization_config"]["format"] == "pack-quantized" and config["num_local_experts"] == 3
    assert "model.layers.0.self_attn.q_proj" in config["quantization_config"]["ignore"]
    with pytest.raises(UnsupportedError, match="quantised already, and a folder has one description of all"):
        export(result.path, tmp_path / "again", passes=f"O2,{LINEARS}")
    again = export(result.path, tmp_path / "again", passes="O2,prune-experts{keep=2,method=random}")
    names = [name for name in read_tensors(again.path) if name.endswith("w1.weight_packed")]
    assert names == [f"model.layers.0.block_sparse_moe.experts.{expert}.w1.weight_packed" for expert in range(2)]


def dense_model(folder: Path, **settings: Any) -> Path:
    """A language model without experts."""
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, **settings
    )
    torch.manual_seed(0)
    return saved(transformers.LlamaForCausalLM(config).eval(), folder)


def check_numbers(graph: ir.Model, result: Export) -> None:
    """Compare the folder's numbers with the graph's, without the rounding of activations."""
    for node in graph.graph:
        node.attributes.pop("arithmetic", None)
    expected = run(graph, {"input_ids": IDS})["logits"]
    actual = run(import_folder(result.path), {"input_ids": IDS})["logits"]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.nightly
def test_dense_products_of_eight_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = dense_model(tmp_path / "model")
    graph, result = exported(source, tmp_path, monkeypatch, passes=f"O2,{LINEARS}")
    check_numbers(graph, result)
    before, after = read_tensors(source), read_tensors(result.path)
    quantised = {name for name in before if "_proj." in name or name == "lm_head.weight"}
    assert {name.removesuffix("_packed") for name in after if name.endswith("_packed")} == quantised
    assert not [remark for remark in result.remarks if remark.severity == "warning"]


@pytest.mark.nightly
def test_a_folder_in_which_nothing_changes_is_refused(tmp_path: Path) -> None:
    source = dense_model(tmp_path / "model")
    with pytest.raises(UnsupportedError, match="the passes change none of its weights: no layer of experts is known"):
        written(source, tmp_path, passes=f"O2,{PRUNE}")


@pytest.mark.nightly
def test_whole_numbers_beside_experts_that_are_pruned_are_refused(folder: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(folder, tmp_path / "model"))
    name = "model.layers.0.block_sparse_moe.gate.tid2eid"
    path = source / "more.safetensors"
    write_file(path, {name: NewTensor(ir.DataType.INT64, (2,), lambda: (np.arange(2),))}, {"format": "pt"})
    index = json.loads((source / "model.safetensors.index.json").read_text())
    index["weight_map"][name] = path.name
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedError, match=r"tid2eid.*: holds whole numbers beside experts whose numbers change"):
        written(source, tmp_path, passes=f"O2,{PRUNE}")


@pytest.mark.nightly
def test_experts_and_dense_products_in_two_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(mixtral(num_hidden_layers=1, hidden_size=64), tmp_path / "model")
    graph, result = exported(source, tmp_path, monkeypatch, experts="int4/32", passes=f"O2,{PRUNE},{LINEARS}")
    check_numbers(graph, result)
    groups = json.loads((result.path / "config.json").read_text())["quantization_config"]["config_groups"]
    assert [group["weights"]["num_bits"] for group in groups.values()] == [4, 8]


@pytest.mark.nightly
def test_an_embedding_that_is_the_output_matrix_too_stays_in_floats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = dense_model(tmp_path / "model", tie_word_embeddings=True)
    _, result = exported(source, tmp_path, monkeypatch, passes=f"O2,{LINEARS}")
    assert "model.embed_tokens.weight" in read_tensors(result.path)
    (warning,) = (remark for remark in result.remarks if remark.severity == "warning")
    assert "stays in floats: its numbers are no tensor that a product alone reads" in warning.message


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("passes", "message"),
    [
        (f"O2,{LINEARS}", "its experts would stay floats, and dense products not"),
        ("O2,cast-weights{dtype=fp16,weights=all,minimum=0}", "of dense products a folder gets int4 and int8"),
        ("O2,quantize-experts{format=int4,group=32,down=int8}", "transformers reads one for all experts of a folder"),
    ],
)
def test_formats_that_transformers_does_not_read_are_refused(
    passes: str, message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        written(folder, tmp_path, passes=passes)
    assert not list(tmp_path.iterdir())


@pytest.mark.nightly
def test_layers_that_predict_further_tokens_go_when_counts_change(tmp_path: Path) -> None:
    module = mixtral(num_hidden_layers=2)
    source = saved(module, tmp_path / "model")
    config = json.loads((source / "config.json").read_text())
    config |= {"num_hidden_layers": 1, "num_nextn_predict_layers": 1}
    (source / "config.json").write_text(json.dumps(config))
    result = written(source, tmp_path, passes=f"O2,{PRUNE}")
    assert not any(".layers.1." in name for name in read_tensors(result.path))
    assert json.loads((result.path / "config.json").read_text())["num_nextn_predict_layers"] == 0
    assert any("predict further tokens" in remark.message for remark in result.remarks)


def test_nothing_changes_without_a_pass_that_changes_the_function(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(folder)  # as the cache of the hub
    result = written(tmp_path / "model", tmp_path)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {".cache/lock"}
    assert {str(path.relative_to(result.path)) for path in result.path.rglob("*") if path.is_file()} == names
    for name in names - {"model.safetensors.index.json"}:
        assert (result.path / name).read_bytes() == (folder / name).read_bytes(), name


def test_links_out_of_the_model_are_not_followed(folder: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(folder, tmp_path / "cache" / "snapshots" / "main"))
    (tmp_path / "cache" / "blobs").mkdir()
    (tmp_path / "cache" / "blobs" / "0a").write_text("of the hub")
    (tmp_path / "secret.txt").write_text("secret")
    (source / "LICENSE").symlink_to("../../blobs/0a")
    (source / "NOTICE").symlink_to("../../../secret.txt")
    result = written(source, tmp_path)
    assert (result.path / "LICENSE").read_text() == "of the hub" and not (result.path / "NOTICE").exists()
    assert [remark.subject for remark in result.remarks] == ["NOTICE"]


def test_the_command(folder: Path, tmp_path: Path) -> None:
    result = moec("export", folder, "-o", tmp_path / "copy")
    assert result.returncode == 0 and read_tensors(tmp_path / "copy").keys() == read_tensors(folder).keys()


def test_weights_of_other_formats_are_left_out(folder: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(folder, tmp_path / "model"))
    (source / "pytorch_model.bin").write_bytes(b"pickled")
    (source / "original").mkdir()
    (source / "original" / "a.safetensors").write_bytes(b"")
    result = written(source, tmp_path)
    assert not (result.path / "pytorch_model.bin").exists() and not (result.path / "original").exists()
    assert {remark.subject for remark in result.remarks} == {"pytorch_model.bin", "original/a.safetensors"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": "O3"}, "round-activations: changes how a model computes"),
        ({"tokenizer": "."}, "a folder keeps the one that it has"),
    ],
)
def test_what_a_folder_cannot_say_is_refused(
    options: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        written(folder, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_missing_shard_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(folder, tmp_path / "model"))
    next(source.glob("model-00002*")).unlink()
    with pytest.raises(MoecError, match="no such file; download the model again"):
        written(source, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_nothing_is_replaced(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(MoecError, match="exists, and a folder of models for other programs is never replaced"):
        written(folder, tmp_path)
    with pytest.raises(MoecError, match="is the model that is exported"):
        export(folder, folder)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_only_a_folder_becomes_one(tmp_path: Path) -> None:
    for name, message in (("model.gguf", r"name the output \*.gguf"), ("model.onnx", "only folders of Hugging Face")):
        (tmp_path / name).write_bytes(b"GGUF" if name.endswith("gguf") else b"")
        with pytest.raises(UnsupportedError, match=message):
            export(tmp_path / name, tmp_path / "out", form="huggingface")
