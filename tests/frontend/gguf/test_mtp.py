"""MTP layers of GGUF files: the formula against numpy, which tables they share, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moec.common.errors import MoecError, UnsupportedError
from moec.frontend.gguf import import_file, import_with_mtp
from moec.frontend.sources import import_with_mtp as import_any
from moec.ir.interpreter import run
from moec.ir.verifier import verify

from .gguf_files import stored, write_file
from .mtp_models import LAYER, NAMES, mtp_tiny, write_mtp
from .tiny_models import VOCABULARY, Tiny, write_model

Array = np.ndarray[Any, Any]
NEXTN = f"blk.{LAYER}.nextn"
SPLIT = 7


def numbers(tiny: Tiny, name: str) -> Array:
    tensor = tiny.tensors[name]
    return np.frombuffer(tensor.data, np.float32).reshape(tensor.shape)


def normal(tiny: Tiny, x: Array, name: str) -> Array:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-5) * numbers(tiny, f"{name}.weight")


def projected(tiny: Tiny, ids: Array, hidden: Array) -> Array:
    """Compute what the layer's block takes, by the formula."""
    embedded = numbers(tiny, "token_embd.weight")[ids]
    both = np.hstack([normal(tiny, embedded, f"{NEXTN}.enorm"), normal(tiny, hidden, f"{NEXTN}.hnorm")])
    return both @ numbers(tiny, f"{NEXTN}.eh_proj.weight").T


def model_of_the_block(tiny: Tiny, path: Path, rows: Array) -> Any:
    """A model whose only layer is the block of the MTP layer, and whose embedding are ``rows``."""
    start = f"blk.{LAYER}."
    tensors = {
        name.replace(start, "blk.0."): tensor
        for name, tensor in tiny.tensors.items()
        if name.startswith(start) and NEXTN not in name
    }
    tensors |= {"token_embd.weight": stored(rows), "output.weight": tiny.tensors["output.weight"]}
    tensors["output_norm.weight"] = tiny.tensors[f"{NEXTN}.shared_head_norm.weight"]
    changes = {
        "block_count": 1,
        "nextn_predict_layers": 0,
        "leading_dense_block_count": 0,
        "full_attention_interval": 1,
    }
    tiny.given |= {key: value for key, value in changes.items() if key in tiny.given}
    return import_file(write_file(path, tiny.metadata(), tensors))


