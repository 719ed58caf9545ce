"""Folders for onnxruntime-genai, which generates the tokens that the model's own logits say."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import onnx
import pytest

import moec
from moec.common.errors import MoecError, UnsupportedError
from moec.tools.reference import open_session, run_session
from tests.frontend.gguf.gguf_files import write_file
from tests.frontend.gguf.tiny_models import MODELS, VOCABULARY, Tiny, write_model

TOKENIZER: dict[str, Any] = {
    "model": "gpt2",
    "pre": "gpt-2",
    "tokens": [*"abcdefghijklmnopqrstuvwxyz0123456789!?", "<s>", "</s>"],
    "merges": [],
    "bos_token_id": 38,
    "eos_token_id": 39,
}
SWITCHES, SWITCH = "phimoe, long", 8
"""Model whose keys all rotate otherwise in texts of more tokens."""
END = TOKENIZER["eos_token_id"]
IDS = [3, 17, 0, 22, 5, 11]
LONGER = [*IDS, *IDS[::-1], *IDS[::2], 30, 8, 1, 25, 13]
"""Tokens beyond the window of 5 of some models."""


def speaking(name: str, path: pathlib.Path, length: int = 64, **further: Any) -> pathlib.Path:
    """Write the tiny model of that name, with a tokenizer of 40 letters and digits. ``length``: of its context."""
    architecture, make, options = MODELS[name]
    tiny = Tiny(architecture, "F32")
    make(tiny, **{**options, **further})
    tiny.given["context_length"] = length
    tiny.tokenizer = {**TOKENIZER, "token_type": [1] * 38 + [3] * 2}
    metadata = {**tiny.metadata(), "tokenizer.chat_template": "{{ messages[0]['content'] }}"}
    return write_file(path, metadata, tiny.tensors)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return speaking("mixtral", tmp_path_factory.mktemp("genai") / "model.gguf")


@pytest.fixture(scope="module")
def exported(source: pathlib.Path) -> pathlib.Path:
    output = source.parent / "out"
    result = moec.export(source, output, form="genai")
    assert {remark.severity for remark in result.remarks} == {"note"}
    assert [part.written_as for part in result.parts] == ["com.microsoft.MoE"] * 2
    return output


def config_of(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / "genai_config.json").read_text())


def greedy(source: pathlib.Path, folder: pathlib.Path, ids: list[int], count: int) -> list[int]:
    """Take the best tokens of the model without a cache, as exported for onnxruntime."""
    path = folder / "plain.onnx"
    if not path.exists():
        moec.export(source, path, form="onnxruntime", cache=False)
    session, ids = open_session(path, 1), list(ids)
    for _ in range(count):
        best = int(run_session(session, {"input_ids": np.array([ids])})["logits"][0, -1].argmax())
        if best == END:  # genai leaves it out, too
            break
        ids.append(best)
    return ids


def generate(genai: Any, folder: pathlib.Path, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Let onnxruntime-genai add ``count`` tokens to prompts, to shorter ones after padding."""
    model, longest = genai.Model(str(folder)), max(map(len, prompts))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=longest + count, batch_size=len(prompts))
    generator = genai.Generator(model, parameters)
    padding = config_of(folder)["model"]["pad_token_id"]
    padded = [[*prompt, *[padding] * (longest - len(prompt))] for prompt in prompts]
    generator.append_tokens(padded if len(prompts) > 1 else prompts[0])
    while not generator.is_done():
        generator.generate_next_token()
    return [generator.get_sequence(row).tolist() for row in range(len(prompts))]


@pytest.fixture
def genai() -> Any:
    return pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai: pip install onnxruntime-genai")


