"""Settings for onnxruntime-genai, from those of Hugging Face folders."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from moec.common.errors import MoecError
from moec.exporting.genai_config import Settings, content, settings_of
from moec.exporting.genai_graph import Decoder


def folder_of(path: pathlib.Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> pathlib.Path:
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


def test_settings_of_generation_come_before_those_of_the_model(tmp_path):
    config = {"max_position_embeddings": 512, "eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 3}
    generation = {"eos_token_id": [4, 5], "pad_token_id": None, "bos_token_id": 6, "do_sample": True, "top_p": 0.9}
    settings = settings_of(folder_of(tmp_path, config, generation))
    assert settings == Settings(512, (4, 5), 6, 3, {"do_sample": True, "top_p": 0.9})


def test_the_language_model_of_a_model_that_sees_has_the_settings(tmp_path):
    inner = {"max_position_embeddings": 64, "eos_token_id": 7, "bos_token_id": 8}
    assert settings_of(folder_of(tmp_path, {"text_config": inner})) == Settings(64, (7,), 8)


def test_settings_that_genai_does_not_have_are_said_and_wrong_ones_refused(tmp_path):
    generation = {"min_p": 0.1, "typical_p": None, "top_k": 20, "transformers_version": "5", "max_length": 20}
    settings = settings_of(folder_of(tmp_path, {"n_positions": 32}, generation))
    assert settings.remarks == ("generation_config.json: onnxruntime-genai has no setting min_p",)
    assert (settings.length, settings.search) == (32, {"top_k": 20})
    for name, value in (("top_k", True), ("temperature", "hot"), ("do_sample", 1), ("top_k", 1 << 40)):
        with pytest.raises(MoecError, match=rf"generation_config.json: {name} is {value}; expected"):
            settings_of(folder_of(tmp_path, {}, {name: value}))


LONG = {"rope_type": "longrope", "long_factor": [2.0], "short_factor": [1.0]}


@pytest.mark.parametrize(
    ("config", "switch", "kind"),
    [
        ({"rope_parameters": {**LONG, "original_max_position_embeddings": 4096}}, 4096, "phi3"),
        ({"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 4096}, 4096, "phi3"),
        ({"rope_parameters": {"full_attention": {**LONG, "original_max_position_embeddings": 20}}}, 20, "decoder"),
        ({"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 4096}}, None, "decoder"),
    ],
)
def test_models_of_two_tables_of_frequencies_switch(config, switch, kind, tmp_path):
    settings = settings_of(folder_of(tmp_path, config))
    assert settings.switches_after == switch
    assert content(Decoder(10), settings, (9,), "model.onnx")["model"]["type"] == kind


def test_ids_outside_of_the_vocabulary_are_left_out():
    decoder = Decoder(10, 2, 3, 4)
    model = content(decoder, Settings(None, (), 12, 11), (20, 9), "model.onnx")["model"]
    assert (model["eos_token_id"], model["pad_token_id"], model["context_length"]) == ([9], 9, 4096)
    assert "bos_token_id" not in model and model["decoder"]["head_size"] == 4
    with pytest.raises(MoecError, match="no token of the 10 ends a text"):
        content(decoder, Settings(), (10,), "model.onnx")