def past_of(model: Any) -> dict[str, Array]:
    sizes = {"batch": 1, "past": 0}
    inputs = (value for value in model.graph.inputs if value.name.startswith("past"))
    return {
        value.name: np.zeros([size if isinstance(size, int) else sizes[str(size)] for size in value.shape], np.float32)
        for value in inputs
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_layer_computes_its_formula(name: str, tmp_path: Path) -> None:
    model, mtp = import_with_mtp(write_mtp(tmp_path / "model.gguf", name))
    verify(model)
    verify(mtp)
    random = np.random.default_rng(0)
    ids, hidden = random.permutation(VOCABULARY), random.standard_normal((VOCABULARY, 32)).astype(np.float32)
    past, parts = past_of(mtp), []
    for part in (slice(SPLIT), slice(SPLIT, None)):
        results = run(mtp, {"input_ids": ids[None, part], "previous_hidden": hidden[None, part], **past})
        parts.append(results.pop("logits")[0])
        states = results.pop("hidden")[0]
        past = {name.replace("present", "past"): value for name, value in results.items()}
    tiny = mtp_tiny(name)
    block = model_of_the_block(tiny, tmp_path / "block.gguf", projected(tiny, ids, hidden))
    expected = run(block, {"input_ids": np.arange(VOCABULARY)[None]})["logits"][0]
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(states @ numbers(tiny, "output.weight").T, parts[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES[:2])
def test_the_model_is_the_same_and_gives_its_hidden_states(name: str, tmp_path: Path) -> None:
    path, tiny = write_mtp(tmp_path / "model.gguf", name), mtp_tiny(name)
    model, feeds = import_with_mtp(path)[0], {"input_ids": np.arange(9)[None]}
    actual, expected = run(model, feeds | past_of(model)), run(import_file(path), feeds)
    np.testing.assert_array_equal(actual["logits"], expected["logits"])
    np.testing.assert_allclose(actual["hidden"] @ numbers(tiny, "output.weight").T, actual["logits"], atol=1e-4)
    assert "hidden" not in expected


def test_tensors_of_the_layer_are_unused_without_it_and_no_others_with_it(tmp_path: Path) -> None:
    path = write_mtp(tmp_path / "model.gguf", "glm4moe")
    assert f"{NEXTN}.eh_proj.weight" in import_file(path).metadata_props["moec.conditions"]
    assert NEXTN not in str(import_with_mtp(path)[0].metadata_props)


def test_only_the_first_of_several_layers_is_built(tmp_path: Path) -> None:
    tiny = mtp_tiny("glm4moe")
    further = {
        name.replace(f"blk.{LAYER}.", f"blk.{LAYER + 1}."): tensor
        for name, tensor in tiny.tensors.items()
        if name.startswith(f"blk.{LAYER}.")
    }
    tiny.given |= {"block_count": LAYER + 2, "nextn_predict_layers": 2}
    path = write_file(tmp_path / "model.gguf", tiny.metadata(), tiny.tensors | further)
    model, mtp = import_with_mtp(path)
    assert f"blk.{LAYER + 1}.nextn.eh_proj.weight" in model.metadata_props["moec.conditions"]
    assert [value.name for value in mtp.graph.inputs][2:] == [f"past_key_{LAYER}", f"past_value_{LAYER}"]


@pytest.mark.parametrize("is_same", [True, False])
def test_equal_tables_are_those_of_the_model(is_same: bool, tmp_path: Path) -> None:
    tiny = mtp_tiny("glm4moe")
    for own, shared in (("embed_tokens", "token_embd"), ("shared_head_head", "output")):
        table = numbers(tiny, f"{shared}.weight")
        tiny.tensors[f"{NEXTN}.{own}.weight"] = stored(table if is_same else table + 1)
    mtp = import_with_mtp(write_file(tmp_path / "model.gguf", tiny.metadata(), tiny.tensors))[1]
    names = set(mtp.graph.initializers)
    assert ({"token_embd.weight", "output.weight"} <= names) == is_same
    assert (f"{NEXTN}.shared_head_head.weight" in names) != is_same


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nextn_predict_layers": 0}, "has no MTP layers to draft with: glm4moe.nextn_predict_layers is 0"),
        ({"nextn_predict_layers": None}, "its metadata has no glm4moe.nextn_predict_layers; compile without drafts"),
        ({"nextn_predict_layers": 3}, "glm4moe.block_count is 3; expected 4 to 1024"),
        ({f"{NEXTN}.eh_proj.weight": None}, "has no tensor 'blk.2.nextn.eh_proj.weight', which a model of glm4moe"),
        ({f"{NEXTN}.enorm.weight": stored(np.ones(31))}, r"enorm.weight': is \[31\], but the metadata asks for \[32\]"),
        ({f"{NEXTN}.other.weight": stored(np.ones(32))}, "does not know what this tensor does in a model of glm4moe"),
        ({f"{NEXTN}.shared_head_head.weight": stored(np.ones((39, 32)))}, r"is \[39, 32\], but .* for \[40, 32\]"),
        ({f"blk.{LAYER}.attn_k.weight": None}, "has no tensor 'blk.2.attn_k.weight'"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(MoecError, match=message):
        import_with_mtp(write_mtp(tmp_path / "model.gguf", "glm4moe", None, **changes))


def test_a_file_may_lack_a_norm_of_its_own(tmp_path: Path) -> None:
    changes = {f"{NEXTN}.shared_head_norm.weight": None}
    mtp = import_with_mtp(write_mtp(tmp_path / "model.gguf", "glm4moe", None, **changes))[1]
    assert "output_norm.weight" in mtp.graph.initializers


def test_other_architectures_and_sources_are_refused(tmp_path: Path) -> None:
    path = write_model("dots1", tmp_path / "model.gguf")
    with pytest.raises(MoecError, match="its metadata has no dots1"):
        import_with_mtp(path)
    tiny = Tiny("dots1", "F32")
    tiny.given["nextn_predict_layers"] = 1
    with pytest.raises(UnsupportedError, match="does not know the MTP layers of dots1; it knows those of deepseek2"):
        import_with_mtp(tiny.write(path))
    with pytest.raises(
        UnsupportedError, match="MTP layers are read from GGUF files and folders of Hugging Face models"
    ):
        import_any(tmp_path / "model.onnx")