def test_a_folder_has_graph_settings_and_tokenizer(exported):
    files = ["genai_config.json", "model.onnx", "model.onnx.data", "moec-files.txt"]
    assert sorted(path.name for path in exported.iterdir()) == [*files, "tokenizer.json", "tokenizer_config.json"]
    settings = json.loads((exported / "tokenizer_config.json").read_text())
    assert settings["chat_template"].startswith("{{ messages") and settings["eos_token"] == "</s>"
    model = config_of(exported)["model"]
    assert (model["type"], model["vocab_size"], model["context_length"]) == ("decoder", VOCABULARY, 64)
    assert (model["eos_token_id"], model["bos_token_id"], model["pad_token_id"]) == ([END], 38, END)
    assert config_of(exported)["search"]["max_length"] == 64


def test_settings_name_what_the_graph_has(exported):
    graph = onnx.load(exported / "model.onnx", load_external_data=False).graph
    decoder = config_of(exported)["model"]["decoder"]
    layers = range(decoder["num_hidden_layers"])

    def names(side: str) -> set[str]:
        named = decoder[side].values()
        return {name % layer for name in named if "%d" in name for layer in layers} | {n for n in named if "%" not in n}

    assert names("inputs") == {value.name for value in graph.input}
    assert names("outputs") == {value.name for value in graph.output}
    caches = [
        value.type.tensor_type for value in [*graph.input, *graph.output] if value.name.endswith((".key", ".value"))
    ]
    assert len(caches) == 8 and {cache.elem_type for cache in caches} == {onnx.TensorProto.FLOAT}
    for cache in caches:
        sizes = [dim.dim_value for dim in cache.shape.dim]
        assert sizes == [0, decoder["num_key_value_heads"], 0, decoder["head_size"]]


def steps(folder: pathlib.Path, parts: list[list[list[int]]]) -> list[np.ndarray]:
    """Run tokens part by part as genai does, with the names of its settings. Returns the logits of each part."""
    session, decoder = open_session(folder / "model.onnx", 1), config_of(folder)["model"]["decoder"]
    shape = (len(parts[0]), decoder["num_key_value_heads"], 0, decoder["head_size"])
    names = [(f"{kind}_names", layer) for kind in ("key", "value") for layer in range(decoder["num_hidden_layers"])]
    past = {place: np.zeros(shape, np.float32) for place in names}
    logits, total = [], 0
    for part in parts:
        total += len(part[0])
        caches = {decoder["inputs"][f"past_{kind}"] % layer: past[kind, layer] for kind, layer in names}
        mask = np.ones((len(part), total), np.int64)
        results = run_session(session, {"input_ids": np.array(part), "attention_mask": mask, **caches})
        past = {(kind, at): results[decoder["outputs"][f"present_{kind}"] % at] for kind, at in names}
        logits.append(results["logits"])
    return logits


def test_onnxruntime_alone_continues_from_caches(source, exported, tmp_path):
    plain = tmp_path / "plain.onnx"
    moec.export(source, plain, cache=False)
    expected = run_session(open_session(plain, 1), {"input_ids": np.array([IDS, IDS[::-1]])})["logits"]
    actual = steps(exported, [[IDS[:4], IDS[::-1][:4]], [IDS[4:], IDS[::-1][4:]]])
    np.testing.assert_allclose(np.concatenate(actual, axis=1), expected, rtol=0, atol=1e-5)


def test_a_padded_prompt_is_no_result(exported):
    session = open_session(exported / "model.onnx", 1)
    caches = {value.name: np.zeros((1, 2, 0, 8), np.float32) for value in session.get_inputs() if "past" in value.name}
    ids = {"input_ids": np.array([IDS]), **caches}
    run_session(session, {**ids, "attention_mask": np.ones((1, 6), np.int64)})
    with pytest.raises(Exception, match="prompts of a batch need one length"):
        session.run(None, {**ids, "attention_mask": np.array([[1, 1, 1, 1, 1, 0]])})


def test_genai_takes_the_best_tokens(genai, source, exported, tmp_path):
    prompts = [IDS, IDS[::-1]]
    expected = [greedy(source, tmp_path, ids, 12) for ids in prompts]
    assert generate(genai, exported, prompts[:1], 12) == expected[:1]
    both = generate(genai, exported, prompts, 12)
    assert [row[: len(best)] for row, best in zip(both, expected, strict=True)] == expected
    text = genai.Tokenizer(genai.Model(str(exported)))
    assert text.encode("cab12").tolist() == [2, 0, 1, 27, 28] and text.decode([2, 0, 1]) == "cab"
    assert text.apply_chat_template(messages=json.dumps([{"role": "user", "content": "dear"}])) == "dear"


