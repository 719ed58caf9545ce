"""A folder for onnxruntime-genai as users make and run it, by the lines of docs/export.md; files of its tokenizer."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from moec.common.tokenizers import TextFiles
from moec.exporting.genai import _missing, _write_text
from moec.frontend.text_files import read_text_files

from ..command import moec
from .test_genai import TOKENIZER, greedy, speaking

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "export.md"
SECTION = "## Folders for onnxruntime-genai"
TEXT = {"model": {"type": "WordLevel", "vocab": {"a": 0, "</s>": 1}, "unk_token": "a"}, "added_tokens": []}


def test_the_lines_of_the_page_write_a_text(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai: pip install onnxruntime-genai")
    lines = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8").partition(SECTION)[2], re.DOTALL)
    assert lines is not None
    command = re.search(r"# moec (.*)", lines[1])
    assert command is not None
    source = speaking("lfm2moe", tmp_path / "model.gguf")
    monkeypatch.chdir(tmp_path)
    written = moec(*command[1].split())
    assert written.returncode == 0, written.stderr
    run = [sys.executable, "-c", lines[1]]
    done = subprocess.run(run, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stderr
    tokens = TOKENIZER["tokens"]
    ids = greedy(source, tmp_path, [tokens.index(letter) for letter in "hello"], 64 - len("hello"))
    assert done.stdout.strip() == "".join(tokens[token] for token in ids if token < 38)


def test_files_of_a_tokenizer_are_copied_and_without_settings_made(tmp_path):
    folder, copied, written = (tmp_path / name for name in ("model", "copied", "written"))
    for path in (folder, copied, written):
        path.mkdir()
    files = {"tokenizer.json": json.dumps(TEXT), "tokenizer_config.json": '{"eos_token":  "</s>"}'}
    files |= {"chat_template.jinja": "{{ messages }}", "special_tokens_map.json": "{ }"}
    for name, content in files.items():
        (folder / name).write_text(content)
    text = read_text_files(folder)
    _write_text(copied, text, folder)
    assert {path.name: path.read_text() for path in copied.iterdir()} == files
    (folder / "tokenizer_config.json").unlink()
    _write_text(written, text, folder)
    assert sorted(path.name for path in written.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "chat_template": "{{ messages }}"}
    assert json.loads((written / "tokenizer_config.json").read_text()) == settings


def test_a_missing_tokenizer_and_length_are_said():
    remarks = list(_missing(None, None))
    assert "token ids alone; name one by --tokenizer" in remarks[0] and "no context length; 4096" in remarks[1]
    assert list(_missing(TextFiles("{}", None, (1,), {}), 512)) == []
