"""Folders of Hugging Face models: compiled, and refused where they are not complete."""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
from typing import Any

import onnx_ir
import pytest

import moec
from moec.common.errors import MoecError, UnsupportedError
from moec.frontend.huggingface.folder import import_folder, is_folder
from moec.frontend.onnx import conditions
from moec.frontend.pytorch import importer as pytorch
from moec.tools.verify import verify
from tests.frontend.huggingface.models import agree, blocks, change_config, mixtral, rounded, saved, torch

WIDE = {"tie_word_embeddings": True, "intermediate_size": 640}
"""Sizes of experts that are large enough to stay in 16 bits."""
NEGATION = '<ir_version: 10, opset_import: ["" : 24]> g (float[B] x) => (float[B] y) { y = Neg(x) }'


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return saved(mixtral(num_hidden_layers=1), tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    module = mixtral(**WIDE).to(torch.bfloat16)
    return saved(module, tmp_path_factory.mktemp("sharded"), max_shard_size="400KB")


@pytest.fixture
def broken(whole: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(whole, tmp_path / "broken"))


@pytest.fixture
def broken_shards(sharded: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(sharded, tmp_path / "broken"))


def refuse(folder: pathlib.Path, message: str, kind: type[MoecError] = MoecError) -> None:
    with pytest.raises(kind, match=message) as caught:
        import_folder(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def change_index(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= changes
    path.write_text(json.dumps(index))
    return folder


def test_a_folder_is_compiled(whole: pathlib.Path) -> None:
    compiled = moec.compile(whole)
    agree(compiled, mixtral(num_hidden_layers=1))
    assert blocks(compiled) == [(4, 2)]
    assert str(compiled.inputs[0]) == "input_ids int64[batch,length]"
    assert [state.input for state in compiled.states] == ["past_key_0", "past_value_0"]
    verification = verify(whole, compiled)
    assert verification.matches
    assert verification.failures == []
    assert any("no folders of Hugging Face models" in note for note in verification.notes)


@pytest.mark.parametrize("cache", [None, False])
def test_a_cache_that_cannot_be_had_is_a_note(cache: bool | None, whole: pathlib.Path, monkeypatch: Any) -> None:
    built = onnx_ir.from_onnx_text(NEGATION)

    def import_module(*_: Any, cache: bool = False, **__: Any) -> onnx_ir.Model:
        if cache:
            raise UnsupportedError("it keeps what moec does not know")
        return built

    monkeypatch.setattr(pytorch, "import_module", import_module)
    notes = conditions.read(import_folder(whole, cache), "").notes
    assert notes == (() if cache is False else ("it keeps nothing from run to run: it keeps what moec does not know",))
    with pytest.raises(UnsupportedError):
        import_folder(whole, cache=True)


@pytest.mark.nightly
def test_shards_in_bfloat16_with_a_shared_embedding_are_computed_with_in_float32(sharded: pathlib.Path) -> None:
    assert len(list(sharded.glob("*.safetensors"))) > 1
    compiled = moec.compile(sharded)
    agree(compiled, rounded(mixtral(**WIDE), torch.bfloat16))
    assert blocks(compiled) == [(4, 2), (4, 2)]
    assert [state.input for state in compiled.states] == ["past_key_0", "past_value_0", "past_key_1", "past_value_1"]
    formats = {
        name for block in compiled.describe()["moe_blocks"] for names in block["formats"].values() for name in names
    }
    assert formats == {"bfloat16"}


@pytest.mark.nightly
def test_a_module_needs_no_example_inputs() -> None:
    module = mixtral(num_hidden_layers=1)
    agree(moec.compile(module), module)
    assert module.config.use_cache


def test_links_are_followed_weights_stay_in_files_and_tensors_that_nothing_uses_are_said(
    broken: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Links as in the cache of the hub."""
    from safetensors.torch import load_file, save_file

    path = broken / "model.safetensors"
    save_file({**load_file(path), "adapter.weight": torch.ones(2)}, path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(broken / name)
    model = import_folder(tmp_path, cache=False)
    assert model.graph.outputs[0].name == "logits"
    assert conditions.read(model, "").unused == ("adapter.weight",)
    constants = model.graph.initializers
    assert any(value.const_value is not None and value.const_value.size > 1024 for value in constants.values())
    arrays = [value.const_value.raw for value in constants.values() if hasattr(value.const_value, "raw")]
    assert all(getattr(array, "size", 0) <= 1024 for array in arrays)


def test_only_paths_of_folders_are_folders(whole: pathlib.Path) -> None:
    assert is_folder(whole) and is_folder(str(whole))
    assert not is_folder(whole / "config.json") and not is_folder(torch.nn.Linear(1, 1))


def test_without_config(broken: pathlib.Path) -> None:
    (broken / "config.json").unlink()
    refuse(broken, "has no config.json; expected an ONNX file, or a folder")


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), ("[]", "holds a list"), ("{}", "names no model_type"), ("\xff", "JSON")]
)
def test_config_that_says_nothing(broken: pathlib.Path, text: str, message: str) -> None:
    (broken / "config.json").write_text(text, encoding="latin-1")
    refuse(broken, message)


def test_without_weights(broken: pathlib.Path) -> None:
    (broken / "model.safetensors").unlink()
    refuse(broken, "has no weights; expected model.safetensors")


def test_pickled_weights_are_never_opened(broken: pathlib.Path) -> None:
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    refuse(broken, "its weights are pickled .pytorch_model.bin.*save_pretrained", UnsupportedError)


def test_a_truncated_file(broken: pathlib.Path) -> None:
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    refuse(broken, "the file is truncated")


def test_a_missing_shard(broken_shards: pathlib.Path) -> None:
    min(broken_shards.glob("*.safetensors")).unlink()
    refuse(broken_shards, "no such file; download the model again")


def test_files_without_index(broken_shards: pathlib.Path) -> None:
    (broken_shards / "model.safetensors.index.json").unlink()
    refuse(broken_shards, "safetensors files and no model.safetensors.index.json")


@pytest.mark.parametrize("place", ["../model.safetensors", "/etc/passwd", "..", "a\\b", "", 3])
def test_an_index_that_leaves_the_folder(broken_shards: pathlib.Path, place: Any) -> None:
    refuse(change_index(broken_shards, **{"model.norm.weight": place}), "expected the name of a file there")


def test_an_index_of_other_files(broken_shards: pathlib.Path) -> None:
    first = min(broken_shards.glob("*.safetensors")).name
    refuse(change_index(broken_shards, other=first), "'other' is missing in .*, where it is listed")


def test_a_tensor_that_the_index_lacks(broken_shards: pathlib.Path) -> None:
    path = broken_shards / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"].pop("model.norm.weight")
    path.write_text(json.dumps(index))
    refuse(broken_shards, "holds tensor 'model.norm.weight', which is missing in")


def test_sizes_that_config_does_not_ask_for(broken: pathlib.Path) -> None:
    change_config(broken, vocab_size=65)
    refuse(broken, r"is \[64, 32\], but config.json asks for \[65, 32\]")


def test_more_layers_than_there_are(broken: pathlib.Path) -> None:
    change_config(broken, num_hidden_layers=2)
    refuse(broken, "no tensor of its files is model.layers.1")


def test_a_configuration_that_makes_no_model(broken: pathlib.Path) -> None:
    change_config(broken, hidden_size="many")
    refuse(broken, "transformers cannot make a mixtral of its config.json", UnsupportedError)


def test_a_model_that_transformers_does_not_know(broken: pathlib.Path) -> None:
    change_config(broken, model_type="mixtral9")
    refuse(broken, "'mixtral9' is not known to transformers", UnsupportedError)


def test_code_of_the_folder_is_never_run(broken: pathlib.Path) -> None:
    change_config(broken, model_type="mine", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    (broken / "modeling_mine.py").write_text("raise SystemExit('it was run')")
    refuse(broken, "which moec never runs", UnsupportedError)


def test_an_unknown_way_of_quantising(broken: pathlib.Path) -> None:
    change_config(broken, quantization_config={"quant_method": "mine"})
    refuse(broken, "it is quantised by 'mine'; expected", UnsupportedError)


def test_without_transformers(whole: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.conversion_mapping", None)
    refuse(whole, r'needs PyTorch and transformers 5: pip install -U "moec\[torch\]"')


def test_a_model_of_images(broken: pathlib.Path) -> None:
    change_config(broken, model_type="vit", architectures=["ViTModel"])
    refuse(broken, "ViTModel takes no input_ids; folders of text models are compiled", UnsupportedError)


def test_a_class_that_is_no_model(broken: pathlib.Path, monkeypatch: Any) -> None:
    taken = []

    def import_module(module: Any, **_: Any) -> onnx_ir.Model:
        taken.append(type(module).__name__)
        return onnx_ir.from_onnx_text(NEGATION)

    monkeypatch.setattr(pytorch, "import_module", import_module)
    change_config(broken, architectures=["AutoConfig"])
    import_folder(broken, cache=False)
    assert taken == ["MixtralForCausalLM"]
    change_config(broken, model_type="vit", architectures=["nothing"])
    refuse(broken, "names the architectures .*, of which transformers has none", UnsupportedError)