def test_genai_pads_ends_alone_and_that_fails(genai, source, exported, tmp_path):
    """The token of padding counts where it is none: in a single prompt, and before others in a batch."""
    with pytest.raises(RuntimeError, match="prompts of a batch need one length"):
        generate(genai, exported, [IDS, IDS[:4]], 2)
    alone, first = [3, END, 5, END], [END, END, 5, 3]
    assert generate(genai, exported, [alone], 4) == [greedy(source, tmp_path, alone, 4)]
    expected = [greedy(source, tmp_path, prompt, 4) for prompt in (first, IDS[:4])]
    assert generate(genai, exported, [first, IDS[:4]], 4) == expected


@pytest.mark.nightly
@pytest.mark.parametrize("name", sorted(MODELS.keys() - {SWITCHES}))
def test_every_architecture_of_gguf_files(genai, name, tmp_path):
    path, output = speaking(name, tmp_path / "model.gguf"), tmp_path / "out"
    moec.export(path, output, form="genai")
    for prompt in (IDS, LONGER):
        assert generate(genai, output, [prompt], 20) == [greedy(path, tmp_path, prompt, 20)]


@pytest.mark.nightly
def test_frequencies_do_not_switch_in_a_cache(genai, tmp_path):
    path, output = speaking(SWITCHES, tmp_path / "model.gguf"), tmp_path / "out"
    moec.export(path, output, form="genai")
    assert config_of(output)["model"]["type"] == "decoder"
    for prompt, count in ((IDS[:4], SWITCH - 4), (LONGER[: SWITCH + 1], 9)):
        assert generate(genai, output, [prompt], count) == [greedy(path, tmp_path, prompt, count)]
    with pytest.raises(RuntimeError, match="a text that grows beyond 8 tokens has to be given anew"):
        generate(genai, output, [IDS[:4]], SWITCH + 9 - 4)


@pytest.mark.nightly
def test_genai_gives_texts_anew_at_a_switch_after_4096_tokens(genai, tmp_path):
    path, output = speaking(SWITCHES, tmp_path / "model.gguf", original=4096, length=1 << 14), tmp_path / "out"
    moec.export(path, output, form="genai")
    prompt = (LONGER * 200)[:4092]
    assert generate(genai, output, [prompt], 9) == [greedy(path, tmp_path, prompt, 9)]


def test_what_genai_cannot_have_is_refused(source, tmp_path):
    no_text = write_model("llama", tmp_path / "model.gguf")
    before = sorted(tmp_path.iterdir())
    for path, options, message in (
        (source, {"cache": False}, "cache: onnxruntime-genai keeps keys and values itself"),
        (no_text, {}, "no token of the 40 ends a text"),
        (tmp_path / "model.onnx", {}, "no such file"),
    ):
        with pytest.raises(MoecError, match=message):
            moec.export(path, tmp_path / "out", form="genai", **options)
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(
        UnsupportedError, match="come from folders of Hugging Face models and GGUF files; use --for onnx"
    ):
        moec.export(tmp_path / "model.onnx", tmp_path / "out", form="genai")
    (tmp_path / "model.onnx").unlink()
    assert sorted(tmp_path.iterdir()) == before


def test_only_an_unchanged_folder_of_moec_is_replaced(source, exported):
    listed = (exported / "moec-files.txt").read_bytes()
    moec.export(source, exported, form="genai")
    assert (exported / "moec-files.txt").read_bytes() == listed
    mine = exported / "mine.txt"
    mine.write_text("")
    with pytest.raises(MoecError, match="changed since moec wrote it"):
        moec.export(source, exported, form="genai")
    mine.unlink()
