"""The commands of docs/export.md, in a new folder and in processes of their own, and what other programs make of their
outputs."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from moec.exporting.forms import FORMS, form_for
from moec.frontend.gguf.file.reader import read_file

from ..c_form.building import built, run
from ..command import moec
from .test_genai import speaking
from .test_onnxruntime_moec import needs_tools

ROOT = pathlib.Path(__file__).parents[2]
TEXT = " ".join("abcdefghijklmnopqrstuvwxyz"[at % 26] for at in range(600))
LOAD = """#include "model.h"
#include <stdio.h>
int main(void) {
    moec_model *model;
    if (moec_load(&model_program, "model/weights.bin", NULL, &model) != MOEC_OK) return 1;
    puts("loaded");
    moec_free(model);
}
"""


def commands() -> list[str]:
    """The lines of the page that run moec."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "docs/export.md").read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("moec ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Models and data of these names, after all commands."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from ..frontend.huggingface.models import mixtral, saved

    folder = tmp_path_factory.mktemp("documented")
    shutil.copy(ROOT / "examples/char_lm/model.onnx", folder)
    speaking("mixtral", folder / "model.gguf")
    saved(mixtral(hidden_size=64, intermediate_size=128), folder / "hf-folder")
    tokenizer = Tokenizer(models.WordLevel({chr(97 + at): at for at in range(26)} | {"</s>": 26}, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "hf-folder/tokenizer.json"))
    (folder / "text.txt").write_text(TEXT)
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for line in commands():
        done = subprocess.run(
            ["bash", "-c", line], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
    return folder


def test_every_form_has_an_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf-folder").mkdir()
    (tmp_path / "hf-folder/config.json").write_text("{}")
    pathlib.Path("model.gguf").write_bytes(b"GGUF")
    words = [line.partition("#")[0].split() for line in commands() if line.startswith("moec export")]
    named = {
        line[line.index("--for") + 1] if "--for" in line else form_for(line[2], line[4], None).name for line in words
    }
    assert named == {form.name for form in FORMS}
    assert any(line.startswith("moec compile") and "--form c" in line for line in commands())


@pytest.mark.nightly
@needs_tools
@pytest.mark.parametrize("output", ["fast.onnx", "kernels", "plain.onnx"])
def test_onnxruntime_computes_the_same(output, folder):
    result = moec("verify", folder / "model.onnx", folder / output)
    assert (result.returncode, "[3, 3, 96]" in result.stdout) == (0, True), result


@pytest.mark.nightly
@needs_tools
def test_a_program_in_c_loads_the_library(folder):
    program = built(folder, LOAD, folder / "model")
    os.chdir(folder)
    assert run([program]) == "loaded\n"


@pytest.mark.nightly
@needs_tools
def test_llama_cpp_reads_the_file(folder):
    before, after = (read_file(folder / name).metadata["llama.expert_count"] for name in ("model.gguf", "small.gguf"))
    assert (before, after) == (6, 5)
    if importlib.util.find_spec("llama_cpp"):
        import llama_cpp

        program = llama_cpp.Llama(str(folder / "small.gguf"), verbose=False, logits_all=True)
        program.eval([3, 17, 0])
        assert np.isfinite(program.scores[:3]).all()


@pytest.mark.nightly
@needs_tools
def test_transformers_reads_the_folders(folder):
    from ..frontend.huggingface.models import torch, transformers

    module = transformers.AutoModelForCausalLM.from_pretrained(folder / "small-folder")
    assert module.config.num_local_experts == 3
    assert module(input_ids=torch.tensor([[3, 17, 0]])).logits.isfinite().all()
    config = json.loads((folder / "int4-folder/config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    if importlib.util.find_spec("compressed_tensors"):
        module = transformers.AutoModelForCausalLM.from_pretrained(folder / "int4-folder")
        assert module(input_ids=torch.tensor([[3, 17, 0]])).logits.isfinite().all()
