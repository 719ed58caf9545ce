"""MTP layers of folders: the formula against PyTorch, the same texts with drafts, and what is refused."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import moec
from moec.common.errors import MoecError, UnsupportedError
from moec.frontend.huggingface import import_with_mtp
from moec.frontend.onnx import conditions
from moec.frontend.pytorch import importer
from moec.ir.interpreter import run
from moec.ir.verifier import verify
from moec.runtime.draft_limit import DraftLimit

from .models import mixtral, saved, torch, transformers
from .mtp_folders import BEHIND, FAMILIES, LAYERS, PARTS, VOCABULARY, WIDTH, write_folder

SPLIT = 4


def expected(layer: Any, tensors: Any, family: str, ids: Any, hidden: Any) -> tuple[Any, Any]:
    """Compute logits and hidden states of the MTP layer by its formula."""
    enorm, hnorm, projection = (tensors[name] for name in PARTS[FAMILIES[family]])
    if "Qwen3" in family:
        enorm, hnorm = enorm + 1, hnorm + 1
    epsilon = layer.config.rms_norm_eps

    def normal(x: Any) -> Any:
        return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + epsilon)

    x = torch.cat([normal(layer.model.embed_tokens(ids)) * enorm, normal(hidden) * hnorm], dim=-1) @ projection.T
    states = layer.model(inputs_embeds=x).last_hidden_state
    return layer.lm_head(states), states


def example(length: int = 9) -> tuple[Any, Any]:
    torch.manual_seed(1)
    return torch.randint(0, VOCABULARY, (1, length)), torch.randn(1, length, WIDTH)


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["Glm4Moe", "DeepseekV3"])
def test_the_formula_is_that_of_transformers(family: str, tmp_path: pathlib.Path) -> None:
    """Its MTP layers take the model's tables, and know the names of the families' own sizes only."""
    layers = pytest.importorskip("transformers.modeling_layers")
    if not hasattr(layers, "MtpModel"):
        pytest.skip("this version of transformers has no MTP layers")
    _, layer, tensors = write_folder(tmp_path, family)
    module = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    module._keys_to_ignore_on_load_unexpected = [re.escape(BEHIND)]
    mtp = layers.MtpModel.from_pretrained(module)
    mtp.embed_tokens = layer.model.embed_tokens
    ids, hidden = example()
    cache = transformers.cache_utils.MtpCache(config=module.config.get_mtp_config())
    with torch.no_grad():
        actual = mtp.forward_layer(0, hidden, 1 + torch.arange(ids.shape[1])[None], cache, input_ids=ids)
        torch.testing.assert_close(actual, expected(layer, tensors, family, ids, hidden)[1], rtol=1e-4, atol=1e-5)


def empty_model() -> ir.Model:
    return ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)


@pytest.mark.parametrize("family", FAMILIES)
def test_modules_with_weights_of_files_compute_the_formula(
    family: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules are compared before their export, which takes longest."""
    model, layer, tensors = write_folder(tmp_path, family)
    exported: list[Any] = []

    def export(module: Any, weights: Any, cache: bool) -> ir.Model:
        numbers = {name: torch.tensor(np.array(weight.data.read())) for name, weight in weights.weights.items()}
        module.load_state_dict(numbers, strict=False, assign=True)
        exported.append(module)
        assert cache
        return empty_model()

    monkeypatch.setattr(importer, "import_module", export)
    import_with_mtp(tmp_path)
    ids, hidden = example()
    with torch.no_grad():
        of_model, of_layer = exported[0](input_ids=ids), exported[1](input_ids=ids, previous_hidden=hidden)
        logits, states = expected(layer, tensors, family, ids, hidden)
        torch.testing.assert_close(of_model.logits, model(input_ids=ids).logits)
        torch.testing.assert_close(of_model.hidden, model.model(input_ids=ids).last_hidden_state)
    torch.testing.assert_close(of_layer.logits, logits)
    torch.testing.assert_close(of_layer.hidden, states)


