"""Checks of kernels' texts: short lines, plain literals, and no name that nothing uses."""

from __future__ import annotations

import pathlib
import re

from moec.common.short_lines import WIDTH
from moec.targets.tvm.text.steps import STEP

_TYPED_LITERAL = {
    "tir": re.compile(r"T\.(?:int|uint|float|bool)\d*\(-?[\d.]"),
    "cuda": re.compile(r"0x[\da-f.]+p[-+]\d|\(uint\)\d|[=+*] \(int64_t\)\d"),
}
_NAME = {"tir": re.compile(r"(\w+): T\.let"), "cuda": re.compile(r"^ +(?:int|int64_t|float) (\w+) = ", re.MULTILINE)}
FORMS = {".tir": "tir", ".cu": "cuda"}
"""Forms of text by the endings of files."""


def unreadable_parts(text: str, form: str = "") -> list[str]:
    """Long lines, literals with types, and names that stand only where they are bound. ``form``: tir, cuda, or another
    one, of which only lines are checked."""
    found = [line for line in text.splitlines() if len(line) > WIDTH]
    if form in _NAME:
        found += _TYPED_LITERAL[form].findall(text)
        found += [name for name in _NAME[form].findall(text) if len(re.findall(rf"\b{name}\b", text)) == 1]
    return found


def check_sources(folder: pathlib.Path) -> None:
    """Assert that all texts in TIR and CUDA C of an artifact's ``src`` are readable and begin with a comment."""
    texts = {path.name: path.read_text() for path in folder.iterdir() if path.suffix in FORMS}
    assert len(texts) > 20
    for name, text in texts.items():
        assert not unreadable_parts(text, FORMS[pathlib.Path(name).suffix]), name
        assert text.startswith(("# ", "// ")) or name == "all_kernels.cu", name
        assert STEP not in text, name
    combining = [text for name, text in texts.items() if name.startswith("moe_combine")]
    assert combining and all("Combin" in text.partition("\n\n")[0] for text in combining)