def test_an_exported_layer_computes_the_formula(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, layer, tensors = write_folder(tmp_path, "Glm4Moe")
    import_module = importer.import_module

    def export(module: Any, **options: Any) -> ir.Model:
        return import_module(module, **options) if hasattr(module, "eh_proj") else empty_model()

    monkeypatch.setattr(importer, "import_module", export)
    mtp, (ids, hidden) = import_with_mtp(tmp_path)[1], example()
    verify(mtp)
    past = {f"past_{name}_0": np.zeros((1, 2, 0, 8), np.float32) for name in ("key", "value")}
    parts = []
    for part in (slice(SPLIT), slice(SPLIT, None)):
        results = run(mtp, {"input_ids": ids[:, part].numpy(), "previous_hidden": hidden[:, part].numpy(), **past})
        parts.append((results.pop("logits"), results.pop("hidden")))
        past = {name.replace("present", "past"): value for name, value in results.items()}
    with torch.no_grad():
        both = expected(layer, tensors, "Glm4Moe", ids, hidden)
    for actual, right in zip(zip(*parts, strict=True), both, strict=True):
        np.testing.assert_allclose(np.concatenate(actual, axis=1), right.numpy(), rtol=0, atol=1e-5)


@pytest.mark.nightly
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_layers_compute_the_formula_and_draft(family: str, tmp_path: pathlib.Path) -> None:
    model, layer, tensors = write_folder(tmp_path, family)
    compiled, (ids, hidden) = moec.compile(tmp_path, drafts="mtp"), example()
    session, parts = compiled.mtp_session(), []
    for part in (slice(SPLIT), slice(SPLIT, None)):
        parts.append(session.run_hidden(ids[:, part].numpy(), last=None, previous_hidden=hidden[:, part].numpy()))
    with torch.no_grad():
        both = expected(layer, tensors, family, ids, hidden)
        plain = model(input_ids=ids).logits.numpy()
    for actual, right in zip(zip(*parts, strict=True), both, strict=True):
        np.testing.assert_allclose(np.concatenate(actual, axis=1), right.numpy(), rtol=0, atol=1e-4)
    logits, states = compiled.session().run_hidden(ids.numpy(), last=None)
    np.testing.assert_allclose(logits, plain, rtol=0, atol=1e-4)
    np.testing.assert_allclose(states @ model.lm_head.weight.detach().numpy().T, logits, rtol=0, atol=1e-4)
    for length in (1, 40):
        assert_same_texts(compiled, [int(token) for token in example(length)[0][0]])


def assert_same_texts(compiled: moec.CompiledModel, prompt: list[int], **options: Any) -> Any:
    (plain,) = moec.generate(compiled, [prompt], max_new_tokens=24, **options)
    (drafted,) = moec.generate(compiled, [prompt], max_new_tokens=24, drafts="mtp", **options)
    assert (drafted.ids, drafted.ended) == (plain.ids, plain.ended) and drafted.drafts.drafted
    return drafted.drafts


@pytest.mark.nightly
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_predict_like_the_model_are_accepted(
    family: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DraftLimit, "count", lambda limit, kind: min(3, limit._most))
    write_folder(tmp_path, family, certain=True)
    compiled = moec.compile(tmp_path, drafts="mtp", passes="O1")
    figures = assert_same_texts(compiled, [3, 7, 9])
    assert figures.accepted == figures.drafted
    other = assert_same_texts(compiled, [3, 7, 9], temperature=2.0)
    assert other.accepted < other.drafted
    tables = [weight.name for weight in compiled.artifact.manifest.weights if re.search("embed|lm_head", weight.name)]
    assert len(tables) == len(set(tables)) > 0


def test_tensors_that_do_not_draft_are_told(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    further = [f"{BEHIND}other.weight", f"model.layers.{LAYERS + 1}.enorm.weight"]
    write_folder(tmp_path, "Glm4Moe", **{name: torch.ones(WIDTH) for name in further})
    monkeypatch.setattr(importer, "import_module", lambda module, **options: empty_model())
    assert sorted(conditions.read(import_with_mtp(tmp_path)[0], "").unused) == further


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("Glm4Moe", {f"{BEHIND}enorm.weight": None}, r"no tensor of its files is model\.layers\.2\.enorm\.weight"),
        (
            "Glm4Moe",
            {f"{BEHIND}eh_proj.weight": torch.ones(32, 32)},
            r"2\.eh_proj\.weight'?: is \[32, 32\], .*\[32, 64\]",
        ),
        ("Glm4Moe", {f"{BEHIND}shared_head.norm.weight": None}, r"is model\.layers\.2\.shared_head\.norm\.weight"),
        ("Glm4Moe", {f"{BEHIND}self_attn.q_proj.weight": None}, r"is model\.layers\.2\.self_attn\.q_proj\.weight"),
        ("Qwen3Next", {"mtp.norm.weight": torch.ones(31)}, r"mtp\.norm\.weight'?: is \[31\], .* for \[32\]"),
        ("Qwen3Next", {"mtp.fc.weight": None}, r"no tensor of its files is mtp\.fc\.weight"),
        ("Ernie4_5_Moe", {"model.mtp_linear_proj.0.weight": None}, r"is model\.mtp_linear_proj\.0\.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    family: str, changes: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    write_folder(tmp_path, family, **changes)
    with pytest.raises(MoecError, match=message):
        import_with_mtp(tmp_path)


def test_folders_without_layers_are_refused(tmp_path: pathlib.Path) -> None:
    tensors = write_folder(tmp_path / "a", "Glm4Moe")[2]
    write_folder(tmp_path / "b", "Glm4Moe", **{name: None for name in tensors if name.startswith(BEHIND)})
    with pytest.raises(MoecError, match=r"no MTP layers to draft with: no tensor .* starts with model\.layers\.2\.;"):
        import_with_mtp(tmp_path / "b")
    saved(mixtral(), tmp_path / "c")
    with pytest.raises(
        UnsupportedError, match="does not know the MTP layers of mixtral; it knows those of deepseek_v3"
    ):
        import_with_mtp(tmp_path / "c")
